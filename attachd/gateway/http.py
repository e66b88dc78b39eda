"""One request, one answer, in a bounded time and a bounded space.

Or one WebSocket, whose messages are others' business. No redirect is followed, no request is repeated, no proxy, cookie
or password comes from the environment. What the HTTP library and the operating system raise becomes one of attachd's
families here, with words that name the host and the path, and never a query, a token or a cookie.
"""

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import aiohttp
from yarl import URL

from attachd import __version__, telemetry
from attachd.errors import AccountError, ConfigError, DeliveryError, TransientError
from attachd.model import Reason, Step

JSON_LIMIT_BYTES = 64 * 1024
"""Ours: the largest answer of the API we know of has less than 2 KiB; more is not an answer of this API."""

CONNECT_S = 10.0
"""Ours: name, connection and TLS together; shorter than every deadline, so that a timeout here means "not sent"."""

KEEPALIVE_S = 5.0
"""Ours: a connection idle for longer may be closed by the other side just when a message goes out on it."""

RETRY_AFTER_CAP_S = 3600.0
"""Ours: an absurd Retry-After must not silence an account for days."""

HEARTBEAT_S = 15.0
"""A ping this often, and half of it for the pong: a WebSocket without one is lost. Source: the vendor's own client."""

CLOSE_S = 1.0
"""Ours: how long the other side may take to answer our goodbye; nothing depends on it."""

_EXCERPT_LENGTH = 200
_TIMEOUTS = aiohttp.ClientTimeout(total=None, connect=CONNECT_S)


def _no_constant(name: str) -> object:
    raise ValueError(name)


_JSON = json.JSONDecoder(parse_constant=_no_constant)  # NaN and Infinity are no JSON


