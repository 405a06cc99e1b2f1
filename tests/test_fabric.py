from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.call import Call, Complete, Error
from cord_trio.config import Bounds, Config, GatewayConfig, InProcess, ToolSettings
from cord_trio.config.load import parse_config
from cord_trio.errors import (
    AgentNotFound,
    BadReply,
    CallError,
    CallFailed,
    ConnectionLost,
    DeadlineExceeded,
    Draining,
    DrainTimeout,
    MessageTooLong,
    Overloaded,
    SourceDown,
    ToolNotFound,
)
from cord_trio.fabric import LAST_CALLS, Fabric, open_fabric
from cord_trio.link import SHARED, Link
from cord_trio.registry import Registry
from cord_trio.testing import ToolServer
from cord_trio.transports import Limits
from tests.full_server import FullServer, Request, text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import cord_trio as cord
    from cord_trio.transports.memory import MemoryTransport

Json: TypeAlias = Any


def source(server: ToolServer, name: str = "x", **more: Json) -> InProcess:
    return server.in_process(name=name, **more)


async def caught(ask: Callable[[], Awaitable[object]], into: list[object]) -> None:
    """Keep how `ask` ends."""
    try:
        into.append(await ask())
    except (CallError, ValueError) as exc:
        into.append(exc)


def tasks() -> int:
    """Tasks in this run."""
    return trio.lowlevel.current_statistics().tasks_living


# Calling


async def test_a_tool_is_called_by_its_exported_name(autojump_clock: MockClock) -> None:
    async with open_fabric([source(ToolServer())]) as fabric:
        assert (await fabric.call("x__echo", {"text": "hi"})).text == "hi"
        failed = await fabric.call("x__fail", {"text": "oh"})
        assert (failed.is_error, failed.text) == (True, "oh")
        with pytest.raises(CallFailed) as error:
            await fabric.call("x__error", {"code": -5})
        assert error.value.code == -5


async def test_progress_reaches_whoever_listens(autojump_clock: MockClock) -> None:
    seen: list[tuple[str, bytes]] = []
    async with open_fabric([source(ToolServer())]) as fabric:
        sink = lambda method, params: seen.append((method, bytes(params)))  # noqa: E731  # a sink is a function
        await fabric.call("x__progress", {"steps": 2}, events=sink)
        assert [method for method, _ in seen] == ["notifications/progress"] * 2


async def test_a_call_has_its_sources_deadline(autojump_clock: MockClock) -> None:
    server = ToolServer()
    async with open_fabric([source(server, deadline=7.0)]) as fabric:
        await fabric.wait_started()
        start = trio.current_time()
        with pytest.raises(DeadlineExceeded):
            await fabric.call("x__sleep", {"seconds": 100})
        assert trio.current_time() - start == 7
        await wait_all_tasks_blocked()
        assert server.cancelled == 1


async def test_progress_keeps_a_call_alive_up_to_the_longest(autojump_clock: MockClock) -> None:
    config = Config(sources=[source(ToolServer(), deadline=5.0)], bounds=Bounds(call_longest=30.0))
    async with open_fabric(config) as fabric:
        await fabric.wait_started()
        start = trio.current_time()
        result = await fabric.call("x__progress", {"steps": 5, "seconds": 20})
        assert (result.text, trio.current_time() - start) == ("5 steps", 20)
        with pytest.raises(DeadlineExceeded):
            await fabric.call("x__progress", {"steps": 50, "seconds": 200})
        assert trio.current_time() - start == 20 + 30
        with pytest.raises(DeadlineExceeded):  # a deadline of the caller's stays
            own = Call(
                "tools/call", "x__progress", {"arguments": Raw(b'{"steps":50,"seconds":200}')},
                deadline=trio.current_time() + 12,
            )  # fmt: skip
            await fabric.handle(own)
        assert trio.current_time() - start == 20 + 30 + 12


@pytest.mark.parametrize("prefix", [None, ""])
async def test_a_call_waits_for_a_source_that_starts(prefix: str | None, autojump_clock: MockClock) -> None:
    async with open_fabric([source(ToolServer(slow=1.0), prefix=prefix)]) as fabric:
        assert not fabric.ready
        name = "echo" if prefix == "" else "x__echo"
        assert (await fabric.call(name, {"text": "hi"})).text == "hi"
        assert fabric.ready


