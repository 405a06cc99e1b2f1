"""A source with several servers that is asked a second time where the first answer is late."""

from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.balance import Load
from cord_trio.call import Call, Complete, Outcome
from cord_trio.config import Config, Http, InProcess, Stdio, ToolSettings, WebSocket, load_config
from cord_trio.counters import Counters
from cord_trio.errors import ConfigError, DeadlineExceeded, SourceDown
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.layers import RetryBudget, hedge
from cord_trio.replicas import Replicas
from tests.test_replicas import Servers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

Json: TypeAlias = Any

TWICE = {"echo": ToolSettings(repeatable=True)}


@asynccontextmanager
async def warmed(
    servers: Servers, calls: int = 50, **common: Json
) -> AsyncGenerator[tuple[Fabric, Replicas, list[int]]]:
    """A hedging source whose servers have answered `calls` calls of 0.1 s, and how many of them each did."""
    source = servers.source(**{"era": "legacy", "hedge": True, "tool": TWICE, "deadline": 30.0, **common})
    async with open_fabric(Config(sources=[source]), rng=Random(0)) as fabric:
        replicas = fabric.links["x"]
        assert isinstance(replicas, Replicas)
        for link in replicas.links:
            await link.wait_tried()
        for server in servers.all:
            server.options.slow = 0.1
        for _ in range(calls):
            await fabric.call("x__echo", {"text": "hi"})
        await trio.sleep(30)  # what was seen of their latencies is forgotten
        yield fabric, replicas, servers.calls()
    assert all(link.load.in_flight == 0 for link in replicas.links)


def cancels(servers: Servers) -> list[int]:
    return [server.received.get("notifications/cancelled", 0) for server in servers.all]


async def test_a_slow_call_is_answered_by_another_server_and_the_slow_one_told_once(autojump_clock: MockClock) -> None:
    servers = Servers(3)
    async with warmed(servers) as (fabric, _, before):
        for _ in range(4):
            first = cancels(servers)
            for server in servers.all:
                server.options.slow = 20.0

            async def heal(before: list[int]) -> None:
                """Once one has the call, the others are quick."""
                while servers.calls() == before:  # noqa: ASYNC110  # a server has no event for it
                    await trio.sleep(0.01)
                for server, old, new in zip(servers.all, before, servers.calls(), strict=True):
                    server.options.slow = 20.0 if new > old else 0.0

            before = servers.calls()
            begun = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(heal, before)
                assert (await fabric.call("x__echo", {"text": "hi"})).text == "hi"
            assert trio.current_time() - begun == pytest.approx(0.1)
            await wait_all_tasks_blocked()
            now = servers.calls()
            asked = [new - old for new, old in zip(now, before, strict=True)]
            assert sorted(asked) == [0, 1, 1]
            told = [new - old for new, old in zip(cancels(servers), first, strict=True)]
            assert sorted(told) == [0, 0, 1]
            await trio.sleep(30)
        assert (fabric.counters["hedge.hedged"], fabric.counters["hedge.first"]) == (4, 4)


@pytest.mark.parametrize("common", [{"tool": {}}, {"hedge": False}, {"tool": {"*": ToolSettings(retries=0)}}])
async def test_what_may_not_run_twice_or_is_not_asked_for_or_paid_for_is_asked_once(
    common: Json, autojump_clock: MockClock
) -> None:
    servers = Servers(2)
    async with warmed(servers, **common) as (fabric, _, before):
        for server in servers.all:
            server.options.slow = 20.0
        await fabric.call("x__echo", {"text": "hi"})
        assert sum(servers.calls()) == sum(before) + 1
        assert fabric.counters["hedge.hedged"] == 0


async def test_a_hedge_costs_a_retry_and_takes_half_of_them_at_most(autojump_clock: MockClock) -> None:
    servers = Servers(2)
    async with warmed(servers) as (fabric, _, before):
        for server in servers.all:
            server.options.slow = 5.0
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(fabric.call, "x__echo", {"text": "hi"})
        assert fabric.counters["hedge.hedged"] == 1  # (3 + 0.2 · 4) / 2
        assert sum(servers.calls()) == sum(before) + 5


async def test_a_call_is_not_made_twice_where_one_server_is_left(autojump_clock: MockClock) -> None:
    servers = Servers(2, exit_at_start=False)
    async with warmed(servers) as (fabric, _, before):
        servers.all[0].options.exit_at_start = True
        servers.all[0].break_connections("gone")
        await wait_all_tasks_blocked()
        servers.all[1].options.slow = 5.0
        await fabric.call("x__echo", {"text": "hi"})
        assert servers.calls() == [before[0], before[1] + 1]
        assert fabric.counters["hedge.hedged"] == 0


