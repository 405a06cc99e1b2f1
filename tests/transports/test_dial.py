"""HTTP proxies of the environment: which is used for what, and what it may do to us."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
import trustme

from cord_trio.config import WebSocket
from cord_trio.counters import Counters
from cord_trio.errors import ConnectFailed, ConnectionLost, HttpFailed
from cord_trio.handshake import refused
from cord_trio.transports.dial import Proxy, find_proxy
from cord_trio.transports.http1_client import PoolLimits, open_pool
from cord_trio.transports.http1_server import serve_http
from cord_trio.transports.http1_wire import parse_origin
from cord_trio.transports.websocket_open import open_websocket
from tests.transports.test_http1_client import Collect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from cord_trio.transports.http1_server import Request, Response

SECRET = "hunter2"
Environ: TypeAlias = "Mapping[str, str]"


def chosen(url: str, **environ: str) -> str | None:
    proxy = find_proxy(parse_origin(url), environ)
    return None if proxy is None else f"{proxy.host}:{proxy.port}"


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("http://h/", {}, None),
        ("http://h/", {"HTTP_PROXY": "http://p:3128"}, "p:3128"),
        ("https://h/", {"HTTP_PROXY": "http://p:3128"}, None),
        ("https://h/", {"HTTPS_PROXY": "http://p:3128/"}, "p:3128"),
        ("https://h/", {"HTTPS_PROXY": "p:3128"}, "p:3128"),
        ("https://h/", {"HTTPS_PROXY": "http://p"}, "p:80"),
        ("https://h/", {"https_proxy": "http://low:1", "HTTPS_PROXY": "http://up:2"}, "low:1"),
        ("https://h/", {"ALL_PROXY": "http://all:1"}, "all:1"),
        ("http://h/", {"all_proxy": "http://all:1", "HTTP_PROXY": "http://p:2"}, "p:2"),
        ("http://h/", {"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, None),
        ("http://h/", {"http_proxy": "http://p:1", "REQUEST_METHOD": "GET"}, "p:1"),
        ("https://h/", {"HTTPS_PROXY": "  "}, None),
        ("https://h/", {"HTTPS_PROXY": "http://[::1]:3128"}, "::1:3128"),
    ],
)
def test_the_proxy_is_the_one_that_the_environment_names(url: str, environ: Environ, expected: str | None) -> None:
    assert chosen(url, **environ) == expected


@pytest.mark.parametrize(
    ("url", "exempt", "direct"),
    [
        ("http://docs.example.org/", "example.org", True),
        ("http://docs.example.org/", ".example.org", True),
        ("http://docs.example.org/", "*.example.org", True),
        ("http://docs.example.org/", "DOCS.Example.org", True),
        ("http://docs.example.org/", "other, docs.example.org", True),
        ("http://docs.example.org/", "other docs.example.org", True),
        ("http://notexample.org/", "example.org", False),
        ("http://example.org.evil/", "example.org", False),
        ("http://docs.example.org:8080/", "docs.example.org:8080", True),
        ("http://docs.example.org:8080/", "docs.example.org:80", False),
        ("http://docs.example.org/", "docs.example.org:80", True),
        ("http://docs.example.org/", "*", True),
        ("http://docs.example.org/", "", False),
        ("http://docs.example.org/", ",, .", False),
        ("http://10.1.2.3/", "10.0.0.0/8", True),
        ("http://11.1.2.3/", "10.0.0.0/8", False),
        ("http://10.1.2.3/", "10.1.2.3", True),
        ("http://10.1.2.3:8080/", "10.1.2.3:8080", True),
        ("http://10.1.2.3/", "2.3", False),
        ("http://[fd00::1]/", "fd00::/8", True),
        ("http://[fd00::1]/", "[fd00::1]", True),
        ("http://localhost:1/", "", True),
        ("http://x.localhost/", "", True),
        ("http://127.0.0.9:1/", "", True),
        ("http://[::1]:1/", "", True),
    ],
)
def test_some_hosts_are_reached_straight(url: str, exempt: str, direct: bool) -> None:
    assert (chosen(url, HTTP_PROXY="http://p:1", NO_PROXY=exempt) is None) == direct
    assert (chosen(url, HTTP_PROXY="http://p:1", no_proxy=exempt) is None) == direct


def test_credentials_are_decoded_and_shown_nowhere() -> None:
    proxy = find_proxy(parse_origin("http://h/"), {"HTTP_PROXY": f"http://us%40er:{SECRET}%3a@p:1"})
    assert proxy is not None
    assert proxy.authorization == "Basic dXNAZXI6aHVudGVyMjo="
    assert SECRET not in f"{proxy!r} {proxy.name}"
    assert "Basic" not in f"{proxy!r} {proxy.name}"


def test_a_proxy_that_cannot_be_used_says_why() -> None:
    for value, words in (
        ("socks5://p:1", "names a proxy of kind 'socks5'; only http:// is supported"),
        (f"https://u:{SECRET}@p:1", "names a proxy of kind 'https'; only http:// is supported"),
        ("http://p:notaport", "is no URL of a proxy"),
        ("http://", "is no URL of a proxy"),
        ("http://[x", "is no URL of a proxy"),
    ):
        proxy = find_proxy(parse_origin("https://h/"), {"HTTPS_PROXY": value})
        assert proxy is not None
        assert proxy.fault == words


class Between:
    """A proxy that leads every name to one port on loopback.

    Attributes:
        heads: what it was asked, head by head.
        answer: to CONNECT, instead of letting through.

    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.heads: list[str] = []
        self.answer: bytes | None = None
        self.port = 0

    @property
    def environ(self) -> dict[str, str]:
        url = f"http://user:{SECRET}@127.0.0.1:{self.port}"
        return {"HTTP_PROXY": url, "HTTPS_PROXY": url}

    async def serve(self, client: trio.SocketStream) -> None:
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                more = await client.receive_some()
                if not more:
                    return
                head += more
            self.heads.append(head.decode())
            if self.answer is not None:
                await client.send_all(self.answer)
                return
            async with await trio.open_tcp_stream("127.0.0.1", self.target) as server, trio.open_nursery() as nursery:
                if head.startswith(b"CONNECT"):
                    await client.send_all(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")
                else:
                    await server.send_all(head)
                nursery.start_soon(self._pass, client, server, nursery)
                await self._pass(server, client, nursery)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            client.socket.close()

    async def _pass(self, source: trio.SocketStream, sink: trio.SocketStream, nursery: trio.Nursery) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel("one side has ended")


@asynccontextmanager
async def between(tls: ssl.SSLContext | None = None) -> AsyncGenerator[Between]:
    """A proxy, and behind it a server that says how it was asked."""

    async def handler(request: Request, response: Response) -> None:  # noqa: ASYNC124  # a handler is one
        found = {name: value for name, value in request.headers if name.lower() in ("host", "proxy-authorization")}
        response.send(200, (), f"{request.target} {found} ".encode() + request.body)

    async def encrypted(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
        await trio.sleep_forever()

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        if tls is None:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(partial(serve_http, handler, listeners))
            target = listeners[0].socket.getsockname()[1]
        else:
            secure = await nursery.start(partial(trio.serve_ssl_over_tcp, encrypted, 0, tls, host="127.0.0.1"))
            target = secure[0].transport_listener.socket.getsockname()[1]
        proxy = Between(target)
        proxies = await nursery.start(partial(trio.serve_tcp, proxy.serve, 0, host="127.0.0.1"))
        proxy.port = proxies[0].socket.getsockname()[1]
        try:
            yield proxy
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("test over")
    if failure is not None:
        raise failure


async def ask(url: str, environ: Environ, verify: bool | ssl.SSLContext = True) -> Collect:
    async with open_pool(url, environ=environ, verify=verify, limits=PoolLimits(connect=2)) as pool:
        sink = Collect()
        pool.request("POST", "/mcp?x=1", (), b"body", sink)
        with trio.fail_after(5):
            await sink.over.wait()
        return sink


async def test_plain_http_is_asked_for_by_its_whole_url() -> None:
    async with between() as proxy:
        sink = await ask("http://docs.example:81", proxy.environ)
        assert sink.status == 200
        assert sink.content.startswith(b"/mcp?x=1 {'Host': 'docs.example:81'")
        assert sink.content.endswith(b" body")
        (head,) = proxy.heads
        assert head.startswith("POST http://docs.example:81/mcp?x=1 HTTP/1.1\r\n")
        assert "Proxy-Authorization: Basic dXNlcjpodW50ZXIy\r\n" in head


async def test_https_goes_through_a_tunnel_that_the_proxy_cannot_read() -> None:
    authority = trustme.CA()
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("docs.example").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    async with between(theirs) as proxy:
        assert (await ask("https://docs.example", proxy.environ, ours)).content == b"secret"
        (head,) = proxy.heads
        assert head.startswith("CONNECT docs.example:443 HTTP/1.1\r\nHost: docs.example:443\r\n")
        assert "Proxy-Authorization: Basic dXNlcjpodW50ZXIy\r\n" in head
        assert "certificate" in str((await ask("https://docs.example", proxy.environ)).error)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            b"HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic\r\n\r\n",
            "does not take the credentials in HTTPS_PROXY (407)",
        ),
        (b"HTTP/1.1 403 Forbidden\r\n\r\nno", "answered CONNECT to docs.example:443 with 403 Forbidden"),
        (b"HTTP/1.0 502 " + b"x" * 500 + b"\r\n\r\n", "with 502 " + "x" * 99),
        (b"HTTP/1.1 200 OK\r\n\r\nearly", "with 200 OK, and more than that"),
        (b"SSH-2.0\r\n\r\n", "with what is no HTTP"),
        (b"", "gave no answer to CONNECT"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40_000, "gave no answer to CONNECT"),
    ],
)
async def test_a_proxy_that_lets_nobody_through_is_named_without_its_credentials(answer: bytes, words: str) -> None:
    async with between() as proxy:
        proxy.answer = answer
        error = (await ask("https://docs.example", proxy.environ)).error
        assert isinstance(error, ConnectionLost)
        assert error.executed == "no"
        assert words in str(error)
        assert error.reason.startswith("cannot connect to docs.example: the proxy 127.0.0.1:")
        assert SECRET not in str(error)


