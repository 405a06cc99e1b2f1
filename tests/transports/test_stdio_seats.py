"""A reply on a child's pipe that its caller reads: it ends as any other, and whoever stops reading is replaced."""

from __future__ import annotations

import math
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cord_trio.cell import Timer
from cord_trio.counters import Counters
from cord_trio.errors import CallError, DeadlineExceeded
from cord_trio.protocol.jsonrpc import encode_request, parse
from cord_trio.session import open_session
from cord_trio.transports.guardian import open_guardian
from cord_trio.transports.pump import Pump
from cord_trio.transports.stdio import StdioTransport, open_stdio
from tests.transports.test_http_seats import Steps
from tests.transports.test_stdio import SHORT, Program, python

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from msgspec import Raw

    from cord_trio.session import Session

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only where there is epoll")

SERVER = """
import sys, json
held = []
def say(each): print(json.dumps(each), flush=True)
for line in sys.stdin:
    message = json.loads(line)
    method, id = message["method"], message.get("id")
    if method == "hold": held.append(id)
    elif method == "notifications/cancelled": say({"jsonrpc": "2.0", "method": "heard", "params": message["params"]})
    elif method == "free":
        for each in [*held, id]: say({"jsonrpc": "2.0", "id": each, "result": {"id": each}})
        held = []
    elif method == "many":
        text = json.dumps({"jsonrpc": "2.0", "method": "note"}) + "\\n"
        sys.stdout.write(text * 50); say({"jsonrpc": "2.0", "id": id, "result": {"id": id}})
    elif method == "die": sys.exit(3)
    elif method == "long": sys.stdout.write("x" * 5000); sys.stdout.flush()
    elif id is not None: say({"jsonrpc": "2.0", "id": id, "result": {"id": id}})
"""


@asynccontextmanager
async def talking(
    told: list[str] | None = None, *, max_message: int = 4096
) -> AsyncGenerator[tuple[Session, StdioTransport], None]:
    program: Program = python(SERVER)
    counters = Counters()
    timer = Timer()
    pump = Pump()
    async with open_guardian(counters=counters) as guardian, trio.open_nursery() as core:
        await core.start(pump.run)
        async with open_stdio(
            program, guardian=guardian, counters=counters, name="it", max_message=max_message, graces=SHORT, pump=pump
        ) as transport:
            async with trio.open_nursery() as nursery:
                await nursery.start(timer.run)
                heard = [] if told is None else told
                async with open_session(
                    transport, name="it", timer=timer, counters=counters,
                    told=lambda method, _params, _within: heard.append(method),
                ) as session:  # fmt: skip
                    yield session, transport
                nursery.cancel_scope.cancel("the test has seen enough")
        core.cancel_scope.cancel("the test has seen enough")


async def call(session: Session, method: str = "echo", seconds: float = 5.0) -> int:
    result: dict[str, int] = parse(await session.request(method, deadline=trio.current_time() + seconds))
    return result["id"]


def taken(transport: StdioTransport) -> bool:
    """Whether a caller reads."""
    place = transport._place
    return place is not None and place.taken


async def test_a_reply_is_read_by_its_caller_alone() -> None:
    async with talking() as (session, transport):
        assert await call(session) == 1
        await trio.testing.wait_all_tasks_blocked()
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for number in range(5):
            assert await call(session) == 2 + number
        trio.lowlevel.remove_instrument(steps)
        assert steps.of["run"] == 0
        assert not taken(transport)


async def test_what_comes_while_nobody_calls_is_still_read() -> None:
    told: list[str] = []
    async with talking(told) as (session, _):
        await call(session)
        session.notify("notifications/cancelled", b'{"requestId":9}')
        with trio.fail_after(3):
            while told != ["heard"]:  # noqa: ASYNC110  # `told` is no event
                await trio.sleep(0.005)


async def test_a_caller_that_reads_brings_the_replies_of_others() -> None:
    async with talking() as (session, transport):
        await call(session)
        got: list[int] = []

        async def ask(method: str) -> None:
            got.append(await call(session, method))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "hold")
            nursery.start_soon(ask, "hold")
            await trio.testing.wait_all_tasks_blocked()
            assert taken(transport)
            nursery.start_soon(ask, "free")
        assert sorted(got) == [2, 3, 4]
        assert not taken(transport)
        assert await call(session) == 5


async def test_amid_many_messages_the_reader_reads() -> None:
    told: list[str] = []
    async with talking(told) as (session, transport):
        assert await call(session, "many") == 1
        assert len(told) == 50
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, session, "hold")
            await trio.testing.wait_all_tasks_blocked()
            assert not taken(transport)
            assert await call(session, "free") == 3
        assert await call(session) == 4


async def test_a_cancelled_caller_gives_its_place_back_and_the_server_hears_of_it() -> None:
    told: list[str] = []
    async with talking(told) as (session, transport):
        await call(session)
        with trio.move_on_after(0.02):
            await call(session, "hold")
        assert not taken(transport)
        assert await call(session) == 3
        assert told == ["heard"]
        assert not session.peer.open


async def test_a_deadline_ends_a_call_whose_caller_reads() -> None:
    async with talking() as (session, transport):
        await call(session)
        with trio.fail_after(3), pytest.raises(DeadlineExceeded):
            await call(session, "hold", 0.02)
        assert not taken(transport)
        assert await call(session) == 3


@pytest.mark.parametrize(
    ("how", "told"), [("die", "exited with status 3"), ("long", "was stopped: ")], ids=["the process", "the rules"]
)
async def test_who_reads_is_told_of_the_end(how: str, told: str) -> None:
    async with talking() as (session, transport):
        await call(session)
        with trio.fail_after(5), pytest.raises(CallError, match=told) as caught:
            await call(session, how)
        assert caught.value.executed == "unknown"
        assert not taken(transport)


async def test_many_callers_read_at_once_and_are_cancelled_at_any_moment() -> None:
    async with talking() as (session, transport):
        for round in range(12):
            async with trio.open_nursery() as nursery:
                for _ in range(70):
                    nursery.start_soon(call, session)
                for _ in range(round):
                    await trio.lowlevel.checkpoint()
                if round % 3:
                    nursery.cancel_scope.cancel("enough")
        await trio.testing.wait_all_tasks_blocked()
        assert not session.peer.open
        assert not taken(transport)
        assert await call(session) == session.peer.minted


async def test_a_caller_who_was_evicted_gives_back_no_place_that_another_has_taken() -> None:
    async with talking() as (session, transport):
        await call(session)
        place = transport._place
        assert place is not None

        def hold() -> tuple[int, Awaitable[Raw]]:
            id = session.peer.mint()
            return id, session.exchange(id, encode_request(id, "hold", b"{}"), method="hold", deadline=math.inf)

        async def fails(waiting: Awaitable[Raw]) -> None:
            with pytest.raises(CallError, match="taken back"):
                await waiting

        async def succeeds(waiting: Awaitable[Raw]) -> None:
            await waiting

        async with trio.open_nursery() as nursery:
            id, waiting = hold()
            nursery.start_soon(fails, waiting)
            await trio.testing.wait_all_tasks_blocked()
            session.fail(id, CallError("taken back", "unknown"))
            assert not place.taken
            nursery.start_soon(succeeds, hold()[1])  # takes it before the first has noticed
            await trio.testing.wait_all_tasks_blocked()
            assert place.taken
            assert await call(session, "free") == 4
        assert not place.taken
