"""Who goes next and what becomes of it, with real folders and a real journal; the clock stands still until told."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from attachd.delivery.dispatcher import Dispatcher
from attachd.delivery.filing import Filing
from attachd.delivery.health import CANARY
from attachd.delivery.lifecycle import Rules
from attachd.delivery.pauses import Pauses
from attachd.delivery.pipeline import InboxPlan, Pipeline, Work
from attachd.errors import AccountError, DeliveryError, FileError, InboxError, TransientError, UnknownOutcome
from attachd.journal.sqlite import SqliteJournal
from attachd.metrics import Metrics
from attachd.model import ClaimResult, DeliveryId, InboxName, Reason, Routing, Sighting, Step

from ..waiting import until
from .conftest import Call, ScriptedGateway, drop, tree

CLAIMS, BILLS = InboxName("claims"), InboxName("bills")
START = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)

Trouble = Callable[[Call], DeliveryError | None]


def silence(step: Step, retry_after_s: float | None = None) -> TransientError:
    return TransientError(Reason.TIMEOUT, "silence", step, retry_after_s=retry_after_s)


def refusal(step: Step) -> FileError:
    return FileError(Reason.REFUSED, "not this one", step, http_status=400)


class Bench:
    """A dispatcher at work, and inboxes whose intake claims what is dropped as soon as it may."""

    def __init__(self, gateway: ScriptedGateway, journal: SqliteJournal, folders: Mapping[InboxName, Path]) -> None:
        self.gateway = gateway
        self.folders = folders
        self.time = 0.0
        self.wall_ahead = timedelta()
        self._sighted: dict[InboxName, list[Sighting]] = {name: [] for name in folders}
        self._dropped = asyncio.Event()
        self._claiming = 0
        self._ids = 0
        rules = Rules(5, "resend")
        chance = random.Random(5)
        metrics = Metrics()
        self.pauses = Pauses(clock=lambda: self.time, chance=chance, metrics=metrics)
        pipeline = Pipeline(
            journal,
            gateway,
            rules,
            max_file_bytes=1 << 20,
            now=self.now,
            clock=lambda: self.time,
            passed=self.pauses.passed,
        )
        self.plans = {}
        for name, folder in folders.items():
            filing = Filing(name, folder, sent="sent", failed="failed")
            filing.open()
            self.plans[name] = InboxPlan(name, Routing(f"queue of {name}"), "See $name", ("*/*",), filing)
        self.dispatcher = Dispatcher(
            journal,
            pipeline,
            self.pauses,
            self.plans,
            rules,
            concurrency=4,
            now=self.now,
            clock=lambda: self.time,
            chance=chance,
            metrics=metrics,
            new_id=self._new_id,
        )

    def now(self) -> datetime:
        return START + timedelta(seconds=self.time) + self.wall_ahead

    def _new_id(self) -> DeliveryId:
        self._ids += 1
        return DeliveryId(f"d{self._ids:04}")

    async def watch(self, inbox: InboxName) -> None:
        """What the intake does: while there is something to claim it asks for its turn."""
        sighted = self._sighted[inbox]

        def pick(most: int) -> list[Sighting]:
            self._claiming += 1
            return sighted[:most]

        while True:
            while sighted:
                for sighting, result in await self.dispatcher.offer(inbox, pick):
                    assert result is ClaimResult.CLAIMED
                    sighted.remove(sighting)
                self._claiming -= 1
            self._dropped.clear()
            await self._dropped.wait()

    # --- what a test does ----------------------------------------------------------------------------------------

    def drop(self, *names: str, inbox: InboxName = CLAIMS) -> None:
        """Files come in; each has its name as its content."""
        self._sighted[inbox] += [drop(self.folders[inbox], name, name.encode()) for name in names]
        self._dropped.set()

    def pass_time(self, seconds: float) -> None:
        self.time += seconds
        self.pauses.changed.set()

    async def pass_time_until(
        self, condition: Callable[[], object], what: str, *, at_most_s: float, by_s: float = 1.0
    ) -> None:
        """Let as much time pass as is needed, a little at a time and only while nothing is under way."""
        before = self.time
        while not condition():
            await self.rest()
            if condition():
                return
            assert self.time - before < at_most_s, f"after {self.time - before:g} s in vain until {what}"
            self.pass_time(by_s)

    async def rest(self) -> None:
        """Wait until whatever can go without any time passing has gone, or stands still at the platform."""
        quiet = 0
        while quiet < 6:
            before = (len(self.gateway.calls), len(self.dispatcher.waiting()), len(self.dispatcher.under_way()))
            await asyncio.sleep(0.0005)
            after = (len(self.gateway.calls), len(self.dispatcher.waiting()), len(self.dispatcher.under_way()))
            moving = self._claiming or (self.dispatcher.under_way() and not self.standing_still)
            quiet = 0 if before != after or moving else quiet + 1

    standing_still = False
    """Whether the script lets requests wait."""

    def trouble(self, trouble: Trouble) -> None:
        """From now on the platform answers with this error, where it is one."""

        async def before(call: Call) -> None:
            if error := trouble(call):
                raise error

        self.gateway.before = before

    # --- what is seen of it --------------------------------------------------------------------------------------

    def lies_in(self, folder: str, inbox: InboxName = CLAIMS) -> list[str]:
        """The names in `sent`, in `failed` without the reasons, or with `.` in the inbox itself."""
        paths = (self.folders[inbox] / folder).glob("*")
        return sorted(path.name for path in paths if path.is_file() and not path.name.endswith(".reason.txt"))

    def works(self) -> dict[str, Work]:
        """What is claimed and not filed, by name."""
        return {work.delivery.name: work for work in [*self.dispatcher.waiting(), *self.dispatcher.under_way()]}

    async def all_sent(self, number: int, inbox: InboxName = CLAIMS) -> None:
        """So many, and nothing of the inbox is under way or waiting."""
        await until(lambda: len(self.lies_in("sent", inbox)) == number, f"{number} are sent")
        await until(lambda: not self.works(), "nothing is claimed any more")


@asynccontextmanager
async def at_work(gateway: ScriptedGateway, tmp_path: Path, *inboxes: InboxName) -> AsyncIterator[Bench]:
    folders = {name: tmp_path / name for name in inboxes}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    async with SqliteJournal.open(tmp_path / "state", START, lambda: "j", ballast_bytes=4096) as journal:
        bench = Bench(gateway, journal, folders)
        try:
            for name in folders:
                await bench.dispatcher.recover(name)
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(bench.dispatcher.run())]
                running += [tasks.create_task(bench.watch(name)) for name in folders]
                yield bench
                for task in running:
                    task.cancel()
        finally:
            for plan in bench.plans.values():
                plan.filing.close()


@pytest.fixture
async def bench(gateway: ScriptedGateway, tmp_path: Path) -> AsyncIterator[Bench]:
    async with at_work(gateway, tmp_path, CLAIMS) as bench:
        yield bench


@pytest.fixture
async def two(gateway: ScriptedGateway, tmp_path: Path) -> AsyncIterator[Bench]:
    """With a second inbox."""
    async with at_work(gateway, tmp_path, CLAIMS, BILLS) as bench:
        yield bench


@pytest.fixture
def log() -> Iterator[list[Any]]:
    """What is said."""
    with capture_logs() as records:
        yield records


def names(prefix: str, number: int) -> list[str]:
    return [f"{prefix}{index:02}" for index in range(number)]


# --- too many failures ----------------------------------------------------------------------------------------------


async def test_an_inbox_does_not_empty_itself_into_failed(bench: Bench, log: list[Any]) -> None:
    """Thirty files that the platform refuses: three fail, then the inbox is paused and the others stay where they
    are.
    """
    bench.trouble(lambda call: refusal(Step.UPLOAD) if call.step is Step.UPLOAD else None)
    bench.drop(*names("f", 30))
    await until(lambda: bench.pauses.inbox(CLAIMS), "the inbox is paused")
    await bench.rest()
    assert len(bench.lies_in("failed")) == 3
    assert len(bench.lies_in(".")) + len(bench.works()) == 27
    [paused] = [record for record in log if record["event"] == "inbox.paused"]
    assert paused["reason"] == "too_many_failures"
    assert "not this one" in str(paused["detail"])
    assert bench.pauses.account() is None


async def test_it_goes_on_when_one_of_the_files_passes(bench: Bench) -> None:
    """Somebody mended the setting: one file is tried, and then all are sent."""
    bench.trouble(lambda call: refusal(Step.UPLOAD) if call.step is Step.UPLOAD else None)
    bench.drop(*names("f", 30))
    await until(lambda: bench.pauses.inbox(CLAIMS), "the inbox is paused")
    await bench.rest()
    asked = len(bench.gateway.calls)
    for _ in range(120):
        bench.pass_time(1.0)
        await bench.rest()
    assert len(bench.lies_in("failed")) == 3
    assert asked < len(bench.gateway.calls) <= asked + 20
    bench.trouble(lambda call: None)
    await bench.pass_time_until(lambda: len(bench.lies_in("sent")) == 27, "all others are sent", at_most_s=180)


async def test_files_refused_here_and_there_do_not_stop_an_inbox(bench: Bench) -> None:
    """One in ten, however many in all."""
    bench.trouble(lambda c: refusal(Step.UPLOAD) if c.step is Step.UPLOAD and c.file_name.endswith("0") else None)
    for ten in range(6):
        bench.drop(*names(str(ten), 10))
        filed = 10 * (ten + 1)  # not: none in work and none in the inbox, for a file between the two is in neither
        await until(lambda filed=filed: _filed(bench) == filed and not bench.works(), "these are done")
    assert (len(bench.lies_in("sent")), len(bench.lies_in("failed"))) == (54, 6)


def _filed(bench: Bench) -> int:
    return len(bench.lies_in("sent")) + len(bench.lies_in("failed"))


async def test_what_is_wrong_with_the_files_themselves_stops_nobody(bench: Bench) -> None:
    """Twenty files too large are twenty files too large: no setting of the platform's is in question."""
    for name in names("large", 20):
        (bench.folders[CLAIMS] / name).write_bytes(b"x")
    bench._sighted[CLAIMS] += [drop(bench.folders[CLAIMS], name, bytes((1 << 20) + 1)) for name in names("large", 20)]
    bench.drop("a")
    await bench.all_sent(1)
    assert len(bench.lies_in("failed")) == 20
    assert bench.pauses.inbox(CLAIMS) is None


