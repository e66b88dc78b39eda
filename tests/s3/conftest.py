"""Each test once for every server: the server for the whole run, the platform that hands out its places per test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from attachd.sandbox import Sandbox, SandboxSettings
from tests.sandbox.client import Client

from .servers import KINDS, Missing, Server, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies here, with time for an installation."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("s3")
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One of the servers, running."""
    try:
        with running(request.param, tmp_path_factory.mktemp(request.param)) as server:
            yield server
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture
async def platform(server: Server) -> AsyncIterator[Sandbox]:
    """A sandbox that hands out places of the server."""
    async with Sandbox(SandboxSettings(requests_per_second=0, s3=server.endpoint)) as sandbox:
        yield sandbox


@pytest.fixture
async def client(platform: Sandbox) -> AsyncIterator[Client]:
    """Shows every answer raw, the server's too."""
    async with aiohttp.ClientSession() as session:
        client = Client(platform, session)
        await client.log_in()
        yield client