async def test_a_call_does_not_wait_for_sources_that_cannot_own_it(autojump_clock: MockClock) -> None:
    async with open_fabric([source(ToolServer()), source(ToolServer(silent=True), "slow")]) as fabric:
        start = trio.current_time()
        await fabric.call("x__echo", {"text": "hi"})
        with pytest.raises(ToolNotFound, match="did you mean x__echo"):
            await fabric.call("x__ecko")
        assert trio.current_time() == start
        assert fabric.counters["fabric.tool_not_found"] == 1


async def test_a_wait_for_an_owner_keeps_to_the_deadline(autojump_clock: MockClock) -> None:
    async with open_fabric([source(ToolServer(silent=True))]) as fabric:
        start = trio.current_time()
        with pytest.raises(SourceDown, match="source 'x' is down: it is still starting"):
            await fabric.handle(Call("tools/call", "x__echo", deadline=start + 2))
        assert trio.current_time() - start == 2


async def test_a_call_to_a_source_that_was_never_ready_ends_by_the_deadline_of_its_calls(
    autojump_clock: MockClock,
) -> None:
    async with open_fabric([source(ToolServer(silent=True), connect=10.0, deadline=3.0)]) as fabric:
        start = trio.current_time()
        with pytest.raises(SourceDown, match="source 'x' is down: it is still starting"):
            await fabric.call("x__echo")
        assert trio.current_time() - start == 3


async def test_waits_for_several_sources_without_a_prefix_do_not_add_up(autojump_clock: MockClock) -> None:
    silent = [source(ToolServer(silent=True), name, prefix="", connect=10.0, deadline=3.0) for name in ("x", "y")]
    slow = source(ToolServer(slow=2.0), "z", prefix="", deadline=30.0)
    async with open_fabric([*silent, slow]) as fabric:
        start = trio.current_time()
        assert (await fabric.call("echo", {"text": "hi"})).text == "hi"  # although two before it never come up
        with pytest.raises(ToolNotFound):
            await fabric.call("nothing")
        assert trio.current_time() - start <= 3 + 3 + 2 * 2


async def test_the_wait_for_a_source_that_starts_is_part_of_the_deadline(autojump_clock: MockClock) -> None:
    for own, ends in ((None, 5), (7.0, 7)):
        server = ToolServer(slow=1.0)  # for each answer, so it is there after two
        server.options.silent_on = "tools/call"
        slow = source(server, connect=10.0, deadline=5.0, tool={"sleep": ToolSettings(deadline=own)})
        async with open_fabric([slow]) as fabric:
            start = trio.current_time()
            with pytest.raises(DeadlineExceeded):
                await fabric.call("x__sleep", {"seconds": 100})
            assert trio.current_time() - start == ends


async def test_progress_moves_the_deadline_also_of_a_call_that_waited_for_its_source(autojump_clock: MockClock) -> None:
    config = Config(
        sources=[source(ToolServer(slow=1.0), connect=10.0, deadline=5.0)], bounds=Bounds(call_longest=30.0)
    )
    async with open_fabric(config) as fabric:
        result = await fabric.call("x__progress", {"steps": 15, "seconds": 15})
        assert result.text == "15 steps"
    async with open_fabric(config) as fabric:
        start = trio.current_time()
        with pytest.raises(DeadlineExceeded):
            await fabric.call("x__progress", {"steps": 200, "seconds": 200})
        assert trio.current_time() - start == 30


async def test_who_hangs_costs_a_call_nothing_whose_tool_another_lists(autojump_clock: MockClock) -> None:
    silent = source(ToolServer(silent=True), "a", prefix="", connect=60.0, deadline=50.0)
    async with open_fabric([silent, source(ToolServer(slow=1.0), "z", prefix="", deadline=10.0)]) as fabric:
        start = trio.current_time()
        assert (await fabric.call("echo", {"text": "hi"})).text == "hi"
        assert trio.current_time() - start < 10


@pytest.mark.parametrize("call", [Call("prompts/list"), Call("tools/call")])
async def test_a_method_that_is_not_routed_is_not_found(call: Call, autojump_clock: MockClock) -> None:
    async with open_fabric() as fabric:
        outcome = await fabric.handle(call)
        assert isinstance(outcome, Error)
        assert outcome.code == -32601


