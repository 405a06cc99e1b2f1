"""Not calling a source that fails: once it fails too often its calls are refused until a probe succeeds.

Too often is so many times in a row, or more than half of at least 20 calls within 30 s. A probe is none of the users'
calls, since those may have effects: it asks what every server answers without any (`server/discover`, or `ping` before
MCP 2026-07-28). Failures are losses and deadlines alone: an answer, even an error, shows that the source is there; and
so is a deadline of the caller's own that no server could keep to.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import trio

from cord_trio.errors import CallError, ConnectionLost, DeadlineExceeded, SourceDown
from cord_trio.layers.times import is_too_slow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.counters import Counters

OPEN: Final = 30.0
"""Seconds for which it stays open, times how often it has been opened without a whole window closed in between."""

LONGEST: Final = 300.0
"""Seconds for which it stays open at most."""

PROBE: Final = 5.0
"""Seconds for a probe."""

WINDOW: Final = 30.0
"""Seconds of which the share of failures counts."""

PARTS: Final = 10
"""Parts in which the window moves on."""

ENOUGH: Final = 20
"""Calls that must have ended within the window for their share to say something."""

SHARE: Final = 0.5
"""More failures than this part of them open it."""

State: TypeAlias = Literal["closed", "open", "half-open"]


class Breaker:
    """The state of one source's circuit.

    Invariants: it goes from closed to open, from open to half-open, and from there to either; nothing but a probe
    goes through unless it is closed; there is one probe at a time.

    Attributes:
        state: whether calls go through.
        failures: one after the other, up to now.
        until: Trio time at which it may be probed, while it is open.
        clock: Trio's time.

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
        self._closed_at = -math.inf
        self._parts: deque[list[int]] = deque()
        """[number of the part, calls that ended, failures of them], oldest first."""
        self._probe = probe
        self._rng = rng
        self._counters = counters
        self._name = name
        self._seconds = seconds
        self.clock = clock
        self._why = ""

    async def admit(self, deadline: float) -> None:
        """Return if calls go through again, after a probe where it is time for one.

        Raises:
            SourceDown: they do not; `next_try` says when it is probed next.
            DeadlineExceeded: the probe was not over by `deadline`, which says nothing of the source.

        """
        if self.state == "half-open" or self.clock() < self.until:
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
                self._close()
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
        if self.state == "closed":
            self._part()[1] += 1

    def failed(self, begun: float) -> None:
        """The source did not answer a call that was made at `begun`."""
        if self.state != "closed" or begun < self._closed_at:  # what was under way when it opened says nothing of now
            return
        self.failures += 1
        part = self._part()
        part[1] += 1
        part[2] += 1
        if self.failures >= self._limit:
            self._open("its calls failed one after the other")
        elif self._fails_often():
            self._open("more than half of its calls failed")

    def _part(self) -> list[int]:
        """The part of the window that is now; those that are over are let go of."""
        parts, number = self._parts, int(self.clock() // (WINDOW / PARTS))
        if not parts or parts[-1][0] < number:
            while parts and parts[0][0] <= number - PARTS:
                parts.popleft()
            parts.append([number, 0, 0])
        return parts[-1]

    def _fails_often(self) -> bool:
        calls = sum(part[1] for part in self._parts)
        return calls >= ENOUGH and sum(part[2] for part in self._parts) > SHARE * calls

    def _close(self) -> None:
        self.state = "closed"
        self.failures = 0
        self._closed_at = self.clock()

    def _open(self, why: str = "") -> None:
        if self.state == "closed" and self.clock() - self._closed_at >= WINDOW:
            self._opened = 0
        self._why = why or self._why
        self.state = "open"
        self.failures = 0
        self._parts.clear()
        self._opened += 1
        self._counters.add("breaker.opened")
        longest = min(self._seconds * self._opened, LONGEST)
        # Not all of those who refuse one source shall come back to it together.
        self.until = self.clock() + longest * self._rng.uniform(0.8, 1.2)

    def _down(self) -> SourceDown:
        return SourceDown(self._name, self._why, self.until)


def breaker(circuit: Breaker) -> Layer:
    """Calls go through while the circuit is closed; those that find it open are refused at once, or wait for a probe.

    A call that is cancelled, or whose deadline passed before it was written, says nothing of the source; nor does one
    whose caller gave it next to no time.
    """
    clock = circuit.clock

    def layer(handler: Handler) -> Handler:
        async def guarded(call: Call) -> Outcome:
            if circuit.state != "closed":
                await circuit.admit(call.deadline)
            begun = clock()
            try:
                outcome = await handler(call)
            except ConnectionLost:
                circuit.failed(begun)
                raise
            except DeadlineExceeded as exc:
                if is_too_slow(exc, call, begun, clock()):
                    circuit.failed(begun)
                raise
            circuit.succeeded()
            return outcome

        return guarded

    return layer
