"""One incarnation of an agent that has a task, and the messages to itself that die with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from cord_trio.cell import Cell

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.agents.agent import AgentFunction
    from cord_trio.agents.turn import Branch


class Life:
    """One incarnation of an agent.

    Invariants: it ends once; what ended it first is why.

    Attributes:
        generation: its number.
        handler: what it is made of, once that is made.
        ended: whether it takes nothing more.
        over: set then.
        cause: the crash that ended it, if one did.
        reason: why it ended, in words.
        stopped: whether someone wanted it to end, and sees to what comes next.
        users: the runs that use it, and how to cancel each.

    """

    __slots__ = ("_idle", "cause", "ended", "generation", "handler", "over", "reason", "stopped", "users")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.handler: AgentFunction | None = None
        self.ended = False
        self.over = trio.Event()
        self.cause: Exception | None = None
        self.reason = ""
        self.stopped = False
        self.users: dict[Branch, trio.CancelScope] = {}
        self._idle: trio.Event | None = None

    def end(self, reason: str, *, cause: Exception | None = None, stopped: bool = False) -> bool:
        """Take nothing more. Returns False if it was over already."""
        if self.ended:
            return False
        self.ended = True
        self.reason = reason
        self.cause = cause
        self.stopped = stopped
        self.over.set()
        return True

    def leave(self, branch: Branch) -> None:
        """A run has ended."""
        del self.users[branch]
        self.left()

    def left(self) -> None:
        """A run has ended and is no user any more; nobody needs to know before the life is over."""
        if self._idle is not None and not self.users:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when no run uses it. Nothing new may begin."""
        if self.users:
            self._idle = trio.Event()  # only one waits
            await self._idle.wait()

    def cancel(self) -> None:
        """Cancel what still runs."""
        for scope in self.users.values():
            scope.cancel(self.reason or "the fabric ends")


class Alarm:
    """A message to oneself that is to come. `cancel` forgets it."""

    __slots__ = ("_cancel", "cell")

    def __init__(self, cancel: Callable[[Alarm], None]) -> None:
        self.cell = Cell[None]()
        self._cancel = cancel

    def cancel(self) -> None:
        """Forget it. Once it is handled, this does nothing."""
        self._cancel(self)
