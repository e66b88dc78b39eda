"""An intake on a real folder with a real observer: what comes in is offered once, complete, and nothing is missed."""

import asyncio
import errno
import os
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import structlog.testing
from watchdog.observers.inotify import InotifyObserver

from attachd.errors import InboxError
from attachd.intake.inbox import NotThere, OwnFolder, Paused, Unseen
from attachd.intake.names import Ignored
from attachd.intake.settle import LeftAlone, Ready, Settling
from attachd.intake.watch import Watch, WatchMode
from attachd.model import ClaimResult, Reason, Step

from ..waiting import until
from .conftest import Delivery, Running, slowly

FLOOD = """
import os, sys
inbox, outside = sys.argv[1:]
for number in range(10_000):
    for path in (f"{inbox}/c{number}", f"{outside}/r{number}"):
        with open(path, "wb") as file:
            file.write(b"x")
    os.rename(f"{outside}/r{number}", f"{inbox}/r{number}")
"""


async def test_a_slow_writer_is_waited_for(inbox: Path, delivery: Delivery, running: Running) -> None:
    """Every byte that was written is in what was offered, once."""
    await running()
    async with slowly(inbox / "a.pdf", 12) as content:
        pass
    await until(lambda: delivery.contents, "the file")
    assert delivery.contents == [("a.pdf", content or b"".join(b"%04d" % n for n in range(12)))]


async def test_a_rename_in_is_taken_at_once(inbox: Path, outside: Path, delivery: Delivery, running: Running) -> None:
    """From another folder: the quiet time does not apply."""
    await running(settle_s=60.0)
    (outside / "a.pdf").write_bytes(b"x")
    os.rename(outside / "a.pdf", inbox / "a.pdf")
    await until(lambda: delivery.names == ["a.pdf"], "the renamed file")


async def test_a_rename_within_is_taken_at_once(inbox: Path, delivery: Delivery, running: Running) -> None:
    """Upload under a temporary name, then rename: the usual way to say "finished"."""
    await running(settle_s=60.0)
    for ending in (".part", ".tmp", ".filepart", ".crdownload", "~"):
        (inbox / f"a.pdf{ending}").write_bytes(b"x")
        os.rename(inbox / f"a.pdf{ending}", inbox / f"a{ending.strip('.~')}.pdf")
    await until(lambda: len(delivery.names) == 5, "the renamed files")


async def test_an_atomic_save_is_taken_whole(inbox: Path, delivery: Delivery, running: Running) -> None:
    """An editor writes beside the file and renames over it, while the old one is still settling."""
    await running(settle_s=60.0)
    (inbox / "a.txt").write_bytes(b"old")
    (inbox / ".a.txt.swp").write_bytes(b"new")
    os.rename(inbox / ".a.txt.swp", inbox / "a.txt")
    await until(lambda: delivery.contents == [("a.txt", b"new")], "the saved file")


async def test_several_closes_are_one_file(inbox: Path, delivery: Delivery, running: Running) -> None:
    """Open, append, close, again and again, with pauses shorter than the quiet time."""
    await running(settle_s=0.3)
    for number in range(5):
        with (inbox / "a.pdf").open("ab") as file:
            file.write(b"%d" % number)
        await asyncio.sleep(0.05)
    await until(lambda: delivery.contents, "the file")
    assert delivery.contents == [("a.pdf", b"01234")]


async def test_files_found_at_the_start_settle_too(inbox: Path, delivery: Delivery, running: Running) -> None:
    """A file that is being written when we start is not complete because it was there first."""
    (inbox / "a.pdf").write_bytes(b"1")
    begun = time.monotonic()
    await running(settle_s=0.4)
    (inbox / "a.pdf").write_bytes(b"12")
    await until(lambda: delivery.contents == [("a.pdf", b"12")], "the file")
    assert time.monotonic() - begun >= 0.4


