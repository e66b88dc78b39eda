"""Pauses and blame over simulated time: outages of any length end, one poison file stops nobody."""

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from attachd.delivery.health import CANARY, Change, Health
from attachd.delivery.lifecycle import Again, Rules, after_error
from attachd.errors import AccountError, DeliveryError, FileError, InboxError, TransientError
from attachd.model import CARRIES_THE_FILE, Delivery, DeliveryId, InboxName, Reason, Step, Version

INBOX, OTHER = InboxName("claims"), InboxName("bills")
A, B, C, D, E = (DeliveryId(letter) for letter in "abcde")
WAY = (Step.SESSION, Step.UPLOAD, Step.PUT, Step.MESSAGE)


def silence(step: Step = Step.PUT, retry_after_s: float | None = None) -> TransientError:
    return TransientError(Reason.TIMEOUT, "silence", step, retry_after_s=retry_after_s)


def fail(
    health: Health,
    delivery: DeliveryId,
    error: DeliveryError | None = None,
    *,
    step: Step = Step.PUT,
    now: float = 0.0,
    strike: bool = False,
    alone: bool = False,
    jitter: float = 0.5,
) -> list[Change]:
    error = error or silence(step)
    return health.failed(delivery, INBOX, error, strike=strike, alone=alone, now=now, jitter=jitter)


def probe(
    health: Health, prober: DeliveryId, now: float, error: DeliveryError | None = None, step: Step = Step.PUT
) -> list[Change]:
    """A probe goes and fails."""
    assert health.wait_s(prober, INBOX, now) == 0
    health.starts(prober, INBOX)
    changes = fail(health, prober, error, step=step, now=now)
    health.ends(prober)
    return changes


# --- the breaker ----------------------------------------------------------------------------------------------------


def test_three_files_in_a_row_open_the_breaker() -> None:
    """Not two so soon, and not three failures of one file among others."""
    health = Health()
    for delivery in (A, B, A, B, A):
        assert fail(health, delivery) == []
    [change] = fail(health, C)
    assert change.pause.failure.reason is Reason.PLATFORM_FAILING
    assert "6 tries in a row failed" in change.pause.failure.detail
    assert health.paused(OTHER)


def test_a_success_in_between_keeps_the_breaker_shut() -> None:
    """At the same step; what passes elsewhere proves nothing for it."""
    for step, opens in ((Step.PUT, False), (Step.UPLOAD, True)):
        health = Health()
        fail(health, A)
        fail(health, B)
        health.passed(C, INBOX, step, 1.0)
        assert bool(fail(health, D)) == opens


def test_one_poison_file_opens_nothing_while_it_is_not_alone() -> None:
    """However often it fails."""
    health = Health()
    for _ in range(100):
        assert fail(health, A) == []
    assert health.wait_s(B, INBOX, 0.0) == 0


@pytest.mark.parametrize("step", [Step.TOKEN, Step.SESSION, Step.UPLOAD, Step.PUT])
def test_what_no_agent_sees_is_tried_by_the_canary_alone(step: Step) -> None:
    """No delivery is risked, however long the pause lasts; when the canary has passed the step all may go."""
    health = Health()
    for delivery in (A, B, C):
        fail(health, delivery, step=step)
    wait_s = health.wait_s(CANARY, INBOX, 0.0)
    assert 0 < wait_s < 10
    assert {health.wait_s(delivery, INBOX, 1e9) for delivery in (A, B, C, D)} == {math.inf}
    health.starts(CANARY, INBOX)
    assert health.wait_s(CANARY, INBOX, 1e9) == math.inf
    [change] = health.passed(CANARY, INBOX, step, wait_s)
    assert change.ended
    assert [health.wait_s(delivery, INBOX, wait_s) for delivery in (A, B, C, D)] == [0, 0, 0, 0]


@pytest.mark.parametrize("step", [Step.MESSAGE, Step.FILING])
def test_what_an_agent_sees_or_a_folder_does_is_never_tried_by_the_canary(step: Step) -> None:
    """A delivery tries it: nothing but a file for an agent may ever reach an agent."""
    for error in (AccountError(Reason.DISK_FULL, "full", step), InboxError(Reason.TOO_MANY_FAILURES, "no", step)):
        health = Health()
        fail(health, A, error)
        assert health.wait_s(CANARY, INBOX, 1e9) == math.inf
        assert health.wait_s(B, INBOX, 1e9) == 0


