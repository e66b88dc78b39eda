"""The sandbox hands out places of an S3 server it does not run, and finds out there what has come."""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
import yaml

from attachd.sandbox import Fault, FaultKind, S3Endpoint, S3Unusable, Sandbox, SandboxSettings, refuse
from attachd.sandbox.storage import ATTACHMENT_ID_HEADER

from ..waiting import until
from .bucket import Bucket, serving
from .client import Client
from .conftest import Start
from .messenger import opened


@pytest.fixture
async def bucket() -> AsyncIterator[Bucket]:
    async with serving() as bucket:
        yield bucket


@pytest.fixture
async def client(start: Start, bucket: Bucket) -> Client:
    return await start(s3=bucket.endpoint())


def signed(url: str) -> set[str]:
    return set(parse_qs(urlsplit(url).query)["X-Amz-SignedHeaders"][0].split(";"))


async def test_the_bytes_go_to_the_server_and_their_hash_into_the_ledger(client: Client, bucket: Bucket) -> None:
    """The URL leads to the bucket and signs type, length and host; the message has what lies there."""
    ticket = await client.ticket("a b+c%.pdf")
    assert ticket.url.startswith(f"{bucket.url}/files/")
    assert signed(ticket.url) == {"content-length", "content-type", "host"}
    assert (await client.put(ticket)).status == 200
    answered = await client.converse(ticket)
    assert answered.status == 200, answered.text
    (stored,) = client.sandbox.objects
    assert (stored.sha256, stored.size_bytes) == (hashlib.sha256(b"bytes").hexdigest(), 5)
    assert client.sandbox.messages[0].attachments[0].sha256 == stored.sha256
    assert client.sandbox.requests("put") == []
    downloaded = await client.call("GET", answered.json["attachments"][0]["downloadUrl"])
    assert downloaded.raw == b"bytes"


async def test_the_bytes_can_be_kept(start: Start, bucket: Bucket, tmp_path) -> None:
    """With a folder to keep them they are fetched into it."""
    client = await start(s3=bucket.endpoint(), keep=tmp_path / "kept")
    ticket = await client.stored()
    assert (await client.converse(ticket)).status == 200
    assert [path.read_bytes() for path in (tmp_path / "kept").iterdir()] == [b"bytes"]


async def test_what_is_signed_can_be_chosen(client: Client) -> None:
    """For servers that take no length among the signed headers, or want the attachment's id there."""
    client.sandbox.change(signed_headers=["host", ATTACHMENT_ID_HEADER])
    assert signed((await client.ticket()).url) == {"host", ATTACHMENT_ID_HEADER}


async def test_an_object_that_is_not_there(client: Client) -> None:
    """The message is refused as long as nothing lies at the server."""
    ticket = await client.ticket()
    answered = await client.converse(ticket)
    assert answered.status == 400
    assert "has not been uploaded" in answered.text
    await client.put(ticket)
    assert (await client.converse(ticket)).status == 200


async def test_an_object_of_another_size(client: Client, bucket: Bucket) -> None:
    """What lies there is not the declared file."""
    ticket = await client.stored()
    ((name, (kind, _)),) = bucket.objects.items()
    bucket.objects[name] = (kind, b"longer than declared")
    answered = await client.converse(ticket)
    assert answered.status == 400
    assert client.sandbox.objects == []


async def test_an_object_that_was_replaced(client: Client) -> None:
    """The message has the last bytes; a message posted twice fetches again and counts the object once."""
    ticket = await client.stored()
    for body, seen in ((b"bytes", 1), (b"bytes", 1), (b"BYTES", 2)):
        await client.put(ticket, body)
        await client.converse(ticket)
        assert client.sandbox.messages[-1].attachments[0].sha256 == hashlib.sha256(body).hexdigest()
        assert len(client.sandbox.objects) == seen


async def test_a_server_that_fails_is_the_platforms_trouble(client: Client, bucket: Bucket) -> None:
    """The client hears 503 and no word against its file."""
    ticket = await client.stored()
    bucket.answer = 500
    answered = await client.converse(ticket)
    assert (answered.status, answered.json["code"]) == (503, "service.unavailable")
    bucket.answer = None
    assert (await client.converse(ticket)).status == 200


async def test_an_expired_url(client: Client) -> None:
    """A URL can be over before it is handed out here too."""
    client.sandbox.on("upload", Fault(FaultKind.EXPIRED_URL, times=1))
    assert (await client.put(await client.ticket())).status == 403
    assert (await client.put(await client.ticket())).status == 200


async def test_web_messaging_hears_of_the_object(client: Client) -> None:
    """The slot's headers are signed; the event comes once the object lies there, and the message is accepted."""
    line = await opened(client)
    slot = await line.attach()
    assert slot["body"]["headers"]
    assert signed(slot["body"]["url"]) == {"content-length", "content-type", "host", "x-amz-tagging"}
    refused = await line.send(slot["body"]["attachmentId"])
    assert refused["code"] != 200
    assert (await line.put(slot)).status == 200
    event = await line.hear()
    assert event["class"] == "UploadSuccessEvent"
    assert (await client.call("GET", event["body"]["downloadUrl"])).raw == b"bytes"
    await line.send(slot["body"]["attachmentId"])
    (message,) = client.sandbox.messages
    assert message.attachments[0].sha256 == hashlib.sha256(b"bytes").hexdigest()


