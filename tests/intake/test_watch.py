"""What the observer notes, how it dies, and where it is of use."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from watchdog.events import FileCreatedEvent, FileMovedEvent
from watchdog.observers.inotify import InotifyWatchGroup
from watchdog.observers.inotify_move_event_grouper import InotifyMoveEventGrouper

from attachd.intake.watch import Watch, filesystem_type, limit_to_raise, native_works


class Waker:
    def __init__(self) -> None:
        self.event = threading.Event()
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        self.event.set()


@pytest.fixture
def waker() -> Waker:
    return Waker()


@pytest.fixture
def watch(inbox: Path, waker: Waker) -> Iterator[Watch]:
    watch = Watch(str(inbox), waker, own=frozenset({"sent"}))
    watch.start()
    yield watch
    watch.stop()


def renamed_within(watch: Watch, names: set[str]) -> set[str]:
    """Takes hints until these names came, at most 5 s."""
    seen: set[str] = set()
    deadline = time.monotonic() + 5
    while not names <= seen and time.monotonic() < deadline:
        seen |= watch.take().renamed
        time.sleep(0.005)
    return seen


def test_the_installed_watchdog_has_what_the_guards_look_for() -> None:
    """Without these two attributes nothing breaks, but claims slow the events down and overflows heal late."""
    assert hasattr(InotifyMoveEventGrouper, "delay")
    assert hasattr(InotifyWatchGroup, "on_queue_overflow")


def test_renames_are_told_from_creations(watch: Watch, waker: Waker, inbox: Path, outside: Path) -> None:
    """From outside and within: the new name counts. A created or written file is no rename."""
    (outside / "in.pdf").touch()
    (inbox / "b.part").touch()
    (inbox / "created.pdf").write_bytes(b"x")
    os.rename(outside / "in.pdf", inbox / "in.pdf")
    os.rename(inbox / "b.part", inbox / "b.pdf")
    assert renamed_within(watch, {"in.pdf", "b.pdf"}) == {"in.pdf", "b.pdf"}
    assert waker.event.wait(5)


def test_one_wake_for_all_until_taken(inbox: Path, waker: Waker) -> None:
    """A flood costs the event loop one call."""
    watch = Watch(str(inbox), waker)
    for number in range(100):
        watch.note(FileCreatedEvent(f"{inbox}/f{number}"))
    assert waker.calls == 1
    watch.take()
    watch.note(FileCreatedEvent(f"{inbox}/g"))
    assert waker.calls == 2


def test_what_leaves_or_is_ours_wakes_nobody(inbox: Path, waker: Waker) -> None:
    """Our own claims and filings are no news."""
    watch = Watch(str(inbox), waker, own=frozenset({"sent"}))
    watch.note(FileMovedEvent(f"{inbox}/a", ""))
    watch.note(FileMovedEvent("", f"{inbox}/sent/a"))
    assert waker.calls == 0


def test_a_write_after_the_rename_takes_the_hint_back(inbox: Path, waker: Waker) -> None:
    """The next file of that name is not complete because the last one was."""
    watch = Watch(str(inbox), waker)
    watch.note(FileMovedEvent("", f"{inbox}/a"))
    watch.note(FileMovedEvent("", f"{inbox}/b"))
    watch.note(FileCreatedEvent(f"{inbox}/a"))
    watch.note(FileMovedEvent(f"{inbox}/d/c", f"{inbox}/e/c", is_synthetic=True))
    assert watch.take().renamed == {"b"}


def test_an_error_of_ours_ends_no_thread(inbox: Path, waker: Waker) -> None:
    """A wake that fails is counted; the next event wakes."""
    fail = [True]

    def wake() -> None:
        waker()
        if fail:
            fail.pop()
            raise RuntimeError

    watch = Watch(str(inbox), wake)
    watch.start()
    try:
        os.mkfifo(inbox / "a")
        assert waker.event.wait(5)
        waker.event.clear()
        (inbox / "b").touch()
        assert waker.event.wait(5)
        assert watch.alive
        assert watch.failures == 1
    finally:
        watch.stop()


def test_an_overflow_is_noted(watch: Watch, waker: Waker) -> None:
    """The kernel's word that events are lost arrives as a hint; watchdog's own way of dealing with it goes on."""
    assert watch._observer is not None
    (emitter,) = watch._observer.emitters
    emitter._inotify.on_queue_overflow()  # type: ignore[attr-defined]
    assert waker.event.wait(5)
    assert watch.take().overflowed
    assert not watch.take().overflowed


def test_a_dead_emitter_is_noticed(watch: Watch) -> None:
    """The observer alone would still call itself alive."""
    assert watch.alive
    assert watch._observer is not None
    (emitter,) = watch._observer.emitters
    emitter.stop()
    emitter.join(5)
    assert watch._observer.is_alive()
    assert not watch.alive


def test_a_folder_that_cannot_be_watched_leaves_no_thread(tmp_path: Path, waker: Waker) -> None:
    """A failed start raises and cleans up after itself."""
    before = threading.active_count()
    watch = Watch(str(tmp_path / "missing"), waker)
    with pytest.raises(OSError):
        watch.start()
    watch.stop()
    assert threading.active_count() == before


def test_the_limit_is_named() -> None:
    """The kernel says "no space left"; people need the name of the setting."""
    assert "fs.inotify.max_user_instances" in limit_to_raise(OSError(errno.EMFILE, "x"))
    assert "fs.inotify.max_user_watches" in limit_to_raise(OSError(errno.ENOSPC, "x"))
    assert "Permission denied" in limit_to_raise(OSError(errno.EACCES, "Permission denied"))


def test_the_filesystem_type_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    """The longest mount point above the path; the later of two on the same point; blanks are escaped."""
    table = tmp_path / "mountinfo"
    table.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 0:30 / /srv/share rw shared:1 - nfs4 host:/x rw\n"
        "3 1 0:31 / /srv/my\\040scans rw master:1 propagate_from:2 - fuse.sshfs x rw\n"
        "4 1 0:32 / /mnt rw - ext4 /dev/sdb1 rw\n"
        "5 1 0:33 / /mnt rw - cifs //host/x rw\n"
    )

    def kind(path: str) -> str | None:
        return filesystem_type(path, str(table))

    assert kind("/srv") == "ext4"
    assert kind("/srv/share") == "nfs4"
    assert kind("/srv/share/claims") == "nfs4"
    assert kind("/srv/shared") == "ext4"
    assert kind("/srv/my scans/a") == "fuse.sshfs"
    assert kind("/mnt/a") == "cifs"
    assert filesystem_type("/", str(tmp_path / "missing")) is None


def test_a_local_folder_is_watched(inbox: Path) -> None:
    """The folder of this test lies on a local disk."""
    assert native_works(str(inbox))
