"""The quota of a client credential: so many token-bearing requests in any one second.

A sliding window, the strictest reading of "100 requests a second": fixed windows would let 200 requests pass around a
boundary. A refused request takes no place.
"""

from collections import defaultdict, deque

_WINDOW_S = 1.0


class Quota:
    def __init__(self) -> None:
        self._admitted: defaultdict[str, deque[float]] = defaultdict(deque)

    def wait_s(self, client_id: str, now_s: float, limit: int) -> float:
        """0.0 when the request is admitted, else in how many seconds the next place is free (monotonic time)."""
        admitted = self._admitted[client_id]
        while admitted and admitted[0] <= now_s - _WINDOW_S:
            admitted.popleft()
        if len(admitted) < limit:
            admitted.append(now_s)
            return 0.0
        return admitted[-limit] + _WINDOW_S - now_s

    def clear(self) -> None:
        self._admitted.clear()
