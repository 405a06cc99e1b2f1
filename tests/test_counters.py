from __future__ import annotations

from cord_trio.counters import Counters


def test_counts_grow_from_zero() -> None:
    counters = Counters()
    counters.add("b.x")
    counters.add("a.y", 3)
    counters.add("b.x")
    assert (counters["b.x"], counters["a.y"], counters["c.z"]) == (2, 3, 0)


def test_a_snapshot_is_sorted_and_stays_as_it_was() -> None:
    counters = Counters()
    counters.add("b.x")
    counters.add("a.y")
    snapshot = counters.snapshot()
    counters.add("b.x")
    assert list(snapshot.items()) == [("a.y", 1), ("b.x", 1)]
