"""Reported failures of configuration and of what the command line prints."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cord_trio.cli import main
from tests.cases.servers import TEMPLATE

if TYPE_CHECKING:
    from pathlib import Path


def entry(script: str = "", **more: object) -> dict[str, object]:
    """A good server, as people write it down."""
    return {"command": sys.executable, "args": ["-I", "-S", "-c", TEMPLATE.replace("SCRIPT", script)], **more}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_x01_one_bad_entry_costs_no_other_and_shows_in_the_exit_code(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    servers = {"good": entry(), "neither": {}, "number": 3, "wrong": entry(env=[1]), "extra": entry(colour="red")}
    text = json.dumps({"mcpServers": servers})
    (folder / ".mcp.json").write_text(text.replace('"number": 3', '"number": 3, "number": 4'))
    assert main(["tools"]) == 1
    out, said = capfd.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["good__echo", "extra__echo"]
    for name in ("neither", "number", "wrong", "extra"):
        assert f"mcpServers.{name}" in said
    assert "twice" in said
    assert "Traceback" not in said
    (folder / ".mcp.json").write_text(json.dumps({"mcpServers": {"good": entry()}}))
    assert main(["tools"]) == 0


def test_x02_an_unset_variable_reaches_neither_child_nor_wire(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KEY_THAT_IS", "set")
    monkeypatch.delenv("KEY_THAT_IS_NOT", raising=False)
    unset = "${KEY_THAT_IS_NOT}"
    leave = f"open({str(folder / 'started')!r}, 'w')\n"
    tell = "def content(message): return [{'type': 'text', 'text': os.environ['A'] + os.environ['B']}]"
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.setblocking(False)
        url = f"http://127.0.0.1:{door.getsockname()[1]}/"
        servers = {
            "good": entry(tell, env={"A": "${KEY_THAT_IS}", "B": "${KEY_THAT_IS_NOT:-given}"}),
            "env": entry(leave, env={"KEY": unset}),
            "args": {"command": sys.executable, "args": ["-c", leave, unset]},
            "header": {"url": url, "headers": {"Authorization": f"Bearer {unset}"}},
            "path": {"url": url + unset},
        }
        (folder / ".mcp.json").write_text(json.dumps({"mcpServers": servers}))
        assert main(["tools"]) == 1
        with pytest.raises(BlockingIOError):
            door.accept()
    out, said = capfd.readouterr()
    assert out.split() == ["good__echo"]
    assert not (folder / "started").exists()
    for name in ("env", "args", "header", "path"):
        assert any(f"mcpServers.{name}" in line and "KEY_THAT_IS_NOT" in line for line in said.splitlines())
    assert main(["call", "good__echo"]) == 0
    assert capfd.readouterr().out == "setgiven\n"


LINKS = r"""
def content(message):
    return [{"type": "text", "text": "see"},
            {"type": "resource_link", "uri": "file:///notes/a.md", "name": "notes\x1b[2J", "title": "No\x9b31mtes"}]
"""


def test_x05_a_link_is_printed_and_drives_no_terminal(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / ".mcp.json").write_text(json.dumps({"mcpServers": {"it": entry(LINKS)}}))
    assert main(["call", "it__echo", "{}"]) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[0] == "see"
    assert "file:///notes/a.md" in out
    assert not {"\x1b", "\x9b", "\x07"} & set(out)


@pytest.mark.parametrize("argument", ["řžš→世界😀", "\\u0159\\ud83d\\ude00"])
def test_f20_the_command_line_is_utf_8_whatever_the_locale(folder: Path, argument: str) -> None:
    (folder / ".mcp.json").write_text(json.dumps({"mcpServers": {"it": entry()}}))
    done = subprocess.run(
        [sys.executable, "-m", "cord_trio", "call", "it__echo", f'{{"text":"{argument}"}}', "--json"],
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["content"][0]["text"] == json.loads(f'"{argument}"')
