from __future__ import annotations

import math
import signal
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cord_trio.cell import Cell, Flag, Timer

if TYPE_CHECKING:
    from trio.testing import MockClock


def never() -> None:
    raise AssertionError("the wait was not cancelled")


async def test_a_waiter_gets_what_the_cell_is_settled_with() -> None:
    cell: Cell[str] = Cell()
    got: list[str] = []

    async def wait() -> None:
        got.append(await cell.wait(never))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not cell.settled
        assert cell.settle("a")
        assert not cell.settle("b")
        assert not cell.fail(ValueError())
        assert cell.settled
    assert got == ["a"]


async def test_a_failed_cell_raises_in_its_waiter() -> None:
    cell: Cell[str] = Cell()
    error = ValueError("no")

    async def wait() -> None:
        with pytest.raises(ValueError, match="no") as caught:
            await cell.wait(never)
        assert caught.value is error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert cell.fail(error)


async def test_a_cell_settled_before_the_wait_is_delivered_in_spite_of_a_cancellation() -> None:
    cell: Cell[str] = Cell()
    assert cell.settle("a")
    with trio.CancelScope() as scope:
        scope.cancel("the value must not be lost")
        assert await cell.wait(never) == "a"
    failed: Cell[str] = Cell()
    failed.fail(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await failed.wait(never)


async def test_waiting_on_a_settled_cell_lets_others_run() -> None:
    ran = trio.Event()

    async def other() -> None:
        ran.set()
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(2):  # the first turn may be shared, in either order
            cell: Cell[None] = Cell()
            cell.settle(None)
            await cell.wait(never)
        assert ran.is_set()


async def test_a_cancelled_wait_is_told_once_and_leaves_a_settled_cell() -> None:
    cell: Cell[str] = Cell()
    told: list[bool] = []
    with trio.CancelScope() as scope:
        scope.cancel("before the wait")
        await cell.wait(lambda: told.append(cell.settled))
    assert scope.cancelled_caught
    assert told == [True]
    assert not cell.settle("late")


async def test_a_cell_settled_first_wins_over_a_cancellation() -> None:
    cell: Cell[str] = Cell()
    got: list[str] = []

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            got.append(await cell.wait(never))

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(wait, scope)
        await wait_all_tasks_blocked()
        cell.settle("a")
        scope.cancel("too late")
    assert got == ["a"]
    assert not scope.cancelled_caught


def test_ctrl_c_abandons_the_wait_of_the_main_task() -> None:
    told: list[str] = []

    async def main() -> None:
        cell: Cell[None] = Cell()
        trio.lowlevel.current_trio_token().run_sync_soon(signal.raise_signal, signal.SIGINT)
        await cell.wait(lambda: told.append("abandoned"))

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert told == ["abandoned"]


async def test_a_timer_expires_cells_at_their_deadlines_in_any_order(autojump_clock: MockClock) -> None:
    timer = Timer()
    seen: list[tuple[str, float]] = []
    start = trio.current_time()

    def expire(name: str, after: float) -> None:
        timer.add(cells[name], start + after, lambda: seen.append((name, trio.current_time() - start)))

    cells: dict[str, Cell[None]] = {name: Cell() for name in "abcd"}
    async with trio.open_nursery() as nursery:
        expire("a", 5)
        await nursery.start(timer.run)
        expire("b", 2)
        expire("c", 9)
        expire("d", math.inf)
        await trio.sleep(3)
        assert seen == [("b", 2)]
        await trio.sleep(7)
        assert seen == [("b", 2), ("a", 5), ("c", 9)]
        assert len(timer) == 1
        nursery.cancel_scope.cancel("the test has seen enough")


async def test_a_discarded_cell_does_not_expire(autojump_clock: MockClock) -> None:
    timer = Timer()
    first: Cell[None] = Cell()
    second: Cell[None] = Cell()
    start = trio.current_time()
    seen: list[float] = []

    def expired() -> None:
        seen.append(trio.current_time() - start)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timer.run)
        timer.add(first, start + 1, never)
        timer.add(second, start + 4, expired)
        timer.discard(first)
        timer.discard(first)
        await trio.sleep(5)
        nursery.cancel_scope.cancel("the test has seen enough")
    assert seen == [4]
    assert len(timer) == 0


async def test_an_expiry_may_discard_and_add_others(autojump_clock: MockClock) -> None:
    timer = Timer()
    cells: list[Cell[None]] = [Cell() for _ in range(3)]
    start = trio.current_time()
    seen: list[float] = []

    def expired() -> None:
        timer.discard(cells[1])
        timer.add(cells[2], start + 2, lambda: seen.append(trio.current_time() - start))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timer.run)
        timer.add(cells[0], start + 1, expired)
        timer.add(cells[1], start + 1, never)
        await trio.sleep(3)
        nursery.cancel_scope.cancel("the test has seen enough")
    assert seen == [2]


async def test_a_deadline_in_the_past_expires_at_once(autojump_clock: MockClock) -> None:
    timer = Timer()
    cell: Cell[None] = Cell()

    def expired() -> None:
        cell.fail(TimeoutError())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timer.run)
        timer.add(cell, trio.current_time() - 1, expired)
        with pytest.raises(TimeoutError):
            await cell.wait(never)
        nursery.cancel_scope.cancel("the test has seen enough")


async def test_a_table_is_looked_through_at_its_earliest_deadline_until_nothing_is_left(
    autojump_clock: MockClock,
) -> None:
    timer, began = Timer(), trio.current_time()
    left = [began + 1.0, began + 3.0]
    looks: list[float] = []

    def expire(now: float) -> float:
        looks.append(now - began)
        left[:] = [each for each in left if each > now]
        return min(left, default=math.inf)

    timer.tables["mine"] = expire
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        timer.by(left[0])
        await trio.sleep(10)
        nursery.cancel_scope.cancel("seen")
    assert looks == [1.0, 3.0]
    assert timer.next == math.inf


async def test_a_flag_ends_all_waits_and_those_that_begin_later() -> None:
    flag = Flag()
    seen: list[str] = []

    async def wait(name: str) -> None:
        await flag.wait()
        seen.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "first")
        nursery.start_soon(wait, "second")
        await wait_all_tasks_blocked()
        assert (flag.is_set(), seen) == (False, [])
        flag.set()
        flag.set()
    assert (flag.is_set(), sorted(seen)) == (True, ["first", "second"])
    with trio.testing.assert_checkpoints():
        await flag.wait()
