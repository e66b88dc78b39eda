"""A hand on every state-changing system call of a daemon: let it pass, fail it, kill at its entry, or hold it there.

By the kernel's user notification for seccomp filters (seccomp_unotify(2), Linux 5.8 or newer): the filter is installed
in the child before attachd begins, so all its threads have it, and each call that matters waits until the campaign has
decided. So there is one count over all threads, where strace counts for each thread by itself; and a call that is
killed or held at its entry has had no effect.
"""

import asyncio
import ctypes
import errno
import fcntl
import os
import platform
import re
import select
import signal
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import TypeAlias

_X86_64 = {
    "write": 1, "open": 2, "pwrite64": 18, "writev": 20, "sendto": 44, "sendmsg": 46, "fsync": 74, "fdatasync": 75,
    "truncate": 76, "ftruncate": 77, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87,
    "symlink": 88, "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266,
    "fallocate": 285, "pwritev": 296, "sendmmsg": 307, "renameat2": 316, "pwritev2": 328,
}  # fmt: skip
_AARCH64 = {
    "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37, "renameat": 38, "truncate": 45, "ftruncate": 46,
    "fallocate": 47, "openat": 56, "write": 64, "writev": 66, "pwrite64": 68, "pwritev": 70, "fsync": 82,
    "fdatasync": 83, "sendto": 206, "sendmsg": 211, "sendmmsg": 269, "renameat2": 276, "pwritev2": 287,
}  # fmt: skip
_MACHINES = {"x86_64": (0xC000003E, _X86_64, 317), "aarch64": (0xC00000B7, _AARCH64, 277)}
_ARCH, CALLS, _NR_SECCOMP = _MACHINES.get(platform.machine(), (0, {}, 0))
_NAMES = {number: name for name, number in CALLS.items()}
_NR_PIDFD_GETFD = 438

_BY_PATH = {
    "mkdir": 0,
    "rmdir": 0,
    "unlink": 0,
    "open": 0,
    "creat": 0,
    "truncate": 0,
    "symlink": 1,
    "rename": 1,
    "link": 1,
}
_BY_FOLDER = {"mkdirat": 0, "unlinkat": 0, "openat": 0, "symlinkat": 1, "renameat": 2, "renameat2": 2, "linkat": 2}
"""Which argument holds the path, or the folder's descriptor that the path follows; of a move, where it goes to."""

_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_LOAD, _EQUALS, _HAS_BIT, _AT_MOST, _RETURN = 0x20, 0x15, 0x45, 0x25, 0x06
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_libc = ctypes.CDLL(None, use_errno=True)


def available() -> bool:
    """Whether this machine lets us."""
    return bool(CALLS) and hasattr(os, "pidfd_open") and "user_notif" in _actions()


def _actions() -> str:
    try:
        return Path("/proc/sys/kernel/seccomp/actions_avail").read_text()
    except OSError:
        return ""


