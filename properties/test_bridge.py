"""Clients and servers of any revisions on both sides of one gateway, each held to what its revision allows.

What the clients saw and what the servers saw is checked frame by frame, under searched schedules, with cancels,
losses and delays; an answer reaches its own question and a result its own call; and nothing is held at the end.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

import trio
from hypothesis import event, given
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.config import Bounds, Config, InProcess
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.gateway import IDENTITY
from cord_trio.gateway.service import Service
from cord_trio.gateway.stdio_endpoint import Pipe, serve_pipe
from cord_trio.protocol.eras import ERAS
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.wire import FaultyTransport
from cord_trio.transports.memory import MemoryTransport
from properties.bridge_client import LISTEN, Ask, Client, Person
from properties.bridge_server import ASKS, Script, Server
from properties.invariants import proves

if TYPE_CHECKING:
    from cord_trio.transports import Receiver

Json: TypeAlias = Any

DEADLINE = 30.0
"""Seconds for a call."""
LAST_WORDS = 1.1
"""Seconds that a server has to end a call by itself whose question was given up."""

moments = st.sampled_from([0.0, 0.01, 0.03, 0.2, 1.0, 3.0])
revisions = st.sampled_from(list(ERAS))
kinds = st.lists(st.sampled_from(list(ASKS)), min_size=1, max_size=3, unique=True).map(tuple)
steps = st.one_of(
    st.tuples(st.just("ask"), kinds),
    st.tuples(st.just("ask"), kinds),
    st.tuples(st.just("wait"), moments),
    st.tuples(st.just("progress"), st.integers(1, 3)),
    st.tuples(st.just("falls"), st.integers(1, 3)),
    st.tuples(st.just("log"), st.just(1)),
    st.tuples(st.just("change"), st.just(0)),
)
endings = st.sampled_from(["text", "text", "rich", "fail", "error", "twice", "unknown", "silent", "drop", "lingers"])
scripts = st.builds(Script, st.lists(steps, max_size=4).map(tuple), endings)
rounds = st.sampled_from(["answer", "answer", "refuse", "late", "never", "replay", "wrong"])
asks = st.builds(Ask, moments, st.integers(0, 1), scripts, st.lists(rounds, max_size=3).map(tuple), st.none() | moments)


@st.composite
def people(draw: st.DrawFn) -> Person:
    """A client that declares only what its revision has."""
    revision = draw(revisions)
    era = ERAS[revision]
    known = [each for each, method in ASKS.items() if era.modern or method in era.asks]
    can = tuple(each for each in known if draw(st.sampled_from([True, True, False])))
    calls = draw(st.lists(asks, max_size=3).map(tuple))
    leaves = draw(st.one_of(st.none(), st.none(), moments))
    return Person(revision, can, calls, draw(st.booleans()), draw(st.booleans()), leaves)


class Watched(MemoryTransport):
    """The gateway's end of a pipe, which remembers who reads it."""

    pipe: Pipe

    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ASYNC128  # the inner transport calls it
        assert isinstance(receiver, Pipe)
        self.pipe = receiver
        await super().run(receiver, task_status=task_status)