# --- suspects -------------------------------------------------------------------------------------------------------


async def test_suspects_share_one_slot(bench: Bench) -> None:
    """Four files with two strikes each: never two of them at the platform at once, and healthy files go beside them."""
    suspects, under_way, most = names("s", 4), set[str](), 0

    async def before(call: Call) -> None:
        nonlocal most
        if call.step is not Step.PUT or call.file_name not in suspects:
            return
        under_way.add(call.file_name)
        struck = [name for name in under_way if bench.works()[name].delivery.strikes >= 2]
        most = max(most, len(struck))
        for _ in range(20):
            await asyncio.sleep(0)
        under_way.discard(call.file_name)
        raise silence(Step.PUT)

    bench.gateway.before = before
    bench.drop(*suspects)
    for number in range(200):
        bench.drop(f"healthy{number:03}")
        await bench.pass_time_until(
            lambda number=number: f"healthy{number:03}" in bench.lies_in("sent"), "it is sent", at_most_s=60
        )
        bench.pass_time(5.0)
        await bench.rest()
        if len(bench.lies_in("failed")) == 3:
            break
    assert len(bench.lies_in("failed")) == 3  # the fourth would be the one too many
    assert most == 1


async def test_a_refund_reaches_the_file_that_failed_last(bench: Bench) -> None:
    """Three files fail at the message after somebody's success: what that cost them is taken back, from the one whose
    failure told of the outage as well.
    """
    bench.drop("healthy")
    await bench.all_sent(1)
    bench.trouble(lambda call: silence(Step.MESSAGE) if call.step is Step.MESSAGE else None)
    bench.drop("a", "b", "c")
    await until(bench.pauses.account, "everything is paused")
    await bench.rest()
    assert {name: work.delivery.strikes for name, work in bench.works().items()} == {"a": 0, "b": 0, "c": 0}


