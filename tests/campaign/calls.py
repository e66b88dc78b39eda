"""SIGKILL at the entry of each state-changing system call, one at a time, from the first call of a start to the last
of a stop.

A run brings three files to `sent/` and one to `failed/`, one at a time; the n-th run is killed at its n-th call, until
a run ends clean. Some of the restarts are killed as well: recovery is to survive itself.
"""

import asyncio
import itertools
import signal
import time
from collections import Counter

from tests.campaign.intercept import Call, Decide, Do
from tests.campaign.judgement import judge, only_what_was_dropped
from tests.campaign.platform import Platform, open_platform
from tests.campaign.report import OTHER, STRIKES, Tally, Violation
from tests.campaign.scene import Scene
from tests.campaign.world import World

TOO_LARGE = 5 << 20
_LANES = 3
_SECOND_KILL_EVERY = 3


EXPECTED = frozenset(
    {
        # the claim
        "fsync inbox/file",
        "mkdirat inbox/.attachd/claimed/*",
        "fsync inbox/.attachd/claimed",
        "renameat inbox/.attachd/claimed/*/file",
        "fsync inbox/.attachd/claimed/*",
        "fsync inbox",
        # what the platform was told
        "pwrite64 state/journal.db-wal",
        "fdatasync state/journal.db-wal",
        "write network",
        # filing
        "renameat2 inbox/sent/file",
        "fsync inbox/sent",
        "unlinkat inbox/.attachd/claimed/*",
        "renameat2 inbox/failed/file",
        "fsync inbox/failed",
        "write inbox/.attachd/.draft",
        "renameat inbox/failed/reason",
        # start and stop
        "openat state/journal.db",
        "pwrite64 state/journal.db",
        "fdatasync state/journal.db",
        "fallocate state/ballast",
        "fallocate inbox/.attachd/ballast",
        "renameat inbox/.attachd/journal",
        "ftruncate state/journal.db-wal",
    }
)
"""Where a sweep must have struck, or it has not swept."""


async def run(scene: Scene, *, every_call: bool = True) -> Tally:
    """Kill at every call of a run; or, for a short run, at one call of every kind."""
    tally = Tally("syscalls")
    began = time.monotonic()
    async with open_platform() as platform:
        for policy in ("resend", "hold"):
            turns = Turns(scene, platform, tally, policy)
            await (turns.at_every_call() if every_call else turns.at_one_of_each(await turns.recorded()))
        only_what_was_dropped(platform, tally, scene.seed)
    for point in sorted(EXPECTED - tally.points.keys()):
        tally.violations.append(Violation(tally.part, OTHER, f"no kill hit {point}", f"seed {scene.seed}"))
    tally.seconds = time.monotonic() - began
    return tally


def killing_at(number: int) -> Decide:
    def decide(call: Call) -> Do | None:
        return Do.KILL if call.number == number else None

    return decide


def killing_at_point(point: str, turn: int) -> Decide:
    met = 0

    def decide(call: Call) -> Do | None:
        nonlocal met
        met += call.point == point
        return Do.KILL if call.point == point and met == turn else None

    return decide


class Turns:
    """Worlds of one policy, one for each place where is killed."""

    def __init__(self, scene: Scene, platform: Platform, tally: Tally, policy: str) -> None:
        self._scene = scene
        self._platform = platform
        self._tally = tally
        self._policy = policy

    async def at_every_call(self) -> None:
        numbers = itertools.count(1)
        clean = asyncio.Event()

        async def lane() -> None:
            while not clean.is_set():
                number = next(numbers)
                if not await self.turn(str(number), killing_at(number), again=number % _SECOND_KILL_EVERY == 0):
                    clean.set()
                if number % 100 == 0:
                    self._scene.tell(f"syscalls, {self._policy}: {number}")

        await asyncio.gather(*(lane() for _ in range(_LANES)))

    async def recorded(self) -> Counter[str]:
        """Which calls a run makes, and how often each."""
        world = self._world("recorded")
        await _struck(world, lambda _call: None, self._tally)
        assert world.run.calls
        points = Counter(call.point for call in world.run.calls.calls)
        judge(world, self._tally, self._scene.seed)
        return points

    async def at_one_of_each(self, points: Counter[str]) -> None:
        # What the policy decides hangs on the journal and the network; the rest is the same under both.
        decisive = {point for point in points if self._policy == "resend" or point.endswith(("-wal", "network"))}
        left = iter(sorted((point, times) for point, times in points.items() if point in decisive))

        async def lane() -> None:
            for point, times in left:
                chance = self._scene.chance("syscalls", self._policy, point)
                # Not the last ones: a run need not make quite as many as the one before.
                turn = chance.randint(1, max(1, times * 2 // 3))
                await self.turn(f"{point} {turn}", killing_at_point(point, turn))

        await asyncio.gather(*(lane() for _ in range(_LANES)))

    async def turn(self, place: str, decide: Decide, *, again: bool = False) -> bool:
        """One world, killed there; False when it was not. `again`: its recovery is killed somewhere, too."""
        world = self._world(place)
        killed = await _struck(world, decide, self._tally)
        if killed and again:
            await _struck(world, killing_at(world.chance.randint(1, 60)), self._tally)
        await world.start()
        if not await world.ready() or not await world.rest(30.0):
            world.notes.append("it did not come to rest within 30 s")
        await world.stop()
        judge(world, self._tally, self._scene.seed)
        return killed

    def _world(self, place: str) -> World:
        folder = self._scene.base / f"syscalls-{self._policy}-{place.replace('/', '_').replace(' ', '-')}"
        chance = self._scene.chance("syscalls", self._policy, "world", place)
        world = World(folder, self._platform, self._scene.nursery, chance, concurrency=1, policy=self._policy)
        world.may_fail = lambda drop, reason: reason == "too_large" and drop.size == TOO_LARGE
        for size in (120, 3_000, 300_000, TOO_LARGE):
            world.drop(size)
        return world


async def _struck(world: World, decide: Decide, tally: Tally) -> bool:
    """One life that is killed where `decide` says; False when it did not come there."""
    run = await world.start(decide=decide)
    if await world.rest(30.0) and await world.ready():
        run.child.signal(signal.SIGTERM)
    async with asyncio.timeout(30.0):
        await asyncio.shield(run.child.ended)
    assert run.calls
    killed = bool(run.calls.struck)
    await world.died(f"kill at {run.calls.struck[0].point}" if killed else "stop")
    if killed:
        tally.counts[STRIKES] += 1
        tally.counts["under way"] += bool(run.death and (run.death.claimed or run.death.memory.unfinished))
        tally.points[run.calls.struck[0].point] += 1
    return killed
