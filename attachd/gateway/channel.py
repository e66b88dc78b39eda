"""One WebSocket of one guest: a question at a time, its answer found among everything else that arrives.

A reader task owns what comes in; it belongs to the block that opened the socket and ends with it. Whoever waits watches
for the frame that is meant for him, so that an answer which overtakes the question's own return is not missed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import aiohttp
from yarl import URL

from attachd.errors import AccountError, DeliveryError, TransientError, UnknownOutcome
from attachd.gateway import frames
from attachd.gateway.frames import Frame, Refusal, Request
from attachd.gateway.guard import Gate, Window
from attachd.gateway.http import CLOSE_S, Answer, Http, excerpt
from attachd.model import Reason, Step

FRAME_LIMIT_BYTES = 256 * 1024
"""Ours: a text has 4 KiB at most, an attachment's URLs a few more; what is larger is no frame of this protocol."""

REQUESTS_PER_MINUTE = 60
MESSAGES_PER_S = 2
"""What one connection may ask and one session may post. Source: the vendor's limits; of two figures for messages, the
smaller."""

TELL_S = 15.0
"""Ours: how long writing may take where no answer is due."""

_LATE_S = 0.05
"""Ours: a request may be so much slower on its way than the one a window earlier."""

_POLICY = frozenset({1003, 1007, 1008, 1009})
"""Close codes that blame what we are or said. Source: RFC 6455, 7.4.1."""

_T = TypeVar("_T")
Reads: TypeAlias = Callable[[Frame], _T | Refusal | None]


@dataclass(frozen=True, slots=True)
class _End:
    """Why the connection is over; `code` is the one the other side closed it with."""

    reason: Reason
    words: str
    code: int | None = None


@dataclass(slots=True)
class Watch(Generic[_T]):
    """Somebody waits for a frame."""

    reads: Reads[_T]
    found: "asyncio.Future[_T | Refusal | _End]"

    def offer(self, frame: Frame) -> bool:
        """Whether the frame is the one."""
        if self.found.done() or (outcome := self.reads(frame)) is None:
            return False
        self.found.set_result(outcome)
        return True


