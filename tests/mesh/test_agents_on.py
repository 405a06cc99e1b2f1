"""Agents that are told, handed to, and placed, on other nodes, over a broker in this process."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cord_trio.agents import Budget, Mailbox, last
from cord_trio.config import AgentConfig, Config, MeshConfig
from cord_trio.errors import AgentNotFound, BudgetExceeded, CallCycle, HandoffRefused, NoMailbox, Overloaded
from cord_trio.fabric import open_fabric
from cord_trio.mesh.local import open_broker
from cord_trio.mesh_errors import NotJson, OwnerLost
from tests.mesh.members import has, member, server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock

    from cord_trio.agents import Context, Keep
    from cord_trio.mesh.catalogues import Catalogue
    from tests.mesh.members import Member


async def echo(ctx: Context, payload: object) -> object:
    await trio.lowlevel.checkpoint()
    return payload


def hands_to(name: str, keep: Keep | None = None) -> Callable[[Context, object], Awaitable[object]]:
    async def handing(ctx: Context, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        return ctx.handoff(name, payload, keep)

    return handing


async def test_what_a_node_has_stays_known_while_what_it_says_anew_is_read(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        b.fabric.agent("one", echo)
        await has(a, "one")
        fetch, slow = a.node.catalogues.fetch, trio.Event()

        async def fetches(digest: str) -> Catalogue:
            await slow.wait()
            return await fetch(digest)

        monkeypatch.setattr(a.node.catalogues, "fetch", fetches)
        b.fabric.agent("two", echo)
        for _ in range(20):
            await trio.sleep(0.1)
            assert await a.fabric.ask("one", 1) == 1
        with pytest.raises(AgentNotFound):
            await a.fabric.ask("two", 1)
        slow.set()
        await has(a, "one", "two")
        await b.fabric.remove("one")
        await trio.sleep(2)
        with pytest.raises(AgentNotFound):
            await a.fabric.ask("one", 1)


# Telling


async def test_a_message_goes_into_the_mailbox_of_another_node_and_its_policy_is_that_nodes(
    autojump_clock: MockClock,
) -> None:
    got: list[tuple[object, ...]] = []
    gate = trio.Event()

    async def takes(ctx: Context, payload: object) -> None:
        got.append((payload, *ctx.chain, ctx.principal))
        await gate.wait()

    async def tells(ctx: Context, payload: str) -> object:
        return [await ctx.tell(payload, number) for number in range(4)]

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        b.fabric.agent("drops", takes, mailbox=Mailbox(2, "drop_newest"))
        b.fabric.agent("refuses", takes, mailbox=Mailbox(1, "fail"))
        b.fabric.agent("plain", takes)
        a.fabric.agent("front", tells)
        await has(a, "drops", "refuses", "plain")
        assert await a.fabric.ask("front", "drops") == [True, True, True, False]
        with pytest.raises(Overloaded, match=r"agents\.refuses\.mailbox"):
            await a.fabric.ask("front", "refuses")
        with pytest.raises(NoMailbox):
            await a.fabric.tell("plain", 1)
        with pytest.raises(NotJson):
            await a.fabric.tell("drops", object())
        gate.set()
        await b.fabric.agents.wait_quiet()
        assert [each for each in got if "drops" in each] == [(number, "drops", "local@a") for number in range(3)]
        assert [each for each in got if "refuses" in each] == [(number, "refuses", "local@a") for number in range(2)]


async def test_who_tells_a_full_mailbox_of_another_node_waits_and_if_it_leaves_has_told_nothing(
    autojump_clock: MockClock,
) -> None:
    got: list[object] = []
    gate = trio.Event()

    async def takes(ctx: Context, payload: object) -> None:
        await gate.wait()
        got.append(payload)

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        b.fabric.agent("waits", takes, mailbox=Mailbox(1))
        await has(a, "waits")
        for number in range(2):
            assert await a.fabric.tell("waits", number)
        with trio.move_on_after(5) as scope:
            await a.fabric.tell("waits", "never")
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.fabric.tell, "waits", 2)
            await trio.sleep(1)
            gate.set()
        await b.fabric.agents.wait_quiet()
        assert got == [0, 1, 2]


async def test_agents_of_two_nodes_tell_each_other_as_long_as_they_like(autojump_clock: MockClock) -> None:
    got: list[int] = []
    done = trio.Event()

    def bats(name: str) -> Callable[[Context, int], Awaitable[None]]:
        async def bat(ctx: Context, payload: int) -> None:
            got.append(payload)
            if payload:
                await ctx.tell(name, payload - 1)
            else:
                done.set()

        return bat

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        a.fabric.agent("ping", bats("pong"), mailbox=Mailbox())
        b.fabric.agent("pong", bats("ping"), mailbox=Mailbox())
        await has(a, "pong")
        await has(b, "ping")
        await a.fabric.tell("pong", 30)
        await done.wait()
        assert got == [*range(30, -1, -1)]


# Handing on


async def test_a_handoff_to_another_node_is_taken_there_with_what_is_kept(autojump_clock: MockClock) -> None:
    async def takes(ctx: Context, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        return [payload, [[step.agent, step.payload] for step in ctx.transcript], ctx.chain, ctx.hops]

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        b.fabric.agent("taker", takes)
        a.fabric.agent("first", hands_to("second"))
        a.fabric.agent("second", hands_to("taker", last(1)))
        await has(a, "taker")
        expected = ["job", [["second", "job"]], ["first", "second", "taker"], 2]
        assert await a.fabric.ask("first", "job") == expected


async def test_who_was_asked_from_another_node_hands_on_and_has_no_part_in_the_rest(
    autojump_clock: MockClock,
) -> None:
    active: list[str] = []

    async def takes(ctx: Context, payload: object) -> object:
        active.append("taker")
        assert not b.fabric.agents.roots
        assert (b.node.owning.busy, ctx.hops) == (0, 1)
        await ctx.emit("taken")
        await trio.sleep(5)
        return [payload, ctx.chain, ctx.deadline < trio.current_time() + 55]

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        async with member(broker, "c") as c:
            b.fabric.agent("giver", hands_to("taker"))
            c.fabric.agent("taker", takes)
            await has(a, "giver")
            await has(b, "taker")
            with trio.fail_after(60):
                async with a.fabric.stream("giver", 7) as events:
                    assert [event async for event in events] == ["taken"]
                    assert await events.result() == [7, ["giver", "taker"], True]
            assert (b.fabric.counters["mesh.handed_on"], active) == (1, ["taker"])
            cancelled = trio.current_time()
            with trio.move_on_after(2):
                await a.fabric.ask("giver", 8)
            await wait_all_tasks_blocked()
            assert not c.fabric.agents.roots
            assert trio.current_time() - cancelled < 2.5


async def test_a_conversation_may_be_handed_back_to_where_it_came_from(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        a.fabric.agent("front", hands_to("giver"))
        b.fabric.agent("giver", hands_to("home"))
        a.fabric.agent("home", echo)
        await has(a, "giver")
        await has(b, "home")
        assert await a.fabric.ask("front", "x") == "x"
        assert not a.fabric.agents.roots


async def test_handoffs_are_counted_over_all_nodes_and_refused_where_nobody_can_take_them(
    autojump_clock: MockClock,
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        a.fabric.agent("left", hands_to("right"))
        b.fabric.agent("right", hands_to("left"))
        b.fabric.agent("lost", hands_to("nobody"))
        b.fabric.agent("far", hands_to("x@gone"))
        b.fabric.agent("not_granted", hands_to("left"), agents=["x"])
        a.fabric.agent("from_here", hands_to("x@gone"))
        await has(a, "right", "lost")
        await has(b, "left")
        with pytest.raises(HandoffRefused, match="8 nodes are the most"):
            await a.fabric.ask("left")
        for name in ("lost", "far", "not_granted", "from_here"):
            with pytest.raises(HandoffRefused):
                await a.fabric.ask(name)
        with pytest.raises(BudgetExceeded):
            await a.fabric.ask("left", budget=Budget(hops=2))


async def test_what_both_spend_of_a_budget_comes_back_after_a_handoff(autojump_clock: MockClock) -> None:
    async def spends(ctx: Context, payload: object) -> object:
        await ctx.call("web__echo", {"text": "x"})
        ctx.budget.spend(tokens=3)
        return str(ctx.budget.left("calls"))

    async def gives(ctx: Context, payload: object) -> object:
        ctx.budget.spend(calls=2, tokens=4)
        await trio.lowlevel.checkpoint()
        return ctx.handoff("taker")

    left: list[object] = []

    async def front(ctx: Context, payload: object) -> object:
        answer = await ctx.ask("giver")
        left.extend(ctx.budget.left(counter) for counter in ("calls", "tokens", "hops"))
        return answer

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        async with member(broker, "c", server("web").in_process()) as c:
            b.fabric.agent("giver", gives)
            c.fabric.agent("taker", spends)
            a.fabric.agent("front", front)
            await has(a, "giver")
            await has(b, "taker")
            assert await a.fabric.ask("front", budget=Budget(calls=9, tokens=50, hops=4)) == "6"
            assert left == [6, 43, 3]


async def test_who_took_a_conversation_over_and_dies_is_lost_and_it_may_have_run(autojump_clock: MockClock) -> None:
    async def slow(ctx: Context, payload: object) -> None:
        await trio.sleep(1000)

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        async with member(broker, "c") as c:
            b.fabric.agent("giver", hands_to("slow"))
            c.fabric.agent("slow", slow)
            await has(a, "giver")
            await has(b, "slow")
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    with pytest.raises(OwnerLost) as caught:
                        await a.fabric.ask("giver")
                    assert caught.value.executed == "unknown"

                nursery.start_soon(ask)
                await trio.sleep(1)
                c.way.cut()


async def test_a_handoff_that_comes_back_to_who_waits_for_it_is_refused(autojump_clock: MockClock) -> None:
    async def asks(ctx: Context, payload: object) -> object:
        return await ctx.ask("giver")

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        a.fabric.agent("waits", asks)
        b.fabric.agent("giver", hands_to("waits"))
        await has(a, "giver")
        await has(b, "waits")
        with pytest.raises(CallCycle):
            await a.fabric.ask("waits")


# Placing


async def test_an_address_with_labels_means_one_of_the_nodes_that_have_them(autojump_clock: MockClock) -> None:
    def named(name: str) -> Callable[[Context, object], Awaitable[object]]:
        async def which(ctx: Context, payload: object) -> object:
            await trio.lowlevel.checkpoint()
            return name

        return which

    async with open_broker(Random(1)) as broker, member(broker, "a", labels={"in": "north"}) as a:
        async with (
            member(broker, "b", labels={"in": "south", "has": "gpu"}) as b,
            member(broker, "c", labels={"in": "south"}) as c,
            member(broker, "d", labels={"in": "south"}) as d,
        ):
            for one in (a, b, c):
                one.fabric.agent("who", named(one.node.name))
            d.fabric.agent("only", named("d"))
            await has(a, "who@in=south", "who@has=gpu")
            await has(d, "who@in=north")
            await trio.sleep(5)
            assert await a.fabric.ask("who@in=north") == "a"
            assert {await a.fabric.ask("who@in=south") for _ in range(20)} == {"b", "c"}
            assert {await d.fabric.ask("who@in=south") for _ in range(20)} == {"b", "c"}  # it has none itself
            assert {await a.fabric.ask("who@in=south,has=gpu") for _ in range(5)} == {"b"}
            assert await places(a) == [["b", "c"], "b", "d"]
            for nowhere in ("who@in=west", "who@has=", "other@in=south"):
                with pytest.raises(AgentNotFound):
                    await a.fabric.ask(nowhere)


async def places(of: Member) -> object:
    """Where runs are that an agent places: spawned, started, and on nodes of one name."""

    async def front(ctx: Context, payload: object) -> object:
        async with ctx.open_nursery() as crew:
            spawned = [crew.spawn("who@in=south") for _ in range(20)]
        job = await ctx.start("who@has=gpu")
        return [sorted({str(await each.result()) for each in spawned}), await job.result(), await ctx.ask("only@d")]

    of.fabric.agent("front", front)
    return await of.fabric.ask("front")


async def test_a_configured_agent_is_only_where_the_labels_are_that_it_wants(autojump_clock: MockClock) -> None:
    agents = [
        AgentConfig(name="here", handler="m:f", where={"in": "north"}),
        AgentConfig(name="there", handler="m:f", where={"in": "south"}),
        AgentConfig(name="anywhere", handler="m:f"),
    ]
    mesh = MeshConfig(servers=["nats://x"], labels={"in": "north"})
    for settings, expected in ((mesh, ["here", "anywhere"]), (None, ["here", "there", "anywhere"])):
        async with open_fabric(Config(agents=agents, mesh=settings)) as fabric:
            fabric.add_configured(dict.fromkeys(("here", "there", "anywhere"), echo))
            assert list(fabric.agents) == expected
