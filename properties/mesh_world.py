"""A mesh of nodes in this process, whose ways, broker and bucket fail to order, and what must hold of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.errors import CordError
from cord_trio.mesh.local import LocalBroker, open_broker
from cord_trio.mesh.node import Node, open_node
from cord_trio.mesh.presence import LEASE, decode_record
from cord_trio.nats.kv import Bucket, open_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cord_trio.counters import Counters
    from cord_trio.mesh.presence import Lease, NodeRecord

BUCKET: Final = "cord_m"

HEALED: Final = 6.0 * LEASE
"""Seconds after the last fault in which everything must be well again."""

VANISHED: Final = LEASE + 0.5
"""Seconds after its last sign of life in which a node must be gone for all who can hear."""


class Place:
    """One process that a supervisor starts again and again, on a machine with one way to the broker.

    Attributes:
        name: the node's.
        way: of the process that runs now.
        node: while it runs and has joined.
        wanted: whether it is to run.

    """

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.node: Node | None = None
        self.wanted = True
        self._world = world
        self.way = world.broker.way()
        self._scope = trio.CancelScope()
        self._stirred = trio.Event()

    async def keep(self) -> None:
        """Run it whenever it is wanted, until cancelled."""
        rng = Random(f"{self._world.seed} {self.name}")
        while True:
            while not self.wanted:
                self._stirred = trio.Event()
                await self._stirred.wait()
            self._scope = trio.CancelScope()
            with self._scope:
                await self._live(rng)
            await trio.sleep(rng.uniform(0.1, 2))

    async def _live(self, rng: Random) -> None:
        world = self._world
        try:
            async with self.way.open(self.name) as nats:
                bucket = await open_bucket(nats, BUCKET)
                async with open_node(
                    nats, bucket, mesh="m", node=self.name, begun=world.begun, rng=rng, counters=world.counters
                ) as self.node:
                    world.joined(self.node)
                    await trio.sleep_forever()
        except CordError as exc:
            # At the start only: once it has joined, nothing may end it.
            if self.node is not None:
                world.failures.append(f"{self.name}: {exc!r}")
        finally:
            self.node = None

    def stop(self) -> None:
        """Let it leave as it should."""
        self.wanted = False
        self._scope.cancel("it is stopped")

    def crash(self) -> None:
        """End it without a word; the machine's way stays as it is for the next process."""
        was_cut = self.way.is_cut
        self.way.cut()
        self.wanted = False
        self._scope.cancel("it crashes")
        self.way = self._world.broker.way()
        self.way.is_cut = was_cut

    def start(self) -> None:
        """Let it run."""
        self.wanted = True
        self._stirred.set()


class World:
    """The mesh.

    Attributes:
        places: by name.
        most: most incarnations of one name that lived at the same time.
        failures: nodes that ended by themselves.
        gone: when whom was known to be gone first and last: by epoch.

    """

    def __init__(self, broker: LocalBroker, names: list[str], seed: int, counters: Counters) -> None:
        self.broker = broker
        self.seed = seed
        self.counters = counters
        self.most = 0
        self.failures: list[str] = []
        self.gone: dict[str, list[float]] = {}
        self._holding: dict[str, set[str]] = {}
        self.places = {name: Place(self, name) for name in names}

    def begun(self, lease: Lease) -> None:
        lease.nursery.start_soon(self._hold, lease)

    async def _hold(self, lease: Lease) -> None:
        holding = self._holding.setdefault(lease.node, set())
        holding.add(lease.epoch)
        self.most = max(self.most, len(holding))
        try:
            await trio.sleep_forever()
        finally:
            holding.discard(lease.epoch)

    def joined(self, node: Node) -> None:
        """Have it tell when it hears that others are gone, for as long as it runs."""
        node.roster._hearing[self] = (self._ended, None, None)

    def _ended(self, _node: str, epoch: str) -> None:
        self.gone.setdefault(epoch, []).append(trio.current_time())

    def living(self) -> dict[str, Node]:
        """Those that run and have joined."""
        return {name: place.node for name, place in self.places.items() if place.node is not None}

    def heal(self) -> None:
        """Let everything work from here on, and all run."""
        self.broker.start()
        for place in self.places.values():
            place.way.mend()
            place.start()

    async def stored(self) -> dict[str, NodeRecord]:
        """The records in the bucket, as a stranger reads them."""
        found = {}
        async with self.broker.way().open("stranger") as nats:
            bucket = Bucket(nats, BUCKET, (await open_bucket(nats, BUCKET))._options)
            for name in self.places:
                entry = await bucket.get(f"up.{name}")
                if entry is not None:
                    found[name] = decode_record(entry.value)
        return found

    async def check_healed(self) -> None:
        """After all has healed every view is what is stored, and that is who lives."""
        living, stored = self.living(), await self.stored()
        assert self.failures == []
        assert living.keys() == self.places.keys()
        assert {name: record.epoch for name, record in stored.items()} == {
            name: node.epoch for name, node in living.items()
        }
        for node in living.values():
            assert dict(node.roster.nodes) == stored


@asynccontextmanager
async def open_world(names: list[str], seed: int, counters: Counters, spread: float = 0.0) -> AsyncGenerator[World]:
    """A mesh whose nodes start within `spread` seconds."""
    rng = Random(seed)
    async with open_broker(Random(seed)) as broker, trio.open_nursery() as nursery:
        world = World(broker, names, seed, counters)

        async def keep(place: Place, pause: float) -> None:
            await trio.sleep(pause)
            await place.keep()

        for place in world.places.values():
            nursery.start_soon(keep, place, rng.uniform(0, spread))
        yield world
        nursery.cancel_scope.cancel("enough was seen")
