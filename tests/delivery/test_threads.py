"""Work for several deliveries at each hop to a thread."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from attachd.delivery.content import PIECE_BYTES
from attachd.delivery.filing import Filing
from attachd.delivery.threads import Batches, FileThreads


class Slow:
    """Acts when it is let, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        self.begun.release()
        assert self.let.acquire(timeout=10)
        return [ValueError(item) if item % 10 == 9 else item * 2 for item in items]

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=10)


async def test_an_item_that_comes_alone_goes_at_once() -> None:
    slow = Slow()
    slow.let.release()
    assert await Batches(slow).ask(1) == 2
    assert slow.batches == [[1]]


async def test_what_comes_meanwhile_is_the_next_batch_and_each_caller_gets_its_own() -> None:
    slow = Slow()
    batches = Batches(slow)
    first = asyncio.ensure_future(batches.ask(1))
    await slow.has_begun()
    later = [asyncio.ensure_future(batches.ask(item)) for item in (2, 9, 3)]
    slow.let.release(2)
    assert await first == 2
    told = await asyncio.gather(*later, return_exceptions=True)
    assert slow.batches == [[1], [2, 9, 3]]
    assert (told[0], told[2]) == (4, 6)
    assert isinstance(told[1], ValueError)


async def test_who_gave_up_before_the_batch_began_is_left_alone() -> None:
    slow = Slow()
    batches = Batches(slow)
    first = asyncio.ensure_future(batches.ask(1))
    await slow.has_begun()
    gone, stays = asyncio.ensure_future(batches.ask(2)), asyncio.ensure_future(batches.ask(3))
    await asyncio.sleep(0)
    gone.cancel()
    slow.let.release(2)
    assert (await first, await stays) == (2, 6)
    assert slow.batches == [[1], [3]]


async def test_after_a_caller_that_gave_up_alone_the_others_go_on() -> None:
    slow = Slow()
    batches = Batches(slow)
    first = asyncio.ensure_future(batches.ask(1))
    await slow.has_begun()
    gone = asyncio.ensure_future(batches.ask(2))
    await asyncio.sleep(0)
    gone.cancel()
    first.cancel()
    slow.let.release(2)
    assert await batches.ask(4) == 8
    assert slow.batches == [[1], [4]]


async def test_what_breaks_altogether_is_told_to_everybody() -> None:
    def broken(items: Sequence[int]) -> list[int | Exception]:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        await Batches(broken).ask(1)


async def test_a_large_file_keeps_no_small_one_waiting(filing: Filing) -> None:
    """To read 25 MiB from a slow share takes its time: that happens beside the batches."""
    threads = FileThreads(filing)
    begun, let = threading.Event(), threading.Event()

    def reads_long() -> str:
        begun.set()
        assert let.wait(10)
        return "large"

    large = asyncio.ensure_future(threads.run(reads_long, PIECE_BYTES + 1))
    assert await asyncio.to_thread(begun.wait, 10)
    assert await threads.run(lambda: "small", 1) == "small"
    let.set()
    assert await large == "large"
