"""Agents that ask each other and hand on over nodes, whatever happens to ways and nodes: their laws, by numbers.

3 A handler starts at most once for each leg of a conversation. 13 At most one of those who handed on to each other is
active. 7 Whoever is cancelled and returns leaves nothing running, as long as nothing fails. mesh.3 What is said of
whether it ran is true. 8 In the end nothing is left over.
"""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING

import attrs
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

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

    Leg: TypeAlias = tuple[str, str]
    Step: TypeAlias = tuple[str, str, tuple[Leg, ...], float, float]

SETTLING = 6 * LEASE
"""Seconds after which nothing of what was asked before may still run."""


@attrs.define
class Talk:
    """One conversation, as its asker knows it.

    Attributes:
        legs: the agents that it goes through: how each is reached, and on which node it is.
        begun: how often each of them started.
        active: those that have begun and not ended.
        end: result, cancelled, or the error.

    """

    legs: tuple[Leg, ...]
    begun: list[int]
    active: set[int] = attrs.Factory(set)
    end: object = "cancelled"
    returned: float = math.inf
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)


class World(Fabrics):
    """Three fabrics of one mesh, that die and come back, each with an agent `w` that goes on as it is told."""

    def __init__(self, broker: LocalBroker, seed: int) -> None:
        super().__init__(broker, seed, lambda fabric: fabric.agent("w", self.work, turn=64, reentrant=True))
        self.talks: list[Talk] = []
        self.wrong: list[str] = []
        self.faulty = False

    async def work(self, ctx: Context, payload: dict[str, float]) -> object:
        """The agent."""
        number, leg, seconds = int(payload["talk"]), int(payload["leg"]), payload["seconds"]
        talk = self.talks[number]
        talk.begun[leg] += 1
        before = leg - 1
        while talk.legs[before + 1][0] == "hand" and before >= 0:  # all who handed on to this one have finished
            if before in talk.active:
                self.wrong.append(f"13: leg {before} of talk {number} is active beside leg {leg}")
            before -= 1
        talk.active.add(leg)
        try:
            await trio.sleep(seconds)
            if leg + 1 == len(talk.legs):
                return leg
            how, node = talk.legs[leg + 1]
            onward = payload | {"leg": leg + 1}
            if how == "hand":
                return ctx.handoff(f"w@{node}", onward)
            try:
                return await ctx.ask(f"w@{node}", onward)
            except CallError as exc:
                self.check_no(talk, leg + 1, exc)
                raise RuntimeError(f"{exc!r}") from exc
        finally:
            talk.active.discard(leg)

    def check_no(self, talk: Talk, leg: int, exc: CallError) -> None:
        """What did not run has not begun; it might still, if it is under way."""
        if exc.executed == "no" and talk.begun[leg]:
            self.wrong.append(f"mesh.3: leg {leg} ran: {exc!r}")

    async def talk(self, of: str, legs: tuple[Leg, ...], seconds: float, within: float) -> None:
        if of not in self.fabrics:
            return
        talk = Talk(legs, [0] * len(legs))
        self.talks.append(talk)
        payload = {"talk": len(self.talks) - 1, "leg": 0, "seconds": seconds}
        fabric = self.fabrics[of]
        with talk.scope, trio.move_on_after(within):
            try:
                talk.end = await fabric.ask(f"w@{legs[0][1]}", payload)
            except (CallError, AgentError, RuntimeError) as exc:
                talk.end = exc
                if isinstance(exc, CallError):
                    self.check_no(talk, 0, exc)
        talk.returned = trio.current_time()
        if not self.faulty and talk.active:
            self.wrong.append(f"7: legs {talk.active} of {talk.legs} run on, though whoever asked has returned")


LEGS = st.lists(st.tuples(st.sampled_from(["ask", "hand"]), st.sampled_from(NODES)), min_size=1, max_size=4).map(tuple)
TALKS = st.tuples(
    st.just("talk"), st.sampled_from(NODES), LEGS, st.sampled_from([0.0, 0.01, 2.0, 9.0]),
    st.sampled_from([0.0, 0.01, 3.0, 60.0]),
)  # fmt: skip
PAUSES = st.sampled_from([0.0, 0.01, 0.5, 2.0, 4.0, LEASE * 0.9])


def others(*what: str) -> st.SearchStrategy[Step]:
    return st.tuples(
        st.sampled_from(what), st.sampled_from(NODES), st.just(()), st.just(0.0), PAUSES
    )  # fmt: skip


