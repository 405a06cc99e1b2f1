"""cord_trio's agents, with grants, a budget and a trace context."""

from __future__ import annotations

from agents_common import measure, spread

import cord_trio


def versions():
    from importlib.metadata import version

    return {"cord-trio": version("cord-trio"), "trio": version("trio")}


async def main(seconds):
    handoffs, asks = [], []

    async def giver(ctx, number):  # noqa: ASYNC124  # async by contract
        return ctx.handoff("taker", (number, clock()))

    async def taker(ctx, payload):  # noqa: ASYNC124  # async by contract
        number, since = payload
        handoffs.append(clock() - since)
        return number + 1

    async def asker(ctx, number):
        began = clock()
        answer = await ctx.ask("echo", number)
        asks.append(clock() - began)
        return answer

    async def echo(ctx, number):  # noqa: ASYNC124  # async by contract
        return number + 1

    from time import perf_counter as clock

    async with cord_trio.open_fabric() as fabric:
        fabric.agent("giver", giver, agents=["taker"], tools=[])
        fabric.agent("taker", taker, agents=[], tools=[])
        fabric.agent("asker", asker, agents=["echo"], tools=[])
        fabric.agent("echo", echo, agents=[], tools=[])
        budget = cord_trio.Budget(calls=10**9, hops=10**9)
        trace = cord_trio.TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")

        async def hand(number):
            return await fabric.ask("giver", number, budget=budget, trace=trace)

        async def ask(number):
            return await fabric.ask("asker", number, budget=budget, trace=trace)

        wrong = await measure(hand, seconds) + await measure(ask, seconds)
    return {**spread("handoff", handoffs), **spread("ask", asks), "wrong": wrong, "versions": versions()}


if __name__ == "__main__":
    import trio
    from agents_common import run

    run(lambda seconds: trio.run(main, seconds))
