"""One request, one answer: what is bounded, what is never followed, and what the errors say."""

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from attachd.errors import AccountError, ConfigError, TransientError
from attachd.gateway.http import Answer, Http, excerpt, open_http, retry_after_s
from attachd.model import Reason, Step

from ..waiting import until
from .support import Exchange, Wire, drips, hangs_up, in_turn, never, no_proxy, resets, says

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


async def ask(http: Http, url: str, *, deadline_s: float = 5.0, method: str = "POST") -> Answer:
    return await http.request(
        Step.SESSION, method, URL(url, encoded=True), deadline_s=deadline_s, headers={"X-Own": "1"}, body=b"{}"
    )


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("7", None, 7),
        (" 7 ", None, 7),
        ("0", None, 1),
        ("-5", None, 1),
        ("99999", None, 3600),
        ("9" * 250, None, 3600),
        ("Sun, 01 Mar 2026 12:00:30 GMT", None, 30),
        ("Sun, 01 Mar 2026 12:00:30 GMT", "Sun, 01 Mar 2026 12:00:20 GMT", 10),
        ("Sun, 01 Mar 2026 11:00:00 GMT", None, 1),
        ("Sun, 01 Mar 2099 11:00:00 GMT", None, 3600),
        ("Sun, 01 Mar 2026 12:00:30 GMT", "yesterday", 30),
        ("Sun, 01 Mar 2026 12:00:30 -0000", None, 30),
        ("", None, None),
        ("soon", None, None),
        ("1.5", None, None),
        ("7; drop", None, None),
        ("٧", None, None),
        ("Sun, 99 Mar 2026 12:00:30 GMT", None, None),
    ],
)
def test_what_retry_after_means(value: str, date: str | None, seconds: float | None) -> None:
    """Seconds, or a date against the answer's own clock; the past is a second, absurd is an hour, rubbish nothing."""
    headers = {"Retry-After": value} | ({"Date": date} if date else {})
    assert retry_after_s(headers, NOW) == seconds


def test_no_header_means_nothing() -> None:
    """Most answers ask for no silence."""
    assert retry_after_s({}, NOW) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"text"',
        b"null",
        b'{"a": 1',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"\xff{}",
        b"<html>",
        b"{}{}",
        b"\x1f\x8b\x08\x00",
        b"[" * 60000,
        b'{"a":' * 10000,
        b'{"a": 1' + b"0" * 5000 + b"}",
    ],
)
def test_only_one_json_object_is_json(body: bytes) -> None:
    """Anything but a complete, legal object is nothing, without a crash."""
    assert Answer(200, {}, body, True, "", 0.0).json() is None


def test_a_json_object_is_read() -> None:
    """An object is an object, in UTF-8."""
    assert Answer(200, {}, '{"name": "Müller"}'.encode(), True, "", 0.0).json() == {"name": "Müller"}


@pytest.mark.parametrize(
    "body",
    [
        b'see https://s3.example/bucket/key?X-Amz-Signature=HUSH&x=1 "quoted"',
        b'{"uploadUrl":"https:\\/\\/s3.example\\/k?X-Amz-Signature=HUSH"}',
        b"https://user:HUSH@host/",
        b"Authorization: Bearer HUSH",
        b"authorization: basic HUSH==",
        b'{"access_token": "HUSH"}',
        b"client_secret=HUSH&grant_type=x",
        b"<SignatureProvided>HUSH</SignatureProvided>",
        b"the very secret: my-own-words",
    ],
)
def test_an_excerpt_has_no_secrets(body: bytes) -> None:
    """URLs lose their query, and what is called a token, a secret or a signature is masked."""
    assert "HUSH" not in excerpt(body, "my-own-words")
    assert "my-own" not in excerpt(body, "my-own-words")


def test_an_excerpt_is_one_short_printable_line() -> None:
    """No newline, no escape code and no flood comes from the other side into a log."""
    said = excerpt(b"a\r\nb\x1b[31m\x00c\xe2\x80\xae " + b"x" * 5000)
    assert said.startswith("a b [31m c x")
    assert said.isprintable()
    assert len(said) == 200


def test_hostile_bodies_are_masked_in_no_time() -> None:
    """No pattern is slow on a body made to make it slow."""
    began = time.perf_counter()
    for body in (b"?" * 9000, b"token" * 2000, b"://" * 3000, b"a" * 9000, b"bearer " * 1500, b"secret " * 1500):
        excerpt(body)
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(http: Http, wire: Wire, status: int) -> None:
    """A redirect is an answer like any other: the token goes nowhere else."""
    wire.answer = says(status, b"", f"Location: {wire.url}/elsewhere")
    assert (await ask(http, f"{wire.url}/api")).status == status
    assert [request.line for request in wire.seen] == ["POST /api HTTP/1.1"]


