"""Random programs of agents that ask, hand over, fail and are cancelled, under searched schedules.

The numbers are those of the invariants in the agents' contract.
"""

from __future__ import annotations

import math
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, TypeAlias

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.agents import MAX_HOPS, Agents, Branch, Context, Mailbox, converse, open_agents
from cord_trio.agents import turn as turn_room
from cord_trio.errors import CallCycle, HandoffRefused
from cord_trio.registry import Snapshot
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from properties.invariants import proves

if TYPE_CHECKING:
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
    """Asks one after the other, or all at once in a nursery; `patience` bounds them."""

    targets: tuple[tuple[str, Script], ...]
    together: bool
    patience: float


@attrs.frozen
class Hand:
    """Ends with a handoff."""

    target: str
    script: Script


@attrs.frozen
class Fail:
    """Ends with an exception."""


Script: TypeAlias = tuple[Sleep | Ask | Hand | Fail, ...]


def steps(scripts: st.SearchStrategy[Script]) -> st.SearchStrategy[Script]:
    targets = st.tuples(st.sampled_from(NAMES), scripts)
    asks = st.builds(
        Ask,
        st.lists(targets, min_size=1, max_size=2).map(tuple),
        st.booleans(),
        st.sampled_from([math.inf, math.inf, 0.5, 2]),
    )
    hands = st.builds(Hand, st.sampled_from(NAMES), scripts)
    return st.lists(st.builds(Sleep, st.sampled_from([0, 1])) | asks | hands, max_size=3).map(tuple)


SCRIPTS: st.SearchStrategy[Script] = st.recursive(
    st.sampled_from([(), (Sleep(0),), (Sleep(1),), (Fail(),)]), steps, max_leaves=5
)


@attrs.frozen
class Root:
    """One ask from outside: whom, what, when, and after which time it is cancelled."""

    target: str
    script: Script
    at: float
    patience: float


ROOTS = st.lists(
    st.builds(
        Root,
        st.sampled_from(NAMES),
        SCRIPTS,
        st.sampled_from([0, 0, 0, 1]),
        st.sampled_from([math.inf, math.inf, math.inf, 0, 0.5, 1, 3]),
    ),
    min_size=2,
    max_size=6,
)
TURNS = st.tuples(*[st.sampled_from([1, 1, 2])] * len(NAMES))


@attrs.define
class Payload:
    """A script under the number of its ask, which a handoff keeps, and the deadline that its asker saw."""

    ask: int
    script: Script
    deadline: float


class World:
    """Runs a program and checks, at every step of every handler, what must hold."""

    def __init__(self, turns: tuple[int, ...]) -> None:
        self.agents = Agents(_no_tools, Snapshot)
        for name, turn in zip(NAMES, turns, strict=True):
            self.agents.add(name, self.handle, turn=turn)
        self.running: Counter[str] = Counter()
        self.active: Counter[int] = Counter()
        self.started: Counter[int] = Counter()
        self.handed: Counter[int] = Counter()
        self.endings: list[list[str]] = []
        self.over: set[int] = set()
        self.cycles: list[tuple[str, ...]] = []

    async def ask(self, target: str, script: Script, patience: float, ctx: Context | None = None) -> None:
        number = len(self.endings)
        self.endings.append([])
        with trio.move_on_after(patience):
            payload = Payload(number, script, trio.current_effective_deadline())
            try:
                if ctx is None:
                    answer = await converse(self.agents, target, payload)
                else:
                    answer = await ctx.ask(target, payload)
                assert answer == number  # 2
                self.endings[number].append("answered")
            except (Broken, CallCycle, HandoffRefused) as exc:
                self.endings[number].append(type(exc).__name__)
                if isinstance(exc, CallCycle):
                    self.cycles.append(exc.chain)
            except BaseException:  # one Cancelled, or a group of them
                self.endings[number].append("cancelled")
                raise
            finally:
                assert not self.active[number]  # 7: what was asked is over when the asker goes on
                self.over.add(number)

    async def handle(self, ctx: Context, payload: Payload) -> object:
        name, number = ctx.agent.name, payload.ask
        self.started[number] += 1
        self.running[name] += 1
        self.active[number] += 1
        try:
            assert self.running[name] <= ctx.agent.turn.size  # 9
            assert self.active[number] == 1  # 13
            assert ctx.branch.holds is ctx.agent.turn
            assert ctx.branch.waits is None
            assert self.started[number] == 1 + self.handed[number]  # 3
            assert number not in self.over  # 4
            assert ctx.hops <= MAX_HOPS  # 16
            assert ctx.chain[-1] == name
            assert ctx.deadline <= payload.deadline  # 6
            for step in payload.script:
                match step:
                    case Sleep(seconds):
                        await trio.sleep(seconds)
                        assert trio.current_time() <= ctx.deadline + 1e-9  # 5
                    case Ask(targets, together, patience):
                        await self.ask_all(ctx, targets, together=together, patience=patience)
                    case Hand(target, script):
                        self.handed[number] += 1
                        return ctx.handoff(target, Payload(number, script, payload.deadline))
                    case Fail():
                        raise Broken
            return number
        finally:
            assert trio.current_time() <= payload.deadline + 1e-9  # 5
            self.running[name] -= 1
            self.active[number] -= 1

    async def ask_all(
        self, ctx: Context, targets: tuple[tuple[str, Script], ...], *, together: bool, patience: float
    ) -> None:
        if not together:
            for target, script in targets:
                await self.ask(target, script, patience, ctx)
            return
        async with trio.open_nursery() as nursery:
            for target, script in targets:
                nursery.start_soon(self.ask, target, script, patience, ctx)

    async def play(self, roots: list[Root]) -> None:
        async def begin(root: Root) -> None:
            await trio.sleep(root.at)
            await self.ask(root.target, root.script, root.patience)

        # 10: a set of asks that waits for itself would wait here for ever.
        with trio.fail_after(10_000):
            async with trio.open_nursery() as nursery:
                for root in roots:
                    nursery.start_soon(begin, root)

    def check_rest(self) -> None:
        assert all(len(ending) == 1 for ending in self.endings)  # 1
        assert not self.agents.roots
        for agent in self.agents.values():
            assert not agent.turn.holders  # 8
            assert not agent.turn.waiting