async def test_a_tool_that_goes_while_the_call_waits_is_not_called(autojump_clock: MockClock) -> None:
    server = ToolServer({"mine": lambda arguments: "ran"})
    async with open_fabric([source(server, slots=1)]) as fabric:
        await fabric.wait_started()
        endings: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caught, lambda: fabric.call("x__sleep", {"seconds": 5}), endings)
            await wait_all_tasks_blocked()
            nursery.start_soon(caught, lambda: fabric.call("x__mine"), endings)
            await wait_all_tasks_blocked()
            server.functions.clear()
            server.world.functions.clear()
            link = fabric.links["x"]
            assert isinstance(link, Link)
            assert link.following is not None
            link.following.stir("tools")
        assert [type(ending).__name__ for ending in endings] == ["ToolResult", "ToolNotFound"]
        assert "call mine" not in server.received


async def test_a_call_waits_for_a_new_session_though_the_lost_one_is_not_closed_yet(autojump_clock: MockClock) -> None:
    # Closing a process that does not end takes seconds; here it is the moment before the link hears of the loss.
    async with open_fabric([source(ToolServer(), retries=0)]) as fabric:
        await fabric.wait_started()
        link = fabric.links["x"]
        assert isinstance(link, Link)
        link.sessions[SHARED].session.lost(ConnectionLost("gone"))
        assert (await fabric.call("x__echo", {"text": "hi"})).text == "hi"


async def test_slots_and_rate_are_the_sources_own(autojump_clock: MockClock) -> None:
    config = [source(ToolServer(), "a", slots=1), source(ToolServer(), "b", rate=1.0, burst=1)]
    async with open_fabric(config) as fabric:
        await fabric.wait_started()
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fabric.call, "a__sleep", {"seconds": 1})
        assert trio.current_time() - start == 3
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fabric.call, "b__echo", {"text": "x"})
        assert trio.current_time() - start == 5


async def test_a_call_that_did_not_run_is_tried_again(autojump_clock: MockClock) -> None:
    server = ToolServer()
    async with open_fabric([source(server)]) as fabric:
        await fabric.wait_started()
        link, tries = fabric.links["x"], 0
        passed = link.call

        def once(call: Call, name: str | None) -> Awaitable[object]:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise ConnectionLost("unsent", "no")
            return passed(call, name)

        link.call = once  # type: ignore[method-assign, assignment]  # the fault of this test
        assert (await fabric.call("x__count")).text == "1"
        assert tries == 2


@pytest.mark.parametrize("trust", [True, False])
async def test_a_call_that_may_have_run_is_tried_again_only_where_that_is_known_to_be_safe(
    trust: bool, autojump_clock: MockClock
) -> None:
    server = ToolServer()
    endings: list[object] = []
    async with open_fabric([source(server, trust=trust)]) as fabric:
        await fabric.wait_started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caught, lambda: fabric.call("x__sleep", {"seconds": 3}), endings)
            await wait_all_tasks_blocked()
            server.break_connections()
        assert [type(ending).__name__ for ending in endings] == ["ToolResult" if trust else "ConnectionLost"]
        assert server.received["call sleep"] == (2 if trust else 1)


async def test_a_request_one_byte_longer_than_the_bound_is_refused_by_its_name_and_never_sent(
    autojump_clock: MockClock,
) -> None:
    server = ToolServer()
    async with open_fabric(Config(sources=[source(server)], bounds=Bounds(message_out=2048))) as fabric:
        await fabric.wait_started()
        with pytest.raises(MessageTooLong) as far:
            await fabric.call("x__echo", {"text": "x" * 2048})
        fits = "x" * (2048 - (far.value.size - 2048))
        assert (await fabric.call("x__echo", {"text": fits})).text == fits
        with pytest.raises(MessageTooLong, match=r"2049 bytes is longer than bound bounds\.message_out = 2048") as near:
            await fabric.call("x__echo", {"text": fits + "x"})
        assert near.value.executed == "no"
        assert fabric.counters["session.message_too_long"] == 2
        assert server.received["call echo"] == 1


