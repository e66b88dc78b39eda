"""The word that lets a command change something in the daemon it talks to: a file in the state folder.

Made by the daemon at its start, read by the commands of the same user; nobody else can open the folder it lies in.
"""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from attachd.errors import ConfigError

TOKEN_NAME = "admin.token"  # noqa: S105  a file's name
_SHORTEST = 32
_LONGEST_BYTES = 200


def load_or_make_token(state_dir: Path) -> str:
    """The token of this installation; made for this user alone when there is none, or no whole one. Blocking.

    Unlike the guest key it may be replaced: whoever still has the old one reads it again. `state_dir` must exist.
    Raises ConfigError.
    """
    path = state_dir / TOKEN_NAME
    try:
        if token := _read(path):
            return token
        token = secrets.token_urlsafe(_SHORTEST)
        with suppress(FileNotFoundError):
            os.unlink(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)
            os.write(fd, f"{token}\n".encode())
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(str(state_dir), [f"state_dir: {path}: {error.strerror or error}"]) from error
    return token


def read_token(state_dir: Path) -> str | None:
    """The token, for a command; None when there is none. Raises OSError when it may not be read. Blocking."""
    return _read(state_dir / TOKEN_NAME)


def _read(path: Path) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(fd)
        # What others could have read or written is no secret of ours.
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (os.geteuid(), _owner_of(path.parent)):
            return None
        if stat.S_IMODE(found.st_mode) & 0o077:
            return None
        token = os.read(fd, _LONGEST_BYTES).decode("ascii", "replace").strip()
    finally:
        os.close(fd)
    return token if len(token) >= _SHORTEST and token.isascii() and token.isprintable() else None


def _owner_of(folder: Path) -> int:
    return os.stat(folder).st_uid
