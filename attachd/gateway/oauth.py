"""The account's access token: asked for once, however many need it.

Client credentials grant (RFC 6749, 4.4) with HTTP Basic. The token lives in memory only.
"""

import asyncio
import base64
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from yarl import URL

from attachd import telemetry
from attachd.errors import AccountError, DeliveryError, TransientError
from attachd.gateway.guard import Gate
from attachd.gateway.http import Answer, Http
from attachd.model import Reason, Step

TOKEN_S = 15.0
"""Ours, total: a login host that takes longer is as good as down."""

REFRESH_AT = 0.8
"""Ours: the share of its life after which a token is renewed while it still works."""

MARGIN_S = 60.0
"""Ours: a token this close to its end is not used any more; a tenth of the life of one that lives shortly."""

AGAIN_AFTER_S = 30.0
"""Ours: how long an early renewal that failed is left alone while the old token works."""

QUIET_S = 1.0
"""Ours: the silence after a 429 that names none."""

_TOKEN_PATH = "/oauth/token"  # noqa: S105  a path
_LONGEST_LIFE_S = 7 * 86400.0


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """One access token; two tokens are the same only if they came from the same answer. Times are monotonic."""

    value: str = field(repr=False)
    renew_at: float
    ends_at: float

    @property
    def authorization(self) -> str:
        """The header's value."""
        return f"Bearer {self.value}"


class Tokens:
    """Gives out the current token.

    `client_secret` is called for every token request, so that a rotated secret is picked up.
    """

    def __init__(
        self,
        http: Http,
        gate: Gate,
        *,
        login_url: str,
        client_id: str,
        client_secret: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self._http = http
        self._gate = gate
        self._url = URL(login_url.rstrip("/") + _TOKEN_PATH, encoded=True)
        self._client_id = client_id
        self._client_secret = client_secret
        self._clock = clock
        self._token: Token | None = None
        self._quiet_until = float("-inf")
        self._flight: asyncio.Future[Token | DeliveryError | None] | None = None

    async def get(self, rejected: Token | None = None) -> Token:
        """A token to use now. `rejected` is one the platform has just refused: it is replaced if it is still in use.

        Raises AccountError (credentials refused, no right to a token, not the platform), TransientError.
        """
        if rejected is not None and self._token is rejected:
            self._token = None
        token = self._token
        if token is None:
            return await self._renewed()
        now = self._clock()
        if now < token.renew_at:
            return token
        if now >= token.ends_at:
            return await self._renewed()
        if self._flight is not None or now < self._quiet_until:
            return token
        try:
            return await self._renewed()
        except (TransientError, AccountError):
            # The old token still works: whether the login host stays down is to be seen when it no longer does.
            self._quiet_until = self._clock() + AGAIN_AFTER_S
            return token

    async def _renewed(self) -> Token:
        """Join the request that is under way, or make it.

        Whoever makes it and is cancelled leaves it to the next who waits, so no task is needed that outlives its
        caller. A failure is the failure of all who waited: nobody of them asks again.
        """
        while self._flight is not None:
            result = await asyncio.shield(self._flight)
            if isinstance(result, Token):
                return result
            if result is not None:
                raise result
        flight = self._flight = asyncio.get_running_loop().create_future()
        outcome: Token | DeliveryError | None = None
        try:
            outcome = self._token = await self._asked()
        except DeliveryError as error:
            outcome = error
            raise
        finally:
            self._flight = None
            flight.set_result(outcome)
        return outcome

    async def _asked(self) -> Token:
        await self._gate.admit_uncounted()
        secret = self._client_secret()
        # As they are: the vendor's clients do not form-encode them first, as RFC 6749, 2.3.1 would have it.
        pair = f"{self._client_id}:{secret}"
        basic = base64.b64encode(pair.encode()).decode("ascii")
        answer = await self._http.request(
            Step.TOKEN,
            "POST",
            self._url,
            deadline_s=TOKEN_S,
            headers={
                "Authorization": f"Basic {basic}",
                "Content-Type": "application/x-www-form-urlencoded",
                "Accept": "application/json",
            },
            body=b"grant_type=client_credentials",
        )
        if not answer.ok:
            raise self._refusal(answer, answer.told(secret, basic))
        token = _token(answer)
        if token is None:
            raise AccountError(
                Reason.NOT_THE_PLATFORM,
                f"{answer.where} answered {answer.status}, but with no token; check platform.environment and login_url",
                Step.TOKEN,
                http_status=answer.status,
                correlation_id=answer.correlation_id,
            )
        return token

    def _refusal(self, answer: Answer, told: str) -> DeliveryError:
        status, correlation_id, retry_after_s = answer.status, answer.correlation_id, answer.retry_after_s()
        if status == 429 or (status == 503 and retry_after_s is not None):
            self._gate.hold(retry_after_s or QUIET_S, told)
        if status in (408, 425, 429) or status >= 500:
            reason = Reason.RATE_LIMITED if status == 429 else Reason.SERVER_ERROR
            return TransientError(
                reason,
                told,
                Step.TOKEN,
                http_status=status,
                correlation_id=correlation_id,
                retry_after_s=retry_after_s,
            )
        if status in (400, 401):
            reason = Reason.CREDENTIALS_REFUSED
            detail = (
                f"client id {self._client_id} was not accepted; check client_id, client_secret and that "
                f"the environment is the organisation's own ({told})"
            )
        elif status == 403:
            reason = Reason.FORBIDDEN
            detail = (
                f"client id {self._client_id} may not ask for a token; check that the OAuth client is active "
                f"and may use client credentials ({told})"
            )
        else:
            reason = Reason.NOT_THE_PLATFORM
            detail = f"no login host of the platform; check platform.environment and login_url ({told})"
        return AccountError(reason, detail, Step.TOKEN, http_status=status, correlation_id=correlation_id)


def _token(answer: Answer) -> Token | None:
    """The token in an answer, or None; its life is counted from the question."""
    content = answer.json()
    if content is None:
        return None
    value, life_s = content.get("access_token"), content.get("expires_in")
    if not isinstance(value, str) or re.fullmatch(r"[!-~]{1,8192}", value) is None:
        return None  # anything else could not go into a header as it is
    if not isinstance(life_s, int | float) or isinstance(life_s, bool) or life_s <= 0:
        return None
    if str(content.get("token_type", "bearer")).lower() != "bearer":
        return None
    telemetry.redact("token", value)
    life_s = min(float(life_s), _LONGEST_LIFE_S)
    return Token(
        value,
        renew_at=answer.asked_at + REFRESH_AT * life_s,
        ends_at=answer.asked_at + life_s - min(MARGIN_S, 0.1 * life_s),
    )
