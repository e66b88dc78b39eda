"""One socket from its handshake to its end: frames read in order, each an exchange with its line in the ledger."""

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import WSMsgType, web

from attachd.sandbox.exchange import Exchange, Struck
from attachd.sandbox.faults import Fault, FaultKind, Faults
from attachd.sandbox.fields import glimpsed, parsed
from attachd.sandbox.ids import new_id
from attachd.sandbox.ledger import Ledger
from attachd.sandbox.reply import Refused
from attachd.sandbox.settings import SandboxSettings
from attachd.sandbox.step import Step
from attachd.sandbox.webmessaging import frames
from attachd.sandbox.webmessaging.chatter import Chatter
from attachd.sandbox.webmessaging.dialogue import Dialogue, step_in
from attachd.sandbox.webmessaging.frames import Declined, Frame
from attachd.sandbox.webmessaging.outlet import Outlet, Parcel
from attachd.sandbox.webmessaging.session import Peer

_UNSUPPORTED_DATA: Final = 1003


class Connection:
    def __init__(
        self,
        settings: Callable[[], SandboxSettings],
        dialogue: Dialogue,
        chatter: Chatter,
        faults: Faults,
        ledger: Ledger,
    ) -> None:
        self._settings = settings
        self._dialogue = dialogue
        self._chatter = chatter
        self._faults = faults
        self._ledger = ledger

    async def run(self, socket: web.WebSocketResponse, peer: Peer) -> None:
        """Return when the socket is closed from either side; cancelled when its connection is lost."""
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(peer.outlet.run(), name="outlet")
            try:
                await self._read(socket, peer.outlet, peer)
            finally:
                if not peer.outlet.closing:  # a close from here waits for the client's own close frame
                    writing.cancel()

    async def _read(self, socket: web.WebSocketResponse, outlet: Outlet, peer: Peer) -> None:
        while True:
            message = await socket.receive()
            match message.type:
                case WSMsgType.TEXT if not outlet.ended:
                    self._take(str(message.data), peer)
                case WSMsgType.PING if not outlet.ended:
                    outlet.pong(bytes(message.data))
                case WSMsgType.BINARY if not outlet.ended:
                    outlet.send(Parcel(None, Fault(FaultKind.CLOSE, status=_UNSUPPORTED_DATA)))
                case WSMsgType.TEXT | WSMsgType.PING | WSMsgType.BINARY | WSMsgType.PONG:
                    pass
                case _:
                    return

    def _take(self, text: str, peer: Peer) -> None:
        outlet, session = peer.outlet, peer.session
        content = parsed(text.encode())
        received = self._ledger.receive(step_in(content), new_id())
        exchange = Exchange(received, self._faults)
        tracing_id = glimpsed(content, "tracingId")
        frame = self._decided(content, tracing_id, exchange, peer)
        fault = exchange.fault
        if fault is not None and fault.kind is FaultKind.STATUS:
            frame = frames.error_frame(_demanded(fault, content, received.step), tracing_id, self._settings())
        if frame is not None:
            received.status, received.code = frame.status, frame.class_name
        self._ledger.end(received)
        before, after = self._chatter.around(session)
        for one in before:
            outlet.push(one)
        parcel = Parcel(None if frame is None else frame.text(), fault, received)
        outlet.send(parcel, 0.0 if fault is None or fault.kind is FaultKind.DRIP else fault.delay_s)
        for one in after:
            outlet.push(one)
        exchange.conclude()

    def _decided(self, content: object, tracing_id: str | None, exchange: Exchange, peer: Peer) -> Frame | None:
        """The true answer; None when a fault kept the frame from being processed."""
        try:
            exchange.strike(self._faults.draw_unread(exchange.received.step))
            return self._dialogue.answer(content, peer, exchange).traced(tracing_id)
        except Struck:
            return None
        except Refused as refused:
            return frames.error_frame(Declined(refused.status, refused.message), tracing_id, self._settings())
        except Declined as declined:
            return frames.error_frame(declined, tracing_id, self._settings())


def _demanded(fault: Fault, content: object, step: Step) -> Declined:
    """The error a fault asks for, in the class the platform would choose unless the fault names one."""
    retry_after = fault.headers.get("Retry-After", "")
    wanted = fault.error_class
    if wanted is None and fault.status in frames.TOO_MANY:
        wanted = frames.TOO_MANY_CLASS
    if wanted is None and step is Step.ATTACHMENT and fault.status >= 4000:
        wanted = frames.URL_ERROR_CLASS
    seconds = int(retry_after) if retry_after.isascii() and retry_after.isdigit() else 1
    return Declined(
        fault.status,
        fault.body if fault.body is not None else "Request failed.",
        error_class=wanted,
        attachment_id=glimpsed(content, "attachmentId"),
        retry_after_s=seconds if wanted == frames.TOO_MANY_CLASS else None,
    )
