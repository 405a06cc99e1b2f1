from __future__ import annotations

import gc
import os
import random
import socket
import ssl
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import h11
import pytest
import trio
import trio.lowlevel
import trustme

from cord_trio.counters import Counters
from cord_trio.errors import BadReply, CallError, ConnectionLost, Overloaded
from cord_trio.transports import http1_client, http1_wire
from cord_trio.transports.http1 import Headers
from cord_trio.transports.http1_client import Exchange, Pool, PoolLimits, open_pool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable


class Collect:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.status = 0
        self.headers = Headers(())
        self.content = b""
        self.error: CallError | None = None
        self.over = trio.Event()
        self.begun = trio.Event()

    def head(self, status: int, headers: Headers) -> None:
        self.told.append("head")
        self.status = status
        self.headers = headers
        self.begun.set()

    def body(self, data: bytes) -> None:
        self.told.append("body")
        self.content += data

    def end(self) -> None:
        self.told.append("end")
        self.over.set()

    def failed(self, error: CallError) -> None:
        self.told.append("failed")
        self.error = error
        self.over.set()


async def fetch(pool: Pool, target: str = "/", body: bytes = b"", method: str = "POST") -> Collect:
    sink = Collect()
    pool.request(method, target, (), body, sink)
    await sink.over.wait()
    return sink


def count_descriptors() -> int:
    """Open descriptors of this process, where the system tells."""
    return len(list(Path("/proc/self/fd").glob("*")))


