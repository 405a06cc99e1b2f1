"""Calls between nodes, whatever happens to the ways, the broker and the nodes: laws of the mesh, by their numbers.

1 A call runs at most once, over all replicas. 2 It returns by its deadline, and is cancelled where it runs by then.
3 `executed` is never wrong: "no" never ran, and a success ran once. 7 A cancel reaches all that the call set off, at
the latest when its caller is known to be gone. 8 What a node keeps is bounded, and nothing is left over.
"""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING

import attrs
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Raw
from trio.testing import MockClock

from cord_trio.call import Call, Complete, Outcome
from cord_trio.errors import CallError, CordError
from cord_trio.mesh.local import LocalBroker, Way, open_broker
from cord_trio.mesh.node import Node, open_node
from cord_trio.mesh.presence import LEASE
from cord_trio.nats.kv import open_bucket
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from properties.invariants import proves

if TYPE_CHECKING:
    from cord_trio.call import Handler

NODES = "abc"
LATE = 0.25
"""Seconds past its deadline by which a call may return."""

SETTLING = 10 * LEASE
"""Seconds after which nothing of what was asked before may still run."""


@attrs.define
class Ask:
    """One call, as its caller knows it."""

    deadline: float
    begun: list[str] = attrs.Factory(list)
    completed: int = 0
    running: int = 0
    ended: list[float] = attrs.Factory(list)
    returned: float = math.inf
    executed: str = ""
    """"result" for one, else what its error says; "cancelled"."""
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)


class World:
    """Three nodes that die and come back, and what they were asked."""

    def __init__(self, broker: LocalBroker, seed: int) -> None:
        self.broker = broker
        self.seed = seed
        self.asks: list[Ask] = []
        self.nodes: dict[str, Node] = {}
        self.ways: dict[str, tuple[Way, Way]] = {}
        self.scopes = {name: trio.CancelScope() for name in NODES}

    async def live(self, name: str) -> None:
        """Be a process that a supervisor starts again and again."""
        rng = Random(f"{name}{self.seed}")
        while True:
            self.ways[name] = (self.broker.way(), self.broker.way())
            with self.scopes[name]:
                try:
                    async with self.ways[name][0].open() as nats, self.ways[name][1].open() as bulk:
                        store = await open_bucket(nats, "cord_m")
                        async with open_node(
                            nats, store, mesh="m", node=name, bulk=bulk, handler=self.handler(name), rng=rng
                        ) as node:
                            self.nodes[name] = node
                            try:
                                await trio.sleep_forever()
                            finally:
                                del self.nodes[name]
                except CordError:
                    pass
            self.scopes[name] = trio.CancelScope()
            await trio.sleep(rng.uniform(0.1, 3))

    def handler(self, name: str) -> Handler:
        async def handle(call: Call) -> Outcome:
            number, seconds, onward, size = (int(part) for part in bytes(call.params["arguments"]).split(b",")[1:-1])
            ask = self.asks[number]
            if call.name == "outer":
                ask.begun.append(name)
            ask.running += 1
            try:
                if onward and name in self.nodes:
                    others = [each for each in NODES if each != name]
                    inner = Call("tools/call", "inner", call.params, deadline=call.deadline)
                    params = {"arguments": arguments(number, seconds, 0, 0)}
                    await self.nodes[name].calling.call(attrs_replace(inner, params), others)
                await trio.sleep(seconds / 10)
                if call.name == "outer":
                    ask.completed += 1
                return Complete(Raw(b'"%b"' % (b"x" * size)))
            finally:
                ask.running -= 1
                ask.ended.append(trio.current_time())

        return handle

    async def ask(self, of: str, details: tuple[float, ...]) -> None:
        seconds, within, onward, size = details
        if of not in self.nodes:
            return
        ask = Ask(trio.current_time() + within)
        self.asks.append(ask)
        call = Call(
            "tools/call", "outer", {"arguments": arguments(len(self.asks) - 1, int(seconds), int(onward), int(size))},
            deadline=ask.deadline,
        )  # fmt: skip
        ask.executed = "cancelled"
        calling = self.nodes[of].calling
        with ask.scope:
            try:
                outcome = await calling.call(call, [each for each in NODES if each != of])
                assert isinstance(outcome, Complete)
                ask.executed = "result"
            except CallError as exc:
                ask.executed = exc.executed
        ask.returned = trio.current_time()