class Channel:
    """One socket, for one owner, who asks one thing at a time."""

    def __init__(
        self,
        socket: aiohttp.ClientWebSocketResponse,
        token: str,
        where: str,
        gate: Gate,
        clock: Callable[[], float],
    ) -> None:
        self._socket = socket
        self._token = token
        self._where = where
        self._gate = gate
        self._clock = clock
        self._requests = Window(REQUESTS_PER_MINUTE, 60 + _LATE_S)
        self._messages = Window(MESSAGES_PER_S, 1 + _LATE_S)
        self._watches: list[Watch[Any]] = []
        self._unanswered: set[str] = set()  # tracing ids of what was asked or told
        self._end: _End | None = None

    async def ask(self, request: Request, reads: Reads[_T], step: Step, deadline_s: float) -> _T:
        """Ask and wait for the answer, both within `deadline_s`.

        Raises what the platform refuses; TransientError when there is no answer, which at the message step is
        UnknownOutcome as soon as something was written.
        """
        await self._turn(request, step)
        lost = UnknownOutcome if step is Step.MESSAGE else TransientError
        self._unanswered.add(request.tracing)
        with self.watch(self._tied(request, reads)) as watch:
            try:
                async with asyncio.timeout(deadline_s):
                    await self._socket.send_str(request.text(self._token))
                    outcome = await watch.found
            except TimeoutError as exc:
                said = f"{self._where}: no answer to {request.action} within {deadline_s:g} s"
                if lost is UnknownOutcome:
                    said += f"; {frames.PERHAPS}"
                raise lost(Reason.TIMEOUT, said, step) from exc
            except (aiohttp.ClientError, OSError) as exc:
                outcome = self._end or _End(Reason.CONNECTION_LOST, f"it broke while writing ({type(exc).__name__})")
        return self._good(outcome, step, request.action, lost)

    async def tell(self, request: Request, step: Step) -> None:
        """Say something that has no answer."""
        await self._turn(request, step)
        self._unanswered.add(request.tracing)
        try:
            async with asyncio.timeout(TELL_S):
                await self._socket.send_str(request.text(self._token))
        except (aiohttp.ClientError, OSError) as exc:  # TimeoutError is an OSError
            raise self._over(self._end or _End(Reason.CONNECTION_LOST, "it broke while writing"), step) from exc

    def _tied(self, request: Request, reads: Reads[_T]) -> Reads[_T]:
        """`reads`, which also sees whether the request is the only one that a refusal can be about."""

        def read(frame: Frame) -> _T | Refusal | None:
            outcome = reads(frame)
            if isinstance(outcome, Refusal):
                return outcome.alone(request.action) if self._unanswered <= {request.tracing} else outcome
            if outcome is not None:
                self._unanswered.discard(request.tracing)
            return outcome

        return read

    @contextmanager
    def watch(self, reads: Reads[_T]) -> Iterator[Watch[_T]]:
        """Look out for a frame from now on, for as long as the block lasts."""
        watch: Watch[_T] = Watch(reads, asyncio.get_running_loop().create_future())
        if self._end is not None:
            watch.found.set_result(self._end)
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)
            watch.found.cancel()

    async def wait(self, watch: Watch[_T], step: Step, deadline_s: float, what: str) -> _T:
        """Wait for what is watched for, at most `deadline_s` from now; `what` it is, for the words of an error."""
        try:
            async with asyncio.timeout(deadline_s):
                outcome = await watch.found
        except TimeoutError as exc:
            said = f"{self._where}: no word on {what} within {deadline_s:g} s"
            raise TransientError(Reason.TIMEOUT, said, step) from exc
        return self._good(outcome, step, what, TransientError)

    async def read(self) -> None:
        """Hear everything that comes until the connection is over. The reader task's work."""
        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                if (frame := frames.read(message.data)) is not None:
                    self._hear(frame)
            elif message.type is not aiohttp.WSMsgType.BINARY:
                code = message.data if message.type is aiohttp.WSMsgType.CLOSE else None
                self._finish(_End(Reason.CONNECTION_LOST, self._closed_how(message), code))
                return

    def _hear(self, frame: Frame) -> None:
        if frame.tracing is not None:
            self._unanswered.discard(frame.tracing)
        # All are asked: what somebody waits for is not somebody else's end.
        wanted = [watch.offer(frame) for watch in self._watches]
        if not any(wanted) and (words := frames.ENDINGS.get(frame.name)) is not None:
            told = frame.fields.get("reason") or frame.fields.get("reasonCode")
            if isinstance(told, str):
                words += f" ({self._quoted(told)})"
            expired = frame.name == frames.SESSION_EXPIRED
            self._finish(_End(Reason.NOT_READY if expired else Reason.CONNECTION_LOST, words))

    def _finish(self, end: _End) -> None:
        self._end = self._end or end
        for watch in self._watches:
            if not watch.found.done():
                watch.found.set_result(self._end)

    def _closed_how(self, message: aiohttp.WSMessage) -> str:
        if isinstance(message.data, aiohttp.WebSocketError):
            return f"a frame came that cannot be read ({message.data.code})"
        if isinstance(message.data, aiohttp.ServerTimeoutError):
            return "the platform does not answer pings any more"
        if message.type is aiohttp.WSMsgType.CLOSE:
            reason = self._quoted(message.extra) if isinstance(message.extra, str) else ""
            return f"the platform closed it with {message.data}" + (f": {reason}" if reason else "")
        return "it broke"

    def _quoted(self, text: str) -> str:
        return excerpt(text.encode("utf-8", "replace"), self._token)

    async def _turn(self, request: Request, step: Step) -> None:
        """Wait until the limits let the request pass; on return nothing of it was written, and it may be."""
        windows = [self._requests] + ([self._messages] if request.action == "onMessage" else [])
        if (wait_s := max(window.wait_s(self._clock()) for window in windows)) > 0:
            await asyncio.sleep(wait_s)
        if self._end is not None or self._socket.closed:
            raise self._over(self._end or _End(Reason.CONNECTION_LOST, "it broke"), step)
        for window in windows:
            window.take(self._clock())

    def _good(self, outcome: _T | Refusal | _End, step: Step, asked: str, lost: type[TransientError]) -> _T:
        match outcome:
            case Refusal():
                error = frames.error(outcome, step, asked, self._token)
                if outcome.names_connections and outcome.retry_after_s is not None:
                    self._gate.hold(outcome.retry_after_s, str(error))
                raise error
            case _End():
                if lost is UnknownOutcome:
                    raise lost(outcome.reason, f"{self._ended(outcome)}; {frames.PERHAPS}", step)
                raise self._over(outcome, step)
            case _:
                return outcome

    def _over(self, end: _End, step: Step) -> DeliveryError:
        if step is Step.SESSION and end.code in _POLICY:
            said = f"{self._ended(end)}; {frames.DEPLOYMENT_ADVICE}"
            return AccountError(Reason.DEPLOYMENT_REFUSED, said, step)
        return TransientError(end.reason, self._ended(end), step)

    def _ended(self, end: _End) -> str:
        return f"{self._where}: the connection is over: {end.words}"


