from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete, Outcome
from cord_trio.counters import Counters
from cord_trio.errors import ConnectionLost, Refused
from cord_trio.layers import RetryBudget, hedge

if TYPE_CHECKING:
    from trio.testing import MockClock

CALL = Call("tools/call", "x__get")


class Source:
    """Ends one call after the other as `plan` says: after so many seconds, with an error or an answer."""

    def __init__(self) -> None:
        self.plan: list[tuple[float, Exception | None]] = []
        self.started = self.cancelled = 0

    async def __call__(self, call: Call) -> Outcome:
        number = self.started
        self.started += 1
        seconds, error = self.plan.pop(0) if self.plan else (1.0, None)
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if error is not None:
            raise error
        return Complete(Raw(b"%d" % number))


async def warm(source: Source, counters: Counters, *, may: bool = True, samples: int = 50, reserve: int = 3) -> object:
    """A hedging handler that has seen `samples` calls of a second each."""
    layer = hedge(may=lambda _: may, budget=RetryBudget(reserve=reserve, ratio=0), counters=counters)
    handler = layer(source)
    for _ in range(samples):
        await handler(CALL)
    source.started = 0
    return handler


async def ask(handler: object, call: Call = CALL) -> Outcome:
    return await handler(call)  # type: ignore[operator,no-any-return]  # it is a handler


async def test_a_slow_call_is_made_once_more_and_the_first_answer_counts(autojump_clock: MockClock) -> None:
    source, counters = Source(), Counters()
    handler = await warm(source, counters)
    source.plan = [(30.0, None), (0.5, None)]
    begun = trio.current_time()
    assert await ask(handler) == Complete(Raw(b"1"))
    assert trio.current_time() == pytest.approx(begun + 1.5)
    assert (source.started, source.cancelled) == (2, 1)
    assert (counters["hedge.hedged"], counters["hedge.first"]) == (1, 1)


async def test_the_first_may_still_be_first(autojump_clock: MockClock) -> None:
    source, counters = Source(), Counters()
    handler = await warm(source, counters)
    source.plan = [(1.2, None), (0.5, None)]
    assert await ask(handler) == Complete(Raw(b"0"))
    assert (source.started, source.cancelled, counters["hedge.first"]) == (2, 1, 0)


async def test_a_call_that_is_quick_or_fails_at_once_is_made_once(autojump_clock: MockClock) -> None:
    source, counters = Source(), Counters()
    handler = await warm(source, counters)
    source.plan = [(0.9, None), (0.5, Refused("busy"))]
    await ask(handler)
    with pytest.raises(Refused):
        await ask(handler)
    assert (source.started, source.cancelled) == (2, 0)


@pytest.mark.parametrize(("may", "samples", "reserve"), [(False, 50, 3), (True, 49, 3), (True, 50, 1)])
async def test_what_may_not_or_is_not_known_or_not_paid_for_is_not_hedged(
    may: bool, samples: int, reserve: int, autojump_clock: MockClock
) -> None:
    source = Source()
    handler = await warm(source, Counters(), may=may, samples=samples, reserve=reserve)
    source.plan = [(30.0, None)]
    await ask(handler)
    assert source.started == 1


async def test_what_may_not_be_made_twice_goes_on_as_it_came(autojump_clock: MockClock) -> None:
    got: list[Call] = []

    async def source(call: Call) -> Outcome:
        await trio.sleep(1)
        got.append(call)
        return Complete(Raw(b"{}"))

    layer = hedge(may=lambda call: call.name == "x__get", budget=RetryBudget(), counters=Counters(), samples=1)
    handler = layer(source)
    write = Call("tools/call", "x__write")
    for _ in range(3):
        await handler(CALL)
        await handler(write)
    assert [call is write for call in got] == [False, True] * 3
    assert [call.apart for call in got] == [None, None, [], None, [], None]


async def test_a_call_without_time_for_it_is_not_hedged(autojump_clock: MockClock) -> None:
    source = Source()
    handler = await warm(source, Counters())
    source.plan = [(30.0, None)]
    await ask(handler, Call("tools/call", "x__get", deadline=trio.current_time() + 0.9))
    assert source.started == 1


async def test_if_both_fail_it_is_known_whether_one_may_have_run(autojump_clock: MockClock) -> None:
    source = Source()
    handler = await warm(source, Counters(), reserve=8)
    source.plan = [(2.0, Refused("busy")), (5.0, ConnectionLost("gone"))]
    with pytest.raises(Refused) as caught:
        await ask(handler)
    assert caught.value.executed == "unknown"
    source.plan = [(2.0, Refused("busy")), (5.0, None)]
    assert await ask(handler) == Complete(Raw(b"3"))  # one failure does not end the other


async def test_a_caller_who_leaves_cancels_both(autojump_clock: MockClock) -> None:
    source = Source()
    handler = await warm(source, Counters())
    source.plan = [(30.0, None), (30.0, None)]
    with trio.move_on_after(5):
        await ask(handler)
    assert (source.started, source.cancelled) == (2, 2)