def arguments(number: int, seconds: int, onward: int, size: int) -> Raw:
    return Raw(b"[0,%d,%d,%d,%d,0]" % (number, seconds, onward, size))


def attrs_replace(call: Call, params: dict[str, Raw]) -> Call:
    return Call(call.method, call.name, params, deadline=call.deadline)


PAUSES = st.sampled_from([0.0, 0.01, 0.5, 2.0, 4.0, LEASE * 0.9, 40.0])
STEPS = st.lists(
    st.tuples(st.just("ask"), st.sampled_from(NODES), st.tuples(st.integers(0, 120), st.sampled_from([1.0, 9.0, 60.0]),
        st.integers(0, 1), st.sampled_from([0, 300_000]))) .map(lambda step: (*step, 0.0))
    | st.tuples(st.sampled_from(["cut", "mend", "reset", "bulk", "crash", "leave"]), st.sampled_from(NODES),
        st.just(()), PAUSES)
    | st.tuples(st.sampled_from(["kill", "start", "cancel", "forget"]), st.just("a"), st.just(()), PAUSES),
    max_size=14,
)  # fmt: skip


async def run(world: World, nursery: trio.Nursery, steps: list[tuple[str, str, tuple[float, ...], float]]) -> None:
    broker = world.broker
    for name in NODES:
        nursery.start_soon(world.live, name)
    await trio.sleep(5)
    async with trio.open_nursery() as asking:
        for what, name, details, pause in steps:
            way, bulk = world.ways[name]
            match what:
                case "ask":
                    asking.start_soon(world.ask, name, details)
                case "kill" | "start":
                    getattr(broker, what)()
                case "cancel":
                    for ask in world.asks:
                        ask.scope.cancel("the test wants it")
                case "forget":
                    if "KV_cord_m" in broker.streams._streams:
                        broker.streams.lose("cord_m")
                case "crash":
                    way.cut()
                    bulk.cut()
                    world.scopes[name].cancel("the test wants it")
                case "leave":
                    world.scopes[name].cancel("the test wants it")
                case "bulk":
                    bulk.reset()
                case _:
                    getattr(way, what)()
            await trio.sleep(pause)
        broker.start()
        for way, bulk in world.ways.values():
            way.mend()
            bulk.mend()
    await trio.sleep(SETTLING)


def check(world: World) -> None:
    for number, ask in enumerate(world.asks):
        assert len(ask.begun) <= 1, f"1: call {number} ran on {ask.begun}"
        assert ask.returned <= ask.deadline + LATE, f"2: call {number} returned late"
        assert max(ask.ended, default=0) <= ask.deadline + LATE, f"2: call {number} ran on"
        assert ask.executed != "no" or not ask.begun, f"3: call {number} ran on {ask.begun}"
        assert ask.executed != "result" or ask.completed == 1, f"3: call {number} succeeded {ask.completed} times"
        assert ask.running == 0, f"7: call {number} still runs"
    for node in world.nodes.values():
        tenure = node.owning._tenure
        assert tenure is not None
        tenure.forget(trio.current_time())
        left = (len(tenure.known), len(tenure._ended), tenure._kept_bytes, len(node.calling._flights))
        assert left == (0, 0, 0, 0), f"8: left at node {node.name}"
        assert (tenure.admission.busy, node.calling._withdrawals._untold) == (0, 0), f"8: left at node {node.name}"


@proves("mesh.1", "mesh.2", "mesh.3", "mesh.7", "mesh.8")
@given(schedules(), STEPS, st.integers(0, 5))
@settings(max_examples=max(8, settings().max_examples // 5))
@example(Random(1), [("ask", "a", (20, 9.0, 1, 300_000), 0.0), ("kill", "a", (), 1.0), ("start", "a", (), 4.0)], 0)
@example(Random(1), [("ask", "a", (100, 60.0, 1, 0), 0.5), ("crash", "a", (), 2.0)], 0)
def test_calls_keep_their_laws(rng: Random, steps: list[tuple[str, str, tuple[float, ...], float]], seed: int) -> None:
    async def main() -> None:
        async with open_broker(Random(seed)) as broker, trio.open_nursery() as nursery:
            world = World(broker, seed)
            await run(world, nursery, steps)
            check(world)
            nursery.cancel_scope.cancel("enough was seen")

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