async def test_a_burst_loses_nothing(inbox: Path, outside: Path, delivery: Delivery, running: Running) -> None:
    """20,000 files as fast as they can be made, created and renamed in: each is offered exactly once."""
    intake = await running()

    # A process of its own, as producers are: it does not slow down when we are busy.
    producer = await asyncio.create_subprocess_exec(sys.executable, "-c", FLOOD, inbox, outside)
    assert await producer.wait() == 0
    await until(lambda: len(delivery.contents) >= 20_000, "20,000 files", 25)
    assert len(set(delivery.names)) == len(delivery.names) == 20_000
    assert intake.waiting == 0


async def test_waiting_files_are_counted_not_kept(inbox: Path, delivery: Delivery, running: Running) -> None:
    """20,000 waiting files fill a table of 100; when the way is free, all of them go."""
    for number in range(20_000):
        os.close(os.open(f"{inbox}/f{number}", os.O_CREAT))
    os.truncate(inbox / "f0", 1)
    delivery.open.clear()
    intake = await running(capacity=100, settle_s=0.0)
    assert len(intake._table) == 100
    assert intake.waiting == 20_000
    unseen = next(n for n in range(20_000) if f"f{n}" not in intake._table)
    assert await intake.explain(f"f{unseen}", time.monotonic()) == Unseen(table_full=True)


async def test_a_small_table_is_worked_off(inbox: Path, delivery: Delivery, running: Running) -> None:
    """Whatever was beyond the table gets its turn, without waiting for the regular scan."""
    for number in range(600):
        (inbox / f"f{number}").write_bytes(b"x")
    await running(capacity=100, settle_s=0.01)
    await until(lambda: len(delivery.names) == 600, "all files")


async def test_growing_files_starve_nobody(inbox: Path, delivery: Delivery, running: Running) -> None:
    """Files that are never at rest are taken up again and again; the others go."""
    await running(settle_s=0.05)
    growing = [(inbox / f"g{number}").open("ab", buffering=0) for number in range(20)]
    try:
        for round_ in range(25):
            for file in growing:
                file.write(b"x")
            if round_ == 5:
                for number in range(20):
                    (inbox / f"calm{number}").write_bytes(b"x")
            await asyncio.sleep(0.02)
        assert len([name for name in delivery.names if name.startswith("calm")]) == 20
    finally:
        for file in growing:
            file.close()


# watchdog warns of a race that it handles: a folder was watched both by its event and by a walk. As an error the
# warning would end watchdog's thread.
@pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")
async def test_a_new_tree_is_seen_whole(inbox: Path, delivery: Delivery, running: Running) -> None:
    """`mkdir -p` and an immediate write, many times: the observer may be late, the scan is not."""
    await running(recursive=True, rescan_s=1.0)
    for number in range(50):
        folder = inbox / f"d{number}/b/c"
        folder.mkdir(parents=True)
        (folder / "x.pdf").write_bytes(b"x")
    await until(lambda: len(delivery.names) == 50, "the files in new folders")
    assert delivery.names[0].endswith("/b/c/x.pdf")


async def test_a_linked_root_is_followed_once(
    inbox: Path, tmp_path: Path, outside: Path, delivery: Delivery, running: Running
) -> None:
    """The inbox itself may be a symbolic link, events included."""
    link = tmp_path / "link"
    link.symlink_to(inbox)
    intake = await running(path=str(link), settle_s=60.0)
    assert intake.watching is WatchMode.NATIVE
    (outside / "a.pdf").write_bytes(b"x")
    os.rename(outside / "a.pdf", inbox / "a.pdf")
    await until(lambda: delivery.names == ["a.pdf"], "the file")


