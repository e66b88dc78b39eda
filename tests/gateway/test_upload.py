"""The bytes on their way: what the storage sees, what it may not be, and whose fault its answers are."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from attachd.errors import AccountError, DeliveryError, FileError, TransientError
from attachd.gateway.http import Http
from attachd.gateway.upload import METADATA_HEADER, Slot, Storage, put_deadline_s, starts_until
from attachd.model import AttachmentId, Reason, Step

from ..waiting import until
from .support import Seen, Wire, drips, hangs_up, in_turn, never, open_gate, reading, says

KEY = AttachmentId("att-1")
LOCAL_API = "http://127.0.0.1:9/"
REAL_API = "https://api.mypurecloud.com"


def a_storage(http: Http, *, api_url: str = LOCAL_API, hosts: tuple[str, ...] = ()) -> Storage:
    return Storage(http, open_gate(), api_url=api_url, hosts=hosts, clock=time.monotonic)


@pytest.fixture
def storage(http: Http) -> Storage:
    return a_storage(http)


def a_slot(url: str, **changes: Any) -> Slot:
    return Slot(
        **{
            "attachment": KEY,
            "url": url,
            "content_type": "application/pdf",
            "asked_at": time.monotonic(),
            "expires_in_s": 300.0,
            "headers": {METADATA_HEADER: KEY},
        }
        | changes
    )


def presigned(wire: Wire) -> str:
    return f"{wire.url}/bucket/a%2Fb%20c.pdf?X-Amz-Signature=HUSH%2B&x=%7E~"


def error(code: str, message: str = "No.") -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


async def test_what_the_storage_sees(storage: Storage, wire: Wire) -> None:
    """Length and type in plain, the URL to the letter, the attachment's id, no token, no chunks, all bytes in order."""
    wire.answer = says(200)
    pieces = [bytes([i]) * 262144 for i in range(5)] + [b"tail"]
    slot = a_slot(presigned(wire), content_type="text/plain; charset=utf-8")
    await storage.put(slot, sum(map(len, pieces)), reading(*pieces))
    (request,) = wire.seen
    assert request.line == "PUT /bucket/a%2Fb%20c.pdf?X-Amz-Signature=HUSH%2B&x=%7E~ HTTP/1.1"
    assert request.body == b"".join(pieces)
    assert request.headers["content-length"] == str(len(request.body))
    assert request.headers["content-type"] == "text/plain; charset=utf-8"
    assert request.headers[METADATA_HEADER] == "att-1"
    assert "transfer-encoding" not in request.headers
    assert "authorization" not in request.headers
    assert "expect" not in request.headers


async def test_a_document_is_read_as_it_goes(storage: Storage, wire: Wire) -> None:
    """The next piece is read when the storage has taken the ones before, so memory does not grow with the file."""
    ahead, seen_at_pause = 0, []

    async def read() -> AsyncIterator[bytes]:
        nonlocal ahead
        for _ in range(200):
            ahead += 1
            yield b"x" * 262144

    async def slow(request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)  # long enough to read it all, if nobody had to take it
        seen_at_pause.append(ahead)
        left = int(request.headers["content-length"])
        while left:
            left -= len(await reader.read(min(left, 1 << 20)))
        await says(200, read_body=False)(request, reader, writer)

    wire.answer = slow
    await storage.put(a_slot(wire.url + "/k"), 200 * 262144, read)
    assert seen_at_pause[0] < 50
    assert ahead == 200


@pytest.mark.parametrize("named", [b"", b"<HeadersNotSigned>x-amz-meta</HeadersNotSigned>"])
async def test_an_unsigned_header_is_left_out_and_remembered(storage: Storage, wire: Wire, named: bytes) -> None:
    """A storage to the letter refuses a header its URL does not sign, and may not name it: once without, and never
    again with.
    """
    body = error("AccessDenied", "There were headers present in the request which were not signed")
    body = body.replace(b"</Error>", named + b"</Error>")
    wire.answer = in_turn(says(403, body), says(200))
    for _ in range(2):
        await storage.put(a_slot(presigned(wire)), 3, reading(b"abc"))
    assert [METADATA_HEADER in request.headers for request in wire.seen] == [True, False, False]
    assert [request.body for request in wire.seen] == [b"abc"] * 3


async def test_headers_that_stay_unsigned_are_the_accounts_trouble(storage: Storage, wire: Wire) -> None:
    """Refused without the header too: then it is not ours, and no file is to blame."""
    wire.answer = says(403, error("HeadersNotSigned"))
    with pytest.raises(AccountError) as caught:
        await storage.put(a_slot(presigned(wire)), 3, reading(b"abc"))
    assert caught.value.reason is Reason.STORAGE_REFUSED
    assert len(wire.seen) == 2


