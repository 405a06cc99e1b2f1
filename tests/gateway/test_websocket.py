"""WebSocket clients on the gateway's own port and path."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

from cord_trio.cell import Timer
from cord_trio.config import Config, WebSocket
from cord_trio.counters import Counters
from cord_trio.errors import CallFailed, ConnectFailed, ConnectionLost
from cord_trio.fabric import open_fabric
from cord_trio.gateway import serve_gateway
from cord_trio.handshake import negotiate
from cord_trio.session import open_session
from cord_trio.transports.http1_server import HttpLimits
from cord_trio.transports.websocket_open import open_websocket
from tests.gateway.fakes import ENVELOPE, LATEST, MODERN, FakeFabric, echo, hang, tool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from msgspec import Raw

    from cord_trio.session import Session

Json: TypeAlias = Any

OPENING = (
    "Host: {host}",
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@asynccontextmanager
async def gate(fabric: FakeFabric, limits: HttpLimits | None = None, **more: Json) -> AsyncGenerator[str]:
    """Where the gateway of `fabric` is, as host and port."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(partial(serve_gateway, fabric, http=listeners, limits=limits, **more))
        try:
            yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("test over")
    if failure is not None:
        raise failure


@asynccontextmanager
async def client(host: str, headers: Mapping[str, str] | None = None) -> AsyncGenerator[Session]:
    timer, counters = Timer(), Counters()
    source = WebSocket(name="gate", url=f"ws://{host}/mcp", headers=headers or {})
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        try:
            async with (
                open_websocket(source, name="gate", counters=counters) as transport,
                open_session(transport, name="gate", timer=timer, counters=counters) as session,
            ):
                yield session
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("test over")
    if failure is not None:
        raise failure


async def say(host: str, *lines: str) -> bytes:
    """The first line that comes back for a request of these lines, and the rest of the head."""
    async with await trio.open_tcp_stream("127.0.0.1", int(host.rpartition(":")[2])) as stream:
        await stream.send_all("\r\n".join(["GET /mcp HTTP/1.1", *lines, "", ""]).format(host=host).encode())
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some()
            if not more:
                break
            data += more
        return data


def loads(raw: Raw) -> Json:
    return json.loads(bytes(raw))


def call(name: str, *, modern: bool) -> bytes:
    params = {"name": name, "arguments": {"x": 1}} | ({"_meta": ENVELOPE} if modern else {})
    return json.dumps(params).encode()


async def test_both_eras_are_served_on_one_websocket() -> None:
    fabric = FakeFabric(echo=echo)
    async with gate(fabric) as host, client(host) as session:
        found = loads(await session.request("tools/call", call("echo", modern=True)))
        assert json.loads(found["content"][0]["text"]) == {"x": 1}
        greeting = await negotiate(session, era="legacy", patience=2, client_info={"name": "c"}, capabilities={})
        assert greeting.revision == LATEST
        session.notify("notifications/initialized")
        assert loads(await session.request("tools/call", call("echo", modern=False)))["content"]
        assert [tool["name"] for tool in loads(await session.request("tools/list"))["tools"]] == ["echo"]
        assert fabric.counters["gateway.websockets"] == 1


async def test_the_probe_finds_the_modern_era() -> None:
    async with gate(FakeFabric(echo=echo)) as host, client(host) as session:
        greeting = await negotiate(session, patience=2, client_info={"name": "c"}, capabilities={})
        assert (greeting.revision, greeting.modern) == (MODERN, True)


async def test_a_fabric_is_a_modern_client_of_another_one() -> None:
    far = FakeFabric(echo=echo)
    async with gate(far) as host:
        source = WebSocket(name="far", url=f"ws://{host}/mcp")
        async with open_fabric(Config(sources=[source])) as fabric:
            await fabric.wait_started()
            assert fabric.registry.snapshot.sources["far"].state == "ready"
            assert json.loads((await fabric.call("far__echo", {"x": 2})).text) == {"x": 2}
            far.registry.publish([tool("other")])
            while "far__other" not in fabric.registry.snapshot.tools:  # noqa: ASYNC110  # two hops away
                await trio.sleep(0.01)
        assert [call.name for call in far.calls] == ["echo"]


async def test_a_client_that_leaves_cancels_what_it_asked_for() -> None:
    fabric = FakeFabric(hang=hang)
    async with gate(fabric) as host:
        async with client(host) as session:
            with trio.move_on_after(0.1):
                await session.request("tools/call", call("hang", modern=True), cancellable=False)
            assert fabric.cancelled == []
        while not fabric.cancelled:  # noqa: ASYNC110  # the other side of a socket tells by no event
            await trio.sleep(0.005)
        assert fabric.cancelled == ["hang"]


