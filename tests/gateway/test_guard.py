"""The gate: the quota is used and never exceeded, and a silence is kept by everybody."""

import asyncio
import math
import random
import time
from bisect import bisect_left
from heapq import heappop, heappush

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attachd.gateway.guard import EARLY, RESERVE_S, Departure, Gate, Spacing, Usual

from .support import SimulatedLoop, simulated


def most_in_a_second(times: list[float]) -> int:
    """What the strictest server counts: the fullest half-open window of one second, wherever it begins."""
    return max((bisect_left(times, at + 1.0) - i for i, at in enumerate(times)), default=0)


def a_gate(loop: SimulatedLoop, per_second: float, **changes: object) -> Gate:
    return Gate(per_second, **{"clock": loop.time, "jitter": lambda low, high: low} | changes)  # type: ignore[arg-type]


async def early(gate: Gate) -> None:
    """Use up what may leave at once after a rest."""
    for _ in range(EARLY + 1):
        await gate.admit()


@given(
    per_second=st.integers(1, 500),
    pauses=st.lists(st.one_of(st.just(0.0), st.floats(0, 0.05), st.floats(0, 3)), min_size=1, max_size=300),
)
@settings(max_examples=150, deadline=None)
def test_no_second_sees_more_than_the_quota(per_second: int, pauses: list[float]) -> None:
    """However requests come, however late each is woken: the fullest second stays within the quota."""
    spacing, now, left = Spacing(per_second), 0.0, []
    for pause in pauses:
        now += spacing.wait_s(now) + pause
        if spacing.wait_s(now) > 0:
            continue  # the sum above was rounded down: a request would wait once more
        spacing.take(now)
        left.append(now)
    assert most_in_a_second(left) <= per_second


def arrivals(spacing: Spacing, requests: int, there: list[float], back_s: float, now: float = 0.0) -> list[float]:
    """When requests arrive that take as long as `there` says, in turn, and are answered; each leaves once it may."""
    arrived: list[float] = []
    answers: list[tuple[float, int, Departure]] = []
    for i in range(requests):
        while (wait_s := spacing.wait_s(now)) > 0 or (answers and answers[0][0] <= now):
            if answers and answers[0][0] <= now + wait_s:
                now = max(now, answers[0][0])
                at, _, departure = heappop(answers)
                spacing.answered(departure, "guest", at)
            else:
                now += max(wait_s, 1e-9)
        arrived.append(now + there[i % len(there)])
        heappush(answers, (arrived[-1] + back_s, i, spacing.take(now)))
    return sorted(arrived)


@given(
    per_second=st.integers(20, 300),
    there=st.lists(st.floats(0, RESERVE_S - 1e-6), min_size=50, max_size=50),
    back_s=st.floats(0, 0.3),
)
@settings(max_examples=50, deadline=None)
def test_what_is_usual_on_the_way_does_not_break_the_quota(per_second: int, there: list[float], back_s: float) -> None:
    """Requests that take up to 10 ms longer than others still arrive within the quota."""
    assert most_in_a_second(arrivals(Spacing(per_second), per_second * 3, there, back_s)) <= per_second


@pytest.mark.parametrize(("stands_still_s", "percent"), [(0.015, 98), (0.05, 98), (0.1, 97), (0.3, 94)])
def test_a_host_that_stands_still_now_and_then_breaks_no_quota(stands_still_s: float, percent: float) -> None:
    """Every five seconds what has left arrives later, and all together. What is not used is hardly more than that."""
    late = [stands_still_s - 0.01 * i for i in range(math.ceil(stands_still_s * 100))]
    there = [0.002 + i % 7 * 0.0003 for i in range(500 - len(late))] + [0.002 + late_s for late_s in late]
    arrived = arrivals(Spacing(100), 6000, there, 0.001)
    assert most_in_a_second(arrived) <= 100
    assert len(arrived) / (arrived[-1] - arrived[0]) >= percent


