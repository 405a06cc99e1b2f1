"""Floor for a stdio client on Trio: direct writes, one reader task a server, the caller rescheduled by its reply."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib.metadata import version

import trio
from floor_wire import Child
from runtime import Client, open_each


def versions():
    return {name: version(name) for name in ("trio", "msgspec")}


def open_clients(runtime, sources, *, era, in_flight):
    @asynccontextmanager
    async def open_one(source):
        child = Child(source["command"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.keep_reading)
            await child.open()
            yield Client(child.echo, child.stats)
            nursery.cancel_scope.cancel()
        child.close()

    return open_each(runtime, sources, open_one)