async def test_what_a_source_does_not_take_and_says_at_once_has_configured_bounds(autojump_clock: MockClock) -> None:
    bounds = Bounds(outbox_bytes=2048, outbox_messages=9, read_quantum=8192, json_depth=12)
    async with open_fabric(Config(sources=[source(ToolServer(), era="legacy")], bounds=bounds)) as fabric:
        await fabric.wait_started()
        session = fabric.links["x"].sessions["shared"].session
        assert session.transport.limits == Limits(2048, 9, 8192)
        with pytest.raises(Overloaded, match=r"bounds\.outbox_bytes = 2048"):
            await fabric.call("x__echo", {"text": "x" * 2048})
        for levels, ends in ((12, None), (13, BadReply)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_ends, partial(fabric.call, "x__sleep", {"seconds": 5}), ends)
                await wait_all_tasks_blocked()
                [id] = session.peer.open
                deep = b"[" * (levels - 2) + b"]" * (levels - 2)
                session.feed([b'{"jsonrpc":"2.0","id":%d,"result":{"content":%b}}' % (id, deep)])
        assert fabric.counters["session.too_deep"] == 1


async def _ends(call: Callable[[], Awaitable[object]], error: type[Exception] | None) -> None:
    if error is None:
        await call()
    else:
        with pytest.raises(error, match=r"deeper than bounds\.json_depth = 12 levels"):
            await call()


async def test_too_many_calls_are_refused_with_the_bounds_name(autojump_clock: MockClock) -> None:
    async with open_fabric(Config(sources=[source(ToolServer())], bounds=Bounds(calls=2))) as fabric:
        await fabric.wait_started()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(fabric.call, "x__sleep", {"seconds": 5})
            await wait_all_tasks_blocked()
            with pytest.raises(Overloaded, match=r"bounds\.calls = 2"):
                await fabric.call("x__echo")
            with pytest.raises(Overloaded):
                await fabric.ask("nobody")
        assert (await fabric.call("x__echo", {"text": "again"})).text == "again"
        assert fabric.counters["fabric.overloaded"] == 2


# Agents