async def _no_tools(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
    raise AssertionError(call)


@proves(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
@given(ROOTS, TURNS, schedules())
def test_invariant_1_to_10_every_ask_ends_once_in_time_and_leaves_nothing(
    roots: list[Root], turns: tuple[int, ...], rng: Random
) -> None:
    world = World(turns)
    with scheduled(rng):
        trio.run(world.play, roots, clock=MockClock(autojump_threshold=0))
    world.check_rest()


@proves(11)
@given(SCRIPTS, st.sampled_from(NAMES), TURNS)
def test_invariant_11_a_lone_chain_is_refused_only_where_it_would_meet_itself(
    script: Script, target: str, turns: tuple[int, ...]
) -> None:
    def meets_itself(name: str, script: Script, held: frozenset[str]) -> bool:
        if name in held:
            return True
        for step in script:
            if isinstance(step, Ask) and any(meets_itself(*asked, held | {name}) for asked in step.targets):
                return True
            if isinstance(step, Hand):
                return meets_itself(step.target, step.script, held)
            if isinstance(step, Fail):
                return False
        return False

    def alone(script: Script) -> bool:
        for step in script:
            if isinstance(step, Ask) and (
                step.together or step.patience != math.inf or not all(alone(asked) for _, asked in step.targets)
            ):
                return False
            if isinstance(step, Hand) and not alone(step.script):
                return False
        return True

    if not alone(script):
        return
    world = World(turns)
    trio.run(world.play, [Root(target, script, 0, math.inf)], clock=MockClock(autojump_threshold=0))
    if world.cycles:
        assert meets_itself(target, script, frozenset())
    world.check_rest()


@attrs.frozen
class Visit:
    """One ask: how long after the one before it, how long it runs, and when its asker leaves."""

    after: float
    runs: float
    patience: float


VISITS = st.builds(
    Visit,
    st.sampled_from([0.0, 0.0, 1.0]),
    st.sampled_from([0.0, 2.0, 5.0]),
    st.sampled_from([math.inf, math.inf, 1.5, 3.0]),
)


@proves(4, 9)
@given(
    st.lists(VISITS, min_size=1, max_size=10),
    st.integers(1, 3),
    st.sampled_from([None, Mailbox(1), Mailbox(2), Mailbox(9)]),
    st.booleans(),
    schedules(),
)
def test_invariant_9_turns_are_given_in_the_order_they_were_asked_for(
    visits: list[Visit], turn: int, mailbox: Mailbox | None, made: bool, rng: Random
) -> None:
    """With and without a mailbox or a state of its own, also where some leave, or wait for room first."""
    started: list[int] = []
    times: dict[int, float] = {}
    left: set[int] = set()
    running = 0

    class Handler:
        async def __call__(self, ctx: Context, number: int) -> int:
            nonlocal running
            assert number not in left  # 4
            started.append(number)
            times[number] = trio.current_time()
            running += 1
            assert running <= turn  # 9
            try:
                await trio.sleep(visits[number].runs)
            finally:
                running -= 1
            return number

    handler = Handler()

    async def handle(ctx: Context, number: int) -> int:
        return await handler(ctx, number)

    async def ask(agents: Agents, number: int) -> None:
        with trio.move_on_after(visits[number].patience):
            assert await agents.converse("a", number) == number
        left.add(number)

    async def main() -> None:
        with trio.fail_after(10_000):
            async with open_agents(_no_tools, Snapshot, rng=Random(0)) as agents:
                agents.add("a", Handler if made else handle, turn=turn, mailbox=mailbox)
                async with trio.open_nursery() as nursery:
                    for number, visit in enumerate(visits):
                        await trio.sleep(visit.after)
                        nursery.start_soon(ask, agents, number)
                        await trio.testing.wait_all_tasks_blocked()  # it has asked
                assert not agents["a"].turn.holders

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    if turn == 1:
        assert started == sorted(started)
    # Two that get their turns in one moment may begin in either order.
    assert [times[number] for number in sorted(times)] == sorted(times.values())
    assert {number for number, visit in enumerate(visits) if visit.patience == math.inf} <= set(started)


@proves(10)
@given(
    st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), min_size=1, max_size=3), min_size=2),
    TURNS,
    st.lists(st.sampled_from(NAMES), min_size=2, max_size=8),
    st.tuples(*[st.sampled_from([None, None, Mailbox(1)])] * len(NAMES)),
    schedules(),
)
def test_invariant_10_exactly_those_asks_are_refused_that_would_wait_for_themselves(
    asks: dict[str, list[str]],
    turns: tuple[int, ...],
    roots: list[str],
    mailboxes: tuple[Mailbox | None, ...],
    rng: Random,
) -> None:
    """Everyone asks everyone else, over and over, with and without mailboxes."""
    chains: list[tuple[str, ...]] = []
    agents = Agents(_no_tools, Snapshot)

    async def handle(ctx: Context, depth: int) -> None:
        await trio.lowlevel.checkpoint()
        for target in asks.get(ctx.agent.name, ()) if depth else ():
            try:
                await ctx.ask(target, depth - 1)
            except CallCycle as exc:
                chains.append(exc.chain)

    def checked(waiter: Branch) -> tuple[str, ...]:
        circle = circle_of(waiter)
        assert bool(circle) == would_hang(agents, waiter)
        return circle

    async def main() -> None:
        nonlocal agents
        with trio.fail_after(10_000):
            async with open_agents(_no_tools, Snapshot, rng=Random(0)) as agents:
                for name, turn, mailbox in zip(NAMES, turns, mailboxes, strict=True):
                    agents.add(name, handle, turn=turn, mailbox=mailbox)
                async with trio.open_nursery() as nursery:
                    for name in roots:
                        nursery.start_soon(converse, agents, name, 3)

    circle_of = turn_room._circle
    with scheduled(rng), pytest.MonkeyPatch.context() as patch:
        patch.setattr(turn_room, "_circle", checked)
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert all(len(chain) > 1 and chain[0] == chain[-1] for chain in chains)
    assert not agents.roots


def would_hang(agents: Agents, waiter: Branch) -> bool:
    """Whether `waiter` still waits once all that can end has ended, and all that can run has run."""
    children: dict[Branch, set[Branch]] = {}
    todo = list(agents.roots)
    for branch in todo:
        children[branch] = set(branch.children)
        todo += branch.children
    holders = {agent.turn: set(agent.turn.holders) for agent in agents.values()}
    while True:
        for branch, asked in children.items():
            free = branch.waits is not None and len(holders[branch.waits]) < branch.waits.size
            # Between two turns it is about to take one, or about to end: either way it does not wait.
            if free or (branch.waits is None and not asked):
                break
        else:
            return waiter in children
        del children[branch]
        for others in (*children.values(), *holders.values()):
            others.discard(branch)


@proves(47)
@given(ROOTS, TURNS, st.integers(0, 40), schedules())
def test_invariant_47_cancelled_at_any_tick_everything_is_at_rest(
    roots: list[Root], turns: tuple[int, ...], tick: int, rng: Random
) -> None:
    world = World(turns)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.play, roots)
            for _ in range(tick):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel("the crash point")

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    world.check_rest()
    assert not +world.running
