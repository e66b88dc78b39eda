"""`attachd check`: a line for each finding, with what to do about it."""

import asyncio
import fnmatch
import itertools
import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from attachd import telemetry
from attachd.cli import Exit
from attachd.config import Config, Inbox
from attachd.daemon.parts import OpenGateway, folders_of, open_gateway
from attachd.delivery.health import CANARY
from attachd.delivery.texts import readable_size
from attachd.errors import ADVICE, AccountError, InboxError, TransientError
from attachd.gateway.webchat import Webchat
from attachd.gateway.webmessaging import WebMessaging
from attachd.intake.watch import native_works
from attachd.model import Reason

_NOT_THIS_GATEWAY = frozenset({Reason.NOT_THE_PLATFORM, Reason.DEPLOYMENT_REFUSED, Reason.FORBIDDEN})
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
    gateway_name = settings.platform.gateway
    try:
        async with _opened(settings) as gateway:
            await gateway.check_credentials()
            match gateway:
                case Webchat():
                    await _report_queues(settings, gateway, report)
                case WebMessaging():
                    await _report_deployment(settings, gateway, report)
    except (AccountError, TransientError) as error:
        report.wrong(f"platform: {error}", ADVICE[error.reason])
        if error.reason in _UNREACHABLE:
            return Exit.UNREACHABLE if report.wrongs == 1 else Exit.FAILED
        if error.reason in _NOT_THIS_GATEWAY:
            await _try_other_gateway(settings, report)
        return Exit.FAILED
    report.fine(f"platform: the organisation answers to gateway: {gateway_name}")
    return report.verdict()


def _opened(settings: Config) -> AbstractAsyncContextManager[OpenGateway]:
    secret = settings.platform.client_secret.get_secret_value
    return open_gateway(settings, client_secret=secret, guest_key=os.urandom(32))


async def _try_other_gateway(settings: Config, report: "_Report") -> None:
    """Say whether the organisation answers to the other gateway, as far as the config has what it takes to ask."""
    platform = settings.platform
    other = "webmessaging" if platform.gateway == "webchat" else "webchat"
    needed = platform.deployment_id if other == "webmessaging" else platform.client_id
    if not needed:
        key = "deployment_id" if other == "webmessaging" else "client_id"
        report.note(f"whether it answers to gateway: {other} was not tried, for platform.{key} is not set")
        return
    try:
        turned = settings.model_copy(update={"platform": platform.model_copy(update={"gateway": other})})
        async with _opened(turned) as gateway:
            await gateway.check_credentials()
    except (AccountError, TransientError) as error:
        report.note(f"it does not answer to gateway: {other} either: {error}")
    else:
        report.note(f"it answers to gateway: {other}; set platform.gateway to that")


async def _report_queues(settings: Config, gateway: Webchat, report: "_Report") -> None:
    """Open a guest session for each inbox, which no agent sees: it shows that queue and skills are accepted."""
    platform = settings.platform
    report.fine(f"platform: {platform.login_url} gave a token for client {platform.client_id}")
    for inbox in settings.inboxes:
        try:
            async with gateway.gateway.session(CANARY, inbox.routing):
                report.fine(f"inbox {inbox.name}: queue {inbox.routing.queue_id} takes web messages with attachments")
        except InboxError as error:
            report.wrong(f"inbox {inbox.name}: {error}", ADVICE[error.reason])


async def _report_deployment(settings: Config, gateway: WebMessaging, report: "_Report") -> None:
    """What the deployment lets in, compared with what the inboxes would send."""
    profile = await gateway.allowed()
    report.fine(f"platform: deployment {settings.platform.deployment_id} takes guests")
    takes = f"{', '.join(sorted(profile.types))}, up to {readable_size(profile.max_bytes)}"
    blocked = f", but no {' '.join(sorted(profile.blocked))}" if profile.blocked else ""
    report.fine(f"platform: it takes {takes}{blocked}")
    # The profile's kilobytes are taken as 1,000 bytes to be safe; where only that makes the difference nothing is said.
    if profile.max_bytes * 1024 // 1000 < settings.platform.max_file_size:
        limit = readable_size(profile.max_bytes)
        report.note(f"platform.max_file_size is above the deployment's {limit}: larger files are refused there")
    for inbox in settings.inboxes:
        pairs = itertools.product(profile.types, inbox.allow_types)
        if not any(fnmatch.fnmatchcase(*pair) or fnmatch.fnmatchcase(*reversed(pair)) for pair in pairs):
            report.wrong(f"inbox {inbox.name}: the deployment takes none of {', '.join(inbox.allow_types)}")


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
