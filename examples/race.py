"""A race in an agent, the property that finds it, and the seed that repeats it.

Run it: `python examples/race.py`, or `pytest examples/race.py` to see Hypothesis report it. docs/testing.md tells
the story. It needs cord_trio and Hypothesis.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio
from hypothesis import find, given, settings
from hypothesis import strategies as st

from cord_trio.testing import ToolServer, find_failure, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

    import cord_trio as cord


class Store:
    """Two agents share its stock."""

    def __init__(self) -> None:
        self.stock = 5

    async def sell(self, ctx: cord.Context, count: int) -> None:
        self.stock -= count
        await ctx.call("till__echo", {"text": f"sold {count}"})

    async def deliver(self, ctx: cord.Context, count: int) -> None:
        stock = self.stock  # looked at here ...
        await ctx.call("till__echo", {"text": f"delivered {count}"})
        self.stock = stock + count  # ... and believed here: what was sold meanwhile comes back


class MendedStore(Store):
    """Looks and writes in one step, with no await in between."""

    async def deliver(self, ctx: cord.Context, count: int) -> None:
        await ctx.call("till__echo", {"text": f"delivered {count}"})
        self.stock += count


async def day(fabric: cord.Fabric, sales: Sequence[float] = (0.0, 1.0), store_class: type[Store] = Store) -> int:
    """A delivery of 3 at one o'clock, and sales at these hours; returns the stock in the evening."""
    store = store_class()
    fabric.agent("sell", store.sell, turn=8)
    fabric.agent("deliver", store.deliver)

    async def at(hour: float, agent: str, count: int) -> None:
        await trio.sleep(hour)
        await fabric.ask(agent, count)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, 1.0, "deliver", 3)
        for hour in sales:
            nursery.start_soon(at, hour, "sell", 1)
    assert store.stock == 5 + 3 - len(sales), f"{store.stock} in stock after {len(sales)} sales"
    return store.stock


SOURCES = {"till": ToolServer()}
SALES = st.lists(st.sampled_from([0.0, 1.0, 2.0]), max_size=4)


@settings(deadline=None, database=None)
@given(sales=SALES)
def test_what_is_sold_is_gone(sales: list[float]) -> None:
    failed = find_failure(partial(day, sales=sales), seeds=range(20), sources=SOURCES)
    if failed is not None:
        failed.unwrap()


def main() -> None:
    by_hand = simulate(partial(day, sales=[0.0, 2.0]), seed=1, sources=SOURCES)
    print("by hand all is well, in stock:", by_hand.unwrap())

    def fails(sales: list[float]) -> bool:
        return find_failure(partial(day, sales=sales), seeds=range(20), sources=SOURCES) is not None

    sales = find(SALES, fails, settings=settings(deadline=None, database=None, derandomize=True))
    trace = find_failure(partial(day, sales=sales), seeds=range(20), sources=SOURCES)
    assert trace is not None
    print(f"but not with sales at {sales} and seed {trace.seed}: {trace.error}")
    for line in trace.lines:
        if "tools/call" in line or "raised" in line:
            print(" ", line[:115])
    again = simulate(partial(day, sales=sales), seed=trace.seed, sources=SOURCES)
    print("the same again, byte for byte:", again.encode() == trace.encode())
    mended = find_failure(partial(day, sales=sales, store_class=MendedStore), seeds=range(100), sources=SOURCES)
    print("mended, of a hundred seeds there fail:", 0 if mended is None else 1)


if __name__ == "__main__":
    main()
