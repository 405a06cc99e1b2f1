from __future__ import annotations

import math
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from cord_trio.call import Call, Complete, Outcome
from cord_trio.counters import Counters
from cord_trio.errors import CallError, CallFailed, ConnectionLost, DeadlineExceeded, SourceDown
from cord_trio.fabric import open_fabric
from cord_trio.layers import Breaker, breaker
from cord_trio.testing import ToolServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

    from cord_trio.config import InProcess

DONE = Complete(Raw(b"{}"))


class World:
    """A source that fails as it is told, and its circuit."""

    def __init__(self, failures: int = 2) -> None:
        self.takes = 0.0
        self.fails: Callable[[], Exception] | None = None
        self.sick = False
        self.slow = 0.0
        self.called = self.probed = 0
        self.counters = Counters()
        self.circuit = Breaker(
            failures, probe=self.probe, rng=Random(0), counters=self.counters, name="web", seconds=10.0
        )
        self.handler = breaker(self.circuit)(self.answer)

    async def answer(self, call: Call) -> Outcome:
        self.called += 1
        await trio.sleep(self.takes)
        if self.fails is not None:
            raise self.fails()
        return DONE

    async def probe(self) -> None:
        self.probed += 1
        await trio.sleep(self.slow)
        if self.sick:
            raise ConnectionLost("gone")

    @property
    def state(self) -> str:
        return self.circuit.state

    async def call(self, within: float = math.inf) -> object:
        """How a call ended."""
        try:
            return await self.handler(Call("tools/call", deadline=trio.current_time() + within))
        except Exception as exc:
            return exc

    async def open(self) -> None:
        self.fails = lambda: ConnectionLost("gone")
        while self.circuit.state == "closed":
            await self.call()
        self.called = 0


async def test_so_many_failures_in_a_row_open_it_and_nothing_goes_through(autojump_clock: MockClock) -> None:
    world = World()
    world.fails = lambda: ConnectionLost("gone")
    await world.call()
    world.fails = None
    await world.call()
    assert world.circuit.failures == 0
    await world.open()
    end = await world.call()
    assert isinstance(end, SourceDown)
    assert end.executed == "no"
    assert end.next_try == world.circuit.until
    assert 8 <= world.circuit.until - trio.current_time() <= 12
    assert (world.called, world.probed) == (0, 0)


@pytest.mark.parametrize(
    "failure", [lambda: CallFailed(-32603, "no"), lambda: DeadlineExceeded("queued", "no"), lambda: ValueError("ours")]
)
async def test_what_says_nothing_of_the_source_does_not_count(
    failure: Callable[[], Exception], autojump_clock: MockClock
) -> None:
    world = World()
    world.fails = failure
    for _ in range(9):
        await world.call()
    assert world.circuit.state == "closed"


async def test_a_probe_closes_it_and_the_call_goes_on(autojump_clock: MockClock) -> None:
    world = World()
    await world.open()
    await trio.sleep_until(world.circuit.until)
    world.fails = None
    assert await world.call() is DONE
    assert (world.called, world.probed, world.circuit.state) == (1, 1, "closed")


@pytest.mark.parametrize(("sick", "slow"), [(True, 0.0), (False, 60.0)])
async def test_a_probe_that_fails_opens_it_for_longer(sick: bool, slow: float, autojump_clock: MockClock) -> None:
    world = World()
    await world.open()
    world.sick, world.slow = sick, slow
    for times in range(2, 40):
        await trio.sleep_until(world.circuit.until)
        assert isinstance(await world.call(), SourceDown)
        assert world.circuit.until - trio.current_time() <= min(10.0 * times, 300.0) * 1.2
    assert world.called == 0
    assert world.circuit.until - trio.current_time() >= 200


async def test_there_is_one_probe_at_a_time_and_others_are_refused(autojump_clock: MockClock) -> None:
    world = World()
    await world.open()
    world.fails, world.slow = None, 1.0
    await trio.sleep_until(world.circuit.until)
    ends: list[object] = []

    async def call() -> None:
        ends.append(await world.call())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(call)
    assert world.probed == 1
    assert [type(end) for end in ends].count(SourceDown) == 2
    assert ends.count(DONE) == 1


async def test_a_probe_whose_caller_leaves_is_made_by_the_next(autojump_clock: MockClock) -> None:
    world = World()
    await world.open()
    world.fails, world.slow = None, 1.0
    await trio.sleep_until(world.circuit.until)
    with trio.move_on_after(0.5):
        await world.handler(Call("tools/call"))
    assert world.circuit.state == "open"
    assert await world.call() is DONE
    assert world.probed == 2


