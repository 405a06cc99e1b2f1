"""What nearly every source has, in one piece: the deadline, the first attempt of those that retry makes, and the slots.

As three layers they cost each call two coroutines and looks at the clock more: 0.3 of 11 µs. What it does is theirs to
say; whatever is rare is left to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from cord_trio.errors import CallError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.call import Call, Handler, Layer, Outcome
    from cord_trio.layers.limit import Slots
    from cord_trio.layers.retry import Again, RetryBudget


def plain(
    seconds: float,
    *,
    longest: float,
    budget: RetryBudget,
    after: Callable[[Handler], Again],
    limit: Layer,
    slots: Slots,
    clock: Callable[[], float],
) -> Layer:
    """The same as `deadline`, `retry` and `limit`, one within the other.

    Args:
        seconds: of the deadline.
        longest: as far as progress moves it.
        budget: of the retries; with the clock of all.
        after: what goes on after a first attempt that failed.
        limit: around further attempts.
        slots: of that layer.
        clock: Trio's time.

    """
    took, queue = budget.times.last, slots.queue

    def layer(handler: Handler) -> Handler:
        again = after(limit(handler))

        async def plainly(call: Call) -> Outcome:
            begun = budget.deposit()
            began, inherited = begun - call.spent, call.deadline
            if began + seconds < inherited:
                latest = min(inherited, began + longest)
                call = replace(call, deadline=began + seconds, patience=seconds, latest=latest)
            try:
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
                return await again(call, exc)
            took.append(clock() - begun)
            return outcome

        return plainly

    return layer
