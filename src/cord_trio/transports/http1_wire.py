"""One connection's bytes: written at once where the socket takes them, queued where it does not.

A task is needed only for a backlog, so an exchange on a warm connection spawns none. TLS goes through
Trio's stream with a writer task of its own; both look the same from above.
"""

from __future__ import annotations

import math
import re
import select
import socket
import ssl
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs
import trio

from cord_trio.transports.dial import dial
from cord_trio.transports.http1 import READ_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.transports.dial import Proxy

HIGH_WATER = 256 * 1024
"""Bytes of backlog from which a writer had better wait."""

SMALL = 16 * 1024
"""Bytes of a body up to which it is copied behind its head: one system call, one packet."""

CONNECT_LIMIT = 10.0
"""Seconds to find, reach and greet (TLS) a server."""

STALL_LIMIT = 60.0
"""Seconds for which a peer may read nothing of what waits for it."""

PARTS = 64
"""Pieces handed to the kernel in one call."""

AT_ONCE = 256 * 1024
"""Bytes handed to the kernel in one call: more take it as long as many calls of a tool take us."""

_HOST = re.compile(r"[\w.%:~-]+")  # \w: names in any script


class Wire(ABC):
    """A connection that was made. Whoever owns it closes it.

    Attributes:
        fd: what to wait for before `take`; -1 for a connection that can only be read by `read`, or is closed.
        sent: bytes handed to the kernel, or to TLS, so far.
        waiting: bytes that wait for the peer to read.
        deadline: Trio time by which the peer has to read some of what waits; infinite if nothing does.

    """

    __slots__ = ()
    fd: int
    sent: int
    waiting: int
    deadline: float

    @abstractmethod
    def write(self, *parts: bytes) -> None:
        """Send at once what the peer takes, queue the rest in order.

        Raises:
            OSError: the connection is broken; nothing of it was sent.

        """

    def take(self) -> bytes | None:
        raise NotImplementedError

    @abstractmethod
    async def read(self) -> bytes:
        """The next bytes, empty once the peer has ended or this was closed."""

    @abstractmethod
    def quiet(self) -> bool:
        """Whether nothing came in unread: no bytes, no end."""

    @abstractmethod
    def close(self) -> None:
        """Close now. What waits is lost; a pending `read` returns empty."""


