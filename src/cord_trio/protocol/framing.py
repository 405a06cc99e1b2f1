"""Where messages begin and end in a stream of bytes: lines (stdio, byte streams) and server-sent events.

Both splitters take bytes in pieces of any size and cost time in proportion to the bytes alone: a piece is
looked at once, by `bytes` methods, and what is incomplete waits in one growing buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cord_trio.errors import Malformed
from cord_trio.protocol.jsonrpc import INVALID_REQUEST

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes of the longest message taken in, by default."""

SSE_COMMENT: Final = b":\n\n"
"""What keeps a quiet event stream alive: no event at all."""

MAX_RETRY_DIGITS: Final = 10
"""Digits of the longest `retry` field that is believed: some 115 days in milliseconds."""

BOM: Final = b"\xef\xbb\xbf"
"""UTF-8 for U+FEFF, which some put before a text, and which is no part of it (RFC 8259, section 8.1)."""

_LF: Final = 10
_CR: Final = 13


class FrameTooLarge(Malformed):
    """A message is longer than its bound, and was dropped.

    Attributes:
        limit: the bound, in bytes.
        before: whole messages that came before it in the same bytes.

    """

    def __init__(self, limit: int, before: Sequence[bytes] = ()) -> None:
        super().__init__(INVALID_REQUEST, f"a message is longer than {limit} bytes (bound message_in)")
        self.limit = limit
        self.before = tuple(before)


