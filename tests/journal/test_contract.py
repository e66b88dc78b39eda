"""What every journal keeps to."""

import asyncio
from dataclasses import replace
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attachd.journal.rows import to_entry, to_row
from attachd.journal.sqlite import SqliteJournal
from attachd.model import Delivery, DeliveryId, DeliveryState, InboxName, StateName
from attachd.ports import Entry, Journal

from .conftest import OpenJournal
from .samples import (
    CLAIMED,
    FAILED,
    NOW,
    POSTED,
    POSTING,
    SENT,
    STATES,
    UPLOADED,
    after,
    become,
    deliveries,
    delivery,
)

CLAIMS = InboxName("claims")


async def ids(journal: Journal, **wanted: object) -> list[str]:
    return [entry.delivery.id for entry in await journal.newest(**wanted)]  # type: ignore[arg-type]


async def test_what_was_recorded_is_found(journal: Journal) -> None:
    """A delivery comes back as it was given, with the time of its last change."""
    await journal.admit([delivery(1)], NOW)
    await journal.record(delivery(1, POSTING), after(1))
    assert await journal.find(DeliveryId("d000001")) == Entry(delivery(1, POSTING), after(1))
    assert await journal.find(DeliveryId("d000002")) is None


@pytest.mark.parametrize("state", STATES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_nothing_is_lost_on_the_way(state: str, data: st.DataObject) -> None:
    """Any name, text and time of any state survives the journal exactly."""
    some = data.draw(deliveries(STATES[state]))
    assert to_entry(to_row(some, NOW)) == Entry(some, NOW)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(deliveries(st.one_of(*STATES.values())), min_size=1, max_size=8, unique_by=lambda d: d.id))
def test_nothing_is_lost_on_disk(batch: list[Delivery], tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is read after the journal was closed and opened again is what was written, for all states at once."""
    folder = tmp_path_factory.mktemp("state")

    async def there_and_back() -> None:
        async with SqliteJournal.open(folder, NOW, lambda: str(uuid4())) as journal:
            await journal.admit(batch, NOW)
        async with SqliteJournal.open(folder, NOW, lambda: str(uuid4())) as journal:
            for one in batch:
                assert await journal.find(one.id) == Entry(one, NOW)
                assert one.id in [entry.delivery.id for entry in await journal.newest(name=one.name, inbox=one.inbox)]

    asyncio.run(there_and_back())


async def test_unfinished_are_those_not_filed_oldest_claim_first(journal: Journal) -> None:
    """Sent and failed deliveries are done with; the others come in the order of their claims."""
    late, early = delivery(1, POSTED, claimed=9), delivery(2, UPLOADED, claimed=3)
    await journal.admit([late, early, delivery(3, SENT), delivery(4, FAILED)], NOW)
    assert await journal.unfinished() == [early, late]


async def test_newest_first_by_any_mixture_of_state_inbox_and_name(journal: Journal) -> None:
    """The filters mean the same for deliveries under way and finished ones."""
    states: list[DeliveryState] = [CLAIMED, POSTING, SENT, FAILED]
    kept = [
        delivery(n, states[n % 4], inbox=("claims", "fax")[n % 3 == 0], name=("a", "b\udcff")[n % 5 == 0])
        for n in range(48)
    ]
    for n, one in enumerate(kept):
        await journal.record(one, after(n))
    for state in (None, *StateName):
        for inbox in (None, CLAIMS, InboxName("fax"), InboxName("none")):
            for name in (None, "a", "b\udcff"):
                expected = [
                    one.id
                    for n, one in reversed(list(enumerate(kept)))
                    if state in (None, [StateName.CLAIMED, StateName.POSTING, StateName.SENT, StateName.FAILED][n % 4])
                    and inbox in (None, one.inbox)
                    and name in (None, one.name)
                ]
                assert await ids(journal, state=state, inbox=inbox, name=name) == expected
                assert await ids(journal, state=state, inbox=inbox, name=name, limit=2) == expected[:2]


async def test_counts_tell_what_was_ever_finished(journal: Journal) -> None:
    """Each outcome counts once however often it is recorded; a second outcome of a delivery counts again."""
    one = delivery(1)
    for state in (FAILED, FAILED, CLAIMED, SENT, SENT):
        await journal.record(become(one, state), NOW)
    await journal.record(delivery(2, SENT, inbox="fax"), NOW)
    assert await journal.finished_counts() == {
        "claims": {StateName.FAILED: 1, StateName.SENT: 1},
        "fax": {StateName.SENT: 1},
    }
    assert len(await journal.newest()) == 2


async def test_silence_the_platform_asked_for_is_remembered(open_journal: OpenJournal) -> None:
    """A hold outlives a restart and can be lifted."""
    async with open_journal() as journal:
        assert await journal.held_until() is None
        await journal.hold_until(after(60), "asked \ud800 for it", NOW)
    async with open_journal() as journal:
        assert await journal.held_until() == (after(60), "asked \ud800 for it")
        await journal.hold_until(None, "", NOW)
        assert await journal.held_until() is None


async def test_the_generation_counts_openings(open_journal: OpenJournal) -> None:
    """The id stays, the generation grows by one each time."""
    async with open_journal() as journal:
        first = journal.identity
    async with open_journal() as journal:
        assert (journal.identity.id, journal.identity.generation) == (first.id, first.generation + 1)


async def test_fifty_recorders_at_once(journal: Journal) -> None:
    """Each of many concurrent callers gets its own answer and finds what it wrote."""

    async def one(number: int) -> None:
        for state in (CLAIMED, UPLOADED, POSTING, POSTED, SENT):
            await journal.record(delivery(number, state), NOW)
            found = await journal.find(DeliveryId(f"d{number:06}"))
            assert found is not None
            assert found.delivery.state == state

    async with asyncio.TaskGroup() as tasks:
        for number in range(50):
            tasks.create_task(one(number))
    assert (await journal.finished_counts())[CLAIMS] == {StateName.SENT: 50}


async def test_a_cancelled_caller_disturbs_nobody_and_can_read_what_became_of_its_record(journal: Journal) -> None:
    """After a cancelled call a read tells the truth: nothing is written behind its back later."""
    calls = [asyncio.create_task(journal.record(delivery(n, POSTING), NOW)) for n in range(40)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    seen = {n: await journal.find(DeliveryId(f"d{n:06}")) for n in range(0, 40, 2)}
    assert await asyncio.gather(*calls[1::2]) == [None] * 20
    assert {n: await journal.find(DeliveryId(f"d{n:06}")) for n in range(0, 40, 2)} == seen


async def test_one_failing_call_fails_alone(journal: Journal) -> None:
    """A delivery that cannot be stored takes none of those with it that share its commit."""
    good = [journal.record(delivery(n), NOW) for n in range(5)]
    bad = journal.admit([delivery(7), replace(delivery(8), tries=2**70)], NOW)
    answers = await asyncio.gather(*good[:2], bad, *good[2:], return_exceptions=True)
    assert [type(answer) for answer in answers if answer is not None] == [OverflowError]
    assert sorted(await ids(journal)) == [f"d{n:06}" for n in range(5)]