async def test_an_agent_calls_tools_and_hands_over(autojump_clock: MockClock) -> None:
    async def first(ctx: cord.Context, payload: object) -> object:
        return ctx.handoff("second", (await ctx.call("x__echo", {"text": str(payload)})).text + "!")

    async def second(ctx: cord.Context, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        return f"{' > '.join(ctx.chain)}: {payload}"

    async with open_fabric([source(ToolServer())]) as fabric:
        fabric.agent("first", first)
        fabric.agent("second", second)
        assert await fabric.ask("first", "hi") == "first > second: hi!"
        with pytest.raises(AgentNotFound):
            await fabric.ask("third")


# Faults of sources


async def test_r13_one_sick_source_never_hides_the_tools_of_another(autojump_clock: MockClock) -> None:
    async def refuses(transport: MemoryTransport) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError("refused")

    sick = [
        InProcess(name="refused", serve=refuses),
        source(ToolServer(silent=True), "hung"),
        source(ToolServer(exit_at_start=True), "gone"),
        source(ToolServer(exit_on="tools/list"), "broken"),
    ]
    async with open_fabric([*sick, source(ToolServer(garbage=True, banner="hello"), "good")]) as fabric:
        start = trio.current_time()
        assert (await fabric.call("good__echo", {"text": "hi"})).text == "hi"
        assert trio.current_time() == start
        assert {name.partition("__")[0] for name in fabric.registry.snapshot.tools} == {"good"}
        await fabric.wait_started()
        reasons = {name: link.reason for name, link in fabric.links.items()}
        assert reasons["refused"] == "serve: the function that serves it failed: OSError('refused')"
        assert "no answer to initialize within 10 s" in reasons["hung"]
        assert "server exited with status 3" in reasons["gone"]
        assert "server exited with status 3" in reasons["broken"]


async def test_f02_blank_lines_and_noise_of_one_source_reach_no_other(autojump_clock: MockClock) -> None:
    noisy, quiet = ToolServer(banner="   ", garbage=True), ToolServer()
    async with open_fabric([source(noisy, "noisy"), source(quiet, "quiet")]) as fabric:
        for name in ("noisy__echo", "quiet__echo"):
            assert (await fabric.call(name, {"text": name})).text == name
        [noise] = [link.sessions["shared"].session.noise for link in fabric.links.values() if link.name == "quiet"]
        assert list(noise) == []


async def test_d05_a_source_that_is_down_gives_one_typed_error_with_its_cause(autojump_clock: MockClock) -> None:
    server = ToolServer()
    bounds = Bounds(backoff_first=1000.0, backoff_longest=1000.0)
    async with open_fabric(Config(sources=[source(server)], bounds=bounds)) as fabric:
        await fabric.wait_started()
        server.options.exit_at_start = True
        fabric.links["x"]._around.rng.seed(1)
        server.break_connections("server exited (signal 9)")
        await wait_all_tasks_blocked()
        with pytest.raises(SourceDown) as error:
            await fabric.call("x__echo")
        assert str(error.value).startswith("source 'x' is down: ")
        assert "ExceptionGroup" not in str(error.value)
        assert "sub-exception" not in str(error.value)
        assert error.value.executed == "no"
        assert "x__echo" in fabric.registry.snapshot.tools  # listed is not callable


async def test_d05_a_source_that_never_came_up_says_why(autojump_clock: MockClock) -> None:
    async with open_fabric([source(ToolServer(exit_at_start=True), era="legacy")]) as fabric:
        with pytest.raises(SourceDown, match=r"source 'x' is down: (connect|handshake): server exited with status 3"):
            await fabric.call("x__echo")
        with pytest.raises(ToolNotFound):
            await fabric.call("y__echo")


async def test_q01_sources_start_side_by_side_and_keep_their_order(autojump_clock: MockClock) -> None:
    slow = [source(ToolServer(slow=0.5 + number % 3 / 10), f"s{number:02}") for number in range(20)]
    async with open_fabric(slow) as fabric:
        start = trio.current_time()
        await fabric.wait_started()
        assert trio.current_time() - start < 3 * 0.8  # three rounds, whatever their number
        prefixes = [name.partition("__")[0] for name in fabric.registry.snapshot.tools]
        assert prefixes == sorted(prefixes)


async def test_q05_lists_are_kept_and_fetched_side_by_side(autojump_clock: MockClock) -> None:
    servers = [ToolServer(era="legacy", slow=0.2) for _ in range(10)]
    async with open_fabric([source(server, f"s{number}") for number, server in enumerate(servers)]) as fabric:
        await fabric.wait_started()
        start = trio.current_time()
        for _ in range(2):
            assert len(fabric.registry.snapshot.tools) == 10 * 15
        assert trio.current_time() == start
        assert [server.received["tools/list"] for server in servers] == [1] * 10


async def test_p14_the_total_start_time_is_the_longest_not_the_sum(autojump_clock: MockClock) -> None:
    silent = [source(ToolServer(silent=True), f"s{number}", era="legacy", connect=1.0 + number) for number in range(5)]
    async with open_fabric(silent) as fabric:
        start = trio.current_time()
        await fabric.wait_started()
        assert trio.current_time() - start == 5


async def test_x01_a_broken_entry_leaves_the_others(autojump_clock: MockClock) -> None:
    config = parse_config(
        '[sources.bad]\nargs = ["x"]\n[sources.worse]\ncommand = 5\n', format="toml", file="cord.toml"
    )
    assert set(config.broken) == {"bad", "worse"}
    server = ToolServer()
    mixed = Config(sources={"good": source(server, "good")}, broken=config.broken, problems=config.problems)
    async with open_fabric(mixed) as fabric:
        assert (await fabric.call("good__echo", {"text": "hi"})).text == "hi"
        with pytest.raises(SourceDown, match=r"'bad' is down: cord\.toml: sources\.bad"):
            await fabric.call("bad__anything")
        states = {child.name: child.state for child in fabric.tree().children}
        assert states == {"good": "ready", "bad": "broken", "worse": "broken"}


# Ending


async def test_leaving_the_block_leaves_nothing(autojump_clock: MockClock) -> None:
    before = tasks()
    descriptors = len(os.listdir("/proc/self/fd"))
    async with open_fabric([source(ToolServer(), f"s{number}") for number in range(5)]) as fabric:
        await fabric.wait_started()
        await fabric.call("s0__echo", {"text": "x"})
    assert tasks() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(fabric.timer) == 0
    assert all(not link.sessions for link in fabric.links.values())


async def test_leaving_the_block_drains_what_other_tasks_still_do(autojump_clock: MockClock) -> None:
    endings: list[object] = []
    async with trio.open_nursery() as outside:
        async with open_fabric([source(ToolServer())]) as fabric:
            await fabric.wait_started()
            outside.start_soon(caught, lambda: fabric.call("x__sleep", {"seconds": 3}), endings)
            await wait_all_tasks_blocked()
            start = trio.current_time()
        assert trio.current_time() - start == 3
        assert [type(ending).__name__ for ending in endings] == ["ToolResult"]


async def test_a_draining_fabric_takes_no_new_work(autojump_clock: MockClock) -> None:
    async with open_fabric([source(ToolServer())]) as fabric:
        await fabric.wait_started()
        assert await fabric.drain(5) is True
        assert fabric.draining.is_set()
        with pytest.raises(Draining):
            await fabric.call("x__echo")
        with pytest.raises(Draining):
            await fabric.ask("a")
        with pytest.raises(Draining):
            await fabric.handle(Call("x"))
        assert fabric.tree().state == fabric.stage == "closing"


async def test_accepted_work_goes_on_while_it_drains(autojump_clock: MockClock) -> None:
    async def slow(ctx: cord.Context, payload: object) -> object:
        await trio.sleep(2)
        return (await ctx.call("x__echo", {"text": "nested"})).text

    endings: list[object] = []
    async with open_fabric([source(ToolServer())]) as fabric:
        fabric.agent("slow", slow)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caught, lambda: fabric.ask("slow"), endings)
            await wait_all_tasks_blocked()
            drained: list[object] = []
            nursery.start_soon(caught, lambda: fabric.drain(10), drained)
            nursery.start_soon(caught, lambda: fabric.drain(10), drained)
        assert endings == ["nested"]
        assert drained == [True, True]
        assert trio.current_time() - start == 2


