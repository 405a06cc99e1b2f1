"""Calls under searched schedules: each ends once, is heard by its asker alone, and leaves nothing."""

from __future__ import annotations

import json
import math
import random
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import pytest
import trio
from hypothesis import event, given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.cell import Timer
from cord_trio.counters import Counters
from cord_trio.errors import CallError, CallFailed, ConnectionLost, DeadlineExceeded
from cord_trio.session import Session, open_session
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import schedules
from cord_trio.transports.memory import MemoryTransport, memory_transport_pair
from properties.invariants import proves

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

Json: TypeAlias = Any


@attrs.frozen
class Ask:
    """One call: when it comes, its deadline and its caller's cancellation from then, what the server does, and when.

    `told` False stands for `initialize` and the probe: nothing of their end is told on the wire.
    """

    at: float
    within: float
    cancel: float
    told: bool
    how: str
    after: float


@attrs.frozen
class Program:
    """Calls, when the server begins to read, and when and how the connection ends."""

    asks: list[Ask]
    reads: float
    ends: float
    lost: bool


TIMES = st.sampled_from([0.0, 1.0, 2.0])
OR_NEVER = st.sampled_from([math.inf, 0.0, 1.0, 1.5, 2.0])
ASKS = st.builds(
    Ask,
    at=TIMES,
    within=OR_NEVER,
    cancel=OR_NEVER,
    told=st.sampled_from([True, True, False]),
    how=st.sampled_from(["result", "error", "twice", "as text", "bad", "progress", "stranger", "never"]),
    after=TIMES,
)
PROGRAMS = st.builds(
    Program,
    asks=st.lists(ASKS, min_size=1, max_size=8),
    reads=st.sampled_from([0.0, 0.0, 1.0, 3.0]),
    ends=st.sampled_from([math.inf, math.inf, 0.0, 1.0, 2.0, 2.5]),
    lost=st.booleans(),
)


ENOUGH = 100.0
"""Seconds after which a program ends whose calls would wait for ever."""


class Server:
    """Does with each request what its ask says."""

    def __init__(self, transport: MemoryTransport, program: Program, nursery: trio.Nursery) -> None:
        self.transport = transport
        self.program = program
        self.nursery = nursery
        self.asked: dict[int, int] = {}
        """Number of the ask → id under which it came."""
        self.withdrawn: list[int] = []

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        for message in map(json.loads, messages):
            if message["method"] == "notifications/cancelled":
                self.withdrawn.append(message["params"]["requestId"])
                continue
            number = message["params"]["number"]
            assert number not in self.asked
            self.asked[number] = message["id"]
            self.nursery.start_soon(self.answer, number, message["id"])

    async def answer(self, number: int, id: int) -> None:
        ask = self.program.asks[number]
        await trio.sleep(ask.after)
        result = b'{"jsonrpc":"2.0","id":%d,"result":{"number":%d}}' % (id, number)
        lines = {
            "result": [result],
            "error": [b'{"jsonrpc":"2.0","id":%d,"error":{"code":%d,"message":"no"}}' % (id, number)],
            "twice": [result, result],
            "as text": [result.replace(b'"id":%d' % id, b'"id":"%d"' % id)],
            "bad": [b'{"jsonrpc":"2.0","id":%d}' % id],
            "progress": [
                b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%d}}' % id,
                result,
            ],
            "stranger": [result.replace(b'"id":%d' % id, b'"id":%d' % (id + 1000)), result],
            "never": [],
        }
        try:
            for line in lines[ask.how]:
                self.transport.send(line)
                await trio.lowlevel.checkpoint()
        except ConnectionLost:
            pass

    def fail(self, id: int | str, error: CallError, /) -> None:
        raise AssertionError

    def lost(self, error: ConnectionLost, /) -> None:
        pass

    def waits(self, id: int | str, /) -> bool:
        return False


class Until(random.Random):
    """Draws from another source until it is told that the program is over.

    Trio cancels many tasks at once in the order of a set, so what Hypothesis drew then could not be replayed.
    """

    def __init__(self, source: random.Random) -> None:
        super().__init__()
        self.source = source
        self.over = False

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return 0 if self.over else self.source.randrange(start)


