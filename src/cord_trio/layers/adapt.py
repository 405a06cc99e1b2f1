"""Finding out how many calls a source can take at once: more while that goes well, fewer as soon as it is too much.

Additive increase, multiplicative decrease. It needs no clock and no idea of how fast a call should be: tools of one
server differ too much for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cord_trio.errors import DeadlineExceeded, Refused

if TYPE_CHECKING:
    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.counters import Counters
    from cord_trio.layers.limit import Slots

LESS: Final = 0.7
"""What is left of the slots after a sign of overload."""


def adapt(gate: Slots, *, most: int, counters: Counters) -> Layer:
    """The slots follow what the source can take: from 1 to `most` of them. It belongs right below `limit`.

    One more after as many calls as there are slots were answered that had the last free one; 0.7 of them after a
    call that the source turned away, or that timed out. Calls that began before the slots were last made fewer
    say nothing any more: one hiccup is one sign, however many calls it takes down. Only first attempts count.

    Args:
        gate: the slots.
        most: of them.
        counters: counts each change.

    """
    cuts = well = 0

    def layer(handler: Handler) -> Handler:
        async def adapting(call: Call) -> Outcome:
            nonlocal cuts, well
            began, full = cuts, gate.taken >= gate.size
            try:
                outcome = await handler(call)
            except (DeadlineExceeded, Refused) as exc:
                hint = call.attempt == 1 and (type(exc) is not DeadlineExceeded or exc.executed != "no")
                if hint and began == cuts:
                    cuts, well = cuts + 1, 0
                    fewer = max(1, int(gate.size * LESS))
                    if fewer < gate.size:
                        counters.add("adapt.fewer")
                        gate.resize(fewer)
                raise
            if full and began == cuts and gate.size < most and call.attempt == 1:
                well += 1
                if well >= gate.size:
                    well = 0
                    counters.add("adapt.more")
                    gate.resize(gate.size + 1)
            return outcome

        return adapting

    return layer
