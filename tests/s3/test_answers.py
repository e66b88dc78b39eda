"""What each server answers to a PUT that is not what its URL was signed for: where they agree with S3, where not.

S3 answers 403 to each of the first four, and names the unsigned headers in a HeadersNotSigned element. A server that
others wrote need not be S3 to be a platform's storage, so attachd goes by code and sentence before the status.
"""

import asyncio
import re
from urllib.parse import urlsplit

import pytest

from attachd.sandbox import Fault, FaultKind, Sandbox
from attachd.sandbox.storage import ATTACHMENT_ID_HEADER
from tests.sandbox.client import Answered, Client, Ticket

from .servers import Server

UNSIGNED = "There were headers present in the request which were not signed"


async def test_the_file_as_declared(client: Client, platform: Sandbox) -> None:
    """Type and length are signed, and both servers take content-length as a signed header."""
    assert (await client.put(await client.ticket())).status == 200


async def test_another_type(client: Client) -> None:
    """SignatureDoesNotMatch with both, and nothing is stored: so the type of what is stored was really looked at."""
    ticket = await client.ticket()
    assert told(await client.put(ticket, Content_Type="text/plain")) == (403, "SignatureDoesNotMatch")
    await nothing_is_stored(client, ticket)


async def test_another_length(client: Client) -> None:
    """SignatureDoesNotMatch with both."""
    ticket = await client.ticket()
    assert told(await client.put(ticket, b"longer than declared")) == (403, "SignatureDoesNotMatch")
    await nothing_is_stored(client, ticket)


async def test_a_tampered_signature(client: Client) -> None:
    """SignatureDoesNotMatch with both; LocalStack's answer quotes what it would have signed, at more than 2 KB."""
    ticket = await client.ticket()
    ticket.url = re.sub(r"Signature=.{4}", "Signature=0000", ticket.url)
    assert told(await client.put(ticket)) == (403, "SignatureDoesNotMatch")
    await nothing_is_stored(client, ticket)


async def test_an_expired_url(client: Client, platform: Sandbox, server: Server) -> None:
    """AccessDenied with both. LocalStack answers as S3 does, rclone with 400 and a sentence about clocks."""
    platform.on("upload", Fault(FaultKind.EXPIRED_URL))
    ticket = await client.ticket()
    answered = await client.put(ticket)
    expected = {
        "localstack": (403, "Request has expired"),
        "rclone": (
            400,
            "The difference between the request time and the server&#39;s time exceeds the maximum allowed.",
        ),
    }
    assert (answered.status, message(answered)) == expected[server.kind]
    assert told(answered)[1] == "AccessDenied"
    await nothing_is_stored(client, ticket)


async def test_a_header_the_url_does_not_sign(client: Client, server: Server) -> None:
    """AccessDenied and S3's sentence with both; LocalStack names the header as S3 does, rclone does not. Both look at
    the headers before the time: an expired URL with such a header is told the header first.
    """
    for header in (ATTACHMENT_ID_HEADER, "x-amz-tagging"):
        ticket = await client.ticket()
        answered = await client.put(ticket, **{header: ticket.attachment_id})
        assert told(answered) == (403, "AccessDenied")
        assert message(answered) == UNSIGNED
        assert (f"<HeadersNotSigned>{header}</HeadersNotSigned>" in answered.text) == (server.kind == "localstack")
        await nothing_is_stored(client, ticket)


async def test_a_signed_header_that_is_missing(client: Client, platform: Sandbox, server: Server) -> None:
    """LocalStack answers as S3 does; rclone takes it for a header that was not signed."""
    platform.change(signed_headers=["content-length", "content-type", "host", ATTACHMENT_ID_HEADER])
    ticket = await client.ticket()
    answered = await client.put(ticket)
    expected = {"localstack": (403, "SignatureDoesNotMatch"), "rclone": (403, "AccessDenied")}
    assert told(answered) == expected[server.kind]
    if server.kind == "rclone":
        assert message(answered) == UNSIGNED
    await nothing_is_stored(client, ticket)


@pytest.mark.parametrize("path", ["/nosuch-bucket/", "/uploads/nosuch/"])
async def test_a_url_for_another_place(client: Client, path: str) -> None:
    """A signature is for one place: SignatureDoesNotMatch with both, whether or not the bucket is there."""
    ticket = await client.ticket()
    ticket.url = ticket.url.replace("/uploads/", path)
    assert told(await client.put(ticket)) == (403, "SignatureDoesNotMatch")


async def test_a_body_that_breaks_off(client: Client) -> None:
    """Half a file is none, with both, while it comes and afterwards; the same URL then still takes the whole."""
    ticket = await client.ticket(size=200_000)
    place = urlsplit(ticket.url)
    _, writer = await asyncio.open_connection(place.hostname, place.port)
    head = (
        f"PUT {place.path}?{place.query} HTTP/1.1",
        f"Host: {place.netloc}",
        f"Content-Type: {ticket.content_type}",
        f"Content-Length: {ticket.size}",
    )
    writer.write("\r\n".join((*head, "", "")).encode() + b"x" * (ticket.size // 2))
    await writer.drain()
    await asyncio.sleep(0.3)
    await nothing_is_stored(client, ticket)
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.3)
    await nothing_is_stored(client, ticket)
    assert (await client.put(ticket, b"y" * ticket.size)).status == 200
    assert (await client.converse(ticket)).status == 200


async def test_the_message_waits_for_the_object(client: Client, platform: Sandbox) -> None:
    """The platform asks the server at the message, not before: refused without the object, accepted with it."""
    ticket = await client.ticket()
    await nothing_is_stored(client, ticket)
    assert (await client.put(ticket)).status == 200
    assert platform.objects == []
    assert (await client.converse(ticket)).status == 200
    (stored,) = platform.objects
    assert (stored.size_bytes, stored.content_type) == (5, "application/pdf")


async def nothing_is_stored(client: Client, ticket: Ticket) -> None:
    answered = await client.converse(ticket)
    assert answered.status == 400, answered.text
    assert "has not been uploaded" in answered.text


def told(answered: Answered) -> tuple[int, str]:
    found = re.search(r"<Code>(.*?)</Code>", answered.text)
    assert found, answered.text
    return answered.status, found[1]


def message(answered: Answered) -> str:
    found = re.search(r"<Message>(.*?)</Message>", answered.text)
    assert found, answered.text
    return found[1]
