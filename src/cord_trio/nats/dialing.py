"""Reaching one NATS server: the address, the wire, who it is, and who we are."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from urllib.parse import urlsplit

import attrs
import trio
from msgspec.structs import replace

from cord_trio.errors import ConnectFailed
from cord_trio.mesh_errors import NatsMalformed
from cord_trio.nats.keys import sign_in
from cord_trio.nats.websocket import OpeningFailed, open_wire
from cord_trio.nats.wire import LEAST_RELEASE, PING, PONG, Beat, Info, Parser, Refusal, encode_hello
from cord_trio.transports.dial import dial, find_proxy
from cord_trio.transports.http1_wire import SocketWire, TlsWire, make_tls, parse_origin, take_socket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.nats.keys import Credentials
    from cord_trio.nats.wire import Event, Hello
    from cord_trio.transports.http1_wire import Origin, Wire

Kind: TypeAlias = Literal["nats", "tls", "ws", "wss"]

USUAL_PORT: Final = 4222
"""Of a server, where its URL names none."""

GREETING_LIMIT: Final = 5.0
"""Seconds for a server that took the connection to say INFO, with which one begins (NATS client protocol, INFO)."""

_PLAIN: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")
"""What OpenSSL calls an answer that is none of TLS."""

_PORTS: Final = {"nats": USUAL_PORT, "tls": USUAL_PORT, "ws": 80, "wss": 443}


@attrs.frozen
class Server:
    """Where a server is.

    Attributes:
        kind: how it is talked to: `nats` over TCP, and TLS where the server wants it; `tls` over TLS only; `ws` and
            `wss` over a WebSocket.
        origin: host and port.
        path: of a WebSocket.

    """

    kind: Kind
    origin: Origin
    path: str = "/"

    @property
    def name(self) -> str:
        """What a person knows it by."""
        return f"{self.kind}://{self.origin.name}"


def parse_server(url: str) -> Server:
    """The server of a URL such as `nats://host:4222`; a host alone is one too.

    Raises:
        ValueError: it is none, or it holds credentials.

    """
    whole = url if "://" in url else f"nats://{url}"
    parts = urlsplit(whole)
    kind = parts.scheme
    if kind not in _PORTS or not parts.hostname:
        raise ValueError(f"no URL of a NATS server: {url[:100]!r}; one begins with nats://, tls://, ws:// or wss://")
    if parts.username is not None:
        raise ValueError("the URL of a NATS server must not hold credentials; give them by themselves")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    origin = parse_origin(f"{'https' if kind in ('tls', 'wss') else 'http'}://{host}:{parts.port or _PORTS[kind]}")
    try:
        origin.host.encode("idna")  # as it is looked up
    except UnicodeError as exc:
        raise ValueError(f"not a host name: {origin.host[:100]!r}") from exc
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Server(kind, origin, path if kind in ("ws", "wss") else "/")  # type: ignore[arg-type]  # a key of _PORTS


@attrs.define
class Greeted:
    """A connection that is open, and what came with it.

    Attributes:
        wire: its bytes.
        parser: of what comes in.
        info: what the server said of itself.
        early: events that followed the greeting.

    """

    wire: Wire
    parser: Parser
    info: Info
    early: list[Event]


async def greet(
    server: Server,
    nursery: trio.Nursery,
    *,
    credentials: Credentials,
    hello: Hello,
    verify: bool | ssl.SSLContext = True,
    environ: Mapping[str, str] | None = None,
    max_payload: int,
) -> Greeted:
    """Connect to `server`, and say who we are. The wire's tasks live in `nursery`; the caller closes the wire.

    Raises:
        ConnectFailed: at which step, and why.

    """
    name = server.name
    try:
        wire = await _reach(server, nursery, verify, environ)
    except (OSError, trio.BrokenResourceError, OpeningFailed) as exc:
        raise _unreached(name, exc) from exc
    reader = _Reader(wire, max_payload)
    try:
        info = None
        with trio.move_on_after(GREETING_LIMIT):
            info = await reader.info(name)
        if info is None:  # or one that is held up, so that it is worth another attempt
            reason = f"it took the connection, and said nothing within {GREETING_LIMIT:g} s, as no NATS server does"
            raise ConnectFailed(name, "connect", reason, "is the port that of a NATS server?")
        if info.release < LEAST_RELEASE:
            raise _too_old(name, info)
        if server.kind == "tls" or (server.kind == "nats" and info.tls_required):
            wire = await _secure(wire, server.origin, verify, nursery)
            reader = _Reader(wire, max_payload)
        wire.write(encode_hello(sign_in(info, credentials, replace(hello, tls_required=server.origin.tls))), PING)
        info = await reader.until_pong(name, info, credentials)
    except (OSError, trio.BrokenResourceError, NatsMalformed) as exc:
        wire.close()
        raise _unreached(name, exc) from exc
    except BaseException:
        wire.close()
        raise
    return Greeted(wire, reader.parser, info, reader.events)


async def _reach(
    server: Server, nursery: trio.Nursery, verify: bool | ssl.SSLContext, environ: Mapping[str, str] | None
) -> Wire:
    if server.kind in ("nats", "tls"):
        # TLS begins only after the server's first words, so the stream is plain.
        stream = await dial(server.origin, None)
        assert isinstance(stream, trio.SocketStream)
        return SocketWire(take_socket(stream.socket), nursery)
    origin = server.origin
    proxy = find_proxy(origin, os.environ if environ is None else environ)
    below = await dial(origin, make_tls(verify) if origin.tls else None, proxy, tunnel=True)
    try:
        return await open_wire(below, origin.name, server.path, nursery)
    except BaseException:
        (below.transport_stream if isinstance(below, trio.SSLStream) else below).socket.close()
        raise


async def _secure(wire: Wire, origin: Origin, verify: bool | ssl.SSLContext, nursery: trio.Nursery) -> TlsWire:
    """The same connection in TLS."""
    assert isinstance(wire, SocketWire)
    context = verify if isinstance(verify, ssl.SSLContext) else ssl.create_default_context()
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    below = trio.SocketStream(trio.socket.from_stdlib_socket(wire.detach()))
    secure = trio.SSLStream(below, context, server_hostname=origin.host, https_compatible=True)
    try:
        await secure.do_handshake()
    except BaseException:
        below.socket.close()
        raise
    return TlsWire(secure, nursery)


class _Reader:
    """Reads one event after the other while a connection is being opened."""

    def __init__(self, wire: Wire, max_payload: int) -> None:
        self.parser = Parser(max_payload=max_payload)
        self.events: list[Event] = []
        self._wire = wire

    async def next(self, name: str) -> Event:
        while not self.events:
            data = await self._wire.read()
            if not data:
                raise ConnectFailed(name, "handshake", "the server closed the connection")
            self.events = self.parser.feed(data)
        return self.events.pop(0)

    async def info(self, name: str) -> Info:
        event = await self.next(name)
        if isinstance(event, Refusal):
            raise ConnectFailed(name, "handshake", f"the server refuses: {event.text}")
        if not isinstance(event, Info):
            raise ConnectFailed(name, "handshake", "the server does not begin with INFO")
        return event

    async def until_pong(self, name: str, info: Info, credentials: Credentials) -> Info:
        """Wait for the server to have taken us. Returns what it last said of itself."""
        while True:
            match await self.next(name):
                case Beat.PONG:
                    return info
                case Beat.PING:
                    self._wire.write(PONG)
                case Info() as info:
                    pass
                case Refusal(text):
                    raise _refused(name, text, credentials)
                case _:
                    pass  # nothing else is for us yet


def _refused(name: str, text: str, credentials: Credentials) -> ConnectFailed:
    lower = text.lower()
    if "authorization" in lower or "authentication" in lower:
        known = credentials.key or credentials.user or credentials.token
        remedy = "does its configuration name that one?" if known else "give it credentials that it knows"
        return ConnectFailed(name, "authorize", f"the server refuses {credentials.shown}: {text}", remedy)
    return ConnectFailed(name, "handshake", f"the server refuses us: {text}")


def _too_old(name: str, info: Info) -> ConnectFailed:
    least = ".".join(map(str, LEAST_RELEASE))
    reason = f"nats-server {info.version or '(unknown)'} is too old: it would silently keep what is to expire"
    return ConnectFailed(name, "handshake", reason, f"use nats-server {least} or newer")


def _unreached(name: str, exc: Exception) -> ConnectFailed:
    if isinstance(exc, NatsMalformed):
        return ConnectFailed(name, "handshake", f"it speaks no NATS: {exc}", "is the port that of a NATS server?")
    if isinstance(exc, OpeningFailed):
        return ConnectFailed(name, "http", str(exc), "does the server have a WebSocket listener on this port?")
    cause = exc.__cause__
    if isinstance(exc, ssl.SSLError) or isinstance(cause, ssl.SSLError):
        said = exc if isinstance(exc, ssl.SSLError) else cause
        if said.reason in _PLAIN:  # type: ignore[union-attr]  # one of the two
            return ConnectFailed(name, "tls", f"its answer is none of TLS: {said}", "does the server speak TLS here?")
        return ConnectFailed(name, "tls", str(said), "check the certificate, or SSL_CERT_FILE")
    if isinstance(exc, trio.BrokenResourceError):
        return ConnectFailed(name, "connect", "the server broke the connection off")
    first = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else exc
    words = first.strerror if isinstance(first, OSError) and first.strerror else str(first)
    words = words.partition("): ")[2] or words  # Trio names the address first, which was said already
    return ConnectFailed(name, "connect", words, "is the server running, and on this port?")
