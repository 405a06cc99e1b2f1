"""HTTP/1.1 for clients: accepts connections, bounds them, sweeps out the slow, and drains.

Each connection has a task (`http1_visitor`), so a request spawns nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from email.utils import formatdate
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio

from cord_trio.counters import Counters
from cord_trio.transports.http1 import BODY_LIMIT, HEAD_LIMIT, HEADER_COUNT
from cord_trio.transports.http1_answer import Address, Request, Response
from cord_trio.transports.http1_crowd import Crowd
from cord_trio.transports.http1_visitor import Connection
from cord_trio.transports.http1_wire import take_socket

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from cord_trio.transports.http1_answer import Fields

__all__ = ["HttpHandler", "HttpLimits", "Request", "Response", "serve_http"]

logger = logging.getLogger("cord_trio.transports")

HttpHandler: TypeAlias = Callable[[Request, Response], Awaitable[None]]

TURNED_AWAY = 64
"""Connections beyond the bound that are told so; further ones are only closed."""

ACCEPT_PAUSE = 0.1
"""Seconds without accepting after descriptors or memory ran out."""

_EXHAUSTED = (EMFILE, ENFILE, ENOBUFS, ENOMEM)


@attrs.frozen(kw_only=True)
class HttpLimits:
    """The bounds of one server.

    Attributes:
        connections: open at once, in any state.
        head: bytes of one request's head.
        headers: header fields of one request.
        head_time: seconds for a head to arrive, counted from the connection or from its first byte.
        body: bytes of one request's body.
        body_time: seconds without a byte of a body that was begun.
        received: bytes of bodies that are not whole yet, of all connections.
        outbox: bytes that wait for one client to read them; a client with more is dropped.
        unsent: bytes that wait for all clients together; beyond it the client with most of them is dropped.
        idle: seconds that a connection is kept between requests.

    """

    connections: int = 1024
    head: int = HEAD_LIMIT
    headers: int = HEADER_COUNT
    head_time: float = 10.0
    body: int = BODY_LIMIT
    body_time: float = 30.0
    received: int = 256 * 1024 * 1024
    outbox: int = 64 * 1024 * 1024
    unsent: int = 256 * 1024 * 1024
    idle: float = 75.0


class Server:
    """What the connections of one `serve_http` share."""

    def __init__(self, handler: HttpHandler, limits: HttpLimits, counters: Counters) -> None:
        self.handler = handler
        self.limits = limits
        self.counters = counters
        self.connections: set[Connection] = set()
        self.clients = Crowd()
        self.turned_away = 0
        self.received = 0
        self.open = 0
        self.leaving = False
        self.draining = False
        self.empty = trio.Event()
        self.populated = trio.Event()
        self.date = ""
        self._heads: dict[tuple[int, Fields, bool], bytes] = {}
        self._second = 0

    def heads(self) -> dict[tuple[int, Fields, bool], bytes]:
        """What the heads of this second's answers are, since the `Date` (RFC 9110, section 6.6.1) is in them."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self.date = f"Date: {formatdate(second, usegmt=True)}\r\n"
            self._heads.clear()
        return self._heads

    def relieve(self) -> None:
        """Drop the clients that keep most waiting, until what waits for all of them is within its bound."""
        while sum(connection.wire.waiting for connection in self.connections) > self.limits.unsent:
            self.counters.add("http_server.unsent_full")
            hoarder = max(self.connections, key=lambda connection: connection.wire.waiting)
            hoarder.leave("the client reads too slowly")

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Take connections until cancelled; then the listener is closed."""
        try:
            while True:
                try:
                    accepted, address = await listener.socket.accept()
                    sock = take_socket(accepted)
                except OSError as exc:
                    # Otherwise a client left before it was accepted, or the like: only its problem.
                    if exc.errno in _EXHAUSTED:
                        self.counters.add("http_server.accept_failed")
                        logger.warning("cannot accept error=%s", exc)
                        await trio.sleep(ACCEPT_PAUSE)
                    else:
                        await trio.lowlevel.checkpoint()
                    continue
                self.counters.add("http_server.connections")
                full = len(self.connections) >= self.limits.connections
                if full:
                    self.counters.add("http_server.turned_away")
                    if self.turned_away >= TURNED_AWAY:
                        sock.close()
                        continue
                self.open += 1
                nursery.start_soon(self._serve, sock, address, full)
        finally:
            listener.socket.close()

    async def _serve(self, sock: socket.socket, address: object, full: bool) -> None:
        client: Address = (str(address[0]), int(address[1])) if isinstance(address, tuple) else str(address)
        connection: Connection | None = None
        try:
            async with trio.open_nursery() as nursery:
                connection = Connection(self, sock, client, nursery)
                self.connections.add(connection)
                self.populated.set()
                self.turned_away += full
                try:
                    await connection.run(full)
                finally:
                    self.turned_away -= full
                    connection.leave("the connection is over")
        except Exception:
            logger.exception("a connection failed client=%s", client)
        finally:
            if connection is not None:
                self.connections.discard(connection)  # now, since a handler may have outlived it
            self.open -= 1
            if self.leaving and not self.open:
                self.empty.set()

    async def drain(self, draining: trio.Event) -> None:
        """Let connections go once `draining` is set."""
        await draining.wait()
        self.draining = True
        for connection in list(self.connections):
            connection.drain()

    async def sweep(self) -> None:
        """Close what is past its time, until cancelled."""
        limits = self.limits
        interval = max(0.01, min(1.0, min(limits.head_time, limits.body_time, limits.idle) / 8))
        while True:
            if not self.connections:
                self.populated = trio.Event()
                await self.populated.wait()
            await trio.sleep(interval)
            now = trio.current_time()
            for connection in list(self.connections):
                if connection.deadline < now or connection.wire.deadline < now:
                    connection.expire(now)
                else:
                    connection.rest(now)


async def serve_http(
    handler: HttpHandler,
    listeners: Sequence[trio.SocketListener],
    *,
    limits: HttpLimits | None = None,
    draining: trio.Event | None = None,
    leaving: trio.Event | None = None,
    counters: Counters | None = None,
    task_status: trio.TaskStatus[Sequence[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests until cancelled, or until all are answered after `draining` was set.

    Args:
        handler: runs for each request, one at a time for a connection; cancelled when the client leaves.
            What it raises becomes a 500, or breaks the answer off.
        listeners: closed when draining begins, and at the end.
        limits: the bounds.
        draining: once set, nothing is accepted, idle connections are closed, and each answer closes its
            connection. How long that may take is up to the caller's scope.
        leaving: once set, another process accepts at the same sockets: nothing is accepted here, and each answer
            closes its connection, but idle connections may ask once more. It ends when there is none any more.
        counters: where to count.
        task_status: told the listeners once they are served.

    """
    server = Server(handler, limits or HttpLimits(), counters or Counters())
    with closing(server.clients):
        async with trio.open_nursery() as connections:
            connections.start_soon(server.sweep)
            connections.start_soon(server.clients.run)
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(server.accept, listener, connections)
                task_status.started(listeners)
                draining = trio.Event() if draining is None else draining
                await _first(draining, trio.Event() if leaving is None else leaving)
                accepting.cancel_scope.cancel("draining")
            server.leaving = True
            async with trio.open_nursery() as waiting:
                waiting.start_soon(server.drain, draining)
                if server.open:
                    await server.empty.wait()
                waiting.cancel_scope.cancel("drained")
            connections.cancel_scope.cancel("drained")


async def _first(*events: trio.Event) -> None:
    """Return once one of them is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel("one of them is set")

        for event in events:
            nursery.start_soon(wait, event)
