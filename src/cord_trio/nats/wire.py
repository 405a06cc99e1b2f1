"""What bytes mean between a NATS client and its server: bytes in, events out; values in, bytes out.

Pure. The parser takes bytes in pieces of any size, and costs time in proportion to the bytes alone: what is
incomplete waits in one growing buffer, which is looked at again only once it can be complete.
Source of the rules: the NATS client protocol, and ADR-4 for headers.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

import msgspec

from cord_trio.mesh_errors import NatsMalformed

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_LINE: Final = 64 * 1024
"""Bytes of the longest control line taken in; INFO of a large cluster is the longest there is."""

MAX_PAYLOAD: Final = 16 * 1024 * 1024
"""Bytes of the longest message taken in, headers included. A server's own bound is 1 MiB unless configured."""

MAX_HEADERS: Final = 64 * 1024
"""Bytes of the longest header block taken in, and sent; of a longer one that comes nothing is known."""

MAX_CONTROL: Final = 4096
"""Bytes of the longest control line sent: past it a server with its usual settings ends the connection."""

LEAST_RELEASE: Final = (2, 11)
"""The first release that ends a key by itself; those before ignore what they are told of it, without a word."""

NO_RESPONDERS: Final = 503
"""The status of a message that says that nobody listens."""

PING: Final = b"PING\r\n"
PONG: Final = b"PONG\r\n"

_HEAD: Final = b"NATS/1.0"
_NO_HEADERS: Final = b"NATS/1.0\r\n\r\n"
_CR: Final = 13
_SIZE_DIGITS: Final = 10
_SID_DIGITS: Final = 18
_SUBJECT: Final = re.compile(r"[^\x00-\x20\x7f.]+(?:\.[^\x00-\x20\x7f.]+)*")
_FIELD: Final = re.compile(r"[!-9;-~]+")  # visible ASCII but the colon
_USUAL: Final = frozenset(
    ("C-Ver", "C-Op", "C-Id", "C-Srv", "C-Tool", "C-Ttl", "C-Prin", "C-Settled", "C-From-Epoch", "C-K", "C-Load")
)
"""Names of headers that every call has, and that are known to be sound."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message for one of our subscriptions.

    Attributes:
        subject: what it was published to.
        sid: the subscription's number.
        reply: where an answer goes; "" if none is awaited.
        head: its header block as it came, from `NATS/1.0` to the blank line; empty if it has none.
        data: its payload.

    """

    subject: str
    sid: int
    reply: str
    head: bytes
    data: bytes

    @property
    def status(self) -> int:
        """What the server says instead of a peer: 503 nobody listens, 404 no message, 100 idle; 0 for none."""
        digits = self.head[9:12]
        return int(digits) if self.head[8:9] == b" " and len(digits) == 3 and digits.isdigit() else 0

    @property
    def description(self) -> str:
        """The words beside `status`."""
        return self.head.partition(b"\r\n")[0][12:].decode(errors="replace").strip() if self.status else ""

    def headers(self) -> list[tuple[str, str]]:
        """Its headers in order; lines that are none are left out. Names are case-sensitive (ADR-4)."""
        pairs = []
        for line in self.head.split(b"\r\n")[1:]:
            name, colon, value = line.decode(errors="replace").partition(":")
            if colon:
                pairs.append((name, value.strip(" \t")))
        return pairs

    def header(self, name: str) -> str | None:
        """The first value of header `name`; None if it has none."""
        start = self.head.find(b"\r\n%b:" % name.encode())
        if start < 0:
            return None
        start += len(name.encode()) + 3
        return self.head[start : self.head.index(b"\r\n", start)].decode(errors="replace").strip(" \t")


