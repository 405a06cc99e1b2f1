"""Does `scheduled` reach orders that plain runs miss, and does Hypothesis shrink them?"""

from __future__ import annotations

import random

import trio
import trio.testing
from hypothesis import find, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.testing.schedule import scheduled

SCHEDULES = st.randoms(use_true_random=False)
SEEN: set[tuple[int, ...]] = set()


class Racy:
    """Checks, waits, then acts: fine unless `slow` gets four steps while `quick` gets one."""

    def __init__(self) -> None:
        self.ready = False
        self.seen: bool | None = None

    async def slow(self) -> None:
        for _ in range(4):
            await trio.lowlevel.checkpoint()
        self.ready = True

    async def quick(self) -> None:
        await trio.lowlevel.checkpoint()
        self.seen = self.ready

    async def run(self) -> bool | None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.slow)
            nursery.start_soon(self.quick)
        return self.seen


def test_plain_runs_never_meet_the_race() -> None:
    assert not any(trio.run(Racy().run) for _ in range(2000))


def test_a_searched_schedule_meets_the_race_and_shrinks() -> None:
    traces: list[list[str]] = []

    def meets_race(rng: random.Random) -> bool:
        with scheduled(rng) as schedule:
            met = trio.run(Racy().run)
        if met:
            traces.append(schedule.trace)
        return bool(met)

    find(SCHEDULES, meets_race, settings=settings(max_examples=500, database=None, deadline=None))
    assert len(traces[-1]) <= len(traces[0])


def test_a_seeded_schedule_repeats() -> None:
    def trace(seed: int) -> list[str]:
        with scheduled(random.Random(seed)) as schedule:
            trio.run(Racy().run)
        return schedule.trace

    assert trace(1) == trace(1)
    assert len({tuple(trace(seed)) for seed in range(50)}) > 10


@given(st.integers())
@settings(max_examples=50, database=None, deadline=None)
def test_given_alone_tries_a_single_schedule(example: int) -> None:
    """Hypothesis seeds Trio's scheduler the same way for every example."""
    trace: list[int] = []

    async def note(name: int) -> None:
        for _ in range(10):
            trace.append(name)
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for name in range(4):
                nursery.start_soon(note, name)

    trio.run(main)
    SEEN.add(tuple(trace))
    assert len(SEEN) == 1


@given(rng=SCHEDULES)
@settings(max_examples=200, database=None, deadline=None)
def test_time_jumps_under_a_chosen_schedule(rng: random.Random) -> None:
    async def main() -> float:
        start = trio.current_time()
        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 3)
                nursery.start_soon(trio.sleep_forever)
        return trio.current_time() - start

    with scheduled(rng):
        assert trio.run(main, clock=MockClock(autojump_threshold=0)) == 5


def test_the_eldest_task_is_cancelled_first() -> None:
    cancelled: list[int] = []

    async def child(number: int) -> None:
        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            cancelled.append(number)
            return trio.lowlevel.Abort.SUCCEEDED

        with trio.CancelScope():
            await trio.lowlevel.wait_task_rescheduled(abort)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(child, number)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel("the end")

    with scheduled(random.Random(3)):
        trio.run(main)
    assert cancelled == list(range(20))


def test_of_scopes_with_one_deadline_the_first_to_be_entered_ends_first() -> None:
    entered = 0.0
    order: list[int] = []
    ended: list[int] = []

    async def child(number: int) -> None:
        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            ended.append(number)
            return trio.lowlevel.Abort.SUCCEEDED

        with trio.move_on_at(entered + 1):
            order.append(number)
            await trio.lowlevel.wait_task_rescheduled(abort)

    async def main() -> None:
        nonlocal entered
        entered = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(child, number)

    with scheduled(random.Random(3)):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert order != sorted(order)
    assert ended == order


def test_a_schedule_tells_whom_it_chose_and_draws_no_more_than_its_choices() -> None:
    told: list[str] = []
    draws = 0

    class Counted(random.Random):
        def randrange(self, *args: int) -> int:  # type: ignore[override]
            nonlocal draws
            draws += 1
            return super().randrange(*args)

    with scheduled(Counted(1), choices=3, chosen=told.append) as schedule:
        trio.run(Racy().run)
    assert draws == 3
    assert told == schedule.trace
    assert {"slow", "quick"} <= set(told)