async def test_an_outage_costs_no_strike(bench: Bench) -> None:
    """The canary fails as the files did: what was counted against them is taken back."""
    bench.drop("healthy")
    await bench.all_sent(1)
    bench.trouble(lambda call: silence(Step.PUT) if call.step is Step.PUT else None)
    bench.drop("a", "b", "c", "d")
    await until(bench.pauses.account, "everything is paused")
    await bench.pass_time_until(
        lambda: any(call.delivery == CANARY for call in bench.gateway.asked(Step.PUT)), "the canary", at_most_s=20
    )
    await bench.rest()
    assert {work.delivery.strikes for work in bench.works().values()} == {0}


async def test_a_poison_file_alone_is_given_up_in_the_end(bench: Bench) -> None:
    """Only the canary proves that uploads work; the platform never hears of another file."""
    bench.trouble(lambda call: silence(Step.PUT) if (call.step, call.file_name) == (Step.PUT, "poison") else None)
    bench.drop("poison")
    await bench.pass_time_until(lambda: bench.lies_in("failed"), "it is given up", at_most_s=3600, by_s=5)
    assert "gave_up" in (bench.folders[CLAIMS] / "failed/poison.reason.txt").read_text()
    assert bench.gateway.messages == []


# --- the canary -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("troubled", "asks"),
    [
        (Step.TOKEN, [Step.SESSION]),
        (Step.SESSION, [Step.SESSION]),
        (Step.UPLOAD, [Step.SESSION, Step.UPLOAD, Step.PUT]),
        (Step.PUT, [Step.SESSION, Step.UPLOAD, Step.PUT]),
    ],
)
async def test_the_canary_carries_nothing_of_any_file(bench: Bench, troubled: Step, asks: list[Step]) -> None:
    """It asks as far as the trouble reaches, with a constant text of its own, and an agent never sees it."""
    asked_at = Step.SESSION if troubled is Step.TOKEN else troubled
    bench.trouble(lambda call: silence(troubled) if call.step is asked_at and call.delivery != CANARY else None)
    bench.drop("a", "b", "c")
    await until(bench.pauses.account, "everything is paused")
    bench.trouble(lambda call: None)
    await bench.rest()
    bench.gateway.calls.clear()
    await bench.pass_time_until(lambda: bench.gateway.calls, "the canary goes", at_most_s=20)
    await bench.all_sent(3)
    song = [call for call in bench.gateway.calls if call.delivery == CANARY]
    assert bench.gateway.calls[: len(song)] == song
    assert [call.step for call in song] == asks
    assert {call.file_name for call in song} <= {"", "attachd-canary.txt"}
    assert not {call.text for call in song} - {""}
    assert len(bench.gateway.messages) == 3


