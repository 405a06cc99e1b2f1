"""The official SDK 1.x as a peer on WebSocket and HTTP+SSE, which later ones dropped.

It cannot share an environment with 2.x, so it has one of its own.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

from cord_trio.config import Config, Http, WebSocket
from cord_trio.fabric import open_fabric
from cord_trio.testing import ToolServer
from tests.real.environments import sdk1
from tests.real.helpers import START, read_line, running
from tests.real.test_clients import Setup, gateway

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cord_trio.fabric import Fabric


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    """Make its environment outside of any test's time limit."""
    sdk1()


Json: TypeAlias = Any


@asynccontextmanager
async def server_of(kind: str) -> AsyncGenerator[str]:
    """The URL of a server."""
    async with running([sdk1(), str(Path(__file__).with_name("sdk1_server.py")), kind]) as process:
        yield await read_line(process.stdout)


@asynccontextmanager
async def fabric_of(source: Http | WebSocket) -> AsyncGenerator[Fabric]:
    async with open_fabric(Config(sources=[source])) as fabric:
        with trio.fail_after(90):
            await fabric.wait_started()
        view = fabric.registry.snapshot.sources[source.name]
        assert view.state == "ready", view.reason
        yield fabric


async def use(fabric: Fabric) -> None:
    """All that its tools do."""
    assert sorted(fabric.registry.snapshot.tools) == ["far__add", "far__long", "far__steps"]
    assert (await fabric.call("far__add", {"a": 2, "b": 3})).text == "5"
    assert len((await fabric.call("far__long", {"size": 3_000_000})).text) == 3_000_000
    assert (await fabric.call("far__steps", {})).text == "done"
    found: list[str] = []

    async def ask(number: int) -> None:
        found.append((await fabric.call("far__add", {"a": number, "b": 0})).text)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(ask, number)
    assert sorted(found, key=int) == [str(number) for number in range(10)]


async def test_its_websocket_server_is_a_source() -> None:
    async with server_of("ws") as url, fabric_of(WebSocket(name="far", url=url, connect=START)) as fabric:
        await use(fabric)


@pytest.mark.parametrize("transport", ["sse", "streamable"])  # the second finds out that it is the first
async def test_its_sse_server_is_a_source(transport: Json) -> None:
    async with (
        server_of("sse") as url,
        fabric_of(Http(name="far", url=url, transport=transport, connect=START)) as fabric,
    ):
        await use(fabric)


async def client(kind: str, url: str, tool: str, arguments: Json) -> Json:
    command = [sdk1(), str(Path(__file__).with_name("sdk1_client.py")), kind, url, tool, json.dumps(arguments)]
    async with running(command) as process:
        return json.loads(await read_line(process.stdout))


async def test_its_websocket_client_is_served(tmp_path: Path) -> None:
    async with gateway(Setup(tmp_path)) as (_, url):
        found = await client("ws", url.replace("http", "ws"), "up__echo", {"text": "hi"})
    assert found["revision"] == "2025-11-25"
    assert found["server"] == "cord_trio"
    assert "up__echo" in found["tools"]
    assert "hi" in found["text"]


async def test_its_sse_client_is_served(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.config = tmp_path / "cord.toml"
    command, *args = ToolServer(record=str(setup.record)).command()
    setup.config.write_text(f"[gateway]\nsse = true\n[sources.up]\ncommand = {command!r}\nargs = {args!r}\n")
    async with gateway(setup) as (_, url):
        found = await client("sse", url.replace("/mcp", "/sse"), "up__echo", {"text": "hi"})
    assert found["revision"] == "2025-11-25"
    assert "hi" in found["text"]


class Cutter:
    """A relay to the gateway that breaks a connection, once, behind the first progress on it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cut = 0
        self.resumed = 0

    async def serve(self, client: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as server, trio.open_nursery() as nursery:
            nursery.start_soon(self._up, client, server, nursery)
            try:
                async for data in server:
                    await client.send_all(data)
                    if b"notifications/progress" in data and not self.cut:
                        self.cut += 1
                        break
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            client.socket.close()
            nursery.cancel_scope.cancel("cut")

    async def _up(self, client: trio.SocketStream, server: trio.SocketStream, nursery: trio.Nursery) -> None:
        try:
            async for data in client:
                self.resumed += b"last-event-id" in data.lower()
                await server.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel("the client has left")


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_its_client_resumes_a_stream_that_was_cut(tmp_path: Path, era: str) -> None:
    async with gateway(Setup(tmp_path, era=era)) as (_, url), trio.open_nursery() as nursery:
        port = int(url.split(":")[2].partition("/")[0])
        cutter = Cutter(port)
        listeners = await nursery.start(partial(trio.serve_tcp, cutter.serve, 0, host="127.0.0.1"))
        relayed = url.replace(str(port), str(listeners[0].socket.getsockname()[1]))
        found = await client("http", relayed, "up__progress", {"steps": 5, "seconds": 1.0})
        nursery.cancel_scope.cancel("test over")
    assert (cutter.cut, cutter.resumed) == (1, 1)
    assert found["progress"] == [1, 2, 3, 4, 5]
    assert found["text"]
