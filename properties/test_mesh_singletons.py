"""Agents of which there is one, on nodes that die, are cut off and come back, and between which it moves.

mesh.6 There is never more than one of it, and each that is made later has a higher fence. mesh.1 What it is asked runs
at most once. As long as nothing fails nobody who asks sees an error, and what it knows goes along wherever it goes.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.agents import Mailbox
from cord_trio.errors import AgentError, CallError, HandoffRefused
from cord_trio.mesh.local import LocalBroker, open_broker
from cord_trio.mesh.presence import LEASE
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from properties.invariants import proves
from properties.mesh_fabrics import NODES, Fabrics

if TYPE_CHECKING:
    from typing import TypeAlias

    from cord_trio.agents import Context

    Step: TypeAlias = tuple[str, str, str, float]


OWNER_CUT_OFF: list[Step] = [
    step for n in NODES for step in (("cut", n, n, 40.0), ("ask", n, n, 0.5), ("mend", n, n, 0.0))
]
TAKER_CUT_OFF: list[Step] = [
    step
    for n in NODES
    for step in (("cut", n, n, 0.0), *[("move", m, n, 0.0) for m in NODES], ("wait", n, n, 40.0), ("mend", n, n, 40.0))
]


class World(Fabrics):
    """Three nodes that stand by for one clerk, and who asks it from them."""

    def __init__(
        self, broker: LocalBroker, seed: int, mailbox: Mailbox | None, *, faulty: bool, kept: bool = False
    ) -> None:
        restart = "elsewhere" if kept else "permanent"
        super().__init__(
            broker, seed,
            lambda fabric: fabric.singleton("clerk", partial(Clerk, self), mailbox=self.mailbox, restart=restart),
        )  # fmt: skip
        self.kept = kept
        self.mailbox = mailbox
        self.faulty = faulty
        self.alive: dict[Clerk, int] = {}
        self.fence = 0
        self.asked = 0
        self.begun: list[int] = []
        self.answers: list[tuple[int, list[int]]] = []
        self.wrong: list[str] = []

    async def ask(self, of: str) -> None:
        if of not in self.fabrics:
            return
        number, self.asked = self.asked, self.asked + 1
        try:
            with trio.fail_after(200):
                known = await self.fabrics[of].ask("clerk", number)
            assert isinstance(known, list)
            self.answers.append((number, known))
        except (CallError, AgentError, trio.TooSlowError) as exc:
            if not self.faulty or isinstance(exc, HandoffRefused):
                self.wrong.append(f"ask {number} failed: {exc!r}")
            if isinstance(exc, CallError) and exc.executed == "no" and number in self.begun:
                self.wrong.append(f"mesh.3: ask {number} ran: {exc!r}")

    async def move(self, of: str, to: str) -> None:
        if of in self.fabrics:
            try:
                await self.fabrics[of].move("clerk", to)
            except (CallError, AgentError) as exc:
                if not self.faulty and "on its way" not in str(exc) and "is being made" not in str(exc):
                    self.wrong.append(f"it did not move: {exc!r}")


class Clerk:
    """Knows the numbers that it was given."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.known: list[int] = []

    def state(self) -> object:
        return self.known

    def restore(self, state: list[int]) -> None:
        self.known = state

    async def __aenter__(self) -> Clerk:
        await trio.lowlevel.checkpoint()
        self.world.alive[self] = 0
        if len(self.world.alive) > 1:
            self.world.wrong.append(f"mesh.6: there are {len(self.world.alive)}")
        return self

    async def __aexit__(self, *_: object) -> None:
        del self.world.alive[self]

    async def __call__(self, ctx: Context, number: int) -> object:
        world = self.world
        if ctx.fence < world.fence:
            world.wrong.append(f"mesh.6: fence {ctx.fence} comes after {world.fence}")
        world.fence = ctx.fence
        world.begun.append(number)
        await trio.sleep(0.3)
        self.known.append(number)
        return [*self.known]


PAUSES = st.sampled_from([0.0, 0.01, 0.2, 0.5, 2.0, LEASE * 0.9, 40.0])
PLACES = st.sampled_from([*NODES, ""])  # where there is less to do
WELL = st.lists(st.tuples(st.sampled_from(["ask", "ask", "move"]), st.sampled_from(NODES), PLACES, PAUSES), max_size=12)
ILL = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "move", "cut", "mend", "reset", "crash", "leave"]),
        st.sampled_from(NODES), PLACES, PAUSES,
    ),
    max_size=12,
)  # fmt: skip


