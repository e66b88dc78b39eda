"""The journal in SQLite: what its methods mean in rows.

One method is one transaction, on the one thread that owns the connection; commits of concurrent callers are grouped.
Deliveries under way and finished ones lie in two tables; a delivery is in exactly one of them.
"""

import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from attachd.errors import JournalError
from attachd.journal.rows import COLUMNS, Row, Value, from_text, from_time, to_entry, to_row, to_text, to_time
from attachd.journal.store import Store
from attachd.journal.thread import JournalThread, Kind
from attachd.model import Delivery, DeliveryId, InboxName, Posted, Posting, StateName
from attachd.ports import Entry, JournalIdentity

BALLAST_BYTES = 8 << 20
BALLAST_EVERY_S = 60.0
FORGET_SLICE = 200

_FINISHED = (StateName.SENT, StateName.FAILED)
_LIST = ", ".join(COLUMNS)
_SET = ", ".join(f"{column} = ?" for column in COLUMNS[1:])
_VALUES = ", ".join("?" * len(COLUMNS))

# Every part is a constant of this module; what varies is bound.
_UPDATE_UNFINISHED = f"UPDATE unfinished SET {_SET} WHERE id = ?"  # noqa: S608
_INSERT_UNFINISHED = f"INSERT INTO unfinished ({_LIST}) VALUES ({_VALUES}) ON CONFLICT (id) DO NOTHING"  # noqa: S608
_INSERT_FINISHED = f"INSERT INTO finished ({_LIST}) VALUES ({_VALUES})"  # noqa: S608
_SELECT_UNFINISHED = f"SELECT {_LIST} FROM unfinished"  # noqa: S608
_SELECT_FINISHED = f"SELECT {_LIST} FROM finished"  # noqa: S608

_Conditions: TypeAlias = dict[str, Value]


class SqliteJournal:
    """`ports.Journal` on one file in the state folder. Comes from `open`."""

    def __init__(self, thread: JournalThread) -> None:
        self._thread = thread

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        state_dir: Path,
        now: datetime,
        new_id: Callable[[], str],
        *,
        ballast_bytes: int = BALLAST_BYTES,
        ballast_every_s: float = BALLAST_EVERY_S,
    ) -> "AsyncIterator[SqliteJournal]":
        """Hold the state folder and its journal for as long as the block lasts; both are made if missing.

        `new_id` names a journal that begins. `ballast_every_s` is how often a given-up ballast is looked after, when
        nothing else is to do.

        Raises JournalBusy (another attachd has the folder), JournalError (the folder is somebody else's, the file
        cannot be read or was made by a newer attachd); on leaving, JournalError when the last fsync failed.
        """
        async with JournalThread(lambda: Store(state_dir, now, new_id, ballast_bytes), ballast_every_s) as thread:
            yield cls(thread)

    @property
    def identity(self) -> JournalIdentity:
        """Who it is; the generation is already on disk."""
        return self._thread.store.identity

    @property
    def replaced(self) -> str | None:
        """What happened to the journal that was here before, in words, if it was damaged and had to make way."""
        return self._thread.store.replaced

    async def admit(self, deliveries: Sequence[Delivery], now: datetime) -> None:
        """Begin deliveries that were just claimed."""
        rows = [to_row(delivery, now) for delivery in deliveries]
        durable = any(_must_last(delivery) for delivery in deliveries)

        def work(connection: sqlite3.Connection) -> None:
            for row in rows:
                _put(connection, row)

        await self._thread.run(work, Kind.DURABLE if durable else Kind.LAZY)

    async def record(self, delivery: Delivery, now: datetime) -> None:
        """Keep the delivery as it now is, state, tries and next try included; admits it if it is not known."""
        await self.admit([delivery], now)

    async def unfinished(self) -> list[Delivery]:
        """All deliveries that are neither sent nor failed, oldest claim first."""

        def work(connection: sqlite3.Connection) -> list[Delivery]:
            rows = _select(connection, f"{_SELECT_UNFINISHED} ORDER BY claimed_at, id", ())
            return [_entry(row).delivery for row in rows]

        return await self._thread.run(work, Kind.READ)

    async def find(self, delivery: DeliveryId) -> Entry | None:
        """One delivery."""

        def work(connection: sqlite3.Connection) -> Entry | None:
            for table in (_SELECT_UNFINISHED, _SELECT_FINISHED):
                for row in _select(connection, f"{table} WHERE id = ?", (from_text(delivery),)):
                    return _entry(row)
            return None

        return await self._thread.run(work, Kind.READ)

    async def newest(
        self,
        *,
        state: StateName | None = None,
        inbox: InboxName | None = None,
        name: str | None = None,
        limit: int = 100,
    ) -> list[Entry]:
        """Deliveries, the one that changed last first; `name` is the exact name a file had in its inbox."""
        wanted: _Conditions = {}
        if name is not None:
            wanted["name"] = os.fsencode(name)
        if inbox is not None:
            wanted["inbox"] = from_text(inbox)
        if state is not None:
            wanted["state"] = state.value

        def work(connection: sqlite3.Connection) -> list[Entry]:
            rows: list[Row] = []
            if state not in _FINISHED:
                rows += _newest(connection, _SELECT_UNFINISHED, wanted, limit)
            for conditions in _ranges(connection, wanted):
                rows += _newest(connection, _SELECT_FINISHED, conditions, limit)
            entries = [_entry(row) for row in rows]
            entries.sort(key=lambda entry: entry.updated_at, reverse=True)
            return entries[:limit]

        return await self._thread.run(work, Kind.READ)

    async def finished_counts(self) -> dict[InboxName, dict[StateName, int]]:
        """How many deliveries of each inbox were ever sent and failed."""

        def work(connection: sqlite3.Connection) -> dict[InboxName, dict[StateName, int]]:
            counts: dict[InboxName, dict[StateName, int]] = {}
            for inbox, state, n in connection.execute("SELECT inbox, state, n FROM finished_counts"):
                counts.setdefault(InboxName(to_text(inbox)), {})[StateName(state)] = n
            return counts

        return await self._thread.run(work, Kind.READ)

    async def hold_until(self, until: datetime | None, detail: str, now: datetime) -> None:  # noqa: ARG002  the port's
        """Remember that the platform asked for silence until then (None: no longer), so that a restart keeps to it."""
        values = (None, None) if until is None else (from_time(until), from_text(detail))

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE journal SET held_until = ?, held_detail = ?", values)

        await self._thread.run(work, Kind.LAZY)

    async def held_until(self) -> tuple[datetime, str] | None:
        """What `hold_until` said last, if that is not None."""

        def work(connection: sqlite3.Connection) -> tuple[datetime, str] | None:
            until, detail = connection.execute("SELECT held_until, held_detail FROM journal").fetchone()
            return None if until is None else (to_time(until), to_text(detail))

        return await self._thread.run(work, Kind.READ)

    async def forget(self, before: datetime, limit: int) -> int:
        """Delete finished deliveries that last changed before then, `limit` at most; how many there were.

        In small slices, so that nobody waits long behind it. The counts stay.
        """
        forgotten = 0
        for state in _FINISHED:
            while forgotten < limit:
                most = min(FORGET_SLICE, limit - forgotten)
                gone = await self._thread.run(_Forget(state, from_time(before), most), Kind.LAZY)
                forgotten += gone
                if gone < most:
                    break
        return forgotten