async def test_what_a_request_carries(http: Http, wire: Wire) -> None:
    """Its own headers, our name, no wish for compression, and no cookie even after one was set."""
    wire.answer = says(200, b"{}", "Set-Cookie: a=b; Path=/")
    await ask(http, f"{wire.url}/api")
    await ask(http, f"{wire.url}/api")
    head = wire.seen[1].headers
    assert head["user-agent"].startswith("attachd/")
    assert head["accept-encoding"] == "identity"
    assert head["x-own"] == "1"
    assert "cookie" not in head
    assert wire.connections == 1


async def test_too_long_an_answer_is_cut(http: Http, wire: Wire) -> None:
    """64 KiB are enough for any answer; the rest is not read and the connection is dropped."""
    wire.answer = says(200, b"{" + b" " * 1_000_000 + b"}")
    answer = await ask(http, f"{wire.url}/api")
    assert len(answer.body) == 65536
    assert not answer.complete
    assert answer.json() is None
    await ask(http, f"{wire.url}/api")
    assert wire.connections == 2


async def test_a_compressed_answer_is_not_unfolded(http: Http, wire: Wire) -> None:
    """Compression was not asked for, so what comes compressed is no answer, however large it would become."""
    wire.answer = says(200, b"\x1f\x8b\x08\x00rubbish", "Content-Encoding: gzip")
    answer = await ask(http, f"{wire.url}/api")
    assert answer.body.startswith(b"\x1f\x8b")
    assert answer.json() is None


async def half(request: object, reader: object, writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"a":')
    await writer.drain()
    writer.close()


async def no_http(request: object, reader: object, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP\r\n")


@pytest.mark.parametrize(
    ("exchange", "reason"),
    [
        (hangs_up, Reason.CONNECTION_LOST),
        (resets, Reason.CONNECTION_LOST),
        (half, Reason.CONNECTION_LOST),
        (no_http, Reason.CONNECTION_LOST),
        (drips, Reason.TIMEOUT),
        (never, Reason.TIMEOUT),
    ],
)
async def test_a_broken_exchange_may_have_been_heard(
    http: Http, wire: Wire, exchange: Exchange, reason: Reason
) -> None:
    """After the first byte nobody knows: lost or timed out, within the total deadline, and never repeated."""
    wire.answer = exchange
    began = time.monotonic()
    with pytest.raises(TransientError) as caught:
        await ask(http, f"{wire.url}/api?key=HUSH", deadline_s=0.3)
    assert caught.value.reason is reason
    assert time.monotonic() - began < 2
    assert len(wire.seen) == 1
    assert f"POST 127.0.0.1:{wire.port}/api" in str(caught.value)
    assert "HUSH" not in repr(caught.value) + str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


async def test_a_cause_without_secrets_is_kept(http: Http, wire: Wire) -> None:
    """Where the URL has no query, the library's error stays as the cause."""
    wire.answer = hangs_up
    with pytest.raises(TransientError) as caught:
        await ask(http, f"{wire.url}/api")
    assert caught.value.__cause__ is not None


async def test_a_stale_connection_does_not_repeat_a_post(http: Http, wire: Wire) -> None:
    """A kept connection that is closed just now loses the request; whether it was heard nobody knows."""
    wire.answer = in_turn(says(200, b"{}"), hangs_up, says(200, b"{}"))
    await ask(http, f"{wire.url}/api")
    with pytest.raises(TransientError) as caught:
        await ask(http, f"{wire.url}/api")
    assert caught.value.reason is Reason.CONNECTION_LOST
    assert len(wire.seen) == 2


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-name.invalid"])
async def test_what_cannot_be_connected_was_certainly_not_sent(http: Http, host: str) -> None:
    """Refused connections and unknown names are `unreachable`, which means that nothing left."""
    with pytest.raises(TransientError) as caught:
        await ask(http, f"http://{host}:{closed_port()}/api")
    assert caught.value.reason is Reason.UNREACHABLE
    assert host in str(caught.value)


async def test_a_host_that_accepts_nothing_was_certainly_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that does not come about in its own, shorter time is `unreachable` and not a timeout."""
    monkeypatch.setattr("attachd.gateway.http._TIMEOUTS", aiohttp.ClientTimeout(total=None, connect=0.2))
    with socket.socket() as deaf:  # it accepts in the kernel only: the TLS handshake is never answered
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        async with open_http(None, no_proxy, time.monotonic) as http:
            with pytest.raises(TransientError) as caught:
                await ask(http, f"https://127.0.0.1:{deaf.getsockname()[1]}/api")
    assert caught.value.reason is Reason.UNREACHABLE


async def test_a_proxy_that_is_away_is_unreachable(wire: Wire) -> None:
    """The proxy is asked for by origin; when it is not there nothing was sent, and its password stays unsaid."""
    asked: list[str] = []
    proxy = f"http://user:HUSH@127.0.0.1:{closed_port()}"

    def proxy_for(origin: str) -> str:
        asked.append(origin)
        return proxy

    async with open_http(None, proxy_for, time.monotonic) as http:
        with pytest.raises(TransientError) as caught:
            await ask(http, "http://api.example/api?secret=1")
    assert asked == ["http://api.example"]
    assert caught.value.reason is Reason.UNREACHABLE
    assert "HUSH" not in str(caught.value)


async def test_a_proxy_that_refuses_is_unreachable(wire: Wire) -> None:
    """A CONNECT that is refused means that the platform has heard nothing."""
    wire.answer = says(403)
    async with open_http(None, lambda origin: wire.url, time.monotonic) as http:
        with pytest.raises(TransientError) as caught:
            await ask(http, "https://api.example/api")
    assert caught.value.reason is Reason.UNREACHABLE
    assert wire.seen[0].line.startswith("CONNECT api.example:443")


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_the_environment_chooses_no_proxy(
    http: Http, wire: Wire, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Only the config names a proxy."""
    monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port()}")
    wire.answer = says(200, b"{}")
    assert (await ask(http, f"{wire.url}/api")).ok


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl")
    return certificate, key


@asynccontextmanager
async def tls_server(certificate: tuple[Path, Path], wire: Wire) -> AsyncIterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0, ssl=context)
    yield int(server.sockets[0].getsockname()[1])
    server.close()
    await asyncio.sleep(0)


