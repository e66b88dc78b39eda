"""One HTTP request and its answer: fault drawn, ledger written, the true answer or the damage put on the wire.

The parts of the platform decide; only this module touches a response or a connection. A frame on a WebSocket is an
exchange too, answered by `webmessaging.outlet`.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import assert_never

from aiohttp import web

from attachd.sandbox.faults import Fault, FaultKind, Faults
from attachd.sandbox.ids import new_id
from attachd.sandbox.ledger import Answer, Ledger, Received
from attachd.sandbox.reply import Refused, Reply, refusal, rendered
from attachd.sandbox.step import Step

_LINGER_ZERO = struct.pack("ii", 1, 0)  # on, 0 s: closing drops what is unsent and sends RST instead of FIN
_HUGE_CHUNK = b" " * 65_536
_PORTAL_PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Sign in to the network.</body></html>"


class Struck(Exception):  # noqa: N818 - control flow of one request
    """A fault keeps the request from being processed."""


class Exchange:
    """What a part of the platform knows of the request it decides about."""

    __slots__ = ("_faults", "afterwards", "fault", "received")

    def __init__(self, received: Received, faults: Faults) -> None:
        self._faults = faults
        self.received = received
        self.fault: Fault | None = None
        self.afterwards: Callable[[], None] | None = None  # what follows from it once the client has its answer

    def concerns(self, file_name: str | None = None, queue_id: str | None = None) -> None:
        """To be called once, as soon as it is known whose request this is and before anything is decided.

        Raises Struck when a fault ends the matter here.
        """
        self.received.file_name = file_name
        self.strike(self._faults.draw(self.received.step, file_name, queue_id))

    def strike(self, fault: Fault | None) -> None:
        if fault is not None:
            self.fault = fault
            self.received.fault = fault.kind
            if fault.stops_processing:
                raise Struck

    def suffers(self, kind: FaultKind) -> bool:
        return self.fault is not None and self.fault.kind is kind

    def conclude(self) -> None:
        then, self.afterwards = self.afterwards, None
        if then is not None:
            then()


Decide = Callable[[web.Request, Exchange], Awaitable[Reply]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answering(step: Step, decide: Decide, faults: Faults, ledger: Ledger) -> Handler:
    """The aiohttp handler of one step."""

    async def handler(request: web.Request) -> web.StreamResponse:
        received = ledger.receive(step, new_id())
        exchange = Exchange(received, faults)
        try:
            reply = await decided(request, exchange, decide, faults)
            if reply is not None:
                received.status, received.code = reply.status, reply.code
            if exchange.fault is not None:  # an answer that is late or never comes holds up nothing else
                exchange.conclude()
            return await answer(request, exchange, reply)
        finally:
            exchange.conclude()
            ledger.end(received)

    return handler


def reset(transport: asyncio.BaseTransport | None) -> None:
    """End a connection as a crashed peer does: RST, nothing flushed."""
    if transport is not None and not transport.is_closing():
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        assert isinstance(transport, asyncio.WriteTransport)
        transport.abort()


async def decided(request: web.Request, exchange: Exchange, decide: Decide, faults: Faults) -> Reply | None:
    """The true answer; None when a fault kept the request from being processed."""
    received = exchange.received
    try:
        exchange.strike(faults.draw_unread(received.step))
        return await decide(request, exchange)
    except Struck:
        return None
    except Refused as refused:
        return rendered(refused, received.step, received.correlation_id)
    except web.HTTPException as error:  # aiohttp's own: the body is larger than a JSON request may be
        return rendered(refusal(received.step, error.status), received.step, received.correlation_id)


async def answer(request: web.Request, exchange: Exchange, reply: Reply | None) -> web.StreamResponse:
    """Put the true answer or the damage on the wire."""
    fault, received = exchange.fault, exchange.received
    if fault is not None and fault.delay_s and fault.kind is not FaultKind.DRIP:
        await asyncio.sleep(fault.delay_s)
    if fault is not None and fault.kind is FaultKind.STATUS:
        return await _refuse(request, received, fault)
    if fault is not None and reply is None:
        return await _silence(request, fault.kind)
    assert reply is not None, "only a fault stops a request from being decided"
    if fault is None:
        return await _send(request, received, reply, Answer.WHOLE)
    match fault.kind:
        case FaultKind.DELAY | FaultKind.EXPIRED_URL | FaultKind.CAPABILITY_DENIED:
            return await _send(request, received, reply, Answer.WHOLE)
        case FaultKind.WRONG_ATTACHMENT_ID:
            return await _send(request, received, reply, Answer.SPOILED)
        case FaultKind.LOST_ANSWER | FaultKind.HANG:
            return await _silence(request, fault.kind)
        case FaultKind.RESET_MID_ANSWER:
            return await _send_half(request, received, reply)
        case FaultKind.TRUNCATED_JSON:
            return await _send(request, received, _with_body(reply, reply.body[: len(reply.body) // 2]), Answer.SPOILED)
        case FaultKind.WRONG_JSON:
            spoiled = _with_body(reply, json.dumps({"entities": [], "total": 0}).encode())
            return await _send(request, received, spoiled, Answer.SPOILED)
        case FaultKind.HTML:
            page = Reply(200, _PORTAL_PAGE, {"Content-Type": "text/html; charset=utf-8"})
            return await _send(request, received, page, Answer.SPOILED)
        case FaultKind.EMPTY:
            return await _send(request, received, Reply(200, b"", {}), Answer.SPOILED)
        case FaultKind.HUGE:
            return await _send_huge(request, received, reply, fault.size_bytes)
        case FaultKind.DRIP:
            return await _drip(request, received, reply, fault.delay_s)
        case FaultKind.RESET | FaultKind.RESET_UNREAD | FaultKind.STATUS:
            raise AssertionError(f"{fault.kind} was dealt with before")
        case (
            FaultKind.CLOSE
            | FaultKind.OVERTAKEN
            | FaultKind.DROPPED_ATTACHMENT
            | FaultKind.EARLY
            | FaultKind.SESSION_EXPIRED
        ):
            raise AssertionError(f"{fault.kind} strikes a frame")
        case _:
            assert_never(fault.kind)


async def _refuse(request: web.Request, received: Received, fault: Fault) -> web.StreamResponse:
    refused = refusal(received.step, fault.status, fault.code)
    refused.headers = fault.headers
    reply = rendered(refused, received.step, received.correlation_id)
    if fault.body is not None:
        reply = _with_body(reply, fault.body.encode())
    received.status, received.code = reply.status, reply.code
    # When the request was processed all the same, this is not the true answer.
    return await _send(request, received, reply, Answer.SPOILED if fault.after_processing else Answer.WHOLE)


async def _silence(request: web.Request, kind: FaultKind) -> web.StreamResponse:
    if kind is not FaultKind.RESET_UNREAD:
        async for _ in request.content.iter_any():  # a server that dies later has taken the whole request first
            pass
    if kind is FaultKind.HANG:
        await asyncio.Event().wait()  # cancelled when the client goes away or the platform goes down
    return _broken_off(request)


def _broken_off(request: web.Request) -> web.StreamResponse:
    reset(request.transport)
    return web.Response()  # aiohttp wants one; there is no connection left to write it to


async def _send(request: web.Request, received: Received, reply: Reply, answer: Answer) -> web.StreamResponse:
    response = web.Response(body=reply.body, status=reply.status, headers=_headers(received, reply))
    with suppress(ConnectionError):  # the client has gone: the ledger says that nothing reached it
        await response.prepare(request)
        await response.write_eof()
        received.answer = answer
    return response


async def _send_half(request: web.Request, received: Received, reply: Reply) -> web.StreamResponse:
    response = await _opened(request, received, reply, len(reply.body) or 2)
    with suppress(ConnectionError):
        await response.write(reply.body[: len(reply.body) // 2] or b"<")
        received.answer = Answer.CUT
    reset(request.transport)
    return response


async def _send_huge(request: web.Request, received: Received, reply: Reply, size_bytes: int) -> web.StreamResponse:
    response = await _opened(request, received, reply, size_bytes + len(reply.body))
    received.answer = Answer.CUT
    with suppress(ConnectionError):
        for start in range(0, size_bytes, len(_HUGE_CHUNK)):
            await response.write(_HUGE_CHUNK[: size_bytes - start])
        await response.write(reply.body)
        received.answer = Answer.WHOLE
    return response


async def _drip(request: web.Request, received: Received, reply: Reply, pause_s: float) -> web.StreamResponse:
    response = await _opened(request, received, reply, len(reply.body))
    received.answer = Answer.CUT
    with suppress(ConnectionError):
        for index in range(len(reply.body)):
            if index:
                await asyncio.sleep(pause_s or 1.0)
            await response.write(reply.body[index : index + 1])
        received.answer = Answer.WHOLE
    return response


async def _opened(request: web.Request, received: Received, reply: Reply, length: int) -> web.StreamResponse:
    headers = {**_headers(received, reply), "Content-Length": str(length)}
    response = web.StreamResponse(status=reply.status, headers=headers)
    await response.prepare(request)
    return response


def _headers(received: Received, reply: Reply) -> dict[str, str]:
    name = "x-amz-request-id" if received.step is Step.PUT else "ININ-Correlation-Id"
    return {**reply.headers, name: received.correlation_id}


def _with_body(reply: Reply, body: bytes) -> Reply:
    return Reply(reply.status, body, reply.headers, reply.code)
