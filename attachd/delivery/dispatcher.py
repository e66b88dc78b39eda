"""Who goes next, and what becomes of a delivery after an attempt.

Between the inboxes, which offer what has settled, and the pipeline, which attempts one delivery. Owns the files that
are claimed and not yet filed (at most 4 x concurrency of them), a bounded number of attempts, and nothing else: all
that a restart must know is in the folders and the journal.
"""

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime
from functools import partial

import structlog

from attachd.delivery.health import CANARY
from attachd.delivery.lifecycle import Again, Bury, Rules, after_error
from attachd.delivery.outcomes import Outcomes
from attachd.delivery.pauses import Pauses
from attachd.delivery.pipeline import InboxPlan, Pipeline, Work
from attachd.delivery.recovery import recover
from attachd.delivery.slots import Slots
from attachd.errors import AccountError, DeliveryError, FileError, InboxError
from attachd.metrics import Metrics
from attachd.model import (
    PLATFORM_STEPS,
    ClaimResult,
    Delivery,
    DeliveryId,
    Failed,
    Failure,
    InboxName,
    Journey,
    Posting,
    Reason,
    Sent,
    Sighting,
    Step,
)
from attachd.ports import Journal, Pick

log = structlog.get_logger("attachd.delivery")

CLAIMED_PER_WORKER = 4
LATEST = 200
"""So many deliveries that ended are remembered with their way through the steps, for people who watch. Ours."""
_SUSPECT_STRIKES = 2  # ours: after so many, a file shares one worker with all others like it
_LONGEST_NAP_S = 3600.0
_ANY = 1 << 30
_NO_INBOX = InboxName("")


