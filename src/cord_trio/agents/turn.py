"""Turns: an agent's permissions to run, first come first served, and who waits for whom.

A handler runs in its asker's task, so all that an agent needs of its own is a count of who may run, and a
queue. Whoever would wait for itself, directly or around others, is refused when it would begin to wait:
waiting for a timeout would only make a hang slow.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cell import Cell
from cord_trio.errors import CallCycle, Overloaded

if TYPE_CHECKING:
    from collections.abc import Iterator

WAITING: Final = 1024
"""Asks that may wait for one agent: as many as the whole fabric has in flight."""


class Branch:
    """One ask and whatever it is handed on to. At most one agent of it runs at a time.

    Attributes:
        parent: the branch whose handler asked; None if it was not an agent.
        path: the names of the agents that led here, the parent's first.
        hops: handoffs so far, the parent's included.
        holds: the turn it runs under; None while it waits, and between two agents.
        waits: the turn it waits for.
        children: the asks of the running handler that are not over.

    """

    __slots__ = ("children", "holds", "hops", "parent", "path", "waits")

    def __init__(self, parent: Branch | None, path: tuple[str, ...], hops: int) -> None:
        self.parent = parent
        self.path = path
        self.hops = hops
        self.holds: Turn | None = None
        self.waits: Turn | None = None
        self.children: dict[Branch, None] = {}

    def waiting(self) -> Iterator[Branch]:
        """The branches below this one that wait for a turn."""
        todo = list(self.children)
        for branch in todo:
            if branch.waits is not None:
                yield branch
            todo += branch.children


class Turn:
    """The permission to run, for `size` branches at once.

    Invariants: never more than `size` hold it; nobody waits while it is free; it goes to whoever waits
    longest, at the moment that it is given back; no set of branches waits for itself.

    Attributes:
        name: of the agent.
        size: branches at once.
        holders: who runs.

    """

    __slots__ = ("_queue", "holders", "name", "size")

    def __init__(self, name: str, size: int) -> None:
        if size < 1:
            raise ValueError("an agent needs at least one turn")
        self.name = name
        self.size = size
        self.holders: dict[Branch, None] = {}
        self._queue: OrderedDict[Branch, Cell[None]] = OrderedDict()

    @property
    def waiting(self) -> tuple[Branch, ...]:
        """Who waits, the first to run first."""
        return tuple(self._queue)

    def take(self, branch: Branch) -> bool:
        """Whether `branch` may run now; if so, it holds the turn until `release`.

        Raises:
            CallCycle: the agent is further up in the same chain, and waits for this branch.

        """
        above = branch.parent
        while above is not None:
            if above.holds is self:
                raise CallCycle(branch.path[len(above.path) - 1 :])
            above = above.parent
        if len(self.holders) >= self.size:
            return False
        self.holders[branch] = None
        branch.holds = self
        return True

    async def wait(self, branch: Branch) -> None:
        """Return once `branch` holds the turn. If cancelled, it does not.

        Raises:
            CallCycle: waiting here would be waiting for ourselves.
            Overloaded: too many wait already.

        """
        if len(self._queue) >= WAITING:
            raise Overloaded(f"agents.{self.name}.waiting", WAITING)
        branch.waits = self
        circle = _circle(branch)
        if circle:
            branch.waits = None
            raise CallCycle(circle)
        cell = self._queue[branch] = Cell[None]()
        await cell.wait(partial(self._leave, branch))
        try:
            # Cancelled after the turn was given, before anything ran: the handler need not start.
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self.release(branch)
            raise

    @trio.lowlevel.enable_ki_protection
    def release(self, branch: Branch) -> None:
        """Give the turn back."""
        branch.holds = None
        del self.holders[branch]
        if self._queue:
            waiter, cell = self._queue.popitem(last=False)
            waiter.waits = None
            waiter.holds = self
            self.holders[waiter] = None
            cell.settle(None)

    @trio.lowlevel.enable_ki_protection
    def _leave(self, branch: Branch) -> None:
        branch.waits = None
        del self._queue[branch]


def _circle(waiter: Branch) -> tuple[str, ...]:
    """The agents that wait for each other if `waiter` waits; empty if it would be let in some time.

    A turn becomes free when any of its holders ends, and a holder ends when all that it asked for has. So
    we look at whoever can be reached, and strike out, again and again, the waits for a turn one of whose
    holders has nothing left that waits: what remains waits for itself.
    """
    wants: dict[Branch, Turn] = {}
    below: dict[Branch, list[Branch]] = {}
    todo = [waiter]
    while todo:
        branch = todo.pop()
        if branch in wants:
            continue
        turn = wants[branch] = _wanted(branch)
        for holder in turn.holders:
            if holder not in below:
                below[holder] = list(holder.waiting())
                todo += below[holder]
                if branch is waiter and not below[holder]:
                    return ()  # the usual case: a holder that is simply running
    struck = True
    while struck:
        struck = False
        for branch, turn in list(wants.items()):
            if any(wants.keys().isdisjoint(below[holder]) for holder in turn.holders):
                del wants[branch]
                struck = True
    if waiter not in wants:
        return ()
    chain = [wants[waiter]]
    while chain[-1] not in chain[:-1]:
        holder = next(iter(chain[-1].holders))
        chain.append(next(wants[branch] for branch in below[holder] if branch in wants))
    return tuple(turn.name for turn in chain[chain.index(chain[-1]) :])


def _wanted(branch: Branch) -> Turn:
    assert branch.waits is not None
    return branch.waits
