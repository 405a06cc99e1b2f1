"""A WebSocket as a transport, against trio-websocket as the other side, which is made to misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import pytest
import trio
import trustme
from trio_websocket import ConnectionClosed, serve_websocket

from cord_trio.cell import Timer
from cord_trio.config import WebSocket
from cord_trio.counters import Counters
from cord_trio.errors import ConnectFailed, ConnectionLost, DeadlineExceeded, Overloaded
from cord_trio.session import open_session
from cord_trio.transports import LIMITS, websocket, websocket_open
from cord_trio.transports.websocket_open import open_websocket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from trio_websocket import WebSocketConnection, WebSocketRequest

    from cord_trio.errors import CallError
    from cord_trio.session import Session
    from cord_trio.transports.websocket import WebSocketTransport

Json: TypeAlias = Any


class Server:
    """What a test's server was sent, and where it is."""

    def __init__(self, serve: Callable[[Server, WebSocketConnection], Awaitable[None]]) -> None:
        self._serve = serve
        self.url = ""
        self.messages: list[str] = []
        self.headers: dict[str, str] = {}
        self.subprotocols: tuple[str, ...] = ()
        self.closed: tuple[int, str | None] | None = None
        self.over = trio.Event()

    async def handle(self, request: WebSocketRequest) -> None:
        self.headers = {name.decode(): value.decode() for name, value in request.headers}
        self.subprotocols = request.proposed_subprotocols
        connection = await request.accept(subprotocol="mcp" if "mcp" in self.subprotocols else None)
        try:
            await self._serve(self, connection)
            while True:
                await connection.get_message()
        except ConnectionClosed:
            pass
        assert connection.closed is not None
        self.closed = (connection.closed.code, connection.closed.reason)
        self.over.set()


async def answering(server: Server, connection: WebSocketConnection) -> None:
    """Answers each request with what it was asked."""
    while True:
        text = await connection.get_message()
        assert isinstance(text, str)
        server.messages.append(text)
        message = json.loads(text)
        if "id" in message and message["method"] != "hang":
            reply = {"jsonrpc": "2.0", "id": message["id"], "result": message.get("params", {})}
            await connection.send_message(json.dumps(reply, ensure_ascii=False))


async def silent(_server: Server, _connection: WebSocketConnection) -> None:
    """Says nothing."""


@asynccontextmanager
async def served(
    serve: Callable[[Server, WebSocketConnection], Awaitable[None]] = answering, context: ssl.SSLContext | None = None
) -> AsyncGenerator[Server]:
    server = Server(serve)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        listening = await nursery.start(
            partial(
                serve_websocket, server.handle, "127.0.0.1", 0, context, max_message_size=2**26, connect_timeout=1,
                disconnect_timeout=1,
            )
        )  # fmt: skip
        server.url = f"{'ws' if context is None else 'wss'}://127.0.0.1:{listening.port}/mcp?x=1"
        try:
            yield server
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("test over")
    if failure is not None:
        raise failure


@asynccontextmanager
async def talking(
    url: str, counters: Counters | None = None, **options: Json
) -> AsyncGenerator[tuple[Session, WebSocketTransport]]:
    counters = counters or Counters()
    timer = Timer()
    verify = options.pop("verify", True)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        try:
            async with (
                open_websocket(
                    WebSocket(name="far", url=url, **options), name="far", counters=counters, verify=verify, environ={}
                ) as transport,
                open_session(transport, name="far", timer=timer, counters=counters) as session,
            ):
                yield session, transport
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("test over")
    if failure is not None:
        raise failure


@attrs.define
class Told:
    """A receiver that keeps what it is told."""

    messages: list[bytes] = attrs.field(factory=list)
    loss: str | None = None

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        self.messages += messages

    def fail(self, id: int | str, error: CallError, /) -> None:
        raise AssertionError

    def lost(self, error: ConnectionLost, /) -> None:
        self.loss = error.reason

    def waits(self, id: int | str, /) -> bool:
        return False


