"""Tasks that do one piece of work after another.

A task and a scope for each call of another node would cost as much as all else that is done for it here.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

import trio

from cord_trio.cell import resume

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

IDLE: Final = 32
"""Tasks that wait for more work at most; others end with theirs."""


class Work(Protocol):
    """What is done.

    Attributes:
        deadline: Trio time by which it has to end.
        scope: what ends it when it is cancelled; None before it has begun.

    """

    deadline: float
    scope: trio.CancelScope | None


T = TypeVar("T", bound=Work)


class Workers(Generic[T]):
    """Does pieces of work, each in a task that does nothing else meanwhile.

    Invariants: each runs in a copy of the context of who began it; it is cancelled by its own scope and deadline, or
    by those of the nursery, and a scope that was cancelled is not used again.

    Args:
        nursery: of the tasks.
        do: does one piece; must not raise.

    """

    def __init__(self, nursery: trio.Nursery, do: Callable[[T], Awaitable[None]]) -> None:
        self._nursery = nursery
        self._do = do
        self._idle: list[tuple[trio.lowlevel.Task, trio.CancelScope]] = []

    @trio.lowlevel.enable_ki_protection
    def begin(self, work: T) -> None:
        """Let `work` be done from the next turn on."""
        if self._idle:
            task, work.scope = self._idle.pop()
            work.scope.deadline = work.deadline
            task.context = copy_context()
            resume(task, work)
        else:
            work.scope = trio.CancelScope(deadline=work.deadline)
            self._nursery.start_soon(self._serve, work, work.scope)

    async def _serve(self, work: T, scope: trio.CancelScope) -> None:
        me = (trio.lowlevel.current_task(), scope)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._idle.remove(me)
            return trio.lowlevel.Abort.SUCCEEDED

        with scope:
            while True:
                await self._do(work)
                if len(self._idle) >= IDLE:
                    return
                self._idle.append(me)  # not for long if the scope was cancelled: then so is the wait, before any other
                work = await trio.lowlevel.wait_task_rescheduled(abort)
