"""What a look at a real folder tells."""

import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from attachd.intake.names import Ignored, NameRules
from attachd.intake.scan import MAX_DEPTH, Scan, glance
from attachd.model import Sighting

from .conftest import version_of


@pytest.fixture
def root(inbox: Path) -> Iterator[int]:
    descriptor = os.open(inbox, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def whole(scan: Scan, known: frozenset[str] = frozenset(), room: int = 10**6) -> tuple[set[str], dict[str, str], int]:
    """All slices of a scan: names seen, reasons by name, and how many there was no room for."""
    seen: set[str] = set()
    ignored: dict[str, str] = {}
    beyond = 0
    try:
        while True:
            part = scan.advance(known, room)
            assert not seen & {s.name for s in part.sightings}
            seen |= {s.name for s in part.sightings}
            ignored |= {name: reason.value for name, reason in part.ignored}
            beyond += part.beyond
            room -= part.new
            if part.last:
                return seen, ignored, beyond
    finally:
        scan.close()


def test_everything_that_is_no_plain_file_is_left_alone(inbox: Path, root: int) -> None:
    """Links, FIFOs, sockets, folders, files with a second name: each with its reason, and nothing hangs."""
    (inbox / "a.pdf").write_bytes(b"x")
    (inbox / "link.pdf").symlink_to(inbox / "a.pdf")
    (inbox / "dangling.pdf").symlink_to("nowhere")
    os.mkfifo(inbox / "fifo.pdf")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(inbox / "s.pdf"))
    (inbox / "folder.pdf").mkdir()
    (inbox / "twice.pdf").write_bytes(b"x")
    os.link(inbox / "twice.pdf", inbox / "again.pdf")
    (inbox / "b.part").write_bytes(b"x")
    (inbox / "c.txt").write_bytes(b"x")
    for own in ("sent", "failed", ".attachd"):
        (inbox / own).mkdir()
    seen, ignored, beyond = whole(
        Scan(root, NameRules(include=("*.pdf",)), own=frozenset({"sent", "failed", ".attachd"}))
    )
    assert seen == {"a.pdf"}
    assert beyond == 0
    assert ignored == {
        "link.pdf": "link",
        "dangling.pdf": "link",
        "fifo.pdf": "not_a_file",
        "s.pdf": "not_a_file",
        "folder.pdf": "folder",
        "twice.pdf": "hard_links",
        "again.pdf": "hard_links",
        "b.part": "temporary_name",
        "c.txt": "not_included",
    }


def test_odd_names_are_names(inbox: Path, root: int) -> None:
    """Bytes that are no UTF-8, newlines, quotes, 255 bytes: the exact name comes back."""
    odd = [b"\xff\xfe.pdf", b"a\nb.pdf", b"'\" \\.pdf", b"n" * 255, "é😀.pdf".encode()]
    for name in odd:
        with open(os.path.join(os.fsencode(inbox), name), "wb") as file:
            file.write(b"x")
    seen, _, _ = whole(Scan(root, NameRules()))
    assert {os.fsencode(name) for name in seen} == set(odd)


def test_room_bounds_what_is_looked_at(inbox: Path, root: int) -> None:
    """Known names always, new ones while there is room; the rest is counted. `skip` begins further down."""
    for number in range(5000):
        (inbox / f"f{number}").touch()
    everything, _, _ = whole(Scan(root, NameRules()))
    assert len(everything) == 5000
    known = frozenset({"f17", "f4999"})
    seen, _, beyond = whole(Scan(root, NameRules()), known, room=100)
    assert known <= seen
    assert (len(seen), beyond) == (102, 4898)
    others, _, beyond = whole(Scan(root, NameRules(), skip=100), known, room=100)
    assert (len(others), beyond) == (102, 4898)
    assert seen & others == known


def test_a_tree_is_walked_without_following_links(inbox: Path, outside: Path, root: int) -> None:
    """Names are relative paths; hidden folders, our own at the root, and links to folders are not entered."""
    for folder in ("a/b/c", "sent", "a/sent", ".git", "a/@eaDir"):
        (inbox / folder).mkdir(parents=True)
        (inbox / folder / "x.pdf").write_bytes(b"x")
    (outside / "secret.pdf").write_bytes(b"x")
    (inbox / "away").symlink_to(outside)
    seen, ignored, _ = whole(Scan(root, NameRules(), recursive=True, own=frozenset({"sent"})))
    assert seen == {"a/b/c/x.pdf", "a/sent/x.pdf"}
    assert ignored == {"away": "link", ".git": "hidden", "a/@eaDir": "system_junk"}
    assert glance(root, "away/secret.pdf") is None
    assert glance(root, "a/b/c/x.pdf") == Sighting("a/b/c/x.pdf", version_of(inbox / "a/b/c/x.pdf"))


def test_a_tree_has_a_depth_cap(inbox: Path, root: int) -> None:
    """A tree that is deeper is not entered further, and no descriptor is left open."""
    deep = inbox.joinpath(*["d"] * (MAX_DEPTH + 2))
    deep.mkdir(parents=True)
    (deep / "x.pdf").touch()
    (deep.parent.parent / "y.pdf").touch()
    before = len(os.listdir("/proc/self/fd"))
    seen, ignored, _ = whole(Scan(root, NameRules(), recursive=True))
    assert {name.rpartition("/")[2] for name in seen} == {"y.pdf"}
    assert Counter(ignored.values()) == {"too_deep": 1}
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_scan_that_is_given_up_leaves_no_descriptor(inbox: Path, root: int) -> None:
    """Closing it half-way is enough."""
    (inbox / "a/b").mkdir(parents=True)
    for number in range(3000):
        (inbox / f"a/b/f{number}").touch()
    before = len(os.listdir("/proc/self/fd"))
    scan = Scan(root, NameRules(), recursive=True)
    scan.advance(frozenset(), 10)
    assert len(os.listdir("/proc/self/fd")) > before
    scan.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: path.symlink_to("x"), Ignored.LINK),
        (lambda path: path.mkdir(), Ignored.FOLDER),
        (os.mkfifo, Ignored.NOT_A_FILE),
        (lambda path: None, None),
    ],
)
def test_a_glance_tells_what_a_scan_tells(inbox: Path, root: int, make: object, expected: object) -> None:
    """One name, the same rules."""
    assert callable(make)
    make(inbox / "it")
    assert glance(root, "it") == expected
