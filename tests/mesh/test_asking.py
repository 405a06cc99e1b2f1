"""Agents that are asked from other nodes, over a broker in this process."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio

from cord_trio.agents import GRACE, Budget, Mailbox
from cord_trio.errors import (
    AgentCrashed,
    AgentNotFound,
    AgentNotGranted,
    BudgetExceeded,
    CallCycle,
    CallError,
    Draining,
    ToolNotFound,
)
from cord_trio.mesh import emitting
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.presence import LEASE
from cord_trio.mesh_errors import NoOwner, NotJson, OwnerLost, OwnerRefused
from cord_trio.protocol.mcp import ToolResult
from cord_trio.trace import TraceContext
from tests.mesh.members import has, member, server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trio.testing import MockClock

    from cord_trio.agents import Context, Question
    from cord_trio.protocol.jsonrpc import Json


async def echo(ctx: Context, payload: object) -> object:
    """Gives back what it was given."""
    await trio.lowlevel.checkpoint()
    return payload


def asks(name: str) -> Callable[[Context, object], Any]:
    async def asking(ctx: Context, payload: object) -> object:
        return await ctx.ask(name, payload)

    return asking


async def test_an_agent_asks_one_of_another_node_by_its_name_alone(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        b.fabric.agent("echo", echo)
        a.fabric.agent("front", asks("echo"))
        await has(a, "echo")
        for payload in ({"n": [1, 2.5, None, "ü"]}, None, "x" * 300_000):
            assert await a.fabric.ask("front", payload) == payload
            assert await a.fabric.ask("echo", payload) == payload


async def test_a_name_with_a_node_means_the_agent_there_and_a_name_alone_the_one_here_first(
    autojump_clock: MockClock,
) -> None:
    def named(name: str) -> Callable[[Context, object], Any]:
        async def which(ctx: Context, payload: object) -> object:
            await trio.lowlevel.checkpoint()
            return name

        return which

    async with open_broker(Random(1)) as broker:
        async with member(broker, "a") as a, member(broker, "b") as b, member(broker, "c") as c:
            for one, name in ((a, "a"), (b, "b"), (c, "c")):
                one.fabric.agent("who", named(name))
            await has(a, "who@b", "who@c")
            assert [await a.fabric.ask(f"who{place}") for place in ("", "@a", "@b", "@c", "#1@c")] == [*"aabcc"]
            assert a.fabric.agents.find("who@a") == (a.fabric.agents["who"], 0)
            with pytest.raises(AgentNotFound, match="who#2"):
                await a.fabric.ask("who#2@b")
            with pytest.raises(NoOwner) as caught:
                await a.fabric.ask("who@nowhere")
            assert caught.value.executed == "no"
            with pytest.raises(AgentNotFound, match="no agent named 'nobody@b'"):
                await a.fabric.ask("nobody@b")
            b.fabric.agent("only", named("only b"))
            await has(a, "only")
            for nobody in ("nobody", "who@", "only@", "only#1@", "who@NO NODE", "who#2"):
                with pytest.raises(AgentNotFound):
                    await a.fabric.ask(nobody)


async def test_what_is_not_lent_or_not_granted_is_not_asked(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "b", agents=["open*"]) as b:
        async with member(broker, "a") as a:
            b.fabric.agent("opener", echo)
            b.fabric.agent("secret", echo)
            a.fabric.agent("by_name", asks("opener@b"), agents=["opener"])
            a.fabric.agent("by_place", asks("opener@b"), agents=["opener@b"])
            a.fabric.agent("any_place", asks("opener"), agents=["opener@b"])
            await has(a, "opener")
            assert a.fabric.agents.taker("secret") is None
            with pytest.raises(AgentNotFound):
                await a.fabric.ask("secret@b")
            assert await a.fabric.ask("by_name", 1) == 1
            assert await a.fabric.ask("by_place", 1) == 1
            with pytest.raises(AgentNotGranted):
                await a.fabric.ask("any_place", 1)


async def test_an_agent_uses_what_its_own_node_grants_it_and_its_answer_may_be_a_tools(
    autojump_clock: MockClock,
) -> None:
    async def calls(ctx: Context, payload: str) -> object:
        return await ctx.call(payload, {"text": "x"})

    async with open_broker(Random(1)) as broker, member(broker, "a", server("own").in_process()) as a:
        async with member(broker, "b", server("web").in_process()) as b:
            b.fabric.agent("caller", calls, tools=["web__*"])
            await has(a, "caller")
            answer = await a.fabric.ask("caller", "web__echo")
            assert isinstance(answer, ToolResult)
            assert answer.text == "x"
            with pytest.raises(ToolNotFound) as caught:
                await a.fabric.ask("caller", "own__echo")
            assert caught.value.executed == "no"


async def test_errors_cross_as_what_they_are_and_say_the_way(autojump_clock: MockClock) -> None:
    async def fails(ctx: Context, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        raise ValueError("no good")

    async def unsayable(ctx: Context, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        return object()

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        b.fabric.agent("fails", fails)
        b.fabric.agent("unsayable", unsayable)
        b.fabric.agent("asks_nobody", asks("nobody"))
        a.fabric.agent("front", asks("fails@b"))
        await has(a, "fails", "unsayable", "asks_nobody")
        with pytest.raises(AgentCrashed, match=r"fails@b crashed: ValueError\('no good'\)") as caught:
            await a.fabric.ask("front")
        assert caught.value.__notes__ == ["front > fails#1"]
        with pytest.raises(AgentNotFound, match="'nobody@b'"):
            await a.fabric.ask("asks_nobody")
        with pytest.raises(NotJson, match="what agent 'unsayable@b' answers cannot go to another node"):
            await a.fabric.ask("unsayable")
        with pytest.raises(NotJson, match="what is given to agent 'fails' cannot go"):
            await a.fabric.ask("fails", object())


async def test_the_asker_deadline_is_its_own_scope_and_the_handler_has_ended_by_then(
    autojump_clock: MockClock,
) -> None:
    ended: list[float] = []

    async def slow(ctx: Context, payload: object) -> object:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            ended.append(trio.current_time())

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        b.fabric.agent("slow", slow)
        await has(a, "slow")
        began = trio.current_time()
        with trio.move_on_after(5) as scope:
            await a.fabric.ask("slow")
        assert scope.cancelled_caught
        assert ended[0] <= trio.current_time() == pytest.approx(began + 7, abs=0.3)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.fabric.ask, "slow")
                await trio.sleep(3)
                scope.cancel("the test wants it")
        assert len(ended) == 2
        assert not b.fabric.agents.roots
        assert a.fabric.counters["mesh.join_expired"] == 0


async def test_no_lease_is_anybodys_deadline(autojump_clock: MockClock) -> None:
    async def slow(ctx: Context, payload: float) -> object:
        assert ctx.deadline > trio.current_time() + 10 * LEASE
        await trio.sleep(payload)
        return payload

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        a.fabric.agent("slow", slow, turn=2)
        b.fabric.agent("between", asks("slow@a"))
        await has(a, "between")
        assert await a.fabric.ask("between", 100) == 100
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(OwnerLost):
                    await a.fabric.ask("between", 100)

            nursery.start_soon(ask)
            await trio.sleep(1)
            b.way.cut()
            await trio.sleep(LEASE + GRACE)
            assert not b.fabric.agents.roots  # it had to let go


async def test_a_handler_that_does_not_end_is_waited_for_no_longer_than_its_grace(autojump_clock: MockClock) -> None:
    async def deaf(ctx: Context, payload: object) -> object:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)
        return None

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        b.fabric.agent("deaf", deaf)
        await has(a, "deaf")
        began = trio.current_time()
        with trio.move_on_after(1):
            await a.fabric.ask("deaf")
        assert trio.current_time() - began == pytest.approx(6, abs=0.1)
        assert a.fabric.counters["mesh.join_expired"] == 1


async def test_a_stream_shows_what_an_agent_of_another_node_emits_in_order(autojump_clock: MockClock) -> None:
    async def counts(ctx: Context, payload: int) -> object:
        for number in range(payload):
            await ctx.emit({"at": number})
        return "done"

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        b.fabric.agent("counts", counts)
        await has(a, "counts")
        async with a.fabric.stream("counts", 40) as events:
            assert [event async for event in events] == [{"at": number} for number in range(40)]
            assert await events.result() == "done"
        assert await a.fabric.ask("counts", 3) == "done"


@pytest.mark.parametrize("padding", [0, 8000])
async def test_an_agent_that_floods_whoever_streams_it_waits_until_it_is_looked_at(
    padding: int, autojump_clock: MockClock
) -> None:
    emitted = 0

    async def floods(ctx: Context, payload: int) -> object:
        nonlocal emitted
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, ctx, payload)
            nursery.start_soon(flood, ctx, payload)
        return "done"

    async def flood(ctx: Context, payload: int) -> None:
        nonlocal emitted
        for _ in range(payload):
            number, emitted = emitted, emitted + 1
            await ctx.emit([number, "x" * padding])

    async def passes_on(ctx: Context, payload: int) -> object:
        await trio.lowlevel.checkpoint()
        return ctx.handoff("floods@c", payload)

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        async with member(broker, "c") as c:
            b.fabric.agent("floods", floods)
            c.fabric.agent("floods", floods)
            b.fabric.agent("passes_on", passes_on)
            await has(a, "floods", "passes_on")
            await has(b, "floods@c")
            for who in ("floods@b", "passes_on"):
                emitted = 0
                async with a.fabric.stream(who, 1500) as events:
                    await trio.sleep(20)
                    if padding:
                        assert emitted * padding < 4 * emitting.AHEAD_OCTETS
                    assert emitted < emitting.BEHIND
                    seen = []
                    async for event in events:
                        assert isinstance(event, list)
                        seen.append(event[0])
                        assert emitted - len(seen) < emitting.BEHIND
                    assert sorted(seen) == [*range(3000)]
                    assert seen[:100] == [*range(100)]  # then two wait for room, and either goes on first
                    assert await events.result() == "done"
            async with a.fabric.stream("floods@b", 3000):
                await trio.sleep(1)
            await trio.sleep(1)
            assert a.fabric.counters["mesh.emitted_dropped"] == 0
            assert (a.node.owning.busy, b.node.owning.busy) == (0, 0)


async def test_of_what_is_emitted_and_not_looked_at_the_newest_is_dropped_and_counted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitting, "AHEAD", 10_000)  # as a node of an earlier version, which does not wait

    async def counts(ctx: Context, payload: int) -> object:
        for number in range(payload):
            await ctx.emit(number)
        return "done"

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        b.fabric.agent("counts", counts)
        await has(a, "counts")
        async with a.fabric.stream("counts", 1200) as events:
            await trio.sleep(5)
            seen = [event async for event in events]
        dropped = a.fabric.counters["mesh.emitted_dropped"]
        assert dropped > 100
        assert seen == [*range(1200 - dropped)]


async def test_a_chain_that_comes_back_to_an_agent_that_waits_for_it_is_refused_at_once(
    autojump_clock: MockClock,
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        a.fabric.agent("first", asks("second"))
        b.fabric.agent("second", asks("third"))
        a.fabric.agent("third", asks("first@a"))
        a.fabric.agent("again", asks("back"), reentrant=True)
        b.fabric.agent("back", asks("again"))
        await has(a, "second", "back")
        await has(b, "third", "again")
        began = trio.current_time()
        with pytest.raises(CallCycle) as caught:
            await a.fabric.ask("first")
        assert caught.value.chain == ("first", "second", "third", "first")
        assert trio.current_time() - began < 1
        with pytest.raises(CallCycle):  # `back` is not reentrant
            await a.fabric.ask("again")
        assert not a.fabric.agents.roots
        assert not b.fabric.agents.roots


async def test_an_agent_that_may_be_asked_again_is_asked_again_also_around_other_nodes(
    autojump_clock: MockClock,
) -> None:
    async def down(ctx: Context, payload: int) -> object:
        return payload if payload <= 0 else await ctx.ask("down@b" if payload % 2 else "down@a", payload - 1)

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        for one in (a, b):
            one.fabric.agent("down", down, reentrant=True)
        assert await a.fabric.ask("down", 5) == 0
        with pytest.raises(OwnerRefused, match="denied") as caught:
            await a.fabric.ask("down", 20)
        assert caught.value.executed == "no"


async def test_a_budget_goes_along_and_what_was_spent_comes_back(autojump_clock: MockClock) -> None:
    async def spends(ctx: Context, payload: int) -> object:
        for _ in range(payload):
            await ctx.call("web__echo", {"text": "x"})
        ctx.budget.spend(tokens=7)
        return str(ctx.budget.left("calls"))

    left: list[object] = []

    async def front(ctx: Context, payload: int) -> object:
        try:
            return await ctx.ask("spends", payload)
        finally:
            left.append([ctx.budget.left(counter) for counter in ("calls", "tokens")])

    async def asks_budgeted(ctx: Context, payload: object) -> object:
        with pytest.raises(NoOwner):
            await ctx.ask("spends@nowhere")
        return ctx.budget.left("calls")

    async with open_broker(Random(1)) as broker, member(broker, "a") as a:
        async with member(broker, "b", server("web").in_process()) as b:
            b.fabric.agent("spends", spends)
            a.fabric.agent("front", front)
            await has(a, "spends")
            assert await a.fabric.ask("front", 2, budget=Budget(calls=5, tokens=100)) == "3"
            with pytest.raises(BudgetExceeded) as caught:
                await a.fabric.ask("front", 9, budget=Budget(calls=5, tokens=100))
            assert (caught.value.counter, caught.value.limit) == ("calls", 5)
            assert await a.fabric.ask("front", 1) == "inf"
            a.fabric.agent("to_nobody", asks_budgeted)
            assert await a.fabric.ask("to_nobody", budget=Budget(calls=5)) == 5
            assert left[:2] == [[3, 93], [0, 100]]


async def test_a_trace_and_the_principal_cross(autojump_clock: MockClock) -> None:
    async def seen(ctx: Context, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        assert ctx.trace is not None
        return [ctx.trace.id, ctx.trace.state, ctx.principal, ctx.chain, ctx.hops]

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        b.fabric.agent("seen", seen)
        a.fabric.agent("front", asks("seen"))
        await has(a, "seen")
        trace = TraceContext("1" * 32, "2" * 16, state="x=y")
        assert await a.fabric.ask("front", trace=trace) == [trace.id, "x=y", "local@a", ["front", "seen"], 0]


async def test_a_node_that_dies_in_the_middle_is_told_and_nothing_is_asked_again(autojump_clock: MockClock) -> None:
    begun: list[str] = []

    def slow(name: str) -> Callable[[Context, object], Any]:
        async def run(ctx: Context, payload: object) -> object:
            begun.append(name)
            await trio.sleep(1000)
            return None

        return run

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "c") as c:
        async with member(broker, "b") as b:
            for one in (b, c):
                one.fabric.agent("slow", slow(one.node.name))
            await has(a, "slow@b", "slow@c")
            lost: list[CallError] = []

            async def ask() -> None:
                with pytest.raises(OwnerLost) as caught:
                    await a.fabric.ask("slow@b")
                lost.append(caught.value)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.sleep(1)
                b.way.cut()
            assert (begun, lost[0].executed) == (["b"], "unknown")


async def test_a_question_to_the_person_who_asked_reaches_her_over_nodes_and_handoffs(
    autojump_clock: MockClock,
) -> None:
    async def wants(ctx: Context, payload: object) -> object:
        return await ctx.elicit("n?", {"type": "object", "properties": {}})

    async def hands(ctx: Context, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        return ctx.handoff("wants@c")

    async def answer(questions: Mapping[str, Question]) -> Mapping[str, Json]:
        await trio.sleep(3)
        (question,) = questions.values()
        return {key: {"action": "accept", "content": {"n": question.params["message"]}} for key in questions}

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b") as b:
        async with member(broker, "c") as c:
            c.fabric.agent("wants", wants, mailbox=Mailbox())
            b.fabric.agent("hands", hands)
            a.fabric.agent("front", asks("hands@b"))
            b.fabric.agent("between", asks("front@a"))
            await has(b, "wants")
            for name in ("wants@c", "front", "between@b"):
                assert await a.fabric.ask(name, answer=answer) == {"n": "n?"}
            with pytest.raises(AgentCrashed, match="which nobody here can answer"):
                await a.fabric.ask("wants@c")


async def test_who_drains_takes_what_is_part_of_what_it_took_and_nothing_else(autojump_clock: MockClock) -> None:
    async def late(ctx: Context, payload: object) -> object:
        await trio.sleep(5)
        return [await ctx.ask("echo@a", payload), await ctx.tell("box@a", payload)]

    got: list[object] = []

    async def takes(ctx: Context, payload: object) -> None:
        await trio.lowlevel.checkpoint()
        got.append(payload)

    async with open_broker(Random(1)) as broker, member(broker, "b") as b:
        async with member(broker, "a") as a:
            a.fabric.agent("echo", echo)
            a.fabric.agent("box", takes, mailbox=Mailbox())
            b.fabric.agent("late", late)
            await has(a, "late")
            answers: list[object] = []

            async def ask() -> None:
                answers.append(await a.fabric.ask("late", 7))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.sleep(1)
                nursery.start_soon(a.fabric.drain, 60)
                await trio.sleep(1)
                for refused in (b.fabric.ask("echo@a", 1), b.fabric.tell("box@a", 1)):
                    with pytest.raises(Draining) as caught:
                        await refused
                    assert caught.value.executed == "no"
            assert (answers, got) == ([[7, True]], [7])


async def test_an_agent_that_is_removed_or_whose_node_has_left_is_not_found(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a") as a:
        async with member(broker, "b") as b:
            b.fabric.agent("one", echo)
            b.fabric.agent("two", echo)
            await has(a, "one", "two")
            await b.fabric.remove("one")
            await trio.sleep(5)
            assert a.fabric.agents.taker("one") is None
            assert await a.fabric.ask("two", 1) == 1
        await trio.sleep(5)
        with pytest.raises(AgentNotFound):
            await a.fabric.ask("two")
