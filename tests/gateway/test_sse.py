"""HTTP+SSE clients of the gateway, which serves them only if told to."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import httpx  # noqa: ASYNC127  # the ecosystem's client, as our users run it
import trio

from cord_trio.cell import Timer
from cord_trio.config import Http
from cord_trio.counters import Counters
from cord_trio.gateway import sse_endpoint
from cord_trio.handshake import negotiate
from cord_trio.session import open_session
from cord_trio.transports.sse import open_sse
from tests.gateway.fakes import FakeFabric, echo, hang
from tests.gateway.test_websocket import call, gate, loads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    import pytest

    from cord_trio.session import Session

Json: TypeAlias = Any


def fabric_with_sse(**answers: Json) -> FakeFabric:
    fabric = FakeFabric(**answers)
    fabric.config = attrs.evolve(fabric.config, gateway=attrs.evolve(fabric.config.gateway, sse=True))
    return fabric


@asynccontextmanager
async def client(host: str) -> AsyncGenerator[Session]:
    """One that has shaken hands."""
    timer, counters = Timer(), Counters()
    source = Http(name="gate", url=f"http://{host}/sse", transport="sse")
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        try:
            async with (
                open_sse(source, name="gate", counters=counters) as transport,
                open_session(transport, name="gate", timer=timer, counters=counters) as session,
            ):
                await negotiate(session, era="legacy", patience=2, client_info={"name": "c"}, capabilities={})
                session.notify("notifications/initialized")
                yield session
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("test over")
    if failure is not None:
        raise failure


@asynccontextmanager
async def listening(host: str) -> AsyncGenerator[Callable[[], Awaitable[str]]]:
    """The next line of a new stream, at each call."""
    async with await trio.open_tcp_stream("127.0.0.1", int(host.rpartition(":")[2])) as stream:
        await stream.send_all(f"GET /sse HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        data = b""

        async def line() -> str:
            nonlocal data
            while b"\n" not in data:
                more = await stream.receive_some()
                assert more, data
                data += more
            first, _, data = data.partition(b"\n")
            return first.decode().rstrip()

        head = []
        while text := await line():
            head.append(text.lower())
        assert {"content-type: text/event-stream", "x-accel-buffering: no"} <= set(head)
        yield line


async def test_a_client_of_2024_is_served() -> None:
    async with gate(fabric_with_sse(echo=echo)) as host, client(host) as session:
        assert [tool["name"] for tool in loads(await session.request("tools/list"))["tools"]] == ["echo"]
        found = loads(await session.request("tools/call", call("echo", modern=False)))
        assert json.loads(found["content"][0]["text"]) == {"x": 1}


async def test_l16_each_client_has_its_own_state_and_any_number_come_and_go() -> None:
    async with gate(fabric_with_sse(echo=echo, hang=hang)) as host, client(host) as steady:
        for _ in range(20):
            async with client(host) as session:
                assert loads(await session.request("tools/call", call("echo", modern=False)))["content"]
        async with client(host) as one, client(host) as other, trio.open_nursery() as nursery:
            found: dict[str, bytes] = {}

            async def ask(name: str, session: Session) -> None:
                arguments = json.dumps({"name": "echo", "arguments": {"who": name}}).encode()
                found[name] = bytes(await session.request("tools/call", arguments))

            for _ in range(5):  # the ids of all three are the same ones
                nursery.start_soon(ask, "one", one)
                nursery.start_soon(ask, "other", other)
                nursery.start_soon(ask, "steady", steady)
        assert {name: name.encode() in text for name, text in found.items()} == dict.fromkeys(found, True)


async def test_a_client_that_leaves_cancels_what_it_asked_for() -> None:
    fabric = fabric_with_sse(hang=hang)
    async with gate(fabric) as host:
        async with client(host) as session:
            with trio.move_on_after(0.1):
                await session.request("tools/call", call("hang", modern=False), cancellable=False)
        while not fabric.cancelled:  # noqa: ASYNC110  # the other side of a socket tells by no event
            await trio.sleep(0.005)
        assert fabric.cancelled == ["hang"]


async def test_it_is_off_unless_told() -> None:
    async with gate(FakeFabric()) as host, httpx.AsyncClient() as http:
        assert (await http.get(f"http://{host}/sse")).status_code == 404
        assert (await http.post(f"http://{host}/messages?session_id=x")).status_code == 404


async def test_requests_that_cannot_be_are_refused() -> None:
    async with gate(fabric_with_sse()) as host, httpx.AsyncClient() as http:
        for verb, path, fields, body, status in [
            ("POST", "/messages?session_id=x", {}, b"{}", 404),
            ("POST", "/messages", {}, b"{}", 400),
            ("POST", "/messages?session_id=x&session_id=y", {}, b"{}", 400),
            ("POST", "/messages?session_id=x", {"Content-Type": "text/plain"}, b"{}", 415),
            ("PUT", "/messages", {}, b"", 405),
            ("POST", "/sse", {}, b"{}", 405),
            ("GET", "/sse", {"Accept": "application/json"}, b"", 406),
            ("GET", "/sse", {"Origin": "https://evil.example"}, b"", 403),
            ("POST", "/messages?session_id=x", {"Host": "evil.example"}, b"{}", 421),
        ]:
            answer = await http.request(verb, f"http://{host}{path}", headers=fields, content=body)
            assert answer.status_code == status, (verb, path, answer.text)


async def test_h24_the_endpoint_is_relative_so_that_a_mounted_gateway_is_found() -> None:
    async with gate(fabric_with_sse()) as host, listening(host) as line:
        assert await line() == "event: endpoint"
        assert (await line()).startswith("data: messages?session_id=")


async def test_h27_a_quiet_stream_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse_endpoint, "BEAT", 0.02)
    async with gate(fabric_with_sse()) as host, listening(host) as line:
        assert [await line() for _ in range(5)][3] == ":"


async def test_an_empty_message_is_refused_and_rubbish_is_answered_on_the_stream() -> None:
    async with gate(fabric_with_sse()) as host, httpx.AsyncClient() as http, listening(host) as line:
        await line()
        target = f"http://{host}/{(await line()).removeprefix('data: ')}"
        assert (await http.post(target, content=b" ")).status_code == 400
        assert (await http.post(target, content=b"{")).status_code == 202
        told = [await line() for _ in range(3)]
        assert json.loads(told[2].removeprefix("data: "))["error"]["code"] == -32700


async def test_draining_ends_the_streams() -> None:
    fabric = fabric_with_sse()
    async with gate(fabric) as host, client(host) as session:
        fabric.draining.set()
        assert await session.wait_lost()
