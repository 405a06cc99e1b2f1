from __future__ import annotations

import math

from cord_trio.mesh.admission import Admission


def test_so_many_run_and_so_many_wait_and_the_rest_is_turned_away() -> None:
    admission: Admission[int] = Admission(2, 2)
    assert [admission.ask("a", number, math.inf)[0] for number in range(5)] == ["run", "run", "wait", "wait", "busy"]
    assert (admission.running, admission.waiting, admission.busy) == (2, 2, 4)
    assert [admission.leave(1.0) for _ in range(4)] == [2, 3, None, None]
    assert (admission.running, admission.waiting) == (0, 0)


def test_callers_take_turns() -> None:
    admission: Admission[str] = Admission(1, 9)
    for item in ("a0", "a1", "a2", "a3", "b1", "b2", "c1"):
        admission.ask(item[0], item, math.inf)
    assert [admission.leave(1.0) for _ in range(7)] == ["a1", "b1", "c1", "a2", "b2", "a3", None]


def test_a_full_line_makes_room_by_turning_the_latest_of_the_longest_away() -> None:
    admission: Admission[str] = Admission(1, 3)
    for item in ("a0", "a1", "a2", "a3"):
        admission.ask("a", item, math.inf)
    assert admission.ask("b", "b1", math.inf) == ("wait", "a3")
    assert admission.ask("b", "b2", math.inf) == ("busy", None)
    assert admission.ask("a", "a4", math.inf) == ("busy", None)
    assert admission.waiting == 3


def test_who_will_not_have_its_turn_in_time_is_turned_away_at_once() -> None:
    admission: Admission[int] = Admission(1, 9)
    admission.ask("a", 0, math.inf)
    for _ in range(50):
        admission.ask("a", 1, math.inf)
        admission.leave(10.0)
    admission.ask("a", 2, math.inf)
    assert admission.ask("a", 3, 5.0) == ("busy", None)
    assert admission.ask("a", 3, 15.0) == ("wait", None)


def test_who_withdraws_waits_no_more() -> None:
    admission: Admission[int] = Admission(1, 9)
    for number in range(3):
        admission.ask("a", number, math.inf)
    assert admission.withdraw("a", 1)
    assert not admission.withdraw("a", 1)
    assert admission.withdraw("a", 2)
    assert not admission.withdraw("b", 2)
    assert admission.leave(1.0) is None
    assert admission.busy == 0
