"""What a program of agents does when it is played."""

from __future__ import annotations

from hypothesis import given, settings

from cord_trio.testing import ToolServer, simulate
from cord_trio.testing.programs import (
    Ask,
    CallTool,
    Fail,
    Hand,
    Limit,
    Played,
    Program,
    Root,
    Sleep,
    programs,
)


def played(*roots: Root, turn: int = 1) -> Played:
    program = Program({"a": turn, "b": turn}, roots)
    result = simulate(program.play, seed=1, sources={"s": ToolServer()}).unwrap()
    assert isinstance(result, Played)
    return result


def test_each_ask_and_call_is_written_down_with_its_ending() -> None:
    script = (
        CallTool("s__echo", {"text": "x"}),
        CallTool("s__nothing"),
        CallTool("s__sleep", {"seconds": 9}, Limit(1.0)),
        Ask((("b", (Sleep(1.0),)), ("b", (Fail(),)))),
        Ask((("b", (Sleep(5.0),)),), limit=Limit(2.0)),
        Hand("b", ()),
    )
    got = played(Root("a", script))
    assert got.asks == [["answered"], ["answered"], ["Broken"], ["cancelled"]]
    assert got.calls == [["answered"], ["ToolNotFound"], ["cancelled"]]
    assert got.started == {"a": 1, "b": 4}
    assert got.most == {"a": 1, "b": 1}
    assert not got.running


def test_an_ask_is_given_up_after_so_many_checkpoints() -> None:
    assert played(Root("a", (Sleep(5.0),), limit=Limit(ticks=3))).asks == [["cancelled"]]


def test_asks_together_run_at_once() -> None:
    both = (("b", (Sleep(1.0),)), ("b", (Sleep(1.0),)))
    assert played(Root("a", (Ask(both, together=True),)), turn=2).most["b"] == 2
    assert played(Root("a", (Ask(both),)), turn=2).most["b"] == 1


def test_what_waits_for_itself_is_refused() -> None:
    assert played(Root("a", (Ask((("a", ()),)),), at=1.0)).asks == [["answered"], ["CallCycle"]]


def test_programs_of_every_kind_are_drawn() -> None:
    seen: set[type] = set()

    @settings(max_examples=100, database=None, derandomize=True)
    @given(programs(tools=[("s__echo", {"text": "x"})]))
    def draw(program: Program) -> None:
        seen.update(type(step) for root in program.roots for step in root.script)

    draw()
    assert seen == {Sleep, CallTool, Ask, Hand, Fail}
