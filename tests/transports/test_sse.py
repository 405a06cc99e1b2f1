"""HTTP+SSE (2024-11-05) as a client, against a server whose answers each test decides."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
import trio.testing

from cord_trio.cell import Timer
from cord_trio.config import Config, Http
from cord_trio.counters import Counters
from cord_trio.errors import BadReply, ConnectFailed, ConnectionLost, DeadlineExceeded, HttpFailed, Refused
from cord_trio.fabric import open_fabric
from cord_trio.protocol.framing import encode_sse
from cord_trio.session import open_session
from cord_trio.transports import sse
from cord_trio.transports.http1_server import serve_http
from cord_trio.transports.sse import open_sse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from cord_trio.session import Session
    from cord_trio.transports.http1_server import Request, Response
    from cord_trio.transports.sse import SseTransport

Json: TypeAlias = Any
EVENTS = (("Content-Type", "text/event-stream"),)


class Server:
    """One that knows only HTTP+SSE. What it says to each POST, and on its stream, can be changed.

    Attributes:
        seen: method (or verb) and target of each request, in order.
        streams: the streams that were opened, as their responses.
        endpoint: what its first event says.
        opening: answers a GET instead of it.
        taking: answers a POST instead of it; True if that was all.

    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.sessions: list[int] = []
        self.headers: list[str] = []
        self.streams: list[Response] = []
        self.endpoint = "/messages?session=1"
        self.opening: Callable[[Request, Response], Awaitable[None]] | None = None
        self.taking: Callable[[Request, Response], Awaitable[bool]] | None = None
        self.ends = trio.Event()
        self.url = ""

    async def handle(self, request: Request, response: Response) -> None:
        if request.method == "GET":
            await self._stream(request, response)
            return
        if request.path == "/a/b/sse":
            self.seen.append(("POST", request.target))
            response.send(405)
            return
        message = json.loads(request.body)
        self.seen.append((message.get("method", "reply"), request.target))
        if self.taking is not None and await self.taking(request, response):
            return
        response.send(202, (("Content-Type", "text/plain"),), b"Accepted")
        if "id" in message and message.get("method") != "hang":
            self.say({"jsonrpc": "2.0", "id": message["id"], "result": self.result(message)})

    async def _stream(self, request: Request, response: Response) -> None:
        self.seen.append(("GET", request.target))
        self.headers.append(request.headers.get("authorization") or "")
        if self.opening is not None:
            await self.opening(request, response)
            return
        response.start(200, EVENTS)
        response.write(encode_sse(self.endpoint.encode(), event="endpoint"))
        self.streams.append(response)
        ends = self.ends
        await ends.wait()

    def result(self, message: Json) -> Json:
        match message["method"]:
            case "initialize":
                return {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "serverInfo": {"name": "old"}}
            case "tools/list":
                return {"tools": [{"name": "t", "inputSchema": {"type": "object"}}]}
            case "tools/call":
                return {"content": [{"type": "text", "text": "hello"}]}
        return message.get("params", {})

    def say(self, message: Json) -> None:
        self.streams[-1].write(encode_sse(json.dumps(message).encode()))

    def restart(self) -> None:
        ends, self.ends = self.ends, trio.Event()
        ends.set()


@asynccontextmanager
async def served() -> AsyncGenerator[Server]:
    server = Server()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(partial(serve_http, server.handle, listeners))
        server.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/a/b/sse"
        try:
            yield server
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("test over")
    if failure is not None:
        raise failure


