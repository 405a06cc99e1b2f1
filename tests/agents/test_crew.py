"""Asks beside a handler, and progress of an ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cord_trio.agents import Agents, Budget, Context, Mailbox
from cord_trio.agents.stream import STREAMED, open_stream
from cord_trio.errors import BudgetExceeded, Overloaded
from cord_trio.registry import Snapshot
from tests.agents.world import at_rest, echo, hang, no_tools, world

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cord_trio.agents.turn import Sink


class Broken(Exception):
    """What a handler raises."""


async def fails(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
    raise Broken


def some() -> Agents:
    agents = Agents(no_tools, Snapshot)
    agents.add("echo", echo, turn=9)
    agents.add("hang", hang, turn=9)
    agents.add("fails", fails)
    return agents


async def test_what_is_spawned_runs_beside_the_handler_and_ends_with_its_block() -> None:
    async def boss(ctx: Context, payload: object) -> object:
        async with ctx.open_nursery() as crew:
            answers = [crew.spawn("echo", number) for number in range(3)]
            assert await answers[1].result() == 1
        assert not ctx.branch.children
        return [await answer.result() for answer in answers]

    agents = some()
    agents.add("boss", boss)
    assert await agents.converse("boss", None) == [0, 1, 2]
    assert at_rest(agents)


async def test_a_spawned_failure_cancels_the_others_and_leaves_as_itself() -> None:
    async def boss(ctx: Context, payload: object) -> object:
        async with ctx.open_nursery() as crew:
            crew.spawn("hang")
            crew.spawn("fails")
            await trio.sleep_forever()
        raise AssertionError

    agents = some()
    agents.add("boss", boss)
    with pytest.raises(Broken) as caught:
        await agents.converse("boss", None)
    assert caught.value.__notes__ == ["boss > fails#1"]
    assert at_rest(agents)


async def test_an_error_of_the_block_cancels_what_it_spawned_and_leaves_as_itself() -> None:
    async def boss(ctx: Context, payload: object) -> object:
        async with ctx.open_nursery() as crew:
            crew.spawn("hang")
            await wait_all_tasks_blocked()
            raise Broken

    agents = some()
    agents.add("boss", boss)
    with pytest.raises(Broken):
        await agents.converse("boss", None)
    assert at_rest(agents)


async def test_what_is_spawned_has_a_budget_and_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cord_trio.agents.crew.MAX_SPAWNED", 1)

    async def spends(ctx: Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        ctx.budget.spend(tokens=2)

    async def boss(ctx: Context, payload: object) -> object:
        async with ctx.open_nursery() as crew:
            crew.spawn("spends", budget=Budget(tokens=1))
            with pytest.raises(Overloaded):
                crew.spawn("echo")
        raise AssertionError

    agents = some()
    agents.add("spends", spends)
    agents.add("boss", boss)
    with pytest.raises(BudgetExceeded):
        await agents.converse("boss", None)
    assert agents.counters["agents.spawned_full"] == 1


@pytest.mark.parametrize("mailbox", [None, Mailbox()])
async def test_an_agent_shows_its_progress_to_who_streams(mailbox: Mailbox | None) -> None:
    async def works(ctx: Context, payload: int) -> object:
        for number in range(payload):
            await ctx.emit(number)
        return ctx.handoff("more") if payload == 3 else "done"

    async def more(ctx: Context, payload: object) -> object:
        await ctx.emit("more")
        return "done by more"

    async def boss(ctx: Context, payload: int) -> object:
        async with ctx.stream("works", payload) as events:
            seen = [value async for value in events]
            return seen, await events.result()

    async with world() as agents:
        agents.add("works", works, mailbox=mailbox)
        agents.add("more", more, mailbox=mailbox)
        agents.add("boss", boss)
        assert await agents.converse("boss", 2) == ([0, 1], "done")
        assert await agents.converse("boss", 3) == ([0, 1, 2, "more"], "done by more")
        assert await agents.converse("boss", STREAMED * 2) == (list(range(STREAMED * 2)), "done")
        assert await agents.converse("works", 2) == "done"  # nobody looks
    assert at_rest(agents)


async def test_what_an_agent_below_emits_is_for_its_own_asker() -> None:
    async def below(ctx: Context, payload: object) -> object:
        await ctx.emit("mine")
        return None

    async def above(ctx: Context, payload: object) -> object:
        await ctx.ask("below")
        return None

    async def boss(ctx: Context, payload: object) -> object:
        async with ctx.stream("above") as events:
            return [value async for value in events]

    agents = some()
    for handler in (below, above, boss):
        agents.add(handler.__name__, handler)
    assert await agents.converse("boss", None) == []


async def test_an_agent_waits_while_who_streams_is_behind_and_no_longer() -> None:
    async def works(sink: Sink) -> object:
        for number in range(STREAMED + 2):
            sent.append(number)
            await sink(number)
        return "done"

    sent: list[int] = []
    async with open_stream(works) as events:
        await wait_all_tasks_blocked()
        assert len(sent) == STREAMED + 1
        assert await events.result() == "done"
        assert [value async for value in events] == []


async def test_a_failure_reaches_who_streams_once_as_itself() -> None:
    async def breaks(sink: Sink) -> object:
        await sink(1)
        raise Broken

    with pytest.raises(Broken):
        async with open_stream(breaks) as events:
            assert [await anext(events)] == [1]
            await wait_all_tasks_blocked()
    with pytest.raises(Broken):
        async with open_stream(breaks) as events:
            async for _ in events:
                pass
    async with open_stream(breaks) as events:
        with pytest.raises(Broken):
            await events.result()


async def test_leaving_the_block_of_a_stream_cancels_and_joins_the_ask(autojump_clock: MockClock) -> None:
    ended: list[float] = []

    async def works(ctx: Context, payload: object) -> object:
        try:
            await ctx.emit(1)
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(2, shield=True):
                await trio.sleep(1)
            ended.append(trio.current_time())

    async def boss(ctx: Context, payload: object) -> object:
        async with ctx.stream("works") as events:
            value = await anext(events)
            if payload is not None:
                raise Broken
        assert ended == [1.0]
        return value

    async with world() as agents:
        agents.add("works", works, mailbox=Mailbox())
        agents.add("boss", boss)
        assert await agents.converse("boss", None) == 1
        with pytest.raises(Broken):
            await agents.converse("boss", "raise")
    assert at_rest(agents)
