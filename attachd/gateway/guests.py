"""Who the guests are: a label that may be seen, and the secret that is the session's only credential.

The secret follows from the label and a key of this installation, so a later process can go on as the same guest with
nothing but the label: the journal and the log hold no credential.
"""

import hmac
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

from attachd.errors import ConfigError
from attachd.model import GuestId

KEY_BYTES = 32
_KEY_NAME = "guest.key"


def new_guest() -> GuestId:
    """A label for a guest nobody knows yet."""
    return GuestId(str(uuid4()))


def token_of(guest: GuestId, key: bytes) -> str:
    """The guest's secret: shaped like the random UUID the platform expects, and as hard to guess as the key."""
    digest = hmac.digest(key, guest.encode(), "sha256")
    return str(UUID(bytes=digest[:16], version=4))


def load_guest_key(state_dir: Path) -> bytes:
    """The key of this installation; made, durably and for this user alone, when there is none. Blocking.

    Without the key that was there the platform can no longer be asked about messages in doubt, so a key that cannot be
    used is never replaced by itself. `state_dir` must exist. Raises ConfigError.
    """
    path = state_dir / _KEY_NAME
    try:
        try:
            return _read(path)
        except FileNotFoundError:
            _make(path)
            return _read(path)
    except OSError as error:
        raise ConfigError(str(state_dir), [f"state_dir: {path}: {error.strerror or error}"]) from error


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        key = os.read(fd, KEY_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    finally:
        os.close(fd)
    if len(key) != KEY_BYTES:
        raise _unfit(path, "is no key of attachd; restore it from a copy, or remove it once nothing is under way")
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise _unfit(path, f"may be read by others; chown it to uid {os.geteuid()} and chmod it to 600")
    return key


def _make(path: Path) -> None:
    """Write it whole under another name first: a key that exists is complete, and never written over."""
    fd, beside = tempfile.mkstemp(prefix=f".{_KEY_NAME}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(os.urandom(KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):  # another process was quicker: its key counts
            os.link(beside, path)
    finally:
        os.unlink(beside)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unfit(path: Path, why: str) -> ConfigError:
    return ConfigError(str(path.parent), [f"state_dir: {path} {why}"])
