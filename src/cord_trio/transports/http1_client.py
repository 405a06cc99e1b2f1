"""HTTP/1.1 towards one origin: a pool of connections whose requests are plain function calls.

`Pool.request` writes on an idle connection at once, and the connection's one reader task tells the sink
what comes back, so a request on a warm connection spawns no task and opens no scope. Cancelling is
`Exchange.close`: synchronous and exact. Redirects are the caller's business; proxies are `dial`'s.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from cord_trio.counters import Counters
from cord_trio.errors import CallError, ConnectionLost, Overloaded
from cord_trio.transports.dial import find_proxy
from cord_trio.transports.http1 import BODY_LIMIT, HEAD_LIMIT, HEADER_COUNT, check_target, encode_headers
from cord_trio.transports.http1_exchange import Exchange, ResponseSink
from cord_trio.transports.http1_reply import Connection
from cord_trio.transports.http1_wire import CONNECT_LIMIT, SMALL, Origin, Wire, connect, make_tls, parse_origin

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from cord_trio.transports.dial import Proxy
    from cord_trio.transports.http1_exchange import Whole

__all__ = ["Exchange", "Pool", "PoolLimits", "ResponseSink", "open_pool"]

logger = logging.getLogger("cord_trio.transports")

OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "expect"})
"""Headers that the pool alone sets."""

TRAIL = 0.05
"""Seconds until the end of an answer is waited for whose message was taken, unless it is met before."""

REST = 1.0
"""Seconds for which a connection may be idle without anybody who sees that the server ends it."""

BODIED = frozenset({"POST", "PUT", "PATCH"})
"""Methods of which a request says that its body is empty."""


@attrs.frozen(kw_only=True)
class PoolLimits:
    """The bounds of one pool.

    Attributes:
        connections: open or being opened at once.
        waiting: requests that wait for a connection; one more is refused with `Overloaded`.
        head: bytes of one response's head.
        headers: header fields of one response.
        body: bytes of one response's body, unless it is an event stream, which its sink bounds.
        connect: seconds to make a connection.
        idle: seconds after which a kept connection is not trusted any more.

    """

    connections: int = 64
    waiting: int = 1024
    head: int = HEAD_LIMIT
    headers: int = HEADER_COUNT
    body: int = BODY_LIMIT
    connect: float = CONNECT_LIMIT
    idle: float = 60.0


class Pool:
    """Connections to one origin. Made by `open_pool`.

    Invariants: a connection is idle only while no request waits; open ones and those being made never
    exceed the bound. A connection being made belongs to no request: it serves the longest waiting one. It
    is given up if a request is withdrawn that it would have served, but not if another connection was
    faster, since the next overlap of requests would only start it again.
    """

    def __init__(
        self,
        origin: Origin,
        nursery: trio.Nursery,
        *,
        limits: PoolLimits,
        headers: Sequence[tuple[str, str]],
        context: ssl.SSLContext | None,
        counters: Counters,
        proxy: Proxy | None = None,
    ) -> None:
        self.origin = origin
        self.proxy = proxy
        self.limits = limits
        self.counters = counters
        self._nursery = nursery
        self._context = context
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._connecting: list[trio.CancelScope] = []
        self._waiting: deque[Exchange] = deque()
        self._trailing: list[Connection] = []
        self._closed = False
        self._watching = False
        self._watching_trails = False
        # The run's own clock, without the calls that lead to it from `trio.current_time`.
        self._clock = trio.lowlevel.current_clock().current_time
        # A proxy is asked for plain HTTP by the whole URL (RFC 9112, section 3.2.2); for TLS it digs a tunnel.
        self._before = "" if proxy is None or origin.tls else f"http://{origin.name}"
        common = [("Host", origin.name), ("Accept-Encoding", "identity"), *headers]
        if self._before and proxy is not None and proxy.authorization is not None:
            common.append(("Proxy-Authorization", proxy.authorization))
        self._common = encode_headers(common)
        self._names = frozenset(name.lower() for name, _ in common) | OWN_HEADERS

    def __repr__(self) -> str:
        return (
            f"<Pool {self.origin.name}: {len(self._open)} open, {len(self._idle)} idle, "
            f"{len(self._connecting)} connecting, {len(self._waiting)} waiting>"
        )

    @property
    def busy(self) -> int:
        """Connections that requests use, or that are being made for them."""
        return len(self._open) - len(self._idle) + min(len(self._connecting), len(self._waiting))

    def request(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes, sink: ResponseSink
    ) -> Exchange:
        """Start one exchange; the sink is told later, never from within this call.

        Args:
            method: such as `POST`.
            target: path and query, percent-encoded.
            headers: beside those of the pool, and not the ones that it sets itself.
            body: all of it; empty for none.
            sink: who is told.

        Raises:
            CallError: the method, target or a header cannot be sent as it is; nothing was.
            Overloaded: too many requests wait for a connection.
            ConnectionLost: the pool is closed.

        """
        return self.start(method, self.prepare(method, target, headers), body, sink)

    def prepare(self, method: str, target: str, headers: Sequence[tuple[str, str]]) -> bytes:
        """A request's head, up to its length, for `start`. To be kept: making it costs as much as the exchange.

        Raises:
            CallError: the method, target or a header cannot be sent as it is.

        """
        try:
            if not (method.isascii() and method.isalpha()):
                raise ValueError("not a method")
            check_target(target)
            line = f"{method} {self._before}{target} HTTP/1.1\r\n".encode()
            return b"%b%b%b" % (line, self._common, self.encode(headers))
        except ValueError as exc:
            raise _unsendable(exc) from None

    def more(self, head: bytes, headers: Sequence[tuple[str, str]]) -> bytes:
        """A prepared head with further headers. Raises as `prepare` does."""
        try:
            return head + self.encode(headers)
        except ValueError as exc:
            raise _unsendable(exc) from None

    def encode(self, headers: Sequence[tuple[str, str]]) -> bytes:
        """Header lines beside those of the pool. Raises ValueError for others."""
        for name, _ in headers:
            if name.lower() in self._names:
                raise ValueError(f"header {name} is set by the pool")
        return encode_headers(headers)

    def start(
        self,
        method: str,
        head: bytes,
        body: bytes,
        sink: ResponseSink,
        whole: Whole | None = None,
    ) -> Exchange:
        """Start one exchange with a prepared head. For the rest see `request`.

        Args:
            method: that of the head.
            head: from `prepare` or `more`.
            body: all of it; empty for none.
            sink: who is told.
            whole: told instead, once and for all, of an answer that came in one piece and whose head is that of the
                answer before it; its `headers` are then without `Content-Length`.

        """
        exchange = Exchange(self)
        exchange.verb, exchange.sink, exchange.whole = method, sink, whole
        self.begin(exchange, head, body)
        return exchange

    @trio.lowlevel.enable_ki_protection
    def begin(self, exchange: Exchange, head: bytes, body: bytes) -> None:
        """Start an exchange that was made for this pool. Raises as `start` does.

        If it is `attended`, whoever made it reads by himself where that can be, that is if its `fd` says so: he waits
        for it, `pull`s, and again until it is over or he `leave`s. It spares the wake-up of another task.
        """
        if self._closed:
            raise ConnectionLost("the pool is closed", executed="no")
        if len(body) > SMALL:
            head = b"%bContent-Length: %d\r\n\r\n" % (head, len(body))
        elif body or exchange.verb in BODIED:  # in one piece with its head: one copy, one packet
            head, body = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body), b""
        else:
            head += b"\r\n"
        while self._idle:
            connection = self._idle.pop()
            if (
                (connection.idle_since == math.inf or connection.idle_since >= self._clock() - self.limits.idle)
                and connection.wire.quiet()
                and connection.start(exchange, head, body)
            ):
                return
            self.counters.add("http_client.stale")
            connection.close()
        if self._trailing:
            connection = self._trailing.pop(0)
            if connection.end_trail() and connection.start(exchange, head, body):
                return
            if connection.trails:
                self._trailing.insert(0, connection)
        exchange.attended = False
        if len(self._waiting) >= self.limits.waiting and self._full:
            self.counters.add("http_client.overloaded")
            raise Overloaded("http_waiting", self.limits.waiting)
        exchange.request_head, exchange.payload = head, body
        self._waiting.append(exchange)
        if self._trailing and self._full:
            for connection in self._trailing[:]:
                self._read_trail(connection)
        self._balance()

    @property
    def _full(self) -> bool:
        return len(self._open) + len(self._connecting) >= self.limits.connections

    def _balance(self) -> None:
        """Make as many connections as requests wait for, within the bound."""
        while len(self._connecting) < len(self._waiting) and not self._full:
            scope = trio.CancelScope()
            self._connecting.append(scope)
            self._nursery.start_soon(self._connect, scope)

    def forget(self, exchange: Exchange) -> None:
        """Take a request off the queue."""
        try:
            self._waiting.remove(exchange)
        except ValueError:
            return  # it was not there any more
        if len(self._connecting) > len(self._waiting):
            self._connecting.pop().cancel("the request was withdrawn")
        self._balance()

    @trio.lowlevel.enable_ki_protection
    async def _connect(self, scope: trio.CancelScope) -> None:
        wire: Wire | None = None
        reason = ""
        limit = trio.CancelScope(deadline=trio.current_time() + self.limits.connect)
        try:
            with scope, limit:
                wire = await connect(self.origin, self._context, self._nursery, self.proxy)
            if limit.cancelled_caught:
                reason = f"no connection to {self.origin.name} within {self.limits.connect:g} s"
        except (OSError, trio.BrokenResourceError) as exc:
            reason = f"cannot connect to {self.origin.name}: {_say(exc)}"
        if scope not in self._connecting:  # withdrawn: its place was given away already
            if wire is not None:
                wire.close()
            return
        self._connecting.remove(scope)
        if wire is None:
            self.counters.add("http_client.connect_failed")
            if self._waiting:
                exchange = self._waiting.popleft()
                exchange.over = True
                self._balance()
                self.tell_failed(exchange, ConnectionLost(reason or "the pool is closing", executed="no"))
            return
        self.counters.add("http_client.connected")
        connection = Connection(self, wire)
        self._open.add(connection)
        self.release(connection)
        await connection.run()

    def release(self, connection: Connection) -> None:
        """A connection is free: the longest waiting request gets it, or it is kept."""
        if self._waiting:
            exchange = self._waiting[0]
            if connection.start(exchange, exchange.request_head, exchange.payload):
                exchange.request_head = exchange.payload = b""  # a stream may live for days
                self._waiting.popleft()
                self._balance()
            else:
                connection.close()
            return
        idle = self._idle
        # Of one that nobody reads `_watch` says later since when it is idle: a call to the clock is 2 % of an exchange.
        connection.idle_since = math.inf if connection.rests else self._clock()
        idle.append(connection)
        if idle[0].idle_since != math.inf and idle[0].idle_since < self._clock() - self.limits.idle:
            idle[0].close()

    def watch(self) -> None:
        """See to it that somebody reads connections that are idle for long, as nobody else would."""
        if not self._watching:
            self._watching = True
            self._nursery.start_soon(self._watch)

    async def _watch(self) -> None:
        while any(connection.resting for connection in self._open):
            await trio.sleep(REST)
            now = self._clock()
            for connection in self._idle:
                if connection.idle_since == math.inf:
                    connection.idle_since = now
                elif connection.idle_since <= now - REST:
                    connection.call_reader()
        self._watching = False

    def trail(self, connection: Connection) -> None:
        """See to it that the end of an answer is read, if no request meets it before."""
        self._trailing.append(connection)
        if not self._watching_trails:
            self._watching_trails = True
            self._nursery.start_soon(self._watch_trails)

    async def _watch_trails(self) -> None:
        while self._trailing:
            before = self._trailing[:]
            await trio.sleep(TRAIL)
            for connection in before:
                self._read_trail(connection)
        self._watching_trails = False

    def _read_trail(self, connection: Connection) -> None:
        if connection in self._trailing:
            self._trailing.remove(connection)
            connection.read_on()

    def drop(self, connection: Connection) -> None:
        """A connection is closed: its place is free."""
        self._open.discard(connection)
        if connection in self._trailing:
            self._trailing.remove(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._closed:
            self._balance()

    def tell_failed(self, exchange: Exchange, error: CallError) -> None:
        try:
            exchange.sink.failed(error)
        except Exception:
            logger.exception("a sink raised while told of a failure origin=%s", self.origin.name)

    def close(self) -> None:
        """Close every connection; what is not over fails."""
        self._closed = True
        waiting = [exchange for exchange in self._waiting if not exchange.over]
        self._waiting.clear()
        for connection in list(self._open):
            connection.lose("the pool was closed")
        for exchange in waiting:
            exchange.over = True
            self.tell_failed(exchange, ConnectionLost("the pool was closed", executed="no"))


def _unsendable(exc: ValueError) -> CallError:
    return CallError(f"the request was not sent: {exc}", executed="no")


def _say(exc: BaseException) -> str:
    """The words of an error, or of the first of several that it stands for."""
    cause = exc.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    inner = cause if isinstance(cause, OSError) else exc
    words = (inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)) or type(inner).__name__
    return words.rpartition(": ")[2] if words.startswith("Error connecting to ") else words  # Trio names it again


@asynccontextmanager
async def open_pool(
    url: str,
    *,
    limits: PoolLimits | None = None,
    headers: Sequence[tuple[str, str]] = (),
    verify: bool | ssl.SSLContext = True,
    counters: Counters | None = None,
    environ: Mapping[str, str] | None = None,
) -> AsyncGenerator[Pool]:
    """A pool for the origin of `url`; all its connections end with the block.

    Args:
        url: http or https; only its origin counts.
        limits: its bounds.
        headers: sent with every request.
        verify: False to accept any certificate, or a context of your own.
        counters: where to count.
        environ: where proxies are named; None for the process's environment.

    Raises:
        ValueError: `url` or `headers` cannot be used.

    """
    origin = parse_origin(url)
    context = make_tls(verify) if origin.tls else None
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        pool = Pool(
            origin,
            nursery,
            limits=limits or PoolLimits(),
            headers=headers,
            context=context,
            counters=counters or Counters(),
            proxy=find_proxy(origin, os.environ if environ is None else environ),
        )
        try:
            yield pool
        except Exception as exc:
            error = exc  # raised outside, so that the nursery does not wrap it in a group
        finally:
            pool.close()
            nursery.cancel_scope.cancel("the pool was closed")
    if error is not None:
        raise error
