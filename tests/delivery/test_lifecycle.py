"""What follows from an error and from a crash, for every family in every state."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attachd.delivery.lifecycle import (
    MOST_POSTS,
    Again,
    Bury,
    Redo,
    Rules,
    after_crash,
    after_error,
    backoff_s,
    may_post_again,
    unknown_outcome,
)
from attachd.errors import AccountError, DeliveryError, FileError, InboxError, TransientError, UnknownOutcome
from attachd.model import (
    CARRIES_THE_FILE,
    AttachmentId,
    Claimed,
    Delivery,
    DeliveryId,
    DeliveryState,
    Document,
    Failed,
    Failure,
    GuestId,
    InboxName,
    Posted,
    Posting,
    Reason,
    Receipt,
    Sent,
    Step,
    Upload,
    Uploaded,
    Version,
)

NOW = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)
UPLOAD = Upload(GuestId("g"), AttachmentId("a"), Document("scan.pdf", "application/pdf", 7), "0" * 64)
FAILURE = Failure(Reason.REFUSED, "no", Step.UPLOAD)
RECEIPT = Receipt(None)
UNSENT = [Claimed(), Uploaded(UPLOAD)]
RESEND, HOLD = Rules(5, "resend"), Rules(5, "hold")


def posting(posts: int = 1) -> Posting:
    return Posting(UPLOAD, "a text", posts)


def delivery(state: DeliveryState | None = None, *, tries: int = 1, strikes: int = 0) -> Delivery:
    return Delivery(
        DeliveryId("d1"),
        InboxName("claims"),
        "scan.pdf",
        Version(1, 2, 3, 4, 5),
        NOW,
        state or Claimed(),
        tries,
        strikes,
    )


def judge(
    found: Delivery, error: DeliveryError, *, proven: bool = False, jitter: float = 0.5, rules: Rules = RESEND
) -> Again | Bury:
    return after_error(found, error, proven=proven, now=NOW, jitter=jitter, rules=rules)


def transient(
    step: Step = Step.PUT, reason: Reason = Reason.TIMEOUT, retry_after_s: float | None = None
) -> DeliveryError:
    return TransientError(reason, "silence", step, retry_after_s=retry_after_s)


def waits(verdict: Again | Bury) -> float:
    assert isinstance(verdict, Again)
    assert verdict.delivery.next_try_at is not None
    return (verdict.delivery.next_try_at - NOW).total_seconds()


_states = st.sampled_from([*UNSENT, *(posting(posts) for posts in range(1, MOST_POSTS + 1))])
_deliveries = st.builds(
    lambda state, tries, strikes: delivery(state, tries=tries, strikes=strikes),
    _states,
    st.integers(1, 10**9),
    st.integers(0, 10),
)
_steps, _reasons, _chance = st.sampled_from(Step), st.sampled_from(Reason), st.floats(0, 1)
_rules = st.builds(Rules, st.integers(1, 10), st.sampled_from(["resend", "hold"]))


# --- family by state ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", UNSENT)
def test_a_file_at_fault_is_given_up_at_once(state: DeliveryState) -> None:
    """One attempt, and the reason as the platform or we gave it."""
    error = FileError(Reason.TOO_LARGE, "too large", Step.UPLOAD, http_status=413)
    assert judge(delivery(state), error) == Bury(error.failure)


def test_a_refused_repetition_is_no_plain_refusal() -> None:
    """The first message may stand, and this be the reason why the second is refused."""
    verdict = judge(delivery(posting()), FileError(Reason.REFUSED, "no such attachment", Step.MESSAGE))
    assert isinstance(verdict, Bury)
    assert verdict.failure.reason is Reason.UNKNOWN_OUTCOME
    assert "no such attachment" in verdict.failure.detail


@pytest.mark.parametrize("state", [*UNSENT, posting(), Posted(UPLOAD, RECEIPT)])
@pytest.mark.parametrize("family", [InboxError, AccountError])
def test_an_inbox_or_account_at_fault_costs_the_file_nothing(
    state: DeliveryState, family: type[InboxError | AccountError]
) -> None:
    """It waits where it is, for the pause to end, and no strike is counted."""
    error = family(Reason.FORBIDDEN, "forbidden", Step.UPLOAD)
    found = replace(delivery(state, strikes=3), next_try_at=NOW)
    assert judge(found, error, proven=True) == Again(replace(found, next_try_at=None, last_failure=error.failure))


@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("proven", [True, False])
def test_only_a_step_that_others_pass_blames_the_file(step: Step, proven: bool) -> None:
    """And only one that tells the platform something of it; what cannot be read needs no platform to be blamed."""
    reason = Reason.UNREADABLE if step is Step.CHECK else Reason.TIMEOUT
    verdict = judge(delivery(), transient(step, reason), proven=proven)
    assert isinstance(verdict, Again)
    assert verdict.delivery.strikes == ((proven and step in CARRIES_THE_FILE) or step is Step.CHECK)


def test_a_poison_file_is_given_up_while_others_pass() -> None:
    """Five strikes, each while the platform was proven to work."""
    found = delivery()
    for tries in range(1, 5):
        verdict = judge(replace(found, tries=tries), transient(), proven=True)
        assert isinstance(verdict, Again)
        found = verdict.delivery
    verdict = judge(replace(found, tries=5), transient(), proven=True)
    assert isinstance(verdict, Bury)
    assert verdict.failure.reason is Reason.GAVE_UP
    assert "given up after 5 attempts while other files passed; the last one: silence" in verdict.failure.detail


def test_a_file_that_cannot_be_read_is_given_up_as_unreadable() -> None:
    """The advice must be about reading, and nothing is claimed of other files."""
    verdict = judge(delivery(strikes=4), transient(Step.CHECK, Reason.UNREADABLE))
    assert verdict == Bury(Failure(Reason.UNREADABLE, "silence; given up after 5 attempts", Step.CHECK))


@given(_deliveries, _chance)
def test_a_file_that_is_being_written_is_never_given_up(found: Delivery, jitter: float) -> None:
    """It starts over with the new content, however often."""
    verdict = judge(found, transient(Step.CHECK, Reason.CHANGED), proven=True, jitter=jitter)
    assert isinstance(verdict, Again)
    assert verdict.delivery.strikes == found.strikes
    assert verdict.delivery.state == (found.state if isinstance(found.state, Posting) else Claimed())


def test_an_unknown_upload_is_brought_anew_in_the_end() -> None:
    """First the message alone is tried again; a file alone in its inbox, which nobody can blame, gets there too."""
    found, states = delivery(Uploaded(UPLOAD)), []
    for tries in range(1, 7):
        verdict = judge(replace(found, tries=tries), transient(Step.MESSAGE, Reason.NOT_READY))
        assert isinstance(verdict, Again)
        states.append(type(verdict.delivery.state))
    assert states == [Uploaded, Uploaded, Claimed] * 2


# --- an outage ------------------------------------------------------------------------------------------------------


@given(_deliveries, _steps, _reasons, _chance, _rules)
def test_an_outage_of_any_length_gives_no_file_up(
    found: Delivery, step: Step, reason: Reason, jitter: float, rules: Rules
) -> None:
    """As long as no other file passes, any number of tries ends in another one, whatever was counted before."""
    assume(step is not Step.CHECK)
    assume(not (isinstance(found.state, Posting) and reason is Reason.NOT_READY))
    verdict = judge(found, transient(step, reason), jitter=jitter, rules=rules)
    assert isinstance(verdict, Again)
    assert verdict.delivery.strikes == found.strikes
    assert verdict.delivery.next_try_at is not None


@given(_deliveries, st.sampled_from([InboxError, AccountError]), _steps, _reasons, st.booleans(), _rules)
def test_trouble_of_inbox_or_account_gives_no_file_up(
    found: Delivery,
    family: type[InboxError | AccountError],
    step: Step,
    reason: Reason,
    proven: bool,
    rules: Rules,
) -> None:
    """Nor takes it back to an earlier state."""
    verdict = judge(found, family(reason, "no", step), proven=proven, rules=rules)
    assert isinstance(verdict, Again)
    assert verdict.delivery.state == found.state


@given(_deliveries, _steps, st.booleans(), _rules)
def test_a_rate_limit_is_nobodys_fault(found: Delivery, step: Step, proven: bool, rules: Rules) -> None:
    """Also while other files pass."""
    assume(step is not Step.CHECK)
    assert isinstance(judge(found, transient(step, Reason.RATE_LIMITED), proven=proven, rules=rules), Again)


# --- in doubt -------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 10),
    st.integers(1, 1000),
    st.integers(0, 10),
    st.sampled_from([TransientError, UnknownOutcome, FileError, InboxError, AccountError]),
    _steps,
    _reasons,
    st.booleans(),
    _rules,
)
def test_a_message_in_doubt_is_never_reported_as_a_plain_failure(
    posts: int,
    tries: int,
    strikes: int,
    family: type[DeliveryError],
    step: Step,
    reason: Reason,
    proven: bool,
    rules: Rules,
) -> None:
    """It stays in doubt, or is given up as one whose outcome is unknown."""
    found = delivery(posting(posts), tries=tries, strikes=strikes)
    match judge(found, family(reason, "?", step), proven=proven, rules=rules):
        case Again(later):
            assert later.state == found.state
        case Bury(failure):
            assert failure.reason is Reason.UNKNOWN_OUTCOME


@pytest.mark.parametrize("proven", [True, False])
def test_a_repetition_whose_upload_is_gone_is_no_plain_delay(proven: bool) -> None:
    """The first message may have taken it: a person is told, and never an agent a second time."""
    error = transient(Step.MESSAGE, Reason.NOT_READY)
    verdict = judge(delivery(posting()), error, proven=proven)
    assert isinstance(verdict, Bury)
    assert verdict.failure.reason is Reason.UNKNOWN_OUTCOME
    assert isinstance(judge(delivery(Uploaded(UPLOAD)), error, proven=proven), Again)


@given(st.integers(1, 10), _chance, st.booleans(), _rules)
def test_a_lost_answer_is_asked_about_before_anything_is_decided(
    posts: int, jitter: float, proven: bool, rules: Rules
) -> None:
    """Under either policy and however often it was posted it stays in doubt: the next attempt asks the platform."""
    lost = UnknownOutcome(Reason.CONNECTION_LOST, "no answer", Step.MESSAGE)
    verdict = judge(delivery(posting(posts)), lost, proven=proven, jitter=jitter, rules=rules)
    assert isinstance(verdict, Again)
    assert verdict.delivery.state == posting(posts)
    assert verdict.delivery.next_try_at is not None


def test_a_message_is_posted_three_times_at_most() -> None:
    """The first time and two repetitions, then a person decides; under `hold` it is not repeated at all."""
    assert [may_post_again(posting(posts), RESEND) for posts in range(1, 5)] == [True, True, False, False]
    assert MOST_POSTS == 3
    assert not any(may_post_again(posting(posts), HOLD) for posts in range(1, 5))


@pytest.mark.parametrize("state", [*UNSENT, Posted(UPLOAD, RECEIPT)])
def test_only_a_message_in_doubt_can_be_repeated(state: DeliveryState) -> None:
    """Not one that was never posted, and never one that stands."""
    assert not may_post_again(state, RESEND)


def test_how_often_it_was_posted_is_told() -> None:
    """For the person who has to ask the agents."""
    assert "posted once" in unknown_outcome(posting(1)).detail
    assert "posted 3 times" in unknown_outcome(posting(3)).detail


# --- waiting --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**12), _chance)
def test_waits_are_drawn_from_the_whole_range(tries: int, jitter: float) -> None:
    """From nothing to the limit, which doubles up to five minutes and never overflows."""
    limit = backoff_s(tries, 1.0)
    assert backoff_s(tries, 0.0) == 0.0
    assert 0 <= backoff_s(tries, jitter) <= limit <= 300
    assert limit <= backoff_s(tries + 1, 1.0) <= 2 * limit


def test_the_limits_of_waits() -> None:
    """1, 2, 4 seconds and so on to 5 minutes."""
    assert [backoff_s(tries, 1.0) for tries in (1, 2, 3, 9, 10, 1000)] == [1, 2, 4, 256, 300, 300]


@given(st.integers(1, 100), _chance, st.floats(0, 86400))
def test_retry_after_is_a_floor(tries: int, jitter: float, retry_after_s: float) -> None:
    """Never sooner than asked for, and never much later than that or our own wait."""
    error = transient(Step.MESSAGE, Reason.RATE_LIMITED, retry_after_s)
    found = waits(judge(delivery(tries=tries), error, jitter=jitter))
    assert found == pytest.approx(max(retry_after_s, backoff_s(tries, jitter)), abs=1e-5)


# --- after a crash --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "becomes"),
    [
        (Claimed(), Again(delivery(Claimed()))),
        (Uploaded(UPLOAD), Again(delivery(Claimed()))),
        (posting(2), Again(delivery(posting(2)))),
        (Posted(UPLOAD, RECEIPT), Redo()),
        (Sent(UPLOAD, RECEIPT, "sent/scan.pdf"), Redo()),
        (Failed(FAILURE, "failed/scan.pdf"), Bury(FAILURE)),
    ],
)
def test_what_is_found_decides_what_follows(state: DeliveryState, becomes: Again | Bury | Redo) -> None:
    """What was not posted starts over, what may have been is asked about, what was is only moved."""
    assert after_crash(delivery(state), journal_trusted=True) == becomes
    lost = after_crash(delivery(state), journal_trusted=False)
    assert isinstance(lost, Bury)
    assert lost.failure.reason is Reason.JOURNAL_LOST


def test_an_error_of_no_family_is_a_bug() -> None:
    """It ends the daemon loudly."""
    with pytest.raises(TypeError, match="no family"):
        judge(delivery(), DeliveryError(Reason.REFUSED, "?", Step.PUT))


@given(st.integers(1, 60))
@settings(max_examples=20)
def test_waits_have_no_clock_of_their_own(tries: int) -> None:
    """The next try is counted from the time that was handed in."""
    verdict = judge(delivery(tries=tries), transient(), jitter=1.0)
    assert isinstance(verdict, Again)
    assert verdict.delivery.next_try_at == NOW + timedelta(seconds=backoff_s(tries, 1.0))
