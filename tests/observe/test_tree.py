from __future__ import annotations

from cord_trio.observe import Node

TREE = Node("fabric", "it", "running", {"tools": 2}, (Node("ask", "a > b", "", {"hops": None, "left": 0}),))


def test_a_node_comes_back_from_its_data() -> None:
    assert Node.of(TREE.data()) == TREE


def test_data_that_is_no_node_makes_one_nevertheless() -> None:
    assert Node.of({"children": [3, {"kind": "x"}]}) == Node("None", "None", children=(Node("x", "None"),))


def test_a_line_says_what_is_known() -> None:
    assert list(TREE.lines()) == ["fabric it running tools=2", "  ask a > b  left=0"]


def test_a_fact_of_several_lines_stands_in_one() -> None:
    node = Node("source", "a", "down", {"reason": "exited; stderr: no licence\n  giving up", "next": 1.5})
    assert list(node.lines()) == ["source a down reason=exited; stderr: no licence giving up next=1.5"]
