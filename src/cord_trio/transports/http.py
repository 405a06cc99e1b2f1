"""MCP Streamable HTTP, client side, in both eras: each message is a POST, each reply JSON or an event stream.

The eras share the carrier and differ in what it means: a modern request is withdrawn by closing its
stream; a legacy one goes on without us, so its server is told. A legacy server may keep a session and
offer one standing stream for what belongs to no request.
"""

from __future__ import annotations

import logging
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

import trio

from cord_trio.errors import BadReply, CallError, ConnectionLost, HttpFailed, Refused
from cord_trio.protocol import eras, headers as header_values
from cord_trio.protocol.framing import FrameTooLarge, SseSplitter
from cord_trio.transports import Transport
from cord_trio.transports.http1_client import PoolLimits, open_pool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from cord_trio.config import Http
    from cord_trio.counters import Counters
    from cord_trio.protocol.jsonrpc import Id
    from cord_trio.transports import Receiver
    from cord_trio.transports.http1 import Headers
    from cord_trio.transports.http1_client import Exchange, Pool

log = logging.getLogger("cord_trio.transports.http")

MAX_REDIRECTS: Final = 5
"""Redirects that one request follows, all within its origin."""

ERROR_TEXT: Final = 64 * 1024
"""Bytes read of the body of a failure."""

ERROR_SHOWN: Final = 300
"""Characters of that body shown in an error."""

LINGER: Final = 5.0
"""Seconds that a response stream may stay open after its reply, before its connection is closed."""

STREAM_BACKOFF: Final = (1.0, 30.0)
"""Seconds to wait before the standing stream is opened again: at first, and at most."""

FAREWELL: Final = 1.0
"""Seconds for ending a legacy session at its server."""

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
STALE_SESSION: Final = "the server no longer knows the session (404)"


class HttpTransport(Transport):
    """One server's endpoint. A request's connection is its own while it runs.

    Attributes:
        session_id: of a legacy server that keeps one.

    """

    def __init__(self, pool: Pool, source: Http, name: str, counters: Counters) -> None:
        parts = urlsplit(source.url)
        self.session_id: str | None = None
        self.source = source
        self.target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._pool = pool
        self._name = name
        self._counters = counters
        self._receiver: Receiver | None = None
        self._modern: bool | None = None
        self._revision = eras.LATEST_MODERN
        self._fixed = [("Content-Type", JSON), ("Accept", f"{JSON}, {EVENTS}"), *source.headers.items()]
        self._posts: dict[Id, _Post] = {}
        self._answered: dict[_Post, float] = {}
        self._greeted = trio.Event()
        self._loss: str | None = None
        self._lost = trio.Event()

    def speak(self, revision: str, *, modern: bool) -> None:
        self._revision = revision
        self._modern = modern
        self._greeted.set()

    def send(
        self,
        message: bytes,
        *,
        id: Id | None = None,
        method: str = "",
        name: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        if self._loss is not None:
            raise ConnectionLost(self._loss, "no")
        post = _Post(self, id, method, message, [*self._headers(method, name), *headers])
        if id is not None:
            self._posts[id] = post
        try:
            post.start()
        except CallError:
            if id is not None:
                del self._posts[id]
            raise

    def withdraw(self, id: Id) -> bool:
        post = self._posts.pop(id, None)
        if post is None:
            return True
        unsent = not post.written
        post.close()
        # Closing the stream is how a modern request is cancelled (MCP 2026-07-28, cancellation); in the
        # legacy era it is not, so there the server must be told.
        return unsent or self._modern is not False

    def written(self, id: Id) -> bool:
        post = self._posts.get(id)
        return post is None or post.written

    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._receiver = receiver
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_lingering)
            nursery.start_soon(self._hold_stream)
            await self._lost.wait()
            nursery.cancel_scope.cancel("the session is lost")

    async def farewell(self) -> None:
        """End a legacy session at its server, as far as it lets us within `FAREWELL` seconds."""
        if self.session_id is None or self._loss is not None:
            return
        done = trio.Event()
        with trio.move_on_after(FAREWELL, shield=True):
            try:
                self._pool.request("DELETE", self.target, self._headers("", None), b"", _Ignored(done))
            except CallError:
                return
            await done.wait()

    def _headers(self, method: str, name: str | None) -> list[tuple[str, str]]:
        """The headers of one message; those of other hops are never among them."""
        found = self._fixed.copy()
        if self._modern is False:
            if eras.ERAS[self._revision].version_header:
                found.append(("MCP-Protocol-Version", self._revision))
            if self.session_id is not None:
                found.append(("Mcp-Session-Id", self.session_id))
        elif self._modern or method == "server/discover":
            found.append(("MCP-Protocol-Version", self._revision))
            if method:
                found.append(("Mcp-Method", method))
            if name is not None:
                found.append(("Mcp-Name", header_values.encode_header_value(name)))
        return found

    def feed(self, message: bytes, post: _Post) -> None:
        assert self._receiver is not None
        self._receiver.feed((message,), post.id)
        if post.id is not None and post.id in self._posts and not self._receiver.waits(post.id):
            self._answered[post] = trio.current_time()

    def fail(self, post: _Post, error: CallError) -> None:
        """`post` is over without a reply, as far as we know."""
        self.forget(post)
        if post.id is None:
            self._counters.add("http.message_failed")
            log.debug("message failed source=%s method=%s error=%s", self._name, post.method, error)
        elif self._receiver is not None:
            self._receiver.fail(post.id, error)

    def forget(self, post: _Post) -> None:
        self._answered.pop(post, None)
        if post.id is not None and self._posts.get(post.id) is post:
            del self._posts[post.id]

    def lose(self, reason: str) -> None:
        """The legacy session is gone, and with it everything that waits."""
        if self._loss is None and self._receiver is not None:
            self._loss = reason
            self._receiver.lost(ConnectionLost(reason, "unknown"))
            for post in list(self._posts.values()):
                post.close()
            self._posts.clear()
            self._lost.set()

    async def _close_lingering(self) -> None:
        """Close response streams whose reply has come and which their server keeps open."""
        while True:
            await trio.sleep(LINGER)
            overdue = trio.current_time() - LINGER
            for post in [post for post, since in self._answered.items() if since <= overdue]:
                self._counters.add("http.lingering_closed")
                self.forget(post)
                post.close()

    async def _hold_stream(self) -> None:
        """Hold the standing stream of a legacy server that offers one (MCP 2025-11-25, transports)."""
        await self._greeted.wait()
        if self._modern:
            return
        pause = STREAM_BACKOFF[0]
        while True:
            ended = trio.Event()
            stream = _Standing(self, ended)
            headers = [pair for pair in self._headers("", None) if pair[0] not in ("Content-Type", "Accept")]
            try:
                exchange = self._pool.request("GET", self.target, [("Accept", EVENTS), *headers], b"", stream)
            except CallError as exc:
                log.debug("no standing stream source=%s error=%s", self._name, exc)
                return
            try:
                await ended.wait()
            finally:
                exchange.close()
            if stream.refused:
                return
            pause = STREAM_BACKOFF[0] if stream.useful else min(pause * 2, STREAM_BACKOFF[1])
            await trio.sleep(stream.retry or pause)


