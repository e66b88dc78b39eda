"""The figures of attachd, for a monitoring system to collect and for the page's picture of the last hours.

The parts that do the work call one method per thing that happened; what can be seen by looking (waiting, under way,
paused) is taken from a `Status` when somebody asks. Label values come from closed sets, inboxes included: never a
file's name, an id or a URL, so the number of series does not grow with the files.

Not thread-safe as a whole: called on the event loop.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from attachd.model import InboxName, InboxStatus, Reason, Status, Step

CONTENT_TYPE = CONTENT_TYPE_LATEST

BIN_S = 600
"""The picture of the last hours counts by ten minutes."""

BINS = 36
"""Six hours of them."""

_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Seconds, from a step on this machine to a large file over a slow line. Ours."""

_MOST_IGNORE_REASONS = 40
"""Far more than there are; a bug that counted by something else must not become a series each."""


@dataclass(frozen=True, slots=True)
class Bin:
    """How many deliveries ended in the ten minutes from `begins_at` (seconds since 1970)."""

    begins_at: int
    sent: int
    failed: int


class Metrics:
    """All counters of one daemon, in a registry of its own."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._recent = _Recent(clock)
        self._glance = _Glance()
        self._registry = registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        registry.register(self._glance)
        self._sent = Counter("attachd_sent", "Files delivered.", ["inbox"], registry=registry)
        self._sent_bytes = Counter("attachd_sent_bytes", "Bytes of the files delivered.", ["inbox"], registry=registry)
        self._took = Histogram(
            "attachd_delivery_seconds",
            "From the claim to the file lying in sent/.",
            ["inbox"],
            buckets=_LATENCIES,
            registry=registry,
        )
        self._failed = Counter("attachd_failed", "Files given up.", ["inbox", "reason"], registry=registry)
        self._deferred = Counter(
            "attachd_deferred", "Attempts put off until later.", ["inbox", "step", "reason"], registry=registry
        )
        self._pauses = Counter(
            "attachd_pauses", "Pauses begun; of the whole platform where inbox is empty.", ["inbox", "reason"],
            registry=registry,
        )  # fmt: skip
        self._steps = Histogram(
            "attachd_step_seconds",
            "Seconds a delivered file spent in each step, waiting for its turn included.",
            ["step"],
            buckets=_LATENCIES,
            registry=registry,
        )
        self._scan = Gauge("attachd_scan_seconds", "How long the last look took.", ["inbox"], registry=registry)
        self._scan_only = Gauge(
            "attachd_found_by_scan_only",
            "Files since the start that no event announced.",
            ["inbox"],
            registry=registry,
        )
        self._quota = Gauge(
            "attachd_quota_used_ratio", "Share of the allowed requests in use, 0 to 1.", registry=registry
        )
        # Looking a series up costs more than counting in it, and seven steps are counted for every file.
        self._step = {step: self._steps.labels(step.value) for step in Step}
        self._sent_of: dict[InboxName, tuple[Counter, Counter, Histogram]] = {}

    def sent(self, inbox: InboxName, size: int, took_s: float, steps: Iterable[tuple[Step, float]] = ()) -> None:
        """A file was delivered and filed; `steps` as in a Journey."""
        series = self._sent_of.get(inbox)
        if series is None:
            series = self._sent.labels(inbox), self._sent_bytes.labels(inbox), self._took.labels(inbox)
            self._sent_of[inbox] = series
        files, sent_bytes, took = series
        files.inc()
        sent_bytes.inc(size)
        took.observe(took_s)
        for step, step_s in steps:
            self._step[step].observe(step_s)
        self._recent.ended(sent=True)

    def failed(self, inbox: InboxName, reason: Reason) -> None:
        """A file was given up and filed."""
        self._failed.labels(inbox, reason.value).inc()
        self._recent.ended(sent=False)

    def deferred(self, inbox: InboxName, step: Step, reason: Reason) -> None:
        """An attempt ended without a decision; there will be another."""
        self._deferred.labels(inbox, step.value, reason.value).inc()

    def paused(self, inbox: InboxName | None, reason: Reason) -> None:
        """A pause began; inbox None: of everything."""
        self._pauses.labels(inbox or "", reason.value).inc()

    def scanned(self, inbox: InboxName, took_s: float, found_by_scan_only: int) -> None:
        """An inbox was looked through; the count is of all files since the start that no event announced."""
        self._scan.labels(inbox).set(took_s)
        self._scan_only.labels(inbox).set(found_by_scan_only)

    def quota_from(self, used: Callable[[], float]) -> None:
        """Where to ask for the share of the quota in use, 0 to 1, whenever somebody collects."""
        self._quota.set_function(used)

    def remembered(self, ended: Iterable[tuple[float, bool]], *, all_since: float | None) -> None:
        """Deliveries that ended before this start, as (seconds since 1970, sent), for the picture of the last hours.

        `all_since`: how far back these are all there were; None when that is the whole picture.
        """
        self._recent.remember(ended, all_since)

    def last_hours(self) -> tuple[Sequence[Bin], int]:
        """Ended deliveries of the last six hours by ten minutes, oldest first, and since when they are complete."""
        return self._recent.bins(), self._recent.complete_since()

    @property
    def started_at(self) -> float:
        """Since when outcomes are counted here, in seconds since 1970."""
        return self._recent.started_at

    def exposition(self, status: Status | None) -> bytes:
        """Everything in Prometheus' text form; without a status, without what only a look can tell."""
        self._glance.status = status
        try:
            return generate_latest(self._registry)
        finally:
            self._glance.status = None


