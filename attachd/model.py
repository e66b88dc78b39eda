"""The nouns of attachd: ids, sightings, documents, the states of a delivery, receipts.

Everything here is a frozen value. Pure: no I/O, no clock, no event loop; whatever else imports from here, this module
imports nothing of attachd.

Names of files are `str` with surrogate escapes, as `os.fsdecode` gives them: the exact bytes on disk, not fit for
printing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NewType, TypeAlias
from uuid import UUID

DeliveryId = NewType("DeliveryId", str)
InboxName = NewType("InboxName", str)
GuestId = NewType("GuestId", str)
AttachmentId = NewType("AttachmentId", str)
ConversationId = NewType("ConversationId", str)


def delivery_id(now_ms: int, randomness: int) -> DeliveryId:
    """A new id that sorts by time: a UUID version 7 from milliseconds since 1970 and 74 random bits (RFC 9562, 5.7)."""
    high, low = (randomness >> 62) & 0xFFF, randomness & ((1 << 62) - 1)
    return DeliveryId(str(UUID(int=(now_ms & ((1 << 48) - 1)) << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low)))


class Step(StrEnum):
    """Where on its way a delivery is, or where an error arose."""

    CHECK = "check"
    """Local: open, read, look at type and size."""
    TOKEN = "token"  # noqa: S105  a step's name, not a secret
    SESSION = "session"
    """Open the guest session."""
    UPLOAD = "upload"
    """Ask for a place to put the file."""
    PUT = "put"
    """Bring the bytes there."""
    MESSAGE = "message"
    """Post the message that carries the attachment: from here on an agent sees it."""
    FILING = "filing"
    """Move the file to `sent/` or `failed/`."""


PLATFORM_STEPS = (Step.TOKEN, Step.SESSION, Step.UPLOAD, Step.PUT, Step.MESSAGE)
"""The steps at which the platform answers, in their order."""

CARRIES_THE_FILE = frozenset({Step.UPLOAD, Step.PUT, Step.MESSAGE})
"""Only these steps tell the platform something of the file, so only they can blame it."""


@dataclass(frozen=True, slots=True)
class Version:
    """Which content of which inode: equal on two looks means nothing was written, replaced or renamed in between."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look at a path. `name` is relative to the inbox; it has slashes only in a recursive inbox."""

    name: str
    version: Version


class ClaimResult(StrEnum):
    """What became of the try to claim a sighting."""

    CLAIMED = "claimed"
    CHANGED = "changed"
    """It is not the version that was sighted any more: let it settle again."""
    BUSY = "busy"
    """Somebody has it open for writing."""
    GONE = "gone"
    NOT_A_FILE = "not_a_file"
    """A link, a device, a FIFO, or a file with more than one hard link."""
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Skill:
    """A routing skill, as the platform names it, and its level."""

    id: str
    level: int = 1


