"""Programs of agents that call tools, on a whole simulated fabric whose connections are faulty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from hypothesis import event, given
from hypothesis import strategies as st

from cord_trio.testing import ToolServer, simulate
from cord_trio.testing.programs import Played, Program, programs
from properties.invariants import proves

if TYPE_CHECKING:
    from cord_trio.fabric import Fabric

Json: TypeAlias = Any

TOOLS: list[tuple[str, dict[str, Json]]] = [
    ("new__sleep", {"seconds": 0}),
    ("new__sleep", {"seconds": 3}),
    ("old__echo", {"text": "x"}),
    ("old__sleep", {"seconds": 1}),
    ("new__crash", {"status": 1}),
    ("gone__echo", {"text": "x"}),
]
SOURCES = {"new": ToolServer(), "old": ToolServer(era="legacy"), "gone": ToolServer(exit_at_start=True)}
SLOTS = 2


@proves(1, 8, 9)
@given(programs(tools=TOOLS), st.integers(0, 2**32), st.sampled_from([0.0, 0.02, 0.2]))
def test_whatever_the_wire_does_every_ask_and_call_ends_once_and_nothing_is_left(
    program: Program, seed: int, chance: float
) -> None:
    fabrics: list[Fabric] = []

    async def main(fabric: Fabric) -> Played:
        fabrics.append(fabric)
        return await program.play(fabric)

    trace = simulate(
        main, seed=seed, sources=SOURCES, chance=chance, longest=5.0, common={"slots": SLOTS, "deadline": 30.0}
    )
    played = trace.unwrap()
    assert isinstance(played, Played)
    assert all(len(endings) == 1 for endings in [*played.asks, *played.calls])  # 1
    assert sum(played.started.values()) >= sum(endings == ["answered"] for endings in played.asks)
    assert all(most <= program.agents[name] for name, most in played.most.items())  # 9
    assert not played.running  # 8
    fabric = fabrics[0]
    assert fabric._running == 0
    assert len(fabric.timer) == 0
    assert not fabric.agents.roots
    assert not any(agent.turn.holders or agent.turn.waiting for agent in fabric.agents.values())
    for ended in {endings[0] for endings in played.calls}:
        event(ended)


@given(programs(tools=TOOLS), st.integers(0, 2**32))
def test_the_trace_of_a_program_is_its_seed_and_nothing_else(program: Program, seed: int) -> None:
    first, again = (
        simulate(program.play, seed=seed, sources=SOURCES, chance=0.1, longest=5.0, common={"deadline": 30.0})
        for _ in range(2)
    )
    assert first.encode() == again.encode()
