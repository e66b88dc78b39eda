"""One run of attachd: builds the parts from the config, owns their tasks, and ends in two phases.

From the outside in: an exit stack with the journal, the folders and the gateway, opened first and closed last; inside
it one task group, which nothing outlives.
"""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import date, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import structlog

from attachd import __version__, config, telemetry
from attachd.config import Config
from attachd.daemon.parts import folders_of, new_delivery_id, open_gateway, utcnow
from attachd.delivery.dispatcher import Dispatcher
from attachd.delivery.filing import OWN_FOLDER
from attachd.delivery.health import CANARY
from attachd.delivery.lifecycle import Rules
from attachd.delivery.pauses import Pauses
from attachd.delivery.pipeline import InboxPlan, Pipeline
from attachd.errors import AccountError, ConfigError, InboxError, JournalBusy, TransientError
from attachd.gateway.guests import load_guest_key
from attachd.gateway.webchat import Webchat
from attachd.gateway.webmessaging import WebMessaging
from attachd.intake.inbox import InboxIntake, IntakeRules
from attachd.intake.watch import WatchMode
from attachd.journal.sqlite import SqliteJournal
from attachd.model import InboxName, Reason, StateName, Step
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
        self._holds: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
        self.ready = asyncio.Event()

    def stop(self) -> None:
        """Ask for the end: once for a gentle one, twice for a quick one."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def run(self, notifier: Notifier) -> None:
        """Work until asked to stop."""
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            for wanted in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(wanted, self.stop)
                stack.callback(loop.remove_signal_handler, wanted)
            loop.add_signal_handler(signal.SIGHUP, self._reload)
            stack.callback(loop.remove_signal_handler, signal.SIGHUP)
            inboxes = await self._open_inboxes(stack)
            journal = await stack.enter_async_context(
                SqliteJournal.open(self._settings.state_dir, utcnow(), lambda: uuid4().hex)
            )
            if journal.replaced:
                log.error("journal.replaced", detail=journal.replaced)
            gateway = await stack.enter_async_context(
                open_gateway(
                    self._settings,
                    client_secret=lambda: self._secret,
                    guest_key=await asyncio.to_thread(load_guest_key, self._settings.state_dir),
                    on_hold=lambda *hold: self._holds.put_nowait(hold),
                )
            )
            await self._work(journal, gateway, inboxes, notifier)
        log.info("daemon.stopped", version=__version__)

    async def _open_inboxes(self, stack: AsyncExitStack) -> dict[InboxName, InboxPlan]:
        """Open all folders, or say of all that cannot be opened why not."""
        inboxes, problems = {}, []
        for index, inbox in enumerate(self._settings.inboxes):
            filing = folders_of(inbox)
            try:
                await asyncio.to_thread(filing.open)
            except InboxError as error:
                if error.reason is Reason.FOLDER_IN_USE:
                    raise JournalBusy(str(error)) from error
                problems.append(f"inboxes[{index}].path: {error}")
                continue
            stack.callback(filing.close)
            inboxes[inbox.name] = InboxPlan(inbox.name, inbox.routing, inbox.message, inbox.allow_types, filing)
        if problems:
            raise ConfigError(str(self._source), problems)
        return inboxes

    async def _work(
        self,
        journal: SqliteJournal,
        gateway: Webchat | WebMessaging,
        inboxes: Mapping[InboxName, InboxPlan],
        notifier: Notifier,
    ) -> None:
        settings = self._settings
        rules = Rules(settings.delivery.max_attempts, settings.delivery.on_unknown_outcome)
        pauses = Pauses(clock=time.monotonic, chance=self._chance)
        pipeline = Pipeline(
            journal,
            gateway.gateway,
            rules,
            max_file_bytes=settings.platform.max_file_size,
            now=utcnow,
            clock=time.monotonic,
            passed=pauses.passed,
        )
        dispatcher = Dispatcher(
            journal,
            pipeline,
            pauses,
            inboxes,
            rules,
            concurrency=settings.delivery.concurrency,
            now=utcnow,
            clock=time.monotonic,
            chance=self._chance,
            new_id=new_delivery_id,
        )
        await self._keep_silence(journal, gateway, pauses)
        recovered = await self._recover(dispatcher, pauses, inboxes)
        log.info("daemon.started", version=__version__, inboxes=list(inboxes), recovered=recovered)
        async with asyncio.TaskGroup() as tasks:
            intakes = [self._intake(inbox, dispatcher, pauses) for inbox in settings.inboxes]
            seeing = [tasks.create_task(intake.run(), name=f"intake {intake.name}") for intake in intakes]
            working = tasks.create_task(dispatcher.run(), name="dispatcher")
            services = [
                tasks.create_task(self._greet(gateway, pauses), name="greeting"),
                tasks.create_task(self._remember_holds(journal), name="holds"),
                tasks.create_task(self._feed_watchdog(notifier), name="watchdog"),
                tasks.create_task(self._summarise(journal, intakes), name="summaries"),
            ]
            log.info("daemon.ready", version=__version__, inboxes=list(inboxes))
            notifier.ready(f"watching {len(inboxes)} inboxes")
            self.ready.set()
            await self._stop.wait()
            under_way = len(dispatcher.under_way())
            log.info("daemon.stopping", version=__version__, in_flight=under_way)
            notifier.stopping(f"{under_way} files under way")
            for task in seeing:  # 1. nothing new comes in
                task.cancel()
            dispatcher.stop()
            await self._drain(dispatcher)  # 2. what is under way may end
            for task in (working, *services):  # 3. the journal remembers the rest
                task.cancel()

    async def _drain(self, dispatcher: Dispatcher) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.delivery.shutdown_grace_s):
                waits = [asyncio.ensure_future(dispatcher.drained()), asyncio.ensure_future(self._stop_now.wait())]
                try:
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for wait in waits:
                        wait.cancel()

    def _intake(self, inbox: config.Inbox, dispatcher: Dispatcher, pauses: Pauses) -> InboxIntake:
        rules = IntakeRules(
            path=str(inbox.path),
            include=inbox.include,
            exclude=inbox.exclude,
            recursive=inbox.recursive,
            settle_s=inbox.settle_s,
            rescan_s=inbox.rescan_s,
            watch=WatchMode(inbox.watch),
            own=frozenset({inbox.sent.split("/")[0], inbox.failed.split("/")[0], OWN_FOLDER}),
        )
        return InboxIntake(
            inbox.name,
            rules,
            dispatcher.offer,
            lost=pauses.folder_lost,
            found=dispatcher.found,
            clock=time.monotonic,
        )

    async def _recover(self, dispatcher: Dispatcher, pauses: Pauses, inboxes: Mapping[InboxName, InboxPlan]) -> int:
        recovered = 0
        for name in inboxes:
            try:
                recovered += await dispatcher.recover(name)
            except InboxError as error:
                pauses.folder_lost(name, error)  # its intake finds it again
        return recovered

    # --- the platform ---------------------------------------------------------------------------------------------

    async def _keep_silence(self, journal: SqliteJournal, gateway: Webchat | WebMessaging, pauses: Pauses) -> None:
        """Go on keeping the silence that the platform asked an earlier process for, but never longer than it can
        mean.
        """
        if not (held := await journal.held_until()):
            return
        until, detail = held
        left_s = min((until - utcnow()).total_seconds(), _LONGEST_HOLD_S)
        if left_s > 0:
            gateway.gate.hold(left_s, detail)
            pauses.hold(TransientError(Reason.RATE_LIMITED, detail, Step.TOKEN, retry_after_s=left_s))

    async def _remember_holds(self, journal: SqliteJournal) -> None:
        while True:
            seconds, detail = await self._holds.get()
            now = utcnow()
            with contextlib.suppress(AccountError):  # no room: only a restart would ask for it
                await journal.hold_until(now + timedelta(seconds=seconds), detail, now)

    async def _greet(self, gateway: Webchat | WebMessaging, pauses: Pauses) -> None:
        """Find out before the first file whether the platform lets us in; if not, say so, and the canary goes on."""
        try:
            await gateway.check_credentials()
        except (AccountError, TransientError) as error:
            trouble = AccountError(error.reason, str(error), error.step)
            pauses.failed(CANARY, InboxName(""), trouble, strike=False, alone=False)

    # --- every day ------------------------------------------------------------------------------------------------

    async def _summarise(self, journal: SqliteJournal, intakes: Sequence[InboxIntake]) -> None:
        """At each local midnight one record for each inbox: what went, what failed, what waits."""
        day, before = _today(), await journal.finished_counts()
        while True:
            await asyncio.sleep(_DAY_CHECK_S)
            if _today() == day:
                continue
            summed, day, after = day, _today(), await journal.finished_counts()
            for intake in intakes:
                ended = {
                    state: after.get(intake.name, {}).get(state, 0) for state in (StateName.SENT, StateName.FAILED)
                }
                known = before.get(intake.name, {})
                log.info(
                    "inbox.summary",
                    inbox=intake.name,
                    day=summed.isoformat(),
                    sent=ended[StateName.SENT] - known.get(StateName.SENT, 0),
                    failed=ended[StateName.FAILED] - known.get(StateName.FAILED, 0),
                    waiting=intake.waiting,
                    oldest_waiting_s=intake.oldest_waiting_s(time.monotonic()),
                )
            before = after

    # --- signals --------------------------------------------------------------------------------------------------

    def _reload(self) -> None:
        """Read the config again: a rotated secret is used from now on; what else changed is said to need a restart.

        The log file is opened anew, so that it can be rotated by renaming it.
        """
        try:
            self._reopen_log()
            found = config.load(self._source, self._env)
        except ConfigError as error:
            log.error("daemon.reload_refused", detail=str(error), problems=error.problems)
            return
        self._secret = found.platform.client_secret.get_secret_value()
        telemetry.redact("client secret", self._secret)
        same_secret = {"client_secret": self._settings.platform.client_secret}
        found = found.model_copy(update={"platform": found.platform.model_copy(update=same_secret)})
        changed = [key for key in Config.model_fields if getattr(found, key) != getattr(self._settings, key)]
        log.info("daemon.reloaded", version=__version__, needs_restart=changed)

    async def _feed_watchdog(self, notifier: Notifier) -> None:
        """Tell systemd that the loop turns; when it hangs, systemd starts the daemon again."""
        if (interval_s := notifier.watchdog_interval_s) is None:
            return
        while True:
            notifier.watchdog()
            await asyncio.sleep(interval_s)


_LONGEST_HOLD_S = 3600.0
_DAY_CHECK_S = 60.0


def _today() -> date:
    return datetime.now().astimezone().date()
