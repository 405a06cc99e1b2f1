"""docs/bounds.md says of every bound what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from cord_trio.config import Bounds
from tests.test_failures import defined

ROOT = Path(__file__).parents[1]
COLUMNS = ["what", "key", "default", "at the bound", "counter", "tested in"]


@attrs.frozen
class Row:
    what: str
    keys: list[str]
    default: str
    error: str
    counters: list[str]
    tests: list[str]


def rows() -> list[Row]:
    found = []
    for line in (ROOT / "docs" / "bounds.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" |")]
        if len(cells) == len(COLUMNS) and cells != COLUMNS and not line.startswith("|---"):
            keys, counters, tests = (re.findall(r"`([^`]+)`", cells[at]) for at in (1, 4, 5))
            found.append(Row(cells[0], keys, cells[2], cells[3], counters, tests))
    return found


SOURCE = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))


def test_every_bound_of_the_configuration_has_a_row_with_its_default() -> None:
    told: dict[str, set[str]] = {}
    for row in rows():
        for key in row.keys[:1]:
            told.setdefault(key, set()).add(row.default)
    for field in attrs.fields(Bounds):
        default = "2 × processors" if field.default is None else str(field.default)  # noqa: RUF001  # as the page has it
        assert told.get(field.name) == {default}, field.name


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.what)
def test_each_row_names_what_exists(row: Row) -> None:
    known = defined()
    assert row.tests
    assert [test for test in row.tests if test not in known] == []
    for counter in row.counters:
        room, _, status = counter.partition(".refused_4")
        assert f'"{counter}"' in SOURCE or (status and f'"{room}.refused_{{' in SOURCE), counter
    for bound in re.findall(r"`Overloaded`: `([\w.]+)`", row.error):
        fixed = re.escape(bound).replace("SOURCE", r"\{self\._name\}").replace("NAME", r"\{self\.[\w.]+\}")
        assert re.search(rf'"{fixed}"', SOURCE), bound
