"""Tries, under the unit's own restrictions, what attachd must be able to do and what it must not; prints what went."""

import ctypes
import json
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def _write(folder: str) -> Callable[[], object]:
    def attempt() -> None:
        path = Path(folder, "probe-was-here")
        path.write_text("x")
        path.unlink()

    return attempt


def _run_from(folder: str) -> Callable[[], object]:
    return lambda: _run(Path(folder, ".probe"))


def _run(script: Path) -> None:
    script.write_text("#!/bin/sh\nexit 0\n")
    try:
        script.chmod(0o755)
        subprocess.run([str(script)], check=True)
    finally:
        script.unlink()


def _remounted(path: str) -> Callable[[], object]:
    def attempt() -> None:
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            raise PermissionError("is mounted read-only")

    return attempt


def _see_others() -> None:
    if not [pid for pid in os.listdir("/proc") if pid.isdecimal() and os.stat(f"/proc/{pid}").st_uid != os.getuid()]:
        raise PermissionError("sees none")


def _call(number_of: str, *arguments: int | bytes | None) -> Callable[[], object]:
    def attempt() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if getattr(libc, number_of)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    return attempt


ALLOWED: dict[str, Callable[[], object]] = {
    "write to the inboxes": _write("/srv/attachd"),
    "write to its state": _write(os.environ.get("STATE_DIRECTORY", "/nowhere")),
    "write to its runtime folder": _write(os.environ.get("RUNTIME_DIRECTORY", "/nowhere")),
    "write to a /tmp of its own": _write("/tmp"),
    "speak TCP": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
}
FORBIDDEN: dict[str, Callable[[], object]] = {
    **{f"write to {folder}": _write(folder) for folder in ("/etc", "/etc/attachd", "/usr", "/opt/attachd", "/var/lib")},
    **{
        f"write to {folder}": _write(folder)
        for folder in ("/", "/srv", "/run", "/var/log", "/dev", "/home", "/root", "/dev/shm")
    },
    "list /root": lambda: os.listdir("/root"),
    "read /etc/shadow": lambda: Path("/etc/shadow").read_bytes(),
    "read the secret where root keeps it": lambda: Path("/etc/attachd/client_secret").read_bytes(),
    "change a kernel setting": lambda: Path("/proc/sys/kernel/hostname").write_text("x"),
    "run a file from an inbox": _run_from("/srv/attachd"),
    "run a file from its state": _run_from(os.environ.get("STATE_DIRECTORY", "/nowhere")),
    "run a file from /tmp": _run_from("/tmp"),
    **{
        f"write to {path}, were it root": _remounted(path)
        for path in ("/usr", "/usr/bin", "/opt/attachd", "/etc/attachd", "/srv")
    },
    "see processes of others": _see_others,
    "open a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "make memory that is writable and executable": lambda: mmap.mmap(
        -1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ),
    "become root": lambda: os.setuid(0),
    "make a user namespace": _call("unshare", 0x10000000),
    "trace a neighbour": _call("ptrace", 16, 1, 0, 0),
    "mount": _call("mount", b"none", b"/srv/attachd", b"tmpfs", 0, None),
    "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
}


def main() -> None:
    """One JSON object: the names of the tries, each with "done" or why not."""
    outcome = {}
    for name, attempt in {**ALLOWED, **FORBIDDEN}.items():
        try:
            attempt()
        except (OSError, subprocess.SubprocessError) as error:
            outcome[name] = f"{type(error).__name__}: {error}"
        else:
            outcome[name] = "done"
    sys.stdout.write(json.dumps({"probe": outcome}) + "\n")


if __name__ == "__main__":
    main()
