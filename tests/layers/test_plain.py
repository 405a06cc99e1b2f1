"""The layers of nearly every source in one piece do what they do one within the other."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from trio.testing import MockClock

from cord_trio.call import Call, Complete, stack
from cord_trio.cell import Timer
from cord_trio.counters import Counters
from cord_trio.errors import CallError, ConnectionLost, Refused
from cord_trio.layers import Meter, RetryBudget, Slots, attempts_of, deadline, limit, plain, rate, retries

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.call import Handler, Outcome

ENDS: dict[str, Callable[[], Exception]] = {
    "lost": lambda: ConnectionLost("gone"),
    "unsent": lambda: ConnectionLost("gone", "no"),
    "refused": lambda: Refused(status=503, retry_after=1.0),
    "bug": lambda: ValueError("no"),
}


class Ask(NamedTuple):
    """One call: when it is made, and with what; how long an attempt takes, and how each ends."""

    at: float
    deadline: float
    spent: float
    takes: float
    ends: list[str]
    patience: float


asks = st.builds(
    Ask,
    st.sampled_from([0.0, 0.0, 1.0, 4.0]),
    st.sampled_from([2.0004, 9.0004, 1000.0]),  # never the moment at which something ends
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([0.0, 1.0, 7.0]),
    st.lists(st.sampled_from(["done", *ENDS]), min_size=1, max_size=3),
    st.sampled_from([1.5, 1000.0]),
)


def run(asks: list[Ask], size: int, per_second: float | None, *, whole: bool) -> list[object]:
    """What happens, and when: `whole` in one piece, else layer by layer; with a rate unless that is None."""
    seen: list[object] = []

    async def main() -> None:
        timer, counters, clock = Timer(), Counters(), trio.current_time
        start = clock()
        budget = RetryBudget(reserve=2, clock=clock)
        slots = Slots(size, waiting=2, timer=timer, counters=counters, name="web")
        limits = [limit(slots, timer=timer, counters=counters, name="web")]
        meter: Meter | None = None
        if per_second is not None:
            meter = Meter(per_second, None, timer=timer, counters=counters, name="web", clock=clock)
            limits.insert(0, rate(meter, timer=timer, counters=counters, name="web"))
        after = retries(
            3, budget=budget, rng=Random(1), timer=timer, counters=counters, trusted=False, annotations=None,
            safe=False, clock=clock,
        )  # fmt: skip

        async def server(call: Call) -> Outcome:
            ask = asks[int(call.name or "")]
            times = [time if time == math.inf else round(time - start, 6) for time in (call.deadline, call.latest)]
            taken = 0 if per_second == math.inf else slots.taken
            seen.append((round(clock() - start, 6), call.name, call.attempt, call.patience, *times, taken))
            await trio.sleep(ask.takes)
            end = ask.ends[min(call.attempt, len(ask.ends)) - 1]
            if end in ENDS:
                raise ENDS[end]()
            return Complete(Raw(b"%d" % call.attempt))

        handler: Handler
        if whole:
            layer = plain(
                6.0, longest=20.0, budget=budget, after=after, limits=limits, slots=slots, meter=meter, clock=clock
            )
            handler = layer(server)
        else:
            first = attempts_of(after, budget=budget, clock=clock)
            handler = stack(server, deadline(6.0, longest=20.0, clock=clock), first, *limits)

        async def make(number: int, ask: Ask) -> None:
            await trio.sleep(ask.at + number * 1e-3)
            end: object = None
            with trio.move_on_after(ask.patience):
                try:
                    end = await handler(Call("tools/call", str(number), deadline=start + ask.deadline, spent=ask.spent))
                except CallError as exc:
                    end = (type(exc), str(exc), exc.executed)
                except ValueError as exc:
                    end = repr(exc)
            seen.append((round(clock() - start, 6), number, end))

        async with trio.open_nursery() as core:
            await core.start(timer.run)
            async with trio.open_nursery() as nursery:
                for number, ask in enumerate(asks):
                    nursery.start_soon(make, number, ask)
            core.cancel_scope.cancel("all have ended")
        assert (slots.taken, slots.waiting, len(timer)) == (0, 0, 0)
        seen.append((sorted(round(each, 6) for each in budget.times.last), dict(counters.snapshot())))

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return sorted(seen, key=repr)  # at one moment Trio's order is random


@settings(deadline=None)
@given(st.lists(asks, min_size=1, max_size=6), st.integers(1, 3), st.sampled_from([None, math.inf, 0.5, 3.0]))
def test_in_one_piece_they_do_what_they_do_one_within_the_other(
    asks: list[Ask], size: int, per_second: float | None
) -> None:
    if per_second == math.inf:
        size = len(asks)  # all go at once after a pause, in Trio's order, which is random
    assert run(asks, size, per_second, whole=True) == run(asks, size, per_second, whole=False)
