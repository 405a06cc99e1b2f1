"""Laws of HTTP/1.1: how bytes are split never matters, no bytes bring the server down, and cancelling is exact."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import trio
import trio.lowlevel
from hypothesis import example, given
from hypothesis import strategies as st

from cord_trio.counters import Counters
from cord_trio.protocol.framing import SseEvent, SseSplitter
from cord_trio.transports.http1 import Chunks, Headers, KnownStream, Unacceptable, check_origin
from cord_trio.transports.http1_client import Exchange, PoolLimits, open_pool
from cord_trio.transports.http1_server import HttpLimits, Request, Response, serve_http

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from cord_trio.errors import CallError

LIMITS = HttpLimits(head=400, headers=10, body=200, head_time=5, body_time=5)
END = b"GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Collect:
    def __init__(self) -> None:
        self.told: list[object] = []
        self.over = trio.Event()

    def head(self, status: int, headers: Headers) -> None:
        self.told += [status, tuple(headers), b""]

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self.told += [status, tuple(headers), body, "end"]
        self.over.set()

    def body(self, data: bytes) -> None:
        before = self.told.pop()
        assert isinstance(before, bytes)
        self.told.append(before + data)

    def end(self) -> None:
        self.told.append("end")
        self.over.set()

    def failed(self, error: CallError) -> None:
        self.told.append(type(error).__name__)
        self.over.set()


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    bounds = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in pairwise(bounds) if start < end]


async def send_pieces(stream: trio.SocketStream, pieces: Sequence[bytes]) -> None:
    try:
        for piece in pieces:
            await stream.send_all(piece)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def everything(stream: trio.SocketStream) -> bytes:
    data = b""
    try:
        async for more in stream:
            data += more
    except trio.BrokenResourceError:
        pass
    return data


async def echo(request: Request, response: Response) -> None:
    await trio.lowlevel.checkpoint()
    line = f"<{request.method} {request.target} {len(request.headers)} ".encode()
    response.send(200, (), line + request.body + b">")


@asynccontextmanager
async def open_door(handler: Callable[[Request, Response], Awaitable[None]]) -> AsyncGenerator[tuple[int, Counters]]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    counters = Counters()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_http, handler, listeners, limits=LIMITS, counters=counters))
        yield listeners[0].socket.getsockname()[1], counters
        nursery.cancel_scope.cancel("over")


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").glob("*")))


names = st.sampled_from(["A", "b-C", "X-Y"])
values = st.text("abc \t,;=", max_size=8)
bodies = st.binary(max_size=60)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that is good."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in draw(st.lists(st.tuples(names, values), max_size=4)))
    target = draw(st.sampled_from(["/", "/a?b=c", "/%20"]))
    body = draw(bodies)
    blank = draw(st.sampled_from(["", "\r\n"]))
    kind = draw(st.sampled_from(["none", "sized", "chunked"]))
    head = f"{blank}{'GET' if kind == 'none' else 'POST'} {target} HTTP/1.1\r\nHost: x\r\n{fields}"
    if kind == "none":
        return f"{head}\r\n".encode()
    if kind == "sized":
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    pieces = cut(body, draw(st.lists(st.integers(0, 60), max_size=3)))
    chunks = b"".join(b"%X%b\r\n%b\r\n" % (len(piece), draw(st.sampled_from([b"", b";x"])), piece) for piece in pieces)
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"


async def exchange(pieces: Sequence[bytes]) -> bytes:
    async with open_door(echo) as (port, _):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_pieces, stream, pieces)
            data = await everything(stream)
            nursery.cancel_scope.cancel("answered")
        await stream.aclose()
    return re.sub(rb"Date: .*\r\n", b"", data)


@given(st.lists(requests(), max_size=3), st.lists(st.integers(0, 2000), max_size=12))
async def test_how_requests_are_split_never_matters(sent: list[bytes], places: list[int]) -> None:
    data = b"".join(sent) + END
    whole = await exchange([data])
    assert whole.count(b"HTTP/1.1 200 OK") == len(sent) + 1
    assert await exchange(cut(data, places)) == whole


async def exchange_after(first: bytes, request: bytes) -> bytes:
    """What comes back for `request` and an end, on a connection on which `first` was answered before."""
    async with open_door(echo) as (port, _):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        if first:
            await stream.send_all(first)
            assert b" 200 OK" in await stream.receive_some()
        try:
            await stream.send_all(request)
            await trio.sleep(0.002)  # or they would come together, and nothing be known of the first
            await stream.send_all(END)
        except trio.BrokenResourceError:
            pass
        data = await everything(stream)
        await stream.aclose()
    return re.sub(rb"Date: .*\r\n", b"", data)


@given(
    st.sampled_from([b"", b"A: b\r\n", b"Content-Length: 2\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: x\r\n"]),
    st.sampled_from([b"2", b"02", b"3", b"0", b"-1", b"2 ", b"2\r\n 2", b"999", b"201"]),
    st.sampled_from([b"", b"ok", b"abc", b"x" * 201]),
)
@example(b"", b"3", b"abc")
@example(b"", b"0", b"")
@example(b"", b"201", b"x" * 201)
async def test_a_request_with_the_head_of_the_one_before_is_judged_as_if_it_were_the_first(
    fields: bytes, length: bytes, body: bytes
) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: "
    request = b"%b%b\r\n%b\r\n%b" % (head, length, fields, body)
    assert await exchange_after(head + b"2\r\n\r\nok", request) == await exchange_after(b"", request)


pieces_of_http = st.sampled_from(
    [b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n", b"\n", b"\r", b" ", b":", b"\0", b"HTTP"]
)
headers_of_http = st.sampled_from(
    [
        b"A: b\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"5\r\nabcde\r\n",
        b"0\r\n\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: upgrade\r\nUpgrade: x\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
        b"x" * 300,
        b"ffffffffffffffff\r\n",
    ]
)


@given(
    st.lists(st.one_of(pieces_of_http, headers_of_http, st.binary(max_size=40)), max_size=12),
    st.lists(st.integers(0, 500), max_size=4),
)
@example([b"\r\n"], [1])
async def test_no_bytes_bring_the_server_down(junk: list[bytes], places: list[int]) -> None:
    async with open_door(echo) as (port, counters):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await send_pieces(stream, cut(b"".join(junk), places))
        await trio.sleep(0.001)
        try:
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass  # it was refused, and the time to listen on was over
        answer = await everything(stream)
        await stream.aclose()
        known = re.findall(rb"HTTP/1\.1 (100|200|400|413|417|431|501) ", answer)
        assert len(known) == answer.count(b"HTTP/1.1 1") + answer.count(b"HTTP/1.1 2") + answer.count(
            b"HTTP/1.1 4"
        ) + answer.count(b"HTTP/1.1 5")
        again = await trio.open_tcp_stream("127.0.0.1", port)
        await again.send_all(END)
        assert b" 200 OK" in await everything(again)
        await again.aclose()
        assert counters["http_server.handler_failed"] == 0


replies = st.one_of(
    st.builds(lambda body: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), bodies),
    st.builds(
        lambda body, places: (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in cut(body, places))
            + b"0\r\n\r\n"
        ),
        bodies,
        st.lists(st.integers(0, 60), max_size=3),
    ),
    st.builds(lambda body: b"HTTP/1.1 200 OK\r\n\r\n" + body, bodies),
    st.just(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"),
    st.just(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"),
    st.binary(max_size=60),
)


async def receive(pieces: Sequence[bytes]) -> list[object]:
    """What a sink is told of a response that comes in these pieces and then ends."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await send_pieces(stream, pieces)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        async with open_pool(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}") as pool:
            sink = Collect()
            pool.request("POST", "/", (), b"x", sink)
            with trio.fail_after(3):
                await sink.over.wait()
        nursery.cancel_scope.cancel("over")
    return sink.told


