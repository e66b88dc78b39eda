"""Brings a document's bytes to the presigned place the platform named.

Both gateways use it. The URL is a secret: whoever has it may write there. No token of ours ever goes to a storage.
"""

import asyncio
import ipaddress
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp
import structlog
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from attachd.errors import AccountError, DeliveryError, FileError, TransientError
from attachd.gateway.guard import Gate
from attachd.gateway.http import Answer, Http, excerpt
from attachd.model import AttachmentId, Reason, Step
from attachd.ports import ReadContent

METADATA_HEADER = "x-amz-meta-genesys-attachment-id"
"""Source: the guest API's contract, step 4."""

_ANSWER_LIMIT_BYTES = 4096
_SLOWEST_BYTES_PER_S = 64 * 1024
"""Ours: an uplink slower than this cannot carry the largest document within the life of its URL."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  RFC 9110, 5.6.2
_MEDIA_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|\"[ !#-\[\]-~]*\"))*", re.ASCII)
_FRAMING = frozenset({"connection", "expect", "te", "trailer", "transfer-encoding", "upgrade"})
"""Headers that say where a request ends or what the connection becomes: never the platform's to choose."""
_HEADER_NAME = re.compile(_TOKEN, re.ASCII)
_HEADER_VALUE = re.compile(r"[!-~](?:[ -~]{0,4094}[!-~])?", re.ASCII)
# A host without a user name before it, then printable characters without quotes, backslash and angles.
_URL = re.compile(r"https?://[0-9A-Za-z._:\[\]-]{1,255}(?:[/?][!#-;=?-\[\]_a-z~]{0,8192})?", re.ASCII)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one document.

    `asked_at` is our monotonic time of the request that brought it; None for `expires_in_s` means the platform tells
    no lifetime. `headers` go along as they are.
    """

    attachment: AttachmentId
    url: str = field(repr=False)
    content_type: str
    asked_at: float
    expires_in_s: float | None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def put_deadline_s(size: int) -> float:
    """How long the bytes may take: 20 s and a second for each 64 KiB, at most ten minutes. Ours."""
    return min(600.0, 20.0 + size / _SLOWEST_BYTES_PER_S)


def starts_until(slot: Slot) -> float:
    """Our monotonic time after which a transfer is not begun any more; one begun in time may end later.

    The lifetime counts from our question, so no clock but ours matters.
    """
    if slot.expires_in_s is None:
        return float("inf")
    return slot.asked_at + max(0.8 * slot.expires_in_s - 10.0, 0.5 * slot.expires_in_s)


class Storage:
    """Puts documents for one account.

    `api_url` tells whether the platform is on this host: only then may the storage be too, and speak plain HTTP.
    `hosts` are the names, or ends of names, the storage must have; empty allows any.
    """

    def __init__(
        self, http: Http, gate: Gate, *, api_url: str, hosts: tuple[str, ...], clock: Callable[[], float]
    ) -> None:
        self._http = http
        self._gate = gate
        self._api_is_local = is_loopback(URL(api_url).host)
        self._hosts = tuple(host.lower().strip(".") for host in hosts)
        self._clock = clock
        self._without_metadata = False

    async def put(self, slot: Slot, size: int, read: ReadContent) -> None:
        """Send the bytes `read` gives; return when the storage says it has them.

        Raises FileError (too large for the storage), AccountError (an answer that names no place we may send to, or a
        storage that refuses the platform itself), TransientError; what `read` raises passes through.
        """
        url = self._checked(slot)
        headers = {**slot.headers, "Content-Type": slot.content_type}
        if self._without_metadata:
            headers.pop(METADATA_HEADER, None)
        answer = await self._sent(slot, url, headers, size, read)
        if _names_unsigned_headers(answer) and headers.pop(METADATA_HEADER, None) is not None:
            answer = await self._sent(slot, url, headers, size, read)
            if answer.ok and not self._without_metadata:
                self._without_metadata = True
                _log.info("storage.header_omitted", header=METADATA_HEADER, host=url.host)
        if not answer.ok:
            raise _refusal(answer)

    async def _sent(self, slot: Slot, url: URL, headers: Mapping[str, str], size: int, read: ReadContent) -> Answer:
        await self._gate.admit_uncounted()
        if self._clock() > starts_until(slot):
            raise TransientError(
                Reason.URL_EXPIRED,
                f"the place for attachment {slot.attachment} at {url.host} was only good for {slot.expires_in_s:g} s, "
                "too short to begin now",
                Step.PUT,
            )
        body = _Body(read, size)
        try:
            answer = await self._http.request(
                Step.PUT,
                "PUT",
                url,
                deadline_s=put_deadline_s(size),
                headers=headers,
                body=body,
                limit_bytes=_ANSWER_LIMIT_BYTES,
                status_suffices=True,
            )
        except DeliveryError:
            # The connection broke because we let go of it: what reading raised is the error.
            if body.broken is None:
                raise
        else:
            await body.left_alone()
            return _whole(answer, body)
        finally:
            await body.left_alone()
        raise body.broken

    def _checked(self, slot: Slot) -> URL:
        """The URL, if it and what goes with it are fit to be used. Of the URL only its host gets into an error."""
        if _URL.fullmatch(slot.url) is None:
            raise _unfit(slot, "its URL is no web address")
        try:
            url = URL(slot.url, encoded=True)
            host = (url.host or "").lower().rstrip(".")
            problem = self._objection(url, host)
        except ValueError:
            raise _unfit(slot, "its URL is no web address") from None
        if problem is not None:
            raise _unfit(slot, f"its URL {problem} (host {host})")
        if len(slot.content_type) > 255 or _MEDIA_TYPE.fullmatch(slot.content_type) is None:
            raise _unfit(slot, "its content type is none")
        if not all(
            _HEADER_NAME.fullmatch(name) and name.lower() not in _FRAMING and _HEADER_VALUE.fullmatch(value)
            for name, value in slot.headers.items()
        ):
            raise _unfit(slot, "it asks for a header that cannot be sent")
        return url

    def _objection(self, url: URL, host: str) -> str | None:
        if not host:
            return "names no host"
        named = any(host == end or host.endswith("." + end) for end in self._hosts)
        if self._hosts and not named:
            return "leads to a host that platform.upload_hosts does not name"
        local = self._api_is_local and is_loopback(host)
        if url.scheme != "https" and not local:
            return "is not https"
        if not (named or local) and _is_inside(host):
            return "leads into a private network"
        return None


def is_loopback(host: str | None) -> bool:
    """The host is this host, by its name or number."""
    if host is None:
        return False
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _is_inside(host: str) -> bool:
    """A number or name that no storage of a platform out there has."""
    with suppress(ValueError):
        return not ipaddress.ip_address(host).is_global
    # Some resolvers read 2130706433, 0x7f.1 or 127.1 as addresses: no public name ends in a number.
    return host == "localhost" or re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)", host.rpartition(".")[2]) is not None


class _Body(aiohttp.Payload):
    """The bytes of a document on their way: counted, read piece by piece, and sent once.

    `broken` is what reading raised, as it was raised: the HTTP library would wrap it into a broken connection.
    """

    def __init__(self, read: ReadContent, size: int) -> None:
        super().__init__(read, content_type="application/octet-stream")
        self._read = read
        self._announced = self._size = size  # _size is the library's: Content-Length, and never chunks
        self._idle = asyncio.Event()
        self._idle.set()
        self._sent = 0
        self.broken: Exception | None = None

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Send it; `content_length` is the size this body was made with, and is kept to here."""
        del content_length
        self._consumed = True  # from here on the library must not send it again
        self._idle.clear()
        try:
            await self._write(writer)
        finally:
            self._idle.set()

    async def _write(self, writer: AbstractStreamWriter) -> None:
        pieces = self._read()
        try:
            while (piece := await self._next(pieces)) is not None:
                self._sent += len(piece)  # first: once the last piece is out, the answer may cancel this task
                await writer.write(piece)
        finally:
            # At once and in this task: the file must not stay open until the garbage is collected.
            if (aclose := getattr(pieces, "aclose", None)) is not None:
                await aclose()

    async def _next(self, pieces: AsyncIterator[bytes]) -> bytes | None:
        try:
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                if self._sent != self._announced:
                    raise self._changed() from None
                return None
            if self._sent + len(piece) > self._announced:
                raise self._changed()
        except Exception as error:
            self.broken = error
            raise
        return piece

    def _changed(self) -> TransientError:
        return TransientError(
            Reason.CHANGED, f"the file no longer has the {self._announced} bytes that were announced", Step.PUT
        )

    @property
    def all_sent(self) -> bool:
        """Every byte was handed to the connection."""
        return self._sent == self._announced

    async def left_alone(self) -> None:
        """Wait until nobody reads for this body any more; its writer has been told to stop."""
        await self._idle.wait()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError(f"a document on its way cannot be shown, in {encoding} ({errors}) or otherwise")


