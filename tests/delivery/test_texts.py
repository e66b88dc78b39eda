"""Texts for people: the agent's message and the reason beside a failed file."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachd.delivery.texts import message_text, readable_size, reason_text
from attachd.errors import ADVICE
from attachd.model import Delivery, DeliveryId, Document, Failure, InboxName, Reason, Step, Version

AT = datetime(2025, 3, 4, 6, 6, 7, tzinfo=timezone(timedelta(hours=1)))
DELIVERY = Delivery(DeliveryId("01"), InboxName("claims"), "in/sc\u202ean\x1b.pdf", Version(1, 2, 3, 4, 5), AT, tries=3)
DOCUMENT = Document("scan.pdf", "application/pdf", 2048)


def test_the_message_names_the_document() -> None:
    """Every placeholder is filled in; what is none stays as it is."""
    text = message_text("$name $inbox $size $received $id 5$ $other ${name}", DELIVERY.inbox, DELIVERY, DOCUMENT)
    assert text == "scan.pdf claims 2.0 KiB 2025-03-04 05:06:07 UTC 01 5$ $other scan.pdf"


def test_a_file_name_is_no_template() -> None:
    """A name with a placeholder in it is told as it is."""
    document = Document("$id.pdf", "application/pdf", 1)
    assert message_text("$name", DELIVERY.inbox, DELIVERY, document) == "$id.pdf"


@given(st.text(max_size=6000))
def test_a_message_is_never_too_long(template: str) -> None:
    """Whatever the config says, the platform can take it."""
    assert len(message_text(template, DELIVERY.inbox, DELIVERY, DOCUMENT)) <= 4096


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_says_what_happened_and_what_to_do(reason: Reason) -> None:
    """What, why, what now, and what support will ask for; the name cannot forge a line."""
    failure = Failure(reason, "the platform said no", Step.UPLOAD, 413, "trace-1")
    text = reason_text(DELIVERY, failure, AT)
    assert text.startswith("scan.pdf w" if "may or may not" not in text else "scan.pdf may or may not have been sent.")
    for line in (
        "Why:       the platform said no",
        f"What now:  {ADVICE[reason]}\n",
        f"Reason:    {reason} (at step: upload)",
        "Delivery:  01",
        "Attempts:  3",
        "Received:  2025-03-04 05:06:07 UTC",
        "Answer:    HTTP 413",
        "Trace id:  trace-1",
    ):
        assert " ".join(line.split()) in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_a_message_in_doubt_is_not_called_unsent() -> None:
    """Who reads the reason must not drop the file again before asking."""
    for reason in (Reason.UNKNOWN_OUTCOME, Reason.JOURNAL_LOST):
        text = reason_text(DELIVERY, Failure(reason, "no answer", Step.MESSAGE), AT.astimezone(UTC))
        assert "was not sent" not in text
        assert "Ask the agents" in text


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1048575, "1.0 MiB"),
        (25 << 20, "25.0 MiB"),
    ],
)
def test_sizes_are_for_people(size: int, words: str) -> None:
    """One unit, one decimal, no 1024.0 of anything."""
    assert readable_size(size) == words
