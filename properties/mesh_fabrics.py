"""Fabrics of one mesh in this process, each of which a supervisor starts again whenever it dies."""

from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.config import Config, MeshConfig
from cord_trio.errors import CordError
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.mesh.joining import join_mesh
from cord_trio.nats.kv import open_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from cord_trio.mesh.local import LocalBroker, Way

NODES: Final = "abc"


class Fabrics:
    """Three of them.

    Attributes:
        fabrics: those that run now, by their nodes' names.
        ways: of each node to the broker.
        scopes: cancelled, a node dies.

    Args:
        broker: what they have in common.
        seed: of how long each is away.
        equip: gives a fabric what it has from its start.

    """

    def __init__(self, broker: LocalBroker, seed: int, equip: Callable[[Fabric], object]) -> None:
        self.broker = broker
        self.seed = seed
        self.fabrics: dict[str, Fabric] = {}
        self.ways: dict[str, Way] = {}
        self.scopes = {name: trio.CancelScope() for name in NODES}
        self._equip = equip

    async def live(self, name: str) -> None:
        """Be a process that a supervisor starts again and again."""
        rng = Random(f"{name}{self.seed}")
        while True:
            self.ways[name] = self.broker.way()
            with self.scopes[name]:
                try:
                    async with self._opened(name, rng) as fabric:
                        self._equip(fabric)
                        self.fabrics[name] = fabric
                        try:
                            await trio.sleep_forever()
                        finally:
                            del self.fabrics[name]
                except CordError:
                    pass
            self.scopes[name] = trio.CancelScope()
            await trio.sleep(rng.uniform(0.1, 3))

    @asynccontextmanager
    async def _opened(self, name: str, rng: Random) -> AsyncGenerator[Fabric]:
        config = MeshConfig(servers=["nats://local"], node=name)

        @asynccontextmanager
        async def mesh(fabric: Fabric) -> AsyncGenerator[None]:
            async with self.ways[name].open() as nats:
                bucket = await open_bucket(nats, "cord_cord")
                async with join_mesh(fabric, config, nats, bucket, rng):
                    yield

        async with open_fabric(Config(mesh=config), mesh=mesh, rng=rng) as fabric:
            yield fabric
