"""One request to a pool and its response, and who is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.errors import CallError, Executed
    from cord_trio.transports.http1 import Headers
    from cord_trio.transports.http1_client import Pool
    from cord_trio.transports.http1_reply import Connection

    Whole: TypeAlias = Callable[[int, Headers, bytes], None]


class ResponseSink(Protocol):
    """Who is told what comes back. Nothing here blocks or raises; exactly one of `end` and `failed` is last.

    After `Exchange.close` nothing is told any more. It may be called from within any of these.
    """

    def head(self, status: int, headers: Headers, /) -> None:
        """The response began; `status` is never 1xx."""

    def body(self, data: bytes, /) -> None:
        """More of the body."""

    def end(self) -> None:
        """The response is whole."""

    def failed(self, error: CallError, /) -> None:
        """There will be no whole response."""


class Exchange:
    """One request and its response.

    Attributes:
        over: whether the sink has been, or never will be, told the last thing.
        since: Trio time of its start, if it was asked for.
        fd: what to wait for before `pull`, if whoever started it reads by himself; -1 if the connection does.
        streamed: whether what `pull` returned was an event.

    The others are between the pool and the connection.

    """

    # What few need is the class's own until it is set: one of these is made for each request.
    verb = "POST"
    since = 0.0
    fd = -1
    over = False
    streamed = False
    before = 0
    attended = False
    connection: Connection | None = None
    whole: Whole | None = None
    request_head = b""
    payload = b""
    sink: ResponseSink

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @property
    def written(self) -> bool:
        """Whether any byte of it may have reached the server."""
        connection = self.connection
        return connection is not None and connection.wire.sent > self.before

    @property
    def executed(self) -> Executed:
        """What an error may say of a request that got no answer."""
        return "unknown" if self.written else "no"

    def pull(self) -> bytes | None:
        """Read what has come, and tell the sink; or return the message, if that is all there is to tell.

        It is if the answer came in one piece, its head is that of one before, its status 200 and it holds JSON, or an
        event stream with one event. Then the exchange is over, and the sink told nothing: that spares six calls. If it
        is not over then, there is a message that the sink will be told too, should more come.
        """
        return None if self.connection is None else self.connection.pull()

    def leave(self) -> None:
        """Let the connection read the rest; nobody else will."""
        if not self.over and self.connection is not None:
            self.connection.leave()

    def evict(self) -> None:
        """The same, and wake whoever waits for `fd`, with `trio.ClosedResourceError`."""
        if self.connection is not None and not self.connection.closed:
            trio.lowlevel.notify_closing(self.fd)
            self.leave()

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """Drop it now: nothing more is told, and its place in the pool is free.

        A connection that is in the middle of it is closed, which is how a server learns.
        """
        if self.over:
            return
        self.over = True
        if self.connection is not None:
            self.connection.close()
        else:
            self._pool.forget(self)