@asynccontextmanager
async def listening(url: str, counters: Counters, told: Told, **options: Json) -> AsyncGenerator[WebSocketTransport]:
    """A transport without a session, whose loss can be waited for by leaving."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            async with open_websocket(
                WebSocket(name="far", url=url, **options), name="far", counters=counters, environ={}
            ) as transport:
                nursery.start_soon(transport.run, told)  # noqa: ASYNC111  # it ends with the connection
                yield transport
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("test over")
    if failure is not None:
        raise failure


async def until(true: Callable[[], object]) -> None:
    with trio.fail_after(5):
        while not true():  # noqa: ASYNC110  # what another connection does is told by no event
            await trio.sleep(0.005)


async def test_requests_and_answers_of_any_text_pass_whole() -> None:
    async with served() as server, talking(server.url, headers={"Authorization": "Bearer x"}) as (session, _):
        assert bytes(await session.request("a", '{"x":"é\u2028 \U0001f600"}'.encode())) == (
            '{"x": "é\u2028 \U0001f600"}'.encode()
        )
        long = b'{"x":"%b"}' % (b"y" * 3_000_000)
        assert len(bytes(await session.request("b", long))) == len(long) + 1
        assert server.subprotocols == ("mcp",)
        assert server.headers["authorization"] == "Bearer x"


async def test_many_requests_at_once_each_get_their_own_answer() -> None:
    async with served() as server, talking(server.url) as (session, _):
        found: dict[int, bytes] = {}

        async def ask(number: int) -> None:
            found[number] = bytes(await session.request("a", b'{"n":%d}' % number))

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number)
        assert found == {number: b'{"n": %d}' % number for number in range(50)}


async def test_leaving_closes_as_the_protocol_wants_it() -> None:
    async with served() as server:
        async with talking(server.url) as (session, _):
            session.notify("notifications/x", b"{}")
        with trio.fail_after(5):
            await server.over.wait()
        assert server.closed == (1000, None)
        assert [json.loads(text)["method"] for text in server.messages] == ["notifications/x"]


async def test_what_was_sent_before_leaving_arrives() -> None:
    async with served() as server:
        async with talking(server.url) as (_, transport):
            for number in range(300):
                transport.send(b'{"method":"notifications/x","params":"%b%d"}' % (b"y" * 2000, number))
        with trio.fail_after(5):
            await server.over.wait()
        assert len(server.messages) == 300
        assert server.closed == (1000, None)


async def test_a_cancelled_request_is_told_once_and_by_name() -> None:
    async with served() as server, talking(server.url) as (session, _):
        with trio.move_on_after(0.05):
            await session.request("hang", b"{}")
        await until(lambda: len(server.messages) == 2)
        told = json.loads(server.messages[1])
        assert (told["method"], told["params"]["requestId"]) == (
            "notifications/cancelled",
            json.loads(server.messages[0])["id"],
        )


async def test_a_binary_frame_closes_with_1003() -> None:
    async def binary(_server: Server, connection: WebSocketConnection) -> None:
        await connection.send_message(b"{}")

    told, counters = Told(), Counters()
    async with served(binary) as server, listening(server.url, counters, told):
        await until(lambda: told.loss)
        assert told.loss == "closed with 1003: only text frames"
        assert counters.snapshot()["websocket.binary_frame"] == 1
        with trio.fail_after(5):
            await server.over.wait()
        assert server.closed == (1003, "only text frames")


@pytest.mark.parametrize("text", ["y" * 2000, "é" * 600])
async def test_a_message_past_the_bound_closes_with_1009(text: str) -> None:
    async def long(_server: Server, connection: WebSocketConnection) -> None:
        await connection.send_message(text)

    told, counters = Told(), Counters()
    async with served(long) as server, listening(server.url, counters, told, max_message=1024):
        await until(lambda: told.loss)
        assert told.loss == "closed with 1009: a message is longer than max_message = 1024 bytes"
        assert counters.snapshot()["websocket.message_too_long"] == 1


async def test_blank_messages_are_passed_over() -> None:
    async def blank(_server: Server, connection: WebSocketConnection) -> None:
        for text in ("", " \n", "[1]"):
            await connection.send_message(text)

    told = Told()
    async with served(blank) as server, listening(server.url, Counters(), told):
        await until(lambda: told.messages)
        assert told.messages == [b"[1]"]


async def test_u10_why_the_server_closed_is_told_to_whoever_waits() -> None:
    async def leave(_server: Server, connection: WebSocketConnection) -> None:
        await connection.get_message()
        await connection.aclose(1001, "restarting")

    async with served(leave) as server, talking(server.url) as (session, _):
        with pytest.raises(ConnectionLost, match=r"the peer closed the connection \(1001 GOING_AWAY: restarting\)"):
            await session.request("a", b"{}")
        with pytest.raises(ConnectionLost) as caught:
            await session.request("b", b"{}")
        assert caught.value.executed == "no"


async def test_u10_a_connection_that_breaks_off_is_a_loss() -> None:
    async def broken(_server: Server, connection: WebSocketConnection) -> None:
        await connection.get_message()
        await connection._stream.aclose()

    async with served(broken) as server, talking(server.url) as (session, _):
        with pytest.raises(ConnectionLost, match="the connection broke off"):
            await session.request("a", b"{}")


async def test_a_peer_that_answers_no_ping_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_INTERVAL", 0.05)
    monkeypatch.setattr(websocket, "PING_PATIENCE", 0.05)
    told, counters = Told(), Counters()

    async def dead(stream: trio.SocketStream) -> None:
        await shake(stream)
        await trio.sleep_forever()

    async with raw(dead) as url, listening(url, counters, told):
        await until(lambda: told.loss)
        assert told.loss == "no sign of life within 0.05 s of a ping"
        assert counters.snapshot()["websocket.silent"] == 1


async def test_a_silent_peer_that_answers_pings_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_INTERVAL", 0.02)
    monkeypatch.setattr(websocket, "PING_PATIENCE", 0.5)
    told = Told()
    async with served(silent) as server, listening(server.url, Counters(), told):
        await trio.sleep(0.2)
        assert told.loss is None


async def test_a_peer_that_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_open, "STALL", 0.1)
    told = Told()

    async def deaf(stream: trio.SocketStream) -> None:
        await shake(stream)
        await trio.sleep_forever()

    async with raw(deaf) as url, listening(url, Counters(), told) as transport:
        for id in range(8):
            transport.send(b"[%b]" % (b"1" * 2_000_000), id=id)
        assert transport.congested
        with trio.fail_after(5):
            await transport.wait_uncongested()
        await until(lambda: told.loss)
        assert told.loss == "the peer read nothing for 0.1 s"
        assert not transport.written(7)
        assert transport.withdraw(7)


async def test_a_long_message_leaves_in_short_frames_and_is_whole() -> None:
    sizes: list[int] = []
    text = bytearray()

    async def counting(stream: trio.SocketStream) -> None:
        await shake(stream)
        got = bytearray()
        while True:  # noqa: ASYNC913  # goes on only after bytes
            while len(got) < 14 or len(got) < 14 + int.from_bytes(got[2:10], "big"):
                got += await stream.receive_some()
            head, size, mask = got[0], int.from_bytes(got[2:10], "big"), got[10:14]
            assert got[1] == 0xFF, "masked, and longer than 65,535 bytes"
            assert head & 0x0F == (0 if sizes else 1), "the first says that it is text"
            sizes.append(size)
            text.extend(bytes(byte ^ mask[at % 4] for at, byte in enumerate(got[14 : 14 + size])))
            del got[: 14 + size]
            if head & 0x80:
                return

    message = "é".encode() * websocket.FRAGMENT * 3
    async with raw(counting) as url, listening(url, Counters(), Told()) as transport:
        transport.send(message)
        await until(lambda: len(text) >= len(message))
    assert text == message
    assert sizes == [2 * websocket.FRAGMENT] * 3


async def test_who_is_refused_in_the_middle_of_a_long_message_is_told_why() -> None:
    told = Told()

    async def rude(_server: Server, connection: WebSocketConnection) -> None:
        await trio.sleep(0.05)
        await connection.send_message(b"binary")

    async with served(rude) as server, listening(server.url, Counters(), told) as transport:
        for id in range(7):
            transport.send(b"[%b]" % (b"1" * 4_000_000), id=id)
        await until(lambda: told.loss)
    assert told.loss == "closed with 1003: only text frames"


async def test_the_outbox_is_bounded_and_gives_back_what_is_unwritten() -> None:
    counters = Counters()

    async def deaf(stream: trio.SocketStream) -> None:
        await shake(stream)
        await trio.sleep_forever()

    async with raw(deaf) as url, listening(url, counters, Told()) as transport:
        big = b"1" * 15_000_000
        transport.send(big, id=1)
        transport.send(big, id=2)
        with pytest.raises(Overloaded, match="outbox_bytes"):
            transport.send(big, id=3)
        assert transport.withdraw(2)
        transport.send(big, id=3)
        for id in range(10, 10 + LIMITS.outbox_messages - 2):
            transport.send(b"1", id=id)
        with pytest.raises(Overloaded, match="outbox_messages"):
            transport.send(b"1")
        assert counters.snapshot()["websocket.outbox_full"] == 2


async def test_a_refusal_is_told_with_its_status_and_what_to_do() -> None:
    for status, step, remedy in [
        (401, "authorize", "Authorization"),
        (403, "authorize", "credentials"),
        (404, "http", "check `url`"),
        (500, "http", ""),
        (302, "http", "check `url`"),
    ]:

        async def refuse(stream: trio.SocketStream, status: int = status) -> None:
            await read_head(stream)
            await stream.send_all(b"HTTP/1.1 %d No\r\nContent-Length: 4\r\n\r\nnope" % status)

        async with raw(refuse) as url:
            with pytest.raises(ConnectFailed) as caught:
                async with listening(url, Counters(), Told()):
                    raise AssertionError
            assert caught.value.step == step
            assert caught.value.reason == f"the server refused the WebSocket with HTTP {status}: nope"
            assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "it broke the opening off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP 200"),
        (b"SSH-2.0-OpenSSH\r\n", "it broke the opening off"),
        (b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "it broke the opening off"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 900000\r\n\r\n" + b"x" * 80_000, "more than 65536 bytes"),
    ],
)
async def test_a_server_that_is_no_websocket_server_fails_at_once(answer: bytes, reason: str) -> None:
    async def other(stream: trio.SocketStream) -> None:
        await read_head(stream)
        await stream.send_all(answer)

    async with raw(other) as url:
        with trio.fail_after(2), pytest.raises(ConnectFailed) as caught:
            async with listening(url, Counters(), Told()):
                raise AssertionError
        assert reason in caught.value.reason


async def test_a_server_that_never_answers_fails_in_its_time() -> None:
    async def mute(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with raw(mute) as url:
        with pytest.raises(ConnectFailed, match=r"no answer within 0\.\d+ s"):
            async with listening(url, Counters(), Told(), connect=0.1):
                raise AssertionError


async def test_a_port_that_nobody_listens_on_is_told() -> None:
    with pytest.raises(ConnectFailed, match=r"cannot connect to 127\.0\.0\.1:1: Connection refused"):
        async with listening("ws://127.0.0.1:1/", Counters(), Told()):
            raise AssertionError


async def test_wss_checks_the_certificate() -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    async with served(context=server_context) as server:
        async with talking(server.url, verify=client_context) as (session, _):
            assert bytes(await session.request("a", b"{}")) == b"{}"
        with pytest.raises(ConnectFailed) as caught:
            async with talking(server.url):
                raise AssertionError
        assert caught.value.step == "tls"


async def test_a_deadline_leaves_the_connection_usable() -> None:
    async with served() as server, talking(server.url) as (session, _):
        with pytest.raises(DeadlineExceeded):
            await session.request("hang", b"{}", deadline=trio.current_time() + 0.05)
        assert bytes(await session.request("a", b"{}")) == b"{}"


# --- a server of exact bytes -----------------------------------------------------------------------------------


async def read_head(stream: trio.SocketStream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some()
    return data


async def shake(stream: trio.SocketStream) -> None:
    """Open as a server does (RFC 6455, section 4.2.2), and then be whatever the test wants."""
    head = await read_head(stream)
    lines = [line.partition(b": ") for line in head.split(b"\r\n")]
    key = next(value for name, _, value in lines if name.lower() == b"sec-websocket-key")
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    await stream.send_all(
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: mcp\r\nSec-WebSocket-Accept: %b\r\n\r\n" % accept
    )


@asynccontextmanager
async def raw(serve: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncGenerator[str]:
    async def handle(stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        except trio.BrokenResourceError:
            pass
        finally:
            stream.socket.close()

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        try:
            yield f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("test over")
    if failure is not None:
        raise failure
