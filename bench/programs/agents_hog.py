"""cord_trio alone: an agent that computes for long is named in the tree, with the line that it was at."""

from __future__ import annotations

from importlib.metadata import version
from time import perf_counter as clock

import trio
from agents_common import run

import cord_trio

HOGS = 20
HELD = 0.05
"""Seconds."""


async def compute(ctx, payload):  # noqa: ASYNC124  # async by contract
    until = clock() + HELD
    while clock() < until:
        pass
    return payload


async def answer(ctx, payload):  # noqa: ASYNC124  # async by contract
    return payload


async def main(_):
    async with cord_trio.open_fabric() as fabric, fabric.watched():
        fabric.agent("hog", compute)
        fabric.agent("other", answer)
        wrong = 0
        for number in range(HOGS):
            wrong += await fabric.ask("hog", number) != number
            wrong += await fabric.ask("other", number) != number
            await trio.sleep(0.005)
        hogs = [node for node in fabric.tree().children if node.kind == "hog"]
    # A neighbour on a busy machine may make others late, too, so they do not count.
    mine = [node for node in hogs if node.name == "hog#1" and "agents_hog.py" in node.facts["where"]]
    wrong += not mine
    return {
        "missed": HOGS - sum(node.facts["times"] for node in mine),
        "held_ms": max((node.facts["longest_ms"] for node in mine), default=0),
        "wrong": wrong, "versions": {"cord-trio": version("cord-trio")},
    }  # fmt: skip


if __name__ == "__main__":
    run(lambda seconds: trio.run(main, seconds))
