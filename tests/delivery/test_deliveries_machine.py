"""Nothing lost, nothing sent twice: deliveries in a world where anything may go wrong, and the process end, anywhere.

The real dispatcher, pipeline, folders and journal work against a platform in memory that keeps a ledger of what an
agent got. A crash leaves what the folders and the journal hold and nothing else; in a power cut the journal also
forgets what it was told lazily. Every state-changing call of the folders, every call of the journal and every request
is a point at which the process can end.
"""

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from structlog.testing import capture_logs

from attachd.delivery import filing as filing_module
from attachd.delivery.dispatcher import Dispatcher
from attachd.delivery.filing import Filing
from attachd.delivery.lifecycle import MOST_POSTS, Rules
from attachd.delivery.pauses import Pauses
from attachd.delivery.pipeline import InboxPlan, Pipeline, Work
from attachd.errors import AccountError, DeliveryError, FileError, InboxError, TransientError, UnknownOutcome
from attachd.journal.sqlite import SqliteJournal
from attachd.metrics import Metrics
from attachd.model import (
    CARRIES_THE_FILE,
    Delivery,
    DeliveryId,
    InboxName,
    Posted,
    Posting,
    Reason,
    Routing,
    Step,
    state_name,
)
from attachd.ports import JournalIdentity

from .conftest import Call, ScriptedGateway, sighting_of

