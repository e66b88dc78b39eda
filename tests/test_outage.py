"""Outages: whatever the platform, the network or the account does, no file fails of it, and all go on by themselves."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from attachd.sandbox import Fault, FaultKind, Sandbox, Step, refuse

from .running import RunningDaemon, drop, over_both
from .waiting import until


@over_both
async def test_an_unreachable_platform_at_start_is_said_and_waited_for(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """The daemon is ready all the same, says what it waits for before any file comes, and delivers when it can."""
    await platform.go_down()
    await daemon.start()
    await until(lambda: daemon.events("platform.paused"), "the pause is logged")
    assert daemon.events("platform.paused")[0]["reason"] == "unreachable"
    drop(inbox, "claim.txt")
    await platform.come_up()
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    assert daemon.events("platform.resumed")


@over_both
async def test_an_outage_in_the_middle_fails_no_file(daemon: RunningDaemon, platform: Sandbox, inbox: Path) -> None:
    """The platform goes away while files are under way and comes back: all are sent, none failed."""
    await daemon.start()
    for number in range(60):
        drop(inbox, f"{number}.txt")
    await until(lambda: len(platform.messages) >= 10, "some are sent")
    await platform.go_down()
    await until(lambda: daemon.events("platform.paused"), "the outage is noticed")
    await platform.come_up()
    await daemon.all_filed(60, patience_s=80)
    assert len(daemon.sent()) == 60
    if daemon.gateway == "webmessaging":
        assert len(platform.messages) == 60


@pytest.mark.parametrize(
    ("gateway", "step", "kind"),
    [
        ("webchat", "token", FaultKind.RESET),
        ("webchat", "token", FaultKind.HTML),
        ("webchat", "guest", FaultKind.RESET),
        ("webchat", "guest", FaultKind.TRUNCATED_JSON),
        ("webchat", "upload", FaultKind.EMPTY),
        ("webchat", "upload", FaultKind.RESET_MID_ANSWER),
        ("webchat", "put", FaultKind.RESET_MID_ANSWER),
        ("webmessaging", "deployment", FaultKind.HTML),
        ("webmessaging", "deployment", FaultKind.RESET),
        ("webmessaging", "connect", FaultKind.HTML),
        ("webmessaging", "configure", FaultKind.RESET_MID_ANSWER),
        ("webmessaging", "attachment", FaultKind.TRUNCATED_JSON),
        ("webmessaging", "put", FaultKind.RESET_MID_ANSWER),
        ("webmessaging", "event", FaultKind.RESET),
    ],
)
async def test_a_broken_answer_before_the_message_only_delays(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, step: str, kind: FaultKind
) -> None:
    """Whatever comes back instead of an answer: the file is sent once when the platform answers again."""
    platform.on(step, Fault(kind, times=1))
    await daemon.start()
    drop(inbox, "claim.txt")
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    assert len(platform.messages) == 1


@pytest.mark.parametrize("status", [503, 408])
@over_both
async def test_server_errors_before_the_message_only_delay(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, at: Callable[[str], Step], status: int
) -> None:
    """5xx and 408 at every step in turn are nobody's fault: tried again, one message, nothing in `failed/`."""
    await daemon.start_and_greet()
    for stage in ("session", "upload", "put"):
        platform.on(at(stage), refuse(status))
    drop(inbox, "claim.txt")
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    assert len(platform.messages) == 1