@asynccontextmanager
async def talking(url: str, **options: Json) -> AsyncGenerator[tuple[Session, SseTransport]]:
    counters, timer = Counters(), Timer()
    failure: Exception | None = None
    source = Http(name="far", url=url, transport="sse", **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        try:
            async with (
                open_sse(source, name="far", counters=counters) as transport,
                open_session(transport, name="far", timer=timer, counters=counters) as session,
            ):
                yield session, transport
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("test over")
    if failure is not None:
        raise failure


async def until(true: Callable[[], object]) -> None:
    with trio.fail_after(5):
        while not true():  # noqa: ASYNC110  # what another connection does is told by no event
            await trio.sleep(0.005)


async def test_answers_come_on_the_stream() -> None:
    async with served() as server, talking(server.url, headers={"Authorization": "Bearer x"}) as (session, _):
        assert bytes(await session.request("a", b'{"x":1}')) == b'{"x": 1}'
        assert server.seen == [("GET", "/a/b/sse"), ("a", "/messages?session=1")]
        assert server.headers == ["Bearer x"]


@pytest.mark.parametrize(
    ("said", "target"),
    [
        ("/messages?x=1", "/messages?x=1"),
        ("messages?x=1", "/a/b/messages?x=1"),
        ("?x=1", "/a/b/sse?x=1"),
        ("../m", "/a/m"),
        ("./", "/a/b/"),
        ("//127.0.0.1:{port}/m", "/m"),
        ("http://127.0.0.1:{port}/m?sessionId=2", "/m?sessionId=2"),
    ],
)
async def test_h24_the_endpoint_is_resolved_against_the_stream(said: str, target: str) -> None:
    async with served() as server:
        server.endpoint = said.format(port=server.url.split(":")[2].split("/")[0])
        async with talking(server.url) as (_, transport):
            assert transport.target == target


@pytest.mark.parametrize("said", ["http://evil.example/m", "https://127.0.0.1/m", "//evil.example/m", "ftp://x/y"])
async def test_an_endpoint_of_another_origin_is_refused(said: str) -> None:
    async with served() as server:
        server.endpoint = said
        with pytest.raises(ConnectFailed, match="its endpoint"):
            async with talking(server.url):
                raise AssertionError
        assert server.seen == [("GET", "/a/b/sse")]


@pytest.mark.parametrize("status", [400, 401, 404, 500])
async def test_h12_a_failing_post_fails_its_request_at_once(status: int) -> None:
    async def refuse(_request: Request, response: Response) -> bool:  # noqa: ASYNC124  # async by contract
        response.send(status, (), b"no")
        return True

    async with served() as server, talking(server.url) as (session, _):
        server.taking = refuse
        with pytest.raises(HttpFailed) as caught:
            await session.request("initialize")
        assert caught.value.status == status
        server.taking = None
        assert bytes(await session.request("a")) == b"{}"


async def test_h12_a_post_that_breaks_off_fails_its_request_at_once() -> None:
    async def leave(_request: Request, response: Response) -> bool:  # noqa: ASYNC124  # async by contract
        sock, _ = response.hand_over()
        sock.close()
        return True

    async with served() as server, talking(server.url) as (session, _):
        server.taking = leave
        with pytest.raises(ConnectionLost, match="without an answer"):
            await session.request("a")


async def test_a_server_that_has_too_much_to_do_refuses() -> None:
    async def busy(_request: Request, response: Response) -> bool:  # noqa: ASYNC124  # async by contract
        response.send(429, (("Retry-After", "3"),), b"later")
        return True

    async with served() as server, talking(server.url) as (session, _):
        server.taking = busy
        with pytest.raises(Refused) as caught:
            await session.request("a")
        assert caught.value.retry_after == 3


async def test_redirects_within_the_origin_are_followed() -> None:
    async def moved(request: Request, response: Response) -> bool:  # noqa: ASYNC124  # async by contract
        if request.path == "/messages":
            response.send(307, (("Location", "/elsewhere?s=1"),))
            return True
        return False

    async def opening(request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        server.opening = None
        response.send(307, (("Location", "/c/sse"),))

    async with served() as server:
        server.taking, server.opening = moved, opening
        async with talking(server.url) as (session, transport):
            assert transport.url.endswith("/c/sse")
            assert bytes(await session.request("a")) == b"{}"
        assert [target for _, target in server.seen] == ["/a/b/sse", "/c/sse", "/messages?session=1", "/elsewhere?s=1"]


async def test_l05_the_end_of_the_stream_is_the_end_of_the_session() -> None:
    async with served() as server, talking(server.url) as (session, _):
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(ConnectionLost, match="the event stream ended"):
                    await session.request("hang")

            nursery.start_soon(ask)
            await until(lambda: len(server.seen) == 2)
            server.restart()
        with pytest.raises(ConnectionLost) as caught:
            await session.request("a")
        assert caught.value.executed == "no"


async def test_l05_a_new_stream_begins_with_a_new_handshake() -> None:
    async with served() as server:
        async with open_fabric(Config(sources=[Http(name="far", url=server.url, transport="sse")])) as fabric:
            await fabric.wait_started()
            assert (await fabric.call("far__t", {})).text == "hello"
            server.restart()
            await until(lambda: len(server.streams) == 2)
            assert (await fabric.call("far__t", {})).text == "hello"
        order = ["GET", "initialize", "notifications/initialized", "tools/list", "tools/call"]
        assert [what for what, _ in server.seen] == order * 2


async def test_a_source_that_knows_no_streamable_http_is_found_out_once() -> None:
    async with served() as server:
        async with open_fabric(Config(sources=[Http(name="far", url=server.url)])) as fabric:
            await fabric.wait_started()
            assert (await fabric.call("far__t", {})).text == "hello"
            server.restart()
            await until(lambda: len(server.streams) == 2)
            assert (await fabric.call("far__t", {})).text == "hello"
        order = ["GET", "initialize", "notifications/initialized", "tools/list", "tools/call"]
        assert [what for what, _ in server.seen] == ["POST", "POST", *order, *order]


async def test_a_source_that_has_neither_way_says_what_the_first_one_met() -> None:
    async def nothing(_request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        response.send(404)

    async with served() as server:
        server.opening = nothing
        async with open_fabric(Config(sources=[Http(name="far", url=server.url)])) as fabric:
            await fabric.wait_started()
            assert "405" in fabric.registry.snapshot.sources["far"].reason


async def test_nothing_overtakes_the_end_of_the_handshake() -> None:
    async def slowly(request: Request, response: Response) -> bool:
        if b"initialized" in request.body:
            await trio.sleep(0.05)
            order.append("initialized")
        else:
            order.append(json.loads(request.body)["method"])
        return False

    order: list[str] = []
    async with served() as server, talking(server.url) as (session, transport):
        server.taking = slowly
        session.notify("notifications/initialized")
        transport.send(b'{"jsonrpc":"2.0","id":"w","method":"withdrawn"}', id="w", method="withdrawn")
        assert not transport.written("w")
        assert transport.withdraw("w")
        assert bytes(await session.request("a")) == b"{}"
        assert order == ["initialized", "a"]


async def test_a_cancel_does_not_overtake_its_request() -> None:
    release = trio.Event()

    async def slowly(request: Request, response: Response) -> bool:
        if b'"hang"' in request.body:
            await release.wait()
        return False

    async with served() as server, talking(server.url) as (session, _):
        server.taking = slowly
        with trio.move_on_after(0.05):
            await session.request("hang")
        await trio.sleep(0.05)
        assert [what for what, _ in server.seen] == ["GET", "hang"]
        release.set()
        await until(lambda: len(server.seen) == 3)
        assert server.seen[2][0] == "notifications/cancelled"


async def test_a_cancel_does_not_wait_for_ever() -> None:
    async def never(request: Request, response: Response) -> bool:
        if b'"hang"' in request.body:
            await trio.sleep_forever()
        return False

    async with served() as server, talking(server.url) as (session, _):
        server.taking = never
        with pytest.raises(DeadlineExceeded):
            await session.request("hang", deadline=trio.current_time() + 0.05)
        await until(lambda: len(server.seen) == 3)
        assert server.seen[2][0] == "notifications/cancelled"


@pytest.mark.parametrize(
    ("status", "fields", "step", "said"),
    [
        (401, (), "authorize", "401"),
        (403, (), "authorize", "403"),
        (404, (), "http", "404"),
        (407, (), "connect", "407"),
        (500, (), "http", "500"),
        (200, (("Content-Type", "text/html"),), "http", "and no event stream"),
        (302, (("Location", "/x"),), "http", "redirects to"),
        (307, (("Location", "http://evil.example/"),), "http", "another origin"),
    ],
)
async def test_a_stream_that_is_refused_says_why(
    status: int, fields: tuple[tuple[str, str], ...], step: str, said: str
) -> None:
    async def refuse(_request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        response.send(status, fields, b"sorry")

    async with served() as server:
        server.opening = refuse
        with pytest.raises(ConnectFailed) as caught:
            async with talking(server.url):
                raise AssertionError
        assert caught.value.step == step
        assert said in caught.value.reason


async def test_h23_a_stream_that_never_names_its_endpoint_fails_in_its_time() -> None:
    async def silent(_request: Request, response: Response) -> None:
        response.start(200, EVENTS)
        response.write(b": hello\n\n")
        await trio.sleep_forever()

    async with served() as server:
        server.opening = silent
        with pytest.raises(ConnectFailed, match="no endpoint event"):
            async with talking(server.url, connect=0.1):
                raise AssertionError


async def test_a_stream_that_ends_before_its_endpoint_fails() -> None:
    async def brief(_request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        response.start(200, EVENTS)
        response.end()

    async with served() as server:
        server.opening = brief
        with pytest.raises(ConnectFailed, match="the event stream ended"):
            async with talking(server.url):
                raise AssertionError


async def test_a_port_that_nobody_listens_on_is_told() -> None:
    with pytest.raises(ConnectFailed, match="refused"):
        async with talking("http://127.0.0.1:1/sse"):
            raise AssertionError


async def test_an_event_past_the_bound_ends_the_session() -> None:
    async with served() as server, talking(server.url, max_message=2000) as (session, _):
        server.say({"x": "y" * 3000})
        assert "2000" in await session.wait_lost()


async def test_too_many_messages_before_anybody_listens_end_it() -> None:
    async def chatty(_request: Request, response: Response) -> None:
        response.start(200, EVENTS)
        for _ in range(sse.EARLY + 1):
            response.write(encode_sse(b"{}"))
        await trio.sleep_forever()

    async with served() as server:
        server.opening = chatty
        with pytest.raises(ConnectFailed, match="more than 64 messages"):
            async with talking(server.url):
                raise AssertionError


async def test_a_message_that_comes_with_the_endpoint_is_not_lost() -> None:
    heard: list[bytes] = []

    class Ear:
        def feed(self, messages: list[bytes], within: object = None, /) -> None:
            heard.extend(messages)

        def lost(self, error: ConnectionLost, /) -> None:
            heard.append(error.reason.encode())

    async def eager(_request: Request, response: Response) -> None:
        response.start(200, EVENTS)
        response.write(b"event: endpoint\ndata: /m\n\ndata: [1]\n\nevent: other\ndata: [2]\n\n: c\n\n")
        await trio.sleep_forever()

    async with served() as server, trio.open_nursery() as nursery:
        server.opening = eager
        source = Http(name="far", url=server.url, transport="sse")
        async with open_sse(source, name="far", counters=Counters()) as transport:
            await nursery.start(transport.run, Ear())  # noqa: ASYNC111  # it ends with the stream
            await trio.testing.wait_all_tasks_blocked()
            assert heard == [b"[1]"]
        await until(lambda: len(heard) == 2)
        assert heard[1] == b"closed on this side"


async def test_a_reply_that_is_no_http_fails_its_request() -> None:
    async def rubbish(_request: Request, response: Response) -> bool:  # noqa: ASYNC124  # async by contract
        sock, _ = response.hand_over()
        sock.sendall(b"HTTP/9 what\r\n\r\n")
        sock.close()
        return True

    async with served() as server, talking(server.url) as (session, _):
        server.taking = rubbish
        with pytest.raises(BadReply):
            await session.request("a")
