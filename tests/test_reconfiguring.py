"""Another configuration for a running fabric: what stays the same notices nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.call import Call
from cord_trio.config import Config, GatewayConfig, ProfileConfig, SupervisorConfig, ToolFilter
from cord_trio.errors import CallError, ConfigError, ConnectionLost, Draining, Problem, SourceDown, ToolNotFound
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.sources import Changes
from cord_trio.testing import ToolServer
from tests.test_parking import ACCEPT, first, questions, retry, said, server

if TYPE_CHECKING:
    from collections.abc import Awaitable

Json: TypeAlias = Any


def config(*sources: Json, **more: Json) -> Config:
    return Config(sources=sources, gateway=GatewayConfig(grace=5.0), **more)


async def ending(call: Awaitable[Json], into: list[object]) -> None:
    """Keep how `call` ends."""
    try:
        into.append((await call).text)
    except CallError as exc:
        into.append(exc)


def prefixes(fabric: Fabric) -> set[str]:
    return {name.partition("__")[0] for name in fabric.registry.snapshot.tools}


async def test_sources_come_and_go(autojump_clock: MockClock) -> None:
    a, b, c = (ToolServer().in_process(name=name) for name in "abc")
    async with open_fabric(config(a, b)) as fabric:
        await fabric.wait_started()
        assert fabric.reconfigure(config(c, b)) == Changes(added=("c",), removed=("a",))
        assert fabric.ready  # others need not wait for the new one
        assert prefixes(fabric) == {"b"}
        with pytest.raises(ToolNotFound):
            await fabric.call("a__echo", {"text": "1"})
        assert (await fabric.call("c__echo", {"text": "2"})).text == "2"
        assert prefixes(fabric) == {"b", "c"}
        assert list(fabric.registry.snapshot.sources) == list(fabric.links) == ["c", "b"]
        assert not fabric.reconfigure(config(c, b))
        await wait_all_tasks_blocked()
        assert not fabric.retiring
    assert fabric.counters.snapshot()["fabric.reconfigured"] == 1


async def test_a_source_that_stays_keeps_its_connection_and_its_calls(autojump_clock: MockClock) -> None:
    server = ToolServer()
    stays, goes = server.in_process(name="stays"), ToolServer().in_process(name="goes")
    endings: list[object] = []
    async with open_fabric(config(stays, goes)) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()
        link = fabric.links["stays"]
        nursery.start_soon(ending, fabric.call("stays__sleep", {"seconds": 3}), endings)
        await wait_all_tasks_blocked()
        fabric.reconfigure(config(stays, ToolServer().in_process(name="new")))
        assert fabric.links["stays"] is link
        await trio.sleep(4)
        assert (endings, link.starts) == (["slept"], 1)


async def test_what_a_source_that_goes_runs_has_the_grace_to_finish(autojump_clock: MockClock) -> None:
    endings: list[object] = []
    async with open_fabric(config(ToolServer().in_process(name="x"))) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()
        nursery.start_soon(ending, fabric.call("x__sleep", {"seconds": 3}), endings)
        await wait_all_tasks_blocked()
        fabric.reconfigure(config())
        assert [(node.name, node.state) for node in fabric.tree().children] == [("x", "draining")]
        await trio.sleep(4)
        assert endings == ["slept"]
        assert not fabric.retiring
        assert not fabric.tree().children


async def test_what_does_not_finish_within_the_grace_is_told_so(autojump_clock: MockClock) -> None:
    endings: list[object] = []
    async with open_fabric(config(ToolServer().in_process(name="x"))) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()
        nursery.start_soon(ending, fabric.call("x__sleep", {"seconds": 30}), endings)
        await wait_all_tasks_blocked()
        fabric.reconfigure(config())
        await trio.sleep(6)
        (lost,) = endings
        assert isinstance(lost, ConnectionLost)
        assert lost.executed == "unknown"
        assert not fabric.retiring


@pytest.mark.parametrize("replicas", [1, 2])
async def test_what_waits_for_an_answer_of_its_caller_has_the_grace_too(
    replicas: int, autojump_clock: MockClock
) -> None:
    async with open_fabric(config(server().source(replicas=replicas))) as fabric:
        await fabric.wait_started()
        asked = await fabric.handle(first())
        [question] = questions(asked)
        whole: list[bool] = []

        async def remove() -> None:
            whole.append(await fabric.disconnect("x", grace=5.0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove)
            await trio.sleep(3)
            assert said(await fabric.handle(retry(asked, {question: ACCEPT}))) == ACCEPT
            since = trio.current_time()
        assert trio.current_time() - since < 1  # nothing is waited for any more
        assert whole == [True]
        assert fabric.counters["fabric.source_drain_unfinished"] == 0


async def test_a_source_with_other_settings_is_replaced_and_keeps_its_lists(autojump_clock: MockClock) -> None:
    endings: list[object] = []
    old, new = ToolServer(), ToolServer(slow=1.0)
    async with open_fabric(config(old.in_process(name="x"))) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()
        version = fabric.registry.snapshot.listed_tools
        nursery.start_soon(ending, fabric.call("x__sleep", {"seconds": 3}), endings)
        await wait_all_tasks_blocked()
        assert fabric.reconfigure(config(new.in_process(name="x", slots=3))) == Changes(replaced=("x",))
        assert "x__echo" in fabric.registry.snapshot.tools
        assert fabric.registry.snapshot.listed_tools == version  # no client needs to list anew
        assert (await fabric.call("x__echo", {"text": "new"})).text == "new"
        assert fabric.slots["x"].size == 3
        await trio.sleep(4)
        assert endings == ["slept"]
        assert fabric.registry.snapshot.listed_tools == version
        assert fabric.registry.snapshot.sources["x"].state == "ready"
        assert not fabric.retiring


async def test_what_a_replaced_source_exports_follows_its_settings_at_once(autojump_clock: MockClock) -> None:
    server = ToolServer()
    async with open_fabric(config(server.in_process(name="x"))) as fabric:
        await fabric.wait_started()
        only = server.in_process(name="x", prefix="y", tools=ToolFilter(allow=("echo",)))
        fabric.reconfigure(config(only))
        assert set(fabric.registry.snapshot.tools) == {"y__echo"}
        assert (await fabric.call("y__echo", {"text": "1"})).text == "1"


async def test_a_late_word_of_the_link_before_changes_nothing(autojump_clock: MockClock) -> None:
    server, new = ToolServer(), ToolServer()
    async with open_fabric(config(server.in_process(name="x"))) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()
        nursery.start_soon(fabric.call, "x__sleep", {"seconds": 3})
        await wait_all_tasks_blocked()
        fabric.reconfigure(config(new.in_process(name="x", slots=2)))
        await trio.sleep(0.5)
        (before,) = fabric.retiring
        await before.call(Call("tools/call", "x__change_tools"), "change_tools")
        await trio.sleep(1)
        assert len(before.sessions) == 1
        assert "x__added_1" not in fabric.registry.snapshot.tools


async def test_who_subscribed_is_told_by_the_link_that_replaces(autojump_clock: MockClock) -> None:
    told: list[str] = []
    async with open_fabric(config(ToolServer().in_process(name="x"))) as fabric:
        await fabric.wait_started()
        link = fabric.links["x"]
        fabric.reconfigure(config(ToolServer().in_process(name="x", slots=3)))
        assert fabric.links["x"] is not link
        assert fabric.links["x"].subscriptions is link.subscriptions
        link.subscriptions.add("a:b", "me", told.append)
        fabric.links["x"].subscriptions.updated("a:b")
    assert told == ["a:b"]


async def test_a_source_that_cannot_be_used_any_more_goes_on_as_it_was(autojump_clock: MockClock) -> None:
    good = ToolServer().in_process(name="good")
    broken = {"good": (Problem("f", "sources.good", "TOKEN is not set", "set it", fatal=False, source="good"),)}
    async with open_fabric(config(good)) as fabric:
        await fabric.wait_started()
        changes = fabric.reconfigure(config(broken=broken))
        assert (changes, bool(changes)) == (Changes(kept=("good",)), False)
        assert (await fabric.call("good__echo", {"text": "1"})).text == "1"
        assert not fabric.config.broken
        new = {"new": broken["good"]}
        fabric.reconfigure(config(good, broken=new))
        with pytest.raises(SourceDown, match="TOKEN is not set"):
            await fabric.call("new__echo", {})


async def test_what_is_not_a_source_takes_a_restart(autojump_clock: MockClock) -> None:
    async with open_fabric(config()) as fabric:
        other = Config(
            gateway=GatewayConfig(grace=7.0), profiles=[ProfileConfig(name="p", tools=("*",))],
            supervisors=[SupervisorConfig(name="s")], state_dir="/elsewhere",
        )  # fmt: skip
        assert fabric.reconfigure(other) == Changes(restart=("gateway", "profiles", "supervisors", "state_dir"))
        assert (fabric.config.gateway.grace, fabric.config.state_dir) == (5.0, "")


async def test_a_fabric_that_drains_is_not_reconfigured(autojump_clock: MockClock) -> None:
    async with open_fabric(config()) as fabric:
        await fabric.drain(0)
        with pytest.raises(Draining):
            fabric.reconfigure(config(ToolServer().in_process(name="x")))
        assert not fabric.links


async def test_a_source_is_connected_and_disconnected_by_hand(autojump_clock: MockClock) -> None:
    server = ToolServer()
    endings: list[object] = []
    async with open_fabric() as fabric, trio.open_nursery() as nursery:
        await fabric.connect(server.in_process(name="x"))
        assert (await fabric.call("x__echo", {"text": "1"})).text == "1"
        nursery.start_soon(ending, fabric.call("x__sleep", {"seconds": 3}), endings)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        await fabric.disconnect("x")
        assert endings == ["slept"]
        assert 3 <= trio.current_time() - start < 3.2
        with pytest.raises(ToolNotFound):
            await fabric.call("x__echo")
        with pytest.raises(KeyError):
            await fabric.disconnect("x")


async def test_a_source_that_cannot_be_connected_says_so_and_goes_on_trying(autojump_clock: MockClock) -> None:
    failures = 0

    async def serve(transport: object) -> None:
        nonlocal failures
        failures += 1
        await trio.lowlevel.checkpoint()
        raise OSError("no")

    source = attrs.evolve(ToolServer().in_process(name="x"), serve=serve)
    async with open_fabric() as fabric:
        with pytest.raises(SourceDown):
            await fabric.connect(source)
        await trio.sleep(60)
        assert failures > 1
        with pytest.raises(ConfigError, match="prefix"):
            await fabric.connect(ToolServer().in_process(name="y", prefix="x"))


async def test_cancelling_a_fabric_that_retires_a_source_leaves_nothing(autojump_clock: MockClock) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.move_on_after(1) as scope:
        async with open_fabric(config(ToolServer().in_process(name="x"))) as fabric, trio.open_nursery() as nursery:
            await fabric.wait_started()
            nursery.start_soon(ending, fabric.call("x__sleep", {"seconds": 30}), [])
            await wait_all_tasks_blocked()
            fabric.reconfigure(config())
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_a_broken_source_that_is_connected_by_hand_is_broken_no_more(autojump_clock: MockClock) -> None:
    problem = Problem("f", "sources.x", "TOKEN is not set", "set it", fatal=False, source="x")
    async with open_fabric(config(broken={"x": (problem,)})) as fabric:
        await fabric.connect(ToolServer().in_process(name="x"))
        assert not fabric.config.broken
        assert (await fabric.call("x__echo", {"text": "1"})).text == "1"
        with pytest.raises(ValueError, match="'y' is disabled"):
            await fabric.connect(ToolServer().in_process(name="y", enabled=False))


async def test_the_circuit_of_a_source_goes_with_its_settings(autojump_clock: MockClock) -> None:
    server = ToolServer()
    async with open_fabric(config(server.in_process(name="x", breaker=2))) as fabric:
        assert fabric.tree().children[0].facts["breaker"] == "closed"
        fabric.reconfigure(config(server.in_process(name="x")))
        assert fabric.tree().children[0].facts["breaker"] is None
