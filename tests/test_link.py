from __future__ import annotations

import json
import logging
import sys
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.call import Call, Complete
from cord_trio.cell import Timer
from cord_trio.config import Bounds, InProcess, Stdio, ToolFilter, WebSocket
from cord_trio.counters import Counters
from cord_trio.errors import CallError, ConnectionLost, DeadlineExceeded, SourceDown
from cord_trio.following import DEBOUNCE, LISTEN_PATIENCE, STEADY, Following
from cord_trio.link import Link, Surroundings
from cord_trio.nodes import node_of
from cord_trio.registry import Registry
from cord_trio.surroundings import START_HOLD
from cord_trio.testing import ToolServer
from cord_trio.transports.guardian import open_guardian
from cord_trio.transports.memory import MemoryTransport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cord_trio.config import Source

Json: TypeAlias = Any


class Highest(Random):
    """Draws the longest pause each time, and remembers it."""

    def __init__(self) -> None:
        super().__init__(0)
        self.drawn: list[float] = []

    def uniform(self, a: float, b: float) -> float:
        self.drawn.append(b)
        return b


class Bench:
    """Links over one registry, as a fabric has them."""

    def __init__(self, around: Surroundings, nursery: trio.Nursery, rng: Highest, *sources: Source) -> None:
        self.around = around
        self.rng = rng
        self.registry = around.registry
        self.nursery = nursery
        self.links = {source.name: Link(source, around) for source in sources}
        self.link = self.links[sources[0].name]

    @property
    def tools(self) -> list[str]:
        """Tools that are listed, without the scripted server's usual ones."""
        return [name for name in self.registry.snapshot.tools if "tool_" in name or "added_" in name]

    def end(self) -> None:
        self.nursery.cancel_scope.cancel("the test is over")


@asynccontextmanager
async def bench(
    *sources: Source, run: bool = True, starts: int = 8, bounds: Bounds | None = None
) -> AsyncGenerator[Bench]:
    counters, timer, rng = Counters(), Timer(), Highest()
    registry = Registry({source.name: source for source in sources}, counters=counters)
    async with open_guardian(counters=counters) as guardian, trio.open_nursery() as core:
        await core.start(registry.run)
        await core.start(timer.run)
        around = Surroundings(
            registry=registry, guardian=guardian, timer=timer, counters=counters, rng=rng,
            client_info={"name": "cord"}, bounds=bounds or Bounds(), starts=trio.CapacityLimiter(starts),
        )  # fmt: skip
        async with trio.open_nursery() as links:
            found = Bench(around, links, rng, *sources)
            if run:
                for link in found.links.values():
                    await links.start(link.keep)
            yield found
            links.cancel_scope.cancel("the test is over")
        assert len(timer) == 0
        assert all(not link.sessions for link in found.links.values())
        core.cancel_scope.cancel("the test is over")


def echo(text: str = "hi", deadline: float | None = None) -> Call:
    arguments = Raw(b'{"text":"%b"}' % text.encode())
    if deadline is None:
        return Call("tools/call", "x__echo", {"arguments": arguments})
    return Call("tools/call", "x__echo", {"arguments": arguments}, deadline=deadline)


def hung(name: str = "hung", **more: Json) -> InProcess:
    async def serve(transport: MemoryTransport) -> None:
        await trio.sleep_forever()

    return InProcess(name=name, serve=serve, **more)


# Coming up


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_source_is_connected_listed_and_called(era: str, autojump_clock: MockClock) -> None:
    server = ToolServer(era=era, tools=2)
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        view = here.registry.snapshot.sources["x"]
        assert (here.link.state, view.state, here.tools) == ("ready", "ready", ["x__tool_1", "x__tool_2"])
        assert view.greeting is not None
        assert view.greeting.modern is (era == "modern")
        outcome = await here.link.call(echo(), "echo")
        assert isinstance(outcome, Complete)
        assert b'"hi"' in bytes(outcome.result)
        assert server.received["tools/list"] == 1
        node = node_of(here.link)
        assert (node.kind, node.name, node.state) == ("source", "x", "ready")
        assert [child.name for child in node.children] == ["shared"]


async def test_q03_one_list_serves_until_something_changes(autojump_clock: MockClock) -> None:
    server = ToolServer(tools=1)
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        for _ in range(10):
            await here.link.call(echo(), "echo")
        await trio.sleep(1000)
        assert server.received["tools/list"] == 1


