"""`status`, `list`, `explain`, `retry` as an operator types them: with attachd running, at rest, and out of reach."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import socket as sockets
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from attachd.cli import main
from attachd.daemon.tokens import load_or_make_token, read_token
from attachd.sandbox import Fault, FaultKind, Sandbox, refuse

from .living import living
from .running import RunningDaemon, drop
from .waiting import until

STATUS_KEYS = [
    "name",
    "path",
    "state",
    "reason",
    "waiting",
    "under_way",
    "sent",
    "failed",
    "ignored",
    "oldest_waiting_s",
]
LIST_KEYS = [
    *("delivery_id", "inbox", "file", "state", "size", "attempts", "reason", "conversation_id", "updated_at"),
]


class Operator:
    """Types commands about one config, in a folder of choice.

    In a thread of this process, which is what keeps these tests quick; `tests/test_cli.py` types in a process of its
    own, and so do the tests here that are about the terminal.
    """

    def __init__(self, config_file: Path) -> None:
        self.config_file = config_file

    async def types(
        self, command: str, *words: str, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        args = [command, "-c", str(self.config_file), *words]
        with contextlib.chdir(cwd or Path.cwd()):
            done = await asyncio.to_thread(CliRunner().invoke, main, args, env={"COLUMNS": "120"} | (env or {}))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout, done.stderr

    async def reads(self, command: str, *words: str) -> Any:
        """The JSON it prints."""
        code, out, err = await self.types(command, "--json", *words)
        assert code == 0, err
        return json.loads(out)


@pytest.fixture
async def operator(daemon: RunningDaemon) -> AsyncIterator[Operator]:
    return Operator(daemon.config_file)


def listen(daemon: RunningDaemon, where: str) -> None:
    """Let the config name another admin address."""
    settings = yaml.safe_load(daemon.config_file.read_text())
    settings["admin"] = {"listen": where}
    daemon.config_file.write_text(yaml.safe_dump(settings))


@pytest.fixture
async def socket(daemon: RunningDaemon, tmp_path: Path) -> str:
    """The config lets attachd be asked on a Unix socket."""
    where = f"unix:{tmp_path}/attachd.sock"
    listen(daemon, where)
    return where


@pytest.fixture
async def filed(daemon: RunningDaemon, platform: Sandbox) -> RunningDaemon:
    """Two files were handled, one of them refused, and attachd stopped."""
    platform.on("upload", refuse(400, file_name="bad.txt"))
    await daemon.start()
    drop(daemon.inbox, "good.txt")
    drop(daemon.inbox, "bad.txt")
    await daemon.all_filed(2)
    await daemon.stop()
    return daemon


async def test_at_rest_all_four_answer_from_the_journal_and_the_folders(
    filed: RunningDaemon, operator: Operator, platform: Sandbox
) -> None:
    """The pinned JSON forms; the refused file goes back and waits for the next start."""
    drop(filed.inbox, "late.txt")
    status = await operator.reads("status")
    assert status["platform"] == {"state": "ok", "reason": None, "retry_in_s": None}
    [claims] = status["inboxes"]
    assert list(claims) == STATUS_KEYS
    assert (claims["waiting"], claims["under_way"], claims["sent"], claims["failed"]) == (1, 0, 1, 1)
    assert (claims["name"], claims["state"], claims["ignored"]) == ("claims", "ok", 0)
    listed = await operator.reads("list")
    assert [list(one) for one in listed] == [LIST_KEYS] * 2
    [failed] = await operator.reads("list", "--state", "failed", "--inbox", "claims", "--limit", "5")
    assert (failed["file"], failed["reason"], failed["conversation_id"]) == ("bad.txt", "refused", None)
    [sent] = [one for one in listed if one["state"] == "sent"]
    assert sent["conversation_id"] == platform.messages[0].conversation_id
    assert await operator.reads("list", "--inbox", "letters") == []
    explained = await operator.reads("explain", sent["delivery_id"])
    assert (explained["place"], explained["delivery"]["file"]) == ("sent", "good.txt")
    code, out, _ = await operator.types("retry", "bad.txt")
    assert code == 0
    assert "claims: failed/bad.txt is in the inbox again as bad.txt" in out
    assert "sent when it is started" in out
    assert sorted(filed.waiting()) == ["bad.txt", "late.txt"]
    await filed.start()
    await filed.all_filed(3)
    assert filed.sent() == ["bad.txt", "good.txt", "late.txt"]
    await until(lambda: not list((filed.inbox / "failed").iterdir()), "its reason is gone")


async def test_a_running_attachd_answers_over_its_socket(
    daemon: RunningDaemon, operator: Operator, platform: Sandbox, inbox: Path, socket: str
) -> None:
    """All four while it works: what it does now, what it did, and a retry that it sends at once."""
    platform.on("upload", refuse(400, file_name="bad.txt"))
    async with living(daemon.config_file):
        for name in ("good.txt", "bad.txt"):
            drop(inbox, name)
        await daemon.all_filed(2)
        platform.on("conversation", Fault(FaultKind.DELAY, delay_s=20, file_name="slow.txt"))
        drop(inbox, "slow.txt")
        await until(lambda: len(platform.requests("conversation")) == 2, "it is under way")
        code, out, err = await operator.types("status")
        assert code == 0, err
        assert "the platform is fine" in out
        assert "slow.txt" in out
        [claims] = (await operator.reads("status"))["inboxes"]
        assert (claims["under_way"], claims["sent"], claims["failed"]) == (1, 1, 1)
        assert len(await operator.reads("list", "--limit", "2")) == 2
        told = await operator.reads("explain", str(inbox / "slow.txt"))
        assert (told["place"], told["step"]) == ("under_way", "message")
        code, out, err = await operator.types("retry", "--all")
        assert code == 0, err
        assert "in the inbox again as bad.txt" in out
        await until(lambda: daemon.sent() == ["bad.txt", "good.txt"], "it is sent")
        await until(lambda: not list((inbox / "failed").iterdir()), "its reason is gone")


async def test_a_port_on_this_machine_does_as_well(
    daemon: RunningDaemon, operator: Operator, inbox: Path, unused_port: int
) -> None:
    """host:port instead of a socket; a proxy in the environment is not asked."""
    listen(daemon, f"127.0.0.1:{unused_port}")
    async with living(daemon.config_file):
        drop(inbox, "good.txt")
        await daemon.all_filed(1)
        proxies = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        code, out, err = await operator.types("explain", str(inbox / "good.txt"), env=proxies)
        assert (code, err) == (0, "")
        assert "It was sent on" in out


@pytest.fixture
def unused_port() -> int:
    """A port that nobody listens on just now."""
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_explain_takes_relative_paths_and_odd_names_and_says_when_it_knows_nothing(
    daemon: RunningDaemon, operator: Operator, inbox: Path, socket: str
) -> None:
    """From within the folder, with bytes that are no UTF-8, a name that would forge a line; 1 for what is unknown."""
    odd = os.fsdecode(b"m\xe4rz\n.part")
    (inbox / odd).touch()
    async with living(daemon.config_file):
        drop(inbox, "good.txt")
        await until(lambda: daemon.sent() == ["good.txt"], "it is sent")
        for cwd, path in ((inbox, "good.txt"), (inbox, "sent/good.txt"), (inbox / "sent", "../good.txt")):
            code, out, err = await operator.types("explain", path, cwd=cwd)
            assert code == 0, (path, err)
            assert "It was sent on" in out
        code, out, _ = await operator.types("explain", odd, cwd=inbox)
        assert code == 0
        assert "m\\xe4rz\\x0a.part" in out.splitlines()[0]
        assert "still writing it" in out
        code, out, _ = await operator.types("explain", "nothing.txt", cwd=inbox)
        assert code == 1
        assert "attachd knows nothing of it" in out
        code, out, _ = await operator.types("explain", "--json", "/etc/hostname")
        assert (code, out.strip()) == (1, "null")


async def test_an_attachd_that_may_not_be_asked_is_said_to_run(daemon: RunningDaemon, operator: Operator) -> None:
    """admin off: exit code 75, that it runs, and what to do."""
    await daemon.start()
    code, out, err = await operator.types("status")
    assert (code, out) == (75, "")
    assert "attachd runs" in err
    assert "admin.listen" in err
    assert str(daemon.pid) in err


async def test_an_attachd_that_does_not_answer_is_said_to_run(
    daemon: RunningDaemon, operator: Operator, tmp_path: Path
) -> None:
    """Started with admin off, asked by a config that names a socket: exit code 1, in words."""
    await daemon.start()
    listen(daemon, f"unix:{tmp_path}/nobody.sock")
    code, _, err = await operator.types("list")
    assert code == 1
    assert "does not answer on unix:" in err


async def test_another_attachd_on_the_same_address_is_noticed(
    daemon: RunningDaemon, operator: Operator, socket: str, tmp_path: Path
) -> None:
    """Its numbers would be somebody else's: exit code 1, and what is the matter."""
    async with living(daemon.config_file):
        settings = yaml.safe_load(daemon.config_file.read_text())
        (tmp_path / "elsewhere").mkdir()
        settings["inboxes"] = [{"path": str(tmp_path / "elsewhere")}]
        settings["state_dir"] = str(tmp_path / "other-state")
        operator.config_file = tmp_path / "other.yaml"
        operator.config_file.write_text(yaml.safe_dump(settings))
        code, _, err = await operator.types("status")
        assert code == 1
        assert "none of this config's inboxes" in err


