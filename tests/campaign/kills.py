"""SIGKILL at random moments, the next start at once: half of the files under `resend`, half under `hold`.

Moments: while it starts, after an exponential wait, the instant a request of a chosen step arrives, the instant a
message was accepted. Uniform moments alone would hardly ever hit the short windows.
"""

import asyncio
import random
import time

from attachd.sandbox import Gateway, Stage, Step, step_of
from tests.campaign.judgement import judge, only_what_was_dropped, world_folder
from tests.campaign.platform import Platform, open_platform
from tests.campaign.report import STRIKES, Tally
from tests.campaign.scene import Scene
from tests.campaign.world import World

_ROUND = 50
"""Kills before the inboxes are let empty, and looked at in full."""
_COLD_EVERY = 40
"""A start from scratch now and then, so that nothing hangs on how the others are started."""
_STAGES = (Stage.SESSION, Stage.UPLOAD, Stage.PUT, Stage.CONVERSATION, Stage.CONVERSATION)


async def run(scene: Scene, *, kills: int, files: int, gateway: Gateway = "webchat") -> Tally:
    tally = Tally("kills" if gateway == "webchat" else "kills (wm)")
    began = time.monotonic()
    async with open_platform(gateway) as platform:
        halves = ("resend", "hold")
        await asyncio.gather(*(_besiege(scene, platform, tally, half, kills // 2, files // 2) for half in halves))
        only_what_was_dropped(platform, tally, scene.seed)
    tally.seconds = time.monotonic() - began
    return tally


async def _besiege(scene: Scene, platform: Platform, tally: Tally, policy: str, kills: int, files: int) -> None:
    rounds = max(1, round(kills / _ROUND))
    for number in range(rounds):
        chance = scene.chance("kills", policy, number)
        folder = world_folder(scene.base, f"kills-{policy}", number)
        world = World(folder, platform, scene.nursery, chance, inboxes=3, policy=policy)
        kills_now = kills // rounds + (number < kills % rounds)
        files_now = files // rounds + (number < files % rounds)
        for kill in range(kills_now):
            for _ in range(files_now // kills_now + (kill < files_now % kills_now)):
                world.drop()
            await world.start(cold=kill % _COLD_EVERY == _COLD_EVERY - 1)
            moment = await _moment(world, chance)
            if not world.alive:
                world.notes.append(f"run {world.run.number} ended by itself with {world.run.child.exit_code}")
            death = await world.kill(f"kill {moment}")
            tally.counts[STRIKES] += 1
            tally.points[moment] += 1
            tally.counts["under way"] += bool(death.claimed or death.memory.unfinished)
            for state in death.memory.unfinished.values():
                tally.points[f"left {state}"] += 1
        await world.start()
        if not await world.ready() or not await world.rest(120.0):
            world.notes.append("it did not come to rest within 120 s")
        await world.stop()
        judge(world, tally, scene.seed)
        scene.tell(f"kills, {policy}: round {number + 1} of {rounds}")


async def _moment(world: World, chance: random.Random) -> str:
    """Wait for the moment of the next kill; returns what kind it is."""
    kind = chance.choices(("starting", "waiting", "request", "accepted"), (2, 3, 4, 4))[0]
    if kind == "starting":
        await asyncio.sleep(chance.uniform(0.0, 0.09))
        return kind
    await world.ready()
    if kind == "waiting":
        await asyncio.sleep(min(1.0, chance.expovariate(1 / 0.06)))
        return kind
    step = step_of(Stage.CONVERSATION if kind == "accepted" else chance.choice(_STAGES), world.platform.gateway)
    arrived = asyncio.Event()
    skip = chance.randint(0, 6)

    def tell(at: Step) -> None:
        nonlocal skip
        if at is step:
            skip -= 1
            if skip < 0:
                arrived.set()

    world.platform.arrivals.append(tell)
    try:
        async with asyncio.timeout(0.4):
            await arrived.wait()
    except TimeoutError:
        return "idle"
    finally:
        world.platform.arrivals.remove(tell)
    if kind == "accepted":  # the answer is on its way: the journal is about to hear of it
        await asyncio.sleep(chance.choice((0.0, 0.0, 0.001, 0.002)))
        return kind
    await asyncio.sleep(chance.uniform(0.0, 0.003))
    return f"request {step}"
