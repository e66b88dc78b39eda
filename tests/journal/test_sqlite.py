"""What the journal on SQLite promises beyond the contract: the folder, the disk, damage, who holds it."""

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from uuid import uuid4

import pytest

from attachd.errors import AccountError, JournalBusy, JournalError
from attachd.journal.sqlite import SqliteJournal
from attachd.model import DeliveryId, DeliveryState, Reason, StateName

from .samples import CLAIMED, FAILED, NOW, POSTED, POSTING, SENT, after, delivery

ROOT = Path(__file__).parents[2]
MIB = 1 << 20

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def opened(folder: Path, **options: float) -> AbstractAsyncContextManager[SqliteJournal]:
    return SqliteJournal.open(folder, NOW, lambda: str(uuid4()), **options)  # type: ignore[arg-type]


def python(script: str, *arguments: object, under: tuple[str, ...] = ()) -> list[str]:
    prelude = f"""
        import asyncio, os, sys
        from pathlib import Path
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        from attachd.errors import *
        from journal.samples import *
        from journal.test_sqlite import opened
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(script) + "\nasyncio.run(main(Path(sys.argv[1])))\n"
    return [*under, sys.executable, "-c", code, *map(str, arguments)]


async def test_the_folder_is_made_private(tmp_path: Path) -> None:
    """Missing folders are made; the state folder and everything in it is the owner's alone."""
    folder = tmp_path / "var" / "lib" / "attachd"
    async with opened(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


async def test_a_folder_open_to_others_is_closed_to_them(state_dir: Path) -> None:
    """A mode that is too wide is put right without a word when the folder is ours."""
    state_dir.mkdir(0o755)
    async with opened(state_dir):
        assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700


@needs_root
async def test_somebody_elses_folder_is_refused(state_dir: Path) -> None:
    """The message says whose it is and what to do."""
    state_dir.mkdir()
    os.chown(state_dir, 12345, -1)
    with pytest.raises(JournalError, match=r"uid 12345.*chown"):
        async with opened(state_dir):
            pass


async def test_a_second_process_is_told_who_holds_it(state_dir: Path) -> None:
    """The lock names its holder, and is free again afterwards."""
    script = """
        async def main(folder):
            try:
                async with opened(folder): print("open")
            except JournalBusy as busy:
                print(busy)
    """
    async with opened(state_dir):
        answer = await asyncio.to_thread(subprocess.check_output, python(script, state_dir), cwd=ROOT, text=True)
        assert f"pid {os.getpid()}" in answer
        with pytest.raises(JournalBusy):
            async with opened(state_dir):
                pass
    async with opened(state_dir):
        pass


async def test_a_closed_journal_says_so(state_dir: Path) -> None:
    """A call after the end gets an error, not silence."""
    async with opened(state_dir) as journal:
        pass
    with pytest.raises(JournalError, match="closed"):
        await journal.unfinished()


async def test_leaving_waits_for_what_was_asked(state_dir: Path) -> None:
    """Calls still in the queue are done before the file is closed, and no thread is left."""
    async with opened(state_dir) as journal:
        calls = [asyncio.create_task(journal.record(delivery(n), NOW)) for n in range(500)]
        await asyncio.sleep(0)
    await asyncio.gather(*calls)
    assert not [thread for thread in threading.enumerate() if thread.name == "journal"]
    async with opened(state_dir) as journal:
        assert len(await journal.unfinished()) == 500


async def test_cancelled_while_opening(state_dir: Path) -> None:
    """Whoever gives up waiting for the journal leaves no thread and no lock behind."""

    async def enter() -> None:
        async with opened(state_dir):
            await asyncio.sleep(60)

    for turns in range(6):
        task = asyncio.create_task(enter())
        for _ in range(turns):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with opened(state_dir):
        pass


def test_what_was_said_to_last_survives_kill_9(state_dir: Path) -> None:
    """Killed at any moment, every Posting and Posted that was answered is there when the journal opens again."""
    script = """
        async def main(folder):
            async with opened(folder) as journal:
                async def one(first):
                    for n in range(first, 10**6, 4):
                        await journal.record(delivery(n, POSTING), NOW)
                        os.write(1, b"%d\\n" % n)
                        await journal.record(delivery(n, SENT), NOW)
                await asyncio.gather(*(one(int(sys.argv[2]) + k) for k in range(4)))
    """
    answered: list[int] = []

    async def look() -> None:
        async with opened(state_dir) as journal:
            assert journal.replaced is None
            for n in answered:
                found = await journal.find(DeliveryId(f"d{n:06}"))
                assert found is not None
                assert found.delivery.state in (POSTING, SENT)

    for attempt in range(4):
        with subprocess.Popen(python(script, state_dir, attempt * 100_000), cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            answered += [int(child.stdout.readline()) for _ in range(1 + 35 * attempt)]
            child.send_signal(signal.SIGKILL)
            answered += [int(line) for line in child.stdout.read().split(b"\n")[:-1]]
        asyncio.run(look())


@needs_strace
def test_only_durable_records_wait_for_the_disk_and_they_share(state_dir: Path, tmp_path: Path) -> None:
    """100 lazy records: no fsync. 20 durable ones in a row: one each. 64 at once: far fewer."""
    script = """
        async def main(folder):
            async with opened(folder) as journal:
                await journal.record(delivery(0), NOW)  # the log begins anew, and its header is synced
                os.chdir("/")
                for n in range(100): await journal.record(delivery(n), NOW)
                os.chdir("/")
                for n in range(20): await journal.record(delivery(n, POSTING), NOW)
                os.chdir("/")
                await asyncio.gather(*(journal.record(delivery(n, POSTED), NOW) for n in range(64)))
                os.chdir("/")
    """
    trace = tmp_path / "trace"
    strace = ("strace", "-f", "-qq", "-e", "trace=fsync,fdatasync,chdir", "-o", str(trace))
    subprocess.run(python(script, state_dir, under=strace), cwd=ROOT, check=True)
    phases = trace.read_text().split("chdir(")[-4:-1]
    lazy, durable, shared = (phase.count("sync(") for phase in phases)
    assert (lazy, durable) == (0, 20)
    assert 1 <= shared <= 16


@needs_strace
def test_a_failing_fsync_is_never_forgotten(state_dir: Path) -> None:
    """The disk fails once; from then on every call is refused, although the next fsync would succeed."""
    script = """
        async def main(folder):
            async with opened(folder) as journal:
                said = []
                for n in range(30):
                    try: await journal.record(delivery(n, POSTING), NOW); said.append("kept")
                    except JournalError: said.append("refused")
                for call in (journal.unfinished(), journal.hold_until(None, "", NOW)):
                    try: await call; said.append("kept")
                    except JournalError: said.append("refused")
                print(*said)
    """
    strace = ("strace", "-f", "-qq", "-o", "/dev/null", "-P", str(state_dir / "journal.db-wal"))
    inject = ("-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when=12")
    command = python(script, state_dir, under=(*strace, *inject))
    said = subprocess.run(command, cwd=ROOT, check=True, text=True, capture_output=True).stdout.split()
    first = said.index("refused")
    assert 0 < first < 30
    assert set(said[first:]) == {"refused"}


async def filled(folder: Path) -> None:
    async with opened(folder) as journal:
        for n in range(60):
            await journal.record(delivery(n, (CLAIMED, POSTING, SENT, FAILED)[n % 4]), NOW)


@pytest.mark.parametrize("length", [1, 50, 100, 4096, 9000, -1])
async def test_a_truncated_journal_is_kept_aside(state_dir: Path, length: int) -> None:
    """A new journal with a new id begins; the old file lies beside it, and people are told where."""
    await filled(state_dir)
    async with opened(state_dir) as journal:
        before = journal.identity
    file = state_dir / "journal.db"
    os.truncate(file, length if length > 0 else file.stat().st_size - 1)
    async with opened(state_dir) as journal:
        assert journal.identity.id != before.id
        assert journal.replaced is not None
        aside = state_dir / "journal.db.damaged-20250304T050607Z"
        assert str(aside) in journal.replaced
        assert aside.exists()
        assert await journal.newest() == []
        await journal.record(delivery(1, POSTING), NOW)


@pytest.mark.parametrize("content", [bytes(40_000), b"not a database at all, " * 999], ids=["zeros", "text"])
async def test_what_is_no_journal_is_kept_aside(state_dir: Path, content: bytes) -> None:
    """Nothing is deleted that people may want to look at."""
    await filled(state_dir)
    (state_dir / "journal.db").write_bytes(content)
    async with opened(state_dir) as journal:
        assert journal.replaced is not None
    assert (state_dir / "journal.db.damaged-20250304T050607Z").read_bytes() == content


async def test_an_emptied_or_lost_journal_begins_anew(state_dir: Path) -> None:
    """A new id tells the claims of the lost one from new ones."""
    seen = set()
    for lose in (lambda file: None, lambda file: os.truncate(file, 0), os.unlink):
        await filled(state_dir)
        lose(state_dir / "journal.db")
        async with opened(state_dir) as journal:
            seen.add(journal.identity.id)
    assert len(seen) == 3


async def test_a_log_without_its_journal_is_kept_aside(state_dir: Path) -> None:
    """An empty file beside a log that is not: both are kept, not thrown away."""
    state_dir.mkdir()
    (state_dir / "journal.db-wal").write_bytes(b"x" * 100)
    async with opened(state_dir) as journal:
        assert journal.replaced is not None
    assert (state_dir / "journal.db.damaged-20250304T050607Z-wal").read_bytes() == b"x" * 100


async def test_flipped_bits_never_end_in_anything_but_a_journal_or_a_refusal(state_dir: Path, tmp_path: Path) -> None:
    """Whatever bits flip while it is closed: it opens, is replaced, or says JournalError."""
    await filled(state_dir)
    good = (state_dir / "journal.db").read_bytes()
    chance = random.Random(5)
    outcomes: set[bool | str] = set()
    for n in range(60):
        folder = tmp_path / f"flip{n}"
        folder.mkdir()
        bad = bytearray(good)
        for _ in range(chance.choice([1, 10, 100])):
            where = chance.randrange(100 if n % 4 == 0 else len(bad))
            bad[where] ^= 1 << chance.randrange(8)
        (folder / "journal.db").write_bytes(bad)
        try:
            async with opened(folder) as journal:
                outcomes.add(journal.replaced is None)
                try:
                    await journal.newest()
                except JournalError:
                    outcomes.add("refused a row")
        except JournalError:
            outcomes.add("refused")
    assert {True, False} <= outcomes


async def test_a_newer_schema_is_refused_and_left_alone(state_dir: Path) -> None:
    """The message names both versions, the file keeps every byte."""
    await filled(state_dir)
    file = state_dir / "journal.db"
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(JournalError, match=r"version 7.*up to 1"):
        async with opened(state_dir):
            pass
    assert file.read_bytes() == before


async def test_damage_met_while_running_has_the_next_start_look_closer(state_dir: Path) -> None:
    """Whatever is found corrupt at work is checked in full at the next start, and kept aside."""
    async with opened(state_dir) as journal:
        await journal.admit([delivery(n, SENT) for n in range(8000)], NOW)  # more than SQLite keeps in memory
    script = """
        async def main(folder):
            async with opened(folder) as journal:
                pages = os.stat(folder / "journal.db").st_size // 4096
                with open(folder / "journal.db", "r+b") as file:
                    for page in range(1, pages):
                        file.seek(page * 4096); file.write(b"\\xff" * 4096)
                try: await journal.newest(); print("read")
                except JournalError: print("refused")
    """
    command = python(script, state_dir)
    assert subprocess.check_output(command, cwd=ROOT, text=True).split() == ["refused"]
    assert (state_dir / "journal.suspect").exists()
    async with opened(state_dir) as journal:
        assert journal.replaced is not None
    assert not (state_dir / "journal.suspect").exists()


async def test_forgetting_leaves_the_young_the_unfinished_and_the_counts(state_dir: Path) -> None:
    """Only finished deliveries older than asked go, at most as many as asked."""
    async with opened(state_dir) as journal:
        states: list[DeliveryState] = [SENT, FAILED, POSTED]
        await asyncio.gather(*(journal.record(delivery(n, states[n % 3]), after(n)) for n in range(900)))
        assert await journal.forget(after(600), 250) == 250
        assert await journal.forget(after(600), 10_000) == 150
        assert await journal.forget(after(600), 10_000) == 0
        assert len(await journal.newest(limit=2000)) == 500
        assert (await journal.finished_counts())["claims"] == {StateName.SENT: 300, StateName.FAILED: 300}  # type: ignore[index]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """4 MiB and no more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass


async def record_all(journal: SqliteJournal, numbers: range, state: DeliveryState, kept: list[int]) -> None:
    for n in numbers:
        await journal.record(delivery(n, state), NOW)
        kept.append(n)


@needs_root
async def test_a_full_disk_stops_new_records_but_not_the_one_that_must_last(small_disk: Path) -> None:
    """Lazy records are refused, a durable one gets the ballast's space; with room again all is as before."""
    async with opened(small_disk / "state", ballast_bytes=MIB, ballast_every_s=0.05) as journal:
        ballast = small_disk / "state" / "ballast"
        assert ballast.stat().st_blocks * 512 == MIB
        await journal.record(delivery(0, POSTING), NOW)
        fill(small_disk)
        kept: list[int] = []
        with pytest.raises(AccountError) as full:
            await record_all(journal, range(1, 1000), CLAIMED, kept)
        assert full.value.reason is Reason.DISK_FULL
        assert ballast.exists()
        assert len(await journal.unfinished()) == 1 + len(kept)
        await journal.record(delivery(0, POSTED), NOW)
        assert not ballast.exists()
        fill(small_disk)
        with pytest.raises(AccountError):
            await record_all(journal, range(1000, 2000), POSTING, [])
        os.unlink(small_disk / "filler")
        await journal.record(delivery(2000, POSTING), NOW)
        while not ballast.exists():
            await asyncio.sleep(0.02)
    async with opened(small_disk / "state", ballast_bytes=MIB) as journal:
        assert journal.replaced is None
        found = await journal.find(DeliveryId("d000000"))
        assert found is not None
        assert found.delivery.state == POSTED


@needs_root
async def test_a_full_disk_at_the_start_uses_the_ballast_then_refuses(small_disk: Path) -> None:
    """A start needs little space: the ballast gives it; without any the message says what to do."""
    folder = small_disk / "state"
    async with opened(folder, ballast_bytes=MIB):
        pass
    fill(small_disk)
    async with opened(folder, ballast_bytes=MIB) as journal:
        await journal.record(delivery(1, POSTING), NOW)
    fill(small_disk)
    with pytest.raises(JournalError, match="make room"):
        async with opened(folder, ballast_bytes=MIB):
            pass
    os.unlink(small_disk / "filler")
    async with opened(folder, ballast_bytes=MIB) as journal:
        assert len(await journal.unfinished()) == 1
