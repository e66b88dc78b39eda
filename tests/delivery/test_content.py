"""What the platform is told of a file: its type by its bytes, a name fit to be told, exactly the bytes announced."""

import asyncio
import errno
import hashlib
import os
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attachd.demo
from attachd.delivery import content as module
from attachd.delivery.content import PIECE_BYTES, Content, content_type, digest_of, platform_name
from attachd.errors import FileError, TransientError
from attachd.model import Reason, Step

SAMPLES = Path(attachd.demo.__file__).parent / "samples"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
EXE = "application/vnd.microsoft.portable-executable"

Look: TypeAlias = Callable[..., Content]


@pytest.fixture
def look(tmp_path: Path) -> Iterator[Look]:
    """Opens a file with this content and looks at it."""
    with ExitStack() as stack:

        def look_(data: bytes, *, name: str = "scan.pdf", max_bytes: int = 1 << 30, types: str = "*/*") -> Content:
            (tmp_path / name).write_bytes(data)
            content = Content(os.open(tmp_path / name, os.O_RDONLY), name)
            stack.callback(content.close)
            content.look(max_bytes=max_bytes, allow_types=types.split())
            return content

        yield look_


async def all_of(content: Content) -> bytes:
    return b"".join([piece async for piece in content.read()])


# --- types ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "kind"),
    [
        ("accident-photo.jpg", "image/jpeg"),
        ("claim-form.pdf", "application/pdf"),
        ("cover-letter.txt", "text/plain"),
        ("expenses.csv", "text/csv"),
        ("medical-report.docx", DOCX),
        ("signature.png", "image/png"),
    ],
)
def test_real_files_are_what_they_are(look: Look, sample: str, kind: str) -> None:
    """Files as people drop them."""
    assert look((SAMPLES / sample).read_bytes(), name=sample).document.content_type == kind


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.txt", "a.exe", "a"])
@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ((SAMPLES / "claim-form.pdf").read_bytes()[:4096], "application/pdf"),
        ((SAMPLES / "signature.png").read_bytes()[:4096], "image/png"),
        (b"\r\n%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", "application/pdf"),
        (b"MZ\x90\x00\x03\x00\x00\x00\x04\x00\x00\x00\xff\xff\x00\x00", EXE),
        (b"\x7fELF\x02\x01\x01" + bytes(9), "application/x-executable"),
        (b"{\\rtf1\\ansi hello}", "application/rtf"),
        (b"GIF89a\x01\x00\x01\x00", "image/gif"),
        (b"II*\x00\x08\x00\x00\x00", "image/tiff"),
        (b"BM\x36\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00", "image/bmp"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "application/gzip"),
        (bytes(range(256)), "application/octet-stream"),
    ],
)
def test_a_name_does_not_make_a_type(name: str, head: bytes, kind: str) -> None:
    """Where the bytes are plain, the extension changes nothing."""
    assert content_type(head, name) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.zip", "application/zip"), ("a.pdf", "application/zip"), ("a", "application/zip"), ("a.DOCX", DOCX)],
)
def test_a_name_chooses_among_what_the_bytes_allow(name: str, kind: str) -> None:
    """An office document is a ZIP inside; nothing else than what a ZIP can be is believed."""
    assert content_type((SAMPLES / "medical-report.docx").read_bytes()[:4096], name) == kind


@pytest.mark.parametrize(
    "text",
    [
        b"BMW invoice 12",
        b"MZ is no program",
        b"PK in the north",
        b"GIF8 is a word",
        b"II* chapter two",
        b"\xef\xbb\xbfwith a mark",
        "Grüße".encode("utf-16"),
        "Grüße".encode("utf-16-be").join([b"\xfe\xff", b""]),
        "Name;Betrag\nMüller;3,50 €\n".encode("cp1252"),
        "BMW für Müller".encode("latin-1"),
        ("x" * 4095 + "€").encode()[:4096],
        ("x" * 4094 + "😀").encode()[:4096],
        b"a tab\t, a page\f, an escape \x1b[0m",
        b"\n",
    ],
)
def test_text_is_text_however_it_begins(text: bytes) -> None:
    """Letters that other formats begin with, marks, old alphabets, a last character cut in two."""
    assert content_type(text, "a") == "text/plain"
    assert content_type(text, "a.csv") == "text/csv"
    assert content_type(text, "a.pdf") == "text/plain"


