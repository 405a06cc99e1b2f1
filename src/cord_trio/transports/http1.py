"""What both sides of HTTP/1.1 share: header fields, their encoding, and the door's Host and Origin rules.

Pure. httptools checks little (it neither counts bytes nor headers, and it goes on into the next message
by itself), so whoever feeds it looks at the bytes first; what there is to look at is here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

HEAD_LIMIT = 32 * 1024
"""Bytes of one message's head, with its first line."""

HEADER_COUNT = 128
"""Header fields in one head."""

BODY_LIMIT = 16 * 1024 * 1024
"""Bytes of one body."""

READ_SIZE = 64 * 1024
"""Bytes taken from one connection in one turn of the loop."""

CHUNK_LINE = 1024
"""Bytes of one line between the chunks of a body."""

TRAILER_LIMIT = 8 * 1024
"""Bytes of what may follow the last chunk."""

CHUNK_OVERHEAD = 64 * 1024
"""Bytes of framing that a chunked body may have beyond eight for each byte of data."""

LOOPBACK_HOSTS = ("localhost:*", "127.0.0.1:*", "[::1]:*")
"""The `Host` values of a door on loopback, with any port."""

LOOPBACK_ORIGINS = tuple(f"{scheme}://{host}" for scheme in ("http", "https") for host in LOOPBACK_HOSTS)
"""The origins of pages that this machine serves itself."""

LENGTH_DIGITS = 10
"""Digits of the length in a head that is known already."""

LAST_CHUNK = b"\r\n0\r\n\r\n"
"""The end of a chunk, and of the body with it."""

SIZES = 16
"""Sizes of messages for which a known head is kept as it is written with them."""

_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,10})\r\n", re.IGNORECASE)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_TARGET = re.compile(r"[\x21-\x7e]+")
_PORT = re.compile(r":[0-9]{1,5}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")


