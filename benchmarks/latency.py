"""From the rename into an inbox until the conversation request is with the platform: one file at a time, by chance."""

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Attachd, Stub, fill, percentiles, scratch, until

DROPS = 300
DROPS_BUSY = 150
DROPS_FLOODED = 30
FLOOD = 1500
FILE_BYTES = 50 * 1024
DEFAULT_QUOTA = 100
BUSY_PER_S = 20
"""Files a second in the other inbox. Three calls each: with what is measured beside them, below the quota."""
_WARM_UP = 10
_LONGEST_S = 60.0

_IDLE = (0.03, 0.07)
_BUSY = (0.1, 0.2)
_FLOODED = (0.3, 0.7)


def measure(
    base: Path | None,
    *,
    drops: int = DROPS,
    busy: int = DROPS_BUSY,
    flooded: int = DROPS_FLOODED,
    flood: int = FLOOD,
) -> dict[str, Any]:
    """With the default quota of 100 requests a second, then idle once more without one.

    `busy`: a second inbox gets 20 files a second. `flooded`: a second inbox has more files than the quota lets go, and
    every call waits its turn.
    """
    result: dict[str, Any] = {"file_bytes": FILE_BYTES, "busy_per_s": BUSY_PER_S}
    with _Scene(base, requests_per_second=DEFAULT_QUOTA) as scene:
        result["idle"] = scene.drop(drops, _IDLE)
        with scene.busy_second_inbox(int(busy * sum(_BUSY) / 2 * BUSY_PER_S * 2) + BUSY_PER_S):
            result["busy"] = scene.drop(busy, _BUSY)
        scene.flood_second_inbox(flood)
        result["flooded"] = scene.drop(flooded, _FLOODED)
    with _Scene(base, requests_per_second=10_000) as scene:
        result["idle_without_quota"] = scene.drop(drops, _IDLE)
    return result


class _Scene:
    """A daemon with two inboxes, which has delivered a few files already."""

    def __init__(self, base: Path | None, *, requests_per_second: float) -> None:
        self._base = base
        self._requests_per_second = requests_per_second
        self._chance = random.Random(1)
        self._prefixes = iter(f"drop{number}" for number in range(10))
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "_Scene":
        with self._stack:
            self._folder = self._stack.enter_context(scratch(self._base))
            self._stub = self._stack.enter_context(Stub())
            self._first, self._second = self._folder / "first", self._folder / "second"
            daemon = Attachd(
                self._folder, self._stub, [self._first, self._second], requests_per_second=self._requests_per_second
            )
            self._stack.enter_context(daemon).ready()
            self.drop(_WARM_UP, _IDLE)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def drop(self, number: int, distance_s: tuple[float, float]) -> dict[str, float]:
        """Milliseconds from the rename until the conversation request, and how many files that is."""
        dropped_at = {}
        for file in self._outgoing(number):
            dropped_at[file.name] = time.monotonic()
            os.rename(file, self._first / file.name)
            time.sleep(self._chance.uniform(*distance_s))

        def arrived() -> dict[str, float] | None:
            at = {name: at for name, at in self._stub.conversations() if name in dropped_at}
            return at if len(at) == number else None

        arrived_at = until(arrived, _LONGEST_S, f"{number} messages", every_s=0.2)
        return {
            "drops": number,
            **percentiles([(arrived_at[name] - at) * 1000 for name, at in dropped_at.items()]),
        }

    @contextlib.contextmanager
    def busy_second_inbox(self, most: int) -> Iterator[None]:
        """A thread renames files into the second inbox at an even pace, `most` of them at the end."""
        files = self._outgoing(most)
        done = threading.Event()

        def produce() -> None:
            for file in files:
                os.rename(file, self._second / file.name)
                if done.wait(1 / BUSY_PER_S):
                    return

        producing = threading.Thread(target=produce)
        producing.start()
        try:
            time.sleep(0.5)
            yield
        finally:
            done.set()
            producing.join()

    def flood_second_inbox(self, number: int) -> None:
        """All at once."""
        for file in self._outgoing(number):
            os.rename(file, self._second / file.name)
        time.sleep(1)

    def _outgoing(self, number: int) -> list[Path]:
        outgoing = self._folder / next(self._prefixes)
        fill(outgoing, number, FILE_BYTES, prefix=outgoing.name)
        return sorted(outgoing.iterdir())
