"""One client of the HTTP server: its requests in, its answers out.

One task reads a request, runs its handler and reads the next, so that nothing is handed from task to task; it looks at
every byte before httptools sees it. `http1_crowd` says when something came, and when the client leaves. A client that
ends its side of the connection has left, even if it could still read (as uvicorn and hypercorn see it): nothing else
tells a cancelled call from a patient one.
"""

from __future__ import annotations

import logging
import math
import re
from http import HTTPStatus
from typing import TYPE_CHECKING

import httptools
import trio

from cord_trio.transports import http1
from cord_trio.transports.http1 import Chunks, Headers, KnownHead, Unacceptable, check_head, encode_headers, know
from cord_trio.transports.http1_answer import Address, Request, Response
from cord_trio.transports.http1_wire import SocketWire

if TYPE_CHECKING:
    import socket

    from cord_trio.transports.http1_answer import Fields
    from cord_trio.transports.http1_server import Server

logger = logging.getLogger("cord_trio.transports")

LINGER = 2.0
"""Seconds for which a client may go on talking after its last answer, so that it gets to read it."""

BODY_RATE = 1024
"""Bytes a second that a body must come with, beyond its patience."""

UNUSUAL = frozenset({b"expect", b"upgrade", b"transfer-encoding"})
"""Fields of a head that is judged each time anew."""