def test_when_one_file_alone_fails_the_canary_goes_at_once() -> None:
    """It may be the file: nobody else is to wait for it. A canary that fails as well waits as it always does."""
    health = Health()
    for _ in range(3):
        fail(health, A, alone=True)
    probe(health, CANARY, 0.0)
    assert health.wait_s(CANARY, INBOX, 0.0) > 0


def test_a_file_alone_brings_a_pause_that_another_file_may_probe_at_once() -> None:
    """Where no canary can tell, nobody knows whose fault it is until a second file comes along."""
    health = Health()
    for _ in range(3):
        fail(health, A, step=Step.MESSAGE, alone=True)
    assert health.wait_s(A, INBOX, 0.0) > 0
    assert health.wait_s(B, INBOX, 0.0) == 0
    health.starts(B, INBOX)
    assert health.wait_s(C, INBOX, 0.0) == math.inf
    [ended] = health.passed(B, INBOX, Step.MESSAGE, 1.0)
    assert ended.ended
    assert health.wait_s(A, INBOX, 1.0) == 0


def test_when_the_second_file_fails_too_it_is_not_the_first_ones_fault() -> None:
    """From then on everybody waits for the next probe."""
    health = Health()
    for _ in range(3):
        fail(health, A, step=Step.MESSAGE, alone=True)
    probe(health, B, 1.0, step=Step.MESSAGE)
    assert min(health.wait_s(delivery, INBOX, 1.0) for delivery in (A, B, C)) > 0


def test_a_failed_probe_lets_the_others_go_first() -> None:
    """The poison file that happens to be the oldest must not be every probe."""
    health = Health()
    for delivery in (A, B, C):
        fail(health, delivery, step=Step.MESSAGE)
    now, order = 0.0, []
    for _ in range(6):
        waits = {delivery: health.wait_s(delivery, INBOX, now) for delivery in (A, B, C)}
        now += min(waits.values())
        first = min((delivery for delivery in waits if health.wait_s(delivery, INBOX, now) == 0), key=str)
        order.append(first)
        probe(health, first, now, step=Step.MESSAGE)
    assert order == [A, B, C, A, B, C]


@pytest.mark.parametrize(("step", "first", "second"), [(Step.SESSION, CANARY, CANARY), (Step.MESSAGE, B, C)])
def test_only_one_probe_is_out(step: Step, first: DeliveryId, second: DeliveryId) -> None:
    """Until its attempt is over, whatever becomes of it."""
    health = Health()
    fail(health, A, AccountError(Reason.FORBIDDEN, "no", step))
    health.starts(first, INBOX)
    assert health.wait_s(second, INBOX, 1e9) == math.inf
    health.ends(first)
    assert health.wait_s(second, INBOX, 1e9) == 0


def test_the_canary_of_an_inbox_leaves_the_accounts_probe_alone() -> None:
    """A delivery tries the message for all; the canary, which goes for its inbox, does not let a second one out."""
    health = Health()
    fail(health, A, AccountError(Reason.FORBIDDEN, "no", Step.MESSAGE))
    health.starts(A, INBOX)
    fail(health, B, InboxError(Reason.QUEUE_REFUSED, "no such queue", Step.SESSION))
    health.starts(CANARY, INBOX)
    health.ends(CANARY)
    assert health.wait_s(C, OTHER, 1e9) == math.inf
    health.ends(A)
    assert health.wait_s(C, OTHER, 1e9) == 0


def test_a_later_step_speaks_for_those_before_it() -> None:
    """And not the other way round: a session says nothing of uploads."""
    for troubled, passed, ends in [
        (Step.TOKEN, Step.SESSION, True),
        (Step.SESSION, Step.MESSAGE, True),
        (Step.PUT, Step.UPLOAD, False),
        (Step.MESSAGE, Step.FILING, False),
        (Step.FILING, Step.MESSAGE, False),
        (Step.FILING, Step.FILING, True),
    ]:
        health = Health()
        fail(health, A, AccountError(Reason.FORBIDDEN, "no", troubled))
        health.starts(B, INBOX)
        assert bool(health.passed(B, INBOX, passed, 1.0)) == ends


