"""One run of attachd: builds the parts from the config, owns their tasks, and ends in two phases.

From the outside in: an exit stack with the journal, the folders and the gateway, opened first and closed last; inside
it one task group, which nothing outlives.
"""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import date, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import structlog

from attachd import __version__, config, telemetry
from attachd.admin.server import AdminServer, CannotListen
from attachd.config import Config
from attachd.daemon.inboxes import Inboxes
from attachd.daemon.live import LiveOverview
from attachd.daemon.parts import OpenGateway, build_dispatcher, open_gateway, rules_of, utcnow
from attachd.daemon.reload import compare, merged
from attachd.daemon.tokens import load_or_make_token
from attachd.delivery.dispatcher import Dispatcher
from attachd.delivery.health import CANARY
from attachd.delivery.pauses import Pauses
from attachd.errors import AccountError, ConfigError, JournalBusy, TransientError
from attachd.gateway.guard import Gate
from attachd.gateway.guests import load_guest_key
from attachd.intake.inbox import InboxIntake
from attachd.journal.sqlite import SqliteJournal
from attachd.metrics import Metrics
from attachd.model import InboxName, Reason, StateName, Step
from attachd.ports import Journal
from attachd.sdnotify import Notifier

log = structlog.get_logger("attachd.daemon")


class Daemon:
    """One run of attachd, from the config to the last log record.

    `run` returns after a stop that was asked for; it raises ConfigError (a folder cannot be used), JournalBusy,
    JournalError.
    """

    def __init__(
        self, settings: Config, source: Path, env: Mapping[str, str], *, reopen_log: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._source = source
        self._env = env
        self._reopen_log = reopen_log
        self._secret = settings.platform.client_secret.get_secret_value()
        self._chance = random.Random()  # noqa: S311  spreads waits, guards nothing
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._reload = asyncio.Event()

    def stop(self) -> None:
        """Ask for the end: once for a gentle one, twice for a quick one."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def run(self, notifier: Notifier) -> None:
        """Work until asked to stop."""
        loop = asyncio.get_running_loop()
        reactions = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self._reload.set}
        async with AsyncExitStack() as stack:
            for wanted, reaction in reactions.items():
                loop.add_signal_handler(wanted, reaction)
                stack.callback(loop.remove_signal_handler, wanted)
            inboxes = await stack.enter_async_context(Inboxes(self._source))
            await inboxes.open(enumerate(self._settings.inboxes))
            journal = await stack.enter_async_context(
                SqliteJournal.open(self._settings.state_dir, utcnow(), lambda: uuid4().hex)
            )
            if journal.replaced:
                log.error("journal.replaced", detail=journal.replaced)
            silence = Silence(journal, now=utcnow)
            gateway = await stack.enter_async_context(
                open_gateway(
                    self._settings,
                    client_secret=lambda: self._secret,
                    guest_key=await asyncio.to_thread(load_guest_key, self._settings.state_dir),
                    on_hold=silence.told,
                )
            )
            await self._work(journal, gateway, silence, inboxes, notifier)
        log.info("daemon.stopped", version=__version__)

    async def _work(
        self,
        journal: SqliteJournal,
        gateway: OpenGateway,
        silence: "Silence",
        inboxes: Inboxes,
        notifier: Notifier,
    ) -> None:
        settings = self._settings
        metrics = Metrics()
        pauses = Pauses(clock=time.monotonic, chance=self._chance, metrics=metrics)
        dispatcher = build_dispatcher(
            settings, journal, gateway.gateway, pauses, inboxes.plans, chance=self._chance, metrics=metrics
        )
        metrics.quota_from(quota_use(gateway.gate, settings.platform.requests_per_second, time.monotonic))
        await silence.keep(gateway.gate, pauses)
        recovered = await inboxes.recover(dispatcher, pauses, inboxes.plans)
        log.info("daemon.started", version=__version__, inboxes=list(inboxes.plans), recovered=recovered)
        overview = LiveOverview(lambda: inboxes.live, journal, dispatcher, pauses, now=utcnow, clock=time.monotonic)
        async with self._admin(overview, journal, metrics), asyncio.TaskGroup() as tasks:
            for inbox in settings.inboxes:
                inboxes.see(inbox, dispatcher, pauses, tasks)
            working = [
                tasks.create_task(dispatcher.run(), name="dispatcher"),
                tasks.create_task(greet(gateway, pauses), name="greeting"),
                tasks.create_task(silence.remember(), name="silence"),
                tasks.create_task(summarise(journal, lambda: inboxes.intakes), name="summaries"),
                tasks.create_task(measure_scans(metrics, lambda: inboxes.intakes), name="scan figures"),
                tasks.create_task(feed_watchdog(notifier, dispatcher), name="watchdog"),
                tasks.create_task(self._reloads(inboxes, dispatcher, pauses, tasks, notifier), name="reloads"),
            ]
            log.info("daemon.ready", version=__version__, inboxes=list(inboxes.plans))
            notifier.ready(_watching(inboxes))
            await self._stop.wait()
            under_way = len(dispatcher.under_way())
            log.info("daemon.stopping", version=__version__, in_flight=under_way)
            notifier.stopping(f"{under_way} files under way")
            dispatcher.stop()
            await inboxes.look_away(list(inboxes.plans))  # 1. nothing new comes in
            await self._drain(dispatcher)  # 2. what is under way may end
            for task in working:  # 3. the journal remembers the rest
                task.cancel()
            inboxes.forget_dropped()

    @contextlib.asynccontextmanager
    async def _admin(self, overview: LiveOverview, journal: SqliteJournal, metrics: Metrics) -> AsyncIterator[None]:
        """The admin server, if the config wants one."""
        listen = self._settings.admin.listen
        if listen == "off":
            yield
            return

        async def healthy() -> list[str]:
            await journal.held_until()  # the journal's thread answers
            return []

        server = AdminServer(
            overview,
            overview,
            metrics,
            listen=listen,
            token=await asyncio.to_thread(load_or_make_token, self._settings.state_dir),
            healthy=healthy,
            ready=overview.not_ready,
        )
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(server)
            except CannotListen as error:
                raise ConfigError(str(self._source), [f"admin.listen: {error}"]) from error
            yield

    async def _drain(self, dispatcher: Dispatcher) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.delivery.shutdown_grace_s):
                waits = [asyncio.ensure_future(dispatcher.drained()), asyncio.ensure_future(self._stop_now.wait())]
                try:
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for wait in waits:
                        wait.cancel()

    # --- reload ---------------------------------------------------------------------------------------------------

    async def _reloads(
        self, inboxes: Inboxes, dispatcher: Dispatcher, pauses: Pauses, tasks: asyncio.TaskGroup, notifier: Notifier
    ) -> None:
        """At each SIGHUP: open the log anew, read the config, take on what differs; a bad one changes nothing."""
        while True:
            await self._reload.wait()
            self._reload.clear()
            notifier.reloading()
            try:
                self._reopen_log()
                found = await asyncio.to_thread(config.load, self._source, self._env)
                changes = compare(self._settings, found)
                await inboxes.open(place for place in enumerate(found.inboxes) if place[1] in changes.added)
            except (ConfigError, JournalBusy) as error:
                problems = error.problems if isinstance(error, ConfigError) else [str(error)]
                log.error("daemon.reload_refused", detail=str(error), problems=problems)
            else:
                self._settings = merged(self._settings, found, changes)
                self._secret = self._settings.platform.client_secret.get_secret_value()
                telemetry.redact("client secret", self._secret)
                dispatcher.go_by(rules_of(self._settings), self._settings.delivery.concurrency)
                await inboxes.adopt(changes, dispatcher, pauses, tasks)
                log.info(
                    "daemon.reloaded",
                    version=__version__,
                    inboxes=list(inboxes.plans),
                    added=[inbox.name for inbox in changes.added],
                    removed=list(changes.removed),
                    changed=[*(f"inboxes ({inbox.name})" for inbox in changes.changed), *changes.settings],
                    needs_restart=list(changes.needs_restart),
                )
            notifier.ready(_watching(inboxes))


def _watching(inboxes: Inboxes) -> str:
    number = len(inboxes.plans)
    return f"watching {number} inbox{'es' if number != 1 else ''}"


# --- the platform -----------------------------------------------------------------------------------------------------


class Silence:
    """The silence that the platform asks for, kept over a restart."""

    def __init__(self, journal: Journal, now: Callable[[], datetime]) -> None:
        self._journal = journal
        self._now = now
        self._told: asyncio.Queue[tuple[float, str]] = asyncio.Queue()

    def told(self, seconds: float, detail: str) -> None:
        """The platform asks for so many seconds; to be remembered soon."""
        self._told.put_nowait((seconds, detail))

    async def remember(self) -> None:
        """Write down what was told, until cancelled."""
        while True:
            seconds, detail = await self._told.get()
            now = self._now()
            with contextlib.suppress(AccountError):  # no room: only a restart would ask for it
                await self._journal.hold_until(now + timedelta(seconds=seconds), detail, now)

    async def keep(self, gate: Gate, pauses: Pauses) -> None:
        """Go on keeping what an earlier process was told, but never longer than it can mean."""
        if not (held := await self._journal.held_until()):
            return
        until, detail = held
        left_s = min((until - self._now()).total_seconds(), _LONGEST_HOLD_S)
        if left_s > 0:
            gate.hold(left_s, detail)
            pauses.hold(TransientError(Reason.RATE_LIMITED, detail, Step.TOKEN, retry_after_s=left_s))


async def greet(gateway: OpenGateway, pauses: Pauses) -> None:
    """Find out before the first file whether the platform lets us in; if not, say so, and the canary goes on asking."""
    try:
        await gateway.check_credentials()
    except (AccountError, TransientError) as error:
        told_to_wait = isinstance(error, TransientError) and error.retry_after_s is not None
        trouble = error if told_to_wait else AccountError(error.reason, str(error), error.step)
        pauses.failed(CANARY, InboxName(""), trouble, strike=False, alone=False)


# --- at regular times -----------------------------------------------------------------------------------------------


async def feed_watchdog(notifier: Notifier, dispatcher: Dispatcher) -> None:
    """Tell systemd that the loop that does the work turns; when it hangs, systemd starts the daemon again."""
    if (interval_s := notifier.watchdog_interval_s) is None:
        return
    while True:
        await dispatcher.turned()
        notifier.watchdog()
        await asyncio.sleep(interval_s)


async def measure_scans(metrics: Metrics, intakes: Callable[[], Sequence[InboxIntake]]) -> None:
    """Keep the figures of looking for files current for whoever collects them."""
    while True:
        for intake in intakes():
            metrics.scanned(intake.name, intake.last_scan_s, intake.found_by_scan_only)
        await asyncio.sleep(_SCAN_FIGURES_S)


def quota_use(gate: Gate, requests_per_second: float, clock: Callable[[], float]) -> Callable[[], float]:
    """A function that tells the share of the quota used since it was asked last."""
    asked_at, admitted = clock(), gate.admitted

    def used() -> float:
        nonlocal asked_at, admitted
        now, total = clock(), gate.admitted
        share = (total - admitted) / max(now - asked_at, 1e-3) / requests_per_second
        asked_at, admitted = now, total
        return min(share, 1.0)

    return used


async def summarise(journal: Journal, intakes: Callable[[], Sequence[InboxIntake]]) -> None:
    """At each local midnight one record for each inbox: what went, what failed, what waits."""
    day, before = _today(), await journal.finished_counts()
    while True:
        await asyncio.sleep(_DAY_CHECK_S)
        if _today() == day:
            continue
        summed, day, after = day, _today(), await journal.finished_counts()
        for intake in intakes():
            ended, known = after.get(intake.name, {}), before.get(intake.name, {})
            log.info(
                "inbox.summary",
                inbox=intake.name,
                day=summed.isoformat(),
                sent=ended.get(StateName.SENT, 0) - known.get(StateName.SENT, 0),
                failed=ended.get(StateName.FAILED, 0) - known.get(StateName.FAILED, 0),
                waiting=intake.waiting,
                oldest_waiting_s=intake.oldest_waiting_s(time.monotonic()),
            )
        before = after


_LONGEST_HOLD_S = 3600.0
_DAY_CHECK_S = 60.0
_SCAN_FIGURES_S = 10.0


def _today() -> date:
    return datetime.now().astimezone().date()
