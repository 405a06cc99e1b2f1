"""Random programs of agents of every kind, and a world that runs one and writes down what happens.

A program asks, tells, spawns, hands over, fails, sleeps, clings to its task, and is cancelled, by deadlines and by
explicit cancels after so many checkpoints. What must hold at every step of every handler is asserted there, by its
number; an assertion that fails in a handler is a crash like any other, so it is kept for the end.
"""

from __future__ import annotations

import math
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs
import trio
from hypothesis import strategies as st

from cord_trio.agents import GRACE, Agents, Backoff, Mailbox, Step, Supervisor, latest, open_agents
from cord_trio.errors import (
    AgentCrashed,
    AgentDown,
    CallCycle,
    DeadlineExceeded,
    HandoffRefused,
    NoMailbox,
    Overloaded,
)
from cord_trio.registry import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from cord_trio.agents import Branch, Context, Notice
    from cord_trio.agents.crew import Promise
    from cord_trio.call import Call, Outcome

NAMES = ("a", "b", "c")


class Broken(Exception):
    """What a script raises."""


@attrs.frozen
class Sleep:
    """Virtual seconds."""

    seconds: float


@attrs.frozen
class Cling:
    """Virtual seconds in which nothing can cancel it."""

    seconds: float


@attrs.frozen
class Spawn:
    """Asks that run beside the handler; the first that fails cancels the others."""

    targets: tuple[tuple[str, Script], ...]


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


Script: TypeAlias = tuple[Sleep | Cling | Ask | Spawn | Tell | Hand | Fail, ...]

PATIENCE = st.sampled_from([math.inf, math.inf, math.inf, 0.5, 2])
TICKS = st.none() | st.integers(0, 12)


def steps(scripts: st.SearchStrategy[Script]) -> st.SearchStrategy[Script]:
    names = st.sampled_from(NAMES)
    targets = st.lists(st.tuples(names, scripts), min_size=1, max_size=2).map(tuple)
    asks = st.builds(Ask, targets, st.booleans(), PATIENCE, TICKS)
    spawns = st.builds(Spawn, targets)
    tells = st.builds(Tell, names, scripts)
    hands = st.builds(Hand, st.sampled_from([*NAMES, *NAMES, "nobody"]), scripts, st.none() | st.integers(0, 2))
    rests: st.SearchStrategy[Sleep | Cling] = st.sampled_from(
        [Sleep(0), Sleep(1), Sleep(0), Sleep(1), Cling(1), Cling(2 * GRACE)]
    )
    return st.lists(rests | asks | asks | spawns | tells | hands, max_size=3).map(tuple)


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
    deadline: float


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
    st.sampled_from([math.inf, math.inf, math.inf, 1.5]),
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
    asked: dict[int, list[int]] = attrs.field(factory=dict)
    askers: dict[int, int] = attrs.field(factory=dict)
    clung: set[int] = attrs.field(factory=set)
    refusing: set[int] = attrs.field(factory=set)
    wrong: list[BaseException] = attrs.field(factory=list)
    endings: list[list[str]] = attrs.field(factory=list)
    over: set[int] = attrs.field(factory=set)
    cycles: list[tuple[str, ...]] = attrs.field(factory=list)
    causes: list[BaseException | None] = attrs.field(factory=list)
    refused: list[Exception] = attrs.field(factory=list)
    notices: list[Notice] = attrs.field(factory=list)
    counts: dict[str, int] = attrs.field(factory=dict)

    def cling(self, number: int) -> None:
        """`number`, and those that wait for it, may run on when they should end."""
        self.clung.add(number)
        if number in self.askers:
            self.cling(self.askers[number])


