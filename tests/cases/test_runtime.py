"""Reported failures of nurseries, scopes and lifetimes."""

from __future__ import annotations

import ast
import os
import socket
import struct
from contextlib import aclosing
from pathlib import Path

import pytest
import trio

import cord_trio
from cord_trio.cell import Timer
from cord_trio.config import Bounds, Config
from cord_trio.counters import Counters
from cord_trio.errors import ConnectionLost
from cord_trio.fabric import open_fabric
from cord_trio.session import Session, open_session
from cord_trio.testing import ToolServer
from cord_trio.transports.guardian import open_guardian
from cord_trio.transports.http1_server import HttpLimits, Request, Response, serve_http
from cord_trio.transports.opening import open_source
from tests.cases.test_process import running, shell

ROOT = Path(cord_trio.__file__).parent


async def ping(session: Session) -> None:
    await session.request("ping")


async def test_u01_a_connection_is_closed_from_another_task_any_number_of_times() -> None:
    server = ToolServer(era="legacy", silent_on="ping")
    timer, over = Timer(), trio.Event()
    losses: list[ConnectionLost] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)

        async def own(task_status: trio.TaskStatus[Session]) -> None:
            async with server.open() as transport, open_session(transport, timer=timer) as session:
                task_status.started(session)
                await session.wait_lost()
            over.set()

        async def call(session: Session) -> None:
            try:
                await ping(session)
            except ConnectionLost as exc:
                losses.append(exc)

        session: Session = await nursery.start(own)
        nursery.start_soon(call, session)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            session.transport.close()  # type: ignore[attr-defined]  # in memory, so it can be closed
        await over.wait()
        session.transport.close()  # type: ignore[attr-defined]  # as above
        with pytest.raises(ConnectionLost):
            await ping(session)
        await trio.testing.wait_all_tasks_blocked()
        assert len(losses) == 1
        nursery.cancel_scope.cancel("all is seen")


async def test_u02_connections_end_in_any_order_and_one_that_crashes_takes_none_along() -> None:
    sources = [ToolServer(era="legacy", name=f"it{number}").source() for number in range(1, 4)]
    timer, counters = Timer(), Counters()
    ended: list[int] = []
    async with open_guardian() as guardian, trio.open_nursery() as nursery:
        await nursery.start(timer.run)

        async def own(number: int, close: trio.Event, task_status: trio.TaskStatus[Session]) -> None:
            async with (
                open_source(sources[number - 1], guardian=guardian, counters=counters) as transport,
                open_session(transport, timer=timer) as session,
            ):
                task_status.started(session)
                await close.wait()
            ended.append(number)

        events = [trio.Event() for _ in sources]
        sessions: list[Session] = [await nursery.start(own, number, events[number - 1]) for number in (1, 2, 3)]
        for session in sessions:
            await ping(session)
        events[0].set()
        await trio.sleep(0.1)
        for session in sessions[1:]:
            await ping(session)
        os.kill(sessions[1].transport.pid, 9)  # type: ignore[attr-defined]  # a child's transport has one
        await sessions[1].wait_lost()
        await ping(sessions[2])
        events[2].set()
        while 3 not in ended:  # noqa: ASYNC110  # nobody but a test asks
            await trio.sleep(0.01)
        events[1].set()
        while len(ended) < 3:  # noqa: ASYNC110  # as above
            await trio.sleep(0.01)
        assert ended == [1, 3, 2]
        assert guardian.groups == set()
        nursery.cancel_scope.cancel("all is seen")


RESET = struct.pack("ii", 1, 0)


@pytest.mark.parametrize("reset", [False, True])
async def test_u04_u10_clients_that_leave_within_upload_or_answer_disturb_no_other(reset: bool) -> None:
    entered = trio.Event()

    async def handler(request: Request, response: Response) -> None:
        if request.path == "/slow":
            response.start(200)
            response.write(b"begun")
            entered.set()
            await trio.sleep(0.05)
            response.write(b"more")
            response.end()
            response.send(500)  # reporting to one that left
        else:
            response.send(200, [], b"fine")

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]

    async def dial() -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", port)

    async def leave(stream: trio.SocketStream) -> None:
        if reset:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await stream.aclose()

    async def fine(stream: trio.SocketStream) -> None:
        await stream.send_all(b"GET /fine HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await stream.receive_some()).endswith(b"fine")

    counters = Counters()
    async with trio.open_nursery() as nursery, aclosing(await dial()) as other:
        nursery.start_soon(
            lambda: serve_http(
                handler, [listener], limits=HttpLimits(), draining=trio.Event(), counters=counters
            )
        )  # fmt: skip
        await fine(other)
        for request in (
            b"POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n{",
            b"POST /up HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n",
        ):
            stream = await dial()
            await stream.send_all(request)
            if b"/slow" in request:
                await entered.wait()
            await leave(stream)
            await fine(other)
        await trio.sleep(0.1)
        await fine(other)
        nursery.cancel_scope.cancel("all is seen")


def generators(tree: ast.AST) -> list[ast.AsyncFunctionDef]:
    """Async functions that yield, not counting what is nested in them."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef):
            inner = [*node.body]
            while inner:
                part = inner.pop()
                if isinstance(part, ast.Yield):
                    found.append(node)
                    break
                if not isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
                    inner += ast.iter_child_nodes(part)  # type: ignore[arg-type]  # any node, from here on
    return found


def test_u06_nothing_yields_across_a_scope_but_context_managers() -> None:
    """An async generator may be left unfinished; a context manager ends with its block."""
    seen = 0
    for path in ROOT.rglob("*.py"):
        for function in generators(ast.parse(path.read_text())):
            names = [ast.unparse(decorator) for decorator in function.decorator_list]
            assert names in (["asynccontextmanager"], ["contextlib.asynccontextmanager"]), (path, function.name)
            seen += 1
    assert seen > 10


async def test_u08_cancelling_while_a_pipeline_starts_or_runs_ends_all_of_it() -> None:
    marker = f"78.{os.getpid()}"
    source = shell("it", f"sleep {marker} | cat")
    bounds = Bounds(stop_close=0.1, stop_terminate=0.3)
    for started in (False, True):
        with trio.CancelScope() as scope:
            async with open_fabric(Config(sources=[source], bounds=bounds)) as fabric:
                while started and not running(f"sleep\0{marker}"):  # noqa: ASYNC110  # the kernel tells nobody
                    await trio.sleep(0.01)
                scope.cancel("the test cancels")
                await fabric.call("it__echo")
        assert scope.cancelled_caught
        assert running(f"sleep\0{marker}") == []
