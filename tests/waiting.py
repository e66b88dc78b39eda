"""Waits for what a test has set going, and never longer than it may take."""

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 30.0


async def until(condition: Callable[[], object], what: str = "it is so", patience_s: float = PATIENCE_S) -> None:
    """Wait until a condition holds; the test fails when that takes too long."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:g} s in vain until {what}"
        await asyncio.sleep(0.005)