class _Forget:
    def __init__(self, state: StateName, before: int, most: int) -> None:
        self._values = (state.value, before, most)

    def __call__(self, connection: sqlite3.Connection) -> int:
        return connection.execute(
            "DELETE FROM finished WHERE rowid IN "
            "(SELECT rowid FROM finished WHERE state = ? AND updated_at < ? ORDER BY updated_at LIMIT ?)",
            self._values,
        ).rowcount


def _must_last(delivery: Delivery) -> bool:
    return isinstance(delivery.state, Posting | Posted)


def _put(connection: sqlite3.Connection, row: Row) -> None:
    """Each statement costs: the usual case comes first, a new one, then one that is known."""
    delivery, *rest = values = tuple(row.values())  # in the order of the columns, as `to_row` has them
    if row["state"] in _FINISHED:
        _finish(connection, row, values)
        return
    if row["tries"] == 0 and connection.execute(_INSERT_UNFINISHED, values).rowcount == 1:
        connection.execute("DELETE FROM finished WHERE id = ?", (delivery,))
    elif connection.execute(_UPDATE_UNFINISHED, (*rest, delivery)).rowcount == 0:
        connection.execute("DELETE FROM finished WHERE id = ?", (delivery,))
        connection.execute(_INSERT_UNFINISHED, values)


def _finish(connection: sqlite3.Connection, row: Row, values: Sequence[Value]) -> None:
    counted_as: str | None = None
    if connection.execute("DELETE FROM unfinished WHERE id = ?", values[:1]).rowcount == 0:
        before = connection.execute("SELECT state FROM finished WHERE id = ?", values[:1]).fetchone()
        if before is not None:
            counted_as = before[0]
            connection.execute("DELETE FROM finished WHERE id = ?", values[:1])
    connection.execute(_INSERT_FINISHED, values)
    # Saying the same twice is one outcome; whatever else ends anew counts anew.
    if counted_as != row["state"]:
        connection.execute(
            "INSERT INTO finished_counts (inbox, state, n) VALUES (?, ?, 1) "
            "ON CONFLICT (inbox, state) DO UPDATE SET n = n + 1",
            (row["inbox"], row["state"]),
        )


def _ranges(connection: sqlite3.Connection, wanted: _Conditions) -> list[_Conditions]:
    """The stretches of an index, each in order of time, that together hold the finished deliveries wanted."""
    if "state" in wanted and wanted["state"] not in _FINISHED:
        return []
    if "name" in wanted:
        if "inbox" in wanted:
            return [wanted]
        inboxes = connection.execute("SELECT DISTINCT inbox FROM finished_counts").fetchall()
        return [{**wanted, "inbox": inbox} for (inbox,) in inboxes]
    if "state" in wanted:
        return [wanted]
    return [{**wanted, "state": state.value} for state in _FINISHED]


def _newest(connection: sqlite3.Connection, table: str, conditions: _Conditions, limit: int) -> list[Row]:
    where = " AND ".join(f"{column} = ?" for column in conditions)
    query = f"{table} WHERE {where or 'TRUE'} ORDER BY updated_at DESC, rowid DESC LIMIT ?"
    return _select(connection, query, (*conditions.values(), limit))


def _select(connection: sqlite3.Connection, query: str, values: Sequence[Value]) -> list[Row]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in connection.execute(query, values)]


def _entry(row: Row) -> Entry:
    try:
        return to_entry(row)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise JournalError(f"delivery {row['id']!r}: its row in the journal cannot be understood: {error}") from error
