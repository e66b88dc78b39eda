"""The two clocks of the platform, handed in so that a test can let a day pass without waiting."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Clock:
    """`wall_s`: seconds since the epoch, for what is written down. `monotonic_s`: for what is measured."""

    wall_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic


def utc(wall_s: float) -> datetime:
    return datetime.fromtimestamp(wall_s, UTC)


def timestamp(wall_s: float) -> str:
    """The API's form of a time: 2024-01-15T10:30:00.000Z."""
    return utc(wall_s).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
