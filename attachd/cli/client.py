"""Finds out whether attachd runs, and asks whoever can answer: the daemon through its admin server, else the journal
and the folders.

Between the commands and `ports.Overview`, of which `AdminClient` is the implementation at the end of a socket.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import click

from attachd.admin import wire
from attachd.cli import Exit
from attachd.config import Config
from attachd.daemon.resting import open_resting
from attachd.daemon.tokens import TOKEN_NAME, read_token
from attachd.errors import JournalBusy
from attachd.model import Explanation, InboxName, Retried, StateName, Status
from attachd.ports import Entry, Overview
from attachd.telemetry import printable, without_secrets

_T = TypeVar("_T")

_ANSWER_S = 40.0  # the server gives up on an answer of its own after 30 s
_BUSY_RETRY_S = 0.3
_BUSY_TRIES = 10  # ours: an attachd that starts or ends is through with it within the 3 s that this makes
_BUSY_TRIES_UNASKED = 3  # only another command can be about to make way


class Unanswered(click.ClickException):
    """Nobody can answer, and why, in words for the operator."""

    exit_code = Exit.FAILED

    def __init__(self, text: str) -> None:
        super().__init__(without_secrets(text))


class RunsUnasked(Unanswered):
    """attachd runs, and its config says that it cannot be asked."""

    exit_code = Exit.BUSY


class NobodyListens(Exception):  # noqa: N818  says what is the matter
    """There is no admin server."""


class AdminClient:
    """`ports.Overview` of a running daemon, asked through its admin server while the `async with` block lasts.

    `listen` is the config's `admin.listen`. Every method raises NobodyListens, or Unanswered when somebody listens
    and the answer is none.
    """

    def __init__(self, listen: str, token: str) -> None:
        self._listen = listen
        self._token = token

    async def __aenter__(self) -> Self:
        if self._listen.startswith("unix:"):
            connector: aiohttp.BaseConnector = aiohttp.UnixConnector(self._listen.removeprefix("unix:"))
            base = "http://localhost"
        else:
            connector, base = aiohttp.TCPConnector(), f"http://{self._listen}"
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
        self._session = aiohttp.ClientSession(base, connector=connector, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def status(self) -> Status:
        """Everything at a glance."""
        return self._read(wire.status_from, await self._ask("GET", "/api/status"))

    async def deliveries(
        self, *, state: StateName | None = None, inbox: InboxName | None = None, limit: int = 100
    ) -> Sequence[Entry]:
        """Deliveries, the one that changed last first."""
        wanted = {"limit": str(limit)}
        if state is not None:
            wanted["state"] = state.value
        if inbox is not None:
            wanted["inbox"] = inbox
        return self._read(wire.entries_from, await self._ask("GET", "/api/deliveries", query=wanted))

    async def explain(self, path: str) -> Explanation | None:
        """Where the file at an absolute path, or with a delivery id, is and why; None when nothing is known of it."""
        told = await self._ask("GET", "/api/explain", query=wire.name_pair("path", path), or_nothing=True)
        return None if told is None else self._read(wire.explanation_from, told)

    async def retry(self, what: str | None, *, inbox: InboxName | None = None) -> Sequence[Retried]:
        """Put failed files back into their inbox: by delivery id, by their name or path in `failed/`, or all (None)."""
        asked: dict[str, Any] = {"what": None} if what is None else dict(wire.name_pair("what", what))
        asked["inbox"] = inbox
        return self._read(wire.retried_from, await self._ask("POST", "/api/retry", asked=asked))

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        asked: Mapping[str, Any] | None = None,
        or_nothing: bool = False,
    ) -> Any:
        headers = {wire.TOKEN_HEADER: self._token} if method == "POST" else {}
        try:
            async with self._session.request(method, path, params=query, json=asked, headers=headers) as answer:
                body = await answer.text()
                status = answer.status
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, PermissionError):
                problem = f"the socket of attachd, {self._listen}, may be opened by attachd's own user only"
                raise Unanswered(f"{problem}; run this as that user") from error
            raise NobodyListens(str(error)) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            problem = f"what listens on {self._listen} gave no answer ({str(error) or type(error).__name__})"
            raise Unanswered(f"{problem}; is it attachd, and is it well? Its log says more") from error
        if status == 404 and or_nothing:
            return None
        if status == 401:
            raise Unanswered(f"attachd did not take {TOKEN_NAME} of this state_dir; does another attachd listen there?")
        told = self._json(body)
        if status != 200:
            words = told.get("error") if isinstance(told, dict) else None
            raise Unanswered(
                f"attachd on {self._listen} answered {status}: {printable(str(words or 'no reason given'))}"
            )
        return told

    def _json(self, body: str) -> Any:
        try:
            return json.loads(body)
        except ValueError as error:
            raise self._stranger() from error

    def _read(self, read: Callable[[Any], _T], told: Any) -> _T:
        try:
            return read(told)
        except wire.WireError as error:
            raise self._stranger() from error

    def _stranger(self) -> Unanswered:
        return Unanswered(
            f"what listens on {self._listen} does not speak as this attachd does: another program, or another version "
            "that was not restarted after an update"
        )


@asynccontextmanager
async def running(settings: Config) -> AsyncIterator[AdminClient | None]:
    """The daemon, if it runs and can be asked; None if nobody listens. Raises Unanswered."""
    listen = settings.admin.listen
    if listen == "off":
        yield None
        return
    async with AdminClient(listen, await asyncio.to_thread(_token, settings)) as client:
        try:
            ours = await client.status()
        except NobodyListens:
            yield None
            return
        if not {inbox.path for inbox in ours.inboxes} & {str(inbox.path) for inbox in settings.inboxes}:
            raise Unanswered(
                f"the attachd that listens on {listen} has none of this config's inboxes; is it another one?"
            )
        yield client


@asynccontextmanager
async def asking(settings: Config) -> AsyncIterator[Overview]:
    """Whoever can answer, for as long as the block lasts. Raises Unanswered, JournalError."""
    async with AsyncExitStack() as stack:
        yield await _whoever_answers(settings, stack)


async def _whoever_answers(settings: Config, stack: AsyncExitStack) -> Overview:
    busy = ""
    for _ in range(_BUSY_TRIES_UNASKED if settings.admin.listen == "off" else _BUSY_TRIES):
        if (client := await stack.enter_async_context(running(settings))) is not None:
            return client
        try:
            return await stack.enter_async_context(open_resting(settings))
        except JournalBusy as error:
            busy = str(error)  # it starts or ends just now, or another command looks
            await asyncio.sleep(_BUSY_RETRY_S)
    raise _cannot_be_asked(settings, busy)


def _cannot_be_asked(settings: Config, busy: str) -> Unanswered:
    if settings.admin.listen == "off":
        remedy = (
            "attachd runs, and with `admin: {listen: off}` it cannot be asked while it does; set admin.listen to an "
            "address on this machine or to unix:/path and restart it, or stop it and ask again"
        )
        return RunsUnasked(f"{remedy} ({busy})")
    return Unanswered(
        f"attachd runs, and does not answer on {settings.admin.listen}: it may be starting or stopping, or it was "
        f"started with another admin.listen than this config has; its log says more ({busy})"
    )


def _token(settings: Config) -> str:
    try:
        return read_token(settings.state_dir) or ""
    except OSError:
        return ""  # whoever only asks needs none; who does is told
