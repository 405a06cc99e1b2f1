"""Floor for many stdio servers on Trio: one task for all, which reads whatever is ready in a private epoll."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib.metadata import version

import trio
from floor_wire import Child, Pump
from runtime import Client


def versions():
    return {name: version(name) for name in ("trio", "msgspec")}


@asynccontextmanager
async def open_clients(runtime, sources, *, era, in_flight):
    pump = Pump()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run)
        children = []
        async with trio.open_nursery() as starting:
            for source in sources:
                child = Child(source["command"])
                pump.add_child(child)
                starting.start_soon(child.open)
                children.append(child)
        yield [Client(child.echo, child.stats) for child in children]
        nursery.cancel_scope.cancel()
    for child in children:
        child.close()
