"""cord_trio alone: a registry of 50,000 tools, `registry_cord.py SECONDS`: a lookup, a change, a full collection."""

from __future__ import annotations

import gc
import json
import random
import statistics
from importlib.metadata import version
from time import perf_counter as clock

import trio
from agents_common import run

from cord_trio.config import Stdio
from cord_trio.protocol.tools import decode_tools_page
from cord_trio.registry import Registry, Update

SOURCES, EACH = 500, 100
LOOKUPS = 10_000


def page(name, round):
    tools = [
        {
            "name": f"tool_{index}",
            "description": f"Tool {index} of {name}, {round}",
            "inputSchema": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
        }
        for index in range(EACH)
    ]
    return decode_tools_page(json.dumps({"tools": tools}).encode()).tools


async def measure(seconds):
    rng = random.Random(1)
    sources = {f"s{index:03d}": Stdio(name=f"s{index:03d}", command="none") for index in range(SOURCES)}
    registry = Registry(sources)
    async with trio.open_nursery() as nursery:
        await nursery.start(registry.run)
        for name in sources:
            await registry.update(Update(name, 1, "ready", page(name, 0)))
        tools = registry.snapshot.tools
        names = rng.choices(list(tools), k=LOOKUPS)
        lookups = []
        for _ in range(20):
            began = clock()
            for name in names:
                tools[name]
            lookups.append((clock() - began) / LOOKUPS)
        gc.collect()
        gc.freeze()
        collections = []
        for _ in range(5):
            began = clock()
            gc.collect()
            collections.append(clock() - began)
        changes, epoch, until = [], 1, clock() + seconds
        names = list(sources)
        while clock() < until:
            epoch += 1
            name = rng.choice(names)
            update = Update(name, epoch, "ready", page(name, epoch))
            began = clock()
            await registry.update(update)
            changes.append(clock() - began)
        wrong = len(registry.snapshot.tools) != SOURCES * EACH
        nursery.cancel_scope.cancel()
    return {
        "lookup_ns": statistics.median(lookups) * 1e9,
        "change_us": statistics.median(changes) * 1e6,
        "gc_ms": max(collections) * 1e3,
        "wrong": int(wrong),
        "versions": {"cord-trio": version("cord-trio")},
    }


if __name__ == "__main__":
    run(lambda seconds: trio.run(measure, seconds))
