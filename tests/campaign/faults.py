"""Every fault of the platform at every step, with a strict and with a lenient storage, each with a platform and a
daemon of its own.

Afterwards everything is in `sent/` with one message each, but for what design and fault together demand: a second
message after a lost answer (`resend`), `unknown_outcome` (`hold`), a refusal that is about the file.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

from attachd.sandbox import Fault, FaultKind, Step, refuse
from tests.campaign.judgement import judge, only_what_was_dropped, world_folder
from tests.campaign.platform import open_platform
from tests.campaign.report import OTHER, REPEATED, STRIKES, Tally, Violation
from tests.campaign.scene import Scene
from tests.campaign.world import World

_AT_ONCE = 16
_FILES = 4
_PATIENCE_S = 180.0
"""Probes come after 2.5 to 7.5 s, then after twice that; a hanging message has 30 s."""
_STEPS = (Step.TOKEN, Step.GUEST, Step.UPLOAD, Step.PUT, Step.CONVERSATION)
_STATUSES = (400, 401, 403, 404, 408, 409, 413, 429, 500, 502, 503, 504)
_SLOW = frozenset({FaultKind.HANG, FaultKind.DRIP})

LEGITIMATE = {
    # What the fault says of the file itself, and the reason that is due.
    (Step.UPLOAD, 400): "refused",
    (Step.UPLOAD, 413): "too_large",
    (Step.PUT, 413): "too_large",
    (Step.CONVERSATION, 413): "too_large",
    (Step.CONVERSATION, FaultKind.WRONG_ATTACHMENT_ID): "attachment_dropped",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One fault at one step."""

    step: Step
    fault: Fault
    strict: bool
    policy: str = "resend"

    def __str__(self) -> str:
        what = str(self.fault.status) if self.fault.kind is FaultKind.STATUS else str(self.fault.kind)
        after = " after processing" if self.fault.after_processing else ""
        return f"{self.step} {what}{after}, {'strict' if self.strict else 'lenient'}, {self.policy}"

    @property
    def legitimate(self) -> str | None:
        """The reason with which a file that was struck may lie in `failed/`."""
        key = self.fault.status if self.fault.kind is FaultKind.STATUS else self.fault.kind
        return LEGITIMATE.get((self.step, key))


def trials() -> Iterator[Trial]:
    for step in _STEPS:
        for fault in _faults(step):
            for strict in (True, False):
                yield Trial(step, fault, strict)
            if step is Step.CONVERSATION:
                yield Trial(step, fault, strict=True, policy="hold")


def _faults(step: Step) -> Iterator[Fault]:
    for kind in FaultKind:
        match kind:
            case FaultKind.STATUS:
                for status in _STATUSES:
                    yield refuse(status, times=2, retry_after=1 if status == 429 else None)
                yield Fault(kind, status=500, times=2, after_processing=True)
            case FaultKind.HANG:
                yield Fault(kind, times=1)
                yield Fault(kind, times=1, after_processing=True)
            case FaultKind.DRIP:
                yield Fault(kind, times=1, delay_s=1.0)
            case FaultKind.DELAY:
                yield Fault(kind, times=2, delay_s=1.0)
            case FaultKind.HUGE:
                yield Fault(kind, times=2, size_bytes=32 << 20)
            case _:
                try:
                    fault = Fault(kind, times=2)
                    fault.fits(step)
                except ValueError:  # of another step, or of another protocol
                    continue
                yield fault


async def run(scene: Scene, *, only: tuple[str, ...] = ()) -> Tally:
    tally = Tally("faults")
    began = time.monotonic()
    wanted = [trial for trial in trials() if not only or str(trial) in only]
    # The slow ones first, so that none is left over at the end.
    wanted.sort(key=lambda trial: trial.fault.kind not in _SLOW)
    left = iter(enumerate(wanted))
    done = 0

    async def lane() -> None:
        nonlocal done
        for number, trial in left:
            await _try(scene, tally, number, trial)
            done += 1
            if done % 50 == 0:
                scene.tell(f"faults: {done} of {len(wanted)}")

    await asyncio.gather(*(lane() for _ in range(_AT_ONCE)))
    tally.seconds = time.monotonic() - began
    return tally


async def _try(scene: Scene, tally: Tally, number: int, trial: Trial) -> None:
    chance = scene.chance("faults", trial)
    folder = world_folder(scene.base, "faults", number)
    async with open_platform(strict_storage=trial.strict) as platform:
        world = World(folder, platform, scene.nursery, chance, concurrency=4, policy=trial.policy)
        world.may_fail = lambda _drop, reason: reason == trial.legitimate
        platform.sandbox.on(trial.step, trial.fault)
        for index in range(_FILES):
            world.drop(chance.randint(200, 200_000), name=f"{index}.pdf")
        await world.start()
        await world.ready()
        began = time.monotonic()
        if not await world.rest(_PATIENCE_S):
            world.notes.append(
                f"{trial}: not at rest after {_PATIENCE_S:g} s, armed still: {platform.sandbox.faults.armed()}"
            )
        if (took := time.monotonic() - began) > 60:
            tally.points[f"{trial}: took {took:.0f} s"] += 1
        await world.stop()
        asked = platform.sandbox.requests(trial.step)
        struck = sum(received.fault == trial.fault.kind for received in asked)
        tally.counts[STRIKES] += struck
        tally.counts["under way"] += struck
        tally.points[str(trial)] += struck
        if not struck:
            world.notes.append(f"{trial}: the fault never struck")
        lost = sum(message.answer_lost for message in platform.sandbox.messages)
        extra = sum(max(0, len(platform.messages_of(digest)) - 1) for digest in world.drops)
        failed = [file for file in world.files() if file.place == "failed" and file.reason != "unknown_outcome"]
        if len(failed) > struck:
            world.notes.append(f"{trial}: {len(failed)} files failed of {struck} faults")
        if extra > lost:
            text = f"seed {scene.seed}\n{trial}: {extra} second messages, {lost} lost answers"
            tally.violations.append(Violation(tally.part, REPEATED, "more second messages than lost answers", text))
        if platform.sandbox.ledger.leaks:
            tally.violations.append(Violation(tally.part, OTHER, "a credential reached the storage", str(trial)))
        only_what_was_dropped(platform, tally, scene.seed)
        judge(world, tally, scene.seed)
