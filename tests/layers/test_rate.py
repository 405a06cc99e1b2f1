from __future__ import annotations

import math
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from cord_trio.call import Call, Complete, Handler, Layer, Outcome, stack
from cord_trio.cell import Timer
from cord_trio.counters import Counters
from cord_trio.errors import Overloaded, Refused, TooLate
from cord_trio.layers import RetryBudget, rate, retry

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock


class Source:
    """Notes when it is asked; refuses with the pauses in `refusals` first."""

    def __init__(self, *refusals: float | None) -> None:
        self.refusals = list(refusals)
        self.begun = trio.current_time()
        self.times: list[float] = []

    async def __call__(self, call: Call) -> Outcome:
        self.times.append(round(trio.current_time() - self.begun, 2))
        if self.refusals:
            raise Refused("busy", status=429, retry_after=self.refusals.pop(0))
        return Complete(Raw(b"{}"))


@asynccontextmanager
async def metered(
    per_second: float, burst: int | None = None, *, waiting: int = 8
) -> AsyncGenerator[tuple[Layer, Counters, trio.Nursery], None]:
    timer, counters = Timer(), Counters()
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        yield (
            rate(per_second, burst, waiting=waiting, timer=timer, counters=counters, name="web"),
            counters,
            nursery,
        )
        nursery.cancel_scope.cancel("test over")


async def test_a_burst_goes_at_once_and_the_rest_at_the_rate(autojump_clock: MockClock) -> None:
    async with metered(2, 3) as (layer, _, _):
        source = Source()
        async with trio.open_nursery() as calls:
            for _ in range(6):
                calls.start_soon(layer(source), Call("ping"))
        assert source.times == [0, 0, 0, 0.5, 1, 1.5]


async def test_an_unused_rate_is_saved_up_to_one_burst(autojump_clock: MockClock) -> None:
    async with metered(2, 2) as (layer, _, _):
        source = Source()
        await trio.sleep(60)
        async with trio.open_nursery() as calls:
            for _ in range(4):
                calls.start_soon(layer(source), Call("ping"))
        assert source.times == [60, 60, 60.5, 61]


async def test_a_call_within_the_rate_costs_no_checkpoint() -> None:
    async with metered(10) as (layer, _, _):
        source = Source()
        with assert_no_checkpoints():
            await layer(source)(Call("ping"))


async def test_a_call_that_cannot_go_in_time_is_refused_at_once(autojump_clock: MockClock) -> None:
    async with metered(1) as (layer, counters, _):
        source = Source()
        await layer(source)(Call("ping"))
        with pytest.raises(Overloaded) as caught:
            await layer(source)(Call("ping", deadline=trio.current_time() + 0.9))
        assert (caught.value.bound, caught.value.limit, caught.value.executed) == ("web.rate", 1, "no")
        assert source.times == [0]
        assert counters["rate.too_late"] == 1


async def test_one_more_than_may_wait_is_refused_by_the_name_of_the_bound(autojump_clock: MockClock) -> None:
    async with metered(0.01, 1, waiting=1) as (layer, counters, nursery):
        source = Source()
        await layer(source)(Call("ping"))
        nursery.start_soon(layer(source), Call("ping"))
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as caught:
            await layer(source)(Call("ping"))
        assert (caught.value.bound, caught.value.limit) == ("web.waiting", 1)
        assert counters["rate.overloaded"] == 1


async def test_a_wait_that_is_cancelled_lets_the_next_one_go_in_its_place(autojump_clock: MockClock) -> None:
    async with metered(1) as (layer, _, _):
        source = Source()
        await layer(source)(Call("ping"))
        async with trio.open_nursery() as calls:
            scope = trio.CancelScope()
            calls.start_soon(_cancel_when_blocked, scope)
            with scope:
                await layer(source)(Call("ping"))
            assert scope.cancelled_caught
            await layer(source)(Call("ping"))
        assert source.times == [0, 1]


async def test_a_place_in_the_queue_that_is_given_up_goes_to_the_next(autojump_clock: MockClock) -> None:
    async with metered(1) as (layer, _, _):
        source = Source()
        await layer(source)(Call("ping"))
        async with trio.open_nursery() as calls:
            with trio.move_on_after(0.5):
                calls.start_soon(_later, layer(source), 0.2)
                await layer(source)(Call("ping"))
        assert source.times == [0, 1]


async def test_a_newcomer_does_not_overtake_at_the_moment_of_the_next_turn(autojump_clock: MockClock) -> None:
    async with metered(1) as (layer, _, nursery):
        order: list[str | None] = []

        async def answer(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
            order.append(call.name)
            return Complete(Raw(b"{}"))

        handler = layer(answer)
        await handler(Call("tools/call", "first"))
        begun = trio.current_time()
        nursery.start_soon(handler, Call("tools/call", "waiter"))
        await wait_all_tasks_blocked()
        autojump_clock.jump(begun + 5 - trio.current_time())  # the timer has had no time to run
        nursery.start_soon(handler, Call("tools/call", "third"))
        await handler(Call("tools/call", "newcomer"))
        assert order[:2] == ["first", "waiter"]


async def test_whoever_waits_counts_for_when_the_next_can_go(autojump_clock: MockClock) -> None:
    async with metered(1) as (layer, _, nursery):
        source = Source()
        await layer(source)(Call("ping"))
        nursery.start_soon(layer(source), Call("ping"))
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded):
            await layer(source)(Call("ping", deadline=trio.current_time() + 1.5))