class Dispatcher:
    """Claims, leases out, and decides. `run` is its one task; `stop` and `drained` end it gently."""

    def __init__(
        self,
        journal: Journal,
        pipeline: Pipeline,
        pauses: Pauses,
        inboxes: Mapping[InboxName, InboxPlan],
        rules: Rules,
        *,
        concurrency: int,
        now: Callable[[], datetime],
        clock: Callable[[], float],
        chance: random.Random,
        metrics: Metrics,
        new_id: Callable[[], DeliveryId],
    ) -> None:
        self._journal = journal
        self._pipeline = pipeline
        self._pauses = pauses
        self._inboxes = inboxes
        self._rules = rules
        self._concurrency = concurrency
        self._now = now
        self._clock = clock
        self._chance = chance
        self._metrics = metrics
        self._new_id = new_id
        self._waiting: dict[DeliveryId, Work] = {}
        self._attempts: dict[DeliveryId, tuple[Work, asyncio.Task[None]]] = {}
        self._busy: Counter[InboxName] = Counter()
        self._slots = Slots(CLAIMED_PER_WORKER * concurrency, concurrency, self._allowance)
        self._slots.serve(list(inboxes))
        self._outcomes = Outcomes()
        self._latest: deque[Journey] = deque(maxlen=LATEST)
        self._stopping = False
        self._pauses_ended = 0
        self._ended = asyncio.Event()
        self._turned = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def adopt(self, inboxes: Mapping[InboxName, InboxPlan]) -> None:
        """Work with these inboxes from now on; what is claimed of one that is gone is still delivered."""
        kept = {work.delivery.inbox for work in (*self._waiting.values(), *self.under_way())}
        self._inboxes = {name: plan for name, plan in self._inboxes.items() if name in kept} | dict(inboxes)
        self._slots.serve(list(inboxes))
        self._pauses.changed.set()

    def go_by(self, rules: Rules, concurrency: int) -> None:
        """Go by these rules and this number of attempts at a time from now on."""
        self._rules = rules
        self._pipeline.go_by(rules)
        self._concurrency = concurrency
        self._slots.resize(CLAIMED_PER_WORKER * concurrency, concurrency)
        self._pauses.changed.set()

    async def cleared(self, inbox: InboxName) -> None:
        """Return when nothing of this inbox is claimed any more."""
        while any(work.delivery.inbox == inbox for work in (*self._waiting.values(), *self.under_way())):
            self._ended.clear()
            await self._ended.wait()

    # --- taking files in -----------------------------------------------------------------------------------------

    async def recover(self, inbox: InboxName) -> int:
        """Go on with what an earlier process had claimed; returns how many files that are. Raises InboxError."""
        known = self._waiting.keys() | self._attempts.keys()
        going_on = 0
        async for work in recover(self._inboxes[inbox], self._journal, self._pipeline, known=known, now=self._now()):
            if work.delivery.finished:
                self._tell_finished(self._journey(work))
            else:
                going_on += 1
                self._slots.hold(inbox, 1)
                self._take_in([work])
        return going_on

    async def found(self, inbox: InboxName) -> None:
        """The inbox's folder, which was lost, may be back: go on with it. Raises InboxError when it is not."""
        filing = self._inboxes[inbox].filing
        if await asyncio.to_thread(filing.is_current):
            await asyncio.to_thread(filing.check)
        else:
            # Attempts hold descriptors of the old folder; the inbox is paused, so no new ones begin.
            if holding := [task for work, task in self._attempts.values() if work.delivery.inbox == inbox]:
                await asyncio.wait(holding)
            await asyncio.to_thread(filing.close)
            await asyncio.to_thread(filing.open)
        await self.recover(inbox)
        self._pauses.folder_found(inbox)

    async def offer(self, inbox: InboxName, pick: Pick) -> Sequence[tuple[Sighting, ClaimResult]]:
        """Claim what `pick` names when it is this inbox's turn and slots are free. Raises InboxError."""
        granted = await self._slots.take(inbox, self._concurrency)
        claimed: list[Work] = []
        try:
            wanted = [(self._new_id(), sighting) for sighting in pick(granted)]
            claims = await asyncio.to_thread(self._inboxes[inbox].filing.claim, wanted) if wanted else []
            at = self._now()
            for (delivery_id, sighting), claim in zip(wanted, claims, strict=True):
                if claim.version is not None:
                    delivery = Delivery(delivery_id, inbox, sighting.name, claim.version, at)
                    claimed.append(Work(delivery, self._inboxes[inbox].filing.identity()))
                    log.info(
                        "file.claimed",
                        inbox=inbox,
                        delivery_id=delivery_id,
                        file=sighting.name,
                        size=claim.version.size,
                    )
            if claimed:
                await self._remember(*claimed)
                self._take_in(claimed)
        finally:
            self._slots.give_back(inbox, granted - len(claimed))
        return [(sighting, claim.result) for (_, sighting), claim in zip(wanted, claims, strict=True)]

    def _take_in(self, works: Sequence[Work]) -> None:
        self._waiting.update((work.delivery.id, work) for work in works)
        self._pauses.changed.set()

    def _allowance(self, inbox: InboxName) -> int:
        """How many files an inbox may claim: none while it could not send them, but for one that can be the probe."""
        if self._stopping:
            return 0
        if not self._pauses.paused(inbox):
            return _ANY
        can_probe = self._pauses.wait_s(DeliveryId(""), inbox) <= 0
        return 1 if can_probe and not any(work.delivery.inbox == inbox for work in self._waiting.values()) else 0

    # --- letting them go -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Let deliveries go as they are due, until cancelled; then the attempts under way are cancelled too."""
        async with asyncio.TaskGroup() as attempts:
            while True:
                self._pauses.changed.clear()
                self._turned.set()
                if self._pauses.ended > self._pauses_ended:
                    self._pauses_ended = self._pauses.ended
                    self._hurry()
                self._slots.wake()
                wait_s = min(self._start_canaries(attempts), self._start_due(attempts))
                try:
                    async with asyncio.timeout(min(wait_s, _LONGEST_NAP_S)):
                        await self._pauses.changed.wait()
                except TimeoutError:
                    continue

    async def turned(self) -> None:
        """Return once `run` has gone round: a sign of life of the loop that does the work."""
        self._turned.clear()
        self._pauses.changed.set()
        await self._turned.wait()

    def stop(self) -> None:
        """Claim and begin nothing more."""
        self._stopping = True

    async def drained(self) -> None:
        """Return when no attempt is under way."""
        await self._idle.wait()

    def under_way(self) -> Sequence[Work]:
        """What is being attempted."""
        return [work for work, _ in self._attempts.values()]

    def waiting(self) -> Sequence[Work]:
        """What is claimed and waits for its turn or its next try."""
        return list(self._waiting.values())

    def latest(self) -> Sequence[Journey]:
        """What ended lately, the latest first."""
        return list(reversed(self._latest))

    def _start_canaries(self, attempts: asyncio.TaskGroup) -> float:
        """Try what is paused and due, without any file; returns in how many seconds to look again."""
        if self._stopping:
            return math.inf
        silent_s = 0.0
        if account := self._pauses.account():
            if account.by_canary:
                if (wait_s := self._pauses.canary_in_s(None)) > 0:
                    return wait_s
                self._start_canary(self._inbox_for_canary(), account.failure.step, attempts)
                return math.inf
            # A delivery has to try it; the inbox it is from may wait for the canary in turn.
            silent_s = self._pauses.probe_in_s(account) or 0.0
        waits = {inbox: max(silent_s, self._pauses.canary_in_s(inbox)) for inbox in self._inboxes}
        for inbox, wait_s in waits.items():
            if wait_s <= 0:
                pause = self._pauses.inbox(inbox)
                self._start_canary(inbox, pause.failure.step if pause else Step.SESSION, attempts)
        return min((wait_s for wait_s in waits.values() if wait_s > 0), default=math.inf)

    def _inbox_for_canary(self) -> InboxName:
        """One that is not in trouble itself, if there is one, for its guests get no further; rather one with files."""
        inboxes = [*(work.delivery.inbox for work in self._waiting.values()), *self._inboxes]
        return next((inbox for inbox in inboxes if not self._pauses.inbox(inbox)), inboxes[0])

    def _start_canary(self, inbox: InboxName, troubled: Step, attempts: asyncio.TaskGroup) -> None:
        self._pauses.starts(CANARY, inbox)
        attempts.create_task(self._sing(self._inboxes[inbox], troubled), name=f"canary {inbox}")

    async def _sing(self, inbox: InboxPlan, troubled: Step) -> None:
        try:
            await self._pipeline.sing(inbox, troubled)
        except DeliveryError as error:
            if isinstance(error, InboxError | FileError):
                # A refusal in words is an answer: so far the platform works, whatever is wrong with this inbox.
                self._pauses.passed(CANARY, _NO_INBOX, error.step)
            self._refund(self._pauses.failed(CANARY, inbox.name, error, strike=False, alone=False))
        finally:
            self._pauses.ends(CANARY)

    def _start_due(self, attempts: asyncio.TaskGroup) -> float:
        """Begin what may begin; returns in how many seconds to look again."""
        while not self._stopping and len(self._attempts) < self._concurrency:
            slow_lane_taken = any(_is_suspect(work) for work, _ in self._attempts.values())
            paused = {inbox for inbox in self._inboxes if self._pauses.paused(inbox)}
            due, soonest_s = list[Work](), math.inf
            for work in self._waiting.values():
                if (wait_s := self._wait_s(work, paused)) > 0:
                    soonest_s = min(soonest_s, wait_s)
                elif not (slow_lane_taken and _is_suspect(work)):
                    due.append(work)
            if not due:
                return min(soonest_s, self._next_probe_s())
            self._start(min(due, key=partial(self._urgency, paused)), attempts)
        return math.inf

    def _wait_s(self, work: Work, paused: Set[InboxName]) -> float:
        delivery = work.delivery
        if delivery.next_try_at is None and delivery.inbox not in paused:
            return 0.0
        own_s = 0.0
        if delivery.next_try_at is not None:
            own_s = (delivery.next_try_at - self._now()).total_seconds()
            if own_s > _LONGEST_NAP_S:  # nobody waits that long: the wall clock was set back since
                own_s = 0.0
        if delivery.inbox not in paused:
            return own_s
        # What waits for the platform need not wait out its own time as well; what waits for its own file must.
        local = delivery.last_failure is not None and delivery.last_failure.step is Step.CHECK
        return max(self._pauses.wait_s(delivery.id, delivery.inbox), own_s if local else 0.0)

    def _next_probe_s(self) -> float:
        """When an inbox without claimed files may claim one to be the probe."""
        pauses = [self._pauses.account(), *(self._pauses.inbox(inbox) for inbox in self._inboxes)]
        waits = [
            self._pauses.probe_in_s(pause) for pause in pauses if pause and not pause.probe and not pause.by_canary
        ]
        # What is due by now is granted as soon as somebody asks.
        return min((wait_s for wait_s in waits if wait_s), default=math.inf)

    def _urgency(self, paused: Set[InboxName], work: Work) -> tuple[bool, int, DeliveryId]:
        """Fairly among the inboxes, and in each in the order they came.

        As a probe rather one that nobody can have seen yet than a message in doubt, which may be posted only so often.
        """
        delivery = work.delivery
        doubtful = delivery.inbox in paused and isinstance(delivery.state, Posting)
        return doubtful, self._busy[delivery.inbox], delivery.id

    def _hurry(self) -> None:
        """A pause is over: what waited because of it need not wait out its own time as well."""
        for work in self._waiting.values():
            work.delivery = replace(work.delivery, next_try_at=None)

    def _start(self, work: Work, attempts: asyncio.TaskGroup) -> None:
        delivery = work.delivery
        del self._waiting[delivery.id]
        self._busy[delivery.inbox] += 1
        self._idle.clear()
        self._pauses.starts(delivery.id, delivery.inbox)
        work.delivery = replace(delivery, tries=delivery.tries + 1, next_try_at=None)
        task = attempts.create_task(self._attempt(work), name=f"delivery {delivery.id}")
        self._attempts[delivery.id] = (work, task)

    async def _attempt(self, work: Work) -> None:
        inbox = self._inboxes[work.delivery.inbox]
        try:
            if work.burial is None:
                await self._pipeline.attempt(work, inbox)
            else:
                await self._pipeline.bury(work, inbox, work.burial)
        except DeliveryError as error:
            await self._after_error(work, inbox, error)
        finally:
            self._ends(work)

    async def _after_error(self, work: Work, inbox: InboxPlan, error: DeliveryError) -> None:
        delivery = work.delivery
        verdict = after_error(
            delivery,
            error,
            proven=self._pauses.proven(delivery.id, error.step),
            now=self._now(),
            jitter=self._chance.random(),
            rules=self._rules,
        )
        if isinstance(verdict, Bury) and self._is_one_too_many(delivery, verdict.failure):
            error, verdict = self._too_many_failures(verdict.failure), Again(delivery)
        strike = isinstance(verdict, Again) and verdict.delivery.strikes > delivery.strikes
        if isinstance(verdict, Again):
            work.delivery = verdict.delivery
        alone = len(self._waiting) + len(self._attempts) == 1
        self._refund(self._pauses.failed(delivery.id, delivery.inbox, error, strike=strike, alone=alone))
        if isinstance(verdict, Again):
            await self._remember(work)
            self._tell_deferred(work, error)
            return
        work.burial = verdict.failure
        # Counted now and not when it is filed: others are judged meanwhile.
        self._outcomes.ended(delivery.inbox, self._clock(), refused=_is_refusal(verdict.failure))
        try:
            await self._pipeline.bury(work, inbox, verdict.failure)
        except DeliveryError as trouble:
            self._pauses.failed(delivery.id, delivery.inbox, trouble, strike=False, alone=alone)
            self._tell_deferred(work, trouble)

    def _is_one_too_many(self, delivery: Delivery, failure: Failure) -> bool:
        return _is_refusal(failure) and self._outcomes.too_many_failures(delivery.inbox, self._clock())

    def _too_many_failures(self, failure: Failure) -> InboxError:
        detail = f"too many files in a row would have failed; this one because {failure.detail}"
        return InboxError(Reason.TOO_MANY_FAILURES, detail, Step.MESSAGE, http_status=failure.http_status)

    def _refund(self, refunds: Sequence[DeliveryId]) -> None:
        for delivery_id in refunds:
            attempt = self._attempts.get(delivery_id)
            if work := attempt[0] if attempt else self._waiting.get(delivery_id):
                work.delivery = replace(work.delivery, strikes=max(0, work.delivery.strikes - 1))

    def _ends(self, work: Work) -> None:
        delivery = work.delivery
        del self._attempts[delivery.id]
        self._busy[delivery.inbox] -= 1
        if delivery.finished:
            if isinstance(delivery.state, Sent):
                self._outcomes.ended(delivery.inbox, self._clock(), refused=False)
            self._slots.give_back(delivery.inbox, 1)
            self._tell_finished(self._journey(work))
        else:
            self._waiting[delivery.id] = work
        if not self._attempts:
            self._idle.set()
        self._pauses.ends(delivery.id)
        self._ended.set()

    def _journey(self, work: Work) -> Journey:
        took_s = max(0.0, (self._now() - work.delivery.claimed_at).total_seconds())
        return Journey(work.delivery, self._now(), took_s, work.steps(self._clock()))

    async def _remember(self, *works: Work) -> None:
        try:
            await self._journal.admit([work.delivery for work in works], self._now())
        except AccountError:
            # No room. This much need not be remembered: without it a crash only makes the deliveries start over.
            log.debug("journal.full")

    # --- what is said of it --------------------------------------------------------------------------------------

    def _tell_deferred(self, work: Work, error: DeliveryError) -> None:
        delivery, failure = work.delivery, error.failure
        waits = (delivery.next_try_at - self._now()).total_seconds() if delivery.next_try_at else None
        self._metrics.deferred(delivery.inbox, failure.step, failure.reason)
        log.warning(
            "file.deferred",
            inbox=delivery.inbox,
            delivery_id=delivery.id,
            file=delivery.name,
            step=str(failure.step),
            reason=str(failure.reason),
            detail=failure.detail,
            attempt=delivery.tries,
            retry_in_s=None if waits is None else round(max(0.0, waits), 3),
            possible_duplicate=isinstance(delivery.state, Posting),
        )

    def _tell_finished(self, journey: Journey) -> None:
        delivery = journey.delivery
        self._latest.append(journey)
        common = {"inbox": delivery.inbox, "delivery_id": delivery.id, "file": delivery.name}
        match delivery.state:
            case Sent(upload=upload, receipt=receipt, filed_as=filed_as, posts=posts):
                self._metrics.sent(delivery.inbox, upload.document.size, journey.took_s, journey.steps)
                log.info(
                    "file.sent",
                    **common,
                    size=upload.document.size,
                    sha256=upload.sha256,
                    content_type=upload.document.content_type,
                    guest_id=upload.guest,
                    attachment_id=upload.attachment,
                    conversation_id=receipt.conversation,
                    attempts=delivery.tries,
                    duration_ms=round(journey.took_s * 1000),
                    moved_to=filed_as,
                    possible_duplicate=posts > 1,
                )
            case Failed(failure=failure, filed_as=filed_as):
                self._metrics.failed(delivery.inbox, failure.reason)
                log.error(
                    "file.failed",
                    **common,
                    reason=str(failure.reason),
                    detail=failure.detail,
                    step=str(failure.step),
                    http_status=failure.http_status,
                    correlation_id=failure.correlation_id,
                    attempts=delivery.tries,
                    moved_to=filed_as,
                )
            case _:
                pass


def _is_refusal(failure: Failure) -> bool:
    """Whether a file is given up for something the platform said."""
    return failure.step in PLATFORM_STEPS and failure.reason is not Reason.UNKNOWN_OUTCOME


def _is_suspect(work: Work) -> bool:
    return work.delivery.strikes >= _SUSPECT_STRIKES
