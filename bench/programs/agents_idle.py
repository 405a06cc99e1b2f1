"""cord_trio alone: many idle agents, their memory, and what they add to the longest pause."""

from __future__ import annotations

import gc
import os
import statistics
from importlib.metadata import version
from time import perf_counter as clock

import trio
from agents_common import run

import cord_trio

AGENTS = 100_000
LOOK = 1_000
"""Agents that a look at a running fabric shows, as `tree` and `top` do."""


def rss_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def pause_ms(work, seconds=0.3):
    """The longest gap that a ticker of 1 ms sees while `work` is done again and again."""
    gaps = []

    async def tick():
        last = clock()
        while True:
            await trio.sleep(0.001)
            now = clock()
            gaps.append(now - last)
            last = now

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        until, times = clock() + seconds, 0
        while clock() < until:
            await trio.sleep(0.02)
            work()
            times += 1
        await trio.sleep(0.01)  # for the ticker to see the last one
        nursery.cancel_scope.cancel()
    # Each time makes one of the longest gaps; single ones are a neighbour's.
    return statistics.median(sorted(gaps)[-times:]) * 1e3


async def handler(ctx, payload):  # noqa: ASYNC124  # async by contract
    return payload


async def main(_):
    async with cord_trio.open_fabric() as fabric:
        gc.collect()
        gc.freeze()
        bare, look = await pause_ms(gc.collect), await pause_ms(lambda: fabric.tree(most=LOOK))
        before = rss_mb()
        for number in range(AGENTS):
            fabric.agent(f"a{number}", handler)
        gc.collect()
        gc.freeze()  # as docs/agents.md says
        memory = rss_mb() - before
        full, seen = await pause_ms(gc.collect), await pause_ms(lambda: fabric.tree(most=LOOK))
        wrong = await fabric.ask("a77", 1) != 1
    return {
        "idle_mb": memory, "gc_pause_ms": max(0.001, full - bare),
        "look_pause_ms": max(0.001, seen - look),
        "wrong": int(wrong), "versions": {"cord-trio": version("cord-trio")},
    }  # fmt: skip


if __name__ == "__main__":
    run(lambda seconds: trio.run(main, seconds))
