"""The commands as an operator types them: what they print, and the exit codes that scripts rely on."""

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from attachd.sandbox import Fault, FaultKind, Gateway, Sandbox, Step, refuse

from .running import RunningDaemon, drop, over_both
from .waiting import until


class Operator:
    """Types commands, without a terminal unless told."""

    def __init__(self, config_file: Path) -> None:
        self.config_file = config_file

    async def types(self, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "attachd", *words, stdout=pipe, stderr=pipe, env=os.environ | {"COLUMNS": "200"}
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def checks(self, *words: str) -> tuple[int, str, str]:
        return await self.types("check", "-c", str(self.config_file), *words)

    async def sends(self, *words: str) -> tuple[int, str, str]:
        return await self.types("send", "-c", str(self.config_file), *words)


@pytest.fixture
async def operator(daemon: RunningDaemon) -> AsyncIterator[Operator]:
    """Somebody at a shell, with the config of the fixture's daemon, which does not run."""
    return Operator(daemon.config_file)


async def test_a_wrong_config_is_refused_with_all_its_problems_and_nothing_is_started(
    operator: Operator, inbox: Path
) -> None:
    """Exit code 78; each problem on a line of its own with its path in the file; no folder was made."""
    operator.config_file.write_text(f"""
platform: {{client_id: x, client_secret: hunter2hunter2, envronment: a.b, queue_id: q}}
inboxes:
  - {{path: {inbox}, settle: soon}}
  - {{path: {inbox}/../elsewhere, message: "$nmae"}}
""")
    code, out, err = await operator.types("run", "-c", str(operator.config_file))
    assert (code, out) == (78, "")
    assert "nothing was started" in err.splitlines()[0]
    for path in ("platform.envronment", "inboxes[0].settle", "inboxes[1].message"):
        assert any(line.strip().startswith(path) for line in err.splitlines()), path
    assert "hunter2" not in err
    assert "Traceback" not in err
    assert list(inbox.iterdir()) == []


async def test_a_missing_config_file_is_said_in_a_line(operator: Operator, tmp_path: Path) -> None:
    """No traceback for a typing error."""
    code, _, err = await operator.types("run", "-c", str(tmp_path / "nowhere.yaml"))
    assert code == 78
    assert "nowhere.yaml" in err
    assert "Traceback" not in err


async def test_a_missing_inbox_folder_is_found_before_the_first_file(operator: Operator, inbox: Path) -> None:
    """A typing error in a path: exit code 78, and the path with what to do."""
    inbox.rmdir()
    code, out, err = await operator.types("run", "-c", str(operator.config_file))
    assert (code, out) == (78, "")
    assert "inboxes[0].path" in err
    assert str(inbox) in err


async def test_check_says_of_everything_how_it_is(operator: Operator, platform: Sandbox, inbox: Path) -> None:
    """All well: exit code 0, a line for the config, the state folder, the inbox and the platform; nothing was made."""
    code, out, _ = await operator.checks()
    assert code == 0, out
    assert {line[:2] for line in out.splitlines()} == {"ok"}
    for said in ("state_dir", "watched by events", "gave a token", f"queue {platform.queue_id}", "gateway: webchat"):
        assert said in out
    assert platform.client_secret not in out
    assert list(inbox.iterdir()) == []
    assert not (inbox.parent / "state").exists()


async def test_check_names_a_wrong_secret_and_what_to_do(operator: Operator, platform: Sandbox) -> None:
    """The credentials are tried before the first file needs them."""
    platform.change(client_secret="another secret")
    code, out, _ = await operator.checks()
    assert code == 1
    assert "client_secret" in out
    offline, _, _ = await operator.checks("--offline")
    assert offline == 0


@over_both
async def test_check_tells_an_unreachable_platform_from_a_wrong_setting(operator: Operator, platform: Sandbox) -> None:
    """Exit code 69: nothing is wrong here, as far as anybody can tell."""
    await platform.go_down()
    code, out, _ = await operator.checks()
    assert code == 69
    assert "127.0.0.1" in out


async def test_check_names_what_is_wrong_with_a_folder(operator: Operator, inbox: Path) -> None:
    """A file where `sent/` belongs, found without starting anything."""
    (inbox / "sent").write_text("not a folder")
    code, out, _ = await operator.checks("--offline")
    assert code == 1
    assert "sent is not a folder" in out


@pytest.mark.parametrize("gateway", ["webmessaging"])
async def test_check_says_what_the_deployment_takes(operator: Operator, platform: Sandbox, inbox: Path) -> None:
    """All well: exit code 0, types, size and blocked extensions of the profile; nothing was made, no agent saw it."""
    platform.change(media_types=["application/pdf", "image/*"])
    code, out, _ = await operator.checks()
    assert code == 0, out
    assert f"deployment {platform.deployment_id} takes guests" in out
    assert "application/pdf, image/*, up to 9.8 MiB" in out
    assert "but no .bat .exe" in out
    assert "gateway: webmessaging" in out
    assert list(inbox.iterdir()) == []
    assert not (inbox.parent / "state").exists()
    assert platform.requests("message") == platform.requests("join") == []


@pytest.mark.parametrize("gateway", ["webmessaging"])
async def test_check_notes_what_files_would_meet_at_the_deployment(
    operator: Operator, daemon: RunningDaemon, platform: Sandbox
) -> None:
    """Our limit above the deployment's is a note; an inbox none of whose types can go is wrong: exit code 1."""
    platform.change(media_types=["application/pdf"], max_file_size_kb=2000)
    code, out, _ = await operator.checks()
    assert code == 0, out
    assert "max_file_size is above the deployment's" in out
    daemon.configure(allow_types=["image/*", "text/csv"])
    code, out, _ = await operator.checks()
    assert code == 1
    assert "inbox claims: the deployment takes none of image/*, text/csv" in out


@pytest.mark.parametrize("gateway", ["webmessaging"])
@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"deployment_id": "11111111-2222-3333-4444-555555555555"}, "there is no such deployment"),
        ({"deployment_status": "Inactive"}, "Inactive, not Active"),
        ({"allowed_origins": ["https://www.example.com"]}, "platform.origin"),
        ({"enable_attachments": "no"}, "takes no attachments"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_check_names_what_is_wrong_with_the_deployment(
    operator: Operator, platform: Sandbox, patch: dict[str, object], said: str
) -> None:
    """Exit code 1 and what to look at, before the first file."""
    platform.change(**patch)
    code, out, _ = await operator.checks()
    assert code == 1
    assert said in out
    assert "deployment" in out.splitlines()[-1] + out.splitlines()[-2]


async def test_check_finds_out_which_gateway_the_organisation_answers_to(
    operator: Operator, daemon: RunningDaemon, platform: Sandbox
) -> None:
    """An ordinary organisation knows nothing of webchat: check says so and tries the other gateway, if it can."""
    platform.on("token", refuse(404, times=None))
    code, out, _ = await operator.checks()
    assert code == 1
    assert "deployment_id is not set" in out
    deployment = {"deployment_id": platform.deployment_id}
    addresses = {"messaging_url": platform.messaging_url, "config_url": platform.config_url}
    daemon.configure(platform=deployment | addresses)
    code, out, _ = await operator.checks()
    assert code == 1
    assert "it answers to gateway: webmessaging; set platform.gateway to that" in out


async def test_check_prints_the_schema_for_editors(operator: Operator) -> None:
    """JSON Schema on standard output, without any config."""
    code, out, _ = await operator.types("check", "--schema")
    assert code == 0
    schema = json.loads(out)
    assert {"platform", "inboxes", "delivery"} <= schema["properties"].keys()


@over_both
async def test_send_sends_files_and_leaves_them_where_they_are(
    operator: Operator, platform: Sandbox, tmp_path: Path, gateway: Gateway
) -> None:
    """Two files, two conversations, exit code 0; nothing moved, nothing written beside them."""
    folder = tmp_path / "desk"
    folder.mkdir()
    for name in ("one.txt", "two.txt"):
        (folder / name).write_text(name)
    code, out, _ = await operator.sends(
        str(folder / "one.txt"), str(folder / "two.txt"), "--message", "$name from the desk"
    )
    assert code == 0, out
    assert sorted(message.text for message in platform.messages) == ["one.txt from the desk", "two.txt from the desk"]
    assert sorted(path.name for path in folder.iterdir()) == ["one.txt", "two.txt"]
    told = "conversation_id" if gateway == "webchat" else "message_id"  # a guest never learns the conversation
    assert all(getattr(message, told) in out for message in platform.messages)
    assert "None" not in out


@over_both
async def test_send_says_what_could_not_be_sent_and_why(
    operator: Operator, platform: Sandbox, tmp_path: Path, at: Callable[[str], Step]
) -> None:
    """One missing, one empty, one refused, one good: exit code 1, three reasons in words, the good one sent."""
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bad.txt").write_text("bad")
    platform.on(at("upload"), refuse(400, times=None, file_name="bad.txt"))
    names = [str(tmp_path / name) for name in ("good.txt", "empty.txt", "missing.txt", "bad.txt")]
    code, out, err = await operator.sends(*names)
    assert code == 1
    assert out.count("FAILED") == 3
    assert "the file is empty" in out
    assert "No such file" in out
    assert " 400" in out
    assert err == ""
    assert len(platform.messages) == 1


@over_both
async def test_send_tries_again_what_certainly_did_not_arrive(
    operator: Operator, platform: Sandbox, tmp_path: Path, at: Callable[[str], Step]
) -> None:
    """A 503 and a 429 on the way are waited out."""
    (tmp_path / "one.txt").write_text("one")
    platform.on(at("session"), refuse(429, retry_after=1))
    platform.on(at("upload"), refuse(503))
    code, out, _ = await operator.sends(str(tmp_path / "one.txt"))
    assert code == 0, out
    assert len(platform.messages) == 1


async def test_send_never_repeats_a_message_whose_answer_was_lost(
    operator: Operator, platform: Sandbox, tmp_path: Path
) -> None:
    """It may have arrived: that is said, with what to do, and the exit code is 1."""
    (tmp_path / "one.txt").write_text("one")
    platform.on("conversation", Fault(FaultKind.LOST_ANSWER))
    code, out, _ = await operator.sends(str(tmp_path / "one.txt"))
    assert code == 1
    assert "Ask the agents" in out
    assert len(platform.messages) == 1


async def test_send_to_an_unknown_inbox_is_a_mistake_of_usage(operator: Operator, tmp_path: Path) -> None:
    """Exit code 2, and the names that there are."""
    (tmp_path / "one.txt").write_text("one")
    code, _, err = await operator.sends(str(tmp_path / "one.txt"), "--inbox", "clams")
    assert code == 2
    assert "claims" in err


async def test_send_shows_progress_on_a_terminal(operator: Operator, platform: Sandbox, tmp_path: Path) -> None:
    """On a terminal a bar per file; the result stays when the bars are gone."""
    (tmp_path / "one.bin").write_bytes(os.urandom(2_000_000))
    platform.on("put", Fault(FaultKind.DELAY, delay_s=0.5))
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "attachd", "send", "-c", str(operator.config_file), str(tmp_path / "one.bin")),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    screen = bytearray()
    asyncio.get_running_loop().add_reader(ours, lambda: screen.extend(_read(ours)))
    async with asyncio.timeout(60):
        assert await process.wait() == 0
    await until(lambda: b"sent" in screen, "the result is on the screen")
    asyncio.get_running_loop().remove_reader(ours)
    os.close(ours)
    assert b"MB" in screen
    assert "━".encode() in screen


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


