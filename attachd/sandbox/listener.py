"""A port that can go down as a crashed host does, and come up again as the same port."""

import asyncio
import errno
import socket

from aiohttp import web

from attachd.sandbox.exchange import reset

_BACKLOG = 1024
_REBIND_TRIES = 200
_REBIND_PAUSE_S = 0.01


class Listener:
    """While down the port stays bound but does not listen: connections are refused and nobody else can take it."""

    def __init__(self, host: str, port: int) -> None:
        """Bind at once, so that the port is known before anything is served. `port` 0: the system chooses."""
        self._host = host
        self._bound: socket.socket | None = _bind(host, port)
        self.port: int = self._bound.getsockname()[1]
        self._runner: web.AppRunner | None = None
        self._site: web.SockSite | None = None

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL."""
        return f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"

    async def serve(self, app: web.Application) -> None:
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,  # a handler that hangs ends with its client
            auto_decompress=False,  # what was sent is what is hashed
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        await self.come_up()

    async def come_up(self) -> None:
        if self._bound is None or self._runner is None:
            return
        site = web.SockSite(self._runner, self._bound, backlog=_BACKLOG)
        await site.start()
        self._site, self._bound = site, None

    async def go_down(self) -> None:
        """Refuse new connections and reset those that exist, whatever they are doing."""
        if self._site is None:
            return
        await self._stop_site()
        self._bound = await _bind_again(self._host, self.port)

    async def close(self) -> None:
        if self._site is not None:
            await self._stop_site()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._bound is not None:
            self._bound.close()
            self._bound = None

    async def _stop_site(self) -> None:
        assert self._site is not None
        assert self._runner is not None
        await self._site.stop()
        self._site = None
        await asyncio.sleep(0)  # connections that were accepted in this turn of the loop join the list below
        server = self._runner.server
        for connection in server.connections if server is not None else []:
            reset(connection.transport)
        await asyncio.sleep(0)  # their handlers are cancelled in the next turn


def _bind(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setblocking(False)
        # With SO_REUSEADDR the system may choose a port that another process has bound and not yet listens on.
        if port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # for its connections, which may linger
    except OSError:
        sock.close()
        raise
    return sock


async def _bind_again(host: str, port: int) -> socket.socket:
    for _ in range(_REBIND_TRIES):
        try:
            return _bind(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        await asyncio.sleep(_REBIND_PAUSE_S)  # some event loops close a listening socket a turn later
    return _bind(host, port)
