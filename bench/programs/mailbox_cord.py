"""cord_trio's mailbox: messages to an agent with a task of its own, as the fabric's users send them."""

from __future__ import annotations

from importlib.metadata import version
from time import perf_counter as clock

import trio
from agents_common import run, send_many

import cord_trio


async def main(_):
    took = []

    async def take(ctx, since):  # noqa: ASYNC124  # async by contract
        took.append(clock() - since)

    async with cord_trio.open_fabric() as fabric:
        fabric.agent("box", take, mailbox=cord_trio.Mailbox(64))
        figures = await send_many(lambda since: fabric.tell("box", since), took)
    return {**figures, "versions": {"cord-trio": version("cord-trio")}}


if __name__ == "__main__":
    run(lambda seconds: trio.run(main, seconds))
