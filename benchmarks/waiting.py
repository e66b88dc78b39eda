"""What a very full inbox costs: until the first file is delivered, in memory, and for every look through the folder."""

import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Attachd, Stub, fill, scratch, until

SIZES = (100_000,)
SIZES_FULL = (100_000, 1_000_000)
"""A million files take minutes to make and to remove."""
QUOTA = 100
DEFAULT_RESCAN_S = 60.0
DEFAULT_SETTLE_S = 2.0
FLOW_S = 10.0
SCANNING_S = 15.0
"""The daemon brings the figure of how long a look takes up to date every ten seconds."""
_FEW = 20
_FILE_BYTES = 200
_STANDSTILL = 0.001
"""Requests a second with which nothing moves: every look at the folder finds the same."""
_RESCAN_S = 0.5
_LONGEST_S = 120.0


def measure(
    base: Path | None, *, sizes: Sequence[int] = SIZES, flow_s: float = FLOW_S, scanning_s: float = SCANNING_S
) -> dict[str, Any]:
    """The same folder with more and more files. The daemon delivers for `flow_s` while its memory is watched, and does
    nothing but look through the folder for `scanning_s`.
    """
    with scratch(base) as folder, Stub() as stub:
        few_mb = _few(folder, stub)
        rows = []
        inbox = folder / "inbox"
        for size in sizes:
            there = sum(entry.is_file() for entry in os.scandir(inbox)) if inbox.exists() else 0
            _begin_anew(folder, inbox)
            fill(inbox, size - there, _FILE_BYTES, prefix=f"wait{size}")
            unsettled_s = _first(folder, stub, inbox)
            _begin_anew(folder, inbox)
            row = {
                "files": size,
                "first_delivery_unsettled_s": unsettled_s,
                **_flow(folder, stub, inbox, flow_s),
                **_scan(folder, stub, inbox, size, scanning_s),
            }
            rows.append({**row, "increase_mb": row["peak_mb"] - few_mb})
        return {"idle_mb": few_mb, "settle_s": DEFAULT_SETTLE_S, "sizes": rows}


def _begin_anew(folder: Path, inbox: Path) -> None:
    """Without what the daemon before had claimed: that would be delivered first, and at once."""
    for place in (folder / "state", inbox / ".attachd"):
        shutil.rmtree(place, ignore_errors=True)


def _few(folder: Path, stub: Stub) -> float:
    """What the daemon needs when a few files were delivered and none waits."""
    inbox = folder / "few"
    fill(inbox, _FEW, _FILE_BYTES)
    with Attachd(folder, stub, [inbox], requests_per_second=QUOTA) as daemon:
        daemon.ready()
        until(lambda: daemon.sent() == _FEW, _LONGEST_S, "a few files")
        time.sleep(1)
        return daemon.usage().rss_kb / 1024


def _first(folder: Path, stub: Stub, inbox: Path) -> float:
    """From the start of the daemon to the first conversation, in seconds, where a file is complete as it lies there."""
    before: int = stub.counts()["posted"]
    with Attachd(folder, stub, [inbox], requests_per_second=QUOTA, settle="0ms") as daemon:
        until(lambda: stub.counts()["posted"] > before, _LONGEST_S, "the first of many files")
        _, at = stub.conversations()[before]
        daemon.stop()
    return at - daemon.started_at


def _flow(folder: Path, stub: Stub, inbox: Path, seconds: float) -> dict[str, float]:
    """With the default settings: the start, and the memory while files go out as fast as the quota allows."""
    before = stub.counts()["posted"]
    with Attachd(folder, stub, [inbox], requests_per_second=QUOTA) as daemon:
        daemon.ready()
        ready_s = time.monotonic() - daemon.started_at
        until(lambda: stub.counts()["posted"] > before, _LONGEST_S, "the first of many files")
        first_s = stub.conversations()[before][1] - daemon.started_at
        time.sleep(seconds)
        used = daemon.usage()
        daemon.stop()
    return {
        "ready_s": ready_s,
        "first_delivery_s": first_s,
        "rss_mb": used.rss_kb / 1024,
        "peak_mb": used.peak_kb / 1024,
    }


def _scan(folder: Path, stub: Stub, inbox: Path, files: int, seconds: float) -> dict[str, float]:
    """CPU of a look through all names, from many looks in a row while nothing else happens."""
    rescan = f"{_RESCAN_S * 1000:.0f}ms"
    with Attachd(folder, stub, [inbox], requests_per_second=_STANDSTILL, rescan=rescan) as daemon:
        daemon.ready()
        until(lambda: _waiting(daemon) > files / 2, _LONGEST_S, "the first look through the folder")
        before, began = daemon.usage(), time.monotonic()
        time.sleep(seconds)
        after, took = daemon.usage(), time.monotonic() - began
        scan_s = _last_scan_s(daemon)
    # From the end of a look to the end of the next are so many seconds.
    cpu_s = (after.cpu_s - before.cpu_s) * (_RESCAN_S + scan_s) / took
    return {"scan_s": scan_s, "scan_cpu_s": cpu_s, "rescan_share": cpu_s / DEFAULT_RESCAN_S}


def _waiting(daemon: Attachd) -> int:
    waiting: int = json.loads(daemon.ask("/api/status"))["inboxes"][0]["waiting"]
    return waiting


def _last_scan_s(daemon: Attachd) -> float:
    found = re.search(r"^attachd_scan_seconds\{.*\} (\S+)$", daemon.ask("/metrics"), re.MULTILINE)
    return float(found[1]) if found else 0.0
