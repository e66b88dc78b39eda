"""What is paused, who may try, and whose fault a failure is. Pure; the time (monotonic seconds) and jitter are
arguments.

Beside the dispatcher, which tells it of every step that passed and of every error, and asks it before a delivery goes.
A pause ends by a probe: when its time has come one try is made; if that passes the step that was in trouble,
everything goes on, if not, the pause is prolonged. So an outage of any length costs a handful of requests an hour.
Steps that no agent sees are tried by a canary, which carries nothing of any file; the others by one delivery.

The breaker: when several files in a row fail at one step and none passes it in between, it is not the files.
"""

import math
from dataclasses import dataclass, replace

from attachd.errors import AccountError, DeliveryError, InboxError, TransientError
from attachd.model import CARRIES_THE_FILE, PLATFORM_STEPS, DeliveryId, Failure, InboxName, Reason, Step

_OPENS_AFTER = 3  # different files in a row, or tries of a file that is alone; ours
_OPENS_AFTER_TRIES_OF_TWO = 6
_PROVEN_FOR_S = 120.0  # ours: so long another file's success speaks for the platform
_FIRST_PROBE_S = 5.0
_LONGEST_PROBE_S = 120.0  # about 30 probes an hour, and a delivery at most three minutes after a long outage
_TURN_S = 1.0  # ours: so much later than the others a file whose probe failed may try again


CANARY = DeliveryId("canary")
"""Tries the platform for all: opens a session, and uploads a constant text where the upload is in doubt."""

_BY_CANARY = frozenset({Step.TOKEN, Step.SESSION, Step.UPLOAD, Step.PUT})


@dataclass(frozen=True, slots=True)
class Pause:
    """Why nothing goes, since when, and when the next probe may (never, by itself, when `until` is infinite).

    `suspect` is set when a single file brought the pause about: then any other file may probe at once. Those in
    `tried` have failed as probes, and let the others go first: one of them could be what is wrong.
    """

    failure: Failure
    since: float
    until: float
    failed_probes: int = 0
    probe: DeliveryId | None = None
    suspect: DeliveryId | None = None
    tried: frozenset[DeliveryId] = frozenset()

    @property
    def by_canary(self) -> bool:
        """Whether the canary tries it, so that no delivery need be risked."""
        return self.failure.step in _BY_CANARY

    def wait_s(self, delivery: DeliveryId, now: float) -> float:
        """How long this delivery has to wait before it may go as the probe; infinite while another one is out."""
        if self.probe is not None or self.by_canary is not (delivery == CANARY):
            return math.inf
        if self.suspect not in (None, delivery):
            return 0.0
        return max(0.0, self.until + (_TURN_S if delivery in self.tried else 0.0) - now)


@dataclass(frozen=True, slots=True)
class Change:
    """A pause that began, went on or ended; `inbox` is None for the account's; `refunds`: strikes to take back."""

    pause: Pause
    inbox: InboxName | None
    ended: bool = False
    refunds: tuple[DeliveryId, ...] = ()


