"""Crashes: whatever was under way when the process was killed, every file ends in `sent/` once."""

import asyncio
import hashlib
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attachd.sandbox import Fault, FaultKind, Sandbox, Step

from .running import RunningDaemon, drop, over_both
from .waiting import until


@pytest.mark.parametrize(
    ("gateway", "step"),
    [
        *(("webchat", step) for step in ("token", "guest", "upload", "put")),
        *(("webmessaging", step) for step in ("connect", "configure", "attachment", "put", "event")),
    ],
)
async def test_a_kill_before_the_message_sends_the_file_exactly_once(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, step: str
) -> None:
    """kill -9 while a step waits for its answer; after the restart the delivery starts over, no agent sees it twice."""
    await daemon.start_and_greet()
    platform.on(step, Fault(FaultKind.HANG, times=1))
    if step == "token":
        platform.revoke_tokens()
    drop(inbox, "claim.txt", b"the one and only")
    await until(lambda: any(asked.fault for asked in platform.requests(step)), f"{step} hangs")
    await daemon.kill()
    assert daemon.claimed() == ["claim.txt"]
    await daemon.start()
    await daemon.all_filed(1)
    (message,) = platform.messages
    assert message.attachments[0].sha256 == hashlib.sha256(b"the one and only").hexdigest()
    assert daemon.events("daemon.started")[-1]["recovered"] == 1


