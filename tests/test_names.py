from __future__ import annotations

import pytest

from cord_trio.names import Names


def test_a_name_in_two_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="a name is in two parts"):
        Names({"x": {"a": 1}, "y": {"a": 2}})


def test_a_name_of_another_part_is_refused_and_nothing_changes() -> None:
    names = Names({"x": {"a": 1}, "y": {"b": 2}})
    with pytest.raises(ValueError, match="'a' is in two parts"):
        names.changed("y", {"a": 3})
    assert dict(names) == {"a": 1, "b": 2}


def test_a_change_copies_only_what_it_touches() -> None:
    names = Names({"x": {f"a{number}": number for number in range(10_000)}, "y": {}})
    changed = names.changed("y", {"b": 1})
    shared = sum(was is now for was, now in zip(names._dicts, changed._dicts, strict=True))
    assert shared == len(names._dicts) - 1


def test_a_name_that_is_not_there_is_told() -> None:
    with pytest.raises(KeyError, match="b"):
        Names({"x": {"a": 1}})["b"]
    assert repr(Names({"x": {"a": 1}})) == "Names({'a': 1})"
