"""Builds one concrete part at a time from the config, for the service and for the commands that need no service."""

import random
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from attachd import config
from attachd.config import Config
from attachd.delivery.dispatcher import Dispatcher
from attachd.delivery.filing import Filing
from attachd.delivery.lifecycle import Rules
from attachd.delivery.pauses import Pauses
from attachd.delivery.pipeline import InboxPlan, Pipeline
from attachd.metrics import Metrics
from attachd.model import DeliveryId, InboxName, delivery_id
from attachd.ports import GuestGateway, Journal

if TYPE_CHECKING:
    from attachd.gateway.webchat import Webchat
    from attachd.gateway.webmessaging import WebMessaging

OpenGateway: TypeAlias = "Webchat | WebMessaging"


def utcnow() -> datetime:
    """The time, for records and for people; durations are measured on the monotonic clock."""
    return datetime.now(UTC)


def new_delivery_id() -> DeliveryId:
    """An id for a delivery that is claimed now."""
    return delivery_id(time.time_ns() // 1_000_000, secrets.randbits(74))


def open_gateway(
    settings: Config,
    *,
    client_secret: Callable[[], str],
    guest_key: bytes,
    on_hold: Callable[[float, str], None] | None = None,
) -> AbstractAsyncContextManager[OpenGateway]:
    """The gateway that the config names, for as long as the block lasts.

    `guest_key` is what guests' secrets are made from; who need not find a guest again may take any 32 bytes.
    """
    platform = settings.platform
    ca_file = str(platform.ca_file) if platform.ca_file else None
    # Imported here, for a daemon keeps for months what it imports, and the other one is a megabyte.
    match platform.gateway:
        case "webchat":
            from attachd.gateway.webchat import open_webchat

            return open_webchat(
                api_url=platform.api_url,
                login_url=platform.login_url,
                client_id=platform.client_id,
                client_secret=client_secret,
                requests_per_second=platform.requests_per_second,
                ca_file=ca_file,
                proxy_for=platform.proxy_for,
                clock=time.monotonic,
                jitter=random.uniform,
                on_hold=on_hold,
                upload_hosts=platform.upload_hosts,
            )
        case "webmessaging":
            from attachd.gateway.webmessaging import open_webmessaging

            assert platform.deployment_id is not None
            return open_webmessaging(
                deployment_id=platform.deployment_id,
                guest_key=guest_key,
                messaging_url=platform.messaging_url,
                config_url=platform.config_url,
                api_url=platform.api_url,
                origin=platform.origin,
                ca_file=ca_file,
                proxy_for=platform.proxy_for,
                clock=time.monotonic,
                jitter=random.uniform,
                on_hold=on_hold,
                upload_hosts=platform.upload_hosts,
            )


def rules_of(settings: Config) -> Rules:
    """What the operator chose for deliveries."""
    return Rules(settings.delivery.max_attempts, settings.delivery.on_unknown_outcome)


def build_dispatcher(
    settings: Config,
    journal: Journal,
    gateway: GuestGateway,
    pauses: Pauses,
    plans: Mapping[InboxName, InboxPlan],
    *,
    chance: random.Random,
    metrics: Metrics,
) -> Dispatcher:
    """The dispatcher and the pipeline under it, by the config's rules and limits."""
    pipeline = Pipeline(
        journal,
        gateway,
        rules_of(settings),
        max_file_bytes=settings.platform.max_file_size,
        now=utcnow,
        clock=time.monotonic,
        passed=pauses.passed,
    )
    return Dispatcher(
        journal,
        pipeline,
        pauses,
        plans,
        rules_of(settings),
        concurrency=settings.delivery.concurrency,
        now=utcnow,
        clock=time.monotonic,
        chance=chance,
        metrics=metrics,
        new_id=new_delivery_id,
    )


def folders_of(inbox: config.Inbox) -> Filing:
    """The folders of an inbox, not opened yet."""
    return Filing(inbox.name, inbox.path, sent=inbox.sent, failed=inbox.failed)
