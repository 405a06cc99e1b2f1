"""The example of docs/testing.md finds its race, and the page shows the example as it is."""

from __future__ import annotations

import importlib.util
import re
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import find, settings

from cord_trio.testing import Trace, find_failure, simulate

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "race.py"


@pytest.fixture(scope="module")
def race() -> ModuleType:
    spec = importlib.util.spec_from_file_location("race", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_property_of_the_example_finds_the_race(race: ModuleType) -> None:
    with pytest.raises(AssertionError, match="in stock after"):
        race.test_what_is_sold_is_gone()


def test_the_counterexample_shrinks_to_what_the_page_says_and_its_seed_repeats_it(race: ModuleType) -> None:
    def failed(sales: list[float]) -> Trace | None:
        return find_failure(partial(race.day, sales=sales), seeds=range(20), sources=race.SOURCES)

    smallest = find(
        race.SALES, lambda sales: failed(sales) is not None, settings=settings(database=None, derandomize=True)
    )
    assert smallest == [1.0]
    found = failed(smallest)
    assert found is not None
    assert str(found.error).splitlines()[0] == "8 in stock after 1 sales"
    again = simulate(partial(race.day, sales=smallest), seed=found.seed, sources=race.SOURCES)
    assert again.encode() == found.encode()


def test_not_every_order_meets_it(race: ModuleType) -> None:
    traces = [simulate(partial(race.day, sales=[1.0]), seed=seed, sources=race.SOURCES) for seed in range(20)]
    assert 0 < sum(trace.error is None for trace in traces) < 20


def test_the_mended_store_has_no_race(race: ModuleType) -> None:
    mended = partial(race.day, sales=[1.0, 1.0], store_class=race.MendedStore)
    assert find_failure(mended, seeds=range(50), sources=race.SOURCES) is None


def test_the_page_shows_the_example() -> None:
    def plain(code: str) -> str:
        """Without docstrings, which the page tells in its own words."""
        return re.sub(r'\n *"""[^\n]*"""', "", code)

    page = (ROOT / "docs" / "testing.md").read_text("utf-8")
    shown = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def " in block]
    example = plain(EXAMPLE.read_text("utf-8"))
    assert len(shown) == 3
    for block in shown:
        assert block in example or textwrap.indent(block, "    ") in example
