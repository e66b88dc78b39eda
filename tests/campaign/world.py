"""One daemon with its inboxes, and everything that is written down of them: what was dropped, each start, each death.

A world strikes nobody by itself; the parts do. What every death left behind (the journal, what was claimed) is read
before the next start, so that afterwards a second message can be told from a forgotten one.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.campaign.intercept import Decide, Intercepted
from tests.campaign.nursery import Child, Nursery
from tests.campaign.platform import Platform

REASON = ".reason.txt"
_HEADS = (b"%PDF-1.4\n", b"a plain text\n", b"\x89PNG\r\n\x1a\n", b"\x00\x01\x02", b"{\\rtf1 ", b"")
_ODD_NAMES = (
    "Schadenmeldung März (2).pdf",
    "  two  spaces .txt",
    "日本語の書類.txt",
    "x" * 251 + ".txt",
    "no-ending",
    "a.b.reason.txt",
)


@dataclass(frozen=True, slots=True)
class Drop:
    """One file as the producer made it. `durable`: it was on disk, name and all, before the producer went on."""

    sha256: str
    name: str
    folder: Path
    size: int
    at: float
    durable: bool


@dataclass(slots=True)
class Memory:
    """What a journal says, by the SHA-256 of the document where it knows it, else by the delivery's id."""

    unfinished: dict[str, str] = field(default_factory=dict)
    finished: dict[str, str] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    integrity: str = "ok"


@dataclass(slots=True)
class Death:
    """An end, and what it left. `claimed`: how many files lay claimed."""

    at: float
    how: str
    exit_code: int
    memory: Memory
    claimed: int


