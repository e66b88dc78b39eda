"""Disks that are really full, without inodes, or read-only for a while.

Files wait as drafts, the disk is filled, the drafts get their names. While there is no room nothing may fail, however
often the daemon is started; when there is room again everything is sent within 60 s, and nobody has restarted anything.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.campaign import mounts
from tests.campaign.judgement import judge, only_what_was_dropped, world_folder
from tests.campaign.mounts import Disk
from tests.campaign.platform import Platform, open_platform
from tests.campaign.report import STRIKES, Tally
from tests.campaign.scene import Scene
from tests.campaign.world import World

_FILES = 40
_DRY_S = 3.0
_RESUMES_WITHIN_S = 60.0
_CONFIG = 78


@dataclass(frozen=True, slots=True)
class Trouble:
    """`on`: which of the two trees lie on the disk that gets into trouble."""

    name: str
    make: Callable[[Path], Disk]
    on: frozenset[str]
    kind: str = "full"
    restarts: int = 0
    """How often it is killed while the disk is in trouble; who ends by himself is started again, as by the unit."""


_BOTH = frozenset({"inbox", "state"})


def _ext4(path: Path) -> Disk:
    return Disk.ext4(path, 40)


TROUBLES = (
    Trouble("tmpfs full", lambda path: Disk.tmpfs(path, 40), _BOTH),
    Trouble("ext4 full", _ext4, _BOTH),
    Trouble("ext4 full, inbox alone", _ext4, frozenset({"inbox"})),
    Trouble("ext4 full, state alone", _ext4, frozenset({"state"})),
    Trouble("ext4 full, restarts", _ext4, _BOTH, restarts=3),
    Trouble("ext4 full, inbox alone, restarts", _ext4, frozenset({"inbox"}), restarts=3),
    Trouble("tmpfs without inodes", lambda path: Disk.tmpfs(path, 40, inodes=200), _BOTH, "inodes"),
    Trouble("ext4 without inodes", lambda path: Disk.ext4(path, 40, inodes=256), _BOTH, "inodes"),
    Trouble("ext4 without inodes, restarts", lambda path: Disk.ext4(path, 40, inodes=256), _BOTH, "inodes", restarts=2),
    Trouble("ext4 read-only", _ext4, frozenset({"inbox"}), "read-only"),
    Trouble("ext4 read-only, restart", _ext4, frozenset({"inbox"}), "read-only", restarts=1),
)


async def run(scene: Scene, *, only: tuple[str, ...] = ()) -> Tally:
    tally = Tally("disks")
    if not mounts.available():
        scene.tell("disks: not allowed to mount, left out")
        return tally
    began = time.monotonic()
    wanted = [(number, trouble) for number, trouble in enumerate(TROUBLES) if not only or trouble.name in only]
    async with open_platform() as platform:
        await asyncio.gather(*(_suffer(scene, platform, tally, number, trouble) for number, trouble in wanted))
        only_what_was_dropped(platform, tally, scene.seed)
    tally.seconds = time.monotonic() - began
    return tally


async def _suffer(scene: Scene, platform: Platform, tally: Tally, number: int, trouble: Trouble) -> None:
    chance = scene.chance("disks", trouble.name)
    folder = world_folder(scene.base, "disks", number)
    with ExitStack() as stack:
        disk = stack.enter_context(trouble.make(scene.base / f"disk-{number}"))
        trees = {tree: disk.path / tree for tree in trouble.on}
        world = World(
            folder, platform, scene.nursery, chance, inbox_root=trees.get("inbox"), state_dir=trees.get("state")
        )
        await world.start()
        await world.ready()
        for _ in range(5):
            world.drop(2_000)
        await world.rest(20.0)
        drafts = [world.drop(chance.randint(200, 40_000), hidden=True) for _ in range(_FILES)]
        shown = asyncio.create_task(_show(world, drafts, trouble))
        if trouble.kind == "read-only":
            sent = len(platform.sandbox.messages)
            while len(platform.sandbox.messages) < sent + 3 or not disk.remount("ro"):
                await asyncio.sleep(0.002)
        elif trouble.kind == "inodes":
            disk.use_up_inodes()
        else:
            disk.fill()
        tally.counts[STRIKES] += 1
        for _ in range(trouble.restarts):
            await asyncio.sleep(_DRY_S / 3)
            await world.kill()
            await world.start()
        serving = asyncio.create_task(world.serve())
        await asyncio.sleep(_DRY_S)
        noticed = any(
            record.get("reason") in ("disk_full", "folder_not_writable")
            for event in ("platform.paused", "inbox.paused")
            for record in world.events(event)
        )
        tally.points[f"{trouble.name}: {'noticed' if noticed else 'not noticed'}, {len(world.claimed())} claimed"] += 1
        tally.counts["under way"] += bool(world.claimed()) or noticed
        if trouble.kind == "read-only":
            disk.remount("rw")
        disk.make_room()
        began = time.monotonic()
        await shown
        while not world.at_rest() and time.monotonic() - began < _RESUMES_WITHIN_S:
            await asyncio.sleep(0.05)
        serving.cancel()
        await asyncio.wait([serving])
        if not world.at_rest():
            world.notes.append(f"{trouble.name}: not at rest within {_RESUMES_WITHIN_S:g} s after there was room again")
        ended = sum(run.death is not None and run.death.how == "by itself" for run in world.runs)
        took_s = time.monotonic() - began
        tally.points[f"{trouble.name}: at rest after {took_s:.0f} s, ended by itself {ended} times"] += 1
        await world.ready()
        await world.stop()
        for run in world.runs:  # it says why it cannot start, and is started again
            run.noise_expected = run.death is not None and run.death.exit_code == _CONFIG
        judge(world, tally, scene.seed)


async def _show(world: World, drafts: list, trouble: Trouble) -> None:
    """Give the drafts their names, as soon as the disk lets the producer."""
    await asyncio.sleep(0 if trouble.kind == "read-only" else 0.3)
    for draft in drafts:
        while True:
            try:
                world.show(draft)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                break
        await asyncio.sleep(0.005)
