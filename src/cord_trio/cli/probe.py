"""Look at a remote source step by step: name, TCP, TLS, proxy, redirect, status, authorization.

`check` runs this where connecting failed. It uses httpx, a client of another make than ours, so that what
it says does not share our mistakes.
"""

from __future__ import annotations

import re
import ssl
import urllib.request
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

import attrs
import httpx
import trio

from cord_trio.config import public_url
from cord_trio.protocol import eras, jsonrpc, mcp

if TYPE_CHECKING:
    from cord_trio.config import Http

STEP_LIMIT: Final = 10.0
"""Seconds for each step."""

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"
"""Where a server says who authorizes (RFC 9728, section 3)."""


@attrs.frozen
class Step:
    """What one step found."""

    name: str
    ok: bool
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {'ok' if self.ok else 'FAILED'}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


async def look(source: Http) -> list[Step]:
    """The steps towards `source` up to the first that fails."""
    parts = urlsplit(source.url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    found = [*_proxy(parts.scheme, host)]
    ways = [partial(_name, host, port), partial(_tcp, host, port)]
    if parts.scheme == "https":
        ways.append(partial(_tls, host, port))
    ways.append(partial(_answer, source))
    for way in ways:
        name = way.func.__name__.strip("_")
        step = Step(name, False, f"no answer within {STEP_LIMIT:g} s", "is a firewall in between, or the server stuck?")
        with trio.move_on_after(STEP_LIMIT):
            step = await way()
        found.append(step)
        if not step.ok:
            break
    return found


def _proxy(scheme: str, host: str) -> list[Step]:
    proxy = urllib.request.getproxies().get(scheme)
    if not proxy or urllib.request.proxy_bypass(host):
        return []
    what = f"the environment names {public_url(proxy)}, which is not used: the server is reached directly"
    return [Step("proxy", True, what, f"add {host} to NO_PROXY if that is right")]


async def _name(host: str, port: int) -> Step:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except OSError as exc:
        return Step("name", False, f"{host!r} has no address: {exc.strerror or exc}", "check the host in `url`")
    return Step("name", True, f"{host} is {', '.join(sorted({str(entry[4][0]) for entry in found}))}")


async def _tcp(host: str, port: int) -> Step:
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError as exc:
        return Step("tcp", False, f"port {port} of {host}: {_cause(exc)}", "is the server running, and on this port?")
    await trio.aclose_forcefully(stream)
    return Step("tcp", True, f"port {port} accepts connections")


async def _tls(host: str, port: int) -> Step:
    stream = await trio.open_ssl_over_tcp_stream(host, port)
    try:
        await stream.do_handshake()
    except (trio.BrokenResourceError, ssl.SSLError) as exc:
        cause = exc.__cause__ or exc
        remedy = "is it an http server?" if "WRONG_VERSION" in str(cause) else "check the certificate, or SSL_CERT_FILE"
        return Step("tls", False, str(cause), remedy)
    finally:
        await trio.aclose_forcefully(stream)
    return Step("tls", True, "the certificate is trusted")


async def _answer(source: Http) -> Step:
    """What the endpoint says to the first question of the modern era."""
    meta = mcp.envelope_meta(eras.LATEST_MODERN, {"name": "cord_trio", "version": "0"}, {})
    body = jsonrpc.encode_request(1, "server/discover", jsonrpc.object_of({"_meta": jsonrpc.object_of(meta)}))
    headers = {
        **source.headers,
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": eras.LATEST_MODERN,
        "mcp-method": "server/discover",
    }
    try:
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False) as client,
            client.stream("POST", source.url, content=body, headers=headers) as response,
        ):
            return await _judge(source, client, response)
    except httpx.HTTPError as exc:
        return Step("http", False, f"{type(exc).__name__}: {exc}", "does an HTTP server answer on this port?")


async def _judge(source: Http, client: httpx.AsyncClient, response: httpx.Response) -> Step:
    status = response.status_code
    if status in (301, 302, 303, 307, 308):
        target = urljoin(source.url, response.headers.get("location", ""))
        return Step("redirect", False, f"status {status} to {public_url(target)}", "put that into `url` if you trust it")
    if status == 407:
        return Step("proxy", False, "a proxy asks for credentials", "ask who runs the proxy")
    if status == 401:
        where = await _authorizer(source, client, response.headers.get("www-authenticate", ""))
        return Step("authorize", False, f"it asks for authorization{where}", "give an Authorization header in `headers`")
    if status == 403:
        return Step("authorize", False, "it forbids this (403)", "check the credentials and what they allow")
    if status in (404, 405):
        return Step("status", False, f"no MCP endpoint at this path ({status})", "check the path of `url`, often /mcp")
    if status >= 500:
        return Step("status", False, f"the server fails ({status})", "look at its log")
    return Step("http", True, f"an HTTP server answers ({status})")


async def _authorizer(source: Http, client: httpx.AsyncClient, challenge: str) -> str:
    """Who grants access, in words; empty if the server does not say (RFC 9728)."""
    found = re.search(r'resource_metadata="([^"]+)"', challenge)
    url = urljoin(source.url, found[1] if found else WELL_KNOWN)
    if urlsplit(url)[:2] != urlsplit(source.url)[:2]:
        return ""  # a stranger's word must not make us ask another host
    try:
        servers = (await client.get(url)).json()["authorization_servers"]
        return " at " + ", ".join(public_url(str(server)) for server in servers)
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return ""


def _cause(exc: BaseException) -> str:
    """The plain reason inside Trio's report of several failed addresses."""
    while isinstance(exc, BaseExceptionGroup) or exc.__cause__ is not None:
        exc = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc.__cause__ or exc
    words = str(getattr(exc, "strerror", None) or exc)
    return words.rpartition(": ")[2]  # Trio names the address first, which was said already