async def test_a_change_needs_the_token(
    daemon: RunningDaemon, operator: Operator, platform: Sandbox, inbox: Path, socket: str
) -> None:
    """With another token a retry is refused in words; looking goes on."""
    platform.on("upload", refuse(400))
    async with living(daemon.config_file):
        drop(inbox, "bad.txt")
        await daemon.all_filed(1)
        (daemon.state_dir / "admin.token").write_text("x" * 43)
        code, _, err = await operator.types("retry", "bad.txt")
        assert code == 1
        assert "admin.token" in err
        assert "x" * 43 not in err
        assert daemon.failed() == ["bad.txt"]
        code, _, _ = await operator.types("status")
        assert code == 0


async def test_retry_says_of_each_file_what_happened(filed: RunningDaemon, operator: Operator, inbox: Path) -> None:
    """One that goes and one that nobody knows why it lies there: exit code 1; the next time only that one is left."""
    (inbox / "failed" / "stray.txt").touch()
    code, out, _ = await operator.types("retry", "--all")
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()[:2]] == ["back", "no"]
    assert filed.waiting() == ["bad.txt"]
    code, out, _ = await operator.types("retry", "good.txt")
    assert (code, "no failed file or delivery is called good.txt" in out) == (1, True)
    code, out, _ = await operator.types("retry", str(inbox / "failed" / "stray.txt"))
    assert code == 0
    code, out, _ = await operator.types("retry", "--all")
    assert (code, out.strip()) == (0, "no file lies in failed/")


