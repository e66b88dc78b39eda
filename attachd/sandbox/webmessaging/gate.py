"""The door of the guest protocol: who may open a socket, and its way from the handshake to the end."""

import asyncio
import math
from collections.abc import Callable
from typing import Final

from aiohttp import web

from attachd.sandbox.clock import Clock
from attachd.sandbox.exchange import Exchange, answer, decided
from attachd.sandbox.faults import FaultKind, Faults
from attachd.sandbox.ids import new_id
from attachd.sandbox.ledger import Answer, Ledger
from attachd.sandbox.quota import Quota
from attachd.sandbox.reply import Refused, Reply, bad_request
from attachd.sandbox.settings import SandboxSettings
from attachd.sandbox.step import Step
from attachd.sandbox.webmessaging.connection import Connection
from attachd.sandbox.webmessaging.deployment import Deployments
from attachd.sandbox.webmessaging.limits import ConnectionLimits
from attachd.sandbox.webmessaging.outlet import Outlet, Parcel
from attachd.sandbox.webmessaging.session import Peer, Sessions

SOCKET_PATH: Final = "/v1"

_CLOSE_PATIENCE_S: Final = 1.0  # with a client that does not answer a close frame; ours
_SWITCHING: Final = Reply(101, b"", {})


class Gate:
    def __init__(
        self,
        settings: Callable[[], SandboxSettings],
        deployments: Deployments,
        sessions: Sessions,
        connection: Connection,
        faults: Faults,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._deployments = deployments
        self._sessions = sessions
        self._connection = connection
        self._faults = faults
        self._ledger = ledger
        self._clock = clock
        self._opened = Quota(60.0)

    def clear(self) -> None:
        self._opened.clear()

    async def connect(self, request: web.Request) -> web.StreamResponse:
        received = self._ledger.receive(Step.CONNECT, new_id())
        exchange = Exchange(received, self._faults)
        # Pings are answered in the order of the frames, so not by the library.
        socket = web.WebSocketResponse(
            timeout=_CLOSE_PATIENCE_S,
            autoping=False,
            compress=False,
            max_msg_size=self._settings().frame_limit_bytes,
        )
        try:
            reply = await decided(request, exchange, self._admitted, self._faults)
            fault = exchange.fault
            closing = fault if fault is not None and fault.kind is FaultKind.CLOSE else None
            if reply is not None and reply is not _SWITCHING:
                received.status, received.code = reply.status, reply.code
            if closing is None and (reply is not _SWITCHING or not (fault is None or fault.kind is FaultKind.DELAY)):
                return await answer(request, exchange, reply)
            if fault is not None and fault.delay_s:
                await asyncio.sleep(fault.delay_s)
            await socket.prepare(request)
            received.status, received.answer = _SWITCHING.status, Answer.WHOLE
        finally:
            self._ledger.end(received)
        outlet = Outlet(socket, request.transport)
        if closing is not None:
            outlet.send(Parcel(None, closing))
        peer = Peer(outlet, request.query.get("deploymentId", ""), ConnectionLimits(self._clock))
        try:
            await self._connection.run(socket, peer)
        finally:
            outlet.shut()
            self._sessions.leave(outlet, peer.session)
        return socket

    async def _admitted(self, request: web.Request, exchange: Exchange) -> Reply:
        deployment_id = request.query.get("deploymentId", "")
        exchange.concerns(queue_id=deployment_id)
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise bad_request("a WebSocket handshake is expected here")
        settings = self._settings()
        if not self._deployments.known(deployment_id) or settings.deployment_status != "Active":
            raise Refused(403, "not.authorized", "This deployment does not exist or is not active.")
        if not _allowed(request.headers.get("Origin", ""), settings.allowed_origins):
            raise Refused(403, "not.authorized", "This origin is not among the allowed domains.")
        if settings.connections_per_minute:
            wait_s = self._opened.wait_s(deployment_id, self._clock.monotonic_s(), settings.connections_per_minute)
            if wait_s:
                headers = {"Retry-After": str(math.ceil(wait_s))}
                raise Refused(429, "too.many.requests", "Too many new connections.", headers=headers)
        return _SWITCHING


def _allowed(origin: str, allowed: frozenset[str]) -> bool:
    """Whether an Origin, with or without a scheme, is one of the domains; no domains: whoever comes."""
    return not allowed or origin in allowed or origin.rpartition("://")[2] in allowed