@pytest.mark.parametrize(
    ("text", "name", "kind"),
    [
        (b"<!DOCTYPE html><p>", "a.txt", "text/plain"),
        (b"  <HTML>", "a", "text/html"),
        (b"<?xml version='1.0'?>", "a", "text/xml"),
        (b"{}", "a.json", "application/json"),
        (b"From: a\n\n", "a.eml", "message/rfc822"),
    ],
)
def test_a_kind_of_text_is_told_by_the_name_or_the_beginning(text: bytes, name: str, kind: str) -> None:
    """All of them are text; which, the name says first."""
    assert content_type(text, name) == kind


@given(st.binary(max_size=200), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=150, deadline=None)
def test_any_bytes_have_a_type_that_can_be_a_header(head: bytes, name: str) -> None:
    """Whatever is dropped: never an error, never a type that breaks a header."""
    kind = content_type(head, name)
    assert kind.isascii()
    assert kind.isprintable()
    assert kind.count("/") == 1
    assert not set(kind) & set(' ;,"')


def test_refused_files_say_why(look: Look) -> None:
    """Empty, too large, of a type that the inbox does not take: the file's own fault, in words with figures."""
    for data, options, reason, words in [
        (b"", {}, Reason.EMPTY, "empty"),
        (b"x" * 1001, {"max_bytes": 1000}, Reason.TOO_LARGE, "1,001 bytes; the platform takes at most 1,000"),
        (b"MZ\x00", {"types": "image/* text/plain"}, Reason.TYPE_NOT_ALLOWED, "takes image/*, text/plain"),
    ]:
        with pytest.raises(FileError, match=words.replace("*", "[*]")) as raised:
            look(data, **options)
        assert (raised.value.reason, raised.value.step) == (reason, Step.CHECK)
    look(b"x" * 1000, max_bytes=1000, types="TEXT/*")


# --- names ----------------------------------------------------------------------------------------------------------

_names = st.one_of(
    st.binary(min_size=1, max_size=255).map(os.fsdecode),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200),
    st.text("ae\u0301\u200d\u202e\u2028 ./\\\x00\x1b\u00e4\u1100\u1161\u11a8", min_size=1, max_size=30),
)


@given(_names)
@settings(max_examples=400, deadline=None)
def test_any_name_can_be_told(name: str) -> None:
    """Never empty, never long, no control, direction or separator characters, in composed form."""
    told = platform_name(name)
    assert 0 < len(told) <= 128
    assert told == unicodedata.normalize("NFC", told)
    assert told == told.strip()
    assert {unicodedata.category(c) for c in told}.isdisjoint({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
    assert set(told).isdisjoint('/\\:*?"<>|')
    told.encode()
    assert platform_name(told) == told


@given(_names, st.from_regex(r"[A-Za-z0-9]{1,15}", fullmatch=True))
@settings(max_examples=200, deadline=None)
def test_the_extension_is_kept(name: str, extension: str) -> None:
    """However long or odd the name before it."""
    assert platform_name(f"{name}.{extension}").endswith(f".{extension}")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("in/2024/scan.pdf", "scan.pdf"),
        ("\u202efdp.exe", "fdp.exe"),
        ("\u202e.pdf", "document.pdf"),
        ("   .pdf", "document.pdf"),
        ("\x00", "document"),
        ("scan", "scan"),
        ("e\u200d\u0301.pdf", "é.pdf"),
        ("u\u0308ber.pdf", "über.pdf"),
        ("\udcff.pdf", "\ufffd.pdf"),
        ("a\u2028b\n c.pdf", "a b c.pdf"),
        ("Invoice no. 1234 from the electricity company", "Invoice no. 1234 from the electricity company"),
        ("x" * 300 + ".pdf", "x" * 124 + ".pdf"),
    ],
)
def test_names_are_told_so_that_people_know_them_again(name: str, told: str) -> None:
    """What can be read stays, what cannot goes."""
    assert platform_name(name) == told