async def test_a_proxy_that_wants_credentials_says_where_they_go() -> None:
    async with between() as proxy:
        proxy.answer = b"HTTP/1.1 407 Auth\r\n\r\n"
        error = (await ask("https://docs.example", {"ALL_PROXY": f"127.0.0.1:{proxy.port}"})).error
        assert "asks for credentials (407): write them into ALL_PROXY, user:password@host" in str(error)


async def test_a_proxy_that_is_not_there_or_not_supported_is_told() -> None:
    for value, words in (
        ("http://127.0.0.1:1", "the proxy 127.0.0.1:1 (HTTPS_PROXY) cannot be reached: "),
        ("socks5://127.0.0.1:1", "HTTPS_PROXY names a proxy of kind 'socks5'"),
    ):
        assert words in str((await ask("https://docs.example", {"HTTPS_PROXY": value})).error)


async def test_a_proxy_that_never_answers_is_given_up_in_time() -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with open_pool(
            "https://docs.example", environ={"HTTPS_PROXY": url}, limits=PoolLimits(connect=0.1)
        ) as pool:
            sink = Collect()
            pool.request("GET", "/", (), b"", sink)
            await sink.over.wait()
            assert "within 0.1 s" in str(sink.error)
        nursery.cancel_scope.cancel("test over")


