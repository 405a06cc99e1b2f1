from __future__ import annotations

import errno
import re
import socket
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import h11
import httpx  # noqa: ASYNC127  # an independent client, as users run it
import pytest
import trio

from cord_trio.counters import Counters
from cord_trio.transports import http1_crowd, http1_server, http1_visitor, http1_wire
from cord_trio.transports.http1_server import HttpLimits, Request, Response, serve_http

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable


@pytest.fixture(params=["alone", "among many"], autouse=True)
def heard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client as if it were alone, and as if it were one of many."""
    if request.param == "among many":
        monkeypatch.setattr(http1_crowd, "MANY", 0)


class Door:
    """A served handler: where it is, and what it counts."""

    def __init__(self, port: int, counters: Counters, draining: trio.Event, over: trio.Event) -> None:
        self.port = port
        self.counters = counters
        self.draining = draining
        self.over = over

    async def dial(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def say(self, data: bytes) -> bytes:
        """All that comes back for `data`, until the server closes; the first answer if it keeps the connection."""
        stream = await self.dial()
        async with stream:
            try:
                await stream.send_all(data)
            except trio.BrokenResourceError:
                pass
            return await everything(stream)


def count_descriptors() -> int:
    """Open descriptors of this process, where the system tells."""
    return len(list(Path("/proc/self/fd").glob("*")))


def count_close_wait(port: int) -> int:
    """Sockets of this port whose peer has gone and which are not closed, where the system tells."""
    table = Path("/proc/net/tcp")
    rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
    return len([row for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "08"])


async def everything(stream: trio.SocketStream) -> bytes:
    data = bytearray()  # all 30 MB are not copied for each piece
    try:
        async for more in stream:
            data += more
    except trio.BrokenResourceError:
        pass
    return bytes(data)


async def echo(request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
    text = f"{request.method} {request.path} {request.query} ".encode()
    response.send(200, [("Content-Type", "text/plain")], text + request.body)


@asynccontextmanager
async def open_door(
    handler: Callable[[Request, Response], Awaitable[None]] = echo, limits: HttpLimits | None = None
) -> AsyncGenerator[Door]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    door = Door(listeners[0].socket.getsockname()[1], Counters(), trio.Event(), trio.Event())

    async def serve(task_status: trio.TaskStatus[object]) -> None:  # noqa: ASYNC128  # it hands task_status on
        run = partial(serve_http, handler, listeners, limits=limits, draining=door.draining, counters=door.counters)
        await run(task_status=task_status)
        door.over.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield door
        nursery.cancel_scope.cancel("test over")


GET = b"GET /a?b=c HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def statuses(data: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d+) ", data)]


async def test_requests_with_one_head_are_told_apart_by_their_lengths() -> None:
    seen: list[tuple[str | None, int, bytes]] = []

    async def handler(request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        seen.append((request.headers.get("content-length"), len(request.headers), request.body))
        response.send(200)

    async with open_door(handler) as door, await door.dial() as stream:
        for body in (b"a", b"bc", b"", b"d" * 300):
            await stream.send_all(
                b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            assert statuses(await stream.receive_some()) == [200]
    assert seen == [("1", 2, b"a"), ("2", 2, b"bc"), ("0", 2, b""), ("300", 2, b"d" * 300)]


async def test_a_handler_that_outlives_its_client_goes_on_and_is_waited_for() -> None:
    begun, gone, go = trio.Event(), trio.Event(), trio.Event()
    ended: list[bool] = []

    async def handler(_request: Request, response: Response) -> None:
        response.outlive(True)
        begun.set()
        while not response.gone:  # noqa: ASYNC110  # nobody is told
            await trio.sleep(0.001)
        gone.set()
        await go.wait()
        ended.append(response.gone)
        response.outlive(False)
        response.send(200)

    async with open_door(handler) as door:
        stream = await door.dial()
        await stream.send_all(GET)
        await begun.wait()
        await stream.aclose()
        await gone.wait()
        door.draining.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not door.over.is_set()
        go.set()
        with trio.fail_after(3):
            await door.over.wait()
    assert ended == [True]


async def test_a_handler_that_is_stopped_answers_by_itself_and_its_connection_goes_on() -> None:
    async def handler(request: Request, response: Response) -> None:
        if request.path == "/late":
            response.scope.cancel("too late to stop anything")
            response.send(200, (), b"late")
            return
        if request.path == "/stop":
            response.scope.cancel("enough")
            try:
                await trio.sleep_forever()
            finally:
                response.send(200, (), b"stopped")
        if request.path == "/silent":
            response.scope.cancel("enough")
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        response.send(200, (), b"whole")

    paths = [b"/a", b"/stop", b"/late", b"/b", b"/silent", b"/c"]
    async with open_door(handler) as door:
        answer = await door.say(b"".join(GET.replace(b"/a?b=c", path) for path in paths) + LAST)
    assert statuses(answer) == [200, 200, 200, 200, 500, 200, 200]
    assert [word for word in (b"whole", b"stopped", b"late") if word in answer] == [b"whole", b"stopped", b"late"]


@pytest.mark.parametrize("epoll", [True, False])
@pytest.mark.parametrize("ending", ["close", "half-close", "stay"])
async def test_a_client_that_leaves_is_noticed_with_and_without_epoll(
    ending: str, epoll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if epoll and not http1_crowd.EPOLL:
        pytest.skip("there is none here")
    monkeypatch.setattr(http1_crowd, "EPOLL", epoll)
    monkeypatch.setattr(http1_crowd, "LOOK", 0.005)
    started, ended = trio.Event(), trio.Event()

    async def handler(request: Request, response: Response) -> None:
        started.set()
        try:
            await trio.sleep(0.05)
        except trio.Cancelled:
            ended.set()
            raise
        response.send(200)

    async with open_door(handler) as door:
        stream = await door.dial()
        await stream.send_all(GET)
        await started.wait()
        if ending == "stay":
            assert statuses(await stream.receive_some()) == [200]
        elif ending == "close":
            await stream.aclose()
        else:
            await stream.send_eof()
        if ending != "stay":
            with trio.fail_after(3):
                await ended.wait()
        await stream.aclose()


@pytest.mark.parametrize("outlives", [True, False])
async def test_a_client_that_is_gone_before_its_request_was_read_is_noticed(outlives: bool) -> None:
    ends: list[str] = []
    over = trio.Event()

    async def handler(request: Request, response: Response) -> None:
        response.outlive(outlives)
        try:
            await trio.sleep(0.02)
            ends.append("whole")
        except trio.Cancelled:
            ends.append("cancelled")
            raise
        finally:
            response.outlive(False)
            over.set()

    async with open_door(handler) as door:
        client = socket.create_connection(("127.0.0.1", door.port))
        client.sendall(GET)
        client.close()
        with trio.fail_after(3):
            await over.wait()
    assert ends == ["whole" if outlives else "cancelled"]


async def test_httpx_understands_every_kind_of_answer() -> None:
    async def handler(request: Request, response: Response) -> None:
        match request.path:
            case "/stream":
                response.start(200, [("Content-Type", "text/event-stream")])
                response.write(b"a" * 10)
                await trio.sleep(0.01)
                response.write(b"b" * 100_000)
                response.end()
            case "/empty":
                response.send(204)
            case "/large":
                response.send(200, (), b"x" * 5_000_000)
            case _:
                await echo(request, response)

    async with open_door(handler) as door, httpx.AsyncClient(base_url=f"http://127.0.0.1:{door.port}") as client:
        for _ in range(2):
            assert (await client.get("/x?y=z")).text == "GET /x y=z "
            assert (await client.post("/", content=b"b" * 2_000_000)).content == b"POST /  " + b"b" * 2_000_000
            assert (await client.get("/stream")).content == b"a" * 10 + b"b" * 100_000
            assert (await client.get("/empty")).status_code == 204
            assert (await client.get("/large")).content == b"x" * 5_000_000
            head = await client.head("/")
            assert (head.headers["content-length"], head.content) == ("8", b"")
            assert (await client.head("/stream")).content == b""

        async def pieces() -> AsyncGenerator[bytes]:  # noqa: ASYNC124, ASYNC900  # what httpx asks for
            for _ in range(10):
                yield b"p" * 1000

        assert (await client.post("/", content=pieces())).content == b"POST /  " + b"p" * 10_000
    assert door.counters["http_server.connections"] == 1


async def test_h11_finds_nothing_wrong_with_an_answer() -> None:
    async with open_door() as door:
        peer = h11.Connection(h11.CLIENT)
        stream = await door.dial()
        for _ in range(2):
            request = peer.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
            assert request is not None
            await stream.send_all(request)
            peer.send(h11.EndOfMessage())
            events: list[object] = []
            while not events or not isinstance(events[-1], h11.EndOfMessage):
                event = peer.next_event()
                if event is h11.NEED_DATA:
                    peer.receive_data(await stream.receive_some())
                else:
                    events.append(event)
            assert isinstance(events[0], h11.Response)
            assert events[0].status_code == 200
            assert b"date" in dict(events[0].headers)
            peer.start_next_cycle()
        await stream.aclose()


async def test_an_answer_is_one_segment() -> None:
    async with open_door() as door:
        stream = await door.dial()
        await stream.send_all(GET)
        data = bytes(await stream.receive_some())
        assert data.endswith(b"\r\n\r\nGET /a b=c ")
        await stream.aclose()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nOrigin: http://localhost\r\nOrigin: http://evil\r\n\r\n", 400),
        (b"GET http://evil/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\nab", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n" + b"x" * 30_000_000, 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n A: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\x01\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 100_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET /" + b"a" * 40_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nExpect: magic\r\n\r\n", 417),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 400),
        (b"GET / RTSP/1.0\r\nHost: x\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400),
        (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)
async def test_what_is_not_clean_http_is_refused_and_closed(data: bytes, status: int) -> None:
    async with open_door() as door:
        answer = await door.say(data)
        assert statuses(answer) == [status]
        assert b"\r\nConnection: close\r\n" in answer
        assert door.counters[f"http_server.refused_{status}"] == 1
        assert door.counters["http_server.requests"] == 0
        assert statuses(await door.say(LAST)) == [200]


@pytest.mark.parametrize(
    "data",
    [
        GET,
        b"\r\n\r\n" + GET,
        b"GET http://localhost/a?b=c HTTP/1.1\r\nHost: LOCALHOST\r\n\r\n",
        b"GET /a?b=c HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /a?b=c HTTP/1.1\r\nHost:\r\nExpect: 100-continue\r\n\r\n",
    ],
)
async def test_unusual_but_good_requests_are_answered(data: bytes) -> None:
    async with open_door() as door:
        answer = await door.say(data + LAST)
        assert statuses(answer) == [200, 200]
        assert b"GET /a b=c " in answer
        assert answer.endswith(b"GET /last  ")


async def test_an_upgrade_with_a_body_is_a_plain_request() -> None:
    async with open_door() as door:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        answer = await door.say(head + b"Content-Length: 3\r\n\r\nabc" + LAST)
        assert statuses(answer) == [200, 200]
        assert b"POST /  abc" in answer


async def test_http_1_0_gets_an_unchunked_answer_and_the_end() -> None:
    async def handler(request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        response.start(200)
        response.write(b"one ")
        response.write(b"two")

    async with open_door(handler) as door:
        answer = await door.say(b"GET / HTTP/1.0\r\n\r\n")
        assert b"chunked" not in answer.lower()
        assert answer.endswith(b"\r\n\r\none two")


async def test_expect_100_continue_is_answered_before_the_body() -> None:
    async with open_door() as door:
        stream = await door.dial()
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        await stream.send_all(head)
        assert bytes(await stream.receive_some()) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(b"abc")
        assert bytes(await stream.receive_some()).endswith(b"POST /  abc")
        await stream.aclose()


async def test_pipelined_requests_are_answered_one_at_a_time_in_order() -> None:
    running = 0

    async def handler(request: Request, response: Response) -> None:
        nonlocal running
        assert running == 0
        running += 1
        await trio.sleep(0.002)
        running -= 1
        response.send(200, (), request.path.encode())

    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % index for index in range(10))
    chunked = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    sized = b"POST /s HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"y" * 100_000
    async with open_door(handler) as door:
        answer = await door.say(requests + chunked + sized + sized + LAST)
        assert re.findall(rb"\r\n\r\n(/\w+?)(?=HTTP|$)", answer) == [
            *(b"/%d" % i for i in range(10)),
            b"/c",
            b"/s",
            b"/s",
            b"/last",
        ]


@pytest.mark.parametrize("ending", ["close", "reset", "half-close"])
@pytest.mark.parametrize("more", [b"", b"x" * 100_000])
async def test_a_client_that_leaves_cancels_its_handler(ending: str, more: bytes) -> None:
    started, cancelled = trio.Event(), trio.Event()
    gone: list[bool] = []

    async def handler(request: Request, response: Response) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            gone.append(response.gone)
            response.send(200, (), b"to nobody")
            cancelled.set()

    async with open_door(handler) as door:
        stream = await door.dial()
        await stream.send_all(GET + more)
        await started.wait()
        if ending == "reset":
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if ending == "half-close":
            await stream.send_eof()
        else:
            await stream.aclose()
        with trio.fail_after(5):
            await cancelled.wait()
        assert gone == [True]
        if ending == "half-close":
            assert await everything(stream) == b""
            await stream.aclose()


async def test_e05_no_socket_stays_in_close_wait() -> None:
    async with open_door() as door:
        streams = []
        for _ in range(200):
            stream = await door.dial()
            streams.append(stream)
            await stream.send_all(GET)
            await stream.receive_some()
            await stream.send_eof()
        await trio.sleep(0.05)
        assert count_close_wait(door.port) == 0
        for stream in streams:
            await stream.aclose()


@pytest.mark.parametrize("started", [False, True])
async def test_u04_u10_a_handler_that_fails_after_its_client_left_hurts_nobody(started: bool) -> None:
    entered = trio.Event()

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("clean-up failed")

    async def handler(request: Request, response: Response) -> None:
        if request.path == "/last":
            response.send(200)
            return
        if started:
            response.start(200)
        entered.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)

    async with open_door(handler) as door:
        for _ in range(3):
            stream = await door.dial()
            await stream.send_all(GET)
            await entered.wait()
            await stream.aclose()
        await trio.sleep(0.02)
        assert statuses(await door.say(LAST)) == [200]


async def test_u10_a_handler_that_fails_while_the_server_is_cancelled_does_not_fail_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    entered = trio.Event()

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("clean-up failed")

    async def handler(request: Request, response: Response) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)
            entered.set()

    async with open_door(handler) as door:
        stream = await door.dial()
        await stream.send_all(GET)
        await entered.wait()
        await trio.sleep(0.01)
    await stream.aclose()
    assert "a handler failed after" in caplog.text


async def test_a_failing_handler_is_a_500_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        if request.path == "/a":
            raise ValueError("not for the client")
        if request.path == "/header":
            response.send(200, [("A", "b\r\nX: y")])

    async with open_door(handler) as door:
        header = b"GET /header HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = await door.say(GET + header + LAST)
        assert statuses(answer) == [500, 500, 500]
        assert b"not for" not in answer
        assert b"no answer was given" in answer
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2


async def test_an_answer_that_fails_half_way_is_broken_off() -> None:
    async def handler(request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        response.start(200)
        response.write(b"half")
        raise ValueError

    async with open_door(handler) as door:
        answer = await door.say(GET)
        assert answer.endswith(b"4\r\nhalf\r\n")


async def test_misuse_of_an_answer_is_told() -> None:
    wrong: list[str] = []

    async def handler(request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        for misuse in (partial(response.write, b"x"), response.end):
            with pytest.raises(RuntimeError) as caught:
                misuse()
            wrong.append(str(caught.value))
        response.start(200)
        with pytest.raises(RuntimeError):
            response.send(200)
        response.write(b"")
        response.end()
        response.end()
        with pytest.raises(RuntimeError):
            response.write(b"x")

    async with open_door(handler) as door:
        assert (await door.say(LAST)).endswith(b"\r\n\r\n0\r\n\r\n")
        assert len(wrong) == 2


SHORT = HttpLimits(head_time=0.15, body_time=0.2, idle=0.2)


@pytest.mark.parametrize(
    ("first", "drip", "status"),
    [
        (b"", b"", []),
        (b"", b"\r\n", []),
        (b"POST ", b"", [408]),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"A: b\r\n", [408]),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab", b"", [408]),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nab", b"a", [408]),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", b"1\r\na\r\n", [408]),
        (GET, b"", [200]),
        (GET, b"\r\n", [200]),
        (GET + b"GET", b" ", [200, 408]),
    ],
)
async def test_slow_clients_are_shed(first: bytes, drip: bytes, status: list[int]) -> None:
    async with open_door(limits=SHORT) as door:
        stream = await door.dial()

        async def dripping() -> None:
            try:
                while drip:
                    await trio.sleep(0.03)
                    await stream.send_all(drip)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                await stream.send_all(first)
                nursery.start_soon(dripping)
                answer = await everything(stream)
                await stream.aclose()
        assert statuses(answer) == status


async def test_a_slow_but_steady_body_arrives() -> None:
    async with open_door(limits=SHORT) as door:
        stream = await door.dial()
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n")
        for _ in range(10):
            await trio.sleep(0.04)
            await stream.send_all(b"x" * 200)
        assert bytes(await stream.receive_some()).endswith(b"x" * 2000)
        await stream.aclose()


async def test_a_long_answer_outlives_every_time_limit_of_requests() -> None:
    async def handler(request: Request, response: Response) -> None:
        response.start(200)
        for _ in range(10):
            await trio.sleep(0.04)
            response.write(b"x")

    async with open_door(handler, limits=SHORT) as door:
        assert (await door.say(LAST)).count(b"1\r\nx\r\n") == 10


async def test_connections_beyond_the_bound_are_told_so() -> None:
    async with open_door(limits=HttpLimits(connections=2)) as door:
        streams = [await door.dial() for _ in range(2)]
        for stream in streams:
            await stream.send_all(GET)
            await stream.receive_some()
        assert statuses(await door.say(GET)) == [503]
        assert door.counters["http_server.turned_away"] == 1
        for stream in streams:
            await stream.aclose()
        await trio.sleep(0.02)
        assert statuses(await door.say(LAST)) == [200]


async def test_bodies_that_arrive_are_bounded_together() -> None:
    async with open_door(limits=HttpLimits(received=1000)) as door:
        first = await door.dial()
        await first.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 901\r\n\r\n" + b"x" * 900)
        await trio.sleep(0.01)
        second = await door.say(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 902\r\n\r\n" + b"x" * 900)
        assert statuses(second) == [503]
        await first.send_all(b"x")
        assert statuses(bytes(await first.receive_some())) == [200]
        assert statuses(await door.say(LAST)) == [200]
        await first.aclose()


async def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_wire, "STALL_LIMIT", 0.1)
    cancelled = trio.Event()

    async def handler(request: Request, response: Response) -> None:
        response.start(200)
        try:
            while True:
                response.write(b"x" * 65536)
                await response.wait_uncongested()
        finally:
            cancelled.set()

    async with open_door(handler, limits=SHORT) as door:
        stream = await door.dial()
        await stream.send_all(GET)
        with trio.fail_after(5):
            await cancelled.wait()
        assert door.counters["http_server.stalled"] == 1
        await stream.aclose()


async def test_an_outbox_that_grows_beyond_its_bound_drops_the_client() -> None:
    async def handler(request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        response.start(200)
        for _ in range(200):
            response.write(b"x" * 100_000)
        assert response.gone

    async with open_door(handler, limits=HttpLimits(outbox=100_000)) as door:
        stream = await door.dial()
        await stream.send_all(GET)
        await everything(stream)
        assert door.counters["http_server.outbox_full"] == 1
        await stream.aclose()


async def test_what_waits_for_all_clients_is_bounded_and_the_worst_of_them_goes() -> None:
    async def handler(request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        response.send(200, body=b"x" * (30_000_000 if request.path == "/last" else 40_000_000))

    async with open_door(handler, limits=HttpLimits(unsent=40_000_000)) as door:
        worst, other = await door.dial(), await door.dial()
        await worst.send_all(GET)
        await trio.sleep(0.1)
        await other.send_all(LAST)
        while not door.counters["http_server.unsent_full"]:  # noqa: ASYNC110  # real sockets: nothing to wait on
            await trio.sleep(0.002)
        assert len(await everything(other)) > 30_000_000
        await worst.aclose()
        await other.aclose()


async def test_a_writer_can_wait_for_a_slow_reader() -> None:
    congested: list[bool] = []

    async def handler(request: Request, response: Response) -> None:
        response.start(200)
        for _ in range(100):
            response.write(b"x" * 100_000)
            congested.append(response.congested)
            await response.wait_uncongested()
            assert not response.congested

    async with open_door(handler) as door:
        stream = await door.dial()
        await stream.send_all(LAST)
        await trio.sleep(0.05)
        assert any(congested)
        assert len(await everything(stream)) > 10_000_000
        await stream.aclose()


async def test_a_pipeliner_that_does_not_read_makes_no_pile_of_answers() -> None:
    answered = 0

    async def handler(request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        nonlocal answered
        answered += 1
        response.send(200, (), b"x" * 1_000_000)

    async with open_door(handler) as door:
        stream = await door.dial()
        await stream.send_all(GET * 500)
        await trio.sleep(0.1)
        assert answered < 20
        await stream.aclose()


async def test_draining_finishes_what_runs_closes_what_idles_and_takes_nothing_new() -> None:
    running, release = trio.Event(), trio.Event()

    async def handler(request: Request, response: Response) -> None:
        if request.path == "/last":
            running.set()
            await release.wait()
        await echo(request, response)

    async with open_door(handler) as door:
        idle, busy = await door.dial(), await door.dial()
        await idle.send_all(GET)
        await idle.receive_some()
        await busy.send_all(b"GET /last HTTP/1.1\r\nHost: x\r\n\r\n")
        await running.wait()
        door.draining.set()
        assert await everything(idle) == b""
        with pytest.raises(OSError, match="connect"):
            await door.dial()
        assert not door.over.is_set()
        release.set()
        answer = await everything(busy)
        assert b"Connection: close" in answer
        await busy.aclose()
        with trio.fail_after(5):
            await door.over.wait()
        await idle.aclose()


async def test_draining_with_nobody_there_ends_at_once() -> None:
    async with open_door() as door:
        door.draining.set()
        with trio.fail_after(5):
            await door.over.wait()


async def test_cancelling_the_server_leaves_no_descriptor() -> None:
    before = count_descriptors()
    streams = []
    async with open_door() as door:
        for data in (b"", b"GET", GET, GET[:-2], b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\na"):
            stream = await door.dial()
            await stream.send_all(data)
            streams.append(stream)
        await trio.sleep(0.02)
    for stream in streams:
        await stream.aclose()
    assert count_descriptors() <= before


async def test_running_out_of_descriptors_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:

    failures = [OSError(errno.EMFILE, "too many"), OSError(errno.ECONNABORTED, "left")]
    real = http1_wire.take_socket

    def failing(sock: trio.socket.SocketType) -> socket.socket:
        if failures:
            sock.close()
            raise failures.pop(0)
        return real(sock)

    monkeypatch.setattr(http1_server, "take_socket", failing)
    monkeypatch.setattr(http1_server, "ACCEPT_PAUSE", 0.01)
    async with open_door() as door:
        assert [statuses(await door.say(LAST)) for _ in range(3)] == [[], [], [200]]
        assert door.counters["http_server.accept_failed"] == 1


async def test_a_refusal_reaches_a_client_that_still_sends() -> None:
    async with open_door(limits=HttpLimits(body=1000)) as door:
        assert http1_visitor.LINGER > 1
        data = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n" + b"x" * 20_000_000
        assert statuses(await door.say(data)) == [413]
