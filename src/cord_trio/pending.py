"""A request of ours that awaits its reply: the cell that its caller waits in, and what it knows of its deadline."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import outcome
import trio
from msgspec import Raw

from cord_trio.cell import Cell
from cord_trio.errors import DeadlineExceeded, MessageTooLong

if TYPE_CHECKING:
    from cord_trio.call import EventSink
    from cord_trio.cell import Timer
    from cord_trio.counters import Counters
    from cord_trio.errors import Executed
    from cord_trio.protocol.jsonrpc import Id


class Session(Protocol):
    """The conversation that a request belongs to."""

    @property
    def name(self) -> str:
        """Of the peer."""

    def executed(self, id: Id, /) -> Executed:
        """Whether request `id` may have been run."""

    def withdraw(self, pending: Pending, reason: str, /) -> None:
        """Stop waiting for a reply and, where it must know, tell the peer."""


class Pending(Cell[Raw]):
    """A request of ours that awaits its reply."""

    __slots__ = ("cancellable", "deadline", "events", "id", "latest", "method", "patience", "session")

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
        self._task = None
        self._outcome = None
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
        task = self._task
        if task is None:
            self._outcome = outcome.Value(value)
        else:
            self._task = None
            trio.lowlevel.reschedule(task, outcome.Value(value))
        return True

    @trio.lowlevel.enable_ki_protection  # as `wait`: Ctrl-C in here would strand the entry with a task that left
    async def reply(self, timer: Timer) -> Raw:
        """What the peer answered; like `wait`, in one piece with the deadline's."""
        if self.settled or self.deadline == math.inf:
            return await self.wait(self.abandoned)
        timer.add(self, self.deadline, self.expired)
        try:
            self._task = trio.lowlevel.current_task()
            return await trio.lowlevel.wait_task_rescheduled(self._abort)  # type: ignore[no-any-return]  # Trio says Any
        finally:
            timer.discard(self)

    @trio.lowlevel.enable_ki_protection
    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self.settled = True
        self._task = None
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


def too_long(message: bytes, limit: int, counters: Counters) -> MessageTooLong:
    """The error of a request that is longer than `limit` bytes; counted."""
    counters.add("session.message_too_long")
    return MessageTooLong("bounds.message_out", limit, len(message))
