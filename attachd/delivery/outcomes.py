"""The mass-failure guard: an inbox must not empty itself into `failed/`. Pure; the time (monotonic seconds) is an
argument.

Beside the dispatcher, which asks before it gives a file up for something the platform said. One bad file is the file's
fault; many in a row are a wrong setting, on our side or on the platform's.
"""

from collections import deque

from attachd.model import InboxName

_LAST = 20
_FAILURES = 3
_SHARE = 0.2
_WITHIN_S = 600.0


class Outcomes:
    """How the latest deliveries of each inbox ended."""

    def __init__(self) -> None:
        self._latest: dict[InboxName, deque[tuple[float, bool]]] = {}

    def ended(self, inbox: InboxName, now: float, *, refused: bool) -> None:
        """A delivery ended: sent, or given up; `refused` when that was for something the platform said."""
        self._latest.setdefault(inbox, deque(maxlen=_LAST)).append((now, refused))

    def too_many_failures(self, inbox: InboxName, now: float) -> bool:
        """Whether one more refused file would be more than 3, and more than a fifth of the last 20, within 10
        minutes.
        """
        latest = list(self._latest.get(inbox, ()))[-(_LAST - 1) :]
        recent = [refused for ended_at, refused in latest if now - ended_at <= _WITHIN_S]
        failures = recent.count(True) + 1
        return failures > _FAILURES and failures > _SHARE * (len(recent) + 1)
