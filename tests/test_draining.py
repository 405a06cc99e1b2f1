"""The drain of a fabric and of one source: what goes on, what is cut off, and what is told."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.call import Call
from cord_trio.cell import Timer
from cord_trio.config import Bounds, Config, GatewayConfig
from cord_trio.counters import Counters
from cord_trio.errors import CallError, Draining, DrainTimeout, Refused, SourceDown
from cord_trio.fabric import open_fabric
from cord_trio.layers import Meter, RetryBudget, rate, retry
from cord_trio.testing import ToolServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import cord_trio as cord
    from cord_trio.call import Outcome


async def doze(ctx: cord.Context, payload: object) -> None:
    """An agent that takes a second."""
    await trio.sleep(1)


async def hang(ctx: cord.Context, payload: object) -> None:
    """An agent that never ends."""
    await trio.sleep_forever()


async def ending(ask: Callable[[], Awaitable[object]], into: list[object]) -> None:
    """Keep how `ask` ends."""
    try:
        into.append(await ask())
    except CallError as exc:
        into.append(exc)


async def test_the_stages_are_told_in_order_and_counted(autojump_clock: MockClock) -> None:
    async with open_fabric() as fabric:
        assert (fabric.stage, fabric.tree().state) == ("running", "running")
        async with trio.open_nursery() as nursery:
            fabric.agent("slow", doze)
            nursery.start_soon(fabric.ask, "slow")
            await wait_all_tasks_blocked()
            nursery.start_soon(fabric.drain, 5.0)
            await wait_all_tasks_blocked()
            assert (fabric.stage, fabric.tree().state) == ("draining", "draining")
        assert (fabric.stage, fabric.tree().state) == ("closing", "closing")
    assert (fabric.stage, fabric.tree().state) == ("closed", "closed")
    assert [fabric.counters[f"fabric.{stage}"] for stage in ("draining", "closing", "closed")] == [1, 1, 1]


async def test_a_block_that_fails_goes_through_all_stages(autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError):
        async with open_fabric() as fabric:
            raise KeyError
    assert fabric.stage == "closed"
    assert fabric.counters["fabric.draining"] == fabric.counters["fabric.closing"] == 1


async def test_a_cancelled_block_goes_through_all_stages(autojump_clock: MockClock) -> None:
    with trio.move_on_after(1):
        async with open_fabric([ToolServer().in_process(name="x")]) as fabric:
            await trio.sleep_forever()
    assert fabric.stage == "closed"


@pytest.mark.parametrize("waits_for", ["its answer", "a slot", "its turn", "a retry", "a start"])
async def test_what_does_not_end_within_the_grace_is_told_so_wherever_it_waits(
    waits_for: str, autojump_clock: MockClock
) -> None:
    endings: list[object] = []
    server = ToolServer(silent=waits_for == "a start")
    source = server.in_process(
        name="x", slots=1, connect=900.0, deadline=1000.0, trust=True,
        rate=0.01 if waits_for == "its turn" else None, burst=1,
    )  # fmt: skip
    async with trio.open_nursery() as outside, open_fabric([source], rng=random.Random(0)) as fabric:

        def call(tool: str, seconds: float) -> None:
            if waits_for == "a start":
                call = Call("tools/call", f"x__{tool}")
                outside.start_soon(ending, lambda: fabric.links["x"].call(call, tool), endings)
            else:
                outside.start_soon(ending, lambda: fabric.call(f"x__{tool}", {"seconds": seconds}), endings)

        if waits_for != "a start":
            await fabric.wait_started()
        if waits_for == "a retry":
            handler = refusing(fabric.timer, fabric._waits[fabric.links["x"]].budget)
            fabric._handlers["x"] = handler
        call("sleep", 300)
        if waits_for in ("a slot", "its turn"):
            await wait_all_tasks_blocked()
            call("sleep", 300)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        assert await fabric.drain(3.0) is (waits_for == "a start")  # that one came in past the fabric
        if waits_for == "a start":
            return  # noqa: ASYNC121  # nothing runs in the nursery that would be left
        await wait_all_tasks_blocked()
        assert trio.current_time() - start == 3
        assert len(endings) == 1 + (waits_for in ("a slot", "its turn"))
        for end in endings:
            assert isinstance(end, Refused if waits_for == "a retry" else DrainTimeout), end
            if isinstance(end, DrainTimeout):
                assert end.grace == 3.0


def refusing(timer: Timer, budget: RetryBudget) -> Callable[[Call], Awaitable[Outcome]]:
    """A handler that is refused for ten minutes, and tries again then."""

    async def refuse(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        raise Refused(status=429, retry_after=600.0)

    layer = retry(2, budget=budget, rng=random.Random(0), timer=timer, counters=Counters(), clock=trio.current_time)
    return layer(refuse)


async def test_a_source_that_is_lost_while_it_drains_is_not_connected_again(autojump_clock: MockClock) -> None:
    server = ToolServer()
    endings: list[object] = []

    async def late(ctx: cord.Context, payload: object) -> object:
        await trio.sleep(2)
        return (await ctx.call("x__echo", {"text": "nested"})).text

    async with open_fabric([server.in_process(name="x")]) as fabric, trio.open_nursery() as nursery:
        fabric.agent("late", late)
        await fabric.wait_started()
        nursery.start_soon(ending, lambda: fabric.ask("late"), endings)
        await wait_all_tasks_blocked()
        nursery.start_soon(fabric.drain, 10.0)
        await wait_all_tasks_blocked()
        assert fabric.tree().children[0].state == "draining"
        server.break_connections()
        await fabric.links["x"].wait_ended()
        assert fabric.links["x"].state == "closed"
    (end,) = endings
    assert isinstance(end, SourceDown)
    assert "and it drains" in str(end)
    assert fabric.links["x"].starts == 1


async def test_a_source_in_its_pause_does_not_come_back_to_a_drain(autojump_clock: MockClock) -> None:
    server = ToolServer(exit_at_start=True)
    config = Config(sources=[server.in_process(name="x")], bounds=Bounds(backoff_first=50.0, backoff_longest=50.0))
    async with open_fabric(config, rng=random.Random(1)) as fabric:
        await fabric.wait_started()
        attempts = fabric.counters["link.down"]
        start = trio.current_time()
        assert await fabric.drain(20.0)
        await fabric.links["x"].wait_ended()
        assert (trio.current_time() - start, fabric.counters["link.down"]) == (0, attempts)


async def test_the_grace_that_is_over_first_counts(autojump_clock: MockClock) -> None:
    endings: list[object] = []
    drained: list[object] = []
    async with trio.open_nursery() as outside, open_fabric([ToolServer().in_process(name="x")]) as fabric:
        await fabric.wait_started()
        outside.start_soon(ending, lambda: fabric.call("x__sleep", {"seconds": 50}), endings)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ending, lambda: fabric.drain(30.0), drained)
            nursery.start_soon(ending, lambda: fabric.drain(2.0), drained)
        assert isinstance(endings[0], DrainTimeout)
        assert endings[0].grace == 2.0
        assert sorted(drained, key=str) == [False, True]


async def test_an_exported_agent_is_cut_off_with_the_same_words(autojump_clock: MockClock) -> None:
    endings: list[object] = []
    async with open_fabric() as fabric, trio.open_nursery() as nursery:
        fabric.agent("hangs", hang, export=True)
        await wait_all_tasks_blocked()
        call = Call("tools/call", "agent__hangs", {"arguments": Raw(b'{"payload":1}')}, deadline=math.inf)
        nursery.start_soon(ending, lambda: fabric.handle(call), endings)
        await wait_all_tasks_blocked()
        assert not await fabric.drain(1.0)
        await wait_all_tasks_blocked()
        assert [str(end) for end in endings] == ["cut off: the fabric drains, and its grace of 1 s is over"]
        assert not fabric.agents.served


async def test_a_conversation_that_is_cut_off_says_why(autojump_clock: MockClock) -> None:
    async with open_fabric() as fabric:
        fabric.agent("hangs", hang)
        job = await fabric.start("hangs")
        assert not await fabric.drain(1.0)
        with pytest.raises(Exception, match="its grace of 1 s is over"):
            await job.result()


# One source


async def test_one_source_drains_by_a_grace_of_its_own(autojump_clock: MockClock) -> None:
    endings: list[object] = []
    servers = {name: ToolServer() for name in "ab"}
    sources = [server.in_process(name=name) for name, server in servers.items()]
    async with trio.open_nursery() as outside, open_fabric(sources) as fabric:
        await fabric.wait_started()
        for name, seconds in (("a", 1), ("a", 90), ("b", 20)):
            outside.start_soon(ending, lambda n=name, s=seconds: fabric.call(f"{n}__sleep", {"seconds": s}), endings)
        await wait_all_tasks_blocked()
        link, start = fabric.links["a"], trio.current_time()
        drained: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ending, lambda: fabric.disconnect("a", grace=4.0), drained)
            await wait_all_tasks_blocked()
            assert (link.state, fabric.stage) == ("draining", "running")
            assert [node.state for node in fabric.source_nodes()] == ["ready", "draining"]
        assert (drained, trio.current_time() - start, link.state) == ([False], 4, "closed")
        assert fabric.counters["fabric.source_drain_unfinished"] == 1
        text, cut = endings
        assert getattr(text, "text", "") == "slept"
        assert str(cut) == "cut off: source 'a' drains, and its grace of 4 s is over"
        assert (await fabric.call("b__echo", {"text": "b"})).text == "b"
        assert await fabric.disconnect("b", grace=60.0) is True
        assert trio.current_time() - start == pytest.approx(20, abs=0.1)


async def test_a_call_between_two_attempts_or_before_its_turn_keeps_the_source(autojump_clock: MockClock) -> None:
    endings: list[object] = []
    source = ToolServer().in_process(name="x", rate=0.5, burst=1)
    async with open_fabric([source]) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()
        for _ in range(3):
            nursery.start_soon(ending, lambda: fabric.call("x__echo", {"text": "hi"}), endings)
        await wait_all_tasks_blocked()
        assert await fabric.disconnect("x", grace=30.0) is True
        assert [getattr(end, "text", end) for end in endings] == ["hi"] * 3


async def test_the_whole_drain_takes_in_sources_that_drain_already(autojump_clock: MockClock) -> None:
    endings: list[object] = []
    async with trio.open_nursery() as outside, open_fabric([ToolServer().in_process(name="x")]) as fabric:
        await fabric.wait_started()
        outside.start_soon(ending, lambda: fabric.call("x__sleep", {"seconds": 500}), endings)
        await wait_all_tasks_blocked()
        outside.start_soon(lambda: fabric.disconnect("x", grace=300.0))
        await wait_all_tasks_blocked()
        assert not await fabric.drain(2.0)
        await wait_all_tasks_blocked()
        assert str(endings[0]).startswith("cut off: the fabric drains")


# The layers that wait


async def test_a_rate_that_is_lifted_limits_nothing_even_if_the_server_wants_a_pause(
    autojump_clock: MockClock,
) -> None:
    meter = Meter(0.01, 1, timer=Timer(), counters=Counters(), name="x", clock=trio.current_time)
    assert (meter.take(), meter.take()) == (True, False)
    done: list[object] = []

    async def answer(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        raise Refused(status=429, retry_after=5.0)

    handler = rate(meter, timer=Timer(), counters=Counters(), name="x")(answer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ending, lambda: handler(Call("x")), done)
        await wait_all_tasks_blocked()
        assert not done
        meter.lift()
    assert (len(done), meter.take(), meter.waiting) == (1, True, 0)


async def test_a_fabric_that_drains_disconnects_nothing(autojump_clock: MockClock) -> None:
    async with open_fabric(Config(gateway=GatewayConfig(grace=1.0))) as fabric:
        await fabric.drain(0)
        with pytest.raises((Draining, KeyError)):
            await fabric.disconnect("x")