async def test_a_short_pause_does_not_end_a_long_one(autojump_clock: MockClock) -> None:
    async with metered(10, 2) as (layer, _, _):
        begun = trio.current_time()

        async def answer(call: Call) -> Outcome:
            if call.name == "long":
                raise Refused("busy", retry_after=10)
            if call.name == "short":
                await trio.sleep(1)
                raise Refused("busy", retry_after=1)
            return Complete(Raw(b"{}"))

        async with trio.open_nursery() as calls:
            calls.start_soon(_refused, layer(answer), "short")
            await wait_all_tasks_blocked()
            calls.start_soon(_refused, layer(answer), "long")
        await layer(answer)(Call("ping"))
        assert trio.current_time() - begun == pytest.approx(10, abs=0.01)


async def test_a_source_that_asks_for_a_pause_gets_it_and_then_one_call_after_the_other(
    autojump_clock: MockClock,
) -> None:
    async with metered(2, 4) as (layer, counters, _):
        source = Source(10)
        with pytest.raises(Refused):
            await layer(source)(Call("ping"))
        async with trio.open_nursery() as calls:
            for _ in range(3):
                calls.start_soon(layer(source), Call("ping"))
        assert source.times == [0, 10, 10.5, 11]
        assert counters["rate.paused"] == 1


async def test_a_pause_refuses_who_waits_beyond_its_deadline(autojump_clock: MockClock) -> None:
    async with metered(1, 1) as (layer, _, _):
        begun = trio.current_time()
        ended: dict[str, tuple[str, float]] = {}

        async def answer(call: Call) -> Outcome:
            if call.name == "first":
                await trio.sleep(0.5)
                raise Refused("busy", retry_after=30)
            return Complete(Raw(b"{}"))

        async def ask(name: str, deadline: float) -> None:
            try:
                await layer(answer)(Call("tools/call", name, deadline=deadline))
                how = "answered"
            except (Overloaded, Refused) as exc:
                how = type(exc).__name__
            ended[name] = (how, round(trio.current_time() - begun, 2))

        async with trio.open_nursery() as calls:
            deadlines = {
                "first": math.inf,
                "hurried": begun + 20,
                "patient": math.inf,
                "second in the queue": begun + 31,
            }
            for name, deadline in deadlines.items():
                calls.start_soon(ask, name, deadline)
                await wait_all_tasks_blocked()
        assert ended == {
            "first": ("Refused", 0.5),
            "hurried": ("TooLate", 0.5),
            "patient": ("answered", 30.5),
            "second in the queue": ("TooLate", 0.5),
        }


async def test_without_a_rate_only_pauses_count(autojump_clock: MockClock) -> None:
    async with metered(math.inf) as (layer, _, _):
        source = Source()
        for _ in range(100):
            await layer(source)(Call("ping"))
        source.refusals = [5]
        with pytest.raises(Refused):
            await layer(source)(Call("ping"))
        await layer(source)(Call("ping"))
        assert source.times == [0] * 101 + [5]


@pytest.mark.parametrize("asked", [None, 0, -3, math.nan])
async def test_a_refusal_without_a_time_pauses_nothing(asked: float | None, autojump_clock: MockClock) -> None:
    async with metered(10) as (layer, _, _):
        source = Source(asked)
        with pytest.raises(Refused):
            await layer(source)(Call("ping"))
        await layer(source)(Call("ping"))
        assert source.times == [0, 0]


async def test_a_pause_without_end_ends(autojump_clock: MockClock) -> None:
    async with metered(10) as (layer, _, _):
        source = Source(math.inf)
        with pytest.raises(Refused):
            await layer(source)(Call("ping"))
        await layer(source)(Call("ping"))
        assert source.times == [0, 300]


@pytest.mark.parametrize(("per_second", "burst"), [(0, 1), (-1, 1), (math.nan, 1), (1, 0)])
def test_a_rate_that_lets_nothing_go_is_refused(per_second: float, burst: int) -> None:
    with pytest.raises(ValueError, match="rate"):
        rate(per_second, burst, timer=Timer(), counters=Counters(), name="web")


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel("enough")


async def _later(handler: Handler, seconds: float) -> None:
    await trio.sleep(seconds)
    await handler(Call("ping"))


async def _refused(handler: Handler, name: str) -> None:
    with pytest.raises(Refused):
        await handler(Call("tools/call", name))


async def test_one_that_cannot_go_in_time_is_not_tried_again_and_costs_no_retry(autojump_clock: MockClock) -> None:
    async with metered(1, 1) as (layer, counters, _):
        source, budget = Source(), RetryBudget()
        retries = retry(budget=budget, rng=Random(0), timer=Timer(), counters=counters)
        handler = stack(source, retries, layer)
        await handler(Call("ping"))
        began = trio.current_time()
        with pytest.raises(TooLate):
            await handler(Call("ping", deadline=began + 0.5))
        assert trio.current_time() == began
        assert (counters["rate.too_late"], counters["retry.retry"]) == (1, 0)
