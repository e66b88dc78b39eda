"""The demo as a whole: a folder, a platform, a daemon, the drops, the screen, the verdict; and nothing left behind."""

import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from attachd.demo.drops import PROGRAMME, Drop, Trouble, bring, prepare
from attachd.demo.process import Record, running_daemon
from attachd.demo.screen import LiveScreen, PlainScreen, Screen, summary
from attachd.demo.track import EMPTY_S, Journeys
from attachd.demo.verdict import in_words, problems, reason_file
from attachd.model import Reason
from attachd.sandbox import Fault, FaultKind, Gateway, Sandbox, Stage, refuse, step_of
from attachd.telemetry import printable, without_secrets

DEADLINE_S = 150.0
_ABOUT_S = EMPTY_S + 3.0
_TICK_S = 0.1
_ANSWER_S = 0.5  # about what the way to a real platform and back takes; it lets people see a file under way
_SILENCE_S = 3
_PICTURE_COLUMNS = 84


async def show(*, keep: bool = False, svg: str | os.PathLike[str] | None = None, gateway: Gateway = "webchat") -> bool:
    """Play the demo; True only if all went as it should. With `svg` the end is also drawn into that file.

    The folder it plays in is removed at the end unless `keep` is set or something went wrong.
    """
    console = _console()
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="attachd-demo-"))
    keep_folder, cancelled = True, list[signal.Signals]()
    try:
        with _cancelled_by_signals(cancelled):
            went_well = await _Demo(console, folder, svg, gateway).play()
        keep_folder = keep or not went_well
    except (OSError, ExceptionGroup) as error:
        if not (reasons := _system_errors(error)):
            raise
        for reason in reasons:
            console.print(Text(f"The demo could not go on: {printable(reason)}", "red"), soft_wrap=True)
        return False
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):  # somebody has seen enough
        keep_folder = keep
        if not cancelled:
            raise
        return False
    else:
        return went_well
    finally:
        # Not in a thread: after a second Ctrl-C nothing is awaited any more.
        if keep_folder:
            console.print(
                Text(f"\nEverything is kept in {folder}; daemon.log there is what the daemon said."), soft_wrap=True
            )
        else:
            shutil.rmtree(folder, ignore_errors=True)
            console.print(Text("\nThe folder of the demo and its daemon are gone; --keep keeps the folder.", "dim"))


class _Demo:
    def __init__(self, console: Console, folder: Path, svg: str | os.PathLike[str] | None, gateway: Gateway) -> None:
        self._console = console
        self._folder = folder
        self._svg = svg
        self._gateway = gateway
        self._inbox = folder / "claims"
        self._desk = folder / "desk"
        self._began = time.monotonic()
        live = sys.stdout.isatty() and not console.is_dumb_terminal
        self._screen: Screen = (LiveScreen if live else PlainScreen)(console, _ABOUT_S)
        self._trouble: list[str] = []

    async def play(self) -> bool:
        """From the empty folder to the verdict."""
        for made in (self._inbox, self._desk):
            made.mkdir()
        measured = await asyncio.to_thread(prepare, self._desk)
        digests = {drop: digest for drop, (_, digest) in measured.items()}
        journeys = Journeys((drop, size) for drop, (size, _) in measured.items())
        async with Sandbox() as sandbox:
            _arm(sandbox, self._gateway)
            config = self._folder / "config.yaml"
            config.write_text(_config(sandbox, self._inbox, self._folder / "state", self._gateway), encoding="utf-8")
            with self._screen:
                try:
                    async with asyncio.timeout(DEADLINE_S):
                        await self._run(config, journeys)
                except TimeoutError:
                    self._trouble.append(f"it was not finished after {DEADLINE_S:.0f} seconds")
        found = await asyncio.to_thread(problems, journeys, digests, self._inbox, sandbox.ledger, self._gateway)
        self._end(journeys, [without_secrets(problem) for problem in self._trouble + found])
        return not (self._trouble or found)

    async def _run(self, config: Path, journeys: Journeys) -> None:
        def take(record: Record) -> None:
            if journey := journeys.take(record, time.monotonic()):
                self._screen.told(journey, record, self._at_s())

        async with running_daemon(config, take) as daemon:
            async with asyncio.TaskGroup() as tasks:
                dropping = tasks.create_task(self._drop_all(journeys), name="drops")
                while not (journeys.finished or daemon.ended.is_set()):
                    self._screen.tick(journeys, self._at_s(), time.monotonic())
                    await asyncio.sleep(_TICK_S)
                dropping.cancel()
            ended_by_itself = daemon.ended.is_set()
        if ended_by_itself:
            self._trouble.append(f"the daemon ended by itself, with exit code {daemon.exit_code}")
        elif daemon.exit_code != 0:
            self._trouble.append(f"the daemon ended with exit code {daemon.exit_code} when it was asked to stop")
        self._trouble += [f"the daemon wrote: {line}" for line in daemon.last_words().splitlines()]
        self._trouble += [f"not a record in the log: {line}" for line in daemon.foreign_lines]

    async def _drop_all(self, journeys: Journeys) -> None:
        await journeys.ready.wait()
        async with asyncio.TaskGroup() as tasks:
            for drop in PROGRAMME:
                await asyncio.sleep(drop.pause_s)
                tasks.create_task(self._bring(drop, journeys), name=f"bring {drop.shown}")

    async def _bring(self, drop: Drop, journeys: Journeys) -> None:
        journeys.dropped(drop, time.monotonic())
        self._screen.dropped(drop, self._at_s())
        journey = journeys.of(drop)
        async for progress in bring(drop, self._desk, self._inbox):
            journey.progress = progress
        journey.progress = ""

    def _end(self, journeys: Journeys, found: Sequence[str]) -> None:
        reasons = [reason_file(drop, self._inbox) for drop in PROGRAMME if drop.failure is Reason.TYPE_NOT_ALLOWED]
        shown = next((path for path in reasons if path.is_file()), None)
        reason = (str(shown.relative_to(self._folder)), shown.read_text(errors="replace")) if shown else None

        def end(columns: int, command: str) -> RenderableType:
            return summary(
                journeys,
                time.monotonic(),
                columns,
                reason=reason,
                proven=in_words(journeys),
                problems=found,
                next_steps=_next_steps(command),
            )

        self._console.print(end(self._console.width, _command()))
        if self._svg:
            picture = Console(record=True, width=_PICTURE_COLUMNS, file=io.StringIO(), force_terminal=True)
            picture.print(end(_PICTURE_COLUMNS, "attachd"))
            picture.save_svg(os.fspath(self._svg), title="attachd demo")

    def _at_s(self) -> float:
        return time.monotonic() - self._began


