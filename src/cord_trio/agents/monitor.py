"""Monitors: who looks at what becomes of an agent, without being bound to it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from cord_trio.cell import Cell

if TYPE_CHECKING:
    from types import TracebackType

    from cord_trio.counters import Counters

KEPT: Final = 64
"""Notices that a monitor keeps for who does not fetch them; the newest."""

What: TypeAlias = Literal["crashed", "restarted", "stopped", "gave_up", "handoff_refused"]


class Notice(msgspec.Struct, frozen=True):
    """What became of an agent.

    Attributes:
        agent: its name.
        generation: of the incarnation that it happened to.
        what: crashed, restarted (this is the new generation), stopped, gave_up, or handoff_refused.
        cause: the exception, if there was one.

    """

    agent: str
    generation: int
    what: What
    cause: Exception | None = None


class Monitor:
    """The notices of one agent, from when the block is entered: `with ctx.monitor(name) as notices`.

    One task at a time may fetch them. Attributes:
        name: of the agent.
        missed: notices that were not kept.
    """

    def __init__(self, name: str, monitors: Monitors) -> None:
        self.name = name
        self.missed = 0
        self._monitors = monitors
        self._kept: deque[Notice] = deque()
        self._waiting: Cell[Notice] | None = None

    def __enter__(self) -> Monitor:
        self._monitors.looking.setdefault(self.name, {})[self] = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        looking = self._monitors.looking[self.name]
        del looking[self]
        if not looking:
            del self._monitors.looking[self.name]

    def __aiter__(self) -> Monitor:
        return self

    async def __anext__(self) -> Notice:
        cell = self._waiting = Cell()
        if self._kept:
            cell.settle(self._kept.popleft())
        return await cell.wait(self._stop_waiting)

    def _stop_waiting(self) -> None:
        self._waiting = None

    def take(self, notice: Notice) -> None:
        """Keep `notice`, or give it to who waits."""
        if self._waiting is not None and self._waiting.settle(notice):
            self._waiting = None
            return
        if len(self._kept) >= KEPT:
            self._kept.popleft()
            self.missed += 1
            self._monitors.counters.add("agents.notices_missed")
        self._kept.append(notice)


class Monitors:
    """Who looks at which agent.

    Attributes:
        looking: by the agent's name; only names that someone looks at.
        counters: counts notices that were missed.

    """

    def __init__(self, counters: Counters) -> None:
        self.looking: dict[str, dict[Monitor, None]] = {}
        self.counters = counters

    def tell(self, notice: Notice) -> None:
        """Show `notice` to all who look at its agent."""
        for monitor in self.looking.get(notice.agent, ()):
            monitor.take(notice)