class _Recent:
    """Outcomes by ten minutes; the bins are aligned to the clock, so that pictures of two moments agree."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.started_at = clock()
        self._all_since: float | None = self.started_at
        self._bins: deque[tuple[int, list[int]]] = deque(maxlen=BINS)

    def ended(self, *, sent: bool) -> None:
        begins_at = self._begin(self._clock())
        if not self._bins or self._bins[-1][0] < begins_at:
            self._bins.append((begins_at, [0, 0]))
        self._bins[-1][1][0 if sent else 1] += 1

    def remember(self, ended: Iterable[tuple[float, bool]], all_since: float | None) -> None:
        counted = {begins_at: list(counts) for begins_at, counts in self._bins}
        for at, sent in ended:
            if at < self.started_at:
                counted.setdefault(self._begin(at), [0, 0])[0 if sent else 1] += 1
        self._bins = deque(sorted(counted.items()), maxlen=BINS)
        self._all_since = all_since

    def bins(self) -> list[Bin]:
        counted = dict(self._bins)
        return [Bin(at, *counted.get(at, (0, 0))) for at in range(self._first(), self._first() + BINS * BIN_S, BIN_S)]

    def complete_since(self) -> int:
        return self._first() if self._all_since is None else max(self._first(), int(self._all_since))

    def _first(self) -> int:
        return self._begin(self._clock()) - (BINS - 1) * BIN_S

    @staticmethod
    def _begin(at: float) -> int:
        return int(at) // BIN_S * BIN_S


class _Glance(Collector):
    """What a look at the status tells, as gauges: an inbox that was removed is gone from them at once."""

    def __init__(self) -> None:
        self.status: Status | None = None

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        status = self.status
        if status is None:
            return
        yield InfoMetricFamily("attachd_build", "Which attachd this is.", {"version": status.version})
        paused = GaugeMetricFamily("attachd_platform_paused", "1 while everything waits.")
        paused.add_metric([], float(status.platform is not None))
        yield paused
        for name, words, read in _BY_INBOX:
            family = GaugeMetricFamily(name, words, labels=["inbox"])
            for inbox in status.inboxes:
                family.add_metric([inbox.name], float(read(inbox)))
            yield family
        ignored = GaugeMetricFamily("attachd_ignored", "Names left alone, by reason.", labels=["inbox", "reason"])
        for inbox in status.inboxes:
            for reason, count in list(inbox.ignored.items())[:_MOST_IGNORE_REASONS]:
                ignored.add_metric([inbox.name, reason], count)
        yield ignored


_BY_INBOX: tuple[tuple[str, str, Callable[[InboxStatus], float]], ...] = (
    ("attachd_waiting", "Files that wait in the inbox.", lambda inbox: inbox.waiting),
    (
        "attachd_oldest_waiting_seconds",
        "Age of the file that waits longest, 0 without one.",
        lambda inbox: inbox.oldest_waiting_s or 0.0,
    ),
    ("attachd_under_way", "Files claimed and not ended.", lambda inbox: inbox.under_way),
    ("attachd_inbox_paused", "1 while this inbox waits.", lambda inbox: inbox.pause is not None),
)