class _Post:
    """One message on its way, and what comes back. See `http1_client.ResponseSink`."""

    __slots__ = ("_body", "_events", "_exchange", "_failure", "_redirects", "_size", "_status", "_transport",
                 "headers", "id", "message", "method", "retry_after", "challenge", "target")  # fmt: skip

    def __init__(
        self, transport: HttpTransport, id: Id | None, method: str, message: bytes, headers: list[tuple[str, str]]
    ) -> None:
        self.id = id
        self.method = method
        self.message = message
        self.headers = headers
        self.target = transport.target
        self.retry_after: float | None = None
        self.challenge = ""
        self._transport = transport
        self._exchange: Exchange | None = None
        self._redirects = 0
        self._status = 0
        self._failure: CallError | None = None
        self._events: SseSplitter | None = None
        self._body: list[bytes] | None = None
        self._size = 0

    @property
    def written(self) -> bool:
        return self._exchange is not None and self._exchange.written

    def start(self) -> None:
        self._exchange = self._transport._pool.request("POST", self.target, self.headers, self.message, self)

    def close(self) -> None:
        if self._exchange is not None:
            self._exchange.close()

    def head(self, status: int, headers: Headers) -> None:
        self._status = status
        self._events = None
        self._body = None
        self._size = 0
        kind = (headers.get("content-type") or "").partition(";")[0].strip().lower()
        if 300 <= status < 400:
            self._redirect(status, headers.get("location") or "")
        elif status >= 400:
            self.challenge = headers.get("www-authenticate") or ""
            self.retry_after = _seconds(headers.get("retry-after"))
            self._body = []
        elif self.id is None:
            pass  # any success will do for a notification, whatever its body (MCP 2025-11-25, transports)
        elif status != 200:
            self._failure = BadReply(f"HTTP status {status} in reply to a request")
        elif kind == EVENTS:
            self._events = SseSplitter(self._transport.source.max_message)
        elif kind in (JSON, ""):
            self._body = []
        else:
            self._failure = BadReply(f"the reply is {kind!r}, neither JSON nor an event stream")
        if self.method == "initialize" and status == 200:
            self._transport.session_id = headers.get("mcp-session-id")

    def body(self, data: bytes) -> None:
        if self._events is not None:
            try:
                for event in self._events.feed(data):
                    if event.data:  # none: a priming event, or a keep-alive
                        self._transport.feed(event.data, self)
            except FrameTooLarge as exc:
                self._give_up(BadReply(f"{exc}"))
        elif self._body is not None:
            self._size += len(data)
            if self._status < 400 or self._size <= ERROR_TEXT:
                self._body.append(data)

    def end(self) -> None:
        transport = self._transport
        body = b"".join(self._body or ())
        if self._failure is not None:
            transport.fail(self, self._failure)
        elif self._status >= 400:
            self._failed(body)
        elif 300 <= self._status < 400:
            self._follow()
        elif self.id is None:
            transport.forget(self)
        else:
            if self._body is not None and body:
                transport.feed(body, self)
            # Whoever still waits now waits in vain; nobody does after a reply.
            reason = "the stream ended without a response" if self._events else "the body held no response"
            transport.fail(self, ConnectionLost(reason))

    def failed(self, error: CallError) -> None:
        self._transport.fail(self, error)

    def _failed(self, body: bytes) -> None:
        transport, status = self._transport, self._status
        text = body[:ERROR_SHOWN].decode(errors="replace").strip()
        if status == 404 and transport._modern is False and transport.session_id is not None:
            # The session is gone (MCP 2025-11-25, transports/session management); nothing of this ran.
            transport.fail(self, ConnectionLost(STALE_SESSION, "no"))
            transport.lose(STALE_SESSION)
        elif status in (429, 503):
            transport.fail(self, Refused(text, status=status, retry_after=self.retry_after))
        else:
            if self.id is not None and status not in (401, 403, 407) and body.lstrip().startswith(b"{"):
                transport.feed(body, self)
            transport.fail(self, HttpFailed(status, text, challenge=self.challenge))

    def _redirect(self, status: int, location: str) -> None:
        here = urljoin(self._transport.source.url, self.target)
        there = urljoin(here, location)
        if status not in (307, 308) or not location:
            self._failure = HttpFailed(status, f"redirects to {there!r}, which would lose the message; put it into `url`")
        elif urlsplit(there)[:2] != urlsplit(here)[:2]:
            self._failure = HttpFailed(status, f"redirects to another origin, {there!r}; put it into `url` if you trust it")
        elif not self._transport.source.redirects or self._redirects >= MAX_REDIRECTS:
            self._failure = HttpFailed(status, f"redirects to {there!r}, and it is not followed any further")
        else:
            parts = urlsplit(there)
            self.target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def _follow(self) -> None:
        self._redirects += 1
        if self._status == 308:
            self._transport.target = self.target
        try:
            self.start()
        except CallError as exc:
            self._transport.fail(self, exc)

    def _give_up(self, error: CallError) -> None:
        self._transport.fail(self, error)
        self.close()


