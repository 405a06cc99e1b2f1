"""`tree` and `top` look at a fabric that runs, in this process or in another."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.cli import main, serve, top, tree
from cord_trio.cli.common import open_view
from cord_trio.cli.running import Running, about
from cord_trio.cli.top import plain, sections
from cord_trio.config import AgentConfig, Config, Stdio
from cord_trio.errors import Problem
from cord_trio.fabric import open_fabric
from cord_trio.observe import control
from cord_trio.observe.control import sockets
from cord_trio.testing import ToolServer
from tests.cli.helpers import Said, configure, server, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cord_trio.agents import Context

NONE = "error: no fabric runs that this user may look at; start one with `python -m cord_trio serve`\n"


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Sockets of this test alone, in a folder whose path is short enough."""
    with tempfile.TemporaryDirectory(prefix="cord") as place:
        monkeypatch.setenv("XDG_RUNTIME_DIR", place)
        monkeypatch.setattr(control, "folders", lambda: [Path(place, "cord_trio")])
        yield Path(place)


def arguments(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"verb": "tree", "pid": None, "json": False, "interval": 0.1, "count": 1, **given})


async def show(**given: object) -> int:
    return await tree.run(arguments(**given), trio.Event())


async def watch(**given: object) -> int:
    return await top.run(arguments(verb="top", **given), trio.Event())


async def park(ctx: Context, payload: object) -> None:
    await trio.sleep_forever()


