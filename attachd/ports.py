"""The seams behind which a second implementation stands: the guest API, the journal, and what can be told of it all.

`GuestGateway` speaks of a file's way and never of HTTP; `Journal` speaks of whole state changes, takes the time as an
argument and shows no transaction and no row. `Overview` answers people's questions: from a running daemon, through its
admin server, or from the journal and the folders at rest.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

from attachd.model import (
    AttachmentId,
    ClaimResult,
    Delivery,
    DeliveryId,
    Document,
    Explanation,
    GuestId,
    InboxName,
    Receipt,
    Retried,
    Routing,
    Sighting,
    StateName,
    Status,
    Upload,
)

Pick: TypeAlias = Callable[[int], Sequence[Sighting]]
"""Names the files to claim next, at most as many as asked for."""

Offer: TypeAlias = Callable[[InboxName, Pick], Awaitable[Sequence[tuple[Sighting, ClaimResult]]]]
"""How an inbox gets its files claimed: waits for its turn and a free slot, then picks, then claims.

Raises InboxError when the folder does not let itself be claimed from; nothing was taken then.
"""

ReadContent: TypeAlias = Callable[[], AsyncIterator[bytes]]
"""Starts reading a document from its first byte, in pieces of at most 128 KiB; a second call starts anew."""


class GuestSession(Protocol):
    """One guest of the platform, able to bring one document. Lives as long as the `session()` block it came from."""

    @property
    def guest(self) -> GuestId:
        """The id that lets a later process continue as the same guest."""

    async def upload(self, document: Document, read: ReadContent) -> AttachmentId:
        """Ask for a place, bring the bytes there, return when the platform says they have arrived.

        Raises FileError (refused for its size, type or name), AccountError, TransientError; what `read` raises
        passes through.
        """

    async def post(self, attachment: AttachmentId, document: Document, text: str) -> Receipt:
        """Post the message that carries the attachment; a receipt means the answer named the attachment.

        Raises UnknownOutcome when the message may have been accepted; every other error means it certainly was not.
        """


class GuestGateway(Protocol):
    """A platform that takes documents from guests."""

    def session(
        self, delivery: DeliveryId, routing: Routing, resume: GuestId | None = None
    ) -> AbstractAsyncContextManager[GuestSession]:
        """Open a guest session, or go on as the guest `resume`, for as long as the block lasts.

        Entering raises InboxError (routing or capability refused), AccountError, TransientError.
        """

    async def find(self, upload: Upload) -> "Found | NotThere | CannotAsk":
        """Ask whether a message with this attachment stands. Raises AccountError, TransientError."""


@dataclass(frozen=True, slots=True)
class Found:
    """The message stands."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class NotThere:
    """The platform knows the guest and shows no such message (yet)."""


@dataclass(frozen=True, slots=True)
class CannotAsk:
    """The protocol, or an expired session, leaves no way to ask."""


@dataclass(frozen=True, slots=True)
class JournalIdentity:
    """Which journal this is, and how often it was opened.

    It tells the journal that made a claim from one that was lost, or restored from an older copy.
    """

    id: str
    generation: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A delivery as the journal knows it, and when that was written."""

    delivery: Delivery
    updated_at: datetime


class Journal(Protocol):
    """What the platform was told. Every method is one whole transaction.

    A record whose state is Posting or Posted has reached the disk when the call returns; the others may be lost in a
    power cut, which only makes a delivery start over. After a cancelled call read the journal: its write may have
    happened. Raises JournalError when it cannot remember any more, AccountError (disk_full) when there is no space
    left and nothing was written.
    """

    @property
    def identity(self) -> JournalIdentity:
        """Who it is; the generation is already on disk."""

    async def admit(self, deliveries: Sequence[Delivery], now: datetime) -> None:
        """Begin deliveries that were just claimed."""

    async def record(self, delivery: Delivery, now: datetime) -> None:
        """Keep the delivery as it now is, state, tries and next try included; admits it if it is not known."""

    async def unfinished(self) -> list[Delivery]:
        """All deliveries that are neither sent nor failed, oldest claim first."""

    async def find(self, delivery: DeliveryId) -> Entry | None:
        """One delivery."""

    async def newest(
        self,
        *,
        state: StateName | None = None,
        inbox: InboxName | None = None,
        name: str | None = None,
        limit: int = 100,
    ) -> list[Entry]:
        """Deliveries, the one that changed last first; `name` is the exact name a file had in its inbox."""

    async def finished_counts(self) -> dict[InboxName, dict[StateName, int]]:
        """How many deliveries of each inbox were ever sent and failed."""

    async def hold_until(self, until: datetime | None, detail: str, now: datetime) -> None:
        """Remember that the platform asked for silence until then (None: no longer), so that a restart keeps to it."""

    async def held_until(self) -> tuple[datetime, str] | None:
        """What `hold_until` said last, if that is not None."""


class Overview(Protocol):
    """Where everything is and why, and the way back for failed files."""

    async def status(self) -> Status:
        """Everything at a glance."""

    async def deliveries(
        self, *, state: StateName | None = None, inbox: InboxName | None = None, limit: int = 100
    ) -> Sequence[Entry]:
        """Deliveries, the one that changed last first."""

    async def explain(self, path: str) -> Explanation | None:
        """Where the file at an absolute path, or with a delivery id, is and why; None when nothing is known of it."""

    async def retry(self, what: str | None, *, inbox: InboxName | None = None) -> Sequence[Retried]:
        """Put failed files back into their inbox: by delivery id, by their name or path in `failed/`, or all (None)."""


class Controls(Protocol):
    """What an operator may do to a running daemon besides asking; inbox None means everything."""

    async def pause(self, inbox: InboxName | None) -> None:
        """Claim and begin nothing more until `resume`; what is under way may end. Forgotten at a restart."""

    async def resume(self, inbox: InboxName | None) -> None:
        """Go on, also where a pause of attachd's own waits for its next probe: it probes at once."""
