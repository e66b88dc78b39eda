"""`python -m tests.campaign`: all parts, one table, exit code 1 on any violation."""

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TextIO

from tests.campaign import calls, disks, errors, faults, faults_wm, kills, power
from tests.campaign.nursery import Nursery
from tests.campaign.report import OTHER, Tally, Violation, table
from tests.campaign.scene import Scene

PARTS = ("kills", "kills-wm", "syscalls", "errors", "disks", "power", "faults", "faults-wm")

_SHOWN = 40


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    fresh = str(secrets.randbelow(1_000_000))
    parser.add_argument("--seed", nargs="?", default=fresh, const=fresh, help="repeats the choices of a run")
    parser.add_argument("--part", default=",".join(PARTS), help="some of: " + ",".join(PARTS))
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--wm-kills", type=int, default=200, help="kills over the web messaging gateway")
    parser.add_argument("--stride", type=int, default=1, help="every how many-th system call is struck")
    parser.add_argument("--points", action="store_true", help="say where was struck how often")
    parser.add_argument("--base", type=Path, help="a folder to work in, on a real disk")
    given = parser.parse_args()
    parts = given.part.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    base = given.base or Path(tempfile.mkdtemp(prefix="attachd-campaign-"))
    base.mkdir(parents=True, exist_ok=True)
    _say(f"seed {given.seed}, in {base}")
    tallies = asyncio.run(_campaign(given, parts, base))
    violations = [violation for tally in tallies for violation in tally.violations]
    for violation in violations[:_SHOWN]:
        _say(str(violation))
    if len(violations) > _SHOWN:
        _say(f"... and {len(violations) - _SHOWN} more")
    if given.points:
        for tally in tallies:
            _say(f"\n{tally.part}: struck at")
            for point, count in sorted(tally.points.items()):
                _say(f"  {count:6}  {point}")
    _say(f"\nseed {given.seed}\n\n{table(tallies)}\n")
    _say(f"{len(violations)} violations")
    if not violations:
        shutil.rmtree(base, ignore_errors=True)
    return 1 if violations else 0


def _say(line: str, stream: TextIO = sys.stdout) -> None:
    stream.write(line + "\n")
    stream.flush()


async def _campaign(given: argparse.Namespace, parts: list[str], base: Path) -> list[Tally]:
    began = time.monotonic()

    def tell(line: str) -> None:
        _say(f"{time.monotonic() - began:7.1f} s  {line}", sys.stderr)

    tallies = []
    async with Nursery() as nursery:
        scene = Scene(base, nursery, given.seed, tell)
        runs: dict[str, Callable[[], Awaitable[Tally]]] = {
            "kills": lambda: kills.run(scene, kills=given.kills, files=given.files),
            "kills-wm": lambda: kills.run(
                scene, kills=given.wm_kills, files=4 * given.wm_kills, gateway="webmessaging"
            ),
            "syscalls": lambda: calls.run(scene, every_call=given.stride == 1),
            "errors": lambda: errors.run(scene, stride=given.stride),
            "disks": lambda: disks.run(scene),
            "power": lambda: power.run(scene, cuts=given.cuts),
            "faults": lambda: faults.run(scene),
            "faults-wm": lambda: faults_wm.run(scene),
        }
        for part in parts:
            tell(f"{part} begins")
            try:
                tallies.append(await runs[part]())
            except Exception:  # noqa: BLE001  what the other parts counted is to be seen all the same
                broken = Violation(part, OTHER, "the campaign itself broke", traceback.format_exc())
                tallies.append(Tally(part, violations=[broken]))
            tell(f"{part} ends: {len(tallies[-1].violations)} violations")
    return tallies


if __name__ == "__main__":
    sys.exit(main())