@contextmanager
def serving(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A gateway in a process of its own."""
    configure(folder, it=server())
    with subprocess.Popen(
        [sys.executable, "-m", "cord_trio", "serve", "--http", "127.0.0.1:0", "--grace", "0.1"],
        cwd=folder, stderr=subprocess.PIPE, text=True,
    ) as gateway:  # fmt: skip
        try:
            yield gateway
        finally:
            gateway.kill()
            gateway.communicate(timeout=10)


@pytest.mark.parametrize(("command", "code"), [(["tree"], 1), (["top"], 1), (["tree", "--json"], 1)])
def test_it_says_that_none_runs(command: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == code
    assert capsys.readouterr() == ("", NONE)
    assert main([command[0], "1"]) == code
    assert capsys.readouterr().err.startswith("error: no fabric runs in process 1 that")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--interval", "0"], "error: --interval: give 0.1 or more seconds\n"),
        (["--interval", "nan"], "error: --interval: give 0.1 or more seconds\n"),
        (["--count", "0"], "error: --count: give 1 or more looks\n"),
    ],
)
def test_wrong_arguments_of_top_are_2(wrong: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", *wrong]) == 2
    assert capsys.readouterr().err == words


async def test_a_running_fabric_is_shown_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_fabric() as fabric, open_view(fabric, "run"), trio.open_nursery() as nursery:
        fabric.agent("desk", park)
        nursery.start_soon(fabric.ask, "desk")
        nursery.start_soon(fabric.ask, "desk")
        await until(lambda: fabric.agents["desk"].turn.waiting)
        assert await show() == 0
        first, *lines = capsys.readouterr().out.splitlines()
        assert first.startswith(f"pid {os.getpid()}, run, no configuration file, since ")
        assert lines[0] == "fabric cord_trio running tools=0 calls=2 version=0"
        assert lines[1].startswith("  agent desk#1 busy turn=1/1 waiting=1")
        asks = sorted(line.partition(" deadline_in")[0] for line in lines[2:])
        assert asks[0] == "  ask desk running"
        assert asks[1].startswith("  ask desk waiting waits_for=desk held_by=desk")
        assert await show(json=True, pid=os.getpid()) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["pid"], said["verb"], said["tree"]["kind"]) == (os.getpid(), "run", "fabric")
        assert isinstance(said["counters"], dict)
        nursery.cancel_scope.cancel("seen")
    assert sockets() == []


async def test_calls_take_the_slots_of_their_source(capsys: pytest.CaptureFixture[str]) -> None:
    source = ToolServer().in_process(name="it", slots=1)
    async with open_fabric([source]) as fabric, open_view(fabric, "run"), trio.open_nursery() as nursery:
        await fabric.wait_started()
        for _ in range(3):
            nursery.start_soon(fabric.call, "it__sleep", {"seconds": 30})
        await until(lambda: fabric.slots["it"].waiting)
        assert await show() == 0
        assert "  source it ready slots=1/1 slots_waiting=2 " in capsys.readouterr().out
        nursery.cancel_scope.cancel("seen")


async def test_serve_makes_the_configured_agents(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "cord.toml").write_text('[agents.desk]\nhandler = "serve_desk:desk"\nturn = 3\ntools = ["a__*"]\n')
    (folder / "serve_desk.py").write_text("async def desk(ctx, payload): ...\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    interrupted = trio.Event()
    given = arguments(
        config=None, http="127.0.0.1:0", stdio=False, grace=0.1, fd=None, takeover=None, record=None,
        mesh=None, node=None,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve.run, given, interrupted)
        await until(sockets)
        assert await show() == 0
        assert "  agent desk#1 idle turn=0/3 waiting=0" in capsys.readouterr().out
        interrupted.set()


async def test_a_configured_agent_has_its_grants() -> None:
    config = Config(agents=[AgentConfig(name="desk", handler="x:y", tools=("a__*",))])
    async with open_fabric(config) as fabric:
        fabric.add_configured({"desk": park})
        assert fabric.agents["desk"].tools == ("a__*",)


async def test_one_of_several_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_fabric(Config(file="/x/cord.toml")) as fabric, open_view(fabric, "serve"), open_view(fabric, "run"):
        assert await show() == 1
        out, err = capsys.readouterr()
        assert sorted(line.split(", ")[1:3] for line in out.splitlines()) == [
            ["run", "/x/cord.toml"],
            ["serve", "/x/cord.toml"],
        ]
        assert err == "error: several fabrics run; name one: `python -m cord_trio tree PID`\n"
        assert await show(json=True) == 1
        found = json.loads(capsys.readouterr().out)
        assert sorted(one["verb"] for one in found) == ["run", "serve"]
        assert "tree" not in found[0]


async def test_top_prints_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(
        sources=[Stdio(name="gone", command="/no/such")],
        broken={"bad": (Problem("f", "sources.bad", "is wrong", "mend it"),)},
    )
    async with open_fabric(config) as fabric, open_view(fabric, "serve"), trio.open_nursery() as nursery:
        fabric.agent("idle", park)
        fabric.agent("desk", park)
        nursery.start_soon(fabric.ask, "desk")
        job = await fabric.start("idle")
        await fabric.wait_started()
        assert await watch(count=2) == 0
        out = capsys.readouterr().out
        assert out.count("running, 0/2 sources ready, 0 tools, ") == 2
        lines = [" ".join(line.split()) for line in out.splitlines()]
        assert "source state slots waiting in flight log lines why" in lines
        assert any(line.startswith("gone down 0/32 0 0 again in ") for line in lines)
        assert "bad broken 0 f: sources.bad: is wrong; mend it" in lines
        assert "agent state turn waiting mailbox dropped why" in lines
        assert any(line.startswith("desk#1 busy 1/1 0") for line in lines)
        assert any(line.startswith("desk running") for line in lines)
        assert f"{job.id} running idle" in lines
        job.cancel("seen")
        nursery.cancel_scope.cancel("seen")


async def test_top_ends_with_the_fabric(capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys)
    async with trio.open_nursery() as nursery:
        async with open_fabric() as fabric, open_view(fabric, "run"):
            nursery.start_soon(lambda: watch(count=None))
            await said.wait_for("running, 0/0 sources ready")
        await said.wait_for("the fabric has ended, or does not answer")


async def test_top_draws_a_table_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_fabric([Stdio(name="gone", command="/no/such")]) as fabric, open_view(fabric, "serve"):
        await fabric.wait_started()
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "200")
        assert await watch(count=1) == 0
    assert "gone" in capsys.readouterr().out


def node(kind: str, name: str, **facts: object) -> dict[str, object]:
    return {"kind": kind, "name": name, "state": "waiting", **facts}


def test_a_long_table_is_cut_and_nothing_of_a_server_drives_the_terminal() -> None:
    children = [node("source", f"s{number}", reason="\x1b[2J" + "x" * 100) for number in range(30)]
    nested = node("ask", "a", children=[node("ask", "a > b", waits_for="b", calls_left=3)])
    running = Running(Path("7-x.sock"), {"pid": 7, "tree": {"kind": "fabric", "children": [*children, nested]}})
    lines = plain(running)
    assert "… and 10 more" in lines
    assert not any("\x1b" in line for line in lines)
    (_, asks) = sections(running)
    assert asks.rows == (("a", "waiting", "", "", "", ""), ("  a > b", "waiting", "b", "", "", "calls=3"))


def test_one_that_does_not_answer_is_named_so() -> None:
    assert about(Running(Path("7-x.sock"), None)) == "pid 7 does not answer"
    assert Running(Path("7-x.sock"), None).tree == {}


def test_a_gateway_in_another_process_is_shown_and_leaves_no_socket(folder: Path) -> None:
    with serving(folder) as gateway:
        assert gateway.stderr is not None
        assert "serving 1 source" in gateway.stderr.readline()

        def looked() -> str:
            done = subprocess.run(
                [sys.executable, "-m", "cord_trio", "tree", str(gateway.pid)],
                cwd="/", capture_output=True, text=True, timeout=20, check=False,
            )  # fmt: skip
            return done.stdout

        shown = looked()
        while "source it ready" not in shown:
            shown = looked()
        assert f"pid {gateway.pid}, serve, {folder.resolve()}/.mcp.json, since " in shown
        assert "slots=0/32" in shown
        gateway.send_signal(signal.SIGTERM)
        gateway.wait(10)
        assert sockets() == []


def test_a_gateway_that_was_killed_is_forgotten_and_one_that_is_stopped_does_not_answer(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cord_trio.observe.control.PATIENCE", 0.3)
    with serving(folder) as gateway:
        assert gateway.stderr is not None
        gateway.stderr.readline()
        while not sockets(gateway.pid):
            time.sleep(0.05)
        gateway.send_signal(signal.SIGSTOP)
        assert main(["tree"]) == 1
        assert capsys.readouterr().err == f"error: the fabric with pid {gateway.pid} does not answer\n"
        gateway.send_signal(signal.SIGCONT)
        gateway.kill()
        gateway.wait(10)
        assert main(["tree"]) == 1
        assert capsys.readouterr().err == NONE


def test_the_summary_says_in_which_mesh_it_is() -> None:
    mesh = {"kind": "mesh", "name": "cord", "state": "joined", "node": "a", "epoch": "11111111", "others": 2}
    tree = {"kind": "fabric", "name": "f", "state": "running", "tools": 3, "calls": 0, "children": [mesh]}
    said = top.summary(Running(Path("1-x.sock"), {"tree": tree}))
    assert said.endswith("0 refused at a bound, joined in mesh cord as a, with 2 others")
