"""The one thread that owns the journal's connection, and the commits that concurrent callers share.

Callers leave what they want done in a queue. The thread takes all that waits, does it in one transaction in the order
of the queue, commits once and then answers everybody. Knows transactions, not tables.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Self, TypeVar

from attachd.errors import AccountError, JournalError
from attachd.journal.store import Store, is_full, primary_code
from attachd.model import Reason, Step

T = TypeVar("T")

_BATCH = 256
"""Calls that share a commit at most, so that the first of them does not wait for all who came later."""

_FOLD_WHEN_IDLE = 500
_FOLD_AT_LATEST = 2000
"""Changed rows after which the log is folded into the file: when nobody waits, or though somebody does. A change that
has its commit for itself costs the log two pages of 4 KiB or more: it stays in the order of ten megabytes."""

_ONE_CALLERS_ERROR = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_RANGE}


class Kind(Enum):
    """What a call needs of the disk."""

    READ = auto()
    LAZY = auto()
    """On disk sooner or later: with the next durable one at the latest."""
    DURABLE = auto()
    """On disk before the caller is answered."""


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    work: Callable[[sqlite3.Connection], Any]
    kind: Kind
    future: "asyncio.Future[Any]"


@dataclass(frozen=True, slots=True)
class _Answer:
    call: _Call
    result: Any = None
    error: Exception | None = None


class JournalThread:
    """Runs calls on the store that `open_store` opens. `async with` opens it, and ends with the thread joined."""

    def __init__(self, open_store: Callable[[], Store], ballast_every_s: float) -> None:
        self._open_store = open_store
        self._ballast_every_s = ballast_every_s
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=False)
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[Store] = self._loop.create_future()
        self._ended: asyncio.Future[Exception | None] = self._loop.create_future()
        self._closing = False
        self._last_taken = False
        self._cause: BaseException | None = None
        self._folded_at = 0

    async def __aenter__(self) -> Self:
        self._thread.start()
        try:
            self.store = await asyncio.shield(self._opened)
        except BaseException:
            await self._stop()
            if self._opened.done():
                self._opened.exception()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        failed = await self._stop()
        if failed is not None:
            raise failed

    async def _stop(self) -> Exception | None:
        self._closing = True
        self._calls.put(None)
        try:
            return await asyncio.shield(self._ended)
        finally:
            self._thread.join()

    async def run(self, work: Callable[[sqlite3.Connection], T], kind: Kind) -> T:
        """Have `work` done in a transaction; it may run twice, the second time after a roll-back.

        Raises JournalError, AccountError (disk_full), and whatever `work` raises, which undoes this call alone.
        """
        if self._closing:
            raise JournalError("the journal is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.put(_Call(work, kind, future))
        return await future

    # What follows runs on the thread.

    def _run(self) -> None:
        try:
            store = self._open_store()
        except BaseException as error:  # noqa: BLE001  whoever opens waits for it
            self._post(partial(self._opened.set_exception, error))
            self._post(partial(self._ended.set_result, None))
            return
        self._post(partial(self._opened.set_result, store))
        failed: Exception | None = None
        try:
            self._serve(store)
        except BaseException as error:  # noqa: BLE001  nobody may wait for a thread that is gone
            self._break(store, error)
            self._refuse_all()
        else:
            try:
                store.close()
            except sqlite3.Error as error:
                self._break(store, error)
                failed = self._refusal()
        self._post(partial(self._ended.set_result, failed))

    def _serve(self, store: Store) -> None:
        while not self._last_taken:
            batch = self._take(store)
            if not batch:
                continue
            try:
                answers = _work(store, batch)
            except BaseException as error:
                self._break(store, error)
                self._answer([_Answer(call, error=self._refusal()) for call in batch])
                raise
            self._answer(answers)
            if not self._last_taken:
                self._fold(store)

    def _take(self, store: Store) -> list[_Call]:
        """All calls that wait; waits for one if there is none, but not for ever."""
        batch: list[_Call] = []
        try:
            call = self._calls.get(timeout=self._ballast_every_s if store.ballast.missing else None)
            while call is not None:
                batch.append(call)
                if len(batch) == _BATCH:
                    return batch
                call = self._calls.get_nowait()
        except Empty:
            if not batch:
                store.ballast.restore()
            return batch
        self._last_taken = True
        return batch

    def _fold(self, store: Store) -> None:
        changes = store.connection.total_changes
        if changes - self._folded_at >= (_FOLD_WHEN_IDLE if self._calls.empty() else _FOLD_AT_LATEST):
            store.checkpoint()
            self._folded_at = changes

    def _break(self, store: Store, cause: BaseException) -> None:
        if self._cause is not None:
            return
        self._cause = cause
        code = primary_code(cause) if isinstance(cause, sqlite3.Error) else None
        store.abandon(suspect=code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))

    def _refuse_all(self) -> None:
        while not self._last_taken:
            call = self._calls.get()
            if call is None:
                return
            self._answer([_Answer(call, error=self._refusal())])

    def _refusal(self) -> JournalError:
        cause = self._cause
        refusal = JournalError(f"the journal can no longer be trusted to remember: {cause}")
        refusal.__cause__ = cause
        return refusal

    def _answer(self, answers: list[_Answer]) -> None:
        self._post(partial(_settle, answers))

    def _post(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop is closed: nobody is left to be told.
            return


def _settle(answers: list[_Answer]) -> None:
    for answer in answers:
        future = answer.call.future
        if future.done():
            continue  # its caller was cancelled
        if answer.error is None:
            future.set_result(answer.result)
        else:
            future.set_exception(answer.error)


def _work(store: Store, batch: list[_Call]) -> list[_Answer]:
    """Do all calls and commit. Raises only what no caller can be answered after: the disk or the file fails."""
    if all(call.kind is Kind.READ for call in batch):
        return [_read(store, call) for call in batch]
    durable = any(call.kind is Kind.DURABLE for call in batch)
    outcome = _try_transaction(store, batch, durable)
    if isinstance(outcome, sqlite3.Error) and durable and store.ballast.give_up():
        outcome = _try_transaction(store, batch, durable)
    if not isinstance(outcome, sqlite3.Error):
        return outcome
    return [_read(store, call) if call.kind is Kind.READ else _Answer(call, error=_no_space(outcome)) for call in batch]


def _try_transaction(store: Store, batch: list[_Call], durable: bool) -> list[_Answer] | sqlite3.Error:
    """The answers, or the error that says the disk is full, with everything undone."""
    try:
        return _transact(store, batch, durable)
    except sqlite3.Error as error:
        store.roll_back()
        if not is_full(error):
            raise
        return error


def _transact(store: Store, batch: list[_Call], durable: bool) -> list[_Answer]:
    connection = store.connection
    store.set_durable(durable)
    connection.execute("BEGIN IMMEDIATE")
    try:
        answers = [_Answer(call, result=call.work(connection)) for call in batch]
    except Exception as error:
        if not _concerns_one_caller(error):
            raise
        # Rare, so only now each call pays for being undone alone.
        store.roll_back()
        connection.execute("BEGIN IMMEDIATE")
        answers = [_do_alone(connection, call) for call in batch]
    connection.execute("COMMIT")
    return answers


def _do_alone(connection: sqlite3.Connection, call: _Call) -> _Answer:
    connection.execute("SAVEPOINT call")
    try:
        answer = _Answer(call, result=call.work(connection))
    except Exception as error:
        if not _concerns_one_caller(error) or not connection.in_transaction:
            raise
        connection.execute("ROLLBACK TO call")
        answer = _Answer(call, error=error)
    connection.execute("RELEASE call")
    return answer


def _read(store: Store, call: _Call) -> _Answer:
    try:
        return _Answer(call, result=call.work(store.connection))
    except Exception as error:
        if not _concerns_one_caller(error):
            raise
        return _Answer(call, error=error)


def _concerns_one_caller(error: Exception) -> bool:
    if not isinstance(error, sqlite3.Error):
        return not isinstance(error, MemoryError)
    code = primary_code(error)
    return code is None or code in _ONE_CALLERS_ERROR


def _no_space(cause: sqlite3.Error) -> AccountError:
    error = AccountError(Reason.DISK_FULL, "the journal's disk is full; make room in state_dir", Step.CHECK)
    error.__cause__ = cause
    return error
