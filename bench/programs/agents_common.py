"""What the programs about agents share: `PROGRAM SECONDS` prints one line of JSON."""

from __future__ import annotations

import json
import sys
from time import perf_counter

WARM = 50
"""Rounds before anything counts; the figures of these are dropped by their number."""


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


def run(main):
    print(json.dumps(main(float(sys.argv[1]))))
