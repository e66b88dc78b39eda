"""The state folder: private, held by one process, with a little space kept back for a full disk.

Blocking; only the journal's thread calls it.
"""

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from attachd.errors import JournalBusy, JournalError


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_private(path: Path) -> None:
    """See to it that the folder is there, is ours and is open to nobody else.

    Raises JournalError when it belongs to somebody else or cannot be made.
    """
    try:
        _make(path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise JournalError(f"state_dir {path}: cannot be used: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise JournalError(
                f"state_dir {path}: belongs to uid {status.st_uid}, attachd runs as uid {os.geteuid()}; "
                f"run it as the owner or: chown {os.geteuid()} {path}"
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            os.fchmod(fd, 0o700)
    except OSError as error:
        raise JournalError(f"state_dir {path}: cannot be made private: {error.strerror}") from error
    finally:
        os.close(fd)


def _make(path: Path) -> None:
    missing: list[Path] = []
    folder = path
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        with suppress(FileExistsError):
            new.mkdir(0o700 if new == path else 0o755)
        sync_folder(new)
        sync_folder(new.parent)


class Lock:
    """The right to use the state folder; it ends with `release` or with the process.

    Raises JournalBusy when another process has it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise JournalError(f"{path}: cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise JournalBusy(
                    f"{path.parent}: another attachd is using this state folder (pid {holder}); stop that one first"
                ) from None
            raise JournalError(f"{path}: cannot be locked: {error.strerror}") from error
        # The number is for people only: a full disk must not keep us from starting.
        with suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have it."""
        os.close(self._fd)


class Ballast:
    """A file that is good for nothing but being given up when the disk is full."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size

    @property
    def missing(self) -> bool:
        """Not there, or there without the space it stands for."""
        try:
            status = os.lstat(self._path)
        except OSError:
            return True
        return status.st_size < self._size or status.st_blocks * 512 < self._size

    def give_up(self) -> bool:
        """Free its space; False when there was none to free."""
        try:
            os.unlink(self._path)
        except OSError:
            return False
        return True

    def restore(self) -> None:
        """Make it anew if the disk has room for it and as much again; else leave things as they are."""
        if not self.missing:
            return
        with suppress(OSError):
            room = os.statvfs(self._path.parent)
            if room.f_bavail * room.f_frsize < 2 * self._size:
                return
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._size)
            except OSError:
                os.unlink(self._path)
            finally:
                os.close(fd)
