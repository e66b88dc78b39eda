"""When a request of the account may leave: the quota and the silence the platform asked for.

Every request of the account passes the one `Gate` immediately before it leaves. `Spacing` and `Window` are the
arithmetic and get the time as an argument; `Gate` does the waiting.
"""

import asyncio
import math
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

_T = TypeVar("_T")
Observer: TypeAlias = Callable[[float, str], None]
"""Told the length of a silence in seconds, from now on, and why; it must not wait."""

# A server that counts strictly allows N requests in any window of one second, wherever the window begins, and it counts
# them as they arrive. What we know is when a request left and when its answer came: if that took unusually long, the
# request may have arrived so much later, as after a moment in which a host stood still. So each request counts here
# until one second after it can have arrived, and RESERVE_S; and one more leaves only while fewer than N count.
# Within the second requests are spaced, so that nobody behind a burst waits for the rest of it. One may be early by
# EARLY requests after a rest, so that the calls of a file that comes alone need not wait for each other, and by as much
# as a timer fires late: without that each millisecond would cost a tenth of 100/s.
RESERVE_S = 0.010
"""For what is usual on the way. It leaves 99 % of the quota; our goal is 98 %."""
LATE_AT_MOST_S = 1.0
"""More than this a request is not taken to have been on its way."""
UNANSWERED_S = 0.1
"""How late a request is taken to be while its answer is not there: it matters where answers take a second."""
USUAL_DEVIATIONS = 3
USUAL_OF_LAST = 256
"""What is usual: the mean of about so many answers of a kind, and so many mean deviations more, in the manner of
RFC 6298."""
SMALLEST_STEP_S = 0.001
"""By this and one more deviation what is usual may seem to change with one answer."""
EARLY = 3
LATE_S = 0.010
"""All eight are ours."""

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


@dataclass(slots=True, eq=False)
class Departure:
    """A request that left `at`, and counts `until`, both monotonic."""

    at: float
    until: float


class Usual:
    """How long the answers to one kind of request take."""

    __slots__ = ("_answers", "_deviation_s", "_mean_s")

    def __init__(self) -> None:
        self._answers = 0
        self._mean_s = 0.0
        self._deviation_s = 0.0

    def excess_s(self, took_s: float) -> float:
        """By how much an answer took longer than is usual; what is, is learnt from it as well."""
        self._answers = min(self._answers + 1, USUAL_OF_LAST)
        if self._answers == 1:
            self._mean_s = took_s
        off_s = took_s - self._mean_s
        excess_s = max(0.0, off_s - USUAL_DEVIATIONS * self._deviation_s)
        if self._answers == USUAL_OF_LAST:
            # What is far off is learnt step by step, or the bunch after one bad moment would make itself the usual.
            off_s = min(off_s, (USUAL_DEVIATIONS + 1) * self._deviation_s + SMALLEST_STEP_S)
        self._mean_s += off_s / self._answers
        self._deviation_s += (abs(off_s) - self._deviation_s) / self._answers
        return excess_s


class Spacing:
    """Spreads requests so that the platform sees no more than `per_second` of them in any second."""

    __slots__ = ("_counting", "_due_at", "_early_s", "_interval_s", "_most", "_usual", "_window_s", "taken")

    def __init__(self, per_second: float) -> None:
        self.taken = 0
        if per_second <= 0:
            raise ValueError("per_second must be positive")
        self._interval_s = (1 + RESERVE_S) / per_second
        self._early_s = EARLY * self._interval_s + LATE_S
        self._due_at = float("-inf")
        self._most = math.ceil(per_second)
        self._window_s = max(1.0, self._most / per_second) + RESERVE_S
        self._counting: list[float] = []  # until when each request counts, in order
        self._usual: defaultdict[str, Usual] = defaultdict(Usual)

    def wait_s(self, now: float) -> float:
        """How long from `now` until the next request may leave; 0 means at once."""
        del self._counting[: bisect_right(self._counting, now)]
        wait_s = self._due_at - self._early_s - now
        if (too_many := len(self._counting) - self._most) >= 0:
            wait_s = max(wait_s, self._counting[too_many] - now)
        return max(0.0, wait_s)

    def take(self, now: float) -> Departure:
        """A request leaves at `now`."""
        self.taken += 1
        self._due_at = max(self._due_at, now) + self._interval_s
        departure = Departure(now, now + self._window_s + UNANSWERED_S)
        insort(self._counting, departure.until)
        return departure

    def answered(self, departure: Departure, kind: str, now: float) -> None:
        """The answer to a request is there; requests of one `kind` take the platform about the same time."""
        late_s = min(LATE_AT_MOST_S, self._usual[kind].excess_s(now - departure.at))
        place = bisect_left(self._counting, departure.until)
        if self._counting[place : place + 1] == [departure.until]:
            del self._counting[place]
        departure.until = departure.at + self._window_s + late_s
        insort(self._counting, departure.until)


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
        self._counted: deque[asyncio.Future[Departure]] = deque()
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

    async def admit(self) -> Departure:
        """Wait until the gate is open and the quota has room for a request that bears a token; to be told to
        `answered`.

        A cancelled caller leaves the queue. If its turn had come in that very moment, the turn is lost, which costs
        the quota one request and nobody else anything.
        """
        now = self._clock()
        if now >= self._open_at and not self._counted and self._spacing.wait_s(now) <= 0:
            return self._spacing.take(now)
        departure = await self._turn(self._counted, first=False)
        while self._clock() < self._open_at:  # a silence began between the turn and this line
            departure = await self._turn(self._counted, first=True)
        return departure

    async def admit_uncounted(self) -> None:
        """Wait until the gate is open, for a request that bears no token of the account."""
        while self._clock() < self._open_at:
            await self._turn(self._uncounted, first=False)

    def answered(self, departure: Departure, kind: str) -> None:
        """The answer to an admitted request is there, of whatever kind the requests are that take about as long."""
        self._spacing.answered(departure, kind, self._clock())

    async def _turn(self, queue: deque[asyncio.Future[_T]], *, first: bool) -> _T:
        turn: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        if first:
            queue.appendleft(turn)
        else:
            queue.append(turn)
        if self._timer is None:
            self._wake_later()
        try:
            return await turn
        except asyncio.CancelledError:
            with suppress(ValueError):
                queue.remove(turn)
            raise

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
                if not (turn := self._uncounted.popleft()).done():
                    turn.set_result(None)
            while self._counted and self._spacing.wait_s(now) <= 0:
                # Somebody who gave up in this moment still stands here; he must not use up a request.
                if not (counted := self._counted.popleft()).done():
                    counted.set_result(self._spacing.take(now))
        self._wake_later()
