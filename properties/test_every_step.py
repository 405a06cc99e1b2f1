"""Bounds, budgets, floods and cancels, looked at after every step of every task. The numbers are the invariants'.

Whatever is asked is cancelled after some ticks, under searched orders of tasks; the bounds are small, so that they are
met.
"""

from __future__ import annotations

import json
import math
import os
import random
import socket
from contextlib import ExitStack, suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias
from unittest import mock

import attrs
import trio
from hypothesis import event, given, settings
from hypothesis import strategies as st
from msgspec import Raw
from trio.testing import MockClock

from cord_trio.agents import Account, Budget, Context, Mailbox, open_agents
from cord_trio.agents import directory as directory_room
from cord_trio.agents import job as job_room
from cord_trio.agents import mailbox as mailbox_room
from cord_trio.agents import post as post_room
from cord_trio.agents import turn as turn_room
from cord_trio.agents.budget import COUNTERS
from cord_trio.call import Complete
from cord_trio.cell import Timer
from cord_trio.errors import CallError, CordError, Overloaded
from cord_trio.protocol.tools import Annotations, Tool
from cord_trio.registry import Route, Snapshot
from cord_trio.session import open_session
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from cord_trio.transports import Limits
from cord_trio.transports.lines import LEAST, QUANTUM
from properties.agent_programs import no_tools
from properties.invariants import proves
from properties.test_agent_programs import cancelled_after
from properties.test_budgets import check
from properties.test_fabric import SEEDS
from properties.test_invariants import Receiver, Watch, over

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from cord_trio.agents import Agents
    from cord_trio.call import Call, Outcome
    from cord_trio.session import Session

Json: TypeAlias = Any

TICKS = st.sampled_from([10_000] * 7 + [0, 1, 2, 3, 5, 8, 13, 21])
"""After so many ticks it is cancelled, if it has not ended."""


def run(main: Callable[[], Awaitable[None]], rng: Random, *instruments: trio.abc.Instrument) -> None:
    async def bounded() -> None:
        with trio.fail_after(10_000):
            await main()

    with scheduled(rng):
        trio.run(bounded, clock=MockClock(autojump_threshold=0), instruments=instruments)


async def for_ticks(ticks: int, ask: Callable[[], Awaitable[object]], at: float = 0.0) -> None:
    """`ask` after so many seconds, whose refusal is an answer, cancelled after so many ticks."""
    await trio.sleep(at)

    async def asking() -> None:
        with suppress(CordError):
            await ask()
        nursery.cancel_scope.cancel("it has ended")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking)
        for _ in range(min(ticks, 25)):
            await trio.lowlevel.checkpoint()
        if ticks < 25:
            nursery.cancel_scope.cancel(f"after {ticks} ticks")


# Queues

VERBS = ["ask desk", "ask box", "tell box", "tell giver", "start", "tell alarm"]


def mostly(verb: str) -> st.SearchStrategy[list[tuple[str, float, int]]]:
    """Verbs, when, and for how many ticks: one verb more often than others, so that its bound is met."""
    verbs = st.sampled_from([*[verb] * 9, *VERBS])
    return st.lists(st.tuples(verbs, st.sampled_from([0.0, 0.0, 1.5, 3.0]), TICKS), min_size=6, max_size=16)


FEW = 2
"""What takes the place of every bound below."""


