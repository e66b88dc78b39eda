"""Processes to be measured, the folders they work in, and what the kernel says of them."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

T = TypeVar("T")

PROJECT = Path(__file__).resolve().parents[1]
PDF = b"%PDF-1.4\n"
_LONGEST_START_S = 120.0
_POLL_S = 0.02
_POLL_STUB_S = 0.05
_FORGET_PEAK = "5"


class Stuck(Exception):  # noqa: N818  says what is the matter
    """What is measured did not come to its end in time."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used until now. `switches`: how often one of its threads went to sleep, and so woke up."""

    cpu_s: float
    rss_kb: int
    peak_kb: int
    switches: int


def usage(pid: int) -> Usage:
    """Source: proc(5); the CPU time from the process's clock, since `/proc/PID/stat` counts in steps of 10 ms."""
    status = _status(Path(f"/proc/{pid}/status"))
    switches = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            switches += _status(thread / "status")["voluntary_ctxt_switches"]
    return Usage(time.clock_gettime(_cpu_clock(pid)), status["VmRSS"], status["VmHWM"], switches)


def _cpu_clock(pid: int) -> int:
    """What clock_getcpuclockid(3) gives on Linux: the pid's complement, and 2 for a clock that counts nanoseconds."""
    return (~pid << 3) | 2


def _status(path: Path) -> dict[str, int]:
    pairs = (line.split(":", 1) for line in path.read_text().splitlines())
    return {name: int(value.split()[0]) for name, value in pairs if value.split() and value.split()[0].isdigit()}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The middle, the usual worst and the worst of at least two values."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(values)}


def until(condition: Callable[[], T | None], seconds: float, what: str, *, every_s: float = _POLL_S) -> T:
    """What the condition gives as soon as it is something true. Raises Stuck."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise Stuck(f"{what}: not within {seconds:g} s")
        time.sleep(every_s)
    return found


@contextlib.contextmanager
def scratch(base: Path | None = None) -> Iterator[Path]:
    """A folder on a real disk, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="attachd-bench-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fill(folder: Path, number: int, size: int, *, prefix: str = "scan") -> None:
    """Write so many files of so many bytes, and let the disk have them: what follows is not to pay for it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = PDF + os.urandom(max(0, size - len(PDF)))
    for index in range(number):
        (folder / f"{prefix}-{index:07}.pdf").write_bytes(content)
    os.sync()


def drop(outgoing: Path, inbox: Path) -> None:
    """Rename all files of a folder into an inbox: such files are complete at once."""
    for file in outgoing.iterdir():
        file.rename(inbox / file.name)


class _Process:
    """A Python program with its own process, killed at the end."""

    def __init__(self, *arguments: str, log: Path | None = None) -> None:
        output = subprocess.PIPE if log is None else log.open("w")
        self._process = subprocess.Popen([sys.executable, *arguments], stdout=output, text=True, cwd=PROJECT)

    @property
    def pid(self) -> int:
        return self._process.pid

    def usage(self) -> Usage:
        return usage(self.pid)

    def forget_peak(self) -> None:
        """Let `peak_kb` begin anew with what is used now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text(_FORGET_PEAK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class Stub(_Process):
    """The platform of `benchmarks.stub`."""

    def __init__(self, *options: str) -> None:
        super().__init__("-m", "benchmarks.stub", *options)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def counts(self) -> dict[str, Any]:
        """`stub.Counts`."""
        counts: dict[str, Any] = self._ask("/stats")
        return counts

    def conversations(self) -> list[tuple[str, float]]:
        """The file name in each conversation request so far, and when it had come, monotonic."""
        return [(name, at) for name, at in self._ask("/stats/conversations")]

    def accepted_at(self) -> list[float]:
        """When each token-bearing call came that was not refused, monotonic."""
        times: list[float] = self._ask("/stats/accepted")
        return times

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return json.load(answer)


class Attachd(_Process):
    """The daemon as it is installed, with everything on: journal, fsyncs, log, admin page."""

    def __init__(
        self,
        folder: Path,
        stub: Stub,
        inboxes: Sequence[Path],
        *,
        requests_per_second: float = 10_000,
        concurrency: int = 16,
        **inbox: object,
    ) -> None:
        self.log = folder / "attachd.log"
        self.state = folder / "state"
        self.config = folder / "config.yaml"
        self.inboxes = inboxes
        self._stub = stub
        # In a folder of its own: the name of a socket has to be short, wherever the rest lies.
        self._private = tempfile.TemporaryDirectory(prefix="attachd-bench-")
        self._socket = Path(self._private.name) / "admin.sock"
        settings = {
            "platform": {
                "client_id": "benchmark",
                "client_secret": "benchmark-secret",
                "queue_id": "queue",
                "api_url": stub.url,
                "login_url": stub.url,
                "requests_per_second": requests_per_second,
                "max_file_size": "25MiB",
            },
            "delivery": {"concurrency": concurrency},
            "inboxes": [{"path": str(path), **inbox} for path in inboxes],
            "state_dir": str(self.state),
            "log": {"format": "json"},
            "admin": {"listen": f"unix:{self._socket}"},
        }
        self.config.write_text(yaml.safe_dump(settings))
        for path in inboxes:
            path.mkdir(parents=True, exist_ok=True)
        self.started_at = time.monotonic()
        super().__init__("-m", "attachd", "run", "-c", str(self.config), log=self.log)

    def ready(self) -> Self:
        """Once it says so."""
        until(self._is_ready, _LONGEST_START_S, "the start of attachd")
        return self

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise Stuck(f"attachd ended with {self._process.returncode}: {self.log.read_text()[-2000:]}")
        return "daemon.ready" in self.log.read_text()

    def sent(self) -> int:
        """How many files lie in the `sent/` folders."""
        return sum(len(os.listdir(path / "sent")) for path in self.inboxes if (path / "sent").exists())

    def failed(self) -> int:
        """How many things lie in the `failed/` folders: a benchmark has none."""
        return sum(len(os.listdir(path / "failed")) for path in self.inboxes if (path / "failed").exists())

    def deliver(self, number: int, seconds: float) -> float:
        """Wait until so many are in `sent/`; when that was, monotonic."""
        # To list a folder of many files again and again would cost more than what is measured.
        until(lambda: self._stub.counts()["posted"] >= number, seconds, f"{number} messages", every_s=_POLL_STUB_S)
        until(lambda: self.sent() >= number, seconds, f"{number} files in sent/")
        ended = time.monotonic()
        if failed := self.failed():
            raise Stuck(f"{failed} files failed; see {self.log}")
        return ended

    def ask(self, path: str) -> str:
        """What the admin server answers."""
        with contextlib.closing(_Local(self._socket)) as connection:
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    def command(self, *words: str) -> float:
        """How many seconds `attachd WORDS -c CONFIG` takes, from the shell's point of view."""
        began = time.monotonic()
        program = [sys.executable, "-m", "attachd", *words, "-c", str(self.config)]
        subprocess.run(program, check=True, stdout=subprocess.DEVNULL, cwd=PROJECT)
        return time.monotonic() - began

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._private.cleanup()

    def stop(self) -> None:
        """As systemd would."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


class _Local(http.client.HTTPConnection):
    """HTTP through a socket in the file system."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
