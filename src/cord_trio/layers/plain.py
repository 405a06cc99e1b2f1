"""What nearly every source has, in one piece: the deadline, the first attempt of those that retry makes, and the slots.

As three layers they cost each call two coroutines and looks at the clock more: 0.3 of 11 µs; with the rate, which those
over HTTP have, a 20th of a call's instructions. What it does is theirs to say; whatever is rare is left to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from cord_trio.call import stack
from cord_trio.errors import CallError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.layers.limit import Slots
    from cord_trio.layers.rate import Meter
    from cord_trio.layers.retry import Again, RetryBudget


def plain(
    seconds: float,
    *,
    longest: float,
    budget: RetryBudget,
    after: Callable[[Handler], Again],
    limits: Sequence[Layer],
    slots: Slots,
    meter: Meter | None,
    clock: Callable[[], float],
) -> Layer:
    """The same as `deadline`, `retry`, `rate` where there is a meter, and `limit`, one within the other.

    Args:
        seconds: of the deadline.
        longest: as far as progress moves it.
        budget: of the retries; with the clock of all.
        after: what goes on after a first attempt that failed.
        limits: around further attempts: `rate` where there is a meter, and `limit`.
        slots: of the latter.
        meter: of the former; None for none.
        clock: Trio's time.

    """
    took, queue = budget.times.last, slots.queue

    def layer(handler: Handler) -> Handler:
        again = after(stack(handler, *limits))

        async def plainly(call: Call) -> Outcome:
            begun = clock()
            if begun < budget.newest_ends:  # `deposit`, in place
                budget.newest[1] += 1
            else:
                budget.deposit()
            began, inherited = begun - call.spent, call.deadline
            if began + seconds < inherited:
                latest = min(inherited, began + longest)
                call = replace(call, deadline=began + seconds, patience=seconds, latest=latest)
            try:
                if meter is not None and not (meter.free or meter.take()):
                    await meter.wait(call.deadline)
                if slots.taken < slots.size:
                    slots.taken += 1
                else:
                    await slots.wait(call.deadline)
                try:
                    outcome = await handler(call)
                finally:
                    if queue:
                        slots.release()
                    else:
                        slots.taken -= 1
            except CallError as exc:
                if meter is not None:
                    meter.heed(exc)
                return await again(call, exc)
            took.append(clock() - begun)
            return outcome

        return plainly

    return layer
