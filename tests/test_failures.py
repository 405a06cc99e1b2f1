"""Every failure that users reported of software like ours is tested, or it is written down why not yet.

`python -m tests.test_failures` writes docs/failures.md anew.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from functools import cache
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "cases.toml"
PAGE = ROOT / "docs" / "failures.md"
FOLDERS = ("tests", "properties")

FIRST_KINDS = frozenset({"stdio-framing", "process", "ids", "lifecycle", "cli-config", "shutdown", "runtime"})
"""Kinds that the rooms of today are wholly responsible for."""

NAMED = re.compile(r"test_((?:[a-z]\d\d_)+)")

STRANGERS = frozenset(
    {"test_h11_finds_nothing_wrong_with_an_answer", "test_h11_understands_requests_and_is_understood"}
)
"""Tests named after the h11 library."""

PREFACE = """\
# Reported failures

What users reported of MCP clients, gateways and runtimes, and where each is tested here. Made from `tests/cases.toml`
by `python -m tests.test_failures`; the numbers lead to the reports.
"""


@attrs.frozen
class Case:
    id: str
    kind: str
    symptom: str
    right: str
    links: list[str]
    where: str = ""
    also: list[str] = attrs.field(factory=list)


def load() -> list[Case]:
    return [Case(**case) for case in tomllib.loads(DATA.read_text())["case"]]


@cache
def defined() -> dict[str, str]:
    """By `file::name`, what is to be said of each test: that it is expected to fail as yet, or nothing."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("test_*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                    marks = [ast.unparse(mark) for mark in node.decorator_list]
                    failing = [mark.startswith("pytest.mark.xfail") for mark in marks if "xfail" in mark]
                    remark = "" if not failing else " (fails as yet)" if any(failing) else " (fails in part as yet)"
                    found[f"{path.relative_to(ROOT).as_posix()}::{node.name}"] = remark
    return found


def carriers() -> dict[str, list[str]]:
    """The tests that carry each id in their names."""
    by_case = defaultdict(list)
    for test in defined():
        name = test.partition("::")[2]
        named = NAMED.match(name)
        if named and name not in STRANGERS:
            for id in named[1].upper().rstrip("_").split("_"):
                by_case[id].append(test)
    return by_case


def page() -> str:
    """docs/failures.md as it should be."""
    by_case, remarks = carriers(), defined()
    lines, kind = [PREFACE], ""
    for case in load():
        if case.kind != kind:
            kind = case.kind
            lines.append(f"\n## {kind}\n\n| id | what went wrong | where it is tested |\n|---|---|---|\n")
        links = " ".join(f"[{number}]({link})" for number, link in enumerate(case.links, 1))
        covered = [case.where] if case.where else []
        covered += [f"`{test}`{remarks.get(test, '')}" for test in [*by_case[case.id], *case.also]]
        row = [case.id, f"{case.symptom} {links}", "<br>".join(covered)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n")
    return "".join(lines)


def test_every_case_has_a_test_or_a_line() -> None:
    by_case = carriers()
    bare = [case.id for case in load() if not (by_case[case.id] or case.where or case.also)]
    assert bare == []


def test_cases_of_the_first_kinds_are_tested_by_name_or_explained() -> None:
    by_case = carriers()
    first = [case for case in load() if case.kind in FIRST_KINDS]
    assert {case.kind for case in first} == FIRST_KINDS
    assert [case.id for case in first if not (by_case[case.id] or case.where)] == []


def test_ids_are_unique_and_every_id_in_a_name_is_a_case() -> None:
    ids = [case.id for case in load()]
    assert len(ids) == len(set(ids))
    assert set(carriers()) <= set(ids)


def test_tests_that_are_named_exist() -> None:
    known = defined()
    for case in load():
        named = [*case.also, *re.findall(r"[\w/]+\.py::\w+", case.where)]
        assert [test for test in named if test not in known] == [], case.id


def test_every_case_is_reported_somewhere() -> None:
    for case in load():
        assert case.links, case.id
        assert all(link.startswith("https://") for link in case.links), case.id


def test_the_page_is_as_the_cases_and_tests_say() -> None:
    if PAGE.read_text() != page():
        pytest.fail("docs/failures.md is old; run `python -m tests.test_failures`")


if __name__ == "__main__":
    PAGE.write_text(page())