def _whole(answer: Answer, body: _Body) -> Answer:
    """The answer, unless it says "done" of a part."""
    if answer.ok and not body.all_sent:
        if body.broken is not None:
            raise body.broken
        said = f"{answer.where} answered {answer.status} before it had all of the file"
        raise TransientError(Reason.STORAGE_REFUSED, said, Step.PUT, http_status=answer.status)
    return answer


def _unfit(slot: Slot, why: str) -> AccountError:
    return AccountError(
        Reason.NOT_THE_PLATFORM, f"the place named for attachment {slot.attachment} is not used: {why}", Step.PUT
    )


# S3 names the headers in an element of this name; others that speak S3, such as rclone, have S3's sentence alone.
_UNSIGNED_HEADERS = (b"HeadersNotSigned", b"headers present in the request which were not signed")


def _names_unsigned_headers(answer: Answer) -> bool:
    return answer.status in (400, 403) and any(said in answer.body for said in _UNSIGNED_HEADERS)


_CODE = re.compile(rb"<Code>\s{0,8}([A-Za-z0-9.]{1,64})\s{0,8}</Code>")
_MESSAGE = re.compile(rb"<Message>([^<]{1,512})</Message>")

_EXPIRED = frozenset({"AccessDenied", "ExpiredToken", "RequestExpired", "TokenRefreshRequired"})
_BROKEN_ON_THE_WAY = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"})
_PLATFORMS_OWN_TROUBLE = frozenset({"InvalidAccessKeyId", "NoSuchBucket"})
_OVERLOADED = frozenset({"InternalError", "ServiceUnavailable", "SlowDown"})


