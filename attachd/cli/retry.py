"""`attachd retry`: failed files go back through their inbox."""

import os

from rich.console import Console
from rich.text import Text

from attachd.cli import Exit
from attachd.cli.client import asking
from attachd.config import Config
from attachd.model import InboxName, Retried
from attachd.telemetry import printable, without_secrets


async def retry_files(settings: Config, what: str | None, inbox: InboxName | None) -> Exit:
    """Put back one failed file, by id, name or path, or all (None), and say of each what happened."""
    if what is not None:
        what = _meant(what)
    async with asking(settings) as overview:
        results = await overview.retry(what, inbox=inbox)
        runs = (await overview.status()).running if results else True
    console = Console(highlight=False, soft_wrap=True)
    for result in results:
        console.print(_line(result))
    if not results:
        nothing = "no file lies in failed/" if what is None else f"no failed file or delivery is called {what}"
        console.print(Text(printable(nothing)))
        return Exit.DONE if what is None else Exit.FAILED
    if not runs and any(result.problem is None for result in results):
        console.print(Text("attachd does not run: they are sent when it is started"))
    return Exit.FAILED if any(result.problem is not None for result in results) else Exit.DONE


def _line(result: Retried) -> Text:
    where = printable(f"{result.inbox}: {result.filed_as}".rstrip(": "))
    if result.problem is None:
        return Text.assemble(("back", "green"), f"  {where} is in the inbox again as {printable(result.name or '')}")
    return Text.assemble(("no", "red"), f"    {where}: {printable(without_secrets(result.problem))}")


def _meant(what: str) -> str:
    """A path that is one from the current folder, else the name in `failed/` or the id that was given."""
    return os.path.abspath(what) if "/" in what and os.path.lexists(what) else what