class Health:
    """The account and each inbox, as far as deliveries have shown how they are."""

    def __init__(self) -> None:
        self._pauses: dict[InboxName | None, Pause] = {}
        self._passed: dict[Step, dict[DeliveryId, float]] = {}
        self._streaks: dict[Step, list[tuple[DeliveryId, bool]]] = {}

    def pause_of(self, inbox: InboxName | None) -> Pause | None:
        """The pause of an inbox, or with None the account's."""
        return self._pauses.get(inbox)

    def wait_s(self, delivery: DeliveryId, inbox: InboxName, now: float) -> float:
        """How long a delivery has to wait for the pauses that concern it: 0 when it may go, infinite when nobody
        knows.
        """
        return max((pause.wait_s(delivery, now) for pause in self._concerning(inbox)), default=0.0)

    def paused(self, inbox: InboxName) -> bool:
        """Whether only a probe may go."""
        return any(self._concerning(inbox))

    def starts(self, delivery: DeliveryId, inbox: InboxName) -> None:
        """A delivery goes; where there is a pause, as its probe."""
        for scope in (None, inbox):
            if pause := self._pauses.get(scope):
                self._pauses[scope] = replace(pause, probe=delivery)

    def ends(self, delivery: DeliveryId) -> None:
        """A delivery's attempt is over, whatever came of it: if it was a probe, another one may be."""
        for scope, pause in self._pauses.items():
            if pause.probe == delivery:
                self._pauses[scope] = replace(pause, probe=None)

    def proven(self, delivery: DeliveryId, step: Step, now: float) -> bool:
        """Whether another file passed the step lately, so that a failure there can be this file's own.

        And since this one failed there last: one success must not speak for the platform again and again. While
        everything is paused nobody is to blame.
        """
        if None in self._pauses or any(failed == delivery for failed, _ in self._streaks.get(step, ())):
            return False
        return any(
            other != delivery and now - passed_at <= _PROVEN_FOR_S
            for other, passed_at in self._passed.get(step, {}).items()
        )

    def passed(self, delivery: DeliveryId, inbox: InboxName, step: Step, now: float) -> list[Change]:
        """A delivery passed a step: the step works, and the pauses that this delivery could probe are over."""
        self._streaks.pop(step, None)
        if step in CARRIES_THE_FILE:
            # Two are enough to know of somebody else's success, whoever asks.
            recent = self._passed.setdefault(step, {})
            recent.pop(delivery, None)
            recent[delivery] = now
            if len(recent) > 2:
                del recent[next(iter(recent))]
        changes = []
        for scope in (None, inbox):
            pause = self._pauses.get(scope)
            if pause is None or not _proves(step, pause.failure.step):
                continue
            if pause.probe == delivery or now >= pause.until:
                del self._pauses[scope]
                changes.append(Change(pause, scope, ended=True))
        return changes

    def failed(
        self,
        delivery: DeliveryId,
        inbox: InboxName,
        error: DeliveryError,
        *,
        strike: bool,
        alone: bool,
        now: float,
        jitter: float,
    ) -> list[Change]:
        """A delivery's attempt met an error. `strike`: it was counted against the file; `alone`: there is no other
        file.
        """
        match error:
            case AccountError():
                return [self._pause(None, delivery, error.failure, now, jitter)]
            case InboxError():
                return [self._pause(inbox, delivery, error.failure, now, jitter)]
            case TransientError(retry_after_s=float() | int() as retry_after_s):
                return [self._pause(None, delivery, error.failure, now, jitter, at_least_s=retry_after_s)]
            case TransientError() if error.step is not Step.CHECK:
                return self._count(delivery, error, strike=strike, alone=alone, now=now, jitter=jitter)
            case _:
                return []

    def folder_lost(self, inbox: InboxName, error: InboxError, now: float) -> Change | None:
        """The inbox's folder is in trouble; it is paused until `folder_found`. None when that is known already."""
        known = self._pauses.get(inbox)
        if known and known.failure.reason is error.reason and known.until == math.inf:
            return None
        pause = Pause(error.failure, known.since if known else now, math.inf)
        self._pauses[inbox] = pause
        return Change(pause, inbox)

    def folder_found(self, inbox: InboxName) -> Change | None:
        """The folder is fine again."""
        pause = self._pauses.pop(inbox, None)
        return Change(pause, inbox, ended=True) if pause else None

    def _concerning(self, inbox: InboxName) -> list[Pause]:
        return [pause for scope in (None, inbox) if (pause := self._pauses.get(scope))]

    def _count(
        self, delivery: DeliveryId, error: TransientError, *, strike: bool, alone: bool, now: float, jitter: float
    ) -> list[Change]:
        streak = self._streaks.setdefault(error.step, [])
        streak.append((delivery, strike))
        files = {failed for failed, _ in streak}
        pause = self._pauses.get(None)
        probing = pause is not None and pause.probe == delivery
        # What was under way when the pause began fails for the same cause.
        enough = {1: _OPENS_AFTER if alone else math.inf, 2: _OPENS_AFTER_TRIES_OF_TWO}.get(len(files), 0)
        if pause is None and len(streak) < enough:
            return []
        refunds = tuple(failed for failed, counted in streak if counted)
        del self._streaks[error.step]
        failure = error.failure
        if not probing:
            detail = f"{len(streak)} tries in a row failed at this step; the last one: {error}"
            failure = replace(failure, reason=Reason.PLATFORM_FAILING, detail=detail)
        change = self._pause(None, delivery, failure, now, jitter, suspect=delivery if len(files) == 1 else None)
        return [replace(change, refunds=refunds)]

    def _pause(
        self,
        scope: InboxName | None,
        delivery: DeliveryId,
        failure: Failure,
        now: float,
        jitter: float,
        *,
        at_least_s: float = 0.0,
        suspect: DeliveryId | None = None,
    ) -> Change:
        known = self._pauses.get(scope)
        if known is None:
            wait_s = at_least_s or (0.5 + jitter) * _FIRST_PROBE_S
            pause = Pause(failure, now, now + wait_s, suspect=suspect)
        elif known.probe == delivery:
            probes = known.failed_probes + 1
            # Half of what it has lasted: a short outage is over at most half as long again before it is noticed.
            usual_s = min(_LONGEST_PROBE_S, max(_FIRST_PROBE_S, (now - known.since) / 2))
            pause = Pause(
                failure,
                known.since,
                # What somebody else was told meanwhile still holds.
                max(known.until, now + max(at_least_s, (0.5 + jitter) * usual_s)),
                failed_probes=probes,
                suspect=suspect if known.suspect == delivery else None,
                tried=frozenset({delivery}) if delivery in known.tried else known.tried | {delivery},
            )
        else:  # one that was under way when the pause began
            # Told to be silent: a probe that is out already was asked too early to end that.
            probe = None if at_least_s else known.probe
            pause = replace(known, until=max(known.until, now + at_least_s), suspect=None, probe=probe)
        self._pauses[scope] = pause
        return Change(pause, scope)


def _proves(passed: Step, troubled: Step) -> bool:
    """Whether passing one step shows that another works: a later step of the platform speaks for those before it."""
    if passed in PLATFORM_STEPS and troubled in PLATFORM_STEPS:
        return PLATFORM_STEPS.index(passed) >= PLATFORM_STEPS.index(troubled)
    return passed is troubled