def _arm(sandbox: Sandbox, gateway: Gateway) -> None:
    """A short hiccup for the files that are to meet one; every answer a little late."""
    upload = step_of(Stage.UPLOAD, gateway)
    for drop in PROGRAMME:
        match drop.trouble:
            case Trouble.OUTAGE:
                sandbox.on(upload, refuse(503, file_name=drop.name))
            case Trouble.RATE_LIMIT:
                sandbox.on(upload, refuse(429, retry_after=_SILENCE_S, file_name=drop.name))
            case None:
                pass
    for stage in (Stage.PUT, Stage.CONVERSATION):
        sandbox.on(step_of(stage, gateway), Fault(FaultKind.DELAY, times=None, delay_s=_ANSWER_S))


def _config(sandbox: Sandbox, inbox: Path, state: Path, gateway: Gateway) -> str:
    # The inbox stands last in what the sandbox writes, so its further keys follow.
    return sandbox.config_yaml(inbox, gateway=gateway) + "\n".join(
        [
            "    allow_types:",
            "      - application/pdf",
            "      - application/vnd.openxmlformats-officedocument.*",
            "      - image/*",
            "      - text/*",
            f"state_dir: {json.dumps(str(state))}",  # a JSON string is a YAML string, whatever the path contains
            "log: {level: info, format: json}",
            'admin: {listen: "off"}',
            "",
        ]
    )


def _next_steps(command: str) -> Sequence[tuple[str, str]]:
    return (
        (f"{command} sandbox", "a local platform, and a config for it"),
        (f"{command} run -c config.yaml", "the daemon, with that config"),
        ("README.md", "from nothing to the first real conversation"),
    )


def _command() -> str:
    """How people can call attachd from here."""
    beside = Path(sys.executable).with_name("attachd")
    if shutil.which("attachd") == str(beside) or not beside.exists():
        return "attachd"
    relative = os.path.relpath(beside)
    return str(beside) if relative.startswith("..") else relative


def _console() -> Console:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that lacks a letter of a name shows its escape; that is no reason to end.
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(highlight=False)


def _system_errors(error: OSError | ExceptionGroup) -> list[str]:
    """What the operating system refused, in words; empty when anything else went wrong as well."""
    if isinstance(error, OSError):
        return [str(error)]
    refused, others = error.split(OSError)
    if refused is None or others is not None:
        return []
    return [words for inner in refused.exceptions for words in _system_errors(inner)]


@contextlib.contextmanager
def _cancelled_by_signals(came: list[signal.Signals]) -> Iterator[None]:
    """Cancel this task on SIGTERM and SIGHUP, so that what is open is closed; `came` says which of them came."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def cancel(which: signal.Signals) -> None:
        if not came:
            task.cancel()
        came.append(which)

    wanted = [which for which in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(which) is signal.SIG_DFL]
    for which in wanted:
        loop.add_signal_handler(which, cancel, which)
    try:
        yield
    finally:
        for which in wanted:
            loop.remove_signal_handler(which)