async def test_a_drain_ends_at_its_grace(autojump_clock: MockClock) -> None:
    endings: list[object] = []
    async with trio.open_nursery() as outside:
        config = Config(sources=[source(ToolServer())], gateway=GatewayConfig(grace=4.0))
        async with open_fabric(config) as fabric:
            await fabric.wait_started()
            outside.start_soon(caught, lambda: fabric.call("x__sleep", {"seconds": 30}), endings)
            await wait_all_tasks_blocked()
            start = trio.current_time()
        assert trio.current_time() - start == 4
        assert fabric.counters["fabric.drain_unfinished"] == 1
        await wait_all_tasks_blocked()
        (ending,) = endings
        assert isinstance(ending, DrainTimeout)
        assert (ending.what, ending.grace, ending.executed) == ("the fabric", 4.0, "unknown")
        assert str(ending) == "cut off: the fabric drains, and its grace of 4 s is over"


@pytest.mark.parametrize("waits_for", ["a slot", "a source", "an owner", "a pause"])
async def test_a_call_from_outside_the_block_ends_with_the_fabric(waits_for: str, autojump_clock: MockClock) -> None:
    endings: list[object] = []
    server = ToolServer(silent=waits_for in ("a source", "an owner"))
    async with trio.open_nursery() as outside:
        with pytest.raises(KeyError):
            async with open_fabric([source(server, slots=1, connect=50.0, deadline=1000.0, trust=True)]) as fabric:
                if waits_for in ("a slot", "a pause"):
                    await fabric.wait_started()
                    for _ in range(2):
                        outside.start_soon(caught, lambda: fabric.call("x__sleep", {"seconds": 300}), endings)
                elif waits_for == "a source":
                    outside.start_soon(caught, lambda: fabric.links["x"].call(Call("tools/call"), "echo"), endings)
                else:
                    outside.start_soon(caught, lambda: fabric.call("x__echo"), endings)
                await wait_all_tasks_blocked()
                if waits_for == "a pause":
                    server.break_connections()
                    await wait_all_tasks_blocked()
                start = trio.current_time()
                raise KeyError
        assert trio.current_time() - start <= LAST_CALLS
        with trio.fail_after(LAST_CALLS):
            await wait_all_tasks_blocked()
    assert endings
    assert all(isinstance(ending, CallError) for ending in endings)


async def test_u02_sources_end_in_any_order(autojump_clock: MockClock) -> None:
    servers = [ToolServer() for _ in range(3)]
    async with open_fabric([source(server, f"s{number}") for number, server in enumerate(servers)]) as fabric:
        await fabric.wait_started()
        for number in (0, 2, 1):
            servers[number].break_connections()
            for other in range(3):
                assert (await fabric.call(f"s{other}__echo", {"text": "up"})).text == "up"