class World:
    """One run: the gateway, its clients and its servers."""

    def __init__(self, crowd: list[Person], servers: list[str], chance: float, room: int, seed: int) -> None:
        self.crowd = crowd
        self.revisions = servers
        self.chance = chance
        self.room = room
        self.seed = seed
        self.wrong: list[str] = []
        self.servers: list[Server] = []
        self.clients: list[Client] = []
        self.pipes: list[Watched] = []
        self.asks: dict[int, Ask] = {}

    def play(self) -> None:
        with scheduled(Random(self.seed), choices=2000):
            trio.run(self.main, clock=MockClock(autojump_threshold=0))
        assert not self.wrong, "\n".join(self.wrong)

    async def main(self) -> None:
        number = 0
        first = []
        for person in self.crowd:
            first.append(number + 1)
            for ask in person.asks:
                number += 1
                self.asks[number] = ask
        async with trio.open_nursery() as tools:
            sources = []
            for place, revision in enumerate(self.revisions):
                scripts = {each: ask.script for each, ask in self.asks.items() if ask.source == place}
                self.servers.append(Server(revision, scripts, self.wrong, tools, lossy=self.chance > 0))
                sources.append(InProcess(name=f"s{place}", serve=self._faulty(place), deadline=DEADLINE))
            bounds = Bounds(interactive=self.room, park_time=200.0, interactive_idle=300.0)
            with trio.fail_after(100_000):
                async with open_fabric(Config(sources=sources, bounds=bounds), rng=Random(0)) as fabric:
                    await fabric.wait_started()
                    await self.serve(fabric, first)
            if len(fabric.timer):
                self.wrong.append("timers are held")
            tools.cancel_scope.cancel("all is seen")

    def _faulty(self, place: int) -> Json:
        rng = Random(f"{place} {self.seed}")

        async def serve(transport: MemoryTransport) -> None:
            faulty = FaultyTransport(transport, rng, among=("delay", "cut", "lose"), chance=self.chance, longest=3.0)
            await self.servers[place].serve(faulty if self.chance else transport)

        return serve

    async def serve(self, fabric: Fabric, first: list[int]) -> None:
        async with trio.open_nursery() as gateway:
            service = Service(fabric, IDENTITY)
            gateway.start_soon(service.watch)
            async with trio.open_nursery() as crowd:
                for person, number in zip(self.crowd, first, strict=True):
                    ours, theirs = Watched(), MemoryTransport()
                    ours._peer, theirs._peer = theirs, ours
                    client = Client(person, number, theirs, self.wrong, gateway)
                    self.clients.append(client)
                    self.pipes.append(ours)
                    gateway.start_soon(theirs.run, client)
                    gateway.start_soon(serve_pipe, service, ours)
                    crowd.start_soon(client.run)
            await trio.sleep(2_000)
            self.judge(fabric)
            gateway.cancel_scope.cancel("all is seen")

    # The end

    def judge(self, fabric: Fabric) -> None:
        self._all_answered()
        for server in self.servers:
            self._calls_closed(server)
            self._answers_right(server)
        self._nothing_held(fabric)

    def _all_answered(self) -> None:
        for client in self.clients:
            for id, sent in client.sent.items():
                if not client.left and sent.open and id != LISTEN:
                    client.blame(f"no answer to {id}")
            if not self.chance:
                self._retries(client)

    def _retries(self, client: Client) -> None:
        """Of all that came with one state to a call that was parked, one was taken."""
        taken: set[str] = set()
        for sent in client.sent.values():
            if sent.state is None or sent.reply is None or self.servers[self.asks[sent.number].source].era.modern:
                continue
            if (sent.reply.get("error") or {}).get("code") == -32602:
                continue
            if sent.state in taken:
                client.blame("a state was taken twice", sent.reply)
            taken.add(sent.state)

    def _calls_closed(self, server: Server) -> None:
        for number, count in server.started.items():
            if count > 1:
                server.blame(f"call {number} was run {count} times")
        if self.chance:
            return
        left = {
            sent.number: sent for client in self.clients for sent in client.sent.values() if sent.cancelled is not None
        }
        for seen in server.seen:
            if not seen.over:
                server.blame(f"call {seen.number} was left running")
            cancel = left.get(seen.number)
            if cancel is None or cancel.reply is not None or cancel.cancelled is None:
                continue
            ends = (seen.answered, seen.cancelled, seen.connection.ended)
            closed = min((each for each in ends if each is not None), default=0.0)
            if closed > cancel.cancelled + (LAST_WORDS if seen.asked else 0.0):
                server.blame(f"call {seen.number}, cancelled at {cancel.cancelled}, ran until {closed}")
        for seen in server.seen:
            if seen.cancelled is not None and seen.answered is not None:
                server.blame(f"call {seen.number} was answered after it was cancelled")

    def _answers_right(self, server: Server) -> None:
        owner = {number: client for client in self.clients for number, _ in client.numbered()}
        for number, kind, answer in server.answers:
            match kind:
                case _ if answer is None:
                    continue
                case "roots" if answer["roots"] and answer["roots"][0]["uri"] != f"file:///{owner[number].first}":
                    server.blame(f"the roots of another client for {number}: {answer}")
                case "elicitation" if answer.get("content", {}).get("of", str(number)) != str(number):
                    server.blame(f"the answer of another call for {number}: {answer}")
                case "sampling" if answer["content"]["text"] != f"of {number}":
                    server.blame(f"the sample of another call for {number}: {answer}")

    def _nothing_held(self, fabric: Fabric) -> None:
        held: dict[str, int] = {"parks": len(fabric._parks), "calls": fabric._running}
        for name, link in fabric.links.items():
            held[f"{name} slots"] = fabric.slots[name].taken + fabric.slots[name].waiting
            held[f"{name} interactive sessions"] = len(link.pool.sessions)  # type: ignore[union-attr]  # it is one server
            for _, upstream in link.open():
                open = [each for each in upstream.session.peer.open.values() if each.method != "subscriptions/listen"]
                held[f"{name} pending"] = len(open)
                held[f"{name} questions"] = len(upstream.session.peer.asked)
                held[f"{name} log levels"] = len(upstream.session.logging)
        for place, (client, watched) in enumerate(zip(self.clients, self.pipes, strict=True)):
            listens = LISTEN in client.sent and not client.left
            if not client.left:  # else it is gone, with its tasks, and nobody ends its requests one by one
                held[f"pipe {place} requests"] = len(watched.pipe.running) - listens
            held[f"pipe {place} asked"] = len(watched.pipe._asked)
            rest = 0 if client.left else 1 + (not client.era.modern) + listens
            held[f"pipe {place} tasks"] = len(watched.pipe._nursery.child_tasks) - rest
        self.wrong += [f"{count} {what} are held at the end" for what, count in held.items() if count]


@proves(1, 2, 26, 27, 30)
@given(
    st.lists(people(), min_size=1, max_size=4),
    st.lists(revisions, min_size=2, max_size=2),
    st.sampled_from([0.0, 0.0, 0.05]),
    st.sampled_from([1, 2, 16]),
    st.integers(0, 2**16),
)
def test_whoever_speaks_what_each_sees_what_its_revision_allows_and_nothing_is_held(
    crowd: list[Person], servers: list[str], chance: float, room: int, seed: int
) -> None:
    world = World(crowd, servers, chance, room, seed)
    world.play()
    for client in world.clients:
        for number, ask in client.numbered():
            if any(seen.number == number for server in world.servers for seen in server.seen):
                cell = "M" if client.era.modern else "L"
                event(f"{cell}→{'M' if ERAS[servers[ask.source]].modern else 'L'}")
