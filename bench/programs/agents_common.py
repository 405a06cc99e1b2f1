"""What the programs about agents share: `PROGRAM SECONDS` prints one line of JSON."""

from __future__ import annotations

import json
import sys
from time import perf_counter

WARM = 50
"""Rounds before anything counts; the figures of these are dropped by their number."""

MESSAGES = 500
BATCHES = 20


async def measure(once, seconds):
    """Call `once(number)`, which answers `number + 1`, for so long; returns how many answers were wrong."""
    wrong, number, until = 0, 0, perf_counter() + seconds
    while number < WARM or perf_counter() < until:
        wrong += await once(number) != number + 1
        number += 1
    return wrong


def spread(name, seconds):
    """Median and p99 in microseconds, without the warm-up."""
    values = sorted(seconds[WARM:]) or sorted(seconds)
    return {f"{name}_p50_us": values[len(values) // 2] * 1e6, f"{name}_p99_us": values[int(len(values) * 0.99)] * 1e6}


async def send_many(send, took):
    """The mailbox's figures. `send(x)` sends one message, whose taker at once adds the seconds since `x` to `took`."""
    import trio  # not every peer has it

    for _ in range(WARM + MESSAGES):
        await send(perf_counter())
        for _ in range(4):
            await trio.lowlevel.checkpoint()  # until the next one is waited for
    figures, batches = spread("one_way", took), []
    for _ in range(BATCHES):
        began = perf_counter()
        for _ in range(MESSAGES):
            await send(began)
        batches.append(perf_counter() - began)
    for _ in range(4):
        await trio.lowlevel.checkpoint()
    # The best batch: a neighbour makes the others dearer, nothing makes one cheaper.
    wrong = WARM + (1 + BATCHES) * MESSAGES - len(took)
    return {"one_way_us": figures["one_way_p50_us"], "tell_us": min(batches) / MESSAGES * 1e6, "wrong": wrong}


def run(main):
    print(json.dumps(main(float(sys.argv[1]))))
