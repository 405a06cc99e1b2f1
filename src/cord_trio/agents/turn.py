"""Turns: an agent's permissions to run, first come first served, and who waits for whom.

A handler runs in its asker's task, so all that an agent needs of its own is a count of who may run, and a
queue. Whoever would wait for itself, directly or around others, is refused when it would begin to wait:
waiting for a timeout would only make a hang slow.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from cord_trio.call import LOCAL
from cord_trio.cell import Cell
from cord_trio.errors import CallCycle, Overloaded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from cord_trio.agents.budget import Account
    from cord_trio.agents.job import Job
    from cord_trio.counters import Counters
    from cord_trio.trace import TraceContext

Sink: TypeAlias = "Callable[[object], Awaitable[None]]"

WAITING: Final = 1024
"""Asks that may wait for one agent: as many as the whole fabric has in flight."""


class Branch:
    """One ask and whatever it is handed on to. At most one agent of it runs at a time.

    No struct: what a handoff sets would cost more than making one saves.

    Attributes:
        parent: the branch whose handler asked; None if it was not an agent.
        path: the names of the agents that led here, the parent's first.
        hops: handoffs so far, the parent's included.
        principal: on whose behalf.
        account: what it may use; None in tests of turns alone.
        job: the started conversation that it is part of, if it is of one.
        trace: the trace that it is part of, None for none; where runs are watched, in the span of the last run.
        holds: the turn it runs under; None while it waits, and between two agents.
        waits: the turn it waits for.
        children: the asks of the running handler that are not over.
        deadline: Trio time by which it ends, as far as it is known; it may have narrowed its own since.
        sink: takes what its handlers emit; None if nobody listens.
        span: of the agent that runs; 0 without a trace.

    """

    __slots__ = (
        *("account", "children", "deadline", "holds", "hops", "job"),
        *("parent", "path", "principal", "sink", "span", "trace", "waits"),
    )

    def __init__(
        self, parent: Branch | None, path: tuple[str, ...], hops: int, principal: str = LOCAL,
        account: Account | None = None, job: Job | None = None, trace: TraceContext | None = None,
    ) -> None:  # fmt: skip
        self.parent = parent
        self.path = path
        self.hops = hops
        self.principal = principal
        self.account = account
        self.job = job
        self.trace = trace
        self.holds: Turn | None = None
        self.waits: Turn | None = None
        self.children: dict[Branch, None] = {}
        self.deadline = math.inf
        self.sink: Sink | None = None
        self.span = 0

    def follow(self, trace: TraceContext | None, spans: Iterator[int]) -> None:
        """Go on with `trace`, in a span of its own."""
        self.trace = trace
        if trace is not None:
            self.span = next(spans)

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
        reentrant: whether a branch may run under the permission that one above it holds.

    """

    __slots__ = ("_queue", "holders", "name", "reentrant", "size")

    def __init__(self, name: str, size: int, *, reentrant: bool = False) -> None:
        if size < 1:
            raise ValueError("an agent needs at least one turn")
        self.name = name
        self.size = size
        self.reentrant = reentrant
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
        if branch.parent is not None and self.held_above(branch):
            return True
        if len(self.holders) >= self.size:
            return False
        self.holders[branch] = None
        branch.holds = self
        return True

    def held_above(self, branch: Branch) -> bool:
        """Whether one that waits for `branch` holds the turn, so that `branch` may run under it.

        Raises:
            CallCycle: there is one, and the agent is not reentrant.

        """
        above = branch.parent
        while above is not None:
            if above.holds is self:
                if self.reentrant:
                    return True
                raise CallCycle(branch.path[len(above.path) - 1 :])
            above = above.parent
        return False

    def park(self, branch: Branch) -> None:
        """Note that `branch` waits for the turn.

        Raises:
            CallCycle: waiting here would be waiting for ourselves.

        """
        branch.waits = self
        circle = _circle(branch)
        if circle:
            branch.waits = None
            raise CallCycle(circle)

    async def wait(self, branch: Branch, counters: Counters) -> None:
        """Return once `branch` holds the turn. If cancelled, it does not.

        Raises:
            CallCycle: waiting here would be waiting for ourselves.
            Overloaded: too many wait already.

        """
        if len(self._queue) >= WAITING:
            counters.add("agents.waiting_full")
            raise Overloaded(f"agents.{self.name}.waiting", WAITING)
        self.park(branch)
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
        """Give the turn back, unless it was only that of one above."""
        if self.holders.pop(branch, self) is self:
            return
        branch.holds = None
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


def note_way(exc: Exception, branch: Branch, generation: int) -> None:
    """Add the way to the agent that failed, unless an agent below has added its own, longer one."""
    way = " > ".join(branch.path)
    notes: list[str] = getattr(exc, "__notes__", [])
    if not any(note.startswith((f"{way} > ", f"{way}#")) for note in notes):
        exc.add_note(f"{way}#{generation}")


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
        if branch is waiter and len(turn.holders) < turn.size:
            return ()  # whoever lets messages in has not got to it
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
            if len(turn.holders) < turn.size or any(wants.keys().isdisjoint(below[holder]) for holder in turn.holders):
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