async def test_a_certificate_nobody_vouches_for_is_refused(certificate: tuple[Path, Path], wire: Wire) -> None:
    """A self-signed certificate is an account error; not one byte of the request is sent."""
    async with tls_server(certificate, wire) as port, open_http(None, no_proxy, time.monotonic) as http:
        with pytest.raises(AccountError) as caught:
            await ask(http, f"https://localhost:{port}/api")
    assert caught.value.reason is Reason.TLS_FAILED
    assert "self-signed" in str(caught.value) or "self signed" in str(caught.value)
    assert wire.seen == []


async def test_an_extra_ca_is_trusted_for_its_own_names_only(certificate: tuple[Path, Path], wire: Wire) -> None:
    """With `ca_file` its certificate is good for the name it carries, and for no other."""
    wire.answer = says(200, b"{}")
    ca_file = str(certificate[0])
    async with tls_server(certificate, wire) as port, open_http(ca_file, no_proxy, time.monotonic) as http:
        assert (await ask(http, f"https://localhost:{port}/api")).ok
        with pytest.raises(AccountError) as caught:
            await ask(http, f"https://127.0.0.1:{port}/api")
    assert caught.value.reason is Reason.TLS_FAILED
    assert len(wire.seen) == 1


@pytest.mark.parametrize("extra_ca", [False, True])
async def test_nothing_older_than_tls_1_2_is_spoken(certificate: tuple[Path, Path], extra_ca: bool) -> None:
    """What we offer in the first message is TLS 1.3 and 1.2."""
    hello = asyncio.get_running_loop().create_future()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello.set_result(await reader.read(1 << 14))
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with open_http(str(certificate[0]) if extra_ca else None, no_proxy, time.monotonic) as http:
        with pytest.raises(TransientError):
            await ask(http, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/api")
    server.close()
    supported_versions = bytes.fromhex("002b 0005 04 0304 0303")  # RFC 8446, 4.2.1
    assert supported_versions in await hello


async def test_a_host_that_speaks_no_tls_is_not_trusted(http: Http) -> None:
    """Plain HTTP where TLS is due is an account error and never a silent step down."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    with pytest.raises(AccountError) as caught:
        await ask(http, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/api")
    server.close()
    assert caught.value.reason is Reason.TLS_FAILED


async def test_a_ca_file_without_a_certificate_is_found_before_anything_starts(tmp_path: Path) -> None:
    """The operator is told which setting is wrong."""
    wrong = tmp_path / "ca.pem"
    wrong.write_text("no certificate")
    for path in (wrong, tmp_path / "missing.pem"):
        with pytest.raises(ConfigError) as caught:
            async with open_http(str(path), no_proxy, time.monotonic):
                pass
        assert caught.value.problems[0].startswith("platform.ca_file: ")
        assert path.name in caught.value.problems[0]


async def test_a_cancelled_request_leaves_nothing_behind(http: Http, wire: Wire) -> None:
    """Cancellation goes through at once and is not turned into an error of the network."""
    wire.answer = never
    task = asyncio.ensure_future(ask(http, f"{wire.url}/api"))
    await until(lambda: wire.seen, "the request is there")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("name", ["ININ-Correlation-Id", "Genesys-Correlation-Id"])
async def test_the_correlation_id_is_kept_if_it_looks_like_one(http: Http, wire: Wire, name: str) -> None:
    """The vendor's support asks for it; a forged one with other characters is left out."""
    wire.answer = in_turn(says(500, b"", f"{name}: 6a-1f"), says(500, b"", f"{name}: <script>"))
    assert (await ask(http, f"{wire.url}/api")).correlation_id == "6a-1f"
    assert (await ask(http, f"{wire.url}/api")).correlation_id is None
