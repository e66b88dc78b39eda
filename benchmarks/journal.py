"""Whether years of past deliveries in the journal slow anything down, and what forgetting them costs."""

import asyncio
import contextlib
import os
import sqlite3
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from attachd.journal.rows import COLUMNS, Value, from_time, to_row
from attachd.journal.sqlite import FORGET_SLICE, SqliteJournal
from attachd.model import (
    AttachmentId,
    ConversationId,
    Delivery,
    DeliveryId,
    Document,
    GuestId,
    InboxName,
    Receipt,
    Sent,
    Upload,
    Version,
    delivery_id,
)
from benchmarks.harness import Attachd, Stub, drop, fill, percentiles, scratch

PAST = 1_000_000
FILES = 1000
ROUNDS = 3
FORGET_SLICES = 50
_FILE_BYTES = 10 * 1024
_EVERY = timedelta(seconds=30)
_LONGEST_S = 300.0
_INBOX = InboxName("inbox")


def measure(
    base: Path | None,
    *,
    past: int = PAST,
    files: int = FILES,
    rounds: int = ROUNDS,
    forget_slices: int = FORGET_SLICES,
) -> dict[str, Any]:
    """Two daemons in turns, one with an empty journal and one with `past` deliveries in it; then what it costs the full
    journal to forget the oldest.
    """
    with scratch(base) as folder:
        empty_at, full_at = folder / "empty", folder / "full"
        asyncio.run(_write_history(empty_at / "state", 0))
        asyncio.run(_write_history(full_at / "state", past))
        size = sum(file.stat().st_size for file in (full_at / "state").glob("journal.db*"))
        with _Side(empty_at) as empty, _Side(full_at) as full:
            for _ in range(rounds):
                empty.round(files)
                full.round(files)
            empty_figures, full_figures = empty.figures(), full.figures()
            full.stop()
        forget = asyncio.run(_forget(full_at / "state", forget_slices))
    return {
        "past": past,
        "files": files,
        "journal_mb": size / (1 << 20),
        "empty": empty_figures,
        "full": full_figures,
        "forget": {"slice": FORGET_SLICE, **forget},
    }


class _Side:
    """A daemon with the journal that lies in its folder, and its own platform."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inbox = folder / _INBOX
        self._rounds: list[dict[str, float]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "_Side":
        with self._stack:
            self._stub = self._stack.enter_context(Stub())
            self._daemon = self._stack.enter_context(Attachd(self._folder, self._stub, [self._inbox])).ready()
            self._ready_s = time.monotonic() - self._daemon.started_at
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def round(self, files: int) -> None:
        """Deliver so many files, then have every command say something."""
        number = len(self._rounds)
        outgoing, before = self._folder / f"round{number}", self._stub.counts()["posted"]
        fill(outgoing, files, _FILE_BYTES, prefix=outgoing.name)
        began = time.monotonic()
        drop(outgoing, self._inbox)
        took_s = self._daemon.deliver(before + files, _LONGEST_S) - began
        commands = {
            "list_s": ("list",),
            "list_failed_s": ("list", "--inbox", _INBOX, "--state", "failed"),
            "status_s": ("status",),
            "explain_s": ("explain", str(self._inbox / "sent" / f"{outgoing.name}-0000000.pdf")),
        }
        times = {name: self._daemon.command(*words) for name, words in commands.items()}
        self._rounds.append({"files_per_s": files / took_s, **times})

    def figures(self) -> dict[str, float]:
        """The middle of all rounds."""
        middle = {name: statistics.median(one[name] for one in self._rounds) for name in self._rounds[0]}
        return {"ready_s": self._ready_s, "rss_mb": self._daemon.usage().rss_kb / 1024, **middle}

    def stop(self) -> None:
        """Let go of the journal."""
        self._daemon.stop()


async def _write_history(state: Path, number: int) -> None:
    """A journal as attachd makes it, with finished deliveries put into its table: through its methods it takes long."""
    async with SqliteJournal.open(state, datetime.now(UTC), lambda: uuid4().hex):
        pass
    connection = sqlite3.connect(state / "journal.db", isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN")
    places = ", ".join("?" * len(COLUMNS))
    connection.executemany(f"INSERT INTO finished ({', '.join(COLUMNS)}) VALUES ({places})", _rows(number))
    connection.execute("INSERT INTO finished_counts (inbox, state, n) VALUES (?, 'sent', ?)", (_INBOX, number))
    connection.execute("COMMIT")
    connection.close()
    os.sync()


def _rows(number: int) -> Iterator[tuple[Value, ...]]:
    """One delivery every 30 seconds until now, all sent: years of a busy inbox."""
    first_at = datetime.now(UTC) - number * _EVERY
    row = to_row(_delivery(first_at), first_at)
    for index in range(number):
        at = first_at + index * _EVERY
        row["id"] = delivery_id(int(at.timestamp() * 1000), index)
        row["name"] = row["filed_as"] = b"past-%09d.pdf" % index
        row["claimed_at"] = row["updated_at"] = from_time(at)
        yield tuple(row.values())


def _delivery(at: datetime) -> Delivery:
    upload = Upload(
        GuestId(str(uuid4())),
        AttachmentId(str(uuid4())),
        Document("past.pdf", "application/pdf", _FILE_BYTES),
        sha256="0" * 64,
    )
    sent = Sent(upload, Receipt(ConversationId(str(uuid4())), str(uuid4())), filed_as="sent/past.pdf")
    version = Version(device=1, inode=1, size=_FILE_BYTES, mtime_ns=time.time_ns(), ctime_ns=time.time_ns())
    return Delivery(DeliveryId(""), _INBOX, "past.pdf", version, at, state=sent, tries=1)


async def _forget(state: Path, slices: int) -> dict[str, float]:
    """Milliseconds for each slice of the oldest deliveries: so long somebody may wait behind it."""
    took_ms = []
    async with SqliteJournal.open(state, datetime.now(UTC), lambda: uuid4().hex) as journal:
        for _ in range(slices):
            began = time.perf_counter()
            await journal.forget(datetime.now(UTC), FORGET_SLICE)
            took_ms.append((time.perf_counter() - began) * 1000)
    return {f"{name}_ms": value for name, value in percentiles(took_ms).items()}
