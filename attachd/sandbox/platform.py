"""The platform as a whole: builds the parts, gives each its place, starts and stops them.

Two ports, as in reality several hosts: one for login, API, socket and control, one for the storage, unless an S3
server that others wrote stands in for it.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike, fspath
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from attachd.sandbox.clock import Clock
from attachd.sandbox.control import Control
from attachd.sandbox.exchange import Decide, Handler, answering
from attachd.sandbox.faults import Fault, Faults
from attachd.sandbox.ids import new_id
from attachd.sandbox.ledger import Ledger, Message, Received, StoredObject
from attachd.sandbox.listener import Listener
from attachd.sandbox.oauth import Login
from attachd.sandbox.places import Places
from attachd.sandbox.remote import RemoteStorage
from attachd.sandbox.reply import refusal, rendered
from attachd.sandbox.settings import SandboxSettings, changed
from attachd.sandbox.step import Gateway, Step
from attachd.sandbox.storage import Storage
from attachd.sandbox.webchat import CONVERSATION_PATH, GUEST_PATH, UPLOAD_PATH, Webchat
from attachd.sandbox.webmessaging.deployment import DEPLOYMENT_PATH
from attachd.sandbox.webmessaging.gate import SOCKET_PATH
from attachd.sandbox.webmessaging.history import HISTORY_PATH
from attachd.sandbox.webmessaging.messenger import WebMessaging
from attachd.sandbox.webmessaging.session import Sessions
from attachd.sandbox.webmessaging.uploads import UploadEvents

_TOKEN_PATH: Final = "/oauth/token"  # noqa: S105 - a path


class Sandbox:
    """A running platform: `async with Sandbox() as sandbox`. What it received outlives the block."""

    def __init__(self, settings: SandboxSettings | None = None, clock: Clock | None = None) -> None:
        self._settings = settings or SandboxSettings()
        self._clock = clock or Clock()
        self._listeners: list[Listener] = []
        self._api: Listener | None = None
        self._remote: RemoteStorage | None = None
        self._webchat: Webchat | None = None
        self._messaging: WebMessaging | None = None
        self.faults = Faults()
        self.ledger = Ledger(self._clock, counts_only=self._settings.ledger == "counts")
        self._login = Login(self._current, self.ledger, self._clock)
        self._sessions = Sessions(self._current, self.ledger, self._clock)
        self._uploads = UploadEvents(self._current, self._sessions, self.faults, self.ledger, self._clock)

    async def __aenter__(self) -> Self:
        settings = self._settings
        try:
            self._api = self._listen(settings.port)
            places = await self._places(settings)
            self._webchat = Webchat(self._current, self._login, places, self.ledger, self._clock)
            self._messaging = WebMessaging(
                self._current, self._api.authority, self._sessions, places, self.faults, self.ledger, self._clock
            )
            await self._api.serve(self._api_app(self._webchat, self._messaging))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    @property
    def settings(self) -> SandboxSettings:
        return self._settings

    @property
    def api_url(self) -> str:
        assert self._api is not None, "the sandbox has not been started"
        return f"http://{self._api.authority}"

    @property
    def login_url(self) -> str:
        return self.api_url

    @property
    def messaging_url(self) -> str:
        """Base of the guest WebSocket, without its path."""
        assert self._api is not None, "the sandbox has not been started"
        return f"ws://{self._api.authority}"

    @property
    def config_url(self) -> str:
        """Base of the deployment configurations, without their path."""
        return self.api_url

    @property
    def deployment_id(self) -> str:
        return self._settings.deployment_id

    @property
    def client_id(self) -> str:
        return self._settings.client_id

    @property
    def client_secret(self) -> str:
        return self._settings.client_secret

    @property
    def queue_id(self) -> str:
        return self._settings.queue_id

    @property
    def messages(self) -> list[Message]:
        return self.ledger.messages

    @property
    def objects(self) -> list[StoredObject]:
        return self.ledger.objects

    def messages_for(self, file_name: str) -> list[Message]:
        return self.ledger.messages_for(file_name)

    def requests(self, step: Step | str) -> list[Received]:
        return self.ledger.requests(Step(step))

    def on(self, step: Step | str, fault: Fault) -> None:
        """Arm a fault. Raises ValueError when it cannot happen at this step."""
        self.faults.arm(Step(step), fault)

    def clear(self) -> None:
        """Disarm every fault and forget what was received, open sessions included; tokens stay valid."""
        self.faults.clear()
        self._forget()
        if self._webchat is not None:
            self._webchat.clear()
        if self._messaging is not None:
            self._messaging.gate.clear()

    def change(self, **patch: object) -> None:
        """Change settings at run time, such as `client_secret`. Raises ValueError for what cannot be changed."""
        self._change(patch)

    def revoke_tokens(self) -> None:
        self._login.revoke_all()

    def expire_sessions(self) -> None:
        """Web messaging: all sessions are over now; who listens hears SessionExpiredEvent."""
        self._sessions.expire()

    def disconnect_sessions(self) -> None:
        """Web messaging: the agents end all conversations, their sessions become read-only."""
        self._sessions.disconnect()

    async def go_down(self) -> None:
        """An outage: connections are reset, new ones refused, on the API and its own storage. State and ledger stay."""
        for listener in self._listeners:
            await listener.go_down()

    async def come_up(self) -> None:
        for listener in self._listeners:
            await listener.come_up()

    def config_yaml(
        self,
        inbox_path: str | PathLike[str],
        state_dir: str | PathLike[str] | None = None,
        gateway: Gateway = "webchat",
    ) -> str:
        """A minimal attachd configuration that points here, over either protocol."""
        lines = ["platform:", "  environment: sandbox.invalid   # never a real one, should the URLs below get lost"]
        if gateway == "webmessaging":
            lines.append("  gateway: webmessaging")
        platform = self._webchat_keys() if gateway == "webchat" else self._messaging_keys()
        # A JSON string is a YAML string, whatever the path contains.
        lines += [f"  {key}: {json.dumps(value)}" for key, value in platform.items()]
        lines += ["inboxes:", f"  - path: {json.dumps(fspath(inbox_path))}"]
        if state_dir is not None:
            lines.append(f"state_dir: {json.dumps(fspath(state_dir))}")
        return "\n".join(lines) + "\n"

    def _webchat_keys(self) -> dict[str, str]:
        return {
            "login_url": self.login_url,
            "api_url": self.api_url,
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "queue_id": self.queue_id,
        }

    def _messaging_keys(self) -> dict[str, str]:
        return {
            "deployment_id": self.deployment_id,
            "messaging_url": self.messaging_url,
            "api_url": self.api_url,
            "config_url": self.config_url,
        }

    def _current(self) -> SandboxSettings:
        return self._settings

    def _change(self, patch: Mapping[str, object]) -> None:
        self._settings = changed(self._settings, patch)

    def _forget(self) -> None:
        self.ledger.clear()
        self._sessions.clear()

    async def _places(self, settings: SandboxSettings) -> Places:
        if settings.keep is not None:
            settings.keep.mkdir(parents=True, exist_ok=True)
        stored = self._uploads.stored
        if settings.s3 is not None:
            self._remote = RemoteStorage(self._current, settings.s3, self.ledger, self._clock, stored)
            await self._remote.open()
            return self._remote
        port = self._listen(settings.storage_port)
        own = Storage(self._current, port.authority, self.ledger, self._clock, stored)
        await port.serve(self._storage_app(own))
        return own

    def _listen(self, port: int) -> Listener:
        listener = Listener(self._settings.host, port)
        self._listeners.append(listener)
        return listener

    def _api_app(self, webchat: Webchat, messaging: WebMessaging) -> web.Application:
        control = Control(
            self.faults,
            self.ledger,
            self._change,
            {
                "tokens/revoke": self.revoke_tokens,
                "sessions/expire": self.expire_sessions,
                "sessions/disconnect": self.disconnect_sessions,
            },
            self._forget,
        )
        app = web.Application()
        app.router.add_post(_TOKEN_PATH, self._answering(Step.TOKEN, self._login.token))
        app.router.add_post(GUEST_PATH, self._answering(Step.GUEST, webchat.guest))
        app.router.add_post(UPLOAD_PATH, self._answering(Step.UPLOAD, webchat.upload))
        app.router.add_post(CONVERSATION_PATH, self._answering(Step.CONVERSATION, webchat.conversation))
        app.router.add_get(DEPLOYMENT_PATH, self._answering(Step.DEPLOYMENT, messaging.deployments.config))
        app.router.add_get(HISTORY_PATH, self._answering(Step.HISTORY, messaging.history.messages))
        app.router.add_get(SOCKET_PATH, messaging.gate.connect)
        app.add_routes(control.routes())
        app.router.add_route("*", "/{path:.*}", _nothing_here)
        return app

    def _storage_app(self, storage: Storage) -> web.Application:
        app = web.Application()
        app.router.add_put("/{key:.*}", self._answering(Step.PUT, storage.put))
        return app

    def _answering(self, step: Step, decide: Decide) -> Handler:
        return answering(step, decide, self.faults, self.ledger)

    async def _close(self) -> None:
        for listener in self._listeners:
            await listener.close()
        self._listeners.clear()
        if self._remote is not None:
            await self._remote.close()
        self._uploads.close()


async def _nothing_here(_: web.Request) -> web.Response:
    correlation_id = new_id()
    reply = rendered(refusal(Step.GUEST, 404), Step.GUEST, correlation_id)
    headers = {**reply.headers, "ININ-Correlation-Id": correlation_id}
    return web.Response(status=reply.status, body=reply.body, headers=headers)


async def serve(settings: SandboxSettings, port: int, announce: Callable[[Sandbox], None], stop: asyncio.Event) -> None:
    """Run a platform on `port` until `stop` is set; `announce` is called once it listens."""
    async with Sandbox(replace(settings, port=port)) as sandbox:
        announce(sandbox)
        await stop.wait()
