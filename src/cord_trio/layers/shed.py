"""Refusing before queueing: a call that would wait in vain is told at once, while its caller can still choose."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from cord_trio.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.counters import Counters
    from cord_trio.layers.limit import Slots
    from cord_trio.layers.times import Times


def shed(
    gate: Slots,
    times: Times,
    *,
    most: float = math.inf,
    counters: Counters,
    name: str,
    clock: Callable[[], float] = trio.current_time,
) -> Layer:
    """Calls are refused that would find a full queue, or would probably get a slot after their deadline.

    The expected wait is that of the queue as it is: as many calls as wait already, each as long as half of the
    last ones took, over all the slots.

    Args:
        gate: the slots, and their queue.
        times: how long calls have held a slot.
        most: calls that may wait; one more gets `Overloaded`, which names `<name>.queue`. One whose time does
            not suffice gets it too, naming `<name>.wait` and the seconds that it would have waited at most.
        counters: counts what was refused.
        name: whose slots they are, for errors.
        clock: Trio's time.

    """

    def layer(handler: Handler) -> Handler:
        def shedding(call: Call) -> Awaitable[Outcome]:
            if gate.taken >= gate.size:
                waiting = gate.waiting
                if waiting >= most:
                    counters.add("shed.queue")
                    raise Overloaded(f"{name}.queue", most)
                left = call.deadline - clock()
                if (waiting + 1) * times.quantile(0.5) / gate.size > left:
                    counters.add("shed.wait")
                    raise Overloaded(f"{name}.wait", max(0.0, left))
            return handler(call)

        return shedding

    return layer