def test_an_inboxs_trouble_is_its_own() -> None:
    """Other inboxes go on."""
    health = Health()
    [change] = fail(health, A, InboxError(Reason.QUEUE_REFUSED, "no such queue", Step.SESSION))
    assert change.inbox == INBOX
    assert health.paused(INBOX)
    assert not health.paused(OTHER)
    assert health.wait_s(B, OTHER, 0.0) == 0


@pytest.mark.parametrize(
    "error", [FileError(Reason.REFUSED, "no", Step.UPLOAD), TransientError(Reason.CHANGED, "?", Step.CHECK)]
)
def test_a_files_own_trouble_pauses_nothing(error: DeliveryError) -> None:
    """However many have it."""
    health = Health()
    for number in range(20):
        assert fail(health, DeliveryId(str(number)), error) == []


# --- blame ----------------------------------------------------------------------------------------------------------


def test_only_another_files_recent_success_proves_a_step() -> None:
    """Not the file's own, not one of long ago, not one of another step."""
    health = Health()
    health.passed(A, INBOX, Step.PUT, 0.0)
    assert health.proven(B, Step.PUT, 120.0)
    assert not health.proven(A, Step.PUT, 1.0)
    assert not health.proven(B, Step.PUT, 120.1)
    assert not health.proven(B, Step.MESSAGE, 1.0)
    health.passed(B, INBOX, Step.PUT, 50.0)
    for number in range(10):
        health.passed(C, INBOX, Step.PUT, 60.0 + number)
    assert health.proven(C, Step.PUT, 70.0)
    assert health.proven(A, Step.PUT, 189.0)


def refunds(changes: list[Change]) -> Counter[DeliveryId]:
    return Counter(refund for change in changes for refund in change.refunds)


def test_what_a_failing_streak_counted_is_taken_back_when_the_canary_fails_too() -> None:
    """Each strike of the streak, once; one that was counted before somebody passed stays."""
    health = Health()
    fail(health, A, strike=True)
    health.passed(B, INBOX, Step.PUT, 0.0)
    for delivery, strike in [(A, True), (B, False), (C, True), (D, False), (E, False)]:
        assert not refunds(fail(health, delivery, strike=strike))
    now = health.wait_s(CANARY, INBOX, 0.0)
    assert refunds(probe(health, CANARY, now)) == {A: 1, C: 1}
    now += health.wait_s(CANARY, INBOX, now)
    assert not refunds(probe(health, CANARY, now))


def test_the_canary_that_fails_elsewhere_speaks_for_the_files_as_well() -> None:
    """The platform got worse since: their failures were the beginning of it."""
    health = Health()
    for delivery in (A, B, C):
        fail(health, delivery, strike=True)
    error = AccountError(Reason.UNREACHABLE, "nobody there", Step.TOKEN)
    assert refunds(probe(health, CANARY, health.wait_s(CANARY, INBOX, 0.0), error)) == {A: 1, B: 1, C: 1}


def test_a_canary_that_passes_leaves_the_blame_where_it_is() -> None:
    """Else files that are the fault themselves would stop the account over and over, and never be given up."""
    health = Health()
    for delivery in (A, B, C):
        fail(health, delivery, strike=True)
    now = health.wait_s(CANARY, INBOX, 0.0)
    health.starts(CANARY, INBOX)
    [change] = health.passed(CANARY, INBOX, Step.PUT, now)
    health.ends(CANARY)
    assert not change.refunds
    for delivery in (A, B, C):
        assert health.proven(delivery, Step.PUT, now)
        assert not refunds(fail(health, delivery, strike=True, now=now))


def test_where_no_canary_can_tell_several_files_acquit_each_other() -> None:
    """At the message: what their streak counted is taken back when it pauses everything."""
    health = Health()
    fail(health, A, step=Step.MESSAGE, strike=True)
    fail(health, B, step=Step.MESSAGE, strike=True)
    assert refunds(fail(health, C, step=Step.MESSAGE)) == {A: 1, B: 1}
    assert not refunds(fail(health, D, step=Step.MESSAGE))