async def test_a_websocket_goes_through_a_tunnel_also_without_tls() -> None:
    async with between() as proxy:
        source = WebSocket(name="far", url="ws://docs.example:81/mcp")
        with pytest.raises(ConnectFailed, match="HTTP 200"):  # there is no WebSocket behind it, but it was asked
            async with open_websocket(source, name="far", counters=Counters(), environ=proxy.environ):
                raise AssertionError
        assert proxy.heads[0].startswith("CONNECT docs.example:81 HTTP/1.1\r\n")
        proxy.answer = b"HTTP/1.1 407 Auth\r\n\r\n"
        with pytest.raises(ConnectFailed, match="does not take the credentials"):
            async with open_websocket(source, name="far", counters=Counters(), environ=proxy.environ):
                raise AssertionError


async def test_a_407_in_reply_to_plain_http_is_said_to_be_a_proxys() -> None:
    async with between() as proxy:
        proxy.answer = b"HTTP/1.1 407 Auth\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        assert (await ask("http://docs.example", proxy.environ)).status == 407
        failure = refused("far", HttpFailed(407, "", challenge=""))
        assert (failure.step, failure.remedy) == (
            "connect",
            "a proxy asks for credentials: user:password@ in its variable",
        )


async def test_loopback_never_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with between() as proxy:
        sink = await ask(f"http://127.0.0.1:{proxy.target}", {"HTTP_PROXY": "http://127.0.0.1:1"})
        assert sink.status == 200
        async with open_pool(f"http://localhost:{proxy.target}") as pool:
            assert pool.proxy is None
        async with open_pool("http://docs.example") as other:
            assert other.proxy == Proxy("127.0.0.1", 1, "HTTP_PROXY")
