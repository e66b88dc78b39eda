"""EIO and ENOSPC at each state-changing system call in turn, and storms of them that end by themselves.

A recording run tells which calls there are. Afterwards every file lies in `sent/` with one message, and only one that
is too large in `failed/`: a daemon that goes on has to come to that by itself, one that ends has to end with an error
and is started again. A failing fsync of the journal has to end it, and nothing may be posted after it.
"""

import asyncio
import errno
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tests.campaign.calls import TOO_LARGE
from tests.campaign.intercept import Call, Decide
from tests.campaign.judgement import judge, only_what_was_dropped, world_folder
from tests.campaign.platform import Platform, open_platform
from tests.campaign.report import STRIKES, Tally
from tests.campaign.scene import Scene
from tests.campaign.world import World

_LANES = 8
_RESUMES_WITHIN_S = 60.0
_NEVER_ENOSPC = frozenset({"unlink", "unlinkat", "rmdir", "ftruncate"})
_MAY_PASS = frozenset(
    {
        "fsync state/lock",
        "fsync state/ballast",
        "fsync state/journal.suspect",
        "fdatasync state",  # SQLite's own, of the folder: it ignores what comes of it, by design (os_unix.c, unixSync)
    }
)
"""What need not end it: what attachd can do without, and what nobody tells it."""


@dataclass(frozen=True, slots=True)
class Strike:
    """What fails: the `turn`-th call at a point; with `for_s` all calls below a root, from the `turn`-th on."""

    point: str
    error: int
    turn: int
    for_s: float = 0.0

    def __str__(self) -> str:
        kind = f"all of {self.point} for {self.for_s:g} s" if self.for_s else self.point
        return f"{errno.errorcode[self.error]} {kind}"

    @property
    def must_end_it(self) -> bool:
        """A failing fsync of the journal or its folder."""
        name, _, where = self.point.partition(" ")
        synced = name in ("fsync", "fdatasync") and where.startswith("state")
        return synced and not self.for_s and self.point not in _MAY_PASS


async def run(scene: Scene, *, stride: int = 1) -> Tally:
    tally = Tally("errors")
    began = time.monotonic()
    async with open_platform() as platform:
        recorded = await _recorded(scene, platform, tally)
        strikes = list(_strikes(recorded))
        scene.chance("errors").shuffle(strikes)
        strikes = strikes[::stride]
        left = iter(enumerate(strikes))
        lanes = (_lane(scene, platform, tally, left, len(strikes)) for _ in range(_LANES))
        await asyncio.gather(*lanes)
        only_what_was_dropped(platform, tally, scene.seed)
    tally.seconds = time.monotonic() - began
    return tally


def _strikes(recorded: Counter[str]) -> Iterator[Strike]:
    for point, times in sorted(recorded.items()):
        name, _, where = point.partition(" ")
        if where == "network":
            continue
        for error in (errno.EIO, errno.ENOSPC):
            if error == errno.ENOSPC and name in _NEVER_ENOSPC:
                continue
            for turn in sorted({1, 2, times // 2, times} & set(range(1, times + 1))):
                yield Strike(point, error, turn)
    for root in ("inbox", "state"):
        for error in (errno.EIO, errno.ENOSPC, errno.EROFS):
            for turn in (40, 80, 120):
                yield Strike(root, error, turn, for_s=3.0)


def _world(scene: Scene, platform: Platform, number: int) -> World:
    chance = scene.chance("errors", number)
    world = World(world_folder(scene.base, "errors", number), platform, scene.nursery, chance, concurrency=1)
    world.may_fail = lambda drop, reason: drop.size == TOO_LARGE and reason in ("too_large", "")
    for size in (120, 3_000, 300_000, TOO_LARGE):
        world.drop(size)
    return world


async def _recorded(scene: Scene, platform: Platform, tally: Tally) -> Counter[str]:
    world = _world(scene, platform, 9999)
    run = await world.start(decide=lambda _call: None)
    await world.ready()
    await world.rest(30.0)
    await world.stop()
    assert run.calls
    points = Counter(call.point for call in run.calls.calls)
    judge(world, tally, scene.seed)
    return points


async def _lane(
    scene: Scene, platform: Platform, tally: Tally, left: "Iterator[tuple[int, Strike]]", number_of_all: int
) -> None:
    for number, strike in left:
        await strike_once(scene, platform, tally, strike, number)
        if number % 50 == 49:
            scene.tell(f"errors: {number + 1} of {number_of_all}")


async def strike_once(scene: Scene, platform: Platform, tally: Tally, strike: Strike, number: int = 0) -> None:
    """A world with one strike, to the end."""
    world = _world(scene, platform, number)
    await _strike(world, strike, tally)
    judge(world, tally, scene.seed)


def _failing(strike: Strike) -> Decide:
    met, until = 0, 0.0

    def decide(call: Call) -> int | None:
        nonlocal met, until
        if strike.for_s:
            if call.number >= strike.turn and call.where.startswith(strike.point):
                until = until or time.monotonic() + strike.for_s
                return strike.error if time.monotonic() < until else None
            return None
        met += call.point == strike.point
        return strike.error if call.point == strike.point and met == strike.turn else None

    return decide


async def _strike(world: World, strike: Strike, tally: Tally) -> None:
    world.reasons_may_be_missing = "inbox" in strike.point
    run = await world.start(decide=_failing(strike))
    began = time.monotonic()
    if await world.rest(_RESUMES_WITHIN_S):
        await world.ready()
        run.child.signal(signal.SIGTERM)
    elif world.alive:
        world.notes.append(f"{strike}: still not at rest after {_RESUMES_WITHIN_S:g} s")
        run.child.signal(signal.SIGKILL)
    async with asyncio.timeout(30.0):
        await asyncio.shield(run.child.ended)
    assert run.calls
    struck = run.calls.struck
    how = f"{strike}" if struck else "not struck"
    death = await world.died(how)
    if struck:
        tally.counts[STRIKES] += 1
        tally.points[str(strike)] += 1
        tally.counts["under way"] += bool(death.claimed or death.memory.unfinished or world.events("file.claimed"))
        run.noise_expected = death.exit_code != 0
        _after_the_journal_failed(world, strike, death.exit_code)
    elif death.exit_code != 0:
        world.notes.append(f"it ended with {death.exit_code} though nothing was struck")
    if not world.at_rest():
        if struck and death.exit_code == 0:
            world.notes.append(f"{strike}: it ended with 0 and left files behind")
        await asyncio.sleep(max(0.0, began + strike.for_s + 1.0 - time.monotonic()) if strike.for_s else 0.0)
    await world.start()
    if not await world.ready() or not await world.rest(_RESUMES_WITHIN_S):
        world.notes.append(f"{strike}: not at rest within {_RESUMES_WITHIN_S:g} s of the next start")
    await world.stop()


def _after_the_journal_failed(world: World, strike: Strike, exit_code: int) -> None:
    if not strike.must_end_it:
        return
    run = world.run
    assert run.calls
    if exit_code == 0:
        world.notes.append(f"{strike}, turn {strike.turn}: it went on, and ended with 0")
    failed_at = run.calls.struck[0].at
    later = [m for digest in world.drops for m in world.platform.messages_of(digest) if m.wall_s > failed_at + 0.02]
    if later:
        world.notes.append(f"{strike}, turn {strike.turn}: {len(later)} messages were posted after it")
