"""Calls of a fabric to servers of another, in another process: `python -m bench.mesh_fabrics URL` is that other one.

Its servers are one in its own process and one that is a process of its own, so that what the hop costs is seen apart
from what a server costs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from contextlib import contextmanager

import trio

from bench.timing import parts, timed
from cord_trio.config import Config, MeshConfig
from cord_trio.fabric import open_fabric
from cord_trio.mesh.joining import in_mesh
from cord_trio.testing import ToolServer

TEXT = "x" * 245
"""With what is around it, 256 bytes."""

KINDS = {"within": "in its fabric's process", "apart": "over stdio"}


def sources(*, prefix=""):
    return [
        ToolServer(name=f"{prefix}within").in_process(),
        ToolServer(name=f"{prefix}apart").source(),
    ]


def settings(url, node, found):
    return Config(sources=found, mesh=MeshConfig(servers=[url], node=node))


async def own(url):
    config = settings(url, "theirs", sources())
    async with open_fabric(config, mesh=in_mesh(config.mesh)) as fabric:
        await listed(fabric, "")
        print("ready", flush=True)  # its parent waits for it
        await trio.sleep_forever()


async def listed(fabric, prefix):
    version = -1
    while not all(f"{prefix}{kind}__echo" in fabric.registry.snapshot.tools for kind in KINDS):
        version = (await fabric.registry.changed(version)).version


@contextmanager
def owner(url):
    command = [sys.executable, "-m", "bench.mesh_fabrics", url]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            if process.stdout.readline() != b"ready\n":
                raise SystemExit("bench: the other fabric did not start")
            yield
        finally:
            process.terminate()


async def through(url, calls):
    """The same tool of the same kind of server, had here and there, in turns."""
    config = settings(url, "ours", sources(prefix="own_"))
    rows = []
    with owner(url):
        async with open_fabric(config, mesh=in_mesh(config.mesh)) as fabric:
            await listed(fabric, "own_")
            await listed(fabric, "")
            for kind, where in KINDS.items():
                times = {prefix: [] for prefix in ("own_", "")}
                for _ in range(5):
                    for prefix, seen in times.items():
                        name = f"{prefix}{kind}__echo"
                        seen.append(parts(await timed(lambda name=name: fabric.call(name, {"text": TEXT}), calls)))
                here, there = (statistics.median(p50 for p50, *_ in seen) for seen in times.values())
                rows.append(
                    (f"tool of a server {where}", f"p50 {here:.2f} ms here, {there:.2f} ms of another node's fabric")
                )
    return rows


if __name__ == "__main__":
    trio.run(own, sys.argv[1])
