"""Fabrics that are nodes of one mesh, over a broker in this process."""

from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import attrs
import trio

from cord_trio.config import Config, MeshConfig
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.mesh.joining import join_mesh
from cord_trio.nats.kv import open_bucket
from cord_trio.testing import ToolServer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from cord_trio.config import Source
    from cord_trio.mesh.local import LocalBroker, Way
    from cord_trio.mesh.node import Node
    from cord_trio.protocol.jsonrpc import Json


@attrs.frozen
class Member:
    fabric: Fabric
    node: Node
    way: Way


@asynccontextmanager
async def member(
    broker: LocalBroker, name: str, *sources: Source, groups: Mapping[str, str] | None = None, share: str = "*",
    agents: Sequence[str] = ("*",), labels: Mapping[str, str] | None = None, seed: str = "",
) -> AsyncGenerator[Member]:  # fmt: skip
    settings = MeshConfig(
        servers=["nats://local"], node=name, groups=groups or {}, share=[share], agents=agents, labels=labels or {}
    )
    way = broker.way()
    nodes: list[Node] = []

    @asynccontextmanager
    async def mesh(fabric: Fabric) -> AsyncGenerator[None]:
        async with way.open() as nats:
            bucket = await open_bucket(nats, "cord_cord")
            async with join_mesh(fabric, settings, nats, bucket, Random(name + seed)) as node:
                nodes.append(node)
                yield

    async with open_fabric(Config(sources=sources, mesh=settings), mesh=mesh, rng=Random(name)) as fabric:
        await fabric.wait_started()
        yield Member(fabric, nodes[0], way)


async def has(member: Member, *agents: str) -> None:
    """Return once these agents of other nodes can be asked."""
    with trio.fail_after(60):
        for name in agents:
            while member.fabric.agents.taker(name) is None:  # noqa: ASYNC110  # on a clock that jumps
                await trio.sleep(0.1)


async def listed(fabric: Fabric, name: str, *, there: bool = True) -> None:
    """Return once a tool is exported, or is not any more."""
    with trio.fail_after(60):
        while (name in fabric.registry.snapshot.tools) is not there:
            await fabric.registry.changed(fabric.registry.snapshot.version)


def server(name: str, **options: Json) -> ToolServer:
    return ToolServer(name=name, **options)
