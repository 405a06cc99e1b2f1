"""A cell is settled exactly once, whatever the order of reply, loss, timer and cancellation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.cell import Cell, Timer
from cord_trio.pending import Pending
from cord_trio.testing.schedule import scheduled

if TYPE_CHECKING:
    from random import Random

    from cord_trio.errors import Executed

ENDINGS = st.lists(st.sampled_from(["settle", "fail", "cancel", "expire", "yield"]), max_size=6)


class Lost(Exception):
    """What a cell is failed with."""


class Alone:
    """A conversation of one request, which notes that its caller was cancelled."""

    name = "alone"

    def __init__(self, wins: list[str]) -> None:
        self.wins = wins

    def executed(self, id: int | str) -> Executed:
        return "no"

    def withdraw(self, pending: Pending, reason: str) -> None:
        assert pending.settled
        self.wins.append("cancel")

    def answered(self, pending: Pending, message: bytes, alone: bool, /) -> None:
        raise AssertionError("nobody reads here")


@given(
    st.lists(ENDINGS, min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([None, math.inf, 1000.0]),
    st.randoms(use_true_random=False),
)
def test_every_wait_ends_once_and_every_ending_knows_whether_it_won(
    plans: list[list[str]], late_wait: bool, deadline: float | None, rng: Random
) -> None:
    """Of plain cells, and where there is a `deadline` of those that are requests, which do the same in fewer calls."""
    outcomes: list[list[str]] = [[] for _ in plans]
    wins: list[list[str]] = [[] for _ in plans]

    def make(number: int) -> Cell[Any]:
        if deadline is None:
            return Cell()
        return Pending(Alone(wins[number]), number, "tools/call", deadline, None, True, 0.0, math.inf)

    async def waiter(cell: Cell[Any], scope: trio.CancelScope, timer: Timer, number: int) -> None:
        if late_wait:
            await trio.lowlevel.checkpoint()
        with scope:
            try:
                if isinstance(cell, Pending):
                    outcomes[number].append(str(await cell.reply(timer)))
                else:
                    outcomes[number].append(await cell.wait(lambda: wins[number].append("cancel")))
            except Lost as exc:
                outcomes[number].append(str(exc))
        if scope.cancelled_caught:
            outcomes[number].append("cancel")

    async def end(cell: Cell[Any], scope: trio.CancelScope, timer: Timer, plan: list[str], number: int) -> None:
        def expired() -> None:
            if cell.fail(Lost("expire")):
                wins[number].append("expire")

        for step in [*plan, "settle"]:
            if step == "cancel":
                scope.cancel("the plan says so")
            elif step == "expire":
                timer.add(cell, trio.current_time(), expired)
            elif step == "fail" and cell.fail(Lost("fail")):
                wins[number].append("fail")
            elif step == "settle" and cell.settle("settle"):
                wins[number].append("settle")
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        timer = Timer()
        async with trio.open_nursery() as outer:
            outer.start_soon(timer.run)
            async with trio.open_nursery() as nursery:
                for number, plan in enumerate(plans):
                    cell = make(number)
                    scope = trio.CancelScope()
                    nursery.start_soon(waiter, cell, scope, timer, number)
                    nursery.start_soon(end, cell, scope, timer, plan, number)
            outer.cancel_scope.cancel("every wait has ended")

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert outcomes == wins
    assert all(len(won) == 1 for won in wins)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12), st.randoms(use_true_random=False))
def test_a_timer_expires_each_cell_once_at_its_deadline_unless_discarded(
    plans: list[tuple[int, bool]], rng: Random
) -> None:
    seen: list[tuple[int, float]] = []

    async def main() -> None:
        timer = Timer()
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timer.run)
            for number, (after, discard) in enumerate(plans):
                cell: Cell[None] = Cell()

                def expired(number: int = number) -> None:
                    seen.append((number, trio.current_time() - start))

                timer.add(cell, start + 1 + after, expired)
                if discard:
                    timer.discard(cell)
                await trio.lowlevel.checkpoint()
            await trio.sleep(10)
            assert len(timer) == 0
            nursery.cancel_scope.cancel("every deadline has passed")

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert sorted(seen) == [(number, 1 + after) for number, (after, discard) in enumerate(plans) if not discard]