async def test_what_is_ignored_is_told_once_and_taken_when_mended(
    inbox: Path, outside: Path, delivery: Delivery, running: Running
) -> None:
    """Links, FIFOs and hard links are reported once each, counted, and judged anew at every look."""
    (outside / "target.pdf").write_bytes(b"x")
    (inbox / "link.pdf").symlink_to(outside / "target.pdf")
    os.mkfifo(inbox / "fifo.pdf")
    os.link(outside / "target.pdf", inbox / "hard.pdf")
    (inbox / "a.part").touch()
    with structlog.testing.capture_logs() as logs:
        intake = await running(rescan_s=0.1, settle_s=0.05)
        assert intake.ignored == {
            Ignored.LINK: 1,
            Ignored.NOT_A_FILE: 1,
            Ignored.HARD_LINKS: 1,
            Ignored.TEMPORARY_NAME: 1,
        }
        assert await intake.explain("hard.pdf", time.monotonic()) == LeftAlone(Ignored.HARD_LINKS)
        (outside / "target.pdf").unlink()
        await until(lambda: delivery.names == ["hard.pdf"], "the file with one name left")
    told = sorted((line["file"], line["reason"]) for line in logs if line["event"] == "file.ignored")
    assert told == [
        ("a.part", "temporary_name"),
        ("fifo.pdf", "not_a_file"),
        ("hard.pdf", "hard_links"),
        ("link.pdf", "link"),
    ]


async def test_a_linked_in_file_needs_no_rescan(
    inbox: Path, outside: Path, delivery: Delivery, running: Running
) -> None:
    """As into a maildir: link to the new name, unlink the old one. The second step raises no event here."""
    await running(settle_s=0.2)
    (outside / "a.pdf").write_bytes(b"x")
    os.link(outside / "a.pdf", inbox / "a.pdf")
    await asyncio.sleep(0.05)
    (outside / "a.pdf").unlink()
    await until(lambda: delivery.names == ["a.pdf"], "the linked file")


async def test_odd_names_come_through(inbox: Path, outside: Path, delivery: Delivery, running: Running) -> None:
    """Bytes that are no UTF-8 and newlines, created and renamed in."""
    await running()
    odd = [b"\xff.pdf", b"a\nb.pdf", b"n" * 255]
    for number, name in enumerate(odd):
        path = os.path.join(os.fsencode(inbox if number % 2 else outside), name)
        with open(path, "wb") as file:
            file.write(b"x")
        if number % 2 == 0:
            os.rename(path, os.path.join(os.fsencode(inbox), name))
    await until(lambda: {os.fsencode(n) for n in delivery.names} == set(odd), "the odd names")


async def test_a_folder_that_goes_and_comes_back(inbox: Path, delivery: Delivery, running: Running) -> None:
    """It is lost once, found once, and what lies in it then is taken."""
    intake = await running()
    inbox.rmdir()
    await until(lambda: delivery.lost, "the loss")
    assert [error.reason for error in delivery.lost] == [Reason.FOLDER_MISSING]
    assert intake.trouble is delivery.lost[0]
    assert await intake.explain("a.pdf", time.monotonic()) == Paused(delivery.lost[0])
    inbox.mkdir()
    (inbox / "a.pdf").write_bytes(b"x")
    await until(lambda: delivery.names == ["a.pdf"], "the file in the new folder")
    (inbox / "b.pdf").write_bytes(b"x")
    await until(lambda: delivery.names == ["a.pdf", "b.pdf"], "an event from the new folder")
    assert (len(delivery.lost), delivery.found) == (1, 1)
    await until(lambda: len(intake._table) == 0, "the last result")
    assert await intake.explain("b.pdf", time.monotonic()) == NotThere()


async def test_a_folder_that_is_swapped(inbox: Path, tmp_path: Path, delivery: Delivery, running: Running) -> None:
    """The path names another folder now: the old one is let go, the new one watched."""
    await running()
    (inbox / "old.part").touch()
    os.rename(inbox, tmp_path / "old")
    inbox.mkdir()
    (inbox / "a.pdf").write_bytes(b"x")
    await until(lambda: delivery.names == ["a.pdf"], "the file in the new folder")
    assert [error.reason for error in delivery.lost] == [Reason.FOLDER_REPLACED]
    assert delivery.found == 1


