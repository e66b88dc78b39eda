"""Slots are shared fairly, never more than there are, and never lost."""

import asyncio
import random
from collections import Counter
from contextlib import suppress

import pytest

from attachd.delivery.slots import Slots
from attachd.model import InboxName

A, B, C = InboxName("a"), InboxName("b"), InboxName("c")


def slots_for(capacity: int, *inboxes: InboxName, lot: int = 1, allowance: dict[InboxName, int] | None = None) -> Slots:
    slots = Slots(capacity, lot, lambda inbox: (allowance or {}).get(inbox, 1 << 30))
    slots.serve(inboxes)
    return slots


async def soon(slots: Slots, inbox: InboxName, most: int = 1 << 20) -> int:
    """Take what is to be had now; 0 when that is nothing."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            return await slots.take(inbox, most)
    return 0


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_inbox_gets_no_more_than_it_asks_for() -> None:
    """The rest stays for others."""
    slots = slots_for(8, A)
    assert await slots.take(A, 3) == 3
    assert await slots.take(A, 100) == 5


async def test_one_slot_is_kept_for_every_inbox_without_any() -> None:
    """A flooded inbox takes what it can: the next one still begins at once."""
    slots = slots_for(8, A, B, C)
    assert await slots.take(A, 100) == 6
    assert await slots.take(B, 100) == 1
    assert await slots.take(C, 100) == 1


async def test_a_busy_inbox_takes_by_the_lot_and_one_with_little_at_once() -> None:
    """Sixteen files are claimed in hardly more time than one; but nobody with little to do is kept waiting for that."""
    slots = slots_for(64, A, lot=16)
    assert await slots.take(A, 16) == 16
    for held in (32, 48, 64):
        assert await slots.take(A, 16) == 16, held
    waits = asyncio.create_task(slots.take(A, 16))
    slots.give_back(A, 15)
    await settled()
    assert not waits.done()
    slots.serve([A, B])
    slots.give_back(A, 1)
    assert await soon(slots, B) == 16
    slots.give_back(B, 15)
    assert await soon(slots, B, 3) == 3, "it holds one"
    slots.give_back(A, 16)
    assert await waits == 16


async def test_more_inboxes_than_slots_take_turns() -> None:
    """Where not even one can be kept for each, those come first that have none."""
    slots = slots_for(2, *(InboxName(str(number)) for number in range(5)))
    assert await slots.take(InboxName("0"), 9) == 1
    assert await slots.take(InboxName("1"), 9) == 1
    third = asyncio.create_task(slots.take(InboxName("2"), 9))
    again = asyncio.create_task(slots.take(InboxName("0"), 9))
    await settled()
    slots.give_back(InboxName("0"), 1)
    assert await third == 1
    assert not again.done()
    again.cancel()


async def test_who_asked_first_is_served_first() -> None:
    """However often the flooded inbox asks again, the other one's turn comes."""
    slots = slots_for(2, A, B)
    order: list[InboxName] = []

    async def work(inbox: InboxName) -> None:
        while len(order) < 60:
            await slots.take(inbox, 1)
            order.append(inbox)
            await settled()
            slots.give_back(inbox, 1)

    async with asyncio.timeout(10):
        await asyncio.gather(*(work(inbox) for inbox in (A, A, A, A, B)))
    assert order.count(B) >= 12


async def test_a_cancelled_wait_leaves_the_turn_to_others() -> None:
    """Before a grant, and in the moment after it."""
    slots = slots_for(2, A)
    assert await slots.take(A, 2) == 2
    for moment in ("before", "after"):
        waiting = asyncio.create_task(slots.take(A, 2))
        await settled()
        if moment == "before":
            waiting.cancel()
        slots.give_back(A, 2)
        if moment == "after":
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await soon(slots, A) == 2


async def test_an_inbox_that_may_not_claim_waits_and_blocks_nobody() -> None:
    """A paused inbox is allowed none; when that has changed it is served."""
    allowance = {A: 0, B: 5}
    slots = slots_for(8, A, B, allowance=allowance)
    waiting = asyncio.create_task(slots.take(A, 9))
    assert await slots.take(B, 9) == 5
    assert not waiting.done()
    allowance[A] = 1
    slots.wake()
    assert await waiting == 1


async def test_files_found_claimed_count_even_beyond_the_capacity() -> None:
    """After a restart with a smaller capacity nothing is claimed until there is room again."""
    slots = slots_for(4, A, B)
    slots.hold(A, 6)
    assert await soon(slots, B) == 0
    slots.give_back(A, 2)
    assert await soon(slots, B) == 0
    slots.give_back(A, 1)
    assert await soon(slots, B) == 1


async def test_no_slot_is_ever_lost_or_made_up() -> None:
    """Many inboxes take, fail, cancel and give back at random: never more than the capacity, in the end all free."""
    chance = random.Random(7)
    inboxes = [InboxName(str(number)) for number in range(5)]
    slots = slots_for(16, *inboxes)
    held: Counter[InboxName] = Counter()
    taken: Counter[InboxName] = Counter()

    async def work(inbox: InboxName) -> None:
        for _ in range(100):
            try:
                async with asyncio.timeout(chance.choice([0, 0.001, 5])):
                    number = await slots.take(inbox, chance.randrange(1, 20))
            except TimeoutError:
                continue
            held[inbox] += number
            taken[inbox] += number
            assert held.total() <= 16
            await asyncio.sleep(0)
            held[inbox] -= number
            slots.give_back(inbox, number)

    async with asyncio.timeout(20):
        await asyncio.gather(*(work(inbox) for inbox in inboxes))
    assert min(taken[inbox] for inbox in inboxes) > 0
    slots.serve([A])
    assert await soon(slots, A) == 16
