"""A request of ours that awaits its reply: the cell that its caller waits in, and what it knows of its deadline."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Protocol

import trio
from msgspec import Raw

from cord_trio.cell import Cell
from cord_trio.errors import DeadlineExceeded, MessageTooLong

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.call import EventSink
    from cord_trio.cell import Timer
    from cord_trio.counters import Counters
    from cord_trio.errors import Executed
    from cord_trio.protocol.jsonrpc import Id
    from cord_trio.transports import Seat


class Session(Protocol):
    """The conversation that a request belongs to."""

    @property
    def name(self) -> str:
        """Of the peer."""

    def executed(self, id: Id, /) -> Executed:
        """Whether request `id` may have been run."""

    def withdraw(self, pending: Pending, reason: str, /) -> None:
        """Stop waiting for a reply and, where it must know, tell the peer."""

    def answered(self, pending: Pending, message: bytes, alone: bool, /) -> Raw | None:
        """The result in `message`, if it answers `pending`; else None, once the message is taken.

        Args:
            pending: whose caller reads.
            message: that has come.
            alone: whether it came where nothing is for anybody else.

        """


class Pending(Cell[Raw]):
    """A request of ours that awaits its reply.

    Attributes:
        timed: whether its session keeps its deadline.

    """

    timed: ClassVar[bool] = True

    __slots__ = ("cancellable", "deadline", "events", "id", "latest", "method", "patience", "seat", "session")

    def __init__(
        self,
        session: Session,
        id: int,
        method: str,
        deadline: float,
        events: EventSink | None,
        cancellable: bool,
        patience: float,
        latest: float,
    ) -> None:
        self.settled = False  # what Cell.__init__ does, without its call: one of these is made for each request
        self.task = None
        self._error = None
        self.seat: Seat | None = None
        self.session = session
        self.id = id
        self.method = method
        self.deadline = deadline
        self.events = events
        self.cancellable = cancellable
        self.patience = patience
        self.latest = latest

    @trio.lowlevel.enable_ki_protection
    def settle(self, value: Raw) -> bool:
        # What Cell.settle does, without its calls: whoever overrides `_end` overrides this too.
        if self.settled:
            return False
        self.settled = True
        self.value = value
        task = self.task
        if task is not None:
            self.task = None
            trio.lowlevel.reschedule(task, self)  # type: ignore[arg-type]  # see `Cell`
        elif self.seat is not None:
            self._evict()
        return True

    @trio.lowlevel.enable_ki_protection  # as `wait`: Ctrl-C in here would strand the entry with a task that left
    async def reply(self, timer: Timer) -> Raw:
        """What the peer answered; like `wait`, in one piece with the deadline's."""
        if self.settled:
            return await self.wait(self.abandoned)
        if self.deadline < timer.next:
            timer.by(self.deadline)
        self.task = trio.lowlevel.current_task()
        return await trio.lowlevel.wait_task_rescheduled(self.abort)  # type: ignore[no-any-return]  # Trio says Any

    def _end(self) -> None:
        super()._end()
        if self.seat is not None:
            self._evict()

    def _evict(self) -> None:
        """Wake our own task, which reads. From here on the seat is somebody else's to take."""
        seat, self.seat = self.seat, None
        assert seat is not None
        seat.evict()

    @trio.lowlevel.enable_ki_protection
    async def read(self, seat: Seat, timer: Timer) -> Raw:
        """The same as `reply`, by reading it ourselves. A reader that wakes us costs a turn of the loop more.

        That turn, its epoll and its task's step are a quarter of a call's instructions.
        """
        if self.deadline < timer.next:
            timer.by(self.deadline)
        evicted = False
        try:
            while not (self.settled or seat.over):
                self.seat = seat  # so that whoever settles us meanwhile wakes us
                try:
                    await trio.lowlevel.wait_readable(seat.fd)
                finally:
                    evicted, self.seat = self.seat is None, None
                if not evicted:
                    message = seat.pull()
                    if message is not None:
                        answer = self.session.answered(self, message, seat.alone)
                        if answer is not None:
                            evicted = seat.over and seat.alone  # as if: there is nobody to make room for
                            return answer
        except trio.ClosedResourceError:
            pass  # evicted, or the connection was closed
        except trio.Cancelled:
            if not self.settled:
                self.settled = True
                self.abandoned()
            raise
        finally:
            if not evicted:
                seat.leave()
        if self.settled:
            return self.unwrap()
        self.task = trio.lowlevel.current_task()
        return await trio.lowlevel.wait_task_rescheduled(self.abort)  # type: ignore[no-any-return]  # Trio says Any

    @trio.lowlevel.enable_ki_protection
    def abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """Note that the waiting task is cancelled, and is to be rescheduled by Trio."""
        self.settled = True
        self.task = None
        self.abandoned()
        return trio.lowlevel.Abort.SUCCEEDED

    def abandoned(self) -> None:
        """The waiting task was cancelled."""
        self.session.withdraw(self, "the caller was cancelled")

    def expired(self) -> None:
        """The deadline passed."""
        executed = self.session.executed(self.id)
        self.session.withdraw(self, "the deadline passed")
        self.fail(DeadlineExceeded(f"{self.session.name}: {self.method}", executed))


def expire(open: Mapping[int, Pending], now: float) -> float:
    """End those whose deadline has come; returns the earliest that is left. A table for `Timer.tables`.

    To add each request to the timer and take it away again cost 0.2 of 11 µs; here it is found where it lies anyhow.
    """
    for pending in [each for each in open.values() if each.timed and each.deadline <= now]:
        if not pending.settled:  # by the end of one before
            pending.expired()
    return min([each.deadline for each in open.values() if each.timed and each.deadline > now], default=math.inf)


def too_long(message: bytes, limit: int, counters: Counters) -> MessageTooLong:
    """The error of a request that is longer than `limit` bytes; counted."""
    counters.add("session.message_too_long")
    return MessageTooLong("bounds.message_out", limit, len(message))
