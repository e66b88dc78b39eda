"""Tells systemd how the daemon is: ready, reloading, stopping, alive. Silent where no systemd listens.

Speaks the notification protocol itself (sd_notify(3): datagrams of VARIABLE=value lines to $NOTIFY_SOCKET), which is
less than a dependency would be. Knows nothing of attachd.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

_TIMEOUT_S = 0.2
"""Ours: systemd reads at once, or is in such trouble that waiting longer would only stop the event loop."""


class Notifier:
    """The line to systemd. A message that cannot be delivered is dropped: nobody is left to tell."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._address = _address(env.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        self.watchdog_interval_s = _watchdog_interval_s(env)
        """How often to call `watchdog`, half of what systemd allows; None when it does not watch this process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def listening(self) -> bool:
        """Whether there is a systemd to tell."""
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is finished."""
        self._send("READY=1", _status(status))

    def reloading(self) -> None:
        """The config is being read again; `ready` must follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> None:
        """Shutdown has begun."""
        self._send("STOPPING=1", _status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(text))

    def watchdog(self) -> None:
        """Still alive; call it from the work that must not hang, every `watchdog_interval_s`."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Hang up; whatever is said afterwards opens the line again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        message = "\n".join(line for line in lines if line).encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.settimeout(_TIMEOUT_S)
            self._socket.sendto(message, self._address)


def _address(name: str) -> str | None:
    if name.startswith("@"):
        return "\0" + name[1:]  # an abstract socket
    return name if name.startswith("/") else None


def _status(text: str) -> str:
    # A line break would start another variable.
    return "STATUS=" + " ".join(text.split()) if text else ""


def _watchdog_interval_s(env: Mapping[str, str]) -> float | None:
    timeout, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    if not timeout.isdecimal() or int(timeout) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(timeout) / 2 / 1_000_000