async def test_a_call_does_not_wait_for_a_probe_beyond_its_deadline(autojump_clock: MockClock) -> None:
    world = World()
    await world.open()
    world.fails, world.slow = None, 2.0
    await trio.sleep_until(world.circuit.until)
    start, until = trio.current_time(), world.circuit.until
    end = await world.call(within=0.5)
    assert isinstance(end, DeadlineExceeded)
    assert (end.executed, trio.current_time() - start) == ("no", 0.5)
    assert (world.circuit.state, world.circuit.until) == ("open", until)  # it says nothing of the source
    assert await world.call() is DONE


async def test_more_than_half_of_twenty_calls_in_the_window_open_it(autojump_clock: MockClock) -> None:
    world = World(failures=5)
    for number in range(19):
        world.fails = (lambda: ConnectionLost("gone")) if number % 2 else None
        await world.call()
    world.fails = None
    await trio.sleep(29)
    await world.call()  # 9 of 20 have failed
    world.fails = lambda: ConnectionLost("gone")
    await world.call()
    assert world.state == "closed"  # 10 of 21
    for _ in range(2):
        await world.call()
    assert world.state == "open"  # 12 of 23
    with pytest.raises(SourceDown, match="more than half of its calls failed"):
        await world.handler(Call("tools/call"))


async def test_a_share_is_of_enough_calls_and_of_the_window_alone(autojump_clock: MockClock) -> None:
    world = World(failures=99)
    world.fails = lambda: ConnectionLost("gone")
    for _ in range(19):
        await world.call()
    assert world.state == "closed"  # too few say nothing
    await trio.sleep(31)
    await world.call()
    assert world.state == "closed"
    world.fails = None
    for _ in range(30):
        await world.call()
        await trio.sleep(0.1)
    world.fails = lambda: ConnectionLost("gone")
    for _ in range(29):
        await world.call()
    assert world.state == "closed"  # 30 of 60: not more than half
    await world.call()
    assert world.state == "open"


async def test_a_source_that_only_answers_its_probes_stays_out_for_ever_longer(autojump_clock: MockClock) -> None:
    world = World()
    await world.open()
    for times in range(2, 6):
        await trio.sleep_until(world.circuit.until)
        while world.state != "closed" or not world.called:
            await world.call()
        await world.open()
        assert 8 * times <= world.circuit.until - trio.current_time() <= 12 * times
    await trio.sleep_until(world.circuit.until)
    world.fails = None
    await world.call()
    await trio.sleep(31)
    await world.open()
    assert world.circuit.until - trio.current_time() <= 12  # it was well for a whole window


@pytest.mark.parametrize(
    ("takes", "call", "state"),
    [
        (0.1, {"within": 0.1}, "closed"),  # whoever calls has no patience
        (1.0, {"within": 1.0}, "open"),
        (0.1, {"within": 0.1, "patience": 0.1}, "open"),  # as it is configured
        (0.1, {}, "open"),  # an attempt of a call that goes on
    ],
)
async def test_an_impatient_caller_does_not_open_it_for_others(
    takes: float, call: dict[str, float], state: str, autojump_clock: MockClock
) -> None:
    world = World()
    world.fails, world.takes = lambda: DeadlineExceeded("late"), takes
    for _ in range(9):
        until = trio.current_time() + call.get("within", math.inf)
        with suppress(CallError):
            await world.handler(Call("tools/call", deadline=until, patience=call.get("patience", 0.0)))
    assert world.state == state


async def test_what_began_before_it_was_open_does_not_open_it_again(autojump_clock: MockClock) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        world.fails, world.takes = lambda: ConnectionLost("gone"), 60.0
        for _ in range(3):
            nursery.start_soon(world.call)
        await wait_all_tasks_blocked()
        world.takes = 0.0
        await world.open()
        await trio.sleep_until(world.circuit.until)
        world.fails = None
        await world.call()
        world.fails = lambda: ConnectionLost("gone")
    assert world.state == "closed"


async def test_what_was_under_way_when_it_opened_does_not_close_it(autojump_clock: MockClock) -> None:
    world = World()
    await world.open()
    world.circuit.succeeded()
    assert world.circuit.state == "open"


def test_it_takes_a_failure() -> None:
    with pytest.raises(ValueError, match="it takes a failure"):
        World(0)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_source_with_a_breaker_is_probed_and_not_called(era: str, autojump_clock: MockClock) -> None:
    server = ToolServer(era=era)
    source: InProcess = server.in_process(name="x", breaker=2, deadline=1.0)
    async with open_fabric([source]) as fabric:
        await fabric.wait_started()
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                await fabric.call("x__sleep", {"seconds": 9})
        with pytest.raises(SourceDown, match="one after the other"):
            await fabric.call("x__echo", {"text": "1"})
        assert fabric.tree().children[0].facts["breaker"] == "open"
        calls = server.received["tools/call"]
        await trio.sleep(40)
        assert (await fabric.call("x__echo", {"text": "2"})).text == "2"
        assert server.received["tools/call"] == calls + 1
        assert server.received["ping" if era == "legacy" else "server/discover"] >= 1
        assert fabric.tree().children[0].facts["breaker"] == "closed"
