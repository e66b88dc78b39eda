"""What is written is read back equal, whatever the names."""

import json
import os
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attachd.admin import wire
from attachd.model import (
    Claimed,
    Delivery,
    Document,
    Explanation,
    Failed,
    Failure,
    InboxStatus,
    Journey,
    PauseStatus,
    Posted,
    Posting,
    Reason,
    Receipt,
    Retried,
    Sent,
    Status,
    Step,
    UnderWay,
    Upload,
    Uploaded,
    Version,
)
from attachd.ports import Entry
from attachd.telemetry import printable

from .scripted import CLAIMS, Scripted, delivery, failed, inbox, pause

names = st.binary(min_size=1, max_size=12).map(os.fsdecode) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12
)
words = st.text("abc äé.:'\"<>&", max_size=12)
ids = st.text("0123456789abcdef-", min_size=1, max_size=36)
counts = st.integers(0, 2**63)
some_s = st.floats(0, 1e9)
moments = st.datetimes(  # the bounds are naive: Hypothesis adds the zone
    datetime(1971, 1, 1),  # noqa: DTZ001
    datetime(2999, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5.5))]),
)
failures = st.builds(
    Failure, st.sampled_from(Reason), words, st.sampled_from(Step), st.none() | st.integers(100, 599), st.none() | ids
)
uploads = st.builds(Upload, ids, ids, st.builds(Document, names, words, counts), ids)
receipts = st.builds(Receipt, st.none() | ids, st.none() | ids)
states = st.one_of(
    st.just(Claimed()),
    st.builds(Uploaded, uploads),
    st.builds(Posting, uploads, names, counts),
    st.builds(Posted, uploads, receipts, counts),
    st.builds(Sent, uploads, receipts, names, counts),
    st.builds(Failed, failures, names, st.none() | uploads, st.none() | receipts),
)
deliveries = st.builds(
    Delivery,
    id=ids,
    inbox=names,
    name=names,
    version=st.builds(Version, counts, counts, counts, counts, counts),
    claimed_at=moments,
    state=states,
    tries=counts,
    strikes=counts,
    next_try_at=st.none() | moments,
    last_failure=st.none() | failures,
)
steps = st.sampled_from(Step)
pauses = st.none() | st.builds(PauseStatus, st.sampled_from(Reason), words, st.none() | some_s, some_s)
inboxes = st.builds(
    InboxStatus, names, names, pauses, counts, counts, counts, counts,
    st.dictionaries(st.sampled_from(["hidden", "excluded"]), counts), st.none() | some_s,
)  # fmt: skip
statuses = st.builds(
    Status,
    running=st.booleans(),
    version=words,
    platform=pauses,
    inboxes=st.lists(inboxes, max_size=2).map(tuple),
    under_way=st.lists(st.builds(UnderWay, deliveries, st.none() | steps, counts, st.none() | some_s), max_size=2).map(
        tuple
    ),
    latest=st.lists(
        st.builds(Journey, deliveries, moments, some_s, st.lists(st.tuples(steps, some_s), max_size=3).map(tuple)),
        max_size=2,
    ).map(tuple),
)


def over_the_wire(told: Any) -> Any:
    """As it comes out at the other end; strict UTF-8, so nothing in it is half a character."""
    return json.loads(json.dumps(told, ensure_ascii=False, allow_nan=False).encode("utf-8"))


@settings(max_examples=30, deadline=None)
@given(statuses)
def test_a_status_comes_back_equal(told: Status) -> None:
    assert wire.status_from(over_the_wire(wire.status(told))) == told


@settings(max_examples=40, deadline=None)
@given(st.lists(st.builds(Entry, deliveries, moments), max_size=3))
def test_deliveries_come_back_equal(told: list[Entry]) -> None:
    assert wire.entries_from(over_the_wire(wire.entries(told))) == told


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        Explanation,
        names,
        words,
        st.lists(words, max_size=3).map(tuple),
        st.none() | names,
        st.none() | words,
        st.none() | deliveries,
        st.none() | steps,
        st.none() | some_s,
    )
)
def test_an_explanation_comes_back_equal(told: Explanation) -> None:
    assert wire.explanation_from(over_the_wire(wire.explanation(told))) == told


@settings(max_examples=30, deadline=None)
@given(st.lists(st.builds(Retried, st.none() | ids, names, names, st.none() | names, st.none() | words), max_size=3))
def test_what_was_retried_comes_back_equal(told: list[Retried]) -> None:
    assert wire.retried_from(over_the_wire(wire.retried(told))) == told


@given(names)
def test_a_name_is_shown_harmless_and_kept_exact(name: str) -> None:
    """What a script prints is one line; what it needs to find the file is beside it."""
    told = over_the_wire(wire.name_pair("file", name))
    assert told["file"] == printable(name)
    assert wire.name_of("file", told) == name


def test_the_keys_that_scripts_rely_on() -> None:
    daemon = Scripted()
    daemon.add_failure(failed(delivery(1, "scan.exe", 17), Reason.REFUSED, "the platform refuses this type"))
    (entry,) = wire.entries(daemon.entries)
    pinned = ("delivery_id", "inbox", "file", "state", "size", "attempts", "reason", "conversation_id", "updated_at")
    assert [entry[key] for key in pinned[1:8]] == ["claims", "scan.exe", "failed", 17, 1, "refused", None]
    assert datetime.fromisoformat(entry[pinned[8]]).tzinfo == UTC
    told = wire.status(
        Status(True, "1", pause(), (inbox(ignored={"hidden": 2, "excluded": 1}, waiting=3, oldest_waiting_s=9.5),))
    )
    assert {key: told["platform"][key] for key in ("state", "reason", "retry_in_s")} == {
        "state": "paused",
        "reason": "unreachable",
        "retry_in_s": 40.0,
    }
    (first,) = told["inboxes"]
    keys = ("name", "path", "state", "reason", "waiting", "under_way", "sent", "failed", "ignored", "oldest_waiting_s")
    assert [first[key] for key in keys] == ["claims", "/srv/attachd/claims", "ok", None, 3, 0, 0, 0, 3, 9.5]


def test_texts_for_people_go_out_without_secrets_and_in_one_line() -> None:
    secret = "https://bucket.example/put?X-Amz-Signature=deadbeef"
    told = json.dumps(
        [
            wire.entries([Entry(failed(delivery(1, "a"), Reason.REFUSED, f"PUT {secret}\nfailed"), datetime.now(UTC))]),
            wire.explanation(Explanation("/a", "failed", (f"It went to {secret}.",))),
            wire.retried([Retried(None, CLAIMS, "a", None, f"no: {secret}")]),
            wire.status(Status(True, "1", pause(detail=secret), ())),
        ]
    )
    assert "deadbeef" not in told
    assert "\\\\x0a" in told


@pytest.mark.parametrize("answer", [None, [], {}, {"running": True}, "text"])
def test_an_answer_of_something_else_is_said_to_be_one(answer: Any) -> None:
    with pytest.raises(wire.WireError):
        wire.status_from(answer)
