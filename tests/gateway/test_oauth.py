"""The token: one request however many wait, renewed in time, and never shown."""

import asyncio
import base64

import pytest

from attachd.errors import AccountError, DeliveryError, TransientError
from attachd.gateway.guard import Gate
from attachd.gateway.http import Http
from attachd.gateway.oauth import Token, Tokens
from attachd.model import Reason, Step

from .support import Exchange, Seen, Wire, hangs_up, in_turn, open_gate, says

SECRET = "p@ss word/ü"


class Clock:
    """Time that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(http: Http) -> Clock:
    clock = Clock()
    http._clock = clock
    return clock


@pytest.fixture
def gate() -> Gate:
    return open_gate()


@pytest.fixture
def tokens(http: Http, wire: Wire, gate: Gate, clock: Clock) -> Tokens:
    return Tokens(
        http, gate, login_url=f"{wire.url}/", client_id="our-client", client_secret=lambda: SECRET, clock=clock
    )


def grants(*values: str, life: float = 86400) -> Exchange:
    return in_turn(
        *(
            says(200, f'{{"access_token": "{value}", "token_type": "bearer", "expires_in": {life}}}'.encode())
            for value in values
        )
    )


def slowly(exchange: Exchange) -> Exchange:
    async def slow(request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        await exchange(request, reader, writer)

    return slow


async def test_what_is_asked(tokens: Tokens, wire: Wire) -> None:
    """Client credentials by form and HTTP Basic, as they are, as the vendor's own clients send them."""
    wire.answer = grants("T1")
    assert (await tokens.get()).authorization == "Bearer T1"
    (request,) = wire.seen
    assert request.line == "POST /oauth/token HTTP/1.1"
    assert request.body == b"grant_type=client_credentials"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    kind, _, pair = request.headers["authorization"].partition(" ")
    assert (kind, base64.b64decode(pair)) == ("Basic", "our-client:p@ss word/ü".encode())


async def test_the_token_is_kept(tokens: Tokens, wire: Wire) -> None:
    """Whoever asks later gets the same token without a request."""
    wire.answer = grants("T1", "T2")
    assert await tokens.get() is await tokens.get()
    assert len(wire.seen) == 1


async def test_fifty_who_start_together_make_one_request(tokens: Tokens, wire: Wire) -> None:
    """One flight carries everybody."""
    wire.answer = slowly(grants("T1", "T2"))
    got = await asyncio.gather(*(tokens.get() for _ in range(50)))
    assert {token.value for token in got} == {"T1"}
    assert len(wire.seen) == 1


async def test_fifty_rejections_of_one_token_make_one_request(tokens: Tokens, wire: Wire) -> None:
    """Only the token still in use is replaced: who comes late with an old one gets the new one at once."""
    wire.answer = slowly(grants("T1", "T2", "T3"))
    old = await tokens.get()
    got = await asyncio.gather(*(tokens.get(rejected=old) for _ in range(50)))
    assert {token.value for token in got} == {"T2"}
    assert (await tokens.get(rejected=old)).value == "T2"
    assert len(wire.seen) == 2


async def test_a_failure_is_the_failure_of_all_who_waited(tokens: Tokens, wire: Wire) -> None:
    """A refused secret is tried once, not fifty times in a row, or the platform would lock the client."""
    wire.answer = slowly(says(401, b'{"error":"invalid_client"}'))
    got = await asyncio.gather(*(tokens.get() for _ in range(50)), return_exceptions=True)
    assert len(wire.seen) == 1
    assert {type(error) for error in got} == {AccountError}


async def test_a_flight_survives_whoever_began_it(tokens: Tokens, wire: Wire) -> None:
    """When the one who asked is cancelled the next who waits takes over, and nobody else is disturbed."""
    wire.answer = slowly(grants("T1"))
    first = asyncio.ensure_future(tokens.get())
    await asyncio.sleep(0.01)
    others = [asyncio.ensure_future(tokens.get()) for _ in range(10)]
    await asyncio.sleep(0.01)
    first.cancel()
    others[0].cancel()
    got = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(one) for one in got] == [asyncio.CancelledError] * 2 + [Token] * 9
    assert len(wire.seen) <= 2


async def test_renewed_at_four_fifths_of_its_life(tokens: Tokens, wire: Wire, clock: Clock) -> None:
    """The first who comes after that renews it; the others use the old one meanwhile."""
    wire.answer = grants("T1", life=1000)
    old = await tokens.get()
    clock.now += 799
    assert await tokens.get() is old
    clock.now += 2
    wire.answer = slowly(grants("T2", life=1000))
    renewing = asyncio.ensure_future(tokens.get())
    await asyncio.sleep(0.01)
    assert await tokens.get() is old
    assert (await renewing).value == "T2"
    assert (await tokens.get()).value == "T2"


async def test_an_early_renewal_that_fails_harms_nobody(tokens: Tokens, wire: Wire, clock: Clock) -> None:
    """While the old token works it is used, and the login host is left alone for a while."""
    wire.answer = grants("T1", life=1000)
    old = await tokens.get()
    clock.now += 850
    wire.answer = says(503)
    assert [await tokens.get() for _ in range(5)] == [old] * 5
    assert len(wire.seen) == 2
    clock.now += 31
    assert await tokens.get() is old
    assert len(wire.seen) == 3
    clock.now = 5000.0 + 941
    with pytest.raises(TransientError):
        await tokens.get()


