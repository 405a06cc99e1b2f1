"""How many calls a second a source gets, and none while it has asked for a pause."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cell import Cell
from cord_trio.errors import CallError, Overloaded, Refused, TooLate

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.cell import Timer
    from cord_trio.counters import Counters

WAITING: Final = 1024
"""Calls that may wait for their moment: as many as the whole fabric has in flight."""

LONGEST_PAUSE: Final = 300.0
"""Seconds a server's `Retry-After` is kept to; one that asks for more is asked again then."""


class Meter:
    """Says when the next call may go: a bucket of `burst` tokens, refilled at `per_second`.

    It is held as one number, the time at which the bucket is full again, so nothing has to run between
    calls. The queue is first come, first served, and the timer wakes its head alone.

    Attributes:
        full: Trio time at which `burst` calls could go at once.
        free: whether a call may go now, and need not be counted: there is no rate and was no pause.

    """

    def __init__(
        self,
        per_second: float,
        burst: int | None,
        *,
        waiting: int = WAITING,
        timer: Timer,
        counters: Counters,
        name: str,
        clock: Callable[[], float],
    ) -> None:
        if burst is None:
            burst = 1 if math.isinf(per_second) else max(1, math.floor(per_second))
        if not per_second > 0 or burst < 1:
            raise ValueError("the rate must be above 0 and the burst at least 1")
        self.full = -math.inf
        self.free = math.isinf(per_second)
        self._interval = 1 / per_second
        self._slack = (burst - 1) * self._interval
        self._per_second = per_second
        self._bound = waiting
        self._queue: OrderedDict[Cell[None], float] = OrderedDict()
        """Who waits, and until when at most."""
        self._timer = timer
        self._counters = counters
        self._name = name
        self._clock = clock

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self._queue)

    def take(self) -> bool:
        """Whether a call may go now; if so, it counts."""
        if self._queue:
            return False
        now = self._clock()
        if self.full - self._slack > now:
            return False
        self.full = max(self.full, now) + self._interval
        self.free = not self._interval
        return True

    async def wait(self, deadline: float) -> None:
        """Return when it is our turn.

        Raises:
            Overloaded: too many wait already.
            TooLate: our turn would come after `deadline`: at once, so that the caller can still do something else.

        """
        if len(self._queue) >= self._bound:
            self._counters.add("rate.overloaded")
            raise Overloaded(f"{self._name}.waiting", self._bound)
        if self.full - self._slack + len(self._queue) * self._interval >= deadline:
            raise self._too_late()
        cell = Cell[None]()
        self._queue[cell] = deadline
        if len(self._queue) == 1:
            self._arm()
        await cell.wait(partial(self._leave, cell))

    @trio.lowlevel.enable_ki_protection
    def pause(self, seconds: float) -> None:
        """Let nothing go for `seconds`, then one call after the other."""
        until = self._clock() + min(seconds, LONGEST_PAUSE) + self._slack
        if until <= self.full or until == math.inf:
            return
        self._counters.add("rate.paused")
        self.full = until
        self.free = False
        moment = until - self._slack
        for cell, deadline in list(self._queue.items()):
            if moment >= deadline:
                self._drop(cell)
                cell.fail(self._too_late())
            else:
                moment += self._interval
        self._arm()

    def heed(self, error: CallError) -> None:
        """Pause if this is how the server has asked for it."""
        if isinstance(error, Refused) and error.retry_after is not None and error.retry_after > 0:
            self.pause(error.retry_after)

    def lift(self) -> None:
        """Limit nothing from here on: the source has ended, and what waits is to learn that."""
        self._slack = math.inf
        self._release()

    def _too_late(self) -> TooLate:
        self._counters.add("rate.too_late")
        return TooLate(f"{self._name}.rate", self._per_second)

    def _arm(self) -> None:
        if self._queue:
            self._timer.add(next(iter(self._queue)), self.full - self._slack, self._release)

    @trio.lowlevel.enable_ki_protection
    def _release(self) -> None:
        now = self._clock()
        while self._queue and self.full - self._slack <= now:
            cell, _ = self._queue.popitem(last=False)
            self.full = max(self.full, now) + self._interval
            self._timer.discard(cell)
            cell.settle(None)
        self._arm()

    def _drop(self, cell: Cell[None]) -> None:
        del self._queue[cell]
        self._timer.discard(cell)

    @trio.lowlevel.enable_ki_protection
    def _leave(self, cell: Cell[None]) -> None:
        self._drop(cell)
        self._arm()


def rate(
    per_second: float | Meter = math.inf,
    burst: int | None = None,
    *,
    waiting: int = WAITING,
    timer: Timer,
    counters: Counters,
    name: str,
    clock: Callable[[], float] = trio.current_time,
) -> Layer:
    """At most `per_second` calls a second over time, `burst` of them at once; none while the server wants a pause.

    Args:
        per_second: infinite for no limit: then only pauses count; or the meter itself, for someone who acts on it.
        burst: None for one second's worth.
        waiting: calls that may wait; one more gets `Overloaded`, which names `<name>.waiting`. One that could
            not go within its deadline gets it at once, naming `<name>.rate`.
        timer: wakes who waits.
        counters: counts refusals and pauses.
        name: whose rate it is, for errors.
        clock: Trio's time.

    """
    if isinstance(per_second, Meter):
        meter = per_second
    else:
        meter = Meter(per_second, burst, waiting=waiting, timer=timer, counters=counters, name=name, clock=clock)

    def layer(handler: Handler) -> Handler:
        async def metered(call: Call) -> Outcome:
            if not (meter.free or meter.take()):
                await meter.wait(call.deadline)
            try:
                return await handler(call)
            except CallError as exc:
                meter.heed(exc)
                raise

        return metered

    return layer
