"""attachd brings its files to servers that others wrote, over both protocols; every byte is looked at there."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from attachd.sandbox import Fault, FaultKind, Message, Sandbox, SandboxSettings, Step
from attachd.sandbox.storage import ATTACHMENT_ID_HEADER
from tests.running import RunningDaemon, drop, over_both

from .servers import Server

SAMPLES = Path(__file__).parents[2] / "attachd" / "demo" / "samples"
ODD_NAMES = (
    "two  spaces.txt",
    "100 % of 50%25+5%.txt",
    "a+b=c&d;e,f@g:h$i!.txt",
    "what? #1 [draft] {2}^~`|.txt",
    "'single' \"double\".txt",
    "Größe des Schadens.txt",
    "Gro\u0308\u00dfe zerlegt.txt",
    "申請書 \U0001f4c4.txt",
    "back\\slash.txt",
    "%2e%2e%2Fetc.txt",
    "<b>&amp;.txt",
)


@over_both
async def test_documents_arrive_byte_for_byte(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, server: Server
) -> None:
    """A PDF, a text and 5 MiB of noise lie at the server as they were dropped, and each has one message."""
    dropped = {
        "claim-form.pdf": (SAMPLES / "claim-form.pdf").read_bytes(),
        "letter.txt": "Schöne Grüße\n".encode(),
        "scan.bin": random.Random(1).randbytes(5 * 1024 * 1024),
        "one byte.txt": b"1",
    }
    await daemon.start()
    for name, content in dropped.items():
        drop(inbox, name, content)
    await daemon.all_filed(len(dropped))
    assert daemon.sent() == sorted(dropped)
    for name, content in dropped.items():
        (message,) = platform.messages_for(name)
        assert await fetched(platform, message) == content
        assert message.attachments[0].sha256 == hashlib.sha256(content).hexdigest()
    types = {stored.file_name: stored.content_type for stored in platform.objects}
    assert (types["claim-form.pdf"], types["letter.txt"]) == ("application/pdf", "text/plain")
    if server.folder is not None:
        lying = {path.read_bytes() for path in server.folder.rglob("*") if path.is_file()}
        assert set(dropped.values()) <= lying


@over_both
async def test_names_with_odd_characters(daemon: RunningDaemon, platform: Sandbox, inbox: Path) -> None:
    """The key holds whatever a file may be called: attachd sends the URL to the letter as it was signed."""
    await daemon.start()
    for number, name in enumerate(ODD_NAMES):
        drop(inbox, name, b"content %d" % number)
    await daemon.all_filed(len(ODD_NAMES))
    assert daemon.sent() == sorted(ODD_NAMES)
    assert {await fetched(platform, message) for message in platform.messages} == {
        b"content %d" % number for number in range(len(ODD_NAMES))
    }
    assert not daemon.events("file.deferred")


@over_both
async def test_a_url_that_was_over_before_it_came(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, at: Callable[[str], Step]
) -> None:
    """The server refuses it; that is nobody's fault, and the second URL is taken."""
    platform.on(at("upload"), Fault(FaultKind.EXPIRED_URL, times=1))
    await daemon.start()
    drop(inbox, "late.txt", b"late")
    await daemon.all_filed(1)
    await refused_once_then_sent(daemon, platform, at)


@over_both
async def test_a_url_that_ends_while_its_answer_is_on_the_way(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, at: Callable[[str], Step]
) -> None:
    """With webchat attachd knows the URL's life and does not begin; with web messaging the server's refusal tells."""
    platform.change(url_life_s=3)
    platform.on(at("upload"), Fault(FaultKind.DELAY, delay_s=4.5, times=1))
    await daemon.start()
    drop(inbox, "late.txt", b"late")
    await daemon.all_filed(1)
    await refused_once_then_sent(daemon, platform, at)


