"""One attempt at one delivery, from the claimed file to the filed one, one recorded step after the other.

Between the dispatcher, which decides when a delivery goes and what an error means, and a gateway. The order is what
keeps files from being lost or sent twice: hash while uploading, hash again, record `Posting` durably, post, record
`Posted` durably, move. A cancellation, a kill and a power cut leave the same traces, and the same recovery reads them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import assert_never

from attachd.delivery.content import Content, reading_error
from attachd.delivery.filing import Filing, FolderIdentity, Sending
from attachd.delivery.health import CANARY
from attachd.delivery.lifecycle import Rules, changed_after_send, may_post_again, unknown_outcome
from attachd.delivery.texts import message_text, reason_text
from attachd.delivery.threads import FileThreads
from attachd.errors import AccountError, DeliveryError, TransientError, UnknownOutcome
from attachd.model import (
    CARRIES_THE_FILE,
    Claimed,
    Delivery,
    DeliveryId,
    Document,
    Failed,
    Failure,
    InboxName,
    Posted,
    Posting,
    Reason,
    Routing,
    Sent,
    Step,
    Upload,
    Uploaded,
)
from attachd.ports import CannotAsk, Found, GuestGateway, GuestSession, Journal, NotThere, ReadContent


@dataclass(frozen=True, slots=True)
class InboxPlan:
    """What the pipeline needs to know of an inbox."""

    name: InboxName
    routing: Routing
    message: str
    """A text with $name $inbox $size $received $id."""
    allow_types: tuple[str, ...]
    filing: Filing
    threads: FileThreads = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "threads", FileThreads(self.filing))


@dataclass(slots=True)
class Work:
    """A delivery under way or waiting: where it stands, and for those who watch, at which step and byte it is."""

    delivery: Delivery
    folder: FolderIdentity
    """The folder it was claimed into."""
    step: Step | None = None
    bytes_sent: int = 0
    entered: list[tuple[Step, float]] = field(default_factory=list)
    """The steps of the latest attempt, and when (monotonic seconds) each was entered."""
    remembered: bool = False
    """The journal has it as posted."""
    burial: Failure | None = None
    """Set once it is given up: only the move to `failed/` is left."""

    def enter(self, step: Step, at: float) -> None:
        """The attempt comes to a step."""
        self.step = step
        self.entered.append((step, at))

    def steps(self, ended: float) -> tuple[tuple[Step, float], ...]:
        """The steps of the latest attempt, and how many seconds each took, the last one until `ended`."""
        ends = [at for _, at in self.entered[1:]] + [ended] * bool(self.entered)
        return tuple((step, round(end - at, 6)) for (step, at), end in zip(self.entered, ends, strict=True))


class Pipeline:
    """Attempts deliveries. `passed` is told of each step that a delivery has behind it."""

    def __init__(
        self,
        journal: Journal,
        gateway: GuestGateway,
        rules: Rules,
        *,
        max_file_bytes: int,
        now: Callable[[], datetime],
        clock: Callable[[], float],
        passed: Callable[[DeliveryId, InboxName, Step], None],
    ) -> None:
        self._journal = journal
        self._gateway = gateway
        self._rules = rules
        self._max_file_bytes = max_file_bytes
        self._now = now
        self._clock = clock
        self._tell_passed = passed

    def go_by(self, rules: Rules) -> None:
        """Go by these rules from now on."""
        self._rules = rules

    async def attempt(self, work: Work, inbox: InboxPlan) -> None:
        """Bring the delivery as far as it goes: on return it is Sent, or Failed.

        Raises one of the four families; `work.delivery` then says how far it came, and is in Posting only when a
        message of it may stand.
        """
        work.entered.clear()
        try:
            match work.delivery.state:
                case Claimed():
                    await self._send(work, inbox)
                case Uploaded(upload):
                    await self._send_uploaded(work, inbox, upload)
                case Posting() as posting:
                    await self._resolve(work, inbox, posting)
                case Posted():
                    await self._file_sent(work, inbox)
                case Sent() | Failed():
                    pass
                case _:
                    assert_never(work.delivery.state)
        except FileNotFoundError:
            await self._close_vanished(work, inbox)
        finally:
            work.step = None

    async def sing(self, inbox: InboxPlan, troubled: Step) -> None:
        """Be the canary: try the steps up to the troubled one as a guest of this inbox, with nothing of any file.

        No agent sees it. Raises one of the four families.
        """
        async with self._gateway.session(CANARY, inbox.routing) as session:
            self._tell_passed(CANARY, inbox.name, Step.SESSION)
            if troubled in CARRIES_THE_FILE:
                await session.upload(_SONG_SHEET, _song)
                self._tell_passed(CANARY, inbox.name, Step.UPLOAD)
                self._tell_passed(CANARY, inbox.name, Step.PUT)

    async def bury(self, work: Work, inbox: InboxPlan, failure: Failure) -> None:
        """Give the delivery up: the file goes to `failed/` with the reason beside it. Raises InboxError."""
        self._enter(work, Step.FILING)
        delivery = replace(work.delivery, last_failure=failure)
        await self._journal.record(delivery, self._now())  # a crash from here on finds the reason
        try:
            filed_as = await asyncio.to_thread(
                inbox.filing.to_failed, delivery.id, delivery.name, reason_text(delivery, failure, self._now())
            )
        except FileNotFoundError:
            self._demand_own_folder(work, inbox)
            filed_as = await asyncio.to_thread(inbox.filing.moved_before, delivery.id, delivery.name, delivery.version)
            if filed_as:
                text = reason_text(delivery, failure, self._now())
                await asyncio.to_thread(inbox.filing.explain_failure, filed_as, text)
        await self._close(work, _failed(delivery, failure, filed_as))

    # --- on the way ----------------------------------------------------------------------------------------------

    async def _send(self, work: Work, inbox: InboxPlan) -> None:
        work.bytes_sent = 0
        self._enter(work, Step.CHECK)
        async with self._opened(work, inbox) as content:
            self._enter(work, Step.SESSION)
            async with self._gateway.session(work.delivery.id, inbox.routing) as session:
                self._passed(work, Step.SESSION)
                self._enter(work, Step.UPLOAD)
                attachment = await session.upload(content.document, self._counted(work, content.read))
                self._passed(work, Step.UPLOAD)
                self._passed(work, Step.PUT)
                upload = Upload(session.guest, attachment, content.document, content.sha256)
                work.delivery = replace(work.delivery, state=Uploaded(upload))
                await self._post(work, inbox, session, content, upload)
        await self._file_sent(work, inbox)

    async def _send_uploaded(self, work: Work, inbox: InboxPlan, upload: Upload) -> None:
        self._enter(work, Step.CHECK)
        async with (
            self._opened(work, inbox) as content,
            self._gateway.session(work.delivery.id, inbox.routing, resume=upload.guest) as session,
        ):
            await self._post(work, inbox, session, content, upload)
        await self._file_sent(work, inbox)

    async def _resolve(self, work: Work, inbox: InboxPlan, posting: Posting) -> None:
        """A message of this delivery may stand: ask, and where nobody can be asked do what the operator chose."""
        self._enter(work, Step.MESSAGE)
        match await self._gateway.find(posting.upload):
            case Found(receipt):
                work.delivery = replace(work.delivery, state=Posted(posting.upload, receipt, posting.posts))
                self._passed(work, Step.MESSAGE)
                await self._file_sent(work, inbox)
            case NotThere():
                await self._post_again(work, inbox, replace(posting, posts=0))  # none of them was accepted
            case CannotAsk() if may_post_again(posting, self._rules):
                await self._post_again(work, inbox, posting)
            case CannotAsk():
                await self.bury(work, inbox, unknown_outcome(posting))

    async def _post_again(self, work: Work, inbox: InboxPlan, posting: Posting) -> None:
        async with self._gateway.session(work.delivery.id, inbox.routing, resume=posting.upload.guest) as session:
            await self._give_to_network(work, session, replace(posting, posts=posting.posts + 1))
        await self._file_sent(work, inbox)

    async def _post(
        self, work: Work, inbox: InboxPlan, session: GuestSession, content: Content, upload: Upload
    ) -> None:
        await inbox.threads.run(partial(content.demand, upload.sha256), content.document.size)
        text = message_text(inbox.message, inbox.name, work.delivery, upload.document)
        await self._give_to_network(work, session, Posting(upload, text, posts=1))

    async def _give_to_network(self, work: Work, session: GuestSession, posting: Posting) -> None:
        self._enter(work, Step.MESSAGE)
        before, upload = work.delivery.state, posting.upload
        await self._record(replace(work.delivery, state=posting))
        work.delivery = replace(work.delivery, state=posting)
        try:
            receipt = await session.post(upload.attachment, upload.document, posting.text)
        except UnknownOutcome:
            raise
        except DeliveryError:
            work.delivery = replace(work.delivery, state=before)  # this time certainly nothing was posted
            raise
        work.delivery = replace(work.delivery, state=Posted(upload, receipt, posting.posts))
        self._passed(work, Step.MESSAGE)
        await self._remember_posted(work)

    async def _file_sent(self, work: Work, inbox: InboxPlan) -> None:
        """Remember that the platform has the message, then move the file. Only this is ever done again."""
        self._enter(work, Step.FILING)
        delivery = work.delivery
        assert isinstance(delivery.state, Posted)
        await self._remember_posted(work)
        upload, receipt, posts = delivery.state.upload, delivery.state.receipt, delivery.state.posts
        try:
            sending = Sending(delivery.id, delivery.name, upload.sha256)
            filed_as = await inbox.threads.to_sent(sending, upload.document.size)
            if filed_as is None:
                done = await self._file_changed(delivery, inbox)
            else:
                done = replace(delivery, state=Sent(upload, receipt, filed_as, posts), next_try_at=None)
        except FileNotFoundError:
            self._demand_own_folder(work, inbox)
            filed_as = await asyncio.to_thread(inbox.filing.moved_before, delivery.id, delivery.name, delivery.version)
            if filed_as and not inbox.filing.was_sent(filed_as):
                failure = changed_after_send()
                text = reason_text(delivery, failure, self._now())
                await asyncio.to_thread(inbox.filing.explain_failure, filed_as, text)
                done = _failed(delivery, failure, filed_as)
            else:
                done = replace(delivery, state=Sent(upload, receipt, filed_as, posts), next_try_at=None)
        except OSError as error:
            raise reading_error(error, Step.FILING) from error
        await self._close(work, done)

    async def _file_changed(self, delivery: Delivery, inbox: InboxPlan) -> Delivery:
        failure = changed_after_send()
        text = reason_text(delivery, failure, self._now())
        filed_as = await asyncio.to_thread(inbox.filing.to_failed, delivery.id, delivery.name, text)
        return _failed(delivery, failure, filed_as)

    def _demand_own_folder(self, work: Work, inbox: InboxPlan) -> None:
        """A claimed file is not there: raise TransientError unless its folder is, for then the file may be away with
        it.
        """
        if inbox.filing.identity() != work.folder:
            detail = f"it was claimed in a folder that is no longer at {inbox.filing.path}; it waits for its return"
            raise TransientError(Reason.FOLDER_REPLACED, detail, Step.CHECK)

    async def _close_vanished(self, work: Work, inbox: InboxPlan) -> None:
        self._demand_own_folder(work, inbox)
        failure = Failure(Reason.VANISHED, "somebody took the claimed file away before it was sent", Step.CHECK)
        await asyncio.to_thread(inbox.filing.drop_claim, work.delivery.id)
        await self._close(work, _failed(work.delivery, failure, filed_as=""))

    async def _close(self, work: Work, done: Delivery) -> None:
        await self._journal.record(done, self._now())
        work.delivery = done
        self._passed(work, Step.FILING)

    async def _remember_posted(self, work: Work) -> None:
        if not work.remembered:
            await self._record(work.delivery)
            work.remembered = True

    def _enter(self, work: Work, step: Step) -> None:
        work.enter(step, self._clock())

    def _counted(self, work: Work, read: ReadContent) -> ReadContent:
        async def counting() -> AsyncIterator[bytes]:
            self._enter(work, Step.PUT)
            work.bytes_sent = 0
            async for piece in read():
                yield piece
                work.bytes_sent += len(piece)

        return counting

    def _passed(self, work: Work, step: Step) -> None:
        self._tell_passed(work.delivery.id, work.delivery.inbox, step)

    async def _record(self, delivery: Delivery) -> None:
        """Record what must be on disk before the next step; if there is no room for it, nothing is posted at all."""
        try:
            await self._journal.record(delivery, self._now())
        except AccountError as error:
            raise AccountError(error.reason, str(error), Step.MESSAGE) from error

    @contextlib.asynccontextmanager
    async def _opened(self, work: Work, inbox: InboxPlan) -> AsyncIterator[Content]:
        content = await inbox.threads.run(partial(self._open, work.delivery, inbox))
        try:
            yield content
        finally:
            content.close()

    def _open(self, delivery: Delivery, inbox: InboxPlan) -> Content:
        try:
            content = Content(inbox.filing.open_claimed(delivery.id, delivery.name), delivery.name)
            try:
                content.look(max_bytes=self._max_file_bytes, allow_types=inbox.allow_types)
            except BaseException:
                content.close()
                raise
        except FileNotFoundError:
            raise
        except OSError as error:
            raise reading_error(error, Step.CHECK) from error
        return content


def _failed(delivery: Delivery, failure: Failure, filed_as: str) -> Delivery:
    upload = delivery.state.upload if isinstance(delivery.state, Uploaded | Posting | Posted) else None
    receipt = delivery.state.receipt if isinstance(delivery.state, Posted) else None
    state = Failed(failure, filed_as, upload, receipt)
    return replace(delivery, state=state, next_try_at=None, last_failure=failure)


_SONG = b"attachd tries whether uploads work\n"
_SONG_SHEET = Document("attachd-canary.txt", "text/plain", len(_SONG))


async def _song() -> AsyncIterator[bytes]:
    yield _SONG
