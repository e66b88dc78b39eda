"""The storage behind the presigned URL answers as S3 does, and holds only what came complete."""

import asyncio
import hashlib
import re

import pytest

from attachd.sandbox.storage import ATTACHMENT_ID_HEADER

from ..waiting import until


def refused(answered, status, code, *words):
    """An S3 error in XML."""
    assert answered.status == status, answered.text
    assert answered.headers["Content-Type"] == "application/xml"
    assert f"<Code>{code}</Code>" in answered.text
    assert f"<RequestId>{answered.headers['x-amz-request-id']}</RequestId>" in answered.text
    for word in words:
        assert word in answered.text


async def test_the_bytes_are_what_was_sent(client):
    """The object has the hash, size and type of the file; nothing leaked on the way."""
    body = bytes(range(256)) * 4096
    ticket = await client.ticket(size=len(body))
    assert (await client.put(ticket, body)).status == 200
    (stored,) = client.sandbox.objects
    assert stored.sha256 == hashlib.sha256(body).hexdigest()
    assert (stored.size_bytes, stored.content_type, stored.file_name) == (len(body), "application/pdf", "claim.pdf")
    assert stored.path is None
    assert client.sandbox.ledger.leaks == []


async def test_the_bytes_can_be_kept(start, tmp_path):
    """With a folder to keep them the bytes lie there, under the attachment id and nothing else beside."""
    client = await start(keep=tmp_path / "kept")
    ticket = await client.stored()
    (stored,) = client.sandbox.objects
    assert stored.path == tmp_path / "kept" / ticket.attachment_id
    assert stored.path.read_bytes() == b"bytes"
    assert list(stored.path.parent.iterdir()) == [stored.path]


async def test_a_url_may_be_used_again(client):
    """A second PUT replaces the object, as in S3; the message has the last one."""
    ticket = await client.stored()
    assert (await client.put(ticket, b"BYTES")).status == 200
    await client.converse(ticket)
    assert client.sandbox.messages[0].attachments[0].sha256 == hashlib.sha256(b"BYTES").hexdigest()
    assert len(client.sandbox.objects) == 2


@pytest.mark.parametrize(
    "name", ["Schaden 12 %.pdf", "a+b&c=d?.pdf", "%2e%2e.pdf", "申請書.pdf", "x#y;z.pdf", "\\ \"'.pdf"]
)
async def test_names_with_odd_characters(client, name):
    """Whatever a file is called, its URL works and its name arrives."""
    assert (await client.deliver(name)).status == 200
    assert len(client.sandbox.messages_for(name)) == 1


async def test_compressed_content_is_stored_as_it_came(client):
    """A Content-Encoding is only remarked upon: the bytes are not unpacked."""
    ticket = await client.stored()
    assert (await client.put(ticket, b"bytes", Content_Encoding="gzip")).status == 200
    assert client.sandbox.objects[-1].sha256 == hashlib.sha256(b"bytes").hexdigest()


async def test_a_tampered_signature(client):
    """A changed signature is no signature."""
    ticket = await client.ticket()
    ticket.url = re.sub(r"Signature=.{4}", "Signature=0000", ticket.url)
    refused(await client.put(ticket), 403, "SignatureDoesNotMatch")
    assert client.sandbox.objects == []


async def test_a_url_without_a_signature(client):
    """The path alone opens nothing."""
    ticket = await client.ticket()
    ticket.url = ticket.url.partition("?")[0]
    refused(await client.put(ticket), 400, "AuthorizationQueryParametersError")


async def test_an_expired_url(start, manual):
    """The URL ends with its life, by the server's clock."""
    client = await start(manual.clock(), url_life_s=30)
    ticket = await client.ticket()
    manual.now_s += 30
    refused(await client.put(ticket), 403, "AccessDenied", "Request has expired")


async def test_another_type(client):
    """The type is signed, and must be the returned one verbatim."""
    ticket = await client.ticket()
    ticket.content_type = "application/pdf "[:-1] + ";v=1"
    refused(await client.put(ticket), 403, "SignatureDoesNotMatch")


async def test_another_length(client):
    """The length is signed too."""
    refused(await client.put(await client.ticket(), b"too many bytes"), 403, "SignatureDoesNotMatch")