@pytest.mark.parametrize("words", [["retry"], ["retry", "--all", "x"], ["retry", "x", "--inbox", "clams"]])
async def test_a_retry_of_nobody_knows_what_is_a_mistake_of_usage(operator: Operator, words: list[str]) -> None:
    """Exit code 2, and the names that there are."""
    code, _, err = await operator.types(*words)
    assert code == 2
    assert "--all" in err or "claims" in err


async def test_looking_needs_no_secret_and_a_wrong_config_is_refused(operator: Operator) -> None:
    """systemd gives the secret to the daemon alone; a config that is wrong otherwise ends with 78."""
    text = operator.config_file.read_text()
    settings = yaml.safe_load(text)
    del settings["platform"]["client_secret"]
    operator.config_file.write_text(yaml.safe_dump(settings))
    code, _, err = await operator.types("status", env={"GENESYS_CLIENT_SECRET": ""})
    assert code == 0, err
    operator.config_file.write_text(text.replace("settle", "setle"))
    code, _, err = await operator.types("explain", "x")
    assert code == 78
    assert "setle" in err


async def test_watch_follows_starts_and_stops(
    daemon: RunningDaemon, operator: Operator, inbox: Path, socket: str
) -> None:
    """On a terminal: at rest, then running with a file sent, redrawn in place; Ctrl-C ends it and gives it back."""
    words = ("status", "--watch", "-c", str(operator.config_file))
    async with _terminal(*words, TERM="xterm", COLUMNS="100", LINES="30") as (process, screen):
        await until(lambda: b"does not run" in screen, "it shows attachd at rest")
        async with living(daemon.config_file):
            drop(inbox, "good.txt")
            await until(lambda: b"the platform is fine" in screen, "it shows attachd running")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            assert await process.wait() == 130
        await until(lambda: b"\x1b[?1049l" in screen, "the screen is given back")
        assert b"Traceback" not in screen


