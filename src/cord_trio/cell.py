"""The one way to wait: a cell that is settled exactly once, and one timer for all configured deadlines.

A reply, a slot, a pause or a loss all settle a cell. It holds the waiting task itself and reschedules
it, since a channel, an event or a cancel scope for each wait would cost more than the whole call.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Cell(Generic[T]):
    """One wait of one task.

    Invariants: it is settled at most once; a settled cell never becomes open again; after the waiting
    task was cancelled nothing is delivered to it. Subclasses add what the wait is about.

    Attributes:
        settled: whether the wait has ended.
        task: that waits; None if none does, or it has ended.
        value: what it was settled with, if it was.

    It is itself what its task is rescheduled with: all that Trio asks of an outcome is to `unwrap` it, and to make
    one for each reply cost a fifteenth of a call (0.8 of 12.5 µs).
    """

    __slots__ = ("_error", "settled", "task", "value")

    value: T

    def __init__(self) -> None:
        self.settled = False
        self.task: trio.lowlevel.Task | None = None
        self._error: Exception | None = None

    @trio.lowlevel.enable_ki_protection  # Ctrl-C between these lines would strand the waiter
    def settle(self, value: T) -> bool:
        """End the wait with `value`. Returns False, and does nothing, if it has ended already."""
        if self.settled:
            return False
        self.value = value
        self._end()
        return True

    @trio.lowlevel.enable_ki_protection
    def fail(self, error: Exception) -> bool:
        """End the wait by raising `error`, which no other cell may share. Returns as `settle` does."""
        if self.settled:
            return False
        self._error = error
        self._end()
        return True

    def _end(self) -> None:
        self.settled = True
        task = self.task
        if task is not None:
            self.task = None
            trio.lowlevel.reschedule(task, self)  # type: ignore[arg-type]  # see the class

    def unwrap(self) -> T:
        """What it was settled with; raises what it failed with."""
        error = self._error
        if error is None:
            return self.value
        self._error = None
        try:
            raise error
        finally:
            del error, self  # else the error's traceback would hold the error

    @trio.lowlevel.enable_ki_protection
    async def wait(self, abandoned: Callable[[], None]) -> T:
        """What the cell is settled with. Always lets others run; cancelled only if it is not settled yet.

        Args:
            abandoned: called, synchronously, if the waiting task is cancelled first; the cell is
                settled by then.

        """
        if self.settled:
            # Settled before anyone waited: the value must not be lost to a cancellation here.
            await trio.lowlevel.cancel_shielded_checkpoint()
            return self.unwrap()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self.settled = True
            self.task = None
            abandoned()
            return trio.lowlevel.Abort.SUCCEEDED

        self.task = trio.lowlevel.current_task()
        return await trio.lowlevel.wait_task_rescheduled(abort)  # type: ignore[no-any-return]  # Trio says Any


class Flag:
    """What `trio.Event` is, without the set of tasks that one holds (300 bytes) until somebody waits.

    A source has a dozen, most of which nobody ever waits for.
    """

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._set = False
        self._event: trio.Event | None = None

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._set

    @trio.lowlevel.enable_ki_protection
    def set(self) -> None:
        """End all waits, from here on also at once. Again does nothing."""
        self._set = True
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Return once it is set. Always lets others run."""
        if self._set:
            await trio.lowlevel.checkpoint()
            return
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()


def resume(task: trio.lowlevel.Task, value: object) -> None:
    """End the wait of a task that waits again and again, and sees to that itself: a cell would be made each time."""
    trio.lowlevel.reschedule(task, outcome.Value(value))


class Timer:
    """Expires cells at their deadlines, all of them with one task.

    A wake costs a look at every waiting cell, and happens at most once for each deadline that was the
    earliest when it was added; cells that are done in time are only added and discarded. Whoever keeps a table of
    his cells anyhow spares them even that: he only says `by` when it is to be looked through.

    Attributes:
        tables: by whose they are: each is told the time, expires what is due, and returns the earliest deadline left.
        next: Trio time of the next wake.

    """

    def __init__(self) -> None:
        self._waiting: dict[Cell[Any], tuple[float, Callable[[], None]]] = {}
        self.tables: dict[object, Callable[[float], float]] = {}
        self.next = math.inf
        self._scope = trio.CancelScope()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, cell: Cell[T], deadline: float, expired: Callable[[], None]) -> None:
        """Call `expired` once Trio's clock reaches `deadline`, unless `discard` comes first."""
        self._waiting[cell] = (deadline, expired)
        if deadline < self.next:
            self.by(deadline)

    def by(self, deadline: float) -> None:
        """Look through everything at `deadline`, which is before `next`."""
        self.next = deadline
        self._scope.deadline = deadline

    def discard(self, cell: Cell[T]) -> None:
        """Forget `cell`."""
        self._waiting.pop(cell, None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Expire cells until cancelled. A callback that raises ends it: callbacks settle cells, no more."""
        task_status.started()
        while True:
            self._scope = trio.CancelScope(deadline=self.next)
            with self._scope:
                await trio.sleep_forever()
            if not self._scope.cancelled_caught:
                return  # pragma: no cover  # sleep_forever only leaves by a cancellation
            now = trio.current_time()
            due = [(cell, expired) for cell, (deadline, expired) in self._waiting.items() if deadline <= now]
            for cell, expired in due:
                if self._waiting.pop(cell, None) is not None:
                    expired()
            left = [expire(now) for expire in tuple(self.tables.values())]
            self.next = min([*left, *(deadline for deadline, _ in self._waiting.values())], default=math.inf)
