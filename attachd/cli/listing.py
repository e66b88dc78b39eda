"""`attachd list`: deliveries from the journal, newest first."""

import json

import click
from rich.console import Console
from rich.text import Text

from attachd.admin import wire
from attachd.cli import Exit
from attachd.cli.client import asking
from attachd.config import Config
from attachd.daemon.telling import at_time
from attachd.delivery.texts import readable_size
from attachd.model import InboxName, StateName
from attachd.ports import Entry
from attachd.telemetry import printable

_KEYS = (*("delivery_id", "inbox", "file", "state", "size", "attempts", "reason", "conversation_id", "updated_at"),)
_STYLES = {StateName.SENT: "green", StateName.FAILED: "red"}


async def list_deliveries(
    settings: Config, *, state: StateName | None, inbox: InboxName | None, limit: int, as_json: bool
) -> Exit:
    """Print them."""
    async with asking(settings) as overview:
        entries = await overview.deliveries(state=state, inbox=inbox, limit=limit)
    told = wire.entries(entries)
    if as_json:
        click.echo(json.dumps([{key: one[key] for key in _KEYS} for one in told], indent=2))
        return Exit.DONE
    console = Console(highlight=False, soft_wrap=True)
    if not entries:
        console.print("The journal knows of no such delivery.")
        return Exit.DONE
    rows = [_cells(entry, one) for entry, one in zip(entries, told, strict=True)]
    widths = [max(cell.cell_len for cell in column) for column in zip(_HEAD, *rows, strict=True)]
    too_wide = sum(widths) + 2 * len(widths) - console.width
    if console.is_terminal and too_wide > 0:
        widths[_FILE] = max(_NARROWEST, widths[_FILE] - too_wide)
    for cells in (_HEAD, *rows):
        for cell, width in zip(cells, widths, strict=True):
            cell.truncate(width, overflow="ellipsis", pad=True)
        line = Text("  ").join(cells)
        line.rstrip()
        console.print(line)
    return Exit.DONE


def _cells(entry: Entry, told: wire.Json) -> tuple[Text, ...]:
    delivery, state = entry.delivery, StateName(told["state"])
    return (
        Text(at_time(entry.updated_at).removesuffix(" UTC"), style="dim"),
        Text(state.value, style=_STYLES.get(state, "yellow")),
        Text(printable(delivery.inbox)),
        Text(printable(delivery.name), style="bold"),
        Text(readable_size(delivery.version.size)),
        Text(str(delivery.tries)),
        Text(told["conversation_id"] or told["reason"] or ""),
        Text(delivery.id, style="dim"),
    )


# Ids are there to be copied and are never cut: only the file's name gives way to a narrow terminal.
_HEAD = tuple(
    Text(word, style="dim")
    for word in ("changed (UTC)", "state", "inbox", "file", "size", "tries", "conversation or reason", "delivery")
)
_FILE = 3
_NARROWEST = 16
