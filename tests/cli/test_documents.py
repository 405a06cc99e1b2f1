"""What the documents tell users to paste works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cord_trio import config as config_room
from cord_trio.config import load_config, parse_config
from tests.cli.helpers import configure

ROOT = Path(__file__).parents[2]


def blocks(file: str, language: str) -> list[str]:
    """The code of this language in a document."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text("utf-8"), re.DOTALL)


def run(program: Path, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, program], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("handoff", "the answer: 42"),
        ("deadlines", "blue was cancelled: 60 s is too late"),
        ("gateway", "answered 42"),
        ("race", "but not with sales at [1.0] and seed "),
    ],
)
def test_each_example_runs(name: str, said: str, folder: Path) -> None:
    assert said in run(ROOT / "examples" / f"{name}.py", folder)


def test_no_example_is_left_out() -> None:
    elsewhere = {"two_nodes"}  # needs a broker: tests/real/test_mesh_agents.py runs it
    found = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert found == {"handoff", "deadlines", "gateway", "race"} | elsewhere


def test_the_program_of_the_readme_runs_on_a_pasted_block(folder: Path) -> None:
    time_server = Path(sys.executable).with_name("mcp-server-time")
    if not time_server.exists():
        pytest.skip("mcp-server-time is not installed")
    (program,) = blocks("README.md", "python")
    (folder / "app.py").write_text(program)
    configure(folder, time={"command": str(time_server)})
    assert run(folder / "app.py", folder).startswith("refund 17, seen at ")


def test_the_blocks_of_the_readme_are_configurations() -> None:
    found = [parse_config(block, format="json") for block in blocks("README.md", "json")]
    assert [list(one.sources) for one in found] == [["time", "docs"], ["all"]]
    assert all(one.problems == () for one in found)


def test_our_own_configuration_is_as_documented(folder: Path) -> None:
    ours, *_ = blocks("docs/configuration.md", "toml")
    (folder / "cord.toml").write_text(ours)
    found = load_config(environ={"DOCS_TOKEN": "x", "HOME": "/home/me"})
    assert (found.problems, list(found.sources), list(found.agents)) == ((), ["time", "docs"], ["triage", "ledger"])


def test_the_configuration_in_code_is_as_documented() -> None:
    *_, code = blocks("docs/configuration.md", "python")
    made: dict[str, object] = {}
    exec(code, made)  # our own document
    config = made["config"]
    assert isinstance(config, config_room.Config)
    assert list(config.sources) == ["time", "docs"]