async def test_another_type_or_length_where_they_are_not_signed(start):
    """Also a URL that signs the host alone takes only what was declared."""
    client = await start(signed_headers=("host",))
    ticket = await client.ticket()
    refused(await client.put(ticket, b"too many bytes"), 403, "AccessDenied", "Content-Length")
    ticket.content_type = "text/plain"
    refused(await client.put(ticket), 403, "AccessDenied", "Content-Type")


async def test_a_chunked_body(client):
    """Without a length there is no upload."""

    async def chunks():
        yield b"bytes"

    refused(await client.put(await client.ticket(), chunks()), 411, "MissingContentLength")


async def test_an_object_beyond_the_storage_limit(start):
    """What the API allowed may still be too large for the storage."""
    client = await start(object_limit_bytes=4)
    refused(await client.put(await client.ticket()), 400, "EntityTooLarge", "<MaxSizeAllowed>4</MaxSizeAllowed>")


async def test_the_unsigned_attachment_id_header_is_accepted_by_a_lenient_storage(client):
    """The tutorial's header passes; it must name this attachment, and no other x-amz header passes with it."""
    ticket = await client.ticket()
    named = {ATTACHMENT_ID_HEADER: ticket.attachment_id}
    assert (await client.put(ticket, **named)).status == 200
    refused(await client.put(ticket, **{ATTACHMENT_ID_HEADER: "other"}), 403, "AccessDenied", "another attachment")
    answered = await client.put(ticket, **named, x_amz_acl="public-read")
    refused(answered, 403, "AccessDenied", "<HeadersNotSigned>x-amz-acl</HeadersNotSigned>")


async def test_the_unsigned_attachment_id_header_is_refused_by_a_strict_storage(start):
    """S3 to the letter: with the header 403, without it 200."""
    client = await start(strict_storage=True)
    ticket = await client.ticket()
    answered = await client.put(ticket, **{ATTACHMENT_ID_HEADER: ticket.attachment_id})
    refused(answered, 403, "AccessDenied", f"<HeadersNotSigned>{ATTACHMENT_ID_HEADER}</HeadersNotSigned>")
    assert (await client.put(ticket)).status == 200


async def test_a_signed_attachment_id_header_must_be_sent(start):
    """A strict storage whose URLs sign the header wants it."""
    client = await start(strict_storage=True, signed_headers=("host", "content-type", ATTACHMENT_ID_HEADER))
    ticket = await client.ticket()
    refused(await client.put(ticket), 403, "SignatureDoesNotMatch")
    assert (await client.put(ticket, **{ATTACHMENT_ID_HEADER: ticket.attachment_id})).status == 200


async def test_a_bearer_token_at_the_storage_is_a_leak(client):
    """S3 refuses two ways of authentication at once, and the ledger remembers who saw the token, not the token."""
    answered = await client.put(await client.ticket(), Authorization=f"Bearer {client.token}")
    refused(answered, 400, "InvalidArgument", "Only one auth mechanism allowed")
    (leak,) = client.sandbox.ledger.leaks
    assert (leak.header, leak.scheme) == ("Authorization", "Bearer")
    assert client.token not in repr(leak)


async def test_a_body_that_breaks_off(start, tmp_path):
    """Half an object never appears, and leaves nothing behind."""
    client = await start(keep=tmp_path)
    ticket = await client.ticket()
    writer = await half_sent(ticket)
    await until(lambda: list(tmp_path.iterdir()) != [])
    writer.close()
    await until(lambda: [put.code for put in client.sandbox.requests("put")] == ["IncompleteBody"])
    await until(lambda: list(tmp_path.iterdir()) == [])
    assert client.sandbox.objects == []
    assert (await client.converse(ticket)).status == 400


async def test_a_body_that_stalls(start):
    """The storage does not wait for ever."""
    client = await start(stalled_after_s=0.05)
    ticket = await client.ticket()
    writer = await half_sent(ticket)
    await until(lambda: [put.code for put in client.sandbox.requests("put")] == ["RequestTimeout"])
    writer.close()
    assert client.sandbox.objects == []


async def half_sent(ticket) -> asyncio.StreamWriter:
    authority, _, target = ticket.url.removeprefix("http://").partition("/")
    host, _, port = authority.partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"PUT /{target} HTTP/1.1",
        f"Host: {authority}",
        f"Content-Type: {ticket.content_type}",
        "Content-Length: 5",
    )
    writer.write("\r\n".join((*head, "", "by")).encode())
    await writer.drain()
    return writer
