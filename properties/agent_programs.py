"""Random programs of agents of every kind, and a world that runs one and writes down what happens.

A program asks, tells, hands over, fails, sleeps, streams and is cancelled, by deadlines and by explicit cancels
after so many checkpoints. What must hold at every step of every handler is asserted there, by its number.
"""

from __future__ import annotations

import math
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs
import trio
from hypothesis import strategies as st

from cord_trio.agents import Agents, Backoff, Mailbox, Step, Supervisor, latest, open_agents
from cord_trio.errors import (
    AgentCrashed,
    AgentDown,
    AgentError,
    CallCycle,
    HandoffRefused,
    NoMailbox,
    Overloaded,
)
from cord_trio.registry import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cord_trio.agents import Context, Notice
    from cord_trio.call import Call, Outcome

NAMES = ("a", "b", "c")


class Broken(Exception):
    """What a script raises."""


@attrs.frozen
class Sleep:
    """Virtual seconds."""

    seconds: float


@attrs.frozen
class Ask:
    """Asks one after the other, or all at once in a nursery; ends early after `patience` or `ticks`."""

    targets: tuple[tuple[str, Script], ...]
    together: bool
    patience: float
    ticks: int | None


@attrs.frozen
class Tell:
    """Sends a message that nobody waits for."""

    target: str
    script: Script


@attrs.frozen
class Hand:
    """Ends with a handoff."""

    target: str
    script: Script
    keep: int | None


@attrs.frozen
class Fail:
    """Ends with an exception."""


Script: TypeAlias = tuple[Sleep | Ask | Tell | Hand | Fail, ...]

PATIENCE = st.sampled_from([math.inf, math.inf, math.inf, 0.5, 2])
TICKS = st.none() | st.integers(0, 12)


def steps(scripts: st.SearchStrategy[Script]) -> st.SearchStrategy[Script]:
    names = st.sampled_from(NAMES)
    asks = st.builds(
        Ask, st.lists(st.tuples(names, scripts), min_size=1, max_size=2).map(tuple), st.booleans(), PATIENCE, TICKS
    )
    tells = st.builds(Tell, names, scripts)
    hands = st.builds(Hand, st.sampled_from([*NAMES, *NAMES, "nobody"]), scripts, st.none() | st.integers(0, 2))
    return st.lists(st.builds(Sleep, st.sampled_from([0, 1])) | asks | tells | hands, max_size=3).map(tuple)


SCRIPTS: st.SearchStrategy[Script] = st.recursive(
    st.sampled_from([(), (Sleep(0),), (Sleep(1),), (Fail(),)]), steps, max_leaves=5
)


@attrs.frozen
class Root:
    """One ask or message from outside: whom, what, when, and how it is cancelled."""

    target: str
    script: Script
    at: float
    patience: float
    ticks: int | None
    told: bool


@attrs.frozen
class Kind:
    """How an agent is made."""

    shape: Literal["function", "class", "box", "boxed class"]
    turn: int
    size: int
    full: int
    reentrant: bool


@attrs.frozen
class Program:
    """Three agents, and what is asked of them."""

    kinds: tuple[Kind, Kind, Kind]
    roots: tuple[Root, ...]
    max_hops: int


ROOTS = st.builds(
    Root,
    st.sampled_from(NAMES),
    SCRIPTS,
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([math.inf, math.inf, math.inf, 0, 0.5, 3]),
    TICKS,
    st.sampled_from([False, False, False, True]),
)
KINDS = st.builds(
    Kind,
    st.sampled_from(["function", "class", "box", "boxed class"]),
    st.sampled_from([1, 1, 2]),
    st.integers(1, 2),
    st.integers(0, 4),
    st.sampled_from([False, False, True]),
)
PROGRAMS = st.builds(
    Program,
    st.tuples(KINDS, KINDS, KINDS),
    st.lists(ROOTS, min_size=2, max_size=5).map(tuple),
    st.sampled_from([16, 16, 0, 1]),
)

FULL: tuple[Any, ...] = ("wait", "fail", "drop_oldest", "drop_newest", latest(lambda payload: payload.ask % 2))  # type: ignore[attr-defined]  # a Payload
FOREVER = Supervisor(max_restarts=10**9, backoff=Backoff(0, 0))


@attrs.define(eq=False)
class Payload:
    """A script under the number of its ask, which a handoff keeps, and what its asker saw."""

    ask: int
    script: Script
    deadline: float
    expected: tuple[Step, ...] = ()
    told: bool = False


