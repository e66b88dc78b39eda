"""The campaign in its short form: a minute of kills, failing system calls, full disks, power cuts and faults.

`make campaign` is the long form. What is counted here is asserted twice: nothing was violated, and the strikes struck.
"""

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.campaign import calls, disks, errors, faults, faults_wm, intercept, kills, mounts, power
from tests.campaign.judgement import judge
from tests.campaign.nursery import Nursery
from tests.campaign.platform import open_platform
from tests.campaign.report import STRIKES, Tally
from tests.campaign.scene import Scene
from tests.campaign.world import World

SEED = "short"

needs_interception = pytest.mark.skipif(not intercept.available(), reason="no user notification for seccomp here")
needs_mounts = pytest.mark.skipif(not mounts.available(), reason="not allowed to mount")


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with Nursery() as nursery:
        yield Scene(tmp_path, nursery, SEED)


async def test_secrets_are_known_to_the_campaign(scene: Scene) -> None:
    """What is searched for in the artefacts is what the platform gave out: the client secret, tokens, signatures."""
    async with open_platform() as platform:
        world = World(scene.base / "world", platform, scene.nursery, scene.chance("secrets"))
        for _ in range(3):
            world.drop(100)
        await world.start()
        assert await world.ready()
        assert await world.rest(20.0)
        await world.stop()
        assert len(platform.secrets) == 1 + 1 + 1 + 3
        (world.logs / "leak.log").write_text(min(platform.secrets))
        tally = Tally("secrets")
        assert not judge(world, tally, SEED)
    assert ["holds a secret" in violation.rule for violation in tally.violations] == [True]


def assert_nothing_violated(tally: Tally) -> None:
    assert not tally.violations, "\n".join(map(str, tally.violations[:5]))


async def test_a_forked_daemon_behaves_like_a_cold_one(scene: Scene) -> None:
    """The fast starts save imports and nothing else: the same events with the same fields, the same end."""
    lives = {}
    async with open_platform() as platform:
        for cold in (False, True):
            world = World(scene.base / f"cold-{cold}", platform, scene.nursery, scene.chance("fork"))
            for number in range(3):
                world.drop(1_000, name=f"{number}.pdf")
            await world.start(cold=cold)
            assert await world.ready()
            assert await world.rest(20.0)
            death = await world.stop()
            names = ("daemon.started", "file.claimed", "file.sent", "daemon.stopping", "daemon.stopped")
            fields = {name: sorted(map(sorted, world.events(name))) for name in names}
            lives[cold] = (death.exit_code, fields, world.run.noise.read_text(), sorted(death.memory.finished.values()))
    assert lives[False] == lives[True]
    assert lives[False][0] == 0


async def test_kills_at_random_moments_lose_and_repeat_nothing(scene: Scene) -> None:
    """SIGKILL and restart, under both policies; most kills find work under way, many between post and commit."""
    tally = await kills.run(scene, kills=30, files=150)
    assert_nothing_violated(tally)
    assert tally.counts[STRIKES] == 30
    assert tally.counts["files"] == 150
    assert tally.counts["under way"] > 15
    assert tally.points["left posting"] > 0
    assert tally.points["left claimed"] > 0


@needs_interception
async def test_a_kill_at_any_system_call_loses_and_repeats_nothing(scene: Scene) -> None:
    """One call of every kind that changes anything, from the first of a start to the last of a stop."""
    tally = await calls.run(scene, every_call=False)
    assert_nothing_violated(tally)
    assert not calls.EXPECTED - tally.points.keys()


@needs_interception
async def test_failing_system_calls_fail_no_file(scene: Scene) -> None:
    """EIO and ENOSPC, a sample: all files are sent once; who ends says so, and starts again."""
    tally = await errors.run(scene, stride=17)
    assert_nothing_violated(tally)
    assert tally.counts[STRIKES] > 8


@needs_interception
async def test_a_kill_around_the_reason_of_a_failed_file_leaves_none_without_it(scene: Scene) -> None:
    """Between the move to failed/ and the reason: the next start finds the file there and writes the reason."""
    points = ("renameat2 inbox/failed/file", "fsync inbox/failed", "renameat inbox/failed/reason")
    tally = Tally("reason")
    async with open_platform() as platform:
        turns = calls.Turns(scene, platform, tally, "resend")
        struck = await asyncio.gather(*(turns.turn(point, calls.killing_at_point(point, 1)) for point in points))
    assert_nothing_violated(tally)
    assert all(struck)
    assert tally.counts["refused"] == len(points)