@pytest.mark.parametrize("other_passes", [True, False])
def test_the_next_file_decides_whether_one_alone_was_to_blame(other_passes: bool) -> None:
    """At the message: the file's own tries tell nothing; another one's success leaves its strike, a failure takes it
    back.
    """
    health = Health()
    for number in range(3):
        assert not refunds(fail(health, A, step=Step.MESSAGE, strike=number == 0, alone=True))
    now = health.wait_s(A, INBOX, 0.0)
    assert not refunds(probe(health, A, now, step=Step.MESSAGE))
    if other_passes:
        health.starts(B, INBOX)
        assert not refunds(health.passed(B, INBOX, Step.MESSAGE, now))
        assert not refunds(fail(health, A, step=Step.MESSAGE, strike=True, now=now))
    else:
        assert refunds(probe(health, B, now, step=Step.MESSAGE)) == {A: 1}


def test_one_success_speaks_for_the_platform_once() -> None:
    """Two files fail over and over after a third one's success: an outage must not cost them all their strikes."""
    health = Health()
    health.passed(C, INBOX, Step.PUT, 0.0)
    for now in (1.0, 2.0, 3.0):
        for delivery in (A, B):
            assert health.proven(delivery, Step.PUT, now) == (now == 1.0)
            fail(health, delivery, now=now, strike=now == 1.0)
    health = Health()
    for now in (1.0, 2.0, 3.0):
        health.passed(C, INBOX, Step.PUT, now)
        assert health.proven(A, Step.PUT, now)
        fail(health, A, now=now, strike=True)


def test_two_files_that_only_fail_open_the_breaker_too() -> None:
    """Later than three: nobody else is there to open it, and trying on by themselves they would wait for minutes."""
    health = Health()
    changes = [fail(health, delivery) for delivery in (A, B, A, B, A, B)]
    assert changes[:5] == [[]] * 5
    assert changes[5]


def test_nobody_is_to_blame_while_everything_is_paused() -> None:
    """A probe that fails soon after the last success does not get the last strike."""
    health = Health()
    health.passed(D, INBOX, Step.PUT, 0.0)
    for delivery in (A, B, C):
        fail(health, delivery, now=1.0)
    assert not health.proven(E, Step.PUT, 2.0)


# --- being told to be silent ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "prober"), [(Step.SESSION, CANARY), (Step.PUT, CANARY), (Step.MESSAGE, B)])
def test_everybody_keeps_the_silence_that_was_asked_for(step: Step, prober: DeliveryId) -> None:
    """To the second, in every inbox, the canary as well; then one goes."""
    health = Health()
    fail(health, A, silence(step, retry_after_s=90.0))
    for now in (0.0, 45.0, 89.9):
        assert all(health.wait_s(prober, inbox, now) > 0 for prober in (A, B, CANARY) for inbox in (INBOX, OTHER))
    assert health.wait_s(prober, OTHER, 90.0) == 0


def test_a_silence_in_whole_seconds_counts_too() -> None:
    """The header's figure may come as an integer."""
    health = Health()
    fail(health, A, silence(retry_after_s=90))
    assert health.wait_s(CANARY, INBOX, 89.0) > 0


def test_success_under_way_does_not_end_a_silence() -> None:
    """A request from before says nothing of what may be asked now; after the time it does."""
    health = Health()
    fail(health, A, silence(retry_after_s=90.0))
    assert health.passed(B, INBOX, Step.MESSAGE, 10.0) == []
    assert health.wait_s(CANARY, INBOX, 10.0) > 0
    [change] = health.passed(B, INBOX, Step.MESSAGE, 91.0)
    assert change.ended


@pytest.mark.parametrize("ending", ["passes", "fails", "is told the same"])
@pytest.mark.parametrize(("step", "prober"), [(Step.PUT, CANARY), (Step.MESSAGE, D)])
def test_a_probe_that_was_out_before_does_not_end_a_silence(ending: str, step: Step, prober: DeliveryId) -> None:
    """While a probe is out somebody else who was still under way is told to be silent: that holds."""
    health = Health()
    for delivery in (A, B, C):
        fail(health, delivery, step=step)
    now = health.wait_s(prober, INBOX, 0.0)
    health.starts(prober, INBOX)
    fail(health, E, silence(step, retry_after_s=600.0), now=now + 1)
    if ending == "passes":
        health.passed(prober, INBOX, step, now + 2)
    else:
        fail(health, prober, silence(step, 5.0 if ending == "is told the same" else None), now=now + 2)
    health.ends(prober)
    assert min(health.wait_s(anybody, INBOX, now + 600) for anybody in (A, CANARY)) > 0
    assert min(health.wait_s(anybody, INBOX, now + 602) for anybody in (A, CANARY)) == 0


