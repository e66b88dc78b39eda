"""What is due later, and can be called off as a whole."""

import asyncio
from collections.abc import Callable


class Timers:
    def __init__(self) -> None:
        self._waiting: set[asyncio.TimerHandle] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        def due() -> None:
            self._waiting.discard(timer)
            action()

        timer = asyncio.get_running_loop().call_later(delay_s, due)
        self._waiting.add(timer)

    def cancel(self) -> None:
        for timer in self._waiting:
            timer.cancel()
        self._waiting.clear()