async def test_watch_ends_without_a_word_when_nobody_reads_any_more(operator: Operator) -> None:
    """`attachd status --watch --json | head -1`."""
    script = (
        f"set -o pipefail; '{sys.executable}' -m attachd status --watch --json -c '{operator.config_file}' | head -1"
    )
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", script), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert json.loads(out)["inboxes"][0]["name"] == "claims"
    assert (process.returncode, err) == (1, b"")


async def test_on_a_terminal_a_long_name_gives_way_and_no_id_is_cut(
    filed: RunningDaemon, operator: Operator, platform: Sandbox
) -> None:
    """`list` in 140 columns: one line for each delivery, with the whole ids."""
    ids = [one["delivery_id"] for one in await operator.reads("list")]
    screen = await _on_a_terminal("list", "-c", str(operator.config_file))
    for wanted in (*ids, platform.messages[0].conversation_id, "good.txt", "refused"):
        assert wanted in screen
    assert max(len(line) for line in screen.splitlines()) <= 160


async def test_status_on_a_terminal_shows_the_page_and_in_a_pipe_no_token(
    daemon: RunningDaemon, operator: Operator, unused_port: int
) -> None:
    """The link carries the token behind `#`; what is redirected into a file never does."""
    listen(daemon, f"127.0.0.1:{unused_port}")
    async with living(daemon.config_file):
        token = read_token(daemon.state_dir)
        assert token
        _, out, err = await operator.types("status")
        assert token not in out + err
        screen = await _on_a_terminal("status", "-c", str(operator.config_file))
        assert f"http://127.0.0.1:{unused_port}/#token={token}" in screen


async def _on_a_terminal(*words: str) -> str:
    """What a terminal of 140 columns gets to show."""
    async with _terminal(*words, TERM="dumb", COLUMNS="140", NO_COLOR="1") as (process, screen):
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    return screen.decode()


@contextlib.asynccontextmanager
async def _terminal(*words: str, **env: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, bytearray]]:
    """attachd on a terminal of its own: the process, and all that it shows, to the last byte when the block is left."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "attachd", *words), stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | env
    )
    os.close(theirs)
    screen = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, lambda: screen.extend(_read(ours)))
    try:
        yield process, screen
    finally:
        loop.remove_reader(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()
        while piece := _read(ours):
            screen.extend(piece)
        os.close(ours)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


def test_the_token_is_made_once_and_for_this_user_alone(tmp_path: Path) -> None:
    """0600; kept over starts; one that others could read is made anew."""
    assert read_token(tmp_path) is None
    token = load_or_make_token(tmp_path)
    path = tmp_path / "admin.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_make_token(tmp_path) == read_token(tmp_path) == token
    path.chmod(0o644)
    assert read_token(tmp_path) is None
    assert load_or_make_token(tmp_path) != token
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(OSError):
        read_token(tmp_path)


async def test_commands_and_options_complete_themselves() -> None:
    """By click's own means, as the help says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from attachd.cli import main; main(prog_name='attachd')"),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"_ATTACHD_COMPLETE": "bash_complete", "COMP_WORDS": "attachd re", "COMP_CWORD": "1"},
    )
    out, _ = await process.communicate()
    assert out.decode().splitlines() == ["plain,retry"]
    assert "_ATTACHD_COMPLETE=bash_source" in (main.help or "")