async def test_an_inbox_that_is_missing_at_the_start(inbox: Path, delivery: Delivery, running: Running) -> None:
    """A share that is mounted later is no reason not to start."""
    inbox.rmdir()
    await running(settled=False)
    await until(lambda: delivery.lost, "the loss")
    inbox.mkdir()
    (inbox / "a.pdf").write_bytes(b"x")
    await until(lambda: delivery.names == ["a.pdf"], "the file")


async def test_an_offer_that_fails_loses_the_inbox(inbox: Path, delivery: Delivery, running: Running) -> None:
    """A folder that cannot be claimed from is lost until the other side says it is well; no file is forgotten."""
    intake = await running()
    delivery.error = InboxError(Reason.DISK_FULL, "no space left", Step.CHECK)
    (inbox / "a.pdf").write_bytes(b"x")
    await until(lambda: delivery.lost, "the loss")
    await until(lambda: intake.trouble is not None, "the trouble")
    delivery.error = None
    await until(lambda: delivery.names == ["a.pdf"], "the file")
    assert (delivery.lost[0].reason, len(delivery.lost), delivery.found) == (Reason.DISK_FULL, 1, 1)


async def test_a_dead_observer_is_replaced(inbox: Path, outside: Path, delivery: Delivery, running: Running) -> None:
    """Killed from inside: a new one is built, and a scan finds what came in between."""
    intake = await running(settle_s=60.0)
    assert intake._watch is not None
    assert intake._watch._observer is not None
    await asyncio.to_thread(intake._watch._observer.stop)
    await until(lambda: intake.rebuilds == 1 and intake._watch and intake._watch.alive, "a new observer")
    (outside / "a.pdf").write_bytes(b"x")
    os.rename(outside / "a.pdf", inbox / "a.pdf")
    await until(lambda: delivery.names == ["a.pdf"], "the file")