async def test_no_file_is_risked_while_the_canary_fails(bench: Bench) -> None:
    """An hour without the storage: at most a request a minute, none of them for a file."""
    bench.trouble(lambda call: silence(Step.PUT) if call.step is Step.PUT else None)
    bench.drop(*names("f", 10))
    await until(bench.pauses.account, "everything is paused")
    await bench.rest()
    bench.gateway.calls.clear()
    for _ in range(180):
        bench.pass_time(20.0)
        await bench.rest()
    assert {call.delivery for call in bench.gateway.calls} == {CANARY}
    assert 20 <= len(bench.gateway.asked(Step.PUT)) <= 60
    bench.trouble(lambda call: None)
    await bench.pass_time_until(lambda: bench.lies_in("sent"), "the first is sent", at_most_s=180)
    await bench.all_sent(10)


async def test_at_the_message_one_delivery_tries_for_all(bench: Bench) -> None:
    """Nothing else may reach an agent; and no more than one file is risked at a time."""
    bench.trouble(lambda call: silence(Step.MESSAGE) if call.step is Step.MESSAGE else None)
    bench.drop(*names("f", 10))
    await until(bench.pauses.account, "everything is paused")
    await bench.rest()
    bench.gateway.calls.clear()
    for _ in range(180):
        bench.pass_time(20.0)
        await bench.rest()
    assert CANARY not in {call.delivery for call in bench.gateway.calls}
    assert 20 <= len(bench.gateway.asked(Step.MESSAGE)) <= 60
    bench.trouble(lambda call: None)
    await bench.pass_time_until(lambda: bench.lies_in("sent"), "the first is sent", at_most_s=182)
    await bench.all_sent(10)