INBOX = InboxName("claims")
START = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)
ATTEMPTS = 3
Policy = Literal["resend", "hold"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of deliveries have much to say."""
    with capture_logs():
        yield


class Crash(BaseException):
    """The process ends here."""


class End(Enum):
    """How a process ends."""

    KILLED = auto()
    POWER_CUT = auto()
    """Killed, and what the journal did not have to keep is gone."""
    CANCELLED = auto()
    """As in a stop that took too long: threads finish what they are at."""


class Points:
    """Counts what happens to the outside, and ends the process at the call that was chosen: before it has an effect."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.reset()

    def reset(self, fatal: int | None = None, end: End = End.KILLED) -> None:
        self.passed: list[str] = []
        self._fatal = fatal
        self._end = end
        self.dead = False
        self.task: asyncio.Task[Any] | None = None

    def reach(self, what: str) -> None:
        if self.dead:
            raise Crash(what)
        self.passed.append(what)
        if len(self.passed) == self._fatal:
            if self._end is End.CANCELLED:
                if self.task:
                    self._loop.call_soon_threadsafe(self.task.cancel)
                return
            self.dead = True
            raise Crash(what)


class PointedOs:
    """The `os` of the folders: each call that changes something is a point."""

    _CHANGES = frozenset({"mkdir", "rename", "rmdir", "unlink", "link", "fsync", "write", "posix_fallocate"})

    def __init__(self, points: Points) -> None:
        self._points = points

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self._CHANGES:
            return real

        def pointed(*arguments: Any, **more: Any) -> Any:
            self._points.reach(name)
            return real(*arguments, **more)

        return pointed


@contextmanager
def pointed_folders(points: Points) -> Iterator[None]:
    move = filing_module._rename_no_replace

    def pointed_move(*arguments: Any) -> None:
        points.reach("move")
        move(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filing_module, "os", PointedOs(points))
        patch.setattr(filing_module, "_rename_no_replace", pointed_move)
        yield


class PointedJournal:
    """The real journal; keeps back what it was told lazily until it must be kept, so that a power cut can take it."""

    def __init__(self, journal: SqliteJournal, world: "World") -> None:
        self._journal = journal
        self._world = world
        self._lazy: list[tuple[Delivery, datetime]] = []
        self.full = False

    @property
    def identity(self) -> JournalIdentity:
        return self._journal.identity

    async def admit(self, deliveries: Sequence[Delivery], now: datetime) -> None:
        for delivery in deliveries:
            await self.record(delivery, now)

    async def record(self, delivery: Delivery, now: datetime) -> None:
        self._world.points.reach(f"record {state_name(delivery.state)}")
        if self.full:
            raise AccountError(Reason.DISK_FULL, "no room", Step.FILING)
        if isinstance(delivery.state, Posting | Posted):
            await self.flush()
            await self._journal.record(delivery, now)
            self._world.recorded(delivery)
        else:
            self._lazy.append((delivery, now))

    async def flush(self, kept: int | None = None) -> None:
        """Write what was kept back, or the first of it."""
        lazy, self._lazy = self._lazy[:kept], []
        for delivery, now in lazy:
            await self._journal.record(delivery, now)

    async def unfinished(self) -> list[Delivery]:
        await self.flush()
        return await self._journal.unfinished()

    async def find(self, delivery: DeliveryId) -> Any:
        await self.flush()
        return await self._journal.find(delivery)


@dataclass
class File:
    """What somebody dropped, and what may rightly become of it."""

    name: str
    contents: list[bytes]
    """The latest is what lies on the disk."""
    taken: bool = False
    refused: bool = False
    in_doubt: bool = False
    """A message of it was recorded as perhaps on its way."""
    settled: bool = False
    """The journal knows that its message stands."""
    carrying_failures: int = 0
    messages: int = 0
    faults: set[str] = field(default_factory=set)
    met: set[str] = field(default_factory=set)
    """All that went wrong with it; and that a power cut may have taken the reason with it."""

    @property
    def may_fail_for(self) -> set[str]:
        return {
            reason
            for reason, may in {
                "refused": self.refused,
                "unknown_outcome": self.in_doubt,
                "changed_after_send": len(self.contents) > 1,
                "gave_up": self.carrying_failures >= ATTEMPTS,
            }.items()
            if may
        } | self.met


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong in one attempt: at which step, before the request has an effect or after it."""

    step: Step
    error: DeliveryError
    after: bool = False
    standing: bool = False
    """At the question whether the message stands."""


def _faults() -> list[Fault]:
    faults = [Fault(Step.SESSION, InboxError(Reason.QUEUE_REFUSED, "no such queue", Step.SESSION))]
    for step in (Step.SESSION, Step.UPLOAD, Step.PUT, Step.MESSAGE):
        faults += [
            Fault(step, AccountError(Reason.FORBIDDEN, "no", step)),
            Fault(step, TransientError(Reason.TIMEOUT, "silence", step)),
            Fault(step, TransientError(Reason.RATE_LIMITED, "too fast", step, retry_after_s=30.0)),
        ]
    for step in (Step.UPLOAD, Step.PUT, Step.MESSAGE):
        faults.append(Fault(step, FileError(Reason.REFUSED, "not this one", step, http_status=400)))
    faults += [
        Fault(Step.PUT, TransientError(Reason.CONNECTION_LOST, "the answer was lost", Step.PUT), after=True),
        Fault(Step.MESSAGE, TransientError(Reason.NOT_READY, "no such upload yet", Step.MESSAGE)),
        Fault(Step.MESSAGE, UnknownOutcome(Reason.TIMEOUT, "silence", Step.MESSAGE)),
        Fault(Step.MESSAGE, UnknownOutcome(Reason.CONNECTION_LOST, "the answer was lost", Step.MESSAGE), after=True),
        Fault(Step.MESSAGE, TransientError(Reason.TIMEOUT, "silence", Step.MESSAGE), standing=True),
        Fault(Step.MESSAGE, AccountError(Reason.FORBIDDEN, "no", Step.MESSAGE), standing=True),
    ]
    return faults


FAULTS = _faults()
LOST_ANSWER = next(fault for fault in FAULTS if fault.after and fault.step is Step.MESSAGE)


class World:
    """A folder, a state folder, a platform; and a process that comes and goes."""

    def __init__(self, policy: Policy = "resend", *, can_ask: bool = False) -> None:
        self.loop = asyncio.new_event_loop()
        # One thread: when it is idle, nothing that a cancelled attempt began is still under way.
        self.loop.set_default_executor(ThreadPoolExecutor(1))
        self.points = Points(self.loop)
        self.gateway = ScriptedGateway()
        self.gateway.before, self.gateway.after = self._before, self._after
        self.gateway.can_ask = can_ask
        self.policy = policy
        self.root = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.inbox = self.root / "claims"
        self.inbox.mkdir()
        self.files: dict[str, File] = {}
        self.wrongs: list[str] = []
        self.time = 0.0
        self._ids = 0
        self._contents = 0
        self._fault: Fault | None = None
        self._meanwhile: tuple[Step, Callable[[], object]] | None = None
        self._process: AsyncExitStack | None = None
        self._folders = pointed_folders(self.points)
        self._folders.__enter__()
        self.start()

    def close(self) -> None:
        if self._process:
            self.die(End.KILLED)
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self._folders.__exit__(None, None, None)
        shutil.rmtree(self.root)

    # --- the process -------------------------------------------------------------------------------------------------

    def start(self, crash_at: int | None = None, end: End = End.KILLED) -> bool:
        """A process starts, and recovers; whether it lives."""
        self.points.reset(crash_at, end if end is not End.CANCELLED else End.KILLED)
        try:
            self.loop.run_until_complete(self._start())
        except Crash:
            self.die(end)
        return self._process is not None

    async def _start(self) -> None:
        self._process = AsyncExitStack()
        filing = Filing(INBOX, self.inbox, sent="sent", failed="failed")
        self._process.callback(filing.close)
        filing.open()
        opening = SqliteJournal.open(self.root / "state", self.now(), lambda: "j", ballast_bytes=4096)
        self.journal = PointedJournal(await self._process.enter_async_context(opening), self)
        rules = Rules(ATTEMPTS, self.policy)
        chance = Random(1)
        metrics = Metrics()
        pauses = Pauses(clock=lambda: self.time, chance=chance, metrics=metrics)
        pipeline = Pipeline(
            self.journal,  # type: ignore[arg-type]  the part of a journal that deliveries need
            self.gateway,
            rules,
            max_file_bytes=1 << 20,
            now=self.now,
            clock=lambda: self.time,
            passed=pauses.passed,
        )
        self.filing = filing
        self.dispatcher = Dispatcher(
            self.journal,  # type: ignore[arg-type]
            pipeline,
            pauses,
            {INBOX: InboxPlan(INBOX, Routing(None), "See $name", ("*/*",), filing)},
            rules,
            concurrency=16,
            now=self.now,
            clock=lambda: self.time,
            chance=chance,
            metrics=metrics,
            new_id=self._new_id,
        )
        await self.dispatcher.recover(INBOX)

    def die(self, end: End, kept: int = 0) -> None:
        """The process ends as it stands. In a power cut the journal keeps only the first `kept` of its lazy records."""
        process, self._process = self._process, None
        assert process

        async def die() -> None:
            if hasattr(self, "journal"):
                await self.journal.flush(kept if end is End.POWER_CUT else None)
            await process.aclose()

        if end is End.POWER_CUT:
            # The journal is told lazily why a file is given up: cut between the move and the reason, what is known is
            # what it met before, if anything.
            for file in self.files.values():
                if file.refused or file.carrying_failures >= ATTEMPTS:
                    file.met |= file.faults | {"gave_up", "none"}
        self.points.reset()
        self.loop.run_until_complete(die())

    def now(self) -> datetime:
        return START + timedelta(seconds=self.time)

    def _new_id(self) -> DeliveryId:
        self._ids += 1
        return DeliveryId(f"d{self._ids:05}")

    def _run(self, act: Callable[[], Awaitable[object]], crash_at: int | None, end: End, kept: int) -> bool:
        """Let the process do something, and end in the middle of it if told; whether it lives."""
        self.points.reset(crash_at, end)

        async def run() -> bool:
            self.points.task = asyncio.ensure_future(act())
            ends, _ = await asyncio.wait([self.points.task], timeout=10)
            assert ends, f"nothing goes on after {self.points.passed}: {self.points.task.get_stack()}"
            [ended] = ends
            await asyncio.to_thread(lambda: None)
            if ended.cancelled():
                return False
            if error := ended.exception():
                if _is_crash(error):
                    return False
                raise error
            return True

        if self.loop.run_until_complete(run()):
            return True
        self.die(end, kept)
        return False

    def claim(self, crash_at: int | None = None, end: End = End.KILLED, kept: int = 0) -> bool:
        """Take everything out of the inbox that the dispatcher would take now."""
        names = sorted(path.name for path in self.inbox.iterdir() if path.is_file())
        sightings = [sighting_of(self.inbox, name) for name in names]
        if not sightings or self.dispatcher._allowance(INBOX) <= 0:
            return True
        return self._run(lambda: self.dispatcher.offer(INBOX, lambda most: sightings[:most]), crash_at, end, kept)

    def canary(self) -> None:
        """Whatever the canary may try now, it tries."""

        async def sing() -> None:
            async with asyncio.TaskGroup() as songs:
                self.dispatcher._start_canaries(songs)

        assert self._run(sing, None, End.KILLED, 0)

    def works(self) -> list[Work]:
        return sorted(self.dispatcher.waiting(), key=lambda work: work.delivery.id)

    def attempt(
        self,
        work: Work,
        fault: Fault | None = None,
        meanwhile: tuple[Step, Callable[[], object]] | None = None,
        *,
        crash_at: int | None = None,
        end: End = End.KILLED,
        kept: int = 0,
    ) -> bool:
        """One attempt at one delivery, as the dispatcher makes it; whether the process lives."""
        self._fault, self._meanwhile = fault, meanwhile

        async def attempt() -> None:
            async with asyncio.TaskGroup() as attempts:
                self.dispatcher._start(work, attempts)

        lives = self._run(attempt, crash_at, end, kept)
        self._fault = self._meanwhile = None
        self.time += 1.0
        return lives

    def finish(self) -> None:
        """Trouble is over: whatever is left comes to its end."""
        if self._process is None:
            assert self.start()
        self.journal.full = False
        for _ in range(20):
            self.canary()
            self.claim()
            for work in self.works():
                assert self.attempt(work)
            self.time += 1000.0
        assert self.works() == []

    # --- people and the platform -------------------------------------------------------------------------------------

    def drop(self) -> None:
        self._contents += 1
        name = f"{self._contents:03}.txt"
        self.files[name] = File(name, [self._new_content()])
        (self.inbox / name).write_bytes(self.files[name].contents[-1])

    def _new_content(self) -> bytes:
        self._contents += 1
        return f"document {self._contents}\n".encode()

    def change(self, file: File) -> None:
        """Somebody who still has it open writes to it, wherever it lies."""
        for path in self._paths(file):
            file.contents.append(self._new_content())
            path.write_bytes(file.contents[-1])

    def take(self, file: File) -> None:
        """Somebody takes it away."""
        for path in self._paths(file):
            path.unlink()
            file.taken = True

    def _paths(self, file: File) -> list[Path]:
        return [path for place, path in self.places() if place in ("inbox", "claimed") and path.name == file.name]

    async def _before(self, call: Call) -> None:
        self.points.reach(f"ask {call.step}")
        if self._meanwhile and self._meanwhile[0] is call.step and not call.standing:
            self._meanwhile[1]()
            self._meanwhile = None
        await self._fail(call, after=False)

    async def _after(self, call: Call) -> None:
        if call.step is Step.MESSAGE:
            self._accepted(call)
        self.points.reach(f"answer {call.step}")
        await self._fail(call, after=True)

    async def _fail(self, call: Call, *, after: bool) -> None:
        await asyncio.sleep(0)
        fault = self._fault
        if fault and (fault.step, fault.after, fault.standing) == (call.step, after, call.standing):
            if file := self.files.get(call.file_name):
                file.faults.add(str(fault.error.reason))
                file.refused |= isinstance(fault.error, FileError)
                file.carrying_failures += isinstance(fault.error, TransientError) and call.step in CARRIES_THE_FILE
            raise fault.error

    def _accepted(self, call: Call) -> None:
        file = self.files[call.file_name]
        file.messages += 1
        if file.messages > 1:
            if self.policy == "hold" or self.gateway.can_ask:
                self.wrongs.append(f"{file.name}: message {file.messages} under {self.policy}, {self.gateway.can_ask=}")
            if file.settled:
                self.wrongs.append(f"{file.name}: message {file.messages} though the journal knew of the first")
        if not file.in_doubt:
            self.wrongs.append(f"{file.name}: its message was not recorded before it left")

    def recorded(self, delivery: Delivery) -> None:
        """The journal has it on the disk."""
        file = self.files[delivery.name]
        file.in_doubt = True
        file.settled |= isinstance(delivery.state, Posted)

    # --- what must hold ----------------------------------------------------------------------------------------------

    def places(self) -> list[tuple[str, Path]]:
        found = [("inbox", path) for path in self.inbox.iterdir() if path.is_file()]
        found += [("claimed", path) for path in (self.inbox / ".attachd/claimed").glob("*/*")]
        for folder in ("sent", "failed"):
            paths = (self.inbox / folder).glob("*")
            found += [(folder, path) for path in paths if not path.name.endswith(".reason.txt")]
        return found

    def check(self) -> None:
        assert self.wrongs == []
        ledger = {message.sha256 for message in self.gateway.messages}
        lies = Counter[bytes]()
        for place, path in self.places():
            content = path.read_bytes()
            lies[content] += 1
            assert path.name in self.files, f"nobody dropped {path}"
            file = self.files[path.name]
            assert content == file.contents[-1], f"{path} is not what was dropped"
            if place == "sent":
                assert hashlib.sha256(content).hexdigest() in ledger, f"{path} was never sent"
            if place == "failed" and self._process:  # after a crash the reason may still have to be written
                assert self._reason(path) in file.may_fail_for, f"{path}: {self._reason(path)}, {file}"
        for file in self.files.values():
            assert lies[file.contents[-1]] == (not file.taken), f"{file} is lost, or there twice"
            assert file.messages <= MOST_POSTS

    def _reason(self, path: Path) -> str:
        reason = path.with_name(path.name + ".reason.txt")
        lines = reason.read_text().splitlines() if reason.exists() else ["Reason: none"]
        return next(line.split()[1] for line in lines if line.startswith("Reason:"))

    def check_at_rest(self) -> None:
        """Everything has come to its end, and the journal agrees with the folders."""
        self.check()
        places = {path.name: (place, path) for place, path in self.places()}
        assert {place for place, _ in places.values()} <= {"sent", "failed"}
        assert not list((self.inbox / ".attachd/claimed").iterdir())
        assert self.loop.run_until_complete(self.journal.unfinished()) == []
        for path in (self.root / "claims/failed").glob("*.reason.txt"):
            assert path.name.removesuffix(".reason.txt") in places, "a reason without its file"


def _is_crash(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_crash(inner) for inner in error.exceptions)
    return isinstance(error, Crash)


# --- every point of one delivery -------------------------------------------------------------------------------------


@dataclass
class Walk:
    """A file comes in and is delivered; its first answer may be lost."""

    policy: Policy
    can_ask: bool
    lose_answer: bool = False
    seen: Counter[str] = field(default_factory=Counter)

    def points(self) -> list[str]:
        """What the process does to the outside when nothing ends it, from the claim on."""
        world = World(self.policy, can_ask=self.can_ask)
        try:
            world.drop()
            passed = []
            world.claim()
            passed += world.points.passed
            self._deliver(world, None, End.KILLED, passed)
        finally:
            world.close()
        return passed

    def _deliver(self, world: World, crash_at: int | None, end: End, passed: list[str]) -> bool:
        fault = LOST_ANSWER if self.lose_answer else None
        while works := world.works():
            left = None if crash_at is None else crash_at - len(passed)
            if not world.attempt(works[0], fault, crash_at=left, end=end):
                return False
            passed += world.points.passed
            fault = None
        return True

    def crash(self, at: int, end: End, again_at: int | None = None) -> bool:
        """End the process at a point, and the next one at a point of its recovery; whether that has so many points."""
        world = World(self.policy, can_ask=self.can_ask)
        try:
            world.drop()
            if world.claim(at, end):
                passed = list(world.points.passed)
                assert not self._deliver(world, at, end, passed) or end is End.CANCELLED
            world.check()
            if world._process:  # the cancellation came too late to end anything
                world.die(end)
            self.seen[self._found(world)] += 1
            crashed_again = again_at is not None and not world.start(again_at)
            world.check()
            world.finish()
            world.check_at_rest()
            [file] = world.files.values()
            self.seen[f"messages: {file.messages}"] += 1
            return crashed_again
        finally:
            world.close()

    def _found(self, world: World) -> str:
        """What the next process will find."""

        async def rows() -> list[str]:
            async with SqliteJournal.open(world.root / "state", START, lambda: "j", ballast_bytes=4096) as journal:
                return [str(state_name(entry.delivery.state)) for entry in await journal.newest()]

        [(place, _)] = world.places()
        return " ".join([place, *world.loop.run_until_complete(rows())])


WALKS = [Walk("resend", False), Walk("hold", False), Walk("resend", True), Walk("hold", True)]


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: f"{walk.policy}-{'asks' if walk.can_ask else 'cannot-ask'}")
@pytest.mark.parametrize("lose_answer", [False, True], ids=["answered", "answer-lost"])
@pytest.mark.parametrize("end", End)
def test_a_process_may_end_at_any_point_of_a_delivery(walk: Walk, lose_answer: bool, end: End) -> None:
    """The file is neither lost nor sent twice where that can be known, and the next process brings it to its end."""
    walk = Walk(walk.policy, walk.can_ask, lose_answer)
    points = walk.points()
    assert len(points) > 20
    for at in range(1, len(points) + 1):
        walk.crash(at, end)
    reached = {"inbox", "claimed", "claimed claimed", "claimed posting", "claimed posted", "sent posted"}
    if end is End.POWER_CUT:  # what was said lazily is gone
        reached -= {"claimed claimed"}
    if end is End.CANCELLED:  # a thread does not leave a claim half done
        reached -= {"inbox"}
    if lose_answer and not walk.can_ask and walk.policy == "hold":
        reached = reached - {"claimed posted", "sent posted"} | {"failed posting"}
    assert reached <= set(walk.seen), f"never found: {reached - set(walk.seen)}; found {dict(walk.seen)}"
    most = 1 if walk.can_ask or walk.policy == "hold" else 3 if lose_answer else 2
    assert max(int(key[-1]) for key in walk.seen if key.startswith("messages")) == most


def test_the_recovery_itself_may_end_at_any_point() -> None:
    """Twice in a row is one case: whatever the first recovery has done, the next one goes on."""
    walk = Walk("resend", can_ask=False)
    for at in range(1, len(walk.points()) + 1):
        again_at = 1
        while walk.crash(at, End.KILLED, again_at):
            again_at += 3


# --- anything in any order -------------------------------------------------------------------------------------------

_points = st.integers(1, 40)
_ends = st.sampled_from(End)
_kept = st.integers(0, 3)
_choices = st.integers(0, 5)
_steps = st.sampled_from([Step.SESSION, Step.UPLOAD, Step.PUT, Step.MESSAGE])


class Deliveries(RuleBasedStateMachine):
    """Files, faults, ends and new beginnings."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def _alive(self) -> bool:
        return self.world._process is not None or self.world.start()

    def _work(self, choice: int) -> Work | None:
        """A claimed file; where there is none, one is brought as far as that."""
        if not self._alive():
            return None
        world = self.world
        if not world.works():
            world.drop()
            world.time += 200.0
            world.canary()
            world.claim()
        works = world.works()
        return works[choice % len(works)] if works else None

    def _something_claimed(self) -> bool:
        return any(place == "claimed" for place, _ in self.world.places())

    def _file(self, choice: int) -> File | None:
        files = [file for file in self.world.files.values() if self.world._paths(file)]
        return files[choice % len(files)] if files else None

    @rule()
    def a_file_comes_and_is_claimed(self) -> None:
        self.world.drop()
        if self._alive():
            self.world.claim()

    @rule(point=st.integers(1, 12), end=_ends, kept=_kept)
    def a_file_comes_and_the_end_with_it(self, point: int, end: End, kept: int) -> None:
        self.world.drop()
        if self._alive() and not self.world.claim(point, end, kept):
            event(f"{end.name} while claiming")

    @rule(choice=_choices)
    def one_attempt(self, choice: int) -> None:
        if work := self._work(choice):
            self.world.attempt(work)

    @rule(choice=_choices, fault=st.sampled_from(FAULTS) | st.just(LOST_ANSWER))
    def one_attempt_with_a_fault(self, choice: int, fault: Fault) -> None:
        if work := self._work(choice):
            event(f"{type(fault.error).__name__} at {fault.step} of a {state_name(work.delivery.state)} one")
            self.world.attempt(work, fault)

    @rule(choice=_choices, fault=st.none() | st.sampled_from(FAULTS), point=_points, end=_ends, kept=_kept)
    def one_attempt_and_the_end(self, choice: int, fault: Fault | None, point: int, end: End, kept: int) -> None:
        if work := self._work(choice):
            before = state_name(work.delivery.state)
            if not self.world.attempt(work, fault, crash_at=point, end=end, kept=kept):
                event(f"{end.name} with a {before} one that is {state_name(work.delivery.state)}")

    @rule(choice=_choices, step=_steps, taken=st.booleans(), fault=st.none() | st.sampled_from(FAULTS))
    def somebody_meddles_during_an_attempt(self, choice: int, step: Step, taken: bool, fault: Fault | None) -> None:
        if work := self._work(choice):
            file = self.world.files[work.delivery.name]
            act = self.world.take if taken else self.world.change
            self.world.attempt(work, fault, (step, lambda: act(file)))

    @rule(choice=_choices)
    def somebody_changes_a_file(self, choice: int) -> None:
        if file := self._file(choice):
            self.world.change(file)

    @rule(choice=_choices)
    def somebody_takes_a_file_away(self, choice: int) -> None:
        if file := self._file(choice):
            self.world.take(file)

    @rule(choice=_choices)
    def one_attempt_without_room_for_the_journal(self, choice: int) -> None:
        if work := self._work(choice):
            self.world.journal.full = True
            try:
                self.world.attempt(work)
            finally:
                self.world.journal.full = False

    @precondition(_something_claimed)
    @rule(end=st.sampled_from([End.KILLED, End.POWER_CUT]), kept=_kept, policy=st.sampled_from(["resend", "hold"]))
    def restart(self, end: End, kept: int, policy: Policy) -> None:
        if self._alive():
            self.world.die(end, kept)
        self.world.policy = policy
        assert self.world.start()

    @precondition(_something_claimed)
    @rule(point=st.integers(1, 15), end=st.sampled_from([End.KILLED, End.POWER_CUT]))
    def restart_and_end_again(self, point: int, end: End) -> None:
        if self._alive():
            self.world.die(End.KILLED)
        if not self.world.start(point, end):
            event(f"{end.name} while recovering")

    @rule(can_ask=st.booleans())
    def the_platform_can_be_asked(self, can_ask: bool) -> None:
        self.world.gateway.can_ask = can_ask

    @rule(seconds=st.sampled_from([1.0, 60.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.time += seconds
        if self._alive():
            self.world.canary()

    @invariant()
    def nothing_is_lost_and_sent_means_sent(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            self.world.finish()
            self.world.check_at_rest()
        finally:
            self.world.close()


Deliveries.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestDeliveries = Deliveries.TestCase