def decoded(text: str | bytes) -> dict[str, object] | None:
    """The text if it is one JSON object and nothing else; None if it is anything else."""
    try:
        value = _JSON.decode(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    `where` is method, host and path; `asked_at` our monotonic time when the request left; `complete` is False when
    the body was cut at the limit or broke off.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    complete: bool
    where: str
    asked_at: float

    @property
    def ok(self) -> bool:
        """The status says that it was done."""
        return 200 <= self.status < 300

    def json(self) -> dict[str, object] | None:
        """The body if it is one JSON object and nothing else; None if it is anything else."""
        return decoded(self.body) if self.complete else None

    @property
    def correlation_id(self) -> str | None:
        """The name under which the vendor's support finds this request."""
        value = self.headers.get("ININ-Correlation-Id") or self.headers.get("Genesys-Correlation-Id")
        return value if value is not None and re.fullmatch(r"[\w.:-]{1,64}", value, re.ASCII) else None

    def retry_after_s(self) -> float | None:
        """How long the answer asks us to stay away."""
        return retry_after_s(self.headers, datetime.now(UTC))

    def told(self, *secrets: str) -> str:
        """The answer in one line for people; `secrets` are left out should the body repeat them."""
        said = excerpt(self.body, *secrets)
        return f"{self.where} answered {self.status}" + (f": {said}" if said else "")


class Http:
    """Makes requests. `proxy_for` gives the proxy for an origin such as `https://api.example`, or None."""

    def __init__(
        self, session: aiohttp.ClientSession, proxy_for: Callable[[str], str | None], clock: Callable[[], float]
    ) -> None:
        self._session = session
        # A WebSocket's handshake would follow redirects. Only this keeps it from doing so, at a price for each request
        # that nothing else needs to pay.
        self._sockets = aiohttp.ClientSession(
            connector=session.connector,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            timeout=_TIMEOUTS,
            headers={"User-Agent": session.headers["User-Agent"]},
            middlewares=(_no_redirect,),
        )
        self._proxy_for = proxy_for
        self._clock = clock

    async def request(
        self,
        step: Step,
        method: str,
        url: URL,
        *,
        deadline_s: float,
        headers: Mapping[str, str],
        body: bytes | aiohttp.Payload | None = None,
        limit_bytes: int = JSON_LIMIT_BYTES,
        status_suffices: bool = False,
    ) -> Answer:
        """Send one request and read its answer, all within `deadline_s`.

        With `status_suffices` an answer whose body breaks off is still an answer.

        Raises TransientError: `unreachable` when certainly nothing was sent, `timeout` or `connection_lost` when
        something may have been; AccountError when the TLS certificate or protocol is not to be trusted.
        """
        where = f"{method} {_place(url)}"
        response: aiohttp.ClientResponse | None = None
        complete = False
        asked_at = self._clock()
        try:
            async with asyncio.timeout(deadline_s):
                # The library repeats a GET once, which only asks again, and a PUT once when a reused connection turns
                # out to be closed, unless the body was begun: then the storage has seen nothing but a header. Both
                # happen under the same deadline. It never repeats a POST.
                response = await self._session.request(
                    method,
                    url,
                    headers=headers,
                    data=body,
                    allow_redirects=False,
                    proxy=self._proxy_for(_origin(url)),
                    timeout=_TIMEOUTS,
                )
                try:
                    content, complete = await _read(response, limit_bytes)
                except (aiohttp.ClientError, OSError):
                    if not status_suffices:
                        raise
                    content = b""
        except (aiohttp.ClientError, OSError) as exc:  # TimeoutError is an OSError
            # A cause that quotes the URL would carry the query, which is a secret, into every traceback.
            raise _family(exc, step, where, url, deadline_s) from (None if url.raw_query_string else exc)
        finally:
            if response is not None and not complete:
                response.close()
        return Answer(response.status, response.headers, content, complete, where, asked_at)

    async def websocket(
        self, step: Step, url: URL, *, origin: str, limit_bytes: int
    ) -> aiohttp.ClientWebSocketResponse | Answer:
        """Open a WebSocket within `CONNECT_S`; an Answer is what came instead. No message may exceed `limit_bytes`.

        Raises TransientError (`unreachable`, `timeout`, `connection_lost`); AccountError when TLS is not to be trusted.
        """
        where = f"GET {_place(url)}"
        asked_at = self._clock()
        try:
            async with asyncio.timeout(CONNECT_S):
                return await self._sockets.ws_connect(
                    url,
                    origin=origin,
                    proxy=self._proxy_for(_origin(url)),
                    heartbeat=HEARTBEAT_S,
                    max_msg_size=limit_bytes,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                )
        except aiohttp.WSServerHandshakeError as exc:
            return Answer(exc.status, exc.headers or {}, b"", False, where, asked_at)
        except (aiohttp.ClientError, OSError) as exc:
            raise _family(exc, step, where, url, CONNECT_S) from (None if url.raw_query_string else exc)

    async def close(self) -> None:
        """End what `websocket` needs; the session and its connections are their owner's."""
        await self._sockets.close()


async def _no_redirect(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise aiohttp.WSServerHandshakeError(
            response.request_info, (), status=response.status, message="redirected", headers=response.headers
        )
    return response


async def _read(response: aiohttp.ClientResponse, limit_bytes: int) -> tuple[bytes, bool]:
    """The body, and whether that is all of it."""
    content = b""
    while piece := await response.content.readany():
        content = content + piece if content else piece
        if len(content) > limit_bytes:
            return content[:limit_bytes], False
    return content, True


def _family(exc: Exception, step: Step, where: str, url: URL, deadline_s: float) -> DeliveryError:
    origin = _origin(url)
    match exc:
        case aiohttp.ConnectionTimeoutError():
            said = f"{where}: {origin} accepted no connection within {CONNECT_S:g} s"
            return TransientError(Reason.UNREACHABLE, said, step)
        case aiohttp.ClientConnectorSSLError(os_error=ssl.SSLEOFError()):
            return TransientError(Reason.UNREACHABLE, f"{where}: {origin} hung up during the TLS handshake", step)
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            said = (
                f"{where}: the TLS connection to {origin} cannot be trusted: {_tls_words(exc)}; "
                "check platform.ca_file and the clock of this host"
            )
            return AccountError(Reason.TLS_FAILED, said, step)
        case aiohttp.ClientConnectorDNSError():
            return TransientError(Reason.UNREACHABLE, f"{where}: the name {url.host} cannot be resolved", step)
        case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
            return TransientError(Reason.UNREACHABLE, f"{where}: the proxy does not lead to {origin}", step)
        case aiohttp.ClientConnectorError():
            words = one_line(exc.os_error.strerror or type(exc.os_error).__name__)
            return TransientError(Reason.UNREACHABLE, f"{where}: cannot connect to {origin}: {words}", step)
        case TimeoutError():
            return TransientError(Reason.TIMEOUT, f"{where}: no complete answer within {deadline_s:g} s", step)
        case aiohttp.ClientResponseError():
            return TransientError(Reason.CONNECTION_LOST, f"{where}: what came back is no HTTP answer", step)
        case _:
            said = f"{where}: the connection broke before the answer was complete ({type(exc).__name__})"
            return TransientError(Reason.CONNECTION_LOST, said, step)


def _tls_words(exc: Exception) -> str:
    cause = exc.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return one_line(cause.verify_message)
    if isinstance(cause, ssl.SSLError):
        return one_line((cause.reason or "handshake failed").replace("_", " ").lower())
    return "handshake failed"


def _origin(url: URL) -> str:
    scheme = {"wss": "https", "ws": "http"}.get(url.scheme, url.scheme)
    return f"{scheme}://{url.raw_authority.rpartition('@')[2]}"


def _place(url: URL) -> str:
    return f"{url.raw_authority.rpartition('@')[2]}{url.raw_path}"


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """The seconds of a Retry-After header, between 1 and the cap; None when there is none or it makes no sense.

    A date is measured against the Date of the same answer, so that a wrong clock here does no harm; `now` (aware)
    stands in when there is none. Source: RFC 9110, 10.2.3.
    """
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[+-]?\d{1,300}", value, re.ASCII):
        seconds = float(value)
    else:
        until = _http_date(value)
        if until is None:
            return None
        seconds = (until - (_http_date(headers.get("Date", "")) or now)).total_seconds()
    return min(max(seconds, 1.0), RETRY_AFTER_CAP_S)


def _http_date(value: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def excerpt(body: bytes, *secrets: str) -> str:
    """The beginning of a body as one printable line without secrets."""
    return one_line(telemetry.quotable(body[:1024].decode("utf-8", "replace"), *secrets))


def one_line(text: str) -> str:
    """At most 200 printable characters; whatever is not printable becomes a space."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= _EXCERPT_LENGTH else plain[: _EXCERPT_LENGTH - 1] + "…"


@asynccontextmanager
async def open_http(
    ca_file: str | None, proxy_for: Callable[[str], str | None], clock: Callable[[], float]
) -> AsyncIterator[Http]:
    """The one HTTP session of an account.

    Raises ConfigError when `ca_file` holds no certificate that can be read.
    """
    connector = aiohttp.TCPConnector(
        ssl=_tls(ca_file),
        keepalive_timeout=KEEPALIVE_S,
        limit=0,  # how much is under way at once is the dispatcher's to say
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,  # with "identity" asked for, anything compressed is no answer, however it would unfold
        headers={"User-Agent": f"attachd/{__version__}", "Accept-Encoding": "identity"},
    ) as session:
        http = Http(session, proxy_for, clock)
        try:
            yield http
        finally:
            await http.close()


def _tls(ca_file: str | None) -> ssl.SSLContext | Literal[True]:
    """TLS 1.2 or newer, and certificates are verified: the default of Python 3.10 and later."""
    if ca_file is None:
        return True  # the context that the library has made anyway; a second one costs a megabyte
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=ca_file)
    except (OSError, ValueError) as exc:
        problem = f"platform.ca_file: {ca_file!r} holds no PEM certificate that can be read"
        raise ConfigError("the extra CA", [problem]) from exc
    return context
