from __future__ import annotations

import errno
import json
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import trio
import trustme

from cord_trio.cli import probe
from cord_trio.cli.probe import Step, look
from cord_trio.config import Http
from tests.cli.helpers import answer, chatter, hang_up, listening, silence

if TYPE_CHECKING:
    from tests.cli.helpers import Talk


# httpx leaves the generators of bodies that it did not finish to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <async_generator object:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


REMEDY_407 = "write them into the variable that names it: user:password@host"


async def looked(url: str, **headers: str) -> list[Step]:
    return await look(Http(name="it", url=url, headers=headers))


async def last(talk: Talk, **headers: str) -> Step:
    """The last step towards a server that talks so; those before it are well."""
    async with listening(talk) as place:
        *passed, step = await looked(f"http://{place}/mcp", **headers)
    assert [(step.name, step.ok) for step in passed] == [("name", True), ("tcp", True)]
    return step


async def test_a_host_that_is_not_there_fails_by_name() -> None:
    (step,) = await looked("http://no-such-host.invalid/mcp")
    assert (step.name, step.ok) == ("name", False)
    assert "'no-such-host.invalid' has no address" in step.what
    assert "check the host" in step.remedy


async def test_a_port_that_nobody_listens_on_fails_at_tcp() -> None:
    with socket.socket() as taken:  # bound, so that nobody else gets it; not listening
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        steps = await looked(f"http://127.0.0.1:{port}/mcp")
    assert [step.name for step in steps] == ["name", "tcp"]
    assert steps[-1].what == f"port {port} of 127.0.0.1: Connection refused"


@pytest.mark.parametrize(
    ("status", "header", "step"),
    [
        ("404 Not Found", "", Step("status", False, "no MCP endpoint at this path (404)", "check the path")),
        ("405 No", "", Step("status", False, "no MCP endpoint at this path (405)", "check the path")),
        ("403 Forbidden", "", Step("authorize", False, "it forbids this (403)", "check the credentials")),
        ("407 Proxy", "", Step("proxy", False, "a proxy asks for credentials (407)", REMEDY_407)),
        ("500 Oops", "", Step("status", False, "the server fails (500)", "look at its log")),
        ("503 Busy", "", Step("status", False, "it turns requests away for now (503)", "try again later")),
        ("429 Busy", "retry-after: 5", Step("status", False, "it turns requests away for now (429)", "try again in 5")),
        ("301 M", "location: /x", Step("redirect", False, "it redirects to http://PLACE/x (301)", "put that")),
        ("302 M", "location: http://[::1",
         Step("redirect", False, "it redirects nowhere: Invalid URL in location header: Invalid port: ':1'", "ask")),
        ("307 M", "location: https://a:b@c.example/m?k=v",
         Step("redirect", False, "it redirects to https://c.example/m?*** (307)", "put that")),
        ("200 OK", "content-type: text/html; charset=utf-8",
         Step("content", False, "it answers text/html, which is no MCP", "check the path")),
        ("200 OK", "", Step("content", False, "it answers without a content type, which is no MCP", "check the path")),
        ("200 OK", "content-type: application/json", Step("http", True, "an HTTP server answers (200)", "")),
        ("400 Bad Request", "", Step("http", True, "an HTTP server answers (400)", "")),
    ],
)  # fmt: skip
async def test_a_status_is_told_in_words(status: str, header: str, step: Step) -> None:
    async with listening(answer(status, *([header] if header else []))) as place:
        found = (await looked(f"http://{place}/mcp"))[-1]
    assert (found.name, found.ok, found.what) == (step.name, step.ok, step.what.replace("PLACE", place))
    assert found.remedy.startswith(step.remedy)


async def test_a_server_that_hangs_up_is_no_http_server() -> None:
    step = await last(hang_up)
    assert step.what.startswith("no HTTP answer: ")
    assert "HTTP server" in step.remedy