async def test_a_silence_is_kept_by_all(two: Bench) -> None:
    """Retry-After of ten minutes in one inbox: nothing is asked of the platform by anybody, the canary included."""
    two.trouble(lambda call: silence(Step.SESSION, retry_after_s=600.0))
    two.drop("a")
    await until(two.pauses.account, "everything is paused")
    two.trouble(lambda call: None)
    two.drop("b", inbox=BILLS)
    await two.rest()
    two.gateway.calls.clear()
    for _ in range(59):
        two.pass_time(10.0)
        await two.rest()
    assert two.gateway.calls == []
    two.pass_time(10.0)
    await two.all_sent(1)
    await two.all_sent(1, BILLS)


async def test_a_wrong_queue_is_found_mended_without_a_file(two: Bench) -> None:
    """The inbox whose sessions are refused is tried by the canary, and the other one never notices."""
    wrong = InboxError(Reason.QUEUE_REFUSED, "no such queue", Step.SESSION)
    two.trouble(lambda call: wrong if call.delivery not in {"d0002", "d0003"} else None)
    two.drop("a")
    await until(lambda: two.pauses.inbox(CLAIMS), "the inbox is paused")
    two.drop("b", inbox=BILLS)
    await until(lambda: two.lies_in("sent", BILLS), "the other inbox goes on")
    await two.rest()
    two.gateway.calls.clear()
    for _ in range(60):
        two.pass_time(60.0)
        await two.rest()
    assert {call.delivery for call in two.gateway.calls} == {CANARY}
    assert len(two.gateway.calls) <= 60
    two.trouble(lambda call: None)
    await two.pass_time_until(lambda: two.lies_in("sent"), "it is sent", at_most_s=180)


@pytest.mark.parametrize("step", [Step.UPLOAD, Step.PUT])
async def test_an_inbox_that_is_refused_with_an_upload_is_tried_with_one(two: Bench, step: Step) -> None:
    """A deployment that lost its right to attachments opens sessions all the same: only an upload tells that it is
    mended, and until then the platform is asked at growing distances.
    """
    refused = InboxError(Reason.ATTACHMENTS_NOT_GRANTED, "no attachments", step)
    two.trouble(lambda call: refused if call.step is step else None)
    two.drop("a")
    await until(lambda: two.pauses.inbox(CLAIMS), "the inbox is paused")
    await two.rest()
    two.gateway.calls.clear()
    for _ in range(60):
        two.pass_time(60.0)
        await two.rest()
    assert {call.delivery for call in two.gateway.calls} == {CANARY}
    assert 10 < len(two.gateway.asked(step)) <= 60
    two.trouble(lambda call: None)
    await two.pass_time_until(lambda: two.lies_in("sent"), "it is sent", at_most_s=180)


async def test_a_refused_queue_does_not_prove_the_storage(two: Bench) -> None:
    """The storage is down and the canary goes as a guest of an inbox that the platform refuses: that is no answer of
    the storage's, and the other inbox does not try its files over and over.
    """
    queue = InboxError(Reason.QUEUE_REFUSED, "no such queue", Step.SESSION)
    two.trouble(lambda call: silence(Step.PUT) if call.step is Step.PUT else None)
    two.drop("a")
    await until(lambda: two.gateway.asked(Step.PUT), "it fails")
    two.drop(*names("b", 5), inbox=BILLS)
    await until(two.pauses.account, "everything is paused")
    await two.rest()

    async def before(call: Call) -> None:
        if call.step is Step.PUT:
            raise silence(Step.PUT)
        if call.delivery == "d0001" or (call.delivery == CANARY and two.gateway.routed == "queue of claims"):
            raise queue

    two.gateway.before = before
    two.gateway.calls.clear()
    for _ in range(120):
        two.pass_time(30.0)
        await two.rest()
    assert len(two.gateway.asked(Step.PUT)) <= 60
    two.trouble(lambda call: None)
    await two.pass_time_until(lambda: len(two.lies_in("sent", BILLS)) == 5, "they are sent", at_most_s=400)


