"""The rates of the guest protocol: who exceeds one is told how long to wait, and nothing was done."""

import pytest

from ..waiting import until
from .client import Client
from .messenger import Line, dial, opened


def held_up(frame, wait_s, code=4029):
    """The answer to too many requests."""
    assert (frame["type"], frame["class"], frame["code"]) == ("response", "TooManyRequestsErrorMessage", 429)
    assert (frame["body"]["errorCode"], frame["body"]["retryAfter"]) == (code, wait_s)
    assert "tracingId" not in frame


async def test_requests_of_a_connection(start, manual):
    """Whatever is asked counts, for one connection within a minute."""
    client = await start(manual.clock(), requests_per_minute=3)
    line = await opened(client)
    for _ in range(2):
        assert (await line.ask("getJwt"))["class"] == "JwtResponse"
    manual.now_s += 20
    held_up(await line.ask("getJwt"), 40)
    assert (await (await opened(client, line.token)).ask("getJwt"))["class"] == "JwtResponse"
    manual.now_s += 40
    assert (await line.ask("getJwt"))["class"] == "JwtResponse"


async def test_messages_of_a_session(start, manual):
    """Messages count for the session, over all its sockets; a refused one is no message."""
    client = await start(manual.clock(), messages_per_second=2)
    one, other = [await opened(client, "one token") for _ in range(2)]
    await one.send()
    await other.hear()
    await other.send()
    await one.hear()
    held_up(await one.send(), 1)
    assert len(client.sandbox.messages) == 2
    manual.now_s += 1
    assert (await one.send())["class"] == "StructuredMessage"
    assert len(client.sandbox.messages) == 3


async def test_configuring_a_session(start, manual):
    """A session can be configured only so often, however many connections do it."""
    client = await start(manual.clock(), configures_per_minute=2)
    for _ in range(2):
        await opened(client, "one token")
    line = await dial(client, "one token")
    held_up(await line.configure(), 60)
    await opened(client, "another token")
    manual.now_s += 60
    assert (await line.configure())["class"] == "SessionResponse"


async def test_echoes_of_a_connection(start, manual):
    """The health check has a rate of its own."""
    line = await opened(await start(manual.clock()))
    ping = {"type": "Text", "text": "ping"}
    for _ in range(2):
        assert (await line.ask("echo", message=ping))["class"] == "StructuredMessage"
    held_up(await line.ask("echo", message=ping), 60)
    assert (await line.ask("getJwt"))["class"] == "JwtResponse"


async def test_readings_of_the_history(start, manual):
    """The history is read ten times a minute at most; then it is 429 with Retry-After."""
    line = await opened(await start(manual.clock()))
    jwt = await line.jwt()
    for _ in range(10):
        assert (await line.history(jwt)).status == 200
    answered = await line.history(await line.jwt())
    assert (answered.status, answered.json["code"]) == (429, "too.many.requests")
    assert answered.headers["Retry-After"] == "60"
    manual.now_s += 60
    assert (await line.history(jwt)).status == 200


async def test_its_other_code_and_envelope(start, manual):
    """Some platforms say 429 where others say 4029, and push what others answer."""
    client = await start(manual.clock(), requests_per_minute=1, too_many_code=429)
    line = await opened(client)
    held_up(await line.ask("getJwt"), 60, code=429)
    client.sandbox.change(error_shape="message")
    frame = await line.ask("getJwt")
    assert (frame["type"], frame["code"]) == ("message", 200)


async def test_no_limits(start, manual):
    """A limit of 0 is none."""
    names = ("connections", "requests", "configures", "history", "echoes")
    off = {f"{name}_per_minute": 0 for name in names}
    line = await opened(await start(manual.clock(), **off, messages_per_second=0, sockets_per_session=0))
    jwt = await line.jwt()
    for _ in range(70):
        assert (await line.configure())["class"] == "SessionResponse"
    for _ in range(12):
        assert (await line.history(jwt)).status == 200
        assert (await line.ask("echo", message={"text": "ping"}))["class"] == "StructuredMessage"
        assert (await line.send())["class"] == "StructuredMessage"
    for _ in range(4):
        await opened(line.client, line.token)
    assert (await line.ask("getJwt"))["class"] == "JwtResponse"


class TestControl:
    """The switchboard for another process knows the guest protocol too."""

    @pytest.fixture
    async def line(self, client: Client) -> Line:
        return await opened(client)

    async def post(self, client, path, content=None):
        return await client.call("POST", f"{client.sandbox.api_url}/_sandbox/{path}", json=content)

    async def test_settings(self, client):
        """Each kind of setting can be changed, a wrong choice is told."""
        change = {
            "media_types": [],
            "auto_start": True,
            "upload_event_delay_s": 1,
            "too_many_code": 429,
            "allowed_origins": ["a"],
            "deployment_id": "another",
        }
        assert (await self.post(client, "settings", change)).status == 204
        settings = client.sandbox.settings
        assert (settings.media_types, settings.auto_start, settings.upload_event_delay_s) == ((), True, 1.0)
        assert (settings.too_many_code, settings.allowed_origins, client.sandbox.deployment_id) == (
            429,
            {"a"},
            "another",
        )
        wrong = {"too_many_code": 4030, "error_shape": "both", "chatter": "much", "auto_start": 1}
        answered = await self.post(client, "settings", wrong)
        assert answered.status == 400
        assert all(f"{name}: " in answered.json["error"] for name in wrong)

    async def test_faults(self, line):
        """Armed with the fields that only frames have."""
        fault = {"step": "message", "kind": "status", "status": 4011, "error_class": "ErrorMessage"}
        assert (await self.post(line.client, "faults", fault)).status == 201
        assert (await line.send())["class"] == "ErrorMessage"
        answered = await self.post(line.client, "faults", {"step": "message", "kind": "close", "status": 503})
        assert (answered.status, "1000 to 4999" in answered.json["error"]) == (400, True)

    async def test_sessions(self, line):
        """Sessions can be made read-only and ended."""
        assert (await self.post(line.client, "sessions/disconnect")).status == 204
        assert (await line.hear())["body"]["type"] == "Event"
        assert (await self.post(line.client, "sessions/expire")).status == 204
        assert (await line.hear())["class"] == "SessionExpiredEvent"

    async def test_the_ledger_tells_no_token(self, line):
        """What guests, uploads and messages show is complete but for the credential of the session."""
        await line.deliver()
        await until(lambda: not line.sandbox.messages[0].answer_lost)
        url = f"{line.sandbox.api_url}/_sandbox/ledger"
        answered = await line.client.call("GET", url)
        (guest,) = answered.json["guests"]
        assert guest["guest_id"] == answered.json["messages"][0]["guest_id"]
        assert answered.json["messages"][0]["dropped"] == []
        assert answered.json["counts"]["answers"]["message"] == {"200": 1}
        assert line.token not in answered.text
        assert line.token not in repr(line.sandbox.ledger.guests)
        await line.client.call("DELETE", url)
        assert (await line.send())["code"] == 4007


async def test_counts_only(start):
    """For long benchmarks only figures stay, and every frame still works."""
    line = await opened(await start(ledger="counts"))
    echo = await line.deliver()
    assert echo["body"]["content"]
    ledger = line.sandbox.ledger
    assert ledger.received == ledger.messages == ledger.objects == []
    assert {name: ledger.counts[name] for name in ("guests", "uploads", "objects", "messages")} == {
        "guests": 1,
        "uploads": 1,
        "objects": 1,
        "messages": 1,
    }
