"""What is answered, to whom, and what is refused: over real sockets."""

import asyncio
import json
import os
import socket
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from attachd.admin import wire
from attachd.admin.server import AdminServer, CannotListen
from attachd.admin.snapshot import INTERVAL_S
from attachd.metrics import Metrics
from attachd.model import Explanation, InboxName, Reason, Status

from ..waiting import until
from .conftest import TOKEN, Health, serving
from .scripted import CLAIMS, Scripted, delivery, failed, inbox, pause

Client = aiohttp.ClientSession


async def said(client: Client, path: str, **given: Any) -> tuple[int, Any]:
    """Status and JSON of an answer to GET."""
    async with client.get(path, **given) as answer:
        return answer.status, json.loads(await answer.text())


async def told(client: Client, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
    """Status and JSON of an answer to POST."""
    async with client.post(path, json=body, headers=headers) as answer:
        return answer.status, json.loads(await answer.text())


async def raw(server: AdminServer, request: bytes) -> bytes:
    """What comes back for these bytes."""
    port = int(server.address.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


# --- looking ---------------------------------------------------------------------------------------------------------


async def test_status_deliveries_and_explanation_are_told(client: Client, daemon: Scripted) -> None:
    odd = "brief\udcff.pdf"
    daemon.add_failure(failed(delivery(1, odd), Reason.EMPTY, "it has no content"))
    daemon.explanations[f"/srv/attachd/claims/{odd}"] = Explanation(odd, "failed", ("It is empty.",), CLAIMS)
    assert wire.status_from((await said(client, "/api/status"))[1]) == daemon.told
    assert wire.entries_from((await said(client, "/api/deliveries"))[1]) == daemon.entries
    assert (await said(client, "/api/deliveries?state=sent"))[1] == []
    assert (await said(client, "/api/deliveries?inbox=other"))[1] == []
    params = wire.name_pair("path", f"/srv/attachd/claims/{odd}")
    code, answer = await said(client, "/api/explain", params=params)
    assert (code, wire.explanation_from(answer).sentences) == (200, ("It is empty.",))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/deliveries?state=lost", 400),
        ("/api/deliveries?limit=0", 400),
        ("/api/deliveries?limit=100000000000000000000", 400),
        ("/api/deliveries?limit=-1", 400),
        ("/api/explain", 400),
        ("/api/explain?path=/nowhere", 404),
        ("/api/explain?path_base64=%25", 400),
        ("/nothing", 404),
        ("/api/retry", 405),
        ("/api/pause", 405),
        ("/api/resume", 405),
    ],
)
async def test_what_cannot_be_answered_is_said_in_words(client: Client, path: str, code: int) -> None:
    got, answer = await said(client, path)
    assert (got, list(answer)) == (code, ["error"])


async def test_health_and_readiness(client: Client, health: Health) -> None:
    async def look(path: str) -> tuple[int, str]:
        async with client.get(path) as answer:
            return answer.status, await answer.text()

    assert await look("/healthz") == (200, "alive\n")
    assert await look("/readyz") == (200, "ready\n")
    health.problems.append("the journal's thread has not answered for 12 s")
    health.missing.append("claims is not watched yet")
    assert await look("/healthz") == (503, "the journal's thread has not answered for 12 s\n")
    assert await look("/readyz") == (503, "claims is not watched yet\n")


async def test_metrics_are_in_the_text_form(client: Client, metrics: Metrics) -> None:
    metrics.failed(CLAIMS, Reason.EMPTY)
    async with client.get("/metrics") as answer:
        assert answer.content_type == "text/plain"
        assert 'attachd_failed_total{inbox="claims",reason="empty"} 1.0' in await answer.text()


async def test_a_fault_behind_it_is_an_answer_and_a_line_in_the_log(client: Client, daemon: Scripted) -> None:
    daemon.error = RuntimeError("secret thing")
    code, answer = await said(client, "/api/status")
    assert code == 500
    assert "secret" not in answer["error"]
    daemon.error = None
    assert (await said(client, "/api/status"))[0] == 200


