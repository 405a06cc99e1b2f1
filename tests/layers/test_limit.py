from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from cord_trio.call import Call, Complete, Handler, Outcome
from cord_trio.cell import Timer
from cord_trio.counters import Counters
from cord_trio.errors import DeadlineExceeded, Overloaded
from cord_trio.layers import Slots, limit

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock


class Source:
    """Answers once `open` is set, and notes who is inside."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.started: list[str | None] = []

    async def __call__(self, call: Call) -> Outcome:
        self.started.append(call.name)
        await self.open.wait()
        return Complete(Raw(b"{}"))


async def answer(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
    return Complete(Raw(b"{}"))


@asynccontextmanager
async def slots(size: int, *, waiting: int = 8) -> AsyncGenerator[tuple[Slots, Counters, trio.Nursery], None]:
    timer, counters = Timer(), Counters()
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        yield Slots(size, waiting=waiting, timer=timer, counters=counters, name="web"), counters, nursery
        nursery.cancel_scope.cancel("test over")


def limited(gate: Slots, handler: Handler) -> Handler:
    return limit(gate, timer=Timer(), counters=Counters(), name="web")(handler)


async def test_a_free_slot_costs_no_checkpoint() -> None:
    handler = limit(1, timer=Timer(), counters=Counters(), name="web")(answer)
    with assert_no_checkpoints():
        await handler(Call("ping"))
        await handler(Call("ping"))


async def test_slots_go_to_whoever_waits_longest() -> None:
    async with slots(1) as (gate, _, nursery):
        source = Source()
        handler = limited(gate, source)
        for name in "abcd":
            nursery.start_soon(handler, Call("tools/call", name))
            await wait_all_tasks_blocked()
        assert source.started == ["a"]
        assert (gate.taken, gate.waiting) == (1, 3)
        source.open.set()
        await wait_all_tasks_blocked()
        assert source.started == ["a", "b", "c", "d"]
        assert (gate.taken, gate.waiting) == (0, 0)


async def test_a_slot_that_is_given_back_goes_to_the_waiter_and_to_no_newcomer() -> None:
    async with slots(1) as (gate, _, nursery):
        gate.taken = 1
        source = Source()
        nursery.start_soon(limited(gate, source), Call("tools/call", "waiter"))
        await wait_all_tasks_blocked()
        gate.release()
        nursery.start_soon(limited(gate, source), Call("tools/call", "newcomer"))
        await wait_all_tasks_blocked()
        assert source.started == ["waiter"]


async def test_one_more_than_may_wait_is_refused_by_the_name_of_the_bound() -> None:
    async with slots(1, waiting=1) as (gate, counters, nursery):
        gate.taken = 1
        nursery.start_soon(limited(gate, answer), Call("ping"))
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as caught:
            await limited(gate, answer)(Call("ping"))
        assert (caught.value.bound, caught.value.limit, caught.value.executed) == ("web.waiting", 1, "no")
        assert counters["limit.overloaded"] == 1


async def test_a_wait_ends_at_the_deadline_of_its_call(autojump_clock: MockClock) -> None:
    async with slots(1) as (gate, counters, _):
        gate.taken = 1
        before = trio.current_time()
        with pytest.raises(DeadlineExceeded) as caught:
            await limited(gate, answer)(Call("ping", deadline=before + 3))
        assert trio.current_time() - before == pytest.approx(3, abs=0.01)
        assert caught.value.executed == "no"
        assert (gate.taken, gate.waiting, counters["limit.deadline"]) == (1, 0, 1)


async def test_a_wait_that_is_cancelled_leaves_no_trace() -> None:
    async with slots(1) as (gate, _, nursery):
        gate.taken = 1
        scope = trio.CancelScope()
        nursery.start_soon(_cancel_when_blocked, scope)
        with scope:
            await limited(gate, answer)(Call("ping", deadline=trio.current_time() + 60))
        assert scope.cancelled_caught
        assert gate.waiting == 0
        gate.release()
        assert gate.taken == 0


async def test_a_failing_call_gives_its_slot_back() -> None:
    async def fails(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
        raise ValueError("mine")

    async with slots(1) as (gate, _, _):
        with pytest.raises(ValueError, match="mine"):
            await limited(gate, fails)(Call("ping", deadline=math.inf))
        assert gate.taken == 0


def test_there_must_be_a_slot() -> None:
    with pytest.raises(ValueError, match="slot"):
        Slots(0, timer=Timer(), counters=Counters(), name="web")


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel("enough")