async def test_an_error_in_the_event_path_stops_nothing(
    inbox: Path, delivery: Delivery, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that cannot be noted is found by the regular scan, and counted as such."""

    def broken(self: Watch, event: object) -> None:
        raise ValueError

    monkeypatch.setattr(Watch, "_note", broken)
    intake = await running(rescan_s=0.3)
    await until(lambda: not intake._dirty, "the looks of the start")
    (inbox / "a.pdf").write_bytes(b"x")
    await until(lambda: delivery.names == ["a.pdf"], "the file")
    assert intake._watch is not None
    assert intake._watch.alive
    assert intake._watch.failures > 0
    assert intake.found_by_scan_only == 1


async def test_without_events_scanning_is_enough(
    inbox: Path, outside: Path, delivery: Delivery, running: Running
) -> None:
    """`watch: polling`: no observer at all, and everything settles, renamed or not."""
    intake = await running(watch=WatchMode.POLLING, rescan_s=0.2)
    assert intake.watching is WatchMode.POLLING
    (inbox / "a.pdf").write_bytes(b"x")
    (outside / "b.pdf").write_bytes(b"x")
    os.rename(outside / "b.pdf", inbox / "b.pdf")
    await until(lambda: sorted(delivery.names) == ["a.pdf", "b.pdf"], "both files")


async def test_no_instance_left_means_polling(
    inbox: Path, delivery: Delivery, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is named once in the log, and files are taken all the same."""

    def refused(self: object, **_: object) -> None:
        raise OSError(errno.EMFILE, "inotify instance limit reached")

    monkeypatch.setattr(InotifyObserver, "__init__", refused)
    with structlog.testing.capture_logs() as logs:
        intake = await running(rescan_s=0.2)
        (inbox / "a.pdf").write_bytes(b"x")
        await until(lambda: delivery.names == ["a.pdf"], "the file")
    assert intake.watching is WatchMode.POLLING
    (line,) = [line for line in logs if line["event"] == "inbox.polling"]
    assert "fs.inotify.max_user_instances" in line["detail"]


async def test_what_a_claim_came_to_is_heeded(inbox: Path, delivery: Delivery, running: Running) -> None:
    """CHANGED and BUSY settle again; UNREADABLE waits for the rescan; the file goes in the end."""
    delivery.scripted = {
        "changed": [ClaimResult.CHANGED] * 2,
        "busy": [ClaimResult.BUSY] * 2,
        "unreadable": [ClaimResult.UNREADABLE],
        "gone": [ClaimResult.GONE],
    }
    intake = await running(rescan_s=1.0, settle_s=0.05)
    for name in delivery.scripted:
        (inbox / name).write_bytes(b"x")
    await until(lambda: intake.ignored == {Ignored.UNREADABLE: 1}, "the result of the unreadable one")
    assert await intake.explain("unreadable", time.monotonic()) == LeftAlone(Ignored.UNREADABLE)
    await until(lambda: len(delivery.names) == 4, "all files")
    assert len(delivery.results) == 4 + 6


async def test_the_same_name_again_is_a_new_file(
    inbox: Path, outside: Path, delivery: Delivery, running: Running
) -> None:
    """Dropped three times, also while the first is being claimed: three files."""
    await running()
    for number in range(3):
        (outside / "a.pdf").write_bytes(b"%d" % number)
        os.rename(outside / "a.pdf", inbox / "a.pdf")
        await until(lambda: len(delivery.contents) == number + 1, "the file")  # noqa: B023
    assert delivery.contents == [("a.pdf", b"0"), ("a.pdf", b"1"), ("a.pdf", b"2")]


async def test_looking_goes_on_while_an_offer_waits(inbox: Path, delivery: Delivery, running: Running) -> None:
    """What is offered in the end is what is ready then; at any moment it is plain where a file stands."""
    delivery.open.clear()
    intake = await running(settle_s=0.2)
    (inbox / "a.pdf").write_bytes(b"x")
    await until(lambda: intake.waiting == 1, "a look at the first")
    assert isinstance(await intake.explain("a.pdf", time.monotonic()), Settling)
    (inbox / "b.pdf").write_bytes(b"x")
    await until(lambda: intake.waiting == 2, "a look at the second")
    now = time.monotonic() + 60
    assert isinstance(await intake.explain("b.pdf", now), Ready)
    assert (intake.oldest_waiting_s(now) or 0) > 59
    (inbox / "a.pdf").unlink()
    delivery.open.set()
    await until(lambda: delivery.names == ["b.pdf"], "the one that is left")


async def test_explain_knows_what_was_never_looked_at(inbox: Path, delivery: Delivery, running: Running) -> None:
    """Every name gets an answer, the ones that are no names of files here included."""
    intake = await running(exclude=("*.bak",), watch=WatchMode.POLLING)
    for path in ("sent", "sub"):
        (inbox / path).mkdir()
        (inbox / path / "x.pdf").touch()
    for name in ("a.bak", "b.part", "new.pdf"):
        (inbox / name).touch()
    now = time.monotonic()
    assert await intake.explain("a.bak", now) == LeftAlone(Ignored.EXCLUDED)
    assert await intake.explain("b.part", now) == LeftAlone(Ignored.TEMPORARY_NAME)
    assert await intake.explain("sub/x.pdf", now) == LeftAlone(Ignored.FOLDER)
    assert await intake.explain("sent/x.pdf", now) == OwnFolder()
    assert await intake.explain("new.pdf", now) == Unseen(table_full=False)
    for name in ("missing", "missing.part", "../outside", "a\0b", "", "/etc/passwd"):
        assert await intake.explain(name, now) == NotThere()


async def test_stopping_leaves_no_descriptor(inbox: Path, delivery: Delivery, running: Running) -> None:
    """Cancelled in the middle of looking, it gives everything back."""
    with closing(os.scandir("/proc/self/fd")) as before:
        count = len(list(before))
    intake = await running()
    task = next(t for t in asyncio.all_tasks() if t.get_coro().__qualname__ == "InboxIntake.run")  # type: ignore[union-attr]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert intake._root == -1
    with closing(os.scandir("/proc/self/fd")) as after:
        assert len(list(after)) == count
