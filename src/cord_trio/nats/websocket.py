"""A WebSocket as the wire of a NATS connection: its bytes in binary frames, cut anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import trio
from trio_websocket import ConnectionClosed, wrap_client_stream

from cord_trio.transports.http1_wire import QueuedWire
from cord_trio.transports.websocket_open import PIECE, QUEUE, Carrier

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_websocket import WebSocketConnection

    from cord_trio.transports.dial import Stream

FRAME: Final = 64 * 1024
"""Bytes written in one frame, about: what waits is joined up to there."""

MAX_FRAME: Final = 64 * 1024 * 1024
"""Bytes of the longest frame taken in; a server's own bound for messages."""


class OpeningFailed(Exception):
    """The server did not open the WebSocket."""


class WebSocketWire(QueuedWire):
    """One connection, with one task that writes, in the nursery that it was opened with."""

    def __init__(self, connection: WebSocketConnection, carrier: Carrier, stream: Stream) -> None:
        super().__init__()
        self._connection = connection
        self._carrier = carrier
        self._stream = stream

    async def run(self) -> None:
        """Write what waits, until the connection is over."""
        try:
            while not self._closed:
                while self._outbox:
                    parts, size = [], 0
                    while self._outbox and size < FRAME:
                        parts.append(self._outbox.popleft())
                        size += len(parts[-1])
                    self.sent += size
                    await self._connection.send_message(b"".join(parts))
                    self.waiting -= size
                self._wake = trio.Event()
                await self._wake.wait()
        except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
            self.close()  # the reader says that it is over

    async def read(self) -> bytes:
        try:
            message = await self._connection.get_message()
        except ConnectionClosed:
            return b""
        return message if isinstance(message, bytes) else message.encode()

    def quiet(self) -> bool:
        return not self._closed

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._outbox.clear()
            self._wake.set()
            stream = self._stream
            (stream.transport_stream if isinstance(stream, trio.SSLStream) else stream).socket.close()


class _Tasks:
    """Starts trio-websocket's reader, and keeps what it raises from all around it."""

    def __init__(self, nursery: trio.Nursery, opening: trio.CancelScope) -> None:
        self._nursery = nursery
        self._opening = opening

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._read, reader)

    async def _read(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
        except Exception:
            pass  # whoever waits for a message is told that there are none
        finally:
            self._opening.cancel("the connection is over")


async def open_wire(stream: Stream, host: str, path: str, nursery: trio.Nursery) -> WebSocketWire:
    """The wire over a WebSocket over `stream`; its tasks live in `nursery`.

    Raises:
        OpeningFailed: the server did not open it.

    """
    carrier = Carrier(stream)
    connection: WebSocketConnection | None = None
    with trio.CancelScope() as opening:
        try:
            connection = await wrap_client_stream(
                cast("trio.Nursery", _Tasks(nursery, opening)),  # of a nursery, only `start_soon` is used
                cast("trio.SocketStream", carrier),
                host,
                path,
                message_queue_size=QUEUE,
                max_message_size=MAX_FRAME,
                receive_buffer_size=PIECE,
            )
        except Exception as exc:
            status = getattr(exc, "status_code", None)
            what = f"the server answered with HTTP {status}" if status else "the server broke the opening off"
            raise OpeningFailed(carrier.fault or what) from exc
    if connection is None:
        raise OpeningFailed(carrier.fault or "it is no WebSocket server, or it broke the opening off")
    carrier.open = True
    wire = WebSocketWire(connection, carrier, stream)
    nursery.start_soon(wire.run)
    return wire
