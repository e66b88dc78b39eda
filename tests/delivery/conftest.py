"""Real inboxes on real filesystems, with the folders of attachd in them, and ways to get those into trouble; and a
platform in memory that answers as it is told.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

from attachd.delivery.content import digest_of
from attachd.delivery.filing import Filing, Sending, version_of
from attachd.model import (
    AttachmentId,
    ClaimResult,
    ConversationId,
    DeliveryId,
    Document,
    GuestId,
    InboxName,
    Receipt,
    Routing,
    Sighting,
    Step,
    Upload,
)
from attachd.ports import CannotAsk, Found, NotThere, ReadContent

INBOX = InboxName("claims")
NOBODY = 65534


def sighting_of(inbox: Path, name: str) -> Sighting:
    """What the scan reports of a file."""
    return Sighting(name, version_of((inbox / name).lstat()))


def drop(inbox: Path, name: str, content: bytes = b"a document") -> Sighting:
    """A producer puts a file into the inbox, whole."""
    (inbox / name).parent.mkdir(parents=True, exist_ok=True)
    (inbox / name).write_bytes(content)
    return sighting_of(inbox, name)


def claim(filing: Filing, sighting: Sighting, delivery: str = "d1") -> ClaimResult:
    """Claim one file."""
    [claimed] = filing.claim([(DeliveryId(delivery), sighting)])
    assert (claimed.version is not None) == (claimed.result is ClaimResult.CLAIMED)
    return claimed.result


def claim_new(filing: Filing, inbox: Path, name: str, content: bytes = b"a document", delivery: str = "d1") -> None:
    """A file is dropped, and claimed."""
    assert claim(filing, drop(inbox, name, content), delivery) is ClaimResult.CLAIMED


def send(filing: Filing, delivery: DeliveryId, name: str) -> str:
    """A claimed file goes to sent/ as it is; what is raised for it is raised here."""
    try:
        opened = filing.open_claimed(delivery, name)
    except FileNotFoundError:
        digest = ""
    else:
        digest = digest_of(opened)
        os.close(opened)
    [answer] = filing.to_sent([Sending(delivery, name, digest)])
    if isinstance(answer, Exception):
        raise answer
    assert answer is not None
    return answer


def tree(folder: Path) -> dict[str, bytes]:
    """Every file that people see below a folder, and its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".attachd" not in path.parts
    }


def fill(folder: Path) -> None:
    """Leave no block free on the filesystem of a folder."""
    for number in range(3):
        os.sync()  # what was removed is free only then
        with (folder / f"fill{number}").open("ab", buffering=0) as file:
            for size in (65536, 4096, 1024, 1):
                with suppress(OSError):
                    while file.write(b"x" * size):
                        pass