@given(replies, st.lists(st.integers(0, 200), max_size=12))
async def test_how_a_response_is_split_never_matters(reply: bytes, places: list[int]) -> None:
    told = await receive([reply])
    assert told[-1] in ("end", "ConnectionLost", "BadReply")
    split = await receive(cut(reply, places))
    # A body that breaks off may be told further with smaller pieces; how it ended may not differ.
    assert (split == told) if told[-1] == "end" else (split[-1] == told[-1])


async def pull(made: Exchange, sink: Collect) -> None:
    """Read in the reader's place, until it is over."""
    while not made.over:
        try:
            await trio.lowlevel.wait_readable(made.fd)
        except trio.ClosedResourceError:
            break
        body = made.pull()
        if body is not None:
            sink.told += [200, (), body, "end"]
            sink.over.set()
    made.leave()


async def receive_second(first: bytes, pieces: Sequence[bytes], *, at_once: bool, pulled: bool = False) -> list[object]:
    """What a sink is told of what comes, in these pieces, behind a first answer on the same connection."""
    before = 2 if pulled else 1  # the first is read by the connection, and so is the second

    async def serve(stream: trio.SocketStream) -> None:
        for _ in range(before):
            await stream.receive_some()
            await stream.send_all(first)
        await stream.receive_some()
        await send_pieces(stream, pieces)
        with suppress(trio.BrokenResourceError):  # rubbish made the client leave
            await stream.send_eof()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        async with open_pool(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}") as pool:
            for _ in range(before + 1):
                sink = Collect()
                made = Exchange(pool)
                made.sink, made.whole, made.attended = sink, sink.whole if at_once else None, pulled
                pool.begin(made, pool.prepare("POST", "/", ()), b"x")
                with trio.fail_after(3):
                    if made.fd >= 0:
                        await pull(made, sink)
                    await sink.over.wait()
            assert (made.fd >= 0) == pulled
        nursery.cancel_scope.cancel("over")
    headers = sink.told[1] if len(sink.told) > 1 else ()
    assert isinstance(headers, tuple)
    return [*sink.told[:1], [field for field in headers if field[0] != "Content-Length"], *sink.told[2:]]


