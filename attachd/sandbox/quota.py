"""How many requests may pass in any stretch of time: a second for a client credential, a minute for a connection.

A sliding window, the strictest reading of "100 requests a second": fixed windows would let 200 requests pass around a
boundary. A refused request takes no place.
"""

from collections import defaultdict, deque


class Window:
    """The requests of one sender within the last `length_s` seconds."""

    __slots__ = ("_admitted", "_length_s")

    def __init__(self, length_s: float) -> None:
        self._length_s = length_s
        self._admitted: deque[float] = deque()

    def wait_s(self, now_s: float, limit: int) -> float:
        """0.0 when the request is admitted, else in how many seconds the next place is free (monotonic time).

        A `limit` of 0 admits everything.
        """
        admitted = self._admitted
        while admitted and admitted[0] <= now_s - self._length_s:
            admitted.popleft()
        if not limit:
            return 0.0
        if len(admitted) < limit:
            admitted.append(now_s)
            return 0.0
        return admitted[-limit] + self._length_s - now_s


class Quota:
    """A window for each sender."""

    def __init__(self, length_s: float = 1.0) -> None:
        self._windows: defaultdict[str, Window] = defaultdict(lambda: Window(length_s))

    def wait_s(self, sender: str, now_s: float, limit: int) -> float:
        return self._windows[sender].wait_s(now_s, limit)

    def clear(self) -> None:
        self._windows.clear()
