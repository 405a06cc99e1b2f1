"""Two nodes of a mesh: an agent on the one asks, tells and hands on to agents of the other, one of which then moves.

Run it with a NATS server: `python -m cord_trio mesh broker`, and `python examples/two_nodes.py nats://127.0.0.1:4222`.
Both nodes are in this process, to be read in one place; each could be `python -m cord_trio serve` on a machine of its
own, with its agents in its `cord.toml`.
"""

from __future__ import annotations

import sys

import trio

import cord_trio as cord
from cord_trio.config import MeshConfig
from cord_trio.mesh.joining import in_mesh


class Ledger:
    """Keeps a sum. There is one of it in the mesh, and it takes what it knows along wherever it goes."""

    def __init__(self) -> None:
        self.sum = 0

    def state(self) -> int:
        return self.sum

    def restore(self, state: int) -> None:
        self.sum = state

    async def __call__(self, ctx: cord.Context, job: dict[str, int]) -> int:  # noqa: ASYNC124  # async by contract
        self.sum += job.get("add", 0)
        return self.sum


async def clerk(ctx: cord.Context, order: int) -> cord.Handoff:
    """Tell the ledger, and let the writer answer; both are wherever they are."""
    await ctx.tell("ledger", {"add": order})
    return ctx.handoff("writer@cellar", await ctx.ask("ledger", {}))


async def writer(ctx: cord.Context, total: int) -> str:  # noqa: ASYNC124  # async by contract
    """Have the final words."""
    return f"{' > '.join(ctx.chain)}: {total}"


async def main(url: str) -> None:
    settings = {node: MeshConfig(servers=[url], name="example", node=node) for node in ("kitchen", "cellar")}
    async with (
        cord.open_fabric(mesh=in_mesh(settings["kitchen"])) as kitchen,
        cord.open_fabric(mesh=in_mesh(settings["cellar"])) as cellar,
    ):
        kitchen.agent("clerk", clerk)
        cellar.agent("writer", writer)
        for fabric in (cellar, kitchen):  # the first has it, the other stands by for it
            fabric.singleton("ledger", Ledger, mailbox=cord.Mailbox())
            while not await has_ledger(fabric):  # noqa: ASYNC110  # the mesh tells of it when it can
                await trio.sleep(0.1)
        with trio.fail_after(30):
            print(await kitchen.ask("clerk", 40))
            await kitchen.move("ledger", "kitchen")
            print(await kitchen.ask("clerk", 2), "ledger" in kitchen.agents)


async def has_ledger(fabric: cord.Fabric) -> bool:
    """Whether the ledger can be asked from there: a second or two after it was made."""
    try:
        await fabric.ask("ledger", {})
    except (cord.AgentError, cord.CallError):
        return False
    return True


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
