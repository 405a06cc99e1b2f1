"""`tools`, `call` and `run` in a mesh, over a broker in this process."""

from __future__ import annotations

import argparse
import json
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.cli import call, main, run, tools, visiting
from cord_trio.errors import ConfigError
from cord_trio.mesh.joining import join_mesh
from cord_trio.mesh.local import open_broker
from cord_trio.mesh_errors import DuplicateName
from cord_trio.nats.kv import open_bucket
from cord_trio.testing import ToolServer
from tests.cli.helpers import configure, server
from tests.mesh.members import Member, member

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from cord_trio.agents import Context
    from cord_trio.config import MeshConfig
    from cord_trio.fabric import Fabric
    from cord_trio.mesh.local import LocalBroker
    from cord_trio.mesh.node import Node

URL = "nats://local:4222"


def arguments(**given: object) -> argparse.Namespace:
    usual = {"config": None, "json": False, "source": None, "mesh": URL, "node": None, "credentials": None}
    return argparse.Namespace(**{**usual, "arguments": "{}", "payload": "null", "text": False, **given})


def lead(monkeypatch: pytest.MonkeyPatch, broker: LocalBroker) -> list[MeshConfig]:
    """Let who joins a mesh join that of `broker`. Returns what they had for settings."""
    found: list[MeshConfig] = []

    def in_mesh(settings: MeshConfig) -> Callable[[Fabric], AbstractAsyncContextManager[Node]]:
        @asynccontextmanager
        async def opened(fabric: Fabric) -> AsyncGenerator[Node]:
            found.append(settings)
            async with broker.way().open() as nats:
                bucket = await open_bucket(nats, "cord_cord")
                async with join_mesh(fabric, settings, nats, bucket, Random(2)) as node:
                    yield node

        return opened

    monkeypatch.setattr("cord_trio.mesh.joining.in_mesh", in_mesh)
    return found


async def offered(one: Member) -> None:
    """Return once all know what it offers."""
    roster = one.node.roster
    while not roster.nodes[one.node.name].servers:
        await roster.changed(roster.number)


@asynccontextmanager
async def offering(broker: LocalBroker) -> AsyncGenerator[Member]:
    """A node `a` that offers `notes`."""
    async with member(broker, "a", ToolServer(name="notes").in_process()) as one:
        await offered(one)
        yield one


async def test_tools_lists_what_is_here_and_what_the_mesh_has(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(folder, mine={**server(), "tools": ["echo"]})
    async with open_broker(Random(1)) as broker, offering(broker):
        settings = lead(monkeypatch, broker)
        assert await tools.run(arguments(json=True), trio.Event()) == 0
        listed = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["source"]) for each in listed][:1] == [("mine__echo", "mine")]
    assert ("notes__add", "notes@a") in [(each["name"], each["source"]) for each in listed]
    (one,) = settings
    assert (one.servers, one.share, one.agents) == ((URL,), (), ())
    assert one.node != "a"