async def test_web_messaging_hears_late_of_a_server_that_failed(client: Client, bucket: Bucket) -> None:
    """The sandbox goes on looking."""
    line = await opened(client)
    bucket.answer = 500
    slot = await line.attach()
    assert (await line.put(slot)).status == 200
    await until(lambda: sum(seen.startswith("GET") for seen in bucket.seen) > 1)
    bucket.answer = None
    assert (await line.hear())["class"] == "UploadSuccessEvent"


async def test_faults_strike_the_event(client: Client) -> None:
    """An upload the platform does not like, although it lies at the server."""
    client.sandbox.on("event", refuse(4022))
    line = await opened(client)
    assert (await line.put(await line.attach())).status == 200
    assert (await line.hear())["class"] == "UploadFailureEvent"


async def test_the_same_id_again_does_not_find_the_first_object(client: Client) -> None:
    """A second declaration is another place."""
    line = await opened(client)
    attachment_id = str(uuid4())
    first = await line.attach(attachmentId=attachment_id)
    await line.put(first)
    assert (await line.hear())["class"] == "UploadSuccessEvent"
    second = await line.attach(attachmentId=attachment_id)
    assert (await line.send(attachment_id))["code"] != 200
    await line.put(second, b"BYTES")
    assert (await line.hear())["class"] == "UploadSuccessEvent"
    await line.send(attachment_id)
    assert client.sandbox.messages[0].attachments[0].sha256 == hashlib.sha256(b"BYTES").hexdigest()


async def test_nobody_looks_out_for_what_was_withdrawn(client: Client, bucket: Bucket) -> None:
    """An attachment that was deleted, or a ledger that was cleared, ends the questions."""
    line = await opened(client)
    slot = await line.attach()
    await until(lambda: any(seen.startswith("GET") for seen in bucket.seen))
    await line.ask("deleteAttachment", attachmentId=slot["body"]["attachmentId"])
    assert client.sandbox._remote is not None
    await until(lambda: not client.sandbox._remote._watches)


async def test_the_bucket_is_made_once(bucket: Bucket) -> None:
    """A second sandbox takes the bucket as it is."""
    for _ in range(2):
        async with Sandbox(SandboxSettings(s3=bucket.endpoint())):
            assert bucket.made
    assert bucket.seen == ["HEAD /files", "PUT /files", "HEAD /files"]


async def test_a_server_that_does_not_let_the_sandbox_in(bucket: Bucket) -> None:
    """Wrong keys, or nobody there: said at the start, in words, without the secret."""
    for endpoint, said in (
        (bucket.endpoint(secret_key="wrong"), "answered 403 when asked for bucket files"),
        (bucket.endpoint(url="http://127.0.0.1:1"), "does not answer"),
    ):
        with pytest.raises(S3Unusable, match=said) as caught:
            await Sandbox(SandboxSettings(s3=endpoint)).__aenter__()
        assert endpoint.secret_key not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:9000", "ftp://host", "http://host/bucket", "http://user:pass@host", "http:"]
)
def test_what_is_no_endpoint(url: str) -> None:
    """An endpoint is scheme, host and port."""
    with pytest.raises(ValueError, match="http"):
        S3Endpoint(url, "key", "secret")


async def test_the_endpoint_is_fixed_and_its_secret_hidden(client: Client, bucket: Bucket) -> None:
    """It cannot change under a running platform, and no repr tells the secret."""
    with pytest.raises(ValueError, match="s3: fixed"):
        client.sandbox.change(s3=None)
    assert bucket.endpoint().secret_key not in repr(client.sandbox.settings)


async def test_the_command_prints_a_config_of_either_gateway(bucket: Bucket) -> None:
    """`attachd sandbox --s3-endpoint ... --gateway ...`; the keys may come from the usual variables."""
    options = ("--gateway", "webmessaging", "--s3-endpoint", bucket.url, "--s3-bucket", "files")
    process = await typed(*options, AWS_ACCESS_KEY_ID="AKIATESTS", AWS_SECRET_ACCESS_KEY="only-for-tests")
    assert process.stdout is not None
    printed = b""
    async with asyncio.timeout(30):
        while b"inboxes:" not in printed:
            printed += await process.stdout.readline()
    process.terminate()
    await process.communicate()
    assert yaml.safe_load(printed.split(b"inboxes:")[0])["platform"]["gateway"] == "webmessaging"
    assert b"only-for-tests" not in printed
    assert bucket.made


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--s3-endpoint", "http://127.0.0.1:1"), 2, "--s3-access-key"),
        (("--s3-endpoint", "host:9000", "--s3-access-key", "a", "--s3-secret-key", "b"), 2, "not the URL of a server"),
        (("--s3-endpoint", "http://127.0.0.1:1", "--s3-access-key", "a", "--s3-secret-key", "b"), 69, "not answer"),
    ],
)
async def test_the_command_says_what_is_wrong(options: tuple[str, ...], code: int, said: str) -> None:
    """Keys that miss, a URL that is none, a server that is not there."""
    process = await typed(*options)
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    assert (process.returncode, "Traceback" in err.decode()) == (code, False)
    assert said in err.decode()


async def typed(*options: str, **env: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "attachd", "sandbox", "--port", "0", *options)
    return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env={"COLUMNS": "200", **env})