@proves(42)
@settings(max_examples=settings().max_examples // 2)
@given(st.sampled_from(VERBS).flatmap(mostly), schedules())
def test_invariant_42_what_waits_for_a_turn_for_room_or_for_its_time_is_bounded_at_every_step(
    works: list[tuple[str, float, int]], rng: Random
) -> None:
    watch = Watch()
    met: set[str] = set()

    async def rests(ctx: Context, payload: object) -> None:
        await trio.sleep(1)

    async def gives(ctx: Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return ctx.handoff("desk")

    async def wakes(ctx: Context, payload: object) -> None:  # noqa: ASYNC124  # async by contract
        if payload is None:
            with suppress(Overloaded):
                for _ in range(FEW + 1):
                    ctx.after(1, "now")

    def look_at(agents: Agents) -> None:
        jobs = agents.jobs
        lengths = [("forwarded", agents._forwarded), ("jobs", len(jobs.running)), ("ended", len(jobs.ended))]
        for agent in agents.values():
            lengths.append(("turn", len(agent.turn.waiting)))
            if agent.resident is not None and agent.resident.post is not None:
                lanes = agent.resident.post.box.lengths()
                lengths += [("box", lanes["normal"]), ("room", lanes["waiting"])]
                lengths += [("alarms", len(agent.resident.post._alarms)), ("control", lanes["control"])]
        watch.wrong += [f"{what}: {length}" for what, length in lengths if not 0 <= length <= FEW]
        met.update(what for what, length in lengths if length == FEW)

    async def main() -> None:
        async with open_agents(no_tools, Snapshot, rng=random.Random(0)) as agents:
            agents.add("desk", rests)
            agents.add("box", rests, mailbox=Mailbox(FEW))
            agents.add("giver", gives, mailbox=Mailbox(FEW))
            agents.add("alarm", wakes, mailbox=Mailbox(FEW, full="fail"))
            watch.look = lambda: look_at(agents)
            async with trio.open_nursery() as nursery:
                for what, at, ticks in works:
                    verb, _, name = what.partition(" ")
                    ask: Callable[[], Awaitable[object]] = {
                        "ask": lambda name=name: agents.converse(name, None),
                        "tell": lambda name=name: agents.tell(name, None),
                        "start": lambda: agents.jobs.start("desk"),
                    }[verb]  # type: ignore[assignment]  # the defaults bind the names
                    nursery.start_soon(for_ticks, ticks, ask, at)
            await agents.wait_quiet()
        watch.look = None

    with ExitStack() as stack:
        for room, name in (
            (turn_room, "WAITING"), (mailbox_room, "WAITING"), (post_room, "MAX_ALARMS"), (job_room, "MAX_JOBS"),
            (job_room, "MAX_ENDED"), (directory_room, "MAX_FORWARDED"),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(room, name, FEW))
        run(main, rng, watch)
    assert watch.wrong == []
    for what in sorted(met):
        event(f"full: {what}")


@proves(42)
@settings(max_examples=settings().max_examples // 2)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 9, 40, 70, 90]), st.sampled_from(["send", "send", "send", "pause", "withdraw"])),
        min_size=8, max_size=30,
    ),
    st.integers(100, 160), st.integers(3, 6), SEEDS,
)  # fmt: skip
def test_invariant_42_what_waits_to_be_written_is_bounded_in_bytes_and_in_number(
    plan: list[tuple[int, str]], most: int, number: int, seed: int
) -> None:
    rng = random.Random(seed)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    watch = Watch()
    sent: list[bytes] = []

    def write(data: bytes | memoryview) -> int:
        if rng.random() < 0.8:
            raise BlockingIOError
        return ours.send(data[: rng.randrange(len(data)) + 1])

    def drained() -> bytes:
        got = b""
        with suppress(BlockingIOError):
            while piece := theirs.recv(1 << 16):
                got += piece
        return got

    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                here = over(ours, nursery, write)
                here.limits = Limits(outbox_bytes=most, outbox_messages=number)

                def look() -> None:
                    held = sum(len(message) + 1 for message in here._backlog.values()) - here._begun
                    if here._waiting_bytes != held or held > most or len(here._backlog) > number:
                        watch.wrong.append(f"{here._waiting_bytes} of {most} bytes, {len(here._backlog)} of {number}")

                watch.look = look
                for id, (size, what) in enumerate(plan):
                    if what == "send":
                        message = b"%d" % id + b"m" * size
                        with suppress(Overloaded):
                            here.send(message, id=id)
                            sent.append(message)
                            look()
                    elif what == "withdraw":
                        if not here.written(id - 1):
                            here.withdraw(id - 1)
                            sent.remove(here_sent(id - 1))
                    else:
                        await trio.lowlevel.checkpoint()
                while here._backlog:  # noqa: ASYNC110  # no event tells
                    await trio.lowlevel.checkpoint()
                watch.look = None
                nursery.cancel_scope.cancel("all is written")

    def here_sent(id: int) -> bytes:
        return b"%d" % id + b"m" * plan[id][0]

    with ours, theirs, scheduled(rng):
        trio.run(main, instruments=[watch])
        got = drained()
    assert watch.wrong == []
    assert got == b"".join(message + b"\n" for message in sent)


# Budgets


@attrs.frozen
class Part:
    """What a handler does: call a tool, promise tokens, ask with a budget, or hand on."""

    what: str
    how: str
    limits: Budget | None
    parts: tuple[Part, ...]


LIMITS = st.none() | st.builds(
    Budget,
    calls=st.none() | st.integers(0, 4),
    tokens=st.none() | st.integers(0, 4),
    hops=st.none() | st.integers(0, 2),
)
HOWS = st.sampled_from(["ok", "no", "unknown", "slow"])
PARTS: st.SearchStrategy[tuple[Part, ...]] = st.recursive(
    st.just(()),
    lambda parts: st.lists(
        st.builds(Part, st.sampled_from(["call", "call", "promise", "ask", "ask", "hand"]), HOWS, LIMITS, parts),
        max_size=3,
    ).map(tuple),
    max_leaves=6,
)
TOOL = Tool("do", None, "", Annotations(), Raw(b"{}"), None, Raw(b"{}"))


@proves(43)
@settings(max_examples=settings().max_examples // 2)
@given(st.lists(st.tuples(PARTS, LIMITS, TICKS), min_size=1, max_size=4), schedules())
def test_invariant_43_what_agents_spent_is_what_ran_and_is_within_their_budgets_at_every_step(
    roots: list[tuple[tuple[Part, ...], Budget | None, int]], rng: Random
) -> None:
    accounts: list[Account] = []
    watch = Watch()
    ran = 0

    class Noted(Account):
        __slots__ = ()

        def __init__(self, limits: Budget, owner: str, parent: Account | None = None) -> None:
            super().__init__(limits, owner, parent)
            accounts.append(self)

    async def tool(call: Call) -> Outcome:
        nonlocal ran
        how = bytes(call.params["arguments"]).decode()
        ran += 1  # whoever is cancelled here cannot say that it was not run
        await trio.lowlevel.checkpoint()
        if "slow" in how:
            await trio.sleep(1)
        if '"no"' in how:
            ran -= 1
            raise CallError("it was not run", "no")
        if "unknown" in how:
            raise CallError("nobody knows", "unknown")
        return Complete(Raw(b"{}"))

    async def works(ctx: Context, parts: tuple[Part, ...]) -> object:
        for part in parts:
            match part.what:
                case "call":
                    with suppress(CallError):
                        await ctx.call("x__do", {"how": part.how})
                case "promise":
                    with ctx.budget.reserve(tokens=2) as reserved:
                        await trio.lowlevel.checkpoint()
                        if part.how == "ok":
                            reserved.settle(tokens=1)
                case "ask":
                    name = "boxed" if part.how == "slow" else "works"
                    await ctx.ask(name, part.parts, budget=part.limits or Budget())
                case _:
                    return ctx.handoff("boxed" if part.how == "slow" else "works", part.parts)
        return None

    def look() -> None:
        try:
            check(accounts)
            for account in accounts:
                for counter in COUNTERS:
                    limit = getattr(account.limits, counter)
                    used = account.spent[counter] + account.reserved[counter]
                    # What a call answered is spent when it is known, whatever the budget held.
                    assert limit is None or used <= limit, (counter, used, limit)
        except AssertionError as exc:
            watch.wrong.append(str(exc))

    async def main() -> None:
        routes = {"x__do": Route("x__do", "x", TOOL)}
        async with open_agents(tool, lambda: Snapshot(1, tools=routes), rng=random.Random(0)) as agents:
            agents.add("works", works, turn=99, reentrant=True)
            agents.add("boxed", works, turn=2, reentrant=True, mailbox=Mailbox(), raises=(CordError,))
            watch.look = look
            async with trio.open_nursery() as nursery:
                for parts, limits, ticks in roots:
                    nursery.start_soon(
                        for_ticks,
                        ticks,
                        lambda parts=parts, limits=limits: agents.ask_within(limits or Budget(), "works", parts),
                    )
            watch.look = None
            top = [account for account in accounts if account.parent is agents.account]
            assert sum(account.spent["calls"] for account in top) == ran

    with (
        mock.patch("cord_trio.agents.directory.Account", Noted),
        mock.patch("cord_trio.agents.conversation.Account", Noted),
    ):
        run(main, rng, watch)
    assert watch.wrong == []
    assert all(account.reserved[counter] == Decimal(0) for account in accounts for counter in COUNTERS)
    event(f"{min(ran, 4)} calls")


# Floods


@proves(44)
@settings(max_examples=settings().max_examples // 2)
@given(
    st.lists(st.sampled_from([math.inf, 0, 3, 9]), min_size=1, max_size=4), st.integers(20, 400),
    st.integers(1, 3000), st.sampled_from([LEAST, QUANTUM]), schedules(),
)  # fmt: skip
def test_invariant_44_no_step_of_any_task_feeds_more_than_a_quantum_of_a_flood(
    floods: list[float], length: int, lines: int, quantum: int, rng: Random
) -> None:
    """In whatever order readers run, and whichever of them is cancelled after some ticks."""
    fed = before = steps = 0
    answered = trio.Event()
    most = 0

    class Steps(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal before, most, steps
            steps += fed > before
            most = max(most, fed - before)
            before = fed

    def flood(messages: Sequence[bytes]) -> None:
        nonlocal fed
        fed += sum(len(message) + 1 for message in messages)

    def reply(messages: Sequence[bytes]) -> None:
        answered.set()

    async def reads(sock: socket.socket, cancel: float, nursery: trio.Nursery) -> None:
        transport = over(sock, nursery)
        transport.limits = Limits(read_quantum=quantum)
        await cancelled_after(int(min(cancel, 30)), transport.run, Receiver(flood))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for (sock, _), cancel in zip(pairs[:-1], floods, strict=True):
                nursery.start_soon(reads, sock, cancel, nursery)
            nursery.start_soon(over(pairs[-1][0], nursery).run, Receiver(reply))
            await answered.wait()
            nursery.cancel_scope.cancel("it is there")

    pairs = [socket.socketpair() for _ in range(len(floods) + 1)]
    try:
        for _, peer in pairs[:-1]:
            peer.setblocking(False)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            with suppress(BlockingIOError):
                for _ in range(lines):
                    peer.send(b"x" * length + b"\n")
        pairs[-1][1].sendall(b"{}\n")
        with scheduled(rng):
            trio.run(main, instruments=[Steps()])
    finally:
        for pair in pairs:
            for sock in pair:
                sock.close()
    assert most <= quantum + length
    event(f"{min(steps, 5)} steps of floods")


# What is told of cancels


@proves(27)
@settings(max_examples=settings().max_examples // 2)
@given(
    st.lists(st.tuples(TICKS, st.sampled_from(["answer", "hold", "hold"])), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.3, 0.8]), SEEDS,
)  # fmt: skip
def test_invariant_27_over_a_socket_whoever_leaves_tells_once_what_was_written_and_writes_nothing_else(
    asks: list[tuple[int, str]], stuck: float, seed: int
) -> None:
    rng = random.Random(seed)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    ended: dict[int, str] = {}
    unwritten: set[int] = set()
    ids: dict[int, int] = {}
    lines: list[Json] = []

    def write(data: bytes | memoryview) -> int:
        if rng.random() < stuck:
            raise BlockingIOError
        return ours.send(data[: rng.randrange(len(data)) + 1])

    async def ask(session: Session, number: int, ticks: int) -> None:
        async def asking() -> None:
            ended[number] = "cancelled"
            ids[number] = session.peer._next
            await session.request("tools/call", b'{"number":%d}' % number)
            ended[number] = "answered"
            nursery.cancel_scope.cancel("it has ended")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(asking)
            for _ in range(min(ticks, 60)):
                await trio.lowlevel.checkpoint()
            if number in ids and not session.transport.written(ids[number]):
                unwritten.add(number)
            nursery.cancel_scope.cancel("whoever asked leaves")

    async def serve() -> None:
        rest = b""
        while True:
            with suppress(BlockingIOError):
                rest += theirs.recv(1 << 16)
            *whole, rest = rest.split(b"\n")
            for line in map(json.loads, whole):
                lines.append(line)
                if line.get("method") == "tools/call" and asks[line["params"]["number"]][1] == "answer":
                    theirs.send(b'{"jsonrpc":"2.0","id":%d,"result":{}}\n' % line["id"])
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                timer = Timer()
                await nursery.start(timer.run)
                nursery.start_soon(serve)
                here = over(ours, nursery, write)
                async with open_session(here, timer=timer) as session:
                    async with trio.open_nursery() as callers:
                        for number, (ticks, _) in enumerate(asks):
                            callers.start_soon(ask, session, number, ticks)
                    while here._backlog:  # noqa: ASYNC110  # no event tells
                        await trio.lowlevel.checkpoint()
                    for _ in range(40):
                        await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel("all is said")

    os.set_blocking(theirs.fileno(), False)
    with ours, theirs, scheduled(rng):
        trio.run(main)
    written = [line for line in lines if line.get("method") == "tools/call"]
    told = [line["params"]["requestId"] for line in lines if line.get("method") == "notifications/cancelled"]
    assert len({line["id"] for line in written}) == len(written), "a call is written once"
    assert not unwritten & {line["params"]["number"] for line in written}, "it was left before it was written"
    left = [line["id"] for line in written if ended[line["params"]["number"]] == "cancelled"]
    assert sorted(told) == sorted(left), "each that was written and left is told of once, and nothing else is"
    for id in told:
        ways = [line.get("method") for line in lines if id in (line.get("id"), line.get("params", {}).get("requestId"))]
        assert ways == ["tools/call", "notifications/cancelled"]
    event(f"{len(told)} told of, {len(asks) - len(written)} never written")
