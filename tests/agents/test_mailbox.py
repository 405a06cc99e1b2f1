from __future__ import annotations

import random
from collections import Counter
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.agents import GRACE, Context, Handoff, Mailbox, converse, latest
from cord_trio.agents import mailbox as mailbox_room
from cord_trio.agents.mailbox import Box, Envelope, Lane
from cord_trio.agents.post import QUANTUM
from cord_trio.errors import (
    AgentCrashed,
    AgentDown,
    CallCycle,
    DeadlineExceeded,
    Draining,
    HandoffRefused,
    NoMailbox,
    Overloaded,
)
from cord_trio.testing.schedule import scheduled
from tests.agents.world import at_rest, echo, hang, world

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.agents import Agents

WHO: ContextVar[str] = ContextVar("WHO", default="nobody")
NOTES: ContextVar[list[object]] = ContextVar("NOTES")


class Gate:
    """A handler that notes what it got, and waits until the gate is open."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.open = trio.Event()

    async def __call__(self, ctx: Context, payload: object) -> object:
        self.seen.append(payload)
        await self.open.wait()
        return payload


class Turns(trio.abc.Instrument):
    """Counts the turns of the loop."""

    turns = 0

    def after_io_wait(self, timeout: float) -> None:
        self.turns += 1


def gated(
    agents: Agents, mailbox: Mailbox, *, turn: int = 1, grace: float = GRACE, topics: tuple[str, ...] = ()
) -> Gate:
    gate = Gate()
    agents.add("gate", gate, mailbox=mailbox, turn=turn, grace=grace, topics=topics)
    return gate


def asks(target: str) -> Callable[[Context, Any], Awaitable[object]]:
    async def handler(ctx: Context, payload: object) -> object:
        return await ctx.ask(target, payload)

    return handler


async def test_an_agent_with_a_mailbox_answers_in_its_own_task() -> None:
    async def where(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return trio.lowlevel.current_task()

    async with world() as agents:
        agents.add("where", where, mailbox=Mailbox())
        task = await agents.converse("where", None)
        assert task is not trio.lowlevel.current_task()
        assert await agents.converse("where", None) is task
    assert at_rest(agents)


async def test_a_message_is_told_and_handled_in_order() -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox())
        for number in range(3):
            assert await agents.tell("gate", number)
        gate.open.set()
        await agents.wait_quiet()
    assert gate.seen == [0, 1, 2]
    assert at_rest(agents)


async def test_a_message_is_there_before_others_run_so_its_turn_may_be_the_next() -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox())
        gate.open.set()
        for number in range(20):  # who runs first in one turn of the loop is chance
            await wait_all_tasks_blocked()
            await agents.tell("gate", number)
            await trio.lowlevel.checkpoint()
            assert gate.seen == [*range(number + 1)]


async def test_whoever_is_cancelled_has_told_nothing() -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox())
        with trio.CancelScope() as scope:
            scope.cancel("before it began")
            await agents.tell("gate", 1)
        assert scope.cancelled_caught
        gate.open.set()
        await wait_all_tasks_blocked()
    assert gate.seen == []
    assert at_rest(agents)


async def test_who_is_behind_handles_a_quantum_of_messages_in_one_turn_of_the_loop_and_no_more() -> None:
    opened, loop, handled = trio.Event(), Turns(), Counter[int]()

    async def takes(ctx: Context, payload: object) -> None:
        if payload == "first":
            await opened.wait()
        else:
            handled[loop.turns] += 1

    async with world() as agents:
        agents.add("takes", takes, mailbox=Mailbox(64))
        await agents.tell("takes", "first")
        for number in range(4 * QUANTUM):
            await agents.tell("takes", number)
        trio.lowlevel.add_instrument(loop)
        opened.set()
        await agents.wait_quiet()
        trio.lowlevel.remove_instrument(loop)
    assert max(handled.values()) == QUANTUM
    assert sum(handled.values()) == 4 * QUANTUM
    assert at_rest(agents)


async def test_who_is_behind_takes_no_context_variable_of_one_for_an_equal_one_of_another() -> None:
    opened, given, seen = trio.Event(), dict[int, list[object]](), dict[int, list[object]]()

    async def notes(ctx: Context, number: int) -> None:
        if number == 0:
            await opened.wait()
        seen[number] = NOTES.get()

    async def tell(number: int) -> None:
        given[number] = []
        NOTES.set(given[number])
        await agents.tell("notes", number)

    async with world() as agents:
        agents.add("notes", notes, mailbox=Mailbox())
        for number in range(4):
            await tell(number)
        opened.set()
        await agents.wait_quiet()
    assert all(seen[number] is given[number] for number in range(4))
    assert at_rest(agents)


async def test_no_message_has_the_deadline_of_the_one_before_it(autojump_clock: MockClock) -> None:
    done: list[float] = []

    async def rests(ctx: Context, seconds: float) -> None:
        await trio.sleep(seconds)
        done.append(seconds)

    async with world() as agents:
        agents.add("rests", rests, mailbox=Mailbox())
        with trio.fail_after(3):
            await agents.converse("rests", 1)
        await agents.tell("rests", 5)
        await agents.wait_quiet()
    assert done == [1, 5]
    assert at_rest(agents)


def test_no_message_is_cancelled_with_the_one_before_it() -> None:
    """Without a deadline, which would end the scope of both."""
    released = trio.Event()
    done: list[object] = []

    async def clings(ctx: Context, payload: object) -> None:
        if payload == "first":
            with trio.move_on_after(2, shield=True):
                await released.wait()
        else:
            await trio.lowlevel.checkpoint()
        done.append(payload)

    async def main() -> None:
        async with world() as agents:
            agents.add("clings", clings, mailbox=Mailbox(), grace=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(agents.converse, "clings", "first")
                await wait_all_tasks_blocked()
                await agents.tell("clings", "second")
                nursery.cancel_scope.cancel("whoever asked leaves")
            assert done == []
            released.set()
            await agents.wait_quiet()
        assert at_rest(agents)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert done == ["first", "second"]


async def test_of_three_of_a_key_the_last_is_kept_in_the_place_of_the_first() -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox(4, full=latest(lambda payload: str(payload)[0])))
        for payload in ("running", "a1", "b1", "a2", "a3", "b2"):
            await agents.tell("gate", payload)
            await wait_all_tasks_blocked()
        gate.open.set()
        await agents.wait_quiet()
    assert gate.seen == ["running", "a3", "b2"]
    assert at_rest(agents)


async def test_an_agent_without_a_mailbox_cannot_be_told() -> None:
    async with world() as agents:
        agents.add("echo", echo)
        with pytest.raises(NoMailbox) as caught:
            await agents.tell("echo", 1)
        assert caught.value.name == "echo"


async def test_context_variables_of_the_asker_are_those_of_the_handler() -> None:
    seen: list[str] = []

    async def who(ctx: Context, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        seen.append(WHO.get())
        WHO.set("the handler's own")
        return WHO.get()

    async def ask(name: str) -> None:
        WHO.set(name)
        await agents.converse("who", None)
        assert WHO.get() == name

    async with world() as agents:
        agents.add("who", who, mailbox=Mailbox())
        await wait_all_tasks_blocked()  # so one is given to its task, and the others are queued
        async with trio.open_nursery() as nursery:
            for name in ("ada", "ben", "cyd"):
                nursery.start_soon(ask, name)
        assert sorted(seen) == ["ada", "ben", "cyd"]
        await agents.tell("who", None)
    assert WHO.get() == "nobody"


async def test_the_askers_deadline_and_principal_reach_the_handler(autojump_clock: MockClock) -> None:
    seen: list[object] = []

    async def look(ctx: Context, payload: object) -> None:
        seen.extend([ctx.deadline, ctx.principal])
        await trio.sleep_forever()

    async with world() as agents:
        agents.add("look", look, mailbox=Mailbox())
        with trio.move_on_after(5) as scope:
            await agents.converse("look", None, principal="ada")
        assert scope.cancelled_caught
        assert seen == [scope.deadline, "ada"]
        assert at_rest(agents)


async def test_a_cancelled_asker_joins_its_handler(autojump_clock: MockClock) -> None:
    ended: list[float] = []

    async def slow_to_end(ctx: Context, payload: object) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(3, shield=True):
                await trio.sleep(2)
            ended.append(trio.current_time())

    async with world() as agents:
        agents.add("slow", slow_to_end, mailbox=Mailbox())
        with trio.move_on_after(1):
            await agents.converse("slow", None)
        assert ended == [trio.current_time()]
        assert agents.counters["agents.join_expired"] == 0
        agents.add("slower", slow_to_end, mailbox=Mailbox(), grace=0.5)
        start = trio.current_time()
        with trio.move_on_after(1):
            await agents.converse("slower", None)
        assert trio.current_time() == start + 1.5
        assert agents.counters["agents.join_expired"] == 1
    assert len(ended) == 2


async def test_an_ask_that_is_cancelled_in_the_queue_never_starts() -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agents.converse, "gate", "first")
            await wait_all_tasks_blocked()
            scope = trio.CancelScope()
            nursery.start_soon(cancel_when_blocked, scope)
            with scope:
                await agents.converse("gate", "second")
            assert scope.cancelled_caught
            gate.open.set()
        assert gate.seen == ["first"]
        assert at_rest(agents)


async def cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel("enough")


async def test_after_a_cancelled_message_the_agent_goes_on() -> None:
    async def handler(ctx: Context, payload: object) -> object:
        if payload == "hang":
            await trio.sleep_forever()
        return payload

    async with world() as agents:
        agents.add("one", handler, mailbox=Mailbox())
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_when_blocked, scope)
                await agents.converse("one", "hang")
        assert await agents.converse("one", "next") == "next"
        assert agents["one"].generation == 1


async def test_a_crash_reaches_the_asker_with_its_cause_and_the_way() -> None:
    mine = ValueError("mine")

    async def fails(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        raise mine

    async with world() as agents:
        agents.add("ledger", fails, mailbox=Mailbox())
        agents.add("desk", asks("ledger"))
        with pytest.raises(AgentCrashed, match=r"ledger#1 crashed: ValueError\('mine'\)") as caught:
            await agents.converse("desk", None)
        assert caught.value.__cause__ is mine
        assert caught.value.__notes__ == ["desk > ledger#1"]


async def test_exceptions_that_are_answers_arrive_as_themselves_and_restart_nothing() -> None:
    async def fails(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        raise KeyError(payload)

    async with world() as agents:
        agents.add("ledger", fails, mailbox=Mailbox(), raises=(LookupError,))
        for _ in range(5):
            with pytest.raises(KeyError, match="17"):
                await agents.converse("ledger", 17)
        assert agents["ledger"].generation == 1


async def test_when_it_is_full_the_next_waits_for_room(autojump_clock: MockClock) -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox(1))
        box = agents["gate"].resident.box  # type: ignore[union-attr]  # it has one
        assert box is not None
        took: list[object] = []

        async def tell(number: int) -> None:
            took.append((number, await agents.tell("gate", number)))

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(tell, number)
                await wait_all_tasks_blocked()
            assert took == [(0, True), (1, True)]
            assert box.lengths() == {"control": 0, "transfer": 0, "normal": 1, "waiting": 2}
            with trio.move_on_after(1):
                await agents.tell("gate", "never")
            gate.open.set()
        await agents.wait_quiet()
        assert gate.seen == [0, 1, 2, 3]
        assert box.peak == 1
    assert at_rest(agents)


async def test_when_it_is_full_the_next_may_be_refused_by_the_name_of_the_bound() -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox(1, full="fail"))
        await agents.tell("gate", 0)
        await wait_all_tasks_blocked()
        await agents.tell("gate", 1)
        for verb in (agents.tell, agents.converse):
            with pytest.raises(Overloaded) as caught:
                await verb("gate", 2)
            assert (caught.value.bound, caught.value.limit) == ("agents.gate.mailbox", 1)
        gate.open.set()
        await agents.wait_quiet()
    assert gate.seen == [0, 1]
    assert at_rest(agents)


async def test_when_it_is_full_the_newest_may_be_dropped() -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox(1, full="drop_newest"))
        await agents.tell("gate", 0)
        await wait_all_tasks_blocked()
        assert await agents.tell("gate", 1)
        assert not await agents.tell("gate", 2)
        with pytest.raises(Overloaded):
            await agents.converse("gate", 3)
        assert agents.counters["agents.dropped"] == 2
        gate.open.set()
        await agents.wait_quiet()
    assert gate.seen == [0, 1]
    assert at_rest(agents)


async def test_when_it_is_full_the_oldest_may_be_dropped_and_its_asker_learns_it() -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox(1, full="drop_oldest"))
        await agents.tell("gate", 0)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:

            async def old() -> None:
                with pytest.raises(Overloaded):
                    await agents.converse("gate", "old")

            nursery.start_soon(old)
            await wait_all_tasks_blocked()
            assert await agents.tell("gate", "new")
        assert agents.counters["agents.dropped"] == 1
        gate.open.set()
        await agents.wait_quiet()
    assert gate.seen == [0, "new"]
    assert at_rest(agents)


async def test_the_latest_of_each_key_may_replace_the_one_before() -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox(2, full=latest(lambda payload: payload[0])))  # type: ignore[index]  # pairs
        await agents.tell("gate", ("x", 0))
        await wait_all_tasks_blocked()
        for payload in [("a", 1), ("b", 1), ("a", 2), ("c", 1)]:
            assert await agents.tell("gate", payload)
        assert agents.counters["agents.dropped"] == 2
        gate.open.set()
        await agents.wait_quiet()
    assert gate.seen == [("x", 0), ("b", 1), ("c", 1)]
    assert at_rest(agents)


async def test_as_many_messages_are_handled_at_once_as_the_turn_has() -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox(), turn=2)
        for number in range(3):
            await agents.tell("gate", number)
        await wait_all_tasks_blocked()
        assert sorted(gate.seen) == [0, 1]  # type: ignore[type-var]  # numbers
        gate.open.set()
        await agents.wait_quiet()


async def test_a_handoff_to_a_full_mailbox_is_taken_first() -> None:
    async def giver(ctx: Context, payload: object) -> Handoff:  # noqa: ASYNC124  # async by contract
        return ctx.handoff("gate", "handed")

    async with world() as agents:
        gate = gated(agents, Mailbox(1, full="fail"))
        agents.add("giver", giver)
        await agents.tell("gate", 0)
        await wait_all_tasks_blocked()
        await agents.tell("gate", 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agents.converse, "giver", None)
            await wait_all_tasks_blocked()
            gate.open.set()
        await wait_all_tasks_blocked()
    assert gate.seen == [0, "handed", 1]


async def test_an_agent_with_a_mailbox_hands_on_to_others() -> None:
    async def giver(ctx: Context, payload: object) -> Handoff:  # noqa: ASYNC124  # async by contract
        return ctx.handoff("taker", payload)

    async def taker(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return ctx.chain, [step.agent for step in ctx.transcript], payload

    async with world() as agents:
        agents.add("giver", giver, mailbox=Mailbox())
        agents.add("taker", taker)
        assert await agents.converse("giver", 7) == (("giver", "taker"), ["giver"], 7)


async def test_a_handoff_of_a_message_that_nobody_waits_for_goes_on_by_itself() -> None:
    seen: list[object] = []

    async def giver(ctx: Context, payload: object) -> Handoff:  # noqa: ASYNC124  # async by contract
        return ctx.handoff(str(payload), payload)

    async def taker(ctx: Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        seen.append((ctx.chain, ctx.hops, [step.agent for step in ctx.transcript], payload))

    async with world() as agents:
        agents.add("giver", giver, mailbox=Mailbox())
        agents.add("taker", taker)
        await agents.tell("giver", "taker")
        await agents.wait_quiet()
        assert seen == [(("giver", "taker"), 1, ["giver"], "taker")]
        with agents.monitor("giver") as notices:
            await agents.tell("giver", "nobody")
            notice = await anext(notices)
        assert (notice.what, agents["giver"].generation) == ("handoff_refused", 1)
        await agents.wait_quiet()
        assert agents.counters["agents.told_failed"] == 1
    assert at_rest(agents)


async def test_two_that_wait_for_each_others_mailboxes_are_no_hang(autojump_clock: MockClock) -> None:
    chains: list[tuple[str, ...]] = []

    def crosses(target: str) -> Callable[[Context, Any], Awaitable[object]]:
        async def handler(ctx: Context, payload: object) -> object:
            if payload == "inner":
                return "inner"
            await trio.sleep(1)
            try:
                return await ctx.ask(target, "inner")
            except CallCycle as exc:
                chains.append(exc.chain)
                return None

        return handler

    async with world() as agents:
        agents.add("a", crosses("b"), mailbox=Mailbox())
        agents.add("b", crosses("a"), mailbox=Mailbox())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agents.converse, "a", "outer")
            nursery.start_soon(agents.converse, "b", "outer")
        assert len(chains) == 1
        assert at_rest(agents)


async def test_two_that_wait_for_room_with_each_other_are_no_hang(autojump_clock: MockClock) -> None:
    refused: list[str] = []

    def crosses(target: str) -> Callable[[Context, Any], Awaitable[object]]:
        async def handler(ctx: Context, payload: object) -> object:
            await trio.sleep(1)
            if payload == "cross":
                try:
                    await ctx.tell(target, "filler")
                except CallCycle:
                    refused.append(ctx.agent.name)
            return None

        return handler

    async with world() as agents:
        for name, target in (("a", "b"), ("b", "a")):
            agents.add(name, crosses(target), mailbox=Mailbox(1))
        for name in "ab":
            await agents.tell(name, "cross")
        await wait_all_tasks_blocked()
        for name in "ab":
            await agents.tell(name, "filler")
        await agents.wait_quiet()
        assert len(refused) == 1
        assert at_rest(agents)


async def test_an_agent_that_asks_itself_over_its_mailbox_is_refused_unless_it_is_reentrant() -> None:
    async def again(ctx: Context, depth: int) -> object:
        return await ctx.ask(ctx.agent.name, depth - 1) if depth else ctx.chain

    async with world() as agents:
        agents.add("strict", again, mailbox=Mailbox(), raises=(CallCycle,))
        agents.add("lax", again, mailbox=Mailbox(), reentrant=True)
        agents.add("plain", again, reentrant=True)
        with pytest.raises(CallCycle) as caught:
            await agents.converse("strict", 1)
        assert caught.value.chain == ("strict", "strict")
        assert await agents.converse("lax", 2) == ("lax", "lax", "lax")
        assert await agents.converse("plain", 2) == ("plain", "plain", "plain")
        assert at_rest(agents)


async def test_a_reentrant_agent_runs_no_stranger_beside_its_chain() -> None:
    running = 0

    async def outer(ctx: Context, payload: object) -> object:
        nonlocal running
        if payload == "inner":
            return None
        running += 1
        assert running == 1
        await ctx.ask(ctx.agent.name, "inner")
        await trio.lowlevel.checkpoint()
        running -= 1
        return None

    async with world() as agents:
        agents.add("plain", outer, reentrant=True)
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(agents.converse, "plain", number)
        assert at_rest(agents)


async def test_an_agents_own_deadline_bounds_each_run(autojump_clock: MockClock) -> None:
    async with world() as agents:
        agents.add("box", hang, mailbox=Mailbox(), deadline=2)
        agents.add("plain", hang, deadline=3)
        for name, seconds in (("box", 2), ("plain", 3)):
            start = trio.current_time()
            with pytest.raises(DeadlineExceeded, match=name):
                await agents.converse(name, None)
            assert trio.current_time() == start + seconds
        await agents.tell("box", None)
        await agents.wait_quiet()
        assert agents["box"].generation == 1


async def test_a_timer_sends_a_message_to_its_own_agent(autojump_clock: MockClock) -> None:
    seen: list[object] = []

    async def ticks(ctx: Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        seen.append((payload, trio.current_time() - start))
        if payload == "go":
            ctx.after(5, "later")
            ctx.after(2, "soon")
            ctx.after(3, "never").cancel()

    async with world() as agents:
        start = trio.current_time()
        agents.add("ticks", ticks, mailbox=Mailbox())
        await agents.tell("ticks", "go")
        await trio.sleep(10)
    assert seen == [("go", 0.0), ("soon", 2.0), ("later", 5.0)]
    assert at_rest(agents)


async def test_a_timer_needs_a_mailbox_and_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cord_trio.agents.post.MAX_ALARMS", 1)

    async def ticks(ctx: Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        ctx.after(5, "one")
        ctx.after(5, "two")

    async with world() as agents:
        agents.add("plain", ticks)
        agents.add("ticks", ticks, mailbox=Mailbox())
        with pytest.raises(NoMailbox):
            await agents.converse("plain", None)
        with pytest.raises(AgentCrashed) as caught:
            await agents.converse("ticks", None)
        assert isinstance(caught.value.__cause__, Overloaded)
        assert agents.counters["agents.alarms_full"] == 1


async def test_a_restart_forgets_the_timers(autojump_clock: MockClock) -> None:
    seen: list[object] = []

    async def ticks(ctx: Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        seen.append(payload)
        if payload == "go":
            ctx.after(5, "later")
        if payload == "crash":
            raise ValueError

    async with world() as agents:
        agents.add("ticks", ticks, mailbox=Mailbox())
        await agents.tell("ticks", "go")
        await agents.tell("ticks", "crash")
        await trio.sleep(20)
    assert seen == ["go", "crash"]
    assert at_rest(agents)


async def test_a_broadcast_reaches_who_takes_the_topic_and_waits_for_nobody() -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox(1), topics=("orders.*",))
        other = Gate()
        agents.add("other", other, mailbox=Mailbox(1, full="drop_oldest"), topics=("*",))
        agents.add("deaf", echo, mailbox=Mailbox())
        assert agents.broadcast("orders.new", 1) == 2
        await wait_all_tasks_blocked()
        assert agents.broadcast("stock", 2) == 1
        assert agents.broadcast("orders.new", 3) == 2
        assert agents.broadcast("orders.new", 4) == 1
        assert agents.counters["agents.broadcasts_dropped"] == 1
        gate.open.set()
        other.open.set()
        await agents.wait_quiet()
    assert (gate.seen, other.seen) == ([1, 3], [1, 4])


async def test_topics_need_a_mailbox() -> None:
    async with world() as agents:
        with pytest.raises(ValueError, match="mailbox"):
            agents.add("plain", echo, topics=("*",))


async def test_whoever_waits_when_the_fabric_ends_learns_that_the_agent_is_down(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as outside:
        errors: list[str] = []

        async def ask(payload: object) -> None:
            try:
                await agents.converse("gate", payload)
            except AgentDown as exc:
                errors.append(exc.reason)

        async with world() as agents:
            gated(agents, Mailbox(), grace=1)
            for number in range(2):
                outside.start_soon(ask, number)
            await wait_all_tasks_blocked()
    assert errors == ["the fabric ends", "the fabric ends"]
    assert at_rest(agents)
    for verb in (agents.converse, agents.tell):
        with pytest.raises(Draining):
            await verb("gate", None)


def test_a_mailbox_has_a_size_and_one_of_five_ways() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Mailbox(0)
    with pytest.raises(ValueError, match="drop_oldest"):
        Mailbox(1, full="drop")  # type: ignore[arg-type]  # that is the point


async def test_how_many_may_wait_for_room_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox_room, "WAITING", 1)
    async with world() as agents:
        gate = gated(agents, Mailbox(1))
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(agents.converse, "gate", number)
                await wait_all_tasks_blocked()
            with pytest.raises(Overloaded) as caught:
                await agents.converse("gate", 3)
            assert (caught.value.bound, caught.value.limit) == ("agents.gate.waiting", 1)
            assert agents.counters["agents.waiting_full"] == 1
            gate.open.set()
    assert at_rest(agents)


async def test_a_message_that_is_abandoned_in_the_tick_of_its_turn_never_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox())
        await wait_all_tasks_blocked()  # its task waits for a message
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(agents.converse, "gate", "late")
                put = Box.put

                def put_and_cancel(box: Box, envelope: Envelope, *, lane: Lane = "normal") -> bool:
                    scope.cancel("given to the task, which has not run yet")
                    return put(box, envelope, lane=lane)

                monkeypatch.setattr(Box, "put", put_and_cancel)
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert gate.seen == []
        assert at_rest(agents)


async def test_whoever_leaves_the_queue_makes_room_for_who_waits() -> None:
    async with world() as agents:
        gate = gated(agents, Mailbox(1))
        async with trio.open_nursery() as nursery:
            await agents.tell("gate", "runs")
            await wait_all_tasks_blocked()
            scope = trio.CancelScope()

            async def leaves() -> None:
                with scope:
                    await agents.converse("gate", "leaves")

            nursery.start_soon(leaves)
            await wait_all_tasks_blocked()
            nursery.start_soon(agents.tell, "gate", "waits")
            await wait_all_tasks_blocked()
            scope.cancel("enough")
        gate.open.set()
        await agents.wait_quiet()
    assert gate.seen == ["runs", "waits"]
    assert at_rest(agents)


def test_a_message_that_had_to_wait_for_room_is_no_part_of_its_senders_chain() -> None:
    answers: list[object] = []

    async def sends(ctx: Context, payload: object) -> object:
        if payload == "send":
            await ctx.tell("takes", None)
            await trio.lowlevel.checkpoint()
        return "answer"

    async def takes(ctx: Context, payload: object) -> None:
        answers.append(await ctx.ask("sends", "hello"))

    async def main() -> None:
        async with world() as agents:
            agents.add("sends", sends, turn=9)
            agents.add("takes", takes, mailbox=Mailbox(1))
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(agents.converse, "sends", "send")
            await agents.wait_quiet()

    for seed in range(30):
        with scheduled(random.Random(seed)):
            trio.run(main)
    assert answers == ["answer"] * 4 * 30


async def test_several_handoffs_that_nobody_waits_for_are_told_to_monitors() -> None:
    async def both(ctx: Context, payload: object) -> list[Handoff]:  # noqa: ASYNC124  # async by contract
        return [ctx.handoff("both", 1), ctx.handoff("both", 2)]

    async with world() as agents:
        agents.add("both", both, mailbox=Mailbox())
        with agents.monitor("both") as notices:
            await agents.tell("both", None)
            notice = await anext(notices)
        await agents.wait_quiet()
        assert (notice.what, agents.counters["agents.told_failed"]) == ("handoff_refused", 1)
        with pytest.raises(HandoffRefused):
            await agents.converse("both", None)
    assert at_rest(agents)


async def test_handoffs_that_nobody_waits_for_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cord_trio.agents.directory.MAX_FORWARDED", 0)

    async def giver(ctx: Context, payload: object) -> Handoff:  # noqa: ASYNC124  # async by contract
        return ctx.handoff("giver", payload)

    async with world() as agents:
        agents.add("giver", giver, mailbox=Mailbox())
        with agents.monitor("giver") as notices:
            await agents.tell("giver", None)
            notice = await anext(notices)
        assert notice.what == "handoff_refused"
        assert isinstance(notice.cause, Overloaded)
        assert notice.cause.bound == "agents.forwarded"
        await agents.wait_quiet()
    assert at_rest(agents)


async def test_a_message_behind_one_whose_asker_left_is_not_lost_with_its_scope(autojump_clock: MockClock) -> None:
    """The handler ends in its own time, so its scope is still cancelled when the next message would be taken."""
    seen: list[object] = []

    async def stubborn(ctx: Context, payload: object) -> None:
        seen.append(payload)
        if payload == "slow":
            with trio.CancelScope(shield=True):
                await trio.sleep(1)

    async with world() as agents:
        agents.add("stubborn", stubborn, mailbox=Mailbox(4))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(converse, agents, "stubborn", "slow")
            await wait_all_tasks_blocked()
            for number in range(3):
                assert await agents.tell("stubborn", number)
            nursery.cancel_scope.cancel("it takes too long")
        await trio.sleep(1)
    assert seen == ["slow", 0, 1, 2]