async def play(program: Program, until: Until) -> None:
    ours, theirs = memory_transport_pair()
    endings: list[list[object]] = [[] for _ in program.asks]
    ended = [0.0 for _ in program.asks]
    heard: list[list[int]] = [[] for _ in program.asks]
    timer, counters = Timer(), Counters()
    cut = False

    async def ask(session: Session, number: int) -> None:
        plan = program.asks[number]
        await trio.sleep(plan.at)
        with trio.move_on_after(plan.cancel) as scope:
            try:
                result = await session.request(
                    "tools/call",
                    b'{"number":%d}' % number,
                    deadline=trio.current_time() + plan.within,
                    events=lambda method, params: heard[number].append(number),
                    cancellable=plan.told,
                )
                endings[number].append(json.loads(bytes(result))["number"])
            except CallError as exc:
                endings[number].append(exc)
        if scope.cancelled_caught:
            endings[number].append("cancelled")
        ended[number] = trio.current_time()

    async def end() -> None:
        nonlocal cut
        await trio.sleep(program.ends)
        cut = True
        theirs.lose("lost") if program.lost else theirs.close()

    async def read(server: Server) -> None:
        await trio.sleep(program.reads)
        await theirs.run(server)

    with trio.fail_after(10_000):
        async with trio.open_nursery() as background:
            server = Server(theirs, program, background)
            await background.start(timer.run)
            background.start_soon(read, server)
            if program.ends < math.inf:
                background.start_soon(end)
            async with open_session(ours, timer=timer, counters=counters) as session:
                async with trio.open_nursery() as callers:
                    for number in range(len(program.asks)):
                        callers.start_soon(ask, session, number)
                    if all(plan.how != "never" or min(plan.within, plan.cancel) < math.inf for plan in program.asks):
                        event("every call ends by itself")
                    else:
                        await trio.sleep(ENOUGH)
                        session.lost(ConnectionLost("enough"))
                        cut = True
                assert len(timer) == 0
                await trio.sleep(100)
                await wait_all_tasks_blocked()
                check(program, endings, heard, server, session, cut=cut)
                check_prompt(program, endings, ended)
                session.lost(ConnectionLost("enough"))
                with pytest.raises(ConnectionLost) as refused:  # at once, whatever the transport would still take
                    await session.request("late")
                assert refused.value.executed == "no"
                until.over = True
            background.cancel_scope.cancel("the program is over")


def check(
    program: Program,
    endings: list[list[object]],
    heard: list[list[int]],
    server: Server,
    session: Session,
    *,
    cut: bool,
) -> None:
    assert session.peer.open == {}
    ids = [server.asked[number] for number in server.asked]
    assert sorted(set(ids)) == sorted(ids), "an id was used twice"
    assert len(set(server.withdrawn)) == len(server.withdrawn), "somebody was told twice"
    assert set(server.withdrawn) <= set(ids), "told of what never came"
    for number, (plan, ending) in enumerate(zip(program.asks, endings, strict=True)):
        assert len(ending) == 1, "a call ends in exactly one way"
        [end] = ending
        came = number in server.asked
        told = came and server.asked[number] in server.withdrawn
        event(f"{type(end).__name__ if isinstance(end, Exception) else end if end == 'cancelled' else 'result'}")
        if end == "cancelled" or isinstance(end, DeadlineExceeded):
            if not cut:
                assert told is (came and plan.told)
            assert not told or plan.told
            if isinstance(end, DeadlineExceeded) and not cut:
                assert end.executed == ("unknown" if came else "no")
        else:
            assert not told, "an answered or lost call tells nobody"
        if isinstance(end, int):
            assert (end, came) == (number, True), "a reply reached another asker"
        if isinstance(end, CallFailed):
            assert end.code == number
        if isinstance(end, ConnectionLost):
            assert end.executed == ("unknown" if came else "no")
        assert set(heard[number]) <= {number}


def check_prompt(program: Program, endings: list[list[object]], ended: list[float]) -> None:
    """A call that the connection's end ends, ends in that moment, or as soon as it is made."""
    for plan, (end,), moment in zip(program.asks, endings, ended, strict=True):
        if isinstance(end, ConnectionLost):
            assert moment == max(plan.at, min(program.ends, ENOUGH))  # 29


@proves(1, 2, 26, 27, 29, 30)
@given(PROGRAMS, schedules())
def test_every_call_ends_once_for_its_asker_alone_and_leaves_nothing(program: Program, rng: Random) -> None:
    until = Until(rng)
    with scheduled(until):
        trio.run(partial(play, program, until), clock=MockClock(autojump_threshold=0))
