"""Invariants that no other property here is about: of the registry's readers, frames, the drain, bounds and floods."""

from __future__ import annotations

import math
import os
import random
import socket
import threading
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

import pytest
import trio
import trio.lowlevel
from hypothesis import Phase, event, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.agents import Backoff, Mailbox, Supervisor
from cord_trio.agents.agent import GRACE
from cord_trio.call import Call
from cord_trio.cell import Timer
from cord_trio.cli.figures import children
from cord_trio.config import Bounds, Config, GatewayConfig
from cord_trio.counters import Counters
from cord_trio.errors import AgentCrashed, AgentError, CallError, CordError, DeadlineExceeded, Draining, SourceDown
from cord_trio.fabric import LAST_CALLS, Fabric, open_fabric
from cord_trio.handshake import FreshNeeded, negotiate
from cord_trio.session import open_session
from cord_trio.testing import ToolServer
from cord_trio.testing.schedule import scheduled
from cord_trio.transports import Limits
from cord_trio.transports.lines import LEAST, QUANTUM, LineTransport, read_from
from cord_trio.transports.memory import memory_transport_pair
from properties.invariants import proves
from properties.test_fabric import SEEDS, Ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from cord_trio.agents import Context
    from cord_trio.agents.mailbox import Full
    from cord_trio.errors import ConnectionLost
    from cord_trio.handshake import EraChoice
    from cord_trio.registry import Snapshot

Json: TypeAlias = Any

VIRTUAL: Json = partial(MockClock, autojump_threshold=0)


def run(main: Callable[[], Json], seed: int, *instruments: trio.abc.Instrument) -> None:
    """Run `main` in virtual time, under the schedule of `seed`."""
    with scheduled(random.Random(seed)):
        trio.run(main, clock=VIRTUAL(), instruments=instruments)


async def ending(ask: Callable[[], Json]) -> object:
    """What `ask` came to: its value, or its error."""
    try:
        return await ask()
    except (CallError, AgentError) as exc:
        return exc


# The registry's readers


@proves(24)
@given(st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=1, max_size=4), SEEDS)
def test_invariant_24_a_source_that_is_down_stays_listed_and_runs_nothing(pauses: list[float], seed: int) -> None:
    server = ToolServer()
    calls: list[str] = []

    async def hold_to_it(fabric: Fabric, listed: set[str]) -> None:
        since = 0
        while True:
            snapshot = await fabric.registry.changed(since)
            since, view = snapshot.version, snapshot.sources["x"]
            assert set(snapshot.tools) == listed, "what was listed is listed"
            if view.state != "down":
                continue
            ran = server.received.get("tools/call", 0)
            call = Call("tools/call", "x__echo", deadline=trio.current_time())
            end = await ending(partial(fabric.handle, call))
            assert isinstance(end, SourceDown | DeadlineExceeded)
            assert end.executed == "no"
            assert server.received.get("tools/call", 0) == ran
            calls.append(type(end).__name__)

    async def main() -> None:
        bounds = Bounds(backoff_first=1.0, backoff_longest=1.0)
        config = Config(sources=[server.in_process(name="x", connect=1.0)], bounds=bounds)
        async with open_fabric(config, rng=random.Random(seed)) as fabric, trio.open_nursery() as nursery:
            await fabric.wait_started()
            listed = set(fabric.registry.snapshot.tools)
            assert listed
            nursery.start_soon(hold_to_it, fabric, listed)
            for pause in pauses:
                server.options.exit_at_start = True
                server.break_connections()
                await trio.sleep(pause)
                server.options.exit_at_start = False
                await trio.sleep(3)
            nursery.cancel_scope.cancel("all is seen")

    run(main, seed)
    assert calls
    for call in set(calls):
        event(call)


