"""The parts of a running daemon, in the test's own process: what it would tell, with nothing between."""

import asyncio
import io
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

from attachd import config, telemetry
from attachd.admin.server import AdminServer
from attachd.config import Config
from attachd.daemon.live import LiveInbox, LiveOverview
from attachd.daemon.parts import build_dispatcher, folders_of, open_gateway, utcnow
from attachd.daemon.tokens import load_or_make_token
from attachd.delivery.dispatcher import Dispatcher
from attachd.delivery.pauses import Pauses
from attachd.delivery.pipeline import InboxPlan
from attachd.intake.inbox import InboxIntake, IntakeRules
from attachd.journal.sqlite import SqliteJournal
from attachd.metrics import Metrics
from attachd.model import InboxName


@asynccontextmanager
async def living(config_file: Path) -> AsyncIterator[LiveOverview]:
    """attachd at work by this config, its admin server included unless that is off."""
    settings = config.load(config_file, {})
    chance = random.Random(1)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        telemetry.configure(level="debug", json=True, stream=io.StringIO())
        stack.callback(telemetry.release)
        journal = await stack.enter_async_context(
            SqliteJournal.open(settings.state_dir, utcnow(), lambda: uuid4().hex, ballast_bytes=0)
        )
        secret = settings.platform.client_secret.get_secret_value
        gateway = await stack.enter_async_context(
            open_gateway(settings, client_secret=secret, guest_key=b"k" * 32, on_hold=lambda *_: None)
        )
        pauses = Pauses(clock=time.monotonic, chance=chance, metrics=metrics)
        plans = _open_folders(settings, stack)
        dispatcher = build_dispatcher(settings, journal, gateway.gateway, pauses, plans, chance=chance, metrics=metrics)
        seen = [await _watched(inbox, plans[inbox.name], dispatcher, pauses) for inbox in settings.inboxes]
        overview = LiveOverview(lambda: seen, journal, dispatcher, pauses, now=utcnow, clock=time.monotonic)
        if settings.admin.listen != "off":
            await stack.enter_async_context(_admin(settings, overview))
        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(dispatcher.run()), *(tasks.create_task(one.intake.run()) for one in seen)]
            try:
                yield overview
            finally:
                for task in work:
                    task.cancel()


def _open_folders(settings: Config, stack: AsyncExitStack) -> Mapping[InboxName, InboxPlan]:
    plans = {}
    for inbox in settings.inboxes:
        filing = folders_of(inbox)
        filing.open()
        stack.callback(filing.close)
        plans[inbox.name] = InboxPlan(inbox.name, inbox.routing, inbox.message, inbox.allow_types, filing)
    return plans


async def _watched(inbox: config.Inbox, plan: InboxPlan, dispatcher: Dispatcher, pauses: Pauses) -> LiveInbox:
    await dispatcher.recover(inbox.name)
    intake = InboxIntake(
        inbox.name,
        IntakeRules(str(inbox.path), inbox.include, inbox.exclude, inbox.recursive, inbox.settle_s, rescan_s=0.2),
        dispatcher.offer,
        lost=pauses.folder_lost,
        found=dispatcher.found,
        clock=time.monotonic,
    )
    return LiveInbox(inbox, intake, plan.filing)


def _admin(settings: Config, overview: LiveOverview) -> AdminServer:
    return AdminServer(
        overview,
        overview,
        Metrics(),
        listen=settings.admin.listen,
        token=load_or_make_token(settings.state_dir),
        healthy=_all_well,
        ready=list,
    )


async def _all_well() -> list[str]:
    return []