def test_a_suspects_pause_becomes_everybodys_when_silence_is_asked_for() -> None:
    """Then nobody else may probe at once any more."""
    health = Health()
    for _ in range(3):
        fail(health, A, step=Step.MESSAGE, alone=True)
    fail(health, B, silence(Step.MESSAGE, retry_after_s=60.0))
    assert health.wait_s(C, INBOX, 30.0) > 0


def test_a_shorter_silence_does_not_shorten_a_longer_one() -> None:
    """The longest of what was said holds."""
    health = Health()
    fail(health, A, silence(retry_after_s=90.0))
    fail(health, B, silence(retry_after_s=10.0))
    assert health.wait_s(CANARY, INBOX, 50.0) > 0


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_lost_folder_waits_for_the_folder_and_not_for_time() -> None:
    """Said once; a delivery that was under way does not set a time for it."""
    health = Health()
    gone = InboxError(Reason.FOLDER_MISSING, "gone", Step.FILING)
    assert health.folder_lost(INBOX, gone, 1.0) is not None
    assert health.folder_lost(INBOX, gone, 2.0) is None
    fail(health, A, gone, now=3.0)
    assert health.wait_s(B, INBOX, 1e9) == math.inf
    assert health.wait_s(B, OTHER, 1e9) == 0
    found = health.folder_found(INBOX)
    assert found is not None
    assert found.ended
    assert health.wait_s(B, INBOX, 4.0) == 0
    assert health.folder_found(INBOX) is None


def test_the_accounts_probe_does_not_set_a_time_for_a_lost_folder() -> None:
    """It may have gone out before the folder was lost."""
    health = Health()
    fail(health, A, AccountError(Reason.FORBIDDEN, "no", Step.SESSION))
    gone = InboxError(Reason.FOLDER_MISSING, "gone", Step.FILING)
    health.folder_lost(INBOX, gone, 1.0)
    health.starts(B, INBOX)
    fail(health, B, gone, now=2.0)
    health.ends(B)
    assert health.wait_s(C, INBOX, 1e9) == math.inf


# --- simulated time -------------------------------------------------------------------------------------------------


