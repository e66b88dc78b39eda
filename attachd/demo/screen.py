"""What people see: a table that changes on a terminal, a line for each thing that happens elsewhere, and the summary.

Made for 80 columns; a wide terminal gets one more column.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from attachd.delivery.texts import readable_size
from attachd.demo.drops import Drop
from attachd.demo.process import Record
from attachd.demo.track import Journey, Journeys, Place

_WIDE = 100
_ID_SHOWN = 8
_COLOURS = {Place.INBOX: "cyan", Place.CLAIMED: "yellow", Place.SENT: "green", Place.FAILED: "red", Place.DESK: "dim"}


class Screen(Protocol):
    """Shows the demo while it goes on. Times are seconds since it began, except for `tick`'s `now` (monotonic)."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def dropped(self, drop: Drop, at_s: float) -> None:
        """A file is brought into the inbox."""

    def told(self, journey: Journey, record: Record, at_s: float) -> None:
        """The daemon has logged something of a file."""

    def tick(self, journeys: Journeys, at_s: float, now: float) -> None:
        """Time has passed."""


class LiveScreen:
    """One table, redrawn in its place; gone at the end, when the summary stands there."""

    def __init__(self, console: Console, about_s: float) -> None:
        self._console = console
        self._about_s = about_s
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._sentence = "The daemon starts."

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def dropped(self, drop: Drop, at_s: float) -> None:
        del at_s  # the title has a clock
        self._sentence = f"{drop.sentence}."

    def told(self, journey: Journey, record: Record, at_s: float) -> None:
        pass

    def tick(self, journeys: Journeys, at_s: float, now: float) -> None:
        title = Text.assemble(
            ("attachd demo", "bold"),
            (f"   {_clock(at_s)} of about {_clock(self._about_s)}; ends by itself, or with Ctrl-C", "dim"),
        )
        rows = files_table(journeys, now, self._console.width)
        platform = Text(
            "The platform wants silence: all files wait." if journeys.paused else "", style="yellow", no_wrap=True
        )
        sentence = waiting_for(journeys, now) or self._sentence
        about = Text("claims/ is watched; the platform is a local one, nothing leaves this computer.", style="dim")
        picture = Group(title, about, Text(), rows, Text(), Text(sentence), platform)
        self._live.update(picture, refresh=True)


class PlainScreen:
    """A line for each thing as it happens, for pipes and logs."""

    def __init__(self, console: Console, about_s: float) -> None:
        self._console = console
        self._about_s = about_s
        self._paused = False
        self._waiting = False

    def __enter__(self) -> Self:
        self._say(0.0, f"attachd demo: it takes about {self._about_s:.0f} seconds and ends by itself")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def dropped(self, drop: Drop, at_s: float) -> None:
        self._say(at_s, f"dropped   {drop.sentence}")

    def told(self, journey: Journey, record: Record, at_s: float) -> None:
        word = str(record["event"]).removeprefix("file.")
        match word:
            case "sent":
                more = f": {journey.words(at_s, paused=False)}, conversation {_shortened(journey.conversation)}"
            case "failed":
                more = f": {record.get('reason')}, {record.get('detail')}"
            case "deferred":
                more = f": {record.get('reason')} at {record.get('step')}, again in {record.get('retry_in_s')} s"
            case _:
                more = ""
        self._say(at_s, f"{word:<9} {journey.drop.shown}{more}")

    def tick(self, journeys: Journeys, at_s: float, now: float) -> None:
        if journeys.paused != self._paused:
            self._paused = journeys.paused
            self._say(at_s, "paused    the platform wants silence" if self._paused else "resumed   all files go on")
        if (waiting := waiting_for(journeys, now)) and not self._waiting:
            self._waiting = True
            self._say(at_s, f"waiting   {waiting}")

    def _say(self, at_s: float, text: str) -> None:
        self._console.print(Text(f"{at_s:5.1f} s  {text}"), soft_wrap=True)


def files_table(journeys: Journeys, now: float, columns: int) -> Table:
    """Each file, where it lies, what happens to it."""
    wide = columns >= _WIDE
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("File", no_wrap=True, width=21)
    table.add_column("Size", no_wrap=True, justify="right", width=9)
    if wide:
        table.add_column("Dropped", no_wrap=True, width=18)
    table.add_column("Lies in", no_wrap=True, width=7)
    table.add_column("What happens", no_wrap=True, width=27)
    table.add_column("Conv. id", no_wrap=True, width=_ID_SHOWN)
    for journey in journeys.all:
        colour = _COLOURS[journey.place]
        table.add_row(
            Text(journey.drop.shown, style="dim" if journey.place is Place.DESK else ""),
            Text(readable_size(journey.size), style="dim"),
            *([Text(journey.drop.way.short, style="dim")] if wide else []),
            Text(journey.place.value, style=colour),
            Text(journey.words(now, paused=journeys.paused), style="" if journey.finished else colour),
            Text(_shortened(journey.conversation), style="dim"),
        )
    return table


def waiting_for(journeys: Journeys, now: float) -> str:
    """Why nothing seems to happen, once only empty files are left; else empty."""
    left = [journey for journey in journeys.all if not journey.finished]
    if not left or not all(journey.size == 0 and journey.place is Place.INBOX for journey in left):
        return ""
    names = ", ".join(journey.drop.shown for journey in left)
    return f"All else is done. {names} is empty and has a minute to fill; it is {left[0].words(now, paused=False)[7:]}."


def summary(
    journeys: Journeys,
    now: float,
    columns: int,
    *,
    reason: tuple[str, str] | None,
    proven: Sequence[str],
    problems: Sequence[str],
    next_steps: Sequence[tuple[str, str]],
) -> RenderableType:
    """The end: the files, one reason (its path and text), the verdict, what to try next."""
    parts: list[RenderableType] = [Text(), files_table(journeys, now, columns), Text()]
    if reason:
        parts += [Text(reason[0], style="bold"), Padding(Text(reason[1].rstrip(), style="dim"), (0, 0, 1, 2))]
    if problems:
        parts += [Text("It did not go as it should", style="bold red"), _marked("✗", "red", problems)]
    else:
        heading = "All went as it should, say the folders and the platform's own ledger:"
        parts += [Text(heading, style="bold green"), _marked("✓", "green", proven)]
    steps = Table.grid(padding=(0, 2, 0, 0))
    for command, what in next_steps:
        steps.add_row(Text(command, no_wrap=True), Text(what, style="dim"))
    parts += [Text(), Text("Next", style="bold"), Padding(steps, (0, 0, 0, 2))]
    return Group(*parts)


def _marked(mark: str, colour: str, lines: Sequence[str]) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    for line in lines:
        table.add_row(Text(f"  {mark}", style=colour), Text(line))
    return table


def _shortened(identifier: str) -> str:
    return identifier[:_ID_SHOWN]


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
