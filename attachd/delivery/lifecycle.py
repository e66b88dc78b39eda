"""What follows: from an error, from a lost answer, from a crash. Pure; the time and the jitter come in as arguments.

The states and what leads from one to the next:

    Claimed ──▶ Uploaded ──▶ Posting ──▶ Posted ──▶ Sent          (Failed from each of the first four)
       ▲            │           │
       └────────────┴───────────┘  an error that certainly left no message goes back, a lost answer stays in Posting
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias, assert_never

from attachd.errors import AccountError, DeliveryError, FileError, InboxError, TransientError
from attachd.model import (
    CARRIES_THE_FILE,
    Claimed,
    Delivery,
    DeliveryState,
    Failed,
    Failure,
    Posted,
    Posting,
    Reason,
    Sent,
    Step,
    Uploaded,
)

MOST_POSTS = 3
"""One message and at most two repetitions of it, over all restarts; then a person decides."""

_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 300.0
_NOT_READY_ANEW = 3
"""Each third try of a message whose upload the platform does not know yet brings the bytes anew, whoever is to
blame."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator chose."""

    max_attempts: int
    on_unknown_outcome: Literal["resend", "hold"]


@dataclass(frozen=True, slots=True)
class Again:
    """Try again: `delivery` as it now stands, its next try included."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Bury:
    """Give up: the file goes to `failed/`."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Redo:
    """The platform has the message: only the move is left."""


Verdict: TypeAlias = Again | Bury


def after_error(
    delivery: Delivery, error: DeliveryError, *, proven: bool, now: datetime, jitter: float, rules: Rules
) -> Verdict:
    """What becomes of a delivery whose attempt met `error`.

    `delivery` is as the attempt left it: in Posting only if a message of it may stand. `proven` says that other files
    passed the same step lately, so the platform works and the failure is the file's own. `jitter` is uniform in 0..1:
    waits are drawn from the whole range, so that many files that failed together do not come back together.
    """
    match error:
        case TransientError(reason=Reason.NOT_READY) if isinstance(delivery.state, Posting):
            # The upload is no longer there to be repeated, as after a message that took it.
            return Bury(_unknown(f"a repetition of the message was not possible: {error}"))
        case FileError() if isinstance(delivery.state, Posting):
            # Refused on a repetition: that can be because the first message stands.
            return Bury(_unknown(f"a repetition of the message was refused: {error}"))
        case FileError():
            return Bury(error.failure)
        case InboxError() | AccountError():
            return Again(replace(delivery, next_try_at=None, last_failure=error.failure))
        case TransientError():
            return _after_transient(delivery, error, proven=proven, now=now, jitter=jitter, rules=rules)
        case _:
            raise TypeError(f"an error of no family: {error!r}")


def _after_transient(
    delivery: Delivery, error: TransientError, *, proven: bool, now: datetime, jitter: float, rules: Rules
) -> Verdict:
    # A file that cannot be read needs no platform to be proven guilty; one that is being rewritten is not guilty at
    # all.
    unreadable = error.step is Step.CHECK and error.reason is Reason.UNREADABLE
    blamed = proven and error.step in CARRIES_THE_FILE and error.reason is not Reason.RATE_LIMITED
    strikes = delivery.strikes + (unreadable or blamed)
    state = delivery.state
    # Only a strike can be the last: those of earlier times do not turn an outage into the file's fault.
    if delivery.strikes < strikes >= rules.max_attempts and not isinstance(state, Posting):
        return Bury(_given_up(error, strikes))
    stale = error.reason is Reason.CHANGED or (
        error.reason is Reason.NOT_READY and delivery.tries % _NOT_READY_ANEW == 0
    )
    wait_s = max(backoff_s(delivery.tries, jitter), error.retry_after_s or 0.0)
    return Again(
        replace(
            delivery,
            state=Claimed() if stale and isinstance(state, Uploaded) else state,
            strikes=strikes,
            next_try_at=now + timedelta(seconds=wait_s),
            last_failure=error.failure,
        )
    )


def _given_up(error: TransientError, strikes: int) -> Failure:
    if error.step is Step.CHECK:
        return replace(error.failure, detail=f"{error}; given up after {strikes} attempts")
    detail = f"given up after {strikes} attempts while other files passed; the last one: {error}"
    return replace(error.failure, reason=Reason.GAVE_UP, detail=detail)


def backoff_s(tries: int, jitter: float) -> float:
    """Full jitter: anything up to 1 s, doubling with each try up to 5 minutes."""
    return jitter * min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(max(tries - 1, 0), 16))


def may_post_again(state: DeliveryState, rules: Rules) -> bool:
    """Whether a message of unknown outcome may be repeated, where the platform cannot be asked about it."""
    return rules.on_unknown_outcome == "resend" and isinstance(state, Posting) and state.posts < MOST_POSTS


def unknown_outcome(state: Posting) -> Failure:
    """Why a message that may stand is not posted again."""
    times = "once" if state.posts == 1 else f"{state.posts} times"
    return _unknown(f"the message was posted {times} and no answer came back")


def changed_after_send() -> Failure:
    """Why a file is not in `sent/` though its message stands."""
    detail = "it was sent, and then somebody wrote to it: this file is not what the agent has"
    return Failure(Reason.CHANGED_AFTER_SEND, detail, Step.FILING)


def _unknown(detail: str) -> Failure:
    return Failure(Reason.UNKNOWN_OUTCOME, detail, Step.MESSAGE)


# --- after a crash --------------------------------------------------------------------------------------------------


def after_crash(delivery: Delivery, *, journal_trusted: bool) -> Verdict | Redo:
    """What to do with a file that was found in `claimed/` at start.

    `delivery` is the journal's record of it, or, where there is none, one newly made of what lies there: a claim is not
    recorded durably, so it may be unknown to the very journal that made it. `journal_trusted` says that it is that
    journal, and not a new one or an older copy.
    """
    if not journal_trusted:
        detail = "it was claimed, and the journal that knew whether it was already sent is lost"
        return Bury(Failure(Reason.JOURNAL_LOST, detail, Step.CHECK))
    match delivery.state:
        case Claimed() | Uploaded():
            return Again(replace(delivery, state=Claimed()))
        case Posting():
            return Again(delivery)
        case Posted() | Sent():
            return Redo()
        case Failed(failure=failure):
            return Bury(failure)
        case _:
            assert_never(delivery.state)