@contextmanager
def as_nobody() -> Iterator[None]:
    """As a user without rights of its own; root only."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder that every user can reach, on the disk's filesystem and on tmpfs."""
    base = "/dev/shm" if request.param == "memory" else None
    if base and not os.path.isdir(base):
        pytest.skip("no tmpfs at /dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="attachd-test-", dir=base))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def inbox(place: Path) -> Path:
    folder = place / "inbox"
    folder.mkdir()
    return folder


Open: TypeAlias = Callable[..., Filing]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens the folders of an inbox; they are closed after the test."""
    with ExitStack() as stack:

        def open_(path: Path, sent: str = "sent", failed: str = "failed") -> Filing:
            filing = Filing(INBOX, path, sent=sent, failed=failed)
            filing.open()
            stack.callback(filing.close)
            return filing

        yield open_


@pytest.fixture
def filing(inbox: Path, opened: Open) -> Filing:
    return opened(inbox)


Mount: TypeAlias = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts something on a folder until the test ends; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount_(target: Path, *arguments: str) -> Path:
        target.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *arguments, str(target)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        mounted.append(target)
        return target

    yield mount_
    for target in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(target)], check=True)


@pytest.fixture
def image(tmp_path: Path, mount: Mount) -> Callable[..., Path]:
    """A small filesystem of its own, made as asked for."""

    def image_(*mkfs: str) -> Path:
        file = tmp_path / "image"
        with file.open("wb") as blocks:
            blocks.truncate(6 << 20)
        if not shutil.which("mkfs.ext4"):
            pytest.skip("no mkfs.ext4")
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-b", "1024", *mkfs, str(file)], check=True, capture_output=True)
        return mount(tmp_path / "mounted", "-o", "loop", str(file))

    return image_


# --- a platform ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """What the platform was asked; `standing` marks the question whether a message stands."""

    step: Step
    delivery: DeliveryId
    file_name: str = ""
    sha256: str = ""
    text: str = ""
    standing: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """What an agent sees."""

    attachment: AttachmentId
    sha256: str
    file_name: str
    text: str


async def _nothing(call: Call) -> None:
    """No trouble."""


class ScriptedGateway:
    """A `GuestGateway` in memory. `before` and `after` may raise or wait: `before` a request has any effect, or `after`
    it, when only its answer can still be lost. What was accepted stays in `messages`, as on a platform.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.messages: list[Message] = []
        self.can_ask = False
        self.routed: str | None = None
        self.before: Callable[[Call], Awaitable[None]] = _nothing
        self.after: Callable[[Call], Awaitable[None]] = _nothing
        self._stored: dict[AttachmentId, str] = {}

    def asked(self, step: Step) -> list[Call]:
        """The calls of one step."""
        return [call for call in self.calls if call.step is step]

    @asynccontextmanager
    async def session(
        self, delivery: DeliveryId, routing: Routing, resume: GuestId | None = None
    ) -> AsyncIterator["ScriptedSession"]:
        call, self.routed = Call(Step.SESSION, delivery), routing.queue_id
        await self.ask(call)
        yield ScriptedSession(self, delivery, resume or GuestId(f"guest-{len(self.calls)}"))
        await self.after(call)

    async def find(self, upload: Upload) -> Found | NotThere | CannotAsk:
        await self.before(Call(Step.MESSAGE, DeliveryId(""), upload.document.file_name, standing=True))
        if not self.can_ask:
            return CannotAsk()
        stands = any(message.attachment == upload.attachment for message in self.messages)
        return Found(Receipt(ConversationId("found"))) if stands else NotThere()

    async def ask(self, call: Call) -> None:
        self.calls.append(call)
        await self.before(call)

    def store(self, sha256: str) -> AttachmentId:
        attachment = AttachmentId(f"attachment-{len(self._stored)}")
        self._stored[attachment] = sha256
        return attachment

    def stored(self, attachment: AttachmentId) -> str:
        return self._stored[attachment]


class ScriptedSession:
    """One guest of the scripted platform."""

    def __init__(self, gateway: ScriptedGateway, delivery: DeliveryId, guest: GuestId) -> None:
        self._gateway = gateway
        self._delivery = delivery
        self.guest = guest

    async def upload(self, document: Document, read: ReadContent) -> AttachmentId:
        await self._gateway.ask(Call(Step.UPLOAD, self._delivery, document.file_name))
        content = b"".join([piece async for piece in read()])
        assert len(content) == document.size
        call = Call(Step.PUT, self._delivery, document.file_name, hashlib.sha256(content).hexdigest())
        await self._gateway.ask(call)
        attachment = self._gateway.store(call.sha256)
        await self._gateway.after(call)
        return attachment

    async def post(self, attachment: AttachmentId, document: Document, text: str) -> Receipt:
        sha256 = self._gateway.stored(attachment)
        call = Call(Step.MESSAGE, self._delivery, document.file_name, sha256, text)
        await self._gateway.ask(call)
        self._gateway.messages.append(Message(attachment, sha256, document.file_name, text))
        await self._gateway.after(call)
        return Receipt(ConversationId(f"conversation-{len(self._gateway.messages)}"))


@pytest.fixture
def gateway() -> ScriptedGateway:
    return ScriptedGateway()


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
