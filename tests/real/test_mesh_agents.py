"""Agents of several nodes over a real nats-server that lets each of them do what `mesh permissions` says."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.agents import Mailbox
from cord_trio.cli import main
from cord_trio.config import Config, MeshConfig
from cord_trio.errors import AgentError, CallError, CordError
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.mesh import calling, keeping, presence, singletons
from cord_trio.mesh.joining import in_mesh
from cord_trio.mesh_errors import NoOwner, OwnerLost
from tests.real import mesh_agents
from tests.real.nats_server import FOUND, Broker, running
from tests.real.processes import running_module

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from contextlib import AbstractContextManager

    from cord_trio.agents import Context

pytestmark = pytest.mark.skipif(FOUND is None, reason="no nats-server for this platform")

EXAMPLE = Path(__file__).parents[2] / "examples" / "two_nodes.py"

SERVED = """
[mesh]
servers = ["{url}"]
node = "{node}"
credentials = "{keys}/{node}.nk"

[agents.echo]
handler = "tests.real.mesh_agents:echo"

[agents.slow]
handler = "tests.real.mesh_agents:slow"

[agents.clerk]
handler = "tests.real.mesh_agents:Clerk"
mailbox = 8

[agents.hands_back]
handler = "tests.real.mesh_agents:hands_back"
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def broker(keys: Path) -> Iterator[Broker]:
    """A server that was configured by `mesh permissions`: `c` may not bury the dead."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        named = ["a", "b", "c", "d", "--registrar", "a", "--registrar", "b"]
        assert main(["mesh", "permissions", *named, "--keys", str(keys)]) == 0
    text = re.sub(r"(?m)^(listen|jetstream).*\n", "", said.getvalue())  # the test's server has its own
    with running(text, jetstream=True) as broker:
        yield broker


@asynccontextmanager
async def fabric(broker: Broker, keys: Path, node: str) -> AsyncGenerator[Fabric]:
    settings = MeshConfig(servers=[broker.url], node=node, credentials=str(keys / f"{node}.nk"))
    join = in_mesh(settings, rng=Random(node))
    async with open_fabric(Config(mesh=settings), mesh=join, rng=Random(node)) as opened:
        yield opened


@contextmanager
def served(broker: Broker, keys: Path, folder: Path, node: str) -> Iterator[subprocess.Popen[bytes]]:
    """`serve` with agents in its configuration, in a process of its own, killed with the block."""
    file = folder / "cord.toml"
    file.write_text(SERVED.format(url=broker.url, node=node, keys=keys), "utf-8")
    command = [sys.executable, "-m", "cord_trio", "serve", "--config", str(file), "--http", "127.0.0.1:0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        while b"node b of mesh" not in (line := process.stderr.readline()):
            assert line, "it did not start"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()  # type: ignore[union-attr]  # it was made above


def standing_by(broker: Broker, keys: Path, node: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A node that has an agent of which there is one."""
    return running_module("tests.real.mesh_agents", broker.url, node, str(keys), "2", says=b"has it\n")


async def test_agents_of_three_nodes_ask_tell_and_hand_on(broker: Broker, keys: Path) -> None:
    async def front(ctx: Context, payload: object) -> object:
        answer = await ctx.ask("echo@b", payload)
        told = [await ctx.tell("clerk@b", "one more") for _ in range(3)]
        handed = await ctx.ask("hands_back@b", "echo@c")
        return [answer, told, handed]

    async with fabric(broker, keys, "a") as a, fabric(broker, keys, "b") as b, fabric(broker, keys, "c") as c:
        for one in (b, c):
            one.agent("echo", mesh_agents.echo)
            one.agent("clerk", mesh_agents.Clerk, mailbox=Mailbox(8))
            one.agent("hands_back", mesh_agents.hands_back)
        a.agent("front", front)
        with trio.fail_after(8):
            assert await a.ask("front", {"n": 1}) == [
                [{"n": 1}, ["front", "echo"]],
                [True, True, True],
                ["handed", ["front", "hands_back", "echo"]],
            ]
            assert await c.ask("clerk@b") == 3
            large = "x" * 300_000
            assert await c.ask("echo@b", large) == [large, ["echo"]]
            while "echo" not in a.agents.elsewhere.offered:  # type: ignore[union-attr]  # noqa: ASYNC110  # a real server
                await trio.sleep(0.05)
            assert await a.ask("echo", 1) == [1, ["echo"]]
        assert [one.counters["nats.not_permitted"] for one in (a, b, c)] == [0, 0, 0]


