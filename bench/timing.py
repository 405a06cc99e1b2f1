"""How long calls take, one after another."""

from __future__ import annotations

import time


def parts(times):
    """The median, the 99th percentile and the longest, in milliseconds."""
    times = sorted(times)
    at = lambda share: 1000 * times[min(len(times) - 1, int(len(times) * share))]  # noqa: E731
    return at(0.5), at(0.99), 1000 * times[-1]


async def timed(call, rounds):
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began)
    return times
