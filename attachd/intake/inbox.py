"""Looks after one inbox: sees its files, waits until they are complete, offers them to be claimed.

Two loops under one task group share the table of `settle`. The looking one scans: at the start, when an event says so,
every `rescan_s`, after an overflow, and when a full table has been worked off. The offering one blocks until the
delivery side has a turn for this inbox, hands out what is ready at that moment, and feeds back what became of it.

When the folder is gone, swapped or cannot be written to, both stop, everything known of it is forgotten, and it is
tried again until it is back. Whatever blocks runs in a thread.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import structlog

from attachd.errors import InboxError
from attachd.intake.names import Ignored, NameRules, never_taken
from attachd.intake.scan import MAX_DEPTH, Scan, glance
from attachd.intake.settle import LeftAlone, SettleTable, Standing
from attachd.intake.watch import Watch, WatchMode, limit_to_raise, native_works
from attachd.model import ClaimResult, InboxName, Reason, Sighting, Step
from attachd.ports import Offer

T = TypeVar("T")

Lost: TypeAlias = Callable[[InboxName, InboxError], None]
"""Told once when an inbox cannot be worked with, until it is found again."""

Found: TypeAlias = Callable[[InboxName], Awaitable[None]]
"""Told when a lost inbox may be back. It should try whatever made it fail: InboxError keeps the inbox lost."""

CHECK_S = 2.0
"""How often the folder's identity and the observer's threads are looked at: a few system calls."""
POLL_S = 5.0
"""How often a folder without events is scanned, unless its `rescan_s` is shorter."""
REARM_S = 60.0
"""How long to wait before an observer that could not be started is tried again."""
SCAN_SHARE = 20
"""A scan begins no earlier than so many times the length of the last one after it: at most 5 % of a core."""
SPACING_S = 5.0
"""But never later than this after an event."""
NUDGE_S = 0.01
"""How often files that came by rename are looked at singly while a scan has to wait."""
UNUSED_TURN_S = 0.05
FIRST_RETRY_S = 0.1
FOLDER_RETRY_S = 5.0
OFFER_RETRY_S = 30.0
STOP_S = 2.0
"""How long stopping waits for a thread that is in the folder; a share that hangs may keep it for ever."""
MAX_REPORTED = 10_000
"""How many ignored files are remembered as reported. What is beyond is counted, not logged."""

_WARN = frozenset(
    {Ignored.LINK, Ignored.NOT_A_FILE, Ignored.HARD_LINKS, Ignored.UNREADABLE, Ignored.NEVER_SETTLES, Ignored.TOO_DEEP}
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class IntakeRules:
    """What the config says of one inbox, as far as seeing goes. `own` are the folders at its root that are ours."""

    path: str
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    recursive: bool = False
    settle_s: float = 2.0
    rescan_s: float = 60.0
    watch: WatchMode = WatchMode.AUTO
    own: frozenset[str] = frozenset({"sent", "failed", ".attachd"})


@dataclass(frozen=True, slots=True)
class NotThere:
    """The inbox has nothing of this name."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """It lies there and may be taken, but was not looked at yet; `table_full`: so many others wait before it."""

    table_full: bool


@dataclass(frozen=True, slots=True)
class OwnFolder:
    """It lies in one of our own folders; the inbox has nothing to say of it."""


@dataclass(frozen=True, slots=True)
class Paused:
    """Nothing is known of any file: the inbox is lost."""

    error: InboxError


Whereabouts: TypeAlias = Standing | NotThere | Unseen | OwnFolder | Paused
"""All that can be said of a name in an inbox before it is claimed."""


class InboxIntake:
    """One inbox, from its folder to the offers. `run` ends only by cancellation or by a bug."""

    def __init__(
        self,
        name: InboxName,
        rules: IntakeRules,
        offer: Offer,
        *,
        lost: Lost,
        found: Found,
        clock: Callable[[], float],
        trouble: InboxError | None = None,
        capacity: int = 4096,
        check_s: float = CHECK_S,
    ) -> None:
        """`trouble` is what the inbox begins with: it is lost until it is found."""
        self.name = name
        self._rules = rules
        self._offer = offer
        self._lost = lost
        self._found = found
        self._clock = clock
        self._capacity = capacity
        self._check_s = check_s
        self._names = NameRules(rules.include, rules.exclude)
        self._table = SettleTable(rules.settle_s, rescan_s=rules.rescan_s, capacity=capacity)
        self._root = -1
        self._real_path = ""
        self._trouble = trouble
        self._hung = False
        # Looking: what asks for a look, and when one may or must begin.
        self._wake = asyncio.Event()
        self._dirty = False
        self._changed: set[str] = set()
        self._not_before = self._rescan_at = self._nudge_at = 0.0
        self._scans = 0
        self._cursor = 0
        self._watch: Watch | None = None
        self._native = False
        self._rearm_at = 0.0
        self._degraded = False
        # Offering.
        self._ready = asyncio.Event()
        self._picked: dict[str, Sighting] = {}
        self._left = 0
        # Telling.
        self._seen: Counter[Ignored] = Counter()
        self._reported: dict[tuple[str, Ignored], int] = {}
        self._beyond = 0
        self._last_scan_s = 0.0
        self._found_by_scan_only = 0
        self._overflows = 0
        self._rebuilds = 0

    async def run(self) -> None:
        """See and offer files until cancelled, through every trouble of the folder."""
        retry_s = FIRST_RETRY_S
        while True:
            began = self._clock()
            try:
                async with self._opened():
                    if self._trouble is not None:
                        await self._found(self.name)
                        self._trouble = None
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(self._looking(), name=f"look at {self.name}")
                        tasks.create_task(self._offering(), name=f"offer from {self.name}")
            except* InboxError as group:
                error = _first(group)
                if self._trouble is None:
                    self._trouble = error
                    self._lost(self.name, error)
            # Trouble that comes back as soon as it seems over keeps its growing distance.
            if self._clock() - began > OFFER_RETRY_S:
                retry_s = FIRST_RETRY_S
            await asyncio.sleep(retry_s)
            folder = self._trouble is not None and self._trouble.reason is Reason.FOLDER_MISSING
            retry_s = min(retry_s * 2, FOLDER_RETRY_S if folder else OFFER_RETRY_S)

    # --- telling

    @property
    def trouble(self) -> InboxError | None:
        """Why the inbox is lost; None while it is well."""
        return self._trouble

    @property
    def waiting(self) -> int:
        """How many files settle, or are complete and wait for a slot; those count too that were not looked at yet."""
        return sum(1 for _ in self._table.waiting_since(self._clock())) + self._beyond

    @property
    def ignored(self) -> Mapping[Ignored, int]:
        """How many things in the folder are left alone, by reason."""
        return self._seen + Counter(reason for _, reason in self._table.left_alone(self._clock()))

    def oldest_waiting_s(self, now: float) -> float | None:
        """For how long the file has been known that has waited longest; None when none waits."""
        since = min(self._table.waiting_since(now), default=None)
        return None if since is None else now - since

    @property
    def watching(self) -> WatchMode:
        """NATIVE while events come in, POLLING otherwise."""
        return WatchMode.POLLING if self._watch is None else WatchMode.NATIVE

    @property
    def found_by_scan_only(self) -> int:
        """How many files a regular scan found that no event had announced: more than a few mean a blind watch."""
        return self._found_by_scan_only

    @property
    def overflows(self) -> int:
        """How often the kernel dropped events because we did not keep up; each was made good by a scan."""
        return self._overflows

    @property
    def rebuilds(self) -> int:
        """How often a dead observer was replaced."""
        return self._rebuilds

    @property
    def last_scan_s(self) -> float:
        """How long the last whole scan took."""
        return self._last_scan_s

    async def explain(self, name: str, now: float) -> Whereabouts:
        """Where the file is, and why; `name` is relative to the inbox."""
        if self._trouble is not None:
            return Paused(self._trouble)
        standing = self._table.standing(name, now)
        if standing is not None:
            return standing
        *folders, base = name.split("/")
        if self._root < 0 or "\0" in name or not {"", ".", ".."}.isdisjoint((*folders, base)):
            return NotThere()
        if (folders or [base])[0] in self._rules.own:
            return OwnFolder()
        # A descriptor of its own: the inbox may be lost while the thread looks.
        look = await self._off_loop(_glance_and_close, os.dup(self._root), name)
        if look is None:
            return NotThere()
        for part in (*folders, base):
            if (never := never_taken(part)) is not None:
                return LeftAlone(never)
        if folders and not self._rules.recursive:
            return LeftAlone(Ignored.FOLDER)
        if len(folders) > MAX_DEPTH:
            return LeftAlone(Ignored.TOO_DEEP)
        if isinstance(look, Ignored):
            return LeftAlone(look)
        refused = self._names.judge(base)
        return Unseen(table_full=self._beyond > 0) if refused is None else LeftAlone(refused)

    # --- looking

    async def _looking(self) -> None:
        if self._native:
            await self._arm()
        check_at = self._clock() + self._check_s
        self._rescan_at = self._clock()
        while True:
            self._wake.clear()
            now = self._clock()
            if now >= check_at:
                await self._supervise()
                check_at = self._clock() + self._check_s
            elif self._changed:
                names, self._changed = self._changed, set()
                await self._look_at(names)
            elif now >= self._rescan_at or (self._dirty and now >= self._not_before):
                await self._scan()
            elif self._dirty and self._watch is not None and now >= self._nudge_at:
                # A scan may not begin yet; what came by rename need not wait for it.
                hints = self._watch.take()
                self._overflows += hints.overflowed
                self._nudge_at = self._clock() + NUDGE_S
                await self._look_at(hints.renamed, renamed=True)
            else:
                until = min(check_at, self._rescan_at)
                if self._dirty:
                    until = min(until, self._not_before)
                    if self._watch is not None:
                        until = min(until, self._nudge_at)
                await _set_within(self._wake, until - now)

    async def _scan(self) -> None:
        began = self._clock()
        announced, self._dirty = self._dirty, False
        renamed: Collection[str] = ()
        if self._watch is not None:
            hints = self._watch.take()
            renamed = hints.renamed
            self._overflows += hints.overflowed
        beyond_before, self._left = self._beyond, 0
        first, self._scans = self._scans == 0, self._scans + 1
        # Not always from the top: what a full table passes over must have its turn as well.
        skip = self._cursor % beyond_before if beyond_before else 0
        self._table.begin_scan(began, renamed)
        scan = Scan(self._root, self._names, recursive=self._rules.recursive, own=self._rules.own, skip=skip)
        seen: Counter[Ignored] = Counter()
        beyond = admitted = entered = 0
        again_s = self._rules.rescan_s if self._watch is not None else min(self._rules.rescan_s, POLL_S)
        try:
            last = False
            while not last:
                part = await self._off_loop(scan.advance, self._table.known(), self._table.room)
                now = self._clock()
                for sighting in part.sightings:
                    entered += sighting.name not in self._table
                    if not self._table.look(sighting, now):
                        beyond += 1
                for name, reason in part.ignored:
                    seen[reason] += 1
                    if self._report(name, reason) and reason is Ignored.HARD_LINKS:
                        # Delivered as into a maildir, it loses its other name at once, and no event says so.
                        again_s = min(again_s, self._rules.settle_s)
                beyond += part.beyond
                admitted += part.new
                last = part.last
                self._ready.set()
        except OSError as error:
            raise _lost_folder(self._rules.path, error) from error
        finally:
            if not self._hung:
                scan.close()
        self._table.end_scan()
        now = self._clock()
        self._last_scan_s = now - began
        self._not_before = now + min(SCAN_SHARE * self._last_scan_s, SPACING_S)
        self._rescan_at = now + again_s
        self._seen, self._beyond = seen, beyond
        self._cursor = skip + admitted if beyond else 0
        if not (first or announced or beyond_before or self._dirty) and self._watch is not None:
            self._found_by_scan_only += entered
        if beyond and not self._table.full:
            self._look_again()  # it began too far down; the next one begins at the top
            self._cursor = 0
        self._report_table(now)
        self._reported = {key: scans for key, scans in self._reported.items() if scans == self._scans}

    async def _look_at(self, names: Collection[str], *, renamed: bool = False) -> None:
        def look() -> list[tuple[str, Sighting | Ignored | None]]:
            return [(name, glance(self._root, name)) for name in names]

        names = [name for name in names if name in self._table or self._may_be_taken(name)]
        if not names:
            return
        looks = await self._off_loop(look)
        now = self._clock()
        for name, seen in looks:
            if isinstance(seen, Sighting):
                self._table.look(seen, now, renamed=renamed)
            else:
                self._table.forget(name)
        self._report_table(now)
        self._ready.set()

    def _may_be_taken(self, name: str) -> bool:
        *folders, base = name.split("/")
        return (
            self._names.judge(base) is None
            and len(folders) <= (MAX_DEPTH if self._rules.recursive else 0)
            and not any(never_taken(folder) for folder in folders)
        )

    def _look_again(self) -> None:
        self._dirty = True
        self._wake.set()

    def _report_table(self, now: float) -> None:
        self._report_restless()
        for name, reason in self._table.left_alone(now):
            self._report(name, reason)

    def _report_restless(self) -> None:
        for name in self._table.never_settled():
            self._report(name, Ignored.NEVER_SETTLES)

    def _report(self, name: str, reason: Ignored) -> bool:
        """Log it unless it was; whether it was logged now."""
        key = (name, reason)
        if key in self._reported:
            self._reported[key] = self._scans
            return False
        if len(self._reported) >= MAX_REPORTED:
            return False
        self._reported[key] = self._scans
        tell = log.warning if reason in _WARN else log.info
        tell("file.ignored", inbox=self.name, file=name, reason=reason.value)
        return True

    # --- offering

    async def _offering(self) -> None:
        while True:
            self._ready.clear()
            now = self._clock()
            due = self._table.next_due(now)
            if due is None or due > now:
                await _set_within(self._ready, None if due is None else due - now)
                continue
            self._picked.clear()
            results = await self._offer(self.name, self._pick)
            if not self._take_back(results):
                await asyncio.sleep(UNUSED_TURN_S)  # a turn that was not used must not become a busy loop

    def _pick(self, limit: int) -> Sequence[Sighting]:
        picked = self._table.pick(self._clock(), limit)
        self._picked.update((sighting.name, sighting) for sighting in picked)
        return picked

    def _take_back(self, results: Sequence[tuple[Sighting, ClaimResult]]) -> bool:
        now = self._clock()
        for sighting, result in results:
            self._picked.pop(sighting.name, None)
            reason = self._table.feed(sighting, result, now)
            if reason is not None:
                self._report(sighting.name, reason)
            if result is ClaimResult.CHANGED:
                self._changed.add(sighting.name)
        for sighting in self._picked.values():
            self._table.put_back(sighting)
        self._report_restless()
        if self._changed:
            self._wake.set()
        self._left += len(results)
        if self._beyond:
            due = self._table.next_due(now)
            if self._left >= self._capacity // 2:
                # Half a table was delivered since the last scan: that pays for the next one, whatever it takes.
                self._not_before = min(self._not_before, now)
                self._look_again()
            elif due is None or due > now + self._rules.settle_s:
                self._look_again()
        return bool(results)

    # --- the folder and its observer

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        try:
            await self._off_loop(self._open_folder)
            match self._rules.watch:
                case WatchMode.AUTO:
                    self._native = await self._off_loop(native_works, self._real_path)
                case mode:
                    self._native = mode is WatchMode.NATIVE
            yield
        finally:
            # Nothing that was known holds for the folder that comes next.
            self._table.clear()
            self._changed.clear()
            self._seen.clear()
            self._beyond = self._cursor = self._scans = 0
            self._dirty = False
            self._not_before = 0.0
            root, self._root = self._root, -1
            await self._disarm()
            if root >= 0 and not self._hung:
                os.close(root)

    def _open_folder(self) -> None:
        # Keeps the descriptor itself: a result would be lost if we were cancelled meanwhile.
        path = self._rules.path
        try:
            self._real_path = os.path.realpath(path, strict=True)
            self._root = os.open(self._real_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _lost_folder(path, error) from error
        _check_folder(path, self._root)

    async def _supervise(self) -> None:
        await self._off_loop(_check_folder, self._rules.path, self._root)
        if not self._native:
            return
        if self._watch is None:
            if self._clock() >= self._rearm_at:
                await self._arm()
        elif not self._watch.alive:
            self._rebuilds += 1
            await self._disarm()
            await self._arm()

    async def _arm(self) -> None:
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._look_again)

        # Known before it starts, so that it is stopped even if we are cancelled meanwhile.
        self._watch = Watch(self._real_path, wake, recursive=self._rules.recursive, own=self._rules.own)
        try:
            await self._off_loop(self._watch.start)
        except (OSError, RuntimeError, ImportError) as error:
            self._watch = None
            self._rearm_at = self._clock() + REARM_S
            if not self._degraded:
                self._degraded = True
                detail = limit_to_raise(error) if isinstance(error, OSError) else str(error)
                log.warning("inbox.polling", inbox=self.name, reason="no_events", detail=detail)
        else:
            if self._degraded:
                self._degraded = False
                log.info("inbox.watching", inbox=self.name)
        # Whatever came between the last look and this moment was announced by nobody.
        self._look_again()

    async def _disarm(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            await self._off_loop(watch.stop)

    async def _off_loop(self, call: Callable[..., T], *args: object) -> T:
        """Run it in a thread. When cancelled, wait until the thread has let go of our descriptors."""
        work = asyncio.get_running_loop().run_in_executor(None, lambda: call(*args))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            done, _ = await asyncio.wait([work], timeout=STOP_S)
            if not done:
                self._hung = True
                work.add_done_callback(_forget_outcome)
            elif not work.cancelled():
                work.exception()
            raise


def _glance_and_close(root: int, name: str) -> Sighting | Ignored | None:
    try:
        return glance(root, name)
    finally:
        os.close(root)


def _check_folder(path: str, root: int) -> None:
    try:
        there, held = os.stat(path), os.fstat(root)
        # Answers for a filesystem mounted read-only as well.
        usable = os.access(".", os.R_OK | os.W_OK | os.X_OK, dir_fd=root, effective_ids=True)
    except OSError as error:
        raise _lost_folder(path, error) from error
    if (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
        raise InboxError(Reason.FOLDER_REPLACED, f"another folder has taken the place of {path!a}", Step.CHECK)
    if not usable:
        raise InboxError(
            Reason.FOLDER_NOT_WRITABLE,
            f"the folder {path!a} needs to be readable and writable for the user attachd runs as",
            Step.CHECK,
        )


def _lost_folder(path: str, error: OSError) -> InboxError:
    if isinstance(error, PermissionError):
        return InboxError(
            Reason.FOLDER_NOT_WRITABLE, f"the folder {path!a} cannot be read: permission denied", Step.CHECK
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InboxError(Reason.FOLDER_MISSING, f"there is no folder {path!a}", Step.CHECK)
    return InboxError(Reason.FOLDER_MISSING, f"the folder {path!a} cannot be read: {error.strerror}", Step.CHECK)


def _first(group: BaseExceptionGroup[InboxError]) -> InboxError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _set_within(event: asyncio.Event, seconds: float | None) -> None:
    """Wait until the event is set, at most so long; None: for as long as it takes."""
    try:
        async with asyncio.timeout(None if seconds is None else max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        pass


def _forget_outcome(work: "asyncio.Future[T]") -> None:
    if not work.cancelled():
        work.exception()
