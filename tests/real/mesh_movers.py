"""A node that stands by for an agent of which there is one, and writes down what it does, for tests that kill it."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio

from cord_trio.config import Config, MeshConfig
from cord_trio.fabric import open_fabric
from cord_trio.mesh.joining import in_mesh
from tests.real.mesh_agents import hurry

if TYPE_CHECKING:
    from cord_trio import Context

WORK = 0.3
"""Seconds that a run takes."""


class Clerk:
    """Knows the numbers that it was given, and writes each down as it begins: its fence, and its node."""

    def __init__(self, node: str, ledger: str) -> None:
        self.node = node
        self.ledger = ledger
        self.known: list[int] = []

    def state(self) -> object:
        return self.known

    def restore(self, state: list[int]) -> None:
        self.known = state

    async def __call__(self, ctx: Context, number: int) -> object:
        file = os.open(self.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, f"{number} {ctx.fence} {self.node}\n".encode())
        finally:
            os.close(file)
        await trio.sleep(WORK)
        self.known.append(number)
        return [*self.known]


async def main(url: str, node: str, ledger: str, lease: str) -> None:
    hurry(int(lease))
    settings = MeshConfig(servers=[url], node=node)
    async with open_fabric(Config(mesh=settings), mesh=in_mesh(settings)) as fabric:
        fabric.singleton("clerk", partial(Clerk, node, ledger), restart="elsewhere")
        print("stands by", flush=True)  # noqa: T201  # its parent waits for it
        await trio.sleep_forever()


if __name__ == "__main__":
    _, url, node, ledger, lease = sys.argv
    trio.run(main, url, node, ledger, lease)
