"""What is collected, and that it does not grow with the files."""

from dataclasses import replace

import pytest

from attachd.metrics import BIN_S, BINS, Metrics
from attachd.model import InboxName, Reason, Status, Step

from .scripted import CLAIMS, delivery, failed, inbox, journey, pause, sent, under_way


def read(metrics: Metrics, status: Status | None = None) -> dict[str, float]:
    """Every series and its figure."""
    lines = metrics.exposition(status).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_what_happens_is_counted_by_closed_words() -> None:
    metrics = Metrics()
    metrics.sent(CLAIMS, 1000, 0.2, [(Step.PUT, 0.1), (Step.MESSAGE, 0.03)])
    metrics.sent(CLAIMS, 500, 0.2)
    metrics.failed(CLAIMS, Reason.REFUSED)
    metrics.deferred(CLAIMS, Step.PUT, Reason.TIMEOUT)
    metrics.paused(None, Reason.UNREACHABLE)
    metrics.scanned(CLAIMS, 0.004, 7)
    metrics.quota_from(lambda: 0.25)
    told = read(metrics)
    assert told['attachd_sent_total{inbox="claims"}'] == 2
    assert told['attachd_sent_bytes_total{inbox="claims"}'] == 1500
    assert told['attachd_failed_total{inbox="claims",reason="refused"}'] == 1
    assert told['attachd_deferred_total{inbox="claims",reason="timeout",step="put"}'] == 1
    assert told['attachd_pauses_total{inbox="",reason="unreachable"}'] == 1
    assert told['attachd_step_seconds_count{step="put"}'] == 1
    assert told['attachd_scan_seconds{inbox="claims"}'] == 0.004
    assert told['attachd_found_by_scan_only{inbox="claims"}'] == 7
    assert told["attachd_quota_used_ratio"] == 0.25


def test_what_a_look_tells_is_of_now() -> None:
    """An inbox that was removed by a reload is gone from the gauges."""
    metrics = Metrics()
    paused = inbox("scans", pause=pause(Reason.FOLDER_MISSING), waiting=4, oldest_waiting_s=33.0, ignored={"hidden": 2})
    told = read(metrics, Status(True, "1.0", pause(), (inbox(under_way=2), paused)))
    assert told['attachd_waiting{inbox="scans"}'] == 4
    assert told['attachd_oldest_waiting_seconds{inbox="scans"}'] == 33
    assert told['attachd_under_way{inbox="claims"}'] == 2
    assert told["attachd_platform_paused"] == 1
    assert told['attachd_inbox_paused{inbox="scans"}'] == 1
    assert told['attachd_inbox_paused{inbox="claims"}'] == 0
    assert told['attachd_ignored{inbox="scans",reason="hidden"}'] == 2
    assert not [name for name in read(metrics, Status(True, "1.0", None, (inbox(),))) if "scans" in name]


def test_ten_thousand_odd_names_are_not_one_series_more() -> None:
    metrics = Metrics()
    for reason in Reason:
        metrics.failed(CLAIMS, reason)

    def one(number: int) -> int:
        name = f'"}} evil{number}\n{{x="\u202e\udc80'
        begun = delivery(number, name)
        metrics.sent(begun.inbox, number, 0.1, [(step, 0.01) for step in Step])
        metrics.failed(begun.inbox, Reason.REFUSED)
        ended = journey(failed(begun, Reason.REFUSED, name)), journey(sent(begun))
        told = Status(True, "1", None, (inbox(),), (under_way(begun, Step.PUT, 1),), ended)
        if number % 3333:
            return 0
        text = metrics.exposition(told)
        assert b"evil" not in text
        return len(text.splitlines())

    counts = {one(number) for number in range(1, 10_001)} - {0}
    assert len(counts) == 1
    assert counts.pop() < 500


def test_the_last_hours_are_counted_by_ten_minutes() -> None:
    now = 1_790_000_000.0 // BIN_S * BIN_S
    metrics = Metrics(clock=lambda: now)
    metrics.sent(CLAIMS, 1, 0.1)
    now += 2 * BIN_S
    metrics.sent(CLAIMS, 1, 0.1)
    metrics.failed(CLAIMS, Reason.EMPTY)
    bins, complete_since = metrics.last_hours()
    assert [(one.sent, one.failed) for one in bins[-3:]] == [(1, 0), (0, 0), (1, 1)]
    assert len(bins) == BINS
    assert complete_since == metrics.started_at
    now += BINS * BIN_S
    bins, complete_since = metrics.last_hours()
    assert sum(one.sent for one in bins) == 0
    assert complete_since == bins[0].begins_at


@pytest.mark.parametrize(("all_since", "complete"), [(None, "first"), (1_790_000_000 - 5000, "told")])
def test_what_the_journal_remembers_belongs_to_the_picture(all_since: float | None, complete: str) -> None:
    """A restart does not make the last hours look empty; what was counted here is not counted twice."""
    metrics = Metrics(clock=lambda: 1_790_000_000.0)
    metrics.sent(CLAIMS, 1, 0.1)
    metrics.remembered([(1_790_000_000 - 4000, True), (1_790_000_000 + 1, True)], all_since=all_since)
    bins, complete_since = metrics.last_hours()
    assert sum(one.sent for one in bins) == 2
    assert complete_since == (bins[0].begins_at if complete == "first" else all_since)


def test_an_inbox_name_of_the_operator_cannot_forge_a_line() -> None:
    odd = InboxName('a"} 1\nattachd_sent_total{inbox="b')
    metrics = Metrics()
    metrics.sent(odd, 1, 0.1)
    told = metrics.exposition(Status(True, "1", None, (replace(inbox(), name=odd),))).decode()
    assert not [line for line in told.splitlines() if line.startswith('attachd_sent_total{inbox="b')]