@over_both
async def test_a_kill_after_the_message_was_accepted_only_moves_the_file(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """What the journal knows as posted is never posted again, even when the move had not happened."""
    await daemon.start()
    (inbox / "sent").rmdir()
    (inbox / "sent").write_text("a file where the folder belongs: moves fail")
    drop(inbox, "claim.txt")
    await until(lambda: daemon.events("inbox.paused"), "the move fails")
    assert len(platform.messages) == 1
    await daemon.kill()
    (inbox / "sent").unlink()
    await daemon.start()
    await daemon.all_filed(1)
    assert daemon.sent() == ["claim.txt"]
    assert len(platform.messages) == 1


async def test_a_kill_while_the_answer_to_the_message_is_out_posts_the_same_again(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """`resend`: the outcome is unknown, so the message goes again with the same guest, attachment and text."""
    platform.on("conversation", Fault(FaultKind.HANG, times=1, after_processing=True))
    await daemon.start()
    drop(inbox, "claim.txt")
    await until(lambda: platform.messages, "the message stands")
    await daemon.kill()
    await daemon.start()
    await daemon.all_filed(1)
    first, second = platform.messages
    assert (first.guest_id, first.attachments, first.text) == (second.guest_id, second.attachments, second.text)
    assert daemon.sent() == ["claim.txt"]
    assert len(platform.requests("upload")) == 1


async def test_a_kill_while_the_answer_is_out_leaves_it_to_the_operator_under_hold(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """`hold`: nothing is sent twice; the file lies in `failed/` and the reason says that it may have been sent."""
    daemon.configure(delivery={"on_unknown_outcome": "hold"})
    platform.on("conversation", Fault(FaultKind.HANG, times=1, after_processing=True))
    await daemon.start()
    drop(inbox, "claim.txt")
    await until(lambda: platform.messages, "the message stands")
    await daemon.kill()
    await daemon.start()
    await daemon.all_filed(1)
    assert len(platform.messages) == 1
    assert daemon.failed() == ["claim.txt"]
    assert "may or may not have been sent" in daemon.reason("claim.txt")
    await until(lambda: daemon.events("file.failed"), "file.failed is logged")
    assert daemon.events("file.failed")[-1]["reason"] == "unknown_outcome"


@pytest.mark.parametrize("lost", ["deleted", "older", "garbage"])
async def test_claimed_files_are_never_sent_blindly_when_the_journal_is_lost(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, lost: str
) -> None:
    """A new, damaged or restored journal does not know what was posted: the claims go to `failed/`, new files are
    sent.
    """
    state = daemon.state_dir
    await daemon.start()
    await daemon.stop()
    older = {path.name: path.read_bytes() for path in state.glob("journal.db*")}
    platform.on("conversation", Fault(FaultKind.HANG, times=1, after_processing=True))
    await daemon.start()
    drop(inbox, "claim.txt")
    await until(lambda: platform.messages, "the message stands")
    await daemon.kill()
    for path in state.glob("journal.db*"):
        path.unlink()
    if lost == "older":
        for name, content in older.items():
            (state / name).write_bytes(content)
    if lost == "garbage":
        (state / "journal.db").write_bytes(os.urandom(64 * 1024))
    await daemon.start()
    await daemon.all_filed(1)
    assert daemon.failed() == ["claim.txt"]
    assert "journal_lost" in daemon.reason("claim.txt")
    drop(inbox, "next.txt")
    await until(lambda: daemon.sent() == ["next.txt"], "new files are sent")
    assert len(platform.messages_for("claim.txt")) == 1


@over_both
async def test_a_restart_of_an_idle_daemon_sends_nothing_again(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, at: Callable[[str], Step]
) -> None:
    """What lies in `sent/` stays there: nothing is sent again after a restart."""
    await daemon.start()
    for number in range(20):
        drop(inbox, f"{number}.txt")
    await daemon.all_filed(20)
    await daemon.stop()
    platform.clear()
    await daemon.start()
    drop(inbox, "new.txt")
    await until(lambda: "new.txt" in daemon.sent(), "a new file is sent")
    assert [len(platform.requests(at(stage))) for stage in ("upload", "put", "conversation")] == [1, 1, 1]
    assert platform.requests("history") == []


async def test_a_second_daemon_is_refused_and_the_first_goes_on(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, tmp_path: Path
) -> None:
    """Another attachd on the same state folder, or on the same inbox with another one, exits with 75 and says why."""
    await daemon.start()
    same_state = RunningDaemon(platform, inbox)
    await same_state.spawn()
    assert await same_state.ended() == 75
    same_inbox = RunningDaemon(platform, inbox)
    same_inbox.state_dir = tmp_path / "other-state"
    same_inbox.configure()
    await same_inbox.spawn()
    assert await same_inbox.ended() == 75
    assert "another attachd" in "".join(same_inbox.noise)
    drop(inbox, "claim.txt")
    await daemon.all_filed(1)


@over_both
async def test_files_survive_kills_at_random_moments(daemon: RunningDaemon, platform: Sandbox, inbox: Path) -> None:
    """Ten kills while sixty files are under way: all are sent; a second message only where nobody could be asked, and
    a kill came between.
    """
    for number in range(60):
        drop(inbox, f"{number:02}.txt", b"document %d" % number)
    kills = []
    for kill in range(10):
        await daemon.start()
        await asyncio.sleep(0.02 * kill)
        await daemon.kill()
        kills.append(time.time())
    await daemon.start()
    await daemon.all_filed(60, patience_s=80)
    assert len(daemon.sent()) == 60
    for number in range(60):
        messages = platform.messages_for(f"{number:02}.txt")
        assert messages
        assert len(messages) == 1 or daemon.gateway == "webchat"
        for first, second in itertools.pairwise(messages):
            assert any(first.wall_s <= kill <= second.wall_s for kill in kills)


@over_both
async def test_a_quick_stop_leaves_the_rest_to_the_journal(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """A second SIGTERM does not wait for uploads; after the restart the file goes once."""
    platform.on("put", Fault(FaultKind.HANG, times=1))
    daemon.configure(delivery={"shutdown_grace": "1h"})
    await daemon.start()
    drop(inbox, "claim.txt")
    await until(lambda: platform.requests("put"), "the upload hangs")
    daemon.signal(signal.SIGTERM)
    await until(lambda: daemon.events("daemon.stopping"), "it drains")
    daemon.signal(signal.SIGTERM)
    assert await daemon.ended() == 0
    assert daemon.claimed() == ["claim.txt"]
    await daemon.start()
    await daemon.all_filed(1)
    assert len(platform.messages) == 1
