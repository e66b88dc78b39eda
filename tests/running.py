"""attachd as an operator runs it: a process of its own, seen through its log and its folders."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from attachd.sandbox import Answer, Gateway, Sandbox, Step

from .waiting import PATIENCE_S, until

REASON = ".reason.txt"

over_both = pytest.mark.parametrize("gateway", ["webchat", "webmessaging"])
"""The same behaviour over both protocols."""


class RunningDaemon:
    """`attachd run` on one inbox (and others, if told), with settings that let a test go quickly."""

    def __init__(self, platform: Sandbox, inbox: Path, gateway: Gateway = "webchat") -> None:
        self.platform = platform
        self.inbox = inbox
        self.gateway: Gateway = gateway
        self.config_file = inbox.parent / "config.yaml"
        self.state_dir = inbox.parent / "state"
        self.log: list[dict[str, Any]] = []
        self.noise: list[str] = []
        self.prefix: tuple[str, ...] = ()
        self.env: dict[str, str] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self.configure()

    def configure(self, *, more_inboxes: tuple[dict[str, Any], ...] = (), **inbox: Any) -> None:
        """Write the config; keywords are keys of the inbox, `platform`, `delivery` and `log` are sections."""
        settings = yaml.safe_load(self.platform.config_yaml(self.inbox, self.state_dir, self.gateway))
        settings["platform"] |= inbox.pop("platform", {})
        settings["delivery"] = {"shutdown_grace": "5s"} | inbox.pop("delivery", {})
        settings["log"] = {"format": "json"} | inbox.pop("log", {})
        settings["admin"] = {"listen": "off"}
        settings["inboxes"] = [{"path": str(self.inbox), "settle": "100ms"} | inbox, *more_inboxes]
        self.config_file.write_text(yaml.safe_dump(settings))

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        seen = len(self.log)
        await self.spawn()
        await until(lambda: self.events("daemon.ready", seen) or not self.running, "the daemon is ready")
        assert self.running, f"the daemon ended with {self.exit_code}: {self.noise}"

    async def start_and_greet(self) -> None:
        """Start it and wait until it has tried the platform once: faults armed from now on strike a delivery."""
        greeting = Step.TOKEN if self.gateway == "webchat" else Step.CONFIGURE
        seen = len(self.platform.requests(greeting))
        await self.start()
        await until(
            lambda: any(asked.answer is Answer.WHOLE for asked in self.platform.requests(greeting)[seen:]),
            "the daemon has greeted the platform",
        )

    async def spawn(self) -> None:
        """Start it."""
        assert self._process is None or self._process.returncode is not None
        command = (*self.prefix, sys.executable, "-m", "attachd", "run", "-c", str(self.config_file))
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=self.env)
        assert self._process.stdout
        assert self._process.stderr
        self._readers = [
            asyncio.create_task(self._read(self._process.stdout, self._take_line)),
            asyncio.create_task(self._read(self._process.stderr, self.noise.append)),
        ]

    async def _read(self, stream: asyncio.StreamReader, take: Callable[[str], None]) -> None:
        async for line in stream:
            take(line.decode())

    def _take_line(self, line: str) -> None:
        self.log.append(json.loads(line))

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode if self._process else None

    def signal(self, which: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(which)

    async def ended(self) -> int:
        """Wait for its end; returns the exit code."""
        assert self._process
        async with asyncio.timeout(PATIENCE_S):
            code = await self._process.wait()
            await asyncio.gather(*self._readers)
        return code

    async def stop(self) -> int:
        """SIGTERM, and wait."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        """SIGKILL, and wait."""
        if self.running:
            self.signal(signal.SIGKILL)
        await self.ended()

    async def end(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self._process is not None and (self.running or any(not reader.done() for reader in self._readers)):
            await self.kill()

    # --- what is seen of it --------------------------------------------------------------------------------------

    def events(self, event: str, since: int = 0) -> list[dict[str, Any]]:
        """The records of one kind."""
        return [record for record in self.log[since:] if record["event"] == event]

    def sent(self) -> list[str]:
        """The names in `sent/`."""
        return _names(self.inbox / "sent")

    def failed(self) -> list[str]:
        """The names in `failed/`, without the reason files."""
        return [name for name in _names(self.inbox / "failed") if not name.endswith(REASON)]

    def reason(self, name: str) -> str:
        """The text beside a failed file."""
        return (self.inbox / "failed" / (name + REASON)).read_text()

    def waiting(self) -> list[str]:
        """The names that lie in the inbox."""
        return [entry.name for entry in self.inbox.iterdir() if entry.is_file()]

    def claimed(self) -> list[str]:
        """The names that are claimed."""
        claims, names = self.inbox / ".attachd" / "claimed", list[str]()
        for folder in claims.iterdir() if claims.exists() else ():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # filed since, or none of ours
                names += os.listdir(folder)
        return sorted(names)

    async def all_filed(self, number: int, patience_s: float = PATIENCE_S) -> None:
        """Wait until so many files lie in `sent/` and `failed/` together and none elsewhere."""
        await until(
            lambda: (
                len(self.sent()) + len(self.failed()) == number
                and not self.waiting()
                and not self.claimed()
                and all((self.inbox / "failed" / (name + REASON)).exists() for name in self.failed())
            ),
            f"{number} files are filed",
            patience_s,
        )


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.exists() else []


def drop(folder: Path, name: str, content: bytes = b"a document\n") -> Path:
    """Put a file into an inbox as a careful producer does: whole, by rename."""
    draft = folder / f".{name}.draft"
    draft.write_bytes(content)
    return draft.rename(folder / name)