@dataclass
class World:
    """A platform that fails at times, always for some files, and a dispatcher that lets the oldest go first and sends
    out the canary.
    """

    down: Callable[[float], bool]
    files: int
    poison: Collection[int] = ()
    broken: Step = Step.PUT
    concurrency: int = 16
    per_s: float = math.inf
    """How many files are dropped a second."""
    seed: int = 1
    now: float = 0.0
    health: Health = field(default_factory=Health)
    sent: dict[int, float] = field(default_factory=dict)
    buried: dict[int, float] = field(default_factory=dict)
    probes: list[float] = field(default_factory=list)
    paused_s: float = 0.0
    refunds: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.claimed = 0
        self.waiting: dict[DeliveryId, Delivery] = {}
        self.running: dict[DeliveryId, Delivery] = {}
        self.ends: list[tuple[float, DeliveryId]] = []

    @staticmethod
    def _id(number: int) -> DeliveryId:
        return DeliveryId(f"{number:06}")

    def _delivery(self, number: int) -> Delivery:
        at = datetime(2025, 1, 1, tzinfo=UTC)
        return Delivery(self._id(number), INBOX, "a.pdf", Version(0, 0, 0, 0, 0), at)

    def _wait_s(self, delivery: Delivery) -> float:
        if self.health.paused(INBOX):
            return self.health.wait_s(delivery.id, INBOX, self.now)
        return (delivery.next_try_at - self._clock()).total_seconds() if delivery.next_try_at else 0.0

    def _clock(self) -> datetime:
        return datetime(2025, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now)

    def run(self, until: float) -> None:
        while self.now < until and (self.waiting or self.running or self.claimed < self.files):
            self._claim()
            self._start_due()
            soonest = self.ends[0][0] if self.ends else math.inf
            if self.claimed < self.files and self._room() > 0:
                soonest = min(soonest, self.claimed / self.per_s)
            if len(self.running) < self.concurrency:
                waits = [self._wait_s(delivery) for delivery in self.waiting.values()]
                soonest = min([soonest, *(self.now + max(wait_s, 0.001) for wait_s in waits)])
            soonest = min(soonest, self.now + self._canary_in_s())
            assert soonest < math.inf, "nothing would ever go again"
            soonest = min(soonest, until)
            self.paused_s += (soonest - self.now) if self.health.paused(INBOX) else 0.0
            self.now = soonest
            while self.ends and self.ends[0][0] <= self.now:
                self._end(heapq.heappop(self.ends)[1])

    def _room(self) -> int:
        return 4 * self.concurrency - len(self.waiting) - len(self.running)

    def _claim(self) -> None:
        while self.claimed < self.files and self._room() > 0 and self.claimed / self.per_s <= self.now:
            self.waiting[self._id(self.claimed)] = self._delivery(self.claimed)
            self.claimed += 1

    def _canary_in_s(self) -> float:
        pause = self.health.pause_of(None)
        return pause.wait_s(CANARY, self.now) if pause else math.inf

    def _start_due(self) -> None:
        if self._canary_in_s() <= 0:
            self._start(CANARY)
        while len(self.running) < self.concurrency:
            due = [found for found in self.waiting.values() if self._wait_s(found) <= 0]
            if not due:
                return
            delivery = min(due, key=lambda found: (found.strikes, found.id))
            del self.waiting[delivery.id]
            self.running[delivery.id] = replace(delivery, tries=delivery.tries + 1, next_try_at=None)
            self._start(delivery.id)

    def _start(self, delivery: DeliveryId) -> None:
        if self.health.paused(INBOX):
            self.probes.append(self.now)
        self.health.starts(delivery, INBOX)
        heapq.heappush(self.ends, (self.now + self.chance.uniform(0.05, 0.3), delivery))

    def _end_canary(self) -> None:
        pause = self.health.pause_of(None)
        assert pause is not None
        way = WAY[:3] if pause.failure.step in CARRIES_THE_FILE else WAY[:1]
        failing = self.down(self.now) and self.broken in way
        for step in way[: way.index(self.broken)] if failing else way:
            self._changes(self.health.passed(CANARY, INBOX, step, self.now))
        if failing:
            jitter = self.chance.random()
            error = silence(self.broken)
            self._changes(
                self.health.failed(CANARY, INBOX, error, strike=False, alone=False, now=self.now, jitter=jitter)
            )
        self.health.ends(CANARY)

    def _end(self, ended: DeliveryId) -> None:
        if ended == CANARY:
            self._end_canary()
            return
        delivery = self.running.pop(ended)
        number, failing = int(delivery.id), self.down(self.now) or int(delivery.id) in self.poison
        for step in WAY[: WAY.index(self.broken)] if failing else WAY:
            self._changes(self.health.passed(delivery.id, INBOX, step, self.now))
        if not failing:
            self.sent[number] = self.now
        else:
            self._failed(delivery, number)
        self.health.ends(delivery.id)

    def _failed(self, delivery: Delivery, number: int) -> None:
        error = silence(self.broken)
        verdict = after_error(
            delivery,
            error,
            proven=self.health.proven(delivery.id, self.broken, self.now),
            now=self._clock(),
            jitter=self.chance.random(),
            rules=Rules(5, "resend"),
        )
        again = isinstance(verdict, Again)
        strike = isinstance(verdict, Again) and verdict.delivery.strikes > delivery.strikes
        alone = len(self.waiting) + len(self.running) == 0
        if isinstance(verdict, Again):
            self.waiting[delivery.id] = verdict.delivery
        jitter = self.chance.random()
        self._changes(
            self.health.failed(delivery.id, INBOX, error, strike=strike, alone=alone, now=self.now, jitter=jitter)
        )
        if not again:
            self.buried[number] = self.now

    def _changes(self, changes: list[Change]) -> None:
        for change in changes:
            if change.ended:
                self.waiting = {key: replace(found, next_try_at=None) for key, found in self.waiting.items()}
            for refund in change.refunds:
                self.refunds += 1
                for works in (self.waiting, self.running):
                    if found := works.get(refund):
                        works[refund] = replace(found, strikes=found.strikes - 1)
                        assert found.strikes > 0


_seeds = st.integers(0, 2**32)


