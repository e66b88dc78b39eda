"""How much of a quota is used when the platform enforces it, and how often that goes wrong."""

from pathlib import Path
from typing import Any

from benchmarks.harness import Attachd, Stub, drop, fill, scratch

QUOTA = 100
SECONDS = 60
SECONDS_OTHERS = 15
LATENCY_S = 0.2
CONCURRENCY = 16
WIDER = 32
"""Concurrency at which `LATENCY_S` is not the limit: four answers a file, so 40 files a second, of which 33 may go."""
CALLS_PER_FILE = 3
FILE_BYTES = 10 * 1024


def measure(base: Path | None, *, seconds: float = SECONDS, seconds_others: float = SECONDS_OTHERS) -> dict[str, Any]:
    """One inbox, two inboxes, and 200 ms before each answer, with the default concurrency and with a wider one."""
    return {
        "one_inbox": _run(base, seconds),
        "two_inboxes": _run(base, seconds_others, inboxes=2),
        "latency": _run(base, seconds_others, latency_s=LATENCY_S),
        "latency_wider": _run(base, seconds_others, latency_s=LATENCY_S, concurrency=WIDER),
    }


def _run(
    base: Path | None, seconds: float, *, inboxes: int = 1, latency_s: float = 0.0, concurrency: int = CONCURRENCY
) -> dict[str, float]:
    """Deliver what the quota allows in so many seconds. The first and the last second are left out of the share."""
    files = int(seconds * QUOTA / CALLS_PER_FILE)
    with scratch(base) as folder, Stub("--quota", str(QUOTA), "--latency", str(latency_s)) as stub:
        paths = [folder / f"inbox-{number}" for number in range(inboxes)]
        for path in paths:
            fill(_outgoing(path), files // inboxes, FILE_BYTES, prefix=path.name)
        with Attachd(folder, stub, paths, requests_per_second=QUOTA, concurrency=concurrency) as daemon:
            daemon.ready()
            for path in paths:
                drop(_outgoing(path), path)
            daemon.deliver(files // inboxes * inboxes, 4 * seconds + 60)
        counts, accepted_at = stub.counts(), stub.accepted_at()
    margin = min(1 + latency_s, seconds / 4)
    begin, end = accepted_at[0] + margin, accepted_at[-1] - margin
    within = sum(begin <= at < end for at in accepted_at)
    return {
        "files": files // inboxes * inboxes,
        "concurrency": concurrency,
        "seconds": end - begin,
        "share": within / (end - begin) / QUOTA,
        "refused_share": counts["refused"] / counts["calls"],
        "refused": counts["refused"],
        "calls_per_file": len(accepted_at) / counts["posted"],
    }


def _outgoing(inbox: Path) -> Path:
    return inbox.with_name(f"outgoing-{inbox.name}")
