"""`attachd send`: the one-shot way of a file, without inbox and journal; the file stays where it is."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from attachd.cli import Exit
from attachd.config import Config, Inbox
from attachd.daemon.parts import new_delivery_id, open_gateway, utcnow
from attachd.delivery.content import Content
from attachd.delivery.filing import version_of
from attachd.delivery.lifecycle import backoff_s
from attachd.delivery.texts import message_text
from attachd.errors import ADVICE, AccountError, DeliveryError, TransientError, UnknownOutcome
from attachd.model import Delivery, Reason, Receipt, Step
from attachd.ports import GuestGateway
from attachd.telemetry import printable, without_secrets

_UNREACHABLE = frozenset({Reason.UNREACHABLE, Reason.TIMEOUT})


async def send_all(settings: Config, inbox: Inbox, files: Sequence[Path], message: str | None) -> Exit:
    """Send each file once, several at a time; a line for each that tells how it went."""
    console = Console(highlight=False, soft_wrap=True)
    bars = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), console=console, transient=True
    )
    slots = asyncio.Semaphore(settings.delivery.concurrency)
    secret = settings.platform.client_secret.get_secret_value
    async with open_gateway(settings, client_secret=secret, guest_key=os.urandom(32)) as gateway:
        sender = _Sender(settings, inbox, message, gateway.gateway, bars)
        with bars:

            async def one(path: Path) -> DeliveryError | None:
                async with slots:
                    return await sender.send(path)

            failures = await asyncio.gather(*(one(path) for path in files))
    if not any(failures):
        return Exit.DONE
    unreachable = all(failure is None or failure.reason in _UNREACHABLE for failure in failures)
    return Exit.UNREACHABLE if unreachable else Exit.FAILED


class _Sender:
    def __init__(
        self, settings: Config, inbox: Inbox, message: str | None, gateway: GuestGateway, bars: Progress
    ) -> None:
        self._settings = settings
        self._inbox = inbox
        self._template = message if message is not None else inbox.message
        self._gateway = gateway
        self._bars = bars

    async def send(self, path: Path) -> DeliveryError | None:
        """One file, tried again as long as that certainly makes no second message; None when it went."""
        name = printable(path.name)
        bar = self._bars.add_task(name, total=None)
        tries = 0
        try:
            while True:
                tries += 1
                try:
                    receipt = await self._attempt(path, bar)
                except TransientError as error:
                    if isinstance(error, UnknownOutcome) or tries >= self._settings.delivery.max_attempts:
                        raise
                    await asyncio.sleep(max(error.retry_after_s or 0.0, backoff_s(tries, random.random())))  # noqa: S311
                else:
                    self._say(f"sent    {name}  {_told(receipt)}")
                    return None
        except DeliveryError as error:
            self._say(f"FAILED  {name}  {error}\n        {_advice(error)}")
            return error
        finally:
            self._bars.remove_task(bar)

    async def _attempt(self, path: Path, bar: TaskID) -> Receipt:
        content, delivery = await asyncio.to_thread(self._open, path)
        try:
            document = content.document
            self._bars.update(bar, total=document.size, completed=0)

            async def read() -> AsyncIterator[bytes]:
                async for piece in content.read():
                    yield piece
                    self._bars.advance(bar, len(piece))

            async with self._gateway.session(delivery.id, self._inbox.routing) as session:
                attachment = await session.upload(document, read)
                await asyncio.to_thread(content.demand, content.sha256)
                text = message_text(self._template, self._inbox.name, delivery, document)
                return await session.post(attachment, document, text)
        finally:
            content.close()

    def _open(self, path: Path) -> tuple[Content, Delivery]:
        try:
            opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            content = Content(opened, path.name)
            try:
                content.look(max_bytes=self._settings.platform.max_file_size, allow_types=self._inbox.allow_types)
                version = version_of(os.fstat(opened))
            except BaseException:
                content.close()
                raise
        except OSError as error:
            raise AccountError(Reason.UNREADABLE, f"cannot read it: {error.strerror or error}", Step.CHECK) from error
        return content, Delivery(new_delivery_id(), self._inbox.name, path.name, version, utcnow())

    def _say(self, text: str) -> None:
        self._bars.console.print(without_secrets(text), markup=False)


def _told(receipt: Receipt) -> str:
    if receipt.conversation is None:  # a guest of a deployment never learns it
        return f"message {receipt.message or 'of no name'}"
    return f"conversation {receipt.conversation}"


def _advice(error: DeliveryError) -> str:
    if isinstance(error, UnknownOutcome):
        return ADVICE[Reason.UNKNOWN_OUTCOME]
    return ADVICE[error.reason]
