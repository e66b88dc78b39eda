"""A daemon as the admin server sees it, told by a test what to say."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from attachd.model import (
    AttachmentId,
    Claimed,
    ConversationId,
    Delivery,
    DeliveryId,
    Document,
    Explanation,
    Failed,
    Failure,
    GuestId,
    InboxName,
    InboxStatus,
    Journey,
    PauseStatus,
    Reason,
    Receipt,
    Retried,
    Sent,
    StateName,
    Status,
    Step,
    UnderWay,
    Upload,
    Version,
    delivery_id,
    state_name,
)
from attachd.ports import Entry

CLAIMS = InboxName("claims")
NOW = datetime.now(UTC)
_SPLIT = ((Step.CHECK, 0.02), (Step.SESSION, 0.16), (Step.UPLOAD, 0.12), (Step.PUT, 0.45), (Step.MESSAGE, 0.2),
          (Step.FILING, 0.05))  # fmt: skip


def inbox(name: str = "claims", **given: object) -> InboxStatus:
    """An inbox where nothing is the matter."""
    still = InboxStatus(InboxName(name), f"/srv/attachd/{name}", None, 0, 0, 0, 0, {}, None)
    return replace(still, **given)  # type: ignore[arg-type]


def pause(
    reason: Reason = Reason.UNREACHABLE, detail: str = "api.example.org: no answer", **given: object
) -> PauseStatus:
    """A pause that probes in 40 seconds."""
    return replace(PauseStatus(reason, detail, 40.0, 95.0), **given)  # type: ignore[arg-type]


def delivery(number: int, name: str, size: int = 200_000, in_inbox: str = "claims") -> Delivery:
    """A claimed delivery; its id tells its number."""
    version = Version(1, number, size, 1_700_000_000_123_456_789, 1_700_000_000_123_456_790)
    claimed = NOW - timedelta(minutes=5)
    return Delivery(delivery_id(1_790_000_000_000, number), InboxName(in_inbox), name, version, claimed, Claimed(), 1)


def sent(begun: Delivery) -> Delivery:
    """The same, delivered."""
    document = Document(begun.name, "application/pdf", begun.version.size)
    upload = Upload(GuestId("g-1"), AttachmentId("a-1"), document, "ab" * 32)
    return replace(begun, state=Sent(upload, Receipt(ConversationId("c-1"), "m-1"), f"sent/{begun.name}"))


def failed(begun: Delivery, reason: Reason, detail: str, step: Step = Step.UPLOAD) -> Delivery:
    """The same, given up."""
    failure = Failure(reason, detail, step, 400 if step is Step.UPLOAD else None)
    return replace(begun, state=Failed(failure, f"failed/{begun.name}"), strikes=1, last_failure=failure)


def journey(ended: Delivery, ago_s: float = 30, took_s: float = 0.4) -> Journey:
    """How it went."""
    steps = tuple((step, took_s * share) for step, share in _SPLIT)
    if isinstance(ended.state, Failed):
        steps = steps[:3]
    return Journey(ended, NOW - timedelta(seconds=ago_s), took_s, steps)


class Scripted:
    """Overview and Controls in one; what was asked for is in `asked`."""

    def __init__(self) -> None:
        self.told = Status(True, "1.2.3", None, (inbox(),))
        self.entries: list[Entry] = []
        self.explanations: dict[str, Explanation] = {}
        self.retried: list[Retried] = []
        self.asked: list[tuple[str, object, object]] = []
        self.looks = 0
        self.error: Exception | None = None

    async def status(self) -> Status:
        self.looks += 1
        if self.error:
            raise self.error
        return self.told

    async def deliveries(
        self, *, state: StateName | None = None, inbox: InboxName | None = None, limit: int = 100
    ) -> Sequence[Entry]:
        matching = [
            entry
            for entry in self.entries
            if (state is None or state_name(entry.delivery.state) is state) and inbox in (None, entry.delivery.inbox)
        ]
        return matching[:limit]

    async def explain(self, path: str) -> Explanation | None:
        self.asked.append(("explain", path, None))
        return self.explanations.get(path)

    async def retry(self, what: str | None, *, inbox: InboxName | None = None) -> Sequence[Retried]:
        self.asked.append(("retry", what, inbox))
        return [one for one in self.retried if what in (None, one.delivery)]

    async def pause(self, inbox: InboxName | None) -> None:
        self.asked.append(("pause", inbox, None))

    async def resume(self, inbox: InboxName | None) -> None:
        self.asked.append(("resume", inbox, None))

    def add_failure(self, one: Delivery, *, ago_s: float = 60) -> DeliveryId:
        """A failed file that goes back when it is asked for."""
        self.entries.append(Entry(one, NOW - timedelta(seconds=ago_s)))
        self.retried.append(Retried(one.id, one.inbox, f"failed/{one.name}", one.name))
        first = self.told.inboxes[0]
        self.told = replace(self.told, inboxes=(replace(first, failed=first.failed + 1), *self.told.inboxes[1:]))
        return one.id


def under_way(begun: Delivery, step: Step | None, bytes_sent: int, next_try_in_s: float | None = None) -> UnderWay:
    """A delivery in the middle of it."""
    return UnderWay(begun, step, bytes_sent, next_try_in_s)
