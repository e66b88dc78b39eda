"""What attachd tells of itself, running and at rest: counts, where each file is and why, and the way back."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from attachd import config
from attachd.daemon.live import LiveOverview
from attachd.daemon.resting import RestingOverview, open_resting
from attachd.errors import JournalBusy
from attachd.model import Explanation, Failed, InboxName, Reason, Sent, StateName, Step
from attachd.sandbox import Fault, FaultKind, Sandbox, refuse

from .living import living
from .running import REASON, RunningDaemon, drop
from .waiting import PATIENCE_S

CLAIMS = InboxName("claims")


@pytest.fixture
async def live(daemon: RunningDaemon) -> AsyncIterator[LiveOverview]:
    """attachd at work on the fixture's inbox; `daemon` only looks at the folders."""
    async with living(daemon.config_file) as overview:
        yield overview


async def explained(overview: LiveOverview | RestingOverview, path: Path | str) -> Explanation:
    told = await overview.explain(str(path))
    assert told is not None
    return told


async def explained_as(overview: LiveOverview, path: Path | str, place: str) -> Explanation:
    """Wait until a file is there."""
    deadline = time.monotonic() + PATIENCE_S
    while (told := await overview.explain(str(path))) is None or told.place != place:
        assert time.monotonic() < deadline, f"{path} is not {place}: {told}"
        await asyncio.sleep(0.01)
    return told


def words(told: Explanation) -> str:
    return " ".join(told.sentences)


async def all_filed(live: LiveOverview, daemon: RunningDaemon, number: int) -> None:
    """Wait until so many files lie in `sent/` and `failed/`, and the journal knows it."""
    await daemon.all_filed(number)
    while (await live.status()).under_way:
        await asyncio.sleep(0.01)


async def remember(daemon: RunningDaemon, *files: str, sent: str = "") -> None:
    """Let these files be refused and one be sent, and stop."""
    async with living(daemon.config_file) as live:
        if sent:
            drop(daemon.inbox, sent)
        for name in files:
            drop(daemon.inbox, name)
        await all_filed(live, daemon, len(files) + bool(sent))


# --- running ----------------------------------------------------------------------------------------------------------


