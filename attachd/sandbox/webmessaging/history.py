"""The message history over REST, opened by a JWT: how a client finds out what became of a message.

The JWT names its session and its end and is signed, so that nothing need be kept of it.
"""

import hashlib
import hmac
import json
import math
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Final

from aiohttp import web

from attachd.sandbox.clock import Clock
from attachd.sandbox.exchange import Exchange
from attachd.sandbox.reply import Refused, Reply, bad_request, json_reply
from attachd.sandbox.settings import SandboxSettings
from attachd.sandbox.webmessaging.session import Said, Session, Sessions

HISTORY_PATH: Final = "/api/v2/webmessaging/messages"

_PAGE_SIZE: Final = 25
_PAGE_LIMIT: Final = 100  # ours
_OWN_METADATA: Final = frozenset({"correlationId"})


class History:
    def __init__(self, settings: Callable[[], SandboxSettings], sessions: Sessions, clock: Clock) -> None:
        self._settings = settings
        self._sessions = sessions
        self._clock = clock
        self._key = secrets.token_bytes(32)

    def issue(self, session: Session) -> tuple[str, float]:
        """A JWT for this session and until when it holds (seconds since the epoch)."""
        expires_at_s = self._clock.wall_s() + self._settings().jwt_life_s
        head = _encoded(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        claims = {"sub": session.guest.guest_id, "exp": expires_at_s, "jti": secrets.token_hex(8)}
        signed = f"{head}.{_encoded(json.dumps(claims).encode())}"
        return f"{signed}.{self._signature(signed)}", expires_at_s

    async def messages(self, request: web.Request, exchange: Exchange) -> Reply:
        session = self._session_of(request)
        exchange.concerns(queue_id=session.guest.queue_id if session else None)
        if session is None:
            raise Refused(401, "authentication.required", "No authentication bearer token specified.")
        settings = self._settings()
        wait_s = session.readings.wait_s(self._clock.monotonic_s(), settings.history_per_minute)
        if wait_s:
            raise Refused(
                429,
                "too.many.requests",
                f"Rate limit of {settings.history_per_minute} requests a minute exceeded.",
                headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
            )
        size = min(_whole(request, "pageSize", _PAGE_SIZE), _PAGE_LIMIT)
        number = _whole(request, "pageNumber", 1)
        entries = self._visible(session)
        shown = entries[(number - 1) * size : number * size]
        return json_reply(
            {
                "entities": [self._entity(one) for one in shown],
                "pageSize": size,
                "pageNumber": number,
                "total": len(entries),
                "pageCount": math.ceil(len(entries) / size),
            }
        )

    def _session_of(self, request: web.Request) -> Session | None:
        scheme, _, jwt = request.headers.get("Authorization", "").partition(" ")
        signed, _, signature = jwt.rpartition(".")
        if scheme.lower() != "bearer" or not jwt.isascii():
            return None
        if not hmac.compare_digest(self._signature(signed), signature):
            return None
        claims = json.loads(_decoded(signed.partition(".")[2]))
        if self._clock.wall_s() >= claims["exp"]:
            return None
        return self._sessions.of_guest(claims["sub"])

    def _visible(self, session: Session) -> list[Said]:
        settings = self._settings()
        latest_s = self._clock.wall_s() - settings.history_delay_s
        entries = [one for one in session.said if one.wall_s <= latest_s]
        return entries[::-1] if settings.history_order == "newest_first" else entries

    def _entity(self, said: Said) -> dict[str, object]:
        entity = dict(said.body)
        channel, metadata = entity["channel"], entity.pop("metadata", None)
        assert isinstance(channel, dict)
        entity["channel"] = {"time": channel["time"], "messageId": channel["messageId"], "from": {}, "to": {}}
        if isinstance(metadata, dict):
            keeps_all = self._settings().history_metadata
            entity["metadata"] = {key: text for key, text in metadata.items() if keeps_all or key in _OWN_METADATA}
        return entity

    def _signature(self, signed: str) -> str:
        return _encoded(hmac.new(self._key, signed.encode(), hashlib.sha256).digest())


def _whole(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text)):
        raise bad_request(f"{name}: must be a whole number above 0")
    return int(text)


def _encoded(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
