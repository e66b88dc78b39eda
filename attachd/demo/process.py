"""The daemon as a process of its own, as systemd would run it: a config file in, JSON lines out.

What it logs is handed on record by record. It is stopped on every way out of the block, and killed if it will not.
"""

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
"""One line of the log."""

_GRACE_S = 10.0
_LONGEST_LINE_BYTES = 1 << 20
_NOT_OURS = ("GENESYS_", "NOTIFY_SOCKET", "WATCHDOG_", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY")
"""Variables that would tell the daemon of a real organisation or of somebody else's service."""


class RunningDaemon:
    """A started daemon. `ended` is set once it has closed its log, which it does only at its end."""

    def __init__(self, process: Process, errors: Path) -> None:
        self._process = process
        self._errors = errors
        self.ended = asyncio.Event()
        self.foreign_lines: list[str] = []
        """What it printed that is no JSON object."""

    @property
    def exit_code(self) -> int | None:
        """None as long as it runs; negative: ended by that signal."""
        return self._process.returncode

    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        return "\n".join(self._errors.read_text(errors="backslashreplace").splitlines()[-8:])

    async def read(self, log: Path, take: Callable[[Record], None]) -> None:
        """Hand on every record until the daemon ends; the lines themselves are kept in `log`."""
        assert self._process.stdout is not None
        try:
            with await asyncio.to_thread(log.open, "wb", buffering=0) as kept:
                async for line in self._process.stdout:
                    kept.write(line)
                    if (record := _record_in(line)) is None:
                        self.foreign_lines.append(line.decode(errors="backslashreplace").rstrip())
                    else:
                        take(record)
        finally:
            self.ended.set()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not heard."""
        try:
            with contextlib.suppress(TimeoutError, ProcessLookupError):
                if self._process.returncode is None:
                    self._process.terminate()
                async with asyncio.timeout(_GRACE_S):
                    await self._process.wait()
        finally:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()


@asynccontextmanager
async def running_daemon(config: Path, take: Callable[[Record], None]) -> AsyncIterator[RunningDaemon]:
    """`attachd run -c config`, its log and errors kept beside the config."""
    errors = config.with_name("daemon.err")
    with await asyncio.to_thread(errors.open, "wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "attachd", "run", "-c", os.fspath(config)),
            stdout=PIPE,
            stderr=stderr,
            env={name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)},
            limit=_LONGEST_LINE_BYTES,
            start_new_session=True,  # Ctrl-C is for the demo, which then stops the daemon itself
        )
    daemon = RunningDaemon(process, errors)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(daemon.read(config.with_name("daemon.log"), take), name="log of the daemon")
        try:
            yield daemon
        finally:
            await daemon.stop()


def _record_in(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
