"""`attachd check`: a line for each finding, with what to do about it."""

import asyncio
import os
from pathlib import Path

from rich.console import Console
from rich.text import Text

from attachd import telemetry
from attachd.cli import Exit
from attachd.config import Config, Inbox
from attachd.daemon import folders_of, open_gateway
from attachd.errors import ADVICE, AccountError, TransientError
from attachd.intake.watch import native_works
from attachd.model import Reason

_UNREACHABLE = frozenset({Reason.UNREACHABLE, Reason.TIMEOUT, Reason.CONNECTION_LOST})


async def check_all(settings: Config, source: Path, *, offline: bool) -> Exit:
    """Look at everything the config names and say of each how it is; changes nothing anywhere."""
    report = _Report()
    report.fine(f"{source}: {len(settings.inboxes)} inbox{'es' if len(settings.inboxes) != 1 else ''}")
    report.about("state_dir", settings.state_dir, await asyncio.to_thread(_state_problems, settings.state_dir))
    for inbox in settings.inboxes:
        problems = await asyncio.to_thread(folders_of(inbox).inspect)
        report.about(f"inbox {inbox.name}", inbox.path, problems)
        if not problems:
            report.fine(f"inbox {inbox.name}: {await asyncio.to_thread(_watching, inbox)}")
    if offline:
        report.note("the platform was not asked (--offline)")
        return report.verdict()
    return await _check_platform(settings, report)


async def _check_platform(settings: Config, report: "_Report") -> Exit:
    platform = settings.platform
    try:
        async with open_gateway(settings, platform.client_secret.get_secret_value) as gateway:
            await gateway.check_credentials()
    except (AccountError, TransientError) as error:
        report.wrong(f"platform: {error}", ADVICE[error.reason])
        return Exit.UNREACHABLE if error.reason in _UNREACHABLE and report.wrongs == 1 else Exit.FAILED
    report.fine(f"platform: {platform.login_url} gave a token for client {platform.client_id}")
    return report.verdict()


def _watching(inbox: Inbox) -> str:
    native = inbox.watch == "native" or (inbox.watch == "auto" and native_works(str(inbox.path)))
    how = "watched by events" if native else "polled, for its filesystem tells no events from other hosts"
    return f"{how}; scanned at least every {inbox.rescan_s:g} s"


def _state_problems(state_dir: Path) -> list[str]:
    existing = next((folder for folder in (state_dir, *state_dir.parents) if folder.exists()), Path("/"))
    if not existing.is_dir():
        return [f"{existing} is not a folder"]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"{existing} is not writable for this user"]
    return []


class _Report:
    """Prints findings as they come and remembers whether one was bad."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self.wrongs = 0

    def fine(self, text: str) -> None:
        self._line("ok", "green", text)

    def note(self, text: str) -> None:
        self._line("--", "yellow", text)

    def wrong(self, text: str, remedy: str = "") -> None:
        self.wrongs += 1
        self._line("no", "red", text)
        if remedy:
            self._console.print(Text(f"    {remedy}"))

    def about(self, what: str, path: Path, problems: list[str]) -> None:
        if not problems:
            self.fine(f"{what}: {path}")
        for problem in problems:
            self.wrong(f"{what}: {problem}")

    def verdict(self) -> Exit:
        return Exit.FAILED if self.wrongs else Exit.DONE

    def _line(self, mark: str, colour: str, text: str) -> None:
        self._console.print(Text(mark, style=colour), Text(telemetry.without_secrets(text)))
