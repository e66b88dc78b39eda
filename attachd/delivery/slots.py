"""How many files may be claimed at once, and whose turn it is.

Between the inboxes, which wait here before they pick, and the dispatcher, which gives a slot back when a file is filed.
The backlog waits in its folder, where people see it, and never in memory.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from attachd.model import InboxName


@dataclass(frozen=True, slots=True)
class _Turn:
    inbox: InboxName
    granted: asyncio.Future[int]


class Slots:
    """`capacity` claims over all inboxes, handed out in the order the inboxes asked.

    An inbox that holds a `lot` of them, enough to be busy with, gets more only by the lot: the disk takes many files in
    hardly more time than one. While an inbox holds none, one is kept free for it: a flooded inbox, or one that cannot
    deliver, starves nobody. `allowance` tells how many an inbox may take just now for reasons of its own; `wake` says
    that this has changed.
    """

    def __init__(self, capacity: int, lot: int, allowance: Callable[[InboxName], int]) -> None:
        self._capacity = capacity
        self._lot = lot
        self._allowance = allowance
        self._held: Counter[InboxName] = Counter()
        self._inboxes: Collection[InboxName] = ()
        self._turns: list[_Turn] = []

    def serve(self, inboxes: Collection[InboxName]) -> None:
        """From now on these inboxes share the slots."""
        self._inboxes = inboxes
        self.wake()

    def resize(self, capacity: int, lot: int) -> None:
        """From now on so many claims; what is held beyond that is given back in its time."""
        self._capacity = capacity
        self._lot = lot
        self.wake()

    async def take(self, inbox: InboxName, most: int) -> int:
        """Wait for this inbox's turn; returns how many slots it now holds more, 1 to `most`."""
        turn = _Turn(inbox, asyncio.get_running_loop().create_future())
        self._turns.append(turn)
        self.wake()
        try:
            granted = await turn.granted
        except asyncio.CancelledError:
            if turn in self._turns:
                self._turns.remove(turn)
            elif not turn.granted.cancelled():
                self.give_back(inbox, turn.granted.result())
            raise
        if granted > most:
            self.give_back(inbox, granted - most)
        return min(granted, most)

    def hold(self, inbox: InboxName, number: int) -> None:
        """Count files that were found claimed already, even beyond the capacity."""
        self._held[inbox] += number

    def give_back(self, inbox: InboxName, number: int) -> None:
        """That many files of the inbox are not claimed any more."""
        self._held[inbox] -= number
        self.wake()

    def wake(self) -> None:
        """Grant what can be granted now."""
        for turn in list(self._turns):
            free = self._free_for(turn.inbox)
            if free < self._lot <= self._held[turn.inbox]:
                continue
            granted = min(free, self._allowance(turn.inbox))
            if granted > 0 and not turn.granted.done():
                self._held[turn.inbox] += granted
                self._turns.remove(turn)
                turn.granted.set_result(granted)

    def _free_for(self, inbox: InboxName) -> int:
        free = self._capacity - self._held.total()
        kept = sum(1 for other in self._inboxes if other != inbox and not self._held[other])
        return max(free - kept, min(free, 1) if not self._held[inbox] else 0)