async def test_u10_an_abrupt_end_in_the_middle_of_anything_disturbs_no_other() -> None:
    fabric = FakeFabric(hang=hang, echo=echo)
    begun = b"\x81\xfe\x20\x00abcd{"  # a frame that says it is longer than what follows
    async with gate(fabric) as host, client(host) as other:
        for cut in (b"", b"\x81", begun, b"\x88\x80abcd", b"\xff" * 20, b"\x89\xff" + b"\x00" * 8):
            stream = await trio.open_tcp_stream("127.0.0.1", int(host.rpartition(":")[2]))
            await stream.send_all("\r\n".join(["GET /mcp HTTP/1.1", *OPENING, "", ""]).format(host=host).encode())
            assert (await stream.receive_some())[9:12] == b"101"
            await stream.send_all(cut)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()  # a reset, not an end
        assert loads(await other.request("tools/call", call("echo", modern=True)))["content"]
        assert fabric.counters["gateway.websockets"] == 7


async def test_a_cancelled_call_is_cancelled_alone() -> None:
    fabric = FakeFabric(hang=hang, echo=echo)
    async with gate(fabric) as host, client(host) as session:
        with trio.move_on_after(0.1):
            await session.request("tools/call", call("hang", modern=True))
        await session.request("tools/call", call("echo", modern=True))
        assert fabric.cancelled == ["hang"]


async def test_draining_answers_what_was_asked_and_says_going_away() -> None:
    release = trio.Event()

    async def slow(call: object) -> object:
        await release.wait()
        return await echo(call)  # type: ignore[arg-type]  # it is one

    fabric = FakeFabric(slow=slow)  # type: ignore[arg-type]  # an answer
    answers: list[bytes] = []
    async with gate(fabric) as host, client(host) as session, trio.open_nursery() as nursery:

        async def ask() -> None:
            answers.append(bytes(await session.request("tools/call", call("slow", modern=True))))

        nursery.start_soon(ask)
        while not fabric.calls:  # noqa: ASYNC110  # the other side of a socket tells by no event
            await trio.sleep(0.005)
        fabric.draining.set()
        await trio.sleep(0.05)
        release.set()
        assert "1001 GOING_AWAY" in await session.wait_lost()
        assert len(answers) == 1


async def test_a_message_past_the_bound_ends_that_connection_alone() -> None:
    async with gate(FakeFabric(echo=echo), HttpLimits(body=2000)) as host, client(host) as other:
        async with client(host) as session:
            with pytest.raises(ConnectionLost, match="1009"):
                await session.request("tools/list", b'{"x":"%b"}' % (b"y" * 3000))
        assert loads(await other.request("tools/call", call("echo", modern=True)))["content"]


async def test_foreign_hosts_and_origins_are_refused_at_the_opening() -> None:
    async with gate(FakeFabric()) as host:
        for lines, status in [
            ((*OPENING, "Origin: https://evil.example"), b"403"),
            ((*OPENING, "Origin: null"), b"403"),
            (("Host: evil.example", *OPENING[1:]), b"421"),
            ((*OPENING, "Origin: http://localhost:3000"), b"101"),
        ]:
            assert (await say(host, *lines))[9:12] == status


async def test_openings_that_cannot_be_are_refused_with_their_reason() -> None:
    async with gate(FakeFabric()) as host:
        for lines, status in [
            ((*OPENING[:3], "Sec-WebSocket-Version: 8", OPENING[4]), b"426"),
            (OPENING[:4], b"400"),
            ((*OPENING, "Sec-WebSocket-Protocol: chat"), b"400"),
            ((*OPENING, "Content-Length: 2", "", "hi"), b"400"),
            (OPENING, b"101"),
            ((*OPENING, "Sec-WebSocket-Protocol: chat, mcp"), b"101"),
            ((OPENING[0], *OPENING[2:]), b"400"),  # no option of the connection: a plain GET without a session
        ]:
            answer = await say(host, *lines)
            assert answer[9:12] == status, answer
            assert (b"sec-websocket-protocol: mcp" in answer.lower()) == ("mcp" in lines[-1]), answer


async def test_a_rubbish_key_is_refused_by_the_protocol() -> None:
    fabric = FakeFabric()
    async with gate(fabric) as host:
        answer = await say(host, *OPENING[:3], "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x", "Transfer: no")
        assert answer[9:12] in (b"101", b"400")


async def test_while_draining_nobody_new_is_let_in() -> None:
    fabric = FakeFabric(hang=hang)
    async with gate(fabric) as host, client(host) as session:
        with trio.move_on_after(0.1):
            await session.request("tools/call", call("hang", modern=True), cancellable=False)
        stream = await trio.open_tcp_stream("127.0.0.1", int(host.rpartition(":")[2]))
        await stream.send_all(b"G")
        await trio.sleep(0.02)
        fabric.draining.set()
        await trio.sleep(0.02)
        lines = "\r\n".join(["ET /mcp HTTP/1.1", *OPENING, "", ""]).format(host=host)
        await stream.send_all(lines.encode())
        assert (await stream.receive_some())[9:12] == b"503"
        await stream.aclose()
        with pytest.raises(ConnectFailed):
            async with client(host):
                raise AssertionError


async def test_errors_of_json_are_answered_and_the_connection_goes_on() -> None:
    async with gate(FakeFabric(echo=echo)) as host, client(host) as session:
        session.transport.send(b"{")
        with pytest.raises(CallFailed, match="not JSON"):  # it has no id, so it is for the one that waits
            await session.request("ping")
        assert loads(await session.request("tools/call", call("echo", modern=True)))["content"]