sized = st.builds(
    lambda fields, length, body: b"HTTP/1.1 200 OK\r\n%bContent-Length: %b\r\n\r\n%b" % (fields, length, body),
    st.sampled_from([b"", b"Connection: close\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 2\r\n"]),
    st.sampled_from([b"2", b"02", b"3", b"0", b"-1", b"2 ", b"2\r\n 2", b"99999999999"]),
    st.sampled_from([b"", b"ok", b"abc"]),
)


@given(st.one_of(sized, replies), st.lists(st.integers(0, 200), max_size=2))
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", [])
async def test_an_answer_with_the_head_of_the_one_before_is_judged_as_if_it_were_the_first(
    reply: bytes, places: list[int]
) -> None:
    first = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    pieces = cut(reply, places)
    assert await receive_second(first, pieces, at_once=True) == await receive_second(first, pieces, at_once=False)


JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@given(
    st.sampled_from(
        [JSON, JSON, JSON.replace(b"200", b"201"), JSON.replace(b"json", b"jsonx"), JSON.replace(b"-T", b"-t")]
    ),
    st.sampled_from([b"Content-Length: ", b"Content-Length:", b"content-length: "]),
    st.sampled_from([b"2", b"02", b"3", b"1", b"0", b"-1", b"2 ", b"2\r\n 2", b"99999999999"]),
    st.sampled_from([b"", b"", b"Connection: close\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 2\r\n"]),
    st.sampled_from([b"", b"1", b"{}", b"{} ", b"{ }\n", b"HTTP/1.1 200 OK\r\n\r\n"]),
    st.lists(st.integers(0, 200), max_size=1),
)
@example(JSON, b"Content-Length: ", b"3", b"", b"{ }", [])
@example(JSON, b"Content-Length: ", b"0", b"", b"", [])
@example(b"H" + JSON, b"Content-Length: ", b"2", b"", b"{}", [1])
@example(JSON, b"Content-Length: ", b"3", b"", b"{" + JSON + b"Content-Length: 2\r\n\r\n{}", [71])
@example(JSON.replace(b"200", b"201"), b"Content-Length: ", b"2", b"", b"{}", [])
async def test_an_answer_that_is_pulled_is_judged_as_if_it_were_the_first(
    kind: bytes, name: bytes, length: bytes, fields: bytes, body: bytes, places: list[int]
) -> None:
    pieces = cut(b"%b%b%b\r\n%b\r\n%b" % (kind, name, length, fields, body), places)
    first = b"%bContent-Length: 2\r\n\r\n{}" % kind.replace(b"HHTTP", b"HTTP")
    pulled = await receive_second(first, pieces, at_once=True, pulled=True)
    told = await receive_second(first, pieces, at_once=False)
    assert [each for each in pulled if not isinstance(each, list)] == [
        each for each in told if not isinstance(each, list)
    ]  # fmt: skip


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
texts = st.one_of(st.binary(max_size=300), st.sampled_from([b"{}", b" {}", b"\r", b"{\n}", b"x" * 4060, b"x" * 4100]))
parts_of_events = st.sampled_from(
    [b"event: message", b"data: ", b"data:", b"id: 1", b"{}", b": x", b"\n", b"\r\n", b"\r"]
)