@given(_seeds, st.sampled_from(WAY), st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_an_outage_of_hours_costs_a_handful_of_requests(seed: int, broken: Step, files: int) -> None:
    """At most one a minute, nothing is given up, and the first file goes at most three minutes after it."""
    world = World(lambda now: now < 4 * 3600, files, broken=broken, seed=seed)
    world.run(6 * 3600)
    for hour in range(4):
        assert sum(hour * 3600 <= at < (hour + 1) * 3600 for at in world.probes) <= 60
    assert world.buried == {}
    assert len(world.sent) == files
    assert min(world.sent.values()) <= 4 * 3600 + 180 + 2
    assert max(world.sent.values()) <= 4 * 3600 + 600


@given(_seeds, st.sampled_from(WAY), st.integers(2, 100))
@settings(max_examples=40, deadline=None)
def test_a_short_outage_is_noticed_to_be_over_within_a_minute(seed: int, broken: Step, files: int) -> None:
    """A minute without the platform, while files are under way."""
    world = World(lambda now: 1.0 < now < 61.0, files * 10, broken=broken, seed=seed)
    world.run(3600)
    assert world.buried == {}
    assert len(world.sent) == files * 10
    assert min((at for at in world.sent.values() if at > 61.0), default=0.0) <= 121.0


@given(_seeds, st.sampled_from([Step.UPLOAD, Step.PUT, Step.MESSAGE]), st.integers(100, 400))
@settings(max_examples=15, deadline=None)
def test_one_poison_file_stops_nobody(seed: int, broken: Step, files: int) -> None:
    """All others are sent about as fast as without it."""
    world = World(lambda now: False, files, poison={files // 2}, broken=broken, seed=seed)
    world.run(1200)
    assert len(world.sent) == files - 1
    assert max(world.sent.values()) < 0.3 * files / world.concurrency + 2
    assert not set(world.buried) - {files // 2}


def test_a_poison_file_gets_its_strikes_while_others_pass() -> None:
    """A stream of healthy files beside it: five strikes, no pause, given up within a minute."""
    world = World(lambda now: False, 600, poison={3}, per_s=10)
    world.run(60)
    assert list(world.buried) == [3]
    assert world.paused_s == 0
    assert world.refunds == 0


@given(_seeds, st.sampled_from([Step.UPLOAD, Step.PUT]), st.integers(1, 8))
@settings(max_examples=15, deadline=None)
def test_poison_files_alone_are_given_up_in_the_end(seed: int, broken: Step, files: int) -> None:
    """No healthy file comes to prove the platform: pause, the canary passes, a strike, and so on."""
    world = World(lambda now: False, files, poison=range(files), broken=broken, seed=seed)
    world.run(3600)
    assert set(world.buried) == set(range(files))
    assert len(world.probes) <= 60


@given(_seeds)
@settings(max_examples=15, deadline=None)
def test_a_platform_that_answers_one_time_in_ten_is_not_the_files_fault(seed: int) -> None:
    """The canary passes now and then, and the only file there is does not: it waits, and is sent."""
    chance = random.Random(seed)
    world = World(lambda now: chance.random() < 0.9, 1, seed=seed)
    world.run(24 * 3600)
    assert world.buried == {}
    assert len(world.sent) == 1


@given(_seeds)
@settings(max_examples=10, deadline=None)
def test_healthy_files_behind_one_that_no_message_carries_go_on(seed: int) -> None:
    """It pauses everything when it is alone; who comes later goes at once, and in the end it is given up."""
    world = World(lambda now: False, 40, poison={0}, broken=Step.MESSAGE, per_s=1 / 60, seed=seed)
    world.run(3600)
    assert list(world.buried) == [0]
    assert len(world.sent) == 39
    assert all(world.sent[number] <= number * 60 + 3 for number in world.sent)


@given(_seeds, st.integers(3, 12))
@settings(max_examples=15, deadline=None)
def test_a_breaker_opened_by_poison_files_lets_the_healthy_through(seed: int, poison: int) -> None:
    """Several poison files are the oldest and open the breaker: the healthy ones behind them get their turn."""
    world = World(lambda now: False, poison + 10, poison=range(poison), concurrency=4, seed=seed)
    world.run(2 * 3600)
    assert set(range(poison, poison + 10)) <= set(world.sent)
    assert not set(world.buried) - set(range(poison))


@given(_seeds, st.lists(st.tuples(st.floats(1, 2000), st.floats(1, 2000)), max_size=6))
@settings(max_examples=30, deadline=None)
def test_whatever_the_outages_all_is_sent_in_the_end(seed: int, spans: list[tuple[float, float]]) -> None:
    """Up and down at random: nothing is given up, no pause outlives the last outage for long."""
    edges, at = [], 0.0
    for up, down in spans:
        edges.append((at + up, at + up + down))
        at += up + down
    files = int(at) // 30 + 5
    world = World(lambda now: any(begin <= now < end for begin, end in edges), files, seed=seed, per_s=1 / 30)
    world.run(at + 3600)
    assert world.buried == {}
    assert len(world.sent) == files


class Anything(RuleBasedStateMachine):
    """Whatever is reported in whatever order: silence is kept, at most one probe is out, and a pause can end."""

    def __init__(self) -> None:
        super().__init__()
        self.health = Health()
        self.now = 0.0
        self.silent_until = 0.0
        self.out: set[DeliveryId] = set()
        self.counted: Counter[DeliveryId] = Counter()
        self.refunded: Counter[DeliveryId] = Counter()

    files = st.sampled_from([A, B, C, D, E])
    probers = st.sampled_from([A, B, C, D, E, CANARY])

    @rule(delivery=probers)
    def start(self, delivery: DeliveryId) -> None:
        needless = delivery == CANARY and not self.health.paused(INBOX)
        if delivery not in self.out and not needless and self.health.wait_s(delivery, INBOX, self.now) <= 0:
            assert self.now >= self.silent_until
            self.health.starts(delivery, INBOX)
            self.out.add(delivery)

    @rule(delivery=probers, step=st.sampled_from(WAY))
    def passes(self, delivery: DeliveryId, step: Step) -> None:
        if delivery in self.out:
            self.health.passed(delivery, INBOX, step, self.now)

    @rule(
        delivery=probers,
        step=st.sampled_from(WAY),
        strike=st.booleans(),
        alone=st.booleans(),
        retry_after_s=st.sampled_from([None, None, None, 30.0, 300.0]),
        jitter=st.floats(0, 1),
        family=st.sampled_from([TransientError, TransientError, TransientError, AccountError]),
    )
    def fails(
        self,
        delivery: DeliveryId,
        step: Step,
        strike: bool,
        alone: bool,
        retry_after_s: float | None,
        jitter: float,
        family: type[TransientError | AccountError],
    ) -> None:
        if delivery not in self.out:
            return
        transient = family is TransientError
        error = silence(step, retry_after_s) if transient else AccountError(Reason.FORBIDDEN, "no", step)
        if transient and retry_after_s:
            self.silent_until = max(self.silent_until, self.now + retry_after_s)
        strike = strike and transient and step in CARRIES_THE_FILE and delivery != CANARY
        self.counted[delivery] += strike
        for change in fail(self.health, delivery, error, now=self.now, strike=strike, alone=alone, jitter=jitter):
            self.refunded.update(change.refunds)
        self._end(delivery)

    @rule(delivery=probers)
    def ends(self, delivery: DeliveryId) -> None:
        if delivery in self.out:
            self._end(delivery)

    def _end(self, delivery: DeliveryId) -> None:
        self.health.ends(delivery)
        self.out.remove(delivery)

    @rule(seconds=st.floats(0.1, 400))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def silence_is_kept(self) -> None:
        if self.now < self.silent_until:
            assert all(self.health.wait_s(delivery, INBOX, self.now) > 0 for delivery in (A, B, C, D, E, CANARY))

    @invariant()
    def no_strike_is_taken_back_twice(self) -> None:
        assert self.refunded <= self.counted

    @invariant()
    def a_probe_is_one_that_is_out(self) -> None:
        pause = self.health.pause_of(None)
        assert pause is None or pause.probe is None or pause.probe in self.out

    def teardown(self) -> None:
        for delivery in list(self.out):
            self._end(delivery)
        self.now = max(self.now, self.silent_until) + 200
        wait_s, first = min((self.health.wait_s(delivery, INBOX, self.now), delivery) for delivery in (A, B, CANARY))
        assert wait_s <= 0
        self.health.starts(first, INBOX)
        for step in WAY[:3] if first == CANARY else WAY:
            self.health.passed(first, INBOX, step, self.now)
        assert not self.health.paused(INBOX)


Anything.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnything = Anything.TestCase
