"""autogen-core: two registered agents on the single-threaded runtime; a handoff is a message to the next one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib.metadata import version
from time import perf_counter as clock

from agents_common import measure, run, spread
from autogen_core import AgentId, MessageContext, RoutedAgent, SingleThreadedAgentRuntime, message_handler


@dataclass
class Note:
    number: int
    since: float


handoffs, asks = [], []


class Giver(RoutedAgent):
    @message_handler
    async def take(self, message: Note, ctx: MessageContext) -> Note:
        return await self.send_message(Note(message.number, clock()), AgentId("taker", "default"))


class Taker(RoutedAgent):
    @message_handler
    async def take(self, message: Note, ctx: MessageContext) -> Note:
        handoffs.append(clock() - message.since)
        return Note(message.number + 1, 0.0)


class Asker(RoutedAgent):
    @message_handler
    async def take(self, message: Note, ctx: MessageContext) -> Note:
        began = clock()
        answer = await self.send_message(message, AgentId("echo", "default"))
        asks.append(clock() - began)
        return answer


class Echo(RoutedAgent):
    @message_handler
    async def take(self, message: Note, ctx: MessageContext) -> Note:
        return Note(message.number + 1, 0.0)


async def main(seconds):
    runtime = SingleThreadedAgentRuntime()
    for name, kind in (("giver", Giver), ("taker", Taker), ("asker", Asker), ("echo", Echo)):
        await kind.register(runtime, name, lambda kind=kind: kind(kind.__name__))
    runtime.start()

    async def hand(number):
        return (await runtime.send_message(Note(number, 0.0), AgentId("giver", "default"))).number

    async def ask(number):
        return (await runtime.send_message(Note(number, 0.0), AgentId("asker", "default"))).number

    wrong = await measure(hand, seconds) + await measure(ask, seconds)
    await runtime.stop()
    found = {"autogen-core": version("autogen-core")}
    return {**spread("handoff", handoffs), **spread("ask", asks), "wrong": wrong, "versions": found}


if __name__ == "__main__":
    run(lambda seconds: asyncio.run(main(seconds)))