@pytest.mark.parametrize("talk", [silence, chatter])
async def test_silence_is_told_after_the_step_limit(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STEP_LIMIT", 0.1)
    monkeypatch.setattr(probe, "GUESS_LIMIT", 0.1)
    step = await last(talk)
    assert step == Step("http", False, "no answer within 0.1 s", "is it an MCP server, or stuck?")


async def test_silence_is_told_for_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STEP_LIMIT", 0.05)

    async def never(*_: object) -> Step:
        await trio.sleep_forever()

    for way, name in (("_tls", "tls"), ("_tcp", "tcp"), ("_name", "name")):
        monkeypatch.setattr(probe, way, never)
        async with listening(silence) as place:
            step = (await looked(f"https://{place}/"))[-1]
        assert (step.name, step.what) == (name, "no answer within 0.05 s")


# TLS


def certified(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_a_certificate_of_a_stranger_is_not_trusted() -> None:
    async with listening(answer("200 OK"), certified(trustme.CA())) as place:
        step = (await looked(f"https://{place}/mcp"))[-1]
    assert (step.name, step.ok) == ("tls", False)
    assert step.what.startswith("its certificate is not trusted: ")
    assert "SSL_CERT_FILE" in step.remedy


async def test_a_certificate_of_ones_own_authority_is_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    authority = trustme.CA()
    file = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    async with listening(answer("200 OK"), certified(authority)) as place:
        steps = await looked(f"https://{place}/mcp")
    assert Step("tls", True, "the certificate is trusted") in steps


async def test_tls_towards_a_plain_server_asks_whether_it_is_http() -> None:
    async def refuse(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with listening(refuse) as place:
        step = (await looked(f"https://{place}/mcp"))[-1]
    assert (step.name, step.ok, step.remedy) == ("tls", False, "is it an http:// server?")
    assert step.what.startswith("it does not speak TLS")


async def test_a_handshake_that_is_cut_off_is_told() -> None:
    async with listening(hang_up) as place:
        step = (await looked(f"https://{place}/mcp"))[-1]
    assert (step.name, step.ok) == ("tls", False)


async def test_plain_http_towards_tls_is_found_out() -> None:
    async with listening(answer("200 OK"), certified(trustme.CA())) as place:
        step = (await looked(f"http://{place}/mcp"))[-1]
    assert (step.what.endswith("speaks TLS"), step.remedy) == (True, "write https:// in `url`")


async def test_a_port_that_closed_meanwhile_speaks_no_tls() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert not await probe._speaks_tls("127.0.0.1", taken.getsockname()[1])


# Authorization


async def test_a_401_without_a_header_asks_for_one() -> None:
    step = await last(answer("401 Unauthorized"))
    assert step == Step(
        "authorize", False, "it asks for authorization (401)", "give an Authorization header in `headers`"
    )


async def test_a_401_with_a_header_says_that_it_is_refused() -> None:
    step = await last(answer("401 Unauthorized"), authorization="Bearer secret-of-mine")
    assert "is refused" in step.remedy
    assert "secret-of-mine" not in step.what + step.remedy


def granting(challenge: str, documents: dict[str, bytes], asked: list[str]) -> Talk:
    """A server that answers 401, and GETs of these paths with these documents."""

    async def talk(stream: trio.abc.Stream) -> None:
        heard = await stream.receive_some()
        if not heard:
            return
        method, path, _ = heard.decode().split(" ", 2)
        asked.append(f"{method} {path}")
        assert method == "POST" or b"authorization" not in heard.lower()
        body = documents.get(path)
        if method == "POST":
            await answer_once(stream, "401 Unauthorized", f"www-authenticate: {challenge}")
        elif body is None:
            await answer_once(stream, "404 Not Found")
        else:
            await answer_once(stream, "200 OK", body=body)

    return talk


async def answer_once(stream: trio.abc.Stream, status: str, *headers: str, body: bytes = b"") -> None:
    lines = [f"HTTP/1.1 {status}", *headers, f"content-length: {len(body)}", "connection: close", "", ""]
    await stream.send_all("\r\n".join(lines).encode() + body)
    await trio.lowlevel.checkpoint()


METADATA = json.dumps({"authorization_servers": ["https://login.example/realm?x=y"]}).encode()
WELL_KNOWN = "/.well-known/oauth-protected-resource"


@pytest.mark.parametrize(
    ("challenge", "documents", "found", "gets"),
    [
        (f'Bearer resource_metadata="{WELL_KNOWN}/named"', {f"{WELL_KNOWN}/named": METADATA}, True, 1),
        (f"Bearer realm=x, resource_metadata={WELL_KNOWN}/named", {f"{WELL_KNOWN}/named": METADATA}, True, 1),
        ("Bearer", {f"{WELL_KNOWN}/mcp": METADATA}, True, 1),
        ("Bearer", {WELL_KNOWN: METADATA}, True, 2),
        ("Bearer", {}, False, 2),
        ('Bearer resource_metadata="http://[::1"', {}, False, 2),
        ("Bearer", {WELL_KNOWN: b"[]", f"{WELL_KNOWN}/mcp": b"no json"}, False, 2),
        ("Bearer", {WELL_KNOWN: b'{"authorization_servers": 7}', f"{WELL_KNOWN}/mcp": b"{}"}, False, 2),
        ("Bearer", {WELL_KNOWN: METADATA + b" " * probe.METADATA_LIMIT}, False, 2),
    ],
)
async def test_a_401_says_who_authorizes(challenge: str, documents: dict[str, bytes], found: bool, gets: int) -> None:
    asked: list[str] = []
    step = await last(granting(challenge, documents, asked), authorization="Bearer secret")
    where = " at https://login.example/realm?***" if found else ""
    assert step.what == f"it asks for authorization{where} (401)"
    assert len(asked) == 1 + gets


async def test_a_stranger_is_not_asked_who_authorizes() -> None:
    asked: list[str] = []
    documents = {WELL_KNOWN: METADATA}
    async with listening(granting("Bearer", documents, asked)) as stranger:
        challenge = f'Bearer resource_metadata="http://{stranger}{WELL_KNOWN}"'
        step = await last(granting(challenge, {}, []))
    assert (step.what, asked) == ("it asks for authorization (401)", [])


async def test_a_source_of_the_older_kind_is_asked_for_its_stream() -> None:
    async with listening(answer("404 Not Found")) as place:
        *_, step = await look(Http(name="it", url=f"http://{place}/sse", transport="sse"))
        assert step.remedy == "check the path of `url`, often /sse"
    async with listening(answer("200 OK", "Content-Type: text/event-stream")) as place:
        *_, step = await look(Http(name="it", url=f"http://{place}/sse", transport="sse"))
        assert step == Step("http", True, "an HTTP server answers (200)")


# Proxies


async def test_the_way_over_a_proxy_is_looked_at_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(answer("404 Not Found")) as place:
        monkeypatch.setenv("http_proxy", f"http://user:secret@{place}")
        proxy, status = await looked("http://docs.example/mcp")
        assert (proxy.name, proxy.ok) == ("proxy", True)
        assert proxy.what == f"the way leads over the proxy {place} (http_proxy)"
        assert "secret" not in str(proxy)
        assert (status.name, status.ok) == ("status", False)
        assert (await looked(f"http://{place}/mcp"))[0].name == "name"  # loopback is reached straight


async def test_a_proxy_that_refuses_the_tunnel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(answer("407 Proxy")) as place:
        monkeypatch.setenv("https_proxy", f"http://{place}")
        (step,) = await looked("https://docs.example/mcp")
        assert (step.name, step.ok) == ("proxy", False)
        assert "asks for credentials (407): write them into https_proxy" in step.what
        assert step.remedy == "add docs.example to NO_PROXY if it is to be reached straight"


def test_the_plain_reason_is_found_in_a_group() -> None:
    group = ExceptionGroup(
        "several", [OSError(errno.ECONNREFUSED, "Error connecting to ('::1', 9): Connection refused")]
    )
    outer = OSError("all attempts failed")
    outer.__cause__ = group
    assert probe._cause(outer) == "Connection refused"
