"""What an earlier process left in `claimed/`, brought together with what the journal remembers of it.

Before the dispatcher takes new files of an inbox, at start and whenever the folder was away. The folder says where a
file is, the journal what the platform was told; neither is inferred from the other, and what fits to nothing is never
sent.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from datetime import datetime

from attachd.delivery.filing import Filing, Leftover
from attachd.delivery.lifecycle import Again, Bury, Redo, after_crash, changed_after_send, unknown_outcome
from attachd.delivery.pipeline import InboxPlan, Pipeline, Work
from attachd.delivery.texts import reason_text
from attachd.errors import AccountError, InboxError
from attachd.model import Delivery, DeliveryId, Failed, Failure, Posted, Posting, Reason, Sent, Step
from attachd.ports import Journal, JournalIdentity


async def recover(
    inbox: InboxPlan, journal: Journal, pipeline: Pipeline, *, known: Collection[DeliveryId], now: datetime
) -> AsyncIterator[Work]:
    """Settle what needs no network; gives each delivery as it then is, finished or to go on. `known` are in work
    already.

    Raises InboxError when the folder or the journal's disk is in trouble; it may be called again then.
    """
    filing = inbox.filing
    trusted = await asyncio.to_thread(_made_these_claims, journal.identity, filing)
    rows = {row.id: row for row in await journal.unfinished() if row.inbox == inbox.name and row.id not in known}
    try:
        for leftover in await asyncio.to_thread(lambda: list(filing.leftovers())):
            if leftover.delivery in known:
                continue
            if leftover.name is None:
                await asyncio.to_thread(filing.drop_claim, leftover.delivery)
                continue
            row = rows.pop(leftover.delivery, None) or await _row_of(leftover.delivery, journal)
            work = Work(_as_found(leftover, row, inbox, now), filing.identity())
            match after_crash(work.delivery, journal_trusted=trusted):
                case Again(delivery):
                    work.delivery = delivery
                case Redo():
                    work.delivery = replace(work.delivery, state=_posted(work.delivery))
                case Bury(failure):
                    await pipeline.bury(work, inbox, failure)
            yield work
        # Where the folder is none that this journal knows, what is not there may only be away, as an unmounted share
        # is.
        for row in rows.values() if trusted else ():
            done = await asyncio.to_thread(_without_file, row, inbox, now)
            await journal.record(done, now)
            yield Work(done, filing.identity())
    except AccountError as error:
        raise InboxError(error.reason, str(error), Step.FILING) from error
    # Only now: had it been signed first, a crash in between would make lost claims look like our own.
    await asyncio.to_thread(filing.sign_claims, journal.identity)


def _made_these_claims(journal: JournalIdentity, filing: Filing) -> bool:
    """Whether this is the journal that claimed what lies there.

    Each opening of a journal counts its generation up, so an older copy that was put back has a generation that was
    signed with already. Only what this process signed itself may bear its own.
    """
    signed = filing.journal_of_claims()
    if signed is None or signed.id != journal.id:
        return False
    return signed.generation < journal.generation or (signed == journal and filing.signed)


async def _row_of(delivery: DeliveryId, journal: Journal) -> Delivery | None:
    entry = await journal.find(delivery)
    return entry.delivery if entry else None


def _as_found(leftover: Leftover, row: Delivery | None, inbox: InboxPlan, now: datetime) -> Delivery:
    assert leftover.name is not None
    assert leftover.version is not None
    if row is None:
        return Delivery(leftover.delivery, inbox.name, leftover.name, leftover.version, claimed_at=now)
    return replace(row, inbox=inbox.name)  # it may have been renamed in the config


def _posted(delivery: Delivery) -> Posted:
    assert isinstance(delivery.state, Posted | Sent)
    return Posted(delivery.state.upload, delivery.state.receipt, delivery.state.posts)


def _without_file(row: Delivery, inbox: InboxPlan, now: datetime) -> Delivery:
    """A delivery whose file is not claimed any more: it was filed and that not recorded, or somebody took it away."""
    filed_as = inbox.filing.find_filed(row.name, row.version) or ""
    given_up = bool(filed_as) and not inbox.filing.was_sent(filed_as)
    if isinstance(row.state, Posted) and not given_up:
        return replace(
            row, state=Sent(row.state.upload, row.state.receipt, filed_as, row.state.posts), next_try_at=None
        )
    failure = _why(row, given_up=given_up)
    if given_up and inbox.filing.reason_beside(filed_as) is None:  # no room for it
        inbox.filing.explain_failure(filed_as, reason_text(row, failure, now))
    return replace(row, state=Failed(failure, filed_as), next_try_at=None, last_failure=failure)


def _why(row: Delivery, *, given_up: bool) -> Failure:
    """Why a delivery whose file is not claimed any more has failed; what was said last may be lost in a power cut."""
    if not given_up:
        return Failure(Reason.VANISHED, "the claimed file was gone when attachd started", Step.CHECK)
    match row.state:
        case Posted():
            return changed_after_send()
        case Posting() if row.last_failure is None or row.last_failure.reason is not Reason.UNKNOWN_OUTCOME:
            return unknown_outcome(row.state)
        case _:
            return row.last_failure or Failure(Reason.GAVE_UP, "why it was given up is not known any more", Step.CHECK)
