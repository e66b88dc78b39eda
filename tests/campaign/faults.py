"""Every fault of the platform at every step, each with a platform and a daemon of its own.

Afterwards everything is in `sent/` with one message each, but for what design and fault together demand: a second
message after a lost answer (`resend`), `unknown_outcome` (`hold`), a refusal that is about the file. Here are the
trials of the REST gateway, with a strict and with a lenient storage, and how a trial of any gateway is run; those of
web messaging are in `faults_wm`.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from attachd.sandbox import WEBCHAT_STEPS, Fault, FaultKind, Gateway, Step, refuse
from tests.campaign.judgement import judge, only_what_was_dropped, world_folder
from tests.campaign.platform import Platform, open_platform
from tests.campaign.report import OTHER, REPEATED, STRIKES, Tally, Violation
from tests.campaign.scene import Scene
from tests.campaign.world import World

AT_ONCE = 16
FILES = 4
"""All of them go at once, so the first requests of a step are those of all the first tries."""

_PATIENCE_S = 180.0
"""Probes come after 2.5 to 7.5 s, then after twice that; a hanging message has 30 s."""
_PROBES_S = 10.0
"""In this time a paused inbox has been probed at least once."""
HTTP_STATUSES = (400, 401, 403, 404, 408, 409, 413, 429, 500, 502, 503, 504)
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
class Around:
    """What else is so in a trial: the platform's settings, further faults, and what happens when a step is first asked
    for (a method of the sandbox).
    """

    name: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    besides: Sequence[tuple[Step, Fault]] = ()
    at: tuple[Step, str] | None = None


NOTHING_ELSE = Around()


@dataclass(frozen=True, slots=True)
class Trial:
    """One fault at one step, or several that are told apart by the files they strike: `also` has the others.

    `reason`: with which a file that was struck may lie in `failed/`. `can_ask`: what became of a message can be found
    out. `stuck`: a file waits until the daemon is started anew. `slow`: it takes half a minute or more.
    """

    step: Step
    fault: Fault
    strict: bool = True
    policy: str = "resend"
    gateway: Gateway = "webchat"
    also: tuple[Fault, ...] = ()
    around: Around = NOTHING_ELSE
    reason: str | None = None
    can_ask: bool = True
    stuck: bool = False
    slow: bool = False

    def __str__(self) -> str:
        what = " + ".join(map(_words, self.faults))
        around = f", {self.around.name}" if self.around.name else ""
        return f"{self.step} {what}, {'strict' if self.strict else 'lenient'}, {self.policy}{around}"

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All that strike at the step."""
        return (self.fault, *self.also)


def _words(fault: Fault) -> str:
    what = str(fault.status) if fault.kind is FaultKind.STATUS else str(fault.kind)
    what += f" {fault.status}" if fault.kind is FaultKind.CLOSE else ""
    what += f" as {fault.error_class}" if fault.error_class else ""
    what += f" {fault.delay_s:g} s" if fault.kind is FaultKind.DELAY and fault.delay_s > 1 else ""
    return what + (" after processing" if fault.after_processing else "")


def said(fault: Fault) -> int | FaultKind:
    """By what the tables know a fault: the number in an error, else its kind."""
    return fault.status if fault.kind is FaultKind.STATUS else fault.kind


def trials() -> Iterator[Trial]:
    """Those of the REST gateway."""
    for step in WEBCHAT_STEPS:
        for fault in faults_at(step, HTTP_STATUSES):
            reason = LEGITIMATE.get((step, said(fault)))
            for strict in (True, False):
                yield Trial(step, fault, strict, reason=reason)
            if step is Step.CONVERSATION:
                yield Trial(step, fault, policy="hold", reason=reason)


def faults_at(step: Step, statuses: Sequence[int], close_codes: Sequence[int] = ()) -> Iterator[Fault]:
    """Every kind that can happen at a step; `statuses` are the numbers in errors, `close_codes` those of a socket."""
    for fault in _faults(statuses, close_codes):
        try:
            fault.fits(step)
        except ValueError:  # of another step, or of another protocol
            continue
        yield fault


