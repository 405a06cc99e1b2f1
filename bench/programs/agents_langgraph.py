"""LangGraph: a handoff is `Command(goto=...)` to the next node, an ask is a node that invokes another graph."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from time import perf_counter as clock
from typing import TypedDict

from agents_common import measure, run, spread
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command


class State(TypedDict):
    number: int
    since: float


handoffs, asks = [], []


async def giver(state: State) -> Command:  # noqa: ASYNC124  # async by contract
    return Command(goto="taker", update={"since": clock()})


async def taker(state: State) -> State:  # noqa: ASYNC124  # async by contract
    handoffs.append(clock() - state["since"])
    return {"number": state["number"] + 1}


async def echo(state: State) -> State:  # noqa: ASYNC124  # async by contract
    return {"number": state["number"] + 1}


def graph_of(**nodes):
    graph = StateGraph(State)
    for name, node in nodes.items():
        graph.add_node(name, node, **({"destinations": ("taker",)} if name == "giver" else {}))
    graph.add_edge(START, next(iter(nodes)))
    graph.add_edge(list(nodes)[-1], END)
    return graph.compile()


async def main(seconds):
    handing, echoing = graph_of(giver=giver, taker=taker), graph_of(echo=echo)

    async def asker(state: State) -> State:
        began = clock()
        answer = await echoing.ainvoke({"number": state["number"], "since": 0.0})
        asks.append(clock() - began)
        return {"number": answer["number"]}

    asking = graph_of(asker=asker)

    async def hand(number):
        return (await handing.ainvoke({"number": number, "since": 0.0}))["number"]

    async def ask(number):
        return (await asking.ainvoke({"number": number, "since": 0.0}))["number"]

    wrong = await measure(hand, seconds) + await measure(ask, seconds)
    found = {"langgraph": version("langgraph")}
    return {**spread("handoff", handoffs), **spread("ask", asks), "wrong": wrong, "versions": found}


if __name__ == "__main__":
    run(lambda seconds: asyncio.run(main(seconds)))
