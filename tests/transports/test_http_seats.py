"""A reply over HTTP that its caller reads by itself: it ends as any other, and whoever stops reading is replaced."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cord_trio.counters import Counters
from cord_trio.errors import CallError, DeadlineExceeded
from cord_trio.transports import http as http_transport
from cord_trio.transports import http1_client, http_rules, http_sinks
from tests.transports.test_http import (
    LEGACY,
    MODERN,
    TEXT,
    Apart,
    Canned,
    Cut,
    Hold,
    Json,
    Seen,
    as_json,
    call,
    canned,
    chunked,
    events,
    reply,
    status,
    stream,
    talking,
)

if TYPE_CHECKING:
    from cord_trio.session import Session
    from cord_trio.transports.http import HttpTransport
    from tests.transports.test_http import Answer

COLD = [as_json, as_json]
"""What comes before a reply that its caller reads: the first is read by the connection, and so is the second."""


async def warm(session: Session) -> None:
    for _ in COLD:
        assert await call(session) == TEXT


def seats(transport: HttpTransport) -> list[bool]:
    """Of each connection, whether its own task rests."""
    return [connection.resting for connection in transport._pool._open]


class Steps(trio.abc.Instrument):
    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.of[task.name.rpartition(".")[2]] += 1


async def test_a_reply_is_read_by_its_caller_alone() -> None:
    async with canned(tools__call=as_json) as server, talking(server.url) as (session, transport):
        await warm(session)
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for _ in range(5):
            assert await call(session) == TEXT
        trio.lowlevel.remove_instrument(steps)
        assert steps.of["_connect"] == 0  # the connection's own task
        assert seats(transport) == [True]


def moved(request: Seen) -> bytes:
    return as_json(request) if request.target == "/new" else status(308, b"", "Location: /new")


def said(**members: Json) -> Answer:
    """A body of these members, with the id of the request unless they say another."""
    return lambda request: status(
        200, json.dumps({"id": request.message["id"], **members}).encode(), "Content-Type: application/json"
    )


def split(request: Seen, *places: int) -> Apart:
    """The reply in JSON, in parts that end at these places of its body."""
    whole = as_json(request)
    begin = whole.index(b"\r\n\r\n") + 4
    bounds = [0, *(begin + place for place in places), len(whole)]
    return Apart(whole[start:end] for start, end in pairwise(bounds))


ENDS: list[Answer] = [
    as_json,
    lambda request: split(request, 0),
    lambda request: split(request, 0, 9),
    lambda request: split(request, 5),
    lambda request: split(request, -9),
    lambda request: Cut(as_json(request)[: -len(reply(request))]),
    Hold(status(200, b"x" * 10, "Content-Type: application/json")[:-10]),
    lambda request: as_json(request).replace(b'"id": ', b'"id": "').replace(b', "result"', b'", "result"'),
    said(result={}, id=None),
    said(result={}, id=4711),
    said(result={}, error=None),
    said(result={}, error={"code": 1, "message": "no"}),
    said(error={"code": 1, "message": "no"}),
    said(error={"code": 1, "message": "no"}, id=None),
    said(result={}, method="notifications/x"),
    said(method="ping"),
    said(method="notifications/message", params={"level": "info"}),
    status(200, b"{", "Content-Type: application/json"),
    status(200, b"[" * 1000, "Content-Type: application/json"),
    lambda request: as_json(request, kind="application/json; charset=utf-8"),
    lambda request: as_json(request)[:60] + as_json(request)[60:],
    lambda request: chunked(events(request)),
    lambda request: chunked(events(request) + b": bye\n\n"),
    lambda request: stream(events(request)),
    lambda request: Hold(chunked(events(request), end=False)),
    lambda request: Cut(as_json(request)[:-3]),
    lambda request: as_json(request) + b"rubbish",
    lambda request: status(200, reply(request), "Content-Type: text/plain"),
    lambda request: status(200, reply(request), "Content-Type: application/json", "Connection: close"),
    moved,
    Cut(b""),
    Cut(b"HTTP/1.1 200"),
    b"rubbish\r\n\r\n",
    Cut(chunked(b": hello\n\n", end=False)),
    status(200, b"{}", "Content-Type: application/json"),
    status(200, b"", "Content-Type: application/json"),
    status(202),
    status(429, b"later"),
    status(500, b"broken"),
    status(404),
    Hold(b""),
    Hold(status(200, b"x" * 10)[:-5]),
]


def in_lines(line: bytes) -> Answer:
    """The reply as the only event of a stream, at once."""
    return lambda request: chunked(events(request).replace(b"\n", line))


def in_parts(line: bytes, more: bytes = b"", end: bytes = b"0\r\n\r\n") -> Answer:
    """The same in parts, as servers in Python write it: the head, the event, and the end after what is in `more`."""

    def answer(request: Seen) -> Apart:
        whole = chunked(events(request).replace(b"\n", line), end=False)
        head, gap, chunk = whole.partition(b"\r\n\r\n")
        behind = b"%x\r\n%b\r\n" % (len(more), more) if more else b""
        return Apart(part for part in (head + gap, chunk, behind + end) if part)

    return answer


def before(text: bytes) -> Answer:
    """The reply behind this, which is the first event, in a part of its own."""

    def answer(request: Seen) -> Apart:
        head, gap, _ = chunked(b"", end=False).partition(b"\r\n\r\n")
        first, second = b"event: message\ndata: %b\n\n" % text, events(request)
        chunks = [b"%x\r\n%b\r\n" % (len(each), each) for each in (first, second)]
        return Apart((head + gap + chunks[0], chunks[1], b"0\r\n\r\n"))

    return answer


PROGRESS = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":9,"progress":1}}'

STREAMS: list[Answer] = [
    in_lines(b"\n"),
    in_lines(b"\r\n"),
    in_lines(b"\r"),
    in_parts(b"\n"),
    in_parts(b"\r\n"),
    in_parts(b"\n", b": bye\n\n"),
    in_parts(b"\n", b"event: message\ndata: %b\n\n" % PROGRESS),
    in_parts(b"\n", end=b"0;x\r\n\r\n"),
    in_parts(b"\n", end=b"0\r\nA: b\r\n\r\n"),
    in_parts(b"\n", end=b"0\r\n\r\nrubbish"),
    in_parts(b"\n", end=b"rubbish"),
    before(PROGRESS),
    before(b"rubbish"),
    before(b'{"jsonrpc":"2.0","id":4711,"result":{}}'),
    lambda request: Hold(chunked(events(request), end=False)),
    lambda request: Cut(chunked(events(request), end=False)),
    lambda request: Cut(chunked(events(request), end=False)[:-3]),
    lambda request: Cut(chunked(b"", end=False)),
    Hold(chunked(b"", end=False)),
    lambda request: chunked(events(request).replace(b"message", b"other")),
    lambda request: chunked(events(request) + events(request)),
    lambda request: chunked(events(request).replace(b"\n\n", b"\n")),
    lambda request: chunked(events(request).replace(b', "result"', b', "error": null,\ndata: "result"')),
    lambda request: chunked(events(request)).replace(b"\r\n\r\n", b"\r\n\r\n0", 1),
    lambda request: chunked(b"id: 1\n" + events(request)),
    lambda request: chunked(b"event: message\ndata: \n\n"),
    lambda request: chunked(b"event: message\ndata: " + PROGRESS + b"\n\n"),
]


async def outcome(answer: Answer, before: list[Answer], revision: str) -> object:
    async with canned(tools__call=[*before, answer, as_json], GET=status(405), DELETE=status(200)) as server:
        async with talking(server.url, revision) as (session, transport):
            for number, _ in enumerate(before, 1):
                await call(session)
                await server.wait_until(lambda number=number: server.sent >= number)  # type: ignore[misc]  # bound
            try:
                told: Json = await call(session, seconds=0.25 if isinstance(answer, Hold) else 5.0)
            except CallError as exc:
                told = (type(exc), exc.executed, str(exc))
            if session.loss is None:
                for _ in range(3):
                    assert await call(session) == TEXT
                assert not session.peer.open
                assert not [post for post in transport.posts.values() if post not in transport._answered]
    return told


@pytest.mark.parametrize("revision", [MODERN, LEGACY])
@pytest.mark.parametrize("index", range(len(ENDS)))
async def test_a_call_ends_the_same_whoever_reads_its_reply(
    index: int, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_rules, "RETRY_BOUNDS", (0.0, 0.02))
    assert await outcome(ENDS[index], [*COLD], revision) == await outcome(ENDS[index], [], revision)


@pytest.mark.parametrize("cold", [in_lines(b"\n"), in_parts(b"\r\n")])
@pytest.mark.parametrize("index", range(len(STREAMS)))
async def test_a_call_that_is_answered_by_a_stream_ends_the_same_whoever_reads_it(index: int, cold: Answer) -> None:
    told = await outcome(STREAMS[index], [cold, cold], MODERN)
    assert told == await outcome(STREAMS[index], [], MODERN)


@pytest.mark.parametrize("line", [b"\n", b"\r\n"])
async def test_a_reply_that_is_the_only_event_of_a_stream_is_read_by_its_caller_alone(
    line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1_client, "TRAIL", 60.0)
    answers = [in_lines(line), in_lines(line), in_lines(line), in_parts(line)]
    async with canned(tools__call=answers) as server, talking(server.url) as (session, transport):
        for number in range(1, 7):
            assert await call(session) == TEXT
            await server.wait_until(lambda number=number: server.sent >= number)  # type: ignore[misc]  # bound
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for number in range(7, 10):
            assert await call(session) == TEXT
            await server.wait_until(lambda number=number: server.sent >= number)  # type: ignore[misc]  # bound
        trio.lowlevel.remove_instrument(steps)
        assert steps.of["_connect"] == 0
        assert seats(transport) == [True]


async def test_a_reply_whose_head_comes_before_its_body_is_read_as_if_they_came_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with canned(tools__call=[*COLD, lambda request: split(request, 0)]) as server:
        async with talking(server.url) as (session, transport):
            await warm(session)
            heads: list[int] = []
            monkeypatch.setattr(http_sinks.Post, "head", lambda _self, status, _headers: heads.append(status))
            for _ in range(3):
                assert await call(session) == TEXT
            assert seats(transport) == [True]
            assert not heads


@pytest.mark.parametrize("again", [False, True])
async def test_what_follows_a_reply_on_its_stream_is_told_though_its_reader_has_left(again: bool) -> None:
    """Before the end, or with it; read since time has passed, or since the connection is wanted `again`."""
    told: list[str] = []
    cold = in_parts(b"\n")
    counters = Counters()

    def talkative(request: Seen) -> Apart:
        bodies = [b'event: message\ndata: {"jsonrpc":"2.0","method":"notifications/%d"}\n\n' % each for each in (1, 2)]
        first, last = [b"%x\r\n%b\r\n" % (len(body), body) for body in bodies]
        whole = in_parts(b"\n", end=b"")
        assert callable(whole)
        return Apart((*whole(request), first, last + b"0\r\n\r\n"))

    async with canned(tools__call=[cold, cold, cold, talkative, cold]) as server:
        async with talking(server.url, counters=counters) as (session, transport):
            session._told = lambda method, params, within: told.append(method)
            for _ in range(4):
                assert await call(session) == TEXT
                await trio.sleep(0.0045)
            if again:
                assert await call(session) == TEXT
            with trio.fail_after(3):
                while transport._pool.busy:  # noqa: ASYNC110  # nobody is told when a connection is free
                    await trio.sleep(0.005)
            assert told == ["notifications/1", "notifications/2"]
            assert counters["session.late_reply"] == 0
            assert not transport.posts
            assert await call(session) == TEXT


async def test_many_callers_of_a_server_that_streams_wait_for_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_client, "TRAIL", 60.0)
    counters = Counters()
    async with canned(tools__call=in_parts(b"\r\n")) as server:
        async with talking(server.url, counters=counters) as (session, transport):
            with trio.fail_after(5):
                for _ in range(3):
                    async with trio.open_nursery() as nursery:
                        for _ in range(100):
                            nursery.start_soon(call, session)
            assert counters["http_client.connected"] <= 64
        assert not transport.posts


async def held(session: Session, server: Canned) -> int:
    """Returns once the server has seen one more call; how many it has by then."""
    count = server.count("tools/call") + 1
    await server.wait_until(lambda: server.count("tools/call") == count)
    return count


async def test_a_modern_call_that_is_cancelled_closes_its_connection() -> None:
    async with canned(tools__call=[*COLD, Hold(b""), as_json]) as server, talking(server.url) as (session, transport):
        await warm(session)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, session)
            await held(session, server)
            nursery.cancel_scope.cancel("enough")
        await server.wait_until(lambda: server.left == [3])
        assert seats(transport) == []
        assert await call(session) == TEXT
    assert set(server.whats()) == {"tools/call"}


async def test_a_legacy_call_that_is_cancelled_leaves_its_seat_to_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_transport, "SETTLE", 60.0)

    def late(request: Seen) -> bytes:
        server.delay = 0.05
        return as_json(request)

    async with canned(tools__call=[*COLD, late, as_json], notifications__cancelled=status(202)) as server:
        async with talking(server.url, LEGACY) as (session, _):
            await warm(session)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, session)
                await held(session, server)
                nursery.cancel_scope.cancel("enough")
            # The word to the server waits until the answer has begun, so somebody must be reading.
            await server.wait_until(lambda: server.count("notifications/cancelled") == 1)
            assert await call(session) == TEXT


@pytest.mark.parametrize("revision", [MODERN, LEGACY])
async def test_a_deadline_ends_a_call_whose_caller_reads(revision: str) -> None:
    async with canned(tools__call=[*COLD, Hold(b""), as_json], notifications__cancelled=status(202)) as server:
        async with talking(server.url, revision) as (session, _):
            await warm(session)
            with trio.fail_after(5), pytest.raises(DeadlineExceeded):
                await call(session, seconds=0.03)
            assert await call(session) == TEXT


@pytest.mark.parametrize("how", ["reply", "lost", "fail"])
async def test_who_reads_is_woken_when_the_call_ends_elsewhere(how: str) -> None:
    def both(request: Seen) -> bytes:
        """The reply to this call and to the one before it."""
        other = reply(request).replace(b'"id": 4', b'"id": 3')
        return chunked(b"data: " + other + b"\n\n" + events(request))

    async with canned(tools__call=[*COLD, Hold(b""), both, as_json]) as server:
        async with talking(server.url) as (session, transport):
            await warm(session)
            ended: list[object] = []

            async def wait() -> None:
                try:
                    ended.append(await call(session))
                except CallError as exc:
                    ended.append(str(exc))

            with trio.fail_after(3):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    await held(session, server)
                    assert seats(transport) == [True]
                    if how == "reply":
                        assert await call(session) == TEXT
                    elif how == "lost":
                        transport.lose("gone")
                    else:
                        session.fail(3, CallError("enough of it"))
            assert ended == [{"reply": TEXT, "lost": "connection lost: gone", "fail": "enough of it"}[how]]


async def test_the_end_of_an_idle_connection_is_noticed_though_nobody_attends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http1_client, "REST", 0.01)
    counters = Counters()

    def closing(request: Seen) -> bytes:
        return Cut(as_json(request))

    async with canned(tools__call=[*COLD, closing, as_json]) as server:
        async with talking(server.url, counters=counters) as (session, transport):
            await warm(session)
            await call(session)
            with trio.fail_after(3):
                while transport._pool._open:  # noqa: ASYNC110  # nobody is told when a pool drops a connection
                    await trio.sleep(0.005)
            assert await call(session) == TEXT
    assert counters["http_client.stale"] == 0


async def test_a_connection_that_rests_is_closed_with_its_pool() -> None:
    async with canned(tools__call=as_json) as server:
        async with talking(server.url) as (session, transport):
            await warm(session)
            assert seats(transport) == [True]
        assert seats(transport) == []


async def test_many_callers_read_at_once_and_are_cancelled_at_any_moment() -> None:
    async with canned(tools__call=as_json) as server, talking(server.url) as (session, transport):
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
        assert not transport.posts
