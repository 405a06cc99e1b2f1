from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from cord_trio.call import Call, Complete, Outcome
from cord_trio.cell import Timer
from cord_trio.counters import Counters
from cord_trio.errors import Overloaded
from cord_trio.layers import Slots, Times, limit, shed, timed

if TYPE_CHECKING:
    from trio.testing import MockClock


async def answer(call: Call) -> Outcome:
    await trio.sleep(float(call.name or "0"))
    return Complete(Raw(b"{}"))


async def test_a_full_queue_refuses_before_the_wait_is_in_vain(autojump_clock: MockClock) -> None:
    counters, times = Counters(), Times()
    gate = Slots(1, timer=Timer(), counters=counters, name="web")
    around = shed(gate, times, most=1, counters=counters, name="web")
    handler = around(limit(gate, timer=Timer(), counters=counters, name="web")(answer))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handler, Call("tools/call", "1"))
        await wait_all_tasks_blocked()
        nursery.start_soon(handler, Call("tools/call", "1"))
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as caught:
            await handler(Call("tools/call", "1"))
        assert (caught.value.bound, caught.value.limit, caught.value.executed) == ("web.queue", 1, "no")
        assert (gate.taken, gate.waiting, counters["shed.queue"]) == (1, 1, 1)


@pytest.mark.parametrize(("within", "refused"), [(3.0, True), (5.0, False)])
async def test_a_call_that_would_get_its_slot_too_late_is_refused_at_once(
    within: float, refused: bool, autojump_clock: MockClock
) -> None:
    counters, times, timer = Counters(), Times(), Timer()
    gate = Slots(1, timer=timer, counters=counters, name="web")
    held = timed(times, clock=trio.current_time)
    around = shed(gate, times, counters=counters, name="web")
    handler = around(limit(gate, timer=timer, counters=counters, name="web")(held(answer)))
    await handler(Call("tools/call", "2"))  # so long do they take
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        async with trio.open_nursery() as callers:
            for _ in range(2):
                callers.start_soon(handler, Call("tools/call", "2"))
                await wait_all_tasks_blocked()
            begun = trio.current_time()
            if refused:
                with pytest.raises(Overloaded) as caught:
                    await handler(Call("tools/call", "2", deadline=begun + within))
                assert (caught.value.bound, round(caught.value.limit, 6)) == ("web.wait", within)
                assert (trio.current_time(), counters["shed.wait"]) == (begun, 1)
            else:
                await handler(Call("tools/call", "0.5", deadline=begun + within))
        nursery.cancel_scope.cancel("test over")


async def test_while_a_slot_is_free_nothing_is_refused() -> None:
    gate = Slots(1, timer=Timer(), counters=Counters(), name="web")
    times = Times()
    times.last.append(100.0)
    handler = shed(gate, times, counters=Counters(), name="web")(answer)
    await handler(Call("tools/call", deadline=trio.current_time() + 1))


def test_durations_are_looked_up_by_how_many_were_no_longer() -> None:
    times = Times(kept=100)
    assert (times.quantile(0.5), times.quantile(0.95, least=1)) == (0.0, 0.0)
    times.last.extend(range(1000))  # the newest hundred are kept
    assert [times.quantile(part) for part in (0.0, 0.5, 0.95, 1.0)] == [900, 950, 995, 999]
    assert times.quantile(0.5, least=101) == 0.0
