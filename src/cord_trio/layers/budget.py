"""What a source may be used for in some time: calls and bytes. For those that cost money, or must not be bothered."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from cord_trio.call import Complete
from cord_trio.errors import CallError, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.counters import Counters


class Allowance:
    """`calls` and `bytes` for each `every` seconds, the first of which begin with the first call.

    Invariants: what is spent and reserved is within the limits when a call begins; nothing is reserved at rest.
    The size of an answer is known afterwards, so the last one may exceed the bytes.

    Attributes:
        spent_calls: in this period.
        spent_bytes: in this period, arguments and results.
        reserved_calls: of calls that are under way.
        reserved_bytes: of their arguments.
        ends: Trio time at which all of it is there again.

    """

    def __init__(
        self,
        calls: float = math.inf,
        bytes: float = math.inf,
        *,
        every: float,
        counters: Counters,
        name: str,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.spent_calls = self.spent_bytes = self.reserved_calls = self.reserved_bytes = 0
        self.ends = -math.inf
        self._calls = calls
        self._bytes = bytes
        self._every = every
        self._counters = counters
        self._name = name
        self._clock = clock

    def reserve(self, calls: int, size: int) -> None:
        """Set this much aside.

        Raises:
            Overloaded: there is not so much left; names `<name>.budget.calls` or `<name>.budget.bytes`.

        """
        self._turn()
        for bound, limit, used in (
            ("calls", self._calls, self.spent_calls + self.reserved_calls + calls),
            ("bytes", self._bytes, self.spent_bytes + self.reserved_bytes + size),
        ):
            if used > limit:
                self._counters.add("budget.exceeded")
                raise Overloaded(f"{self._name}.budget.{bound}", limit)
        self.reserved_calls += calls
        self.reserved_bytes += size

    @trio.lowlevel.enable_ki_protection
    def settle(self, calls: int, size: int, spent: bool, more: int = 0) -> None:
        """Give back what was reserved, and, if it was `spent`, spend it instead, with `more` bytes."""
        self.reserved_calls -= calls
        self.reserved_bytes -= size
        if spent:
            self._turn()
            self.spent_calls += calls
            self.spent_bytes += size + more

    def _turn(self) -> None:
        now = self._clock()
        if now >= self.ends:
            self.spent_calls = self.spent_bytes = 0
            self.ends = now + self._every


def budget(allowance: Allowance) -> Layer:
    """Calls are within the allowance, or refused. One that provably did not run costs nothing."""

    def layer(handler: Handler) -> Handler:
        async def charged(call: Call) -> Outcome:
            size = sum(map(len, map(bytes, call.params.values())))
            # A further round of a call is none of its own, however often it asks. Answers alone do not show that it is
            # one: anybody can send some, but a state only who was given it.
            calls = 0 if call.park or "requestState" in call.params else 1
            allowance.reserve(calls, size)
            spent, more = True, 0  # also if it is cancelled: it may have run
            try:
                outcome = await handler(call)
                if type(outcome) is Complete:
                    more = len(bytes(outcome.result))
            except CallError as exc:
                spent = exc.executed != "no"
                raise
            finally:
                allowance.settle(calls, size, spent, more)
            return outcome

        return charged

    return layer
