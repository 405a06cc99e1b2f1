from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cord_trio.cli import main
from tests.cli.helpers import configure, script, server

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

DEAD = script("raise SystemExit(7)")


def test_each_tool_is_a_line_with_the_start_of_its_description(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(folder, it={**server(), "tools": ["echo", "add"]})
    assert main(["tools"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["it__echo  Gives its text back", "it__add   The sum of two numbers"]
    assert err == ""


def test_json_has_name_source_description_and_schema(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, it={**server(), "tools": ["echo"]}, dead=DEAD)
    assert main(["tools", "--json"]) == 1
    out, err = capsys.readouterr()
    (tool,) = json.loads(out)
    assert tool["inputSchema"]["properties"] == {"text": {"type": "string"}}
    assert [tool[key] for key in ("name", "source", "description")] == ["it__echo", "it", "Gives its text back"]
    line, why = err.splitlines()
    assert line.startswith("error: source dead: ")
    assert "status 7" in line
    assert why == "1 source could not be listed, so this failed; --source NAME lists one alone"


def test_one_source_is_asked_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unset = {"command": "${NEVER_SET_AT_ALL}"}
    configure(folder, it={**server(), "tools": ["echo"]}, dead=DEAD, unset=unset)
    assert main(["tools", "--source", "it"]) == 0
    assert capsys.readouterr().out == "it__echo  Gives its text back\n"
    assert main(["tools", "--source", "unset"]) == 1


def test_a_source_that_is_not_there_is_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, it=server(), off={**server(), "disabled": True})
    assert main(["tools", "--source", "nope"]) == 2
    assert capsys.readouterr().err == "error: --source: no source named 'nope'; there are: it, off\n"
    assert main(["tools", "--source", "off"]) == 2
    assert capsys.readouterr().err == "error: --source: off is disabled in the configuration\n"


def test_two_tools_of_one_exported_name_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(folder, a={**server(), "prefix": "", "tools": ["echo"]}, b={**server(), "prefix": "", "tools": ["echo"]})
    assert main(["tools"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert err.startswith("warning: ")