@needs_interception
async def test_one_error_is_survived_without_a_person(scene: Scene) -> None:
    """What the campaign once found, each with the strike that found it."""
    strikes = (
        # The move was made and could not be made sure of: the next try knows where the file is.
        errors.Strike("fsync inbox/sent", errno.EIO, 1),
        errors.Strike("fsync inbox/failed", errno.EIO, 1),
        # SQLite would quietly stay without its write-ahead log.
        errors.Strike("fdatasync state/journal.db-journal", errno.EIO, 1),
        # Trouble at start that is over a moment later: the inbox is not left paused for ever.
        errors.Strike("renameat inbox/.attachd/journal", errno.EIO, 1),
    )
    tally = Tally("errors")
    async with open_platform() as platform:
        lives = (errors.strike_once(scene, platform, tally, strike, number) for number, strike in enumerate(strikes))
        await asyncio.gather(*lives)
    assert_nothing_violated(tally)
    assert tally.counts[STRIKES] == len(strikes)


@needs_interception
async def test_a_start_on_a_full_disk_keeps_the_journal(scene: Scene) -> None:
    """What cannot be folded into the journal's file stays in its log: that is no damage, and nothing is forgotten."""

    def decide(call: intercept.Call) -> int | None:
        return errno.ENOSPC if call.point == "pwrite64 state/journal.db" else None

    tally = Tally("journal")
    async with open_platform() as platform:
        world = World(scene.base / "world", platform, scene.nursery, scene.chance("journal"))
        for _ in range(60):
            world.drop(500)
        await world.start()
        assert await world.ready()
        assert await world.rest(20.0)
        before = (await world.kill()).memory.finished
        run = await world.start(decide=decide)
        assert await world.ready()
        assert run.calls
        assert run.calls.struck
        # What was filed in the last moment before the kill is recorded only now.
        assert before.items() <= (await world.kill()).memory.finished.items()
        assert not list(world.state_dir.glob("*damaged*"))
        await world.start()
        assert await world.ready()
        await world.stop()
        judge(world, tally, SEED)
    assert_nothing_violated(tally)


@needs_mounts
async def test_full_disks_fail_no_file_and_it_goes_on_by_itself(scene: Scene) -> None:
    """No block or no inode is left for seconds: nothing fails, everything is sent when there is room."""
    tally = await disks.run(scene, only=("ext4 full", "ext4 without inodes, restarts", "ext4 read-only"))
    assert_nothing_violated(tally)
    assert tally.counts[STRIKES] == 3
    assert tally.counts["under way"] > 0  # on a busy machine a disk may fill up before or after the files are claimed


@needs_interception
@needs_mounts
async def test_power_cuts_lose_and_repeat_nothing(scene: Scene) -> None:
    """What the producer synced survives, what was claimed is whole, what was posted is known."""
    tally = await power.run(scene, cuts=6)
    assert_nothing_violated(tally)
    assert tally.counts[STRIKES] == 6
    assert tally.counts["under way"] > 0


async def test_faults_of_the_platform_fail_no_file(scene: Scene) -> None:
    """A sample of faults and steps, and what design.md says of each."""
    sample = (
        "token reset, strict, resend",
        "guest wrong_json, lenient, resend",
        "upload 503, lenient, resend",
        "upload expired_url, strict, resend",
        "put reset_mid_answer, lenient, resend",
        "conversation lost_answer, strict, resend",
        "conversation lost_answer, strict, hold",
        "conversation html, strict, hold",
        "conversation 429, lenient, resend",
        "conversation wrong_attachment_id, lenient, resend",
    )
    tally = await faults.run(scene, only=sample)
    assert_nothing_violated(tally)
    assert len(tally.points.keys() & set(sample)) == len(sample)
    assert tally.counts["in doubt"] > 0
    assert tally.counts["refused"] > 0


async def test_faults_of_the_messaging_platform_leave_one_message_each(scene: Scene) -> None:
    """A sample over web messaging: what is lost is asked about, what was refused goes again, nothing goes twice."""
    sample = (
        "deployment html, strict, resend",
        "configure 4006, strict, resend",
        "configure reset, strict, resend, asked about",
        "attachment 4000, strict, resend",
        "attachment 4001, strict, resend",
        "event reset, strict, resend",
        "join 4029, strict, resend, to be joined, errors untied",
        "message lost_answer, strict, resend",
        "message lost_answer, strict, hold",
        "message 4029, strict, resend",
        "message session_expired, strict, resend, said by an event",
        "message session_expired, strict, hold, said by an event, untied",
        "history 403, strict, hold, asked about",
    )
    tally = await faults_wm.run(scene, only=sample)
    assert_nothing_violated(tally)
    assert len(tally.points.keys() & set(sample)) == len(sample)
    assert tally.counts["in doubt"] > 0
    assert tally.counts["refused"] > 0
    assert tally.counts["messages"] <= tally.counts["files"]