async def test_the_sandbox_prints_a_config_that_works(inbox: Path, tmp_path: Path) -> None:
    """`attachd sandbox` into a file, `attachd check` on that file: all well."""
    printed = tmp_path / "config.yaml"
    with printed.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "attachd", "sandbox", "--port", "0", "--inbox", str(inbox)), stdout=output
        )
    try:
        await until(lambda: "inboxes:" in printed.read_text(), "the config is printed")
        code, out, _ = await Operator(printed).checks()
        assert code == 0, out
    finally:
        process.terminate()
        await process.wait()


async def test_reload_takes_a_rotated_secret_and_says_what_needs_a_restart(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """SIGHUP: a new secret is used without a restart; a broken file keeps the old settings and says so."""
    await daemon.start()
    drop(inbox, "one.txt")
    await daemon.all_filed(1)
    platform.change(client_secret="the rotated secret")
    platform.revoke_tokens()
    text = daemon.config_file.read_text()
    daemon.config_file.write_text("platform: [")
    daemon.signal(signal.SIGHUP)
    await until(lambda: daemon.events("daemon.reload_refused"), "the broken file is refused")
    text = _with_secret(text, "the rotated secret").replace("platform:", "platform:\n  max_file_size: 9MiB")
    daemon.config_file.write_text(text)
    daemon.signal(signal.SIGHUP)
    await until(lambda: daemon.events("daemon.reloaded"), "the new secret is taken")
    assert daemon.events("daemon.reloaded")[0]["needs_restart"] == ["platform.max_file_size"]
    drop(inbox, "two.txt")
    await daemon.all_filed(2)
    assert daemon.sent() == ["one.txt", "two.txt"]


def _with_secret(text: str, secret: str) -> str:
    lines = [f"  client_secret: {secret}" if "client_secret:" in line else line for line in text.splitlines()]
    return "\n".join(lines) + "\n"


async def test_the_daemon_keeps_out_what_it_does_not_use() -> None:
    """It lives for months: no tables for a terminal, no signatures no file has asked for, not the other gateway."""
    script = "import sys, attachd.cli, attachd.daemon.service, attachd.gateway.webchat; print(*sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    loaded = set((await process.communicate())[0].decode().split())
    assert "attachd.delivery.content" in loaded
    assert not loaded & {"rich", "pygments", "puremagic", "attachd.gateway.webmessaging", "attachd.sandbox", "uvloop"}