@proves(25)
@given(st.lists(st.sampled_from([0.1, 0.5, 2.0]), max_size=4), SEEDS)
def test_invariant_25_a_run_sees_the_tools_of_one_snapshot(changes: list[float], seed: int) -> None:
    server = ToolServer()
    seen: list[int] = []

    async def reader(ctx: Context, pause: float) -> str:
        first, schema = ctx.tools, ctx.tools["x__echo"].tool.input_schema
        version = ctx.snapshot.version
        await trio.sleep(pause)
        assert ctx.snapshot.version == version
        assert dict(ctx.tools) == dict(first)
        assert ctx.tools["x__echo"].tool.input_schema is schema
        seen.append(version)
        return (await ctx.call("x__echo", {"text": "still there"})).text

    async def main() -> None:
        async with open_fabric([server.in_process(name="x")]) as fabric, trio.open_nursery() as nursery:
            await fabric.wait_started()
            fabric.agent("reader", reader, turn=8)
            for pause in (0.05, 1.0, 5.0):
                nursery.start_soon(fabric.ask, "reader", pause)
            for pause in changes:
                await trio.sleep(pause)
                await fabric.call("x__change_tools")
                await trio.sleep(1)
            assert await fabric.ask("reader", 0.0) == "still there"

    run(main, seed)
    assert len(seen) == 4
    assert not changes or max(seen) > min(seen)


# Connections


class Receiver:
    """Counts what it is fed, and tells somebody."""

    def __init__(self, told: Callable[[Sequence[bytes]], None]) -> None:
        self._told = told

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        self._told(messages)

    def fail(self, id: int | str, error: CallError, /) -> None:
        raise AssertionError

    def lost(self, error: ConnectionLost, /) -> None:
        pass

    def waits(self, id: int | str, /) -> bool:
        return True


def over(
    sock: socket.socket, nursery: trio.Nursery, write: Callable[[bytes | memoryview], int] | None = None
) -> LineTransport:
    fd = sock.fileno()
    os.set_blocking(fd, False)
    return LineTransport(
        read_from(fd), write or partial(os.write, fd), read_fd=fd, write_fd=fd, nursery=nursery, counters=Counters(),
        name="it", max_message=1 << 20,
    )  # fmt: skip


