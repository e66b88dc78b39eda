"""The way out of one socket: frames one after the other, whole, spoiled, cut or never.

Everything that leaves passes one queue, pongs and resets too, so that nothing overtakes what was said before it
unless a fault wants it so.
"""

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, assert_never

from aiohttp import WSMsgType, web

from attachd.sandbox.exchange import reset
from attachd.sandbox.faults import Fault, FaultKind
from attachd.sandbox.ledger import Answer, Received
from attachd.sandbox.webmessaging.frames import Frame
from attachd.sandbox.webmessaging.timers import Timers

_NOT_JSON: Final = "<!DOCTYPE html><html><body>Sign in to the network.</body></html>"
_OTHER_SHAPE: Final = json.dumps({"entities": [], "total": 0})
_HUGE_CHUNK: Final = b" " * 65_536
_UNSENT_LIMIT_BYTES: Final = 1_048_576
_PAUSE_S: Final = 0.001
_ENDING: Final = frozenset(
    {
        FaultKind.RESET_UNREAD,
        FaultKind.RESET,
        FaultKind.LOST_ANSWER,
        FaultKind.RESET_MID_ANSWER,
        FaultKind.CLOSE,
    }
)


@dataclass(frozen=True, slots=True)
class Parcel:
    """`text` None: there is nothing to say, only the damage to do. `received`: the ledger line this answers."""

    text: str | None
    fault: Fault | None = None
    received: Received | None = None
    pong: bytes | None = None

    @property
    def content(self) -> str:
        assert self.text is not None, "only a fault stops a frame from being answered"
        return self.text

    def note(self, answer: Answer) -> None:
        if self.received is not None:
            self.received.answer = answer


