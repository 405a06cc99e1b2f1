"""A session over a transport with faults: each request ends once, and what it says of itself is true."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import trio
from hypothesis import event, given
from hypothesis import strategies as st
from trio.testing import MockClock

from cord_trio.cell import Timer
from cord_trio.errors import CallError, CallFailed
from cord_trio.session import open_session
from cord_trio.testing import FaultyTransport, ToolServer
from cord_trio.testing.faults import WIRE_FAULTS
from cord_trio.testing.schedule import scheduled
from cord_trio.testing.strategies import plans, schedules

if TYPE_CHECKING:
    from random import Random

    from cord_trio.session import Session
    from cord_trio.testing import WireFault

PATIENCE = st.sampled_from([math.inf, math.inf, 0.5, 3.0])


@given(plans(WIRE_FAULTS), st.lists(PATIENCE, min_size=1, max_size=6), st.integers(0, 2), schedules())
def test_a_request_ends_once_and_says_that_it_did_not_run_only_if_it_never_arrived(
    plan: list[WireFault | None], callers: list[float], seconds: int, rng: Random
) -> None:
    endings: list[list[str]] = [[] for _ in callers]
    server = ToolServer(era="legacy")

    async def ask(session: Session, number: int, patience: float) -> None:
        params = b'{"name":"sleep","arguments":{"seconds":%d,"number":%d}}' % (seconds, number)
        with trio.move_on_after(patience) as scope:
            try:
                await session.request("tools/call", params, deadline=trio.current_time() + 20)
                endings[number].append("answered")
            except CallFailed:
                endings[number].append("yes")
            except CallError as exc:
                endings[number].append(exc.executed)
        if scope.cancelled_caught:
            endings[number].append("cancelled")

    async def main() -> None:
        timer = Timer()
        async with trio.open_nursery() as around, server.open() as inner:
            await around.start(timer.run)
            async with open_session(FaultyTransport(inner, plan), timer=timer) as session:
                async with trio.open_nursery() as nursery:
                    for number, patience in enumerate(callers):
                        nursery.start_soon(ask, session, number, patience)
                assert session.peer.open == {}
                assert len(timer) == 0
                await trio.sleep(100)  # what is late arrives
            around.cancel_scope.cancel("all has been asked")

    with scheduled(rng):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    arrived = Counter(
        number for number in range(len(callers)) for line in server.lines if b'"number":%d}' % number in line
    )
    for number, ending in enumerate(endings):
        assert len(ending) == 1
        event(ending[0])
        assert ending[0] != "no" or not arrived[number]
        assert ending[0] not in ("answered", "yes") or arrived[number]