class _Standing:
    """The stream for what belongs to no request. See `http1_client.ResponseSink`."""

    def __init__(self, transport: HttpTransport, ended: trio.Event) -> None:
        self.refused = False
        self.useful = False
        self.retry: float | None = None
        self._transport = transport
        self._ended = ended
        self._events = SseSplitter(transport.source.max_message)

    def head(self, status: int, headers: Headers) -> None:
        kind = (headers.get("content-type") or "").partition(";")[0].strip().lower()
        # 405: it offers none; asking again would only be noise.
        self.refused = status != 200 or kind != EVENTS
        if status == 404 and self._transport.session_id is not None:
            self._transport.lose(STALE_SESSION)
        if self.refused:
            self._ended.set()

    def body(self, data: bytes) -> None:
        if self.refused:
            return
        try:
            for event in self._events.feed(data):
                self.useful = True
                if event.retry is not None:
                    self.retry = min(event.retry / 1000, STREAM_BACKOFF[1])
                if event.data and self._transport._receiver is not None:
                    self._transport._receiver.feed((event.data,))
        except FrameTooLarge:
            self._transport._counters.add("http.event_too_large")
            self._ended.set()

    def end(self) -> None:
        self._ended.set()

    def failed(self, _error: CallError) -> None:
        self._ended.set()


class _Ignored:
    """Takes a response that only has to be over."""

    def __init__(self, done: trio.Event) -> None:
        self._done = done

    def head(self, status: int, headers: Headers) -> None:
        self._done.set()

    def body(self, data: bytes) -> None:
        pass

    def end(self) -> None:
        self._done.set()

    def failed(self, _error: CallError) -> None:
        self._done.set()


def _seconds(text: str | None) -> float | None:
    """`Retry-After` in seconds; a date counts as none."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


@asynccontextmanager
async def open_http(
    source: Http, *, name: str, counters: Counters, verify: bool | ssl.SSLContext = True
) -> AsyncGenerator[HttpTransport, None]:
    """The endpoint of `source` for as long as the block runs. Nothing is connected before the first message."""
    limits = PoolLimits(body=source.max_message, connect=source.connect)
    async with open_pool(source.url, limits=limits, verify=verify, counters=counters) as pool:
        transport = HttpTransport(pool, source, name, counters)
        try:
            yield transport
        finally:
            await transport.farewell()
