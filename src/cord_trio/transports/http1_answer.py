"""What a handler of the HTTP server sees: the request, whole, and the answer that it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from cord_trio.transports.http1_wire import SMALL

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    import trio

    from cord_trio.transports.http1 import Headers
    from cord_trio.transports.http1_visitor import Connection

Address: TypeAlias = tuple[str, int] | str
Fields: TypeAlias = tuple[tuple[str, str], ...]


class Request:
    """One request, whole.

    Attributes:
        method: as sent, such as `POST`.
        target: as sent; path and query of an absolute URL.
        path: of the target, not decoded.
        query: of the target, without the question mark.
        headers: all of them.
        body: empty if there is none.
        client: the peer's address.

    """

    __slots__ = ("body", "client", "headers", "method", "path", "query", "target")

    def __init__(self, method: str, target: str, headers: Headers, body: bytes, client: Address) -> None:
        self.method = method
        self.target = target
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.body = body
        self.client = client


class Response:
    """The answer to one request. Everything is synchronous; to a client that has left it does nothing.

    Attributes:
        started: whether a status was sent.
        ended: whether the answer is whole.

    """

    __slots__ = ("_bare", "_chunked", "_connection", "ended", "started")

    def __init__(self, connection: Connection, *, bare: bool, chunked: bool) -> None:
        self._connection = connection
        self._bare = bare
        self._chunked = chunked
        self.started = False
        self.ended = False

    def send(self, status: int, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> None:
        """Answer at once. `Content-Length`, `Date` and `Connection` are added, and not for `headers` to hold.

        Raises:
            ValueError: a header cannot be sent; nothing was.
            RuntimeError: the answer was begun before.

        """
        if self.started or type(headers) is not tuple:
            head = self._begin(status, headers)
        else:  # nearly always, and `_begin` in place
            head = self._connection.begin(status, headers)
        self.started = self.ended = True
        if status in (204, 304):
            self._connection.write(head + b"\r\n")
        elif self._bare:
            self._connection.write(b"%bContent-Length: %d\r\n\r\n" % (head, len(body)))
        elif len(body) <= SMALL:
            self._connection.write(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))
        else:
            self._connection.write(b"%bContent-Length: %d\r\n\r\n" % (head, len(body)), body)

    def start(self, status: int, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Begin an answer whose length is not known yet. Raises as `send` does."""
        self._bare = self._bare or status in (204, 304)
        if not self._chunked and not self._bare:
            self._connection.keep = False  # HTTP/1.0: the body goes to the end of the connection
        head = self._begin(status, headers)
        self.started = True
        framing = b"" if self._bare or not self._chunked else b"Transfer-Encoding: chunked\r\n"
        self._connection.write(b"%b%b\r\n" % (head, framing))

    def write(self, data: bytes) -> None:
        """Send more of the body that `start` began."""
        if not self.started or self.ended:
            raise RuntimeError("the answer has not begun, or is over")
        if not data or self._bare:
            return
        if not self._chunked:
            self._connection.write(data)
        elif len(data) <= SMALL:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._connection.write(b"%x\r\n" % len(data), data, b"\r\n")

    def end(self) -> None:
        """The body that `start` began is whole. Does nothing the second time."""
        if not self.started:
            raise RuntimeError("the answer has not begun")
        if self.ended:
            return
        self.ended = True
        if self._chunked and not self._bare:
            self._connection.write(b"0\r\n\r\n")

    @property
    def scope(self) -> trio.CancelScope:
        """What the handler runs in, other requests of its connection too.

        Who cancels it stops the handler, which then has to answer by itself, before `trio.Cancelled` leaves it.
        """
        return self._connection.scope

    def outlive(self, goes_on: bool) -> None:
        """Whether the handler goes on if the client leaves, instead of being cancelled."""
        self._connection.outlives = goes_on

    def hand_over(self) -> tuple[socket.socket, bytes]:
        """Take the connection, to speak another protocol on it: its socket, and what came behind the request.

        Nothing was answered, and nothing is any more. The connection counts as this one's until the handler
        returns; whoever took it closes it, and notices itself that the client leaves.

        Raises:
            RuntimeError: the answer was begun before, or a former one is still being written.

        """
        if self.started:
            raise RuntimeError("the answer has begun already")
        taken = self._connection.hand_over()
        self.started = self.ended = True
        return taken

    def _begin(self, status: int, headers: Iterable[tuple[str, str]]) -> bytes:
        if self.started:
            raise RuntimeError("the answer has begun already")
        return self._connection.begin(status, headers if type(headers) is tuple else tuple(headers))

    @property
    def gone(self) -> bool:
        """Whether the client has left."""
        return self._connection.closed

    @property
    def congested(self) -> bool:
        """Whether the client reads slower than it is written to."""
        return self._connection.wire.congested

    async def wait_uncongested(self) -> None:
        """Return once `congested` is False, or the client has left."""
        await self._connection.wire.wait_uncongested()
