"""Decides when a file in an inbox is complete, and which complete one is claimed next.

Between the looks at the folder, which report sightings, and the offering, which takes what is ready and brings back
what became of it. A file is ready when its version stayed the same for the inbox's `settle_s` seconds; the claim
compares it once more, so that a version counts only if two looks agree on it. One that arrived by rename is ready at
once.

The table is bounded. Files beyond it wait in the folder, unknown to us, until there is room: a million of them cost
no more memory than a thousand. Pure: the times come in as arguments, seconds of the caller's monotonic clock.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from heapq import heapify, heappop, heappush
from typing import TypeAlias, assert_never

from attachd.intake.names import Ignored
from attachd.model import ClaimResult, Sighting, Version

EMPTY_S = 60.0
"""How long an empty file may stay empty. Ours: producers that reserve a name first fill it within a minute."""
RESTLESS_S = 600.0
"""After how long a file that never comes to rest is reported."""
CALM_S = 60.0
"""Quiet for this long, a file is not the one any more that was restless before. Ours; ten times `settle_s` if more."""
YIELD_S = 30.0
"""How long a restless file may keep its place in a full table while others wait. Ours."""


@dataclass(frozen=True, slots=True)
class Settling:
    """Quiet for `quiet_s` of the `needed_s` seconds; `restless_s` is how long it has kept changing (0: it has not)."""

    quiet_s: float
    needed_s: float
    restless_s: float


@dataclass(frozen=True, slots=True)
class Ready:
    """Complete since `for_s` seconds: waits for a free slot."""

    for_s: float


@dataclass(frozen=True, slots=True)
class Claiming:
    """Handed out to be claimed at this moment."""


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """Not taken as it is now, for this reason."""

    reason: Ignored


Standing: TypeAlias = Settling | Ready | Claiming | LeftAlone
"""How a file in the table stands."""


class _Phase(Enum):
    SETTLING = "settling"
    READY = "ready"
    OUT = "out"
    STALE = "stale"
    """A claim found it changed: it needs a fresh look before it can settle."""
    BARRED = "barred"


@dataclass(slots=True)
class _Entry:
    version: Version
    first_seen: float
    quiet_since: float
    renamed: bool
    scan: int
    unrest_since: float
    changes: int = 0
    reported: bool = False
    barred: Ignored | None = None
    phase: _Phase = _Phase.SETTLING
    due: float = 0.0
    # Names the one item of the two heaps that is still true of this entry; all others are stale.
    ticket: int = 0
    # What a look saw under the name while the file was handed out: another version, or another file.
    successor: tuple[Version, float, bool] | None = None


class SettleTable:
    """The files of one inbox that are being looked at: name, version, and since when it has been quiet."""

    def __init__(self, settle_s: float, *, rescan_s: float = 60.0, capacity: int = 4096) -> None:
        self._settle_s = settle_s
        self._rescan_s = rescan_s
        self._capacity = capacity
        self._calm_s = max(CALM_S, 10 * settle_s)
        self._entries: dict[str, _Entry] = {}
        self._due: list[tuple[float, int, str]] = []
        self._ready: list[tuple[int, int, str]] = []
        self._ticket = 0
        self._scan = 0
        self._renamed: set[str] = set()
        self._claimed: dict[str, Version] = {}
        self._scanning = False
        self._yielding: deque[tuple[str, _Entry]] = deque()
        self._yielded: set[str] = set()
        self._never_settled: list[str] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def full(self) -> bool:
        """No place is free; whoever comes next needs one that gives way."""
        return len(self._entries) >= self._capacity

    @property
    def room(self) -> int:
        """How many new names the current scan may still bring: free places, and places that would be given up."""
        return max(0, self._capacity - len(self._entries)) + len(self._yielding)

    def known(self) -> frozenset[str]:
        """The names a scan looks at whether or not there is room."""
        return frozenset(self._entries) | self._yielded

    # --- looking

    def begin_scan(self, now: float, renamed: Iterable[str] = ()) -> None:
        """All names will be gone through now. `renamed` came by rename before this moment, the events say."""
        self._scan += 1
        self._scanning = True
        self._claimed.clear()
        self._yielded.clear()
        self._renamed = set(renamed)
        self._yielding.clear()
        if self.full:
            self._yielding.extend(item for item in self._entries.items() if self._gives_way(item[1], now))

    def end_scan(self) -> None:
        """All names were gone through: what was not among them is not there any more."""
        for name in [n for n, e in self._entries.items() if e.scan != self._scan and e.phase is not _Phase.OUT]:
            del self._entries[name]
        self._scanning = False
        self._claimed.clear()
        self._renamed.clear()
        self._yielding.clear()
        self._yielded.clear()

    def look(self, sighting: Sighting, now: float, *, renamed: bool = False) -> bool:
        """Take note of what was seen under a name; False when there is no room for one that is new.

        `renamed` says that it arrived by rename before it was looked at; so do the names given to `begin_scan`.
        """
        name, version = sighting.name, sighting.version
        if name in self._renamed:
            self._renamed.discard(name)
            renamed = True
        entry = self._entries.get(name)
        if entry is None:
            if self._claimed.get(name) == version:
                return True  # seen before it was claimed, told afterwards
            if name in self._yielded or (self.full and not self._make_room(now)):
                return False
            self._enter(name, version, now, renamed=renamed)
            return True
        entry.scan = self._scan
        if entry.phase is _Phase.OUT:
            if version != entry.version:
                entry.successor = (version, now, renamed)
        elif entry.phase is _Phase.STALE:
            self._settle_anew(name, entry, version, now, renamed=renamed)
        elif version != entry.version:
            self._stirred(name, entry, now)
            self._settle_anew(name, entry, version, now, renamed=renamed)
        elif renamed and not entry.renamed:
            entry.renamed = True
            if entry.phase is _Phase.SETTLING:
                self._await_quiet(name, entry)
        return True

    def forget(self, name: str) -> None:
        """There is no such file any more; one that is being claimed is forgotten by its result."""
        entry = self._entries.get(name)
        if entry is not None and entry.phase is not _Phase.OUT:
            del self._entries[name]

    def clear(self) -> None:
        """Forget everything: the folder is not the one it was."""
        self._entries.clear()
        self._due.clear()
        self._ready.clear()
        self._never_settled.clear()
        self.end_scan()

    # --- offering

    def next_due(self, now: float) -> float | None:
        """When there will be something to pick, as far as is known now; `now` when there is. None: nothing."""
        self._ripen(now)
        while self._ready and not self._true(self._ready[0]):
            heappop(self._ready)
        if self._ready:
            return now
        while self._due and not self._true(self._due[0]):
            heappop(self._due)
        return self._due[0][0] if self._due else None

    def pick(self, now: float, limit: int) -> list[Sighting]:
        """Hand out at most `limit` files that are ready, the one with the oldest mtime first.

        Each of them is away until `feed` or `put_back` tells what became of it.
        """
        self._ripen(now)
        picked: list[Sighting] = []
        while self._ready and len(picked) < limit:
            item = heappop(self._ready)
            if self._true(item):
                entry = self._entries[item[2]]
                entry.phase, entry.ticket = _Phase.OUT, 0
                picked.append(Sighting(item[2], entry.version))
        return picked

    def put_back(self, sighting: Sighting) -> None:
        """It was handed out and nobody tried to claim it: it is as ready as before."""
        entry = self._entries.get(sighting.name)
        if entry is None or entry.phase is not _Phase.OUT:
            return
        if not self._succeed(sighting.name, entry, fresh=False):
            self._await_quiet(sighting.name, entry)

    def feed(self, sighting: Sighting, result: ClaimResult, now: float) -> Ignored | None:
        """Take note of what a claim came to; returns the reason if the file is to be left alone for it."""
        name = sighting.name
        entry = self._entries.get(name)
        if entry is None or entry.phase is not _Phase.OUT:
            return None  # the table was cleared meanwhile
        if result is ClaimResult.CLAIMED and self._scanning:
            self._claimed[name] = sighting.version
        if result in (ClaimResult.CHANGED, ClaimResult.BUSY):
            self._stirred(name, entry, now)
        if self._succeed(name, entry, fresh=result in (ClaimResult.CLAIMED, ClaimResult.GONE)):
            return None
        match result:
            case ClaimResult.CLAIMED | ClaimResult.GONE:
                del self._entries[name]
            case ClaimResult.CHANGED:
                entry.phase = _Phase.STALE
                entry.quiet_since = now
                entry.renamed = False
                entry.barred = None
            case ClaimResult.BUSY:
                self._settle_anew(name, entry, entry.version, now, renamed=False)
            case ClaimResult.NOT_A_FILE:
                return self._bar(name, entry, Ignored.NOT_A_FILE, now)
            case ClaimResult.UNREADABLE:
                return self._bar(name, entry, Ignored.UNREADABLE, now)
            case _:
                assert_never(result)
        return None

    # --- telling

    def never_settled(self) -> list[str]:
        """The names that have been restless for ten minutes and were not reported yet; each is told once."""
        told, self._never_settled = self._never_settled, []
        return told

    def standing(self, name: str, now: float) -> Standing | None:
        """How the file stands; None when the table does not hold it."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry.phase is _Phase.OUT:
            return Claiming()
        if entry.barred is not None:
            return LeftAlone(entry.barred)
        needed_s = self._needed_s(entry)
        quiet_s = now - entry.quiet_since
        if entry.phase is not _Phase.STALE and quiet_s >= needed_s:
            return Ready(quiet_s - needed_s)
        return Settling(quiet_s, needed_s, now - entry.unrest_since if entry.changes else 0.0)

    def left_alone(self, now: float) -> Iterator[tuple[str, Ignored]]:
        """The files in the table that are not merely waiting, and why."""
        for name, entry in self._entries.items():
            if entry.barred is not None:
                yield name, entry.barred
            elif entry.reported and now - entry.quiet_since < self._calm_s:
                yield name, Ignored.NEVER_SETTLES

    def waiting_since(self, now: float) -> Iterator[float]:
        """When each file was first seen that settles or waits for a slot."""
        apart = {name for name, _ in self.left_alone(now)}
        for name, entry in self._entries.items():
            if name not in apart and entry.phase is not _Phase.OUT:
                yield entry.first_seen

    # ---

    def _enter(self, name: str, version: Version, now: float, *, renamed: bool) -> None:
        entry = _Entry(version, now, now, renamed, self._scan, unrest_since=now)
        self._entries[name] = entry
        self._await_quiet(name, entry)

    def _settle_anew(self, name: str, entry: _Entry, version: Version, now: float, *, renamed: bool) -> None:
        entry.version, entry.quiet_since, entry.renamed, entry.barred = version, now, renamed, None
        self._await_quiet(name, entry)

    def _await_quiet(self, name: str, entry: _Entry) -> None:
        entry.phase = _Phase.SETTLING
        self._enqueue(name, entry, entry.quiet_since + self._needed_s(entry))

    def _bar(self, name: str, entry: _Entry, reason: Ignored, now: float) -> Ignored:
        entry.phase, entry.barred = _Phase.BARRED, reason
        self._enqueue(name, entry, now + self._rescan_s)
        return reason

    def _succeed(self, name: str, entry: _Entry, *, fresh: bool) -> bool:
        # The file that was handed out is gone or out of date: what was seen in its place has been settling since then.
        if entry.successor is None:
            return False
        (version, seen, renamed), entry.successor = entry.successor, None
        if fresh:
            self._enter(name, version, seen, renamed=renamed)
        else:
            self._settle_anew(name, entry, version, seen, renamed=renamed)
        return True

    def _stirred(self, name: str, entry: _Entry, now: float) -> None:
        if now - entry.quiet_since >= self._calm_s:
            entry.unrest_since, entry.changes, entry.reported = now, 0, False
        entry.changes += 1
        if not entry.reported and now - entry.unrest_since >= RESTLESS_S:
            entry.reported = True
            self._never_settled.append(name)

    def _needed_s(self, entry: _Entry) -> float:
        if entry.version.size == 0:
            return max(EMPTY_S, self._settle_s)
        return 0.0 if entry.renamed else self._settle_s

    def _gives_way(self, entry: _Entry, now: float) -> bool:
        if entry.phase is _Phase.BARRED:
            return True
        # Three changes: one or two are a file that is brought in pieces, not one that never ends.
        restless = entry.changes >= 3 and now - entry.unrest_since >= YIELD_S
        return restless and (entry.phase is _Phase.STALE or (entry.phase is _Phase.SETTLING and entry.due > now))

    def _make_room(self, now: float) -> bool:
        while self._yielding:
            name, entry = self._yielding.popleft()
            if self._entries.get(name) is entry and self._gives_way(entry, now):
                del self._entries[name]
                # It must not come back in the same scan as a newcomer and push out the next.
                self._yielded.add(name)
                return True
        return False

    def _enqueue(self, name: str, entry: _Entry, due: float) -> None:
        self._ticket += 1
        entry.ticket, entry.due = self._ticket, due
        heappush(self._due, (due, self._ticket, name))
        if len(self._due) > 2 * len(self._entries) + 64:
            self._due = [item for item in self._due if self._true(item)]
            heapify(self._due)

    def _ripen(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            item = heappop(self._due)
            if self._true(item):
                entry = self._entries[item[2]]
                entry.phase = _Phase.READY
                heappush(self._ready, (entry.version.mtime_ns, entry.ticket, item[2]))
        if len(self._ready) > 2 * len(self._entries) + 64:
            self._ready = [ripe for ripe in self._ready if self._true(ripe)]
            heapify(self._ready)

    def _true(self, item: tuple[float, int, str]) -> bool:
        entry = self._entries.get(item[2])
        return entry is not None and entry.ticket == item[1]
