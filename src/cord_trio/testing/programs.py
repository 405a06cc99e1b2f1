"""Random programs of agents for Hypothesis: they ask, hand over, call tools, sleep, fail and are cancelled.

`programs()` draws one; `await program.play(fabric)` adds its agents to a fabric, asks what it asks, and returns what
happened. A program is a plain value, so that what Hypothesis shrinks it to can be read, and pasted into a test.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
import trio
from hypothesis import strategies as st

from cord_trio.errors import AgentError, CallError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from cord_trio.agents import Agent, Context
    from cord_trio.fabric import Fabric

Json: TypeAlias = Any

NAMES: Final = ("a", "b", "c")
"""Of agents, unless said."""

LONGEST_SCRIPT: Final = 3
"""Steps of one handler."""

MOST_ASKS: Final = 5
"""Asks from outside."""


class Broken(Exception):
    """What a script raises."""


@attrs.frozen
class Limit:
    """How an ask or call is given up: after virtual seconds, or after so many checkpoints, if it still runs."""

    seconds: float = math.inf
    ticks: int | None = None


@attrs.frozen
class Sleep:
    """Waits virtual seconds."""

    seconds: float


@attrs.frozen
class CallTool:
    """Calls a tool."""

    tool: str
    arguments: Mapping[str, Json] = attrs.field(factory=dict)
    limit: Limit = Limit()


@attrs.frozen
class Ask:
    """Asks agents, each to follow its script: one after the other, or all at once in a nursery."""

    targets: tuple[tuple[str, Script], ...]
    together: bool = False
    limit: Limit = Limit()


@attrs.frozen
class Hand:
    """Ends with a handoff."""

    target: str
    script: Script


@attrs.frozen
class Fail:
    """Ends with an exception."""


Step: TypeAlias = Sleep | CallTool | Ask | Hand | Fail
Script: TypeAlias = tuple[Step, ...]


@attrs.frozen
class Root:
    """One ask from outside: whom, to do what, when it comes, and how it is given up."""

    target: str
    script: Script
    at: float = 0.0
    limit: Limit = Limit()


@attrs.define
class Played:
    """What happened.

    Attributes:
        asks: for each ask, in the order they were made, its endings: "answered", "cancelled", or an error's name.
        calls: the same for each tool call.
        started: how many handlers began, by agent.
        running: how many are in their handler now, by agent; empty once all is over.
        most: how many were in their handler at once, by agent.

    """

    asks: list[list[str]] = attrs.field(factory=list)
    calls: list[list[str]] = attrs.field(factory=list)
    started: Counter[str] = attrs.field(factory=Counter)
    running: Counter[str] = attrs.field(factory=Counter)
    most: Counter[str] = attrs.field(factory=Counter)


@attrs.frozen
class Program:
    """Agents, and what is asked of them.

    Attributes:
        agents: the turn of each, by name.
        roots: the asks from outside.

    """

    agents: Mapping[str, int]
    roots: tuple[Root, ...]

    async def play(self, fabric: Fabric) -> Played:
        """Add the agents to `fabric`, ask, and wait until all asks have ended."""
        player = _Player(fabric)
        for name, turn in self.agents.items():
            player.add(name, turn)

        async def begin(root: Root) -> None:
            await trio.sleep(root.at)
            await player.ask(fabric, root.target, root.script, root.limit)

        async with trio.open_nursery() as nursery:
            for root in self.roots:
                nursery.start_soon(begin, root)
        return player.played


class _Player:
    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.played = Played()

    def add(self, name: str, turn: int) -> Agent:
        played = self.played

        async def handle(ctx: Context, script: Script) -> object:
            played.started[name] += 1
            played.running[name] += 1
            played.most[name] = max(played.most[name], played.running[name])
            try:
                return await self.follow(ctx, script)
            finally:
                played.running[name] -= 1
                played.running += Counter()  # keeps what is more than zero

        return self.fabric.agent(name, handle, turn=turn)

    async def follow(self, ctx: Context, script: Script) -> object:
        for step in script:
            match step:
                case Sleep(seconds):
                    await trio.sleep(seconds)
                case CallTool():
                    await self.call(ctx, step)
                case Ask(targets, together, limit):
                    await self.ask_all(ctx, targets, limit, together=together)
                case Hand(target, onward):
                    return ctx.handoff(target, onward)
                case Fail():
                    raise Broken
        return "done"

    async def ask_all(
        self, ctx: Context, targets: Sequence[tuple[str, Script]], limit: Limit, *, together: bool
    ) -> None:
        if not together:
            for target, script in targets:
                await self.ask(ctx, target, script, limit)
            return
        async with trio.open_nursery() as nursery:
            for target, script in targets:
                nursery.start_soon(self.ask, ctx, target, script, limit)

    async def ask(self, asker: Fabric | Context, target: str, script: Script, limit: Limit) -> None:
        await _within(limit, partial(asker.ask, target, script), self.played.asks)

    async def call(self, ctx: Context, step: CallTool) -> None:
        await _within(step.limit, partial(ctx.call, step.tool, step.arguments), self.played.calls)


async def _within(limit: Limit, do: Callable[[], Awaitable[object]], all_endings: list[list[str]]) -> None:
    """Do it until `limit`, and write down how that ended."""
    endings: list[str] = []
    all_endings.append(endings)
    try:
        with trio.move_on_after(limit.seconds) as scope:
            async with trio.open_nursery() as nursery:
                if limit.ticks is not None:
                    nursery.start_soon(_cancel_after, limit.ticks, scope)
                try:
                    await do()
                    endings.append("answered")
                except (AgentError, CallError, Broken) as exc:
                    endings.append(type(exc).__name__)
                nursery.cancel_scope.cancel("it has ended")
    finally:
        if not endings:
            endings.append("cancelled")


async def _cancel_after(ticks: int, scope: trio.CancelScope) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel("given up on purpose")


def limits() -> st.SearchStrategy[Limit]:
    """How asks and calls are given up; most are not."""
    return st.builds(Limit, st.sampled_from([math.inf, math.inf, math.inf, 0.5, 2.0]), st.none() | st.integers(0, 12))


def scripts(
    names: Sequence[str] = NAMES, *, tools: Sequence[tuple[str, Mapping[str, Json]]] = (), max_leaves: int = 6
) -> st.SearchStrategy[Script]:
    """What a handler does. Args as for `programs`."""
    targets = st.sampled_from(names)
    calls = [st.builds(CallTool, st.just(name), st.just(arguments), limits()) for name, arguments in tools]
    leaf: st.SearchStrategy[Script] = st.sampled_from([(), (Sleep(0.0),), (Sleep(1.0),), (Fail(),)])
    if calls:
        leaf |= st.tuples(st.one_of(calls))

    def longer(inner: st.SearchStrategy[Script]) -> st.SearchStrategy[Script]:
        asked = st.lists(st.tuples(targets, inner), min_size=1, max_size=2).map(tuple)
        steps: list[st.SearchStrategy[Step]] = [
            st.builds(Sleep, st.sampled_from([0.0, 1.0])),
            st.builds(Ask, asked, st.booleans(), limits()),
            st.builds(Hand, targets, inner),
            *calls,
        ]
        return st.lists(st.one_of(steps), max_size=LONGEST_SCRIPT).map(tuple)

    return st.recursive(leaf, longer, max_leaves=max_leaves)


def programs(
    names: Sequence[str] = NAMES, *, tools: Sequence[tuple[str, Mapping[str, Json]]] = (), max_leaves: int = 6
) -> st.SearchStrategy[Program]:
    """Programs of agents.

    Args:
        names: of the agents.
        tools: what they may call: exported names with arguments.
        max_leaves: how large the script of one ask may grow.

    """
    roots = st.builds(
        Root,
        st.sampled_from(names),
        scripts(names, tools=tools, max_leaves=max_leaves),
        st.sampled_from([0.0, 0.0, 0.0, 1.0]),
        limits(),
    )
    return st.builds(
        Program,
        st.fixed_dictionaries({name: st.sampled_from([1, 1, 2]) for name in names}),
        st.lists(roots, min_size=1, max_size=MOST_ASKS).map(tuple),
    )