def _refusal(answer: Answer) -> DeliveryError:
    """Whose fault a storage's answer is. Its code outranks its status.

    Only code and message are told: the rest of such an answer may quote the signature.
    """
    found = _CODE.search(answer.body)
    code = found[1].decode("ascii") if found else ""
    message = _MESSAGE.search(answer.body)
    said = f"{answer.where} answered {answer.status}"
    if code:
        said += f" {code}"
    if message:
        said += f": {excerpt(message[1])}"
    status = answer.status

    def transient(reason: Reason) -> TransientError:
        return TransientError(reason, said, Step.PUT, http_status=status, retry_after_s=answer.retry_after_s())

    if code == "EntityTooLarge" or status == 413:
        return FileError(Reason.TOO_LARGE, said, Step.PUT, http_status=status)
    if _names_unsigned_headers(answer) or code in _PLATFORMS_OWN_TROUBLE:
        return AccountError(Reason.STORAGE_REFUSED, said, Step.PUT, http_status=status)
    if code in _BROKEN_ON_THE_WAY or status == 408:
        return transient(Reason.CONNECTION_LOST)
    if status == 429:
        return transient(Reason.RATE_LIMITED)
    if code in _OVERLOADED or status >= 500:
        return transient(Reason.SERVER_ERROR)
    if code in _EXPIRED:
        return transient(Reason.URL_EXPIRED)
    if status == 451:
        return FileError(Reason.REFUSED, said, Step.PUT, http_status=status)
    if status in (405, 406, 411, 415, 422, 426):
        return AccountError(Reason.STORAGE_REFUSED, said, Step.PUT, http_status=status)
    # A signature that does not match, a redirect, a place that is gone: the next attempt gets a new URL.
    return transient(Reason.STORAGE_REFUSED)