@pytest.mark.parametrize("differ_by_s", [0.02, 0.1])
def test_a_platform_that_thinks_longer_about_some_keeps_its_quota_used(differ_by_s: float) -> None:
    """Answers that differ by much are what is usual there, and one that takes very long keeps no other waiting."""
    chance = random.Random(1)
    there = [0.05 + chance.expovariate(1 / differ_by_s) for _ in range(997)]
    arrived = arrivals(Spacing(100), 6000, there, 0.001)
    assert len(arrived) / (arrived[-1] - arrived[0]) >= 98


def test_the_usual_is_learnt_anew_when_ways_grow_longer() -> None:
    """A longer way is a delay for as long as it is unusual."""
    usual = Usual()
    assert usual.excess_s(0.010) == 0
    for _ in range(1000):
        usual.excess_s(0.010)
    assert usual.excess_s(0.050) == pytest.approx(0.040, rel=0.01)
    for _ in range(1000):
        usual.excess_s(0.050)
    assert usual.excess_s(0.050) == 0


@pytest.mark.parametrize("late_s", [0.0, 0.001, 0.004])
def test_at_least_98_percent_of_the_quota_is_used(late_s: float) -> None:
    """Timers that fire late by milliseconds cost nothing: the next request follows sooner."""

    async def main(loop: SimulatedLoop) -> None:
        gate, left = a_gate(loop, 100), []

        async def worker() -> None:
            while loop.time() < end:
                departure = await gate.admit()
                loop.spend(late_s if random.random() < 0.5 else 0)  # the loop is busy for a while
                left.append(loop.time())
                await asyncio.sleep(0.05)
                gate.answered(departure, "guest")

        end = loop.time() + 20
        await asyncio.gather(*(worker() for _ in range(16)))
        assert len(left) / (left[-1] - left[0]) >= 98
        assert most_in_a_second(left) <= 100

    simulated(main)


def test_a_long_pause_saves_up_no_burst() -> None:
    """After an idle hour the calls of one file may leave at once, and no more."""
    spacing = Spacing(100)
    spacing.take(0.0)
    at_once = 0
    while spacing.wait_s(3600.0) == 0:
        spacing.take(3600.0)
        at_once += 1
    assert EARLY <= at_once <= EARLY + 2


@pytest.mark.parametrize("per_second", [0.2, 0.5, 1.0, 2.5, 7.3])
def test_a_small_quota_is_kept_and_used(per_second: float) -> None:
    """Less than one request a second, or no whole number of them: over the minutes as many as are allowed."""
    spacing, now, left = Spacing(per_second), 0.0, []
    while now < 600:
        spacing.answered(spacing.take(now), "guest", now)
        left.append(now)
        now += spacing.wait_s(now) or 1e-4
    assert len(left) <= per_second * 600 + EARLY + 1
    assert len(left) >= per_second * 600 * 0.97
    assert most_in_a_second(left) <= math.ceil(per_second)


def test_the_first_come_is_the_first_to_go() -> None:
    """Waiting is in the order of coming."""

    async def main(loop: SimulatedLoop) -> None:
        gate, order = a_gate(loop, 10), []

        async def one(number: int) -> None:
            await gate.admit()
            order.append(number)

        await asyncio.gather(*(one(number) for number in range(30)))
        assert order == list(range(30))

    simulated(main)


def test_who_gives_up_uses_no_quota() -> None:
    """Cancelled callers leave the queue: those behind them move up."""

    async def main(loop: SimulatedLoop) -> None:
        gate, began = a_gate(loop, 10), loop.time()
        await early(gate)
        waiting = [asyncio.ensure_future(gate.admit()) for _ in range(50)]
        await asyncio.sleep(0.01)
        for task in waiting[:-1]:
            task.cancel()
        await waiting[-1]
        assert loop.time() - began < 0.3
        assert all(task.cancelled() for task in waiting[:-1])

    simulated(main)


