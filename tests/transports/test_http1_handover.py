"""A connection that HTTP hands over: nothing is lost, nothing is read twice, and it ends with its handler."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio
import trio.testing

from cord_trio.counters import Counters
from cord_trio.transports.http1_server import Request, Response, serve_http
from cord_trio.transports.http1_wire import SocketWire

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

HEAD = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n"


@asynccontextmanager
async def door(
    handler: Callable[[Request, Response], Awaitable[None]], draining: trio.Event | None = None
) -> AsyncGenerator[tuple[trio.SocketStream, trio.Event]]:
    """A client of a server with `handler`, and when that server has ended."""
    over = trio.Event()

    async def serve(task_status: trio.TaskStatus[object]) -> None:  # noqa: ASYNC128  # `serve_http` calls it
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await serve_http(
            handler, listeners, draining=draining, counters=Counters(), task_status=task_status
        )  # fmt: skip
        over.set()

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(serve)
        client = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
        try:
            yield client, over
        except Exception as exc:
            failure = exc
        client.socket.close()
        nursery.cancel_scope.cancel("test over")
    if failure is not None:
        raise failure


def as_stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def echo(rests: list[bytes], _request: Request, response: Response) -> None:
    sock, rest = response.hand_over()
    rests.append(rest)
    async with as_stream(sock) as stream:
        await stream.send_all(b"yours\n" + rest)
        async for data in stream:
            await stream.send_all(data.upper())


async def read(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        assert more, data
        data += more
    return data


async def test_bytes_behind_the_request_and_after_it_all_arrive() -> None:
    rests: list[bytes] = []
    async with door(partial(echo, rests)) as (client, _):
        await client.send_all(HEAD + b"early")
        assert await read(client, 11) == b"yours\nearly"
        await client.send_all(b"late")
        assert await read(client, 4) == b"LATE"
        assert rests == [b"early"]


async def test_a_reader_that_was_woken_already_takes_nothing_of_what_is_not_its_any_more() -> None:
    woken = 0
    for _ in range(100):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        read: list[bytes] = []
        async with trio.open_nursery() as nursery:
            wire = SocketWire(ours, nursery)

            async def reader(wire: SocketWire = wire, read: list[bytes] = read) -> None:
                read.append(await wire.read())

            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            theirs.send(b"x")
            await trio.lowlevel.checkpoint()  # in this round Trio wakes the reader, before us or behind us
            early = bool(read)
            with wire.detach() as sock:
                await trio.testing.wait_all_tasks_blocked()
                assert read == [b"x" if early else b""]
                if not early:
                    woken += 1
                    assert sock.recv(9) == b"x"
        theirs.close()
    assert woken


async def test_the_connection_ends_with_its_handler() -> None:
    async def brief(_request: Request, response: Response) -> None:
        sock, _ = response.hand_over()
        async with as_stream(sock) as stream:
            await stream.send_all(b"bye")

    async with door(brief) as (client, _):
        await client.send_all(HEAD)
        assert await read(client, 3) == b"bye"
        assert await client.receive_some() == b""


async def test_a_handler_that_fails_answers_nothing_more() -> None:
    async def broken(_request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        sock, _ = response.hand_over()
        sock.close()
        raise ValueError("on purpose")

    async with door(broken) as (client, _):
        await client.send_all(HEAD)
        assert await client.receive_some() == b""


async def test_draining_waits_for_what_was_handed_over() -> None:
    draining, rests = trio.Event(), list[bytes]()
    async with door(partial(echo, rests), draining) as (client, over):
        await client.send_all(HEAD)
        await read(client, 6)
        draining.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not over.is_set()
        await client.send_eof()
        await over.wait()


async def test_an_answer_that_was_begun_cannot_be_handed_over() -> None:
    refused: list[str] = []

    async def late(_request: Request, response: Response) -> None:  # noqa: ASYNC124  # async by contract
        response.send(200, (), b"ok")
        try:
            response.hand_over()
        except RuntimeError as exc:
            refused.append(str(exc))

    async with door(late) as (client, _):
        await client.send_all(HEAD)
        assert (await read(client, 12))[9:] == b"200"
        await trio.testing.wait_all_tasks_blocked()
    assert refused == ["the answer has begun already"]