async def test_p14_a_silent_source_is_down_at_its_time_and_delays_no_other(autojump_clock: MockClock) -> None:
    good = ToolServer(tools=1)
    silent = [ToolServer(silent=True).in_process(name=f"s{number}", era="legacy", connect=5.0) for number in range(4)]
    async with bench(*silent, good.in_process(name="good")) as here:
        start = trio.current_time()
        await here.links["good"].wait_tried()
        assert trio.current_time() == start
        for link in here.links.values():
            await link.wait_tried()
        assert trio.current_time() - start == 5
        assert here.links["s0"].reason.startswith("handshake: no answer to initialize within 5 s")
        assert here.tools == ["good__tool_1"]


async def test_m02_silence_after_the_probe_means_legacy_and_a_fresh_connection(autojump_clock: MockClock) -> None:
    server = ToolServer(era="legacy", silent_on="server/discover", tools=1)
    async with bench(server.in_process(name="x", connect=5.0)) as here:
        start = trio.current_time()
        await here.link.wait_tried()
        assert here.link.state == "ready"
        assert trio.current_time() - start == 5
        assert (server.received["server/discover"], server.received["initialize"]) == (1, 1)


async def test_m03_a_server_that_exits_at_the_probe_is_remembered_as_legacy(autojump_clock: MockClock) -> None:
    server = ToolServer(era="legacy", exit_on="server/discover", tools=1)
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        assert here.link.state == "ready"
        assert (server.received["server/discover"], server.received["initialize"]) == (1, 1)
        server.break_connections()
        await trio.sleep(1)
        assert here.link.starts == 2
        assert (server.received["server/discover"], server.received["initialize"]) == (1, 2)


async def test_a_source_that_became_modern_is_asked_again(autojump_clock: MockClock) -> None:
    server = ToolServer(era="legacy", tools=1)
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        server.options.era = "modern"
        server.break_connections()
        await trio.sleep(5)
        view = here.registry.snapshot.sources["x"]
        assert (view.state, view.greeting is not None and view.greeting.modern) == ("ready", True)


async def test_where_an_era_is_configured_nothing_is_remembered(autojump_clock: MockClock) -> None:
    server = ToolServer()
    async with bench(server.in_process(name="x", era="legacy")) as here:
        await here.link.wait_tried()
        assert "server/discover" not in server.received


# Going down


async def test_a_lost_source_comes_back_by_itself(autojump_clock: MockClock) -> None:
    server = ToolServer(tools=1)
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        server.break_connections("server exited (signal 9)")
        await wait_all_tasks_blocked()
        view = here.registry.snapshot.sources["x"]
        assert (view.state, view.reason, here.tools) == ("down", "server exited (signal 9)", ["x__tool_1"])
        assert here.link.failure is None
        outcome = await here.link.call(echo(), "echo")
        assert isinstance(outcome, Complete)
        assert here.link.starts == 2


async def test_pauses_double_up_to_the_longest_and_start_anew_after_a_steady_connection(
    autojump_clock: MockClock,
) -> None:
    server = ToolServer(exit_at_start=True)
    bounds = Bounds(backoff_first=1.0, backoff_longest=5.0)
    async with bench(server.in_process(name="x", era="legacy"), bounds=bounds) as here:
        await trio.sleep(17.5)
        assert here.rng.drawn == [1, 2, 4, 5, 5, 5]
        server.options.exit_at_start = False
        await trio.sleep(STEADY + 6)
        server.break_connections()
        await wait_all_tasks_blocked()
        assert here.rng.drawn[-1] == 1


async def test_pauses_are_drawn_from_all_of_their_range(autojump_clock: MockClock) -> None:
    async with bench(hung(), run=False, bounds=Bounds(backoff_first=2.0, backoff_longest=8.0)) as here:
        link = Link(hung(), attrs.evolve(here.around, rng=Random(0)))
        for failures, longest in ((0, 2.0), (1, 4.0), (2, 8.0), (9, 8.0)):
            drawn = [link._pause(failures) for _ in range(300)]
            assert 0 <= min(drawn) < longest / 20
            assert longest * 0.95 < max(drawn) <= longest


async def test_a_source_that_is_down_for_days_does_not_break_its_link(autojump_clock: MockClock) -> None:
    async with bench(hung(), run=False) as here:
        assert here.link._pause(10_000) == Bounds().backoff_longest


