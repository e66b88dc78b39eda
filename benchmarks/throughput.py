"""Files a second with journal and fsyncs on, as a share of the bare loop's."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import PROJECT, Attachd, Stub, fill, scratch

FILES = 2000
FILE_BYTES = 50 * 1024
ROUNDS = 5
FAR_S = 0.02
"""What an answer of a platform in the same country takes at least."""
FAR_ROUNDS = 3


def measure(
    base: Path | None, *, files: int = FILES, rounds: int = ROUNDS, far_rounds: int = FAR_ROUNDS
) -> dict[str, Any]:
    """Rounds in turns: bare loop on uvloop, attachd, bare loop on asyncio's own; then with a platform `FAR_S` away."""
    taken: dict[str, list[dict[str, float]]] = {"bare": [], "attachd": [], "bare_asyncio": []}
    for _ in range(rounds):
        taken["bare"].append(_bare(base, files, "uvloop"))
        taken["attachd"].append(_attachd(base, files))
        taken["bare_asyncio"].append(_bare(base, files, "asyncio"))
    result: dict[str, Any] = {"files": files, "file_bytes": FILE_BYTES, "rounds": taken}
    for who, rows in taken.items():
        result[who] = {figure: statistics.median(row[figure] for row in rows) for figure in rows[0]}
    result["share"] = statistics.median(_shares(taken, "bare"))
    result["share_asyncio"] = statistics.median(_shares(taken, "bare_asyncio"))
    result["far"] = _far(base, files // 2, far_rounds)
    return result


def _far(base: Path | None, files: int, rounds: int) -> dict[str, float]:
    taken: dict[str, list[dict[str, float]]] = {"bare": [], "attachd": []}
    for _ in range(rounds):
        taken["bare"].append(_bare(base, files, "uvloop", latency_s=FAR_S))
        taken["attachd"].append(_attachd(base, files, latency_s=FAR_S))
    rates = {who: statistics.median(row["files_per_s"] for row in rows) for who, rows in taken.items()}
    return {"latency_s": FAR_S, "files": files, "share": statistics.median(_shares(taken, "bare")), **rates}


def _shares(taken: dict[str, list[dict[str, float]]], against: str) -> list[float]:
    pairs = zip(taken["attachd"], taken[against], strict=True)
    return [one["files_per_s"] / other["files_per_s"] for one, other in pairs]


def _attachd(base: Path | None, files: int, *, latency_s: float = 0.0) -> dict[str, float]:
    with scratch(base) as folder, Stub("--latency", str(latency_s)) as stub:
        inbox = folder / "inbox"
        fill(inbox, files, FILE_BYTES)
        with Attachd(folder, stub, [inbox]) as daemon:
            daemon.ready()
            before = daemon.usage()
            ended = daemon.deliver(files, 300)
            used, counts = daemon.usage(), stub.counts()
            return {
                "files_per_s": files / (ended - counts["first_at"]),
                "cpu_ms_per_file": (used.cpu_s - before.cpu_s) / files * 1000,
                "stub_cpu_ms_per_file": stub.usage().cpu_s / files * 1000,
                "peak_mb": used.peak_kb / 1024,
                "calls_per_file": counts["calls"] / files,
            }


def _bare(base: Path | None, files: int, loop: str, *, latency_s: float = 0.0) -> dict[str, float]:
    with scratch(base) as folder, Stub("--latency", str(latency_s)) as stub:
        inbox = folder / "inbox"
        fill(inbox, files, FILE_BYTES)
        said = subprocess.run(
            [sys.executable, "-m", "benchmarks.bare", stub.url, str(inbox), "--loop", loop],
            check=True,
            capture_output=True,
            text=True,
            cwd=PROJECT,
        ).stdout
        took = json.loads(said)
        return {
            "files_per_s": files / took["seconds"],
            "cpu_ms_per_file": took["cpu_s"] / files * 1000,
            "stub_cpu_ms_per_file": stub.usage().cpu_s / files * 1000,
            "peak_mb": took["peak_kb"] / 1024,
            "calls_per_file": stub.counts()["calls"] / files,
        }
