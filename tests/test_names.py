from __future__ import annotations

import pytest

from cord_trio.names import ELDERS, Names


def test_a_name_in_two_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="a name is in two parts"):
        Names({"x": {"a": 1}, "y": {"a": 2}})


def test_a_name_of_another_part_is_refused_and_nothing_changes() -> None:
    names = Names({"x": {"a": 1}, "y": {"b": 2}})
    with pytest.raises(ValueError, match="'a' is in two parts"):
        names.changed("y", {"a": 3})
    assert dict(names) == {"a": 1, "b": 2}


def test_a_change_copies_no_other_names() -> None:
    names = Names({"x": {f"a{number}": number for number in range(10_000)}, "y": {}})
    changed = names.changed("y", {"b": 1})
    assert changed._names is names._names
    assert names._held.keys() == {"b"}
    assert "b" not in names
    assert changed["b"] == 1


def test_what_is_made_from_an_older_one_leaves_the_newest_alone() -> None:
    names = Names({"x": {"a": 1}, "y": {"b": 2}})
    newest = names.changed("x", {"a": 3, "c": 4})
    other = names.changed("y", {"d": 5})
    assert dict(names.items()) == {"a": 1, "b": 2}
    assert {name: newest[name] for name in newest} == {"a": 3, "c": 4, "b": 2}
    assert {name: other[name] for name in other} == {"a": 1, "d": 5}
    with pytest.raises(KeyError):
        names["c"]


def test_few_old_ones_share_and_none_that_differs_much() -> None:
    names = Names({"x": {f"a{number}": 0 for number in range(1_000)}})
    kept = [names]
    for number in range(2 * ELDERS):
        kept.append(kept[-1].changed("y", {f"b{number}": number}))
    shared = [each for each in kept if each._names is kept[-1]._names]
    assert len(shared) == ELDERS + 1
    part = {f"a{number}": number for number in range(1_000)}
    newest = kept[-1].changed("x", part).changed("z", {})
    assert not [each for each in kept if each._names is newest._names]
    assert all(each["a7"] == 0 for each in kept)
    assert all(each.get(f"b{number}") == number for number, each in enumerate(kept[1:]))
    assert newest["a7"] == 7


def test_old_ones_that_nobody_has_cost_nothing() -> None:
    names = Names({"x": {"a": 1}})
    for number in range(100):
        names = names.changed("x", {"a": number})
    assert names._elders is not None
    assert sum(each() is not None for each in names._elders) == 0


def test_a_name_that_is_not_there_is_told() -> None:
    with pytest.raises(KeyError, match="b"):
        Names({"x": {"a": 1}})["b"]
    assert repr(Names({"x": {"a": 1}})) == "Names({'a': 1})"