# --- bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7])
async def test_exactly_the_announced_bytes_are_read(look: Look, size: int) -> None:
    """In pieces of bounded size, with their digest; reading again starts anew."""
    data = os.urandom(size)
    content = look(data)
    assert content.document.size == size
    for _ in range(2):
        pieces = [piece async for piece in content.read()]
        assert b"".join(pieces) == data
        assert max(map(len, pieces)) <= PIECE_BYTES
        assert content.sha256 == hashlib.sha256(data).hexdigest()


async def test_a_file_that_grows_gives_what_was_announced(look: Look, tmp_path: Path) -> None:
    """A writer appends during the upload: the storage gets as many bytes as it was told, and the post does not go."""
    data = os.urandom(2 * PIECE_BYTES)
    content = look(data)
    pieces = []
    async for piece in content.read():
        pieces.append(piece)
        with (tmp_path / "scan.pdf").open("ab") as writer:
            writer.write(b"late")
    assert b"".join(pieces) == data
    assert content.sha256 == hashlib.sha256(data).hexdigest()
    with pytest.raises(TransientError) as raised:
        content.demand(content.sha256)
    assert raised.value.reason is Reason.CHANGED


@pytest.mark.parametrize("left", [0, 100, PIECE_BYTES, 2 * PIECE_BYTES - 1])
async def test_a_file_that_shrinks_is_no_outage(look: Look, tmp_path: Path, left: int) -> None:
    """It says that the file was changed, at a step that is ours, and there is no digest to go on with."""
    content = look(os.urandom(2 * PIECE_BYTES))
    reading = content.read()
    await anext(reading)
    os.truncate(tmp_path / "scan.pdf", left)
    with pytest.raises(TransientError, match="shorter") as raised:
        _ = [piece async for piece in reading]
    assert (raised.value.reason, raised.value.step) == (Reason.CHANGED, Step.CHECK)
    assert content.sha256 == ""


async def test_unchanged_content_may_go(look: Look, tmp_path: Path) -> None:
    """`demand` is content as long as the bytes are the same, whatever the file times say."""
    content = look(b"content")
    await all_of(content)
    os.utime(tmp_path / "scan.pdf", (1, 1))
    content.demand(content.sha256)
    (tmp_path / "scan.pdf").write_bytes(b"CONTENT")
    with pytest.raises(TransientError, match="after it was uploaded"):
        content.demand(content.sha256)


async def test_a_disk_that_fails_under_a_file_is_that_files_trouble(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector must not end the daemon, again and again at every start."""
    content = look(b"x" * (PIECE_BYTES + 1))

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(module.os, "pread", broken)
    for reading in (all_of(content), asyncio.to_thread(content.demand, "0")):
        with pytest.raises(TransientError, match="Input/output error") as raised:
            await reading
        assert (raised.value.reason, raised.value.step) == (Reason.UNREADABLE, Step.CHECK)


async def test_memory_stays_flat_for_a_large_file(look: Look, tmp_path: Path) -> None:
    """25 MiB pass through a few pieces' worth of memory."""
    content = look(b"x")
    os.truncate(tmp_path / "scan.pdf", 25 << 20)
    content.look(max_bytes=1 << 30, allow_types=["*/*"])
    tracemalloc.start()
    try:
        read = 0
        async for piece in content.read():
            read += len(piece)
        content.demand(content.sha256)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read == 25 << 20
    assert most < 6 * PIECE_BYTES


def test_a_digest_is_of_the_whole_file_as_it_is(tmp_path: Path) -> None:
    """Over pieces, and from the beginning wherever the descriptor stands."""
    data = os.urandom(PIECE_BYTES + 5)
    (tmp_path / "a").write_bytes(data)
    with (tmp_path / "a").open("rb") as file:
        file.seek(100)
        assert digest_of(file.fileno()) == hashlib.sha256(data).hexdigest()
