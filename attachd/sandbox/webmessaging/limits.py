"""The rates a client must keep; who exceeds one hears how long to wait, and the frame was not processed."""

import math

from attachd.sandbox.clock import Clock
from attachd.sandbox.quota import Window
from attachd.sandbox.settings import SandboxSettings
from attachd.sandbox.webmessaging.frames import TOO_MANY_CLASS, Declined


class ConnectionLimits:
    """What one connection may send."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._requests = Window(60.0)
        self._echoes = Window(60.0)

    def count_request(self, settings: SandboxSettings) -> None:
        too_many(self._requests, settings.requests_per_minute, settings, self._clock, "Request")

    def count_echo(self, settings: SandboxSettings) -> None:
        too_many(self._echoes, settings.echoes_per_minute, settings, self._clock, "Echo")


def too_many(window: Window, limit: int, settings: SandboxSettings, clock: Clock, what: str) -> None:
    """Count one request. Raises Declined when the window has no place for it."""
    wait_s = window.wait_s(clock.monotonic_s(), limit)
    if wait_s:
        raise Declined(
            settings.too_many_code,
            f"{what} rate too high.",
            error_class=TOO_MANY_CLASS,
            retry_after_s=max(1, math.ceil(wait_s)),
        )
