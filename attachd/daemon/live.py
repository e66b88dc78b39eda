"""`ports.Overview` and `ports.Controls` over the parts of a running daemon: for its admin server.

Reads what the parts have at hand; only counts, lists and single deliveries come from the journal. Nothing here keeps
anything: what is told is how it is at that moment.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from attachd import __version__, config
from attachd.daemon.telling import IGNORED_BECAUSE, Place, Teller, because, duration, paused_because
from attachd.delivery.dispatcher import Dispatcher
from attachd.delivery.filing import Filing
from attachd.delivery.health import Pause
from attachd.delivery.pauses import Pauses
from attachd.delivery.pipeline import Work
from attachd.delivery.texts import readable_size
from attachd.errors import ADVICE
from attachd.intake.inbox import InboxIntake, NotThere, OwnFolder, Paused, Unseen
from attachd.intake.settle import Claiming, LeftAlone, Ready, Settling
from attachd.model import (
    Delivery,
    Explanation,
    InboxName,
    InboxStatus,
    PauseStatus,
    Retried,
    StateName,
    Status,
    Step,
    UnderWay,
)
from attachd.ports import Entry, Journal

_DOING: Mapping[Step, str] = {
    Step.CHECK: "its type and size are looked at",
    Step.TOKEN: "a token is asked for",
    Step.SESSION: "a guest session is opened",
    Step.UPLOAD: "a place to put it is asked for",
    Step.PUT: "its bytes are brought to the platform",
    Step.MESSAGE: "the message that carries it is posted",
    Step.FILING: "it is moved to where it belongs",
}


@dataclass(frozen=True, slots=True)
class LiveInbox:
    """An inbox of the running daemon."""

    settings: config.Inbox
    intake: InboxIntake
    filing: Filing


class LiveOverview:
    """Where everything is, while it is under way. `inboxes` gives them as they are now, for a reload changes them."""

    def __init__(
        self,
        inboxes: Callable[[], Sequence[LiveInbox]],
        journal: Journal,
        dispatcher: Dispatcher,
        pauses: Pauses,
        *,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        self._inboxes = inboxes
        self._journal = journal
        self._dispatcher = dispatcher
        self._pauses = pauses
        self._now = now
        self._clock = clock
        self._teller = Teller(journal, self._places, self)

    def _places(self) -> list[Place]:
        return [Place(inbox.settings, inbox.filing) for inbox in self._inboxes()]

    # --- ports.Overview -------------------------------------------------------------------------------------------

    async def status(self) -> Status:
        """Everything at a glance."""
        counts = await self._journal.finished_counts()
        works = self._works()
        claimed = Counter(work.delivery.inbox for work in works)
        account = self._pauses.account()
        return Status(
            running=True,
            version=__version__,
            platform=self._told(account) if account else None,
            inboxes=tuple(self._inbox(inbox, counts, claimed[inbox.settings.name]) for inbox in self._inboxes()),
            under_way=tuple(self._under_way(work) for work in works),
            latest=tuple(self._dispatcher.latest()),
        )

    async def deliveries(
        self, *, state: StateName | None = None, inbox: InboxName | None = None, limit: int = 100
    ) -> Sequence[Entry]:
        """Deliveries, the one that changed last first."""
        return await self._journal.newest(state=state, inbox=inbox, limit=limit)

    async def explain(self, path: str) -> Explanation | None:
        """Where the file at an absolute path, or with a delivery id, is and why; None when nothing is known of it."""
        return await self._teller.explain(path)

    async def retry(self, what: str | None, *, inbox: InboxName | None = None) -> Sequence[Retried]:
        """Put failed files back into their inbox: by delivery id, by their name or path in `failed/`, or all (None)."""
        return await self._teller.retry(what, inbox)

    def not_ready(self) -> list[str]:
        """Why files would not go at this moment, in words; empty when they would."""
        pauses = {"everything": self._pauses.account()}
        pauses |= {f"inbox {inbox.settings.name}": self._pauses.inbox(inbox.settings.name) for inbox in self._inboxes()}
        return [f"{what} is paused: {pause.failure.detail}" for what, pause in pauses.items() if pause]

    # --- ports.Controls -------------------------------------------------------------------------------------------

    async def pause(self, inbox: InboxName | None) -> None:
        """Claim and begin nothing more until `resume`; what is under way may end. Forgotten at a restart."""
        self._pauses.pause(inbox)

    async def resume(self, inbox: InboxName | None) -> None:
        """Go on, also where a pause of attachd's own waits for its next probe: it probes at once."""
        self._pauses.resume(inbox)

    # --- at a glance ----------------------------------------------------------------------------------------------

    def _works(self) -> list[Work]:
        """Everything that is claimed: what is attempted first, then what waits, in the order it came."""
        return [*_in_order(self._dispatcher.under_way()), *_in_order(self._dispatcher.waiting())]

    def _inbox(
        self, inbox: LiveInbox, counts: Mapping[InboxName, Mapping[StateName, int]], claimed: int
    ) -> InboxStatus:
        name = inbox.settings.name
        ended = counts.get(name, {})
        pause = self._pauses.inbox(name)
        oldest_s = inbox.intake.oldest_waiting_s(self._clock())
        return InboxStatus(
            name=name,
            path=str(inbox.settings.path),
            pause=self._told(pause) if pause else None,
            waiting=inbox.intake.waiting,
            under_way=claimed,
            sent=ended.get(StateName.SENT, 0),
            failed=ended.get(StateName.FAILED, 0),
            ignored={reason.value: number for reason, number in inbox.intake.ignored.items()},
            oldest_waiting_s=None if oldest_s is None else round(oldest_s, 3),
        )

    def _told(self, pause: Pause) -> PauseStatus:
        retry_in_s = self._pauses.probe_in_s(pause)
        return PauseStatus(
            pause.failure.reason,
            pause.failure.detail,
            None if retry_in_s is None else round(retry_in_s, 3),
            round(max(0.0, self._clock() - pause.since), 3),
        )

    def _under_way(self, work: Work) -> UnderWay:
        return UnderWay(work.delivery, work.step, work.bytes_sent, self._next_try_in_s(work.delivery))

    def _next_try_in_s(self, delivery: Delivery) -> float | None:
        """When it goes at the earliest; None when that depends on something else."""
        own_s = 0.0
        if delivery.next_try_at is not None:
            own_s = max(0.0, (delivery.next_try_at - self._now()).total_seconds())
        pauses = [self._pauses.account(), self._pauses.inbox(delivery.inbox)]
        waits = [self._pauses.probe_in_s(pause) for pause in pauses if pause]
        if None in waits:
            return None
        local = delivery.last_failure is not None and delivery.last_failure.step is Step.CHECK
        if waits and not local:
            own_s = 0.0  # what waits for the platform goes when that works, whatever its own time is
        return round(max([own_s, *(wait_s for wait_s in waits if wait_s is not None)]), 3)

    # --- one file -------------------------------------------------------------------------------------------------

    async def lying(self, place: Place, name: str) -> Explanation | None:
        """What there is to say of what lies in the inbox under this name; None when nothing does."""
        inbox = next((inbox for inbox in self._inboxes() if inbox.settings.name == place.name), None)
        if inbox is None:
            return None
        path = place.path_of(name)
        found = await inbox.intake.explain(name, self._clock())
        paused = self._paused(place.name)
        match found:
            case NotThere() | OwnFolder():
                return None
            case Paused(error):
                sentences = [f"Nothing can be said of it now: {error}.", f"What now: {ADVICE[error.reason]}"]
                return Explanation(path, "paused", tuple(sentences), place.name, error.reason.value)
            case LeftAlone(reason):
                because_ = f"It is left alone: {IGNORED_BECAUSE[reason]}."
                return Explanation(path, "ignored", (because_,), place.name, reason.value)
            case Settling(quiet_s, needed_s, restless_s):
                told = f"It is taken once it has been quiet for {duration(needed_s)}; so far it has been"
                sentences = [f"{told} for {duration(min(max(0.0, quiet_s), needed_s))}."]
                if restless_s > 0:
                    sentences.append(f"It is still written to or held open, since {duration(restless_s)}.")
                return Explanation(path, "settling", (*sentences, *paused[1]), place.name, next_try_in_s=None)
            case Claiming():
                return Explanation(path, "claimed", ("It is being claimed at this moment.",), place.name)
            case Ready(for_s):
                complete = f"It is complete since {duration(for_s)}"
            case Unseen(table_full):
                why = ", for more files wait than are looked at one by one" if table_full else ""
                complete = f"It was not looked at yet{why}"
            case _:
                assert_never(found)
        if paused[0] is not None:
            return Explanation(path, "paused", (f"{complete}.", *paused[1]), place.name, paused[0].reason.value)
        others = max(0, inbox.intake.waiting - 1)
        claimed = len(self._works())
        waits = f"{complete}, and waits for its turn: {_files(claimed)} claimed before it"
        beside = f"{_files(others)} waiting in this inbox beside it, the oldest of all goes first"
        return Explanation(path, "waiting", (f"{waits}, {beside}.",), place.name)

    def _paused(self, inbox: InboxName) -> tuple[PauseStatus | None, list[str]]:
        for what, pause in (("Everything", self._pauses.account()), (f"The inbox {inbox}", self._pauses.inbox(inbox))):
            if pause is not None:
                told = self._told(pause)
                return told, paused_because(what, told)
        return None, []

    def unfinished(self, place: Place | None, delivery: Delivery) -> Explanation | None:
        """What there is to say of a delivery that is claimed and not filed; None when nobody is at it."""
        path = place.path_of(delivery.name) if place else delivery.name
        inbox = delivery.inbox
        for attempted in self._dispatcher.under_way():
            if attempted.delivery.id == delivery.id:
                return _attempted(path, attempted)
        works = self._works()
        work = next((work for work in works if work.delivery.id == delivery.id), None)
        if work is None:
            return None
        delivery = work.delivery
        next_try_in_s = self._next_try_in_s(delivery)
        sentences, reason = [], None
        if failure := delivery.last_failure:
            sentences.append(f"Attempt {delivery.tries} failed: {because(failure)}")
            reason = failure.reason.value
        paused, because_paused = self._paused(inbox)
        if paused is not None:
            waits = ("It is claimed and waits.", *sentences, *because_paused)
            return Explanation(path, "paused", waits, inbox, paused.reason.value, delivery, next_try_in_s=next_try_in_s)
        if next_try_in_s:
            sentences.append(f"The next try is in {duration(next_try_in_s)}.")
            return Explanation(path, "deferred", tuple(sentences), inbox, reason, delivery, next_try_in_s=next_try_in_s)
        before = [other.delivery.id for other in works].index(delivery.id)
        sentences.append(f"It is claimed and waits for its turn, with {_files(before)} before it.")
        return Explanation(path, "claimed", tuple(sentences), inbox, reason, delivery, next_try_in_s=0.0)


def _attempted(path: str, work: Work) -> Explanation:
    delivery, step = work.delivery, work.step
    doing = _DOING[step] if step else "it begins"
    sentences = [f"It is under way, attempt {delivery.tries}: {doing}."]
    if step is Step.PUT:
        size = delivery.version.size
        sentences.append(f"{readable_size(work.bytes_sent)} of {readable_size(size)} are there.")
    return Explanation(path, "under_way", tuple(sentences), delivery.inbox, None, delivery, step)


def _in_order(works: Iterable[Work]) -> list[Work]:
    return sorted(works, key=lambda work: work.delivery.id)


def _files(number: int) -> str:
    return f"{number} file{'s' if number != 1 else ''}"
