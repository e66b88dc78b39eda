"""`python -m benchmarks`: measures every figure, writes one JSON file, prints one table."""

import argparse
import compileall
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import attachd
from benchmarks import growth, journal, latency, machine, memory, quota, table, throughput, waiting

RESULTS = Path(__file__).parent / "results.json"


@dataclass(frozen=True, slots=True)
class Part:
    """Something to measure. `quick` only shows that it works; `full` goes as far as anybody asked for."""

    measure: Callable[..., dict[str, Any]]
    quick: dict[str, Any]
    full: dict[str, Any] = field(default_factory=dict)


PARTS = {
    "throughput": Part(throughput.measure, {"files": 20, "rounds": 1, "far_rounds": 1}),
    "quota": Part(quota.measure, {"seconds": 1, "seconds_others": 1}),
    "latency": Part(latency.measure, {"drops": 5, "busy": 3, "flooded": 2, "flood": 20}),
    "memory": Part(memory.measure, {"idle_s": 0.5, "rest_s": 0, "upload_bytes": 1 << 20, "upload_s": 1}),
    "waiting": Part(
        waiting.measure, {"sizes": (1000,), "flow_s": 0.1, "scanning_s": 0.5}, {"sizes": waiting.SIZES_FULL}
    ),
    "growth": Part(growth.measure, {"files": 40, "points": (20, 40)}, {"files": growth.FILES_FULL}),
    "journal": Part(journal.measure, {"past": 1000, "files": 20, "rounds": 1, "forget_slices": 3}),
}


def run(names: Sequence[str], base: Path, *, quick: bool, full: bool) -> dict[str, Any]:
    """Measure these parts one after the other; a quick run, whose figures mean nothing, all at once."""
    results: dict[str, Any] = {"machine": machine.describe(base), "size": _size(quick=quick, full=full), "parts": {}}

    def measure(name: str) -> dict[str, Any]:
        part, began = PARTS[name], time.monotonic()
        sizes = part.quick if quick else part.full if full else {}
        try:
            found = part.measure(base, **sizes)
        except Exception as error:  # noqa: BLE001  the other parts are measured all the same
            traceback.print_exc()
            found = {"broke": f"{type(error).__name__}: {error}"}
        took_s = time.monotonic() - began
        print(f"{name}: {took_s:.0f} s", file=sys.stderr, flush=True)
        return {**found, "took_s": took_s}

    with ThreadPoolExecutor(len(names) if quick else 1) as pool:
        results["parts"] = dict(zip(names, pool.map(measure, names), strict=True))
    return results


def _size(*, quick: bool, full: bool) -> str:
    return "quick" if quick else "full" if full else "default"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--part", help=f"only these, with commas between: {', '.join(PARTS)}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    size.add_argument("--full", action="store_true", help="100,000 files in one run, 1,000,000 waiting: half an hour")
    parser.add_argument("--base", type=Path, default=Path("/var/tmp"), help="where to work; a folder on a real disk")
    parser.add_argument("--out", type=Path, help=f"JSON file; default for a run of everything: {RESULTS}")
    given = parser.parse_args()
    names = given.part.split(",") if given.part else list(PARTS)
    if unknown := set(names) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    # As pip does where it installs: what is compiled at each start costs a daemon two megabytes for good.
    compileall.compile_dir(next(iter(attachd.__path__)), quiet=2)
    results = run(names, given.base, quick=given.quick, full=given.full)
    # A part alone, or a quick run, must not take the place of figures that were measured together.
    out = given.out or (None if given.part or given.quick else RESULTS)
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")
    print(table.text(table.rows(results["parts"])))
    return int(any("broke" in part for part in results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
