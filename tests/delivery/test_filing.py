"""Moves of files on real filesystems: exactly what was sighted is taken, nothing is ever overwritten or lost."""

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attachd.delivery import filing as module
from attachd.delivery.filing import BALLAST_BYTES, Claimed, Filing, Sending, numbered
from attachd.errors import InboxError
from attachd.model import ClaimResult, DeliveryId, InboxName, Reason, Sighting
from attachd.ports import JournalIdentity

from .conftest import (
    INBOX,
    NOBODY,
    Mount,
    Open,
    as_nobody,
    claim,
    claim_new,
    drop,
    fill,
    root_only,
    send,
    sighting_of,
    tree,
)

D1, D2 = DeliveryId("d1"), DeliveryId("d2")


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something after the look at a file and before its rename."""
    took = Filing._take

    def take(self: Filing, delivery: DeliveryId, sighting: Sighting) -> Claimed:
        act()
        return took(self, delivery, sighting)

    monkeypatch.setattr(Filing, "_take", take)


# --- claiming -------------------------------------------------------------------------------------------------------


def test_a_claim_takes_the_sighted_file(inbox: Path, filing: Filing) -> None:
    """It lies in the claim under its exact name, readable to nobody else, and not in the inbox any more."""
    sighting = drop(inbox, "scan.pdf", b"content")
    [claimed] = filing.claim([(D1, sighting)])
    assert claimed.result is ClaimResult.CLAIMED
    assert claimed.version is not None
    assert (claimed.version.inode, claimed.version.size) == (sighting.version.inode, 7)
    assert tree(inbox) == {}
    assert (inbox / ".attachd/claimed/d1/scan.pdf").read_bytes() == b"content"
    for folder in (".attachd", ".attachd/claimed", ".attachd/claimed/d1"):
        assert (inbox / folder).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "name", [b"\xff\xfe\x80.pdf", b"a" * 255, b"new\nline\x1b[0m.pdf", b"-rf", " \u202e.pdf".encode()]
)
def test_the_exact_bytes_of_a_name_stay(inbox: Path, filing: Filing, name: bytes) -> None:
    """Whatever bytes a name has, it is the same name in sent/."""
    claim_new(filing, inbox, os.fsdecode(name))
    assert send(filing, D1, os.fsdecode(name)) == "sent/" + os.fsdecode(name)
    assert os.listdir(os.fsencode(inbox / "sent")) == [name]


def change_content(path: Path) -> None:
    path.write_bytes(b"another document")


def change_inode(path: Path) -> None:
    path.with_name("new").write_bytes(path.read_bytes())
    os.rename(path.with_name("new"), path)


def set_the_clock_back(path: Path) -> None:
    """Only the ctime tells of this."""
    before = path.stat()
    path.write_bytes(b"A DOCUMENT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [change_content, change_inode, set_the_clock_back])
def test_another_version_than_the_sighted_one_is_left(
    inbox: Path, filing: Filing, change: Callable[[Path], None]
) -> None:
    """A file that was written or replaced since it was looked at has to settle again."""
    sighting = drop(inbox, "scan.pdf")
    time.sleep(0.01)  # coarse file clocks tick every 4 ms
    change(inbox / "scan.pdf")
    assert claim(filing, sighting) is ClaimResult.CHANGED
    assert list(tree(inbox)) == ["scan.pdf"]
    assert list(filing.leftovers()) == []


def test_a_file_that_is_gone_is_gone(inbox: Path, filing: Filing) -> None:
    """A producer may take a file back until it is claimed, and its folder as well."""
    (flat, nested) = (drop(inbox, "scan.pdf"), drop(inbox, "a/scan.pdf"))
    (inbox / "scan.pdf").unlink()
    shutil.rmtree(inbox / "a")
    assert claim(filing, flat) is ClaimResult.GONE
    (inbox / "a").write_bytes(b"now a file")
    assert claim(filing, nested) is ClaimResult.GONE


def test_a_file_that_goes_at_the_last_moment_is_gone(
    inbox: Path, filing: Filing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the rename the file goes, or its whole folder: nothing is left behind of the claim."""
    sightings = [drop(inbox, "scan.pdf"), drop(inbox, "a/scan.pdf")]

    def remove() -> None:
        (inbox / "scan.pdf").unlink(missing_ok=True)
        if (inbox / "a").is_dir():
            shutil.rmtree(inbox / "a")
            (inbox / "a").write_bytes(b"now a file")

    meanwhile(monkeypatch, remove)
    results = filing.claim([(D1, sightings[0]), (D2, sightings[1])])
    assert [claimed.result for claimed in results] == [ClaimResult.GONE, ClaimResult.GONE]
    assert list(filing.leftovers()) == []