async def test_two_pauses_at_once_end_both(bench: Bench) -> None:
    """The message waits for a delivery to try it, and the session of its only inbox for the canary: neither may wait
    for the other.
    """
    bench.trouble(
        lambda call: AccountError(Reason.FORBIDDEN, "no", Step.MESSAGE) if call.step is Step.MESSAGE else None
    )
    bench.drop("a")
    await until(bench.pauses.account, "everything is paused")
    queue = InboxError(Reason.QUEUE_REFUSED, "no such queue", Step.SESSION)
    bench.trouble(lambda call: queue)
    await bench.pass_time_until(lambda: bench.pauses.inbox(CLAIMS), "the inbox is paused too", at_most_s=60)
    bench.trouble(lambda call: None)
    await bench.pass_time_until(lambda: bench.lies_in("sent"), "it is sent", at_most_s=400)


# --- claiming and going ---------------------------------------------------------------------------------------------


async def test_the_backlog_waits_in_the_inbox(bench: Bench) -> None:
    """At most four files for each worker are claimed, at most one a worker is under way."""
    go_on, most_claimed, most_under_way = asyncio.Event(), 0, 0

    async def before(call: Call) -> None:
        nonlocal most_claimed, most_under_way
        most_claimed = max(most_claimed, len(bench.works()))
        most_under_way = max(most_under_way, len(bench.dispatcher.under_way()))
        await go_on.wait()

    bench.gateway.before = before
    bench.drop(*names("f", 60))
    await until(lambda: len(bench.works()) == 16, "the slots are taken")
    bench.standing_still = True
    await bench.rest()
    assert (len(bench.works()), len(bench.dispatcher.under_way()), len(bench.lies_in("."))) == (16, 4, 44)
    go_on.set()
    await bench.all_sent(60)
    assert (most_claimed, most_under_way) == (16, 4)


async def test_inboxes_take_turns(two: Bench) -> None:
    """A flooded inbox does not keep another one waiting: beside its sixty files the three of the other go among the
    first.
    """
    two.drop(*names("f", 60))
    await until(lambda: two.gateway.messages, "the flood has begun")
    two.drop("x", "y", "z", inbox=BILLS)
    await two.all_sent(60)
    order = [message.file_name for message in two.gateway.messages]
    assert max(order.index(name) for name in "xyz") < 50


async def test_a_file_that_cannot_be_read_is_not_tried_over_and_over_as_a_probe(bench: Bench) -> None:
    """It waits its own time though it could go at once for the pause's sake; another file probes instead."""
    bench.trouble(
        lambda call: AccountError(Reason.FORBIDDEN, "no", Step.MESSAGE) if call.step is Step.MESSAGE else None
    )
    bench.drop("a")
    await until(bench.pauses.account, "everything is paused")
    await bench.rest()
    opened = Counter[str]()
    whole = Filing.open_claimed

    def unreadable(self: Filing, delivery: DeliveryId, name: str) -> int:
        opened[name] += 1
        raise OSError(5, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Filing, "open_claimed", unreadable)
        await bench.pass_time_until(lambda: opened, "it is the probe", at_most_s=30)
        for _ in range(10):
            await bench.rest()
        assert opened["a"] == 1
    assert whole is Filing.open_claimed
    bench.trouble(lambda call: None)
    bench.drop("b")
    await bench.pass_time_until(lambda: len(bench.lies_in("sent")) == 2, "both are sent", at_most_s=180)