async def test_a_running_attachd_tells_what_waits_goes_went_and_failed(
    live: LiveOverview, daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """The counts of the inbox, what is under way with its bytes, and the way of what ended through the steps."""
    platform.on("upload", refuse(400, times=None, file_name="bad.txt"))
    drop(inbox, "good.txt")
    drop(inbox, "bad.txt")
    await all_filed(live, daemon, 2)
    (inbox / ".hidden").touch()
    platform.on("conversation", Fault(FaultKind.DELAY, delay_s=5))
    drop(inbox, "slow.txt")
    told = await explained_as(live, inbox / "slow.txt", "under_way")
    while told.step is not Step.MESSAGE:
        told = await explained_as(live, inbox / "slow.txt", "under_way")
    while not (status := await live.status()).inboxes[0].ignored:
        await asyncio.sleep(0.01)
    [claims] = status.inboxes
    assert status.running
    assert status.platform is None
    assert (claims.name, claims.path, claims.pause) == ("claims", str(inbox), None)
    assert (claims.waiting, claims.under_way, claims.sent, claims.failed) == (0, 1, 1, 1)
    assert claims.ignored["hidden"] == 1
    [slow] = status.under_way
    assert (slow.delivery.name, slow.step, slow.bytes_sent) == ("slow.txt", Step.MESSAGE, 11)
    journeys = {journey.delivery.name: journey for journey in status.latest}
    way = (Step.CHECK, Step.SESSION, Step.UPLOAD, Step.PUT, Step.MESSAGE, Step.FILING)
    assert tuple(step for step, _ in journeys["good.txt"].steps) == way
    assert isinstance(journeys["bad.txt"].delivery.state, Failed)
    assert "the message" in words(told)


async def test_each_file_is_found_wherever_it_lies_and_by_its_id(
    live: LiveOverview, daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """The path it had in the inbox, the one it has now, through a link to the inbox, and the delivery's id."""
    platform.on("upload", refuse(400, times=None, file_name="bad.txt"))
    drop(inbox, "good.txt")
    drop(inbox, "bad.txt")
    await all_filed(live, daemon, 2)
    (inbox.parent / "shortcut").symlink_to(inbox)
    sent = await explained(live, inbox / "good.txt")
    assert sent.delivery is not None
    for path in (inbox / "sent" / "good.txt", inbox.parent / "shortcut" / "good.txt", sent.delivery.id):
        assert (await explained(live, path)).sentences == sent.sentences, path
    assert platform.messages[0].conversation_id in words(sent)
    assert str(inbox / "sent" / "good.txt") in words(sent)
    failed = await explained(live, inbox / "failed" / "bad.txt")
    assert (failed.place, failed.reason) == ("failed", "refused")
    assert "answered 400" in words(failed)
    assert "What now" in words(failed)
    of_reason = await explained(live, inbox / "failed" / f"bad.txt{REASON}")
    assert of_reason.delivery == failed.delivery


async def test_a_number_in_the_name_does_not_hide_whose_file_it_is(
    live: LiveOverview, daemon: RunningDaemon, inbox: Path
) -> None:
    """Two files of one name: each in `sent/` is told apart, and the inbox's path tells of the later one."""
    for number in (1, 2):
        drop(inbox, "scan.pdf", b"%PDF-1.4 " * number)
        await all_filed(live, daemon, number)
    first = await explained(live, inbox / "sent" / "scan.pdf")
    second = await explained(live, inbox / "sent" / "scan (2).pdf")
    assert first.delivery is not None
    assert second.delivery is not None
    assert (first.delivery.version.size, second.delivery.version.size) == (9, 18)
    here = await explained(live, inbox / "scan.pdf")
    assert here.delivery == second.delivery
    assert "sent before" in words(here)


async def test_what_is_not_taken_is_explained_by_the_rule(daemon: RunningDaemon, inbox: Path) -> None:
    """Temporary, hidden, excluded, a link, a folder; what is unknown is told from what is there."""
    daemon.configure(exclude=["*.bak"])
    (inbox / "a.part").touch()
    (inbox / ".b").touch()
    (inbox / "c.bak").touch()
    (inbox / "d").symlink_to("c.bak")
    (inbox / "e").mkdir()
    (inbox / "e" / "f.txt").touch()
    expected = {
        "a.part": "temporary_name",
        ".b": "hidden",
        "c.bak": "excluded",
        "d": "link",
        "e": "folder",
        "e/f.txt": "folder",
    }
    settings = config.load(daemon.config_file, {})
    async with living(daemon.config_file) as live:
        running = {name: (await explained_as(live, inbox / name, "ignored")) for name in expected}
        assert await live.explain(str(inbox / "never-there.txt")) is None
        assert await live.explain("/etc/passwd") is None
    async with open_resting(settings) as resting:
        rests = {name: (await explained(resting, inbox / name)) for name in expected}
        assert await resting.explain(str(inbox / "never-there.txt")) is None
    for told in (running, rests):
        assert {name: one.reason for name, one in told.items()} == expected
        assert {one.place for one in told.values()} == {"ignored"}


async def test_a_file_that_is_not_complete_is_said_to_settle(daemon: RunningDaemon, inbox: Path) -> None:
    """For how long it has been quiet, and how long it must be."""
    daemon.configure(settle="30s")
    async with living(daemon.config_file) as live:
        (inbox / "growing.txt").write_text("begun")
        told = await explained_as(live, inbox / "growing.txt", "settling")
        assert "30 s" in words(told)
        [claims] = (await live.status()).inboxes
        assert claims.waiting == 1
        assert claims.oldest_waiting_s is not None


async def test_attachds_own_folders_are_known_as_such(live: LiveOverview, daemon: RunningDaemon, inbox: Path) -> None:
    """A file put into `sent/` by hand has no record, and that is said."""
    drop(inbox, "one.txt")
    await all_filed(live, daemon, 1)
    (inbox / "sent" / "stray.txt").touch()
    for name in ("sent", ".attachd", ".attachd/claimed", "sent/stray.txt"):
        assert (await explained(live, inbox / name)).place == "own_folder", name
    assert "by hand" in words(await explained(live, inbox / "sent" / "stray.txt"))
    assert await live.explain(str(inbox / "sent" / "never.txt")) is None


async def test_a_deferred_file_says_what_failed_and_when_it_goes_again(
    live: LiveOverview, daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """While the platform is down every file is paused with the reason in words; afterwards it is sent."""
    await platform.go_down()
    drop(inbox, "one.txt")
    drop(inbox, "two.txt")
    told = await explained_as(live, inbox / "one.txt", "paused")
    assert told.reason in {"platform_failing", "unreachable"}
    status = await live.status()
    assert status.platform is not None
    assert status.platform.reason == told.reason
    await platform.come_up()
    await live.resume(None)
    await all_filed(live, daemon, 2)
    assert (await live.status()).platform is None


async def test_an_operators_pause_holds_everything_until_it_is_resumed(
    live: LiveOverview, daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Nothing is claimed; the file says so; after `resume` it goes at once."""
    await live.pause(None)
    drop(inbox, "one.txt")
    told = await explained_as(live, inbox / "one.txt", "paused")
    assert told.reason == "paused_by_operator"
    status = await live.status()
    assert status.platform is not None
    assert (status.platform.reason, status.platform.retry_in_s) == (Reason.PAUSED_BY_OPERATOR, None)
    await asyncio.sleep(0.3)  # longer than it takes to settle and be claimed
    assert daemon.waiting() == ["one.txt"]
    assert platform.messages == []
    await live.resume(None)
    await all_filed(live, daemon, 1)


async def test_an_operators_pause_of_one_inbox_leaves_the_others_alone(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, tmp_path: Path
) -> None:
    """The other inbox delivers; resuming everything resumes this one too."""
    other = tmp_path / "other"
    other.mkdir()
    daemon.configure(more_inboxes=({"path": str(other)},))
    async with living(daemon.config_file) as live:
        await live.pause(CLAIMS)
        drop(inbox, "one.txt")
        drop(other, "two.txt")
        await explained_as(live, other / "two.txt", "sent")
        told = await explained_as(live, inbox / "one.txt", "paused")
        assert told.reason == "paused_by_operator"
        status = await live.status()
        assert status.platform is None
        assert [one.pause is not None for one in status.inboxes] == [True, False]
        await live.resume(None)
        await explained_as(live, inbox / "one.txt", "sent")


# --- at rest ----------------------------------------------------------------------------------------------------------


async def test_a_resting_attachd_tells_the_same_from_its_journal_and_folders(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Counts, what waits in the folder, deliveries newest first, each file by its path; nothing is moved."""
    platform.on("upload", refuse(400, times=None, file_name="bad.txt"))
    await remember(daemon, "bad.txt", sent="good.txt")
    drop(inbox, "late.txt")
    (inbox / "half.part").touch()
    before = sorted(str(path) for path in inbox.rglob("*"))
    async with open_resting(config.load(daemon.config_file, {})) as resting:
        status = await resting.status()
        [claims] = status.inboxes
        assert not status.running
        assert (claims.waiting, claims.under_way, claims.sent, claims.failed) == (1, 0, 1, 1)
        assert claims.ignored["temporary_name"] == 1
        assert claims.oldest_waiting_s is not None
        newest = await resting.deliveries()
        assert [entry.updated_at for entry in newest] == sorted((e.updated_at for e in newest), reverse=True)
        assert [e.delivery.name for e in await resting.deliveries(state=StateName.SENT)] == ["good.txt"]
        places = {name: (await explained(resting, inbox / name)).place for name in ("good.txt", "bad.txt", "late.txt")}
        assert places == {"good.txt": "sent", "bad.txt": "failed", "late.txt": "waiting"}
    assert sorted(str(path) for path in inbox.rglob("*")) == before


async def test_looking_makes_no_state_folder(daemon: RunningDaemon, inbox: Path) -> None:
    """Whoever looks before the first start leaves nothing that would belong to the wrong user."""
    async with open_resting(config.load(daemon.config_file, {})) as resting:
        assert [one.sent for one in (await resting.status()).inboxes] == [0]
        assert await resting.deliveries() == []
    assert not daemon.state_dir.exists()
    assert list(inbox.iterdir()) == []


async def test_what_was_claimed_when_it_stopped_is_said_to_go_on(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """A file in `claimed/`: by its old path, by its path there, and with the doubt about its message."""
    platform.on("conversation", Fault(FaultKind.HANG, times=None))
    await daemon.start()
    drop(inbox, "one.txt")
    deadline = time.monotonic() + PATIENCE_S
    while not platform.requests("conversation"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    await daemon.kill()
    [claimed] = (inbox / ".attachd" / "claimed").glob("*/*")
    async with open_resting(config.load(daemon.config_file, {})) as resting:
        for path in (inbox / "one.txt", claimed):
            told = await explained(resting, path)
            assert told.place == "claimed"
            assert "an agent may have it already" in words(told)
        [claims] = (await resting.status()).inboxes
        assert claims.under_way == 1


async def test_a_lost_folder_is_named_and_the_rest_is_still_told(daemon: RunningDaemon, inbox: Path) -> None:
    """At rest too: the inbox is shown as paused, with the reason."""
    inbox.rmdir()
    async with open_resting(config.load(daemon.config_file, {})) as resting:
        [claims] = (await resting.status()).inboxes
        assert claims.pause is not None
        assert claims.pause.reason is Reason.FOLDER_MISSING
        assert (await explained(resting, inbox / "x")).place == "paused"


async def test_a_running_daemon_keeps_the_journal_to_itself(daemon: RunningDaemon) -> None:
    """Who would read it at rest is told that it is busy."""
    await daemon.start()
    with pytest.raises(JournalBusy):
        async with open_resting(config.load(daemon.config_file, {})):
            pass


# --- the way back -----------------------------------------------------------------------------------------------------


async def test_a_failed_file_is_sent_under_its_original_name_and_its_reason_goes(
    live: LiveOverview, daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Two failed under one name; the second goes back by its id, without the number; its history stays."""
    platform.on("upload", refuse(400, times=2, file_name="scan.txt"))
    for number in (1, 2):
        drop(inbox, "scan.txt", b"x" * number)
        await all_filed(live, daemon, number)
    assert daemon.failed() == ["scan (2).txt", "scan.txt"]
    second = (await explained(live, inbox / "failed" / "scan (2).txt")).delivery
    assert second is not None
    [told] = await live.retry(second.id)
    assert (told.filed_as, told.name, told.problem) == ("failed/scan (2).txt", "scan.txt", None)
    await explained_as(live, inbox / "sent" / "scan.txt", "sent")
    await all_filed(live, daemon, 2)
    assert sorted(path.name for path in (inbox / "failed").iterdir()) == ["scan.txt", f"scan.txt{REASON}"]
    names = [entry.delivery.name for entry in await live.deliveries()]
    assert names == ["scan.txt"] * 3
    [again] = await live.retry("scan.txt")
    assert again.problem is None
    await all_filed(live, daemon, 2)
    assert list((inbox / "failed").iterdir()) == []


async def test_all_leaves_out_what_an_agent_may_have_already(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """An unknown outcome goes only by name, a file without any record too; the refused one goes with --all."""
    daemon.configure(delivery={"on_unknown_outcome": "hold"})
    platform.on("conversation", Fault(FaultKind.LOST_ANSWER, file_name="doubt.txt"))
    platform.on("upload", refuse(400, file_name="bad.txt"))
    await remember(daemon, "bad.txt", "doubt.txt")
    (inbox / "failed" / "stray.txt").write_text("by hand")
    async with open_resting(config.load(daemon.config_file, {})) as resting:
        told = {one.filed_as: one for one in await resting.retry(None)}
        assert told["failed/bad.txt"].name == "bad.txt"
        assert "unknown_outcome" in (told["failed/doubt.txt"].problem or "")
        assert "does not know why" in (told["failed/stray.txt"].problem or "")
        assert len(told) == 3
        assert daemon.waiting() == ["bad.txt"]
        [named] = await resting.retry("doubt.txt")
        assert named.problem is None
    assert sorted(daemon.waiting()) == ["bad.txt", "doubt.txt"]


async def test_the_reason_file_speaks_where_the_journal_was_lost(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Without a record what is in doubt is known from the text beside it."""
    daemon.configure(delivery={"on_unknown_outcome": "hold"})
    platform.on("conversation", Fault(FaultKind.LOST_ANSWER, file_name="doubt.txt"))
    platform.on("upload", refuse(400, file_name="bad.txt"))
    await remember(daemon, "bad.txt", "doubt.txt")
    for path in daemon.state_dir.glob("journal.db*"):
        path.unlink()
    async with open_resting(config.load(daemon.config_file, {})) as resting:
        told = {one.filed_as: one.problem for one in await resting.retry(None)}
    assert told["failed/bad.txt"] is None
    assert "unknown_outcome" in (told["failed/doubt.txt"] or "")


async def test_what_cannot_go_back_says_why(live: LiveOverview, daemon: RunningDaemon, inbox: Path) -> None:
    """Sent already, taken away, unknown, of another inbox."""
    drop(inbox, "one.txt")
    await all_filed(live, daemon, 1)
    sent = (await explained(live, inbox / "one.txt")).delivery
    assert sent is not None
    assert isinstance(sent.state, Sent)
    [told] = await live.retry(sent.id)
    assert told.problem is not None
    assert "was sent" in told.problem
    [elsewhere] = await live.retry(sent.id, inbox=InboxName("letters"))
    assert elsewhere.problem is not None
    [not_failed] = await live.retry(str(inbox / "sent" / "one.txt"))
    assert not_failed.problem is not None
    (inbox.parent / "secret.txt").write_text("nobody's business")
    for way_out in ("../../secret.txt", "failed/../../secret.txt", "failed/../sent/one.txt", "..", "", "x\0y"):
        assert await live.retry(way_out) == [], way_out
    assert (inbox.parent / "secret.txt").exists()
    assert await live.retry("never.txt") == []
    assert await live.retry(None) == []


async def test_a_file_with_odd_bytes_in_a_subfolder_goes_the_same_way(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """Its name is no UTF-8 and its folder is gone from the inbox: explained, put back, and its folder is made anew."""
    daemon.configure(recursive=True)
    platform.on("upload", refuse(400))
    name = os.fsdecode(b"m\xe4rz/b\xfcro.txt")
    (inbox / name).parent.mkdir()
    async with living(daemon.config_file) as live:
        (inbox / name).write_text("x")
        told = await explained_as(live, inbox / name, "failed")
        assert told.delivery is not None
        assert told.delivery.name == name
        (inbox / name).parent.rmdir()
        [back] = await live.retry(f"failed/{name}")
        assert (back.name, back.problem) == (name, None)
        await explained_as(live, inbox / "sent" / name, "sent")
    assert not list((inbox / "failed").rglob("*.txt"))


async def test_a_taken_name_in_the_inbox_is_never_overwritten(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path
) -> None:
    """What waits there under the name stays; the one from `failed/` gets a number."""
    platform.on("upload", refuse(400))
    await remember(daemon, "one.txt")
    drop(inbox, "one.txt", b"the new one")
    async with open_resting(config.load(daemon.config_file, {})) as resting:
        [told] = await resting.retry("one.txt")
    assert told.name == "one (2).txt"
    assert (inbox / "one.txt").read_bytes() == b"the new one"
    assert (inbox / "one (2).txt").read_bytes() == b"a document\n"
    assert (inbox / "failed" / f"one (2).txt{REASON}").exists()


async def test_a_name_in_two_inboxes_asks_for_the_inbox(
    daemon: RunningDaemon, platform: Sandbox, inbox: Path, tmp_path: Path
) -> None:
    """Nothing moves until it is plain which file is meant."""
    other = tmp_path / "other"
    other.mkdir()
    daemon.configure(more_inboxes=({"path": str(other)},))
    platform.on("upload", refuse(400, times=2))
    async with living(daemon.config_file) as live:
        drop(inbox, "one.txt")
        drop(other, "one.txt")
        await explained_as(live, inbox / "one.txt", "failed")
        await explained_as(live, other / "one.txt", "failed")
        told = await live.retry("one.txt")
        assert [one.name for one in told] == [None, None]
        assert all("--inbox" in (one.problem or "") for one in told)
        [told_one] = await live.retry("one.txt", inbox=InboxName("other"))
        assert told_one.name == "one.txt"
        await explained_as(live, other / "one.txt", "sent")
