"""What comes back on an MCP endpoint: the answer to one POST, and the standing stream of a legacy server.

Each is a `http1_client.ResponseSink`: told synchronously, it tells the endpoint in turn. Whatever a server
does, the request behind a POST ends: by its reply, or by an error as soon as no reply can come any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

from cord_trio.errors import BadReply, CallError, ConnectionLost, HttpFailed, Refused
from cord_trio.protocol.framing import BOM, FrameTooLarge, SseSplitter
from cord_trio.transports.http1_exchange import Exchange
from cord_trio.transports.http_rules import (
    ERROR_SHOWN,
    MAX_REDIRECTS,
    follow,
    may_pass,
    media_type,
    parse_seconds,
    retry_pause,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cord_trio.protocol.framing import SseEvent
    from cord_trio.protocol.jsonrpc import Id
    from cord_trio.transports.http1 import Headers
    from cord_trio.transports.http1_client import Pool, ResponseSink

ERROR_TEXT: Final = 64 * 1024
"""Bytes read of the body of a failure."""

MAX_RESUMES: Final = 5
"""Attempts to take up a broken stream again, one after the other without any event."""

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
NO_RESPONSE: Final = "the body held no response"
UNANSWERED: Final = "the stream ended without a response"
STALE_SESSION: Final = "the server no longer knows the session (404)"


class Endpoint(Protocol):
    """What a sink asks of its transport, and tells it. Nothing here blocks; what raises says so."""

    url: str
    target: str
    session_id: str | None
    redirects: bool
    max_message: int

    posts: dict[Id, Post]

    @property
    def modern(self) -> bool | None:
        """The era; None before the handshake has told."""

    def move(self, target: str, /) -> None:
        """From here on requests go to `target`."""

    def request(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes, sink: ResponseSink
    ) -> Exchange: ...

    def again(self, post: Post, target: str, message: bytes, /) -> Exchange:
        """Send it to another target. Raises `CallError`."""

    def feed(self, messages: Sequence[bytes], post: Post | None, /) -> None:
        """Messages came: on the response of `post`, or on the standing stream."""

    def waits(self, post: Post, /) -> bool:
        """Whether the request of `post` still awaits its reply."""

    def over(self, post: Post, error: CallError | None, /) -> None:
        """Nothing more comes for `post`; `error` is for whoever still waits."""

    def answered(self, post: Post, message: bytes, /) -> None:
        """`message` is all that comes for `post`."""

    def linger(self, post: Post, /) -> None:
        """A message came for `post`, and nothing more may come, but its stream goes on."""

    def resume(self, post: Post, seconds: float, /) -> None:
        """Call `post.resume` in so many seconds, unless the request is withdrawn before."""

    def listening(self, *, gap: bool) -> None:
        """The standing stream is open; `gap`: what was to be said on it before is lost."""

    def lose(self, reason: str, /) -> None:
        """The legacy session is gone, and with it everything that waits."""


class Post(Exchange):
    """One message on its way, and what comes back. It is the first exchange that it needs, and has others if it must.

    One value for both spares a quarter of what it takes to send. It is a `transports.Seat`, too.

    Attributes:
        id: of a request; None for notifications and replies.
        method: "" for replies.
        name: what it is about, for `Mcp-Name`.
        headers: its further headers.
        answering: whether an answer has begun, so that the server has read it.

    """

    alone = True
    answering = False
    _muted: trio.Event | None = None
    _later: Exchange | None = None
    _redirects = 0
    _resumed = False
    _attempts = 0
    _event_id: str | None = None
    _retry: int | None = None
    _status = 0
    _failure: CallError | None = None
    _events: SseSplitter | None = None
    _body: list[bytes] | None = None
    _size = 0
    _retry_after: float | None = None
    _challenge = ""
    _given = False

    def __init__(
        self,
        pool: Pool,
        endpoint: Endpoint,
        id: Id | None,
        method: str,
        message: bytes,
        name: str | None,
        headers: Sequence[tuple[str, str]],
    ) -> None:
        self._pool = pool  # what Exchange.__init__ does, without its call
        self.id = id
        self.method = method
        self.name = name
        self.headers = headers
        self._endpoint = endpoint
        self._message = message
        self._target = endpoint.target

    def _reset(self, status: int) -> None:
        self._status = status
        self._failure = None
        self._events = None
        self._body = None
        self._size = 0
        self._retry_after = None
        self._challenge = ""

    @property
    def sink(self) -> ResponseSink:  # type: ignore[override]  # a field would be a cycle for the collector
        return self

    @property
    def written(self) -> bool:
        """Whether any byte of the message may have reached the server."""
        return self._resumed or (super().written if self._later is None else self._later.written)

    def pull(self) -> bytes | None:
        message = None if self.connection is None else self.connection.pull()
        if message is not None:
            self.answering = self._given = True
            if self.over:
                self._endpoint.posts.pop(self.id, None)  # type: ignore[arg-type]  # only requests are read so
        return message

    def leave(self) -> None:
        if not self.over:
            super().leave()
            if self._given:
                self._endpoint.linger(self)
        elif self._given and self._endpoint.waits(self):  # for what was pulled was not the reply
            self._endpoint.over(self, ConnectionLost(UNANSWERED) if self.streamed else BadReply(NO_RESPONSE))

    def resume(self, headers: Sequence[tuple[str, str]]) -> None:
        """Ask for the rest of the stream (MCP 2025-11-25, transports, resumability)."""
        wanted = [*headers, ("Last-Event-ID", self._event_id or "")]
        try:
            self._later = self._endpoint.request("GET", self._target, wanted, b"", self)
        except CallError:
            self._endpoint.over(self, ConnectionLost(UNANSWERED))

    def close(self) -> None:
        """Hear no more of it."""
        if self._later is None:
            super().close()
        else:
            self._later.close()

    def mute(self) -> None:
        """Tell nobody of what comes back; only watch whether it does."""
        self._muted = trio.Event()

    async def wait_answering(self) -> None:
        """Return once an answer to the muted message has begun, or none can come."""
        assert self._muted is not None
        await self._muted.wait()

    # What the pool tells

    def whole(  # type: ignore[mutable-override]  # nobody sets one on a post
        self, status: int, headers: Headers, body: bytes
    ) -> None:
        """`head`, `body` and `end` of an answer that came at once. See `http1_client.Pool.start`."""
        if self._muted is not None:
            self.answering = True
            self._muted.set()
        elif (
            status == 200
            and headers.index.get(b"content-type") == b"application/json"
            and body
            and self.id is not None
            and self.method != "initialize"
        ):
            self.answering = True
            self._message = b""
            self._endpoint.answered(self, body)
        else:
            self.head(status, headers)
            self.body(body)
            self.end()

    def head(self, status: int, headers: Headers) -> None:
        self.answering = True
        if self._muted is not None:
            self._muted.set()
            self.close()
            return
        self._reset(status)
        kind = media_type(headers)
        if self._resumed:
            if status == 200 and kind == EVENTS:
                self._events = SseSplitter(self._endpoint.max_message)
            else:
                self._failure = ConnectionLost(
                    f"the stream ended without a response, and resuming it met HTTP {status}"
                )
            return
        if 300 <= status < 400:
            self._redirect(status, headers.get("location") or "")
            return
        self._message = b""  # a stream may live for days
        if status >= 400:
            self._challenge = headers.get("www-authenticate") or ""
            self._retry_after = parse_seconds(headers.get("retry-after"), headers.get("date"))
            self._body = []
        elif self.id is None:
            pass  # any success will do for a notification, whatever its body (MCP 2025-11-25, transports)
        elif status != 200:
            self._failure = BadReply(f"HTTP status {status} in reply to a request")
        elif kind == EVENTS:
            self._events = SseSplitter(self._endpoint.max_message)
        elif kind in (JSON, ""):
            self._body = []
        else:
            self._failure = BadReply(f"the reply is {kind!r}, neither JSON nor an event stream")
        if self.method == "initialize" and status == 200:
            self._endpoint.session_id = headers.get("mcp-session-id")

    def body(self, data: bytes) -> None:
        if self._events is not None:
            try:
                events = self._events.feed(data)
            except FrameTooLarge as exc:
                self._endpoint.feed(exc.before, self)
                self.close()
                self._endpoint.over(self, BadReply(str(exc)))
                return
            messages = [event.data for event in events if self._noted(event)]
            if self._given and messages:  # the first of all was pulled
                self._given = False
                del messages[0]
            self._endpoint.feed(messages, self)
        elif self._body is not None:
            self._size += len(data)
            if self._status < 400 or self._size <= ERROR_TEXT:
                self._body.append(data)

    def end(self) -> None:
        endpoint = self._endpoint
        if self._resumed and may_pass(self._status):
            self._stream_ended(None)
        elif self._failure is not None:
            endpoint.over(self, self._failure)
        elif self._status >= 400:
            self._failed(b"".join(self._body or ()))
        elif 300 <= self._status < 400:
            self._follow()
        elif self._events is not None:
            self._stream_ended(None)
        elif self._body is not None:
            if self._body:
                endpoint.feed([b"".join(self._body).removeprefix(BOM)], self)
            endpoint.over(self, BadReply(NO_RESPONSE) if endpoint.waits(self) else None)
        else:
            endpoint.over(self, None)

    def failed(self, error: CallError) -> None:
        if self._muted is not None:
            self._muted.set()
        elif isinstance(error, ConnectionLost) and (self._resumed or self._events is not None):
            self._stream_ended(error)
        else:
            self._endpoint.over(self, error)

    # What it means

    def _noted(self, event: SseEvent) -> bool:
        """Whether an event carries a message; what it says of the stream is kept."""
        self._attempts = 0
        if event.id is not None:
            # An id that no header can carry cannot be resumed from.
            self._event_id = event.id if event.id.isascii() and event.id.isprintable() else None
        if event.retry is not None:
            self._retry = event.retry
        return bool(event.data)  # none: a priming event, or a keep-alive

    def _stream_ended(self, error: ConnectionLost | None) -> None:
        """Take a legacy stream up again where its server lets us; else whoever waits waits in vain."""
        endpoint = self._endpoint
        if not endpoint.waits(self):
            endpoint.over(self, None)
        elif self._event_id and endpoint.modern is False and self._attempts < MAX_RESUMES:
            self._resumed = True
            self._attempts += 1
            endpoint.resume(self, retry_pause(self._retry, 2.0 ** (self._attempts - 1)))
        else:
            endpoint.over(self, error or ConnectionLost(UNANSWERED))

    def _failed(self, body: bytes) -> None:
        endpoint, status = self._endpoint, self._status
        text = body.decode(errors="replace").strip()[:ERROR_SHOWN]
        if status == 404 and endpoint.modern is False and endpoint.session_id is not None:
            # The session is gone (MCP 2025-11-25, transports/session management); nothing of this ran.
            endpoint.over(self, ConnectionLost(STALE_SESSION, "no"))
            endpoint.lose(STALE_SESSION)
        elif status == 429 or (status == 503 and self._retry_after is not None):
            # A 503 without that header is what proxies say when the server broke off, perhaps while running it.
            endpoint.over(self, Refused(text, status=status, retry_after=self._retry_after))
        else:
            if status not in (401, 403, 407) and body.lstrip().startswith(b"{"):
                endpoint.feed([body], self)
            endpoint.over(self, HttpFailed(status, text, challenge=self._challenge))

    def _redirect(self, status: int, location: str) -> None:
        found = follow(self._endpoint.url, self._target, status, location)
        if isinstance(found, HttpFailed):
            self._failure = found
        elif not self._endpoint.redirects or self._redirects >= MAX_REDIRECTS:
            self._failure = HttpFailed(status, f"redirects to {found!r}, and it is not followed any further")
        else:
            self._target = found

    def _follow(self) -> None:
        self._redirects += 1
        if self._status == 308:
            self._endpoint.move(self._target)
        try:
            self._later = self._endpoint.again(self, self._target, self._message)
        except CallError as exc:
            self._endpoint.over(self, exc)


class Standing:
    """The stream for what belongs to no request, once.

    Attributes:
        refused: the server offers none; asking again would only be noise.
        opened: the server offers one.
        useful: something came on it.
        target: where it is, or is said to be.
        retry: milliseconds after which it wants to be asked again.
        event_id: of the last event that had one.

    """

    def __init__(
        self, endpoint: Endpoint, target: str, ended: trio.Event, *, again: bool, resumes: bool = False
    ) -> None:
        self.refused = False
        self.opened = False
        self.useful = False
        self.retry: int | None = None
        self.event_id: str | None = None
        self.target = target
        self._endpoint = endpoint
        self._ended = ended
        self._again = again
        self._resumes = resumes
        self._events: SseSplitter | None = None

    def head(self, status: int, headers: Headers) -> None:
        if status in (307, 308):
            found = follow(self._endpoint.url, self.target, status, headers.get("location") or "")
            self.refused = isinstance(found, HttpFailed) or not self._endpoint.redirects or found == self.target
            if isinstance(found, str):
                self.target = found
        elif status == 200 and media_type(headers) == EVENTS:
            self.opened = True
            self._events = SseSplitter(self._endpoint.max_message)
            self._endpoint.listening(gap=not self._resumes)
            return
        elif status == 404 and self._again and self._endpoint.session_id is not None:
            self._endpoint.lose(STALE_SESSION)  # it was there before, so it is the session that is not
        else:
            # 405 says that there is none, and so does 404 where none has been; 429 and 5xx may pass.
            self.refused = not may_pass(status)
        self._ended.set()

    def body(self, data: bytes) -> None:
        if self._events is None:
            return
        try:
            events = self._events.feed(data)
        except FrameTooLarge as exc:
            self._endpoint.feed(exc.before, None)
            self._ended.set()
            return
        for event in events:
            self.useful = True
            self.retry = self.retry if event.retry is None else event.retry
            if event.id is not None:
                self.event_id = event.id if event.id.isascii() and event.id.isprintable() else None
        self._endpoint.feed([event.data for event in events if event.data], None)

    def end(self) -> None:
        self._ended.set()

    def failed(self, _error: CallError) -> None:
        self._ended.set()


class Ignored:
    """Takes a response that only has to be over."""

    def __init__(self, done: trio.Event) -> None:
        self._done = done

    def head(self, _status: int, _headers: Headers) -> None:
        self._done.set()

    def body(self, data: bytes) -> None:
        pass

    def end(self) -> None:
        self._done.set()

    def failed(self, _error: CallError) -> None:
        self._done.set()
