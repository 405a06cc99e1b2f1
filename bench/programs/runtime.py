"""The few things that the harness needs of an event loop, for Trio and for asyncio."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import NamedTuple


class Client(NamedTuple):
    """One source: `await echo(text) -> text`, and `await stats() -> text`, what its server has counted."""

    echo: object
    stats: object


class Trio:
    def __init__(self):
        import trio

        self.Event = trio.Event
        self.sleep = trio.sleep
        self.run = trio.run

    @asynccontextmanager
    async def tasks(self):
        import trio

        async with trio.open_nursery() as nursery:
            yield nursery.start_soon


class Asyncio:
    def __init__(self):
        import asyncio

        self.Event = asyncio.Event
        self.sleep = asyncio.sleep
        self._run = asyncio.run

    def run(self, function):
        return self._run(function())

    @asynccontextmanager
    async def tasks(self):
        import asyncio

        async with asyncio.TaskGroup() as group:
            yield lambda function, *args: group.create_task(function(*args))


RUNTIMES = {"trio": Trio, "asyncio": Asyncio}


@asynccontextmanager
async def open_each(runtime, sources, open_one):
    """A client for each source, all opened at once, each held open by a task of its own."""
    clients = [None] * len(sources)
    opened, stop = runtime.Event(), runtime.Event()

    async def hold(index, source):
        async with open_one(source) as client:
            clients[index] = client
            if None not in clients:
                opened.set()
            await stop.wait()

    async with runtime.tasks() as start:
        for index, source in enumerate(sources):
            start(hold, index, source)
        await opened.wait()
        yield clients
        stop.set()
