"""The figures as rows for people: what was measured, what it should be, whether it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHARE = 0.7
QUOTA_SHARE = 0.98
REFUSED_SHARE = 0.001
CALLS_PER_FILE = 3
P50_MS = 15.0
P99_MS = 60.0
IDLE_MB = 60.0
MORE_MB = 20.0
FIRST_DELIVERY_S = 2.0
IDLE_CPU_SHARE = 0.002
WAITING_WITH_GOAL = 100_000
"""The goals are design.md's, section 7; for a million waiting files it has none."""

WAITING_WANTED = 1_000_000
GROWTH_WANTED = 100_000
_LEFT_OUT = "with --full only"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `reached` is None where there is no goal."""

    part: str
    figure: str
    measured: str
    goal: str = ""
    reached: bool | None = None

    @property
    def verdict(self) -> str:
        """`reached` in a word."""
        return {None: "", True: "yes", False: "no"}[self.reached]


def rows(parts: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """All rows of the parts that were measured, in a fixed order; of one that broke, why."""
    found: list[Row] = []
    for part, rows_of in _PARTS.items():
        if part in parts:
            broke = parts[part].get("broke")
            found += [Row(part, "broke", broke)] if broke else rows_of(part, parts[part])
    return found


def text(all_rows: Sequence[Row]) -> str:
    """The rows in columns."""
    head = ("part", "figure", "measured", "goal", "reached")
    cells = [head, *((row.part, row.figure, row.measured, row.goal, row.verdict) for row in all_rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def _throughput(part: str, told: Mapping[str, Any]) -> Iterator[Row]:
    mine, bare, other = told["attachd"], told["bare"], told["bare_asyncio"]
    label = f"files/s, {told['files']:,} files of {told['file_bytes'] // 1024} KiB"
    yield Row(part, label, f"{mine['files_per_s']:.0f}")
    yield _least(part, "… as a share of a bare loop's (uvloop)", told["share"], SHARE, _ratio)
    yield Row(part, "… as a share of a bare loop's (asyncio)", _ratio(told["share_asyncio"]))
    far = told["far"]
    label = f"… of the same loop's, with a platform {far['latency_s'] * 1000:.0f} ms away"
    yield Row(part, label, f"{_ratio(far['share'])} ({far['attachd']:.0f} of {far['bare']:.0f} files/s)")
    rates = f"{bare['files_per_s']:.0f} / {other['files_per_s']:.0f}"
    yield Row(part, "files/s of the bare loop, uvloop / asyncio", rates)
    yield Row(part, "CPU a file", f"{mine['cpu_ms_per_file']:.2f} ms (bare {bare['cpu_ms_per_file']:.2f} ms)")
    yield Row(part, "peak memory", f"{_mb(mine['peak_mb'])} (bare {_mb(bare['peak_mb'])})")


_QUOTA_RUNS = {
    "one_inbox": ("one inbox", True),
    "two_inboxes": ("two inboxes", True),
    # Here concurrency is the limit: it shows why the other is set.
    "latency": ("200 ms latency", False),
    "latency_wider": ("200 ms latency", True),
}


def _quota(part: str, told: Mapping[str, Any]) -> Iterator[Row]:
    for run, (words, has_goal) in _QUOTA_RUNS.items():
        of = told[run]
        label = f"share of the quota used: {words}, {of['seconds']:.0f} s, concurrency {of['concurrency']}"
        share = of["share"]
        yield _least(part, label, share, QUOTA_SHARE, _percent) if has_goal else Row(part, label, _percent(share))
        yield Row(part, "… 429 answers", _fine(of["refused_share"]), "< 0.1 %", of["refused_share"] < REFUSED_SHARE)
        calls = of["calls_per_file"]
        yield _most(part, "… calls a file, refused ones not counted", calls, CALLS_PER_FILE, "{:.3g}".format)


_LATENCY_STATES = {
    "idle": ("idle", True),
    "busy": ("second inbox busy", True),
    "flooded": ("second inbox flooded", False),
    "idle_without_quota": ("idle, without a quota", False),
}


def _latency(part: str, told: Mapping[str, Any]) -> Iterator[Row]:
    for state, (words, has_goal) in _LATENCY_STATES.items():
        for cut, goal in (("p50", P50_MS), ("p99", P99_MS)):
            label = f"rename → conversation request, {words}: {cut}"
            value = told[state][cut]
            yield _most(part, label, value, goal, _ms) if has_goal else Row(part, label, _ms(value))


def _memory(part: str, told: Mapping[str, Any]) -> Iterator[Row]:
    idle, uploads = told["idle"], told["uploads"]
    yield Row(part, "just started", _mb(told["fresh_mb"]))
    yield _most(part, "idle, after some files", idle["rss_mb"], IDLE_MB, _mb)
    label = f"{uploads['at_once']} uploads of {uploads['file_mb']:.0f} MiB at a time"
    yield _more(part, label, uploads["increase_mb"])
    yield _most(part, "CPU when idle, of a core", idle["cpu_share"], IDLE_CPU_SHARE, _fine)
    yield Row(part, "wake-ups a second when idle", f"{idle['wake_ups_per_s']:.1f}")


def _waiting(part: str, told: Mapping[str, Any]) -> Iterator[Row]:
    for size in told["sizes"]:
        files, first_s = f"{size['files']:,} waiting", size["first_delivery_s"]
        label = f"{files}: start → first delivery, nothing has to settle"
        unsettled_s = size["first_delivery_unsettled_s"]
        settled = Row(part, f"{files}: … with the default settle of {told['settle_s']:g} s", _s(first_s))
        if size["files"] <= WAITING_WITH_GOAL:
            yield _most(part, label, unsettled_s, FIRST_DELIVERY_S, _s)
            yield settled
            yield _more(part, f"{files}: memory", size["increase_mb"])
        else:
            yield Row(part, label, _s(unsettled_s))
            yield settled
            yield Row(part, f"{files}: memory", f"+ {_mb(size['increase_mb'])}")
        yield Row(part, f"{files}: CPU of a look through the folder", _s(size["scan_cpu_s"]))
        yield Row(part, f"{files}: … at the default rescan, of a core", _fine(size["rescan_share"]))
    if max(size["files"] for size in told["sizes"]) < WAITING_WANTED:
        yield Row(part, f"{WAITING_WANTED:,} waiting", _LEFT_OUT)


def _growth(part: str, told: Mapping[str, Any]) -> Iterator[Row]:
    for point in told["points"]:
        measured = f"{point['files_per_s']:.0f} files/s, {_mb(point['rss_mb'])}"
        yield Row(part, f"up to {point['files']:,} files in one run", measured)
    if told["files"] < GROWTH_WANTED:
        yield Row(part, f"up to {GROWTH_WANTED:,} files in one run", _LEFT_OUT)


_COMMANDS = {
    "list_s": "attachd list",
    "list_failed_s": "attachd list --state failed",
    "status_s": "attachd status",
    "explain_s": "attachd explain",
}


def _journal(part: str, told: Mapping[str, Any]) -> Iterator[Row]:
    empty, full, forget = told["empty"], told["full"], told["forget"]
    past = f"{told['past']:,} past deliveries"
    yield Row(part, f"size with {past}", _mb(told["journal_mb"]))
    yield Row(part, f"start until ready, {past} (none)", f"{_s(full['ready_s'])} ({_s(empty['ready_s'])})")
    yield Row(part, f"files/s, {past} (none)", f"{full['files_per_s']:.0f} ({empty['files_per_s']:.0f})")
    yield Row(part, f"memory, {past} (none)", f"{_mb(full['rss_mb'])} ({_mb(empty['rss_mb'])})")
    for key, command in _COMMANDS.items():
        yield Row(part, f"{command}, {past} (none)", f"{_s(full[key])} ({_s(empty[key])})")
    label = f"forget {forget['slice']} of {past}: p50, max"
    yield Row(part, label, f"{_ms(forget['p50_ms'])}, {_ms(forget['max_ms'])}")


_PARTS = {
    "throughput": _throughput,
    "quota": _quota,
    "latency": _latency,
    "memory": _memory,
    "waiting": _waiting,
    "growth": _growth,
    "journal": _journal,
}


def _least(part: str, figure: str, value: float, goal: float, form: Any) -> Row:
    return Row(part, figure, form(value), f"≥ {form(goal)}", value >= goal)


def _most(part: str, figure: str, value: float, goal: float, form: Any) -> Row:
    return Row(part, figure, form(value), f"≤ {form(goal)}", value <= goal)


def _more(part: str, figure: str, value: float) -> Row:
    return Row(part, figure, f"+ {_mb(value)}", f"≤ + {_mb(MORE_MB)}", value <= MORE_MB)


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{value * 100:.1f} %"


def _fine(value: float) -> str:
    return f"{value * 100:.2g} %"


def _mb(value: float) -> str:
    return f"{value:.0f} MB"


def _ms(value: float) -> str:
    return f"{value:.1f} ms"


def _s(value: float) -> str:
    return f"{value:.2f} s"