def test_a_silence_stops_those_who_wait_and_those_who_come() -> None:
    """Nothing leaves between the platform's word and the release, counted or not; then all go, still spaced."""

    async def main(loop: SimulatedLoop) -> None:
        gate, left = a_gate(loop, 100), []

        async def one(counted: bool) -> None:
            await (gate.admit() if counted else gate.admit_uncounted())
            left.append(loop.time())

        async with asyncio.TaskGroup() as tasks:
            for i in range(50):
                tasks.create_task(one(i % 5 != 0))
            await asyncio.sleep(0.1)
            before, held_at = len(left), loop.time()
            gate.hold(7, "429")
            assert gate.held_for_s() == pytest.approx(7)
            for i in range(50):
                tasks.create_task(one(i % 5 != 0))
            await asyncio.sleep(6.9)
            assert len(left) == before
        assert len(left) == 100
        assert min(left[before:]) >= held_at + 7
        assert gate.held_for_s() == 0

    simulated(main)


@given(
    steps=st.lists(
        st.tuples(
            st.floats(0, 2), st.sampled_from(["ask", "ask", "ask", "plain", "hold", "cancel"]), st.floats(0.1, 5)
        ),
        max_size=60,
    )
)
@settings(max_examples=60, deadline=None)
def test_nothing_ever_leaves_during_a_silence(steps: list[tuple[float, str, float]]) -> None:
    """Whatever the order of asking, holding and giving up: none leaves in a silence, and all do at last."""

    async def main(loop: SimulatedLoop) -> None:
        gate, silences, left, tasks = a_gate(loop, 5), [], [], []

        async def one(counted: bool) -> None:
            await (gate.admit() if counted else gate.admit_uncounted())
            left.append((loop.time(), counted))

        for pause, what, seconds in steps:
            await asyncio.sleep(pause)
            if what == "hold":
                gate.hold(seconds, "because")
                silences.append((loop.time(), loop.time() + seconds))
            elif what == "cancel" and tasks:
                tasks[len(tasks) // 2].cancel()
            elif what != "cancel":
                tasks.append(asyncio.ensure_future(one(what == "ask")))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not [at for at, _ in left for begin, end in silences if begin < at < end - 1e-9]
        assert most_in_a_second([at for at, counted in left if counted]) <= 5
        assert len(left) >= len(tasks) - sum(1 for _, what, _ in steps if what == "cancel")

    simulated(main)


def test_a_silence_that_begins_in_the_very_moment_of_a_turn_is_kept() -> None:
    """A turn that was given but not yet taken is given back when the platform asks for silence."""

    async def main(loop: SimulatedLoop) -> None:
        gate = a_gate(loop, 10)
        await early(gate)
        waiting = asyncio.ensure_future(gate.admit())
        await asyncio.sleep(0)
        assert gate._timer is not None
        loop.call_at(gate._timer.when() + 1e-10, gate.hold, 5, "just now")  # after the turn, before its taker wakes
        began = loop.time()
        await waiting
        assert loop.time() - began >= 5

    simulated(main)


def test_the_longest_silence_counts_and_randomness_only_adds() -> None:
    """A shorter word never shortens a silence; up to a tenth, at least up to a second, is added."""

    async def main(loop: SimulatedLoop) -> None:
        heard: list[tuple[float, str]] = []
        gate = a_gate(loop, 10, jitter=lambda low, high: high, on_hold=lambda s, why: heard.append((s, why)))
        gate.hold(100, "long")
        assert gate.held_for_s() == pytest.approx(110)
        gate.hold(5, "short")
        assert gate.held_for_s() == pytest.approx(110)
        gate.hold(200, "longer")
        assert heard == [(110, "long"), (220, "longer")]
        other = a_gate(loop, 10, jitter=lambda low, high: high)
        other.hold(2, "a moment")
        assert other.held_for_s() == pytest.approx(3)

    simulated(main)


async def test_waiting_in_real_time_takes_real_time() -> None:
    """With the real clock and loop, 40 requests at 200 a second take about a fifth of a second."""
    gate, began = Gate(200, clock=time.monotonic, jitter=lambda low, high: low), time.monotonic()
    await asyncio.gather(*(gate.admit() for _ in range(40)))
    assert 0.17 <= time.monotonic() - began < 1.0


def test_a_quota_of_nothing_is_a_mistake() -> None:
    """Zero requests a second would wait for ever."""
    with pytest.raises(ValueError):
        Spacing(0)
