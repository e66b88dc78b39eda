"""The parts of a running daemon, in the test's own process: what it would tell, with nothing between."""

import asyncio
import io
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

from attachd import config, telemetry
from attachd.admin.server import AdminServer
from attachd.daemon.live import LiveInbox, LiveOverview
from attachd.daemon.parts import folders_of, new_delivery_id, open_gateway, utcnow
from attachd.daemon.tokens import load_or_make_token
from attachd.delivery.dispatcher import Dispatcher
from attachd.delivery.lifecycle import Rules
from attachd.delivery.pauses import Pauses
from attachd.delivery.pipeline import InboxPlan, Pipeline
from attachd.intake.inbox import InboxIntake, IntakeRules
from attachd.journal.sqlite import SqliteJournal
from attachd.metrics import Metrics


@asynccontextmanager
async def living(config_file: Path) -> AsyncIterator[LiveOverview]:
    """attachd at work by this config, its admin server included unless that is off."""
    settings = config.load(config_file, {})
    rules = Rules(settings.delivery.max_attempts, settings.delivery.on_unknown_outcome)
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
        pipeline = Pipeline(
            journal,
            gateway.gateway,
            rules,
            max_file_bytes=settings.platform.max_file_size,
            now=utcnow,
            clock=time.monotonic,
            passed=pauses.passed,
        )
        plans = {}
        for inbox in settings.inboxes:
            filing = folders_of(inbox)
            filing.open()
            stack.callback(filing.close)
            plans[inbox.name] = InboxPlan(inbox.name, inbox.routing, inbox.message, inbox.allow_types, filing)
        dispatcher = Dispatcher(
            journal,
            pipeline,
            pauses,
            plans,
            rules,
            concurrency=settings.delivery.concurrency,
            now=utcnow,
            clock=time.monotonic,
            chance=chance,
            metrics=metrics,
            new_id=new_delivery_id,
        )
        seen = []
        for inbox in settings.inboxes:
            await dispatcher.recover(inbox.name)
            intake = InboxIntake(
                inbox.name,
                IntakeRules(
                    str(inbox.path), inbox.include, inbox.exclude, inbox.recursive, inbox.settle_s, rescan_s=0.2
                ),
                dispatcher.offer,
                lost=pauses.folder_lost,
                found=dispatcher.found,
                clock=time.monotonic,
            )
            seen.append(LiveInbox(inbox, intake, plans[inbox.name].filing))
        overview = LiveOverview(lambda: seen, journal, dispatcher, pauses, now=utcnow, clock=time.monotonic)
        if settings.admin.listen != "off":
            server = AdminServer(
                overview,
                overview,
                Metrics(),
                listen=settings.admin.listen,
                token=load_or_make_token(settings.state_dir),
                healthy=_all_well,
                ready=list,
            )
            await stack.enter_async_context(server)
        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(dispatcher.run()), *(tasks.create_task(one.intake.run()) for one in seen)]
            try:
                yield overview
            finally:
                for task in work:
                    task.cancel()


async def _all_well() -> list[str]:
    return []
