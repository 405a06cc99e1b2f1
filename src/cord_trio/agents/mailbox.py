"""Mailboxes: three lanes of messages, of which one is bounded, and what happens when that is full.

The control lane holds timers and notices, one of each kind at a time; the transfer lane holds handoffs, each
of which was accepted before as the ask that it belongs to. Neither needs to refuse anything.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from contextvars import Context as ContextVars
from contextvars import copy_context
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec
import outcome
import trio

from cord_trio.cell import Cell
from cord_trio.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from cord_trio.agents.agent import Step
    from cord_trio.agents.answering import Asker
    from cord_trio.agents.turn import Branch, Turn
    from cord_trio.counters import Counters

SIZE: Final = 64
"""Messages in one mailbox, unless it says otherwise."""

WAITING: Final = 1024
"""Messages that may wait for room in one mailbox: as many as the whole fabric has calls in flight."""


class Latest(msgspec.Struct, frozen=True):
    """Keeps only the newest message of each key. Get one from `latest`."""

    key: Callable[[object], Hashable]


def latest(key: Callable[[object], Hashable]) -> Latest:
    """A new message replaces the one with the same `key(payload)`, in its place in the queue."""
    return Latest(key)


Full: TypeAlias = Literal["wait", "fail", "drop_oldest", "drop_newest"] | Latest

Lane: TypeAlias = Literal["control", "transfer", "normal"]


class Mailbox(msgspec.Struct, frozen=True):
    """A queue of an agent's own.

    Attributes:
        size: messages in it, beside timers, notices and handoffs.
        full: what happens to one more.

    """

    size: int = SIZE
    full: Full = "wait"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("a mailbox holds at least one message")
        if not isinstance(self.full, Latest) and self.full not in ("wait", "fail", "drop_oldest", "drop_newest"):
            raise ValueError(f"full={self.full!r}: use wait, fail, drop_oldest, drop_newest or latest(key)")


class Envelope(msgspec.Struct, eq=False):
    """One message, with all that its sender's task would have given by the language.

    A struct, since one is made for each message.

    Invariants: its reply is settled at most once; what was abandoned before it began never begins.

    Attributes:
        branch: which ask it belongs to, or the branch of its own of a `tell`.
        payload: for the handler.
        reply: settled with the answer; None if nobody waits for one.
        transcript: what its handler sees of those that handed it on.
        deadline: Trio time by which its handler ends.
        generation: of the agent that alone may take it; 0 for any.
        asker: whose deadline it has, which moves.
        over: called, synchronously, when nothing more will happen with it.
        context: the sender's context variables.
        scope: of the handler while it runs.
        ended: set when the handler has ended, if someone waits for that.
        abandoned: nobody wants it any more.
        room: settled when it has room, if it had to wait for some.
        key: of which only the newest message is kept, if it is queued so.

    """

    branch: Branch
    payload: object
    reply: Cell[object] | None
    transcript: tuple[Step, ...] = ()
    deadline: float = math.inf
    generation: int = 0
    over: Callable[[], None] | None = None
    context: ContextVars = msgspec.field(default_factory=copy_context)
    room: Cell[None] | None = None
    asker: Asker | None = None
    scope: trio.CancelScope | None = None
    ended: trio.Event | None = None
    abandoned: bool = False
    key: Hashable = None

    def answer(self, value: object) -> None:
        """Deliver the answer, if anyone waits for it."""
        if self.reply is not None:
            self.reply.settle(value)

    def fail(self, error: Exception) -> None:
        """Deliver an error, if anyone waits."""
        if self.reply is not None:
            self.reply.fail(error)

    def finish(self) -> None:
        """Say that it is over; once."""
        if self.ended is not None:
            self.ended.set()
        if self.over is not None:
            self.over()


class Box:
    """The messages of one agent, from one incarnation to the next.

    Invariants: the normal lane never holds more than `size`; nobody waits for room while there is some;
    messages of one lane leave in the order in which they came, those that waited for room included.

    Attributes:
        name: of the agent.
        size: of the normal lane.
        dropped: messages that were given up for want of room.
        peak: the most that the normal lane ever held.

    """

    __slots__ = (
        *("_control", "_counters", "_full", "_keyed", "_lanes", "_normal", "_overflow", "_takers", "_transfer"),
        *("_turn", "dropped", "name", "peak", "size"),
    )

    def __init__(self, mailbox: Mailbox, turn: Turn, counters: Counters) -> None:
        self.name = turn.name
        self.size = mailbox.size
        self.dropped = 0
        self.peak = 0
        self._full = mailbox.full
        self._turn = turn
        self._counters = counters
        self._control: deque[Envelope] = deque()
        self._transfer: deque[Envelope] = deque()
        self._normal: deque[Envelope] = deque()
        self._lanes: Mapping[Lane, deque[Envelope]] = {
            "control": self._control, "transfer": self._transfer, "normal": self._normal,
        }  # fmt: skip
        self._keyed: dict[Hashable, Envelope] = {}
        self._overflow: OrderedDict[Envelope, None] = OrderedDict()
        self._takers: deque[trio.lowlevel.Task] = deque()

    def __len__(self) -> int:
        """Messages in the normal lane."""
        return len(self._normal)

    def lengths(self) -> dict[str, int]:
        """Messages by lane, and those that wait for room."""
        return {**{lane: len(queue) for lane, queue in self._lanes.items()}, "waiting": len(self._overflow)}

    def queued(self) -> Iterator[Envelope]:
        """All messages, the next one first."""
        for queue in self._lanes.values():
            yield from queue
        yield from self._overflow

    @trio.lowlevel.enable_ki_protection
    def put(self, envelope: Envelope, lane: Lane = "normal") -> bool:
        """Take `envelope`, as the lane wants it. Returns False if it was dropped.

        It may be left waiting for room: then its `room` is a cell, settled when it has some.

        Raises:
            Overloaded: there is no room, or too many wait for some.
            CallCycle: waiting here would be waiting for ourselves.

        """
        if self._takers:  # then nothing is queued
            task = self._takers.popleft()
            task.context = envelope.context
            trio.lowlevel.reschedule(task, outcome.Value(envelope))
            return True
        if lane == "normal":
            return self._put_normal(envelope)
        if envelope.reply is not None:
            self._turn.park(envelope.branch)
        self._lanes[lane].append(envelope)
        return True

    def _put_normal(self, envelope: Envelope) -> bool:
        queue = self._normal
        full = self._full
        old = None
        if isinstance(full, Latest):
            envelope.key = ("key", full.key(envelope.payload))
            old = self._keyed.get(envelope.key)
        same = old is not None
        if old is None and len(queue) >= self.size:
            if full == "wait":
                self._wait_for_room(envelope)
                return True
            if full == "fail":
                self._counters.add("agents.mailbox_full")
                raise self._overloaded()
            if full == "drop_newest":
                self._count_drop()
                if envelope.reply is not None:
                    raise self._overloaded()
                return False
            old = queue[0]
        if envelope.reply is not None:
            self._turn.park(envelope.branch)
        if old is None:
            self._store(envelope)
            return True
        if same:  # it takes its place
            queue[queue.index(old)] = envelope
            self._keyed[envelope.key] = envelope
        else:
            self.remove(old)
            self._store(envelope)
        self._count_drop()
        self._give_up(old, self._overloaded())
        return True

    @trio.lowlevel.enable_ki_protection
    async def take(self, task: trio.lowlevel.Task, *, on: bool = False) -> Envelope | None:
        """The next message, in whose context `task`, the present one, goes on; None to stop.

        Lets others run, unless `on`, and a message waits whose context variables are those of the last. Cancelled, it
        takes none.
        """
        queue = self._control or self._transfer or self._normal
        if queue:
            if on and _same(queue[0].context, task.context):
                return self._pop(queue)
            await trio.lowlevel.checkpoint_if_cancelled()
            envelope = self._pop(queue)
            task.context = envelope.context  # in force after the next checkpoint
            await trio.lowlevel.cancel_shielded_checkpoint()
            return envelope

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._takers.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        self._takers.append(task)
        return await trio.lowlevel.wait_task_rescheduled(abort)  # type: ignore[no-any-return]  # Trio says Any

    @trio.lowlevel.enable_ki_protection
    def wake(self) -> None:
        """End all waits of `take` with None."""
        while self._takers:
            trio.lowlevel.reschedule(self._takers.popleft())

    @trio.lowlevel.enable_ki_protection
    def remove(self, envelope: Envelope) -> bool:
        """Forget a message that waits; returns whether it did."""
        envelope.branch.waits = None
        if envelope in self._overflow:
            del self._overflow[envelope]
            return True
        for queue in self._lanes.values():
            if envelope in queue:
                queue.remove(envelope)
                self._left(envelope)
                return True
        return False

    def put_back(self, envelope: Envelope) -> None:
        """Take back what was taken last and not begun: it is accepted, so it waits in the transfer lane, first."""
        self._transfer.appendleft(envelope)
        if envelope.reply is not None:
            envelope.branch.waits = self._turn

    @property
    def full_and_waiting(self) -> bool:
        """Whether one more message would wait for room."""
        return self._full == "wait" and len(self) >= self.size and not self._takers

    def clear(self, error: Callable[[], Exception]) -> None:
        """Fail every message that waits, those for room included."""
        for envelope in [*self._overflow, *self.queued()]:
            if self.remove(envelope):
                self._give_up(envelope, error())

    def forget(self, lane: Lane) -> None:
        """Forget the messages of one lane."""
        for envelope in list(self._lanes[lane]):
            self.remove(envelope)
            envelope.finish()

    def _store(self, envelope: Envelope) -> None:
        self._normal.append(envelope)
        if envelope.key is not None:
            self._keyed[envelope.key] = envelope
        length = len(self._normal)
        if length > self.peak:  # most often it is not; `max` costs more
            self.peak = length

    def _wait_for_room(self, envelope: Envelope) -> None:
        if len(self._overflow) >= WAITING:
            self._counters.add("agents.waiting_full")
            raise Overloaded(f"agents.{self.name}.waiting", WAITING)
        self._turn.park(envelope.branch)
        envelope.room = Cell()
        self._overflow[envelope] = None

    def _overloaded(self) -> Overloaded:
        return Overloaded(f"agents.{self.name}.mailbox", self.size)

    def _count_drop(self) -> None:
        self.dropped += 1
        self._counters.add("agents.dropped")

    def _give_up(self, envelope: Envelope, error: Exception) -> None:
        envelope.branch.waits = None
        if envelope.reply is not None:
            envelope.reply.fail(error)
        elif envelope.room is not None:
            envelope.room.fail(error)
        envelope.finish()

    def _pop(self, queue: deque[Envelope]) -> Envelope:
        envelope = queue.popleft()
        envelope.branch.waits = None
        if self._overflow or envelope.key is not None:
            self._left(envelope)
        return envelope

    def _left(self, envelope: Envelope) -> None:
        """It is queued no more: there may be room."""
        if envelope.key is not None:
            del self._keyed[envelope.key]
            envelope.key = None
        while self._overflow and len(self._normal) < self.size:
            waiter, _ = self._overflow.popitem(last=False)
            self._store(waiter)
            if waiter.reply is None:  # its sender goes on
                waiter.branch.waits = waiter.branch.parent = None
            assert waiter.room is not None
            waiter.room.settle(None)


def _same(one: ContextVars, other: ContextVars) -> bool:
    """Whether both hold the same objects; `==` would take equal ones for the same."""
    return len(one) == len(other) and (not one or all(other.get(var, other) is value for var, value in one.items()))
