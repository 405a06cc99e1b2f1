"""How many calls may be under way at once; the others wait their turn, first come, first served."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cell import Cell
from cord_trio.errors import DeadlineExceeded, Overloaded

if TYPE_CHECKING:
    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.cell import Timer
    from cord_trio.counters import Counters

WAITING: Final = 1024
"""Calls that may wait for a slot of one source: as many as the whole fabric has in flight."""


class Slots:
    """`size` slots and the queue for them.

    Invariants: 0 ≤ taken ≤ size, but for slots that are in use while there are made fewer; nobody waits while a
    slot is free; a slot goes to whoever waits longest; a slot is given to a waiter at the moment that it is given
    back, so nobody can take it in between.

    Attributes:
        size: calls at once.
        taken: slots in use.
        queue: who waits for one, the longest first.

    """

    def __init__(self, size: int, *, waiting: int = WAITING, timer: Timer, counters: Counters, name: str) -> None:
        if size < 1:
            raise ValueError("there must be a slot")
        self.size = size
        self.taken = 0
        self._bound = waiting
        self.queue: OrderedDict[Cell[None], None] = OrderedDict()
        self._timer = timer
        self._counters = counters
        self._name = name

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self.queue)

    async def wait(self, deadline: float) -> None:
        """Return once a slot is ours. If cancelled, none is.

        Raises:
            Overloaded: too many wait already.
            DeadlineExceeded: none became free by `deadline`.

        """
        if len(self.queue) >= self._bound:
            self._counters.add("limit.overloaded")
            raise Overloaded(f"{self._name}.waiting", self._bound)
        cell = Cell[None]()
        self.queue[cell] = None
        if deadline != math.inf:
            self._timer.add(cell, deadline, partial(self._expire, cell))
        await cell.wait(partial(self._leave, cell))

    @trio.lowlevel.enable_ki_protection
    def release(self) -> None:
        """Give a slot back."""
        if self.queue and self.taken <= self.size:
            cell, _ = self.queue.popitem(last=False)
            self._timer.discard(cell)
            cell.settle(None)
        else:
            self.taken -= 1

    @trio.lowlevel.enable_ki_protection
    def resize(self, size: int) -> None:
        """Have `size` slots from now on. Those in use stay in use; who waits gets what became free."""
        if size < 1:
            raise ValueError("there must be a slot")
        self.size = size
        while self.queue and self.taken < size:
            self.taken += 1
            cell, _ = self.queue.popitem(last=False)
            self._timer.discard(cell)
            cell.settle(None)

    @trio.lowlevel.enable_ki_protection
    def _leave(self, cell: Cell[None]) -> None:
        self.queue.pop(cell, None)
        self._timer.discard(cell)

    @trio.lowlevel.enable_ki_protection
    def _expire(self, cell: Cell[None]) -> None:
        if self.queue.pop(cell, cell) is None:
            self._counters.add("limit.deadline")
            cell.fail(DeadlineExceeded(f"no slot of {self._name} became free", "no"))


def limit(slots: int | Slots, *, waiting: int = WAITING, timer: Timer, counters: Counters, name: str) -> Layer:
    """At most `slots` calls at once. One that finds a slot free is not delayed, not even by a checkpoint.

    Args:
        slots: how many; or the slots themselves, where someone wants to look at them.
        waiting: calls that may wait; one more gets `Overloaded`, which names `<name>.waiting`.
        timer: ends waits whose call's deadline passes.
        counters: counts what was refused.
        name: whose slots they are, for errors.

    """
    gate = Slots(slots, waiting=waiting, timer=timer, counters=counters, name=name) if isinstance(slots, int) else slots

    queue = gate.queue

    def layer(handler: Handler) -> Handler:
        async def limited(call: Call) -> Outcome:
            if gate.taken < gate.size:
                gate.taken += 1
            else:
                await gate.wait(call.deadline)
            try:
                return await handler(call)
            finally:
                if queue:
                    gate.release()
                else:
                    gate.taken -= 1  # what `release` does then, without its call

        return limited

    return layer
