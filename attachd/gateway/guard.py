"""When a request of the account may leave: the quota and the silence the platform asked for.

Every request of the account passes the one `Gate` immediately before it leaves. `Spacing` and `Window` are the
arithmetic and get the time as an argument; `Gate` does the waiting.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

Observer: TypeAlias = Callable[[float, str], None]
"""Told the length of a silence in seconds, from now on, and why; it must not wait."""

# A server that counts strictly allows N requests in any window of one second, wherever the window begins. So request
# N + 1 leaves no sooner than 1 + ARRIVAL_S after the first: not every request takes equally long to get there, least of
# all from a host whose cores are busy. That uses 98.5 % of the quota; our goal is 98 %.
# Within the second requests are spaced, so that nobody behind a burst waits for the rest of it. One may be early by
# EARLY requests after a rest, so that the calls of a file that comes alone need not wait for each other, and by as much
# as a timer fires late: without that each millisecond would cost a tenth of 100/s.
ARRIVAL_S = 0.015
EARLY = 3
LATE_S = 0.010
"""All three are ours."""

_SHORTEST_TIMER_S = 0.0001
"""Ours: below this a timer could fire in the same instant of the clock, and for nothing."""


class Window:
    """Lets at most `most` requests pass within any `seconds`, as soon as they come."""

    __slots__ = ("_passed", "_seconds")

    def __init__(self, most: int, seconds: float) -> None:
        self._seconds = seconds
        self._passed: deque[float] = deque(maxlen=most)

    def wait_s(self, now: float) -> float:
        """How long from `now` until the next request may pass; 0 means at once."""
        if len(self._passed) < (self._passed.maxlen or 0):
            return 0.0
        return max(0.0, self._passed[0] + self._seconds - now)

    def take(self, now: float) -> None:
        """A request passes at `now`."""
        self._passed.append(now)


class Spacing:
    """Spreads requests so that no window of one second sees more than `per_second` of them."""

    __slots__ = ("_due_at", "_early_s", "_interval_s", "_window", "taken")

    def __init__(self, per_second: float) -> None:
        self.taken = 0
        if per_second <= 0:
            raise ValueError("per_second must be positive")
        self._interval_s = (1 + ARRIVAL_S) / per_second
        self._early_s = EARLY * self._interval_s + LATE_S
        self._due_at = float("-inf")
        most = math.ceil(per_second)
        self._window = Window(most, max(1.0, most / per_second) + ARRIVAL_S)

    def wait_s(self, now: float) -> float:
        """How long from `now` until the next request may leave; 0 means at once."""
        return max(0.0, self._due_at - self._early_s - now, self._window.wait_s(now))

    def take(self, now: float) -> None:
        """A request leaves at `now`."""
        self.taken += 1
        self._due_at = max(self._due_at, now) + self._interval_s
        self._window.take(now)


class Gate:
    """Admits the requests of one account, in the order they came.

    `clock` is monotonic, in seconds. `jitter(low, high)` gives a number in between. `on_hold` hears of every silence
    that begins or grows, so that it can be kept over a restart.
    """

    def __init__(
        self,
        requests_per_second: float,
        *,
        clock: Callable[[], float],
        jitter: Callable[[float, float], float],
        on_hold: Observer | None = None,
    ) -> None:
        self._spacing = Spacing(requests_per_second)
        self._clock = clock
        self._jitter = jitter
        self._on_hold = on_hold
        self._open_at = float("-inf")
        self._counted: deque[asyncio.Future[None]] = deque()
        self._uncounted: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def admitted(self) -> int:
        """How many requests were let through under the quota so far."""
        return self._spacing.taken

    def held_for_s(self) -> float:
        """How long the silence still lasts; 0 when there is none."""
        return max(0.0, self._open_at - self._clock())

    def hold(self, seconds: float, detail: str) -> None:
        """Let nothing of the account leave for `seconds`, whoever waits already included.

        Several answers may ask for the same silence; the longest counts. Up to a tenth, or one second, is added at
        random and never taken away, so that several hosts of one account do not come back together.
        """
        now = self._clock()
        if now + seconds <= self._open_at:
            return
        silence_s = seconds + self._jitter(0.0, max(1.0, seconds * 0.1))
        self._open_at = max(self._open_at, now + silence_s)
        self._wake_later()
        if self._on_hold is not None:
            self._on_hold(silence_s, detail)

    async def admit(self, *, counted: bool = True) -> None:
        """Wait until the gate is open and, for a request that bears a token (`counted`), the quota has room.

        A cancelled caller leaves the queue. If its turn had come in that very moment, the turn is lost, which costs
        the quota one request and nobody else anything.
        """
        queue = self._counted if counted else self._uncounted
        now = self._clock()
        if now >= self._open_at:
            if not counted:
                return
            if not queue and self._spacing.wait_s(now) <= 0:
                self._spacing.take(now)
                return
        turn = self._queued(queue, first=False)
        while True:
            try:
                await turn
            except asyncio.CancelledError:
                with suppress(ValueError):
                    queue.remove(turn)
                raise
            if self._clock() >= self._open_at:
                return
            # A silence began between the turn and this line: back to the head of the queue.
            turn = self._queued(queue, first=True)

    def _queued(self, queue: deque[asyncio.Future[None]], *, first: bool) -> asyncio.Future[None]:
        turn = asyncio.get_running_loop().create_future()
        if first:
            queue.appendleft(turn)
        else:
            queue.append(turn)
        if self._timer is None:
            self._wake_later()
        return turn

    def _wake_later(self) -> None:
        """Set the one timer to the moment when the head of the queue may go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not (self._counted or self._uncounted):
            return
        now = self._clock()
        wait_s = max(0.0, self._open_at - now)
        if not self._uncounted:
            wait_s = max(wait_s, self._spacing.wait_s(now))
        self._timer = asyncio.get_running_loop().call_later(max(wait_s, _SHORTEST_TIMER_S), self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = self._clock()
        if now >= self._open_at:
            while self._uncounted:
                _grant(self._uncounted.popleft())
            while self._counted and self._spacing.wait_s(now) <= 0:
                # Somebody who gave up in this moment still stands here; he must not use up a request.
                if _grant(self._counted.popleft()):
                    self._spacing.take(now)
        self._wake_later()


def _grant(turn: asyncio.Future[None]) -> bool:
    if turn.done():
        return False
    turn.set_result(None)
    return True
