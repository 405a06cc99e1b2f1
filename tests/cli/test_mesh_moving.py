"""The verb `mesh move`, with a real nats-server and nodes that have an agent of which there is one."""

from __future__ import annotations

import argparse
import json
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.cli import mesh
from cord_trio.config import Config, MeshConfig
from cord_trio.errors import AgentError
from cord_trio.fabric import open_fabric
from cord_trio.mesh.joining import in_mesh
from cord_trio.mesh_errors import NoOwner, OwnerRefused
from tests.cli.helpers import Said, until
from tests.real.mesh_agents import Clerk
from tests.real.nats_server import FOUND, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from cord_trio.fabric import Fabric

pytestmark = pytest.mark.skipif(FOUND is None, reason="no nats-server for this platform")

KEY = "0123456789abcdef0123456789abcdef"


@asynccontextmanager
async def node(url: str, name: str, *, callers: tuple[str, ...] = ("*",)) -> AsyncGenerator[Fabric]:
    """One that stands by for the clerk."""
    settings = MeshConfig(servers=[url], node=name, labels={"region": name}, key=[KEY], callers=callers)
    async with open_fabric(Config(mesh=settings), mesh=in_mesh(settings), rng=Random(name)) as fabric:
        fabric.singleton("clerk", Clerk)
        yield fabric


@pytest.mark.limit(40)
async def test_an_agent_is_moved_by_name_by_labels_and_to_another_and_errors_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = Said(capsys)

    async def move(to: str, agent: str = "clerk", *, as_json: bool = False) -> int:
        args = argparse.Namespace(what="move", agent=agent, to=to, mesh=None, name=None, config=None, json=as_json)
        return await mesh.run(args, trio.Event())

    with running(jetstream=True) as broker:
        text = f'[mesh]\nservers = ["{broker.url}"]\nnode = "visitor"\nkey = "%s"\n'
        (folder / "cord.toml").write_text(text % KEY)
        async with node(broker.url, "a") as a:
            with trio.fail_after(30):
                await until(lambda: "clerk" in a.agents)
                assert await a.ask("clerk", "one more") == 1
                async with node(broker.url, "b", callers=("*@a", "*@b")) as b:
                    assert await move("b", "own") == 1
                    assert "of which there is one; only such move: say `singleton = true`" in said.err + said()
                    assert await move("a") == 0
                    assert await said.wait_for("clerk") == "clerk  a  it stays"
                    while True:
                        try:
                            assert await move("b", as_json=True) == 0
                            break
                        except AgentError as exc:  # it may not stand by yet
                            assert "does not stand by for it" in str(exc)  # noqa: PT017  # what else may be raised is none
                    said()
                    told = json.loads(said.out.splitlines()[-1])
                    assert told == {"agent": "clerk", "from": "a", "to": "b", "moved": True}
                    assert await a.ask("clerk", "one more") == 2
                    assert "clerk" in b.agents
                    with pytest.raises(OwnerRefused, match="may call nothing here"):
                        await move("region=a")
                    (folder / "cord.toml").write_text(text % KEY[::-1])
                    with pytest.raises(OwnerRefused, match="its signature is not of this mesh's key"):
                        await move("a")
                    (folder / "cord.toml").write_text(text.replace("visitor", "a") % KEY)
                    await until(lambda: a.agents.singletons)
                    while True:
                        try:
                            assert await move("region=a") == 0
                            break
                        except AgentError as exc:  # it may not be known there yet that it stands by
                            assert "is known to stand by" in str(exc)  # noqa: PT017  # likewise
                            await trio.sleep(0.1)
                    assert await said.wait_for("clerk  b  a")
                    assert await a.ask("clerk", "one more") == 3
                    with pytest.raises(NoOwner, match="gone is not in the mesh now"):
                        await move("gone")
                    with pytest.raises(AgentError, match="no node that is region=west"):
                        await move("region=west")