async def test_a_pause_that_nobody_can_probe_wakes_nobody(bench: Bench) -> None:
    """Its time has come and there is no file: until there is one the dispatcher has nothing to look at."""
    bench.trouble(
        lambda call: AccountError(Reason.FORBIDDEN, "no", Step.MESSAGE) if call.step is Step.MESSAGE else None
    )
    bench.drop("a")
    await until(bench.pauses.account, "everything is paused")
    await bench.rest()
    [claim] = (bench.folders[CLAIMS] / ".attachd/claimed").glob("*/a")
    claim.unlink()
    await bench.pass_time_until(lambda: not bench.works(), "it is found gone", at_most_s=60)
    bench.pass_time(1000.0)
    await bench.rest()
    assert bench.pauses.account()
    assert bench.dispatcher._next_probe_s() == math.inf
    bench.trouble(lambda call: None)
    bench.drop("b")
    await bench.all_sent(1)


async def test_after_stop_nothing_new_begins(bench: Bench) -> None:
    """What is under way ends, what waits stays claimed, what lies in the inbox stays there; no canary goes either."""
    go_on = asyncio.Event()

    async def before(call: Call) -> None:
        await go_on.wait()

    bench.gateway.before = before
    bench.drop(*names("f", 30))
    await until(lambda: len(bench.dispatcher.under_way()) == 4, "all workers are busy")
    await until(lambda: len(bench.works()) == 16, "the slots are taken")
    bench.dispatcher.stop()
    go_on.set()
    async with asyncio.timeout(20):
        await bench.dispatcher.drained()
    bench.gateway.calls.clear()
    bench.pass_time(3600.0)
    await bench.rest()
    assert bench.gateway.calls == []
    assert (len(bench.lies_in("sent")), len(bench.works()), len(bench.lies_in("."))) == (4, 12, 14)
    bench.pauses.failed(CANARY, CLAIMS, AccountError(Reason.FORBIDDEN, "no", Step.TOKEN), strike=False, alone=False)
    bench.pass_time(3600.0)
    await bench.rest()
    assert bench.gateway.calls == []


async def test_a_restart_goes_on_where_it_was(gateway: ScriptedGateway, tmp_path: Path) -> None:
    """Cancelled with an answer outstanding and three files in other steps: each is sent once, the one in doubt as often
    as it must.
    """

    async def before(call: Call) -> None:
        if call.step is {"a": Step.UPLOAD, "b": Step.PUT, "c": Step.MESSAGE}.get(call.file_name):
            await asyncio.Event().wait()

    async def after(call: Call) -> None:
        if call.step is Step.MESSAGE and call.file_name == "d":
            await asyncio.Event().wait()

    async with at_work(gateway, tmp_path, CLAIMS) as bench:
        gateway.before, gateway.after = before, after
        bench.drop("a", "b", "c", "d")
        await until(lambda: len(gateway.asked(Step.MESSAGE)) == 2 and gateway.asked(Step.PUT), "all are under way")
    async with at_work(fresh(gateway), tmp_path, CLAIMS) as bench:
        await bench.all_sent(4)
    assert Counter(message.file_name for message in gateway.messages) == {"a": 1, "b": 1, "c": 1, "d": 2}


def fresh(gateway: ScriptedGateway) -> ScriptedGateway:
    """The same platform, without trouble."""
    untroubled = ScriptedGateway()
    gateway.before, gateway.after = untroubled.before, untroubled.after
    return gateway


async def test_a_clock_that_was_set_back_makes_no_file_wait(bench: Bench) -> None:
    """A year back, by mistake, while a file waits for its next try: it goes when its time has come all the same."""
    bench.trouble(lambda call: silence(Step.UPLOAD) if call.step is Step.UPLOAD else None)
    bench.drop("a")
    await until(lambda: "a" in bench.works() and bench.works()["a"].delivery.next_try_at, "it waits")
    bench.trouble(lambda call: None)
    bench.wall_ahead = -timedelta(days=365)
    await bench.pass_time_until(lambda: bench.lies_in("sent"), "it is sent", at_most_s=3700, by_s=60)