async def run(world: World, nursery: trio.Nursery, steps: list[Step]) -> None:
    for name in NODES:
        nursery.start_soon(world.live, name)
    await trio.sleep(10)
    async with trio.open_nursery() as asking:
        for what, name, other, pause in steps:
            match what:
                case "ask":
                    asking.start_soon(world.ask, name)
                case "move":
                    asking.start_soon(world.move, name, other)
                case "wait":
                    pass
                case "crash" | "leave":
                    if what == "crash":
                        world.ways[name].cut()
                    world.scopes[name].cancel("the test wants it")
                case _:
                    getattr(world.ways[name], what)()
            await trio.sleep(pause)
        for way in world.ways.values():
            way.mend()
    await trio.sleep(4 * LEASE)


async def check(world: World) -> None:
    assert world.wrong == []
    assert len(world.begun) == len(set(world.begun)), f"mesh.1: {world.begun} ran"
    assert len(world.alive) == 1, f"{len(world.alive)} are there in the end"
    assert world.fabrics.keys() == set(NODES)
    before = world.asked
    for name in NODES:
        await world.ask(name)
    assert world.asked == before + len(NODES)
    known = [numbers for number, numbers in world.answers if number >= before]
    assert len(known) == len(NODES), "it cannot be asked"
    if not world.faulty:
        assert sorted(known[-1]) == [*range(world.asked)], "something was forgotten"
    if world.kept:
        assert len(known[-1]) == len({*known[-1]}), "something is known twice"
        assert {number for number, _ in world.answers} <= {*known[-1]}, "mesh.10: what was answered was forgotten"
        assert {*known[-1]} <= {*world.begun}


def searched(rng: Random, steps: list[Step], seed: int, *, boxed: bool, faulty: bool, kept: bool = False) -> None:
    async def main() -> None:
        async with open_broker(Random(seed)) as broker, trio.open_nursery() as nursery:
            world = World(broker, seed, Mailbox() if boxed else None, faulty=faulty, kept=kept)
            await run(world, nursery, steps)
            await check(world)
            nursery.cancel_scope.cancel("enough was seen")

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))


@proves("mesh.1", "mesh.6")
@given(schedules(), WELL, st.integers(0, 3), st.booleans())
@settings(max_examples=max(4, settings().max_examples // 12))
@example(
    Random(1), [("ask", "a", "a", 0.0), ("ask", "b", "a", 0.2), ("move", "a", "b", 0.0), ("ask", "c", "a", 0.2),
                ("move", "c", "c", 0.5), ("ask", "a", "a", 0.5)], 0, True,
)  # fmt: skip
def test_an_agent_of_which_there_is_one_moves_with_all_that_it_knows(
    rng: Random, steps: list[Step], seed: int, boxed: bool
) -> None:
    searched(rng, steps, seed, boxed=boxed, faulty=False)


@proves("mesh.1", "mesh.3", "mesh.6")
@given(schedules(), ILL, st.integers(0, 3), st.booleans())
@settings(max_examples=max(4, settings().max_examples // 12))
@example(Random(1), OWNER_CUT_OFF, 0, False)
@example(Random(1), TAKER_CUT_OFF, 0, True)
def test_an_agent_of_which_there_is_one_is_one_whatever_fails(
    rng: Random, steps: list[Step], seed: int, boxed: bool
) -> None:
    searched(rng, steps, seed, boxed=boxed, faulty=True)


@proves("mesh.1", "mesh.3", "mesh.6", "mesh.10")
@given(schedules(), ILL, st.integers(0, 3), st.booleans())
@settings(max_examples=max(4, settings().max_examples // 12))
@example(Random(1), [("ask", "a", "a", 0.5), *OWNER_CUT_OFF, *OWNER_CUT_OFF], 0, False)
@example(Random(1), [("ask", "b", "a", 0.0), *TAKER_CUT_OFF, ("ask", "c", "a", 0.5)], 0, True)
@example(Random(1), [("ask", "a", "a", 0.5), *[("crash", n, n, 0.2) for n in NODES], ("ask", "b", "a", 40.0)], 1, False)
def test_what_it_answered_is_not_forgotten_whatever_fails_where_its_state_is_kept(
    rng: Random, steps: list[Step], seed: int, boxed: bool
) -> None:
    searched(rng, steps, seed, boxed=boxed, faulty=True, kept=True)
