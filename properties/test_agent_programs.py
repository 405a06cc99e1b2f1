"""Programs of agents of every kind, under searched schedules. The numbers are those of the contract's invariants."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import attrs
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from trio.testing import MockClock

from cord_trio.agents import Context, Mailbox, open_agents
from cord_trio.call import Call, Complete, Outcome
from cord_trio.errors import ToolNotGranted
from cord_trio.protocol.tools import Annotations, Tool
from cord_trio.registry import Route, Snapshot
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from properties.agent_programs import (
    KINDS,
    NAMES,
    PROGRAMS,
    SCRIPTS,
    Ask,
    Broken,
    Fail,
    Hand,
    Kind,
    Program,
    Root,
    Script,
    Sleep,
    Spawn,
    World,
    no_tools,
)
from properties.invariants import proves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random


TICKS = st.lists(st.integers(0, 12), max_size=3)
"""After how many ticks each of some tasks is cancelled."""


async def cancelled_after(ticks: int, function: Callable[..., Awaitable[object]], *args: object) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(function, *args)
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel(f"after {ticks} ticks")


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
    assert all(count <= 1 + record.handed[number] for number, count in record.started.items())  # 3
    world.check_rest()  # 8
    assert all(isinstance(cause, Broken) for cause in record.causes)  # 36
    assert record.clung or "agents.join_expired" not in record.counts  # 7


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


def alone(script: Script) -> Script:
    """`script`, with one ask at a time, and none that is given up."""
    steps: list[Any] = []
    for step in script:
        match step:
            case Ask(targets) | Spawn(targets):
                chain = tuple((target, alone(asked)) for target, asked in targets)
                steps.append(Ask(chain, together=False, patience=math.inf, ticks=None))
            case Hand(target, onward, kept):
                steps.append(Hand(target, alone(onward), kept))
            case Sleep() | Fail():
                steps.append(step)
    return tuple(steps)


def meetings(target: str, script: Script, above: tuple[str, ...], reentrant: set[str]) -> list[tuple[str, ...]]:
    """Where a chain meets itself: the names from one agent to the same one, in the order in which it does."""
    if target in above and target not in reentrant:
        return [(*above[above.index(target) :], target)]
    found = []
    for step in script:
        match step:
            case Ask(targets):
                for asked, its in targets:
                    found += meetings(asked, its, (*above, target), reentrant)
            case Hand(taker, onward):
                return found if taker == "nobody" else found + meetings(taker, onward, above, reentrant)
            case Fail():
                return found
    return found


def fails(script: Script) -> bool:
    return any(
        isinstance(step, Fail)
        or (isinstance(step, Ask) and any(fails(asked) for _, asked in step.targets))
        or (isinstance(step, Hand) and fails(step.script))
        for step in script
    )


@proves(11)
@given(st.sampled_from(NAMES), SCRIPTS.map(alone), st.tuples(KINDS, KINDS, KINDS), schedules())
def test_invariant_11_a_lone_chain_is_refused_exactly_where_it_meets_itself(
    target: str, script: Script, kinds: tuple[Kind, Kind, Kind], rng: Random
) -> None:
    # A crash below itself ends an agent under its own feet: that is another matter than a refusal.
    reentrant = {name for name, kind in zip(NAMES, kinds, strict=True) if kind.reentrant and not fails(script)}
    first, second, third = (
        attrs.evolve(kind, deadline=math.inf, reentrant=name in reentrant)
        for name, kind in zip(NAMES, kinds, strict=True)
    )
    program = Program((first, second, third), (Root(target, script, 0, math.inf, None, told=False),), 16)
    world = played(program, rng)
    assert [chain[0] for chain in world.record.cycles] == [
        chain[0] for chain in meetings(target, script, (), reentrant)
    ]
    assert all(chain[0] == chain[-1] for chain in world.record.cycles)
    assert not world.record.counts.get("agents.waiting_full")
    world.check_rest()


@proves(12)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.booleans(), TICKS, schedules())
def test_invariant_12_a_chain_without_contention_costs_one_tick_an_ask(
    chain: list[int], made: bool, cancels: list[int], rng: Random
) -> None:
    """`chain` says how many handoffs there are at each depth of asks; `made` agents have a state.

    Others ask the same agents beside it, which have turns for all, and are cancelled after so many ticks.
    """
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

    class State:
        async def __call__(self, ctx: Context, left: tuple[int, ...]) -> object:
            return await handle(ctx, left)

    async def main() -> None:
        nonlocal steps, asker
        async with open_agents(no_tools, Snapshot) as agents:
            function: Any = State if made else handle
            for depth in range(len(chain) + 1):
                agents.add(f"ask{depth}", function, turn=9, agents=("ask*", "hop*"))
            for hops in range(5):
                agents.add(f"hop{hops}", function, turn=99, reentrant=True)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                for ticks in cancels:
                    nursery.start_soon(cancelled_after, ticks, agents.converse, "ask0", tuple(chain))
                asker = trio.lowlevel.current_task()
                trio.lowlevel.add_instrument(Steps())
                await agents.converse("ask0", tuple(chain))
                asker = None

    with scheduled(rng):
        trio.run(main)
    assert steps <= len(chain)


TOOLS = ("web__get", "web__put", "docs__get", "notes__add")
GRANTS = st.lists(st.sampled_from(["web__*", "*__get", "notes__add", "nothing", "*"]), max_size=2)


@proves(18)
@given(st.lists(GRANTS, min_size=1, max_size=5), st.sampled_from([None, Mailbox()]), TICKS, schedules())
def test_invariant_18_a_taker_has_its_own_grants_and_none_of_its_givers(
    grants: list[list[str]], mailbox: Mailbox | None, cancels: list[int], rng: Random
) -> None:
    """Others go the same way beside it, and are cancelled after so many ticks."""
    seen: list[tuple[int, set[str], set[str]]] = []
    routes = {
        name: Route(name, "web", Tool(name, None, "", Annotations(), Raw(b"{}"), None, Raw(b"{}"))) for name in TOOLS
    }

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
        seen.append((at, called, set(ctx.tools)))
        return ctx.handoff(f"a{at + 1}", at + 1) if at + 1 < len(grants) else None

    async def main() -> None:
        async with open_agents(call, lambda: Snapshot(1, tools=routes)) as agents:
            for number, tools in enumerate(grants):
                agents.add(f"a{number}", handle, tools=tools, mailbox=mailbox if number % 2 else None)
            async with trio.open_nursery() as nursery:
                for ticks in cancels:
                    nursery.start_soon(cancelled_after, ticks, agents.converse, "a0", 0)
                await agents.converse("a0", 0)

    with scheduled(rng):
        trio.run(main)
    expected = [{tool for tool in TOOLS if any(fnmatchcase(tool, glob) for glob in tools)} for tools in grants]
    assert all((called, tools) == (expected[at], expected[at]) for at, called, tools in seen)
    assert {at for at, _, _ in seen} == set(range(len(grants)))