async def test_a_wrong_secret_pauses_everything_and_a_corrected_one_goes_on(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """A refused credential costs no file; once the platform takes it everything is sent."""
    right = platform.client_secret
    platform.change(client_secret="something else entirely")
    platform.revoke_tokens()
    await daemon.start()
    drop(inbox, "claim.txt")
    await until(lambda: daemon.events("platform.paused"), "the pause is logged")
    assert daemon.events("platform.paused")[0]["reason"] == "credentials_refused"
    platform.change(client_secret=right)
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    assert right not in str(daemon.log)


async def test_revoked_tokens_cost_one_refresh_and_no_file(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """401 in the middle of many deliveries: one new token, every file sent."""
    await daemon.start()
    for number in range(60):
        drop(inbox, f"{number}.txt")
    await until(lambda: len(platform.messages) >= 10, "some are sent")
    platform.revoke_tokens()
    await daemon.all_filed(60)
    assert len(daemon.sent()) == 60
    assert len(platform.requests("token")) == 2


async def test_an_unknown_queue_pauses_its_inbox_alone(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, tmp_path: Path
) -> None:
    """400 at the guest request is the inbox's fault: its files wait, another inbox goes on, a mended queue resumes."""
    other = tmp_path / "reports"
    other.mkdir()
    daemon.configure(queue_id="no-such-queue", more_inboxes=({"path": str(other), "settle": "100ms"},))
    await daemon.start()
    drop(inbox, "a.txt")
    await until(lambda: daemon.events("inbox.paused"), "the inbox is paused")
    paused = daemon.events("inbox.paused")[0]
    assert (paused["inbox"], paused["reason"]) == ("claims", "queue_refused")
    drop(other, "b.txt")
    await until((other / "sent" / "b.txt").exists, "the other inbox goes on")
    platform.change(queues=["no-such-queue"])
    await daemon.all_filed(1)
    assert daemon.sent() == ["a.txt"]


@over_both
async def test_a_storage_outage_fails_no_file_and_costs_few_requests(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Every PUT is refused with 503: the breaker opens, few requests are made, and all files are sent afterwards."""
    platform.on("put", refuse(503, times=None))
    await daemon.start()
    for number in range(30):
        drop(inbox, f"{number}.txt")
    await until(lambda: daemon.events("platform.paused"), "the breaker opens")
    assert len(platform.requests("put")) <= 40
    platform.faults.clear()
    await daemon.all_filed(30)
    assert len(daemon.sent()) == 30
    assert len(platform.messages) == 30


@over_both
async def test_a_poison_file_fails_alone(daemon: RunningDaemon, platform: Sandbox, inbox: Path) -> None:
    """One file at which the storage always breaks, among others that pass: it alone ends in `failed/`, with the
    reason.
    """
    platform.on("put", refuse(500, times=None, file_name="poison.txt"))
    daemon.configure(delivery={"max_attempts": 3})
    await daemon.start()
    drop(inbox, "poison.txt")
    number = 0
    while "poison.txt" not in daemon.failed():
        number += 1
        drop(inbox, f"good-{number}.txt")
        await until(lambda number=number: f"good-{number}.txt" in daemon.sent(), "a healthy file passes")
    assert daemon.failed() == ["poison.txt"]
    assert "gave_up" in daemon.reason("poison.txt")


async def test_a_removed_inbox_pauses_and_comes_back_by_itself(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """The folder goes away and returns, as a share does: paused with the reason, then resumed, nobody restarts
    anything.
    """
    await daemon.start()
    drop(inbox, "before.txt")
    await daemon.all_filed(1)
    aside = inbox.with_name("aside")
    inbox.rename(aside)
    await until(lambda: daemon.events("inbox.paused"), "the inbox is paused")
    assert daemon.events("inbox.paused")[0]["reason"] == "folder_missing"
    aside.rename(inbox)
    await until(lambda: daemon.events("inbox.resumed"), "the inbox is resumed")
    drop(inbox, "after.txt")
    await until(lambda: daemon.sent() == ["after.txt", "before.txt"], "a file is sent after the return")


def _silence_is_remembered(state_dir: Path, copy: Path) -> bool:
    """Whether the journal has it; read from a copy, for the daemon lets nobody into its own."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in ("journal.db", "journal.db-wal"):
        shutil.copy(state_dir / name, copy)
    with contextlib.closing(sqlite3.connect(copy / "journal.db")) as journal:
        return journal.execute("SELECT held_until FROM journal").fetchone() != (None,)


@pytest.mark.parametrize(("gateway", "step"), [("webchat", "guest"), ("webmessaging", "connect")])
async def test_the_silence_the_platform_asked_for_outlives_a_restart(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, step: str, tmp_path: Path
) -> None:
    """Retry-After of 4 s, a kill in between: no request, not even for a token, before it is over."""
    await daemon.start_and_greet()
    platform.on(step, refuse(429, retry_after=4))
    drop(inbox, "claim.txt")
    await until(lambda: daemon.events("platform.paused"), "the pause is logged")
    asked = platform.requests(step)[-1].monotonic_s
    await until(lambda: _silence_is_remembered(daemon.state_dir, tmp_path / "copy"), "the journal has it")
    await daemon.kill()
    await daemon.start()
    await daemon.all_filed(1)
    later = [request.monotonic_s for request in platform.ledger.received if request.monotonic_s > asked]
    assert min(later) - asked >= 3.9
