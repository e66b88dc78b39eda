"""The journal's file: opened, checked, kept aside when damaged, folded together, closed.

Blocking, and bound to the one thread that opens it. It takes care of the file as a whole; what is in the tables is the
matter of `sqlite`.

The file is held exclusively, so no second connection can ever run beside this one. Checkpoints are asked for and never
left to SQLite: an automatic one keeps a failing fsync to itself.
"""

import ctypes
import os
import sqlite3
import struct
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from attachd.errors import JournalError
from attachd.journal.folder import Ballast, Lock, make_private, sync_folder
from attachd.ports import JournalIdentity

SCHEMA_VERSION = 1

_MAGIC = b"SQLite format 3\x00"
_HEADER_BYTES = 100
_SMALLEST_PAGE = 512
_USER_VERSION_AT = 60
_COMPANIONS = ("-wal", "-shm", "-journal")

_CHECK_ALL_UP_TO_BYTES = 64 << 20
"""Checking everything reads everything: beyond this size a start would take seconds. Our figure."""


def primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's result code without its details; None when the error is not SQLite's own."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def is_full(error: sqlite3.Error) -> bool:
    """No space left; nothing is wrong otherwise."""
    return primary_code(error) == sqlite3.SQLITE_FULL


class _Damaged(Exception):  # noqa: N818  not an error to anybody outside: it is mended here
    pass