async def test_an_early_loss_does_not_count_as_steady(autojump_clock: MockClock) -> None:
    server = ToolServer(era="legacy")
    async with bench(server.in_process(name="x")) as here:
        for _ in range(3):
            await trio.sleep(STEADY / 2)
            server.break_connections()
        await wait_all_tasks_blocked()
        assert here.rng.drawn == [0.2, 0.4, 0.8]


@pytest.mark.parametrize("fails", [True, False])
async def test_a_function_that_ends_takes_only_its_source_down(fails: bool, autojump_clock: MockClock) -> None:
    good = ToolServer(tools=1)

    async def serve(transport: MemoryTransport) -> None:
        await trio.sleep(1)
        if fails:
            raise ValueError("a bug of mine")

    async with bench(InProcess(name="bad", serve=serve, era="legacy"), good.in_process(name="good")) as here:
        await here.link.wait_tried()
        bad = here.registry.snapshot.sources["bad"]
        assert bad.state == "down"
        wanted = "serve: the function that serves it failed: ValueError('a bug of mine')"
        assert bad.reason == (wanted if fails else "connect: the function that serves it returned")
        assert here.links["good"].state == "ready"


async def test_a_function_that_fails_while_it_serves_says_why(autojump_clock: MockClock) -> None:
    server = ToolServer()

    async def serve(transport: MemoryTransport) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, transport)
            await trio.sleep(5)
            raise ValueError("in a group")

    async with bench(InProcess(name="x", serve=serve)) as here:
        await trio.sleep(5)
        await wait_all_tasks_blocked()
        assert here.link.reason == "serve: the function that serves it failed: ValueError('in a group')"
        assert here.link.starts == 1


async def test_what_a_function_makes_of_its_end_is_no_news(autojump_clock: MockClock) -> None:
    async def serve(transport: MemoryTransport) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("while it was told to end")

    async with bench(InProcess(name="x", serve=serve, era="legacy", connect=1.0)) as here:
        await here.link.wait_tried()
        assert here.link.reason.startswith("handshake: no answer to initialize within 1 s")