class SocketWire(Wire):
    """A plain socket, written to from synchronous code."""

    __slots__ = (
        "_backlog",
        "_broken",
        "_drained",
        "_finishing",
        "_nursery",
        "_poll",
        "deadline",
        "fd",
        "sent",
        "sock",
        "waiting",
    )

    def __init__(self, sock: socket.socket, nursery: trio.Nursery, broken: Callable[[], None] | None = None) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self._nursery = nursery
        self._broken = broken
        self._backlog: deque[bytes | memoryview] = deque()
        self._drained: trio.Event | None = None
        self._poll: select.poll | None = None
        self._finishing = False
        self.sent = 0
        self.waiting = 0
        self.deadline = math.inf

    def write(self, *parts: bytes) -> None:
        if self.fd < 0:
            raise OSError("the connection is closed")
        if self._backlog:
            self._backlog.extend(parts)
            self.waiting += sum(map(len, parts))
            return
        try:
            if len(parts) == 1:
                taken = self.sock.send(parts[0])
                if taken == len(parts[0]):  # nearly always
                    self.sent += taken
                    return
            else:
                taken = self.sock.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            taken = 0
        self.sent += taken
        for part in parts:
            size = len(part)
            if taken >= size:
                taken -= size
                continue
            self._backlog.append(memoryview(part)[taken:] if taken else part)
            self.waiting += size - taken
            taken = 0
        if self._backlog:
            self.deadline = trio.current_time() + STALL_LIMIT
            self._nursery.start_soon(self._flush)

    async def _flush(self) -> None:
        backlog = self._backlog
        try:
            while backlog:
                await trio.lowlevel.wait_writable(self.fd)
                try:
                    taken = self.sock.sendmsg(_first(backlog))
                except (BlockingIOError, InterruptedError):
                    continue
                self.sent += taken
                self.waiting -= taken
                self.deadline = trio.current_time() + STALL_LIMIT
                while taken:
                    size = len(backlog[0])
                    if taken < size:
                        backlog[0] = memoryview(backlog[0])[taken:]
                        break
                    taken -= size
                    backlog.popleft()
                if self._drained is not None and not self.congested:
                    self._drained.set()
                    self._drained = None
        except trio.ClosedResourceError:
            return
        except OSError:
            # What the peer still said (a refusal) can be read: the reader decides how this ends.
            self._discard()
            if self._broken is not None:
                self._broken()
            return
        self.deadline = math.inf
        if self._finishing:
            self._shutdown()

    def _discard(self) -> None:
        self._backlog.clear()
        self.waiting = 0
        self.deadline = math.inf
        if self._drained is not None:
            self._drained.set()
            self._drained = None

    @property
    def congested(self) -> bool:
        """Whether so much waits that a writer had better wait too."""
        return self.waiting > HIGH_WATER

    async def wait_uncongested(self) -> None:
        """Return once `congested` is False, or this was closed."""
        if not self.congested:
            await trio.lowlevel.checkpoint()
        while self.congested:
            if self._drained is None:
                self._drained = trio.Event()
            await self._drained.wait()

    async def read(self) -> bytes:
        try:
            while True:
                await trio.lowlevel.wait_readable(self.fd)
                try:
                    return self.sock.recv(READ_SIZE)
                except (BlockingIOError, InterruptedError):
                    continue
        except (OSError, ValueError, trio.ClosedResourceError):
            return b""

    def quiet(self) -> bool:
        # Asked before each request, so not by `recv`: the exception that says “nothing” costs more than the question.
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.fd, select.POLLIN)
        return not self._poll.poll(0)

    def finish(self) -> None:
        """Tell the peer, after what waits, that nothing more will come; reading goes on."""
        if self._backlog:
            self._finishing = True
        else:
            self._shutdown()

    def _shutdown(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is gone already

    def take(self) -> bytes | None:
        """The next bytes as `read` returns them, or None if there are none yet."""
        try:
            return self.sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def detach(self) -> socket.socket:
        """The socket, for somebody else: from here on this is as if closed.

        A reader that was just woken finds nothing to read, so no byte is lost to it.

        Raises:
            RuntimeError: something waits to be written.

        """
        if self._backlog:
            raise RuntimeError("an answer is still being written")
        trio.lowlevel.notify_closing(self.fd)
        self.fd = -1
        return socket.socket(fileno=self.sock.detach())

    def close(self) -> None:
        if self.fd >= 0:
            trio.lowlevel.notify_closing(self.fd)
            self.fd = -1
            self.sock.close()
            self._discard()


def _first(backlog: deque[bytes | memoryview]) -> list[bytes | memoryview]:
    """What of `backlog` is handed to the kernel next."""
    pieces: list[bytes | memoryview] = []
    room = AT_ONCE
    for piece in backlog:
        if room <= 0 or len(pieces) == PARTS:
            break
        pieces.append(piece if len(piece) <= room else memoryview(piece)[:room])
        room -= len(piece)
    return pieces


class QueuedWire(Wire):
    """A connection to which one task writes: what is sent waits for it in an outbox."""

    __slots__ = ("_closed", "_outbox", "_wake", "deadline", "fd", "sent", "waiting")

    def __init__(self) -> None:
        self.fd = -1
        self._outbox: deque[bytes] = deque()
        self._wake = trio.Event()
        self._closed = False
        self.sent = 0
        self.waiting = 0
        self.deadline = math.inf

    def write(self, *parts: bytes) -> None:
        if self._closed:
            raise OSError("the connection is closed")
        self._outbox.extend(parts)
        self.waiting += sum(map(len, parts))
        self._wake.set()


class TlsWire(QueuedWire):
    """A TLS connection: Trio's stream, with one task that writes."""

    __slots__ = ("_stream",)

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], nursery: trio.Nursery) -> None:
        super().__init__()
        self._stream = stream
        nursery.start_soon(self._write)

    async def _write(self) -> None:
        try:
            while not self._closed:
                while self._outbox:
                    part = self._outbox.popleft()
                    self.sent += len(part)
                    # A small part is counted out first: the kernel takes it, and its answer may be here
                    # before this task runs again.
                    late = len(part) > SMALL
                    self.waiting -= 0 if late else len(part)
                    await self._stream.send_all(part)
                    self.waiting -= len(part) if late else 0
                self._wake = trio.Event()
                await self._wake.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._outbox.clear()  # the reader decides how this ends

    async def read(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(READ_SIZE))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    def quiet(self) -> bool:
        # Session tickets come unasked, and cannot be told from a farewell before the reader has seen them.
        return not self._closed and not self._stream.transport_stream.socket.is_readable()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._outbox.clear()
            self._wake.set()
            self._stream.transport_stream.socket.close()  # a farewell could block, and nobody waits for it


@attrs.frozen
class Origin:
    """Where a URL leads: scheme, host and port.

    Attributes:
        host: as DNS knows it (A-labels), or an address without brackets.
        tls: whether it is https.
        name: the value of `Host`: with brackets where needed, and the port unless it is the usual one.

    """

    host: str
    port: int
    tls: bool
    name: str


def parse_origin(url: str) -> Origin:
    """The origin of an http or https URL.

    Raises:
        ValueError: it is none, or it holds credentials.

    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not an http or https URL with a host: {url!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL must not hold credentials")
    if not _HOST.fullmatch(parts.hostname):
        raise ValueError(f"not a host name: {parts.hostname!r}")
    tls = parts.scheme == "https"
    usual = 443 if tls else 80
    port = parts.port or usual
    host = parts.hostname if ":" in parts.hostname else trio.lowlevel.encode_hostname(parts.hostname).decode("ascii")
    name = f"[{host}]" if ":" in host else host
    return Origin(host, port, tls, name if port == usual else f"{name}:{port}")


def make_tls(verify: bool | ssl.SSLContext) -> ssl.SSLContext:
    """A context that checks certificates, unless `verify` is False or is a context itself."""
    if isinstance(verify, ssl.SSLContext):
        return verify
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def take_socket(sock: trio.socket.SocketType) -> socket.socket:
    """The descriptor of a Trio socket that nothing else uses, as a plain non-blocking socket."""
    family, type, proto = sock.family, sock.type, sock.proto
    plain = socket.socket(family, type, proto, fileno=sock.detach())
    try:
        plain.setblocking(False)
        if family != socket.AF_UNIX:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        plain.close()
        raise
    return plain


async def connect(
    origin: Origin, context: ssl.SSLContext | None, nursery: trio.Nursery, proxy: Proxy | None = None
) -> Wire:
    """A connection to `origin` or its proxy, whose tasks live in `nursery`. Raises as `dial` does."""
    stream = await dial(origin, context, proxy)
    if isinstance(stream, trio.SSLStream):
        return TlsWire(stream, nursery)
    return SocketWire(take_socket(stream.socket), nursery)
