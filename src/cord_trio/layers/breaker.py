"""Not calling a source that fails: after so many failures in a row its calls are refused until a probe succeeds.

A probe is none of the users' calls, since those may have effects: it asks what every server answers without any
(`server/discover`, or `ping` before MCP 2026-07-28). Failures are losses and deadlines alone: an answer, even an
error, shows that the source is there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import trio

from cord_trio.errors import CallError, ConnectionLost, DeadlineExceeded, SourceDown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.counters import Counters

OPEN: Final = 30.0
"""Seconds for which it stays open, times how often it has been opened without a success in between."""

LONGEST: Final = 300.0
"""Seconds for which it stays open at most."""

PROBE: Final = 5.0
"""Seconds for a probe."""

State: TypeAlias = Literal["closed", "open", "half-open"]


class Breaker:
    """The state of one source's circuit.

    Invariants: it goes from closed to open, from open to half-open, and from there to either; nothing but a probe
    goes through unless it is closed; there is one probe at a time.

    Attributes:
        state: whether calls go through.
        failures: one after the other, up to now.
        until: Trio time at which it may be probed, while it is open.

    """

    def __init__(
        self,
        failures: int,
        *,
        probe: Callable[[], Awaitable[object]],
        rng: Random,
        counters: Counters,
        name: str,
        seconds: float = OPEN,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        if failures < 1:
            raise ValueError("it takes a failure to open it")
        self.state: State = "closed"
        self.failures = 0
        self.until = -math.inf
        self._limit = failures
        self._opened = 0
        self._probe = probe
        self._rng = rng
        self._counters = counters
        self._name = name
        self._seconds = seconds
        self._clock = clock

    async def admit(self, deadline: float) -> None:
        """Return if calls go through again, after a probe where it is time for one.

        Raises:
            SourceDown: they do not; `next_try` says when it is probed next.
            DeadlineExceeded: the probe was not over by `deadline`, which says nothing of the source.

        """
        if self.state == "half-open" or self._clock() < self.until:
            self._counters.add("breaker.refused")
            raise self._down()
        self.state = "half-open"
        well = False
        try:
            self._counters.add("breaker.probes")
            with trio.move_on_at(min(deadline, trio.current_time() + PROBE)):
                await self._probe()
                well = True
        except CallError:
            pass
        finally:
            # Also when its caller left, or had no more time: then the next one may try at once.
            if well:
                self.succeeded()
            else:
                self.state = "open"
        if well:
            return
        if trio.current_time() >= deadline:
            raise DeadlineExceeded(f"{self._name}: it was still being probed", "no")
        self._open()
        raise self._down()

    def succeeded(self) -> None:
        """The source has answered."""
        self.failures = 0
        if self.state != "open":  # what was under way when it opened says nothing of now
            self.state = "closed"
            self._opened = 0

    def failed(self) -> None:
        """The source did not answer."""
        if self.state == "closed":
            self.failures += 1
            if self.failures >= self._limit:
                self._open()

    def _open(self) -> None:
        self.state = "open"
        self.failures = 0
        self._opened += 1
        self._counters.add("breaker.opened")
        longest = min(self._seconds * self._opened, LONGEST)
        # Not all of those who refuse one source shall come back to it together.
        self.until = self._clock() + longest * self._rng.uniform(0.8, 1.2)

    def _down(self) -> SourceDown:
        return SourceDown(self._name, "its calls failed one after the other", self.until)


def breaker(circuit: Breaker) -> Layer:
    """Calls go through while the circuit is closed; those that find it open are refused at once, or wait for a probe.

    A call that is cancelled, or whose deadline passed before it was written, says nothing of the source.
    """

    def layer(handler: Handler) -> Handler:
        async def guarded(call: Call) -> Outcome:
            if circuit.state != "closed":
                await circuit.admit(call.deadline)
            try:
                outcome = await handler(call)
            except (ConnectionLost, DeadlineExceeded) as exc:
                if exc.executed != "no" or isinstance(exc, ConnectionLost):
                    circuit.failed()
                raise
            if circuit.failures:
                circuit.succeeded()
            return outcome

        return guarded

    return layer
