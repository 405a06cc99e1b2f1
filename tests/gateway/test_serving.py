"""`serve_gateway` over real sockets: who leaves, what drains, what is left."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import httpx  # noqa: ASYNC127  # the ecosystem's client, as our users run it
import trio

from cord_trio.config import Bounds
from cord_trio.gateway import IDENTITY, serve_gateway
from cord_trio.transports.http1_server import HttpLimits
from cord_trio.transports.memory import memory_transport_pair
from tests.gateway.fakes import (
    Config,
    FakeFabric,
    PipeClient,
    after,
    echo,
    hang,
    headers_of,
    initialize,
    legacy,
    modern,
    text,
    tool,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cord_trio.call import Call, Outcome

HEADERS = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}


@asynccontextmanager
async def serving(fabric: FakeFabric, **limits: int) -> AsyncGenerator[tuple[str, trio.Event], None]:
    """The gateway's URL, and an event for when it has ended by itself."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    ended = trio.Event()
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128  # the gateway calls it
            limit = HttpLimits(**limits)
            await serve_gateway(fabric, http=listeners, limits=limit, task_status=task_status)
            ended.set()

        await nursery.start(serve)
        yield f"http://127.0.0.1:{port}/mcp", ended
        nursery.cancel_scope.cancel("the test is over")


def post(client: httpx.AsyncClient, url: str, message: bytes, *more: tuple[str, str]) -> httpx.Request:
    fields = headers_of(message) if b"_meta" in message else []
    return client.build_request("POST", url, content=message, headers=[*HEADERS.items(), *fields, *more])


async def until(fabric: FakeFabric, calls: int) -> None:
    """Wait until so many calls have reached the fabric."""
    while len(fabric.calls) < calls:  # noqa: ASYNC110  # real sockets: there is nothing to wait on
        await trio.sleep(0.002)


async def test_both_eras_are_served_on_one_port() -> None:
    async with serving(FakeFabric(echo=echo)) as (url, _), httpx.AsyncClient() as client:
        answer = await client.send(post(client, url, modern(1, "tools/call", {"name": "echo"})))
        assert answer.json()["result"]["_meta"] == {"io.modelcontextprotocol/serverInfo": json.loads(IDENTITY)}
        opened = await client.send(post(client, f"{url}/", initialize()))
        session = ("Mcp-Session-Id", opened.headers["mcp-session-id"])
        called = await client.send(post(client, url, legacy(1, "tools/call", {"name": "echo"}), session))
        assert called.json()["result"] == {"content": [{"type": "text", "text": "{}"}]}


async def test_a_large_result_passes() -> None:
    async def large(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        return text("x" * 5_000_000)

    async with serving(FakeFabric(large=large)) as (url, _), httpx.AsyncClient() as client:
        answer = await client.send(post(client, url, modern(1, "tools/call", {"name": "large"})))
        assert len(answer.json()["result"]["content"][0]["text"]) == 5_000_000


async def test_a_client_that_disconnects_cancels_its_modern_call_and_no_legacy_call() -> None:
    fabric = FakeFabric(modern=hang, legacy=hang, stays=hang)
    async with serving(fabric) as (url, _), httpx.AsyncClient() as stays:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(stays.send, post(stays, url, modern(1, "tools/call", {"name": "stays"}))))
            await until(fabric, 1)
            with trio.CancelScope() as leaving:
                async with httpx.AsyncClient() as leaves:
                    session = (await leaves.send(post(leaves, url, initialize()))).headers["mcp-session-id"]
                    async with trio.open_nursery() as calls:
                        one = post(leaves, url, modern(1, "tools/call", {"name": "modern"}))
                        two = post(
                            leaves, url, legacy(1, "tools/call", {"name": "legacy"}), ("Mcp-Session-Id", session)
                        )
                        calls.start_soon(leaves.send, one)
                        calls.start_soon(leaves.send, two)
                        await until(fabric, 3)
                        leaving.cancel("the client leaves")
            while not fabric.cancelled:  # noqa: ASYNC110  # real sockets: there is nothing to wait on
                await trio.sleep(0.002)
            await trio.sleep(0.02)
            assert fabric.cancelled == ["modern"]
            nursery.cancel_scope.cancel("enough seen")