class Info(msgspec.Struct, frozen=True):
    """What a server says of itself, when it is reached and whenever that changes.

    Attributes:
        version: its release, such as 2.11.4.
        server_name: its name.
        max_payload: bytes of the longest message that it takes, headers included.
        headers: whether it knows headers.
        jetstream: whether it keeps streams.
        auth_required: whether it wants to know who we are.
        tls_required: whether it goes on in TLS only.
        tls_available: whether it would go on in TLS.
        nonce: what a key has to sign.
        connect_urls: other servers of its cluster, as host:port.
        ldm: whether it is about to stop, and wants us elsewhere.

    """

    version: str = ""
    server_name: str = ""
    max_payload: int = 1024 * 1024
    headers: bool = False
    jetstream: bool = False
    auth_required: bool = False
    tls_required: bool = False
    tls_available: bool = False
    nonce: str = ""
    connect_urls: tuple[str, ...] = ()
    ldm: bool = False

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor number of its version; zeros where it has none."""
        found = re.match(r"(\d{1,6})\.(\d{1,6})", self.version, re.ASCII)
        return (int(found[1]), int(found[2])) if found else (0, 0)


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """An error that the server reports, in its own words: `Permissions Violation for Publish to "a.b"`."""

    text: str


class Beat(enum.Enum):
    """What says no more than its name."""

    PING = "PING"
    PONG = "PONG"
    OK = "+OK"


Event: TypeAlias = Message | Info | Refusal | Beat


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """What we say of ourselves; the payload of CONNECT. What is empty is not said.

    Attributes:
        name: what the server calls us in its logs.
        version: ours.
        echo: whether we get what we publish ourselves.
        tls_required: whether we would talk in TLS only.
        user: with `password`.
        password: with `user`.
        auth_token: instead of these.
        jwt: of a user, which `sig` proves to be ours.
        nkey: the public key of a user, which `sig` proves to be ours.
        sig: the server's nonce, signed, in URL-safe base64 without padding.

    """

    name: str = ""
    version: str = ""
    echo: bool = True
    tls_required: bool = False
    user: str = ""
    password: str = msgspec.field(default="", name="pass")
    auth_token: str = ""
    jwt: str = ""
    nkey: str = ""
    sig: str = ""

    def __repr__(self) -> str:
        return f"Hello(name={self.name!r})"  # the rest is secret


class Parser:
    """Takes what a server sends, in pieces, and returns what it says.

    Invariant: what comes out does not depend on how the stream is cut. Of no use after `NatsMalformed`.
    """

    __slots__ = ("_frame", "_kept", "_max_headers", "_max_line", "_max_payload", "_need")

    def __init__(
        self, *, max_line: int = MAX_LINE, max_payload: int = MAX_PAYLOAD, max_headers: int = MAX_HEADERS
    ) -> None:
        self._max_line = max_line
        self._max_payload = max_payload
        self._max_headers = max_headers
        self._kept = bytearray()
        self._frame = ("", 0, "", 0)  # subject, sid, reply, bytes of headers
        self._need = 0  # bytes of payload and line end that `_frame` waits for; 0 between frames

    def feed(self, data: bytes) -> list[Event]:
        """What `data` completes.

        Raises:
            NatsMalformed: the server breaks the protocol, or passes a bound. `before` holds what came before.

        """
        kept = self._kept
        if kept:
            if self._need > len(kept) + len(data) or not (self._need or b"\n" in data):
                kept += data
                if not self._need and len(kept) > self._max_line:
                    self._too_long("control line", self._max_line)
                return []
            data = b"".join((kept, data))
            kept.clear()
        events: list[Event] = []
        try:
            rest = self._parse(data, events)
        except NatsMalformed as exc:
            exc.before = tuple(events)
            raise
        kept += data[rest:] if rest else data
        return events

    def _parse(self, data: bytes, events: list[Event]) -> int:
        """Append the events of `data`; returns where what is incomplete begins."""
        at, size = 0, len(data)
        while at < size:
            if self._need:
                end = at + self._need
                if end > size:
                    break
                events.append(self._message(data, at, end - 2))
                self._need = 0
                at = end
                continue
            end = data.find(b"\n", at)
            if (size if end < 0 else end) - at > self._max_line:
                self._too_long("control line", self._max_line)
            if end < 0:
                break
            line = data[at : end - 1] if end > at and data[end - 1] == _CR else data[at:end]
            at = end + 1
            self._line(line, events)
        return at

    def _message(self, data: bytes, start: int, end: int) -> Message:
        if data[end : end + 2] != b"\r\n":
            raise NatsMalformed("a payload is not followed by a line end")
        subject, sid, reply, length = self._frame
        head = data[start : start + length]
        if length and not (length <= self._max_headers and head.startswith(_HEAD) and head.endswith(b"\r\n\r\n")):
            head = _NO_HEADERS  # who published it is at fault: a server passes on what it is given
        return Message(subject, sid, reply, head, data[start + length : end])

    def _line(self, line: bytes, events: list[Event]) -> None:
        verb, _, rest = line.partition(b" ")
        match verb.upper():
            case b"MSG":
                self._begin(rest.split(), 0, line)
            case b"HMSG":
                self._begin(rest.split(), 1, line)
            case b"PING":
                events.append(Beat.PING)
            case b"PONG":
                events.append(Beat.PONG)
            case b"+OK":
                events.append(Beat.OK)
            case b"-ERR":
                events.append(Refusal(rest.decode(errors="replace").strip(" '")))
            case b"INFO":
                try:
                    events.append(_INFO.decode(rest))
                except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
                    raise NatsMalformed(f"INFO that cannot be read: {exc}") from exc
            case _:
                raise NatsMalformed(f"a line that is none of NATS: {_shown(line)}")

    def _begin(self, words: list[bytes], headed: int, line: bytes) -> None:
        """Wait for the payload that a line announces: subject, sid, perhaps reply, perhaps size of headers, size."""
        count = 3 + headed
        if not count <= len(words) <= count + 1:
            raise NatsMalformed(f"a message with other than {count} or {count + 1} words: {_shown(line)}")
        total = _number(words[-1], _SIZE_DIGITS, line)
        length = _number(words[-2], _SIZE_DIGITS, line) if headed else 0
        if total > self._max_payload:
            self._too_long("message", self._max_payload)
        if length > total:
            raise NatsMalformed(f"headers that are longer than their message: {_shown(line)}")
        # That they are UTF-8 is up to who published it as well.
        reply = words[2].decode(errors="replace") if len(words) > count else ""
        self._frame = (words[0].decode(errors="replace"), _number(words[1], _SID_DIGITS, line), reply, length)
        self._need = total + 2

    def _too_long(self, what: str, limit: int) -> NoReturn:
        self._kept.clear()
        raise NatsMalformed(f"a {what} is longer than {limit} bytes")


_INFO: Final = msgspec.json.Decoder(Info)


def check_subject(subject: str, *, pattern: bool = False) -> str:
    """`subject`, if it can be published to; with `pattern`, if it can be subscribed to.

    Raises:
        ValueError: a token is empty, or holds space or a control character; or a wildcard where none may be.

    """
    if _SUBJECT.fullmatch(subject) is None:
        raise ValueError(f"no subject of NATS: {subject[:100]!r}")
    if "*" in subject or ">" in subject:
        tokens = subject.split(".")
        if ("*" in tokens or ">" in tokens) if not pattern else ">" in tokens[:-1]:
            raise ValueError(f"a wildcard in the wrong place: {subject[:100]!r}")
    return subject


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """A header block.

    Raises:
        ValueError: a name or value would not come back, or the block is longer than `MAX_HEADERS`.

    """
    parts = ["NATS/1.0\r\n"]
    for name, value in headers.items():
        if name not in _USUAL and _FIELD.fullmatch(name) is None:
            raise ValueError(f"no name of a header: {name[:100]!r}")
        if "\r" in value or "\n" in value or value != value.strip(" \t"):
            raise ValueError(f"the value of header {name[:100]} holds a line end, or space at an end")
        parts.append(f"{name}: {value}\r\n")
    block = "".join([*parts, "\r\n"]).encode()
    if len(block) > MAX_HEADERS:
        raise ValueError(f"headers of {len(block)} bytes, where {MAX_HEADERS} may be")
    return block


def encode_publish(subject: str, data: bytes, *, reply: str = "", head: bytes = b"") -> bytes:
    """PUB, or HPUB where there are headers; `subject` and `reply` were checked.

    Raises:
        ValueError: the names are longer than a server takes.

    """
    names = f"{subject} {reply} " if reply else f"{subject} "
    if head:
        line = f"HPUB {names}{len(head)} {len(head) + len(data)}\r\n".encode()
    else:
        line = f"PUB {names}{len(data)}\r\n".encode()
    return b"".join((_bounded(line), head, data, b"\r\n"))


def encode_subscribe(subject: str, sid: int, *, queue: str = "") -> bytes:
    """SUB; `subject` and `queue` were checked. Raises as `encode_publish` does."""
    return _bounded(f"SUB {subject} {queue} {sid}\r\n".encode() if queue else f"SUB {subject} {sid}\r\n".encode())


def encode_unsubscribe(sid: int) -> bytes:
    """UNSUB, with immediate effect."""
    return b"UNSUB %d\r\n" % sid


def encode_hello(hello: Hello) -> bytes:
    """CONNECT: no acknowledgements, headers, and word when nobody listens to a request."""
    said = msgspec.to_builtins(hello)
    fixed = {"verbose": False, "pedantic": False, "lang": "python-trio", "protocol": 1, "headers": True}
    return b"CONNECT " + msgspec.json.encode({**fixed, "no_responders": True, **said}) + b"\r\n"


def _bounded(line: bytes) -> bytes:
    if len(line) > MAX_CONTROL:
        raise ValueError(f"a control line of {len(line)} bytes, where {MAX_CONTROL} may be: {_shown(line)}")
    return line


def _number(digits: bytes, most: int, line: bytes) -> int:
    if not digits.isdigit() or len(digits) > most:
        raise NatsMalformed(f"no number where one must be: {_shown(line)}")
    return int(digits)


def _shown(line: bytes) -> str:
    """The start of a line, for a person."""
    return repr(line[:80].decode(errors="replace"))
