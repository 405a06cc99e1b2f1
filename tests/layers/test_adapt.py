from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from cord_trio.call import Call, Complete, Handler, Outcome
from cord_trio.cell import Timer
from cord_trio.counters import Counters
from cord_trio.errors import CallError, CallFailed, ConnectionLost, DeadlineExceeded, Refused
from cord_trio.layers import Slots, adapt, limit

if TYPE_CHECKING:
    from trio.testing import MockClock


class Source:
    """Ends each call with what stands under its name, or answers; all of them once `open` is set."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.ends: dict[str | None, Exception] = {}

    async def __call__(self, call: Call) -> Outcome:
        await self.open.wait()
        if call.name in self.ends:
            raise self.ends[call.name]
        return Complete(Raw(b"{}"))


def build(source: Handler, size: int, most: int) -> tuple[Slots, Handler, Counters]:
    counters = Counters()
    gate = Slots(size, timer=Timer(), counters=counters, name="web")
    limited = limit(gate, timer=Timer(), counters=counters, name="web")
    return gate, limited(adapt(gate, most=most, counters=counters)(source)), counters


async def ask(handler: Handler, name: str, attempt: int = 1) -> None:
    try:
        await handler(Call("tools/call", name, attempt=attempt))
    except CallError:
        pass


async def together(handler: Handler, source: Source, *names: str, attempt: int = 1) -> None:
    """Make these calls at once, and let them end."""
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(ask, handler, name, attempt)
        await wait_all_tasks_blocked()
        source.open.set()


async def test_a_full_window_of_answers_at_the_limit_is_one_slot_more() -> None:
    source = Source()
    gate, handler, counters = build(source, 2, most=4)
    await together(handler, source, "a")
    assert gate.size == 2  # it was not the last free one
    source.open = trio.Event()
    await together(handler, source, "a", "b", "c", "d")
    assert gate.size == 3
    assert counters["adapt.more"] == 1


async def test_there_are_never_more_slots_than_the_most() -> None:
    source = Source()
    gate, handler, _ = build(source, 1, most=2)
    for _ in range(20):
        source.open = trio.Event()
        await together(handler, source, "a", "b", "c")
    assert (gate.size, gate.taken) == (2, 0)


@pytest.mark.parametrize("sign", [Refused("busy"), DeadlineExceeded("attempt")], ids=lambda sign: type(sign).__name__)
async def test_a_sign_of_overload_takes_a_third_of_the_slots_once(sign: Exception) -> None:
    source = Source()
    gate, handler, counters = build(source, 10, most=10)
    source.ends = dict.fromkeys("abcdef", sign)
    await together(handler, source, *"abcdefghij")
    assert gate.size == 7
    assert counters["adapt.fewer"] == 1
    source.open = trio.Event()
    await together(handler, source, "a")
    assert gate.size == 4


async def test_the_last_slot_stays() -> None:
    source = Source()
    gate, handler, counters = build(source, 1, most=3)
    source.ends["a"] = Refused("busy")
    await together(handler, source, "a")
    assert (gate.size, counters["adapt.fewer"]) == (1, 0)


@pytest.mark.parametrize(
    "sign", [DeadlineExceeded("in the queue", "no"), ConnectionLost("gone"), CallFailed(-1, "no")], ids=str
)
async def test_other_failures_say_nothing_of_the_load(sign: Exception) -> None:
    source = Source()
    gate, handler, _ = build(source, 10, most=10)
    source.ends["a"] = sign
    await together(handler, source, "a")
    assert gate.size == 10


async def test_only_first_attempts_count() -> None:
    source = Source()
    gate, handler, _ = build(source, 2, most=10)
    source.ends["a"] = Refused("busy")
    await together(handler, source, "a", "b", "c", "d", "e", attempt=2)
    assert gate.size == 2


async def test_slots_that_are_taken_away_in_use_are_not_given_on() -> None:
    gate = Slots(3, timer=Timer(), counters=Counters(), name="web")
    gate.taken = 3
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.wait, trio.current_time() + 1000)
        await wait_all_tasks_blocked()
        gate.resize(1)
        gate.release()
        gate.release()
        assert (gate.taken, gate.waiting) == (1, 1)
        gate.release()
        assert (gate.taken, gate.waiting) == (1, 0)
    gate.release()
    assert gate.taken == 0


async def test_new_slots_go_to_who_waits() -> None:
    gate = Slots(1, timer=Timer(), counters=Counters(), name="web")
    gate.taken = 1
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(gate.wait, trio.current_time() + 1000)
        await wait_all_tasks_blocked()
        gate.resize(3)
        assert (gate.taken, gate.waiting) == (3, 1)
        gate.release()
    with pytest.raises(ValueError, match="slot"):
        gate.resize(0)


class Server:
    """Works on `size` calls at once; each takes a second, and further ones wait at the server."""

    def __init__(self, size: int) -> None:
        self.limiter = trio.CapacityLimiter(size)

    async def __call__(self, call: Call) -> Outcome:
        async with self.limiter:
            await trio.sleep(1)
        return Complete(Raw(b"{}"))


async def press(handler: Handler, callers: int, seconds: float) -> None:
    """Have so many call without a pause."""

    async def caller() -> None:
        while True:
            await handler(Call("tools/call", "a"))

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(callers):
                nursery.start_soon(caller)


async def test_answers_that_come_late_since_they_queue_at_the_server_take_slots_away(autojump_clock: MockClock) -> None:
    server = Server(4)
    gate, handler, counters = build(server, 32, most=32)
    for _ in range(10):
        await handler(Call("tools/call", "a"))
    await press(handler, 64, 200)
    assert 4 <= gate.size <= 12  # the server is busy, and no call waits there for much longer than it takes
    assert counters["adapt.slower"] >= 3
    server.limiter.total_tokens = 32
    await press(handler, 64, 200)
    assert gate.size == 32
    assert gate.taken == 0


async def test_one_slow_tool_among_others_takes_no_slots_away(autojump_clock: MockClock) -> None:
    async def source(call: Call) -> Outcome:
        await trio.sleep(30 if call.name == "slow" else 1)
        return Complete(Raw(b"{}"))

    gate, handler, _ = build(source, 4, most=4)
    for name in ["quick", "slow"] * 10:
        await handler(Call("tools/call", name))
    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(ask, handler, "slow" if number % 2 else "quick")
    assert gate.size == 4


async def test_an_impatient_caller_takes_no_slots_away_from_others(autojump_clock: MockClock) -> None:
    source = Source()
    source.open.set()
    source.ends["a"] = DeadlineExceeded("late")
    gate, handler, _ = build(source, 10, most=10)
    for _ in range(5):
        with pytest.raises(DeadlineExceeded):
            await handler(Call("tools/call", "a", deadline=trio.current_time()))
    assert gate.size == 10
