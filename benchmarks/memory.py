"""What attachd costs while nothing happens, and while large files go out slowly."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Attachd, Stub, drop, fill, scratch, until

IDLE_S = 30.0
REST_S = 8.0
"""Until idle connections are closed, and what the work before left behind is done with."""
UPLOADS = 16
UPLOAD_BYTES = 25 << 20
UPLOAD_S = 6.0
WARM_UP = 20
_SMALL_BYTES = 50 * 1024
_SAMPLE_S = 0.1


def measure(
    base: Path | None,
    *,
    idle_s: float = IDLE_S,
    rest_s: float = REST_S,
    upload_bytes: int = UPLOAD_BYTES,
    upload_s: float = UPLOAD_S,
) -> dict[str, Any]:
    """One daemon: right after its start, idle after a few files, then 16 uploads at a time that take `upload_s`."""
    with scratch(base) as folder, Stub("--bytes-per-s", str(upload_bytes / upload_s)) as stub:
        inbox = folder / "inbox"
        with Attachd(folder, stub, [inbox]) as daemon:
            daemon.ready()
            fresh = daemon.usage()
            fill(folder / "small", WARM_UP, _SMALL_BYTES)
            drop(folder / "small", inbox)
            daemon.deliver(WARM_UP, 60)
            time.sleep(rest_s)
            idle = _idle(daemon, idle_s)
            uploads = _uploads(daemon, stub, folder, inbox, upload_bytes)
            return {"fresh_mb": fresh.rss_kb / 1024, "idle": idle, "uploads": uploads}


def _idle(daemon: Attachd, seconds: float) -> dict[str, float]:
    before, began = daemon.usage(), time.monotonic()
    time.sleep(seconds)
    after, took = daemon.usage(), time.monotonic() - began
    return {
        "seconds": took,
        "rss_mb": after.rss_kb / 1024,
        "cpu_share": (after.cpu_s - before.cpu_s) / took,
        "wake_ups_per_s": (after.switches - before.switches) / took,
    }


def _uploads(daemon: Attachd, stub: Stub, folder: Path, inbox: Path, upload_bytes: int) -> dict[str, float]:
    fill(folder / "large", UPLOADS, upload_bytes, prefix="large")
    daemon.forget_peak()
    before, began = daemon.usage(), time.monotonic()
    puts = stub.counts()["bytes_put"]
    drop(folder / "large", inbox)
    at_once = in_buffers = 0

    def all_sent() -> bool:
        nonlocal at_once, in_buffers
        given = list(_bytes_given(daemon))
        if len(given) >= at_once:
            at_once = len(given)
            in_buffers = max(in_buffers, sum(given) - (stub.counts()["bytes_put"] - puts))
        return daemon.sent() >= WARM_UP + UPLOADS

    until(all_sent, 120, "the large files", every_s=_SAMPLE_S)
    after = daemon.usage()
    return {
        "file_mb": upload_bytes / (1 << 20),
        "at_once": at_once,
        "seconds": time.monotonic() - began,
        "before_mb": before.rss_kb / 1024,
        "peak_mb": after.peak_kb / 1024,
        "increase_mb": (after.peak_kb - before.rss_kb) / 1024,
        "in_buffers_mb": in_buffers / (1 << 20),
    }


def _bytes_given(daemon: Attachd) -> Iterator[int]:
    """How much of each file that is being uploaded attachd has given to its socket."""
    for work in json.loads(daemon.ask("/api/status"))["under_way"]:
        if work["step"] == "put":
            yield work["bytes_sent"]