async def test_every_answer_keeps_browsers_on_a_short_leash(client: Client) -> None:
    for path in ("/", "/api/status", "/nothing", "/healthz", "/metrics"):
        async with client.get(path) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["X-Frame-Options"] == "DENY"
            assert answer.headers["Cache-Control"] == "no-store"
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert TOKEN not in await answer.text()


# --- changing --------------------------------------------------------------------------------------------------------


async def test_changes_reach_the_daemon(client: Client, daemon: Scripted, token: dict[str, str]) -> None:
    one = daemon.add_failure(failed(delivery(1, "a.pdf"), Reason.EMPTY, "it has no content"))
    code, answer = await told(client, "/api/retry", {"what": one}, token)
    assert (code, wire.retried_from(answer)) == (200, daemon.retried)
    await told(client, "/api/retry", {"what": None, "inbox": "claims"}, token)
    await told(client, "/api/retry", wire.name_pair("what", "a\udcff"), token)
    code, answer = await told(client, "/api/pause", {"inbox": "claims"}, token)
    assert wire.status_from(answer) == daemon.told
    await told(client, "/api/resume", {"inbox": None}, token)
    assert daemon.asked == [
        ("retry", one, None),
        ("retry", None, InboxName("claims")),
        ("retry", "a\udcff", None),
        ("pause", InboxName("claims"), None),
        ("resume", None, None),
    ]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({wire.TOKEN_HEADER: ""}, 401),
        ({wire.TOKEN_HEADER: "wrong"}, 401),
        ({wire.TOKEN_HEADER: TOKEN + "x"}, 401),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
async def test_a_change_that_a_foreign_page_could_send_is_refused(
    client: Client, daemon: Scripted, headers: dict[str, str], code: int
) -> None:
    given = {wire.TOKEN_HEADER: TOKEN, "Content-Type": "application/json"} | headers
    for path in ("/api/retry", "/api/pause", "/api/resume"):
        async with client.post(path, data=b'{"what":null}', headers=given) as answer:
            assert answer.status == code
            assert list(await answer.json()) == ["error"]
    assert daemon.asked == []


async def test_our_own_origin_may_change(client: Client, server: AdminServer, daemon: Scripted) -> None:
    headers = {wire.TOKEN_HEADER: TOKEN, "Origin": server.address, "Sec-Fetch-Site": "same-origin"}
    assert (await told(client, "/api/pause", {}, headers))[0] == 200
    assert daemon.asked == [("pause", None, None)]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
async def test_no_other_method_changes_anything(
    client: Client, daemon: Scripted, token: dict[str, str], method: str
) -> None:
    async with client.request(method, "/api/retry", json={"what": None}, headers=token) as answer:
        assert answer.status == 405
    assert daemon.asked == []


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"what": 1}', b"{}", b'{"what": null, "force": true}', b"[" * 9000, b'{"what": "\xff"}',
     b'{"what":null,"inbox":["x"]}', b'{"what":"x","what_base64":"%%"}'],
)  # fmt: skip
async def test_a_body_that_is_something_else_is_refused(
    client: Client, daemon: Scripted, token: dict[str, str], body: bytes
) -> None:
    headers = token | {"Content-Type": "application/json"}
    async with client.post("/api/retry", data=body, headers=headers) as answer:
        assert answer.status == 400
        assert list(await answer.json()) == ["error"]
    assert daemon.asked == []


async def test_a_large_body_is_not_read(client: Client, token: dict[str, str]) -> None:
    async def without_end() -> Any:
        for _ in range(40):
            yield b" " * 1024

    headers = token | {"Content-Type": "application/json"}
    async with client.post("/api/pause", data=b" " * 20_000, headers=headers) as answer:
        assert answer.status == 413
    async with client.post("/api/pause", data=without_end(), headers=headers) as answer:
        assert answer.status == 413