@attrs.define
class Record:
    """What happened in one run."""

    running: Counter[str] = attrs.field(factory=Counter)
    active: Counter[int] = attrs.field(factory=Counter)
    started: Counter[int] = attrs.field(factory=Counter)
    handed: Counter[int] = attrs.field(factory=Counter)
    endings: list[list[str]] = attrs.field(factory=list)
    over: set[int] = attrs.field(factory=set)
    cycles: list[tuple[str, ...]] = attrs.field(factory=list)
    causes: list[BaseException | None] = attrs.field(factory=list)
    refused: list[Exception] = attrs.field(factory=list)
    notices: list[Notice] = attrs.field(factory=list)
    counts: dict[str, int] = attrs.field(factory=dict)


class World:
    """Runs a program and checks, at every step of every handler, what must hold."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.record = Record()
        self.agents: Agents | None = None

    def add(self, agents: Agents) -> None:
        world = self

        class State:
            def __init__(self) -> None:
                self.broken = False

            async def __call__(self, ctx: Context, payload: Payload) -> object:
                assert not self.broken  # 36: the state that crashed serves nobody else
                try:
                    return await world.handle(ctx, payload)
                except Broken:
                    self.broken = ctx.agent.turn.size == 1
                    raise

        for name, kind in zip(NAMES, self.program.kinds, strict=True):
            agents.add(
                name,
                State if "class" in kind.shape else self.handle,
                turn=kind.turn,
                reentrant=kind.reentrant,
                mailbox=Mailbox(kind.size, FULL[kind.full]) if "box" in kind.shape else None,
                supervisor=None if kind.shape == "function" else FOREVER,
            )

    async def ask(
        self, target: str, script: Script, patience: float, ticks: int | None, ctx: Context | None = None
    ) -> None:
        record = self.record
        number = len(record.endings)
        record.endings.append([])
        with trio.move_on_after(patience) as scope:
            async with trio.open_nursery() as nursery:
                if ticks is not None:
                    nursery.start_soon(cancel_after, ticks, scope)
                await self._ask(number, target, script, ctx)
                nursery.cancel_scope.cancel("the ask is over")
        record.over.add(number)
        if scope.cancelled_caught and not record.endings[number]:
            record.endings[number].append("cancelled")

    async def _ask(self, number: int, target: str, script: Script, ctx: Context | None) -> None:
        record = self.record
        payload = Payload(number, script, trio.current_effective_deadline())
        ending = record.endings[number].append
        assert self.agents is not None
        try:
            if ctx is None:
                answer = await self.agents.converse(target, payload)
            else:
                answer = await ctx.ask(target, payload)
            assert answer == number  # 2
            ending("answered")
        except (Broken, AgentDown, Overloaded) as exc:
            ending(type(exc).__name__)
        except AgentCrashed as exc:
            ending("AgentCrashed")
            record.causes.append(exc.__cause__)
        except CallCycle as exc:
            ending("CallCycle")
            record.cycles.append(exc.chain)
        except HandoffRefused as exc:
            ending("HandoffRefused")
            record.refused.append(exc)
        finally:
            assert not record.active[number]  # 7: what was asked is over when the asker goes on
            record.over.add(number)

    async def tell(self, target: str, script: Script, ctx: Context | None = None) -> None:
        record = self.record
        number = len(record.endings)
        record.endings.append(["told"])
        payload = Payload(number, script, math.inf, told=True)
        assert self.agents is not None
        try:
            await (self.agents if ctx is None else ctx).tell(target, payload)
        except (NoMailbox, Overloaded, CallCycle, AgentDown):
            record.over.add(number)

    async def handle(self, ctx: Context, payload: Payload) -> object:
        name, number, record = ctx.agent.name, payload.ask, self.record
        record.started[number] += 1
        record.running[name] += 1
        record.active[number] += 1
        try:
            self.check(ctx, payload)
            before = ctx.transcript
            for step in payload.script:
                match step:
                    case Sleep(seconds):
                        await trio.sleep(seconds)
                        assert trio.current_time() <= ctx.deadline + 1e-9  # 5
                    case Ask(targets, together, patience, ticks):
                        await self.ask_all(ctx, targets, together=together, patience=patience, ticks=ticks)
                    case Tell(target, script):
                        await self.tell(target, script, ctx)
                    case Hand(target, script, kept):
                        return self.hand(ctx, payload, target, script, kept)
                    case Fail():
                        raise Broken
                assert ctx.transcript is before  # 15
            return number
        finally:
            record.running[name] -= 1
            record.active[number] -= 1

    def check(self, ctx: Context, payload: Payload) -> None:
        name, number, record = ctx.agent.name, payload.ask, self.record
        nested = sum(1 for above in ways_above(ctx) if above is ctx.agent.turn)
        assert record.running[name] - nested <= ctx.agent.turn.size or ctx.agent.turn.reentrant  # 9
        assert len(ctx.agent.turn.holders) <= ctx.agent.turn.size  # 9
        assert record.active[number] == 1  # 13
        assert record.started[number] == 1 + record.handed[number]  # 3
        assert number not in record.over  # 4
        assert ctx.branch.holds is ctx.agent.turn or nested
        assert ctx.branch.waits is None
        assert not ctx.branch.children  # 14
        assert ctx.transcript == payload.expected  # 15
        assert ctx.hops <= self.program.max_hops  # 16
        assert ctx.chain[-1] == name
        assert ctx.deadline <= payload.deadline  # 6
        assert self.agents is not None
        for agent in self.agents.values():
            if agent.resident is not None and agent.resident.box is not None:
                lengths = agent.resident.box.lengths()
                assert lengths["normal"] <= agent.resident.box.size  # 42
                assert not lengths["waiting"] or lengths["normal"] == agent.resident.box.size

    def hand(self, ctx: Context, payload: Payload, target: str, script: Script, kept: int | None) -> object:
        def keep(transcript: Sequence[Step]) -> Sequence[Step]:
            assert transcript == whole  # 15
            return transcript[-kept:] if kept else ()

        self.record.handed[payload.ask] += 1
        whole = (*ctx.transcript, Step(ctx.agent.name, payload))
        expected = whole if kept is None else tuple(whole[-kept:] if kept else ())
        onward = attrs.evolve(payload, script=script, expected=expected)
        return ctx.handoff(target, onward, None if kept is None else keep)

    async def ask_all(
        self, ctx: Context, targets: Sequence[tuple[str, Script]], *, together: bool, patience: float, ticks: int | None
    ) -> None:
        if not together:
            for target, script in targets:
                await self.ask(target, script, patience, ticks, ctx)
            return
        async with trio.open_nursery() as nursery:
            for target, script in targets:
                nursery.start_soon(self.ask, target, script, patience, ticks, ctx)

    async def play(self, meanwhile: Callable[[trio.Nursery], object] | None = None) -> None:
        """Run the program in a world of its own, to its end."""

        async def begin(root: Root) -> None:
            await trio.sleep(root.at)
            if root.told:
                await self.tell(root.target, root.script)
            else:
                await self.ask(root.target, root.script, root.patience, root.ticks)

        async def watch(name: str, *, task_status: trio.TaskStatus[None]) -> None:
            assert self.agents is not None
            with self.agents.monitor(name) as notices:
                task_status.started()
                async for notice in notices:
                    self.record.notices.append(notice)

        # 10: a set of asks that waits for itself would wait here for ever.
        with trio.fail_after(10_000):
            async with open_agents(no_tools, Snapshot, rng=Random(0), max_hops=self.program.max_hops) as self.agents:
                self.add(self.agents)
                async with trio.open_nursery() as watchers:
                    for name in NAMES:
                        await watchers.start(watch, name)
                    async with trio.open_nursery() as nursery:
                        for root in self.program.roots:
                            nursery.start_soon(begin, root)
                    await self.agents.wait_quiet()
                    await trio.testing.wait_all_tasks_blocked()
                    watchers.cancel_scope.cancel("all has been said")
        self.record.counts = dict(self.agents.counters.snapshot())

    def check_rest(self) -> None:
        """8: nothing is held, and nobody waits."""
        if self.agents is None:
            return
        assert not self.agents.roots
        assert not self.agents.untold
        for agent in self.agents.values():
            assert not agent.turn.holders
            assert not agent.turn.waiting
            if agent.resident is not None and agent.resident.box is not None:
                assert not any(agent.resident.box.lengths().values())
        assert not +self.record.running
        assert not +self.record.active


def ways_above(ctx: Context) -> list[object]:
    """The turns that those hold who wait for this run."""
    held: list[object] = []
    above = ctx.branch.parent
    while above is not None:
        held.append(above.holds)
        above = above.parent
    return held


async def cancel_after(ticks: int, scope: trio.CancelScope) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel("an explicit cancel")


async def no_tools(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
    raise AssertionError(call)


__all__ = ["NAMES", "PROGRAMS", "AgentError", "Broken", "Program", "World", "no_tools"]