class Unacceptable(Exception):
    """What came in breaks HTTP or a bound; `status` is what a server answers it with."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status
        self.what = what


class Headers:
    """The header fields of one message, in the order and spelling in which they came.

    Names are looked up in any case. Two fields of one name stay two.

    Attributes:
        memo: what whoever is told of the message has made of it. Found again with the next message of the same
            connection, if that has the same first line and the same fields but for its length.

    """

    __slots__ = ("_found", "_index", "_raw", "_size", "memo")

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._raw = raw
        self._size: int | None = None
        self.memo: object = None
        self._index: dict[bytes, bytes] | None = None
        # By the names that were asked for, since heads are kept and asked again.
        self._found: dict[str, str | None] = {}

    def resized(self, size: int) -> None:
        """Take another `Content-Length`; there is exactly one."""
        self._size = size  # written into the fields once somebody looks, which hardly anybody does

    @property
    def raw(self) -> Sequence[tuple[bytes, bytes]]:
        """Names and values as they came."""
        if self._size is not None:
            length, self._size = b"%d" % self._size, None
            self._raw = [(name, length if name.lower() == b"content-length" else value) for name, value in self._raw]
            self._index = None
        return self._raw

    @property
    def index(self) -> Mapping[bytes, bytes]:
        """The value of the first field of each name, by its name in lower case, with blanks around it."""
        index = self._index if self._size is None else None
        if index is None:
            index = self._index = {name.lower(): value for name, value in reversed(self.raw)}
        return index

    def get(self, name: str) -> str | None:
        """The value of the first field called `name`."""
        try:
            return self._found[name]
        except KeyError:
            lower = name.lower()
            value = self.index.get(lower.encode("latin-1", "replace"))
            found = None if value is None else value.decode("latin-1").strip(" \t")
            if lower != "content-length":
                self._found[name] = found
            return found

    def all(self, name: str) -> tuple[str, ...]:
        """The values of all fields called `name`."""
        wanted = name.lower()
        return tuple(value for known, value in self if known.lower() == wanted)

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for name, value in self.raw:
            yield name.decode("latin-1"), value.decode("latin-1").strip(" \t")

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        return f"Headers({[name.decode('latin-1') for name, _ in self.raw]})"  # values may be secrets


class KnownHead:
    """A head that was judged good, around its length: one that differs only there needs no judging.

    A peer's heads are mostly the same, and to read one is a fifth of an exchange's instructions.

    Attributes:
        headers: its fields, without their length.
        plain: whether whoever judged it found that nothing in it needs to be looked at again.

    """

    __slots__ = ("_after", "_around", "_before", "_sized", "headers", "plain")

    def __init__(self, before: bytes, after: bytes, headers: Headers) -> None:
        self._before = before
        self._after = after
        self._around = len(before) + len(after)
        self._sized: dict[int, bytes] = {}
        self.headers = headers
        self.plain = False

    def body(self, data: bytes) -> int:
        """Where the body begins, if `data` is such a head, its whole body and nothing else; else -1.

        A body of a hundred thousand bytes is left to who reads every head.
        """
        # The head is written rather than read, and kept: so many bytes of head and body can have one length alone, and
        # to look that head up and compare is a fifth of finding a number, cutting it out and reading it.
        head = self._sized.get(len(data))
        if head is None:
            head = self._size(len(data))
        return len(head) if head and data.startswith(head) else -1

    def begins(self, data: bytes) -> bool:
        """Whether `data` is such a head, and a body is to follow: what servers send that write them apart."""
        if not (data.startswith(self._before) and data.endswith(self._after)):
            return False
        length = data[len(self._before) : len(data) - len(self._after)]
        return len(length) <= LENGTH_DIGITS and length.isdigit() and int(length) > 0

    def _size(self, size: int) -> bytes:
        """The head that makes `size` bytes together with its body; empty if there is none."""
        both = size - self._around
        digits = 1 if both < 11 else 2 if both < 102 else 3 if both < 1_003 else 4 if both < 10_004 else 5
        length = b"%d" % (both - digits)
        head = b"%b%b%b" % (self._before, length, self._after) if len(length) == digits else b""
        if len(self._sized) >= SIZES:
            self._sized.clear()
        self._sized[size] = head
        return head


class KnownStream:
    """The head of an event stream that was judged good: one that is the same needs no judging."""

    __slots__ = ("_line", "head")

    def __init__(self, head: bytes) -> None:
        self.head = head
        self._line = b"\r\n"  # as this server ends lines

    def event(self, data: bytes) -> tuple[bytes, bool] | None:
        """The data of the one event that `data` is, behind this head, and whether the stream has ended with it.

        One chunk, as most servers write the reply to a call, and perhaps the last chunk; None for whatever else it is.
        As with `KnownHead`, all but the data is written and compared: a third of what it takes to read it.
        """
        begin, over = len(self.head), data.endswith(LAST_CHUNK)
        end = len(data) - (len(LAST_CHUNK) if over else 2)
        both = end - begin
        digits = 1 if both < 19 else 2 if both < 260 else 3 if both < 4_101 else 4
        opening = b"%x\r\nevent: message%bdata: " % (both - digits - 2, self._line)
        if not data.startswith(opening, begin):
            self._line = b"\n" if self._line == b"\r\n" else b"\r\n"
            opening = b"%x\r\nevent: message%bdata: " % (both - digits - 2, self._line)
            if not data.startswith(opening, begin):
                return None
        start, finish = begin + len(opening), end - 2 * len(self._line)
        text = data[start:finish]
        if (
            not text
            or text.find(b"\n") >= 0
            or text.find(b"\r") >= 0
            or not data.startswith(self._line * 2 + (LAST_CHUNK if over else b"\r\n"), finish)
        ):
            return None
        return text, over


def know(head: bytes, headers: Headers, limit: int) -> KnownHead | None:
    """What to know `head` by, which was judged good; None if no length frames the body, or it would be too long.

    Args:
        head: as it came.
        headers: its fields, as they will be handed out with each that is like it.
        limit: bytes of a head.

    """
    found = _LENGTH.search(head)
    if found is None or len(head) + LENGTH_DIGITS > limit:
        return None
    return KnownHead(head[: found.start(1)], head[found.end(1) :], headers)


def encode_headers(headers: Iterable[tuple[str, str]]) -> bytes:
    """The fields as bytes, without the empty line.

    Raises:
        ValueError: a name is no token, or a value has a line break, a NUL or another control character,
            or is not Latin-1. The value is not shown.

    """
    lines = []
    for name, value in headers:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"not a header name: {name!r}")
        if not value.isprintable() and _CONTROL.search(value):
            raise ValueError(f"the value of header {name} has a control character")
        lines.append(f"{name}: {value}\r\n")
    try:
        return "".join(lines).encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError("a header value is not Latin-1") from None


def check_target(target: str) -> None:
    """Raise ValueError unless `target` may stand in a request line."""
    if not _TARGET.fullmatch(target) or not (target.startswith("/") or target == "*"):
        raise ValueError("the request target is not a path of printable ASCII without spaces")


def check_head(head: bytes) -> None:
    """Refuse what httptools lets through in a head, whole or partial: bare line ends, folds, NUL.

    Raises:
        Unacceptable: 400 (RFC 9112, sections 2.2 and 5.2).

    """
    if head.count(b"\n") != head.count(b"\r\n"):
        raise Unacceptable(400, "a line ends without CR")
    if head.count(b"\r", 0, len(head) - 1) != head.count(b"\r\n"):  # the last byte may wait for its LF
        raise Unacceptable(400, "a CR without LF")
    if b"\r\n " in head or b"\r\n\t" in head:
        raise Unacceptable(400, "a folded header line")
    if b"\0" in head:
        raise Unacceptable(400, "a NUL in the head")


class Chunks:
    """A chunked body on its way in (RFC 9112, section 7.1). Strict, bounded, and it stops where the body ends.

    httptools cannot: it has no way to say where in the bytes a message ended.
    """

    __slots__ = ("_buffer", "_left", "_limit", "_overhead", "_stage", "body")

    def __init__(self, limit: int) -> None:
        self.body = bytearray()
        self._buffer = bytearray()
        self._limit = limit
        self._left = 0
        self._overhead = 0
        self._stage = "size"

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; returns what follows the body once it has ended, None before.

        Raises:
            Unacceptable: 400 for what is no chunked body, 413 for one beyond the bound.

        """
        buffer = self._buffer
        buffer += data
        while True:
            if self._stage == "data":
                if not buffer:
                    return None
                piece = buffer[: self._left]
                self.body += piece
                self._left -= len(piece)
                del buffer[: len(piece)]
                if self._left:
                    return None
                self._stage = "data end"
            elif self._stage == "data end":
                if not buffer.startswith(b"\r\n"):
                    if b"\r\n".startswith(buffer[:2]) and len(buffer) < 2:
                        return None
                    raise Unacceptable(400, "a chunk is longer than it said")
                del buffer[:2]
                self._stage = "size"
            elif self._stage == "size":
                line = self._line(CHUNK_LINE)
                if line is None:
                    return None
                found = _CHUNK_SIZE.fullmatch(line)
                if not found:
                    raise Unacceptable(400, "not a chunk size")
                self._left = int(found[1], 16)
                if len(self.body) + self._left > self._limit:
                    raise Unacceptable(413, f"the body is larger than the bound of {self._limit} bytes")
                self._overhead += len(line) + 4
                if self._overhead > CHUNK_OVERHEAD + 8 * len(self.body):
                    raise Unacceptable(400, "more chunk framing than data")
                self._stage = "data" if self._left else "trailer"
            else:
                line = self._line(TRAILER_LIMIT)
                if line is None:
                    return None
                if not line:
                    return bytes(buffer)
                self._overhead += len(line)
                if self._overhead > CHUNK_OVERHEAD + TRAILER_LIMIT + 8 * len(self.body):
                    raise Unacceptable(400, "the trailer is too long")

    def _line(self, limit: int) -> bytes | None:
        buffer = self._buffer
        end = buffer.find(b"\n", 0, limit + 2)
        if end < 0:
            if len(buffer) > limit:
                raise Unacceptable(400, "a line between chunks is too long")
            return None
        if end == 0 or buffer[end - 1] != 0x0D:
            raise Unacceptable(400, "a line ends without CR")
        line = bytes(buffer[: end - 1])
        del buffer[: end + 1]
        return line


