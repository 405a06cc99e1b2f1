from __future__ import annotations

import math
from contextvars import ContextVar

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.mesh import workers as module
from cord_trio.mesh.workers import Workers

WHO: ContextVar[str] = ContextVar("who", default="nobody")


@attrs.define(eq=False)
class Piece:
    seconds: float = 0.0
    deadline: float = math.inf
    scope: trio.CancelScope | None = None
    context: str = ""
    task: object = None
    done: str = ""


async def do(piece: Piece) -> None:
    piece.task, piece.context = trio.lowlevel.current_task(), WHO.get()
    WHO.set("whoever worked here before")
    try:
        await trio.sleep(piece.seconds)
        piece.done = "done"
    finally:
        piece.done = piece.done or "cancelled"


async def test_one_task_does_one_piece_after_another_each_in_a_context_of_its_own(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        workers = Workers(nursery, do)
        one, two = Piece(), Piece()
        for piece, who in ((one, "ann"), (two, "ben")):
            WHO.set(who)
            workers.begin(piece)
            await wait_all_tasks_blocked()
            await trio.sleep(1)
        assert [one.context, two.context] == ["ann", "ben"]
        assert WHO.get() == "ben"
        assert one.task is two.task
        nursery.cancel_scope.cancel("the test is over")
    assert [one.done, two.done] == ["done", "done"]


async def test_what_is_begun_at_once_is_done_at_once(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        workers = Workers(nursery, do)
        pieces = [Piece(1.0) for _ in range(3)]
        for piece in pieces:
            workers.begin(piece)
        await trio.sleep(1.5)
        assert [piece.done for piece in pieces] == ["done"] * 3
        assert len({piece.task for piece in pieces}) == 3
        nursery.cancel_scope.cancel("the test is over")


async def test_what_is_cancelled_or_late_ends_alone(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        workers = Workers(nursery, do)
        before = Piece(deadline=trio.current_time() + 2)  # its deadline comes while its task does other things
        workers.begin(before)
        await trio.sleep(1)
        late, cancelled, well = (
            Piece(9.0, trio.current_time() + 3), Piece(9.0), Piece(9.0, trio.current_time() + 10)
        )  # fmt: skip
        for piece in (well, late, cancelled):
            workers.begin(piece)
        assert cancelled.scope is not None
        cancelled.scope.cancel("before it began")
        await trio.sleep(9.5)
        assert [late.done, cancelled.done, well.done] == ["cancelled", "cancelled", "done"]
        assert before.task is well.task
        after = Piece()
        workers.begin(after)
        await trio.sleep(1)
        assert after.done == "done"
        nursery.cancel_scope.cancel("the test is over")


async def test_a_task_whose_last_deadline_passes_while_it_waits_takes_no_more(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        workers = Workers(nursery, do)
        first, second = Piece(deadline=trio.current_time() + 1), Piece(2.0)
        workers.begin(first)
        await trio.sleep(2)
        assert len(nursery.child_tasks) == 0
        workers.begin(second)
        await trio.sleep(3)
        assert second.done == "done"
        nursery.cancel_scope.cancel("the test is over")


async def test_of_many_tasks_few_stay(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        workers = Workers(nursery, do)
        for _ in range(module.IDLE + 5):
            workers.begin(Piece(1.0))
        await trio.sleep(2)
        assert len(nursery.child_tasks) == module.IDLE
        nursery.cancel_scope.cancel("the test is over")
    assert not nursery.child_tasks
