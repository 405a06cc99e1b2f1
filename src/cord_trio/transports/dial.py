"""Reaching a server: straight, or through the HTTP proxy that the environment names for it.

Proxies are chosen as curl and Go choose them: `HTTPS_PROXY`, `HTTP_PROXY`, else `ALL_PROXY`, lower case
first; `NO_PROXY` exempts, and so does a loopback address, since no proxy can reach the one that is meant.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import unquote, urlsplit

import attrs
import trio

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from cord_trio.transports.http1_wire import Origin

    Stream: TypeAlias = trio.SocketStream | trio.SSLStream[trio.SocketStream]

KEEPALIVE: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
"""Seconds of silence before the kernel asks whether the peer is still there, between questions, and how many."""

ANSWER_LIMIT: Final = 32 * 1024
"""Bytes of a proxy's answer to CONNECT."""

SHOWN: Final = 100
"""Characters shown of what a proxy says."""

_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})([^\r\n]*)")


class ProxyFailed(OSError):
    """The proxy cannot be used, or does not let us through. Holds no credentials."""


@attrs.frozen
class Proxy:
    """One HTTP proxy.

    Attributes:
        host: its name or address.
        port: its port.
        variable: the environment variable that names it.
        authorization: the value of `Proxy-Authorization`; None for none.
        fault: why it cannot be used; "" if it can.

    """

    host: str
    port: int
    variable: str
    authorization: str | None = attrs.field(default=None, repr=False)
    fault: str = ""

    @property
    def name(self) -> str:
        """What a person knows it by, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port} ({self.variable})"


def find_proxy(origin: Origin, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy for `origin`; None to reach it straight."""
    if _exempt(origin, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return None
    for name in ("https_proxy" if origin.tls else "http_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if variable == "HTTP_PROXY" and "REQUEST_METHOD" in environ:
                continue  # in a CGI program that variable is a client's `Proxy` header
            if value := environ.get(variable, "").strip():
                return _parse(value, variable)
    return None


def _parse(value: str, variable: str) -> Proxy:
    fault = "is no URL of a proxy"
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname or "", parts.port or 80
    except ValueError:
        return Proxy("", 0, variable, fault=fault)
    if parts.scheme != "http":
        return Proxy(host, port, variable, fault=f"names a proxy of kind {parts.scheme!r}; only http:// is supported")
    if not host:
        return Proxy("", 0, variable, fault=fault)
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return Proxy(host, port, variable, authorization)


def _exempt(origin: Origin, exemptions: str) -> bool:
    host = origin.host.lower().rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback):
        return True
    return any(_names(entry, host, address, origin.port) for entry in exemptions.lower().replace(",", " ").split())


def _names(entry: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int) -> bool:
    """Whether one entry of `NO_PROXY` is about this host."""
    if entry == "*":
        return True
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            pass  # perhaps it has a port
    name, colon, tail = entry.rpartition(":")
    if colon and tail.isdigit():
        if int(tail) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").removeprefix(".").rstrip(".")
    return bool(entry) and (host == entry or (address is None and host.endswith(f".{entry}")))


async def dial(
    origin: Origin, context: ssl.SSLContext | None, proxy: Proxy | None = None, *, tunnel: bool = False
) -> Stream:
    """A stream to `origin`, over TLS if there is a context. The one place where connections are made.

    Args:
        origin: where to.
        context: how to check its certificate; None for no TLS.
        proxy: by way of this one.
        tunnel: whether the proxy must pass bytes on without TLS too; otherwise the stream ends at the proxy, and
            it is asked with absolute URLs.

    Raises:
        ProxyFailed: the proxy does not let us through.
        OSError: it cannot be reached, or its certificate is not good (`ssl.SSLError`).
        trio.BrokenResourceError: it went away while TLS was set up.

    """
    stream = await _reach(origin, proxy)
    try:
        _stay_alive(stream.socket)
        if proxy is not None and (tunnel or context is not None):
            await _dig(stream, origin, proxy)
        if context is None:
            return stream
        secure = trio.SSLStream(stream, context, server_hostname=origin.host, https_compatible=True)
        await secure.do_handshake()
        return secure
    except BaseException:
        stream.socket.close()
        raise


async def _reach(origin: Origin, proxy: Proxy | None) -> trio.SocketStream:
    if proxy is None:
        return await trio.open_tcp_stream(origin.host, origin.port)
    if proxy.fault:
        raise ProxyFailed(f"{proxy.variable} {proxy.fault}")
    try:
        return await trio.open_tcp_stream(proxy.host, proxy.port)
    except OSError as exc:
        cause = exc.__cause__
        first = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else exc
        words = first.strerror if isinstance(first, OSError) and first.strerror else str(first)
        raise ProxyFailed(f"the proxy {proxy.name} cannot be reached: {words}") from None


async def _dig(stream: trio.SocketStream, origin: Origin, proxy: Proxy) -> None:
    """Ask the proxy for a tunnel (RFC 9110, section 9.3.6)."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    place = f"{host}:{origin.port}"
    wanted = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
    if proxy.authorization is not None:
        wanted.append(f"Proxy-Authorization: {proxy.authorization}")
    head = b""
    try:
        await stream.send_all("\r\n".join([*wanted, "", ""]).encode())
        while b"\r\n\r\n" not in head:
            more = await stream.receive_some(ANSWER_LIMIT)
            head += more
            if not more or len(head) > ANSWER_LIMIT:
                raise ProxyFailed(f"the proxy {proxy.name} gave no answer to CONNECT")
    except trio.BrokenResourceError:
        raise ProxyFailed(f"the proxy {proxy.name} broke the connection off") from None
    found = _STATUS.match(head)
    status = int(found[1]) if found else 0
    if status == 407:
        raise ProxyFailed(refusal(proxy))
    if found is None or not 200 <= status < 300 or not head.endswith(b"\r\n\r\n"):
        said = f"{status}{found[2].decode('latin-1').rstrip()[:SHOWN]}" if found else "what is no HTTP"
        rest = ", and more than that" if 200 <= status < 300 else ""
        raise ProxyFailed(f"the proxy {proxy.name} answered CONNECT to {place} with {said}{rest}")


def refusal(proxy: Proxy) -> str:
    """What a 407 means, in words."""
    if proxy.authorization is None:
        return (
            f"the proxy {proxy.name} asks for credentials (407): write them into {proxy.variable}, user:password@host"
        )
    return f"the proxy {proxy.name} does not take the credentials in {proxy.variable} (407)"


def _stay_alive(sock: trio.socket.SocketType) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
