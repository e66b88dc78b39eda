"""Asks the kernel to say when an inbox changes. What it says is a hint; the scan decides.

One observer per inbox, so that a flood in one does not blind another. Its thread does nothing but note that something
happened, and which names arrived by rename, and wakes the event loop. That it can fall silent without a word (a dead
thread, a full queue, a folder that was swapped) is expected: whoever holds a `Watch` asks `alive` now and then, builds
a new one, and scans regularly all the same.
"""

import errno
import os
import sys
import threading
from collections.abc import Callable, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver

MAX_HINTS = 4096
"""How many renamed names are kept between two scans. Ours; the others settle like any file."""
JOIN_S = 5.0
"""How long the observer's threads may take to end; they are daemon threads and hold nothing of ours."""

_FILE_EVENTS: list[type[FileSystemEvent]] = [FileClosedEvent, FileCreatedEvent, FileMovedEvent]
_TREE_EVENTS: list[type[FileSystemEvent]] = [*_FILE_EVENTS, DirCreatedEvent, DirMovedEvent]
# Changes that other hosts make on these raise no events here.
_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "afs", "ceph", "glusterfs", "lustre", "gpfs", "ocfs2"}
)


class WatchMode(StrEnum):
    """How an inbox learns of changes."""

    AUTO = "auto"
    NATIVE = "native"
    POLLING = "polling"


@dataclass(frozen=True, slots=True)
class Hints:
    """What was noted since the last time somebody asked."""

    renamed: frozenset[str]
    overflowed: bool


class Watch:
    """An observer of one folder, from `start` to `stop`; both block, and neither can be done twice.

    `wake` is called in the observer's thread, once for all that is noted until `take`.
    """

    def __init__(
        self, path: str, wake: Callable[[], None], *, recursive: bool = False, own: Set[str] = frozenset()
    ) -> None:
        self._path = path
        self._below = path.rstrip("/") + "/"
        self._wake = wake
        self._recursive = recursive
        self._own = own
        self._lock = threading.Lock()
        self._pending = False
        self._renamed: set[str] = set()
        self._overflowed = False
        self._failures = 0
        self._observer: BaseObserver | None = None

    def start(self) -> None:
        """Begin to observe; whatever changes after the return is noted.

        Raises OSError: no instance or watch is left, or the folder cannot be watched.
        """
        from watchdog.observers.inotify import InotifyObserver  # noqa: PLC0415  not to be imported where it is missing
        from watchdog.observers.inotify_move_event_grouper import InotifyMoveEventGrouper  # noqa: PLC0415

        # Left as it is, every file that leaves the folder, as all do that are claimed, holds up the events behind it.
        if hasattr(InotifyMoveEventGrouper, "delay"):
            InotifyMoveEventGrouper.delay = 0.0
        # Full events tell an arrival by rename from a file that is created.
        observer = InotifyObserver(generate_full_events=True)
        try:
            observer.schedule(
                _Noter(self),
                self._path,
                recursive=self._recursive,
                event_filter=_TREE_EVENTS if self._recursive else _FILE_EVENTS,
            )
            observer.start()
        except BaseException:
            observer.stop()
            raise
        self._observer = observer
        for emitter in observer.emitters:
            _on_overflow(getattr(emitter, "_inotify", None), self.note_overflow)

    def stop(self) -> None:
        """End it; what was not taken yet is dropped."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join(JOIN_S)

    @property
    def alive(self) -> bool:
        """All threads that an event passes through are running."""
        observer = self._observer
        if observer is None or not observer.is_alive() or not observer.emitters:
            return False
        reader = getattr(observer, "_inotify_fd", None)
        if isinstance(reader, threading.Thread) and not reader.is_alive():
            return False
        return all(emitter.is_alive() for emitter in observer.emitters)

    @property
    def failures(self) -> int:
        """How many events could not be noted because of an error in our own code."""
        return self._failures

    def take(self) -> Hints:
        """What was noted since the last call."""
        with self._lock:
            hints = Hints(frozenset(self._renamed), self._overflowed)
            self._renamed.clear()
            self._pending = self._overflowed = False
        return hints

    def note(self, event: FileSystemEvent) -> None:
        """Called in the observer's thread for each event."""
        self._guarded(lambda: self._note(event))

    def note_overflow(self) -> None:
        """Called in the observer's thread when the kernel has dropped events."""
        self._guarded(self._note_overflow)

    def _guarded(self, note: Callable[[], None]) -> None:
        try:
            note()
        except Exception:  # noqa: BLE001  it would end the thread without a word: better to lose one hint than all
            self._failures += 1

    def _note(self, event: FileSystemEvent) -> None:
        moved = event.event_type == "moved"
        # Leaving is no news: mostly it is a claim of ours.
        path = event.dest_path if moved else event.src_path
        if not path:
            return
        name = os.fsdecode(path).removeprefix(self._below)
        if name.split("/", 1)[0] in self._own:
            return
        with self._lock:
            # A file inside a renamed folder has not been renamed itself, and may still be written to.
            if moved and not event.is_synthetic and not event.is_directory:
                if len(self._renamed) < MAX_HINTS:
                    self._renamed.add(name)
            else:
                self._renamed.discard(name)
            self._mark()

    def _note_overflow(self) -> None:
        with self._lock:
            self._overflowed = True
            self._mark()

    def _mark(self) -> None:
        if not self._pending:
            # Set only after the call: should it fail, the next event tries again.
            self._wake()
            self._pending = True


class _Noter(FileSystemEventHandler):
    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def dispatch(self, event: FileSystemEvent) -> None:
        self._watch.note(event)


def _on_overflow(group: object, note: Callable[[], None]) -> None:
    # No documented interface: without it an overflow is made good by the next regular scan.
    original = getattr(group, "on_queue_overflow", None)
    if not callable(original):
        return

    def overflowed() -> None:
        try:
            original()
        finally:
            note()

    group.on_queue_overflow = overflowed  # type: ignore[attr-defined]


def native_works(path: str) -> bool:
    """Whether events can be relied on for this folder; blocks. True where it cannot be found out."""
    if not sys.platform.startswith("linux"):
        return False
    kind = filesystem_type(path)
    return kind is None or not (kind in _REMOTE or kind.startswith("fuse"))


def filesystem_type(path: str, mountinfo: str = "/proc/self/mountinfo") -> str | None:
    """The type of the filesystem that a real path lies on, as the kernel calls it; blocks. Source: proc(5)."""
    best, kind = "", None
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                before, _, after = line.partition(" - ")
                fields, kinds = before.split(" "), after.split(" ")
                if len(fields) < 5 or not kinds[0]:
                    continue
                point = _unescaped(fields[4])
                # What is mounted later on the same point covers what was there.
                if len(point) >= len(best) and (path + "/").startswith(point.rstrip("/") + "/"):
                    best, kind = point, kinds[0]
    except OSError:
        return None
    return kind


def _unescaped(field: str) -> str:
    # Blank, tab, newline and backslash are written as octal numbers.
    for code, sign in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, sign)
    return field


def limit_to_raise(error: OSError) -> str:
    """Why an observer could not be started, in words, with the remedy where there is one."""
    match error.errno:
        case errno.EMFILE:
            return (
                "no inotify instance is left: raise the sysctl fs.inotify.max_user_instances, "
                "or the limit of open files of this process"
            )
        case errno.ENOSPC:
            return "no inotify watch is left: raise the sysctl fs.inotify.max_user_watches"
        case errno.ENFILE:
            return "the system has no file handle left: raise the sysctl fs.file-max"
        case _:
            return f"the folder cannot be watched: {error.strerror or error}"
