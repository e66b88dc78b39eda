"""The platform as a whole: its ledger, its control over HTTP, going down and coming up, starting and ending."""

import asyncio

import aiohttp
import pytest
import yaml

from attachd.sandbox import WEBCHAT_STEPS, Answer, Fault, FaultKind, Sandbox, SandboxSettings, Step, refuse, serve

from ..waiting import until
from .client import Client


class TestLedger:
    async def test_every_request_in_order(self, client):
        """Each request has its step, its times and what became of it."""
        await client.deliver()
        received = client.sandbox.ledger.received
        assert [one.step for one in received] == list(WEBCHAT_STEPS)
        assert [one.status for one in received] == [200] * 5
        assert {one.answer for one in received} == {Answer.WHOLE}
        assert [one.monotonic_s for one in received] == sorted(one.monotonic_s for one in received)

    async def test_refusals_are_there_with_their_code(self, client):
        """A refusal is a request too."""
        await client.guest("nowhere")
        (received,) = client.sandbox.requests("guest")
        assert (received.status, received.code) == (400, "bad.request")

    async def test_counts_only(self, start):
        """For long benchmarks only figures stay, and every call still works."""
        client = await start(ledger="counts")
        ticket = await client.stored()
        for _ in range(2):
            assert (await client.converse(ticket)).status == 200
        ledger = client.sandbox.ledger
        assert ledger.received == ledger.messages == ledger.objects == []
        assert ledger.counts == {
            "requests": 6,
            "tokens": 1,
            "guests": 1,
            "uploads": 1,
            "objects": 1,
            "bytes": 5,
            "messages": 2,
        }
        assert ledger.answers[Step.CONVERSATION, 200] == 2

    async def test_clearing(self, client):
        """After clear() everything is as at the start, only tokens stay valid."""
        await client.deliver()
        client.sandbox.on("guest", refuse(500))
        client.sandbox.clear()
        assert client.sandbox.ledger.received == client.sandbox.messages == []
        assert (await client.deliver()).status == 200


class TestControl:
    async def control(self, client, method, path, content=None):
        return await client.call(method, f"{client.sandbox.api_url}/_sandbox/{path}", json=content)

    async def test_faults(self, client):
        """Armed, shown and disarmed from another process."""
        fault = {"step": "guest", "kind": "status", "status": 429, "headers": {"Retry-After": "3"}, "times": None}
        assert (await self.control(client, "POST", "faults", fault)).status == 201
        answered = await client.guest()
        assert (answered.status, answered.headers["Retry-After"]) == (429, "3")
        (shown,) = (await self.control(client, "GET", "faults")).json
        assert fault.items() <= shown.items()
        assert (await self.control(client, "DELETE", "faults?step=upload")).status == 204
        assert (await client.guest()).status == 429
        assert (await self.control(client, "DELETE", "faults")).status == 204
        assert (await client.guest()).status == 200

    @pytest.mark.parametrize(
        ("fault", "word"),
        [
            ({"kind": "status"}, "step: must be one of"),
            ({"step": "guest"}, "kind: is missing"),
            ({"step": "guest", "kind": "earthquake"}, "kind: must be one of"),
            ({"step": "guest", "kind": "status", "when": 1}, "no such field"),
            ({"step": "guest", "kind": "status", "times": "twice"}, "times: must be of type int"),
            ({"step": "guest", "kind": "status", "headers": {"a": 1}}, "headers: must be an object of strings"),
            ({"step": "put", "kind": "wrong_json"}, "no JSON"),
            ([], "body: must be a JSON object"),
        ],
    )
    async def test_a_fault_that_cannot_be(self, client, fault, word):
        """A mistake is answered in words."""
        answered = await self.control(client, "POST", "faults", fault)
        assert (answered.status, word in answered.json["error"]) == (400, True)

    async def test_settings(self, client):
        """What may change at run time can be changed from another process, all or nothing."""
        change = {"client_secret": "rotated", "requests_per_second": 0, "queues": ["q"], "token_life_s": 60}
        assert (await self.control(client, "POST", "settings", change)).status == 204
        assert client.sandbox.client_secret == "rotated"
        assert client.sandbox.settings.queues == {"q"}
        wrong = {"client_id": "x", "port": 1, "nonsense": 2, "max_file_bytes": "9", "retry_after": "never"}
        answered = await self.control(client, "POST", "settings", wrong)
        assert answered.status == 400
        for name in ("port", "nonsense", "max_file_bytes", "retry_after"):
            assert f"{name}: " in answered.json["error"]
        assert client.sandbox.client_id != "x"

    async def test_revoking_tokens(self, client):
        """All tokens are over at once."""
        assert (await self.control(client, "POST", "tokens/revoke")).status == 204
        assert (await client.guest()).status == 401

    async def test_the_ledger(self, client):
        """The whole ledger as JSON, or a part of it, and no secret in it."""
        await client.deliver()
        answered = await self.control(client, "GET", "ledger")
        (message,) = answered.json["messages"]
        assert message["attachments"][0]["file_name"] == "claim.pdf"
        assert message["answer_lost"] is False
        assert [one["step"] for one in answered.json["requests"]] == list(WEBCHAT_STEPS)
        assert client.token not in answered.text
        assert client.sandbox.client_secret not in answered.text
        only = (await self.control(client, "GET", "ledger?only=counts")).json
        assert list(only) == ["counts"]
        assert only["counts"]["answers"]["conversation"] == {"200": 1}
        assert (await self.control(client, "GET", "ledger?only=nothing")).status == 400
        assert (await self.control(client, "DELETE", "ledger")).status == 204
        assert client.sandbox.messages == []


