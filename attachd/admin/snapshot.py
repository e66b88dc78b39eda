"""One picture of everything, shared by all who watch.

Taken at most twice a second however many watch, and not at all when nobody does. `revision` grows only when something
happened: that seconds pass is nothing that has to be told, since whoever reads "tries again in 40 s" can count.
"""

import asyncio
import json as jsonlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attachd.admin import wire
from attachd.metrics import BIN_S, Metrics
from attachd.model import Sent, StateName, Status
from attachd.ports import Overview

INTERVAL_S = 0.5

_FAILURES_SHOWN = 20
_REMEMBERED = 2000
"""Deliveries read from the journal for the picture of the last hours: once per start, some tens of milliseconds."""

_COUNT_DOWN = frozenset({"retry_in_s", "next_try_in_s"})
_COUNT_UP = frozenset({"paused_s", "oldest_waiting_s"})
"""Figures that move by themselves."""

_DRIFT_S = 2.0
"""A figure that is this far from where the clock would have taken it was changed by something else. Ours."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the page shows, as JSON, and how many changes came before it."""

    revision: int
    text: str


class Snapshots:
    """Takes the pictures; `clock` gives monotonic seconds."""

    def __init__(self, overview: Overview, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._overview = overview
        self._metrics = metrics
        self._clock = clock
        self._lock = asyncio.Lock()
        self._taken_at = float("-inf")
        self._still: Any = None
        self._ticking: list[float] = []
        self._latest = Snapshot(0, "")
        self._failures: list[wire.Json] = []
        self._failures_of: Any = None
        self._remembered = False

    async def latest(self) -> Snapshot:
        """The newest picture, at most half a second old."""
        async with self._lock:
            if self._clock() - self._taken_at >= INTERVAL_S:
                await self._take()
            return self._latest

    def forget(self) -> None:
        """Something was changed from here: the next picture is a new one."""
        self._taken_at = float("-inf")
        self._failures_of = None

    async def _take(self) -> None:
        if not self._remembered:
            await self._remember()
        told = await self._overview.status()
        picture = {
            "status": wire.status(told),
            "failures": await self._latest_failures(told),
            "last_hours": self._last_hours(),
        }
        now = self._clock()
        still, ticking = _apart(picture, now)
        moved = any(abs(a - b) > _DRIFT_S for a, b in zip(ticking, self._ticking, strict=False))
        changed = still != self._still or len(ticking) != len(self._ticking) or moved
        if changed:
            self._still, self._ticking = still, ticking
        # The text is always of now, for whoever comes new; those who watch already need it only when it is another.
        self._latest = Snapshot(self._latest.revision + changed, jsonlib.dumps(picture, separators=(",", ":")))
        self._taken_at = now

    async def _latest_failures(self, told: Status) -> list[wire.Json]:
        # Asked for only when one was added: the journal has better things to do twice a second.
        failed = [(inbox.name, inbox.failed) for inbox in told.inboxes]
        if failed != self._failures_of:
            entries = await self._overview.deliveries(state=StateName.FAILED, limit=_FAILURES_SHOWN)
            self._failures, self._failures_of = wire.entries(entries), failed
        return self._failures

    async def _remember(self) -> None:
        entries = await self._overview.deliveries(limit=_REMEMBERED)
        ended = [
            (entry.updated_at.timestamp(), isinstance(entry.delivery.state, Sent))
            for entry in entries
            if entry.delivery.finished
        ]
        oldest = min((entry.updated_at.timestamp() for entry in entries), default=None)
        self._metrics.remembered(ended, all_since=oldest if len(entries) >= _REMEMBERED else None)
        self._remembered = True

    def _last_hours(self) -> wire.Json:
        bins, complete_since = self._metrics.last_hours()
        return {
            "bin_s": BIN_S,
            "begins_at": bins[0].begins_at,
            "complete_since": complete_since,
            "sent": [one.sent for one in bins],
            "failed": [one.failed for one in bins],
        }


def _apart(picture: Any, now: float) -> tuple[Any, list[float]]:
    """What stands still, and for each figure that moves by itself the moment it counts from or to."""
    moments: list[float] = []

    def still(value: Any) -> Any:
        if isinstance(value, list):
            return [still(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        kept = {}
        for key, inner in value.items():
            if inner is not None and (key in _COUNT_DOWN or key in _COUNT_UP):
                # At zero a countdown stands still, as does the age of what is not there.
                moments.append(0.0 if not inner else now + inner if key in _COUNT_DOWN else now - inner)
                kept[key] = True
            else:
                kept[key] = still(inner)
        return kept

    return still(picture), moments
