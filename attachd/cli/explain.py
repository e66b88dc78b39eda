"""`attachd explain`: where a file is and why, in sentences."""

import json
import os

import click
from rich.console import Console
from rich.text import Text

from attachd.admin import wire
from attachd.cli import Exit
from attachd.cli.client import asking
from attachd.config import Config
from attachd.telemetry import printable, without_secrets

_STYLES = {"sent": "green", "failed": "red", "paused": "red", "deferred": "yellow", "ignored": "yellow"}


async def explain_file(settings: Config, what: str, *, as_json: bool) -> Exit:
    """Say what is known of it; FAILED when that is nothing."""
    path, here = _meant(what)
    async with asking(settings) as overview:
        told = await overview.explain(path)
        if told is None and path != here:
            path, told = here, await overview.explain(here)
    if as_json:
        click.echo(json.dumps(None if told is None else wire.explanation(told), indent=2))
        return Exit.FAILED if told is None else Exit.DONE
    console = Console(highlight=False, soft_wrap=True)
    if told is None:
        folders = ", ".join(str(inbox.path) for inbox in settings.inboxes)
        console.print(Text(printable(path), style="bold"))
        unknown = "attachd knows nothing of it: nothing lies there, or not in an inbox, and no delivery is on record."
        console.print(Text(f"  {unknown}\n  The inboxes are: {printable(folders)}"))
        return Exit.FAILED
    console.print(Text(printable(told.path), style="bold"), Text(told.place, style=_STYLES.get(told.place, "cyan")))
    for sentence in told.sentences:
        console.print(Text(f"  {printable(without_secrets(sentence))}"))
    if told.delivery is not None:
        delivery = told.delivery
        known = f"delivery {delivery.id}, inbox {delivery.inbox}, received as {delivery.name}"
        console.print(Text(f"  {printable(known)}", style="dim"))
    return Exit.DONE


def _meant(what: str) -> tuple[str, str]:
    """What to ask for first, and the path: a file of the current folder goes before a delivery of that id."""
    here = os.path.abspath(what)
    return here if "/" in what or os.path.lexists(what) else what, here
