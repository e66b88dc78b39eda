"""What the platform received and what it made of it: the truth that tests and benchmarks ask.

Nothing is ever de-duplicated here. In the `counts` form only figures and the state that running sessions need are
kept, so that an hour of load costs no more memory than a minute.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from attachd.sandbox.clock import Clock
from attachd.sandbox.step import Step

# In the `counts` form: sessions that may be open at the same time before the oldest is forgotten. Our figure, far
# above any concurrency a benchmark uses.
_OPEN_SESSIONS = 20_000

_T = TypeVar("_T")


class Answer(StrEnum):
    """How much of what the platform decided reached the wire."""

    NONE = "none"  # nothing (yet)
    CUT = "cut"  # a part, then a reset
    SPOILED = "spoiled"  # a complete answer, but not the true one
    WHOLE = "whole"


@dataclass(slots=True)
class Received:
    """One request. `status` and `code` are what was decided, None as long as nothing was."""

    step: Step
    correlation_id: str
    wall_s: float
    monotonic_s: float
    file_name: str | None = None
    status: int | None = None
    code: str | None = None
    fault: str | None = None
    answer: Answer = Answer.NONE


@dataclass(frozen=True, slots=True)
class Skill:
    skill_id: str
    level: int


@dataclass(frozen=True, slots=True)
class Guest:
    """A session. `queue_id` is what routes it: the queue, with webmessaging the deployment."""

    guest_id: str
    conversation_id: str  # nobody but the platform knows it before the first message
    queue_id: str
    skills: tuple[Skill, ...]
    metadata: Mapping[str, object]
    may_attach: bool
    wall_s: float
    token: str | None = field(default=None, repr=False)  # webmessaging: the credential of the session; never shown


@dataclass(frozen=True, slots=True)
class Upload:
    """What a client declared it would store; `headers` are those the PUT must carry besides."""

    attachment_id: str
    guest_id: str
    queue_id: str
    file_name: str
    content_type: str
    size_bytes: int
    wall_s: float
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """`path` is where the bytes lie, None unless the sandbox keeps them."""

    attachment_id: str
    file_name: str
    content_type: str
    size_bytes: int
    sha256: str
    path: Path | None
    wall_s: float


@dataclass(frozen=True, slots=True)
class Attachment:
    attachment_id: str
    file_name: str
    content_type: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Message:
    """What an agent sees. The same attachment in two messages is what a duplicate looks like.

    `dropped`: what came with the message and the platform took out of it without a word.
    """

    message_id: str
    conversation_id: str
    guest_id: str
    queue_id: str
    skills: tuple[Skill, ...]
    metadata: Mapping[str, object]
    text: str
    attachments: tuple[Attachment, ...]
    wall_s: float
    received: Received
    dropped: tuple[Attachment, ...] = ()

    @property
    def answer_lost(self) -> bool:
        """Whether the client was left without the true answer. Settled once the request has ended."""
        return self.received.answer is not Answer.WHOLE


@dataclass(frozen=True, slots=True)
class Leak:
    """A bearer token or other credential that reached the storage, where it must never be seen. Not its value."""

    header: str
    scheme: str
    wall_s: float


class Ledger:
    def __init__(self, clock: Clock, *, counts_only: bool = False) -> None:
        self._clock = clock
        self._counts_only = counts_only
        self.clear()

    def clear(self) -> None:
        """Forget everything, open sessions included."""
        self.received: list[Received] = []
        self.messages: list[Message] = []
        self.objects: list[StoredObject] = []
        self.leaks: list[Leak] = []
        self.guests: OrderedDict[str, Guest] = OrderedDict()
        self.uploads: OrderedDict[str, Upload] = OrderedDict()
        self.stored: OrderedDict[str, StoredObject] = OrderedDict()  # what lies in the storage now
        self.answers: Counter[tuple[Step, int | None]] = Counter()  # a status of None: the connection was reset
        self.counts: Counter[str] = Counter()

    def receive(self, step: Step, correlation_id: str) -> Received:
        received = Received(step, correlation_id, self._clock.wall_s(), self._clock.monotonic_s())
        self.counts["requests"] += 1
        if not self._counts_only:
            self.received.append(received)
        return received

    def end(self, received: Received) -> None:
        self.answers[received.step, received.status] += 1

    def note_token(self) -> None:
        self.counts["tokens"] += 1

    def note_leak(self, leak: Leak) -> None:
        self.counts["leaks"] += 1
        self.leaks.append(leak)

    def open(self, guest: Guest) -> None:
        self.counts["guests"] += 1
        self._remember(self.guests, guest.guest_id, guest)

    def declare(self, upload: Upload) -> None:
        self.counts["uploads"] += 1
        self._remember(self.uploads, upload.attachment_id, upload)

    def withdraw(self, attachment_id: str) -> None:
        self.uploads.pop(attachment_id, None)
        self.stored.pop(attachment_id, None)

    def store(self, stored: StoredObject) -> None:
        """A second PUT to the same URL replaces the object, as in S3; `objects` has both."""
        self.counts["objects"] += 1
        self.counts["bytes"] += stored.size_bytes
        self._remember(self.stored, stored.attachment_id, stored)
        if not self._counts_only:
            self.objects.append(stored)

    def accept(self, message: Message) -> None:
        self.counts["messages"] += 1
        if not self._counts_only:
            self.messages.append(message)

    def messages_for(self, file_name: str) -> list[Message]:
        return [
            message
            for message in self.messages
            if any(attachment.file_name == file_name for attachment in message.attachments)
        ]

    def requests(self, step: Step) -> list[Received]:
        return [received for received in self.received if received.step is step]

    def _remember(self, kept: OrderedDict[str, _T], key: str, value: _T) -> None:
        kept[key] = value
        if self._counts_only and len(kept) > _OPEN_SESSIONS:
            kept.popitem(last=False)