@dataclass(slots=True)
class Run:
    """One life of the daemon."""

    number: int
    started_at: float
    child: Child
    log: Path
    noise: Path
    cold: bool
    calls: Intercepted | None = None
    death: Death | None = None
    noise_expected: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A file on disk at rest."""

    place: str
    path: Path
    sha256: str
    reason: str = ""


class World:
    """Made with its folders and its config; `roots` may lie on disks of their own."""

    def __init__(
        self,
        folder: Path,
        platform: Platform,
        nursery: Nursery,
        chance: random.Random,
        *,
        inboxes: int = 1,
        inbox_root: Path | None = None,
        state_dir: Path | None = None,
        concurrency: int = 8,
        policy: str = "resend",
        **delivery: Any,
    ) -> None:
        self.folder = folder
        self.platform = platform
        self.policy = policy
        self.chance = chance
        self.concurrency = concurrency
        self._nursery = nursery
        self.root = inbox_root or folder / "inboxes"
        self.state_dir = state_dir or folder / "state"
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True)
        self.inboxes = [self.root / f"inbox-{number}" for number in range(inboxes)]
        for inbox in self.inboxes:
            inbox.mkdir(parents=True, exist_ok=True)
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(self._settings(delivery)))
        self.drops: dict[str, Drop] = {}
        self.excused: set[str] = set()
        """Content that its producer never made durable and that a power cut took."""
        self.runs: list[Run] = []
        self.may_fail: Callable[[Drop, str], bool] = lambda _drop, _reason: False
        self.can_ask = platform.gateway == "webmessaging"
        """What became of a message without an answer can be found out, so nothing explains a second one."""
        self.reasons_may_be_missing = False
        """The disk refused the reason of a failed file, which must not keep the file from being filed."""
        self.notes: list[str] = []

    def _settings(self, delivery: dict[str, Any]) -> dict[str, Any]:
        platform = self.platform
        text = platform.sandbox.config_yaml(self.root, self.state_dir, gateway=platform.gateway)
        settings: dict[str, Any] = yaml.safe_load(text)
        settings["platform"] |= {"requests_per_second": 10000, "max_file_size": "4MiB"}
        settings["delivery"] = {
            "concurrency": self.concurrency,
            "on_unknown_outcome": self.policy,
            "shutdown_grace": "10s",
        } | delivery
        settings["log"] = {"format": "json", "level": "debug"}
        settings["admin"] = {"listen": "off"}
        settings["inboxes"] = [
            {"path": str(inbox), "settle": "50ms", "message": "$name from $inbox, $size, $id"} for inbox in self.inboxes
        ]
        return settings

    # --- the producer ---------------------------------------------------------------------------------------------

    def drop(
        self, size: int | None = None, *, name: str | None = None, durable: bool = False, hidden: bool = False
    ) -> Drop:
        """Write a file with content of its own into an inbox: mostly by rename, sometimes under its name at once.

        `hidden` leaves it under its draft's name, to be shown by `show`.
        """
        chance = self.chance
        size = self._size() if size is None else size
        head = chance.choice(_HEADS)
        nonce = f"{chance.getrandbits(128):032x} {len(self.drops)}\n".encode()
        content = head + nonce + chance.randbytes(max(0, size - len(head) - len(nonce)))
        number = len(self.drops)
        if hidden:
            name = f"draft-{number:05}.pdf"
        if name is None:
            # A guest's file must have an extension, says the protocol: to refuse one without is right.
            odd = [name for name in _ODD_NAMES if self.platform.gateway == "webchat" or "." in name]
            name = chance.choice(odd) if chance.random() < 0.05 else f"scan-{number:05}.pdf"
            if chance.random() < 0.1:
                name = "scan.pdf"
        inbox = chance.choice(self.inboxes)
        while (inbox / name).exists():  # to replace one that waits would be the producer's own loss
            name = f"again-{chance.getrandbits(32):08x}.pdf"
        drop = Drop(hashlib.sha256(content).hexdigest(), name, inbox, len(content), time.time(), durable)
        at_once = not hidden and not durable and chance.random() < 0.1
        draft = inbox / name if at_once else self._draft(drop)
        opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(opened, view) :]
            if durable:
                os.fsync(opened)
        finally:
            os.close(opened)
        self.drops[drop.sha256] = drop
        self.platform.dropped.add(drop.sha256)
        if not (at_once or hidden):
            self.show(drop)
        return drop

    def show(self, drop: Drop) -> None:
        """Give a draft its name."""
        self._draft(drop).rename(drop.folder / drop.name)
        if drop.durable:
            opened = os.open(drop.folder, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(opened)
            os.close(opened)

    def _draft(self, drop: Drop) -> Path:
        return drop.folder / f".{drop.sha256[:24]}.draft"

    def _size(self) -> int:
        """0.1 KB to 2 MB, most of them small."""
        if self.chance.random() < 0.03:
            return self.chance.randint(500_000, 2_000_000)
        return int(100 * 600 ** self.chance.random())

    # --- the daemon -----------------------------------------------------------------------------------------------

    @property
    def run(self) -> Run:
        return self.runs[-1]

    @property
    def alive(self) -> bool:
        return bool(self.runs) and self.run.child.running

    async def start(self, *, cold: bool = False, decide: Decide | None = None) -> Run:
        """Start the daemon, forked or from scratch; `decide` has a say in every state-changing system call."""
        number = len(self.runs)
        log, noise = self.logs / f"{number:04}.log", self.logs / f"{number:04}.stderr"
        started_at = time.time()
        if cold:
            child = await self._start_cold(log, noise)
        else:
            child = await self._nursery.start(self.config, log, noise, intercepted=decide is not None)
        run = Run(number, started_at, child, log, noise, cold)
        self.runs.append(run)
        if decide is not None:
            assert child.listener is not None
            run.calls = Intercepted(child.pid, {"inbox": self.inboxes[0], "state": self.state_dir}, decide)
            await run.calls.listen(child.listener)
        return run

    async def _start_cold(self, log: Path, noise: Path) -> Child:
        with log.open("ab") as out, noise.open("ab") as err:
            command = [sys.executable, "-m", "attachd", "run", "-c", str(self.config)]
            process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        ended: asyncio.Future[int] = asyncio.ensure_future(process.wait())
        return Child(process.pid, ended)

    async def ready(self, patience_s: float = 20.0) -> bool:
        """Wait until the daemon says so; False when it ended first."""
        run, deadline = self.run, time.monotonic() + patience_s
        while b'"daemon.ready"' not in (run.log.read_bytes() if run.log.exists() else b""):
            if not run.child.running:
                return False
            if time.monotonic() > deadline:
                self.notes.append(f"run {run.number} was not ready within {patience_s:g} s")
                return False
            await asyncio.sleep(0.003)
        return True

    async def kill(self, how: str = "kill") -> Death:
        """SIGKILL at this moment, and what it left."""
        self.run.child.signal(signal.SIGKILL)
        return await self.died(how)

    async def stop(self, patience_s: float = 20.0) -> Death:
        """SIGTERM, and what it left."""
        self.run.child.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience_s):
                await asyncio.shield(self.run.child.ended)
        except TimeoutError:
            self.notes.append(f"run {self.run.number} did not stop within {patience_s:g} s of SIGTERM")
            self.run.child.signal(signal.SIGKILL)
        return await self.died("stop")

    async def died(self, how: str) -> Death:
        """Wait for the end, and look at what it left before anybody else touches it."""
        run = self.run
        exit_code = await asyncio.shield(run.child.ended)
        # What the dead process had sent before is still in the sockets: let the platform take it in first.
        await asyncio.sleep(0.01)
        run.death = self._left_behind(how, exit_code)
        return run.death

    def _left_behind(self, how: str, exit_code: int) -> Death:
        memory = read_journal(self.state_dir)
        return Death(time.time(), how, exit_code, memory, len(self.claimed()))

    def run_of(self, wall_s: float) -> int:
        """Which life of the daemon something at this time belongs to."""
        return max((run.number for run in self.runs if run.started_at <= wall_s), default=0)

    # --- what lies where ------------------------------------------------------------------------------------------

    def claimed(self) -> list[Path]:
        found: list[Path] = []
        for inbox in self.inboxes:
            folder = inbox / ".attachd" / "claimed"
            for claim in os.listdir(folder) if folder.exists() else ():
                with contextlib.suppress(OSError):  # filed meanwhile
                    found += (folder / claim / name for name in os.listdir(folder / claim))
        return found

    def waiting(self) -> list[Path]:
        return [
            Path(entry.path)
            for inbox in self.inboxes
            for entry in os.scandir(inbox)
            if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False)
        ]

    def at_rest(self) -> bool:
        """Nothing is left to do: no file waits in an inbox and none is claimed."""
        return not self.waiting() and not self.claimed()

    async def rest(self, patience_s: float) -> bool:
        """Wait for that; False when it does not come, or the daemon ends."""
        deadline = time.monotonic() + patience_s
        while not self.at_rest():
            if not self.alive or time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def serve(self) -> None:
        """Start it again whenever it ends by itself, as the service unit does; cancelled when that is to stop."""
        while True:
            await asyncio.shield(self.run.child.ended)
            if self.run.death is not None:  # somebody looks after it already
                return
            await self.died("by itself")
            self.run.noise_expected = True
            await asyncio.sleep(0.3)
            await self.start()

    def files(self) -> Iterator[Found]:
        """Every file of the inboxes, wherever it lies; attachd's own ones and drafts of the producer are left out."""
        for inbox in self.inboxes:
            for base, _, names in os.walk(inbox):
                relative = os.path.relpath(base, inbox)
                for name in names:
                    path = Path(base, name)
                    if relative == "." and not name.startswith("."):
                        place = "inbox"
                    elif relative.startswith(".attachd/claimed/"):
                        place = "claimed"
                    elif relative in ("sent", "failed"):
                        place = relative
                    else:
                        continue
                    if place == "failed" and name.endswith(REASON) and _explains(path):
                        continue
                    with path.open("rb") as file:
                        digest = hashlib.file_digest(file, "sha256").hexdigest()
                    yield Found(place, path, digest, reason_beside(path) if place == "failed" else "")

    def log_lines(self, *words: str, most: int = 40) -> list[str]:
        """The last lines of the log that mention one of the words, with the run they are of."""
        found = []
        for run in self.runs:
            if run.log.exists():
                found += [
                    f"run {run.number}: {line[:400]}"
                    for line in run.log.read_text(errors="replace").splitlines()
                    if any(word and word in line for word in words) and "library.logged" not in line
                ]
        return found[-most:]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log records of one kind, of all runs."""
        found = []
        for run in self.runs:
            for line in run.log.read_bytes().splitlines() if run.log.exists() else ():
                if name.encode() in line:
                    with contextlib.suppress(ValueError):
                        record = json.loads(line)
                        if record.get("event") == name:
                            found.append(record)
        return found

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _explains(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\nReason:    " in file.read(4096)


def reason_beside(path: Path) -> str:
    """The stable word in the reason beside a failed file; empty when there is none."""
    beside = path.with_name(path.name + REASON)
    if len(os.fsencode(beside.name)) > 255:  # of such a name only the beginning and the end are kept
        beside = next(path.parent.glob(f"{path.name[:40]}*{path.name[-40:]}{REASON}"), path)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in beside.read_text().splitlines():
            if line.startswith("Reason:"):
                return line.removeprefix("Reason:").split()[0]
    return ""


def read_journal(state_dir: Path) -> Memory:
    """What the journal in a state folder that nobody uses would tell the next start, read from a copy."""
    memory = Memory()
    if not (state_dir / "journal.db").exists():
        return memory
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as aside:
        for path in state_dir.glob("journal.db*"):
            if path.suffix in (".db", ".db-wal"):
                shutil.copy(path, aside)
        with contextlib.closing(sqlite3.connect(Path(aside, "journal.db"))) as connection:
            connection.row_factory = sqlite3.Row
            try:
                memory.integrity = connection.execute("PRAGMA integrity_check(3)").fetchone()[0]
                known = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
                for table, found in (("unfinished", memory.unfinished), ("finished", memory.finished)):
                    if table in known:
                        for row in connection.execute(f"SELECT * FROM {table}"):
                            key = row["sha256"] or row["id"]
                            found[key] = row["state"]
                            memory.rows[key] = dict(row)
            except sqlite3.DatabaseError as error:
                memory.integrity = str(error)
    return memory