def _matches(value: str, allowed: Iterable[str]) -> bool:
    for entry in allowed:
        known = entry.lower()
        if value == known:
            return True
        if known.endswith(":*"):
            name = known[:-2]
            if value == name or (value.startswith(name) and _PORT.fullmatch(value[len(name) :])):
                return True
    return False


def check_origin(
    host: str | None,
    origin: str | None,
    *,
    allowed_hosts: Iterable[str] = LOOPBACK_HOSTS,
    allowed_origins: Iterable[str] = LOOPBACK_ORIGINS,
) -> int | None:
    """The status to refuse a request with, or None if its `Host` and `Origin` are known ones.

    Against pages that reach a local server by a name of their own (DNS rebinding). Compared as a whole,
    never by prefix; `null` is the origin of no one (MCP 2026-07-28, streamable HTTP, security).

    Args:
        host: the `Host` header; None or empty is refused.
        origin: the `Origin` header; None (no browser) is fine.
        allowed_hosts: such as `gw.example.org` or `localhost:*`, which stands for any port or none.
        allowed_origins: such as `https://app.example.org` or `http://localhost:*`.

    Returns:
        421 for a missing or foreign host, 403 for a foreign origin.

    """
    if not host or not _matches(host.lower(), allowed_hosts):
        return 421
    if origin is not None and not _matches(origin.lower(), allowed_origins):
        return 403
    return None
