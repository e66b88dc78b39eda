"""The daemon as it runs, asked through its own admin server by the commands and by a monitoring system."""

import asyncio
import json
import sys
from pathlib import Path

import aiohttp
import yaml

from attachd.sandbox import Sandbox, refuse

from .running import RunningDaemon, drop
from .waiting import until


async def _types(daemon: RunningDaemon, command: str, *words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "attachd", command, *words, "-c", str(daemon.config_file)),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


def _with_admin(daemon: RunningDaemon) -> Path:
    socket = daemon.config_file.parent / "admin.sock"
    settings = yaml.safe_load(daemon.config_file.read_text())
    settings["admin"] = {"listen": f"unix:{socket}"}
    daemon.config_file.write_text(yaml.safe_dump(settings))
    return socket


async def test_the_running_daemon_says_where_everything_is_and_takes_a_file_back(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """status, list, explain and retry, health and metrics: all through the socket of the process that delivers."""
    socket = _with_admin(daemon)
    platform.on("upload", refuse(400, file_name="bad.txt"))
    await daemon.start()
    drop(inbox, "good.txt")
    drop(inbox, "bad.txt")
    await daemon.all_filed(2)
    await until(lambda: len(daemon.events("file.sent") + daemon.events("file.failed")) == 2, "both are logged")
    code, out = await _types(daemon, "status", "--json")
    (told,) = json.loads(out)["inboxes"]
    assert (code, told["sent"], told["failed"], told["waiting"]) == (0, 1, 1, 0)
    code, out = await _types(daemon, "explain", str(inbox / "bad.txt"), "--json")
    assert (code, json.loads(out)["place"]) == (0, "failed")
    code, _ = await _types(daemon, "retry", "bad.txt")
    assert code == 0
    await until(lambda: daemon.sent() == ["bad.txt", "good.txt"], "it is sent after all")
    await until(lambda: len(daemon.events("file.sent")) == 2, "that is logged")
    code, out = await _types(daemon, "list", "--json")
    assert [entry["state"] for entry in json.loads(out)].count("sent") == 2
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as http:
        async with http.get("http://localhost/healthz") as answer:
            assert answer.status == 200
        async with http.get("http://localhost/metrics") as answer:
            text = await answer.text()
    assert 'attachd_sent_total{inbox="claims"} 2.0' in text
    assert 'attachd_failed_total{inbox="claims",reason="refused"} 1.0' in text
    assert daemon.noise == []