WELL = st.lists(TALKS | others("cancel", "wait"), max_size=8)
ILL = st.lists(TALKS | others("cancel", "wait", "cut", "mend", "reset", "crash", "leave"), max_size=12)


async def run(world: World, nursery: trio.Nursery, steps: list[Step]) -> None:
    for name in NODES:
        nursery.start_soon(world.live, name)
    await trio.sleep(5)
    world.faulty = any(what not in ("talk", "cancel", "wait") for what, *_ in steps)
    async with trio.open_nursery() as asking:
        for what, name, legs, seconds, pause in steps:
            match what:
                case "talk":
                    asking.start_soon(world.talk, name, legs, seconds, 60.0 if pause == 0.0 else pause)
                    await trio.sleep(pause / 2)
                case "cancel":
                    for talk in world.talks:
                        talk.scope.cancel("the test wants it")
                    await trio.sleep(pause)
                case "wait":
                    await trio.sleep(pause)
                case "crash" | "leave":
                    if what == "crash":
                        world.ways[name].cut()
                    world.scopes[name].cancel("the test wants it")
                    await trio.sleep(pause)
                case _:
                    getattr(world.ways[name], what)()
                    await trio.sleep(pause)
        for way in world.ways.values():
            way.mend()
    await trio.sleep(SETTLING)


def check(world: World) -> None:
    assert world.wrong == []
    for number, talk in enumerate(world.talks):
        assert max(talk.begun) <= 1, f"3: of talk {number} ran {talk.begun}"
        assert not talk.active, f"8: of talk {number} still run {talk.active}"
        if not isinstance(talk.end, Exception) and talk.end != "cancelled":
            assert talk.begun == [1] * len(talk.legs), f"mesh.3: talk {number} succeeded with {talk.begun}"
        if isinstance(talk.end, HandoffRefused):
            assert 0 in talk.begun, f"mesh.3: talk {number} was refused, and ran through"
        if not world.faulty:
            assert not isinstance(talk.end, Exception), f"talk {number} failed: {talk.end!r}"
    assert world.fabrics.keys() == set(NODES)
    for name, fabric in world.fabrics.items():
        elsewhere = fabric.agents.elsewhere
        assert not fabric.agents.roots, f"8: asks are left at {name}"
        assert not fabric.agents["w"].turn.holders, f"8: turns are left at {name}"
        assert elsewhere is not None
        assert elsewhere._asked_now == {}, f"8: asks of others are left at {name}"  # type: ignore[attr-defined]  # it is an `Asking`


def searched(rng: Random, steps: list[Step], seed: int) -> None:
    async def main() -> None:
        async with open_broker(Random(seed)) as broker, trio.open_nursery() as nursery:
            world = World(broker, seed)
            await run(world, nursery, steps)
            check(world)
            nursery.cancel_scope.cancel("enough was seen")

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))


@proves(3, 7, 13, "mesh.3")
@given(schedules(), WELL, st.integers(0, 3))
@settings(max_examples=max(4, settings().max_examples // 12))
@example(Random(1), [("talk", "a", (("ask", "b"), ("hand", "c"), ("hand", "a"), ("hand", "b")), 2.0, 0.0)], 0)
@example(Random(1), [("talk", "a", (("ask", "b"), ("hand", "c")), 2.0, 3.0)], 0)
@example(
    Random(1), [("talk", "a", (("ask", "b"), ("hand", "c")), 2.0, 0.0), ("wait", "a", (), 0.0, 2.0),
                ("wait", "a", (), 0.0, 0.5), ("cancel", "a", (), 0.0, 0.0)], 0,
)  # fmt: skip
def test_conversations_over_nodes_keep_their_laws(rng: Random, steps: list[Step], seed: int) -> None:
    searched(rng, steps, seed)


@proves(3, 13, "mesh.1", "mesh.3", "mesh.8")
@given(schedules(), ILL, st.integers(0, 3))
@settings(max_examples=max(4, settings().max_examples // 12))
@example(
    Random(1), [("talk", "a", (("ask", "b"), ("hand", "c")), 2.0, 0.0), ("wait", "a", (), 0.0, 2.0),
                ("reset", "a", (), 0.0, 0.5), ("crash", "b", (), 0.0, 0.5)], 0,
)  # fmt: skip
def test_conversations_over_nodes_that_fail_keep_their_laws(rng: Random, steps: list[Step], seed: int) -> None:
    searched(rng, steps, seed)
