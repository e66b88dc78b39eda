"""Where each file is and what happens to it, from the daemon's log and from what the demo itself did.

The time (monotonic seconds) comes in as an argument.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from attachd.demo.drops import Drop
from attachd.demo.process import Record
from attachd.model import Reason

EMPTY_S = 60.0
"""How long the daemon lets a file be empty."""

_FAILED: Mapping[str, str] = {
    Reason.EMPTY: "empty for a whole minute",
    Reason.TOO_LARGE: "too large",
    Reason.TYPE_NOT_ALLOWED: "content type not allowed",
}
_ORDINALS = {1: "1st", 2: "2nd", 3: "3rd"}


class Place(Enum):
    """Where a file lies, as people name it."""

    DESK = ""
    INBOX = "inbox"
    CLAIMED = "claimed"
    SENT = "sent/"
    FAILED = "failed/"


@dataclass(slots=True)
class Journey:
    """One file on its way. `records` is what the log said of it."""

    drop: Drop
    size: int
    place: Place = Place.DESK
    dropped_at: float | None = None
    progress: str = ""
    next_try_at: float | None = None
    records: list[Record] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Filed, one way or the other."""
        return self.place in (Place.SENT, Place.FAILED)

    @property
    def conversation(self) -> str:
        """The conversation's id; empty as long as there is none."""
        return str(self._last.get("conversation_id") or "") if self.place is Place.SENT else ""

    @property
    def tries(self) -> int:
        """How many attempts it took, as far as the log has told."""
        return int(self._last.get("attempts") or self._last.get("attempt") or 1)

    @property
    def _last(self) -> Record:
        return self.records[-1] if self.records else {}

    def words(self, now: float, *, paused: bool) -> str:
        """What happens to it just now, or what became of it."""
        match self.place:
            case Place.DESK:
                return self.progress
            case Place.INBOX if self.size == 0:
                return f"empty: given up in {max(0.0, EMPTY_S - now + (self.dropped_at or now)):.0f} s"
            case Place.INBOX if self.progress:
                return self.progress
            case Place.INBOX:
                return "waits for the platform" if paused else "settling"
            case Place.CLAIMED if self.next_try_at is not None and self.next_try_at > now:
                return f"{_spoken(str(self._last.get('reason')))}, next in {self.next_try_at - now:.1f} s"
            case Place.CLAIMED:
                return "on its way" if self.next_try_at is None else f"on its way, {_nth(self.tries + 1)} try"
            case Place.SENT:
                return "delivered" if self.tries == 1 else f"delivered at the {_nth(self.tries)} try"
            case Place.FAILED:
                reason = str(self._last.get("reason"))
                return _FAILED.get(reason, _spoken(reason))
            case _:
                assert_never(self.place)


class Journeys:
    """All files of the demo, and how the platform is, as the daemon's log tells it."""

    def __init__(self, files: Iterable[tuple[Drop, int]]) -> None:
        self.all = [Journey(drop, size) for drop, size in files]
        self._by_name = {journey.drop.shown: journey for journey in self.all}
        self.ready = asyncio.Event()
        self.paused = False
        self.strange: list[str] = []
        """Events that have no place in a run in which all goes well."""

    @property
    def finished(self) -> bool:
        return all(journey.finished for journey in self.all)

    def of(self, drop: Drop) -> Journey:
        return self._by_name[drop.shown]

    def dropped(self, drop: Drop, now: float) -> None:
        """The file begins to stand in the inbox, whole or not."""
        journey = self.of(drop)
        journey.dropped_at = now
        if journey.place is Place.DESK:
            journey.place = Place.INBOX

    def take(self, record: Record, now: float) -> Journey | None:
        """Take note of a record; returns whose journey it tells of."""
        event = str(record.get("event"))
        if not event.startswith("file.") or event == "file.ignored":
            self._take_general(record, event)
            return None
        journey = self._by_name.get(str(record.get("file")))
        if journey is None:
            self.strange.append(f"{event}: nobody dropped {record.get('file')}")
            return None
        journey.records.append(record)
        match event:
            case "file.claimed":
                journey.place = Place.CLAIMED
            case "file.deferred":
                journey.next_try_at = now + float(record.get("retry_in_s") or 0.0)
            case "file.sent":
                journey.place = Place.SENT
            case "file.failed":
                journey.place = Place.FAILED
            case _:
                pass
        return journey

    def _take_general(self, record: Record, event: str) -> None:
        match event:
            case "daemon.ready":
                self.ready.set()
            case "platform.paused" | "platform.resumed":
                self.paused = event == "platform.paused"
            case _ if record.get("level") in ("error", "critical") or "exception" in record:
                self.strange.append(f"{event}: {record.get('detail', 'see daemon.log')}")


def _spoken(reason: str) -> str:
    return reason.replace("_", " ")


def _nth(number: int) -> str:
    return _ORDINALS.get(number, f"{number}th")
