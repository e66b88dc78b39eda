"""`attachd status`: everything at a glance, once or again and again."""

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from attachd.admin import wire
from attachd.cli import Exit
from attachd.cli.client import Unanswered, asking, running
from attachd.config import Config
from attachd.daemon.resting import Memory, open_resting, status_of
from attachd.daemon.telling import duration, paused_because
from attachd.daemon.tokens import read_token
from attachd.delivery.texts import readable_size
from attachd.errors import JournalError
from attachd.model import InboxStatus, Status, Step, UnderWay
from attachd.telemetry import printable, without_secrets

_EVERY_S = 1.0
_MOST_SHOWN = 12
_PLATFORM_KEYS = ("state", "reason", "retry_in_s")
_INBOX_KEYS = (
    *("name", "path", "state", "reason", "waiting", "under_way", "sent", "failed", "ignored", "oldest_waiting_s"),
)


async def show_status(settings: Config, *, as_json: bool) -> Exit:
    """Print it once."""
    async with asking(settings) as overview:
        status = await overview.status()
    if as_json:
        click.echo(json.dumps(pinned(status), indent=2))
    else:
        _console().print(shown(status))
        if status.running and sys.stdout.isatty() and (link := await asyncio.to_thread(_link, settings)):
            _console().print(Text(f"\nThe page: {link}", style="dim"), soft_wrap=True)
    return Exit.DONE


def _link(settings: Config) -> str | None:
    """The page, with the token that lets it change something; only ever shown on a terminal."""
    listen = settings.admin.listen
    if listen == "off" or listen.startswith("unix:"):
        return None
    try:
        token = read_token(settings.state_dir)
    except OSError:
        token = None
    return f"http://{listen}/{f'#token={token}' if token else ''}"


async def watch_status(settings: Config, *, as_json: bool) -> Exit:
    """Show it anew every second, over starts and stops of the daemon, until Ctrl-C."""
    watching = _Watching(settings)
    if as_json or not sys.stdout.isatty():
        while True:
            status = await watching.look()
            if as_json:
                click.echo(json.dumps(pinned(status)))
            else:
                _console().print(shown(status), Text())
            await asyncio.sleep(_EVERY_S)
    with Live(console=_console(), screen=True, auto_refresh=False) as live:
        while True:
            try:
                live.update(shown(await watching.look()), refresh=True)
            except (Unanswered, JournalError) as error:
                live.update(Text(without_secrets(str(error)), style="yellow"), refresh=True)
            await asyncio.sleep(_EVERY_S)


class _Watching:
    """Looks again and again. The journal of a resting attachd is opened once, for whoever has it keeps a daemon from
    starting.
    """

    def __init__(self, settings: Config) -> None:
        self._settings = settings
        self._memory: Memory | None = None

    async def look(self) -> Status:
        async with running(self._settings) as client:
            if client is not None:
                self._memory = None
                return await client.status()
        if self._memory is None:
            async with open_resting(self._settings) as resting:
                self._memory = await resting.memory()
        return await asyncio.to_thread(status_of, self._settings, self._memory)


def pinned(status: Status) -> dict[str, Any]:
    """The form that scripts rely on."""
    told = wire.status(status)
    return {
        "platform": {key: told["platform"][key] for key in _PLATFORM_KEYS},
        "inboxes": [{key: inbox[key] for key in _INBOX_KEYS} for inbox in told["inboxes"]],
    }


def shown(status: Status) -> RenderableType:
    """The same for people, with what is under way and why anything is paused."""
    parts: list[RenderableType] = [_headline(status), Text(), _table(status.inboxes)]
    for told in _troubles(status):
        parts += [Text(), told]
    if status.under_way:
        parts += [Text(), _under_way(status.under_way)]
    return Group(*parts)


def _headline(status: Status) -> Text:
    line = Text(f"attachd {status.version} ", style="bold")
    if not status.running:
        return line.append("does not run; this is what its journal and folders say", style="yellow")
    line.append("runs, ")
    if status.platform is None:
        return line.append("the platform is fine", style="green")
    return line.append("and everything is paused", style="red")


def _table(inboxes: tuple[InboxStatus, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("inbox", overflow="fold")
    table.add_column("state")
    for column in ("waiting", "oldest", "under way", "sent", "failed", "ignored"):
        table.add_column(column, justify="right")
    for inbox in inboxes:
        state = Text("ok", style="green") if inbox.pause is None else Text("paused", style="red")
        oldest = "" if inbox.oldest_waiting_s is None else duration(inbox.oldest_waiting_s)
        figures = (inbox.waiting, oldest, inbox.under_way, inbox.sent, inbox.failed, sum(inbox.ignored.values()))
        table.add_row(Text(printable(inbox.name), style="bold"), state, *(_figure(figure) for figure in figures))
    return table


def _figure(figure: int | str) -> Text:
    return Text(f"{figure:,}" if isinstance(figure, int) else figure, style="dim" if figure == 0 else "")


def _troubles(status: Status) -> Iterator[Text]:
    pauses = [("Everything", status.platform), *((f"The inbox {i.name}", i.pause) for i in status.inboxes)]
    for what, pause in pauses:
        if pause is not None:
            first, *more = (printable(without_secrets(sentence)) for sentence in paused_because(what, pause))
            yield Text("\n  ").join([Text(first, style="red"), *map(Text, more)])


def _under_way(works: tuple[UnderWay, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("under way", "inbox", "size", "step", "attempt"):
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    for work in works[:_MOST_SHOWN]:
        delivery = work.delivery
        size = readable_size(delivery.version.size)
        cells = (printable(delivery.name), printable(delivery.inbox), size, _step(work), f"{delivery.tries}")
        table.add_row(*map(Text, cells))
    if len(works) > _MOST_SHOWN:
        table.add_row(Text(f"and {len(works) - _MOST_SHOWN} more", style="dim"))
    return table


def _step(work: UnderWay) -> str:
    if work.step is Step.PUT and work.delivery.version.size:
        return f"put {min(100, 100 * work.bytes_sent // work.delivery.version.size)} %"
    if work.step is not None:
        return work.step.value
    if not work.next_try_in_s:
        return "waits"
    return f"next try in {duration(work.next_try_in_s)}"


def _console() -> Console:
    return Console(highlight=False)
