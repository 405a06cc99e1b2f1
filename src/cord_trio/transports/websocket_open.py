"""Opening a WebSocket: as a client towards a source, and as a server on a connection that HTTP hands over."""

from __future__ import annotations

import os
import ssl
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import trio
from trio_websocket import ConnectionRejected, wrap_client_stream, wrap_server_stream

from cord_trio.errors import ConnectFailed
from cord_trio.transports.dial import ProxyFailed, dial, find_proxy
from cord_trio.transports.http1_wire import make_tls, parse_origin
from cord_trio.transports.http_rules import ERROR_SHOWN, SUBPROTOCOL, connect_refused, target_of
from cord_trio.transports.websocket import FAREWELL, GOING_AWAY, NORMAL, WebSocketTransport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from trio_websocket import WebSocketConnection

    from cord_trio.config import WebSocket
    from cord_trio.counters import Counters
    from cord_trio.transports.http1_answer import Request

PIECE: Final = 64 * 1024
"""Bytes that are written at a time, and read at a time."""

STALL: Final = 60.0
"""Seconds that a peer may take to read one such piece."""

OPENING: Final = 64 * 1024
"""Bytes that a peer may send before the connection is open: its head, and why it refuses."""

ACCEPTING: Final = 10.0
"""Seconds for accepting a client, who has sent all that is needed already."""

QUEUE: Final = 8
"""Messages read ahead of the conversation."""


class OpeningFailed(Exception):
    """The peer did not open the connection."""


class Carrier(trio.abc.Stream):
    """The bytes below a WebSocket: a stream, before it what was read already, and bounds that frames do not have.

    Attributes:
        heard: Trio time at which the peer was heard of last.
        fault: which of our bounds was met; "" if none.
        open: whether the opening is over.

    """

    def __init__(self, stream: trio.abc.Stream, before: bytes = b"") -> None:
        self._stream = stream
        self._before = before
        self._opening = 0
        self.heard = trio.current_time()
        self.fault = ""
        self.open = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._before:
            await trio.lowlevel.checkpoint()
            data, self._before = self._before[:max_bytes], self._before[max_bytes or len(self._before) :]
            return data
        data = bytes(await self._stream.receive_some(max_bytes))
        self.heard = trio.current_time()
        if not self.open:
            self._opening += len(data)
            if self._opening > OPENING:
                self.fault = f"more than {OPENING} bytes before the connection was open"
                return b""
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            with trio.move_on_after(STALL) as patience:
                await self._stream.send_all(view[start : start + PIECE])
            if patience.cancelled_caught:
                self.fault = f"the peer read nothing for {STALL:g} s"
                raise trio.BrokenResourceError(self.fault)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        # Whatever was to be said was said in frames; a TLS farewell could block.
        await trio.aclose_forcefully(self._stream)


class _Tasks:
    """What lives as long as the connection: trio-websocket's reader, and the writer.

    What the reader raises is kept, rather than thrown at all around it. Both are shielded, since closing in
    the protocol's way needs them; whoever opened the connection ends them.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.scope = trio.CancelScope(shield=True)
        self.over = trio.Event()
        self.failure: Exception | None = None

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        """How trio-websocket starts its reader."""
        self._nursery.start_soon(self._read, reader)

    async def _read(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            with self.scope:
                await reader()
        except Exception as exc:
            self.failure = exc
        finally:
            self.over.set()

    async def write(self, transport: WebSocketTransport) -> None:
        with trio.CancelScope(shield=True) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(transport.write)
                await self.over.wait()
                scope.cancel("the connection is over")

    def as_nursery(self) -> trio.Nursery:
        return cast("trio.Nursery", self)  # of a nursery, only `start_soon` is used


@asynccontextmanager
async def _opened(
    carrier: Carrier,
    shake: Callable[[trio.Nursery], Awaitable[WebSocketConnection]],
    *,
    patience: float,
    name: str,
    counters: Counters,
    max_message: int,
    code: int,
) -> AsyncGenerator[WebSocketTransport, None]:
    """The transport over `carrier` for as long as the block runs. The block's own errors leave as raised.

    Raises:
        OpeningFailed: `shake` did not come to an end.

    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        tasks = _Tasks(nursery)
        try:
            connection = await _shake(tasks, shake, patience)
            if connection is None:
                why = f"no answer within {patience:.3g} s" if tasks.failure is None and not tasks.over.is_set() else ""
                why = why or carrier.fault or "it broke the opening off, or it is no WebSocket server"
                raise OpeningFailed(why) from tasks.failure
            carrier.open = True
            transport = WebSocketTransport(connection, carrier, name=name, counters=counters, max_message=max_message)
            nursery.start_soon(tasks.write, transport)
            try:
                yield transport
            finally:
                with trio.move_on_after(2 * FAREWELL, shield=True):
                    await transport.close(code)
        # Cancelled must travel through the nursery: it may be the nursery's own.
        except Exception as exc:
            failure = exc
        finally:
            tasks.scope.cancel("the connection is over")
    if failure is not None:
        raise failure