async def test_u06_an_error_in_the_block_leaves_as_it_was_raised_and_at_once(autojump_clock: MockClock) -> None:
    error = LookupError("mine")
    before = tasks()
    start = trio.current_time()
    with pytest.raises(LookupError) as raised:
        async with open_fabric([source(ToolServer()), source(ToolServer(silent=True), "hung")]) as fabric:
            await fabric.call("x__echo", {"text": "x"})
            raise error
    assert raised.value is error
    assert trio.current_time() == start
    assert tasks() == before


async def test_u01_a_fabric_cancelled_from_outside_leaves_nothing(autojump_clock: MockClock) -> None:
    before = tasks()
    with trio.move_on_after(5) as scope:
        async with open_fabric([source(ToolServer())]) as fabric:
            await fabric.call("x__sleep", {"seconds": 100})
    assert scope.cancelled_caught
    assert tasks() == before
    assert (fabric._running, len(fabric.timer)) == (0, 0)


async def test_a_part_of_the_core_that_fails_ends_the_fabric_with_its_error(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(self: Registry, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep(1)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Registry, "run", run)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        async with open_fabric():
            await trio.sleep_forever()


async def test_two_fabrics_share_nothing(autojump_clock: MockClock) -> None:
    async with open_fabric([source(ToolServer())]) as one, open_fabric([source(ToolServer())]) as other:
        await one.call("x__echo", {"text": "x"})
        assert (one.counters["registry.version"] > 0, other._running) == (True, 0)
        await one.drain(1)
        assert (await other.call("x__echo", {"text": "y"})).text == "y"


# Looking at it


async def test_the_tree_shows_who_waits_for_what(autojump_clock: MockClock) -> None:
    async def asleep(ctx: cord.Context, payload: object) -> object:
        await ctx.call("x__sleep", {"seconds": 5})
        return None

    async with open_fabric([source(ToolServer(), deadline=9.0)]) as fabric:
        await fabric.wait_started()
        fabric.agent("asleep", asleep)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(fabric.ask, "asleep")
            await wait_all_tasks_blocked()
            tree = fabric.tree()
        assert (tree.kind, tree.state, tree.facts["calls"]) == ("fabric", "running", 2)
        kinds = [(child.kind, child.name, child.state) for child in tree.children]
        assert ("source", "x", "ready") in kinds
        assert any(kind == "agent" and state == "busy" for kind, _, state in kinds)
        assert [name for kind, name, _ in kinds if kind == "ask"] == ["asleep", "asleep"]
        [session] = next(child for child in tree.children if child.kind == "source").children
        assert session.facts["in_flight"] == 2  # the call, and the subscription
        assert session.facts["deadline_in"] == 9.0


async def test_an_answer_is_passed_on_unread(autojump_clock: MockClock) -> None:
    async with open_fabric([source(ToolServer())]) as fabric:
        await fabric.wait_started()
        outcome = await fabric.handle(Call("tools/call", "x__add", {"arguments": Raw(b'{"a":1,"b":2.50}')}))
        assert isinstance(outcome, Complete)
        assert b'"sum":3.5' in bytes(outcome.result)
        assert isinstance(fabric, Fabric)


async def test_a_context_that_was_kept_asks_and_calls_nobody_after_the_end() -> None:
    kept: list[cord.Context] = []

    async def keeper(ctx: cord.Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        kept.append(ctx)

    async with open_fabric([source(ToolServer())]) as fabric:
        fabric.agent("keeper", keeper)
        await fabric.ask("keeper")
    with pytest.raises(Draining):
        await kept[0].ask("keeper", None)
    with pytest.raises(CallError):
        await kept[0].call("x__echo", {"text": "late"})
    assert len(kept) == 1


async def test_a_source_is_told_what_is_left_of_a_call_if_it_wants_to_know(autojump_clock: MockClock) -> None:
    server = FullServer()
    told: list[Json] = []

    def look(request: Request) -> Json:
        told.append(request.params.get("_meta", {}).get("cord_trio/deadlineMs"))
        return text("seen")

    server.tools["look"] = look
    sources = [server.source(name="x", tell_deadline=True, deadline=7.0), server.source(name="y")]
    async with open_fabric(sources) as fabric:
        await fabric.wait_started()
        await fabric.call("x__look")
        with trio.fail_after(2):
            await fabric.call("x__look")
        await fabric.call("y__look")
    assert told == [7000, 2000, None]