@proves(31)
@settings(max_examples=settings().max_examples // 2)
@given(st.lists(st.tuples(st.integers(0, 300), st.booleans(), st.booleans()), max_size=20), SEEDS)
def test_invariant_31_frames_leave_whole_and_in_order(plan: list[tuple[int, bool, bool]], seed: int) -> None:
    """Whatever a write takes, and whether messages are written one by one or together after a read."""
    rng = random.Random(seed)
    ours, theirs = socket.socketpair()
    expected: list[bytes] = []

    def write(data: bytes | memoryview) -> int:
        if rng.random() < 0.3:
            raise BlockingIOError
        return ours.send(data[: rng.randrange(len(data)) + 1])

    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                here = over(ours, nursery, write)

                def answer(messages: Sequence[bytes]) -> None:
                    for _ in messages:
                        nursery.start_soon(send, b"answer %d" % rng.randrange(1000))

                async def send(message: bytes) -> None:
                    await trio.lowlevel.checkpoint()
                    here.send(message)
                    expected.append(message)

                nursery.start_soon(here.run, Receiver(answer))
                for size, reads, pause in plan:
                    await send(b"m" * size + b"!")
                    if reads:
                        theirs.sendall(b"x\n" * rng.randrange(1, 9))
                    if pause:
                        await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked(0.002)
                while here._backlog:  # noqa: ASYNC110  # no event tells
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel("all is written")

    with ours, theirs, scheduled(random.Random(seed)):
        trio.run(main)
        theirs.setblocking(False)
        got = b""
        with suppress(BlockingIOError):
            while piece := theirs.recv(1 << 16):
                got += piece
    assert got == b"".join(message + b"\n" for message in expected)


ERAS: st.SearchStrategy[EraChoice] = st.sampled_from(["legacy", "auto"])


@proves(33)
@given(ERAS, st.integers(1, 60), SEEDS)
def test_invariant_33_initialize_is_never_cancelled(era: EraChoice, tick: int, seed: int) -> None:
    ticks = Ticks(tick)
    said: list[bytes] = []

    async def main() -> None:
        ours, theirs = memory_transport_pair()
        timer = Timer()
        async with trio.open_nursery() as nursery:
            await nursery.start(timer.run)
            nursery.start_soon(theirs.run, Receiver(said.extend))
            with trio.CancelScope() as scope, suppress(CordError, FreshNeeded):
                ticks.scope = scope
                async with open_session(ours, timer=timer) as session:
                    await negotiate(session, era=era, patience=1.0, client_info={}, capabilities={})
            ticks.scope = None
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel("it was tried")

    run(main, seed, ticks)
    asked = [message for message in said if b'"initialize"' in message or b"server/discover" in message]
    event(f"{len(asked)} asked")
    assert not [message for message in said if b"notifications/cancelled" in message]


@proves(44)
@settings(max_examples=settings().max_examples // 2)
@given(st.integers(1, 5), st.integers(20, 400), st.integers(1, 5000), st.sampled_from([LEAST, QUANTUM]))
def test_invariant_44_a_flood_delays_others_by_no_more_than_a_quantum_a_source(
    sources: int, length: int, lines: int, quantum: int
) -> None:
    """What is fed of all floods between a reply's arrival and its being fed."""
    fed = 0
    before = math.inf

    async def main() -> None:
        nonlocal before

        def flood(messages: Sequence[bytes]) -> None:
            nonlocal fed
            fed += sum(map(len, messages))

        def reply(messages: Sequence[bytes]) -> None:
            nonlocal before
            before = fed

        async with trio.open_nursery() as nursery:
            for sock, _ in pairs[:-1]:
                transport = over(sock, nursery)
                transport.limits = Limits(read_quantum=quantum)
                nursery.start_soon(transport.run, Receiver(flood))
            nursery.start_soon(over(pairs[-1][0], nursery).run, Receiver(reply))
            while before == math.inf:  # noqa: ASYNC110  # no event tells
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel("it is there")

    pairs = [socket.socketpair() for _ in range(sources + 1)]
    try:
        for _, peer in pairs[:-1]:
            peer.setblocking(False)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            with suppress(BlockingIOError):
                for _ in range(lines):
                    peer.send(b"x" * length + b"\n")
        pairs[-1][1].sendall(b"{}\n")
        trio.run(main)
    finally:
        for pair in pairs:
            for sock in pair:
                sock.close()
    # All were ready together: a quantum in the turn in which its reader starts, and the smaller one of the next.
    assert before <= sources * (quantum + LEAST)


# The drain


async def worker(ctx: Context, payload: Json) -> str:
    """An agent that calls, or sleeps, or both."""
    calls, sleeps = payload
    if calls:
        await ctx.call("x__sleep", {"seconds": calls})
    await trio.sleep(sleeps)
    return "done"


DAYS = st.sampled_from([0.0, 0.5, 2.0, 1000.0])


@proves(40, 41)
@given(st.lists(st.tuples(DAYS, DAYS), max_size=5), st.sampled_from([0.1, 1.0, 3.0]), st.booleans(), SEEDS)
def test_invariant_41_a_drain_ends_within_its_grace(
    works: list[tuple[float, float]], grace: float, boxed: bool, seed: int
) -> None:
    took = math.inf
    ended: list[object] = []

    async def main() -> None:
        nonlocal took
        config = Config(sources=[ToolServer().in_process(name="x")], gateway=GatewayConfig(grace=grace))

        async def ask(fabric: Fabric, work: tuple[float, float]) -> None:
            ended.append(await ending(partial(fabric.ask, "worker", work)))

        async with trio.open_nursery() as outside:
            async with open_fabric(config, rng=random.Random(0)) as fabric:
                fabric.agent("worker", worker, turn=8 if not boxed else 1, mailbox=Mailbox(8) if boxed else None)
                await fabric.wait_started()
                for work in works:
                    outside.start_soon(ask, fabric, work)  # noqa: ASYNC111  # what outlives the block is the point
                await wait_all_tasks_blocked()
                start = trio.current_time()
            took = trio.current_time() - start
            outside.cancel_scope.cancel("what the fabric owned has ended")

    run(main, seed)
    assert took <= grace + (GRACE if boxed else 0) + LAST_CALLS + 0.001
    assert set(ended) <= {"done"} | {end for end in ended if isinstance(end, CallError | AgentError)}


# Bounds at every tick


class Watch(trio.abc.Instrument):
    """Looks after every step of every task."""

    def __init__(self) -> None:
        self.look: Callable[[], None] | None = None
        self.most = 0
        self.wrong: list[str] = []

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.look is not None:
            self.look()


@proves(42)
@given(
    st.lists(st.tuples(st.sampled_from(["call", "ask", "tell", "visit"]), DAYS), min_size=1, max_size=12),
    st.integers(1, 3), st.integers(1, 3), st.sampled_from(["wait", "fail", "drop_oldest", "drop_newest"]),
    st.integers(1, 8), SEEDS,
)  # fmt: skip
def test_invariant_42_no_queue_is_longer_than_its_bound_at_any_tick(
    works: list[tuple[str, float]], slots: int, box: int, full: Full, calls: int, seed: int
) -> None:
    watch = Watch()

    async def clerk(ctx: Context, seconds: float) -> str:
        await trio.sleep(min(seconds, 5.0))
        return "noted"

    async def main() -> None:
        source = ToolServer().in_process(name="x", slots=slots, queue=2, deadline=4.0)
        config = Config(sources=[source], bounds=Bounds(calls=calls), gateway=GatewayConfig(grace=0.5))
        async with open_fabric(config, rng=random.Random(0)) as fabric:
            fabric.agent("clerk", clerk, mailbox=Mailbox(box, full=full))
            fabric.agent("desk", clerk)
            await fabric.wait_started()

            def look() -> None:
                gate = fabric.slots["x"]
                mail = fabric.agents["clerk"].node().facts.get("mailbox")
                queued = int(str(mail).partition("/")[0]) if mail else 0
                open_ = [
                    pending.method
                    for client in fabric.links["x"].sessions.values()
                    for pending in client.session.peer.open.values()
                ]
                for what, now, bound in (
                    ("slots", gate.taken, slots), ("calls", fabric._running, calls), ("mailbox", queued, box),
                    ("queue", gate.waiting, 2), ("pending", open_.count("tools/call"), slots),
                    ("turns", len(fabric.agents["desk"].turn.holders), 1),
                    ("registry", fabric.registry._receive.statistics().current_buffer_used, 64),
                ):  # fmt: skip
                    if not 0 <= now <= bound:
                        watch.wrong.append(f"{what}: {now} of {bound}")
                watch.most = max(watch.most, queued)

            watch.look = look

            async def do(what: str, seconds: float) -> None:
                with trio.move_on_after(6):
                    match what:
                        case "call":
                            await ending(partial(fabric.call, "x__sleep", {"seconds": seconds}))
                        case "ask":
                            await ending(partial(fabric.ask, "clerk", seconds))
                        case "visit":
                            await ending(partial(fabric.ask, "desk", seconds))
                        case _:
                            await ending(partial(fabric.tell, "clerk", seconds))

            async with trio.open_nursery() as nursery:
                for work in works:
                    nursery.start_soon(do, *work)
        watch.look = None

    run(main, seed, watch)
    assert watch.wrong == []
    event(f"{watch.most} in the mailbox")


# Two fabrics


class Clerk:
    """An agent with a state of its own."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, ctx: Context, payload: str) -> list[str]:
        await trio.lowlevel.checkpoint()
        if payload == "crash":
            raise ValueError(payload)
        self.seen.append(payload)
        return self.seen


@proves(46)
@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from(["call", "break", "change", "ask", "crash", "drain"])), max_size=10
    ),
    SEEDS,
)
def test_invariant_46_two_fabrics_do_not_observe_each_other(steps: list[tuple[bool, str]], seed: int) -> None:
    async def main() -> None:
        servers = [ToolServer(), ToolServer()]
        made = [[0, 0], [0, 0]]  # of each fabric: calls, changes
        at_once = Supervisor(max_restarts=99, backoff=Backoff(0, 0))  # the very same for both
        async with (
            open_fabric([servers[0].in_process(name="a")], rng=random.Random(0)) as first,
            open_fabric([servers[1].in_process(name="b")], rng=random.Random(1)) as second,
        ):
            fabrics = [first, second]
            for fabric in fabrics:
                await fabric.wait_started()
                fabric.agent("clerk", Clerk, mailbox=Mailbox(), supervisor=at_once)
            await wait_all_tasks_blocked()
            for one, what in steps:
                number = int(one)
                fabric, other = fabrics[number], fabrics[not one]
                name = "ab"[number]
                before = look(other)
                match what:
                    case "call" if not fabric.draining.is_set():
                        assert (await fabric.call(f"{name}__echo", {"text": name})).text == name
                        made[number][0] += 1
                    case "break":
                        servers[number].break_connections()
                        await trio.sleep(2)
                    case "change" if not fabric.draining.is_set():
                        await fabric.call(f"{name}__change_tools")
                        made[number][0] += 1
                    case "ask" if not fabric.draining.is_set():
                        assert await fabric.ask("clerk", "new")
                    case "crash" if not fabric.draining.is_set():
                        with pytest.raises(AgentCrashed):
                            await fabric.ask("clerk", "crash")
                    case "drain":
                        await fabric.drain(0)
                        with pytest.raises(Draining):
                            await fabric.call(f"{name}__echo", {"text": name})
                await trio.sleep(1)
                assert look(other) == before
            for number, server in enumerate(servers):
                assert server.received.get("tools/call", 0) == made[number][0]

    def look(fabric: Fabric) -> tuple[Snapshot, Mapping[str, int], int, bool, int, object]:
        (link,) = fabric.links.values()
        clerk = fabric.agents["clerk"]
        assert clerk.resident is not None
        assert clerk.resident.life is not None
        return (
            *(fabric.registry.snapshot, fabric.counters.snapshot(), link.starts, fabric.draining.is_set()),
            *(clerk.generation, clerk.resident.life.handler),
        )

    run(main, seed)


# Real processes


@contextmanager
def same_resources() -> Generator[None]:
    """What the process holds is the same before and after."""

    def held() -> tuple[int, list[int], set[str]]:
        # Trio keeps idle worker threads for a few seconds, under their own name.
        threads = {thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}
        return len(os.listdir("/proc/self/fd")), children(), threads

    before = held()
    yield
    assert held() == before


def marked(mark: str) -> list[str]:
    """The processes with `mark` in their environment, whosever children they are."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
            if mark.encode() in file.read():
                found.append(entry)
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into /proc")
@proves(39, 47)
@settings(max_examples=max(4, settings().max_examples // 20), phases=[Phase.explicit, Phase.generate])
@given(st.floats(0.0, 1.0))
@example(0.02)
@example(0.97)
@example(2.0)
def test_invariant_47_with_real_children_nothing_is_left_wherever_it_is_cancelled(share: float) -> None:
    count = ticks_of_real_program()
    mark = uuid4().hex
    with same_resources():
        real_program(max(1, int(count * share)), mark)
    assert marked(mark) == []


@cache
def ticks_of_real_program() -> int:
    return real_program(None, "")


def real_program(at: int | None, mark: str) -> int:
    """Two real servers, calls and agents, cancelled after `at` ticks; returns how many ticks there were.

    One agent has a task of its own, one conversation is the fabric's, and one server a child in a session of its own.
    """
    ticks = Ticks(at)

    async def asker(ctx: Context, seconds: float) -> str:
        return (await ctx.call("a__sleep", {"seconds": seconds})).text

    async def main() -> None:
        living = trio.lowlevel.current_statistics().tasks_living
        with trio.move_on_after(30) as scope:
            ticks.scope = scope
            sources = [ToolServer().source(name="a"), ToolServer(era="legacy").source(name="b", env={"MARK": mark})]
            async with open_fabric(Config(sources=sources, gateway=GatewayConfig(grace=0.2))) as fabric:
                fabric.agent("asker", asker, turn=4)
                fabric.agent("desk", asker, mailbox=Mailbox())
                await fabric.start("desk", 0.1)
                async with trio.open_nursery() as nursery:
                    for seconds in (0.0, 0.02, 0.05):
                        nursery.start_soon(fabric.ask, "asker", seconds)
                        nursery.start_soon(ending, partial(fabric.ask, "desk", seconds))
                        nursery.start_soon(ending, partial(fabric.call, "b__sleep", {"seconds": seconds}))
                    nursery.start_soon(ending, partial(fabric.call, "b__spawn", {"detached": True}))
        ticks.scope = None
        assert trio.lowlevel.current_statistics().tasks_living == living

    trio.run(main, instruments=[ticks])
    return ticks.count