async def test_draining_finishes_what_runs_ends_streams_and_returns() -> None:
    fabric = FakeFabric(slow=after(0.2))
    async with serving(fabric) as (url, ended), httpx.AsyncClient() as client:
        stream = await client.send(
            post(client, url, modern("L", "subscriptions/listen", {"notifications": {"toolsListChanged": True}})),
            stream=True,
        )
        got: list[httpx.Response] = []

        async def call() -> None:
            got.append(await client.send(post(client, url, modern(1, "tools/call", {"name": "slow"}))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await until(fabric, 1)
            fabric.draining.set()
        assert got[0].json()["result"]["content"] == [{"type": "text", "text": "late"}]
        lines = [line async for line in stream.aiter_lines() if line.startswith("data: ")]
        assert [json.loads(line[6:]).get("id") for line in lines] == [None, "L"]
        with trio.fail_after(2):
            await ended.wait()


async def test_d01_cancelling_ends_at_once_with_open_streams() -> None:
    fabric = FakeFabric(hang=hang)
    start = trio.current_time()
    async with httpx.AsyncClient() as client:
        async with serving(fabric) as (url, _), trio.open_nursery() as nursery:
            listen = modern("L", "subscriptions/listen", {"notifications": {}})
            await client.send(post(client, url, listen), stream=True)
            opened = await client.send(post(client, url, initialize()))
            session = {"Mcp-Session-Id": opened.headers["mcp-session-id"], "Accept": "text/event-stream"}
            await client.send(client.build_request("GET", url, headers=session), stream=True)

            async def call() -> None:
                request = post(
                    client,
                    url,
                    legacy(1, "tools/call", {"name": "hang"}),
                    ("Mcp-Session-Id", session["Mcp-Session-Id"]),
                )
                await client.send(request)

            nursery.start_soon(call)
            await until(fabric, 1)
            nursery.cancel_scope.cancel("enough seen")
    assert trio.current_time() - start < 3
    assert fabric.cancelled == ["hang"]


async def test_s24_a_body_past_the_bound_is_refused() -> None:
    async with serving(FakeFabric(), body=1_000) as (url, _), httpx.AsyncClient() as client:
        answer = await client.send(post(client, url, modern(1, "tools/list", {"x": "y" * 2_000})))
        assert answer.status_code == 413


async def test_without_http_it_ends_when_its_pipes_have() -> None:
    ours, theirs = memory_transport_pair()
    with ours, theirs, trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            client = PipeClient(theirs)
            nursery.start_soon(partial(serve_gateway, FakeFabric(), pipes=[ours]))
            nursery.start_soon(theirs.run, client)
            (answer,) = await client.ask(legacy(1, "ping"))
            assert answer["result"] == {}
            theirs.close()


async def test_list_changed_reaches_a_client_on_its_stream() -> None:
    fabric = FakeFabric()
    async with serving(fabric) as (url, _), httpx.AsyncClient() as client:
        opened = await client.send(post(client, url, initialize()))
        headers = {"Mcp-Session-Id": opened.headers["mcp-session-id"], "Accept": "text/event-stream"}
        async with client.stream("GET", url, headers=headers) as stream:
            assert stream.headers["x-accel-buffering"] == "no"
            fabric.registry.publish([tool("new")])
            told = []
            async for line in stream.aiter_lines():
                if line.startswith("data: ") and line[6:]:
                    told.append(json.loads(line[6:])["method"])
                    assert (await client.delete(url, headers=headers)).status_code == 200
            assert told == ["notifications/tools/list_changed"]


async def test_the_configured_bounds_hold_for_clients() -> None:
    fabric = FakeFabric(echo=echo)
    fabric.config = Config(bounds=Bounds(message_in=2048, http_head=4096, http_headers=16, json_depth=12))
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = "http://{}:{}/mcp".format(*listeners[0].socket.getsockname())
    async with trio.open_nursery() as nursery, httpx.AsyncClient() as client:
        await nursery.start(partial(serve_gateway, fabric, http=listeners))
        long = modern(1, "tools/call", {"name": "echo", "arguments": {"text": "x" * 2048}})
        assert (await client.send(post(client, url, long))).status_code == 413
        assert (await client.get(url, headers={"X": "x" * 4096})).status_code == 431
        assert (await client.get(url, headers={f"X-{n}": "x" for n in range(16)})).status_code == 431
        deep: object = 0
        for _ in range(12):
            deep = [deep]
        refused = await client.send(post(client, url, modern(1, "tools/call", {"name": "echo", "arguments": deep})))
        assert "deeper than bounds.json_depth = 12 levels" in refused.json()["error"]["message"]
        assert fabric.counters["gateway.too_deep"] == 1
        nursery.cancel_scope.cancel("enough seen")