@pytest.mark.parametrize(
    ("status", "body", "family", "reason"),
    [
        (403, error("AccessDenied", "Request has expired"), TransientError, Reason.URL_EXPIRED),
        (400, error("ExpiredToken"), TransientError, Reason.URL_EXPIRED),
        (403, error("SignatureDoesNotMatch"), TransientError, Reason.STORAGE_REFUSED),
        (403, error("SomethingNew"), TransientError, Reason.STORAGE_REFUSED),
        (403, b"", TransientError, Reason.STORAGE_REFUSED),
        (401, b"", TransientError, Reason.STORAGE_REFUSED),
        (404, b"", TransientError, Reason.STORAGE_REFUSED),
        (301, b"", TransientError, Reason.STORAGE_REFUSED),
        (307, b"", TransientError, Reason.STORAGE_REFUSED),
        (403, error("InvalidAccessKeyId"), AccountError, Reason.STORAGE_REFUSED),
        (404, error("NoSuchBucket"), AccountError, Reason.STORAGE_REFUSED),
        (405, error("MethodNotAllowed"), AccountError, Reason.STORAGE_REFUSED),
        (400, error("EntityTooLarge"), FileError, Reason.TOO_LARGE),
        (413, b"<html>", FileError, Reason.TOO_LARGE),
        (451, b"", FileError, Reason.REFUSED),
        (400, error("RequestTimeout"), TransientError, Reason.CONNECTION_LOST),
        (400, error("IncompleteBody"), TransientError, Reason.CONNECTION_LOST),
        (400, error("BadDigest"), TransientError, Reason.CONNECTION_LOST),
        (408, b"", TransientError, Reason.CONNECTION_LOST),
        (429, b"", TransientError, Reason.RATE_LIMITED),
        (500, error("InternalError"), TransientError, Reason.SERVER_ERROR),
        (503, error("SlowDown"), TransientError, Reason.SERVER_ERROR),
        (502, b"<html>", TransientError, Reason.SERVER_ERROR),
        (403, b"<Code>" + b"A" * 3000, TransientError, Reason.STORAGE_REFUSED),
    ],
)
async def test_whose_fault_an_answer_is(
    storage: Storage, wire: Wire, status: int, body: bytes, family: type[DeliveryError], reason: Reason
) -> None:
    """The storage's own code outranks the status; hardly anything is the file's fault."""
    wire.answer = says(status, body, "Retry-After: 9", "Location: https://elsewhere.example/")
    with pytest.raises(DeliveryError) as caught:
        await storage.put(a_slot(presigned(wire)), 3, reading(b"abc"))
    assert type(caught.value) is family
    assert (caught.value.reason, caught.value.step) == (reason, Step.PUT)
    assert caught.value.failure.http_status == status
    assert len(wire.seen) == 1
    if isinstance(caught.value, TransientError):
        assert caught.value.retry_after_s == 9


async def test_an_answer_that_quotes_the_signature_is_not_quoted(storage: Storage, wire: Wire) -> None:
    """Of a storage's answer only code and message are told, and of a URL never the query."""
    body = error("SignatureDoesNotMatch", "see https://s3.example/k?X-Amz-Signature=HUSH")
    body = body.replace(b"</Error>", b"<SignatureProvided>HUSH</SignatureProvided></Error>")
    wire.answer = says(403, body)
    slot = a_slot(presigned(wire))
    with pytest.raises(TransientError) as caught:
        await storage.put(slot, 3, reading(b"abc"))
    assert "SignatureDoesNotMatch" in str(caught.value)
    assert "HUSH" not in str(caught.value) + repr(caught.value) + repr(caught.value.failure) + repr(slot)


