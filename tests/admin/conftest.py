"""A running admin server with a scripted daemon behind it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from attachd.admin.server import AdminServer
from attachd.admin.wire import TOKEN_HEADER
from attachd.metrics import Metrics

from .scripted import Scripted

TOKEN = "t0ken-of-the-state-folder"


@dataclass
class Health:
    """What the daemon says of its own health."""

    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    async def healthy(self) -> list[str]:
        return self.problems

    def ready(self) -> list[str]:
        return self.missing


@pytest.fixture
def daemon() -> Scripted:
    """What the server asks."""
    return Scripted()


@pytest.fixture
def metrics() -> Metrics:
    """Counters that nobody has touched."""
    return Metrics()


@pytest.fixture
def health() -> Health:
    """Alive and ready, until a test says otherwise."""
    return Health()


def serving(
    daemon: Scripted, metrics: Metrics, health: Health, listen: str = "127.0.0.1:0", **given: Any
) -> AdminServer:
    """A server for the scripted daemon."""
    return AdminServer(
        daemon, daemon, metrics, listen=listen, token=TOKEN, healthy=health.healthy, ready=health.ready, **given
    )


@pytest.fixture
async def server(daemon: Scripted, metrics: Metrics, health: Health) -> AsyncIterator[AdminServer]:
    """On a free port of 127.0.0.1."""
    async with serving(daemon, metrics, health) as server:
        yield server


@pytest.fixture
async def client(server: AdminServer) -> AsyncIterator[aiohttp.ClientSession]:
    """Somebody without the token."""
    async with aiohttp.ClientSession(server.address) as session:
        yield session


@pytest.fixture
def token() -> dict[str, str]:
    """The header of somebody who may change things."""
    return {TOKEN_HEADER: TOKEN}


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    """A path short enough for a Unix socket."""
    return tmp_path / "a.sock"
