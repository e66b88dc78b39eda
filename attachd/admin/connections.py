"""How many may be connected at once, and how long one may stay silent before its first request.

Anybody on this machine can connect to a loopback port: what they open must not use up the descriptors that the files
need.
"""

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

_MOST = 64
_SILENT_S = 10.0


class Connections(web.Server):
    """aiohttp's server, with both limits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._silent: dict[RequestHandler, asyncio.TimerHandle] = {}

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Somebody connected."""
        super().connection_made(handler, transport)
        if len(self.connections) > _MOST:
            transport.abort()
            return
        self._silent[handler] = asyncio.get_running_loop().call_later(_SILENT_S, transport.abort)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Somebody is gone."""
        self.heard(handler)
        super().connection_lost(handler, exc)

    def heard(self, handler: RequestHandler) -> None:
        """A whole request came."""
        waiting = self._silent.pop(handler, None)
        if waiting is not None:
            waiting.cancel()
