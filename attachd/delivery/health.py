"""What is paused, who may try, and whose fault a failure is. Pure; the time (monotonic seconds) and jitter are
arguments.

Beside the dispatcher, which tells it of every step that passed and of every error, and asks it before a delivery goes.
A pause ends by a probe: when its time has come one try is made; if that passes the step that was in trouble,
everything goes on, if not, the pause is prolonged. So an outage of any length costs a handful of requests an hour.
Steps that no agent sees are tried by a canary, which carries nothing of any file; the others by one delivery.

The breaker: when several files in a row fail at one step and none passes it in between, it is not the files. Where it
may be the files after all, because the canary can tell or only one of them failed, the next probe by anybody else
decides what becomes of their strikes: it passes and they stand, or it fails and they are taken back.
"""

import math
from collections import Counter
from dataclasses import dataclass, field, replace

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

    `suspect` is set when a single file brought the pause about: then the canary, or any other file, may probe at once.
    Those in `tried` have failed as probes, and let the others go first: one of them could be what is wrong.
    """

    failure: Failure
    since: float
    until: float
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
        takes_turns = delivery in self.tried and delivery != CANARY
        return max(0.0, self.until + (_TURN_S if takes_turns else 0.0) - now)


@dataclass(frozen=True, slots=True)
class Change:
    """A pause that began, went on or ended; `inbox` is None for the account's; `refunds`: strikes to take back."""

    pause: Pause
    inbox: InboxName | None
    ended: bool = False
    refunds: tuple[DeliveryId, ...] = ()


@dataclass(slots=True)
class _Streak:
    """Failures at one step since anybody passed it: how many, and the strikes of each file that had one, or none."""

    tries: int = 0
    strikes: Counter[DeliveryId] = field(default_factory=Counter)


class Health:
    """The account and each inbox, as far as deliveries have shown how they are."""

    def __init__(self) -> None:
        self._pauses: dict[InboxName | None, Pause] = {}
        self._passed: dict[Step, dict[DeliveryId, float]] = {}
        self._streaks: dict[Step, _Streak] = {}

    def pause_of(self, inbox: InboxName | None) -> Pause | None:
        """The pause of an inbox, or with None the account's."""
        return self._pauses.get(inbox)

    def paused_scopes(self) -> list[InboxName | None]:
        """What is paused: inboxes, and None for the account."""
        return list(self._pauses)

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
            pause = self._pauses.get(scope)
            if pause and pause.probe is None:
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
        if None in self._pauses or (step in self._streaks and delivery in self._streaks[step].strikes):
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
                self._streaks.pop(pause.failure.step, None)
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
        pause = self._pauses.get(None)
        match error:
            case AccountError():
                changes = [self._pause(None, delivery, error.failure, now, jitter)]
            case InboxError():
                return [self._pause(inbox, delivery, error.failure, now, jitter)]
            case TransientError(retry_after_s=float() | int() as retry_after_s):
                changes = [self._pause(None, delivery, error.failure, now, jitter, at_least_s=retry_after_s)]
            case TransientError() if error.step is not Step.CHECK:
                changes = self._count(delivery, error, strike=strike, alone=alone, now=now, jitter=jitter)
            case _:
                return []
        if pause and pause.probe == delivery:
            refunds = self._take_back(pause.failure.step, delivery)
            changes[0] = replace(changes[0], refunds=changes[0].refunds + refunds)
        return changes

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

    def hasten(self, scope: InboxName | None, now: float) -> bool:
        """Let the next probe of an inbox, or with None of the account, go at once; whether there is anything to probe.

        Not where the platform asked for silence, nor where only the folder's return can help.
        """
        pause = self._pauses.get(scope)
        if pause is None or pause.until == math.inf or pause.failure.reason is Reason.RATE_LIMITED:
            return False
        self._pauses[scope] = replace(pause, until=min(pause.until, now), tried=frozenset())
        return True

    def _concerning(self, inbox: InboxName) -> list[Pause]:
        return [pause for scope in (None, inbox) if (pause := self._pauses.get(scope))]

    def _count(
        self, delivery: DeliveryId, error: TransientError, *, strike: bool, alone: bool, now: float, jitter: float
    ) -> list[Change]:
        streak = self._streaks.setdefault(error.step, _Streak())
        streak.tries += 1
        streak.strikes[delivery] += strike
        files = len(streak.strikes)
        pause = self._pauses.get(None)
        # What was under way when the pause began fails for the same cause.
        enough = {1: _OPENS_AFTER if alone else math.inf, 2: _OPENS_AFTER_TRIES_OF_TWO}.get(files, 0)
        if pause is None and streak.tries < enough:
            return []
        failure = error.failure
        if pause is None or pause.probe != delivery:
            detail = f"{streak.tries} tries in a row failed at this step; the last one: {error}"
            failure = replace(failure, reason=Reason.PLATFORM_FAILING, detail=detail)
        change = self._pause(None, delivery, failure, now, jitter, suspect=delivery if files == 1 else None)
        if files > 1 and not change.pause.by_canary:
            change = replace(change, refunds=self._take_back(error.step, None))
        return [change]

    def _take_back(self, step: Step, prober: DeliveryId | None) -> tuple[DeliveryId, ...]:
        """The strikes of a streak that somebody else has now shown to be nobody's fault."""
        streak = self._streaks.get(step)
        if streak is None or streak.strikes.keys() <= {prober}:
            return ()
        del self._streaks[step]
        return tuple(streak.strikes.elements())

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
            # Half of what it has lasted: a short outage is over at most half as long again before it is noticed.
            usual_s = min(_LONGEST_PROBE_S, max(_FIRST_PROBE_S, (now - known.since) / 2))
            pause = Pause(
                failure,
                known.since,
                # What somebody else was told meanwhile still holds.
                max(known.until, now + max(at_least_s, (0.5 + jitter) * usual_s)),
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
