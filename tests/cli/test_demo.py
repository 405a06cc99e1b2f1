from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio import fabric as fabric_room
from cord_trio.cli import demo, main
from cord_trio.cli.figures import children
from cord_trio.testing import tool_server
from tests.cli.helpers import Said, command_line, waiting_child

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncGenerator

    from cord_trio.config import Stdio
    from cord_trio.fabric import Fabric

SMALL = ["demo", "--servers", "2", "--agents", "3", "--seconds", "0.5"]


def arguments(**given: object) -> argparse.Namespace:
    """Parsed arguments of `demo`."""
    return argparse.Namespace(
        **{"servers": 2, "agents": 3, "seconds": 30.0, "rate": 20.0, "json": True, "nodes": None, **given}
    )


def test_json_has_the_figures_on_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json", "--rate", "100"]) == 0
    out, _ = capsys.readouterr()
    (line,) = out.splitlines()
    found = json.loads(line)
    assert found["errors"] == found["left_behind"] == found["restarts"] == 0
    assert (found["left"], found["first_error"], found["servers"], found["agents"]) == ([], "", 2, 3)
    assert found["calls"] > 50
    # Each job is one handoff between two calls; at the end one call of each agent may be missing.
    assert 0 <= found["calls"] - 2 * found["handoffs"] + 3 <= 6
    assert 0 < found["p50_us"] <= found["p99_us"] <= found["p999_us"] < 500_000
    assert 0 < found["handoff_p50_us"] < found["p50_us"]
    assert 20 < found["log_lines"] < 400
    assert 10 < found["rss_mb"] < 1000
    assert found["calls_per_s"] == pytest.approx(found["calls"] / 0.5, rel=0.5)


def test_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LINE_EVERY", 0.1)
    assert main([*SMALL, "--servers", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("1 server connected in ")
    assert "1/1 server ready  " in out
    assert out.splitlines()[-1] == "left behind  nothing: no process, descriptor, thread or task"


def test_a_table_in_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert main([*SMALL, "--servers", "13"]) == 0
    out = capsys.readouterr().out
    assert "in flight" in out
    assert "… and 1 more server" in out


@pytest.mark.parametrize(
    ("wrong", "option"),
    [
        (["--servers", "0"], "--servers"),
        (["--servers", "100000"], "--servers"),
        (["--agents", "0"], "--agents"),
        (["--agents", "5000"], "--agents"),
        (["--seconds", "0"], "--seconds"),
        (["--seconds", "nan"], "--seconds"),
        (["--rate", "-1"], "--rate"),
        (["--rate", "nan"], "--rate"),
        (["--rate", "inf"], "--rate"),
    ],
)
def test_wrong_arguments_are_2_in_one_line(wrong: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *wrong]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {option}: give ")
    assert len(err.splitlines()) == 1


def servers() -> dict[str, int]:
    """The process of each server, by name."""
    found = {}
    for pid in children():
        words = command_line(pid)
        if str(tool_server.__file__) in words:
            found[words[words.index("--name") + 1]] = pid
    return found


@pytest.mark.parametrize("as_json", [True, False])
async def test_a_server_that_is_killed_is_shown_and_survived(
    as_json: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LINE_EVERY", 0.1)
    interrupted, said = trio.Event(), Said(capsys)
    codes = []

    async def run() -> None:
        codes.append(await demo.run(arguments(json=as_json), interrupted))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await said.wait_for("2 servers connected in ")
        await trio.sleep(0.2)  # in the middle of the work
        os.kill(servers()["s01"], signal.SIGKILL)
        await said.wait_for("s01 is ready")
        interrupted.set()
    assert codes == [130]
    assert said().count("s01 is down: server exited (signal 9)") == 1
    assert said().count("s01 is ready") == 1
    out = said.out
    if as_json:
        found = json.loads(out)
        assert (found["errors"], found["restarts"], found["left_behind"]) == (0, 1, 0)
    else:
        assert "errors       0\n" in out
        assert "restarts     1\n" in out


@asynccontextmanager
async def leaving(sources: list[Stdio]) -> AsyncGenerator[Fabric, None]:
    """A fabric that leaves a child process and a pipe behind."""
    async with open_fabric(sources) as fabric:
        yield fabric
    LEFT.append(waiting_child())


open_fabric = fabric_room.open_fabric
LEFT: list[subprocess.Popen[bytes]] = []


@pytest.mark.parametrize("as_json", [True, False])
def test_what_is_left_behind_is_found(
    as_json: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fabric_room, "open_fabric", leaving)
    code = main([*SMALL, "--seconds", "0.1", *(["--json"] if as_json else [])])
    child = LEFT.pop()
    child.communicate()
    assert code == 1
    last = capsys.readouterr().out.splitlines()[-1]
    if as_json:
        found = json.loads(last)
        assert found["left_behind"] == 2
        assert found["left"][0] == f"process {child.pid}"
        assert found["left"][1].startswith("descriptor ")
    else:
        assert last.startswith(f"left behind  process {child.pid}, descriptor ")


def test_servers_that_do_not_start_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_server, "__file__", "/no/such/program.py")
    assert main(SMALL) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: 2 of 2 servers did not start: ")
    assert "/no/such/program.py" in line


async def test_a_signal_before_the_servers_are_connected_ends_it_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    interrupted = trio.Event()
    interrupted.set()
    with trio.fail_after(3):
        assert await demo.run(arguments(), interrupted) == 130
    assert capsys.readouterr().out == ""


async def test_wrong_answers_are_errors(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def lie(self: object, tool: str, values: dict[str, str]) -> object:
        await trio.sleep(0.01)
        return argparse.Namespace(text="another text")

    monkeypatch.setattr("cord_trio.agents.Context.call", lie)
    assert await demo.run(arguments(seconds=0.2), trio.Event()) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["calls"] == 0
    assert found["errors"] > 0
    assert "answered 'another text' to 'agent-" in found["first_error"]
