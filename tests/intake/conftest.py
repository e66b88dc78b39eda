"""A real inbox folder with an intake on it, and a delivery side that claims by moving files away."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from attachd.errors import InboxError
from attachd.intake.inbox import InboxIntake, IntakeRules
from attachd.model import ClaimResult, InboxName, Sighting, Version
from attachd.ports import Pick

from ..waiting import until

NAME = InboxName("claims")


def version_of(path: Path) -> Version:
    """What a look at this file tells."""
    look = path.lstat()
    return Version(look.st_dev, look.st_ino, look.st_size, look.st_mtime_ns, look.st_ctime_ns)


class Delivery:
    """Claims what it is offered, as the dispatcher would: compares, then moves away. Remembers what it got."""

    def __init__(self, inbox: Path, taken: Path) -> None:
        self.inbox, self.taken = inbox, taken
        self.contents: list[tuple[str, bytes]] = []
        self.results: list[tuple[str, ClaimResult]] = []
        self.lost: list[InboxError] = []
        self.found = 0
        self.error: InboxError | None = None
        self.scripted: dict[str, list[ClaimResult]] = {}
        self.open = asyncio.Event()
        self.open.set()

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.contents]

    async def offer(self, inbox: InboxName, pick: Pick) -> Sequence[tuple[Sighting, ClaimResult]]:
        await self.open.wait()
        if self.error is not None:
            raise self.error
        results = [(sighting, self._claim(sighting)) for sighting in pick(64)]
        self.results += [(sighting.name, result) for sighting, result in results]
        await asyncio.sleep(0)
        return results

    def _claim(self, sighting: Sighting) -> ClaimResult:
        if self.scripted.get(sighting.name):
            return self.scripted[sighting.name].pop(0)
        path = self.inbox / sighting.name
        try:
            if version_of(path) != sighting.version:
                return ClaimResult.CHANGED
            self.contents.append((sighting.name, path.read_bytes()))
            os.rename(path, self.taken / str(len(self.contents)))
        except FileNotFoundError:
            return ClaimResult.GONE
        return ClaimResult.CLAIMED

    def on_lost(self, inbox: InboxName, error: InboxError) -> None:
        self.lost.append(error)

    async def on_found(self, inbox: InboxName) -> None:
        if self.error is not None:
            raise self.error
        self.found += 1


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


@pytest.fixture
async def delivery(inbox: Path, tmp_path: Path) -> Delivery:
    taken = tmp_path / "taken"
    taken.mkdir()
    return Delivery(inbox, taken)


Running: TypeAlias = Callable[..., Awaitable[InboxIntake]]


@pytest.fixture
async def running(inbox: Path, delivery: Delivery) -> AsyncIterator[Running]:
    """Start an intake of the inbox, with other rules or sizes if given; it is stopped after the test."""
    tasks: list[asyncio.Task[None]] = []

    async def start(*, capacity: int = 4096, settled: bool = True, **rules: Any) -> InboxIntake:
        path = rules.pop("path", str(inbox))
        intake = InboxIntake(
            NAME,
            IntakeRules(path, **({"settle_s": 0.1, "rescan_s": 30.0} | rules)),
            delivery.offer,
            lost=delivery.on_lost,
            found=delivery.on_found,
            clock=time.monotonic,
            capacity=capacity,
            check_s=0.05,
        )
        tasks.append(asyncio.create_task(intake.run()))
        if settled:
            await until(lambda: intake.last_scan_s > 0, "the first scan")
        return intake

    yield start
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def slowly(path: Path, pieces: int, pause_s: float = 0.03) -> AsyncIterator[bytes]:
    """Write a file piece by piece, one open descriptor for all; the whole content is handed to the block at the end."""
    with path.open("wb", buffering=0) as file:
        for number in range(pieces):
            file.write(b"%04d" % number)
            await asyncio.sleep(pause_s)
    yield path.read_bytes() if path.exists() else b""


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Watching threads end with the test that started them."""
    yield
    left = [t for t in threading.enumerate() if type(t).__module__.startswith("watchdog")]
    assert not left