@dataclass(frozen=True, slots=True)
class Routing:
    """Where conversations of an inbox go."""

    queue_id: str | None
    skills: tuple[Skill, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Document:
    """What the platform is told of a file: a name fit for it, a MIME type without parameters, the size in bytes."""

    file_name: str
    content_type: str
    size: int


@dataclass(frozen=True, slots=True)
class Upload:
    """A document the storage has accepted. `sha256` is the hex digest of the bytes that were sent."""

    guest: GuestId
    attachment: AttachmentId
    document: Document
    sha256: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """The platform's word that the message stands. `conversation` is None where the protocol does not tell it."""

    conversation: ConversationId | None
    message: str | None = None


class Reason(StrEnum):
    """The closed set of reasons why a file failed or waits. Stable: scripts and dashboards match on it."""

    # the file
    EMPTY = "empty"
    TOO_LARGE = "too_large"
    TYPE_NOT_ALLOWED = "type_not_allowed"
    REFUSED = "refused"
    ATTACHMENT_DROPPED = "attachment_dropped"
    UNREADABLE = "unreadable"
    CHANGED = "changed"
    CHANGED_AFTER_SEND = "changed_after_send"
    UNKNOWN_OUTCOME = "unknown_outcome"
    JOURNAL_LOST = "journal_lost"
    GAVE_UP = "gave_up"
    VANISHED = "vanished"
    """Somebody took the claimed file away."""
    # the inbox
    QUEUE_REFUSED = "queue_refused"
    MESSAGE_REFUSED = "message_refused"
    ATTACHMENTS_NOT_GRANTED = "attachments_not_granted"
    FOLDER_MISSING = "folder_missing"
    FOLDER_REPLACED = "folder_replaced"
    FOLDER_NOT_WRITABLE = "folder_not_writable"
    FOLDER_IN_USE = "folder_in_use"
    DISK_FULL = "disk_full"
    TOO_MANY_FAILURES = "too_many_failures"
    # whatever an operator paused
    PAUSED_BY_OPERATOR = "paused_by_operator"
    # the account
    CREDENTIALS_REFUSED = "credentials_refused"
    FORBIDDEN = "forbidden"
    DEPLOYMENT_REFUSED = "deployment_refused"
    TLS_FAILED = "tls_failed"
    NOT_THE_PLATFORM = "not_the_platform"
    """The answer was no answer of this API: a redirect, a page of HTML, a path that does not exist."""
    STORAGE_REFUSED = "storage_refused"
    RATE_LIMITED = "rate_limited"
    PLATFORM_FAILING = "platform_failing"
    # nobody
    UNREACHABLE = "unreachable"
    CONNECTION_LOST = "connection_lost"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server_error"
    URL_EXPIRED = "url_expired"
    NOT_READY = "not_ready"
    """The platform does not know the upload yet."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt or a delivery failed. `detail` is one line for people, without secrets."""

    reason: Reason
    detail: str
    step: Step
    http_status: int | None = None
    correlation_id: str | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """Ours, and nothing of it is known to the platform that would matter after a crash."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The bytes lie in the platform's storage; no agent sees anything yet."""

    upload: Upload


@dataclass(frozen=True, slots=True)
class Posting:
    """The message may be on its way. Found after a crash, its outcome is unknown.

    `posts` counts how often this message was given to the network, this time included; a repetition carries the same
    `text` word for word.
    """

    upload: Upload
    text: str
    posts: int


@dataclass(frozen=True, slots=True)
class Posted:
    """The platform has accepted the message: never post again, only the move is left.

    `posts` is how often it was given to the network: more than once means that an agent may see it twice.
    """

    upload: Upload
    receipt: Receipt
    posts: int = 1


@dataclass(frozen=True, slots=True)
class Sent:
    """Delivered and filed. `filed_as` is the name it got, relative to the inbox."""

    upload: Upload
    receipt: Receipt
    filed_as: str
    posts: int = 1


@dataclass(frozen=True, slots=True)
class Failed:
    """Given up and filed. `upload` is set when the platform may know, or knows, the document."""

    failure: Failure
    filed_as: str
    upload: Upload | None = None
    receipt: Receipt | None = None


DeliveryState: TypeAlias = Claimed | Uploaded | Posting | Posted | Sent | Failed


class StateName(StrEnum):
    """The states as the journal, the commands and the log name them."""

    CLAIMED = "claimed"
    UPLOADED = "uploaded"
    POSTING = "posting"
    POSTED = "posted"
    SENT = "sent"
    FAILED = "failed"


_STATE_NAMES: dict[type, StateName] = {
    Claimed: StateName.CLAIMED,
    Uploaded: StateName.UPLOADED,
    Posting: StateName.POSTING,
    Posted: StateName.POSTED,
    Sent: StateName.SENT,
    Failed: StateName.FAILED,
}


def state_name(state: DeliveryState) -> StateName:
    """The word for a state."""
    return _STATE_NAMES[type(state)]


@dataclass(frozen=True, slots=True)
class Delivery:
    """Bringing one claimed file to the platform.

    `tries` counts every attempt that was begun; `strikes` only those that failed by the file's own fault as far as
    anybody can tell. `last_failure` is what the latest attempt met. `next_try_at` is None when it may go at once.
    """

    id: DeliveryId
    inbox: InboxName
    name: str
    version: Version
    claimed_at: datetime
    state: DeliveryState = field(default_factory=Claimed)
    tries: int = 0
    strikes: int = 0
    next_try_at: datetime | None = None
    last_failure: Failure | None = None

    @property
    def finished(self) -> bool:
        """Filed, one way or the other: nothing is left to do."""
        return isinstance(self.state, Sent | Failed)


# --- what is told of a running or a resting attachd ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PauseStatus:
    """Why something is paused, in words; `retry_in_s` is None when that depends on something else."""

    reason: Reason
    detail: str
    retry_in_s: float | None
    paused_s: float


@dataclass(frozen=True, slots=True)
class InboxStatus:
    """One inbox at a glance; `ignored` counts what is left alone, by reason. None: nobody knows while nothing runs."""

    name: InboxName
    path: str
    pause: PauseStatus | None
    waiting: int
    under_way: int
    sent: int
    failed: int
    ignored: Mapping[str, int]
    oldest_waiting_s: float | None


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A claimed delivery: at which step it is, or None while it waits; `next_try_in_s` is 0 when it may go."""

    delivery: Delivery
    step: Step | None
    bytes_sent: int
    next_try_in_s: float | None


@dataclass(frozen=True, slots=True)
class Journey:
    """A delivery that ended lately, and how long it took: the seconds spent in each step of its last attempt."""

    delivery: Delivery
    ended_at: datetime
    took_s: float
    steps: tuple[tuple[Step, float], ...]


@dataclass(frozen=True, slots=True)
class Status:
    """Everything at a glance. `running` is False when it was read from a resting attachd's journal and folders."""

    running: bool
    version: str
    platform: PauseStatus | None
    inboxes: tuple[InboxStatus, ...]
    under_way: tuple[UnderWay, ...] = ()
    latest: tuple[Journey, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a file is and why. `place` is a stable word, `sentences` say it to a person, one thought each.

    Places: settling, waiting, ignored, paused, claimed, under_way, deferred, sent, failed, own_folder, missing.
    """

    path: str
    place: str
    sentences: tuple[str, ...]
    inbox: InboxName | None = None
    reason: str | None = None
    delivery: Delivery | None = None
    step: Step | None = None
    next_try_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Retried:
    """A failed file that went back into its inbox under `name`, or why it did not (`problem`)."""

    delivery: DeliveryId | None
    inbox: InboxName
    filed_as: str
    name: str | None
    problem: str | None = None