def answer(body: bytes = b"ok", head: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def serving(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncGenerator[str]:
    """Serve `handler` on loopback; yields the URL."""

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await handler(stream)
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/mcp"
        nursery.cancel_scope.cancel("test over")


async def read_request(stream: trio.SocketStream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            missing = int(line[15:]) - len(body)
            while missing > 0:
                more = await stream.receive_some()
                data += more
                missing -= len(more)
    return data


def replying(*replies: bytes, close: bool = True) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """A server that gives each connection these answers, then closes it."""

    async def handler(stream: trio.SocketStream) -> None:
        for reply in replies:
            if not await read_request(stream):
                break
            await stream.send_all(reply)
        if not close:
            await trio.sleep_forever()
        await stream.aclose()

    return handler


async def echo_h11(stream: trio.SocketStream) -> None:
    """An independent server: h11 reads the requests and frames the answers."""
    peer = h11.Connection(h11.SERVER)
    while True:
        request: h11.Request | None = None
        body = b""
        while True:
            event = peer.next_event()
            if event is h11.NEED_DATA:
                peer.receive_data(await stream.receive_some())
                continue
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return
        assert request is not None
        sized = b"sized" in request.target
        fields: list[tuple[str, str]] = (
            [("Content-Length", str(len(body)))] if sized else [("Transfer-Encoding", "chunked")]
        )
        out = peer.send(h11.Response(status_code=200, headers=[*fields, ("Target", request.target.decode())]))
        assert out is not None
        for index in range(0, len(body), 50_000):
            out += peer.send(h11.Data(data=body[index : index + 50_000])) or b""
        out += peer.send(h11.EndOfMessage()) or b""
        await stream.send_all(out)
        peer.start_next_cycle()


@pytest.mark.parametrize("target", ["/sized", "/chunked"])
@pytest.mark.parametrize("size", [0, 10, 700_000])
async def test_h11_understands_requests_and_is_understood(target: str, size: int) -> None:
    body = os.urandom(size)
    counters = Counters()
    async with serving(echo_h11) as url, open_pool(url, counters=counters) as pool:
        for _ in range(3):
            sink = await fetch(pool, target, body)
            assert (sink.status, sink.content == body, sink.error) == (200, True, None)
            assert sink.headers.get("target") == target
    assert counters["http_client.connected"] == 1


class Whole(Collect):
    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self.told.append("whole")
        self.status, self.headers, self.content = status, headers, body
        self.over.set()


async def fetch_whole(pool: Pool, method: str = "POST") -> Whole:
    sink = Whole()
    pool.start(method, pool.prepare(method, "/", ()), b"x", sink, sink.whole)
    await sink.over.wait()
    return sink


async def test_only_an_answer_with_the_head_of_the_one_before_is_told_at_once() -> None:
    replies = (
        answer(),
        answer(b"longer"),
        answer(head="A: b\r\n"),
        answer(head="A: b\r\n"),
        answer(b"")[:-2] + b"B: c\r\n\r\n",
    )
    async with serving(replying(*replies, close=False)) as url, open_pool(url) as pool:
        told = [await fetch_whole(pool) for _ in replies]
    apart = ["head", "body", "end"]
    assert [sink.told for sink in told] == [apart, ["whole"], apart, ["whole"], ["head", "end"]]
    assert [sink.content for sink in told] == [b"ok", b"longer", b"ok", b"ok", b""]
    assert [*told[3].headers] == [("A", "b")]


async def test_the_bound_on_a_body_holds_for_known_heads_too() -> None:
    async with serving(replying(answer(), answer(b"12345"))) as url:
        async with open_pool(url, limits=PoolLimits(body=4)) as pool:
            await fetch_whole(pool)
            sink = await fetch_whole(pool)
    assert "larger than max_message" in str(sink.error)


async def test_a_sink_that_raises_when_told_at_once_hurts_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    raised = trio.Event()

    def whole(_status: int, _headers: Headers, _body: bytes) -> None:
        raised.set()
        raise RuntimeError("a bug")

    counters = Counters()
    async with serving(replying(answer(), answer(), answer())) as url, open_pool(url, counters=counters) as pool:
        await fetch_whole(pool)
        pool.start("POST", pool.prepare("POST", "/", ()), b"x", Whole(), whole)
        await raised.wait()
        assert (await fetch_whole(pool)).told == ["whole"]
    assert "a sink raised at the end" in caplog.text
    assert counters["http_client.connected"] == 1


async def test_the_request_is_one_segment_with_the_headers_of_pool_and_call() -> None:
    got: list[bytes] = []

    async def handler(stream: trio.SocketStream) -> None:
        got.append(bytes(await stream.receive_some()))
        await stream.send_all(answer())

    async with serving(handler) as url, open_pool(url, headers=[("User-Agent", "cord")]) as pool:
        sink = Collect()
        exchange = pool.request("POST", "/mcp?a=b", [("Accept", "x")], b"{}", sink)
        assert not exchange.written
        await sink.over.wait()
        assert exchange.written
        host = pool.origin.name
    assert got == [
        b"POST /mcp?a=b HTTP/1.1\r\nHost: %b\r\nAccept-Encoding: identity\r\nUser-Agent: cord\r\n"
        b"Accept: x\r\nContent-Length: 2\r\n\r\n{}" % host.encode()
    ]


async def test_a_warm_request_spawns_no_task() -> None:
    async with serving(replying(*[answer()] * 5)) as url, open_pool(url) as pool:
        await fetch(pool)
        before = trio.lowlevel.current_statistics().tasks_living
        sink = Collect()
        exchange = pool.request("POST", "/", (), b"", sink)
        assert exchange.written
        assert trio.lowlevel.current_statistics().tasks_living == before
        await sink.over.wait()


@pytest.mark.parametrize(
    ("method", "reply", "content"),
    [
        ("POST", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        ("POST", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\nT: x\r\n\r\n", b"ok"),
        ("POST", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\n" + answer(), b"ok"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b""),
        ("POST", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        ("POST", b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
async def test_answers_that_keep_the_connection(method: str, reply: bytes, content: bytes) -> None:
    async with serving(replying(reply, reply)) as url, open_pool(url) as pool:
        for _ in range(2):
            sink = await fetch(pool, method=method)
            assert (sink.content, sink.error, sink.told[0], sink.told[-1]) == (content, None, "head", "end")
        assert pool.counters["http_client.connected"] == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",
        answer() + b"rubbish",
        answer() + answer(b"second"),
    ],
)
async def test_answers_that_end_the_connection(reply: bytes) -> None:
    async with serving(replying(reply)) as url, open_pool(url) as pool:
        for _ in range(2):
            sink = await fetch(pool)
            assert (sink.content, sink.error) == (b"ok", None)
        assert pool.counters["http_client.connected"] == 2


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (b"rubbish\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\nA: b\n\n", "never ends"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 40_000, "32768"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 40_000 + b"\r\n\r\n", "32768"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "128 headers"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 50, "interim"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", "switched protocols"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "max_message = 1000"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n800\r\n" + b"x" * 2048, "max_message = 1000"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2048, "max_message = 1000"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok", "transfer coding"),
    ],
)
async def test_a_bad_answer_fails_its_exchange_alone(reply: bytes, says: str) -> None:
    replies = [reply, answer()]

    async def handler(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(replies.pop(0))
        await trio.sleep_forever()

    async with serving(handler) as url, open_pool(url, limits=PoolLimits(body=1000)) as pool:
        sink = await fetch(pool)
        assert isinstance(sink.error, BadReply)
        assert says in str(sink.error)
        assert (await fetch(pool)).content == b"ok"


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate"])
async def test_h20_a_compressed_answer_is_refused_clearly(coding: str) -> None:
    async with serving(replying(answer(head=f"Content-Encoding: {coding}\r\n"))) as url, open_pool(url) as pool:
        sink = await fetch(pool)
        assert isinstance(sink.error, BadReply)
        assert f"compressed ({coding})" in str(sink.error)
        assert pool.counters["http_client.compressed"] == 1


async def test_an_event_stream_has_no_bound_of_the_pool() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    async with (
        serving(replying(head + b"x" * 5000)) as url,
        open_pool(url, limits=PoolLimits(body=1000)) as pool,
    ):
        assert len((await fetch(pool)).content) == 5000


async def test_a_connection_that_the_server_closed_while_idle_is_not_used() -> None:
    closed = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(answer())
        await stream.aclose()
        closed.set()

    async with serving(handler) as url, open_pool(url) as pool:
        for _ in range(20):
            sink = await fetch(pool)
            assert sink.error is None
            await closed.wait()
            closed = trio.Event()


async def test_a_close_in_this_very_moment_is_noticed_before_writing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with open_pool(f"http://127.0.0.1:{listener.getsockname()[1]}") as pool:
            sinks = [Collect(), Collect()]
            pool.request("POST", "/", (), b"", sinks[0])
            await trio.sleep(0.02)
            first, _ = listener.accept()
            first.sendall(answer())
            await sinks[0].over.wait()
            first.close()
            exchange = pool.request("POST", "/", (), b"", sinks[1])
            assert not exchange.written
            await trio.sleep(0.02)
            second, _ = listener.accept()
            second.sendall(answer(b"second"))
            await sinks[1].over.wait()
            second.close()
            assert sinks[1].content == b"second"


async def test_a_connection_that_is_made_too_late_to_be_withdrawn_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = socket.socketpair()

    async def late(origin: object, context: object, nursery: trio.Nursery, proxy: object) -> http1_wire.Wire:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.01)
        left.setblocking(False)
        return http1_wire.SocketWire(left, nursery)

    monkeypatch.setattr(http1_client, "connect", late)
    with right:
        async with open_pool("http://x") as pool:
            exchange = pool.request("POST", "/", (), b"", Collect())
            await trio.lowlevel.checkpoint()
            exchange.close()
            while left.fileno() != -1:  # noqa: ASYNC110  # nobody is told
                await trio.sleep(0.001)
            assert repr(pool) == "<Pool x: 0 open, 0 idle, 0 connecting, 0 waiting>"


async def test_a_connection_that_lost_the_race_is_kept_for_the_next_request() -> None:
    async with serving(replying(*[answer()] * 5)) as url, open_pool(url) as pool:
        await fetch(pool)
        sinks = [Collect() for _ in range(2)]
        for sink in sinks:
            pool.request("POST", "/", (), b"", sink)
        for sink in sinks:
            await sink.over.wait()
        await trio.sleep(0.02)
        assert (pool.busy, pool.counters["http_client.connected"]) == (0, 2)


async def test_a_408_while_idle_is_not_taken_for_an_answer() -> None:
    late = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"

    async def handler(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(answer())
        await trio.sleep(0.02)
        await stream.send_all(late)
        await trio.sleep_forever()

    async with serving(handler) as url, open_pool(url) as pool:
        await fetch(pool)
        await trio.sleep(0.06)
        assert (await fetch(pool)).status == 200


async def test_a_connection_idle_for_too_long_is_not_used() -> None:
    async with (
        serving(replying(*[answer()] * 5)) as url,
        open_pool(url, limits=PoolLimits(idle=0.02)) as pool,
    ):
        await fetch(pool)
        await trio.sleep(0.04)
        await fetch(pool)
        assert pool.counters["http_client.stale"] == 1


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 2", answer(b"ok")[:-1]])
async def test_a_server_that_closes_before_the_end_leaves_it_unknown(part: bytes) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(answer())
        await read_request(stream)
        await stream.send_all(part)
        await stream.aclose()

    async with serving(handler) as url, open_pool(url) as pool:
        await fetch(pool)
        sink = await fetch(pool)
        assert isinstance(sink.error, ConnectionLost)
        assert sink.error.executed == "unknown"


async def test_a_refused_connection_was_not_executed() -> None:
    async with open_pool("http://127.0.0.1:1/") as pool:
        sink = await fetch(pool)
        assert isinstance(sink.error, ConnectionLost)
        assert (sink.error.executed, "refused" in sink.error.reason) == ("no", True)


@asynccontextmanager
async def deaf() -> AsyncGenerator[str]:
    """An address where connecting never ends: its queue is full."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=0))[0]
    with listener.socket:
        address = listener.socket.getsockname()
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        await trio.sleep(0.01)
        yield f"http://127.0.0.1:{address[1]}"
        for filler in fillers:
            filler.close()


async def test_connecting_has_a_deadline() -> None:
    async with deaf() as url, open_pool(url, limits=PoolLimits(connect=0.1)) as pool:
        sink = await fetch(pool)
        assert isinstance(sink.error, ConnectionLost)
        assert (sink.error.executed, "within 0.1 s" in str(sink.error)) == ("no", True)


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        ("PO ST", "/", ("A", "b")),
        ("POST\r\n", "/", ("A", "b")),
        ("POST", "/ x", ("A", "b")),
        ("POST", "/\r\nX: y", ("A", "b")),
        ("POST", "/", ("A\r\nB", "b")),
        ("POST", "/", ("A", "b\r\nX: y")),
        ("POST", "/", ("A", "b\0")),
        ("POST", "/", ("Content-Length", "1")),
        ("POST", "/", ("host", "evil")),
        ("POST", "/", ("Transfer-Encoding", "chunked")),
    ],
)
async def test_injection_is_refused_before_anything_is_written(
    method: str, target: str, header: tuple[str, str]
) -> None:
    async with open_pool("http://127.0.0.1:1/") as pool:
        with pytest.raises(CallError) as caught:
            pool.request(method, target, [header], b"", Collect())
        assert caught.value.executed == "no"
        assert pool.busy == 0


@pytest.mark.parametrize("url", ["ftp://x/", "http://", "http://u:p@x/", "http://a b/", "http://x:99999/", "x"])
async def test_a_bad_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # several texts
        async with open_pool(url):
            pass


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://x", "x"),
        ("http://x:80/", "x"),
        ("https://X:443/", "x"),
        ("http://x:81", "x:81"),
        ("http://[::1]:81", "[::1]:81"),
        ("http://b\u00fccher.example", "xn--bcher-kva.example"),
    ],
)
async def test_the_host_header_names_the_origin(url: str, name: str) -> None:
    async with open_pool(url, verify=False) as pool:
        assert pool.origin.name == name


async def test_the_bounds_on_connections_and_on_waiting_hold() -> None:
    release = trio.Event()
    most = now = 0

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal most, now
        while await read_request(stream):
            now += 1
            most = max(most, now)
            await release.wait()
            now -= 1
            await stream.send_all(answer())

    limits = PoolLimits(connections=3, waiting=4)
    async with serving(handler) as url, open_pool(url, limits=limits) as pool:
        sinks = [Collect() for _ in range(7)]
        for sink in sinks[:3]:
            pool.request("POST", "/", (), b"", sink)
        await trio.sleep(0.05)
        for sink in sinks[3:]:
            pool.request("POST", "/", (), b"", sink)
        with pytest.raises(Overloaded) as caught:
            pool.request("POST", "/", (), b"", Collect())
        assert (caught.value.bound, caught.value.limit) == ("http_waiting", 4)
        release.set()
        for sink in sinks:
            await sink.over.wait()
        assert [sink.content for sink in sinks] == [b"ok"] * 7
        assert most <= 3


async def test_closing_an_exchange_closes_its_connection_now_and_tells_nothing_more() -> None:
    left = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab")
        assert await stream.receive_some() == b""
        left.set()

    async with serving(handler) as url, open_pool(url) as pool:
        sink = Collect()
        exchange = pool.request("POST", "/", (), b"", sink)
        await sink.begun.wait()
        exchange.close()
        exchange.close()
        assert pool.busy == 0
        await left.wait()
        assert sink.told == ["head", "body"]


async def test_a_sink_may_close_its_exchange_from_within() -> None:
    class Closing(Collect):
        exchange: Exchange

        def body(self, data: bytes) -> None:
            super().body(data)
            self.exchange.close()

    async with serving(replying(answer() + b"x" * 10, close=False)) as url, open_pool(url) as pool:
        sink = Closing()
        sink.exchange = pool.request("POST", "/", (), b"", sink)
        await trio.sleep(0.05)
        assert sink.told == ["head", "body"]
        assert pool.busy == 0


async def test_a_sink_may_send_the_next_request_at_the_end() -> None:
    async with serving(replying(*[answer()] * 3)) as url, open_pool(url) as pool:
        last = Collect()

        class Chain(Collect):
            def end(self) -> None:
                pool.request("POST", "/", (), b"", last)

        pool.request("POST", "/", (), b"", Chain())
        await last.over.wait()
        assert pool.counters["http_client.connected"] == 1


@pytest.mark.parametrize("where", ["head", "body", "end", "failed"])
async def test_a_sink_that_raises_hurts_nobody_else(where: str, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Collect):
        def __getattribute__(self, name: str) -> object:
            if name == where:
                raise RuntimeError("broken sink")
            return super().__getattribute__(name)

    reply = b"rubbish\r\n\r\n" if where == "failed" else answer()
    replies = [reply, answer(b"fine")]

    async def handler(stream: trio.SocketStream) -> None:
        while replies and await read_request(stream):
            await stream.send_all(replies.pop(0))

    async with serving(handler) as url, open_pool(url) as pool:
        pool.request("POST", "/", (), b"", Broken())
        await trio.sleep(0.05)
        assert (await fetch(pool)).content == b"fine"
    assert "sink raised" in caplog.text


async def test_an_early_refusal_of_a_large_body_is_read() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await trio.sleep_forever()

    async with serving(handler) as url, open_pool(url) as pool:
        sink = await fetch(pool, body=b"x" * 12_000_000)
        assert (sink.status, sink.content, pool.busy) == (413, b"no", 0)
        assert "0 open" in repr(pool)


async def test_closing_the_pool_fails_what_is_not_over() -> None:
    async with serving(replying(answer(), close=False)) as url:
        async with open_pool(url, limits=PoolLimits(connections=1)) as pool:
            await fetch(pool)
            sinks = [Collect(), Collect()]
            for sink in sinks:
                pool.request("POST", "/", (), b"", sink)
        assert [sink.told for sink in sinks] == [["failed"], ["failed"]]
        assert [sink.error.executed for sink in sinks if sink.error] == ["unknown", "no"]
        with pytest.raises(ConnectionLost):
            pool.request("POST", "/", (), b"", Collect())


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError):
        async with open_pool("http://127.0.0.1:1"):
            raise KeyError


@pytest.mark.parametrize("slow", [False, True])
async def test_e07_a_thousand_cancels_leave_every_slot_free(slow: bool) -> None:
    rng = random.Random(7)

    async def handler(stream: trio.SocketStream) -> None:
        while await read_request(stream):
            if slow:
                await trio.sleep(rng.random() * 0.002)
            await stream.send_all(answer())

    limits = PoolLimits(connections=10)
    async with serving(handler) as url, open_pool(url, limits=limits) as pool:

        async def cancelled() -> None:
            sink = Collect()
            exchange = pool.request("POST", "/", (), b"x", sink)
            with trio.move_on_after(rng.random() * 0.004):
                await sink.over.wait()
            exchange.close()
            told = list(sink.told)
            await trio.lowlevel.checkpoint()
            assert sink.told == told

        for _ in range(20):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(cancelled)
        assert pool.busy == 0
        with trio.fail_after(2):
            async with trio.open_nursery() as nursery:
                sinks = []
                for _ in range(10):
                    sink = Collect()
                    sinks.append(sink)
                    pool.request("POST", "/", (), b"", sink)
                for sink in sinks:
                    nursery.start_soon(sink.over.wait)
        assert [sink.content for sink in sinks] == [b"ok"] * 10


async def test_cancelling_while_connecting_gives_the_place_free_at_once() -> None:
    async with deaf() as url, open_pool(url, limits=PoolLimits(connections=1)) as pool:
        for _ in range(3):
            exchange = pool.request("POST", "/", (), b"", Collect())
            await trio.sleep(0.005)
            assert pool.busy == 1
            exchange.close()
            assert (pool.busy, exchange.written) == (0, False)


async def test_no_descriptor_is_left_behind() -> None:
    async with serving(replying(*[answer()] * 5)) as url:
        before = count_descriptors()
        async with open_pool(url) as pool:
            for _ in range(4):
                pool.request("POST", "/", (), b"", Collect())
            await trio.sleep(0.02)
            pool.request("POST", "/", (), b"", Collect()).close()
        gc.collect()
        await trio.sleep(0.02)
        assert count_descriptors() <= before


@asynccontextmanager
async def serving_tls(authority: trustme.CA) -> AsyncGenerator[str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)

    async def handler(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await echo_h11(stream)  # type: ignore[arg-type]  # a stream is a stream
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_ssl_over_tcp, handler, 0, context)
        yield f"https://localhost:{listeners[0].transport_listener.socket.getsockname()[1]}/mcp"
        nursery.cancel_scope.cancel("test over")


async def test_tls_carries_the_same_exchanges() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with serving_tls(authority) as url, open_pool(url, verify=context) as pool:
        for size in (0, 5, 1_000_000):
            for target in ("/sized", "/chunked"):
                body = os.urandom(size)
                sink = await fetch(pool, target, body)
                assert (sink.status, sink.content == body, sink.error) == (200, True, None)
        assert pool.counters["http_client.connected"] == 1
        sink = Collect()
        exchange = pool.request("POST", "/", (), b"x" * 1_000_000, sink)
        await trio.lowlevel.checkpoint()
        exchange.close()
        assert pool.busy == 0
        assert (await fetch(pool, "/", b"again")).content == b"again"
        assert sink.told == []


async def test_an_unknown_certificate_is_refused_unless_told_otherwise() -> None:
    async with serving_tls(trustme.CA()) as url:
        async with open_pool(url) as pool:
            sink = await fetch(pool)
            assert isinstance(sink.error, ConnectionLost)
            assert (sink.error.executed, "certificate" in str(sink.error).lower()) == ("no", True)
        async with open_pool(url, verify=False) as pool:
            assert (await fetch(pool)).status == 200


def test_the_pool_is_exported() -> None:
    assert {"open_pool", "Pool", "PoolLimits", "Exchange", "ResponseSink"} <= set(dir(http1_client))
