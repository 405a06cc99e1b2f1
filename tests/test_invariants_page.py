"""Every invariant has a property that proves it, and the page says which."""

from __future__ import annotations

import pytest

from properties.invariants import INVARIANTS, PAGE, page, proofs


@pytest.mark.parametrize("number", INVARIANTS)
def test_each_is_proved(number: int | str) -> None:
    assert proofs()[number]


def test_they_are_all_of_them() -> None:
    assert [number for number in INVARIANTS if isinstance(number, int)] == list(range(1, 48))


def test_the_page_is_made_of_them() -> None:
    assert PAGE.read_text("utf-8") == page(), "run `python -m properties.invariants`"
