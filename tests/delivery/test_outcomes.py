"""The mass-failure guard: one bad file fails, an inbox full of them waits."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachd.delivery.outcomes import Outcomes
from attachd.model import InboxName

INBOX, OTHER = InboxName("claims"), InboxName("bills")


def after(endings: str, *, at_s: Iterable[float] | None = None) -> Outcomes:
    """A letter for each delivery that ended, the oldest first: `r` for refused, `s` for sent."""
    outcomes = Outcomes()
    for letter, now in zip(endings, at_s or [0.0] * len(endings), strict=True):
        outcomes.ended(INBOX, now, refused=letter == "r")
    return outcomes


@pytest.mark.parametrize(
    ("endings", "too_many"),
    [
        ("", False),
        ("rr", False),
        ("rrr", True),  # the fourth would be the one too many
        ("rrr" + "s" * 16, False),  # four of twenty are a fifth, and not more
        ("rrrr" + "s" * 15, True),
        ("s" * 100 + "rrr", False),
        ("s" * 100 + "rrrr", True),
        ("r" * 20 + "s" * 19, False),  # only the last twenty count
    ],
)
def test_more_than_three_and_more_than_a_fifth_are_too_many(endings: str, too_many: bool) -> None:
    """Of the last twenty, the one that is asked about included."""
    assert after(endings).too_many_failures(INBOX, 1.0) == too_many


def test_what_is_longer_ago_than_ten_minutes_does_not_count() -> None:
    """Three a day are no flood; nor do old successes hide a new one."""
    refused = after("rrr", at_s=[0.0, 1.0, 2.0])
    assert refused.too_many_failures(INBOX, 600.0)
    assert not refused.too_many_failures(INBOX, 600.1)
    assert after("s" * 16 + "rrr", at_s=[0.0] * 16 + [700.0] * 3).too_many_failures(INBOX, 700.0)


def test_an_inbox_answers_for_itself() -> None:
    """What is refused in one says nothing of another."""
    assert not after("rrrrrr").too_many_failures(OTHER, 1.0)


@given(st.text("rs", max_size=60))
def test_refusing_to_give_up_changes_nothing(endings: str) -> None:
    """Asking is not counting: the answer stays the same until something ends."""
    outcomes = after(endings)
    assert len({outcomes.too_many_failures(INBOX, 1.0) for _ in range(3)}) == 1


@given(st.text("rs", max_size=60))
def test_successes_open_the_way_again(endings: str) -> None:
    """However bad it was: after nineteen files that passed, one may fail."""
    assert not after(endings + "s" * 19).too_many_failures(INBOX, 1.0)


@given(st.lists(st.floats(0, 200), max_size=200))
def test_never_more_than_three_of_an_inbox_that_sends_nothing(gaps: list[float]) -> None:
    """Where the guard is asked before each, and nothing passes: three in any ten minutes are given up."""
    outcomes, now, given_up = Outcomes(), 0.0, []
    for gap in gaps:
        now += gap
        if not outcomes.too_many_failures(INBOX, now):
            outcomes.ended(INBOX, now, refused=True)
            given_up.append(now)
        assert sum(now - at <= 600 for at in given_up) <= 3
