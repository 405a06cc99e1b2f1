"""Finding out how many calls a source can take at once: more while that goes well, fewer as soon as it is too much.

Additive increase, multiplicative decrease. How fast a call should be is only compared with calls of the same name that
were made at ease: tools of one server differ too much for anything else.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.errors import DeadlineExceeded, Refused
from cord_trio.layers.times import Times, is_too_slow

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.counters import Counters
    from cord_trio.layers.limit import Slots

LESS: Final = 0.7
"""What is left of the slots after a sign of overload."""

SLOWER: Final = 2.0
"""An answer that takes more than this many times what it takes at ease has waited at the server for half of that."""

USUAL: Final = 0.9
"""The part of the calls at ease that are no slower than what they usually take."""

SAMPLES: Final = 10
"""Calls at ease that must have been seen before it is known what they usually take."""

NAMES: Final = 256
"""Tools and resources of which that is known, those called last."""


def adapt(gate: Slots, *, most: int, counters: Counters, clock: Callable[[], float] = trio.current_time) -> Layer:
    """The slots follow what the source can take: from 1 to `most` of them. It belongs right below `limit`.

    A round is as many calls as there are slots, each of which had the last free one and was answered. After a round
    there is one more; or 0.7 of them, where more than half of the round took more than twice what the same tools take
    while at most half of the slots are in use: then they queue at the server. And 0.7 of them after a call that the
    source turned away, or that timed out. Calls that began before the slots were last made fewer say nothing any
    more: one hiccup is one sign, however many calls it takes down. Only first attempts count.

    Args:
        gate: the slots.
        most: of them.
        counters: counts each change.
        clock: Trio's time.

    """
    cuts = answered = slow = 0
    known: OrderedDict[str | None, Times] = OrderedDict()

    def fewer() -> None:
        nonlocal cuts, answered, slow
        cuts, answered, slow = cuts + 1, 0, 0
        size = max(1, int(gate.size * LESS))
        if size < gate.size:
            counters.add("adapt.fewer")
            gate.resize(size)

    def times_of(name: str | None) -> Times:
        times = known.get(name)
        if times is None:
            times = known[name] = Times()
            if len(known) > NAMES:
                known.popitem(last=False)
        return times

    def at_ease() -> bool:
        return gate.taken <= max(1, gate.size // 2)

    def round_of(call: Call, took: float) -> None:
        """Count an answer to a call that had the last free slot."""
        nonlocal answered, slow
        usual = times_of(call.name).quantile(USUAL, SAMPLES)
        answered += 1
        slow += bool(usual) and took > SLOWER * usual
        if answered < gate.size:
            return
        if 2 * slow > answered:
            counters.add("adapt.slower")
            fewer()
            return
        answered = slow = 0
        if gate.size < most:
            counters.add("adapt.more")
            gate.resize(gate.size + 1)

    def layer(handler: Handler) -> Handler:
        async def adapting(call: Call) -> Outcome:
            began, full, ease, begun = cuts, gate.taken >= gate.size, at_ease(), clock()
            try:
                outcome = await handler(call)
            except (DeadlineExceeded, Refused) as exc:
                hint = not isinstance(exc, DeadlineExceeded) or is_too_slow(exc, call, begun, clock())
                if hint and call.attempt == 1 and began == cuts:
                    fewer()
                raise
            if call.attempt == 1:
                took = clock() - begun
                if ease and at_ease():
                    times_of(call.name).last.append(took)
                if full and began == cuts:
                    round_of(call, took)
            return outcome

        return adapting

    return layer
