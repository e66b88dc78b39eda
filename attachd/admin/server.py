"""Answers over HTTP on this machine: the page, health, figures, where everything is, and the operator's few changes.

Every user and every program of this machine can reach a loopback port, and so can any web page in a browser on it. So
a request is looked at before it is routed: it must name this machine as its host (a page elsewhere that rebinds its
name to 127.0.0.1 does not), a browser must not have sent it for another site, and a change needs POST, JSON, our own
origin and the token. Nothing is ever changed by GET. The token is a secret of the state folder: `attachd status`
prints a link with it behind `#`, which a browser never sends; the page keeps it for its tab only.
"""

import asyncio
import hmac
import ipaddress
import json as jsonlib
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Self
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from attachd.admin import document, wire
from attachd.admin.connections import Connections
from attachd.admin.listening import CannotListen, close_listener, identity_of, open_listener
from attachd.admin.snapshot import INTERVAL_S, Snapshots
from attachd.metrics import CONTENT_TYPE, Metrics
from attachd.model import InboxName, StateName
from attachd.ports import Controls, Overview
from attachd.telemetry import printable, redact, without_secrets

__all__ = ["AdminServer", "CannotListen"]

_HEARTBEAT_S = 15.0
_MAX_WATCHERS = 16
_MAX_BODY_BYTES = 16 << 10
_BODY_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 30.0
_HEALTH_TIMEOUT_S = 5.0
"""An answer later than this is no sign of life. Ours; below the ten seconds after which most probes give up."""

_WRITE_TIMEOUT_S = 10.0
_KEEP_ALIVE_S = 30.0
_MAX_LIMIT = 1000

_EVERYWHERE = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

_log = structlog.get_logger()

_Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Refused(Exception):  # noqa: N818  an answer on its way out
    def __init__(self, status: int, words: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(words)
        self.status, self.words, self.headers = status, words, headers


class AdminServer:
    """Listens while its `async with` block lasts; entering raises CannotListen.

    `healthy` names what is broken (nothing: alive), `ready` what is still missing; both go out as they are. `clock`
    gives monotonic seconds.
    """

    def __init__(
        self,
        overview: Overview,
        controls: Controls,
        metrics: Metrics,
        *,
        listen: str,
        token: str,
        healthy: Callable[[], Awaitable[list[str]]],
        ready: Callable[[], list[str]],
        clock: Callable[[], float] = time.monotonic,
        heartbeat_s: float = _HEARTBEAT_S,
    ) -> None:
        self._overview = overview
        self._controls = controls
        self._metrics = metrics
        self._listen = listen
        self._token = token.encode()
        self._healthy = healthy
        self._ready = ready
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._snapshots = Snapshots(overview, metrics, clock)
        self._closing = asyncio.Event()
        self._watchers = 0
        self._stack = AsyncExitStack()
        self._page = document.Page(b"", "")
        self._server: Connections
        self.address = ""
        """Where it listens, as `http://host:port` or `unix:/path`; known inside the block."""

        self._routes: dict[str, dict[str, _Answer]] = {
            "/": {"GET": self._get_page},
            "/healthz": {"GET": self._get_health},
            "/readyz": {"GET": self._get_readiness},
            "/metrics": {"GET": self._get_metrics},
            "/api/status": {"GET": self._get_status},
            "/api/deliveries": {"GET": self._get_deliveries},
            "/api/explain": {"GET": self._get_explanation},
            "/api/snapshot": {"GET": self._get_snapshot},
            "/api/events": {"GET": self._get_events},
            "/api/retry": {"POST": self._post_retry},
            "/api/pause": {"POST": self._post_pause},
            "/api/resume": {"POST": self._post_resume},
        }

    async def __aenter__(self) -> Self:
        redact("admin_token", self._token.decode())
        self._page = await asyncio.to_thread(document.load)
        async with AsyncExitStack() as stack:
            listener = await asyncio.to_thread(open_listener, self._listen)
            identity = await asyncio.to_thread(identity_of, self._listen)
            stack.callback(close_listener, listener, self._listen, identity)
            server = Connections(self._answer, access_log=None, keepalive_timeout=_KEEP_ALIVE_S)
            # What is under way at the end has this long; those who watch are told at once.
            runner = web.ServerRunner(server, shutdown_timeout=1.0)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            stack.callback(self._closing.set)
            self._server = server
            await web.SockSite(runner, listener).start()
            name = listener.getsockname()
            if self._listen.startswith("unix:"):
                self.address = self._listen
            else:
                host = self._listen.rpartition(":")[0]
                self.address = f"http://{host}:{name[1]}"
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # --- one request -------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            self._server.heard(request.protocol)
            self._look_at(request)
            answer = self._route(request)
            if request.path == "/api/events" or request.method == "POST":
                return await answer(request)  # no end is set to the one; a change is not broken off half-way
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                return await answer(request)
        except _Refused as refused:
            return _json({"error": refused.words}, status=refused.status, headers=refused.headers)
        except TimeoutError:
            return _json({"error": f"no answer within {_ANSWER_TIMEOUT_S:g} seconds"}, status=503)
        except ConnectionError:
            raise  # who asked is gone
        except Exception as error:  # noqa: BLE001  whoever asks must not be able to end the daemon
            # Where the fault matters to the daemon, it meets it itself.
            _log.error("admin.failed", path=printable(request.path), exc_info=error)
            return _json({"error": "attachd could not answer; its log says why"}, status=500)

    def _look_at(self, request: web.BaseRequest) -> None:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            raise _Refused(421, "this is attachd on this machine: ask for it as localhost or 127.0.0.1")
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        change = request.method not in ("GET", "HEAD")
        going_there = request.path == "/" and request.headers.get("Sec-Fetch-Mode") == "navigate"
        if change:
            origin = request.headers.get("Origin")
            if site != "same-origin" or (origin is not None and not _same_origin(origin, hosts[0])):
                raise _Refused(403, "changes are taken from attachd's own page and from commands only")
        elif site not in ("same-origin", "none") and not going_there:
            raise _Refused(403, "another site asked for this")

    def _is_ours(self, host: str) -> bool:
        # Any port: one forwarded by ssh has another number here, and rebinding is about names.
        try:
            parts = urlsplit(f"//{host}")
            name, _ = parts.hostname, parts.port
        except ValueError:
            return False
        if name is None or parts.path or parts.query or parts.fragment or "@" in host:
            return False
        if name == "localhost" or f"{name}".lower() == self._listen.rpartition(":")[0].strip("[]").lower():
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def _route(self, request: web.BaseRequest) -> _Answer:
        methods = self._routes.get(request.path)
        if methods is None:
            raise _Refused(404, "there is nothing here")
        answer = methods.get("GET" if request.method == "HEAD" else request.method)
        if answer is None:
            raise _Refused(405, f"only {', '.join(methods)} here", {"Allow": ", ".join(methods)})
        return answer

    # --- looking -----------------------------------------------------------------------------------------------------

    async def _get_page(self, _request: web.BaseRequest) -> web.StreamResponse:
        headers = {**_EVERYWHERE, "Content-Security-Policy": self._page.policy}
        return web.Response(body=self._page.html, content_type="text/html", charset="utf-8", headers=headers)

    async def _get_health(self, _request: web.BaseRequest) -> web.StreamResponse:
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                problems = await self._healthy()
        except TimeoutError:
            problems = [f"no answer within {_HEALTH_TIMEOUT_S:g} seconds"]
        return _problems(problems, "alive")

    async def _get_readiness(self, _request: web.BaseRequest) -> web.StreamResponse:
        return _problems(self._ready(), "ready")

    async def _get_metrics(self, _request: web.BaseRequest) -> web.StreamResponse:
        body = self._metrics.exposition(await self._overview.status())
        return web.Response(body=body, headers={**_EVERYWHERE, "Content-Type": CONTENT_TYPE})

    async def _get_status(self, _request: web.BaseRequest) -> web.StreamResponse:
        return _json(wire.status(await self._overview.status()))

    async def _get_deliveries(self, request: web.BaseRequest) -> web.StreamResponse:
        state = request.query.get("state")
        if state is not None and state not in set(StateName):
            raise _Refused(400, f"state must be one of {', '.join(StateName)}")
        limit = request.query.get("limit", "100")
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= _MAX_LIMIT:
            raise _Refused(400, f"limit must be a number from 1 to {_MAX_LIMIT}")
        try:
            inbox = InboxName(wire.name_of("inbox", request.query)) if "inbox" in request.query else None
        except wire.WireError as error:
            raise _Refused(400, "inbox must be a name") from error
        entries = await self._overview.deliveries(
            state=None if state is None else StateName(state),
            inbox=inbox,
            limit=int(limit),
        )
        return _json(wire.entries(entries))

    async def _get_explanation(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            path = wire.name_of("path", request.query)
        except wire.WireError as error:
            raise _Refused(400, "say which: ?path= with an absolute path or a delivery id") from error
        told = await self._overview.explain(path)
        if told is None:
            raise _Refused(404, "attachd knows nothing of it")
        return _json(wire.explanation(told))

    async def _get_snapshot(self, _request: web.BaseRequest) -> web.StreamResponse:
        snapshot = await self._snapshots.latest()
        return web.Response(text=snapshot.text, content_type="application/json", headers=_EVERYWHERE)

    async def _get_events(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._watchers >= _MAX_WATCHERS:
            raise _Refused(503, f"{_MAX_WATCHERS} are watching already")
        self._watchers += 1
        try:
            return await self._watch(request)
        finally:
            self._watchers -= 1

    async def _watch(self, request: web.BaseRequest) -> web.StreamResponse:
        snapshot = await self._snapshots.latest()
        response = web.StreamResponse(headers={**_EVERYWHERE, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        said_at, seen = self._clock(), -1
        try:
            while not self._closing.is_set() and request.transport and not request.transport.is_closing():
                line = ""
                if snapshot.revision != seen:
                    seen, line = snapshot.revision, f"event: snapshot\ndata: {snapshot.text}\n\n"
                elif self._clock() - said_at >= self._heartbeat_s:
                    line = ": still here\n\n"
                if line:
                    said_at = self._clock()
                    async with asyncio.timeout(_WRITE_TIMEOUT_S):
                        await response.write(line.encode())
                try:
                    await asyncio.wait_for(self._closing.wait(), INTERVAL_S)
                except TimeoutError:
                    snapshot = await self._snapshots.latest()
        except (ConnectionError, TimeoutError):
            # Gone, or asleep with a full buffer: it will ask again when it is back.
            if request.transport:
                request.transport.abort()
        except Exception as error:  # noqa: BLE001  the headers are out, so no other answer can be given: it ends
            _log.error("admin.failed", path="/api/events", exc_info=error)
        return response

    # --- changing ----------------------------------------------------------------------------------------------------

    async def _post_retry(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = await self._asked(request, {"what", "what_base64", "inbox", "inbox_base64"})
        if "what" not in asked:
            raise _Refused(400, '"what" is missing: a delivery id, a name in failed/, or null for all')
        what = None if asked["what"] is None else _text(asked, "what")
        told = await self._overview.retry(what, inbox=_inbox(asked))
        self._snapshots.forget()
        return _json(wire.retried(told))

    async def _post_pause(self, request: web.BaseRequest) -> web.StreamResponse:
        await self._controls.pause(_inbox(await self._asked(request, {"inbox", "inbox_base64"})))
        return await self._changed()

    async def _post_resume(self, request: web.BaseRequest) -> web.StreamResponse:
        await self._controls.resume(_inbox(await self._asked(request, {"inbox", "inbox_base64"})))
        return await self._changed()

    async def _changed(self) -> web.StreamResponse:
        self._snapshots.forget()
        return _json(wire.status(await self._overview.status()))

    async def _asked(self, request: web.BaseRequest, keys: set[str]) -> dict[str, Any]:
        """The body of a change, once its sender has shown that it may."""
        given = request.headers.get(wire.TOKEN_HEADER, "")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token):
            raise _Refused(401, "the token is missing or wrong; `attachd status` prints a link that has it")
        if request.content_type != "application/json":
            raise _Refused(415, "send JSON, with Content-Type: application/json")
        if request.content_length is not None and request.content_length > _MAX_BODY_BYTES:
            raise _Refused(413, "that is too much", {"Connection": "close"})
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                body = await _read(request)
        except TimeoutError as error:
            raise _Refused(408, "the request did not come in time", {"Connection": "close"}) from error
        try:
            asked = jsonlib.loads(body)
        except (ValueError, RecursionError) as error:
            raise _Refused(400, "that is no JSON") from error
        if not isinstance(asked, dict) or not asked.keys() <= keys:
            raise _Refused(400, f"send an object with nothing but {', '.join(sorted(keys))}")
        return asked


async def _read(request: web.BaseRequest) -> bytes:
    body = b""
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > _MAX_BODY_BYTES:
            raise _Refused(413, "that is too much", {"Connection": "close"})
    return body


def _text(asked: dict[str, Any], key: str) -> str:
    try:
        return wire.name_of(key, asked)
    except wire.WireError as error:
        raise _Refused(400, f'"{key}" must be a text') from error


def _inbox(asked: dict[str, Any]) -> InboxName | None:
    return None if asked.get("inbox") is None else InboxName(_text(asked, "inbox"))


def _same_origin(origin: str, host: str) -> bool:
    # https: where a proxy of the operator's own speaks it.
    return origin in (f"http://{host}", f"https://{host}")


def _problems(problems: list[str], fine: str) -> web.Response:
    words = "\n".join(without_secrets(problem) for problem in problems) or fine
    return web.Response(text=f"{words}\n", status=503 if problems else 200, headers=_EVERYWHERE)


def _json(told: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    text = jsonlib.dumps(told, separators=(",", ":"))
    return web.Response(
        text=text, status=status, content_type="application/json", headers={**_EVERYWHERE, **(headers or {})}
    )
