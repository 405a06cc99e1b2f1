"""Trying again, only where that cannot run a call twice.

Whether a failed attempt may be repeated depends on one word, `executed`: "no" is safe for every call.
"unknown" is safe for reads, and for tools whose annotations say so if the server is trusted: hints of
others must not be relied on (MCP 2025-11-25, tools/annotations). An answer is never asked for again.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from msgspec.structs import replace

from cord_trio.cell import Cell
from cord_trio.errors import (
    BadReply,
    CallError,
    CallFailed,
    Denied,
    Draining,
    DrainTimeout,
    HttpFailed,
    InputNeeded,
    MessageTooLong,
    Refused,
    SourceDown,
    TooLate,
    ToolNotFound,
)
from cord_trio.layers.safety import repeatable
from cord_trio.layers.times import Times

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.cell import Timer
    from cord_trio.counters import Counters
    from cord_trio.protocol.mcp import Annotations

ATTEMPTS: Final = 3
"""Attempts of one call, the first included."""

FIRST_PAUSE: Final = 0.05
"""Seconds before the second attempt at most; twice that before the third, and so on."""

LONGEST_PAUSE: Final = 2.0
"""Seconds that the pause does not grow beyond."""

RESERVE: Final = 3
"""Retries a source has in each window however few calls it gets."""

RATIO: Final = 0.2
"""Retries that each first attempt adds while it is in the window."""

WINDOW: Final = 10.0
"""Seconds for which an attempt counts."""

PARTS: Final = 10
"""Parts in which the window moves on."""

FINAL: Final = (
    BadReply, CallFailed, Denied, Draining, DrainTimeout, InputNeeded, MessageTooLong, SourceDown, TooLate,
    ToolNotFound,
)  # fmt: skip
"""Failures that another attempt would only repeat. Whoever raises `SourceDown` has waited for it already."""

Again: TypeAlias = "Callable[[Call, CallError], Awaitable[Outcome]]"
"""Goes on with a call whose first attempt failed so: raises that, or makes others."""

PASSING: Final = (408, 425)
"""HTTP statuses below 500, beside those of `Refused`, that another attempt may not meet again."""


class RetryBudget:
    """How many retries a source may have: `reserve`, and `ratio` of the first attempts, in each `window` seconds.

    One for each source, shared by all who call it: then an outage multiplies the load by no more than
    1 + `ratio`, whatever each call would like.

    Attributes:
        times: how long attempts took that were answered.
        newest: the part of the window that is now; its second number are the first attempts.
        newest_ends: Trio time at which that part ends.

    """

    def __init__(
        self,
        *,
        reserve: float = RESERVE,
        ratio: float = RATIO,
        window: float = WINDOW,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._reserve = reserve
        self._ratio = ratio
        self._part = window / PARTS
        self._clock = clock
        self._parts: list[list[int]] = []  # few: an empty deque takes 600 bytes
        """[number of the part, first attempts, retries], oldest first."""
        self.newest = [0, 0, 0]
        self.newest_ends = -math.inf
        self.times = Times()
        self.pausing: dict[Cell[None], None] = {}

    async def pause(self, seconds: float, timer: Timer) -> None:
        """Wait before a retry, unless `hurry` says not to."""
        cell = Cell[None]()
        self.pausing[cell] = None
        timer.add(cell, self._clock() + seconds, partial(_wake, cell))
        try:
            await cell.wait(partial(timer.discard, cell))
        finally:
            self.pausing.pop(cell, None)
            timer.discard(cell)

    def hurry(self) -> None:
        """End the pauses that are made now: the source has ended, and there is nothing to wait for."""
        for cell in self.pausing:
            cell.settle(None)

    def deposit(self) -> float:
        """Count a first attempt; returns when that was."""
        now = self._clock()
        if now < self.newest_ends:
            self.newest[1] += 1
        else:
            self._current()[1] += 1
        return now

    def withdraw(self, part: float = 1.0) -> bool:
        """Whether a retry is within the budget, or within `part` of it; if so, it counts."""
        current = self._current()
        first = sum(each[1] for each in self._parts)
        again = sum(each[2] for each in self._parts)
        if again + 1 > (self._reserve + self._ratio * first) * part:
            return False
        current[2] += 1
        return True

    def _current(self) -> list[int]:
        number = int(self._clock() // self._part)
        parts = self._parts
        if parts and parts[-1][0] >= number:
            return parts[-1]
        while parts and parts[0][0] <= number - PARTS:
            del parts[0]
        self.newest = [number, 0, 0]
        self.newest_ends = (number + 1) * self._part
        parts.append(self.newest)
        return self.newest


def retry(
    attempts: int = ATTEMPTS,
    *,
    budget: RetryBudget,
    rng: Random,
    timer: Timer,
    counters: Counters,
    trusted: bool = False,
    annotations: Callable[[str], Annotations | None] | None = None,
    safe: bool = False,
    clock: Callable[[], float] = trio.current_time,
) -> Layer:
    """Calls that did not run, or may run twice, get up to `attempts` attempts, with growing random pauses.

    An error says of all attempts together whether the call may have run. For the arguments see `retries`.
    """
    after = retries(
        attempts, budget=budget, rng=rng, timer=timer, counters=counters, trusted=trusted, annotations=annotations,
        safe=safe, clock=clock,
    )  # fmt: skip
    return attempts_of(after, budget=budget, clock=clock)


def attempts_of(after: Callable[[Handler], Again], *, budget: RetryBudget, clock: Callable[[], float]) -> Layer:
    """A first attempt of each call, and then those that `after` makes."""
    took = budget.times.last

    def layer(handler: Handler) -> Handler:
        again = after(handler)

        async def retried(call: Call) -> Outcome:
            begun = budget.deposit()
            try:
                outcome = await handler(call)
            except CallError as exc:
                return await again(call, exc)
            took.append(clock() - begun)
            return outcome

        return retried

    return layer


def retries(
    attempts: int,
    *,
    budget: RetryBudget,
    rng: Random,
    timer: Timer,
    counters: Counters,
    trusted: bool,
    annotations: Callable[[str], Annotations | None] | None,
    safe: bool,
    clock: Callable[[], float],
) -> Callable[[Handler], Again]:
    """What goes on with a call whose first attempt by a handler failed.

    Args:
        attempts: the first included.
        budget: of the source.
        rng: draws the pauses.
        timer: ends the pauses.
        counters: counts retries, and those that the budget did not allow.
        trusted: whether the server's annotations are believed.
        annotations: of the tool with an exported name; None if there is no such tool.
        safe: whether the operator says that every tool that comes here may run twice.
        clock: Trio's time.

    """
    times = budget.times
    may_run_twice = repeatable(trusted=trusted, annotations=annotations, said=safe)

    def pause_before(call: Call, error: CallError) -> float | None:
        """Seconds until the next attempt of `call`; None if there must be none."""
        if _is_final(error) or call.attempt >= attempts or error.executed == "yes":
            return None
        if error.executed == "unknown" and not may_run_twice(call):
            return None
        pause = rng.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(call.attempt - 1, 16)))
        if isinstance(error, Refused) and error.retry_after is not None and error.retry_after > 0:
            pause += error.retry_after
        if not clock() + pause + times.quantile(0.5) < call.deadline:
            return None  # it would only be cut off
        if not budget.withdraw():
            counters.add("retry.over_budget")
            return None
        return pause

    def after(handler: Handler) -> Again:
        async def again(call: Call, error: CallError) -> Outcome:
            may_have_run = False
            while True:
                pause = pause_before(call, error)
                may_have_run = may_have_run or error.executed == "unknown"
                if pause is None:
                    if may_have_run and error.executed == "no":
                        error.executed = "unknown"  # of the call: an earlier attempt may have run
                    try:
                        raise error
                    finally:
                        del error  # else its traceback would hold it
                counters.add("retry.retry")
                await budget.pause(pause, timer)
                begun = clock()
                call = replace(call, attempt=call.attempt + 1)
                try:
                    outcome = await handler(call)
                except CallError as exc:
                    error = exc
                else:
                    times.last.append(clock() - begun)
                    return outcome

        return again

    return after


def _is_final(error: CallError) -> bool:
    """Whether another attempt would only repeat it, as it would a denial (401, 403) or a redirect."""
    if isinstance(error, FINAL):
        return True
    return type(error) is HttpFailed and error.status < 500 and error.status not in PASSING


def _wake(cell: Cell[None]) -> None:
    cell.settle(None)
