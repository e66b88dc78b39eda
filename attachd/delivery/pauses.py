"""Health with a clock and a voice: what changes there is said in the log, once, and wakes who waits for it.

Between the dispatcher and the pipeline, which report, and `health`, which decides.
"""

import asyncio
import math
import random
from collections.abc import Callable

import structlog

from attachd.delivery.health import CANARY, Change, Health, Pause
from attachd.errors import DeliveryError, InboxError
from attachd.metrics import Metrics
from attachd.model import DeliveryId, Failure, InboxName, Reason, Step

log = structlog.get_logger("attachd.delivery")


class Pauses:
    """What is paused just now. `changed` is set by every change; who waits for it clears it."""

    def __init__(self, *, clock: Callable[[], float], chance: random.Random, metrics: Metrics) -> None:
        self._health = Health()
        self._clock = clock
        self._chance = chance
        self._metrics = metrics
        self._by_operator: dict[InboxName | None, Pause] = {}
        self.changed = asyncio.Event()
        self.ended = 0
        """How many pauses are over: when it grows, what waited for its own next try may go at once."""

    def account(self) -> Pause | None:
        """The pause of everything; an operator's before attachd's own."""
        return self._pause_of(None)

    def inbox(self, inbox: InboxName) -> Pause | None:
        """The pause of one inbox alone; an operator's before attachd's own."""
        return self._pause_of(inbox)

    def paused(self, inbox: InboxName) -> bool:
        """Whether only a probe of this inbox may go, or, where an operator paused it, nothing at all."""
        return self._stopped(inbox) or self._health.paused(inbox)

    def wait_s(self, delivery: DeliveryId, inbox: InboxName) -> float:
        """How long a delivery has to wait for the pauses that concern it; infinite when that is not known."""
        return math.inf if self._stopped(inbox) else self._health.wait_s(delivery, inbox, self._clock())

    def probe_in_s(self, pause: Pause) -> float | None:
        """When the next try is due, in seconds; None when that depends on something else."""
        wait_s = pause.until - self._clock()
        return None if wait_s == math.inf else max(0.0, wait_s)

    def canary_in_s(self, inbox: InboxName | None) -> float:
        """When the canary is to try the account (None) or an inbox again; infinite when it is not its turn."""
        pause = None if self._stopped(inbox) else self._health.pause_of(inbox)
        return pause.wait_s(CANARY, self._clock()) if pause else math.inf

    def proven(self, delivery: DeliveryId, step: Step) -> bool:
        """Whether others pass this step, so that a failure there is the file's own."""
        return self._health.proven(delivery, step, self._clock())

    def starts(self, delivery: DeliveryId, inbox: InboxName) -> None:
        """A delivery goes, as a probe where there is a pause."""
        self._health.starts(delivery, inbox)

    def ends(self, delivery: DeliveryId) -> None:
        """Its attempt is over."""
        self._health.ends(delivery)
        self.changed.set()

    def passed(self, delivery: DeliveryId, inbox: InboxName, step: Step) -> None:
        """A delivery has a step behind it."""
        for change in self._health.passed(delivery, inbox, step, self._clock()):
            self._announce(change)

    def failed(
        self, delivery: DeliveryId, inbox: InboxName, error: DeliveryError, *, strike: bool, alone: bool
    ) -> tuple[DeliveryId, ...]:
        """An attempt met an error; returns whose strikes were no fault of the file and are to be taken back."""
        known = {scope: self._health.pause_of(scope) for scope in (None, inbox)}
        changes = self._health.failed(
            delivery, inbox, error, strike=strike, alone=alone, now=self._clock(), jitter=self._chance.random()
        )
        for change in changes:
            before = known[change.inbox]
            if before is None or before.failure.reason is not change.pause.failure.reason:
                self._announce(change)
        return tuple(refund for change in changes for refund in change.refunds)

    def hold(self, error: DeliveryError) -> None:
        """Begin with the silence that the platform asked an earlier process for."""
        self._health.failed(
            DeliveryId(""), InboxName(""), error, strike=False, alone=False, now=self._clock(), jitter=0.0
        )
        if pause := self.account():
            self._announce(Change(pause, None))

    def folder_lost(self, inbox: InboxName, error: InboxError) -> None:
        """The inbox's folder is in trouble."""
        if change := self._health.folder_lost(inbox, error, self._clock()):
            self._announce(change)

    def folder_found(self, inbox: InboxName) -> None:
        """The inbox's folder is fine again."""
        if change := self._health.folder_found(inbox):
            self._announce(change)

    # --- by an operator -------------------------------------------------------------------------------------------

    def pause(self, inbox: InboxName | None) -> None:
        """Let nothing of the inbox, or with None nothing at all, begin until `resume`; what is under way may end."""
        if inbox not in self._by_operator:
            failure = Failure(Reason.PAUSED_BY_OPERATOR, "an operator paused it", Step.CHECK)
            pause = self._by_operator[inbox] = Pause(failure, self._clock(), math.inf)
            self._announce(Change(pause, inbox))

    def resume(self, inbox: InboxName | None) -> None:
        """End an operator's pause of the inbox, or with None all of them; where attachd itself waits, probe at once."""
        for scope in [known for known in self._by_operator if inbox in (None, known)]:
            self._announce(Change(self._by_operator.pop(scope), scope, ended=True))
        now = self._clock()
        # An inbox cannot go on while everything waits, so the account is tried in either case.
        for waiting in {None, inbox} if inbox is not None else self._health.paused_scopes():
            self._health.hasten(waiting, now)
        self.changed.set()

    def _stopped(self, inbox: InboxName | None) -> bool:
        return None in self._by_operator or inbox in self._by_operator

    def _pause_of(self, scope: InboxName | None) -> Pause | None:
        return self._by_operator.get(scope) or self._health.pause_of(scope)

    # --- underneath -----------------------------------------------------------------------------------------------

    def _announce(self, change: Change) -> None:
        pause, failure = change.pause, change.pause.failure
        fields = {"reason": str(failure.reason), "detail": failure.detail}
        if change.inbox is not None:
            fields["inbox"] = change.inbox
        if change.ended:
            self.ended += 1
            event = "platform.resumed" if change.inbox is None else "inbox.resumed"
            log.info(event, **fields, paused_s=round(self._clock() - pause.since, 3))
        else:
            self._metrics.paused(change.inbox, failure.reason)
            event = "platform.paused" if change.inbox is None else "inbox.paused"
            probe_in_s = self.probe_in_s(pause)
            retry_in_s = None if probe_in_s is None else round(probe_in_s, 3)
            log.warning(event, **fields, step=str(failure.step), retry_in_s=retry_in_s)
        self.changed.set()
