"""What comes back over HTTP+SSE: the answer to the GET, which is the stream, and the answers to our POSTs.

Each is a `http1_client.ResponseSink`: told synchronously, it tells its transport in turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin

import trio

from cord_trio.errors import CallError, ConnectFailed, HttpFailed, Refused
from cord_trio.transports.http_rules import ERROR_SHOWN, MAX_REDIRECTS, follow, media_type, parse_seconds

if TYPE_CHECKING:
    from cord_trio.protocol.jsonrpc import Id
    from cord_trio.transports.http1 import Headers
    from cord_trio.transports.http1_client import Exchange, Pool
    from cord_trio.transports.sse import SseTransport

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"

ERROR_TEXT: Final = 64 * 1024
"""Bytes read of the body of a failure."""


class Stream:
    """The response to the GET. A `ResponseSink`."""

    def __init__(self, transport: SseTransport, target: str) -> None:
        self.target = target
        self._transport = transport
        self._redirects = 0
        self._status = 0
        self._location = ""
        self._text: bytes | None = None

    def head(self, status: int, headers: Headers) -> None:
        self._status = status
        self._location = headers.get("location") or ""
        self._text = None if status == 200 and media_type(headers) == EVENTS else b""

    def body(self, data: bytes) -> None:
        if self._text is None:
            self._transport.take(data)
        elif len(self._text) < ERROR_TEXT:
            self._text += data

    def end(self) -> None:
        transport = self._transport
        if self._text is None:
            transport.lose("the event stream ended")
            return
        if 300 <= self._status < 400 and transport.redirects and self._redirects < MAX_REDIRECTS:
            found = follow(transport.url, self.target, self._status, self._location)
            if isinstance(found, str):
                self._redirects += 1
                self.target = found
                transport.url = urljoin(transport.url, found)
                transport.ask(self)
                return
            transport.refuse(self._status, str(found))
        elif self._status == 200:
            transport.refuse(200, "and no event stream")
        else:
            transport.refuse(self._status, self._text.decode(errors="replace").strip()[:ERROR_SHOWN])

    def failed(self, error: CallError) -> None:
        if self._status == 0:
            self._transport.fail(ConnectFailed(self._transport.name, "connect", str(error)))
        else:
            self._transport.lose(f"the event stream broke off: {error}")


class Message:
    """One message on its way. A `ResponseSink`."""

    def __init__(self, transport: SseTransport, id: Id | None, message: bytes) -> None:
        self.id = id
        self.answered = trio.Event()
        self._transport = transport
        self._message = message
        self._exchange: Exchange | None = None
        self._pool: Pool | None = None
        self._target = ""
        self._redirects = 0
        self._status = 0
        self._location = ""
        self._retry_after: float | None = None
        self._challenge = ""
        self._text = b""

    @property
    def written(self) -> bool:
        """Whether any byte of it may have reached the server."""
        return self._exchange is not None and self._exchange.written

    def start(self, pool: Pool, target: str) -> None:
        """Send it. Raises `CallError` if that cannot be."""
        self._pool, self._target = pool, target
        self._exchange = pool.request("POST", target, [("Content-Type", JSON)], self._message, self)

    def close(self) -> None:
        """Hear no more of it."""
        self.answered.set()
        if self._exchange is not None:
            self._exchange.close()

    def head(self, status: int, headers: Headers) -> None:
        self._status = status
        self._location = headers.get("location") or ""
        self._retry_after = parse_seconds(headers.get("retry-after"), headers.get("date"))
        self._challenge = headers.get("www-authenticate") or ""
        if 200 <= status < 300:  # any of them, whatever the body: the answer comes on the stream
            self._done(None)

    def body(self, data: bytes) -> None:
        if len(self._text) < ERROR_TEXT:
            self._text += data

    def end(self) -> None:
        status = self._status
        text = self._text.decode(errors="replace").strip()[:ERROR_SHOWN]
        if 200 <= status < 300:
            return
        if 300 <= status < 400:
            self._redirect()
        elif status == 429 or (status == 503 and self._retry_after is not None):
            self._done(Refused(text, status=status, retry_after=self._retry_after))
        else:
            self._done(HttpFailed(status, text, challenge=self._challenge))

    def failed(self, error: CallError) -> None:
        self._done(error)

    def _redirect(self) -> None:
        transport, pool = self._transport, self._pool
        found = follow(transport.url, self._target, self._status, self._location)
        if isinstance(found, HttpFailed):
            self._done(found)
        elif not transport.redirects or self._redirects >= MAX_REDIRECTS or pool is None:
            self._done(HttpFailed(self._status, f"redirects to {found!r}, and it is not followed any further"))
        else:
            self._redirects += 1
            self._text = b""
            try:
                self.start(pool, found)
            except CallError as exc:
                self._done(exc)

    def _done(self, error: CallError | None) -> None:
        if not self.answered.is_set():
            self.answered.set()
            self._transport.taken(self, error)