class Store:
    """An open journal file. `replaced` says in words what happened when a damaged one had to make way."""

    connection: sqlite3.Connection
    identity: JournalIdentity

    def __init__(self, state_dir: Path, now: datetime, new_id: Callable[[], str], ballast_bytes: int) -> None:
        """Open or begin the journal in `state_dir`.

        Raises JournalBusy (another process has it), JournalError (folder, disk, or made by a newer attachd).
        """
        self._path = state_dir / "journal.db"
        self._suspect = state_dir / "journal.suspect"
        self._synchronous: str | None = None
        self.replaced: str | None = None
        self.ballast = Ballast(state_dir / "ballast", ballast_bytes)
        make_private(state_dir)
        self._lock = Lock(state_dir / "lock")
        try:
            self._refuse_newer()
            try:
                self._open(new_id)
            except _Damaged as damage:
                self._keep_aside(str(damage), now)
                self._open(new_id)
            with suppress(FileNotFoundError):
                os.unlink(self._suspect)
        except (sqlite3.Error, OSError, _Damaged) as error:
            self._lock.release()
            remedy = "; make room on its disk" if isinstance(error, sqlite3.Error) and is_full(error) else ""
            raise JournalError(f"{self._path}: cannot be opened: {error}{remedy}") from error
        except BaseException:
            self._lock.release()
            raise
        self.ballast.restore()

    def _refuse_newer(self) -> None:
        # Read without SQLite, which would fold the write-ahead log into the file.
        try:
            with open(self._path, "rb") as file:
                header = file.read(_HEADER_BYTES)
        except FileNotFoundError:
            return
        if len(header) == _HEADER_BYTES and header.startswith(_MAGIC):
            self._check_version(struct.unpack_from(">I", header, _USER_VERSION_AT)[0])

    def _check_version(self, found: int) -> None:
        if found > SCHEMA_VERSION:
            raise JournalError(
                f"{self._path}: has schema version {found}, this attachd knows versions up to {SCHEMA_VERSION}; "
                "run the newer attachd that made it"
            )

    def _open(self, new_id: Callable[[], str]) -> None:
        size = self._create_or_measure()
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=5.0)
        self.connection = connection
        try:
            try:
                self._prepare(size)
            except sqlite3.DatabaseError as error:
                # A plain ERROR is a table or a format that is not ours.
                if primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
                    raise _Damaged(str(error)) from error
                raise
            self._begin_generation(new_id)
        except BaseException:
            connection.close()
            raise

    def _create_or_measure(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._path, flags, 0o600)
        try:
            os.fchmod(fd, 0o600)
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
        if size == 0:
            # SQLite would throw away the log of an empty file; with one beside it, this file was not always empty.
            if any(self._companion(suffix).exists() for suffix in _COMPANIONS):
                raise _Damaged("the file is empty, its log is not")
            sync_folder(self._path.parent)
        elif size < _SMALLEST_PAGE:
            # SQLite would take it for an empty one.
            raise _Damaged(f"only {size} bytes are left of it")
        return size

    def _prepare(self, size: int) -> None:
        execute = self.connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        # When the disk refuses, SQLite may stay in another mode and only say so: a failing fsync would pass unseen.
        if (mode := execute("PRAGMA journal_mode = WAL").fetchone()[0]) != "wal":
            raise sqlite3.OperationalError(f"the write-ahead log cannot be switched on, the mode stays {mode!r}")
        execute("PRAGMA wal_autocheckpoint = 0")
        execute("PRAGMA temp_store = MEMORY")
        self.set_durable(True)
        # What is forgotten is overwritten: names of files tell of people.
        execute("PRAGMA secure_delete = ON")
        version = execute("PRAGMA user_version").fetchone()[0]
        self._check_version(version)
        if version == 0:
            if execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                raise _Damaged("it is a database, but not a journal of attachd")
            return
        if size:
            self._check()

    def _check(self) -> None:
        """Look for damage. Raises _Damaged."""
        execute = self.connection.execute
        folded = self.checkpoint(truncate=True)
        pages, page_size = (execute(f"PRAGMA {figure}").fetchone()[0] for figure in ("page_count", "page_size"))
        size = os.stat(self._path).st_size
        # Pages that a full disk keeps in the log are not missing.
        if folded and size < pages * page_size:
            raise _Damaged(f"{size} bytes are left of {pages * page_size}")
        if size <= _CHECK_ALL_UP_TO_BYTES or self._suspect.exists():
            checks = ["PRAGMA quick_check(1)"]
        else:
            checks = [f"PRAGMA quick_check('{table}')" for table in ("journal", "unfinished", "finished_counts")]
        for check in checks:
            verdict = execute(check).fetchone()[0]
            if verdict != "ok":
                raise _Damaged(verdict)
        for table in ("unfinished", "finished", "finished_counts"):
            execute(f"SELECT * FROM {table} LIMIT 1").fetchone()  # noqa: S608
        if len(execute("SELECT id, generation FROM journal").fetchall()) != 1:
            raise _Damaged("it does not say which journal it is")

    def _begin_generation(self, new_id: Callable[[], str]) -> None:
        try:
            identity = self._write_generation(new_id)
        except sqlite3.Error as error:
            self.roll_back()
            if not is_full(error) or not self.ballast.give_up():
                raise
            identity = self._write_generation(new_id)
        self.checkpoint(truncate=True)
        self.identity = identity

    def _write_generation(self, new_id: Callable[[], str]) -> JournalIdentity:
        execute = self.connection.execute
        execute("BEGIN IMMEDIATE")
        if execute("PRAGMA user_version").fetchone()[0] == 0:
            schema = resources.files("attachd.journal").joinpath("schema.sql").read_text("utf-8")
            for statement in _statements(schema):
                execute(statement)
            execute("INSERT INTO journal (one, id, generation) VALUES (1, ?, 0)", (new_id(),))
            execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        execute("UPDATE journal SET generation = generation + 1")
        journal, generation = execute("SELECT id, generation FROM journal").fetchone()
        execute("COMMIT")
        return JournalIdentity(journal, generation)

    def _keep_aside(self, damage: str, now: datetime) -> None:
        stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = Path(f"{self._path}.damaged-{stamp}")
        count = 1
        while aside.exists():
            count += 1
            aside = Path(f"{self._path}.damaged-{stamp}-{count}")
        # The file goes first: a log left alone after a crash in between still counts as damage.
        os.rename(self._path, aside)
        for suffix in _COMPANIONS:
            with suppress(FileNotFoundError):
                os.rename(self._companion(suffix), f"{aside}{suffix}")
        sync_folder(self._path.parent)
        self.replaced = f"the journal was damaged ({damage}); it is kept as {aside}, and a new one has begun"

    def _companion(self, suffix: str) -> Path:
        return Path(f"{self._path}{suffix}")

    def set_durable(self, durable: bool) -> None:
        """Whether the commits that follow reach the disk before they return; not inside a transaction."""
        wanted = "FULL" if durable else "NORMAL"
        if wanted != self._synchronous:
            self.connection.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted

    def roll_back(self) -> None:
        """Back to before the transaction, if SQLite has not gone there by itself."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def checkpoint(self, *, truncate: bool = False) -> bool:
        """Fold the log into the file; whether that was done. On a full disk nothing happens, and nothing is lost."""
        try:
            self.connection.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if truncate else 'PASSIVE'})").fetchone()
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            return False
        return True

    def close(self) -> None:
        """Fold everything into one file and let others have it. Raises sqlite3.Error when that fails."""
        self.checkpoint(truncate=True)
        self.connection.close()
        self._lock.release()

    def abandon(self, *, suspect: bool) -> None:
        """Leave everything to the end of the process, the lock included.

        To close the connection would fold the log into the file once more, from pages that a failed fsync may have
        lost. `suspect` has the next start check the file in full.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.connection))
        if suspect:
            with suppress(OSError):
                os.close(os.open(self._suspect, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _statements(script: str) -> list[str]:
    statements: list[str] = []
    pending = ""
    for line in script.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
