"""The HTTP side of the switchboard, for what runs in another process: faults, settings, tokens, the ledger.

POST   /_sandbox/faults         {"step": "upload", "kind": "status", "status": 503, "times": 2, ...}
GET    /_sandbox/faults         what is armed, as it was armed
DELETE /_sandbox/faults         [?step=upload]
POST   /_sandbox/settings       {"client_secret": "...", "requests_per_second": 50, ...}
POST   /_sandbox/tokens/revoke
POST   /_sandbox/sessions/expire       web messaging: all sessions are over
POST   /_sandbox/sessions/disconnect   web messaging: all sessions become read-only
GET    /_sandbox/ledger         [?only=counts|requests|messages|objects|guests|uploads|leaks]
DELETE /_sandbox/ledger
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

from aiohttp import web

from attachd.sandbox.exchange import Handler
from attachd.sandbox.faults import Faults, fault_from
from attachd.sandbox.ledger import Guest, Ledger, Message
from attachd.sandbox.step import Step

PREFIX: Final = "/_sandbox"


class Control:
    def __init__(
        self,
        faults: Faults,
        ledger: Ledger,
        change: Callable[[Mapping[str, object]], None],
        levers: Mapping[str, Callable[[], None]],
        forget: Callable[[], None],
    ) -> None:
        """`levers`: what happens at a POST to each of these paths."""
        self._faults = faults
        self._ledger = ledger
        self._change = change
        self._levers = levers
        self._forget = forget

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post(f"{PREFIX}/faults", self._arm),
            web.get(f"{PREFIX}/faults", self._armed),
            web.delete(f"{PREFIX}/faults", self._disarm),
            web.post(f"{PREFIX}/settings", self._settings),
            *(web.post(f"{PREFIX}/{path}", _pulling(pull)) for path, pull in self._levers.items()),
            web.get(f"{PREFIX}/ledger", self._read_ledger),
            web.delete(f"{PREFIX}/ledger", self._clear_ledger),
        ]

    async def _arm(self, request: web.Request) -> web.Response:
        try:
            content = await _object(request)
            step = _step(content.pop("step", None))
            self._faults.arm(step, fault_from(content))
        except ValueError as error:
            return _refused(error)
        return web.json_response({"armed": len(self._faults.armed())}, status=201)

    async def _armed(self, _: web.Request) -> web.Response:
        return _json([{"step": step, **asdict(fault)} for step, fault in self._faults.armed()])

    async def _disarm(self, request: web.Request) -> web.Response:
        wanted = request.query.get("step")
        try:
            self._faults.clear([_step(wanted)] if wanted is not None else Step)
        except ValueError as error:
            return _refused(error)
        return web.Response(status=204)

    async def _settings(self, request: web.Request) -> web.Response:
        try:
            self._change(await _object(request))
        except ValueError as error:
            return _refused(error)
        return web.Response(status=204)

    async def _read_ledger(self, request: web.Request) -> web.Response:
        parts: dict[str, Callable[[], object]] = {
            "counts": self._counts,
            "requests": lambda: [asdict(received) for received in self._ledger.received],
            "messages": lambda: [_message(message) for message in self._ledger.messages],
            "objects": lambda: [asdict(stored) for stored in self._ledger.objects],
            "guests": lambda: [_guest(guest) for guest in self._ledger.guests.values()],
            "uploads": lambda: [asdict(upload) for upload in self._ledger.uploads.values()],
            "leaks": lambda: [asdict(leak) for leak in self._ledger.leaks],
        }
        only = request.query.get("only")
        if only is not None and only not in parts:
            return _refused(ValueError(f"only: must be one of {', '.join(parts)}"))
        return _json({name: read() for name, read in parts.items() if only in (None, name)})

    async def _clear_ledger(self, _: web.Request) -> web.Response:
        self._forget()
        return web.Response(status=204)

    def _counts(self) -> dict[str, object]:
        answers: dict[str, dict[str, int]] = {step: {} for step in Step}
        for (step, status), count in self._ledger.answers.items():
            answers[step][str(status or "none")] = count
        return {**self._ledger.counts, "answers": answers}


def _pulling(pull: Callable[[], None]) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        pull()
        return web.Response(status=204)

    return handler


def _guest(guest: Guest) -> dict[str, object]:
    # Without the token: it is the credential of the session.
    return {name: value for name, value in asdict(guest).items() if name != "token"}


def _message(message: Message) -> dict[str, object]:
    # Without the request it came in: that stands under "requests", by the same correlation id.
    shown = {known.name: getattr(message, known.name) for known in fields(Message) if known.name != "received"}
    return {
        **shown,
        "skills": [asdict(skill) for skill in message.skills],
        "attachments": [asdict(attachment) for attachment in message.attachments],
        "dropped": [asdict(attachment) for attachment in message.dropped],
        "answer_lost": message.answer_lost,
        "correlation_id": message.received.correlation_id,
    }


def _step(name: object) -> Step:
    try:
        return Step(str(name))
    except ValueError:
        raise ValueError(f"step: must be one of {', '.join(Step)}") from None


async def _object(request: web.Request) -> dict[str, object]:
    content = await request.json()
    if not isinstance(content, dict):
        raise ValueError("body: must be a JSON object")  # noqa: TRY004 - the sender's mistake, not a type error here
    return content


def _json(content: object) -> web.Response:
    return web.json_response(content, dumps=lambda value: json.dumps(value, default=_plain))


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def _refused(error: ValueError) -> web.Response:
    return web.json_response({"error": str(error)}, status=400)