async def test_d05_a_bug_of_ours_is_one_reason_without_a_group(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refresh(self: Following, kind: object) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("deep inside")

    monkeypatch.setattr(Following, "_refresh", refresh)
    with caplog.at_level(logging.CRITICAL, "cord_trio.link"):
        async with bench(ToolServer().in_process(name="x")) as here:
            await trio.sleep(0.1)
            assert here.link.following is not None
            here.link.following.stir("tools")
            await trio.sleep(0.1)
            assert here.link.reason == "internal error: ValueError('deep inside')"
            assert here.link.failure is not None
            assert "Group" not in str(here.link.failure)


async def test_a_websocket_that_nobody_serves_is_told() -> None:
    async with bench(WebSocket(name="w", url="ws://127.0.0.1:1/")) as here:
        await here.link.wait_tried()
        assert here.link.reason.startswith("connect: cannot connect to 127.0.0.1:1: ")


async def test_a_list_that_fails_keeps_the_source_down(autojump_clock: MockClock) -> None:
    async with bench(ToolServer(silent_on="tools/list").in_process(name="x", first_list=3.0)) as here:
        start = trio.current_time()
        await here.link.wait_tried()
        assert trio.current_time() - start == 3
        assert here.link.reason.startswith("deadline exceeded: x: tools/list")
        assert here.link.failure is not None
        assert here.link.failure.step == "list"


async def test_a_connection_lost_while_listing_says_why(autojump_clock: MockClock) -> None:
    async with bench(ToolServer(exit_on="tools/list").in_process(name="x")) as here:
        await here.link.wait_tried()
        assert here.link.reason == "list: server exited with status 3"


async def test_a_server_gone_before_it_is_told_that_we_are_ready_says_why(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = MemoryTransport.send

    def failing(self: MemoryTransport, message: bytes, **more: Json) -> None:
        if more.get("method") == "notifications/initialized":
            self.lose("server exited with status 4")
        send(self, message, **more)

    monkeypatch.setattr(MemoryTransport, "send", failing)
    async with bench(ToolServer(era="legacy").in_process(name="x")) as here:
        await here.link.wait_tried()
        assert here.link.reason == "handshake: server exited with status 4"


async def test_the_end_of_the_registry_ends_the_link(autojump_clock: MockClock) -> None:
    source = ToolServer().in_process(name="x")
    registry, timer, over = Registry({"x": source}), Timer(), trio.CancelScope()

    async def run_registry(*, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128  # the registry calls it
        with over:
            await registry.run(task_status=task_status)

    async with trio.open_nursery() as core:
        await core.start(run_registry)
        await core.start(timer.run)
        around = Surroundings(
            registry=registry, guardian=None, timer=timer, counters=Counters(), rng=Random(0),  # type: ignore[arg-type]  # unused
            client_info={}, bounds=Bounds(), starts=trio.CapacityLimiter(1),
        )  # fmt: skip
        link = Link(source, around)
        async with trio.open_nursery() as links:
            await links.start(link.keep)
            await link.wait_tried()
            over.cancel("the registry ends first, which is nobody's plan")
            await wait_all_tasks_blocked()
            link.sessions["shared"].session.lost(ConnectionLost("gone"))
        with pytest.raises(SourceDown, match="the fabric has ended"):
            await link.call(echo(), "echo")
        core.cancel_scope.cancel("the test is over")


# Calls


async def test_a_call_waits_for_the_start(autojump_clock: MockClock) -> None:
    server = ToolServer(slow=2.0)
    async with bench(server.in_process(name="x", era="modern")) as here:
        assert node_of(here.link).facts["waiting"] is None
        assert isinstance(await here.link.call(echo(), "echo"), Complete)


async def test_l03_a_call_waits_for_one_attempt_and_no_more(autojump_clock: MockClock) -> None:
    server = ToolServer(silent=True)
    async with bench(server.in_process(name="x", era="legacy", connect=5.0)) as here:
        start = trio.current_time()
        with pytest.raises(SourceDown) as caught:
            await here.link.call(echo(), "echo")
        assert trio.current_time() - start == 5
        assert caught.value.executed == "no"
        assert caught.value.next_try == here.link.next_try
        assert "no answer to initialize" in str(caught.value)
        assert server.received["initialize"] == 1


async def test_l03_a_server_that_never_recovers_is_asked_ever_more_rarely(autojump_clock: MockClock) -> None:
    server = ToolServer(exit_on="tools/list", era="legacy")
    async with bench(server.in_process(name="x")) as here:
        await trio.sleep(3600)
        assert here.link.starts == 0
        assert server.received["initialize"] <= 8 + 3600 / 30


async def test_a_call_whose_deadline_is_before_the_next_attempt_fails_at_once(autojump_clock: MockClock) -> None:
    bounds = Bounds(backoff_first=20.0, backoff_longest=20.0)
    async with bench(ToolServer(exit_at_start=True).in_process(name="x", era="legacy"), bounds=bounds) as here:
        await here.link.wait_tried()
        now = trio.current_time()
        with pytest.raises(SourceDown, match="server exited with status 3"):
            await here.link.call(echo(deadline=now + 10), "echo")
        assert trio.current_time() == now


async def test_a_call_waits_for_a_start_no_longer_than_its_deadline(autojump_clock: MockClock) -> None:
    async with bench(hung(era="legacy")) as here:
        now = trio.current_time()
        with pytest.raises(DeadlineExceeded, match="hung was still starting") as caught:
            await here.link.call(echo(deadline=now + 3), "echo")
        assert trio.current_time() == now + 3
        assert caught.value.executed == "no"
        assert here.link.waiting == {}


async def test_a_call_that_is_cancelled_while_it_waits_leaves_nothing(autojump_clock: MockClock) -> None:
    async with bench(hung(era="legacy")) as here:
        with trio.move_on_after(1) as scope:
            await here.link.call(echo(), "echo")
        assert scope.cancelled_caught
        assert here.link.waiting == {}


async def test_calls_are_failed_by_a_loss_and_those_after_it_wait(autojump_clock: MockClock) -> None:
    server = ToolServer()
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        failed: list[CallError] = []

        async def sleeping() -> None:
            call = Call("tools/call", "x__sleep", {"arguments": Raw(b'{"seconds":100}')})
            try:
                await here.link.call(call, "sleep")
            except CallError as exc:
                failed.append(exc)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleeping)
            await wait_all_tasks_blocked()
            assert here.link.in_flight == 2  # the call, and the subscription
            server.break_connections("gone")
        assert [type(exc) for exc in failed] == [ConnectionLost]
        assert failed[0].executed == "unknown"
        assert isinstance(await here.link.call(echo(), "echo"), Complete)


async def test_no_call_goes_to_a_session_that_is_being_closed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ToolServer()
    closing = trio.Event()

    async def serve(transport: MemoryTransport) -> None:
        try:
            await server.serve(transport)
        finally:
            closing.set()
            with trio.move_on_after(4, shield=True):
                await trio.sleep_forever()

    async with bench(InProcess(name="x", serve=serve)) as here:
        await here.link.wait_tried()
        server.break_connections()
        await closing.wait()
        assert here.link.sessions == {}
        assert isinstance(await here.link.call(echo(), "echo"), Complete)
        assert here.link.starts == 2


# Changes of the list


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_r09_a_change_during_a_call_is_listed_while_it_runs(era: str, autojump_clock: MockClock) -> None:
    server = ToolServer(era=era)
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        await here.link.call(Call("tools/call", "x__change_tools"), "change_tools")
        await trio.sleep(DEBOUNCE)
        await wait_all_tasks_blocked()
        assert here.tools == ["x__added_1"]


async def test_r10_a_burst_of_changes_makes_few_lists(autojump_clock: MockClock) -> None:
    server = ToolServer(era="legacy")
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        for _ in range(200):
            await here.link.call(Call("tools/call", "x__change_tools"), "change_tools")
        await trio.sleep(1)
        assert here.around.counters["link.list_changed"] == 200
        assert server.received["tools/list"] <= 3
        assert len(here.tools) == 200


@pytest.mark.parametrize(("changes", "most"), [(False, 12), (True, 65)])
async def test_r10_a_server_that_tells_of_changes_all_the_time_is_listed_ever_more_rarely(
    changes: bool, most: int, autojump_clock: MockClock
) -> None:
    server = ToolServer(era="legacy")
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        following = here.link.following
        assert following is not None
        for _ in range(600):
            if changes:
                await here.link.call(Call("tools/call", "x__change_tools"), "change_tools")
            else:
                following.told("notifications/tools/list_changed", Raw(b"{}"))
            await trio.sleep(0.1)
        assert server.received["tools/list"] <= most
        await trio.sleep(60)
        before = server.received["tools/list"]
        await here.link.call(Call("tools/call", "x__change_tools"), "change_tools")
        await trio.sleep(DEBOUNCE)
        await wait_all_tasks_blocked()
        assert server.received["tools/list"] == before + 1, "after a while without, at once"


async def test_a_change_during_the_first_list_is_listed_after_it(autojump_clock: MockClock) -> None:
    server = ToolServer()
    async with bench(server.in_process(name="x")) as here:
        while here.link.following is None:  # noqa: ASYNC110  # made while it connects; nothing tells of that
            await trio.lowlevel.checkpoint()
        here.link.following.stir("tools")
        assert not here.link.tried
        await trio.sleep(1)
        assert server.received["tools/list"] == 2


async def test_a_list_that_grows_old_after_the_connection_is_not_fetched(autojump_clock: MockClock) -> None:
    server = ToolServer()
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        here.link.end("the test ends it")
        await here.link.wait_ended()
        assert here.link.following is not None
        here.link.following.stir("tools")
        await trio.sleep(1)
        assert server.received["tools/list"] == 1


async def test_a_change_while_the_list_is_fetched_is_listed_too(autojump_clock: MockClock) -> None:
    server = ToolServer(era="legacy", slow=1.0)
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(here.link.call, Call("tools/call", "x__change_tools"), "change_tools")
                await trio.sleep(DEBOUNCE * 5)
        await trio.sleep(5)
        assert here.tools == ["x__added_1", "x__added_2"]


async def test_q03_a_list_that_fails_later_leaves_the_old_one(autojump_clock: MockClock) -> None:
    server = ToolServer(era="legacy", tools=1)
    async with bench(server.in_process(name="x", first_list=5.0)) as here:
        await here.link.wait_tried()
        server.options.silent_on = "tools/list"
        await here.link.call(Call("tools/call", "x__change_tools"), "change_tools")
        await trio.sleep(10)
        assert here.around.counters["link.refresh_failed"] == 1
        assert (here.link.state, here.tools) == ("ready", ["x__tool_1"])
        server.options.silent_on = ""
        await here.link.call(Call("tools/call", "x__change_tools"), "change_tools")
        await trio.sleep(1)
        assert here.tools == ["x__tool_1", "x__added_1", "x__added_2"]


class Dropping:
    """Between a scripted server and us: takes subscriptions away, or their acknowledgements."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.deaf = False
        self.refuse: bytes | None = None
        self.listens: list[int] = []
        send = MemoryTransport.send
        these = self

        def spy(transport: MemoryTransport, message: bytes, **more: Json) -> None:
            if more.get("method") == "subscriptions/listen":
                these.listens.append(more["id"])
                these.ours = transport
                if these.refuse is not None:
                    reply = b'{"jsonrpc":"2.0","id":%d,%b}' % (more["id"], these.refuse)
                    send(transport._peer, reply)
                    return
                if these.deaf:
                    return
            send(transport, message, **more)

        self.ours: MemoryTransport
        self._send = send
        monkeypatch.setattr(MemoryTransport, "send", spy)

    def end(self, how: str) -> None:
        """The server ends the newest subscription."""
        ends = {
            "result": b'{"jsonrpc":"2.0","id":%d,"result":{"resultType":"complete"}}',
            "cancelled": b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d}}',
            "error": b'{"jsonrpc":"2.0","id":%d,"error":{"code":-32603,"message":"stream lost"}}',
        }
        self._send(self.ours._peer, ends[how] % self.listens[-1])


@pytest.mark.parametrize("how", ["result", "cancelled", "error"])
async def test_m24_a_subscription_that_ends_is_opened_anew_and_the_tools_listed_after_it(
    how: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping, server = Dropping(monkeypatch), ToolServer()
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        dropping.end(how)
        await wait_all_tasks_blocked()
        server.world.added += 1  # in the gap, where nobody tells us
        await trio.sleep(2)
        assert len(dropping.listens) == 2
        assert here.tools == ["x__added_1"]
        assert server.received["tools/list"] == 2


async def test_m24_a_subscription_that_always_ends_is_opened_ever_more_rarely(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping = Dropping(monkeypatch)
    dropping.refuse = b'"error":{"code":-32603,"message":"not now"}'
    async with bench(ToolServer().in_process(name="x")) as here:
        await trio.sleep(3600)
        assert here.link.state == "ready"
        assert len(dropping.listens) <= 10 + 3600 / 30


@pytest.mark.parametrize("code", [-32601, -32602])
async def test_a_server_that_cannot_be_listened_to_is_not_asked_again(
    code: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping = Dropping(monkeypatch)
    dropping.refuse = b'"error":{"code":%d,"message":"no"}' % code
    async with bench(ToolServer().in_process(name="x")) as here:
        start = trio.current_time()
        await here.link.wait_tried()
        assert trio.current_time() == start
        await trio.sleep(3600)
        assert len(dropping.listens) == 1


async def test_a_server_that_does_not_acknowledge_is_listed_all_the_same(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping, server = Dropping(monkeypatch), ToolServer(tools=1)
    dropping.deaf = True
    async with bench(server.in_process(name="x")) as here:
        start = trio.current_time()
        await here.link.wait_tried()
        assert trio.current_time() - start == LISTEN_PATIENCE
        assert here.tools == ["x__tool_1"]
        server.world.added += 1
        late = b'{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{}}'
        dropping._send(dropping.ours._peer, late)
        await trio.sleep(1)
        assert here.tools == ["x__tool_1", "x__added_1"]


async def test_a_legacy_server_is_not_listened_to(autojump_clock: MockClock) -> None:
    server = ToolServer(era="legacy")
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        assert "subscriptions/listen" not in server.received
        assert server.received["notifications/initialized"] == 1


async def test_other_notifications_change_nothing(autojump_clock: MockClock) -> None:
    server = ToolServer(era="legacy")
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        here.link._told("notifications/resources/list_changed", Raw(b"{}"), None)
        await trio.sleep(10)
        assert server.received["tools/list"] == 1


async def test_log_lines_are_counted_over_all_sessions(autojump_clock: MockClock) -> None:
    server = ToolServer(era="legacy")
    async with bench(server.in_process(name="x")) as here:
        await here.link.wait_tried()
        for _ in range(2):
            await here.link.call(Call("tools/call", "f", {"arguments": Raw(b'{"lines":5}')}), "flood")
            server.break_connections()
            await trio.sleep(1)
        assert here.link.log_lines == 10


@pytest.mark.parametrize("bounds", [Bounds(tools=3), Bounds(list_pages=3)])
async def test_a_list_keeps_to_the_bounds(bounds: Bounds, autojump_clock: MockClock) -> None:
    server = ToolServer(page=1)
    async with bench(server.in_process(name="x", tools=ToolFilter()), bounds=bounds) as here:
        await here.link.wait_tried()
        assert len(here.registry.snapshot.tools) == 3
        assert here.link.notes
        assert node_of(here.link).facts["notes"] == 1


# Turns to start


async def test_interpreters_start_a_few_at_a_time_and_one_that_hangs_gives_its_turn_back(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cord_trio.connecting.is_interpreter", lambda source: True)
    sources = [hung(f"h{number}", era="legacy", connect=10.0) for number in range(4)]
    good = ToolServer()
    async with bench(*sources, run=False, starts=2) as here:
        start = trio.current_time()
        for link in here.links.values():
            await here.nursery.start(link.keep)
        tried: dict[str, float] = {}

        async def watch(name: str, link: Link) -> None:
            await link.wait_tried()
            tried[name] = trio.current_time() - start

        async with trio.open_nursery() as nursery:
            for name, link in here.links.items():
                nursery.start_soon(watch, name, link)
        assert sorted(tried.values()) == [10, 10, 10 + START_HOLD, 10 + START_HOLD]
        assert good.received == {}


async def test_a_turn_to_start_is_given_back_when_the_start_is_over(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cord_trio.connecting.is_interpreter", lambda source: True)
    sources = [ToolServer(slow=0.5).in_process(name=f"s{number}", era="legacy") for number in range(4)]
    async with bench(*sources, starts=1) as here:
        start = trio.current_time()
        for link in here.links.values():
            await link.wait_tried()
        # Each holds its turn for the greeting alone; the lists overlap.
        assert trio.current_time() - start == 4 * 0.5 + 0.5
        assert here.around.starts.borrowed_tokens == 0


# Real children


async def test_m03_a_child_that_exits_at_the_probe_takes_two_spawns_and_then_one(tmp_path: object) -> None:
    record = f"{tmp_path}/record"
    server = ToolServer(era="legacy", exit_on="server/discover", record=record)
    async with bench(server.source(name="x")) as here:
        await here.link.wait_tried()
        assert (here.link.state, here.link.starts) == ("ready", 1)
        assert _requests(record) == ["server/discover", "initialize", "tools/list"]
        first = here.link.pid
        with pytest.raises(ConnectionLost):
            await here.link.call(Call("tools/call", "x", {"arguments": Raw(b'{"signal":9}')}), "crash")
        await here.link.call(echo(), "echo")
        assert here.link.starts == 2
        assert here.link.pid != first
        assert _requests(record)[4:] == ["initialize", "tools/list", "tools/call"]


@pytest.mark.parametrize(
    "program", ["echo need API_KEY >&2; exit 3", "exec 0<&-; sleep 0.1; echo need API_KEY >&2; exit 3"]
)
async def test_p01_a_child_that_exits_at_once_says_how_and_what_it_wrote(program: str) -> None:
    for _ in range(3):
        async with bench(Stdio(name="x", command="sh", args=("-c", program))) as here:
            await here.link.wait_tried()
            step, _, reason = here.link.reason.partition(": ")
            assert step in ("connect", "handshake")  # which it is depends on who is faster
            assert reason == "server exited with status 3; stderr: need API_KEY"


async def test_l09_a_child_that_pings_from_the_start_stays_connected() -> None:
    program = (
        "import sys, json\n"
        "say = lambda value: print(json.dumps({'jsonrpc': '2.0', **value}), flush=True)\n"
        "say({'id': 'u-1', 'method': 'ping'})\n"
        "answered = False\n"
        "for line in sys.stdin:\n"
        "    got = json.loads(line)\n"
        "    answered = answered or got.get('id') == 'u-1'\n"
        "    if got.get('method') == 'initialize':\n"
        "        say({'id': got['id'], 'result': {'protocolVersion': '2025-11-25', 'capabilities': {'tools': {}}}})\n"
        "    elif got.get('method') == 'tools/list':\n"
        "        say({'id': got['id'], 'result': {'tools': [{'name': str(answered), 'inputSchema': {}}]}})\n"
    )
    async with bench(Stdio(name="x", command=sys.executable, args=("-I", "-S", "-c", program), era="legacy")) as here:
        await here.link.wait_tried()
        assert list(here.registry.snapshot.tools) == ["x__True"]


def _requests(record: str) -> list[str]:
    with open(record, "rb") as file:
        messages = [json.loads(line) for line in file]
    return [message["method"] for message in messages if "id" in message]