async def test_what_is_here_and_in_the_mesh_is_listed_once_and_waited_for_in_vain_never(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(folder, notes=server(name="notes"))
    async with open_broker(Random(1)) as broker, offering(broker):
        lead(monkeypatch, broker)
        with trio.fail_after(visiting.PATIENCE / 2):
            assert await tools.run(arguments(json=True), trio.Event()) == 0
    said = capsys.readouterr()
    assert {each["source"] for each in json.loads(said.out)} == {"notes"}
    assert said.err == ""


async def test_call_needs_no_file_and_says_how_a_failed_one_is_followed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(Random(1)) as broker, offering(broker) as a:
        lead(monkeypatch, broker)
        args = arguments(tool="notes__add", arguments='{"a": 1, "b": 2}')
        assert await call.run(args, trio.Event()) == 0
        assert capsys.readouterr() == ("3\n", "")
        args = arguments(tool="notes__crash", arguments='{"status": 3}')
        with pytest.raises(Exception, match="server exited"):
            await call.run(args, trio.Event())
        trace = capsys.readouterr().err.split("mesh trace ")[1].partition("`")[0]
        assert [step.name for step in a.node.presence.recent.find(trace)] == ["notes__crash"]
        assert await call.run(arguments(tool="nothing__here"), trio.Event()) == 1
        assert "mesh trace" not in capsys.readouterr().err  # of what was never made


async def test_run_gives_an_agent_the_tools_of_the_mesh(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine_visiting.py").write_text(
        "async def sums(ctx, job):\n    return (await ctx.call('notes__add', {'a': job, 'b': 2})).text\n"
    )
    async with open_broker(Random(1)) as broker, offering(broker):
        lead(monkeypatch, broker)
        assert await run.run(arguments(agent="mine_visiting:sums", payload="40"), trio.Event()) == 0
    assert capsys.readouterr().out == "42\n"


async def test_run_asks_an_agent_of_the_mesh(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sums(ctx: Context, payload: list[int]) -> object:
        await trio.lowlevel.checkpoint()
        return {"sum": sum(payload)}

    async with open_broker(Random(1)) as broker, member(broker, "a") as a:
        a.fabric.agent("sums", sums)
        lead(monkeypatch, broker)
        for agent in ("sums", "sums@a"):
            assert await run.run(arguments(agent=agent, payload="[40, 2]"), trio.Event()) == 0
    assert capsys.readouterr().out == '{"sum":42}\n' * 2


async def test_run_says_soon_that_no_agent_of_the_mesh_has_the_name_and_where_it_looked(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sums(ctx: Context, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        return payload

    async with open_broker(Random(1)) as broker, member(broker, "a") as a, member(broker, "b"):
        a.fabric.agent("sums", sums)
        lead(monkeypatch, broker)
        began = trio.current_time()
        assert await run.run(arguments(agent="nobody"), trio.Event()) == 1
        assert trio.current_time() - began < visiting.PATIENCE / 2
        (line,) = capsys.readouterr().err.splitlines()
        wanted = (
            "no agent named 'nobody' is configured here, or offered on 2 other nodes of the mesh (a, b); there are: "
        )
        assert line == f"error: {wanted}sums@a"
        # One whose agents cannot be read is waited for, and named.
        monkeypatch.setattr(visiting, "PATIENCE", visiting.SETTLED + 0.5)
        a.node.teller.lend(b"no catalogue")
        await trio.sleep(0.3)
        assert await run.run(arguments(agent="nobody"), trio.Event()) == 1
    assert capsys.readouterr().err.endswith("there are: none; it is not known what agents these have: a\n")


async def test_a_source_of_the_mesh_is_listed_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(folder, mine=server())
    async with open_broker(Random(1)) as broker, offering(broker):
        lead(monkeypatch, broker)
        assert await tools.run(arguments(source="notes@a", json=True), trio.Event()) == 0
        assert {each["source"] for each in json.loads(capsys.readouterr().out)} == {"notes@a"}
        assert await tools.run(arguments(source="nope"), trio.Event()) == 2
    assert "no source named 'nope'; there are: mine, notes@a" in capsys.readouterr().err


def test_without_mesh_it_is_said_that_the_mesh_that_is_configured_may_have_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mesh, words in (("", ""), (f'[mesh]\nservers = ["{URL}"]\n', "; with --mesh behind all else, also what mesh")):
        (folder / "cord.toml").write_text(f"{mesh}[agents.echo]\nhandler = 'os:getcwd'\n")
        for wrong, code in (
            (["call", "notes__add"], 1),
            (["tools", "--source", "notes@a"], 2),
            (["run", "sums"], 2),
        ):
            assert main(wrong) == code
            (line,) = capsys.readouterr().err.splitlines()
            assert ("--mesh" in line) == bool(words), line
            assert words in line


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["tools", "--mesh"], "mesh: is not configured; configure [mesh], or write --mesh nats://HOST:4222"),
        (["tools", "--node", "a"], "no mesh is visited; add --mesh"),
        (
            ["call", "--mesh", "web__echo", "{}"],
            "is no URL of a NATS server; write nats://HOST:4222; without",
        ),
        (["tools", "--mesh", "nats://a:4222", "--node", "A"], "mesh.node: 'A' is no name"),
    ],
)
def test_wrong_arguments_are_2_in_one_line(
    wrong: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(folder, it=server())
    assert main(wrong) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize("credentials", ["a.nk", None])
async def test_a_name_that_is_taken_is_an_error_that_says_what_to_do(
    credentials: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(Random(1)) as broker, member(broker, "a"):
        lead(monkeypatch, broker)
        expected = DuplicateName if credentials is None else ConfigError
        with pytest.raises(expected, match="'a'" if credentials is None else "node a is in the mesh already; give a"):
            await tools.run(arguments(node="a", credentials=credentials), trio.Event())


async def test_what_cannot_be_known_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cord_trio.cli.visiting.PATIENCE", 0.3)
    async with open_broker(Random(1)) as broker, member(broker, "a") as a:
        lead(monkeypatch, broker)
        a.node.teller.offer({"notes": b"no catalogue"}, {})
        await offered(a)
        assert await tools.run(arguments(), trio.Event()) == 1
    assert "it is not known what 1 source of the mesh list: notes@a" in capsys.readouterr().err


async def test_the_url_of_a_broker_that_cannot_be_one_is_named_with_its_place() -> None:
    await trio.lowlevel.checkpoint()
    for url in ("nats://a,b:4222", "nats://a..b"):
        with pytest.raises(ConfigError, match=r"mesh\.servers\[0\]: is not the URL of a NATS server"):
            await tools.run(arguments(mesh=url), trio.Event())
