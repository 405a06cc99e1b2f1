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
import trio

from cord_trio import cell
from cord_trio.cell import Cell
from cord_trio.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from cord_trio.agents.context import Context
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
        begin: makes the handler's `Context`, when it starts.
        deadline: Trio time by which its handler ends.
        generation: of the agent that alone may take it; 0 for any.
        over: called, synchronously, when nothing more will happen with it.
        context: the sender's context variables.
        scope: of the handler while it runs.
        ended: set when the handler has ended, if someone waits for that.
        abandoned: nobody wants it any more.
        room: settled when it has room, if it had to wait for some.
        place: the lane that it is queued in, and under which key; None if it is not.

    """

    branch: Branch
    payload: object
    reply: Cell[object] | None
    begin: Callable[[], Context]
    deadline: float = math.inf
    generation: int = 0
    over: Callable[[], None] | None = None
    context: ContextVars = msgspec.field(default_factory=copy_context)
    room: Cell[None] | None = None
    scope: trio.CancelScope | None = None
    ended: trio.Event | None = None
    abandoned: bool = False
    place: tuple[OrderedDict[Hashable, Envelope], Hashable] | None = None

    def answer(self, value: object) -> None:
        """Deliver the answer, if anyone waits for it."""
        if self.reply is not None:
            self.reply.settle(value)

    def fail(self, error: Exception) -> None:
        """Deliver an error, if anyone waits."""
        if self.reply is not None:
            self.reply.fail(error)

    def finish(self) -> None:
        """Say that it is over."""
        self.scope = None
        if self.ended is not None:
            self.ended.set()
        over, self.over = self.over, None
        if over is not None:
            over()


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
        *("_control", "_counters", "_full", "_lanes", "_normal", "_overflow", "_takers", "_transfer", "_turn"),
        *("dropped", "name", "peak", "size"),
    )

    def __init__(self, mailbox: Mailbox, turn: Turn, counters: Counters) -> None:
        self.name = turn.name
        self.size = mailbox.size
        self.dropped = 0
        self.peak = 0
        self._full = mailbox.full
        self._turn = turn
        self._counters = counters
        self._control: OrderedDict[Hashable, Envelope] = OrderedDict()
        self._transfer: OrderedDict[Hashable, Envelope] = OrderedDict()
        self._normal: OrderedDict[Hashable, Envelope] = OrderedDict()
        self._lanes: Mapping[Lane, OrderedDict[Hashable, Envelope]] = {
            "control": self._control, "transfer": self._transfer, "normal": self._normal,
        }  # fmt: skip
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
            yield from queue.values()
        yield from self._overflow

    @trio.lowlevel.enable_ki_protection
    def put(self, envelope: Envelope, *, lane: Lane = "normal", key: Hashable = None) -> bool:
        """Take `envelope`, as the lane wants it. Returns False if it was dropped.

        It may be left waiting for room: then its `room` is a cell, settled when it has some.

        Args:
            envelope: the message.
            lane: where to.
            key: of the lane's other messages, the one with this key is replaced; None for none.

        Raises:
            Overloaded: there is no room, or too many wait for some.
            CallCycle: waiting here would be waiting for ourselves.

        """
        if self._takers:  # then nothing is queued
            task = self._takers.popleft()
            task.context = envelope.context
            cell.resume(task, envelope)
            return True
        queue = self._lanes[lane]
        if lane == "normal" and isinstance(self._full, Latest):
            key = ("key", self._full.key(envelope.payload))
        same = old = None if key is None else queue.get(key)
        if lane == "normal" and old is None and len(queue) >= self.size:
            if self._full == "wait":
                self._wait_for_room(envelope)
                return True
            if self._full == "fail":
                self._counters.add("agents.mailbox_full")
                raise self._overloaded()
            if self._full == "drop_newest":
                self._count_drop()
                if envelope.reply is not None:
                    raise self._overloaded()
                return False
            old = next(iter(queue.values()))
        if envelope.reply is not None:
            self._turn.park(envelope.branch)
        if old is not None:
            if old is same:
                old.place = None
            else:
                self.remove(old)
            if lane == "normal":
                self._count_drop()
            self._give_up(old, self._overloaded())
        self._store(envelope, queue, envelope if key is None else key)
        return True

    @trio.lowlevel.enable_ki_protection
    async def take(self) -> Envelope | None:
        """The next message, in whose context the task goes on; None to stop. Cancelled, it takes none."""
        task = trio.lowlevel.current_task()
        if self._control or self._transfer or self._normal or self._overflow:
            await trio.lowlevel.checkpoint_if_cancelled()
            envelope = self._pop()
            assert envelope is not None  # nobody ran meanwhile
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
            cell.resume(self._takers.popleft(), None)

    @trio.lowlevel.enable_ki_protection
    def remove(self, envelope: Envelope) -> bool:
        """Forget a message that waits; returns whether it did."""
        envelope.branch.waits = None
        if envelope in self._overflow:
            del self._overflow[envelope]
            return True
        if envelope.place is None:
            return False
        queue, key = envelope.place
        del queue[key]
        envelope.place = None
        self._refill()
        return True

    def put_back(self, envelope: Envelope) -> None:
        """Take back what was taken last and not begun: it is accepted, so it waits in the transfer lane, first."""
        queue = self._lanes["transfer"]
        self._store(envelope, queue, envelope)
        queue.move_to_end(envelope, last=False)
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
        for envelope in list(self._lanes[lane].values()):
            self.remove(envelope)
            envelope.finish()

    def _store(self, envelope: Envelope, queue: OrderedDict[Hashable, Envelope], key: Hashable) -> None:
        queue[key] = envelope
        envelope.place = (queue, key)
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

    def _pop(self) -> Envelope | None:
        for queue in self._lanes.values():
            if queue:
                _, envelope = queue.popitem(last=False)
                envelope.place = None
                envelope.branch.waits = None
                self._refill()
                return envelope
        return None

    def _refill(self) -> None:
        normal = self._lanes["normal"]
        while self._overflow and len(normal) < self.size:
            envelope, _ = self._overflow.popitem(last=False)
            self._store(envelope, normal, envelope)
            if envelope.reply is None:  # its sender goes on
                envelope.branch.waits = envelope.branch.parent = None
            assert envelope.room is not None
            envelope.room.settle(None)
