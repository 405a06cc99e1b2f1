"""Changes of resources over two nodes, whatever happens to ways, broker and owner: each is told in the end."""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack
from random import Random
from typing import Any, TypeAlias

import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.mesh.local import LocalBroker, open_broker
from cord_trio.mesh.presence import LEASE
from cord_trio.mesh.standing import BEAT
from cord_trio.testing.schedule import scheduled
from tests.full_server import FullServer
from tests.mesh.members import Member, member

Json: TypeAlias = Any

URIS = ("file:///a", "file:///b")
PUBLIC = {uri: f"cord://x/{uri}" for uri in URIS}
ACTIONS = st.one_of(
    st.tuples(st.just("update"), st.sampled_from(URIS)),
    st.tuples(st.sampled_from(["cut", "mend", "reset"]), st.sampled_from(["owner", "front"])),
    st.tuples(st.sampled_from(["wants", "leaves"]), st.sampled_from(URIS)),
    st.tuples(st.sampled_from(["goes", "comes", "kill", "start"]), st.just("")),
    st.tuples(st.just("time"), st.sampled_from([0.01, 0.3, 3.0, 40.0])),
)


class World:
    """Two nodes, a server of one, and somebody at the other who wants to hear of it."""

    def __init__(self, broker: LocalBroker, front: Member, modern: bool, stack: AsyncExitStack) -> None:
        self.broker, self.front = broker, front
        self.behind = FullServer(modern=modern)
        self.owner: Member | None = None
        self.incarnations = 0
        self.wishes: dict[str, ExitStack] = {}
        self.due: dict[str, float] = {}  # when what somebody wants to hear of has changed last
        self.told: dict[str, float] = {}  # when that was told last
        self._stack = stack  # of the owner

    async def comes(self) -> None:
        if self.owner is None:
            self.incarnations += 1
            mesh = member(self.broker, "owner", self.behind.source(), seed=str(self.incarnations))
            self.owner = await self._stack.enter_async_context(mesh)

    async def goes(self) -> None:
        self.owner = None
        await self._stack.aclose()

    def wants(self, uri: str) -> None:
        def told(public: str) -> None:
            self.told[public] = trio.current_time()

        if uri not in self.wishes:
            self.wishes[uri] = ExitStack()
            self.wishes[uri].enter_context(self.front.fabric.subscribe("p", [PUBLIC[uri]], told))

    def leaves(self, uri: str) -> None:
        if uri in self.wishes:
            self.wishes.pop(uri).close()
            self.due.pop(uri, None)

    def update(self, uri: str) -> None:
        # Before the server knows that somebody wants to hear of it, it tells nobody.
        if uri in self.wishes and (self.owner is None or uri in self.held()):
            self.due[uri] = trio.current_time()
        if self.owner is not None:
            self.behind.connections[-1].tell("notifications/resources/updated", {"uri": uri})

    def held(self) -> set[str]:
        """What the server tells of."""
        connection = self.behind.connections[-1]
        if not self.behind.modern:
            return connection.subscribed
        return {uri for each in connection.listening.values() for uri in each.get("resourceSubscriptions", ())}

    async def do(self, action: str, what: Json) -> None:
        match action:
            case "time":
                await trio.sleep(what)
            case "cut" | "mend" | "reset":
                who = self.owner if what == "owner" else self.front
                if who is not None:
                    getattr(who.way, action)()
            case "kill":
                self.broker.kill()
            case "start":
                self.broker.start()
            case "comes" | "goes":
                await self.heal()  # a node that cannot reach its broker neither joins nor leaves at once
                await (self.comes() if action == "comes" else self.goes())
            case _:
                getattr(self, action)(what)

    async def heal(self) -> None:
        self.broker.start()
        for each in (self.owner, self.front):
            if each is not None:
                each.way.mend()
        await trio.sleep(1)

    async def check(self) -> None:
        await self.heal()
        await self.comes()
        await trio.sleep(4 * LEASE)
        for uri, when in self.due.items():
            assert self.told.get(PUBLIC[uri], -1.0) >= when, uri
        assert self.held() == set(self.wishes)
        for uri in self.wishes:
            self.due[uri] = trio.current_time()
            self.update(uri)
        await trio.sleep(BEAT)
        assert [uri for uri in self.wishes if self.told.get(PUBLIC[uri], -1.0) < self.due[uri]] == []
        for uri in tuple(self.wishes):
            self.leaves(uri)
        await trio.sleep(3 * BEAT)
        assert self.held() == set()
        assert self.front.node.calling._flights == {}
        await self.goes()


@settings(max_examples=15)
@given(st.booleans(), st.lists(ACTIONS, max_size=12), st.integers(0, 2**16))
@example(modern=False, actions=[("update", URIS[0]), ("reset", "owner"), ("wants", URIS[1])], seed=0)
def test_each_change_is_told_in_the_end(modern: bool, actions: list[tuple[str, Json]], seed: int) -> None:
    async def main() -> None:
        async with open_broker(Random(seed)) as broker, member(broker, "front") as front:
            async with AsyncExitStack() as stack:
                world = World(broker, front, modern, stack)
                await world.comes()
                world.wants(URIS[0])
                await trio.sleep(3)
                for action, what in actions:
                    await world.do(action, what)
                await world.check()

    with scheduled(Random(seed)):
        trio.run(main, clock=MockClock(autojump_threshold=0))
