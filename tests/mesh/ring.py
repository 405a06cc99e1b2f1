"""Nodes that call each other over a broker in this process, and a roster that a test can change."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager, contextmanager
from random import Random
from typing import TYPE_CHECKING

import attrs
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete
from cord_trio.counters import Counters
from cord_trio.mesh.calling import Calling, open_calling
from cord_trio.mesh.owning import Owning
from cord_trio.mesh.parts import Parts
from cord_trio.mesh.presence import Presence, join
from cord_trio.mesh.signing import Door, Signer
from cord_trio.nats.kv import open_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence

    from cord_trio.call import EventSink, Handler, Outcome
    from cord_trio.mesh.local import LocalBroker, Way
    from cord_trio.mesh.owning import Admit
    from cord_trio.mesh.presence import Lease
    from cord_trio.nats.client import Nats


class Names:
    """A roster that knows what it is told."""

    def __init__(self) -> None:
        self.epochs: dict[str, str] = {}
        self._hearing: list[Callable[[str, str], None]] = []

    def epoch(self, node: str) -> str | None:
        return self.epochs.get(node)

    @contextmanager
    def hearing(self, ended: Callable[[str, str], None]) -> Generator[None]:
        self._hearing.append(ended)
        try:
            yield
        finally:
            self._hearing.remove(ended)

    def begun(self, lease: Lease) -> None:
        self.end(lease.node)
        self.epochs[lease.node] = lease.epoch

    def end(self, node: str) -> None:
        """The incarnation of `node` is no more, say all."""
        epoch = self.epochs.pop(node, None)
        if epoch is not None:
            for tell in list(self._hearing):
                tell(node, epoch)


@attrs.frozen
class Node:
    name: str
    way: Way
    bulk: Way
    nats: Nats
    parts: Parts
    presence: Presence
    owning: Owning
    calling: Calling
    counters: Counters


@asynccontextmanager
async def node(
    broker: LocalBroker,
    names: Names,
    name: str,
    handler: Handler | None = None,
    *,
    admit: Admit | None = None,
    drop: Callable[[str, str], None] | None = None,
    slots: int = 64,
    line: int = 64,
    keys: Sequence[str] = (),
    callers: Sequence[str] = ("*",),
) -> AsyncGenerator[Node]:
    """A node that does with calls what `handler` does."""
    way, wide, counters = broker.way(), broker.way(), Counters()
    async with way.open(name, counters=counters) as nats, wide.open(name) as bulk:
        bucket = await open_bucket(nats, "cord_m")
        parts = Parts(bulk, counters=counters)
        signer = Signer(keys, "m", name) if keys else None
        door = Door(signer, callers, counters)
        owning = Owning(
            nats, handler or echo, names, parts=parts, door=door, admit=admit, drop=drop, slots=slots, line=line,
            counters=counters,
        )  # fmt: skip

        def begun(lease: Lease) -> None:
            names.begun(lease)
            owning.begun(lease)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(parts.run)
            async with join(
                nats, bucket, mesh="m", node=name, take=owning.take, begun=begun, rng=Random(name), counters=counters
            ) as presence:

                def epoch() -> str:
                    return "" if presence.lease is None else presence.lease.epoch

                async with open_calling(
                    nats,
                    names,
                    mesh="m",
                    node=name,
                    epoch=epoch,
                    parts=parts,
                    signer=signer,
                    rng=Random(name),
                    counters=counters,
                ) as calling:
                    yield Node(name, way, wide, nats, parts, presence, owning, calling, counters)
            nursery.cancel_scope.cancel("the test has ended")
        names.end(name)


async def echo(call: Call) -> Outcome:
    """The arguments as they came."""
    await trio.lowlevel.checkpoint()
    return Complete(call.params.get("arguments", Raw(b"{}")))


def tool_call(
    arguments: bytes = b"{}", *, name: str = "t", within: float = math.inf, events: EventSink | None = None
) -> Call:
    deadline = within if within == math.inf else trio.current_time() + within
    return Call("tools/call", name, {"arguments": Raw(arguments)}, deadline=deadline, events=events)