async def _shake(
    tasks: _Tasks, shake: Callable[[trio.Nursery], Awaitable[WebSocketConnection]], patience: float
) -> WebSocketConnection | None:
    """The open connection; None once the reader has ended or the time is up, which trio-websocket would not notice."""
    connection: WebSocketConnection | None = None
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + patience

        async def watch() -> None:
            await tasks.over.wait()
            nursery.cancel_scope.cancel("the opening has failed")

        nursery.start_soon(watch)
        try:
            connection = await shake(tasks.as_nursery())
        except Exception as exc:  # in the middle of it the peer went away
            tasks.failure = tasks.failure or exc
        nursery.cancel_scope.cancel("it is open")
    return connection


@asynccontextmanager
async def open_websocket(
    source: WebSocket,
    *,
    name: str,
    counters: Counters,
    verify: bool | ssl.SSLContext = True,
    environ: Mapping[str, str] | None = None,
) -> AsyncGenerator[WebSocketTransport, None]:
    """The connection to `source` for as long as the block runs. The block's own errors leave as raised.

    Raises:
        ConnectFailed: it cannot be had.

    """
    origin = parse_origin(f"http{source.url[2:]}")
    context = make_tls(verify) if origin.tls else None
    proxy = find_proxy(origin, os.environ if environ is None else environ)
    ends = trio.current_time() + source.connect
    late = ConnectFailed(name, "connect", f"no connection to {origin.name} within {source.connect:g} s")
    try:
        with trio.move_on_at(ends) as limit:
            stream = await dial(origin, context, proxy, tunnel=True)
    except (OSError, trio.BrokenResourceError) as exc:
        raise _unreached(name, origin.name, exc) from exc
    if limit.cancelled_caught:
        raise late
    carrier = Carrier(stream)
    fields = [(field.lower().encode(), value.encode()) for field, value in source.headers.items()]
    shake = partial(
        wrap_client_stream, stream=cast("trio.SocketStream", carrier), host=origin.name, resource=target_of(source.url),
        subprotocols=[SUBPROTOCOL], extra_headers=fields, message_queue_size=QUEUE,
        max_message_size=source.max_message, receive_buffer_size=PIECE,
    )  # fmt: skip  # a stream is a stream, though the annotation names two kinds
    opening = _opened(
        carrier, shake, patience=max(0.0, ends - trio.current_time()), name=name, counters=counters,
        max_message=source.max_message, code=NORMAL,
    )  # fmt: skip
    try:
        async with opening as transport:
            yield transport
    except OpeningFailed as exc:
        raise _refused(name, exc) from exc
    finally:
        with trio.move_on_after(FAREWELL, shield=True):
            await carrier.aclose()


@asynccontextmanager
async def accept_websocket(
    stream: trio.abc.Stream, request: Request, rest: bytes, *, name: str, counters: Counters, max_message: int
) -> AsyncGenerator[WebSocketTransport, None]:
    """The connection of a client whose `request` HTTP has read, and `rest` behind it, for as long as the block runs.

    Raises:
        OpeningFailed: it asked for something else than a WebSocket, and was told so.

    """
    # trio-websocket reads requests itself, so what was read of this one is played to it again.
    lines = [f"GET {request.target} HTTP/1.1".encode("latin-1")]
    lines += [b"%b: %b" % (field, value) for field, value in request.headers.raw]
    carrier = Carrier(stream, b"\r\n".join([*lines, b"", rest]))

    async def shake(nursery: trio.Nursery) -> WebSocketConnection:
        proposal = await wrap_server_stream(
            nursery, carrier, message_queue_size=QUEUE, max_message_size=max_message, receive_buffer_size=PIECE
        )
        wanted = SUBPROTOCOL if SUBPROTOCOL in proposal.proposed_subprotocols else None
        return await proposal.accept(subprotocol=wanted)

    try:
        async with _opened(
            carrier, shake, patience=ACCEPTING, name=name, counters=counters, max_message=max_message, code=GOING_AWAY
        ) as transport:
            yield transport
    finally:
        with trio.move_on_after(FAREWELL, shield=True):
            await carrier.aclose()


def _unreached(name: str, place: str, exc: Exception) -> ConnectFailed:
    if isinstance(exc, ssl.SSLError):
        return ConnectFailed(name, "tls", f"{place}: {exc}", "check the certificate, or SSL_CERT_FILE")
    if isinstance(exc, trio.BrokenResourceError):
        cause = exc.__cause__
        if isinstance(cause, ssl.SSLError):
            return ConnectFailed(name, "tls", f"{place}: {cause}", "check the certificate, or SSL_CERT_FILE")
        return ConnectFailed(name, "tls", f"{place} broke the connection off")
    cause = exc.__cause__
    first = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else exc
    words = first.strerror if isinstance(first, OSError) and first.strerror else str(first)
    words = words.partition("): ")[2] or words  # Trio names the address first, which was said already
    remedy = "" if isinstance(exc, ProxyFailed) else "is the server running, and on this port?"
    return ConnectFailed(name, "connect", f"cannot connect to {place}: {words}", remedy)


def _refused(name: str, exc: OpeningFailed) -> ConnectFailed:
    """What it means that a server did not open the connection, in words that a person can act on."""
    cause = exc.__cause__
    if not isinstance(cause, ConnectionRejected):
        return ConnectFailed(name, "handshake", str(exc))
    status = cause.status_code
    text = (cause.body or b"").decode(errors="replace").strip()[:ERROR_SHOWN]
    what = f"the server refused the WebSocket with HTTP {status}" + (f": {text}" if text else "")
    return connect_refused(name, status, what, "no WebSocket of MCP is there")
