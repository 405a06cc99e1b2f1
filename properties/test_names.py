"""Names that are changed in part are what they would be if they were made anew, and the old ones stay as they were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cord_trio.names import Names

WORDS = st.text("abc", min_size=1, max_size=6)
CHANGES = st.lists(
    st.tuples(st.sampled_from("xyz"), st.dictionaries(WORDS, st.integers(), max_size=200)), min_size=1, max_size=8
)


@given(changes=CHANGES)
def test_changed_names_are_those_made_anew_and_the_old_ones_stay(changes: list[tuple[str, dict[str, int]]]) -> None:
    parts: dict[str, dict[str, int]] = {}
    names = Names[int]()
    past: list[tuple[Names[int], dict[str, int]]] = []
    for whose, words in changes:
        part = {f"{whose}{word}": number for word, number in words.items()}
        parts = {**parts, whose: part}
        names = names.changed(whose, part)
        model = {name: number for each in parts.values() for name, number in each.items()}
        past.append((names, model))
        for then, expected in past:
            assert list(then.items()) == list(expected.items())
            assert {name: then.get(name) for name in then} == expected
            assert all(then.get(name) is None for name in model.keys() - expected.keys())
            assert len(then) == len(expected)
        assert names == Names(parts) == model
        assert all(name in names and names.get(name) == number for name, number in model.items())
        assert names.get("?") is None
        assert "?" not in names