# --- who asks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8722", "localhost.evil.example", "127.0.0.1.evil.example", "localhost@evil", "",
     "10.0.0.1", "0.0.0.0", "localhost/x", "[::1", "localhost:port", "2130706433"],
)  # fmt: skip
async def test_a_name_that_was_bent_to_this_machine_is_refused(
    client: Client, server: AdminServer, daemon: Scripted, host: str
) -> None:
    """DNS rebinding: the browser sends the name of the page it came from."""
    for path in ("/", "/api/status", "/metrics", "/nothing"):
        answer = await raw(server, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert answer.split()[1] in (b"421", b"400"), host
        assert b"1.2.3" not in answer
    assert daemon.looks == 0


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:9", "[::1]:9000", "127.0.0.5"])
async def test_this_machine_by_any_of_its_names_is_answered(client: Client, host: str) -> None:
    """Any port: one that ssh forwards has another number at the browser's end."""
    async with client.get("/api/status", headers={"Host": host}) as answer:
        assert answer.status == 200


async def test_two_hosts_or_none_are_refused(server: AdminServer) -> None:
    for hosts in ("", "Host: localhost\r\nHost: evil.example\r\n"):
        answer = await raw(server, f"GET /api/status HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n".encode())
        assert answer.split()[1] in (b"421", b"400")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_another_site_may_not_even_look(client: Client, site: str) -> None:
    for path in ("/api/status", "/api/events", "/metrics"):
        async with client.get(path, headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}) as answer:
            assert answer.status == 403
    link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
    async with client.get("/", headers=link) as answer:
        assert answer.status == 200, "a link to the page from somewhere else is fine"


async def test_idle_connections_are_bounded(server: AdminServer, client: Client) -> None:
    """They must not use up the descriptors that the files need."""
    port = int(server.address.rpartition(":")[2])
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(70)]
    async with asyncio.timeout(5):
        closed = [await opened[at][0].read() for at in range(64, 70)]
    assert closed == [b""] * 6
    for _, writer in opened:
        writer.close()
    await until(lambda: not server._server.connections, "they are gone")
    assert (await said(client, "/api/status"))[0] == 200


