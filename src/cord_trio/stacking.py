"""The layers of one source, in their order. Stacks are built when a source is configured, never for a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from cord_trio import layers
from cord_trio.call import stack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.call import Handler, Layer
    from cord_trio.config import Source
    from cord_trio.protocol.tools import Annotations
    from cord_trio.surroundings import Surroundings


@attrs.frozen
class Ends:
    """What lies below the layers of one source.

    Attributes:
        send: takes a call that all layers have let through.
        resume: takes the answer to a call that waits for it.
        probe: sees whether the source answers what has no effects; raises as a call does.
        annotations: of the tool with an exported name; None if there is no such tool.

    """

    send: Handler
    resume: Handler
    probe: Callable[[], Awaitable[object]]
    annotations: Callable[[str], Annotations | None]


@attrs.frozen
class Stacked:
    """A source behind its layers.

    Attributes:
        call: takes its calls.
        resume: takes answers to those of its calls that wait.
        slots: for its calls.
        breaker: its circuit, if it has one.

    """

    call: Handler
    resume: Handler
    slots: layers.Slots
    breaker: layers.Breaker | None


def stacked(source: Source, ends: Ends, around: Surroundings) -> Stacked:
    """The layers that `source` is configured with. One that is off is not there."""
    timer, counters, rng, name = around.timer, around.counters, around.rng, source.name
    # The run's own clock, without the calls that lead to it from `trio.current_time`.
    clock = trio.lowlevel.current_clock().current_time
    deadline = layers.deadline(source.deadline, longest=around.bounds.call_longest, clock=clock)
    attempts: list[Layer] = [
        layers.retry(
            source.retries + 1, budget=layers.RetryBudget(clock=clock), rng=rng, timer=timer, counters=counters,
            trusted=source.trust, annotations=ends.annotations, clock=clock,
        ),
    ]  # fmt: skip
    circuit = None
    if source.breaker is not None:
        circuit = layers.Breaker(
            source.breaker, probe=ends.probe, rng=rng, counters=counters, name=name, clock=clock
        )  # fmt: skip
        attempts.append(layers.breaker(circuit))
    if source.rate is not None:
        attempts.append(layers.rate(source.rate, source.burst, timer=timer, counters=counters, name=name))
    slots = layers.Slots(source.slots, timer=timer, counters=counters, name=name)
    limit = layers.limit(slots, timer=timer, counters=counters, name=name)
    telling = [layers.tell_deadline()] if source.tell_deadline else []
    return Stacked(
        stack(ends.send, deadline, *attempts, limit, *telling), stack(ends.resume, deadline, limit), slots, circuit
    )
