"""One source that several like servers stand for."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.balance import EJECT_AFTER
from cord_trio.call import Call, Complete, InputRequired, Outcome, Task
from cord_trio.config import Bounds, Config, Http, InProcess, Stdio, several
from cord_trio.errors import CallError, ConfigError, ConnectionLost, DeadlineExceeded, HttpFailed, SourceDown
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.replicas import Replicas
from cord_trio.testing import ToolServer
from tests.full_server import FullServer, Request, text

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cord_trio.transports.memory import MemoryTransport

Json: TypeAlias = Any


class Servers:
    """Several servers; each connection goes to one that has fewest, so that each replica has its own.

    One that takes another's place may connect before the other has left.
    """

    def __init__(self, count: int, **options: Json) -> None:
        self.all = [ToolServer(**options) for _ in range(count)]
        self.connections = [0] * count
        self.opened = 0

    async def serve(self, transport: MemoryTransport) -> None:
        number = min(range(len(self.all)), key=self.connections.__getitem__)
        self.connections[number] += 1
        self.opened += 1
        try:
            await self.all[number].serve(transport)
        finally:
            self.connections[number] -= 1

    def source(self, **common: Json) -> InProcess:
        return InProcess(name="x", serve=self.serve, replicas=len(self.all), **common)

    def calls(self, tool: str = "echo") -> list[int]:
        return [server.received.get(f"call {tool}", 0) for server in self.all]


@asynccontextmanager
async def replicated(source: InProcess, **bounds: Json) -> AsyncGenerator[tuple[Fabric, Replicas]]:
    async with open_fabric(Config(sources=[source], bounds=Bounds(**bounds)), rng=Random(0)) as fabric:
        replicas = fabric.links["x"]
        assert isinstance(replicas, Replicas)
        yield fabric, replicas
    assert all(link.open() == [] and link.load.in_flight == 0 for link in replicas.links)
    assert replicas.waiting == {}


async def started(replicas: Replicas) -> None:
    for link in replicas.links:
        await link.wait_tried()
    await wait_all_tasks_blocked()


async def echo(fabric: Fabric) -> str:
    return (await fabric.call("x__echo", {"text": "hi"})).text


async def test_calls_are_shared_among_replicas_that_are_listed_as_one(autojump_clock: MockClock) -> None:
    servers = Servers(3, slow=0.1, tools=1)
    async with replicated(servers.source()) as (fabric, replicas):
        await started(replicas)
        assert [name for name in fabric.registry.snapshot.tools if "tool_" in name] == ["x__tool_1"]
        assert (replicas.notes, fabric.registry.snapshot.problems) == ((), ())
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(echo, fabric)
        assert sum(servers.calls()) == 30
        assert all(5 <= calls <= 15 for calls in servers.calls())
        [node] = fabric.source_nodes()
        assert (node.kind, node.state, [child.name for child in node.children]) == (
            "source",
            "ready",
            ["x#1", "x#2", "x#3"],
        )
        assert [child.kind for child in node.children] == ["replica"] * 3


async def test_a_replica_that_is_lost_takes_no_calls_and_comes_back(autojump_clock: MockClock) -> None:
    servers = Servers(2)
    async with replicated(servers.source(), backoff_first=20.0, backoff_longest=20.0) as (fabric, replicas):
        await started(replicas)
        for lost in (0, 1):  # whichever of them is the first replica's
            servers.all[lost].break_connections("gone")
            await wait_all_tasks_blocked()
            view = fabric.registry.snapshot.sources["x"]
            assert (replicas.state, view.state) == ("ready", "ready")
            [down] = [link for link in replicas.links if link.state == "down"]
            before = servers.calls()
            for _ in range(20):
                await echo(fabric)
            assert servers.calls()[lost] == before[lost]
            assert servers.calls()[1 - lost] == before[1 - lost] + 20
            await trio.sleep(40)
            assert [link.state for link in replicas.links] == ["ready", "ready"]
            assert replicas.leader is not down  # the other was ready all the time


async def test_l03_with_all_replicas_down_a_call_waits_for_one_attempt(autojump_clock: MockClock) -> None:
    servers = Servers(2, exit_at_start=True)
    source = servers.source(era="legacy", retries=0)
    async with replicated(source, backoff_first=8.0, backoff_longest=8.0) as (_, replicas):
        await replicas.wait_tried()
        assert replicas.state == "down"
        for each in ("x#1: ", "x#2: ", "; ", ": server exited with status 3"):
            assert each in replicas.reason
        with pytest.raises(SourceDown) as caught:
            await replicas.call(_echo_call(trio.current_time() + 60), "echo")
        assert caught.value.executed == "no"
        servers.all[0].options.exit_at_start = servers.all[1].options.exit_at_start = False
        await replicas.call(_echo_call(trio.current_time() + 60), "echo")


def _echo_call(deadline: float) -> Call:
    return Call("tools/call", "x__echo", {"arguments": Raw(b'{"text":"hi"}')}, deadline=deadline)


async def test_a_call_whose_deadline_is_before_all_next_attempts_fails_at_once(autojump_clock: MockClock) -> None:
    servers = Servers(2, exit_at_start=True)
    source = servers.source(era="legacy", retries=0)
    async with replicated(source, backoff_first=1e6, backoff_longest=1e6) as (_, replicas):
        await replicas.wait_tried()
        now = trio.current_time()
        with pytest.raises(SourceDown, match="server exited with status 3"):
            await replicas.call(_echo_call(now + 1), "echo")
        assert trio.current_time() == now


async def test_a_call_waits_no_longer_than_its_deadline_for_a_replica(autojump_clock: MockClock) -> None:
    servers = Servers(2, silent=True)
    async with replicated(servers.source(era="legacy", connect=30.0)) as (_, replicas):
        start = trio.current_time()
        with pytest.raises(DeadlineExceeded, match="x was still starting"):
            await replicas.call(_echo_call(start + 3), "echo")
        assert trio.current_time() == start + 3
        with trio.move_on_after(1) as scope:
            await replicas.call(_echo_call(start + 30), "echo")
        assert scope.cancelled_caught


async def test_the_first_that_is_ready_serves_while_others_start(autojump_clock: MockClock) -> None:
    servers = Servers(2)
    servers.all[0].options.silent = True
    async with replicated(servers.source(era="legacy", connect=30.0)) as (fabric, replicas):
        start = trio.current_time()
        assert await echo(fabric) == "hi"
        assert trio.current_time() - start < 1
        assert fabric.ready
        assert sorted(link.state for link in replicas.links) == ["ready", "starting"]
        assert (replicas.state, replicas.leader.state) == ("ready", "ready")


async def test_a_replica_that_fails_its_calls_is_left_out_and_no_more_than_half_are(autojump_clock: MockClock) -> None:
    servers = Servers(3)
    servers.all[0].options.silent_on = servers.all[1].options.silent_on = "tools/call"
    async with replicated(servers.source(deadline=1.0, retries=0)) as (fabric, replicas):
        await started(replicas)
        failed = 0

        async def work() -> None:
            nonlocal failed
            try:
                await echo(fabric)
            except CallError:
                failed += 1

        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(work)
                await trio.sleep(0.01)
        now = trio.current_time()
        assert [link.load.until > now for link in replicas.links].count(True) == 1
        assert fabric.counters["replicas.ejected"] == 1
        assert fabric.counters["replicas.not_ejected"] > 0
        assert failed >= 2 * EJECT_AFTER
        [node] = fabric.source_nodes()
        assert sum(child.facts["left_out_for"] is not None for child in node.children) == 1
        assert [child.facts["in_flight"] for child in node.children] == [0, 0, 0]
        assert sum(int(str(child.facts["answered"])) for child in node.children) == 60 - failed
        failed = 0
        for _ in range(20):  # the other sick one is known to be slow, and is spared
            await work()
        assert failed <= 10


async def test_callers_that_are_impatient_or_wrong_do_not_have_replicas_left_out(autojump_clock: MockClock) -> None:
    servers = Servers(3)
    async with replicated(servers.source(retries=0)) as (fabric, replicas):
        await started(replicas)

        async def refused(call: Call, name: str | None) -> Outcome:
            await trio.lowlevel.checkpoint()
            raise HttpFailed(statuses[-1])

        asked = {"arguments": Raw(b'{"seconds":1}')}
        for _ in range(60):
            with pytest.raises(DeadlineExceeded):
                await fabric.handle(Call("tools/call", "x__sleep", asked, deadline=trio.current_time() + 0.01))
        assert [link.load.failures for link in replicas.links] == [0, 0, 0]
        for link in replicas.links:
            link.call = refused  # type: ignore[method-assign]  # as a server over HTTP would
        statuses: list[int] = []
        for status, ejected in ((413, 0), (404, 1)):
            statuses.append(status)
            for _ in range(60):
                with pytest.raises(HttpFailed):
                    await echo(fabric)
            assert fabric.counters["replicas.ejected"] == ejected


async def test_a_call_that_may_have_run_is_not_given_to_another_replica(autojump_clock: MockClock) -> None:
    servers = Servers(2)
    for server in servers.all:
        server.options.exit_on = "tools/call"
    async with replicated(servers.source()) as (fabric, replicas):
        await started(replicas)
        with pytest.raises(ConnectionLost) as caught:
            await fabric.call("x__count", {})
        assert caught.value.executed == "unknown"
        assert sum(server.received.get("tools/call", 0) for server in servers.all) == 1


async def test_replicas_that_list_other_tools_are_told_of(autojump_clock: MockClock) -> None:
    servers = Servers(2, tools=2)
    servers.all[1].options.tools = 1
    async with replicated(servers.source()) as (fabric, replicas):
        await started(replicas)
        lead, other = replicas.leader, next(link for link in replicas.links if link is not replicas.leader)
        [note] = replicas.notes
        what = "lacks tool_2" if "x__tool_2" in fabric.registry.snapshot.tools else "has tool_2 besides"
        assert note == f"{other.name} lists other tools than {lead.name}: it {what}"
        assert [problem.what for problem in fabric.registry.snapshot.problems] == [note]


async def test_lazy_replicas_start_as_they_are_needed_and_stop_one_by_one(autojump_clock: MockClock) -> None:
    servers = Servers(3, slow=1.0)
    async with replicated(servers.source(start="lazy", idle=60.0)) as (fabric, replicas):
        await fabric.wait_started()
        assert (servers.opened, replicas.state, replicas.resting, replicas.known) == (0, "configured", True, False)
        assert await echo(fabric) == "hi"
        assert replicas.known
        for _ in range(30):
            await trio.sleep(10)
            await echo(fabric)
        await trio.sleep(200)
        assert (replicas.state, fabric.registry.snapshot.sources["x"].state) == ("manifest", "manifest")
        assert "x__echo" in fabric.registry.snapshot.tools
        assert await echo(fabric) == "hi"


async def test_a_resting_replica_is_started_when_the_others_are_busy(autojump_clock: MockClock) -> None:
    servers = Servers(2)
    async with replicated(servers.source(idle=60.0)) as (fabric, replicas):
        await started(replicas)
        replicas.subscriptions.add("file:///a", "keeps it", lambda uri: None)
        await trio.sleep(200)
        assert [link.resting for link in replicas.links] == [link is not replicas.leader for link in replicas.links]
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(fabric.call, "x__sleep", {"seconds": 5})
                await trio.sleep(1)
        assert not any(link.resting for link in replicas.links)
        assert all(calls > 0 for calls in servers.calls("sleep"))


async def test_a_source_with_replicas_is_removed_and_replaced(autojump_clock: MockClock) -> None:
    servers = Servers(2)
    async with replicated(servers.source()) as (fabric, replicas):
        await started(replicas)
        await fabric.connect(servers.source(deadline=5.0))
        assert fabric.links["x"] is not replicas
        assert await echo(fabric) == "hi"
        await fabric.disconnect("x")
        await wait_all_tasks_blocked()
        await trio.sleep(1)
        assert fabric.source_nodes() == []


async def test_a_source_becomes_replicas_and_one_again_with_its_subscriptions(autojump_clock: MockClock) -> None:
    servers = Servers(4)
    one = InProcess(name="x", serve=servers.serve)
    async with open_fabric([one], rng=Random(0)) as fabric:
        await fabric.wait_started()
        subscriptions = fabric.links["x"].subscriptions
        await fabric.connect(InProcess(name="x", serve=servers.serve, replicas=2))
        assert fabric.links["x"].subscriptions is subscriptions
        assert await echo(fabric) == "hi"
        await fabric.connect(one)
        assert fabric.links["x"].subscriptions is subscriptions


# What stays where it is


def full(modern: bool) -> tuple[list[FullServer], InProcess]:
    """Two servers with everything that MCP has, as one source."""
    servers = [FullServer(modern=modern) for _ in range(2)]

    async def serve(transport: MemoryTransport) -> None:
        idle = (each for each in servers if all(connection.over for connection in each.connections))
        server = next(idle, servers[0])
        await server.serve(transport)

    return servers, InProcess(name="x", serve=serve, replicas=2, era="modern" if modern else "legacy")


async def test_what_is_asked_of_a_task_goes_to_the_replica_that_runs_it(autojump_clock: MockClock) -> None:
    servers, source = full(modern=True)

    def begin(number: int, request: Request) -> Json:
        return {"resultType": "task", "taskId": f"t{number}-{request.id}", "status": "working"}

    for number, server in enumerate(servers):
        server.tools["slow"] = partial(begin, number)
        server.answers["tasks/get"] = lambda request: {**request.params, "resultType": "complete", "status": "done"}
    async with replicated(source) as (fabric, replicas):
        await started(replicas)
        for _ in range(10):
            task = await fabric.handle(Call("tools/call", "x__slow"))
            assert isinstance(task, Task)
            [id] = [word for word in bytes(task.result).decode().split('"') if word.startswith("t") and "-" in word]
            for _ in range(3):
                await fabric.handle(Call("tasks/get", "x__slow", {"taskId": Raw(f'"{id}"'.encode())}))
            assert [server.got[-1]["params"]["taskId"] for server in servers if server.got[-1]["method"] == "tasks/get"]
        for number, server in enumerate(servers):
            asked = [params["taskId"] for params in server.sent("tasks/get")]
            assert asked
            assert all(each.startswith(f"t{number}-") for each in asked)


async def test_a_round_of_questions_goes_on_where_it_began(autojump_clock: MockClock) -> None:
    servers, source = full(modern=True)

    def ask(number: int, request: Request) -> Json:
        if "requestState" in request.params:
            return text("yes")
        questions = {"k": {"method": "roots/list"}}
        return {
            "resultType": "input_required", "requestState": f"s{number}-{request.id}", "inputRequests": questions
        }  # fmt: skip

    for number, server in enumerate(servers):
        server.tools["ask"] = partial(ask, number)
    async with replicated(source) as (fabric, replicas):
        await started(replicas)
        for _ in range(20):
            first = await fabric.handle(Call("tools/call", "x__ask", capabilities=b'{"roots":{}}'))
            assert isinstance(first, InputRequired)
            [state] = [word for word in bytes(first.result).decode().split('"') if word.startswith("s") and "-" in word]
            params = {"inputResponses": Raw(b'{"k":{"roots":[]}}'), "requestState": Raw(f'"{state}"'.encode())}
            again = await fabric.handle(Call("tools/call", "x__ask", params, capabilities=b'{"roots":{}}'))
            assert isinstance(again, Complete)
        for number, server in enumerate(servers):
            states = [params["requestState"] for params in server.sent("tools/call") if "requestState" in params]
            assert states
            assert all(state.startswith(f"s{number}-") for state in states)


@pytest.mark.parametrize("modern", [True, False])
async def test_one_replica_tells_of_resources_and_another_once_that_is_lost(
    modern: bool, autojump_clock: MockClock
) -> None:
    servers, source = full(modern)
    told: list[str] = []

    def telling() -> list[bool]:
        last = [server.connections[-1] for server in servers]
        return [
            not each.over
            and bool(each.subscribed or any(one.get("resourceSubscriptions") for one in each.listening.values()))
            for each in last
        ]

    async with replicated(source, backoff_first=100.0, backoff_longest=100.0) as (fabric, replicas):
        await started(replicas)
        with fabric.subscribe("me", ["cord://x/file:///a"], told.append):
            await trio.sleep(1)
            assert sorted(telling()) == [False, True]
            first = telling().index(True)
            servers[first].connections[-1].tell("notifications/resources/updated", {"uri": "file:///a"})
            await wait_all_tasks_blocked()
            assert told == ["cord://x/file:///a"]
            servers[first].connections[-1].transport.lose("gone")
            await trio.sleep(1)
            assert telling()[1 - first]
            assert told == ["cord://x/file:///a"] * 2  # it may have changed meanwhile
            servers[1 - first].connections[-1].tell("notifications/resources/updated", {"uri": "file:///a"})
            await wait_all_tasks_blocked()
            assert told == ["cord://x/file:///a"] * 3
            await trio.sleep(300)
            assert telling().count(True) == 1
        await trio.sleep(1)
        assert not any(telling())


async def test_an_open_session_that_may_ask_its_caller_is_used_again(autojump_clock: MockClock) -> None:
    _, source = full(modern=False)
    async with replicated(source) as (fabric, replicas):
        await started(replicas)
        for _ in range(20):
            await fabric.handle(Call("tools/call", "x__echo", capabilities=b'{"elicitation":{}}'))
        assert sum(len(link.pool.sessions) for link in replicas.links) == 1


# Configured


def test_a_source_with_one_server_has_no_replicas() -> None:
    assert several(Stdio(name="x", command="x")) == ()
    assert several(Http(name="x", url="http://a/mcp")) == ()


def test_each_replica_is_a_source_of_its_own_under_the_prefix_of_all() -> None:
    both = several(Stdio(name="a b", command="x", replicas=2))
    assert [(each.name, each.export_prefix) for each in both] == [("a b#1", "a_b"), ("a b#2", "a_b")]
    assert all(several(each) == () for each in both)
    http = several(Http(name="x", url="http://a/mcp", urls=("http://b/mcp",), prefix=""))
    assert [(each.name, each.url, each.export_prefix) for each in http if isinstance(each, Http)] == [
        ("x#1", "http://a/mcp", ""),
        ("x#2", "http://b/mcp", ""),
    ]


@pytest.mark.parametrize("count", [0, 65, True, 1.5])
def test_a_number_of_replicas_out_of_range_is_told(count: Json) -> None:
    with pytest.raises(ConfigError, match="replicas"):
        Stdio(name="x", command="x", replicas=count)


def test_urls_are_checked_as_the_url_is() -> None:
    with pytest.raises(ConfigError) as caught:
        Http(name="x", url="http://a/mcp", urls=("ftp://b", "http://a/mcp", "http://c/mcp"))
    assert [problem.path for problem in caught.value.problems] == ["sources.x.urls[0]", "sources.x.urls[1]"]