def test_a_sub_folder_that_goes_after_its_file_was_taken_is_no_trouble(
    inbox: Path, filing: Filing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer removes the folder as soon as it is empty; the claim stands and the inbox goes on."""
    sighting = drop(inbox, "a/scan.pdf")
    took = Filing._take

    def take(self: Filing, delivery: DeliveryId, sighting: Sighting) -> Claimed:
        claimed = took(self, delivery, sighting)
        (inbox / "a").rmdir()
        return claimed

    monkeypatch.setattr(Filing, "_take", take)
    assert claim(filing, sighting) is ClaimResult.CLAIMED


def test_a_file_under_a_writer_is_busy(inbox: Path, filing: Filing) -> None:
    """Somebody has it open for writing, however long ago the last byte came; closed, it is taken."""
    with (inbox / "scan.pdf").open("wb", buffering=0) as writer:
        writer.write(b"half")
        assert claim(filing, sighting_of(inbox, "scan.pdf")) is ClaimResult.BUSY
    assert claim(filing, sighting_of(inbox, "scan.pdf")) is ClaimResult.CLAIMED


def test_a_reader_does_not_keep_a_file_from_being_claimed(inbox: Path, filing: Filing) -> None:
    """A virus scanner or a viewer may have it open."""
    sighting = drop(inbox, "scan.pdf")
    with (inbox / "scan.pdf").open("rb"):
        assert claim(filing, sighting) is ClaimResult.CLAIMED


def test_a_file_under_a_file_servers_lease_is_busy(inbox: Path, filing: Filing) -> None:
    """Samba leases files to its clients: an opening that would have to wait for them is no trouble of the inbox."""
    sighting = drop(inbox, "scan.pdf")
    with (inbox / "scan.pdf").open("rb+") as server:
        fcntl.fcntl(server, 10, 23)  # F_SETSIG, SIGURG: the breaking of the lease must not end this process
        fcntl.fcntl(server, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        assert claim(filing, sighting) is ClaimResult.BUSY
    assert list(tree(inbox)) == ["scan.pdf"]


def test_no_lease_is_kept(inbox: Path, filing: Filing) -> None:
    """After the look a producer opens the file for writing without waiting for us."""
    drop(inbox, "scan.pdf")
    claim(filing, Sighting("scan.pdf", sighting_of(inbox, "scan.pdf").version))
    os.close(os.open(inbox / ".attachd/claimed/d1/scan.pdf", os.O_WRONLY | os.O_NONBLOCK))


def make_link(path: Path) -> None:
    path.with_name("secret").write_bytes(b"secret")
    path.symlink_to("secret")


def make_broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_hard_link(path: Path) -> None:
    path.with_name("secret").write_bytes(b"secret")
    os.link(path.with_name("secret"), path)


ODD = [make_link, make_broken_link, os.mkfifo, make_socket, Path.mkdir, make_hard_link]


@pytest.mark.parametrize("make", ODD)
def test_what_is_no_plain_file_is_never_taken(inbox: Path, filing: Filing, make: Callable[[Path], None]) -> None:
    """Links, FIFOs, sockets, folders: refused without following, waiting or moving."""
    make(inbox / "scan.pdf")
    assert claim(filing, sighting_of(inbox, "scan.pdf")) is ClaimResult.NOT_A_FILE
    assert os.path.lexists(inbox / "scan.pdf")


@pytest.mark.parametrize("make", ODD)
def test_what_is_swapped_in_at_the_last_moment_is_put_back(
    inbox: Path, filing: Filing, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    """The look at what was really claimed finds it: it goes back under its name, and nothing of it is read."""
    sighting = drop(inbox, "scan.pdf")

    def swap() -> None:
        (inbox / "scan.pdf").unlink()
        make(inbox / "scan.pdf")

    meanwhile(monkeypatch, swap)
    assert claim(filing, sighting) is ClaimResult.NOT_A_FILE
    assert os.path.lexists(inbox / "scan.pdf")
    assert list(filing.leftovers()) == []


def test_a_whole_file_renamed_over_at_the_last_moment_is_the_one_claimed(
    inbox: Path, filing: Filing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer that renames over its own file means the new one; the claim tells which it has."""
    sighting = drop(inbox, "scan.pdf", b"old")

    def replace() -> None:
        (inbox / ".new").write_bytes(b"newer")
        os.rename(inbox / ".new", inbox / "scan.pdf")

    meanwhile(monkeypatch, replace)
    [claimed] = filing.claim([(D1, sighting)])
    assert claimed.version is not None
    assert claimed.version.size == 5
    assert (inbox / ".attachd/claimed/d1/scan.pdf").read_bytes() == b"newer"


def test_a_file_begun_anew_at_the_last_moment_is_put_back(
    inbox: Path, filing: Filing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer removes the file and writes it again: what is only begun is not sent."""
    sighting = drop(inbox, "scan.pdf", b"old")
    writers = []

    def begin() -> None:
        (inbox / "scan.pdf").unlink()
        writers.append((inbox / "scan.pdf").open("wb", buffering=0))
        writers[0].write(b"ha")

    meanwhile(monkeypatch, begin)
    # CHANGED where the filesystem gave the new file the old one's inode.
    assert claim(filing, sighting) in (ClaimResult.BUSY, ClaimResult.CHANGED)
    writers[0].write(b"lf")
    writers[0].close()
    assert tree(inbox) == {"scan.pdf": b"half"}


def test_a_file_written_to_at_the_last_moment_is_put_back(
    inbox: Path, filing: Filing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the version that had settled, so it settles again."""
    sighting = drop(inbox, "scan.pdf", b"first")
    meanwhile(monkeypatch, lambda: (inbox / "scan.pdf").write_bytes(b"first and second"))
    assert claim(filing, sighting) is ClaimResult.CHANGED
    assert tree(inbox) == {"scan.pdf": b"first and second"}


def test_the_same_name_dropped_again_is_a_new_delivery(inbox: Path, filing: Filing) -> None:
    """While one version is claimed the next one comes in and is claimed too; both are filed."""
    claim_new(filing, inbox, "scan.pdf", b"one", "d1")
    claim_new(filing, inbox, "scan.pdf", b"two", "d2")
    assert send(filing, D1, "scan.pdf") == "sent/scan.pdf"
    assert send(filing, D2, "scan.pdf") == "sent/scan (2).pdf"
    assert tree(inbox / "sent") == {"scan.pdf": b"one", "scan (2).pdf": b"two"}


def test_many_are_claimed_in_one_go_and_answered_in_order(inbox: Path, filing: Filing) -> None:
    """One that is refused does not keep the others."""
    sightings = [drop(inbox, f"{number}.pdf", b"%d" % number) for number in range(10)]
    (inbox / "3.pdf").unlink()
    (inbox / "7.pdf").write_bytes(b"longer")
    results = filing.claim([(DeliveryId(f"d{n}"), sighting) for n, sighting in enumerate(sightings)])
    expected = [ClaimResult.CLAIMED] * 10
    expected[3], expected[7] = ClaimResult.GONE, ClaimResult.CHANGED
    assert [claimed.result for claimed in results] == expected
    assert [leftover.name for leftover in filing.leftovers()] == [f"{n}.pdf" for n in (0, 1, 2, 4, 5, 6, 8, 9)]


# --- rights ---------------------------------------------------------------------------------------------------------


@root_only
def test_an_unreadable_file_is_left(inbox: Path, opened: Open) -> None:
    """Somebody else's private file cannot be read, so it is not taken; with the mode mended it is."""
    os.chown(inbox, NOBODY, NOBODY)
    sighting = drop(inbox, "scan.pdf")
    (inbox / "scan.pdf").chmod(0o600)
    with as_nobody():
        filing = opened(inbox)
        assert claim(filing, sighting_of(inbox, "scan.pdf")) is ClaimResult.UNREADABLE
    (inbox / "scan.pdf").chmod(0o644)
    with as_nobody():
        assert claim(filing, sighting_of(inbox, "scan.pdf")) is ClaimResult.CLAIMED
    assert sighting.name not in tree(inbox)


@root_only
def test_an_unreadable_file_swapped_in_is_put_back(inbox: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that file's trouble, not the inbox's."""
    os.chown(inbox, NOBODY, NOBODY)
    sighting = drop(inbox, "scan.pdf")
    drop(inbox, "private")
    (inbox / "private").chmod(0o600)
    meanwhile(monkeypatch, lambda: os.rename(inbox / "private", inbox / "scan.pdf"))
    with as_nobody():
        assert claim(opened(inbox), sighting) is ClaimResult.UNREADABLE
    assert list(tree(inbox)) == ["scan.pdf"]


@root_only
def test_a_file_that_cannot_be_moved_stops_no_other(inbox: Path, filing: Filing) -> None:
    """An immutable file stays where it is."""
    fixed, free = drop(inbox, "fixed.pdf"), drop(inbox, "free.pdf")
    if subprocess.run(["chattr", "+i", str(inbox / "fixed.pdf")], capture_output=True).returncode:
        pytest.skip("no immutable files here")
    try:
        results = filing.claim([(D1, sighting_of(inbox, "fixed.pdf")), (D2, free)])
    finally:
        subprocess.run(["chattr", "-i", str(inbox / "fixed.pdf")], check=True)
    assert [claimed.result for claimed in results] == [ClaimResult.UNREADABLE, ClaimResult.CLAIMED]
    assert fixed.name in tree(inbox)


@root_only
def test_an_inbox_that_lost_its_rights_says_so(inbox: Path, opened: Open) -> None:
    """When nothing can be renamed out of the inbox it is the inbox's trouble, and no file's."""
    os.chown(inbox, NOBODY, NOBODY)
    with as_nobody():
        filing = opened(inbox)
    sighting = drop(inbox, "scan.pdf")
    os.chown(inbox, 0, 0)
    with as_nobody(), pytest.raises(InboxError, match="list, write and rename") as raised:
        claim(filing, sighting)
    assert raised.value.reason is Reason.FOLDER_NOT_WRITABLE
    assert list(tree(inbox)) == ["scan.pdf"]


@root_only
def test_a_folder_of_somebody_else_is_not_used(inbox: Path, opened: Open) -> None:
    """Who owns .attachd decides what is claimed, so it must be ours; `check` says the same beforehand."""
    (inbox / ".attachd").mkdir()
    os.chown(inbox / ".attachd", NOBODY, NOBODY)
    with pytest.raises(InboxError, match="belongs to user 65534"):
        opened(inbox)
    [problem] = Filing(INBOX, inbox, sent="sent", failed="failed").inspect()
    assert "belongs to user 65534" in problem


def test_loose_modes_are_tightened(inbox: Path, opened: Open) -> None:
    """A restored backup may have opened what is ours to everybody."""
    (inbox / ".attachd/claimed").mkdir(parents=True)
    (inbox / ".attachd").chmod(0o777)
    (inbox / ".attachd/claimed").chmod(0o755)
    opened(inbox)
    assert {(inbox / name).stat().st_mode & 0o777 for name in (".attachd", ".attachd/claimed")} == {0o700}


def test_folders_for_people_have_the_inboxs_permissions(inbox: Path, opened: Open) -> None:
    """Who may look into the inbox may look into sent/, but what is filed is nobody else's to remove."""
    inbox.chmod(0o3777)
    opened(inbox)
    assert {(inbox / name).stat().st_mode & 0o7777 for name in ("sent", "failed")} == {0o2775}


# --- filing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("scan.pdf", "scan (2).pdf"),
        ("scan", "scan (2)"),
        ("scan.tar.gz", "scan.tar (2).gz"),
        ("scan (2).pdf", "scan (2) (2).pdf"),
        ("\udcff.pdf", "\udcff (2).pdf"),
        ("a" * 251 + ".pdf", "a" * 247 + " (2).pdf"),
        ("a" * 255, "a" * 251 + " (2)"),
        ("a." + "b" * 253, "a (2)." + "b" * 126),
        ("ü" * 125 + ".pdf", "ü" * 123 + " (2).pdf"),
    ],
)
def test_a_taken_name_gets_a_number(inbox: Path, filing: Filing, name: str, second: str) -> None:
    """Nothing in sent/ is overwritten, and the first of a name keeps it to the letter."""
    for delivery, content in ((D1, b"one"), (D2, b"two")):
        claim_new(filing, inbox, name, content, delivery)
        send(filing, delivery, name)
    assert {os.fsencode(found): content for found, content in tree(inbox / "sent").items()} == {
        os.fsencode(name): b"one",
        os.fsencode(second): b"two",
    }


@pytest.mark.parametrize("number", [1, 2, 10**9])
@pytest.mark.parametrize("base", ["a" * 255, "a" + "." * 254, "." + "b" * 254, "ü" * 127, "€" * 80 + ".pdf"])
def test_a_numbered_name_fits_and_is_whole(base: str, number: int) -> None:
    """At most 255 bytes, without half characters."""
    name = numbered(base, number)
    assert len(name.encode()) <= 255
    assert number == 1 or f"({number})" in name


def test_thousands_of_taken_names_cost_a_handful_of_looks(
    inbox: Path, filing: Filing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scanner that uses one name for years does not get slower by it."""
    for number in range(1, 3001):
        (inbox / "sent" / numbered("scan.pdf", number)).touch()
    claim_new(filing, inbox, "scan.pdf")
    looks = []
    look = os.stat
    monkeypatch.setattr(module.os, "stat", lambda *args, **kwargs: (looks.append(args), look(*args, **kwargs))[1])
    assert send(filing, D1, "scan.pdf") == "sent/scan (3001).pdf"
    monkeypatch.undo()
    assert len(looks) < 40


def test_a_name_taken_meanwhile_is_not_overwritten(
    inbox: Path, filing: Filing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else puts a file under the free name between the look and the rename."""
    claim_new(filing, inbox, "scan.pdf", b"ours")
    renamed = module._rename_no_replace

    def late(source: int, old: str, target: int, new: str) -> None:
        if new == "scan.pdf":
            (inbox / "sent/scan.pdf").write_bytes(b"theirs")
        renamed(source, old, target, new)

    monkeypatch.setattr(module, "_rename_no_replace", late)
    assert send(filing, D1, "scan.pdf") == "sent/scan (2).pdf"
    assert tree(inbox / "sent") == {"scan.pdf": b"theirs", "scan (2).pdf": b"ours"}


def refuse_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1

    monkeypatch.setattr(module, "_libc", SimpleNamespace(renameat2=refused))


def refuse_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(module.os, "link", refused)


@pytest.mark.parametrize("refusals", [[refuse_renameat2], [refuse_renameat2, refuse_links]])
def test_nothing_is_overwritten_without_the_kernels_help(
    inbox: Path, filing: Filing, monkeypatch: pytest.MonkeyPatch, refusals: list[Callable[[Any], None]]
) -> None:
    """Filesystems without a no-replace rename, and those without hard links too."""
    for refuse in refusals:
        refuse(monkeypatch)
    for delivery, content in ((D1, b"one"), (D2, b"two")):
        claim_new(filing, inbox, "scan.pdf", content, delivery)
        send(filing, delivery, "scan.pdf")
    assert tree(inbox / "sent") == {"scan.pdf": b"one", "scan (2).pdf": b"two"}
    assert list(filing.leftovers()) == []
    assert {path.stat().st_nlink for path in (inbox / "sent").iterdir()} == {1}


def test_a_move_by_links_that_a_crash_cut_is_finished(
    inbox: Path, filing: Filing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both names exist after the crash; afterwards the file is in sent/ once."""
    refuse_renameat2(monkeypatch)
    claim_new(filing, inbox, "scan.pdf", b"one")
    os.link(inbox / ".attachd/claimed/d1/scan.pdf", inbox / "sent/scan.pdf")
    assert send(filing, D1, "scan.pdf") == "sent/scan.pdf"
    assert tree(inbox / "sent") == {"scan.pdf": b"one"}
    assert list(filing.leftovers()) == []


def test_a_failed_file_has_its_reason_beside_it(inbox: Path, filing: Filing) -> None:
    """In words, whatever the reason has in it."""
    claim_new(filing, inbox, "scan.pdf", b"one")
    assert filing.to_failed(D1, "scan.pdf", "refused: \udcff ü\n") == "failed/scan.pdf"
    assert tree(inbox / "failed") == {"scan.pdf": b"one", "scan.pdf.reason.txt": b"refused: \\udcff \xc3\xbc\n"}


def test_a_reason_lies_there_before_its_file_comes(
    inbox: Path, filing: Filing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who finds a file in failed/ finds why; also when somebody takes the name between the reason and the file."""
    claim_new(filing, inbox, "scan.pdf", b"ours")
    renamed = module._rename_no_replace
    before = []

    def late(source: int, old: str, target: int, new: str) -> None:
        before.append(tree(inbox / "failed"))
        if new == "scan.pdf":
            (inbox / "failed/scan.pdf").write_bytes(b"theirs")
        renamed(source, old, target, new)

    monkeypatch.setattr(module, "_rename_no_replace", late)
    assert filing.to_failed(D1, "scan.pdf", "refused") == "failed/scan (2).pdf"
    reason = {"scan (2).pdf.reason.txt": b"refused"}
    assert before == [{"scan.pdf.reason.txt": b"refused"}, {"scan.pdf": b"theirs", **reason}]
    assert tree(inbox / "failed") == {"scan.pdf": b"theirs", "scan (2).pdf": b"ours", **reason}


@pytest.mark.parametrize("name", ["scan.pdf", "ä" * 125 + ".pdf", "a" * 255])
def test_each_of_two_failures_of_one_name_has_its_own_reason(inbox: Path, filing: Filing, name: str) -> None:
    """Also where the name is so long that the reason's must be cut."""
    for delivery in (D1, D2):
        claim_new(filing, inbox, name, delivery=delivery)
        filing.to_failed(delivery, name, f"reason of {delivery}")
    reasons = [content for found, content in tree(inbox / "failed").items() if found.endswith(".reason.txt")]
    assert sorted(reasons) == [b"reason of d1", b"reason of d2"]


def test_a_file_named_like_a_reason_is_not_overwritten(inbox: Path, filing: Filing) -> None:
    """Somebody drops the contents of failed/ again, reasons and all: each is a file like any other."""
    claim_new(filing, inbox, "scan.pdf.reason.txt", b"a document of that name", "d1")
    filing.to_failed(D1, "scan.pdf.reason.txt", "its reason")
    claim_new(filing, inbox, "scan.pdf", b"one", "d2")
    filing.to_failed(D2, "scan.pdf", "another reason")
    assert b"a document of that name" in tree(inbox / "failed").values()
    claim_new(filing, inbox, "scan.pdf", b"one", "d2")
    (inbox / "failed/scan.pdf").unlink()
    send(filing, D2, "scan.pdf")
    assert b"a document of that name" in tree(inbox / "failed").values()


def test_files_that_fail_together_get_their_own_reasons(inbox: Path, filing: Filing) -> None:
    """Several threads file at once; no reason is mixed up, empty or missing."""
    numbers = range(64)
    for number in numbers:
        claim_new(filing, inbox, f"in/a/{number}.pdf", delivery=f"d{number}")
    barrier = threading.Barrier(8)
    troubles: list[Exception] = []

    def fail(first: int) -> None:
        barrier.wait()
        try:
            for number in numbers[first::8]:
                filing.to_failed(DeliveryId(f"d{number}"), f"in/a/{number}.pdf", f"reason {number} " * (number + 1))
        except (OSError, InboxError) as error:
            troubles.append(error)

    threads = [threading.Thread(target=fail, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert troubles == []
    reasons = {number: (inbox / f"failed/in/a/{number}.pdf.reason.txt").read_text() for number in numbers}
    assert reasons == {number: f"reason {number} " * (number + 1) for number in numbers}


def test_files_of_one_name_that_fail_together_get_their_own_reasons(inbox: Path, filing: Filing) -> None:
    """Each number is found free by one thread at a time, from its reason to its file."""
    names = [f"d{number}" for number in range(24)]
    for name in names:
        claim_new(filing, inbox, "scan.pdf", name.encode(), name)
    with ThreadPoolExecutor(8) as threads:
        filed = dict(
            zip(
                names,
                threads.map(lambda name: filing.to_failed(DeliveryId(name), "scan.pdf", name), names),
                strict=True,
            )
        )
    assert {name: (inbox / filed[name]).read_text() for name in names} == {name: name for name in names}
    assert {name: (inbox / f"{filed[name]}.reason.txt").read_text() for name in names} == {n: n for n in names}


def test_a_reason_goes_when_its_file_is_sent_after_all(inbox: Path, filing: Filing) -> None:
    """Moved back into the inbox and sent, the file has no stale reason left in failed/."""
    claim_new(filing, inbox, "scan.pdf")
    filing.to_failed(D1, "scan.pdf", "a reason")
    os.rename(inbox / "failed/scan.pdf", inbox / "scan.pdf")
    assert claim(filing, sighting_of(inbox, "scan.pdf")) is ClaimResult.CLAIMED
    send(filing, D1, "scan.pdf")
    assert list(tree(inbox)) == ["sent/scan.pdf"]


def test_a_reason_stays_while_its_file_does(inbox: Path, filing: Filing) -> None:
    """Another file of that name was sent; the one in failed/ still needs its reason."""
    claim_new(filing, inbox, "scan.pdf")
    filing.to_failed(D1, "scan.pdf", "a reason")
    claim_new(filing, inbox, "scan.pdf")
    send(filing, D1, "scan.pdf")
    assert list(tree(inbox)) == ["failed/scan.pdf", "failed/scan.pdf.reason.txt", "sent/scan.pdf"]


def test_sub_folders_are_mirrored(inbox: Path, filing: Filing) -> None:
    """A recursive inbox's files lie in sent/ and failed/ as they lay in the inbox."""
    for delivery, target in ((D1, partial(send, filing)), (D2, lambda *found: filing.to_failed(*found, "a reason"))):
        claim_new(filing, inbox, "2024/03/scan.pdf", delivery=delivery)
        target(delivery, "2024/03/scan.pdf")
    assert list(tree(inbox)) == [
        "failed/2024/03/scan.pdf",
        "failed/2024/03/scan.pdf.reason.txt",
        "sent/2024/03/scan.pdf",
    ]


def test_a_file_where_a_sub_folder_belongs_stops_nobody(inbox: Path, filing: Filing) -> None:
    """A file named like a later sub-folder was sent before: the sub-folder's files lie directly in sent/."""
    claim_new(filing, inbox, "2024", b"a file")
    send(filing, D1, "2024")
    claim_new(filing, inbox, "2024/scan.pdf", b"in a folder", "d2")
    assert send(filing, D2, "2024/scan.pdf") == "sent/scan.pdf"
    assert tree(inbox / "sent") == {"2024": b"a file", "scan.pdf": b"in a folder"}


def test_a_claimed_file_that_is_gone_is_told_apart(inbox: Path, filing: Filing) -> None:
    """Somebody with the right to do so removed it: FileNotFoundError for the pipeline to explain, no pause."""
    claim_new(filing, inbox, "scan.pdf")
    (inbox / ".attachd/claimed/d1/scan.pdf").unlink()
    for use in (filing.open_claimed, partial(send, filing)):
        with pytest.raises(FileNotFoundError):
            use(D1, "scan.pdf")
    filing.drop_claim(D1)
    assert list(filing.leftovers()) == []


def test_what_is_not_what_was_sent_does_not_go_to_sent(inbox: Path, filing: Filing) -> None:
    """A writer that kept the file open is found out by the digest; the file stays claimed."""
    claim_new(filing, inbox, "scan.pdf", b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (inbox / ".attachd/claimed/d1/scan.pdf").write_bytes(b"late")
    assert filing.to_sent([Sending(D1, "scan.pdf", empty)]) == [None]
    assert (inbox / ".attachd/claimed/d1/scan.pdf").read_bytes() == b"late"
    (inbox / ".attachd/claimed/d1/scan.pdf").write_bytes(b"")
    assert filing.to_sent([Sending(D1, "scan.pdf", empty)]) == ["sent/scan.pdf"]


def test_of_files_sent_together_each_has_its_own_end(inbox: Path, filing: Filing) -> None:
    """One that is gone, one that was changed and one in a sub-folder stand between two that go their way."""
    names = {"d1": "a.pdf", "d2": "gone.pdf", "d3": "late.pdf", "d4": "sub/b.pdf", "d5": "a.pdf"}
    wanted = []
    for delivery, name in names.items():
        claim_new(filing, inbox, name, delivery.encode(), delivery)
        wanted.append(Sending(DeliveryId(delivery), name, hashlib.sha256(delivery.encode()).hexdigest()))
    (inbox / ".attachd/claimed/d2/gone.pdf").unlink()
    (inbox / ".attachd/claimed/d3/late.pdf").write_bytes(b"something else")
    first, gone, late, below, second = filing.to_sent(wanted)
    assert isinstance(gone, FileNotFoundError)
    assert (first, late, below, second) == ("sent/a.pdf", None, "sent/sub/b.pdf", "sent/a (2).pdf")
    assert tree(inbox / "sent") == {"a.pdf": b"d1", "sub/b.pdf": b"d4", "a (2).pdf": b"d5"}
    assert [left.delivery for left in filing.leftovers() if left.name] == ["d3"]


def test_files_sent_together_share_the_syncs_of_their_folders(
    inbox: Path, filing: Filing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen moves, and their folder is synced once, before the claims are given up, and those once."""
    wanted = []
    for number in range(16):
        claim_new(filing, inbox, f"{number}.pdf", b"x", f"d{number:02}")
        wanted.append(Sending(DeliveryId(f"d{number:02}"), f"{number}.pdf", hashlib.sha256(b"x").hexdigest()))
    synced = []

    def fsync(folder: int) -> None:
        left = len(os.listdir(inbox / ".attachd/claimed"))
        synced.append((os.readlink(f"/proc/self/fd/{folder}").removeprefix(str(inbox)), left))

    monkeypatch.setattr(os, "fsync", fsync)
    assert filing.to_sent(wanted) == [f"sent/{number}.pdf" for number in range(16)]
    assert synced == [("/sent", 16), ("/.attachd/claimed", 0)]


def test_moves_that_could_not_be_made_sure_of_are_not_done(
    inbox: Path, filing: Filing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses the sync of sent/: nobody is told that his file is filed, and the next try makes sure of it."""
    claim_new(filing, inbox, "scan.pdf", b"x")
    version = next(iter(filing.leftovers())).version
    assert version is not None

    def refused(folder: int) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", refused)
        [answer] = filing.to_sent([Sending(D1, "scan.pdf", hashlib.sha256(b"x").hexdigest())])
    assert isinstance(answer, InboxError)
    assert [left.delivery for left in filing.leftovers()] == ["d1"]
    assert filing.moved_before(D1, "scan.pdf", version) == "sent/scan.pdf"
    assert list(filing.leftovers()) == []


# --- what a crash leaves --------------------------------------------------------------------------------------------


def test_leftovers_are_what_lies_in_the_claims(inbox: Path, filing: Filing, opened: Open) -> None:
    """In the order of the claims; an empty claim is told, and what attachd never put there is not."""
    claim_new(filing, inbox, "b.pdf", b"bb", "d1")
    claim_new(filing, inbox, "in/\udcff.pdf", b"c", "d2")
    claimed = inbox / ".attachd/claimed"
    (claimed / "d0").mkdir()
    (claimed / "planted").write_bytes(b"not a claim")
    (claimed / "linked").symlink_to(inbox)
    (claimed / "two").mkdir()
    (claimed / "two/a").touch()
    (claimed / "two/b").touch()
    (claimed / "odd").mkdir()
    (claimed / "odd/link").symlink_to("/etc/passwd")
    filing.close()
    found = list(opened(inbox).leftovers())
    assert [(leftover.delivery, leftover.name) for leftover in found] == [
        ("d0", None),
        ("d1", "b.pdf"),
        ("d2", "\udcff.pdf"),
    ]
    assert [leftover.version.size for leftover in found if leftover.version] == [2, 1]


def test_what_was_filed_before_a_crash_is_found(inbox: Path, filing: Filing) -> None:
    """By the file itself, not by its name, which may have got a number."""
    (inbox / "sent/in").mkdir()
    (inbox / "sent/in/scan.pdf").touch()
    sighting = drop(inbox, "in/scan.pdf")
    assert filing.find_filed("in/scan.pdf", sighting.version) is None
    claim(filing, sighting)
    send(filing, D1, "in/scan.pdf")
    found = filing.find_filed("in/scan.pdf", sighting.version)
    assert found == "sent/in/scan (2).pdf"
    assert filing.was_sent(found)
    other = drop(inbox, "other.pdf")
    claim(filing, other)
    filing.to_failed(D1, "other.pdf", "a reason")
    found = filing.find_filed("other.pdf", other.version)
    assert found == "failed/other.pdf"
    assert not filing.was_sent(found)


def test_the_claims_bear_their_journals_name(inbox: Path, filing: Filing, opened: Open) -> None:
    """So that a lost or restored journal is noticed; nonsense is as good as no name."""
    assert filing.journal_of_claims() is None
    for generation in (1, 2):
        filing.sign_claims(JournalIdentity("abc", generation))
    filing.close()
    assert opened(inbox).journal_of_claims() == JournalIdentity("abc", 2)
    for nonsense in (b"", b"abc", b"abc -1", b"\xff\xfe 1 2", b"abc one"):
        (inbox / ".attachd/journal").write_bytes(nonsense)
        assert filing_of(inbox, opened).journal_of_claims() is None


def filing_of(inbox: Path, opened: Open) -> Filing:
    """The folders again, after whoever had them let go."""
    for descriptor in Path("/proc/self/fd").iterdir():
        if os.path.lexists(descriptor) and os.readlink(descriptor) == str(inbox / ".attachd"):
            fcntl.flock(int(descriptor.name), fcntl.LOCK_UN)
    return opened(inbox)


# --- the folders ----------------------------------------------------------------------------------------------------


def test_an_inbox_belongs_to_one_daemon(inbox: Path, filing: Filing, opened: Open) -> None:
    """A second one is told so, and gets in when the first is gone."""
    with pytest.raises(InboxError, match="another attachd") as raised:
        opened(inbox)
    assert raised.value.reason is Reason.FOLDER_IN_USE
    filing.close()
    filing.close()
    opened(inbox)


@pytest.mark.parametrize("name", [".attachd", "sent", "failed"])
@pytest.mark.parametrize("make", [make_link, make_broken_link, Path.touch])
def test_a_link_or_file_where_a_folder_belongs_is_named(
    inbox: Path, opened: Open, name: str, make: Callable[[Path], None]
) -> None:
    """Neither followed nor replaced; the message and `check` say which it is."""
    (inbox / "secret").mkdir(exist_ok=True)
    if make is make_link:
        (inbox / name).symlink_to("secret")
    else:
        make(inbox / name)
    with pytest.raises(InboxError, match=re.escape(f"{inbox / name} is not a folder")) as raised:
        opened(inbox)
    assert raised.value.reason is Reason.FOLDER_NOT_WRITABLE
    assert list((inbox / "secret").iterdir()) == []
    [problem] = Filing(INBOX, inbox, sent="sent", failed="failed").inspect()
    assert str(inbox / name) in problem


def test_a_missing_inbox_is_said_to_be_missing(inbox: Path, opened: Open) -> None:
    """At start and in `check`."""
    inbox.rmdir()
    with pytest.raises(InboxError) as raised:
        opened(inbox)
    assert raised.value.reason is Reason.FOLDER_MISSING
    [problem] = Filing(INBOX, inbox, sent="sent", failed="failed").inspect()
    assert "No such file or directory; make the folder" in problem


def test_looking_makes_nothing(inbox: Path) -> None:
    """`check` leaves the inbox as it is."""
    assert Filing(INBOX, inbox, sent="sent", failed="failed").inspect() == []
    assert list(inbox.iterdir()) == []


def test_a_replaced_folder_is_noticed_and_nothing_is_lost(inbox: Path, place: Path, filing: Filing) -> None:
    """What was claimed stays in the folder that was moved away, and goes on when that is back."""
    claim_new(filing, inbox, "scan.pdf", b"one")
    inbox.rename(place / "away")
    with pytest.raises(InboxError) as raised:
        filing.open_claimed(D1, "scan.pdf")
    assert raised.value.reason is Reason.FOLDER_MISSING
    with pytest.raises(InboxError):
        filing.is_current()
    inbox.mkdir()
    assert not filing.is_current()
    with pytest.raises(InboxError) as raised:
        send(filing, D1, "scan.pdf")
    assert raised.value.reason is Reason.FOLDER_REPLACED
    assert list(inbox.iterdir()) == []
    inbox.rmdir()
    (place / "away").rename(inbox)
    assert filing.is_current()
    filing.check()
    assert send(filing, D1, "scan.pdf") == "sent/scan.pdf"


def test_own_folders_that_somebody_removed_are_made_again(inbox: Path, filing: Filing) -> None:
    """A tidy colleague deleted .attachd: it is noticed, and the inbox goes on after it was opened anew."""
    shutil.rmtree(inbox / ".attachd")
    with pytest.raises(InboxError):
        claim(filing, drop(inbox, "scan.pdf"))
    assert not filing.is_current()
    filing.close()
    filing.open()
    assert filing.is_current()
    assert claim(filing, sighting_of(inbox, "scan.pdf")) is ClaimResult.CLAIMED


def test_removed_sent_and_failed_are_made_again(inbox: Path, filing: Filing) -> None:
    """An operator archives sent/ whole: the next file gets a new one."""
    (inbox / "sent").rmdir()
    claim_new(filing, inbox, "scan.pdf")
    assert send(filing, D1, "scan.pdf") == "sent/scan.pdf"


def test_sent_on_another_filesystem_is_refused(inbox: Path, opened: Open, mount: Mount) -> None:
    """A file could be lost between two filesystems; `check` names the remedy before the first file."""
    mount(inbox / "sent", "-t", "tmpfs", "none")
    with pytest.raises(InboxError, match="another filesystem"):
        opened(inbox)
    [problem] = Filing(INBOX, inbox, sent="sent", failed="failed").inspect()
    assert "put it on the same one" in problem


def test_sent_on_another_mount_of_the_same_filesystem_is_refused(
    inbox: Path, place: Path, opened: Open, mount: Mount
) -> None:
    """The device is the same and yet no rename works: found before a message is posted, not after."""
    (place / "archive").mkdir()
    mount(inbox / "sent", "--bind", str(place / "archive"))
    with pytest.raises(InboxError, match="another filesystem or mount"):
        opened(inbox)
    [problem] = Filing(INBOX, inbox, sent="sent", failed="failed").inspect()
    assert "put it on the same one" in problem


def test_a_read_only_inbox_is_said_to_be_one(inbox: Path, opened: Open, mount: Mount) -> None:
    """By `check` and at start."""
    mount(inbox, "-t", "tmpfs", "-o", "ro", "none")
    with pytest.raises(InboxError, match="read-only") as raised:
        opened(inbox)
    assert raised.value.reason is Reason.FOLDER_NOT_WRITABLE
    assert any("read-only" in problem for problem in Filing(INBOX, inbox, sent="sent", failed="failed").inspect())


# --- no room --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path, mount: Mount) -> Path:
    """An inbox on 3 MiB of memory, or on a small disk of its own."""
    if request.param == "tmpfs":
        return mount(tmp_path / "small", "-t", "tmpfs", "-o", "size=3m", "none")
    image: Callable[..., Path] = request.getfixturevalue("image")
    return image()


@pytest.mark.parametrize("small", ["tmpfs", "ext4"], indirect=True)
def test_a_full_disk_stops_claiming_and_never_filing(small: Path, opened: Open) -> None:
    """What is claimed gets filed, thanks to the space set aside; what is not waits, until there is room again."""
    filing = opened(small)
    names = [f"{number:03}" + "n" * 240 for number in range(60)]
    for number, name in enumerate(names):
        claim_new(filing, small, name, b"%d" % number, f"d{number}")
    waiting = drop(small, "waiting.pdf")
    fill(small)
    for number, name in enumerate(names[:50]):
        send(filing, DeliveryId(f"d{number}"), name)
    for number, name in enumerate(names[50:], 50):
        filing.to_failed(DeliveryId(f"d{number}"), name, "a reason " * 1000)
    assert tree(small / "sent") == {name: b"%d" % number for number, name in enumerate(names[:50])}
    assert [name for name in tree(small / "failed") if not name.endswith(".txt")] == names[50:]
    (small / ".attachd/ballast").unlink(missing_ok=True)  # in memory no move needs it
    fill(small)
    with pytest.raises(InboxError, match="make room") as raised:
        claim(filing, waiting)
    assert raised.value.reason is Reason.DISK_FULL
    with pytest.raises(InboxError):
        filing.check()
    assert (small / "waiting.pdf").exists()
    for path in small.glob("fill*"):
        path.unlink()
    filing.check()
    assert claim(filing, waiting) is ClaimResult.CLAIMED
    assert (small / ".attachd/ballast").stat().st_size == BALLAST_BYTES


@pytest.fixture
def full(image: Callable[..., Path], opened: Open) -> tuple[Path, Filing]:
    """A claimed file on a full disk, and a sent/ that has to grow by a block for it."""
    inbox = image()
    filing = opened(inbox)
    for letter in "abc":
        (inbox / "sent" / (letter * 240)).touch()
    claim_new(filing, inbox, "n" * 240)
    fill(inbox)
    return inbox, filing


def test_a_move_that_needs_room_gets_it(full: tuple[Path, Filing]) -> None:
    """The space set aside is given up for it."""
    inbox, filing = full
    assert send(filing, D1, "n" * 240) == "sent/" + "n" * 240
    assert not (inbox / ".attachd/ballast").exists()


def test_a_move_that_gets_no_room_waits_for_it(full: tuple[Path, Filing]) -> None:
    """Without the space set aside the move fails, which also shows that the test above is not empty."""
    inbox, filing = full
    (inbox / ".attachd/ballast").unlink()
    fill(inbox)
    with pytest.raises(InboxError) as raised:
        send(filing, D1, "n" * 240)
    assert raised.value.reason is Reason.DISK_FULL
    assert [leftover.name for leftover in filing.leftovers()] == ["n" * 240]
    for path in inbox.glob("fill*"):
        path.unlink()
    os.sync()
    assert send(filing, D1, "n" * 240) == "sent/" + "n" * 240


def test_a_reason_on_a_full_disk_is_whole_or_missing(tmp_path: Path, mount: Mount, opened: Open) -> None:
    """Half a reason would mislead; the file itself is filed all the same."""
    small = mount(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m", "none")
    filing = opened(small)
    claim_new(filing, small, "scan.pdf")
    (small / ".attachd/ballast").unlink()
    fill(small)
    os.truncate(small / "fill0", (small / "fill0").stat().st_size - 8192)
    long_reason = "word " * 20_000
    filing.to_failed(D1, "scan.pdf", long_reason)
    assert (small / "failed/scan.pdf").exists()
    reason = small / "failed/scan.pdf.reason.txt"
    assert not reason.exists() or reason.read_text() == long_reason


def test_no_inodes_left_is_a_full_disk(image: Callable[..., Path], opened: Open) -> None:
    """There is room and yet no file can be made: claiming stops, filing goes on."""
    inbox = image("-N", "64")
    filing = opened(inbox)
    claim_new(filing, inbox, "scan.pdf")
    waiting = drop(inbox, "waiting.pdf")
    for number in range(os.statvfs(inbox).f_ffree):
        (inbox / f"fill{number}").touch()
    assert send(filing, D1, "scan.pdf") == "sent/scan.pdf"
    (inbox / "one more").touch()  # the inode of the claim
    with pytest.raises(InboxError) as raised:
        claim(filing, waiting)
    assert raised.value.reason is Reason.DISK_FULL
    assert (inbox / "waiting.pdf").exists()


def test_a_filesystem_that_cannot_set_space_aside_can_be_an_inbox(image: Callable[..., Path], opened: Open) -> None:
    """As many network filesystems: the space is written instead."""
    inbox = image("-O", "^extent,^64bit,^has_journal")
    filing = opened(inbox)
    assert (inbox / ".attachd/ballast").stat().st_blocks * 512 >= BALLAST_BYTES
    claim_new(filing, inbox, "scan.pdf")
    assert send(filing, D1, "scan.pdf") == "sent/scan.pdf"


# --- what is on disk when ------------------------------------------------------------------------------------------

_CLAIM_AND_SEND = """
import sys
from pathlib import Path
import hashlib
from attachd.delivery.filing import Filing, Sending, version_of
from attachd.model import DeliveryId, Sighting
inbox = Path(sys.argv[1])
filing = Filing("claims", inbox, sent="sent", failed="failed")
filing.open()
(inbox / "scan.pdf").write_bytes(b"content")
[claimed] = filing.claim([(DeliveryId("d1"), Sighting("scan.pdf", version_of((inbox / "scan.pdf").lstat())))])
filing.to_sent([Sending(DeliveryId("d1"), "scan.pdf", hashlib.sha256(b"content").hexdigest())])
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
def test_every_move_is_on_disk_before_the_next_step(inbox: Path, tmp_path: Path) -> None:
    """The file before its rename, its claim's entry before it, both folders after it; the same for sent/."""
    log = tmp_path / "strace"
    calls = "trace=fsync,mkdirat,renameat,renameat2,unlinkat"
    subprocess.run(
        ["strace", "-f", "-y", "-e", calls, "-o", str(log), sys.executable, "-c", _CLAIM_AND_SEND, str(inbox)],
        check=True,
        timeout=60,
    )
    steps = []
    for line in log.read_text().splitlines():
        if (call := re.search(r"(fsync|mkdirat|renameat2?|unlinkat)\((.*)\) += 0$", line)) and str(inbox) in line:
            paths = [path.removeprefix(str(inbox)) or "/" for path in re.findall(r"<([^>]*)>", call[2])]
            steps.append((call[1].rstrip("2"), *paths))
    claimed = "/.attachd/claimed"
    begin = steps.index(("fsync", "/scan.pdf"))
    assert steps[begin:] == [
        ("fsync", "/scan.pdf"),
        ("mkdirat", claimed),
        ("fsync", claimed),
        ("renameat", "/", claimed),
        ("fsync", f"{claimed}/d1"),
        ("fsync", "/"),
        ("renameat", claimed, "/sent"),
        ("fsync", "/sent"),
        ("unlinkat", claimed),
        ("fsync", claimed),
    ]


def test_nothing_stays_open(inbox: Path) -> None:
    """Over many claims, refusals and moves no descriptor is left behind."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    filing = Filing(InboxName("claims"), inbox, sent="out/sent", failed="out/failed")
    filing.open()
    held = descriptors()
    for number in range(5):
        claim_new(filing, inbox, f"a/{number}.pdf", delivery=f"d{number}")
        with pytest.raises(FileNotFoundError):
            send(filing, DeliveryId(f"d{number}"), "other.pdf")
        filing.to_failed(DeliveryId(f"d{number}"), f"a/{number}.pdf", "a reason")
        os.mkfifo(inbox / f"fifo{number}")
        claim(filing, sighting_of(inbox, f"fifo{number}"))
        list(filing.leftovers())
    assert descriptors() == held
    filing.close()
    assert descriptors() == before
