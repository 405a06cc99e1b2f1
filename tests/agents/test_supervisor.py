from __future__ import annotations

import math
import random
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cord_trio.agents import Agents, Backoff, Context, Mailbox, Notice, Supervisor
from cord_trio.agents.supervisor import End
from cord_trio.errors import (
    AgentCrashed,
    AgentDown,
    AgentError,
    AgentGone,
    AgentNotFound,
    DeadlineExceeded,
    RestartIntensity,
)
from cord_trio.registry import Snapshot
from cord_trio.testing.schedule import scheduled
from tests.agents.world import at_rest, echo, hang, no_tools, quick, world

if TYPE_CHECKING:
    from types import TracebackType

    from trio.testing import MockClock


class Broken(Exception):
    """What a handler raises."""


class Counter:
    """Counts the messages of this life; a payload of "crash" ends it."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, ctx: Context, payload: object) -> object:
        if payload == "crash":
            raise Broken(self.count)
        self.count += 1
        await trio.lowlevel.checkpoint()
        return ctx.agent.generation, self.count


class Kept:
    """A state that is entered and left; notes both."""

    def __init__(self, log: list[str], name: str = "kept") -> None:
        self.log = log
        self.name = name

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        self.log.append(f"+{self.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.append(f"-{self.name}")
        with trio.move_on_after(1, shield=True):
            await trio.lowlevel.checkpoint()

    async def __call__(self, ctx: Context, payload: object) -> object:
        if payload == "crash":
            raise Broken
        if payload == "hang":
            await trio.sleep_forever()
        return payload


async def crash(agents: Agents, name: str) -> None:
    with pytest.raises((Broken, AgentCrashed)):
        await agents.converse(name, "crash")


@pytest.mark.parametrize("mailbox", [None, Mailbox()])
async def test_a_class_has_state_that_is_made_anew_after_a_crash(mailbox: Mailbox | None) -> None:
    async with world() as agents:
        agents.add("counter", Counter, mailbox=mailbox, supervisor=quick())
        assert [await agents.converse("counter", None) for _ in range(2)] == [(1, 1), (1, 2)]
        await crash(agents, "counter")
        assert await agents.converse("counter", None) == (2, 1)
    assert at_rest(agents)


async def test_an_exception_of_a_class_arrives_as_itself_with_a_note() -> None:
    async with world() as agents:
        agents.add("counter", Counter, supervisor=quick())
        with pytest.raises(Broken) as caught:
            await agents.converse("counter", "crash")
        assert caught.value.__notes__ == ["counter#1"]


async def test_a_state_is_entered_and_left_in_one_task_of_its_own() -> None:
    log: list[str] = []
    async with world() as agents:
        agents.add("kept", partial(Kept, log), supervisor=quick())
        assert await agents.converse("kept", 7) == 7
        await crash(agents, "kept")
        assert await agents.converse("kept", 8) == 8
        assert log == ["+kept", "-kept", "+kept"]
    assert log == ["+kept", "-kept"] * 2


async def test_a_state_that_is_still_used_is_left_only_after_the_grace(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with world() as agents:
        agents.add("kept", partial(Kept, log), turn=2, supervisor=quick(), grace=3)
        await agents.converse("kept", None)
        async with trio.open_nursery() as nursery:

            async def hangs() -> None:
                start = trio.current_time()
                with pytest.raises(AgentDown, match="crashed: Broken"):
                    await agents.converse("kept", "hang")
                assert trio.current_time() == start + 3

            nursery.start_soon(hangs)
            await wait_all_tasks_blocked()
            await crash(agents, "kept")
            assert log == ["+kept"]
            assert await agents.converse("kept", "waits for the new one") == "waits for the new one"
    assert log == ["+kept", "-kept"] * 2


async def test_a_reference_by_name_survives_a_restart_and_one_by_generation_does_not() -> None:
    async with world() as agents:
        agents.add("counter", Counter, mailbox=Mailbox(), supervisor=quick())
        assert await agents.converse("counter#1", None) == (1, 1)
        await crash(agents, "counter")
        assert await agents.converse("counter", None) == (2, 1)
        with pytest.raises(AgentGone) as caught:
            await agents.converse("counter#1", None)
        assert caught.value.generation == 2
        assert await agents.converse("counter#2", None) == (2, 2)
        for address in ("counter#", "counter#x", "nobody#1", "counter#²"):
            with pytest.raises(AgentNotFound):
                await agents.converse(address, None)


@pytest.mark.parametrize("mailbox", [None, Mailbox()])
async def test_a_message_for_one_generation_that_waits_is_not_given_to_the_next(mailbox: Mailbox | None) -> None:
    class Slow:
        async def __call__(self, ctx: Context, gate: trio.Event) -> object:
            await gate.wait()
            raise Broken

    async with world() as agents:
        agents.add("slow", Slow, mailbox=mailbox, supervisor=quick())
        gate = trio.Event()
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                with pytest.raises((Broken, AgentCrashed)):
                    await agents.converse("slow", gate)

            async def second() -> None:
                with pytest.raises(AgentGone):
                    await agents.converse("slow#1", gate)

            nursery.start_soon(first)
            await wait_all_tasks_blocked()
            nursery.start_soon(second)
            await wait_all_tasks_blocked()
            gate.set()
    assert at_rest(agents)


async def test_queued_messages_survive_a_restart() -> None:
    async with world() as agents:
        agents.add("counter", Counter, mailbox=Mailbox(), supervisor=quick())
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await agents.converse("counter", None))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash, agents, "counter")
            await trio.lowlevel.checkpoint()
            for _ in range(3):
                nursery.start_soon(ask)
        assert [count for _, count in answers] == [1, 2, 3]
    assert at_rest(agents)


def group(agents: Agents, log: list[str], strategy: str, **rules: Any) -> Supervisor:  # noqa: ANN401  # of Supervisor
    supervisor = quick(strategy, **rules)
    for name in "abc":
        agents.add(name, partial(Kept, log, name), mailbox=Mailbox(), supervisor=supervisor)
    return supervisor


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("one_for_one", ["-b", "+b"]),
        ("one_for_all", ["-b", "-c", "-a", "+a", "+b", "+c"]),
        ("rest_for_one", ["-b", "-c", "+b", "+c"]),
    ],
)
async def test_a_strategy_says_who_is_made_anew_with_whom(strategy: str, expected: list[str]) -> None:
    log: list[str] = []
    async with world() as agents:
        group(agents, log, strategy)
        for name in "abc":
            await agents.converse(name, None)
        assert log == ["+a", "+b", "+c"]
        log.clear()
        await crash(agents, "b")
        for name in "abc":
            await agents.converse(name, None)
        assert log == expected
        log.clear()
    assert log == ["-c", "-b", "-a"]


async def test_too_many_crashes_end_the_block_with_the_last_one_as_cause() -> None:
    with pytest.raises(RestartIntensity) as caught:
        async with world() as agents:
            agents.add("counter", Counter, mailbox=Mailbox(), supervisor=quick(max_restarts=2))
            for _ in range(3):
                await crash(agents, "counter")
            await trio.sleep_forever()
    assert (caught.value.agent, caught.value.restarts) == ("counter#3", 2)
    assert isinstance(caught.value.__cause__, Broken)
    assert agents.counters["agents.gave_up"] == 1
    assert agents.counters["agents.restarts"] == 2


async def test_a_group_that_stops_leaves_its_agents_down() -> None:
    log: list[str] = []
    async with world() as agents:
        supervisor = group(agents, log, "one_for_one", max_restarts=0, gives_up="stop")
        await crash(agents, "b")
        await wait_all_tasks_blocked()
        for name in "abc":
            with pytest.raises(AgentDown, match="crashed again after 0 restarts") as caught:
                await agents.converse(name, None)
            assert isinstance(caught.value.__cause__, RestartIntensity)
            with pytest.raises(AgentDown):
                await agents.tell(name, None)
        agents.add("late", Counter, supervisor=supervisor)
        with pytest.raises(AgentDown):
            await agents.converse("late", None)
        assert agents["a"].node().state == "down"
    assert at_rest(agents)


async def test_an_agent_without_a_supervisor_that_crashes_too_often_ends_only_itself(autojump_clock: MockClock) -> None:
    async with world() as agents:
        agents.add("counter", Counter)
        for _ in range(4):
            await crash(agents, "counter")
        with pytest.raises(AgentDown):
            await agents.converse("counter", None)


async def test_crashes_that_are_far_apart_are_forgiven(autojump_clock: MockClock) -> None:
    async with world() as agents:
        agents.add("counter", Counter, supervisor=quick(max_restarts=1, within=5.0))
        for _ in range(5):
            await crash(agents, "counter")
            await trio.sleep(5)
        assert await agents.converse("counter", None) == (6, 1)


async def test_a_state_that_cannot_be_made_counts_as_a_crash() -> None:
    class Never:
        def __init__(self) -> None:
            raise Broken

        async def __call__(self, ctx: Context, payload: object) -> object:
            raise AssertionError

    with pytest.raises(RestartIntensity) as caught:
        async with world() as agents:
            agents.add("never", Never, supervisor=quick())
            with pytest.raises(AgentDown):
                await agents.converse("never", None)
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, Broken)


@pytest.mark.parametrize(
    ("restart", "how", "lives"),
    [
        ("permanent", "crash", True),
        ("permanent", "stop", True),
        ("transient", "crash", True),
        ("transient", "stop", False),
        ("temporary", "crash", False),
        ("temporary", "stop", False),
    ],
)
@pytest.mark.parametrize("mailbox", [None, Mailbox()])
async def test_the_kind_of_restart_says_when_it_is_made_anew(
    restart: Any,  # noqa: ANN401  # a literal
    how: str,
    lives: bool,
    mailbox: Mailbox | None,
) -> None:
    class Ends:
        async def __call__(self, ctx: Context, payload: object) -> object:
            if payload == "stop":
                ctx.stop()
            if payload == "crash":
                raise Broken
            return ctx.agent.generation

    async with world() as agents:
        agents.add("ends", Ends, restart=restart, supervisor=quick(), mailbox=mailbox)
        if how == "crash":
            await crash(agents, "ends")
        else:
            assert await agents.converse("ends", "stop") == 1
        await wait_all_tasks_blocked()
        if lives:
            assert await agents.converse("ends", None) == 2
        else:
            with pytest.raises(AgentDown):
                await agents.converse("ends", None)
    assert at_rest(agents)


async def test_a_function_has_nothing_to_stop() -> None:
    async def stops(ctx: Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        ctx.stop()

    agents = Agents(no_tools, Snapshot)
    agents.add("stops", stops)
    with pytest.raises(AgentError, match="nothing to stop"):
        await agents.converse("stops", None)


async def test_nothing_is_restarted_while_the_fabric_drains(autojump_clock: MockClock) -> None:
    async with world() as agents:
        agents.add("counter", Counter, mailbox=Mailbox(), supervisor=Supervisor(backoff=Backoff(5, 5)))
        await crash(agents, "counter")
        await wait_all_tasks_blocked()  # it waits to be made anew
        agents.draining.set()
        with pytest.raises(AgentDown, match="drains"):
            await agents.converse("counter", None)
        agents.add("other", Counter, mailbox=Mailbox(), supervisor=quick())
        await crash(agents, "other")
        with pytest.raises(AgentDown, match="drains"):
            await agents.converse("other", None)
        assert agents.counters["agents.restarts"] == 0


async def test_monitors_see_what_becomes_of_an_agent() -> None:
    async with world() as agents:
        agents.add("counter", Counter, mailbox=Mailbox(), supervisor=quick(max_restarts=1, gives_up="stop"))
        with agents.monitor("counter") as notices, agents.monitor("counter") as others:
            await crash(agents, "counter")
            await crash(agents, "counter")
            await wait_all_tasks_blocked()
            seen = [await anext(notices) for _ in range(5)]
            assert [(notice.what, notice.generation) for notice in seen] == [
                ("crashed", 1), ("restarted", 2), ("crashed", 2), ("gave_up", 2), ("stopped", 2),
            ]  # fmt: skip
            assert isinstance(seen[0].cause, Broken)
            assert [await anext(others) for _ in range(5)] == seen
        assert agents.monitors.looking == {}


async def test_monitors_see_crashes_of_functions_and_refused_handoffs() -> None:
    async def fails(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        if payload == "hand":
            return ctx.handoff("nobody")
        raise Broken

    async def look(ctx: Context, payload: object) -> list[Notice]:
        with ctx.monitor("fails") as notices:
            for payload in ("crash", "hand"):
                with pytest.raises((Broken, AgentError)):
                    await ctx.ask("fails", payload)
            return [await anext(notices) for _ in range(2)]

    agents = Agents(no_tools, Snapshot)
    agents.add("fails", fails)
    agents.add("look", look)
    seen: Any = await agents.converse("look", None)
    assert [notice.what for notice in seen] == ["crashed", "handoff_refused"]


async def test_a_monitor_that_is_not_read_keeps_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cord_trio.agents.monitor.KEPT", 1)

    async def fails(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        raise Broken(payload)

    agents = Agents(no_tools, Snapshot)
    agents.add("fails", fails)
    with agents.monitor("fails") as notices:
        for number in range(3):
            with pytest.raises(Broken):
                await agents.converse("fails", number)
        notice = await anext(notices)
        assert str(notice.cause) == "2"
        assert notices.missed == 2
        with trio.CancelScope() as scope:
            scope.cancel("nothing comes")
            await anext(notices)
        assert scope.cancelled_caught


async def test_an_agent_that_is_removed_is_stopped_and_its_name_free(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with world() as agents:
        agents.add("kept", partial(Kept, log), mailbox=Mailbox())
        agents.add("echo", echo)
        assert await agents.converse("kept", 1) == 1
        await agents.remove("kept")
        await agents.remove("echo")
        assert log == ["+kept", "-kept"]
        for name in ("kept", "echo"):
            with pytest.raises(AgentNotFound):
                await agents.converse(name, 1)
        with pytest.raises(AgentNotFound):
            await agents.remove("kept")
        agents.add("kept", echo)
        assert await agents.converse("kept", 2) == 2


async def test_an_agent_that_needs_a_task_needs_a_fabric() -> None:  # noqa: ASYNC124  # async by contract
    agents = Agents(no_tools, Snapshot)
    for options in ({"mailbox": Mailbox()}, {"supervisor": quick()}):
        with pytest.raises(AgentError, match="needs a task"):
            agents.add("a", echo, **options)
    with pytest.raises(AgentError, match="no fabric"):
        _ = agents.jobs


async def test_agents_stop_in_reverse_each_within_its_own_grace(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with trio.open_nursery() as outside:

        async def ask(name: str) -> None:
            with pytest.raises(AgentDown):
                await agents.converse(name, "hang")
            log.append(f"{name} at {trio.current_time()}")

        async with world() as agents:
            for name, grace in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
                agents.add(name, partial(Kept, log, name), mailbox=Mailbox(), grace=grace)
                outside.start_soon(ask, name)
            await wait_all_tasks_blocked()
            log.clear()
    assert log == ["c at 2.0", "-c", "b at 3.0", "-b", "a at 6.0", "-a"]


async def test_an_error_in_the_block_ends_all_at_once_and_leaves_as_itself(autojump_clock: MockClock) -> None:
    mine = Broken("mine")
    with pytest.raises(Broken) as caught:
        async with world() as agents:
            agents.add("hang", hang, mailbox=Mailbox(), grace=100)
            await agents.tell("hang", None)
            await wait_all_tasks_blocked()
            raise mine
    assert caught.value is mine
    assert trio.current_time() == 0
    assert at_rest(agents)


async def test_a_state_that_takes_long_to_make_can_be_stopped(autojump_clock: MockClock) -> None:
    class Slow(Kept):
        async def __aenter__(self) -> Self:
            await trio.sleep_forever()

    async with world() as agents:
        agents.add("slow", partial(Slow, []), mailbox=Mailbox())
        await wait_all_tasks_blocked()
    assert trio.current_time() == 0


def test_rules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="strategy"):
        Supervisor("one_for_some")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match="gives_up"):
        Supervisor(gives_up="never")  # type: ignore[arg-type]  # likewise
    with pytest.raises(ValueError, match="at least 0"):
        Supervisor(max_restarts=-1)
    with pytest.raises(ValueError, match="longest"):
        Backoff(2, 1)


def test_the_back_off_doubles_up_to_its_longest() -> None:
    rng = random.Random(0)
    backoff = Backoff(1, 4)
    for restarts, longest in ((0, 1), (1, 2), (2, 4), (3, 4), (10**6, 4)):
        spans = [backoff.seconds(restarts, rng) for _ in range(100)]
        assert 0 <= min(spans) < longest / 4
        assert longest * 3 / 4 < max(spans) <= longest < math.inf


async def test_two_that_crash_at_once_are_made_anew_once() -> None:
    log: list[str] = []
    async with world() as agents:
        group(agents, log, "one_for_all")
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash, agents, "a")
            nursery.start_soon(crash, agents, "b")
        await wait_all_tasks_blocked()
        assert [agents[name].generation for name in "abc"] == [2, 2, 2]


async def test_a_crash_while_the_fabric_drains_stops_no_others(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with world() as agents:
        group(agents, log, "one_for_all")
        await wait_all_tasks_blocked()
        agents.draining.set()
        await crash(agents, "a")
        await wait_all_tasks_blocked()
        assert await agents.converse("b", 7) == 7
        assert log == ["+a", "+b", "+c", "-a"]


async def test_a_state_that_cannot_be_made_in_time_counts_as_a_crash(autojump_clock: MockClock) -> None:
    class Slow(Kept):
        async def __aenter__(self) -> Self:
            await trio.sleep_forever()

    async with world() as agents:
        rules = quick(max_restarts=1, gives_up="stop", within=1000)
        agents.add("slow", partial(Slow, []), supervisor=rules)
        with pytest.raises(AgentDown) as caught:
            await agents.converse("slow", None)
        cause = caught.value.__cause__
        assert cause is not None
        assert isinstance(cause.__cause__, DeadlineExceeded)
        assert trio.current_time() == 120


async def test_a_state_that_is_slow_to_leave_has_its_grace(autojump_clock: MockClock) -> None:
    class Slow(Kept):
        async def __aexit__(
            self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
        ) -> None:
            await trio.sleep_forever()  # noqa: ASYNC102  # that is the point

    async with world() as agents:
        agents.add("slow", partial(Slow, []), grace=3)
        assert await agents.converse("slow", 1) == 1
    assert trio.current_time() == 3
    assert agents.counters["agents.exit_expired"] == 1


async def test_a_handoff_to_an_agent_is_for_any_generation_of_it() -> None:
    async def giver(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        if payload == "crash":
            raise Broken
        return ctx.handoff("taker", payload)

    async with world() as agents:
        agents.add("giver", giver, mailbox=Mailbox(), supervisor=quick())
        agents.add("taker", Counter, mailbox=Mailbox())
        await crash(agents, "giver")
        await wait_all_tasks_blocked()
        assert await agents.converse("giver#2", None) == (1, 1)


async def test_a_message_that_comes_in_the_tick_of_the_crash_is_for_the_next_life() -> None:
    seen: list[object] = []

    async def handler(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        if payload == "crash":
            assert ctx.broadcast("late", "late") == 1  # given to the other task, which has not run yet
            raise Broken
        seen.append((payload, ctx.agent.generation))
        return payload

    async with world() as agents:
        agents.add("two", handler, turn=2, mailbox=Mailbox(), topics=("late",), supervisor=quick())
        await wait_all_tasks_blocked()
        await crash(agents, "two")
        await agents.wait_quiet()
    assert seen == [("late", 2)]
    assert at_rest(agents)


async def test_a_group_that_gives_up_is_a_crash_to_the_supervisor_above() -> None:
    log: list[str] = []
    async with world() as agents:
        above = quick("one_for_all", max_restarts=1)
        agents.add("x", partial(Kept, log, "x"), mailbox=Mailbox(), supervisor=above)
        below = quick("one_for_one", max_restarts=1, parent=above)
        for name in "ab":
            agents.add(name, partial(Kept, log, name), mailbox=Mailbox(), supervisor=below)
        await wait_all_tasks_blocked()
        log.clear()
        await crash(agents, "a")
        assert await agents.converse("a", 1) == 1
        assert log == ["-a", "+a"]
        log.clear()
        await crash(agents, "a")
        assert await agents.converse("a", 2) == 2
        await wait_all_tasks_blocked()
        assert log == ["-a", "-b", "-x", "+x", "+a", "+b"]
        assert [agents[name].generation for name in "xab"] == [2, 3, 2]
        await crash(agents, "b")  # nothing is held against the group any more
        assert await agents.converse("b", 3) == 3
    assert at_rest(agents)


async def test_when_the_supervisor_above_gives_up_too_the_block_ends_with_the_whole_story() -> None:
    with pytest.raises(RestartIntensity, match="the group of a#1 crashed again") as caught:
        async with world() as agents:
            above = quick(max_restarts=0)
            below = quick(max_restarts=0, parent=above)
            agents.add("a", Counter, mailbox=Mailbox(), supervisor=below)
            agents.add("b", Counter, mailbox=Mailbox(), supervisor=above)
            await crash(agents, "a")
            await trio.sleep_forever()
    inner = caught.value.__cause__
    assert isinstance(inner, RestartIntensity)
    assert inner.agent == "a#1"
    assert isinstance(inner.__cause__, Broken)
    assert agents["b"].node().state == "down"


async def test_a_group_below_may_be_stopped_while_it_waits_to_restart(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with world() as agents:
        above = quick("one_for_all")
        below = Supervisor(backoff=Backoff(50, 50), parent=above)
        agents.add("x", partial(Kept, log, "x"), mailbox=Mailbox(), supervisor=above)
        agents.add("a", partial(Kept, log, "a"), mailbox=Mailbox(), supervisor=below)
        await wait_all_tasks_blocked()
        await crash(agents, "a")
        await wait_all_tasks_blocked()
        await crash(agents, "x")
        assert await agents.converse("a", 1) == 1
        assert trio.current_time() == 0
        assert sorted(log[:2]) == ["+a", "+x"]
        assert log[2:] == ["-a", "-x", "+x", "+a"]


async def test_the_time_for_making_a_state_does_not_bound_its_life(autojump_clock: MockClock) -> None:
    async with world() as agents:
        agents.add("counter", Counter, mailbox=Mailbox())
        assert await agents.converse("counter", None) == (1, 1)
        await trio.sleep(1000)
        assert await agents.converse("counter", None) == (1, 2)


def test_an_ask_that_waited_for_a_life_does_not_use_one_that_is_over_by_then() -> None:
    async def main() -> None:
        async with world() as agents:
            supervisor = quick("one_for_all", max_restarts=99)
            for name in "ab":
                agents.add(name, Counter, turn=9, supervisor=supervisor)
            async with trio.open_nursery() as nursery:
                for number in range(6):
                    nursery.start_soon(crash, agents, "a") if number % 3 == 0 else None
                    nursery.start_soon(agents.converse, "b", number)

    for seed in range(60):
        with scheduled(random.Random(seed)):
            trio.run(main)


async def test_those_that_crash_at_once_are_made_anew_in_the_order_of_their_crashes() -> None:
    started: list[str] = []

    class Noted:
        def __init__(self, name: str) -> None:
            started.append(name)

        async def __call__(self, ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
            raise Broken(payload)

    async with world() as agents:
        supervisor = quick()
        for name in ("a", "b", "c"):
            agents.add(name, partial(Noted, name), supervisor=supervisor)
        await wait_all_tasks_blocked()
        started.clear()
        (group,) = agents._groups.values()
        for name in ("b", "a", "c"):  # in one tick
            resident = agents[name].resident
            assert resident is not None
            assert resident.life is not None
            group.ended(End(resident, 1, True, "it crashed", Broken()))
        await wait_all_tasks_blocked()
    assert started == ["b", "a", "c"]