@pytest.mark.parametrize("size", [200_000, 20_000_000])
async def test_a_refusal_before_the_bytes_is_read_as_that_refusal(storage: Storage, wire: Wire, size: int) -> None:
    """A storage that answers at once and hangs up has answered: no broken pipe hides what it said."""

    async def refuse(request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says(403, error("AccessDenied", "Request has expired"), "Connection: close", read_body=False)(
            request, reader, writer
        )
        await writer.drain()
        writer.close()

    wire.answer = refuse
    for _ in range(20):
        with pytest.raises(TransientError) as caught:
            await storage.put(a_slot(presigned(wire)), size, reading(*[b"x" * 200_000] * (size // 200_000)))
        assert caught.value.reason is Reason.URL_EXPIRED


async def test_done_before_all_was_sent_is_not_done(storage: Storage, wire: Wire) -> None:
    """A 2xx for a part of the file is no success."""
    wire.answer = says(200, read_body=False)
    with pytest.raises(TransientError) as caught:
        await storage.put(a_slot(presigned(wire)), 50_000_000, reading(*[b"x" * 250_000] * 200))
    assert caught.value.reason is Reason.STORAGE_REFUSED


class ReaderError(Exception):
    """What a reader raises; nothing the gateway knows."""


@pytest.mark.parametrize("before", [0, 1, 40])
@pytest.mark.parametrize(
    "trouble", [ReaderError("shrank"), OSError(5, "I/O error"), FileError(Reason.UNREADABLE, "x", Step.PUT)]
)
async def test_what_reading_raises_comes_out_as_it_was(
    storage: Storage, wire: Wire, before: int, trouble: Exception
) -> None:
    """A file that cannot be read is no outage: the very error comes out, and the connection is dropped."""
    trouble.__cause__ = cause = ValueError("the cause")

    async def read() -> AsyncIterator[bytes]:
        for _ in range(before):
            yield b"x" * 100_000
        raise trouble

    wire.answer = says(200)
    with pytest.raises(type(trouble)) as caught:
        await storage.put(a_slot(presigned(wire)), 10_000_000, read)
    assert caught.value is trouble
    assert caught.value.__cause__ is cause
    await storage.put(a_slot(presigned(wire)), 3, reading(b"abc"))
    assert wire.connections == 2


@pytest.mark.parametrize("pieces", [(b"ab",), (b"ab", b"cd"), ()])
async def test_a_reader_that_miscounts_is_not_believed(storage: Storage, wire: Wire, pieces: tuple[bytes, ...]) -> None:
    """More or fewer bytes than announced: the file changed, and nothing of the rest is sent."""
    wire.answer = says(200)
    with pytest.raises(TransientError) as caught:
        await storage.put(a_slot(presigned(wire)), 3, reading(*pieces))
    assert caught.value.reason is Reason.CHANGED


async def test_the_reader_is_closed_whatever_happens(storage: Storage, wire: Wire) -> None:
    """When `put` returns or raises nobody reads the file any more."""
    opened: list[str] = []
    closed: list[str] = []

    def reader(name: str) -> Any:
        async def read() -> AsyncIterator[bytes]:
            opened.append(name)
            try:
                for _ in range(100):
                    yield b"x" * 100_000
            finally:
                closed.append(name)

        return read

    wire.answer = says(200)
    await storage.put(a_slot(presigned(wire)), 10_000_000, reader("done"))
    wire.answer = says(403, read_body=False)
    with pytest.raises(TransientError):
        await storage.put(a_slot(presigned(wire)), 10_000_000, reader("refused"))
    assert closed == ["done", "refused"]

    wire.answer = never
    wire.seen.clear()
    task = asyncio.ensure_future(storage.put(a_slot(presigned(wire)), 10_000_000, reader("cancelled")))
    await until(lambda: wire.seen and "cancelled" in opened, "the bytes are on their way")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == ["done", "refused", "cancelled"]


async def test_an_empty_document_goes_too(storage: Storage, wire: Wire) -> None:
    """Whether empty files are sent is decided elsewhere; here they are zero bytes."""
    wire.answer = says(200)
    await storage.put(a_slot(presigned(wire)), 0, reading())
    assert wire.seen[0].headers["content-length"] == "0"


async def test_a_storage_that_drips_is_cut_off(storage: Storage, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole transfer has one deadline, however lively the other side seems."""
    monkeypatch.setattr("attachd.gateway.upload.put_deadline_s", lambda size: 0.3)
    wire.answer = drips
    with pytest.raises(TransientError) as caught:
        await storage.put(a_slot(presigned(wire)), 3, reading(b"abc"))
    assert caught.value.reason is Reason.TIMEOUT


async def test_a_status_without_its_body_is_an_answer(storage: Storage, wire: Wire) -> None:
    """The storage said 200; that its empty words broke off changes nothing."""

    async def half(request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nabc")
        await writer.drain()
        writer.close()

    wire.answer = half
    await storage.put(a_slot(presigned(wire)), 3, reading(b"abc"))


async def test_a_storage_that_hangs_up_is_an_outage(storage: Storage, wire: Wire) -> None:
    """No answer at all is nobody's fault, and the body is not sent a second time behind our back."""
    wire.answer = in_turn(says(200), hangs_up)
    await storage.put(a_slot(presigned(wire)), 3, reading(b"abc"))
    with pytest.raises(TransientError) as caught:
        await storage.put(a_slot(presigned(wire)), 3, reading(b"abc"))
    assert caught.value.reason is Reason.CONNECTION_LOST
    assert "HUSH" not in str(caught.value)
    assert len(wire.seen) == 2


def test_how_long_the_bytes_may_take() -> None:
    """20 s and a second for 64 KiB, never more than ten minutes."""
    assert put_deadline_s(0) == 20
    assert put_deadline_s(10 * 2**20) == 180
    assert put_deadline_s(2**40) == 600


@pytest.mark.parametrize(("life", "start_within"), [(300, 230), (60, 38), (30, 15), (10, 5), (1, 0.5)])
def test_how_long_a_place_is_good_to_begin(life: float, start_within: float) -> None:
    """Four fifths of its life less ten seconds, but at least half of it, counted from our question."""
    assert starts_until(a_slot("", asked_at=100.0, expires_in_s=life)) == pytest.approx(100 + start_within)
    assert starts_until(a_slot("", expires_in_s=None)) == float("inf")


async def test_a_place_that_is_about_to_expire_is_not_begun(storage: Storage, wire: Wire) -> None:
    """Too late to begin: not a byte leaves; the next attempt asks for a new place."""
    wire.answer = says(200)
    with pytest.raises(TransientError) as caught:
        await storage.put(a_slot(presigned(wire), asked_at=time.monotonic() - 231), 3, reading(b"abc"))
    assert caught.value.reason is Reason.URL_EXPIRED
    assert wire.connections == 0


HOSTILE = [
    "",
    "ftp://s3.example/k",
    "file:///etc/passwd",
    "//s3.example/k",
    "/bucket/k",
    "https:///k",
    "http://s3.example/k",
    "https://user@s3.example/k",
    "https://user:pass@s3.example/k",
    "https://@s3.example/k",
    "https://s3.example\\@evil.example/k",
    "https://s3.example/k\r\nHost: evil",
    "https://s3.example/a b",
    "https://s3.example/\x00",
    "https://s3.example:99999/k",
    "https://s3.example:x/k",
    "https://[::1/k",
    "https://127.0.0.1/k",
    "https://127.1/k",
    "https://2130706433/k",
    "https://0x7f000001/k",
    "https://[::1]/k",
    "https://[::ffff:127.0.0.1]/k",
    "https://localhost/k",
    "https://localhost./k",
    "https://169.254.169.254/latest/meta-data",
    "https://10.0.0.8/k",
    "https://192.168.1.1/k",
    "https://0.0.0.0/k",
    "https://sübdomain.example/k",
    "https://s3.example/" + "a" * 9000,
]


@pytest.mark.parametrize("url", HOSTILE)
async def test_a_hostile_place_is_not_used(http: Http, url: str) -> None:
    """Nothing is sent to where no storage of the platform can be, and the error shows no more than the host."""
    with pytest.raises(AccountError) as caught:
        await a_storage(http, api_url=REAL_API).put(a_slot(url), 3, reading(b"abc"))
    assert (caught.value.reason, caught.value.step) == (Reason.NOT_THE_PLATFORM, Step.PUT)
    assert str(caught.value).isprintable()
    assert "/k" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        ("bucket.s3.amazonaws.com", True),
        ("s3.amazonaws.com", True),
        ("S3.AmazonAWS.com", True),
        ("evil-s3.amazonaws.com.example", False),
        ("evils3.amazonaws.com", False),
        ("s3.amazonaws.co", False),
    ],
)
async def test_named_hosts_are_the_only_ones(http: Http, canned: Any, host: str, fits: bool) -> None:
    """With `upload_hosts` set, the storage's name must be one of them or end in one after a dot."""
    url = f"https://{host}/k"
    canned.put(url, status=503)
    storage = a_storage(http, api_url=REAL_API, hosts=(".s3.amazonaws.com",))
    with pytest.raises(TransientError if fits else AccountError):
        await storage.put(a_slot(url), 3, reading(b"abc"))


async def test_a_public_platform_may_not_send_us_home(http: Http, wire: Wire) -> None:
    """Only a platform on this very host may name a storage on it."""
    with pytest.raises(AccountError):
        await a_storage(http, api_url=REAL_API).put(a_slot(f"{wire.url}/k"), 3, reading(b"abc"))
    assert wire.connections == 0


@pytest.mark.parametrize(
    "content_type",
    ["", "pdf", "a/b\r\nX: y", "a/b\n", "a/b; c", "a/b;c=d e", "a/b, c/d", "ä/b", "a/" + "b" * 300, 'a/b; c="d'],
)
async def test_a_hostile_content_type_never_becomes_a_header(storage: Storage, wire: Wire, content_type: str) -> None:
    """What is no media type is refused before a connection is made."""
    with pytest.raises(AccountError):
        await storage.put(a_slot(presigned(wire), content_type=content_type), 3, reading(b"abc"))
    assert wire.connections == 0


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"a": "b\r\nc: d"}, {"": "x"}, {"x": " "}, {"x": "ü"}])
async def test_hostile_headers_are_not_sent(storage: Storage, wire: Wire, headers: dict[str, str]) -> None:
    """Headers the platform asks for are checked like everything it says."""
    with pytest.raises(AccountError):
        await storage.put(a_slot(presigned(wire), headers=headers), 3, reading(b"abc"))
    assert wire.connections == 0