@asynccontextmanager
async def open_channel(
    http: Http, gate: Gate, url: URL, *, origin: str, token: str, clock: Callable[[], float]
) -> AsyncIterator[Channel]:
    """Connect, for as long as the block lasts; at its end the connection is closed with 1000.

    Raises AccountError (refused at the door, or whoever answers is not the platform), TransientError.
    """
    departure = await gate.admit()
    opened = await http.websocket(Step.SESSION, url, origin=origin, limit_bytes=FRAME_LIMIT_BYTES)
    gate.answered(departure, "connect")
    if isinstance(opened, Answer):
        raise _turned_away(opened, gate)
    channel = Channel(opened, token, f"{url.authority}{url.path}", gate, clock)
    trouble: Exception | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(channel.read(), name=f"frames from {url.host}")
            try:
                yield channel
                with suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_S):
                        await opened.close()
            except Exception as caught:  # noqa: BLE001  raised again below: in here the group would wrap it
                trouble = caught
            finally:
                reader.cancel()
    finally:
        await opened.close()
    if trouble is not None:
        raise trouble


def _turned_away(answer: Answer, gate: Gate) -> DeliveryError:
    """Whose fault it is that there is no WebSocket."""
    said, status, retry_after_s = answer.told(), answer.status, answer.retry_after_s()
    correlation_id = answer.correlation_id
    if status in (401, 403):
        detail = f"{said}; {frames.DEPLOYMENT_ADVICE}"
        return AccountError(
            Reason.DEPLOYMENT_REFUSED, detail, Step.SESSION, http_status=status, correlation_id=correlation_id
        )
    if status == 429:
        gate.hold(retry_after_s or frames.QUIET_S, said)
        reason = Reason.RATE_LIMITED
    elif status < 400 or status in (404, 405, 407, 410, 426):
        detail = f"{said}, which opens no WebSocket; look at platform.messaging_url and at proxies in between"
        return AccountError(
            Reason.NOT_THE_PLATFORM, detail, Step.SESSION, http_status=status, correlation_id=correlation_id
        )
    else:
        reason = Reason.TIMEOUT if status == 408 else Reason.SERVER_ERROR
    return TransientError(
        reason,
        said,
        Step.SESSION,
        http_status=status,
        correlation_id=correlation_id,
        retry_after_s=retry_after_s if status != 429 else retry_after_s or frames.QUIET_S,
    )