async def test_who_connects_and_says_nothing_is_sent_away(server: AdminServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attachd.admin.connections._SILENT_S", 0.2)
    assert await raw(server, b"GET / HTTP/1.1\r\nHost: loc") == b""


# --- events ----------------------------------------------------------------------------------------------------------


async def pieces(answer: aiohttp.ClientResponse, patience_s: float = 5) -> str:
    """The next event, or comment."""
    lines = b""
    async with asyncio.timeout(patience_s):
        while not lines.endswith(b"\n\n"):
            lines += await answer.content.readline()
    return lines.decode()


def snapshot_of(piece: str) -> Any:
    event, data = piece.strip().split("\n")
    assert event == "event: snapshot"
    return json.loads(data.removeprefix("data: "))


async def test_events_push_what_changes_and_only_that(daemon: Scripted, metrics: Metrics, health: Health) -> None:
    """That seconds pass is no change; a countdown that jumps is one."""
    async with serving(daemon, metrics, health, heartbeat_s=0.7) as server, Client(server.address) as client:
        daemon.told = replace(daemon.told, platform=pause(retry_in_s=40.0))
        async with client.get("/api/events") as answer:
            assert answer.content_type == "text/event-stream"
            assert snapshot_of(await pieces(answer))["status"]["platform"]["retry_in_s"] == 40.0
            daemon.told = replace(daemon.told, platform=pause(retry_in_s=39.0, paused_s=96.0))
            assert await pieces(answer) == ": still here\n\n"
            daemon.told = replace(daemon.told, platform=pause(retry_in_s=300.0, paused_s=97.0))
            assert snapshot_of(await pieces(answer))["status"]["platform"]["retry_in_s"] == 300.0
            daemon.add_failure(failed(delivery(1, "a.pdf"), Reason.EMPTY, "it has no content"))
            assert [one["file"] for one in snapshot_of(await pieces(answer))["failures"]] == ["a.pdf"]


async def test_many_watchers_cost_one_look_and_too_many_are_refused(
    client: Client, server: AdminServer, daemon: Scripted
) -> None:
    async with asyncio.timeout(10):
        answers = [await client.get("/api/events") for _ in range(16)]
        for answer in answers:
            await pieces(answer)
        assert daemon.looks <= 3
        code, answer = await said(client, "/api/events")
        assert (code, answer) == (503, {"error": "16 are watching already"})
        for watching in answers:
            watching.close()
        await until(lambda: not server._watchers, "they are gone")
        async with client.get("/api/events") as again:
            assert again.status == 200


async def test_nobody_watching_costs_no_look(client: Client, server: AdminServer, daemon: Scripted) -> None:
    async with client.get("/api/events") as answer:
        await pieces(answer)
    await until(lambda: not server._watchers, "nobody is watching")
    looks = daemon.looks
    await asyncio.sleep(INTERVAL_S + 0.2)  # for another look, were anybody to take it
    assert daemon.looks == looks


async def test_the_end_is_clean_and_quick_for_those_who_watch(
    daemon: Scripted, metrics: Metrics, health: Health
) -> None:
    async with Client() as client:
        async with serving(daemon, metrics, health) as server:
            answer = await client.get(f"{server.address}/api/events")
            await pieces(answer)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 2
        assert await answer.content.read() == b""


# --- where it listens ------------------------------------------------------------------------------------------------


async def test_a_unix_socket_is_for_this_user_only(
    daemon: Scripted, metrics: Metrics, health: Health, socket_path: Path, token: dict[str, str]
) -> None:
    async with serving(daemon, metrics, health, f"unix:{socket_path}") as server:
        assert server.address == f"unix:{socket_path}"
        assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o600
        async with Client("http://localhost", connector=aiohttp.UnixConnector(str(socket_path))) as client:
            assert wire.status_from((await said(client, "/api/status"))[1]) == daemon.told
            assert (await told(client, "/api/pause", {}, token))[0] == 200
            assert (await told(client, "/api/pause", {}, {}))[0] == 401
    assert not socket_path.exists()


async def test_a_socket_left_by_a_killed_process_is_replaced(
    daemon: Scripted, metrics: Metrics, health: Health, socket_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path))
    async with serving(daemon, metrics, health, f"unix:{socket_path}") as server:
        with pytest.raises(CannotListen, match="somebody listens there"):
            await serving(daemon, metrics, health, f"unix:{socket_path}").__aenter__()
        assert socket_path.exists()
        # The knock at the door is a connection: over before the end, and let in before whoever comes now.
        async with Client("http://localhost", connector=aiohttp.UnixConnector(str(socket_path))) as client:
            assert (await said(client, "/api/status"))[0] == 200
        await until(lambda: not server._server.connections, "the knock is over")


async def test_a_file_in_the_sockets_place_stays(
    daemon: Scripted, metrics: Metrics, health: Health, socket_path: Path
) -> None:
    socket_path.write_text("precious")
    with pytest.raises(CannotListen, match="no socket"):
        await serving(daemon, metrics, health, f"unix:{socket_path}").__aenter__()
    assert socket_path.read_text() == "precious"


async def test_a_taken_port_is_said(server: AdminServer, daemon: Scripted, metrics: Metrics, health: Health) -> None:
    with pytest.raises(CannotListen, match="by another program"):
        await serving(daemon, metrics, health, server.address.removeprefix("http://")).__aenter__()


async def test_it_can_be_opened_anew_on_the_same_port(daemon: Scripted, metrics: Metrics, health: Health) -> None:
    async with serving(daemon, metrics, health) as server, Client(server.address) as client:
        assert (await said(client, "/api/status"))[0] == 200
    place = server.address.removeprefix("http://")
    async with serving(daemon, metrics, health, place) as again, Client(again.address) as client:
        daemon.told = Status(True, "2", None, (inbox(),))
        assert (await said(client, "/api/status"))[1]["version"] == "2"