HEADS = 64
"""Heads of answers that are kept for the rest of a second."""

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_REQUEST_LINE = re.compile(rb"([A-Z-]+) (\S+) HTTP/1\.([01])\r\n")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection:
    """One client. `_stage` says what the next bytes are; one request is answered at a time.

    Stages: head (the next request's), body, chunks, busy (a handler runs; bytes wait, most of them unread), handed
    over (the handler speaks another protocol), closing (what comes is thrown away until the client closes or the
    time is up).

    Attributes:
        scope: what runs now. A handler may have it cancelled, which stops the handler, and must answer by itself.

    """

    def __init__(self, server: Server, sock: socket.socket, client: Address, nursery: trio.Nursery) -> None:
        self.server = server
        self.client = client
        self.closed = False
        self.keep = True
        self.outlives = False
        self.deadline = trio.current_time() + server.limits.head_time
        self.wire = SocketWire(sock, nursery, broken=self._broken)
        self._there = server.clients.add(sock, self._client_left)
        self._nursery = nursery
        self._stage = "head"
        self._served = False
        self._buffer = bytearray()
        self._asked: tuple[Request, Response] | None = None
        self._answering: Response | None = None
        self.scope = trio.CancelScope()
        self._fields: list[tuple[bytes, bytes]] = []
        self._line = ("", "", "")
        self._left = 0
        self._since = 0.0
        self._got = 0
        self._chunks: Chunks | None = None
        self._headers = Headers(())
        self._known: KnownHead | None = None

    # Its task

    @trio.lowlevel.enable_ki_protection
    async def run(self, full: bool) -> None:
        """Serve until the connection is over."""
        if full:
            self._refuse(Unacceptable(503, "too many connections"))
        while not self.closed:
            # One for many requests: a scope of its own is a tenth of a small call's instructions.
            with trio.CancelScope() as self.scope:
                await self._serve()
            if self._answering is not None:  # its handler was stopped
                self._end_answer(self._answering)
                self._next()

    async def _serve(self) -> None:
        """Answer one request after another, until the connection is over or `scope` was cancelled."""
        wire, there = self.wire, self._there
        while not self.closed:
            if self._asked is None:
                try:  # as `wire.read` does, without its frame, which each resumption would pass
                    await there.hear()
                    data = wire.take()
                except (OSError, ValueError, trio.ClosedResourceError):
                    data = b""
                if data is None:
                    continue
                if not data:
                    self.leave("client left")
                    return
                there.unread = len(data) == http1.READ_SIZE
                try:
                    take = self._feed if self._buffer or self._stage != "head" else self._take_head
                    take(data)
                except Unacceptable as refusal:
                    self._refuse(refusal)
                continue
            request, response = self._asked
            self._asked = None
            if there.ended:  # before we came to its request, which is begun all the same: it may outlive its client
                trio.lowlevel.current_trio_token().run_sync_soon(self.leave, "client left")
            await self._answer(request, response)
            if wire.waiting and wire.congested:
                await self.wire.wait_uncongested()
            self._next()
            if self._asked is not None and self.scope.cancel_called:  # else the next read finds out
                return

    def _client_left(self) -> None:
        """Whoever is answered is there no more. Otherwise its last bytes are still to be read, and then its end."""
        if self._stage == "busy":
            self.leave("client left")

    def _feed(self, data: bytes) -> None:
        match self._stage:
            case "head":
                if self._buffer:
                    self._buffer += data
                    data = bytes(self._buffer)
                    self._buffer.clear()
                self._take_head(data)
            case "body":
                self._take_body(data)
            case "chunks":
                self._take_chunks(data)
            case _:
                pass

    def _take_head(self, data: bytes) -> None:
        limits = self.server.limits
        known = self._known
        if known is not None and (start := known.body(data)) > 0 and len(data) - start <= limits.body:
            self.keep = True
            known.headers.resized(len(data) - start)
            self._dispatch(known.headers, data[start:])
            return
        if data[0] in b"\r\n":
            data = data.lstrip(b"\r\n")  # an empty line before a request line is old custom
            if not data:
                return
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or end > limits.head:
            if len(data) > limits.head:
                raise Unacceptable(431, f"the head is larger than the bound of {limits.head} bytes")
            if not 0x41 <= data[0] <= 0x5A:
                raise Unacceptable(400, "not HTTP/1.1")
            check_head(data)
            if self._served:
                self._served = False  # its time runs from the first byte
                self.deadline = trio.current_time() + limits.head_time
            self._buffer += data
            return
        head = data[:end] if len(data) > end else data
        check_head(head)
        line = _REQUEST_LINE.match(head)
        if line is None or head.startswith(b"CONNECT "):
            raise Unacceptable(400, "not HTTP/1.1")
        self._line = (line[1].decode(), line[2].decode("latin-1"), line[3].decode())
        self._fields = []
        try:
            httptools.HttpRequestParser(self).feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # an upgrade is an offer, which the handler may take (RFC 9110, section 7.8)
        except httptools.HttpParserError as exc:
            raise Unacceptable(400, f"not HTTP/1.1: {exc}") from None
        self._known = None
        self._judge(data[end:])
        if self._stage == "busy":
            self._learn(head)

    def _learn(self, head: bytes) -> None:
        """Remember a head that was judged good, if a body framed by its length follows and nothing else."""
        headers = self._headers
        if self.keep and self._line[2] != "0" and not UNUSUAL & headers.index.keys():
            self._known = know(head, headers, self.server.limits.head)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def _judge(self, rest: bytes) -> None:
        """Decide from a whole head what follows it."""
        fields = self._fields
        limits = self.server.limits
        old = self._line[2] == "0"
        if len(fields) > limits.headers:
            raise Unacceptable(431, f"more headers than the bound of {limits.headers}")
        headers = Headers(fields)
        index = headers.index
        if len(index) != len(fields):
            for name in ("host", "origin", "content-length", "transfer-encoding", "expect"):
                if len(headers.all(name)) > 1:
                    raise Unacceptable(400, f"two {name} headers")
        self.keep = not old
        if b"connection" in index:
            options = {option.strip().lower() for option in ",".join(headers.all("connection")).split(",")}
            self.keep = "keep-alive" in options if old else "close" not in options
        if b"host" not in index and not old:
            raise Unacceptable(400, "no Host header")
        target = self._line[1]
        if not target.startswith("/") and "://" in target:  # absolute form (RFC 9112, section 3.2.2)
            authority, _, path = target.partition("://")[2].partition("/")
            if b"host" in index and authority.encode("latin-1").lower() != index[b"host"].strip().lower():
                raise Unacceptable(400, "the target names another host than Host")
            self._line = (self._line[0], f"/{path}", self._line[2])
        length = 0
        if (size := index.get(b"content-length")) is not None:
            if b"transfer-encoding" in index:
                raise Unacceptable(400, "both Content-Length and Transfer-Encoding")
            length = int(size)  # httptools has seen to it that it is a number
            if length > limits.body:
                raise Unacceptable(413, f"the body is larger than the bound of {limits.body} bytes")
        coding = index.get(b"transfer-encoding")
        if coding is not None:
            if old:
                raise Unacceptable(400, "Transfer-Encoding in HTTP/1.0")
            if coding.strip().lower() != b"chunked":
                raise Unacceptable(501, "an unknown transfer coding")
        whole = coding is None and len(rest) >= length
        if (expected := index.get(b"expect")) is not None:
            if expected.strip().lower() != b"100-continue":
                raise Unacceptable(417, "an unknown expectation")
            if not (whole or rest or old):
                self.write(_CONTINUE)
        if whole:
            if len(rest) > length:
                self._buffer += rest[length:]
                rest = rest[:length]
            self._dispatch(headers, rest)
            return
        self._headers = headers
        self._since = trio.current_time()
        self._got = 0
        if coding is not None:
            self._stage = "chunks"
            self._chunks = Chunks(limits.body)
            self._take_chunks(rest)
        else:
            self._stage = "body"
            self._left = length
            self._take_body(rest)

    def _progress(self, size: int) -> None:
        """A body must go on, and reach a certain rate: no client may hold a connection by dripping."""
        self._got += size
        self.server.received += size
        if self.server.received > self.server.limits.received:
            raise Unacceptable(503, "too much is being received")
        patience = self.server.limits.body_time
        self.deadline = min(trio.current_time() + patience, self._since + patience + self._got / BODY_RATE)

    def _take_body(self, data: bytes) -> None:
        self._progress(len(data))
        rest = b""
        if len(data) > self._left:
            data, rest = data[: self._left], data[self._left :]
        self._buffer += data
        self._left -= len(data)
        if not self._left:
            body = bytes(self._buffer)
            self._buffer = bytearray(rest)
            self._dispatch(self._headers, body)

    def _take_chunks(self, data: bytes) -> None:
        chunks = self._chunks
        if chunks is None:
            raise AssertionError
        self._progress(len(data))
        rest = chunks.feed(data)
        if rest is not None:
            self._chunks = None
            self._buffer = bytearray(rest)
            self._dispatch(self._headers, bytes(chunks.body))

    def _release(self) -> None:
        """What was received is not waiting for the rest of it any more."""
        self.server.received -= self._got
        self._got = 0

    def _dispatch(self, headers: Headers, body: bytes) -> None:
        """Have the request answered."""
        if self._got:
            self._release()
        method, target, minor = self._line
        self._stage = "busy"
        self._headers = headers
        self.deadline = math.inf
        self.server.counters.add("http_server.requests")
        request = Request(method, target, headers, body, self.client)
        response = Response(self, bare=method == "HEAD", chunked=minor == "1")
        self._asked = (request, response)
        self._there.begin()

    async def _answer(self, request: Request, response: Response) -> None:
        self._answering = response
        try:
            await self.server.handler(request, response)
        except Exception as exc:
            self._failed(request, response, exc)
        except BaseExceptionGroup as group:
            cancelled, others = group.split(trio.Cancelled)
            if others is None or not isinstance(others, Exception):
                raise
            self._failed(request, response, others)
            if cancelled is not None:
                raise cancelled from None
        self._end_answer(response)

    def _end_answer(self, response: Response) -> None:
        """See to it that a request whose handler is over has a whole answer."""
        self._answering = None
        if not response.started:
            response.send(500, (("Content-Type", "text/plain"),), b"no answer was given\n")
        elif not response.ended:
            response.end()

    def _failed(self, request: Request, response: Response, exc: Exception) -> None:
        if not self.scope.cancel_called and trio.current_effective_deadline() == -math.inf:
            self.leave("the server is cancelled")
        if self.closed:
            logger.debug("a handler failed after its connection ended path=%s", request.path, exc_info=exc)
            return
        self.server.counters.add("http_server.handler_failed")
        logger.error("a handler failed method=%s path=%s", request.method, request.path, exc_info=exc)
        if not response.started:
            response.send(500, (("Content-Type", "text/plain"),), b"internal error\n")
        elif not response.ended:
            response.ended = True
            self.leave("the answer broke off")  # only a broken connection tells the client that it is not whole

    def _next(self) -> None:
        """Go on after an answer: with a waiting request, with waiting for one, or not at all."""
        if self._stage == "handed over":
            self.leave("the other protocol is over")
        if self.closed:
            return
        if not self.keep or self.server.leaving:
            self._finish()
            return
        self._stage = "head"
        self._served = True  # and from the next look of the server's on, its time runs: see `rest`
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            try:
                self._take_head(data)
            except Unacceptable as refusal:
                self._refuse(refusal)

    def hand_over(self) -> tuple[socket.socket, bytes]:
        """The socket, and what came behind the request. See `Response.hand_over`."""
        self.server.clients.discard(self.wire.fd)
        sock = self.wire.detach()
        self._stage = "handed over"
        rest = bytes(self._buffer)
        self._buffer.clear()
        return sock, rest

    # Both

    def begin(self, status: int, fields: Fields) -> bytes:
        """An answer's head up to its framing."""
        if self.server.leaving:
            self.keep = False
        heads = self.server.heads()
        key = (status, fields, self.keep)
        head = heads.get(key)
        if head is None:
            line = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Status\r\n"
            close = "" if self.keep else "Connection: close\r\n"
            head = b"%b%b%b" % (line.encode(), encode_headers(fields), f"{self.server.date}{close}".encode())
            if len(heads) >= HEADS:
                heads.clear()
            heads[key] = head
        return head

    def write(self, *parts: bytes) -> None:
        """Send to the client, if it is still there."""
        if self.closed:
            return
        try:
            self.wire.write(*parts)
        except OSError:
            self.leave("client left")
            return
        if not self.wire.waiting:
            return
        if self.wire.waiting > self.server.limits.outbox:
            self.server.counters.add("http_server.outbox_full")
            self.leave("the client reads too slowly")
        elif self.wire.congested:
            self.server.relieve()

    def _broken(self) -> None:
        self.leave("client left")

    def _refuse(self, refusal: Unacceptable) -> None:
        """Answer with a status and short text, then close."""
        self.server.counters.add(f"http_server.refused_{refusal.status}")
        logger.debug("refused status=%d client=%s what=%s", refusal.status, self.client, refusal.what)
        self.keep = False
        body = f"{refusal.what}\n".encode()
        head = self.begin(refusal.status, (("Content-Type", "text/plain"),))
        self.write(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))
        self._finish()

    def _finish(self) -> None:
        """Nothing more will be answered: end our side, and wait a little for the client to end its own.

        Closing at once would reset the connection if bytes were left unread, and take the answer along.
        """
        if self.closed:
            return
        self._stage = "closing"
        self._release()
        self._buffer.clear()
        self._chunks = None
        self.deadline = trio.current_time() + LINGER
        self.wire.finish()

    def rest(self, now: float) -> None:
        """Give one that has been served its time, unless it has one: not each answer asks the clock for it."""
        if self._served and self._stage == "head" and self.deadline == math.inf:
            self.deadline = now + self.server.limits.idle

    def expire(self, now: float) -> None:
        """The time for what the client should have done is up."""
        if self.wire.deadline < now:
            self.server.counters.add("http_server.stalled")
            self.leave("the client does not read")
        elif self._stage == "closing":
            if not self.wire.waiting:
                self.leave("the connection is over")
        elif self._stage == "head" and (self._served or not self._buffer):
            self.server.counters.add("http_server.idle_closed")
            self.leave("idle for too long")
        else:
            self._refuse(Unacceptable(408, "the request did not arrive in time"))

    def drain(self) -> None:
        """No more requests: close, unless one is being received or answered."""
        if self._stage == "head" and not self._buffer:
            self.leave("draining")

    def leave(self, reason: str) -> None:
        """Close now, and cancel the handler."""
        if not self.closed:
            self.closed = True
            self._release()
            self.server.clients.discard(self.wire.fd)
            self.wire.close()
            if not self.outlives:
                self._nursery.cancel_scope.cancel(reason)
