"""SIGHUP: everything is validated first, then swapped at once; what is under way keeps its old settings."""

import fcntl
import os
import signal
from pathlib import Path

import yaml

from attachd.sandbox import Fault, FaultKind, Sandbox

from .running import RunningDaemon, drop
from .waiting import until


def _change(daemon: RunningDaemon, **sections: object) -> None:
    settings = yaml.safe_load(daemon.config_file.read_text())
    for name, value in sections.items():
        settings[name] = (settings.get(name) or {}) | value if isinstance(value, dict) else value
    daemon.config_file.write_text(yaml.safe_dump(settings))


async def _reload(daemon: RunningDaemon) -> dict[str, object]:
    before = len(daemon.events("daemon.reloaded"))
    daemon.signal(signal.SIGHUP)
    await until(lambda: len(daemon.events("daemon.reloaded")) > before, "the reload is done")
    return daemon.events("daemon.reloaded")[-1]


def _let_go(inbox: Path) -> bool:
    """Whether no daemon has the inbox."""
    own = os.open(inbox / ".attachd", os.O_RDONLY)
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(own)


async def test_an_added_inbox_is_watched_and_a_removed_one_is_left_alone(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, tmp_path: Path
) -> None:
    """Files of the new inbox are sent at once; the old one's stay where they are; the log names both."""
    other = tmp_path / "reports"
    other.mkdir()
    await daemon.start()
    _change(daemon, inboxes=[{"path": str(other), "settle": "100ms"}])
    told = await _reload(daemon)
    assert (told["added"], told["removed"], told["needs_restart"]) == (["reports"], ["claims"], [])
    drop(inbox, "old.txt")
    drop(other, "new.txt")
    await until((other / "sent" / "new.txt").exists, "the new inbox is watched")
    assert daemon.waiting() == ["old.txt"]


async def _remove_while_uploading(daemon: RunningDaemon, platform: Sandbox, inbox: Path, tmp_path: Path) -> str:
    """A reload without the inbox in the middle of the upload of its claim.txt; the config as it was before."""
    other = tmp_path / "reports"
    other.mkdir()
    platform.on("put", Fault(FaultKind.DELAY, delay_s=1.0, times=1))
    await daemon.start()
    settings = daemon.config_file.read_text()
    drop(inbox, "claim.txt")
    await until(lambda: platform.requests("put"), "it is under way")
    _change(daemon, inboxes=[{"path": str(other), "settle": "100ms"}])
    await _reload(daemon)
    return settings


async def test_what_is_claimed_of_a_removed_inbox_is_still_delivered(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, tmp_path: Path
) -> None:
    """A reload in the middle of an upload: the file goes its way, and its inbox can be configured again afterwards."""
    settings = await _remove_while_uploading(daemon, platform, inbox, tmp_path)
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    await until(lambda: _let_go(inbox), "the inbox is nobody's")
    daemon.config_file.write_text(settings)
    await _reload(daemon)
    drop(inbox, "again.txt")
    await until(lambda: daemon.sent() == ["again.txt", "claim.txt"], "the inbox is watched again")


async def test_an_inbox_comes_back_only_when_its_last_files_are_through(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, tmp_path: Path
) -> None:
    """Removed by mistake and put back in the middle of an upload: refused, with what to do, and then done."""
    settings = await _remove_while_uploading(daemon, platform, inbox, tmp_path)
    daemon.config_file.write_text(settings)
    daemon.signal(signal.SIGHUP)
    await until(lambda: daemon.events("daemon.reload_refused"), "it is refused")
    [problem] = daemon.events("daemon.reload_refused")[0]["problems"]
    assert problem.startswith(f"inboxes[0].path: {inbox} was removed by an earlier reload")
    await until(lambda: _let_go(inbox), "the inbox is nobody's")
    assert (await _reload(daemon))["added"] == ["claims"]


async def test_changed_settings_of_an_inbox_hold_for_its_next_file(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Message and allowed types: no restart, no file lost in between."""
    await daemon.start()
    drop(inbox, "one.txt")
    await daemon.all_filed(1)
    one = {"path": str(inbox), "settle": "100ms", "message": "now: $name", "allow_types": ["text/plain"]}
    _change(daemon, inboxes=[one], delivery={"concurrency": 2})
    told = await _reload(daemon)
    assert told["changed"] == ["inboxes (claims)", "delivery.concurrency"]
    drop(inbox, "two.txt")
    drop(inbox, "table.csv", b"a,b\n")
    await daemon.all_filed(3)
    assert (daemon.sent(), daemon.failed()) == (["one.txt", "two.txt"], ["table.csv"])
    assert platform.messages_for("two.txt")[0].text == "now: two.txt"


async def test_a_bad_file_changes_nothing_and_says_why(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, tmp_path: Path
) -> None:
    """A typing error, or a new inbox whose folder is missing: the old settings stay, all problems are in the log."""
    await daemon.start()
    good = daemon.config_file.read_text()
    _change(daemon, inboxes=[{"path": str(tmp_path / "nowhere")}])
    daemon.signal(signal.SIGHUP)
    await until(lambda: daemon.events("daemon.reload_refused"), "it is refused")
    assert "nowhere" in str(daemon.events("daemon.reload_refused")[0]["problems"])
    drop(inbox, "claim.txt")
    await daemon.all_filed(1)
    daemon.config_file.write_text(good)
    assert (await _reload(daemon))["added"] == []


async def test_what_only_a_restart_can_change_is_named(daemon: RunningDaemon, inbox: Path) -> None:
    """Another region, another `sent/`: the running settings stay, and the log says which keys wait for a restart."""
    await daemon.start()
    _change(
        daemon,
        platform={"requests_per_second": 50},
        inboxes=[{"path": str(inbox), "settle": "100ms", "sent": "done"}],
    )
    told = await _reload(daemon)
    assert told["needs_restart"] == ["platform.requests_per_second", "inboxes (claims)"]
    drop(inbox, "claim.txt")
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
