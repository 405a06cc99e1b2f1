from __future__ import annotations

import math

import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from cord_trio.call import Call, Complete, Outcome
from cord_trio.counters import Counters
from cord_trio.errors import ConnectionLost, Overloaded
from cord_trio.layers import Allowance, budget

TOOL = Call("tools/call", "x__y", {"arguments": Raw(b"{}")})


class Source:
    def __init__(self, *ends: Exception) -> None:
        self.ends = list(ends)
        self.calls = 0

    async def __call__(self, call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        self.calls += 1
        if self.ends:
            raise self.ends.pop(0)
        return Complete(Raw(b"12345678"))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def allowance(calls: float = math.inf, size: float = math.inf, clock: Clock | None = None) -> Allowance:
    return Allowance(calls, size, every=60.0, counters=Counters(), name="x", clock=clock or Clock())


async def test_calls_are_counted_until_the_time_begins_anew() -> None:
    clock, source = Clock(), Source()
    handler = budget(allowance(calls=2, clock=clock))(source)
    clock.now = 5.0
    for _ in range(2):
        await handler(TOOL)
    clock.now = 64.9
    with pytest.raises(Overloaded) as caught:
        await handler(TOOL)
    assert (caught.value.bound, caught.value.limit, source.calls) == ("x.budget.calls", 2, 2)
    clock.now = 65.0
    await handler(TOOL)


async def test_bytes_of_arguments_and_results_are_counted() -> None:
    account = allowance(size=13)
    handler = budget(account)(Source())
    await handler(TOOL)
    assert account.spent_bytes == 10
    await handler(TOOL)  # that its answer would be too much could not be known
    assert account.spent_bytes == 20
    with pytest.raises(Overloaded, match=r"x\.budget\.bytes"):
        await handler(TOOL)


@pytest.mark.parametrize(("executed", "spent"), [("no", 0), ("unknown", 1)])
async def test_what_provably_did_not_run_costs_nothing(executed: str, spent: int) -> None:
    account = allowance(calls=5)
    with pytest.raises(ConnectionLost):
        await budget(account)(Source(ConnectionLost("gone", executed)))(TOOL)  # type: ignore[arg-type]  # one of them
    assert (account.spent_calls, account.reserved_calls, account.reserved_bytes) == (spent, 0, 0)
    assert account.spent_bytes == 2 * spent


async def test_what_is_under_way_is_reserved_and_a_cancelled_call_is_spent() -> None:
    account = allowance(calls=1)

    async def deaf(call: Call) -> Outcome:
        await trio.sleep_forever()
        raise AssertionError

    handler = budget(account)(deaf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handler, TOOL)
        await wait_all_tasks_blocked()
        assert (account.spent_calls, account.reserved_calls) == (0, 1)
        with pytest.raises(Overloaded):
            await handler(TOOL)
        nursery.cancel_scope.cancel("test over")
    assert (account.spent_calls, account.reserved_calls) == (1, 0)


async def test_a_call_that_goes_on_is_one_call() -> None:
    account = allowance(calls=1)
    handler = budget(account)(Source())
    await handler(TOOL)
    await handler(Call("tools/call", "x__y", {"requestState": Raw(b'"s"'), "inputResponses": Raw(b"{}")}))
    await handler(Call("tools/call", "x__y", park="token"))
    assert account.spent_calls == 1


async def test_answers_that_nobody_asked_for_do_not_make_a_call_free() -> None:
    handler = budget(allowance(calls=1))(Source())
    await handler(TOOL)
    with pytest.raises(Overloaded):
        await handler(Call("tools/call", "x__y", {"inputResponses": Raw(b"{}")}))
