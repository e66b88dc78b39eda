"""The login host: client credentials in, bearer tokens out, and the check of a token at every later call."""

import secrets
from base64 import b64decode
from collections.abc import Callable

from aiohttp import web

from attachd.sandbox.clock import Clock
from attachd.sandbox.exchange import Exchange
from attachd.sandbox.ledger import Ledger
from attachd.sandbox.reply import Refused, Reply, json_reply
from attachd.sandbox.settings import SandboxSettings


class Login:
    def __init__(self, settings: Callable[[], SandboxSettings], ledger: Ledger, clock: Clock) -> None:
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._expiries: dict[str, float] = {}  # token -> monotonic time from which on it is refused

    async def token(self, request: web.Request, exchange: Exchange) -> Reply:
        form = await request.post()
        exchange.concerns()
        settings = self._settings()
        if _basic_credentials(request) != (settings.client_id, settings.client_secret):
            raise Refused(
                401, "invalid_client", "authentication failed", headers={"WWW-Authenticate": 'Basic realm="sandbox"'}
            )
        grant = form.get("grant_type")
        if grant is None:
            raise Refused(400, "invalid_request", "grant_type is missing")
        if grant != "client_credentials":
            raise Refused(400, "unsupported_grant_type", "only client_credentials is offered here")
        content = {
            "access_token": self._issued(settings.token_life_s),
            "token_type": "bearer",
            "expires_in": int(settings.token_life_s),
        }
        return json_reply(content)

    def authenticate(self, request: web.Request) -> str:
        """The client id behind the bearer token of a request. Raises Refused (401)."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refused(
                401, "authentication.required", "No authentication bearer token specified in authorization header."
            )
        expiry = self._expiries.get(token)
        if expiry is None or self._clock.monotonic_s() >= expiry:
            raise Refused(401, "bad.credentials", "Invalid login credentials.")
        return self._settings().client_id

    def revoke_all(self) -> None:
        self._expiries.clear()

    def _issued(self, life_s: float) -> str:
        now = self._clock.monotonic_s()
        self._expiries = {token: expiry for token, expiry in self._expiries.items() if expiry > now}
        token = secrets.token_urlsafe(48)
        self._expiries[token] = now + life_s
        self._ledger.note_token()
        return token


def _basic_credentials(request: web.Request) -> tuple[str, str] | None:
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        client_id, separator, secret = b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:
        return None
    return (client_id, secret) if separator else None