class Outlet:
    def __init__(self, socket: web.WebSocketResponse, transport: asyncio.BaseTransport | None) -> None:
        self._socket = socket
        assert transport is None or isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._queue: asyncio.Queue[Parcel] = asyncio.Queue()
        self._held: list[Parcel] = []  # until another frame has gone out
        self._timers = Timers()
        self._over = False  # nothing goes out any more
        self.ended = False  # reset or closed from here: what still comes in is not read
        self.closing = False  # in an orderly way, and the client has not answered yet

    def push(self, frame: Frame) -> None:
        self.send(Parcel(frame.text()))

    def pong(self, payload: bytes) -> None:
        self.send(Parcel(None, pong=payload))

    def send(self, parcel: Parcel, delay_s: float = 0.0) -> None:
        if delay_s:
            self._timers.after(delay_s, partial(self.send, parcel))
        elif not self._over:
            if parcel.fault is not None and parcel.fault.kind in _ENDING:
                self.ended = True
            self._queue.put_nowait(parcel)

    async def flushed(self) -> None:
        """Return when all that was sent without delay has gone out, or cannot any more."""
        await self._queue.join()

    async def run(self) -> None:
        """Send until the socket is closed or reset from here, or the client has gone."""
        with suppress(ConnectionError):  # the ledger says that nothing reached it
            while not self._over:
                parcel = await self._queue.get()
                try:
                    if not await self._let_out(parcel):
                        return
                finally:
                    self._queue.task_done()

    def shut(self) -> None:
        """Drop what has not gone out."""
        self._over = self.ended = True
        self._timers.cancel()
        while not self._queue.empty():
            self._queue.get_nowait()
            self._queue.task_done()

    async def _let_out(self, parcel: Parcel) -> bool:
        """Whether more may follow on this socket."""
        if parcel.pong is not None:
            await self._socket.pong(parcel.pong)
            return True
        match parcel.fault:
            case Fault(kind=FaultKind.HANG):
                return True
            case Fault(kind=FaultKind.OVERTAKEN):
                self._held.append(parcel)
                return True
            case Fault(kind=FaultKind.RESET_UNREAD | FaultKind.RESET | FaultKind.LOST_ANSWER):
                reset(self._transport)
                return False
            case Fault(kind=FaultKind.RESET_MID_ANSWER):
                raw = _raw(parcel.content)
                self._write(raw[: len(raw) // 2])
                parcel.note(Answer.CUT)
                reset(self._transport)
                return False
            case Fault(kind=FaultKind.CLOSE, status=code):
                self.closing = True
                await self._socket.close(code=code)
                return False
            case Fault(kind=FaultKind.HUGE, size_bytes=size_bytes):
                await self._huge(parcel, size_bytes)
            case Fault(kind=FaultKind.DRIP, delay_s=pause_s):
                await self._drip(parcel, pause_s or 1.0)
            case None:
                await self._whole(parcel, parcel.content, Answer.WHOLE)
            case fault:
                await self._whole(parcel, *_worded(parcel.content, fault))
        held, self._held = self._held, []
        for late in held:
            await self._whole(late, late.content, Answer.WHOLE)
        return True

    async def _whole(self, parcel: Parcel, text: str, answer: Answer) -> None:
        await self._socket.send_str(text)
        parcel.note(answer)

    async def _huge(self, parcel: Parcel, size_bytes: int) -> None:
        payload = parcel.content.encode()
        parcel.note(Answer.CUT)
        self._write(_header(size_bytes + len(payload)))
        for start in range(0, size_bytes, len(_HUGE_CHUNK)):
            self._write(_HUGE_CHUNK[: size_bytes - start])
            await self._room()
        self._write(payload)
        parcel.note(Answer.WHOLE)

    async def _drip(self, parcel: Parcel, pause_s: float) -> None:
        raw = _raw(parcel.content)
        parcel.note(Answer.CUT)
        for index in range(len(raw)):
            if index:
                await asyncio.sleep(pause_s)
            self._write(raw[index : index + 1])
        parcel.note(Answer.WHOLE)

    async def _room(self) -> None:
        assert self._transport is not None, "something has been written to it"
        # The transport tells its protocol when there is room, and the protocol is the library's: so it is asked here.
        while self._transport.get_write_buffer_size() > _UNSENT_LIMIT_BYTES:  # noqa: ASYNC110 - see above
            await asyncio.sleep(_PAUSE_S)

    def _write(self, raw: bytes) -> None:
        """Bytes that are no whole frame, so they go past the socket's writer."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError
        self._transport.write(raw)


def _worded(text: str, fault: Fault) -> tuple[str, Answer]:
    """What is said in one whole frame under a fault, and how much of the truth that is."""
    match fault.kind:
        case FaultKind.STATUS:
            # When the frame was processed all the same, the error is not the true answer.
            return text, Answer.SPOILED if fault.after_processing else Answer.WHOLE
        case FaultKind.WRONG_ATTACHMENT_ID:
            return text, Answer.SPOILED
        case FaultKind.TRUNCATED_JSON:
            return text[: len(text) // 2], Answer.SPOILED
        case FaultKind.WRONG_JSON:
            return _OTHER_SHAPE, Answer.SPOILED
        case FaultKind.HTML:
            return _NOT_JSON, Answer.SPOILED
        case FaultKind.EMPTY:
            return "", Answer.SPOILED
        case (
            FaultKind.DELAY
            | FaultKind.EXPIRED_URL
            | FaultKind.CAPABILITY_DENIED
            | FaultKind.DROPPED_ATTACHMENT
            | FaultKind.EARLY
            | FaultKind.SESSION_EXPIRED
        ):
            return text, Answer.WHOLE
        case (
            FaultKind.HANG
            | FaultKind.OVERTAKEN
            | FaultKind.RESET_UNREAD
            | FaultKind.RESET
            | FaultKind.LOST_ANSWER
            | FaultKind.RESET_MID_ANSWER
            | FaultKind.CLOSE
            | FaultKind.HUGE
            | FaultKind.DRIP
        ):
            raise AssertionError(f"{fault.kind} leaves no whole frame")
        case _:
            assert_never(fault.kind)


def _raw(text: str) -> bytes:
    payload = text.encode()
    return _header(len(payload)) + payload


def _header(length: int) -> bytes:
    """The head of a server's text frame, RFC 6455 section 5.2: final, not masked."""
    first = bytes([0x80 | WSMsgType.TEXT])
    if length < 126:
        return first + bytes([length])
    if length < 65_536:
        return first + bytes([126]) + length.to_bytes(2)
    return first + bytes([127]) + length.to_bytes(8)
