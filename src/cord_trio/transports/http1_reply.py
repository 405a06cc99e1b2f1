"""One connection of a pool: writes a request, reads what comes back, and tells the sink.

httptools reads the bytes; what it lets through (sizes, counts, codings, a second answer) is judged here.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import httptools
import trio

from cord_trio.cell import Cell
from cord_trio.errors import BadReply, ConnectionLost
from cord_trio.transports.http1 import LAST_CHUNK, Headers, KnownHead, KnownStream, know

if TYPE_CHECKING:
    from cord_trio.errors import Executed
    from cord_trio.transports.http1_client import Pool
    from cord_trio.transports.http1_exchange import Exchange
    from cord_trio.transports.http1_wire import Wire

logger = logging.getLogger("cord_trio.transports")

STREAMS = frozenset({b"text/event-stream", b"text/event-stream; charset=utf-8"})
"""The content types of event streams whose heads are known again."""

INTERIM_LIMIT = 16
"""Answers of the 1xx kind to one request."""


class Connection:
    """One connection, its response parser and its reader. Serves one exchange at a time.

    Attributes:
        rests: whether the reader has nothing to do between exchanges.
        idle_since: Trio time; infinite where it must be found out.

    """

    __slots__ = (
        "_aside",
        "_buffer",
        "_complete",
        "_exchange",
        "_fields",
        "_framed",
        "_given",
        "_in_head",
        "_interim",
        "_keep",
        "_known",
        "_left",
        "_needed",
        "_parser",
        "_pool",
        "_raw",
        "_refusal",
        "_status",
        "_stream",
        "closed",
        "idle_since",
        "rests",
        "wire",
    )

    def __init__(self, pool: Pool, wire: Wire) -> None:
        self._pool = pool
        self.wire = wire
        self.closed = False
        self.idle_since = 0.0
        self._exchange: Exchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._buffer = bytearray()
        self._fields: list[tuple[bytes, bytes]] = []
        self._in_head = True
        self._complete = False
        self._framed = True
        self._keep = True
        self._interim = 0
        self._left: float = 0
        self._status = 0
        self._refusal: str | None = None
        self._raw = b""
        self._known: KnownHead | None = None
        self._stream: KnownStream | None = None
        self._aside = b""
        """What was pulled and not fed yet: a known head, and the first event of a stream once that was given."""
        self._given = False
        self.rests = False
        self._needed: Cell[None] | None = None

    def start(self, exchange: Exchange, head: bytes, payload: bytes) -> bool:
        """Write the request. Returns False if the connection turned out broken and nothing was written."""
        wire = self.wire
        exchange.before = wire.sent
        try:
            if payload:
                wire.write(head, payload)
            else:
                wire.write(head)
        except OSError:
            return False
        self._exchange = exchange
        self._interim = 0
        exchange.connection = self
        if exchange.attended:
            if self._needed is not None:
                exchange.fd = wire.fd
            else:
                self.rests = wire.fd >= 0  # the reader reads this answer, but not the next
        elif self._needed is not None:
            self.call_reader()
        return True

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Read until the end of the connection, whoever ends it."""
        read = self.wire.read
        try:
            while not self.closed:
                if self.rests and self._exchange is None:
                    self._needed = Cell()
                    self._pool.watch()
                    await self._needed.wait(_nothing)
                    continue
                data = await read()
                if not data:
                    self._ended()
                    return
                self._feed(data)
        finally:
            self.lose("the pool was closed")

    @property
    def resting(self) -> bool:
        """Whether nobody reads, except whoever attends his own exchange."""
        return self._needed is not None

    def leave(self) -> None:
        """Whoever pulled does no more."""
        if self._given:
            # All that is missing is the end, most likely: the next exchange looks whether it has come, and to wake the
            # reader for it would cost as much as the whole call.
            self._pool.trail(self)
        else:
            self.call_reader()

    def end_trail(self) -> bool:
        """Whether the answer whose message was given has ended, and the connection is free."""
        if self.wire.quiet():
            return False
        data, exchange = self.wire.take(), self._exchange
        if data is None:
            return False
        if data != LAST_CHUNK[2:] or exchange is None or self.wire.waiting:
            if data:
                self._feed(data)  # there is more to tell
            else:
                self._ended()
            self.read_on()
            return False
        self._aside, self._given, self._exchange = b"", False, None
        self._tell_end(exchange)
        return not self.closed and self._exchange is None

    @property
    def trails(self) -> bool:
        """Whether the message of its answer was given, and no more of it is known."""
        return self._given

    def read_on(self) -> None:
        """Have the connection's own task read what is left of the answer, and then rest again."""
        self.call_reader()
        self.rests = self.wire.fd >= 0

    def call_reader(self) -> None:
        """From here on the connection's own task reads."""
        if self._aside:
            self._feed(b"")
        cell, self._needed = self._needed, None
        if cell is not None:
            self.rests = False
            cell.settle(None)

    def pull(self) -> bytes | None:
        """Read what has come, in the place of the reader. See `Exchange.pull`."""
        data = self.wire.take()
        if not data:
            if data is not None:
                self._ended()
            return None
        known, exchange = self._known, self._exchange
        if (
            known is not None
            and known.plain
            and exchange is not None
            and self._in_head
            and not (self._buffer or self._given)
        ):
            if self._aside:
                data, self._aside = self._aside + data, b""
            start = known.body(data)
            if 0 <= start < len(data) <= self._pool.limits.body:  # with its head, so that no body is too long
                exchange.over = True
                self._exchange = None  # what `_done` does, without its call
                if self.wire.waiting:
                    self.close()
                else:
                    self._pool.release(self)
                return data[start:]
            if known.begins(data):
                self._aside = data
                return None
        if self._stream is not None and exchange is not None and (self._aside or data.startswith(self._stream.head)):
            return self._pull_event(self._stream, exchange, data)
        self._feed(data)
        return None

    def _pull_event(self, stream: KnownStream, exchange: Exchange, data: bytes) -> bytes | None:
        if self._given or not self._in_head or self._buffer:
            self._feed(data)
            return None
        if not self._aside and len(data) == len(stream.head):
            self._aside = data  # many servers send that first
            return None
        if self._aside:
            data, self._aside = self._aside + data, b""
        found = stream.event(data) if len(data) <= self._pool.limits.body else None
        if found is None:
            self._feed(data)
            return None
        message, over = found
        exchange.streamed = True
        if over:
            exchange.over = True
            self._done()
        else:
            self._aside, self._given = data, True
        return message

    def _feed(self, data: bytes) -> None:
        if self._exchange is None:
            # Bytes that nobody asked for, such as a 408 before the server closes: never an answer.
            self.close()
            return
        if self._aside or self._given:
            data, self._aside, self._given = self._aside + data, b"", False
        try:
            if self._in_head:
                known = self._known
                if known is not None and self._take_known(known, data):
                    return
                data = self._take_head(data)
            if data and not (self._in_head or self._complete or self.closed or self._refusal):
                self._parser.feed_data(data)
                data = b""
        except httptools.HttpParserError as exc:
            if not self._complete:
                if isinstance(exc, httptools.HttpParserCallbackError):
                    logger.exception("a sink raised origin=%s", self._pool.origin.name, exc_info=exc.__context__)
                    self._refuse("whoever reads the answer failed")
                else:
                    self._refuse(f"the answer is not HTTP: {exc}")
                return
            self._keep = False  # rubbish behind a whole answer
        if self.closed:
            return
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._complete:
            self._finish(reusable=self._keep and not data)

    def _take_known(self, known: KnownHead, data: bytes) -> bool:
        """Take a whole answer whose head is the last one's but for its length. Returns False if it is none."""
        start = known.body(data)
        exchange = self._exchange
        if start < 0 or exchange is None:
            return False
        whole = exchange.whole
        if whole is None or self._buffer or len(data) - start > self._pool.limits.body or exchange.verb == "HEAD":
            return False
        self._done()
        if not exchange.over:
            exchange.over = True
            try:
                whole(self._status, known.headers, data[start:])
            except Exception:
                logger.exception("a sink raised at the end origin=%s", self._pool.origin.name)
        return True

    def _done(self) -> None:
        """The answer is whole, and another may follow."""
        self._exchange = None
        if self.wire.waiting:
            self.close()
        else:
            self._pool.release(self)

    def _take_head(self, data: bytes) -> bytes:
        """Feed the head once it is whole; returns what follows it."""
        limit = self._pool.limits.head
        while True:
            if self._buffer:
                self._buffer += data
                data = bytes(self._buffer)
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > limit or b"\n\n" in data:
                    self._refusal = f"the head of the answer is larger than {limit} bytes, or never ends"
                elif not self._buffer:
                    self._buffer += data
                return b""
            if self._buffer:
                self._buffer = bytearray()
            end += 4
            if end > limit:
                self._refusal = f"the head of the answer is larger than {limit} bytes"
                return b""
            self._fields = []
            self._in_head = False
            self._known = None
            self._raw = data[:end] if len(data) > end else data
            try:
                self._parser.feed_data(self._raw)
            except httptools.HttpParserUpgrade:
                self._refusal = "the server switched protocols"
                return b""
            data = data[end:]
            if not self._in_head or not data:
                return data

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("more than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Judge the head, and pass it on."""
        exchange, pool = self._exchange, self._pool
        if exchange is None:
            return
        status = self._status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._interim += 1
            if self._interim > INTERIM_LIMIT or status == 101:
                self._refusal = "the server switched protocols" if status == 101 else "too many interim answers"
            return
        fields, self._fields = self._fields, []
        if len(fields) > pool.limits.headers:
            self._refusal = f"the answer has more than {pool.limits.headers} headers"
            return
        headers = Headers(fields)
        self._keep = self._parser.should_keep_alive()
        coding = (headers.get("content-encoding") or "identity").lower()
        transfer = headers.get("transfer-encoding")
        length = headers.get("content-length")
        self._framed = transfer is not None or length is not None
        stream = (headers.get("content-type") or "").lower().startswith("text/event-stream")
        self._left = math.inf if stream else pool.limits.body
        # No body follows these, whatever their headers say (RFC 9112, section 6.3); httptools would wait for it.
        bare = exchange.verb == "HEAD" or status in (204, 304)
        if not bare:
            if coding != "identity":
                pool.counters.add("http_client.compressed")
                self._refusal = f"the answer is compressed ({coding}) though identity was asked for"
                return
            if transfer is not None and transfer.lower() != "chunked":
                self._refusal = f"the answer has an unknown transfer coding ({transfer})"
                return
            if length is not None and transfer is None and int(length) > self._left:
                self._refuse_size()
                return
            if length is not None and transfer is None and self._keep and not stream:
                fields = [field for field in headers.raw if field[0].lower() != b"content-length"]
                self._known = known = know(self._raw, Headers(fields), pool.limits.head)
                if known is not None:
                    known.plain = status == 200 and known.headers.index.get(b"content-type") == b"application/json"
            elif status == 200 and self._keep and length is None and headers.index.get(b"content-type") in STREAMS:
                self._stream = KnownStream(self._raw)
        exchange.sink.head(status, headers)
        if bare:
            self._complete = True
            self._parser = httptools.HttpResponseParser(self)

    def on_body(self, data: bytes) -> None:
        """Pass on what came, within the bound."""
        exchange = self._exchange
        if exchange is None or self._refusal is not None:
            return
        self._left -= len(data)
        if self._left < 0:
            self._refuse_size()
            return
        exchange.sink.body(data)

    def on_message_complete(self) -> None:
        if 100 <= self._status < 200:
            self._in_head = True
        else:
            self._complete = True

    def _refuse_size(self) -> None:
        self._pool.counters.add("http_client.body_too_large")
        self._refusal = f"the answer is larger than max_message = {self._pool.limits.body}"

    def _refuse(self, reason: str) -> None:
        exchange = self._exchange
        self.close()
        if exchange is not None and not exchange.over:
            exchange.over = True
            self._pool.tell_failed(exchange, BadReply(reason, executed="unknown"))

    def _finish(self, *, reusable: bool) -> None:
        exchange = self._exchange
        self._in_head = True
        self._complete = False
        if reusable:
            self._done()
        else:
            self.close()
        if exchange is not None and not exchange.over:
            self._tell_end(exchange)

    def _tell_end(self, exchange: Exchange) -> None:
        exchange.over = True
        try:
            exchange.sink.end()
        except Exception:
            logger.exception("a sink raised at the end origin=%s", self._pool.origin.name)

    def _ended(self) -> None:
        """The server ended the connection."""
        if self._aside:
            self._feed(b"")
        if self._exchange is not None and not self._in_head and not self._framed:
            self._finish(reusable=False)  # the body goes to the end of the connection
            return
        begun = not self._in_head or bool(self._buffer)
        self.lose(
            "the server closed the connection in the middle of the answer"
            if begun
            else "the server closed the connection without an answer"
        )

    def lose(self, reason: str) -> None:
        """Close, and fail the exchange that is not over."""
        exchange = self._exchange
        executed: Executed = exchange.executed if exchange is not None else "no"
        self.close()
        if exchange is not None and not exchange.over:
            exchange.over = True
            self._pool.tell_failed(exchange, ConnectionLost(reason, executed))

    def close(self) -> None:
        """Close now, and tell nobody."""
        self._exchange = None
        self._aside = b""
        if not self.closed:
            self.closed = True
            self.call_reader()
            self.wire.close()
            self._pool.drop(self)


def _nothing() -> None:
    """Nobody else knows of the wait."""
