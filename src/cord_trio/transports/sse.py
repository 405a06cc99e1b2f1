"""MCP over HTTP+SSE (2024-11-05), client side: one event stream brings everything, each message is a POST.

The stream is the session: when it ends, all that was said on it is forgotten, and a new one begins with a
new handshake. An answer to a POST says only whether the message was taken.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin

import trio

from cord_trio.errors import CallError, ConnectFailed, ConnectionLost, Overloaded
from cord_trio.protocol.framing import FrameTooLarge, SseSplitter
from cord_trio.transports import Transport
from cord_trio.transports.http1_client import PoolLimits, open_pool
from cord_trio.transports.http1_wire import parse_origin
from cord_trio.transports.http_rules import ERROR_SHOWN, connect_refused, target_of
from cord_trio.transports.sse_sinks import EVENTS, Message, Stream

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Sequence

    from cord_trio.config import Http
    from cord_trio.counters import Counters
    from cord_trio.protocol.framing import SseEvent
    from cord_trio.protocol.jsonrpc import Id
    from cord_trio.transports import Receiver
    from cord_trio.transports.http1_client import Exchange, Pool

log = logging.getLogger("cord_trio.transports")

EARLY: Final = 64
"""Messages that a server may send before anybody listens."""

SETTLE: Final = 0.2
"""Seconds after which a request is taken to have been read, though its POST is not answered yet."""

_FIRST: Final = "notifications/initialized"
"""What must not be overtaken on another connection: servers refuse everything before it."""


class SseTransport(Transport):
    """One event stream, and the endpoint that it named.

    Attributes:
        url: of the stream, as configured.
        target: path and query that messages go to; "" before the server has said.
        redirects: whether redirects within the origin are followed.
        name: of the source.

    """

    def __init__(self, pool: Pool, source: Http, name: str, counters: Counters) -> None:
        self.url = source.url
        self.target = ""
        self.redirects = source.redirects
        self._pool = pool
        self.name = name
        self._counters = counters
        self._splitter = SseSplitter(source.max_message)
        self._exchange: Exchange | None = None
        self._settled = trio.Event()  # the endpoint is known, or there is none
        self._failure: ConnectFailed | None = None
        self._over = trio.Event()
        self._loss: str | None = None
        self._receiver: Receiver | None = None
        self._nursery: trio.Nursery | None = None
        self._early: list[bytes] = []
        self._posts: dict[Id, Message] = {}
        self._unread: Message | None = None
        self._first: Message | None = None
        self._queue: deque[Message] = deque()

    # Transport

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
        unread, self._unread = self._unread, None
        if unread is not None and method == "notifications/cancelled" and self._nursery is not None:
            self._nursery.start_soon(self._cancel_later, unread, message)
            return
        post = Message(self, id, message)
        if self._first is not None:
            if len(self._queue) >= self.limits.outbox_messages:
                self._counters.add("sse.outbox_full")
                raise Overloaded("bounds.outbox_messages", self.limits.outbox_messages)
            self._queue.append(post)
        else:
            post.start(self._pool, self.target)
            if method == _FIRST:
                self._first = post
        if id is not None:
            self._posts[id] = post

    def withdraw(self, id: Id) -> bool:
        post = self._posts.pop(id, None)
        if post is None:
            return False  # it was taken, and may be running
        if post in self._queue:
            self._queue.remove(post)
            return True
        if not post.written:
            post.close()
            return True
        # On its other connection the word that comes next could overtake the request, and be for nothing.
        self._unread = post
        return False

    def written(self, id: Id) -> bool:
        post = self._posts.get(id)
        return post is None or post.written

    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery, self._receiver = nursery, receiver
            task_status.started()
            early, self._early = self._early, []
            if early:
                receiver.feed(early)
            await self._over.wait()
            nursery.cancel_scope.cancel("the event stream has ended")
        receiver.lost(ConnectionLost(self._loss or "closed"))

    # Opening and closing

    async def connect(self, patience: float) -> None:
        """Open the stream and wait for its first event. Raises `ConnectFailed`."""
        with trio.move_on_after(patience):
            stream = Stream(self, target_of(self.url))
            self.ask(stream)
            await self._settled.wait()
        if not self._settled.is_set():
            opened = "no endpoint event" if self._exchange and self._exchange.written else "no answer"
            raise ConnectFailed(self.name, "handshake", f"{opened} from the event stream within {patience:g} s")
        if self._failure is not None:
            raise self._failure

    def ask(self, stream: Stream) -> None:
        """Ask for the stream."""
        try:
            self._exchange = self._pool.request("GET", stream.target, [("Accept", EVENTS)], b"", stream)
        except CallError as exc:
            self.fail(ConnectFailed(self.name, "connect", str(exc)))

    def close(self) -> None:
        """Nothing is heard or said any more."""
        self.lose("closed on this side")
        if self._exchange is not None:
            self._exchange.close()

    # What the sinks tell

    def take(self, data: bytes) -> None:
        """More of the stream came."""
        try:
            events = self._splitter.feed(data)
        except FrameTooLarge as exc:
            self._counters.add("sse.message_too_long")
            self._feed(list(exc.before))
            self.lose(str(exc))
            return
        self._feed([event.data for event in events if self._is_message(event)])

    def fail(self, failure: ConnectFailed) -> None:
        """There will be no stream."""
        if not self._settled.is_set():
            self._failure = failure
            self._settled.set()
        self.lose(failure.reason)

    def refuse(self, status: int, text: str) -> None:
        """The server offers no stream."""
        what = f"HTTP status {status} in reply to GET" + (f": {text}" if text else "")
        self.fail(connect_refused(self.name, status, what, "no event stream of MCP is there"))

    def lose(self, reason: str) -> None:
        """The stream is over, and with it the session."""
        if self._loss is not None:
            return
        self._loss = reason
        if not self._settled.is_set():
            self._failure = ConnectFailed(self.name, "handshake", reason)
            self._settled.set()
        for post in [*self._posts.values(), *self._queue]:
            post.close()
        self._queue.clear()
        self._over.set()

    def taken(self, post: Message, error: CallError | None) -> None:
        """A message was taken, or was not."""
        if post.id is not None and self._posts.get(post.id) is post:
            del self._posts[post.id]
            if error is not None and self._receiver is not None:
                self._receiver.fail(post.id, error)
        elif error is not None:
            self._counters.add("http.message_failed")
            log.debug("message failed source=%s error=%s", self.name, error)
        if self._first is post:
            self._first = None
            while self._queue:
                queued = self._queue.popleft()
                try:
                    queued.start(self._pool, self.target)
                except CallError as exc:
                    self.taken(queued, exc)

    def _is_message(self, event: SseEvent) -> bool:
        """Whether an event carries a message; the first one says where to send ours."""
        if event.event != "endpoint":
            return event.event == "message" and bool(event.data)
        if not self.target:
            self._settle(event.data.decode(errors="replace").strip())
        return False

    def _settle(self, said: str) -> None:
        try:
            there = urljoin(self.url, said)
            same = parse_origin(there) == parse_origin(self.url)
        except ValueError:
            self.fail(ConnectFailed(self.name, "handshake", f"its endpoint {said[:ERROR_SHOWN]!r} is no URL of HTTP"))
            return
        if not same:
            # Whoever could choose it freely would be sent our headers, and with them our credentials.
            shown = there.partition("?")[0][:ERROR_SHOWN]
            self.fail(ConnectFailed(self.name, "handshake", f"its endpoint is of another origin: {shown!r}"))
            return
        self.target = target_of(there)
        self._settled.set()

    def _feed(self, messages: list[bytes]) -> None:
        if not messages or self._loss is not None:
            return
        if self._receiver is not None:
            self._receiver.feed(messages)
        else:
            self._early += messages
            if len(self._early) > EARLY:
                self.lose(f"more than {EARLY} messages before the handshake")

    async def _cancel_later(self, post: Message, message: bytes) -> None:
        """Tell the server of a withdrawn request once it has surely read it."""
        with trio.move_on_after(SETTLE):
            await post.answered.wait()
        try:
            self.send(message)
        except CallError as exc:
            self._counters.add("http.message_failed")
            log.debug("cancel unsent source=%s error=%s", self.name, exc)


@asynccontextmanager
async def open_sse(
    source: Http, *, name: str, counters: Counters, verify: bool | ssl.SSLContext = True
) -> AsyncGenerator[SseTransport, None]:
    """The session of `source` for as long as the block runs. The block's own errors leave as raised.

    Raises:
        ConnectFailed: it offers no event stream, or names no endpoint on it.

    """
    limits = PoolLimits(body=source.max_message, connect=source.connect)
    headers = list(source.headers.items())
    async with open_pool(source.url, limits=limits, headers=headers, verify=verify, counters=counters) as pool:
        transport = SseTransport(pool, source, name, counters)
        try:
            await transport.connect(source.connect)
            yield transport
        finally:
            transport.close()
