"""cord_trio: one fabric with all sources. Layers and deadlines are as they come; only `slots` follows the load."""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager
from importlib.metadata import version

from cord_config import toml
from runtime import Client

from cord_trio import load_config, open_fabric  # now: what is imported when it is first asked for would count else

READY = 30.0
"""Seconds for all sources to come up."""


def versions():
    return {name: version(name) for name in ("cord-trio", "trio", "msgspec")}


def load(sources, era, slots):
    with tempfile.NamedTemporaryFile("w", prefix="bench-", suffix=".toml") as file:
        file.write(toml(sources, era=era, slots=slots))
        file.flush()
        return load_config(file.name)


@asynccontextmanager
async def open_clients(runtime, sources, *, era, in_flight):
    import trio

    async with open_fabric(load(sources, era, max(32, in_flight))) as fabric:
        with trio.fail_after(READY):
            await fabric.wait_started()

        def client(name):
            echoing, counting = f"{name}__echo", f"{name}__stats"

            async def echo(text):
                return (await fabric.call(echoing, {"msg": text})).text

            async def stats():
                return (await fabric.call(counting, {})).text

            return Client(echo, stats)

        yield [client(source["name"]) for source in sources]
