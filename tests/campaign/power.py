"""Power cuts: inboxes on one ext4, the journal on another, and both lose what was not synced at the same moment.

Half of the cuts come at random moments, half at the entry of a chosen system call; from then on every call of the
daemon is held at its entry, so that nothing of it reaches one disk after the other has gone. The ledger of the platform
is not on these disks. Fresh disks every few cuts.
"""

import asyncio
import random
import signal
import time
from contextlib import ExitStack

from tests.campaign import mounts
from tests.campaign.intercept import Call, Do
from tests.campaign.judgement import judge, only_what_was_dropped, world_folder
from tests.campaign.mounts import Disk
from tests.campaign.platform import Platform, open_platform
from tests.campaign.report import STRIKES, Tally
from tests.campaign.scene import Scene
from tests.campaign.world import World

_CUTS_PER_DISK = 4
_DURABLE = 0.6
_UNCHOSEN = frozenset({"network"})


async def run(scene: Scene, *, cuts: int) -> Tally:
    tally = Tally("power")
    if not mounts.available():
        scene.tell("power: not allowed to mount, left out")
        return tally
    began = time.monotonic()
    async with open_platform() as platform:
        for number in range(-(-cuts // _CUTS_PER_DISK)):
            now = min(_CUTS_PER_DISK, cuts - number * _CUTS_PER_DISK)
            await _on_fresh_disks(scene, platform, tally, number, now)
        only_what_was_dropped(platform, tally, scene.seed)
    tally.seconds = time.monotonic() - began
    return tally


async def _on_fresh_disks(scene: Scene, platform: Platform, tally: Tally, number: int, cuts: int) -> None:
    chance = scene.chance("power", number)
    policy = "hold" if number % 3 == 2 else "resend"
    with ExitStack() as stack:
        disks = [
            stack.enter_context(Disk.ext4(scene.base / f"{name}-{number}", 64)) for name in ("inbox-disk", "state-disk")
        ]
        world = World(
            world_folder(scene.base, "power", number),
            platform,
            scene.nursery,
            chance,
            inbox_root=disks[0].path / "inboxes",
            state_dir=disks[1].path / "state",
            concurrency=chance.choice((1, 4, 8)),
            policy=policy,
        )
        for disk in disks:
            disk.sync()
        for _ in range(cuts):
            await _cut(world, disks, chance, tally)
        await world.start()
        if not await world.ready() or not await world.rest(60.0):
            world.notes.append("it did not come to rest within 60 s of the last cut")
        await world.stop()
        judge(world, tally, scene.seed)
        scene.tell(f"power: {tally.counts[STRIKES]} cuts")


async def _cut(world: World, disks: list[Disk], chance: random.Random, tally: Tally) -> None:
    """Run under load, and take the power away."""
    at_call = chance.randint(1, 500) if chance.random() < 0.5 else 0
    held = asyncio.Event()

    def decide(call: Call) -> Do | None:
        if at_call and call.number >= at_call and call.where not in _UNCHOSEN:
            held.set()
            return Do.HOLD
        return None

    run = await world.start(decide=decide)
    assert run.calls
    producer = asyncio.create_task(_produce(world, chance))
    if at_call:
        try:
            async with asyncio.timeout(5.0):
                await held.wait()
        except TimeoutError:
            run.calls.holding = True
    else:
        await world.ready()
        await asyncio.sleep(min(1.5, chance.expovariate(1 / 0.25)))
        run.calls.holding = True
    point = run.calls.struck[0].point if run.calls.struck else "a random moment"
    producer.cancel()
    await asyncio.wait([producer])
    opened = [disk.open_for_cut() for disk in disks]
    chance.shuffle(opened)
    mounts.cut(opened)
    run.child.signal(signal.SIGKILL)
    await asyncio.shield(run.child.ended)
    await asyncio.sleep(0.01)
    for disk in disks:
        await asyncio.to_thread(disk.unmount)
        await asyncio.to_thread(disk.mount)
    run.death = world._left_behind(f"power cut at {point}", -9)
    _take_the_producers_losses(world)
    tally.counts[STRIKES] += 1
    tally.counts["under way"] += bool(run.death.claimed or run.death.memory.unfinished)
    tally.points[point] += 1
    for state in run.death.memory.unfinished.values():
        tally.points[f"left {state}"] += 1


async def _produce(world: World, chance: random.Random) -> None:
    while True:
        for _ in range(chance.randint(1, 6)):
            world.drop(int(100 * 600 ** chance.random()), durable=chance.random() < _DURABLE)
        await asyncio.sleep(chance.uniform(0.005, 0.06))


def _take_the_producers_losses(world: World) -> None:
    """Subtract what a producer that does not sync loses by itself: gone from the inbox, or there without its bytes.

    What attachd has taken, or an agent has got, it had to make durable: that is never the producer's loss.
    """
    here = {}
    for file in world.files():
        here[file.sha256] = file
        if file.sha256 in world.drops:
            continue
        lost = [
            d
            for d in world.drops.values()
            if d.name == file.path.name and d.folder == file.path.parent and not d.durable
        ]
        if file.place == "inbox" and lost:
            file.path.unlink()
        else:
            size = file.path.stat().st_size
            world.notes.append(
                f"after the cut {file.place} holds {file.path.name} with {size} bytes that nobody dropped"
            )
    for drop in world.drops.values():
        if drop.sha256 in here or drop.durable or drop.sha256 in world.excused:
            continue
        if world.platform.messages_of(drop.sha256):
            world.notes.append(f"{drop.name} was sent, and the cut took it")
        else:
            world.excused.add(drop.sha256)
