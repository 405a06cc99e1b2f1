"""Programs of agents of every kind, under searched schedules. The numbers are those of the contract's invariants."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from trio.testing import MockClock

from cord_trio.agents import Agents, Context, Mailbox, open_agents
from cord_trio.call import Call, Complete, Outcome
from cord_trio.errors import ToolNotGranted
from cord_trio.protocol.tools import Annotations, Tool
from cord_trio.registry import Route, Snapshot
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from properties.agent_programs import PROGRAMS, Broken, Program, World, no_tools
from properties.invariants import proves

if TYPE_CHECKING:
    from random import Random


def played(program: Program, rng: Random) -> World:
    world = World(program)
    with scheduled(rng):
        trio.run(world.play, clock=MockClock(autojump_threshold=0))
    return world


@proves(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
@given(PROGRAMS, schedules())
def test_invariant_1_to_10_every_ask_ends_once_in_time_and_leaves_nothing(program: Program, rng: Random) -> None:
    world = played(program, rng)
    record = world.record
    # An ask inside a handler that was cancelled from further out has no ending of its own.
    assert all(len(ending) <= 1 for ending in record.endings)  # 1
    assert all(count <= 1 + record.handed[number] for number, count in record.started.items())  # 3
    world.check_rest()  # 8
    assert all(isinstance(cause, Broken) for cause in record.causes)  # 36
    assert "agents.join_expired" not in record.counts  # 7


@proves(13, 14, 15, 16, 17)
@given(PROGRAMS, schedules())
def test_invariant_13_to_17_a_handoff_is_whole_or_refused_once(program: Program, rng: Random) -> None:
    world = played(program, rng)
    seen = [notice.cause for notice in world.record.notices if notice.what == "handoff_refused"]
    assert len(seen) == len({id(cause) for cause in seen})  # 17: once to each monitor
    for error in world.record.refused:
        assert sum(cause is error for cause in seen) == 1  # 17: and once to the asker
    world.check_rest()


@proves(47)
@given(PROGRAMS, st.integers(0, 60), schedules())
def test_invariant_47_cancelled_at_any_tick_everything_is_at_rest(program: Program, tick: int, rng: Random) -> None:
    world = World(program)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.play)
            for _ in range(tick):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel("the crash point")

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    world.check_rest()  # 8


@proves(12)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_invariant_12_a_chain_without_contention_costs_one_tick_an_ask(chain: list[int]) -> None:
    """`chain` says how many handoffs there are at each depth of asks."""
    steps = 0
    asker: trio.lowlevel.Task | None = None

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal steps
            steps += task is asker

    async def handle(ctx: Context, left: tuple[int, ...]) -> object:
        if left[0]:
            return ctx.handoff(f"hop{left[0]}", (left[0] - 1, *left[1:]))
        return await ctx.ask(f"ask{len(left)}", left[1:]) if len(left) > 1 else None

    async def main() -> None:
        nonlocal steps, asker
        agents = Agents(no_tools, Snapshot)
        for depth in range(len(chain) + 1):
            agents.add(f"ask{depth}", handle, turn=9, agents=("ask*", "hop*"))
        for hops in range(5):
            agents.add(f"hop{hops}", handle, turn=99, reentrant=True)
        asker = trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(Steps())
        await agents.converse("ask0", tuple(chain))

    trio.run(main)
    assert steps <= len(chain)


TOOLS = ("web__get", "web__put", "docs__get", "notes__add")
GRANTS = st.lists(st.sampled_from(["web__*", "*__get", "notes__add", "nothing", "*"]), max_size=2)


@proves(18)
@given(st.lists(GRANTS, min_size=1, max_size=5), st.sampled_from([None, Mailbox()]))
def test_invariant_18_a_taker_has_its_own_grants_and_none_of_its_givers(
    grants: list[list[str]], mailbox: Mailbox | None
) -> None:
    seen: list[tuple[set[str], set[str]]] = []
    routes = {name: Route(name, "web", Tool(name, None, "", Annotations(), Raw(b"{}"), None, {})) for name in TOOLS}

    async def call(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        return Complete(Raw(b"{}"))

    async def handle(ctx: Context, at: int) -> object:
        called = set()
        for tool in TOOLS:
            try:
                await ctx.call(tool)
                called.add(tool)
            except ToolNotGranted:
                pass
        seen.append((called, set(ctx.tools)))
        return ctx.handoff(f"a{at + 1}", at + 1) if at + 1 < len(grants) else None

    async def main() -> None:
        async with open_agents(call, lambda: Snapshot(1, tools=routes)) as agents:
            for number, tools in enumerate(grants):
                agents.add(f"a{number}", handle, tools=tools, mailbox=mailbox if number % 2 else None)
            await agents.converse("a0", 0)

    trio.run(main)
    expected = [{tool for tool in TOOLS if any(fnmatchcase(tool, glob) for glob in tools)} for tools in grants]
    assert seen == [(tools, tools) for tools in expected]
