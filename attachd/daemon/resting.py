"""`ports.Overview` while no daemon runs: from the journal, whose lock the caller holds, and from the folders.

For the commands. Looking changes nothing in an inbox; `retry` moves files as the daemon would, and holds the inbox's
own lock while it does.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from attachd import __version__, config
from attachd.config import Config
from attachd.daemon.parts import folders_of, utcnow
from attachd.daemon.telling import IGNORED_BECAUSE, Place, Teller, because, duration
from attachd.errors import InboxError
from attachd.intake.names import Ignored, never_taken
from attachd.intake.scan import MAX_DEPTH, Scan, glance
from attachd.journal.sqlite import SqliteJournal
from attachd.model import (
    Delivery,
    Explanation,
    InboxName,
    InboxStatus,
    PauseStatus,
    Posted,
    Reason,
    Retried,
    StateName,
    Status,
    UnderWay,
)
from attachd.ports import Entry, Journal

_RESTS = "attachd does not run"
_ENDLESS = 1 << 60


@dataclass(frozen=True, slots=True)
class Memory:
    """What the journal says; while nothing runs it stays as it is."""

    counts: Mapping[InboxName, Mapping[StateName, int]]
    unfinished: tuple[Delivery, ...]
    held: tuple[datetime, str] | None


@asynccontextmanager
async def open_resting(settings: Config) -> AsyncIterator["RestingOverview"]:
    """Hold the journal of a resting attachd for as long as the block lasts; where there is none yet, none is made.

    Raises JournalBusy (it runs), JournalError.
    """
    async with contextlib.AsyncExitStack() as stack:
        state_dir = settings.state_dir
        # Made by whoever asks first, it might belong to somebody who does not run the daemon.
        if not await asyncio.to_thread(_has_journal, state_dir):
            state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attachd-")))
        opened = SqliteJournal.open(state_dir, utcnow(), lambda: uuid4().hex, ballast_bytes=0)
        journal = await stack.enter_async_context(opened)
        yield RestingOverview(settings, journal)


def _has_journal(state_dir: Path) -> bool:
    try:
        return any((state_dir / name).exists() for name in ("journal.db", "lock"))
    except OSError:
        return True  # not ours to look into; opening it says so in words


class RestingOverview:
    """Where everything is while nothing runs."""

    def __init__(self, settings: Config, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self._places = [Place(inbox, folders_of(inbox)) for inbox in settings.inboxes]
        self._teller = Teller(journal, lambda: self._places, self)

    async def memory(self) -> Memory:
        """All that `status_of` needs of the journal."""
        journal = self._journal
        return Memory(await journal.finished_counts(), tuple(await journal.unfinished()), await journal.held_until())

    async def status(self) -> Status:
        """Everything at a glance."""
        return await asyncio.to_thread(status_of, self._settings, await self.memory())

    async def deliveries(
        self, *, state: StateName | None = None, inbox: InboxName | None = None, limit: int = 100
    ) -> Sequence[Entry]:
        """Deliveries, the one that changed last first."""
        return await self._journal.newest(state=state, inbox=inbox, limit=limit)

    async def explain(self, path: str) -> Explanation | None:
        """Where the file at an absolute path, or with a delivery id, is and why; None when nothing is known of it."""
        return await self._teller.explain(path)

    async def retry(self, what: str | None, *, inbox: InboxName | None = None) -> Sequence[Retried]:
        """Put failed files back into their inbox: by delivery id, by their name or path in `failed/`, or all (None)."""
        locked: list[Place] = []
        problems: list[Retried] = []
        with contextlib.ExitStack() as stack:
            for place in self._places:
                if inbox not in (None, place.name):
                    continue
                try:
                    await asyncio.to_thread(place.filing.open)
                except InboxError as error:
                    problems.append(Retried(None, place.name, "", None, str(error)))
                    continue
                stack.callback(place.filing.close)
                locked.append(place)
            results = await Teller(self._journal, lambda: locked, self).retry(what, inbox)
        # Whether a file that is asked for by name lies in a folder that cannot be opened, nobody can say.
        return [*results, *(problems if what is None or not results else ())]

    async def lying(self, place: Place, name: str) -> Explanation | None:
        """What there is to say of what lies in the inbox under this name; None when nothing does."""
        return await asyncio.to_thread(_lying, place, name)

    def unfinished(self, place: Place | None, delivery: Delivery) -> Explanation:
        """What there is to say of a delivery that is claimed and not filed."""
        path = place.path_of(delivery.name) if place else delivery.name
        goes_on = f"It is claimed, and {_RESTS}: it goes on with it when it is started."
        if isinstance(delivery.state, Posted):
            goes_on = f"It was sent and not filed yet, for {_RESTS}; it is only moved when attachd is started."
        sentences = [goes_on]
        failure = delivery.last_failure
        if failure is not None:
            sentences.append(f"Attempt {delivery.tries} failed: {because(failure)}")
        reason = failure.reason.value if failure else None
        return Explanation(path, "claimed", tuple(sentences), delivery.inbox, reason, delivery)


def status_of(settings: Config, memory: Memory) -> Status:
    """Everything at a glance, from what the journal said and how the folders are now. Blocking."""
    now = utcnow()
    inboxes = tuple(_inbox_status(inbox, memory) for inbox in settings.inboxes)
    under_way = tuple(UnderWay(delivery, None, 0, _next_try_in_s(delivery, now)) for delivery in memory.unfinished)
    return Status(False, __version__, _silence(memory, now), inboxes, under_way)


def _next_try_in_s(delivery: Delivery, now: datetime) -> float:
    return 0.0 if delivery.next_try_at is None else max(0.0, (delivery.next_try_at - now).total_seconds())


def _silence(memory: Memory, now: datetime) -> PauseStatus | None:
    if memory.held is None or memory.held[0] <= now:
        return None
    until, detail = memory.held
    return PauseStatus(Reason.RATE_LIMITED, detail, (until - now).total_seconds(), 0.0)


def _inbox_status(inbox: config.Inbox, memory: Memory) -> InboxStatus:
    counts = memory.counts.get(inbox.name, {})
    waiting, oldest, ignored = 0, None, Counter[str]()
    pause = None
    try:
        waiting, oldest, ignored = _look_through(inbox)
    except OSError as error:
        pause = _missing(inbox, error)
    return InboxStatus(
        name=inbox.name,
        path=str(inbox.path),
        pause=pause,
        waiting=waiting,
        under_way=sum(delivery.inbox == inbox.name for delivery in memory.unfinished),
        sent=counts.get(StateName.SENT, 0),
        failed=counts.get(StateName.FAILED, 0),
        ignored=ignored,
        oldest_waiting_s=None if oldest is None else round(max(0.0, time.time() - oldest), 3),
    )


def _missing(inbox: config.Inbox, error: OSError) -> PauseStatus:
    gone = isinstance(error, FileNotFoundError | NotADirectoryError)
    reason = Reason.FOLDER_MISSING if gone else Reason.FOLDER_NOT_WRITABLE
    return PauseStatus(reason, f"cannot look into {inbox.path}: {error.strerror or error}", None, 0.0)


def _look_through(inbox: config.Inbox) -> tuple[int, float | None, Counter[str]]:
    """How many files wait, since when the oldest does (its ctime: nobody can set that), and what is left alone."""
    place = Place(inbox, folders_of(inbox))
    ignored: Counter[str] = Counter()
    waiting, oldest = 0, None
    root = os.open(inbox.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        scan = Scan(root, place.names, recursive=inbox.recursive, own=place.own)
        try:
            last = False
            while not last:
                part = scan.advance(frozenset(), _ENDLESS)
                ignored.update(reason.value for _, reason in part.ignored)
                waiting += len(part.sightings)
                since = min((sighting.version.ctime_ns / 1e9 for sighting in part.sightings), default=None)
                oldest = since if oldest is None or (since is not None and since < oldest) else oldest
                last = part.last
        finally:
            scan.close()
    finally:
        os.close(root)
    return waiting, oldest, ignored


def _lying(place: Place, name: str) -> Explanation | None:
    path, inbox = place.path_of(name), place.settings
    try:
        root = os.open(inbox.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        pause = _missing(inbox, error)
        return Explanation(path, "paused", (f"{pause.detail}.",), inbox.name, pause.reason.value)
    try:
        look = glance(root, name)
    finally:
        os.close(root)
    if look is None:
        return None
    *folders, base = name.split("/")
    refused = next(filter(None, map(never_taken, (*folders, base))), None)
    if refused is None and folders and not inbox.recursive:
        refused = Ignored.FOLDER
    if refused is None and len(folders) > MAX_DEPTH:
        refused = Ignored.TOO_DEEP
    if refused is None:
        refused = look if isinstance(look, Ignored) else place.names.judge(base)
    if refused is not None:
        return Explanation(
            path, "ignored", (f"It is left alone: {IGNORED_BECAUSE[refused]}.",), inbox.name, refused.value
        )
    quiet = f"once it has not changed for {duration(inbox.settle_s)}"
    waits = f"It waits in the inbox {inbox.name}, for {_RESTS}: it is taken when attachd is started, {quiet}."
    return Explanation(path, "waiting", (waits,), inbox.name)