@given(texts, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.booleans())
def test_the_lone_event_of_a_known_stream_is_found(text: bytes, line: bytes, over: bool, warm: bool) -> None:
    stream = KnownStream(STREAM)
    if warm:
        stream.event(STREAM + b"19\r\nevent: message\ndata: {}\n\n\r\n")
    body = b"event: message%bdata: %b%b" % (line, text, line * 2)
    data = b"%b%x\r\n%b\r\n%b" % (STREAM, len(body), body, b"0\r\n\r\n" if over else b"")
    plain = bool(text) and b"\n" not in text and b"\r" not in text
    assert stream.event(data) == ((text, over) if plain else None)


@given(
    st.one_of(st.lists(parts_of_events, max_size=8).map(b"".join), texts),
    st.integers(-3, 3),
    st.sampled_from([b"%x\r\n", b"%X\r\n", b"0%x\r\n", b"%x;a\r\n", b"%x\n"]),
    st.sampled_from([b"", b"0\r\n\r\n", b"0\r\n", b"2\r\nab\r\n0\r\n\r\n", b"0\r\nA: b\r\n\r\n"]),
)
@example(b"event: message\ndata: {}\n\n", 0, b"%x\r\n", b"0\r\n\r\n")
@example(b"event: message\ndata: a\n\n\r\n2\r\nab", 0, b"%x\r\n", b"")
def test_nothing_else_is_taken_for_the_lone_event_of_a_known_stream(
    body: bytes, off: int, size: bytes, rest: bytes
) -> None:
    data = b"%b%b\r\n%b" % (size % max(0, len(body) + off), body, rest)
    found = KnownStream(STREAM).event(STREAM + data)
    if found is not None:
        text, over = found
        reader = Chunks(10_000)
        assert reader.feed(data if over else data + b"0\r\n\r\n") == b""
        assert SseSplitter().feed(bytes(reader.body)) == [SseEvent("message", text)]


@given(st.binary(max_size=80), st.lists(st.integers(0, 80), max_size=5), st.lists(st.integers(0, 500), max_size=12))
def test_chunks_give_back_the_body_however_they_are_cut(body: bytes, chunks: list[int], places: list[int]) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in cut(body, chunks)) + b"0\r\n\r\nrest"
    reader = Chunks(80)
    rest = b""
    over = False
    for piece in cut(data, places):
        if over:
            rest += piece
        elif (found := reader.feed(piece)) is not None:
            over = True
            rest = found
    assert (bytes(reader.body), rest) == (body, b"rest")


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_junk_in_chunks_is_refused_alike_however_it_is_cut(data: bytes, places: list[int]) -> None:
    def outcome(pieces: list[bytes]) -> object:
        reader = Chunks(30)
        try:
            for piece in pieces:
                if reader.feed(piece) is not None:
                    return bytes(reader.body)
        except Unacceptable as refusal:
            return refusal.status
        return None

    assert outcome(cut(data, places)) == outcome([data])


@given(st.text(max_size=30), st.text(max_size=30))
def test_only_known_origins_come_in(host: str, origin: str) -> None:
    good = re.fullmatch(r"(?i:localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", host) is not None
    assert (check_origin(host, None) is None) == good
    if check_origin("localhost", origin) is None:
        assert re.fullmatch(r"(?i:https?://(localhost|127\.0\.0\.1|\[::1\]))(:[0-9]{1,5})?", origin)


actions = st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 20_000))


@given(st.lists(actions, min_size=1, max_size=15), st.sampled_from(["none", "send", "stream", "late"]))
async def test_a_cancel_at_any_moment_leaves_nothing(plan: list[tuple[int, bool, int]], kind: str) -> None:
    async def handler(request: Request, response: Response) -> None:
        if kind == "send":
            response.send(200, (), request.body)
        elif kind == "stream":
            response.start(200)
            for _ in range(3):
                response.write(b"x" * 1000)
                await trio.lowlevel.checkpoint()
        elif kind == "late":
            await trio.sleep(0.001)
            response.send(200)

    before = count_descriptors()
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with open_door(handler) as (port, counters):
        async with open_pool(f"http://127.0.0.1:{port}", limits=PoolLimits(connections=3)) as pool:

            async def call(turns: int, cancel: bool, size: int) -> None:
                sink = Collect()
                made = pool.request("POST", "/", (), b"x" * (size % 190), sink)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                if cancel:
                    made.close()
                    told = list(sink.told)
                    await trio.sleep(0.001)
                    assert sink.told == told
                else:
                    await sink.over.wait()
                    assert sink.told[-1] == "end"

            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    for turns, cancel, size in plan:
                        nursery.start_soon(call, turns, cancel, size)
                assert pool.busy == 0
        assert counters["http_server.handler_failed"] == 0
    assert count_descriptors() <= before
    assert trio.lowlevel.current_statistics().tasks_living <= tasks