def _faults(statuses: Sequence[int], close_codes: Sequence[int]) -> Iterator[Fault]:
    for kind in FaultKind:
        match kind:
            case FaultKind.STATUS:
                for status in statuses:
                    yield refuse(status, times=2, retry_after=1 if status in (429, 4029) else None)
                yield Fault(kind, status=500, times=2, after_processing=True)
            case FaultKind.CLOSE:
                for code in close_codes:
                    yield Fault(kind, status=code, times=2)
                if close_codes:
                    yield Fault(kind, status=close_codes[0], times=2, after_processing=True)
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
                yield Fault(kind, times=2)


async def run(
    scene: Scene, part: str = "faults", tried: Sequence[Trial] | None = None, *, only: Sequence[str] = ()
) -> Tally:
    """Run the trials of a part, those of the REST gateway unless others are given; `only` names some of them."""
    tally = Tally(part)
    began = time.monotonic()
    wanted = [trial for trial in tried or list(trials()) if not only or str(trial) in only]
    # The slow ones first, so that none is left over at the end.
    wanted.sort(key=lambda trial: not (trial.slow or trial.fault.kind in _SLOW))
    left = iter(enumerate(wanted))
    done = 0

    async def lane() -> None:
        nonlocal done
        for number, trial in left:
            await _try(scene, tally, number, trial)
            done += 1
            if done % 50 == 0:
                scene.tell(f"{part}: {done} of {len(wanted)}")

    await asyncio.gather(*(lane() for _ in range(AT_ONCE)))
    tally.seconds = time.monotonic() - began
    return tally


async def _try(scene: Scene, tally: Tally, number: int, trial: Trial) -> None:
    chance = scene.chance(tally.part, trial)
    folder = world_folder(scene.base, tally.part, number)
    async with open_platform(trial.gateway, strict_storage=trial.strict, **trial.around.settings) as platform:
        world = World(folder, platform, scene.nursery, chance, concurrency=FILES, policy=trial.policy)
        world.may_fail = lambda _drop, reason: reason == trial.reason
        world.can_ask = world.can_ask and trial.can_ask
        for step, fault in (*((trial.step, fault) for fault in trial.faults), *trial.around.besides):
            platform.sandbox.on(step, fault)
        if trial.around.at is not None:
            _happens(platform, *trial.around.at)
        for index in range(FILES):
            world.drop(chance.randint(200, 200_000), name=f"{index}.pdf")
        await world.start()
        await world.ready()
        began = time.monotonic()
        if trial.stuck:
            await _stands_still(world, trial)
            await world.stop()
            await world.start()
            await world.ready()
        if not await world.rest(_PATIENCE_S):
            world.notes.append(
                f"{trial}: not at rest after {_PATIENCE_S:g} s, armed still: {platform.sandbox.faults.armed()}"
            )
        if (took := time.monotonic() - began) > 60:
            tally.points[f"{trial}: took {took:.0f} s"] += 1
        await world.stop()
        asked = platform.sandbox.requests(trial.step)
        struck = sum(received.fault in {fault.kind for fault in trial.faults} for received in asked)
        tally.counts[STRIKES] += struck
        tally.counts["under way"] += struck
        tally.points[str(trial)] += struck
        if not struck:
            world.notes.append(f"{trial}: the fault never struck")
        elif trial.also and (
            unused := [fault for _, fault in platform.sandbox.faults.armed() if fault in trial.faults]
        ):
            world.notes.append(f"{trial}: never struck: {unused}")
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


def _happens(platform: Platform, step: Step, what: str) -> None:
    """Let something happen at the platform when the step is first asked for, before that request is looked at."""

    def arrives(asked: Step) -> None:
        if asked is step:
            platform.arrivals.remove(arrives)
            getattr(platform.sandbox, what)()

    platform.arrivals.append(arrives)


async def _stands_still(world: World, trial: Trial) -> None:
    """A trial in which a file waits for a person: the inbox is paused, and no further message goes for it."""
    deadline = time.monotonic() + _PATIENCE_S
    while not world.events("inbox.paused") and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    await asyncio.sleep(_PROBES_S)
    empty = sum(not message.attachments for message in world.platform.sandbox.messages)
    if not 0 < empty <= (trial.fault.times or FILES):
        world.notes.append(f"{trial}: {empty} messages without their file")
    if world.at_rest():
        world.notes.append(f"{trial}: nothing waits")