class LineSplitter:
    """Splits a stream into lines at byte 0x0A alone (MCP 2026-07-28, transports/stdio).

    Invariant: what it returns does not depend on how the stream is cut into pieces. A line's length
    counts a carriage return before its end. After `FrameTooLarge` the rest of that line is skipped, so
    whoever wants to go on may; `feed(b"")` returns what followed it.
    """

    __slots__ = ("_fresh", "_left", "_limit", "_skipping", "_tail")

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._limit = limit
        self._tail = bytearray()
        self._left = b""
        self._fresh = True
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends; blank ones are left out.

        Raises:
            FrameTooLarge: a line, whole or not, is longer than the bound; the peer's fault.

        """
        line = self.lone(data)
        if line:
            return [line]
        if self._left:
            data, self._left = self._left + data, b""
        if self._skipping:
            _, end, data = data.partition(b"\n")
            if not end:
                return []
            self._skipping = False
        tail = self._tail
        lines = data.split(b"\n")
        check = len(data) > self._limit
        if tail:
            if len(lines) == 1:
                tail += data
                if len(tail) > self._limit:
                    self._overflow([], None)
                return []
            lines[0] = b"".join((tail, lines[0]))
            tail.clear()
            check = True
        rest = lines.pop()
        if check and any(len(line) > self._limit for line in lines):
            first = next(i for i, line in enumerate(lines) if len(line) > self._limit)
            self._overflow(self._finish(lines[:first]), b"\n".join((*lines[first + 1 :], rest)))
        if self._fresh or data.find(b"\r") >= 0 or (lines and lines[0].endswith(b"\r")):
            whole = self._finish(lines)
        else:  # as nearly always; not to look at the end of each line is half of what it costs here
            whole = [line for line in lines if line and not line.isspace()]
        if rest:
            if len(rest) > self._limit:
                self._overflow(whole, None)
            tail += rest
        return whole

    def lone(self, data: bytes) -> bytes:
        """The one whole line that `data` is, as a reply to a lone call is; else nothing, and `data` is to be fed."""
        if data.find(b"\n") == len(data) - 1 <= self._limit and not (
            self._tail or self._left or self._skipping or self._fresh
        ):
            line = data[:-1]
            if line and line[-1] != _CR and not line.isspace():
                return line
        return b""

    def at_end(self) -> bytes:
        """What is left when the stream has ended: a line without its end, or nothing. The splitter is then new."""
        lines = self._finish([self._left + self._tail]) if not self._skipping else []
        self._tail.clear()
        self._left = b""
        self._fresh, self._skipping = True, False
        return lines[0] if lines else b""

    def _finish(self, lines: list[bytes]) -> list[bytes]:
        if self._fresh and lines:
            self._fresh = False
            lines[0] = lines[0].removeprefix(BOM)
        whole = []
        for line in lines:
            text = line[:-1] if line and line[-1] == _CR else line
            if text and not text.isspace():
                whole.append(text)
        return whole

    def _overflow(self, before: list[bytes], left: bytes | None) -> None:
        """Drop the line that is too long; `left` follows it, None if its end has not come yet."""
        self._tail.clear()
        self._fresh = False
        self._skipping = left is None
        self._left = left or b""
        raise FrameTooLarge(self._limit, before)


def encode_line(message: bytes) -> bytes:
    """`message` as one line. Line breaks between its tokens (a relayed payload may be indented) become spaces."""
    if _LF in message or _CR in message:  # as numbers: see `jsonrpc.decode`
        # In JSON they can only be whitespace: inside a string they would be escaped.
        message = message.replace(b"\r", b" ").replace(b"\n", b" ")
    return message + b"\n"


class SseEvent(msgspec.Struct, frozen=True, gc=False):
    """One server-sent event, of which only what the stream said.

    Attributes:
        event: its type.
        data: its data lines, joined with LF; empty for priming events and for those that only set `retry`.
        id: its id, None if it had none.
        retry: milliseconds to wait before connecting again, None if it said nothing.

    """

    event: str = "message"
    data: bytes = b""
    id: str | None = None
    retry: int | None = None


class SseSplitter:
    """Splits an event stream into events (WHATWG HTML, server-sent events).

    Lines end with LF, CRLF or CR, and pieces may be cut anywhere, also between CR and LF and inside a
    character. An event without data is returned, since its id or retry time matters. An event whose
    blank line never came is none. Of no use after `FrameTooLarge`.
    """

    __slots__ = ("_after_cr", "_data", "_event", "_fresh", "_id", "_limit", "_retry", "_seen", "_size", "_tail")

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._limit = limit
        self._tail = bytearray()
        self._fresh = True
        self._after_cr = False
        self._data: list[bytes] = []
        self._event = "message"
        self._id: str | None = None
        self._retry: int | None = None
        self._seen = False
        self._size = 0

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that `data` completes.

        Raises:
            FrameTooLarge: an event, whole or not, is longer than the bound; the peer's fault.

        """
        if not data:
            return []
        if self._after_cr:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if _CR in data:
            self._after_cr = data[-1] == _CR
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        tail = self._tail
        lines = data.split(b"\n")
        if tail and len(lines) > 1:
            lines[0] = b"".join((tail, lines[0]))
            tail.clear()
        rest = lines.pop()
        events: list[SseEvent] = []
        if lines and self._fresh:
            self._fresh = False
            lines[0] = lines[0].removeprefix(BOM)
        for line in lines:
            if line:
                self._size += len(line)
                if self._size > self._limit:
                    self._overflow(events)
                self._field(line)
            else:
                if self._seen:
                    events.append(SseEvent(self._event, b"\n".join(self._data), self._id, self._retry))
                self._reset()
        tail += rest
        if self._size + len(tail) > self._limit:
            self._overflow(events)
        return events

    def _field(self, line: bytes) -> None:
        if line.startswith(b"data: "):  # as nearly everyone writes it
            self._data.append(line[6:])
            self._seen = True
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode(errors="replace") or "message"
        elif name == b"id":
            if b"\0" in value:
                return
            self._id = value.decode(errors="replace")
        elif name == b"retry":
            if not value.isdigit() or len(value) > MAX_RETRY_DIGITS:
                return
            self._retry = int(value)
        else:
            if not name:  # a comment; keep-alives must not add up to an event that is too long
                self._size -= len(line)
            return
        self._seen = True

    def _reset(self) -> None:
        self._data = []
        self._event = "message"
        self._id = self._retry = None
        self._seen = False
        self._size = 0

    def _overflow(self, events: list[SseEvent]) -> None:
        self._tail.clear()
        self._reset()
        raise FrameTooLarge(self._limit, [event.data for event in events if event.data])


def encode_sse(data: bytes, *, event: str = "message", id: str | None = None) -> bytes:
    """One server-sent event. Line breaks in `data` of any kind arrive as LF, harmless between JSON tokens."""
    if _CR in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if _LF in data:
        data = data.replace(b"\n", b"\ndata: ")
    identity = b"" if id is None else b"id: %b\n" % id.encode()
    return b"event: %b\n%bdata: %b\n\n" % (event.encode(), identity, data)