async def test_a_clock_that_was_set_back_between_two_runs_makes_no_file_wait(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    """The next try is in the journal, and the host starts with a clock of long ago."""
    async with at_work(gateway, tmp_path, CLAIMS) as bench:
        bench.trouble(lambda call: silence(Step.UPLOAD) if call.step is Step.UPLOAD else None)
        bench.drop("a")
        await until(lambda: "a" in bench.works() and bench.works()["a"].delivery.next_try_at, "it waits")
        await bench.rest()
    async with at_work(fresh(gateway), tmp_path, CLAIMS) as bench:
        bench.wall_ahead = -timedelta(days=365)
        bench.pauses.changed.set()
        await bench.pass_time_until(lambda: bench.lies_in("sent"), "it is sent", at_most_s=3700, by_s=60)


# --- what is said ---------------------------------------------------------------------------------------------------


def events(log: list[Any], name: str | None = None) -> list[object]:
    """The events in their order; of one file, and those of nobody, when it is named."""
    return [record["event"] for record in log if name is None or record.get("file") in (name, None)]


async def test_the_way_of_a_file_is_told_in_its_order(bench: Bench, log: list[Any]) -> None:
    """Claimed, put off, sent; each with the names that the design pins."""
    bench.trouble(lambda call: silence(Step.UPLOAD) if call.step is Step.UPLOAD else None)
    bench.drop("a")
    await until(lambda: "file.deferred" in events(log), "it is put off")
    bench.trouble(lambda call: None)
    await bench.pass_time_until(lambda: "file.sent" in events(log), "it is sent", at_most_s=10)
    claimed, deferred, sent = (dict(record) for record in log)
    assert [record["event"] for record in (claimed, deferred, sent)] == ["file.claimed", "file.deferred", "file.sent"]
    assert {(record["inbox"], record["delivery_id"], record["file"]) for record in log} == {("claims", "d0001", "a")}
    assert claimed["size"] == 1
    assert (deferred["step"], deferred["reason"], deferred["attempt"]) == ("upload", "timeout", 1)
    assert (sent["attempts"], sent["moved_to"], sent["possible_duplicate"]) == (2, "sent/a", False)


async def test_a_pause_is_told_before_what_it_puts_off_and_its_end_before_what_it_lets_go(
    bench: Bench, log: list[Any]
) -> None:
    """So that who reads on knows why."""
    bench.trouble(lambda call: AccountError(Reason.FORBIDDEN, "no", Step.SESSION))
    bench.drop("a")
    await until(lambda: "file.deferred" in events(log), "it is put off")
    bench.trouble(lambda call: None)
    await bench.pass_time_until(lambda: "file.sent" in events(log), "it is sent", at_most_s=20)
    assert events(log) == ["file.claimed", "platform.paused", "file.deferred", "platform.resumed", "file.sent"]


async def test_a_lost_answer_is_told_as_a_possible_duplicate(bench: Bench, log: list[Any]) -> None:
    """When it is put off and when it is sent, for then an agent may see it twice."""

    async def after(call: Call) -> None:
        if call.step is Step.MESSAGE and len(bench.gateway.messages) == 1:
            raise UnknownOutcome(Reason.CONNECTION_LOST, "no answer", Step.MESSAGE)

    bench.gateway.after = after
    bench.drop("a")
    await bench.pass_time_until(lambda: bench.lies_in("sent"), "it is sent", at_most_s=10)
    await until(lambda: "file.sent" in events(log), "that is told")
    assert [record.get("possible_duplicate") for record in log] == [None, True, True]
    assert len(bench.gateway.messages) == 2


async def test_a_refused_file_is_told_once_with_its_reason(bench: Bench, log: list[Any]) -> None:
    """An error, for somebody must do something."""
    bench.trouble(lambda call: refusal(Step.UPLOAD) if call.step is Step.UPLOAD else None)
    bench.drop("a")
    await until(lambda: "file.failed" in events(log), "it fails")
    assert events(log) == ["file.claimed", "file.failed"]
    failed = log[1]
    assert (failed["reason"], failed["step"], failed["http_status"], failed["moved_to"], failed["log_level"]) == (
        "refused",
        "upload",
        400,
        "failed/a",
        "error",
    )
    assert set(tree(bench.folders[CLAIMS])) == {"failed/a", "failed/a.reason.txt"}
