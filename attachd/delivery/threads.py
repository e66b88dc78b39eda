"""Work on files for several deliveries at each hop to a thread.

Between the deliveries, which wait for the disk one by one, and what the disk does better for several at once: a hop
there and back costs more than most of what is done, and a folder is synced once for all that were moved into it.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from attachd.delivery.content import PIECE_BYTES
from attachd.delivery.filing import Filing, Sending

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 64
"""Ours: items in a batch at most, so that the first of them does not wait for all that came later."""


class Batches(Generic[Item, Result]):
    """Has `act` work on items in a thread, one batch at a time; what comes meanwhile is the next batch.

    Nobody waits for company: an item that comes alone goes at once. `act` blocks, and gives for each item in order its
    result, or the exception its caller gets.
    """

    def __init__(self, act: Callable[[Sequence[Item]], Sequence[Result | Exception]]) -> None:
        self._act = act
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._busy = False

    async def ask(self, item: Item) -> Result:
        """The item's result. Cancelled before its batch began, the item is left alone; after that it is worked on."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if not self._busy:
            self._begin()
        return await future

    def _begin(self) -> None:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and not batch:
            batch = [(item, future) for item, future in self._waiting[:_MOST] if not future.done()]
            del self._waiting[:_MOST]
        if not batch:
            return
        self._busy = True
        work = asyncio.get_running_loop().run_in_executor(None, self._act, [item for item, _ in batch])
        work.add_done_callback(partial(self._end, [future for _, future in batch]))

    def _end(
        self, futures: Sequence[asyncio.Future[Result]], work: "asyncio.Future[Sequence[Result | Exception]]"
    ) -> None:
        self._busy = False
        broken = work.exception()
        answers = work.result() if broken is None else [broken] * len(futures)
        for future, answer in zip(futures, answers, strict=True):
            if future.done():
                continue  # its caller was cancelled
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        if self._waiting:
            self._begin()


class FileThreads:
    """The blocking work on one inbox's claimed files: on small ones together, on a large one by itself."""

    def __init__(self, filing: Filing) -> None:
        self._filing = filing
        self._calls: Batches[Callable[[], Any], Any] = Batches(_all)
        self._sends: Batches[Sending, str | None] = Batches(filing.to_sent)

    async def run(self, call: Callable[[], T], size: int = 0) -> T:
        """What the call returns, which reads so many bytes; raises what it raises."""
        if size > PIECE_BYTES:
            return await asyncio.to_thread(call)
        result: T = await self._calls.ask(call)
        return result

    async def to_sent(self, sending: Sending, size: int) -> str | None:
        """`Filing.to_sent` for one file of so many bytes; raises what is given there as its answer."""
        if size > PIECE_BYTES:
            [answer] = await asyncio.to_thread(self._filing.to_sent, [sending])
            if isinstance(answer, Exception):
                raise answer
            return answer
        return await self._sends.ask(sending)


def _all(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    return [_outcome(call) for call in calls]


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001  its caller gets it
        return error