@pytest.mark.parametrize(("life", "unused_after"), [(86400, 86340), (1000, 940), (300, 270), (10, 9)])
async def test_a_token_is_not_used_to_the_very_end(
    tokens: Tokens, wire: Wire, clock: Clock, life: float, unused_after: float
) -> None:
    """60 s before its end, or a tenth of a short life, everybody waits for the new one."""
    wire.answer = grants("T1", life=life)
    token = await tokens.get()
    assert token.ends_at - clock.now == pytest.approx(unused_after)
    assert token.renew_at - clock.now == pytest.approx(0.8 * life)


async def test_a_rotated_secret_is_picked_up(http: Http, wire: Wire, gate: Gate, clock: Clock) -> None:
    """The secret is read for every request."""
    secrets = iter(["old", "new"])
    tokens = Tokens(http, gate, login_url=wire.url, client_id="c", client_secret=lambda: next(secrets), clock=clock)
    wire.answer = in_turn(says(401), grants("T1"))
    with pytest.raises(AccountError):
        await tokens.get()
    await tokens.get()
    pairs = [base64.b64decode(request.headers["authorization"].split()[1]) for request in wire.seen]
    assert pairs == [b"c:old", b"c:new"]


@pytest.mark.parametrize(
    ("exchange", "family", "reason"),
    [
        (says(400, b'{"error":"invalid_client"}'), AccountError, Reason.CREDENTIALS_REFUSED),
        (says(401, b'{"error":"invalid_client"}'), AccountError, Reason.CREDENTIALS_REFUSED),
        (says(403), AccountError, Reason.FORBIDDEN),
        (says(404), AccountError, Reason.NOT_THE_PLATFORM),
        (says(302, b"", "Location: https://elsewhere.example/"), AccountError, Reason.NOT_THE_PLATFORM),
        (says(408), TransientError, Reason.SERVER_ERROR),
        (says(429), TransientError, Reason.RATE_LIMITED),
        (says(500), TransientError, Reason.SERVER_ERROR),
        (says(503), TransientError, Reason.SERVER_ERROR),
        (hangs_up, TransientError, Reason.CONNECTION_LOST),
        (says(200, b"<html>Sign in to the guest network</html>"), AccountError, Reason.NOT_THE_PLATFORM),
        (says(200, b"{}"), AccountError, Reason.NOT_THE_PLATFORM),
        (says(200, b'{"access_token": "", "expires_in": 60}'), AccountError, Reason.NOT_THE_PLATFORM),
        (says(200, b'{"access_token": "a\\r\\nb", "expires_in": 60}'), AccountError, Reason.NOT_THE_PLATFORM),
        (says(200, b'{"access_token": "T", "expires_in": 0}'), AccountError, Reason.NOT_THE_PLATFORM),
        (says(200, b'{"access_token": "T", "expires_in": true}'), AccountError, Reason.NOT_THE_PLATFORM),
        (says(200, b'{"access_token": "T"}'), AccountError, Reason.NOT_THE_PLATFORM),
        (
            says(200, b'{"access_token": "T", "expires_in": 60, "token_type": "mac"}'),
            AccountError,
            Reason.NOT_THE_PLATFORM,
        ),
    ],
)
async def test_whose_fault_it_is(
    tokens: Tokens, wire: Wire, exchange: Exchange, family: type[DeliveryError], reason: Reason
) -> None:
    """No answer of the login host can be a file's fault."""
    wire.answer = exchange
    with pytest.raises(DeliveryError) as caught:
        await tokens.get()
    assert type(caught.value) is family
    assert (caught.value.reason, caught.value.step) == (reason, Step.TOKEN)


async def test_refused_credentials_are_named_and_the_secret_is_not(tokens: Tokens, wire: Wire) -> None:
    """The operator reads which client and what to check; an answer that echoes the request betrays nothing."""

    async def echo(request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = f"you sent {request.headers['authorization']} and {SECRET}".encode()
        await says(401, text)(request, reader, writer)

    wire.answer = echo
    with pytest.raises(AccountError) as caught:
        await tokens.get()
    said = str(caught.value)
    assert "our-client" in said
    assert "client_secret" in said
    for hush in (SECRET, base64.b64encode("our-client:p@ss word/ü".encode()).decode()):
        assert hush not in said + repr(caught.value) + repr(caught.value.failure)


async def test_a_token_does_not_show_itself(tokens: Tokens, wire: Wire) -> None:
    """What is logged by accident is no secret."""
    wire.answer = grants("T-HUSH")
    assert "HUSH" not in repr(await tokens.get())


@pytest.mark.parametrize(
    ("exchange", "silence"),
    [
        (says(429, b"", "Retry-After: 30"), 30),
        (says(429), 1),
        (says(503, b"", "Retry-After: 40"), 40),
        (says(503), 0),
        (says(500, b"", "Retry-After: 40"), 0),
    ],
)
async def test_a_login_host_that_asks_for_silence_gets_it(
    tokens: Tokens, wire: Wire, gate: Gate, exchange: Exchange, silence: float
) -> None:
    """429, and 503 with a time, close the gate for the whole account."""
    wire.answer = exchange
    with pytest.raises(TransientError):
        await tokens.get()
    assert gate.held_for_s() == pytest.approx(silence, abs=0.5)


async def test_a_silence_holds_token_requests_too(tokens: Tokens, wire: Wire, gate: Gate) -> None:
    """Nothing of the account leaves in a silence, not even the question for a token."""
    wire.answer = grants("T1")
    gate.hold(60, "asked")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await tokens.get()
    assert wire.seen == []
