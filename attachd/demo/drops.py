"""What goes into the inbox: which files, in which order, by which way, and what must become of each.

The files are prepared in a folder beside the inbox, the desk, and brought over from there as different producers do.
"""

import asyncio
import hashlib
import importlib.resources
import os
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from attachd.model import Reason
from attachd.telemetry import printable

_PIECES = 8
_BETWEEN_PIECES_S = 0.8
_OVER_THE_LIMIT_BYTES = 11 << 20  # the platform takes 10 MiB
_ODD_NAME = os.fsdecode("résumé 📎".encode() + b"\xff\n.txt")


class Way(Enum):
    """How a file comes into the inbox: in a word or two, and as a sentence about it."""

    EMPTY = ("created empty", "is created, and its scanner breaks off: it stays empty")
    COPIED = ("copied", "is copied in")
    MOVED = ("moved in", "is moved in by a rename")
    PIECES = ("in pieces", "is written slowly, piece by piece")
    SAVED = ("saved by an editor", "is saved as editors do it: under a hidden name, then renamed")

    @property
    def short(self) -> str:
        return self.value[0]

    @property
    def sentence(self) -> str:
        return self.value[1]


class Trouble(Enum):
    """What the platform does to a file on its first try, none of it the file's fault: the reason by which the daemon
    must know it, and a sentence.
    """

    OUTAGE = (Reason.SERVER_ERROR, "the platform will answer 503 at first")
    RATE_LIMIT = (Reason.RATE_LIMITED, "the platform will ask for 3 s of silence (429)")

    @property
    def reason(self) -> Reason:
        return self.value[0]

    @property
    def sentence(self) -> str:
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Drop:
    """One file. `failure` is why it must end in `failed/`; None: it must be sent. `pause_s` passes before it."""

    name: str
    way: Way
    pause_s: float
    failure: Reason | None = None
    trouble: Trouble | None = None
    remark: str = ""

    @property
    def shown(self) -> str:
        """The name as the log writes it."""
        return printable(self.name)

    @property
    def sentence(self) -> str:
        """What is happening, in words."""
        remarks = [remark for remark in (self.remark, self.trouble.sentence if self.trouble else "") if remark]
        return "; ".join([f"{self.shown} {self.way.sentence}", *remarks])


# An empty file is given a minute to fill, so it goes first and the others are spread over its minute.
PROGRAMME: Sequence[Drop] = (
    Drop("scan-0042.pdf", Way.EMPTY, 0.0, failure=Reason.EMPTY),
    Drop("claim-form.pdf", Way.COPIED, 3.0),
    Drop("accident-photo.jpg", Way.PIECES, 5.0),
    Drop("medical-report.docx", Way.COPIED, 3.0, trouble=Trouble.OUTAGE),
    Drop(_ODD_NAME, Way.MOVED, 8.0, remark="its name has a line break and a byte that is no text"),
    Drop("expenses.csv", Way.SAVED, 5.0),
    Drop("cover-letter.txt", Way.MOVED, 5.0, trouble=Trouble.RATE_LIMIT),
    Drop("signature.png", Way.COPIED, 2.0),
    Drop("invoice.pdf", Way.COPIED, 7.0, failure=Reason.TYPE_NOT_ALLOWED, remark="inside it is a program"),
    Drop("case-archive.pdf", Way.MOVED, 6.0, failure=Reason.TOO_LARGE, remark="it has 11 MiB, and 10 are the limit"),
)


def prepare(desk: Path) -> dict[Drop, tuple[int, str]]:
    """Lay all files on the desk; returns the size and the hex SHA-256 of each. Blocks."""
    for drop in PROGRAMME:
        _make(drop, desk / drop.name)
    return {drop: _measured(desk / drop.name) for drop in PROGRAMME}


def _make(drop: Drop, path: Path) -> None:
    match drop.failure:
        case Reason.EMPTY:
            path.touch()
        case Reason.TOO_LARGE:
            path.write_bytes(b"%PDF-1.7\n")
            os.truncate(path, _OVER_THE_LIMIT_BYTES)
        case Reason.TYPE_NOT_ALLOWED:
            with open(os.path.realpath(sys.executable), "rb") as program:
                path.write_bytes(program.read(20_000))
        case _ if drop.name == _ODD_NAME:
            path.write_text("Zoë Harrowgate, claims assessor since 2009.\n", encoding="utf-8")
        case _:
            sample = importlib.resources.files("attachd.demo") / "samples" / drop.name
            path.write_bytes(sample.read_bytes())


def _measured(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


async def bring(drop: Drop, desk: Path, inbox: Path) -> AsyncIterator[str]:
    """Bring a file into the inbox by its way; yields, as long as it takes, how far it is."""
    source, target = desk / drop.name, inbox / drop.name
    match drop.way:
        case Way.EMPTY:
            await asyncio.to_thread(target.touch)
        case Way.COPIED:
            await asyncio.to_thread(shutil.copyfile, source, target)
        case Way.MOVED:
            await asyncio.to_thread(os.rename, source, target)
        case Way.SAVED:
            hidden = inbox / f".{drop.name}.tmp"
            await asyncio.to_thread(shutil.copyfile, source, hidden)
            yield "saved under a hidden name"
            await asyncio.sleep(1.0)
            await asyncio.to_thread(os.rename, hidden, target)
        case Way.PIECES:
            content = await asyncio.to_thread(source.read_bytes)
            step = -(-len(content) // _PIECES)
            with await asyncio.to_thread(open, target, "xb", buffering=0) as file:
                for number in range(_PIECES):
                    await asyncio.to_thread(file.write, content[number * step : (number + 1) * step])
                    yield f"being written, piece {number + 1} of {_PIECES}"
                    await asyncio.sleep(_BETWEEN_PIECES_S)
