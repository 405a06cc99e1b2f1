"""Who of those that ask may run now, and who next: so many at once, so many in line, and callers take turns. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, Literal, TypeAlias, TypeVar

T = TypeVar("T")

Verdict: TypeAlias = Literal["run", "wait", "busy"]

WEIGHT: Final = 0.1
"""Of the latest duration in the mean of all."""


class Admission(Generic[T]):
    """A limit with a line before it.

    Invariants: no more than `slots` run and no more than `line` wait; nobody waits while a slot is free; of those who
    wait each caller gets its turn, however many another has there; when the line is full, room is made for a caller
    by turning the latest one away of who has most there.

    Args:
        slots: that run at once.
        line: that wait at most.

    """

    def __init__(self, slots: int, line: int) -> None:
        self.slots = slots
        self.line = line
        self.running = 0
        self.waiting = 0
        self.mean = 0.0
        self._lines: dict[str, deque[T]] = {}  # in the order of turns

    @property
    def busy(self) -> int:
        """What runs, and what waits."""
        return self.running + self.waiting

    def ask(self, caller: str, item: T, remaining: float) -> tuple[Verdict, T | None]:
        """Whether `item` may run, is in line now, or is turned away; and whom it pushed out of the line.

        Args:
            caller: whose it is.
            item: what asks.
            remaining: seconds that it has: who will not have its turn by then is turned away at once.

        """
        if self.running < self.slots:
            self.running += 1
            return "run", None
        if self.waiting / self.slots * self.mean > remaining:
            return "busy", None
        pushed: T | None = None
        if self.waiting >= self.line:
            longest = max(self._lines, key=lambda name: len(self._lines[name]), default=caller)
            if len(self._lines.get(longest, ())) <= len(self._lines.get(caller, ())) + 1:
                return "busy", None
            pushed = self._lines[longest].pop()
            self.waiting -= 1
        self._lines.setdefault(caller, deque()).append(item)
        self.waiting += 1
        return "wait", pushed

    def leave(self, seconds: float) -> T | None:
        """One that ran for so long is done; returns who runs in its place."""
        self.mean += (seconds - self.mean) * WEIGHT
        for caller, items in list(self._lines.items())[:1]:
            item = items.popleft()
            del self._lines[caller]
            if items:
                self._lines[caller] = items  # last in turn again
            self.waiting -= 1
            return item
        self.running -= 1
        return None

    def withdraw(self, caller: str, item: T) -> bool:
        """Let `item` wait no more; whether it did."""
        items = self._lines.get(caller)
        if items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del self._lines[caller]
        self.waiting -= 1
        return True
