from __future__ import annotations

from random import Random

from cord_trio.mesh.frames import MAX_SETTLED
from cord_trio.mesh.peers import AVOIDED, DOUBTS, Budget, Peers


def test_of_two_the_one_with_less_to_do_is_chosen() -> None:
    peers = Peers(Random(1))
    there = [("a", "1"), ("b", "1")]
    peers.get("a", "1").told(8, 4)
    peers.get("b", "1").told(4, 4)
    peers.get("b", "1").in_flight = 2
    assert {peers.choose(there, 0.0) for _ in range(9)} == {("b", "1")}
    peers.get("b", "1").in_flight = 9
    assert {peers.choose(there, 0.0) for _ in range(9)} == {("a", "1")}
    assert {peers.choose([*there, ("c", "1")], 0.0) for _ in range(30)} == {("a", "1"), ("c", "1")}


def test_one_whose_calls_end_in_doubt_is_avoided_for_a_while() -> None:
    peers = Peers(Random(1))
    there = [("a", "1"), ("b", "1")]
    for _ in range(DOUBTS):
        peers.get("a", "1").doubted(10.0)
    assert {peers.choose(there, 10.0) for _ in range(9)} == {("b", "1")}
    assert peers.choose(there[:1], 10.0) == ("a", "1")
    assert ("a", "1") in {peers.choose(there, 10.0 + AVOIDED) for _ in range(9)}
    peers.get("a", "1").answered("")
    peers.get("a", "1").doubted(50.0)
    assert ("a", "1") in {peers.choose(there, 50.0) for _ in range(9)}


def test_those_that_are_near_are_chosen_first_until_they_have_too_much_to_do() -> None:
    peers = Peers(Random(1))
    there = [(node, "1") for node in ("far1", "near1", "far2", "near2")]
    peers.near = lambda node: node.startswith("near")
    near, far = {("near1", "1"), ("near2", "1")}, {("far1", "1"), ("far2", "1")}
    for _, each in enumerate(there):
        peers.get(*each).told(4, 4)
    assert {peers.choose(there, 0.0) for _ in range(30)} == near
    for each in near:
        peers.get(*each).in_flight = 1
    assert far <= {peers.choose(there, 0.0) for _ in range(30)}
    peers.get("near1", "1").in_flight = 0
    for _ in range(DOUBTS):
        peers.get("near1", "1").doubted(1.0)
    assert {peers.choose(there, 1.0) for _ in range(30)} == far  # it is near, but not well
    peers.get("near1", "1").answered("")
    assert ("near1", "1") in {peers.choose(there, 1.0 + AVOIDED) for _ in range(30)}
    peers.near = lambda _: False
    assert {peers.choose(there, 99.0) for _ in range(99)} == {("near1", "1"), *far}


def test_a_later_incarnation_is_another() -> None:
    peers = Peers(Random(1))
    peers.get("a", "1").told(8, 4)
    peers.forget("a", "2")
    assert peers.get("a", "1").busy == 8
    assert peers.get("a", "2").busy == 0
    peers.forget("a", "2")
    peers.forget("a", "2")


def test_what_is_over_is_told_once_and_not_without_end() -> None:
    peer = Peers(Random(1)).get("a", "1")
    assert peer.take_settled() == ()
    for number in range(MAX_SETTLED + 5):
        peer.answered(f"{number}")
    assert peer.take_settled() == tuple(f"{number}" for number in range(MAX_SETTLED))
    assert peer.take_settled() == ()


def test_a_tenth_of_the_calls_may_be_made_elsewhere() -> None:
    budget = Budget()
    assert [budget.spend() for _ in range(11)] == [True] * 10 + [False]
    for _ in range(11):
        budget.earn()
    assert [budget.spend(), budget.spend()] == [True, False]
