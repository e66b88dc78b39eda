"""Sandboxes on real sockets, started and ended with the test."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest

from attachd.sandbox import Clock, Sandbox, SandboxSettings

from .client import Client


@dataclass
class ManualClock:
    """Stands still until a test moves it."""

    now_s: float = 1_700_000_000.0

    def clock(self) -> Clock:
        return Clock(wall_s=lambda: self.now_s, monotonic_s=lambda: self.now_s)


@dataclass
class Started:
    """Sandboxes and sessions that end with the test."""

    opened: list[Client] = field(default_factory=list)

    async def __call__(self, clock: Clock | None = None, **settings: object) -> Client:
        sandbox = await Sandbox(SandboxSettings(**settings), clock).__aenter__()
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        session._retry_connection = False  # aiohttp silently repeats a PUT that was reset, and would hide the fault
        client = Client(sandbox, session)
        self.opened.append(client)
        await client.log_in()
        return client


Start = Callable[..., Awaitable[Client]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    started = Started()
    yield started
    for client in started.opened:
        for socket in client.sockets:
            await socket.close()
        await client.session.close()
        await client.sandbox.__aexit__(None, None, None)


@pytest.fixture
async def client(start: Start) -> Client:
    return await start()


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock()