def install() -> int:
    """Install the filter in this process; returns the descriptor at which its calls are announced."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))

    steps = _filter()
    code = ctypes.create_string_buffer(b"".join(steps))
    program = Program(len(steps), ctypes.addressof(code))
    if _libc.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "prctl")
    listener = _libc.syscall(_NR_SECCOMP, 1, 8, ctypes.byref(program))  # SET_MODE_FILTER, NEW_LISTENER
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(listener)


def _filter() -> list[bytes]:
    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    # Writes to the standard streams are the log's; only an opening that may make a file matters.
    steps = [step(_LOAD, 4), step(_EQUALS, _ARCH, 1), step(_RETURN, _ALLOW), step(_LOAD, 0)]
    steps += [step(_EQUALS, CALLS["write"], 0, 4), step(_LOAD, 16), step(_AT_MOST, 2, 1), step(_RETURN, _ALLOW)]
    steps += [step(_RETURN, _NOTIFY)]
    steps += [step(_EQUALS, CALLS["openat"], 0, 4), step(_LOAD, 32), step(_HAS_BIT, os.O_CREAT, 1)]
    steps += [step(_RETURN, _ALLOW), step(_RETURN, _NOTIFY)]
    rest = [number for name, number in CALLS.items() if name not in ("write", "openat", "open")]
    steps += [step(_EQUALS, number, len(rest) - index) for index, number in enumerate(rest)]
    return [*steps, step(_RETURN, _ALLOW), step(_RETURN, _NOTIFY)]


class Do(Enum):
    """What is to become of a call, when it is neither let through (None) nor failed (an errno)."""

    KILL = auto()
    """End the process; the call has no effect."""
    HOLD = auto()
    """Keep this call and all that follow waiting until the process is killed."""


@dataclass(frozen=True, slots=True)
class Call:
    """One state-changing call at its entry; `number` counts over all threads, from 1. `where` has neither ids nor
    names of files.
    """

    number: int
    name: str
    where: str
    at: float

    @property
    def point(self) -> str:
        """Which step of the daemon this is, as far as the kernel sees it."""
        return f"{self.name} {self.where}"


Decide: TypeAlias = Callable[[Call], "Do | int | None"]


@dataclass(eq=False)
class Intercepted:
    """The calls of one process. `roots` are the folders that count, by the names they get in `where`."""

    pid: int
    roots: Mapping[str, Path]
    decide: Decide
    calls: list[Call] = field(default_factory=list)
    struck: list[Call] = field(default_factory=list)
    holding: bool = False

    async def listen(self, listener: int) -> None:
        """Take over the child's listener and begin to answer."""
        pidfd = os.pidfd_open(self.pid)
        try:
            while True:
                try:
                    if os.readlink(f"/proc/{self.pid}/fd/{listener}") == "anon_inode:seccomp notify":
                        break
                except OSError:
                    pass
                await asyncio.sleep(0)
            taken = _libc.syscall(_NR_PIDFD_GETFD, pidfd, listener, 0)
            if taken < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
        finally:
            os.close(pidfd)
        self._listener = int(taken)
        self._polled = select.poll()
        self._polled.register(self._listener, select.POLLIN)
        asyncio.get_running_loop().add_reader(self._listener, self._ready)

    def close(self) -> None:
        """Let go; what was held stays held until the process is killed."""
        if self._listener >= 0:
            asyncio.get_running_loop().remove_reader(self._listener)
            os.close(self._listener)
            self._listener = -1

    def _ready(self) -> None:
        while self._listener >= 0 and (ready := self._polled.poll(0)):
            if not ready[0][1] & select.POLLIN:
                self.close()  # nobody is left who could call
                return
            asked = bytearray(80)
            try:
                fcntl.ioctl(self._listener, _RECEIVE, asked)
            except OSError:
                continue  # the caller was killed meanwhile
            ident, thread, _, number, _, _, *arguments = struct.unpack("QIIiIQ6Q", asked)
            answer = self._judge(thread, _NAMES[number], arguments)
            if isinstance(answer, Do):
                if answer is Do.KILL:
                    os.kill(self.pid, signal.SIGKILL)
                continue
            try:
                fcntl.ioctl(
                    self._listener, _SEND, struct.pack("QqiI", ident, 0, -(answer or 0), 0 if answer else _CONTINUE)
                )
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise

    def _judge(self, thread: int, name: str, arguments: list[int]) -> "Do | int | None":
        if self.holding:
            return Do.HOLD
        try:
            where = self._where(thread, name, arguments)
        except OSError:
            return None
        if where is None:
            return None
        call = Call(len(self.calls) + 1, name, where, time.time())
        self.calls.append(call)
        verdict = self.decide(call)
        if verdict is not None:
            self.struck.append(call)
        self.holding = verdict is Do.HOLD
        return verdict

    def _where(self, thread: int, name: str, arguments: list[int]) -> str | None:
        if name in _BY_PATH:
            path = _text_at(thread, arguments[_BY_PATH[name]])
        elif name in _BY_FOLDER:
            folder, place = _BY_FOLDER[name], _BY_FOLDER[name] + 1
            base = ctypes.c_int(arguments[folder] & 0xFFFFFFFF).value
            path = _text_at(thread, arguments[place])
            if not path.startswith("/"):
                link = "cwd" if base < 0 else f"fd/{base}"
                path = os.path.join(os.readlink(f"/proc/{thread}/{link}"), path)
        else:
            path = os.readlink(f"/proc/{thread}/fd/{arguments[0]}")
            if path.startswith("socket:"):
                return "network"
        for root, folder_path in self.roots.items():
            if path == str(folder_path) or path.startswith(f"{folder_path}/"):
                return place_of(root, path.removeprefix(str(folder_path)).strip("/"))
        return None


def place_of(root: str, relative: str) -> str:
    """A path without what differs from file to file and from run to run."""
    parts = [part for part in relative.removesuffix(" (deleted)").split("/") if part]
    if root == "state":
        # Drafts have a random ending.
        return "/".join([root, *(re.sub(r"^(\..*)\.\w+$", r"\1.*", part) for part in parts)])
    parts = ["*" if _ID.fullmatch(part) else part for part in parts]
    if parts[:2] == [".attachd", "claimed"]:
        parts[3:] = ["file"] if len(parts) > 3 else []
    elif parts[:1] in (["sent"], ["failed"]):
        parts[1:] = ["reason" if parts[-1].endswith(".reason.txt") else "file"] if len(parts) > 1 else []
    elif parts[:1] != [".attachd"]:
        parts = ["file"] if parts else []
    return "/".join([root, *parts])


def _text_at(thread: int, address: int) -> str:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        text = b""
        while b"\0" not in text and len(text) < 4096:
            memory.seek(address + len(text))
            # Not beyond the page: the next one may not be there.
            text += memory.read(4096 - (address + len(text)) % 4096)
    return os.fsdecode(text.partition(b"\0")[0])