class TestOutage:
    async def test_down_and_up_on_the_same_ports(self, client):
        """While down nobody connects; afterwards session, token and ledger are what they were."""
        ticket = await client.stored()
        for _ in range(3):
            await client.sandbox.go_down()
            for attempt in (client.guest(), client.put(ticket), client.ask_token()):
                with pytest.raises(aiohttp.ClientConnectorError):
                    await attempt
            await client.sandbox.come_up()
        assert (await client.converse(ticket)).status == 200
        assert len(client.sandbox.messages) == 1

    async def test_requests_under_way_are_reset(self, client):
        """An outage spares no connection."""
        client.sandbox.on("guest", Fault(FaultKind.HANG))
        waiting = asyncio.create_task(client.guest())
        await until(lambda: client.sandbox.requests("guest") != [])
        await client.sandbox.go_down()
        with pytest.raises((aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)):
            await waiting

    async def test_doing_it_twice_changes_nothing(self, client):
        """Down is down and up is up."""
        await client.sandbox.go_down()
        await client.sandbox.go_down()
        await client.sandbox.come_up()
        await client.sandbox.come_up()
        assert (await client.guest()).status == 200

    async def test_ending_while_down(self):
        """A sandbox that is down when its block ends leaves no socket open."""
        async with Sandbox() as sandbox:
            await sandbox.go_down()


async def test_a_reset_is_a_real_one(client):
    """The socket of the client sees ECONNRESET, not an orderly end."""
    client.sandbox.on("guest", Fault(FaultKind.LOST_ANSWER))
    host, _, port = client.sandbox.api_url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /api/v2/webchat/guest HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


def test_the_port_can_be_taken_again_at_once():
    """A restarted sandbox gets its old port although connections of the old one linger."""

    async def run(port: int) -> int:
        async with Sandbox(SandboxSettings(port=port)) as sandbox, aiohttp.ClientSession() as session:
            client = Client(sandbox, session)
            await client.log_in()
            assert (await client.deliver()).status == 200
            await sandbox.go_down()
            await sandbox.come_up()
            assert (await client.guest()).status == 200
            return int(sandbox.api_url.rpartition(":")[2])

    port = 0
    for _ in range(3):
        port = asyncio.run(run(port))


async def test_a_taken_port_is_an_error_and_leaves_nothing_open():
    """A second sandbox on the same port fails as any server does."""
    async with Sandbox() as first:
        port = int(first.api_url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            await Sandbox(SandboxSettings(port=port)).__aenter__()


async def test_serving_until_told_to_stop():
    """The command's function announces a sandbox that listens, and ends with its event."""
    announced, stop = [], asyncio.Event()
    serving = asyncio.create_task(serve(SandboxSettings(), 0, announced.append, stop))
    await until(lambda: announced != [])
    async with aiohttp.ClientSession() as session:
        assert (await Client(announced[0], session).ask_token()).status == 200
    stop.set()
    await serving


async def test_the_config_points_here(client):
    """The printed configuration is YAML with exactly what attachd needs, whatever the folder is called."""
    config = yaml.safe_load(client.sandbox.config_yaml('/srv/a: "b" #c', "/var/lib/x"))
    assert config == {
        "platform": {
            "environment": "sandbox.invalid",
            "login_url": client.sandbox.login_url,
            "api_url": client.sandbox.api_url,
            "client_id": client.sandbox.client_id,
            "client_secret": client.sandbox.client_secret,
            "queue_id": client.sandbox.queue_id,
        },
        "inboxes": [{"path": '/srv/a: "b" #c'}],
        "state_dir": "/var/lib/x",
    }
