"""cord_trio alone, at one size of one thing: `grow.py WHAT SIZE` prints one line of JSON, `time` and `memory`.

WHAT is `sources` (C servers over stdio), `tools` (of one source), `agents`, `message` (bytes of one call and its
answer) or `logs` (lines a second, of ten servers together). What `time` and `memory` are of each is in growth.py.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from time import perf_counter as clock

import trio
from cord_config import toml

import cord_trio
from cord_trio.config import Stdio
from cord_trio.protocol.tools import decode_tools_page
from cord_trio.registry import Registry, Update

CMCP = str(Path(__file__).parent.parent / "build" / "cmcp")
READY = 60
ENOUGH = 0.5
"""Seconds of measuring."""


def rss_mb():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def servers(count, *options):
    sources = [{"name": f"s{n:03d}", "command": [CMCP, "--name", f"s{n:03d}", *options]} for n in range(count)]
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(toml(sources))
        file.flush()
        return cord_trio.load_config(file.name)


async def repeated(once):
    """Seconds that one `await once()` takes, on average of many."""
    await once()
    times, began = 0, clock()
    while clock() < began + ENOUGH:
        await once()
        times += 1
    return (clock() - began) / times


async def sources(size):
    config, before, used = servers(size), rss_mb(), cpu()
    async with cord_trio.open_fabric(config) as fabric:
        with trio.fail_after(READY):
            await fabric.wait_started()
        took = cpu() - used
        assert all(link.state == "ready" for link in fabric.links.values())
        return took, rss_mb() - before


def page(count, round):
    schema = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
    tools = [{"name": f"t{n}", "description": f"Tool {n}, {round}", "inputSchema": schema} for n in range(count)]
    return decode_tools_page(json.dumps({"tools": tools}).encode()).tools


async def tools(size):
    """Of sources with 100 each; a change is one of one source."""
    each = min(100, size)
    names = [f"s{n}" for n in range(size // each)]
    before = rss_mb()
    registry = Registry({name: Stdio(name=name, command="none") for name in names})
    async with trio.open_nursery() as nursery:
        await nursery.start(registry.run)
        for name in names:
            await registry.update(Update(name, 1, "ready", page(each, 0)))
        memory = rss_mb() - before
        gc.freeze()
        epoch, took = 1, []
        pages = [page(each, 1), page(each, 2)]
        began = clock()
        while clock() < began + ENOUGH:
            epoch += 1
            started = clock()
            await registry.update(Update(names[0], epoch, "ready", pages[epoch % 2]))
            took.append(clock() - started)
        nursery.cancel_scope.cancel()
    assert len(registry.snapshot.tools) == size
    return sorted(took)[len(took) // 2], memory


async def agents(size):
    async def first(ctx, payload):  # noqa: ASYNC124  # async by contract
        return ctx.handoff(f"a{size - 1}", payload)

    async def idle(ctx, payload):  # noqa: ASYNC124  # async by contract
        return payload

    async with cord_trio.open_fabric() as fabric:
        before = rss_mb()
        for number in range(size):
            fabric.agent(f"a{number}", idle)
        memory = rss_mb() - before
        fabric.agent("first", first)
        gc.freeze()
        return await repeated(lambda: fabric.ask("first", 1)), memory


async def message(size):
    config = servers(1)
    text = "x" * size
    async with cord_trio.open_fabric(config) as fabric:
        await fabric.wait_started()
        before = rss_mb()

        async def once():
            assert len((await fabric.call("s000__echo", {"msg": text})).text) == size

        await once()
        times, began, used = 0, clock(), cpu()  # CPU: most of the time is the server's, and the kernel's between us
        while clock() < began + ENOUGH:
            await once()
            times += 1
        return (cpu() - used) / times, rss_mb() - before


async def logs(size):
    """CPU seconds in each second, while one call in 10 ms is answered."""
    config = servers(10, "--flood", str(size / 10))
    async with cord_trio.open_fabric(config) as fabric:
        await fabric.wait_started()
        await trio.sleep(0.2)
        began, used = clock(), cpu()
        while clock() < began + 4 * ENOUGH:
            assert (await fabric.call("s000__echo", {"msg": "x"})).text == "x"
            await trio.sleep(0.01)
        return (cpu() - used) / (clock() - began), rss_mb()


KINDS = {"sources": sources, "tools": tools, "agents": agents, "message": message, "logs": logs}
time, memory = trio.run(KINDS[sys.argv[1]], int(sys.argv[2]))
print(json.dumps({"time": time, "memory": memory}))
