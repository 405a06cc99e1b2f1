"""MCP Streamable HTTP, client side, in both eras: each message is a POST, each reply JSON or an event stream.

The eras share the carrier and differ in what it means: a modern request is withdrawn by closing its
stream; a legacy one goes on without us, so its server is told. A legacy server may keep a session and
offer one standing stream for what belongs to no request.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.errors import BadReply, CallError, ConnectionLost
from cord_trio.protocol import eras
from cord_trio.protocol.headers import encode_header_value
from cord_trio.transports import Transport
from cord_trio.transports.http1_client import PoolLimits, open_pool
from cord_trio.transports.http_rules import MAX_REDIRECTS, retry_pause, target_of
from cord_trio.transports.http_sinks import EVENTS, JSON, Ignored, Post, Standing

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Sequence

    from cord_trio.config import Http
    from cord_trio.counters import Counters
    from cord_trio.protocol.jsonrpc import Id
    from cord_trio.transports import Receiver, Seat
    from cord_trio.transports.http1_client import Exchange, Pool

log = logging.getLogger("cord_trio.transports.http")

LINGER: Final = 5.0
"""Seconds that a response stream may stay open after its reply, before its connection is closed."""

SETTLE: Final = 1.0
"""Seconds after which a legacy request is taken to have been read, though no answer has begun."""

HELD: Final = 16
"""Connections kept at one time only to see whether a withdrawn legacy request was read; the others just wait."""

STREAM_BACKOFF: Final = (1.0, 30.0)
"""Seconds to wait before the standing stream is opened again: at first, and at most."""

MAX_HEADS: Final = 1_000
"""Heads of requests that are kept, one for each name that is called."""

PROBE: Final = "server/discover"
"""What asks a server for the modern era, before it is known to speak it."""

FAREWELL: Final = 1.0
"""Seconds for ending a legacy session at its server, as far as it lets us."""


class HttpTransport(Transport):
    """One server's endpoint. A request's connection is its own while it runs.

    Attributes:
        url: as configured.
        modern: the era; None before the handshake has told.
        redirects: whether redirects within the origin are followed.
        max_message: bytes of one message.
        target: path and query that requests go to.
        posts: the requests whose answers are not over, by their ids.

    """

    def __init__(self, pool: Pool, source: Http, name: str, counters: Counters) -> None:
        self.url = source.url
        self.modern: bool | None = None
        self.redirects = source.redirects
        self.max_message = source.max_message
        self.request = pool.request
        self.posts: dict[Id, Post] = {}
        self._pool = pool
        self.target = target_of(source.url)
        self._session_id: str | None = None
        self._heads: dict[tuple[str, str | None] | None, bytes] = {}
        self._name = name
        self._counters = counters
        self._receiver: Receiver | None = None
        self._nursery: trio.Nursery | None = None
        self._revision = eras.LATEST_MODERN
        self._answered: dict[Post, float] = {}
        self._unread: Post | None = None
        self._held = 0
        self._first: Post | None = None
        self._greeted = trio.Event()
        self._listening = trio.Event()
        self._loss: str | None = None
        self._lost = trio.Event()

    def speak(self, revision: str, *, modern: bool) -> None:
        self._revision = revision
        self.modern = modern
        self._heads.clear()
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
        self._send(message, id, method, name, headers, attended=False)

    def send_seated(
        self, message: bytes, id: Id, method: str, name: str | None, headers: Sequence[tuple[str, str]]
    ) -> Seat | None:
        # What opens a session says so in its head, of which nothing is told to whoever reads by himself.
        post = self._send(message, id, method, name, headers, attended=method != "initialize")
        return post if post is not None and post.fd >= 0 else None

    def _send(
        self,
        message: bytes,
        id: Id | None,
        method: str,
        name: str | None,
        headers: Sequence[tuple[str, str]],
        *,
        attended: bool,
    ) -> Post | None:
        if self._loss is not None:
            raise ConnectionLost(self._loss, "no")
        if self._unread is not None:
            unread, self._unread = self._unread, None
            if method == "notifications/cancelled" and self._nursery is not None:
                self._held += 1
                self._nursery.start_soon(self._cancel_later, unread, message)
                return None
        # The head of a request is kept with what it says of it, since making it costs as much as the exchange.
        key = (method, name) if self.modern or (self.modern is None and method == PROBE) else None
        head = self._heads.get(key)
        if head is None:
            head = self._prepare(key)
        if headers and key is not None:
            head = self._pool.more(head, headers)
        post = Post(self._pool, self, id, method, message, name, headers)
        post.attended = attended
        if self.modern is False:
            post.since = trio.current_time()  # only there must it be known
        if id is not None:
            self.posts[id] = post
        elif method == "notifications/initialized":
            self._first, self.initialized = post, trio.Event()
        try:
            self._pool.begin(post, head, message)
        except CallError:
            self._forget(post)
            raise
        return post

    def again(self, post: Post, target: str, message: bytes) -> Exchange:
        key = (post.method, post.name) if self.modern or (self.modern is None and post.method == PROBE) else None
        headers = self._own_headers(key)
        if key is not None:
            headers += post.headers
        return self._pool.request("POST", target, headers, message, post)

    def _prepare(self, key: tuple[str, str | None] | None) -> bytes:
        """The head of requests of this method and name; None stands for all of the legacy era."""
        head = self._pool.prepare("POST", self.target, self._own_headers(key))
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[key] = head
        return head

    def _own_headers(self, key: tuple[str, str | None] | None) -> list[tuple[str, str]]:
        headers = [("Content-Type", JSON), *self._headers()]
        if key is not None:
            method, name = key
            headers.append(("MCP-Protocol-Version", self._revision))
            if method:
                headers.append(("Mcp-Method", method))
            if name is not None:
                headers.append(("Mcp-Name", encode_header_value(name)))
        return headers

    def move(self, target: str, /) -> None:
        self.target = target
        self._heads.clear()

    @property
    def session_id(self) -> str | None:
        """Of a legacy server that keeps one."""
        return self._session_id

    @session_id.setter
    def session_id(self, session_id: str | None) -> None:
        self._session_id = session_id
        self._heads.clear()

    def withdraw(self, id: Id) -> bool:
        post = self.posts.get(id)
        if post is None:
            return True
        self._forget(post)
        # Closing the stream is how a modern request is cancelled (MCP 2026-07-28, cancellation); in the
        # legacy era it is not, so there the server must be told.
        done = not post.written or self.modern is not False
        if done or post.answering or post.since + SETTLE <= trio.current_time():
            post.close()
        else:
            # On its other connection the word that comes next could overtake the request, and be for nothing.
            post.mute()
            if self._held >= HELD:
                post.close()
            self._unread = post
        return done

    def written(self, id: Id) -> bool:
        post = self.posts.get(id)
        return post is None or post.written

    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._receiver = receiver
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            nursery.start_soon(self._close_lingering)
            nursery.start_soon(self._hold_stream)
            await self._lost.wait()
            nursery.cancel_scope.cancel("the session is lost")

    async def wait_listening(self) -> None:
        await self._listening.wait()

    async def farewell(self, pool: Pool) -> None:
        """End a legacy session at its server (MCP 2025-11-25, transports/session management)."""
        done = trio.Event()
        try:
            pool.request("DELETE", self.target, self._headers(), b"", Ignored(done))
        except CallError:
            return
        await done.wait()

    @property
    def owes_farewell(self) -> bool:
        """Whether the server keeps a session for us."""
        return self.session_id is not None and self._loss is None

    def _headers(self) -> list[tuple[str, str]]:
        """The headers of every request of a legacy session; those of other hops are never among them."""
        found = []
        if self.modern is False:
            if eras.ERAS[self._revision].version_header:
                found.append(("MCP-Protocol-Version", self._revision))
            if self.session_id is not None:
                found.append(("Mcp-Session-Id", self.session_id))
        return found

    # What the sinks tell. See `http_sinks.Endpoint`.

    def feed(self, messages: Sequence[bytes], post: Post | None, /) -> None:
        receiver = self._receiver
        if receiver is None or not messages:
            return
        if post is None:
            receiver.feed(messages)
            return
        receiver.feed(messages, post.id)
        id = post.id
        if id is not None and not receiver.waits(id) and self.posts.get(id) is post:
            self._answered[post] = trio.current_time()

    def answered(self, post: Post, message: bytes, /) -> None:
        receiver, id = self._receiver, post.id
        if receiver is None or id is None:
            return
        receiver.feed((message,), id)
        if self.posts.get(id) is post:
            del self.posts[id]
        if receiver.waits(id):
            receiver.fail(id, BadReply("the body held no response"))

    def linger(self, post: Post, /) -> None:
        if self.posts.get(post.id) is post:  # type: ignore[arg-type]  # only requests are read so
            self._answered[post] = trio.current_time()

    def waits(self, post: Post, /) -> bool:
        return post.id is not None and self._receiver is not None and self._receiver.waits(post.id)

    def over(self, post: Post, error: CallError | None, /) -> None:
        self._forget(post)
        if post is self._first and self.initialized is not None:
            self.initialized.set()
            self._first = self.initialized = None
        if error is None:
            return
        if post.id is not None and self._receiver is not None:
            self._receiver.fail(post.id, error)
        else:
            self._counters.add("http.message_failed")
            log.debug("message failed source=%s method=%s error=%s", self._name, post.method, error)

    def resume(self, post: Post, seconds: float, /) -> None:
        assert self._nursery is not None  # what comes back comes after `run` has begun
        self._counters.add("http.resumed")
        self._nursery.start_soon(self._resume, post, seconds)

    def lose(self, reason: str, /) -> None:
        if self._loss is None and self._receiver is not None:
            self._loss = reason
            self._receiver.lost(ConnectionLost(reason, "unknown"))
            for post in list(self.posts.values()):
                self._forget(post)
                post.close()
            self._lost.set()

    def _forget(self, post: Post) -> None:
        self._answered.pop(post, None)
        if post.id is not None and self.posts.get(post.id) is post:
            del self.posts[post.id]

    def listening(self, *, gap: bool) -> None:
        self._listening.set()
        if gap and self.on_listening is not None:
            self.on_listening()

    # What takes time

    async def _resume(self, post: Post, seconds: float) -> None:
        await trio.sleep(seconds)
        if post.id is not None and self.posts.get(post.id) is post:
            post.resume(self._headers())

    async def _cancel_later(self, post: Post, message: bytes) -> None:
        """Tell the server of a withdrawn request once it has surely read it."""
        try:
            with trio.move_on_at(post.since + SETTLE):
                await post.wait_answering()
        finally:
            self._held -= 1
            post.close()
        try:
            self.send(message, method="notifications/cancelled")
        except CallError as exc:
            self._counters.add("http.message_failed")
            log.debug("cancel unsent source=%s error=%s", self._name, exc)

    async def _close_lingering(self) -> None:
        """Close response streams whose reply has come and which their server keeps open."""
        while True:
            await trio.sleep(LINGER)
            overdue = trio.current_time() - LINGER
            for post in [post for post, since in self._answered.items() if since <= overdue]:
                self._counters.add("http.lingering_closed")
                self._forget(post)
                post.close()

    async def _hold_stream(self) -> None:
        """Hold the standing stream of a legacy server that offers one (MCP 2025-11-25, transports)."""
        await self._greeted.wait()
        try:
            if not self.modern:
                await self._hold_streams()
        finally:
            self._listening.set()

    async def _hold_streams(self) -> None:
        """Open it, and again whenever it ends, until the server says that there is none."""
        pause, longest = STREAM_BACKOFF
        event_id: str | None = None
        opened = False
        target = self.target
        redirects = 0
        while True:
            ended = trio.Event()
            stream = Standing(self, target, ended, again=opened, resumes=bool(event_id))
            headers = self._headers()
            if event_id:
                headers.append(("Last-Event-ID", event_id))
            try:
                exchange: Exchange = self.request("GET", target, headers, b"", stream)
            except CallError as exc:
                log.debug("no standing stream source=%s error=%s", self._name, exc)
                return
            try:
                await ended.wait()
            finally:
                exchange.close()
            if stream.refused or redirects > MAX_REDIRECTS:
                return
            if stream.target != target:
                target = stream.target
                redirects += 1
                continue
            self._listening.set()
            opened = opened or stream.opened
            event_id = stream.event_id or event_id
            pause = STREAM_BACKOFF[0] if stream.useful else min(pause * 2, longest)
            await trio.sleep(retry_pause(stream.retry, pause))


@asynccontextmanager
async def open_http(
    source: Http, *, name: str, counters: Counters, verify: bool | ssl.SSLContext = True
) -> AsyncGenerator[HttpTransport, None]:
    """The endpoint of `source` for as long as the block runs. Nothing is connected before the first message."""
    limits = PoolLimits(body=source.max_message, connect=source.connect)
    constant = [("Accept", f"{JSON}, {EVENTS}"), *source.headers.items()]
    make_pool = partial(open_pool, source.url, limits=limits, headers=constant, verify=verify, counters=counters)
    transport: HttpTransport | None = None
    try:
        async with make_pool() as pool:
            transport = HttpTransport(pool, source, name, counters)
            yield transport
    finally:
        if transport is not None and transport.owes_farewell:
            # Through a pool of its own: whoever ends the block has most likely cancelled the tasks of the other.
            with trio.move_on_after(FAREWELL, shield=True):
                async with make_pool() as pool:
                    await transport.farewell(pool)
