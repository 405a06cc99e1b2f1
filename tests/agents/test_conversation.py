from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from cord_trio.agents import MAX_HOPS, Agents, Context, Handoff, Step, converse, last
from cord_trio.errors import AgentNotFound, CallCycle, HandoffRefused, Overloaded
from cord_trio.registry import Snapshot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock

    from cord_trio.call import Call, Outcome


async def no_tools(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
    raise AssertionError(call)


def fabric(snapshot: Callable[[], Snapshot] = Snapshot) -> Agents:
    return Agents(no_tools, snapshot)


async def echo(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
    return payload


async def hang(ctx: Context, payload: object) -> object:
    await trio.sleep_forever()


def hands_to(target: str) -> Callable[[Context, Any], Awaitable[object]]:
    async def handler(ctx: Context, payload: object) -> Handoff:  # noqa: ASYNC124  # async by contract
        return ctx.handoff(target, payload)

    return handler


def asks(target: str) -> Callable[[Context, Any], Awaitable[object]]:
    async def handler(ctx: Context, payload: object) -> object:
        return await ctx.ask(target, payload)

    return handler


def at_rest(agents: Agents) -> bool:
    return not agents.roots and all(not agent.turn.holders and not agent.turn.waiting for agent in agents.values())


async def test_an_agent_answers_in_the_task_of_whoever_asks() -> None:
    async def who(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return trio.lowlevel.current_task()

    agents = fabric()
    agents.add("who", who)
    assert await converse(agents, "who", None) is trio.lowlevel.current_task()
    assert at_rest(agents)


async def test_an_ask_is_always_a_checkpoint() -> None:
    agents = fabric()
    agents.add("echo", echo)
    with assert_checkpoints():
        assert await converse(agents, "echo", 7) == 7


async def test_an_agent_that_is_missing_is_named() -> None:
    with pytest.raises(AgentNotFound) as caught:
        await converse(fabric(), "nobody", None)
    assert caught.value.name == "nobody"


async def test_a_handoff_is_answered_by_the_taker_and_shows_its_way() -> None:
    seen: list[tuple[str, tuple[str, ...], int]] = []

    async def ledger(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        seen.append((ctx.agent.name, ctx.chain, ctx.hops))
        return ["booked", payload]

    agents = fabric()
    agents.add("triage", hands_to("ledger"))
    agents.add("ledger", ledger)
    assert await converse(agents, "triage", 17) == ["booked", 17]
    assert seen == [("ledger", ("triage", "ledger"), 1)]


async def test_the_giver_has_given_its_turn_back_before_the_taker_waits_for_one() -> None:
    agents = fabric()
    giver = agents.add("giver", hands_to("taker"))
    taker = agents.add("taker", hang)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(converse, agents, "giver", 1)
        nursery.start_soon(converse, agents, "giver", 2)
        await wait_all_tasks_blocked()
        assert (len(giver.turn.holders), len(taker.turn.holders), len(taker.turn.waiting)) == (0, 1, 1)
        nursery.cancel_scope.cancel("seen")
    assert at_rest(agents)


async def test_an_agent_may_hand_to_itself() -> None:
    async def count(ctx: Context, n: int) -> object:  # noqa: ASYNC124  # async by contract
        return ctx.handoff("count", n - 1) if n else ctx.chain

    agents = fabric()
    agents.add("count", count)
    assert await converse(agents, "count", 2) == ("count", "count", "count")


async def test_the_hops_have_an_end() -> None:
    runs = []

    async def ping(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        runs.append(ctx.hops)
        assert ctx.can_handoff("ping") == (ctx.hops < MAX_HOPS)
        return ctx.handoff("ping", payload)

    agents = fabric()
    agents.add("ping", ping)
    with pytest.raises(HandoffRefused, match="16 handoffs"):
        await converse(agents, "ping", None)
    assert runs == list(range(MAX_HOPS + 1))
    assert at_rest(agents)


async def test_one_handoff_more_than_the_bound_is_refused_and_counted() -> None:
    async def ping(ctx: Context, left: int) -> object:  # noqa: ASYNC124  # async by contract
        return ctx.handoff("ping", left - 1) if left else ctx.hops

    agents = fabric()
    agents.max_hops = 3
    agents.add("ping", ping)
    assert await converse(agents, "ping", 3) == 3
    with pytest.raises(HandoffRefused, match="3 handoffs are the most"):
        await converse(agents, "ping", 4)
    assert agents.counters["agents.hops_refused"] == 1


@pytest.mark.parametrize("several", [list, tuple])
async def test_several_handoffs_in_one_answer_are_an_error_that_says_what_to_do(several: type) -> None:
    async def both(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return several([ctx.handoff("ledger", 1), ctx.handoff("writer", 2)])

    async def list_of_plain_values(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return several([1, 2])

    agents = fabric()
    agents.add("both", both)
    agents.add("plain", list_of_plain_values)
    with agents.monitor("both") as notices:
        with pytest.raises(HandoffRefused, match=r"return the one that goes on, .*ctx\.open_nursery") as caught:
            await agents.converse("both", None)
        notice = await anext(notices)
    assert caught.value.target == "ledger, writer"
    assert (notice.what, notice.cause) == ("handoff_refused", caught.value)
    assert await agents.converse("plain", None) == several([1, 2])
    assert at_rest(agents)


async def test_the_hops_are_bounded_as_the_fabric_says() -> None:
    async def ping(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return ctx.handoff("ping", payload) if ctx.can_handoff("ping") else ctx.hops

    agents = fabric()
    agents.max_hops = 3
    agents.add("ping", ping)
    assert await converse(agents, "ping", None) == 3


async def test_hops_count_on_through_asks() -> None:
    async def hops(ctx: Context, payload: object) -> int:  # noqa: ASYNC124  # async by contract
        return ctx.hops

    agents = fabric()
    agents.add("first", hands_to("second"))
    agents.add("second", asks("third"))
    agents.add("third", hands_to("fourth"))
    agents.add("fourth", hops)
    assert await converse(agents, "first", None) == 2


async def test_a_handoff_to_nobody_is_an_error_to_the_asker() -> None:
    async def careful(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return ctx.can_handoff("nobody"), ctx.can_handoff("giver")

    agents = fabric()
    agents.add("giver", hands_to("nobody"))
    agents.add("careful", careful)
    with pytest.raises(HandoffRefused) as caught:
        await converse(agents, "giver", None)
    assert caught.value.target == "nobody"
    assert await converse(agents, "careful", None) == (False, True)
    assert at_rest(agents)


async def test_a_giver_whose_ask_still_runs_has_not_finished() -> None:
    agents = fabric()
    async with trio.open_nursery() as nursery:

        async def leaks(ctx: Context, payload: object) -> Handoff:
            nursery.start_soon(ctx.ask, "hang", None)
            await wait_all_tasks_blocked()
            return ctx.handoff("echo", payload)

        agents.add("leaks", leaks)
        agents.add("hang", hang)
        agents.add("echo", echo)
        with pytest.raises(HandoffRefused, match="not finished"):
            await converse(agents, "leaks", None)
        nursery.cancel_scope.cancel("seen")


async def test_an_exception_of_a_handler_arrives_as_itself_with_a_note_of_the_way() -> None:
    mine = ValueError("mine")

    async def fails(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        raise mine

    agents = fabric()
    agents.add("triage", hands_to("desk"))
    agents.add("desk", asks("ledger"))
    agents.add("ledger", fails).generation = 3
    with pytest.raises(ValueError, match="mine") as caught:
        await converse(agents, "triage", None)
    assert caught.value is mine
    assert caught.value.__notes__ == ["triage > desk > ledger#3"]
    assert at_rest(agents)


async def test_turns_are_given_in_the_order_they_were_asked_for() -> None:
    order: list[object] = []
    gate = trio.Event()

    async def serve(ctx: Context, payload: object) -> None:
        order.append(payload)
        await gate.wait()

    agents = fabric()
    serial = agents.add("serial", serve)
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(converse, agents, "serial", number)
            await wait_all_tasks_blocked()
        assert order == [0]
        assert [branch.path for branch in serial.turn.waiting] == [("serial",)] * 3
        gate.set()
    assert order == [0, 1, 2, 3]


async def test_as_many_run_at_once_as_the_turn_has() -> None:
    agents = fabric()
    several = agents.add("several", hang, turn=3)
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(converse, agents, "several", number)
        await wait_all_tasks_blocked()
        assert (len(several.turn.holders), len(several.turn.waiting)) == (3, 2)
        nursery.cancel_scope.cancel("seen")
    assert at_rest(agents)


async def test_an_ask_that_is_cancelled_while_it_waits_never_starts() -> None:
    started: list[object] = []
    gate = trio.Event()

    async def serve(ctx: Context, payload: object) -> None:
        started.append(payload)
        await gate.wait()

    agents = fabric()
    agents.add("serial", serve)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(converse, agents, "serial", "first")
        await wait_all_tasks_blocked()
        scope = trio.CancelScope()
        nursery.start_soon(_cancel_when_blocked, scope)
        with scope:
            await converse(agents, "serial", "second")
        assert scope.cancelled_caught
        gate.set()
    assert started == ["first"]
    assert at_rest(agents)


async def test_an_ask_that_is_cancelled_in_the_tick_of_its_turn_never_starts() -> None:
    started: list[object] = []
    gate = trio.Event()

    async def serve(ctx: Context, payload: object) -> None:
        started.append(payload)
        await gate.wait()

    agents = fabric()
    serial = agents.add("serial", serve)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(converse, agents, "serial", "first")
        await wait_all_tasks_blocked()
        scope = trio.CancelScope()

        async def second() -> None:
            with scope:
                await converse(agents, "serial", "second")

        nursery.start_soon(second)
        await wait_all_tasks_blocked()
        (first,) = serial.turn.holders
        serial.turn.release(first)
        scope.cancel("too late to be refused the turn, early enough not to run")
        await wait_all_tasks_blocked()
        assert started == ["first"]
        assert not serial.turn.holders
        serial.turn.take(first)
        gate.set()


async def test_a_giver_that_was_cancelled_hands_nothing_on() -> None:
    started: list[object] = []

    async def giver(ctx: Context, scope: trio.CancelScope) -> Handoff:  # noqa: ASYNC124  # async by contract
        scope.cancel("while the giver ran")
        return ctx.handoff("taker", None)

    async def taker(ctx: Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        started.append(payload)

    agents = fabric()
    agents.add("giver", giver)
    agents.add("taker", taker)
    with trio.CancelScope() as scope:
        await converse(agents, "giver", scope)
    assert scope.cancelled_caught
    assert not started
    assert at_rest(agents)


async def test_a_deadline_reaches_the_callee_and_is_seen_there(autojump_clock: MockClock) -> None:
    seen: list[float] = []

    async def look(ctx: Context, payload: object) -> None:
        seen.append(ctx.deadline)
        await trio.sleep_forever()

    agents = fabric()
    agents.add("giver", hands_to("desk"))
    agents.add("desk", asks("look"))
    agents.add("look", look)
    with trio.move_on_after(5) as scope:
        await converse(agents, "giver", None)
    assert scope.cancelled_caught
    assert seen == [scope.deadline]
    assert at_rest(agents)


async def test_an_agent_that_asks_back_up_its_own_chain_is_refused_at_once() -> None:
    agents = fabric()
    agents.add("a", asks("b"), turn=9)
    agents.add("b", asks("a"), turn=9)
    with pytest.raises(CallCycle) as caught:
        await converse(agents, "a", None)
    assert caught.value.chain == ("a", "b", "a")
    assert at_rest(agents)


async def test_a_taker_may_ask_its_giver_which_has_finished() -> None:
    async def giver(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return "again" if ctx.hops else ctx.handoff("taker", payload)

    agents = fabric()
    agents.add("giver", giver)
    agents.add("taker", asks("giver"))
    assert await converse(agents, "giver", None) == "again"


async def test_of_two_that_ask_each_other_the_second_to_wait_is_refused() -> None:
    agents = fabric()
    both_run = trio.Event()
    ended: list[object] = []

    def crosses(target: str) -> Callable[[Context, Any], Awaitable[object]]:
        async def handler(ctx: Context, payload: object) -> object:
            if payload == "inner":
                return "inner"
            await both_run.wait()
            return await ctx.ask(target, "inner")

        return handler

    async def ask(name: str) -> None:
        try:
            ended.append(await converse(agents, name, "outer"))
        except CallCycle as exc:
            ended.append(frozenset(exc.chain))

    agents.add("a", crosses("b"))
    agents.add("b", crosses("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "a")
        nursery.start_soon(ask, "b")
        await wait_all_tasks_blocked()
        both_run.set()
    assert ended == [frozenset("ab"), "inner"]
    assert at_rest(agents)


async def test_waiting_for_an_agent_with_a_turn_that_will_be_free_is_no_cycle() -> None:
    agents = fabric()
    gate = trio.Event()

    async def busy(ctx: Context, payload: object) -> object:
        if payload == "ask":
            return await ctx.ask("other", None)
        await gate.wait()
        return payload

    agents.add("busy", busy, turn=2)
    agents.add("other", asks("third"))
    agents.add("third", echo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(converse, agents, "busy", "ask")
        nursery.start_soon(converse, agents, "busy", "run")
        nursery.start_soon(converse, agents, "busy", "late")
        await wait_all_tasks_blocked()
        gate.set()
    assert at_rest(agents)


async def test_one_turn_that_will_be_free_is_enough_though_another_waits_for_us() -> None:
    agents = fabric()
    gate = trio.Event()

    async def runs(ctx: Context, payload: object) -> None:
        await gate.wait()

    async def first(ctx: Context, payload: object) -> object:
        if payload is None:
            return "asked by several"
        await wait_all_tasks_blocked()
        return await ctx.ask("several", "free")

    async def several(ctx: Context, target: str) -> object:
        return await ctx.ask(target, None) if target != "free" else target

    agents.add("first", first)
    agents.add("several", several, turn=2)
    agents.add("busy", runs)
    async with trio.open_nursery() as nursery:
        answers: list[object] = []

        async def ask_first() -> None:
            answers.append(await converse(agents, "first", "go"))

        nursery.start_soon(converse, agents, "busy", None)
        nursery.start_soon(ask_first)
        nursery.start_soon(converse, agents, "several", "busy")  # will be free
        nursery.start_soon(converse, agents, "several", "first")  # waits for us
        await wait_all_tasks_blocked(0.001)
        assert len(agents["several"].turn.waiting) == 1
        gate.set()
    assert answers == ["free"]


async def test_one_more_than_may_wait_for_an_agent_is_refused_by_the_name_of_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cord_trio.agents.turn.WAITING", 1)
    agents = fabric()
    agents.add("serial", hang)
    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(converse, agents, "serial", number)
            await wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as caught:
            await converse(agents, "serial", None)
        assert (caught.value.bound, caught.value.limit) == ("agents.serial.waiting", 1)
        assert agents.counters["agents.waiting_full"] == 1
        nursery.cancel_scope.cancel("seen")


async def test_the_taker_sees_what_keep_leaves_of_the_transcript() -> None:
    seen: list[tuple[Step, ...]] = []

    async def one(ctx: Context, payload: object) -> Handoff:  # noqa: ASYNC124  # async by contract
        return ctx.handoff("two", "b")

    async def two(ctx: Context, payload: object) -> Handoff:  # noqa: ASYNC124  # async by contract
        seen.append(ctx.transcript)
        return ctx.handoff("three", "c", keep=last(1))

    async def three(ctx: Context, payload: object) -> Handoff:  # noqa: ASYNC124  # async by contract
        seen.append(ctx.transcript)
        return ctx.handoff("four", "d", keep=last(0))

    async def four(ctx: Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        seen.append(ctx.transcript)

    agents = fabric()
    for handler in (one, two, three, four):
        agents.add(handler.__name__, handler)
    await converse(agents, "one", "a")
    assert seen == [(Step("one", "a"),), (Step("two", "b"),), ()]


async def test_a_context_keeps_the_snapshot_of_its_start() -> None:
    version = 0

    def newest() -> Snapshot:
        return Snapshot(version)

    async def look(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        nonlocal version
        version += 1
        return ctx.snapshot.version

    agents = fabric(newest)
    agents.add("look", look)
    assert [await converse(agents, "look", None) for _ in range(2)] == [0, 1]


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel("enough")
