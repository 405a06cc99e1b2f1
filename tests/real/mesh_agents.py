"""Agents that a node of a mesh serves from its configuration, for tests with real processes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import trio

from cord_trio.config import Config, MeshConfig
from cord_trio.fabric import open_fabric
from cord_trio.mesh import keeping, presence, singletons
from cord_trio.mesh.joining import in_mesh

if TYPE_CHECKING:
    from cord_trio import Context


async def echo(ctx: Context, payload: object) -> object:
    """Gives back what it is given, and who led to it."""
    await trio.lowlevel.checkpoint()
    return [payload, ctx.chain]


async def slow(ctx: Context, payload: float) -> object:
    """Takes so many seconds."""
    await ctx.emit("begun")
    await trio.sleep(payload)
    return "done"


async def hands_back(ctx: Context, payload: str) -> object:
    """Hands on to whom it is told."""
    await trio.lowlevel.checkpoint()
    return ctx.handoff(payload, "handed")


class Clerk:
    """Counts what it was told."""

    def __init__(self) -> None:
        self.told = 0

    def state(self) -> object:
        return {"told": self.told}

    def restore(self, state: dict[str, int]) -> None:
        self.told = state["told"]

    async def __call__(self, ctx: Context, payload: object) -> object:
        await trio.sleep(0.05 if payload == "one more" else 0)
        self.told += payload == "one more"
        return self.told


def hurry(lease: int) -> None:
    """Let leases last so many seconds."""
    for module in (presence, singletons, keeping):
        module.LEASE = lease  # type: ignore[attr-defined]  # a test may


async def main(url: str, node: str, keys: str, lease: str) -> None:
    """Be a node that has, or stands by for, a clerk of which there is one."""
    hurry(int(lease))
    settings = MeshConfig(servers=[url], node=node, credentials=f"{keys}/{node}.nk")
    async with open_fabric(Config(mesh=settings), mesh=in_mesh(settings)) as fabric:
        fabric.singleton("clerk", Clerk)
        while "clerk" not in fabric.agents:  # noqa: ASYNC110  # a real server
            await trio.sleep(0.01)
        print("has it", flush=True)  # noqa: T201  # its parent waits for it
        await trio.sleep_forever()


if __name__ == "__main__":
    _, url, node, keys, lease = sys.argv
    trio.run(main, url, node, keys, lease)
