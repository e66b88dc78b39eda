"""Where figures come from: without it they mean nothing."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attachd import __version__


def describe(base: Path) -> dict[str, Any]:
    """This machine, this attachd, and the file system of the folder that is worked in."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "attachd": __version__,
        "cores": len(os.sched_getaffinity(0)),
        "processor": _first("/proc/cpuinfo", "model name"),
        "memory_mb": int(_first("/proc/meminfo", "MemTotal").split()[0]) // 1024,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "file_system": _file_system(base.resolve()),
        "load_at_start": os.getloadavg()[0],
    }


def _first(path: str, name: str) -> str:
    """What stands behind the first line that begins with the name. Source: proc(5)."""
    for line in Path(path).read_text().splitlines():
        before, _, value = line.partition(":")
        if before.strip() == name:
            return value.strip()
    return "0 unknown"


def _file_system(folder: Path) -> str:
    """The type of the mount the folder lies in. Source: proc_pid_mountinfo(5)."""
    found = Path("/proc/self/mountinfo").read_text().splitlines()
    types = {}
    for line in found:
        before, _, after = line.partition(" - ")
        types[Path(before.split()[4])] = after.split()[0]
    return next(types[place] for place in (folder, *folder.parents) if place in types)
