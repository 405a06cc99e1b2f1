"""The verb `simulate`: seeds until one fails, and how to replay it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cord_trio import cli
from cord_trio.cli import simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
PROGRAM = """
import trio
from cord_trio.testing import ToolServer

SOURCES = {"s": ToolServer()}

async def fine(fabric):
    return (await fabric.call("s__echo", {"text": "hello"})).text

async def racy(fabric):
    order = []
    async def note(number):
        order.append(number)
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(note, number)
    assert order != [2, 1, 0], "in\\nreverse"

number = 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "simulated_program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    return "simulated_program"


def said(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> tuple[int, str, str]:
    code = simulate.search(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_runs_that_are_fine_are_counted(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, [f"{module}:fine", "--runs", "5", "--seed", "3"]) == (
        0,
        "5 runs, seeds 3 to 7: none failed\n",
        "",
    )


def test_the_seed_that_fails_is_named_and_can_be_replayed(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, [f"{module}:racy", "--chance", "0.1"])
    first, replay = out.splitlines()
    seed = int(first.split()[1])
    assert (code, first) == (1, f"seed {seed} fails: AssertionError: in reverse")
    arguments = ["--seed", str(seed), "--runs", "1", "--trace", "--chance", "0.1"]
    assert replay == f"replay: python -m cord_trio simulate {module}:racy {' '.join(arguments)}"
    code, out, _ = said(capsys, [f"{module}:racy", *arguments])
    assert code == 1
    assert out.endswith(f"0.000000 raised AssertionError: in\\nreverse\n{first}\n{replay}\n")


def test_the_last_run_is_shown_if_none_fails(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, [f"{module}:fine", "--runs", "1", "--trace"])
    assert code == 0
    assert "0.000000 returned 'hello'\n1 run, seeds 0 to 0: none failed\n" in out


@pytest.mark.parametrize("wrong", ["no_such_module:x", "simulated_program:nothing", "simulated_program:number"])
def test_what_is_no_program_is_wrong_usage(wrong: str, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, [wrong])
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {wrong.split(':')[0]}")


@pytest.mark.parametrize("wrong", [["--runs", "0"], ["--chance", "2"]])
def test_wrong_numbers_are_wrong_usage(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "x:y", *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err


def numberless(text: str) -> str:
    """Without the numbers of seeds, which change with the code."""
    return re.sub(r"seed \d+", "seed", text)


def test_the_example_of_the_page_is_found_as_it_says() -> None:
    command = [sys.executable, "-m", "cord_trio", "simulate", "race:day"]
    done = subprocess.run(command, cwd=ROOT / "examples", capture_output=True, text=True, timeout=60, check=False)
    page = (ROOT / "docs" / "testing.md").read_text("utf-8")
    assert (done.returncode, done.stderr) == (1, "")
    assert numberless(f"$ python -m cord_trio simulate race:day\n{done.stdout}```") in numberless(page)
