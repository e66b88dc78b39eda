"""The claimed file as the platform is to see it: its type, a name fit to be told, its bytes and their digest.

Between `filing`, which opens the file, and a gateway, which asks for its bytes. The file is sent from where it lies,
so a writer that still holds it open can change it underneath: what is read is counted and hashed, and hashed again
later.
"""

import asyncio
import codecs
import contextlib
import errno
import fnmatch
import hashlib
import mimetypes
import os
import unicodedata
from collections.abc import AsyncIterator, Iterator, Sequence

from attachd.errors import DeliveryError, FileError, InboxError, TransientError
from attachd.model import Document, Reason, Step

PIECE_BYTES = 128 * 1024
_HEAD_BYTES = 4096  # nothing attachd tells apart is decided by later bytes
_EXTENSION_CHARACTERS = 15
_NAME_CHARACTERS = 128  # ours, far below the 1,024 that the platform is said to allow


class Content:
    """An open file and what the platform is told of it; owns the descriptor it is given."""

    def __init__(self, opened: int, name: str) -> None:
        self._opened = opened
        self._name = name
        self._first = b""
        self._first_digest = hashlib.sha256()
        self._digest = ""
        self.document = Document(platform_name(name), "application/octet-stream", 0)

    def look(self, *, max_bytes: int, allow_types: Sequence[str]) -> None:
        """Read the beginning and decide whether this file may go at all.

        Raises FileError (empty, too large, type not allowed), OSError when it cannot be read. Blocks.
        """
        size = os.fstat(self._opened).st_size
        if size == 0:
            raise FileError(Reason.EMPTY, "the file is empty", Step.CHECK)
        if size > max_bytes:
            detail = f"the file has {size:,} bytes; the platform takes at most {max_bytes:,}"
            raise FileError(Reason.TOO_LARGE, detail, Step.CHECK)
        self._first = os.pread(self._opened, min(PIECE_BYTES, size), 0)
        self._first_digest = hashlib.sha256(self._first)
        kind = content_type(self._first[:_HEAD_BYTES], self._name)
        if not any(fnmatch.fnmatchcase(kind, allowed.lower()) for allowed in allow_types):
            detail = f"its content is {kind}, and this inbox takes {', '.join(allow_types)}"
            raise FileError(Reason.TYPE_NOT_ALLOWED, detail, Step.CHECK)
        self.document = Document(platform_name(self._name), kind, size)

    async def read(self) -> AsyncIterator[bytes]:
        """The document's bytes in pieces, exactly as many as it said; `sha256` is theirs afterwards.

        Raises TransientError: changed, when the file got shorter (that must not look like an outage); unreadable.
        """
        digest = self._first_digest.copy()
        offset, size, piece = 0, self.document.size, self._first
        while offset < size:
            if offset:
                with _unreadable():
                    piece = await asyncio.to_thread(self._next, digest, offset, min(PIECE_BYTES, size - offset))
            if not piece:
                raise _changed("it got shorter while it was uploaded")
            offset += len(piece)
            if offset == size:  # said before the last piece is given out: nobody need ask for more after it
                self._digest = digest.hexdigest()
            yield piece

    def _next(self, digest: "hashlib._Hash", offset: int, wanted: int) -> bytes:
        piece = os.pread(self._opened, wanted, offset)
        digest.update(piece)
        return piece

    @property
    def sha256(self) -> str:
        """The hex digest of what `read` gave out when it last came to its last piece; empty before."""
        return self._digest

    def demand(self, sha256: str) -> None:
        """Raise TransientError (changed, unreadable) unless the file still has the content with this digest. Blocks."""
        with _unreadable():
            found = digest_of(self._opened)
        if found != sha256:
            raise _changed("it was changed after it was uploaded")

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._opened)


def digest_of(opened: int) -> str:
    """The hex SHA-256 of an open file as it is now. Blocks."""
    digest, offset, size = hashlib.sha256(), 0, os.fstat(opened).st_size
    while offset < size and (piece := os.pread(opened, PIECE_BYTES, offset)):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def _unreadable() -> Iterator[None]:
    """A disk or share that fails under one file must not end the daemon."""
    try:
        yield
    except OSError as error:
        raise reading_error(error, Step.CHECK) from error


def reading_error(error: OSError, step: Step) -> DeliveryError:
    """Whose fault it is that a claimed file cannot be read: the file's own, or that of the share it lies on."""
    if error.errno in _SHARE_IN_TROUBLE:
        detail = f"the folder does not let itself be read: {error.strerror}"
        return InboxError(Reason.FOLDER_MISSING, detail, Step.FILING)
    return TransientError(Reason.UNREADABLE, f"the file cannot be read: {error.strerror or error}", step)