async def refused_once_then_sent(daemon: RunningDaemon, platform: Sandbox, at: Callable[[str], Step]) -> None:
    (deferred,) = daemon.events("file.deferred")
    assert (deferred["step"], deferred["reason"]) == ("put", "url_expired"), deferred
    assert daemon.sent() == ["late.txt"]
    (message,) = platform.messages
    assert await fetched(platform, message) == b"late"
    assert len(platform.requests(at("upload"))) == 2


async def test_the_unsigned_attachment_id_is_left_out_once_and_for_all(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Both servers refuse the tutorial's header when the URL does not sign it. The first file pays with a second PUT
    to the same URL, no file with an attempt.
    """
    daemon.configure(delivery={"concurrency": 1})
    await daemon.start()
    for number in range(5):
        drop(inbox, f"{number}.txt", b"content %d" % number)
    await daemon.all_filed(5)
    assert len(daemon.sent()) == 5
    (omitted,) = daemon.events("storage.header_omitted")
    assert omitted["header"] == ATTACHMENT_ID_HEADER
    assert not daemon.events("file.deferred")
    assert len(platform.requests(Step.UPLOAD)) == 5


async def test_the_signed_attachment_id_lies_with_the_object(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """A URL that signs the header gets it, and the server keeps it."""
    platform.change(signed_headers=["content-length", "content-type", "host", ATTACHMENT_ID_HEADER])
    await daemon.start()
    drop(inbox, "claim.txt")
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    assert not daemon.events("storage.header_omitted")
    (message,) = platform.messages
    async with aiohttp.ClientSession() as session, session.get(place_of(platform, message)) as response:
        assert response.headers[ATTACHMENT_ID_HEADER] == message.attachments[0].attachment_id


@over_both
async def test_an_upload_that_breaks_off_is_begun_again(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, server: Server, gateway: str
) -> None:
    """The connection is reset after a part of the bytes: the server keeps nothing of it, and the whole comes later."""
    content = random.Random(2).randbytes(5 * 1024 * 1024)
    async with cutting(server.endpoint.url) as (url, cuts):
        through = SandboxSettings(requests_per_second=0, s3=server.through(url))
        async with Sandbox(through) as platform:
            daemon.platform = platform
            daemon.configure()
            await daemon.start()
            drop(inbox, "first.txt")  # a server that refuses a header does so now, and not in the long one
            await daemon.all_filed(1)
            drop(inbox, "scan.bin", content)
            await daemon.all_filed(2)
            await daemon.stop()
            assert daemon.sent() == ["first.txt", "scan.bin"]
            assert len(cuts) == 1
            assert daemon.events("file.deferred")[0]["reason"] == "connection_lost"
            (message,) = platform.messages_for("scan.bin")
            assert await fetched(platform, message) == content
            assert len(platform.objects) == 2


async def fetched(platform: Sandbox, message: Message) -> bytes:
    """The object of a message, as the server gives it."""
    async with aiohttp.ClientSession() as session, session.get(place_of(platform, message)) as response:
        assert response.status == 200
        return await response.read()


def place_of(platform: Sandbox, message: Message) -> URL:
    assert platform._remote is not None
    return URL(platform._remote.download_url(message.attachments[0].attachment_id), encoded=True)


@asynccontextmanager
async def cutting(target: str, after: int = 1024 * 1024) -> AsyncIterator[tuple[str, list[int]]]:
    """A way to the server on which the first long upload is reset after so many bytes; its URL and the cuts made."""
    there = urlsplit(target)
    cuts: list[int] = []

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, cut: bool) -> None:
        passed = 0
        while chunk := await reader.read(65536):
            passed += len(chunk)
            if cut and passed > after and not cuts:
                cuts.append(passed)
                raise ConnectionResetError
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(there.hostname, there.port)
        try:
            await asyncio.gather(
                pass_on(reader, far_writer, cut=True),
                pass_on(far_reader, writer, cut=False),
            )
        except (OSError, RuntimeError):
            pass
        finally:
            writer.transport.abort()
            far_writer.transport.abort()

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with proxy:
        yield f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}", cuts
