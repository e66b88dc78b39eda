"""What most tests stand on: a platform on real sockets, an inbox on a real disk, the daemon between them."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from attachd.sandbox import Gateway, Sandbox, SandboxSettings, Step, step_of

from .running import RunningDaemon


@pytest.fixture
def gateway() -> Gateway:
    """The protocol the daemon speaks where a test does not say it: `@over_both` runs a test over each."""
    return "webchat"


@pytest.fixture
def at(gateway: Gateway) -> Callable[[str], Step]:
    """The call with which this protocol reaches a stage: session, upload, put, conversation."""
    return lambda stage: step_of(stage, gateway)


@pytest.fixture
async def platform() -> AsyncIterator[Sandbox]:
    """A sandbox without a quota, so that only the tests that are about it meet it."""
    async with Sandbox(SandboxSettings(requests_per_second=0)) as sandbox:
        yield sandbox


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """An empty inbox folder."""
    folder = tmp_path / "claims"
    folder.mkdir()
    return folder


@pytest.fixture
async def daemon(platform: Sandbox, inbox: Path, gateway: Gateway) -> AsyncIterator[RunningDaemon]:
    """attachd in a process of its own, configured for the inbox and the platform, not started yet."""
    daemon = RunningDaemon(platform, inbox, gateway)
    yield daemon
    await daemon.end()
