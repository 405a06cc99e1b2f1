"""Look at a remote source step by step: name, TCP, TLS, proxy, redirect, status, authorization.

`check` runs this where connecting failed. It uses httpx, a client of another make than ours, so that what
it says does not share our mistakes.
"""

from __future__ import annotations

import json
import os
import re
import ssl
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

import attrs
import httpx  # noqa: ASYNC127  # the ecosystem's client, as our users run it
import trio

from cord_trio.config import public_url
from cord_trio.protocol import eras, jsonrpc, mcp
from cord_trio.transports.dial import ProxyFailed, dial, find_proxy
from cord_trio.transports.http1_wire import parse_origin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from cord_trio.config import Http
    from cord_trio.transports.dial import Proxy
    from cord_trio.transports.http1_wire import Origin

STEP_LIMIT: Final = 5.0
"""Seconds for each step."""

GUESS_LIMIT: Final = 1.0
"""Seconds to find out whether a port that speaks no plain HTTP speaks TLS."""

METADATA_LIMIT: Final = 64 * 1024
"""Bytes of what a server says about who authorizes."""

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"
"""Where a server says who authorizes, the endpoint's path after it (RFC 9728, section 3)."""


@attrs.frozen
class Step:
    """What one step found."""

    name: str
    ok: bool
    what: str
    remedy: str = ""


async def look(source: Http) -> list[Step]:
    """The steps towards `source` up to the first that fails."""
    parts = urlsplit(source.url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    origin = parse_origin(source.url)
    proxy = find_proxy(origin, os.environ)
    found: list[Step] = []
    ways: list[tuple[str, Callable[[], Awaitable[Step]]]] = [
        ("name", partial(_name, host, port)),
        ("tcp", partial(_tcp, host, port)),
    ]
    if parts.scheme == "https":
        ways.append(("tls", partial(_tls, host, port)))
    if proxy is not None:
        ways = [("proxy", partial(_proxy, origin, proxy))]  # which finds the server itself
    ways.append(("http", partial(_answer, source, proxy)))
    for name, way in ways:
        step = None
        with trio.move_on_after(STEP_LIMIT):
            step = await way()
        if step is None or not step.ok:
            found.append(
                step if step is not None and proxy is not None else await _explained(name, step, source, host, port)
            )
            break
        found.append(step)
    return found


async def _explained(name: str, step: Step | None, source: Http, host: str, port: int) -> Step:
    """The step that failed, or that was silent, with a guess where one can be made."""
    if name == "http" and (step is None or step.name == "http") and source.url.startswith("http://"):
        encrypted = False
        with trio.move_on_after(GUESS_LIMIT):
            encrypted = await _speaks_tls(host, port)
        if encrypted:
            return Step("http", False, f"port {port} of {host} speaks TLS", "write https:// in `url`")
    if step is not None:
        return step
    remedy = {
        "name": "is the network up?",
        "tcp": "is a firewall in between?",
        "proxy": "is the proxy stuck, or the server?",
        "tls": "is it an http:// server, or stuck?",
        "http": "is it an MCP server, or stuck?",
    }[name]
    return Step(name, False, f"no answer within {STEP_LIMIT:g} s", remedy)


async def _proxy(origin: Origin, proxy: Proxy) -> Step:
    """Whether the proxy of the environment takes us, and for https to the server."""
    context = ssl.create_default_context() if origin.tls else None
    remedy = f"add {origin.host} to NO_PROXY if it is to be reached straight"
    try:
        stream = await dial(origin, context, proxy)
    except ProxyFailed as exc:
        return Step("proxy", False, str(exc), remedy)
    except (trio.BrokenResourceError, ssl.SSLError) as exc:
        return Step("tls", False, *_tls_fault(exc.__cause__ or exc))
    await trio.aclose_forcefully(stream)
    return Step("proxy", True, f"the way leads over the proxy {proxy.name}", remedy)


async def _name(host: str, port: int) -> Step:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        words = getattr(exc, "strerror", None) or exc
        return Step("name", False, f"{host!r} has no address: {words}", "check the host in `url`, and the network")
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
        return Step("tls", False, *_tls_fault(exc.__cause__ or exc))
    finally:
        await trio.aclose_forcefully(stream)
    return Step("tls", True, "the certificate is trusted")


def _tls_fault(exc: BaseException) -> tuple[str, str]:
    """What is wrong, and what to do."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        remedy = "if it is your own authority's, name its file in SSL_CERT_FILE; else the certificate must be mended"
        return f"its certificate is not trusted: {exc.verify_message}", remedy
    words = getattr(exc, "reason", None) or str(exc)
    if words in ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "RECORD_LAYER_FAILURE"):
        return f"it does not speak TLS ({words})", "is it an http:// server?"
    return f"the handshake failed: {words}", "is it an https:// server?"


async def _speaks_tls(host: str, port: int) -> bool:
    """Whether a TLS handshake begins well; nothing is sent over it, so nobody's word is taken for anything."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        stream = await trio.open_ssl_over_tcp_stream(host, port, ssl_context=context)
    except OSError:
        return False
    try:
        await stream.do_handshake()
    except (trio.BrokenResourceError, ssl.SSLError):
        return False
    finally:
        await trio.aclose_forcefully(stream)
    return True


async def _answer(source: Http, by: Proxy | None) -> Step:
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
    asked = partial(httpx.AsyncClient.stream, method="POST", url=source.url, content=body, headers=headers)
    if source.transport == "sse":
        headers = {**source.headers, "accept": "text/event-stream"}
        asked = partial(httpx.AsyncClient.stream, method="GET", url=source.url, headers=headers)
    way = None
    if by is not None:
        host = f"[{by.host}]" if ":" in by.host else by.host
        own = {"Proxy-Authorization": by.authorization} if by.authorization is not None else None
        way = httpx.Proxy(f"http://{host}:{by.port}", headers=own)
    try:
        async with (
            # The step's own limit holds; a client's would end it with a word that says less.
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=None, proxy=way) as client,
            asked(client) as response,
        ):
            return await _judge(source, client, response)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        words = str(exc).rstrip(".") or type(exc).__name__
        if "location header" in words:  # httpx reads it, though it does not follow it
            return Step("redirect", False, f"it redirects nowhere: {words}", "ask who runs the server")
        return Step("http", False, f"no HTTP answer: {words}", "is it an HTTP server that listens on this port?")