async def test_an_agent_moves_in_the_middle_of_a_conversation(broker: Broker, keys: Path) -> None:
    async with fabric(broker, keys, "a") as a, fabric(broker, keys, "c") as c, fabric(broker, keys, "b") as b:
        with trio.fail_after(10):
            a.singleton("writer", mesh_agents.Clerk, mailbox=Mailbox(8))
            while "writer" not in a.agents:  # noqa: ASYNC110  # a real server
                await trio.sleep(0.02)
            c.singleton("writer", mesh_agents.Clerk, mailbox=Mailbox(8))
            answers: list[object] = []

            async def talk(of: Fabric, address: str) -> None:
                answers.extend([await of.ask(address, "one more") for _ in range(10)])

            async with trio.open_nursery() as nursery:
                for one, address in ((a, "writer"), (c, "writer"), (b, "writer@a")):
                    nursery.start_soon(talk, one, address)
                await trio.sleep(0.3)
                while True:
                    try:
                        await a.move("writer", "c")
                        break
                    except AgentError:  # `c` may not stand by for it yet
                        await trio.sleep(0.05)
            assert sorted(map(str, answers)) == sorted(map(str, range(1, 31)))
            assert ("writer" in a.agents, "writer" in c.agents) == (False, True)
            assert [one.counters["nats.not_permitted"] for one in (a, b, c)] == [0, 0, 0]


async def test_agents_of_a_configuration_are_asked_and_a_killed_node_is_told(
    broker: Broker, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "GRACE", 0.3)
    monkeypatch.setattr(calling, "QUIET", 0.5)
    with served(broker, keys, tmp_path, "b") as process:
        async with fabric(broker, keys, "a") as a:
            with trio.fail_after(10):
                lost: list[CallError] = []
                while not await _is_there(a):  # noqa: ASYNC110  # as above
                    await trio.sleep(0.05)
                assert await a.tell("clerk@b", "one more")
                assert await a.ask("clerk@b") == 1
                begun = trio.Event()

                async def ask() -> None:
                    with pytest.raises(OwnerLost) as caught:
                        async with a.stream("slow@b", 60) as events:
                            async for _ in events:
                                begun.set()
                    lost.append(caught.value)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask)
                    await begun.wait()
                    process.send_signal(signal.SIGKILL)
                assert lost[0].executed == "unknown"
                with pytest.raises(NoOwner) as caught:
                    await a.ask("echo@b")
                assert caught.value.executed == "no"


async def test_an_agent_of_which_there_is_one_is_taken_over_from_a_killed_node(
    broker: Broker, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (presence, singletons, keeping):
        monkeypatch.setattr(module, "LEASE", 2)
    with standing_by(broker, keys, "d") as process:
        async with fabric(broker, keys, "a") as a:
            with trio.fail_after(15):
                a.singleton("clerk", mesh_agents.Clerk)
                assert [await a.ask("clerk", "one more") for _ in range(2)] == [1, 2]
                process.send_signal(signal.SIGKILL)
                while "clerk" not in a.agents:  # noqa: ASYNC110  # a real server
                    await trio.sleep(0.02)
                assert await a.ask("clerk", "one more") == 1
            assert a.counters["nats.not_permitted"] == 0


async def _is_there(fabric: Fabric) -> bool:
    """Whether the agents of the configuration have been made."""
    try:
        return await fabric.ask("echo@b", 1) == [1, ["echo"]]
    except CordError:
        return False


async def test_the_example_of_two_nodes_does_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("two_nodes", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with running(jetstream=True) as free:  # without keys
        await module.main(free.url)
    assert capsys.readouterr().out == "clerk > writer: 40\nclerk > writer: 42 True\n"