class World:
    """Runs a program and checks, at every step of every handler, what must hold."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.kinds = dict(zip(NAMES, program.kinds, strict=True))
        self.record = Record()
        self.numbers: dict[Branch, int] = {}
        self.agents: Agents | None = None

    def open(self) -> AbstractAsyncContextManager[Agents]:
        """Where the agents live."""
        return open_agents(no_tools, Snapshot, rng=Random(0), max_hops=self.program.max_hops)

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
                deadline=kind.deadline,
            )

    async def ask(
        self, target: str, script: Script, patience: float, ticks: int | None, ctx: Context | None = None
    ) -> None:
        number = self.new_ask(ctx)
        with trio.move_on_after(patience) as scope:
            async with trio.open_nursery() as nursery:
                if ticks is not None:
                    nursery.start_soon(cancel_after, ticks, scope)
                await self._ask(number, target, script, ctx)
                nursery.cancel_scope.cancel("the ask is over")

    def new_ask(self, ctx: Context | None) -> int:
        """Its number."""
        number = len(self.record.endings)
        self.record.endings.append([])
        if ctx is not None:
            asker = self.record.askers[number] = self.numbers[ctx.branch]
            self.record.asked.setdefault(asker, []).append(number)
        return number

    def asker_goes_on(self, number: int) -> None:
        record = self.record
        if record.active[number]:  # 7: else what was asked is over
            assert number in record.clung
            assert self.agents is not None
            assert self.agents.counters["agents.join_expired"]
        record.over.add(number)

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
            assert number not in record.refusing  # 16, 17
            ending("answered")
        except (Broken, AgentDown, Overloaded, DeadlineExceeded) as exc:
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
            assert number in record.refusing  # 16: only what is beyond the limit
        except BaseException as exc:
            ending("cancelled" if isinstance(exc, trio.Cancelled) else repr(exc))
            raise
        finally:
            self.asker_goes_on(number)

    async def spawn(self, ctx: Context, targets: Sequence[tuple[str, Script]]) -> None:
        spawned: list[tuple[int, Promise]] = []
        try:
            async with ctx.open_nursery() as crew:
                for target, script in targets:
                    payload = Payload(self.new_ask(ctx), script, trio.current_effective_deadline())
                    spawned.append((payload.ask, crew.spawn(target, payload)))
        except (Broken, AgentDown, Overloaded, DeadlineExceeded, AgentCrashed, CallCycle, HandoffRefused):
            assert any(promise.error for _, promise in spawned)
        finally:
            for number, promise in spawned:
                self.asker_goes_on(number)
                if promise.done.is_set():
                    self.record.endings[number].append(type(promise.error).__name__ if promise.error else "answered")
                    if isinstance(promise.error, HandoffRefused):
                        self.record.refused.append(promise.error)
                else:
                    self.record.endings[number].append("cancelled")

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
        self.numbers[ctx.branch] = number
        try:
            self.check(ctx, payload)
            return await self.steps(ctx, payload)
        except BaseException as exc:
            if unexpected(exc):
                record.wrong.append(exc)
            raise
        finally:
            if number not in record.clung and trio.current_time() > payload.deadline + 1e-9:  # 5
                record.wrong.append(AssertionError(f"{name} runs after the deadline of {number}"))
            record.running[name] -= 1
            record.active[number] -= 1

    async def steps(self, ctx: Context, payload: Payload) -> object:
        record, before = self.record, ctx.transcript
        for step in payload.script:
            match step:
                case Sleep(seconds):
                    await trio.sleep(seconds)
                    assert trio.current_time() <= ctx.deadline + 1e-9 or payload.ask in record.clung  # 5
                case Cling(seconds):
                    record.cling(payload.ask)
                    with trio.CancelScope(shield=True):
                        await trio.sleep(seconds)
                case Ask(targets, together, patience, ticks):
                    await self.ask_all(ctx, targets, together=together, patience=patience, ticks=ticks)
                case Spawn(targets):
                    await self.spawn(ctx, targets)
                case Tell(target, script):
                    await self.tell(target, script, ctx)
                case Hand(target, script, kept):
                    return self.hand(ctx, payload, target, script, kept)
                case Fail():
                    raise Broken
            assert ctx.transcript is before  # 15
        return payload.ask

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
        assert not any(
            record.active[asked] for asked in record.asked.get(number, ()) if asked not in record.clung
        )  # 14
        assert ctx.transcript == payload.expected  # 15
        assert ctx.hops <= self.program.max_hops  # 16
        assert ctx.chain[-1] == name
        assert ctx.deadline <= payload.deadline  # 6
        assert ctx.deadline <= trio.current_time() + self.kinds[name].deadline  # 6
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
        if target == "nobody" or ctx.hops == self.program.max_hops:
            self.record.refusing.add(payload.ask)
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
            async with self.open() as self.agents:
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
        """1: each ask has one end. 8: nothing is held, and nobody waits."""
        assert self.record.wrong == []
        assert all(len(ending) == 1 for ending in self.record.endings), self.record.endings  # 1
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


def unexpected(exc: BaseException) -> bool:
    """Whether a handler may not end so: neither as its script says, nor cancelled."""
    if isinstance(exc, BaseExceptionGroup):
        return any(map(unexpected, exc.exceptions))
    return not isinstance(exc, Broken | trio.Cancelled)


async def cancel_after(ticks: int, scope: trio.CancelScope) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel("an explicit cancel")


async def no_tools(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
    raise AssertionError(call)