async def test_a_caller_who_can_be_asked_is_not_asked_by_two(autojump_clock: MockClock) -> None:
    servers = Servers(2)
    async with warmed(servers) as (_, replicas, _):
        assert replicas.may_hedge(Call("tools/call", "x__echo"))
        assert not replicas.may_hedge(Call("tools/call", "x__echo", capabilities=b'{"elicitation":{}}'))
        assert not replicas.may_hedge(Call("tasks/get", "1"))
        replicas.links[0].load.until = trio.current_time() + 9  # left out for its failures
        assert not replicas.may_hedge(Call("tools/call", "x__echo"))


async def test_an_attempt_that_finds_no_other_server_does_not_run(autojump_clock: MockClock) -> None:
    servers = Servers(2)
    async with warmed(servers, 0) as (_, replicas, _):
        call = Call("tools/call", "x__echo", deadline=trio.current_time() + 9, apart=list(replicas.links))
        with pytest.raises(SourceDown, match="no other replica") as caught:
            await replicas.call(call, "echo")
        assert caught.value.executed == "no"


def test_a_server_that_lost_is_known_to_be_slow() -> None:
    load = Load()
    load.answered(1.0, 0.0)
    load.unanswered(0.5, 0.0)
    assert load.latency(0.0) == 1.0
    load.unanswered(4.0, 0.0)
    assert load.latency(0.0) == 4.0
    assert load.failures == 0


async def test_of_two_failures_that_of_the_first_attempt_counts(autojump_clock: MockClock) -> None:
    begun: list[Call] = []

    async def handler(call: Call) -> Outcome:
        begun.append(call)
        number = len(begun)
        await trio.sleep(5.0 if number == 51 else 1.0)
        if number == 51:
            raise DeadlineExceeded("late")
        if number == 52:
            raise SourceDown("x", "no other", None)
        return Complete(Raw(b"{}"))

    layer = hedge(may=lambda _: True, budget=RetryBudget(), counters=Counters())
    hedged = layer(handler)
    for _ in range(50):
        await hedged(Call("tools/call", "x__get"))
    with pytest.raises(DeadlineExceeded):
        await hedged(Call("tools/call", "x__get", events=lambda method, params: None))
    assert begun[50].apart is begun[51].apart is not None
    assert (begun[50].events is None, begun[51].events is None) == (False, True)


# Configured


def test_hedging_without_a_second_server_or_a_retry_is_told(tmp_path: Path) -> None:
    file = tmp_path / "cord.toml"
    file.write_text(
        '[sources.a]\ncommand = "x"\nhedge = true\n'
        '[sources.b]\nurl = "http://b/mcp"\nhedge = true\n'
        '[sources.c]\nurl = "ws://c/mcp"\nhedge = true\n'
        '[sources.d]\ncommand = "x"\nreplicas = 2\nhedge = true\nretries = 0\n'
        '[sources.e]\ncommand = "x"\nreplicas = 2\nhedge = true\n'
        '[sources.f]\nurls = ["http://a/mcp", "http://b/mcp"]\nhedge = true\n',
        "utf-8",
    )
    config = load_config(file)
    told = {name: [f"{each.path} {each.what}; {each.remedy}" for each in why] for name, why in config.broken.items()}
    one, costs = "asks a second server, and the source has one", "costs a retry, and the source has none"
    assert told == {
        "a": [f"sources.a.hedge {one}; give it replicas = 2, or remove it"],
        "b": [f"sources.b.hedge {one}; give it another endpoint in urls, or remove it"],
        "c": ["sources.c.hedge asks a second server, and a WebSocket source has one; remove it"],
        "d": [f"sources.d.hedge {costs}; set retries to 1 or more, or remove it"],
    }
    assert [config.sources[name].hedge for name in ("e", "f")] == [True, True]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Stdio(name="x", command="x", hedge=True),
        lambda: Http(name="x", url="http://a/mcp", hedge=True),
        lambda: WebSocket(name="x", url="ws://a/mcp", hedge=True),
        lambda: InProcess(name="x", serve=Servers(1).serve, hedge=True),
    ],
)
def test_hedging_one_server_is_an_error_in_code_too(make: Json) -> None:
    with pytest.raises(ConfigError, match="hedge"):
        make()