async def _judge(source: Http, client: httpx.AsyncClient, response: httpx.Response) -> Step:
    status = response.status_code
    if status in (301, 302, 303, 307, 308):
        target = public_url(urljoin(source.url, response.headers.get("location", "")))
        return Step("redirect", False, f"it redirects to {target} ({status})", "put that into `url` if you trust it")
    if status == 407:
        remedy = "write them into the variable that names it: user:password@host"
        return Step("proxy", False, "a proxy asks for credentials (407)", remedy)
    if status == 401:
        where = await _authorizer(source, client, response.headers.get("www-authenticate", ""))
        if any(name.lower() == "authorization" for name in source.headers):
            remedy = "the Authorization header in `headers` is refused: has it expired, or is it another server's?"
        else:
            remedy = "give an Authorization header in `headers`"
        return Step("authorize", False, f"it asks for authorization{where} (401)", remedy)
    if status == 403:
        return Step("authorize", False, "it forbids this (403)", "check the credentials, and what they allow")
    if status in (404, 405, 410):
        usual = "/sse" if source.transport == "sse" else "/mcp"
        return Step(
            "status", False, f"no MCP endpoint at this path ({status})", f"check the path of `url`, often {usual}"
        )
    if status in (429, 503):
        after = response.headers.get("retry-after", "")
        when = f" in {after} s" if after.isdecimal() else " later"
        return Step("status", False, f"it turns requests away for now ({status})", f"try again{when}")
    if status >= 500:
        return Step("status", False, f"the server fails ({status})", "look at its log")
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if status == 200 and kind not in ("application/json", "text/event-stream"):
        what = f"it answers {kind or 'without a content type'}, which is no MCP"
        return Step("content", False, what, "check the path of `url`, often /mcp")
    return Step("http", True, f"an HTTP server answers ({status})")


async def _authorizer(source: Http, client: httpx.AsyncClient, challenge: str) -> str:
    """Who grants access, in words; empty if the server does not say (RFC 9728)."""
    for url in _metadata_urls(source.url, challenge):
        try:
            servers = (await _metadata(client, url))["authorization_servers"]
            if isinstance(servers, list) and servers:
                return " at " + ", ".join(public_url(str(server)) for server in servers)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError):
            continue
    return ""


def _metadata_urls(endpoint: str, challenge: str) -> Iterator[str]:
    """Where the server may say who authorizes, on its own origin: a stranger's word makes us ask no other host."""
    origin, path = urlsplit(endpoint)[:2], urlsplit(endpoint).path.rstrip("/")
    named = re.search(r'resource_metadata="?([^",\s]+)', challenge)
    for place in dict.fromkeys([named[1] if named else "", WELL_KNOWN + path, WELL_KNOWN]):
        try:
            url = urljoin(endpoint, place)
            if place and urlsplit(url)[:2] == origin:
                yield url
        except ValueError:
            continue


async def _metadata(client: httpx.AsyncClient, url: str) -> Mapping[str, object]:
    body = b""
    async with client.stream("GET", url, headers={"accept-encoding": "identity"}) as response:
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > METADATA_LIMIT:
                return {}
    found = json.loads(body)
    return found if isinstance(found, dict) else {}


def _cause(exc: BaseException) -> str:
    """The plain reason inside Trio's report of several failed addresses."""
    while isinstance(exc, BaseExceptionGroup) or exc.__cause__ is not None:
        exc = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc.__cause__ or exc
    words = str(getattr(exc, "strerror", None) or exc)
    return words.rpartition(": ")[2]  # Trio names the address first, which was said already