_SHARE_IN_TROUBLE = frozenset(
    {
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ECONNREFUSED,
        errno.EREMOTEIO,
    }
)


def _changed(what: str) -> TransientError:
    return TransientError(Reason.CHANGED, f"the file is not what it was: {what}; it starts over", Step.CHECK)


# --- names ----------------------------------------------------------------------------------------------------------


def platform_name(name: str) -> str:
    """A file name fit to be told: printable, NFC, without separators or text-direction marks, its extension kept.

    On disk the name stays what it is, byte for byte.
    """
    readable = os.fsencode(os.path.basename(name)).decode("utf-8", "replace")
    kept = "".join(c for c in readable if _may_be_told(c))
    # Normalised last: what was between two characters and fell out can have kept them apart.
    whole = unicodedata.normalize("NFC", " ".join(kept.split()))
    stem, dot, extension = whole.rpartition(".")
    if not dot or " " in extension or len(extension) > _EXTENSION_CHARACTERS:  # a sentence with a full stop in it
        stem, dot, extension = whole, "", ""
    if not stem.strip(" ."):
        stem = "document"
    return stem[: _NAME_CHARACTERS - len(dot + extension)].strip() + dot + extension


def _may_be_told(character: str) -> bool:
    # Cc, Cf: control and format characters, the direction marks among them; Cs, Co, Cn: nothing anybody can read.
    return character not in '/\\:*?"<>|' and not unicodedata.category(character).startswith("C")


# --- types ----------------------------------------------------------------------------------------------------------

# What most files are, told by bytes that nothing else begins with; asking the library takes half a millisecond a file.
_PLAIN_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"{\\rtf": "application/rtf",
    # The library knows these and gives them no type.
    b"\x7fELF": "application/x-executable",
}
_USUAL_NAMES = {
    "application/x-gzip": "application/gzip",
    "audio/wave": "audio/wav",
    "image/x-ms-bmp": "image/bmp",
    "application/mspowerpoint": "application/vnd.ms-powerpoint",
    "application/excel": "application/vnd.ms-excel",
}
_BEFORE_A_PDF = b"\xef\xbb\xbf \t\r\n\0"  # some scanners begin with an empty line, and every reader takes it
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TEXT_TYPES = ("text/", "message/rfc822", "application/json", "application/xml", "application/x-ndjson")


def content_type(head: bytes, name: str) -> str:
    """The MIME type of a file that begins with `head` (up to 4 KiB); its name only chooses among what the bytes
    allow.
    """
    if head.lstrip(_BEFORE_A_PDF).startswith(b"%PDF-"):
        return "application/pdf"
    for signature, kind in _PLAIN_SIGNATURES.items():
        if head.startswith(signature):
            return kind
    if _is_text(head):
        return _text_type(head, name)
    if head.startswith(b"MZ"):
        return "application/vnd.microsoft.portable-executable"
    candidates = _candidates(head)
    extension = os.path.splitext(name)[1].lower()
    named = [kind for ending, kind in candidates if ending == extension and kind]
    if not named and head.startswith(b"PK\x03\x04"):
        return "application/zip"  # the library lists every format that is a ZIP inside, in no telling order
    found = next(iter(named or [kind for _, kind in candidates if kind]), "application/octet-stream")
    return _USUAL_NAMES.get(found, found)


def _candidates(head: bytes) -> list[tuple[str, str]]:
    import puremagic  # a megabyte of signatures, which an inbox of plain PDFs never needs

    try:
        return [(match.extension, match.mime_type) for match in puremagic.magic_string(head)]
    except (puremagic.PureError, ValueError):
        return []


def _is_text(head: bytes) -> bool:
    try:
        # The last character may be cut in two.
        text = codecs.getincrementaldecoder("utf-16" if head.startswith(_UTF_16) else "utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        # One of the 8-bit alphabets that offices still export: mostly ASCII.
        text = head.decode("latin-1")
        if sum(c > "\x7f" for c in text) * 3 > len(text):
            return False
    return not any(c < " " and c not in "\t\n\r\f\x1b" for c in text)


def _text_type(head: bytes, name: str) -> str:
    by_name = mimetypes.guess_type(name)[0] or ""
    if by_name.startswith(_TEXT_TYPES):
        return by_name
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:15].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "text/html"
    return "text/xml" if start.startswith(b"<?xml") else "text/plain"
