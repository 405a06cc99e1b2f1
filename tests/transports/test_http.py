"""MCP Streamable HTTP as a client, against servers of exact bytes: what each answer means, in each era."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import pytest
import trio
import trio.testing

from cord_trio import connecting
from cord_trio.cell import Timer
from cord_trio.config import Http
from cord_trio.counters import Counters
from cord_trio.errors import BadReply, CallError, CallFailed, ConnectionLost, DeadlineExceeded, HttpFailed, Refused
from cord_trio.fabric import open_fabric
from cord_trio.protocol import jsonrpc
from cord_trio.session import open_session
from cord_trio.transports import http as http_transport
from cord_trio.transports import http_rules, http_sinks
from cord_trio.transports.http import open_http

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence

    from cord_trio.session import Session
    from cord_trio.transports.http import HttpTransport

Json: TypeAlias = Any
MODERN = "2026-07-28"
LEGACY = "2025-11-25"
TEXT = {"content": [{"type": "text", "text": "hello"}]}


class Cut(bytes):
    """The connection ends after these bytes."""


class Apart(tuple[bytes, ...]):
    """These come one after the other, with a little time in between."""

    __slots__ = ()


class Hold(bytes):
    """Nothing follows these bytes, and the connection stays."""


@attrs.frozen
class Seen:
    """One request that a server saw."""

    verb: str
    target: str
    lines: tuple[str, ...]
    body: bytes

    @property
    def message(self) -> Json:
        return json.loads(self.body)

    @property
    def what(self) -> str:
        """The JSON-RPC method, or the verb of what has none."""
        return str(self.message.get("method", "reply")) if self.body else self.verb

    def header(self, name: str) -> str | None:
        found = [line.partition(": ")[2] for line in self.lines if line.lower().startswith(name.lower() + ": ")]
        assert len(found) <= 1
        return found[0] if found else None


Answer: TypeAlias = "bytes | Callable[[Seen], bytes | Apart]"


class Canned:
    """A server on loopback that answers each method with given bytes, in order; the last one again and again.

    Attributes:
        seen: the requests, in the order they came.
        delay: seconds before each answer.
        sent: answers that are on their way, whole.
        left: of those that were held, what the client then did: the ids of those it left.

    """

    def __init__(self, answers: dict[str, Answer | Sequence[Answer]]) -> None:
        self.answers = {key: list(value) if isinstance(value, list) else [value] for key, value in answers.items()}
        self.seen: list[Seen] = []
        self.left: list[Json] = []
        self.url = ""
        self.delay = 0.0
        self.sent = 0
        self._moved = trio.Event()

    def whats(self) -> list[str]:
        return [one.what for one in self.seen]

    def count(self, what: str) -> int:
        return self.whats().count(what)

    async def wait_until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._moved = trio.Event()
            await self._moved.wait()

    async def serve(self, stream: trio.SocketStream) -> None:
        try:
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    more = await stream.receive_some()
                    if not more:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                first, *lines = head.decode().split("\r\n")
                size = sum(int(line[15:]) for line in lines if line.lower().startswith("content-length:"))
                while len(data) < size:
                    data += await stream.receive_some()
                verb, target, _ = first.split()
                request = Seen(verb, target, tuple(lines), data[:size])
                data = data[size:]
                self.seen.append(request)
                self._moved.set()
                found = self.answers.get(request.what) or self.answers.get("*") or [status(405)]
                given: Any = found.pop(0) if len(found) > 1 else found[0]
                reply: bytes | Apart = given(request) if callable(given) else given
                await trio.sleep(self.delay)
                for part in reply if isinstance(reply, Apart) else (reply,):
                    await stream.send_all(bytes(part))
                    if isinstance(reply, Apart):
                        await trio.sleep(0.003)
                self.sent += 1
                self._moved.set()
                if isinstance(reply, Hold):
                    assert not await stream.receive_some()
                    self.left.append(request.message.get("id") if request.body else request.verb)
                    self._moved.set()
                if isinstance(reply, Cut | Hold):
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        finally:
            stream.socket.close()


@asynccontextmanager
async def canned(**answers: Answer | Sequence[Answer]) -> AsyncGenerator[Canned]:
    server = Canned({key.replace("__", "/"): value for key, value in answers.items()})
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1"))
        server.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/mcp"
        try:
            yield server
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("test over")
    if failure is not None:
        raise failure


def status(code: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {code} Whatever", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def reply(request: Seen, result: Json = TEXT) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request.message["id"], "result": result}).encode()


def as_json(request: Seen, result: Json = TEXT, kind: str = "application/json") -> bytes:
    return status(200, reply(request, result), f"Content-Type: {kind}" if kind else "X-Nothing: here")


def stream(body: bytes, *headers: str, kind: str = "text/event-stream") -> Cut:
    """An event stream that ends, cleanly, with its connection."""
    return Cut("\r\n".join(["HTTP/1.1 200 OK", f"Content-Type: {kind}", *headers]).encode() + b"\r\n\r\n" + body)


def chunked(body: bytes, *, end: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"0\r\n\r\n" if end else b"")


def events(request: Seen, result: Json = TEXT) -> bytes:
    return b"event: message\ndata: " + reply(request, result) + b"\n\n"


@asynccontextmanager
async def talking(
    url: str, revision: str | None = MODERN, *, counters: Counters | None = None, **source: Json
) -> AsyncGenerator[tuple[Session, HttpTransport]]:
    """A session in `revision` as if a handshake had agreed on it."""
    counters = counters or Counters()
    timer = Timer()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        try:
            async with (
                open_http(Http(name="far", url=url, **source), name="far", counters=counters) as transport,
                open_session(transport, name="far", timer=timer, counters=counters) as session,
            ):
                if revision is not None:
                    transport.speak(revision, modern=revision == MODERN)
                yield session, transport
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("test over")
    if failure is not None:
        raise failure


async def call(session: Session, seconds: float = 5.0, **more: Json) -> Json:
    raw = await session.request("tools/call", b'{"name":"x"}', deadline=trio.current_time() + seconds, **more)
    return json.loads(bytes(raw))


async def failure_of(awaitable: Awaitable[object]) -> CallError:
    with pytest.raises(CallError) as caught:
        await awaitable
    return caught.value


async def failed_call(answer: Answer, revision: str = MODERN, **source: Json) -> CallError:
    """How a call that is answered so fails; a second one, answered well, must work."""
    async with canned(tools__call=[answer, as_json]) as server:
        async with talking(server.url, revision, **source) as (session, transport):
            failure = await failure_of(call(session))
            assert await call(session) == TEXT
            assert not session.peer.open
            assert not transport.posts
    return failure


# Notifications


@pytest.mark.parametrize(
    "answer",
    [status(200), status(201), status(202), b"HTTP/1.1 204 None\r\n\r\n",
     status(202, b"accepted", "Content-Type: text/plain"), status(200, b"{}", "Content-Type: application/json"),
     status(200, b"", "Content-Type: application/json")],
)  # fmt: skip
async def test_h01_h02_h04_any_success_will_do_for_a_notification(answer: bytes) -> None:
    async with canned(notifications__initialized=answer, tools__call=as_json) as server:
        counters = Counters()
        async with talking(server.url, LEGACY, counters=counters) as (session, _):
            session.notify("notifications/initialized")
            await server.wait_until(lambda: server.count("notifications/initialized") == 1)
            assert await call(session) == TEXT
        assert counters["http.message_failed"] == 0
        assert counters["session.noise"] == 0


async def test_a_notification_that_failed_is_counted_and_disturbs_nothing() -> None:
    async with canned(notifications__initialized=status(500), tools__call=as_json) as server:
        counters = Counters()
        async with talking(server.url, LEGACY, counters=counters) as (session, _):
            session.notify("notifications/initialized")
            await server.wait_until(lambda: server.count("notifications/initialized") == 1)
            assert await call(session) == TEXT
        assert counters["http.message_failed"] == 1


# Bodies


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; Charset=UTF-8", ""])
async def test_h04_json_is_known_by_its_media_type_alone_or_without_one(kind: str) -> None:
    async with canned(tools__call=lambda request: as_json(request, kind=kind)) as server:
        async with talking(server.url) as (session, _):
            assert await call(session) == TEXT


async def test_a_byte_order_mark_before_a_json_body_is_no_part_of_it() -> None:
    def marked(request: Seen) -> bytes:
        return status(200, b"\xef\xbb\xbf" + reply(request), "Content-Type: application/json")

    async with canned(tools__call=marked) as server, talking(server.url) as (session, _):
        assert await call(session) == TEXT


async def test_h04_another_media_type_is_a_clear_error() -> None:
    failure = await failed_call(lambda request: as_json(request, kind="text/html"))
    assert isinstance(failure, BadReply)
    assert "'text/html'" in str(failure)


def in_lines(body: bytes, end: bytes) -> bytes:
    return body.replace(b"\n", end)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_h05_events_end_in_any_kind_of_line(end: bytes) -> None:
    async with canned(
        tools__call=lambda request: stream(in_lines(events(request), end), kind="Text/Event-Stream;charset=utf-8")
    ) as server:
        async with talking(server.url) as (session, _):
            assert await call(session) == TEXT


async def test_h07_a_message_may_span_several_data_lines() -> None:
    def spread(request: Seen) -> bytes:
        lines = (
            json.dumps({"jsonrpc": "2.0", "id": request.message["id"], "result": TEXT}, indent=1).encode().split(b"\n")
        )
        return stream(b"".join(b"data: %b\n" % line for line in lines) + b"\n")

    async with canned(tools__call=spread) as server:
        async with talking(server.url) as (session, _):
            assert await call(session) == TEXT


async def test_h09_empty_events_and_comments_are_no_messages() -> None:
    quiet = b"id: 1\nretry: 10\ndata: \n\n: ping\n\nevent: message\nid: 2\n\n\n"
    async with canned(tools__call=lambda request: stream(quiet + events(request))) as server:
        counters = Counters()
        async with talking(server.url, counters=counters) as (session, _):
            assert await call(session) == TEXT
            assert list(session.noise) == []
        assert counters["session.noise"] == 0


PROGRESS = b'data: {"method":"notifications/progress","params":{"progressToken":1}}\n\n'


@pytest.mark.parametrize("how", ["cleanly", "with the connection", "by a cut chunk"])
async def test_h11_a_stream_that_ends_anywhere_before_its_reply_fails_the_call_at_once(how: str) -> None:
    def answer(request: Seen) -> bytes:
        body = (PROGRESS + events(request))[: server.count("tools/call") - 1]
        match how:
            case "cleanly":
                return chunked(body)
            case "with the connection":
                return stream(body)
            case _:
                return Cut(chunked(body, end=False)[:-1])

    async with canned(tools__call=answer) as server:
        size = len(PROGRESS) + len(events(Seen("", "", (), b'{"id":1}')))
        async with talking(server.url) as (session, transport):
            for _ in range(size):
                failure = await failure_of(call(session, 5.0))
                assert isinstance(failure, ConnectionLost)
                assert failure.executed == "unknown"
            assert not transport.posts
            assert server.count("tools/call") == size


@pytest.mark.parametrize("offset", [0, 1, 20, 40])
async def test_h11_a_json_body_that_is_cut_fails_the_call_at_once(offset: int) -> None:
    failure = await failed_call(lambda request: Cut(as_json(request)[: offset - 60]))
    assert isinstance(failure, ConnectionLost)
    assert failure.executed == "unknown"


async def test_a_connection_closed_without_an_answer_may_have_run_the_call() -> None:
    failure = await failed_call(Cut(b""))
    assert isinstance(failure, ConnectionLost)
    assert failure.executed == "unknown"


@pytest.mark.parametrize("body", [b"", b"null", b"<html>", b'{"jsonrpc":"2.0","id":99,"result":{}}'])
async def test_a_json_body_without_the_response_is_a_bad_reply(body: bytes) -> None:
    failure = await failed_call(status(200, body, "Content-Type: application/json"))
    assert isinstance(failure, BadReply)


async def test_202_in_reply_to_a_request_is_a_bad_reply() -> None:
    failure = await failed_call(status(202))
    assert isinstance(failure, BadReply)
    assert "202" in str(failure)


async def test_an_event_longer_than_the_bound_fails_its_call_alone() -> None:
    big = b"data: " + b"x" * 5000
    failure = await failed_call(lambda request: Hold(chunked(PROGRESS + big, end=False)), max_message=4096)
    assert isinstance(failure, BadReply)
    assert "4096" in str(failure)


async def test_a_reply_before_an_event_that_is_too_long_counts() -> None:
    def answer(request: Seen) -> bytes:
        return Hold(chunked(events(request) + b"data: " + b"x" * 5000, end=False))

    async with canned(tools__call=answer) as server:
        async with talking(server.url, max_message=4096) as (session, _):
            assert await call(session) == TEXT


async def test_a_body_longer_than_the_bound_is_refused() -> None:
    failure = await failed_call(lambda request: as_json(request, {"x": "y" * 5000}), max_message=4096)
    assert isinstance(failure, BadReply)
    assert "4096" in str(failure)


@pytest.mark.parametrize("coding", ["br", "gzip"])
async def test_h20_only_identity_is_offered_and_anything_else_is_a_clear_error(coding: str) -> None:
    async with canned(
        tools__call=status(200, b"\x1f\x8b..", "Content-Type: application/json", f"Content-Encoding: {coding}")
    ) as server:
        async with talking(server.url) as (session, _):
            failure = await failure_of(call(session))
        assert isinstance(failure, BadReply)
        assert coding in str(failure)
        assert server.seen[0].header("Accept-Encoding") == "identity"


# Deadlines


@pytest.mark.parametrize(
    "answer",
    [
        Hold(b""),
        Hold(b"HTTP/1.1 200 OK\r\n"),
        Hold(chunked(b"", end=False)),
        Hold(chunked(PROGRESS, end=False)),
        Hold(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"),
    ],
)
async def test_h23_silence_in_any_phase_ends_at_the_deadline_and_closes_the_connection(answer: bytes) -> None:
    async with canned(tools__call=[as_json, answer]) as server:
        async with talking(server.url) as (session, transport):
            await call(session)  # makes the connection
            failure = await failure_of(call(session, 0.25))
            assert isinstance(failure, DeadlineExceeded)
            assert failure.executed == "unknown"
            await server.wait_until(lambda: server.left == [2])
            assert not transport.posts
        assert server.whats() == ["tools/call"] * 2


# Statuses


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 406, 415, 500, 502, 503])
@pytest.mark.parametrize("revision", [MODERN, LEGACY])
async def test_h12_a_status_reaches_the_caller_at_once(code: int, revision: str) -> None:
    answer = status(code, b"because", "Content-Type: text/plain", 'WWW-Authenticate: Bearer realm="x"')
    failure = await failed_call(answer, revision)
    assert type(failure) is HttpFailed
    assert (failure.status, failure.text, failure.challenge) == (code, "because", 'Bearer realm="x"')
    assert failure.executed == ("no" if code < 500 else "unknown")


@pytest.mark.parametrize(
    ("code", "headers", "after"),
    [
        (429, (), None),
        (429, ("Retry-After: 7",), 7.0),
        (503, ("Retry-After: 2",), 2.0),
        (429, ("Retry-After: Fri, 31 Dec 2027 23:59:59 GMT",), None),
        (429, ("Retry-After: Fri, 31 Dec 2027 23:59:59 GMT", "Date: Fri, 31 Dec 2027 23:59:49 GMT"), 10.0),
        (503, ("Retry-After: Fri Dec 31 23:59:49 2027", "Date: Fri, 31 Dec 2027 23:59:59 GMT"), 0.0),
    ],
)
async def test_a_refusal_for_now_says_when_to_come_back(
    code: int, headers: tuple[str, ...], after: float | None
) -> None:
    failure = await failed_call(status(code, b"busy", *headers))
    assert isinstance(failure, Refused)
    assert (failure.status, failure.retry_after, failure.executed) == (code, after, "no")


@pytest.mark.parametrize("code", [400, 404, 500])
@pytest.mark.parametrize("id", ["right", None])
async def test_a_json_rpc_error_on_a_failure_status_reaches_the_caller(code: int, id: str | None) -> None:
    def answer(request: Seen) -> bytes:
        error = {
            "jsonrpc": "2.0",
            "id": request.message["id"] if id else None,
            "error": {"code": -32021, "message": "no"},
        }
        return status(code, json.dumps(error).encode(), "Content-Type: application/json")

    failure = await failed_call(answer)
    assert isinstance(failure, CallFailed)
    assert failure.code == -32021


async def test_h12_a_refused_connection_reaches_the_caller_at_once() -> None:
    async with talking("http://127.0.0.1:1/mcp") as (session, _):
        failure = await failure_of(call(session))
    assert isinstance(failure, ConnectionLost)
    assert failure.executed == "no"
    assert "127.0.0.1:1" in failure.reason


async def test_the_body_of_a_failure_is_shown_in_part() -> None:
    failure = await failed_call(status(500, b"e" * 100_000))
    assert isinstance(failure, HttpFailed)
    assert len(failure.text) == http_rules.ERROR_SHOWN


# Redirects


@pytest.mark.parametrize("code", [307, 308])
async def test_h16_a_redirect_within_the_origin_is_followed_with_the_body(code: int) -> None:
    def answer(request: Seen) -> bytes:
        return status(code, b"", "Location: /mcp/") if request.target == "/mcp" else as_json(request)

    async with canned(tools__call=answer) as server:
        async with talking(server.url, headers={"Authorization": "Bearer s"}) as (session, _):
            for _ in range(2):
                assert await call(session) == TEXT
        first, second, *others = server.seen
        assert (first.target, second.target) == ("/mcp", "/mcp/")
        assert first.body == second.body
        assert second.header("Authorization") == "Bearer s"
        assert [one.target for one in others] == (["/mcp", "/mcp/"] if code == 307 else ["/mcp/"])


@pytest.mark.parametrize(
    ("code", "location", "says"),
    [
        (307, "https://127.0.0.1/mcp", "another origin, 'https://127.0.0.1/mcp'"),
        (308, "http://localhost:1/x", "another origin, 'http://localhost:1/x'"),
        (307, "//evil.example/mcp", "another origin"),
        (301, "/mcp/", "would lose the message"),
        (302, "/mcp/", "would lose the message"),
        (303, "/mcp/", "would lose the message"),
        (307, "", "would lose the message"),
        (307, "http://[::1", "no URL"),
        (307, "/b ad", "not a path"),
    ],
)
async def test_h16_other_redirects_are_refused_by_name(code: int, location: str, says: str) -> None:
    failure = await failed_call(status(code, b"", f"Location: {location}"))
    assert says in str(failure)
    assert failure.executed == "no"


async def test_a_redirect_in_circles_ends() -> None:
    async with canned(tools__call=status(307, b"", "Location: /mcp")) as server:
        async with talking(server.url) as (session, _):
            failure = await failure_of(call(session))
        assert isinstance(failure, HttpFailed)
        assert server.count("tools/call") == http_rules.MAX_REDIRECTS + 1


async def test_redirects_can_be_switched_off() -> None:
    failure = await failed_call(status(307, b"", "Location: /other"), redirects=False)
    assert isinstance(failure, HttpFailed)


# Headers


async def test_a_modern_request_says_what_it_is_in_its_headers() -> None:
    async with canned(tools__call=as_json, server__discover=as_json) as server:
        async with talking(server.url, None, headers={"X-Key": "k"}) as (session, transport):
            await session.request("server/discover")
            transport.speak(MODERN, modern=True)
            id = session.peer.mint()
            await session.exchange(
                id, jsonrpc.encode_request(id, "tools/call", b"{}"), method="tools/call", name="x",
                headers=[("Mcp-Param-City", "Bern")],
            )  # fmt: skip
        probe, request = server.seen
        assert (probe.header("MCP-Protocol-Version"), probe.header("Mcp-Method")) == (MODERN, "server/discover")
        assert sorted(request.lines) == sorted(
            [
                f"Host: {server.url[7:-4]}", "Accept: application/json, text/event-stream", "Accept-Encoding: identity",
                "Content-Type: application/json", f"Content-Length: {len(request.body)}", "X-Key: k",
                f"MCP-Protocol-Version: {MODERN}", "Mcp-Method: tools/call", "Mcp-Name: x", "Mcp-Param-City: Bern",
            ]
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("café", "=?base64?Y2Fmw6k=?="),
        (" x ", "=?base64?IHgg?="),
        ("a\r\nX-Evil: 1", "=?base64?YQ0KWC1FdmlsOiAx?="),
        ("=?base64?YQ==?=", "=?base64?PT9iYXNlNjQ/WVE9PT89?="),
        ("plain name", "plain name"),
    ],
)
async def test_m08_a_name_no_header_can_hold_is_encoded(name: str, header: str) -> None:
    async with canned(tools__call=as_json) as server:
        async with talking(server.url) as (session, _):
            id = session.peer.mint()
            message = jsonrpc.encode_request(id, "tools/call", b"{}")
            await session.exchange(id, message, method="tools/call", name=name)
        assert server.seen[0].header("Mcp-Name") == header
        assert server.seen[0].header("X-Evil") is None


@pytest.mark.parametrize(("revision", "told"), [("2025-03-26", None), ("2025-06-18", "2025-06-18"), (LEGACY, LEGACY)])
async def test_a_legacy_session_is_named_once_it_is_known(revision: str, told: str | None) -> None:
    def greeted(request: Seen) -> bytes:
        return status(200, reply(request), "Content-Type: application/json", "mcp-SESSION-id: s-1")

    async with canned(initialize=greeted, tools__call=as_json, GET=status(405), DELETE=status(200)) as server:
        async with talking(server.url, None) as (session, transport):
            await session.request("initialize")
            transport.speak(revision, modern=False)
            await call(session)
            await server.wait_until(lambda: server.count("GET") == 1)
        hello = server.seen[0]
        assert (hello.header("MCP-Protocol-Version"), hello.header("Mcp-Session-Id")) == (None, None)
        assert sorted(server.whats()) == ["DELETE", "GET", "initialize", "tools/call"]
        for later in server.seen[1:]:
            assert (later.header("MCP-Protocol-Version"), later.header("Mcp-Session-Id")) == (told, "s-1")
            assert later.header("Mcp-Method") is None
            assert later.header("Accept") == "application/json, text/event-stream"
            assert later.header("Content-Type") == ("application/json" if later.body else None)


async def test_a_session_id_is_taken_from_the_greeting_alone() -> None:
    def sticky(request: Seen) -> bytes:
        return status(200, reply(request), "Content-Type: application/json", "Mcp-Session-Id: s-2")

    async with canned(tools__call=sticky) as server:
        async with talking(server.url, LEGACY) as (session, transport):
            await call(session)
            assert transport.session_id is None


async def test_a_server_that_does_not_end_its_session_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_transport, "FAREWELL", 0.05)
    async with canned(DELETE=Hold(b"")) as server:
        async with talking(server.url, LEGACY) as (_, transport):
            transport.session_id = "s-1"
            began = trio.current_time()
        assert trio.current_time() - began < 1
        assert server.whats()[-1] == "DELETE"


async def test_a_request_that_cannot_be_sent_leaves_nothing_behind() -> None:
    async with talking("http://127.0.0.1:1/mcp") as (session, transport):
        id = session.peer.mint()
        with pytest.raises(CallError) as caught:
            await session.exchange(id, b"{}", method="tools/call", headers=[("No Header", "x")])
        assert caught.value.executed == "no"
        assert not transport.posts
        assert not session.peer.open


# Cancelling


async def cancelled_call(revision: str) -> Canned:
    """A server that held a call which was then cancelled, and one more."""
    async with canned(tools__call=[Hold(b""), as_json], notifications__cancelled=status(202)) as server:
        async with talking(server.url, revision) as (session, _):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, session)
                await server.wait_until(lambda: server.count("tools/call") == 1)
                nursery.cancel_scope.cancel("enough")
            assert await call(session) == TEXT
            await server.wait_until(lambda: server.left == [1])
            await call(session)
    return server


async def test_a_modern_cancel_closes_that_connection_and_says_nothing() -> None:
    server = await cancelled_call(MODERN)
    assert server.whats() == ["tools/call"] * 3


async def test_a_legacy_cancel_is_told_exactly_once() -> None:
    server = await cancelled_call(LEGACY)
    (told,) = [one.message for one in server.seen if one.what == "notifications/cancelled"]
    assert told["params"]["requestId"] == 1


async def cancel_at_once(server: Canned, session: Session) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, session)
        await server.wait_until(lambda: server.count("tools/call") == 1)
        nursery.cancel_scope.cancel("enough")


async def test_a_legacy_cancel_does_not_overtake_a_call_that_may_not_have_been_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_transport, "SETTLE", 0.1)
    async with canned(tools__call=Hold(b""), notifications__cancelled=status(202)) as server:
        async with talking(server.url, LEGACY) as (session, transport):
            began = trio.current_time()
            await cancel_at_once(server, session)
            assert not transport.posts
            await server.wait_until(lambda: server.count("notifications/cancelled") == 1)
            assert trio.current_time() - began >= 0.1
            await server.wait_until(lambda: server.left == [1])


async def test_few_connections_are_kept_for_legacy_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_transport, "SETTLE", 0.2)
    monkeypatch.setattr(http_transport, "HELD", 1)
    async with canned(tools__call=Hold(b""), notifications__cancelled=status(202)) as server:
        async with talking(server.url, LEGACY) as (session, _):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(call, session)
                await server.wait_until(lambda: server.count("tools/call") == 3)
                nursery.cancel_scope.cancel("enough")
            await server.wait_until(lambda: len(server.left) == 2)
            assert server.count("notifications/cancelled") == 0
            await server.wait_until(lambda: server.count("notifications/cancelled") == 3)
            await server.wait_until(lambda: len(server.left) == 3)


@pytest.mark.parametrize("ending", [Cut, Hold])
async def test_a_legacy_cancel_waits_no_longer_than_for_the_first_of_the_answer(
    ending: type[Cut | Hold], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_transport, "SETTLE", 60.0)

    def late(request: Seen) -> bytes:
        server.delay = 0.05
        return ending(chunked(events(request), end=False) if ending is Hold else b"")

    async with canned(tools__call=late, notifications__cancelled=status(202)) as server:
        async with talking(server.url, LEGACY) as (session, _):
            await cancel_at_once(server, session)
            await server.wait_until(lambda: server.count("notifications/cancelled") == 1)
            assert session.peer.late == 0


@pytest.mark.parametrize("revision", [MODERN, LEGACY])
async def test_a_call_cancelled_before_it_was_written_is_never_sent(revision: str) -> None:
    async with canned(tools__call=as_json) as server:
        async with talking(server.url, revision) as (session, _):
            with trio.move_on_after(0):
                await call(session)  # its connection is still to be made
            assert await call(session) == TEXT
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert [one.message["id"] for one in server.seen if one.what == "tools/call"] == [2]
        assert server.count("notifications/cancelled") == 0


async def test_e07_cancelled_calls_give_their_connections_back() -> None:
    """More calls than the pool has connections are dropped in each phase: connecting, queued, written, answered."""
    async with canned(tools__call=as_json) as server:
        counters = Counters()
        async with talking(server.url, counters=counters) as (session, transport):
            for round in range(8):
                async with trio.open_nursery() as nursery:
                    for _ in range(70):
                        nursery.start_soon(call, session)
                    for _ in range(round):
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel("enough")
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(call, session)
            assert not session.peer.open
            assert not transport.posts


async def test_a_stream_left_open_after_its_reply_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_transport, "LINGER", 0.02)
    async with canned(tools__call=lambda request: Hold(chunked(events(request), end=False))) as server:
        counters = Counters()
        async with talking(server.url, counters=counters) as (session, transport):
            assert await call(session) == TEXT
            await server.wait_until(lambda: server.left == [1])
            assert not transport.posts
        assert counters["http.lingering_closed"] == 1


# The first notification of a legacy session

GREETING = {"protocolVersion": LEGACY, "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}}


async def test_no_request_overtakes_the_first_notification_on_another_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connecting, "TAKEN", 60.0)
    order: list[str] = []

    class Slow(Apart):
        def __iter__(self) -> Iterator[bytes]:
            yield self[0]
            order.append("taken")
            yield self[1]

    def listed(request: Seen) -> bytes:
        order.append("listed")
        return as_json(request, {"tools": []})

    slow = Slow([status(202)[:9], status(202)[9:]])
    async with canned(
        initialize=partial(as_json, result=GREETING), notifications__initialized=slow, tools__list=listed
    ) as server:
        async with open_fabric([Http(name="far", url=server.url, era="legacy")]) as fabric:
            with trio.fail_after(20):
                await fabric.wait_started()
            assert fabric.links["far"].state == "ready"
    assert order == ["taken", "listed"]


@pytest.mark.parametrize("answer", [Hold(), Cut(), status(500)])
async def test_a_server_that_does_not_take_the_first_notification_is_called_all_the_same(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "TAKEN", 0.05)
    async with canned(
        initialize=partial(as_json, result=GREETING),
        notifications__initialized=answer,
        tools__list=partial(as_json, result={"tools": []}),
    ) as server:
        async with open_fabric([Http(name="far", url=server.url, era="legacy")]) as fabric:
            await fabric.wait_started()
            assert fabric.links["far"].state == "ready"


# A legacy server's standing stream, and streams taken up again


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_transport, "STREAM_BACKOFF", (0.01, 0.02))
    monkeypatch.setattr(http_rules, "RETRY_BOUNDS", (0.0, 0.02))


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize(
    "answer", [status(405), status(404), status(501), status(400), status(200, b"ok"), status(302)]
)
async def test_h13_a_server_without_a_standing_stream_is_asked_once(answer: bytes) -> None:
    async with canned(GET=answer, tools__call=as_json) as server:
        async with talking(server.url, LEGACY) as (session, transport):
            transport.session_id = "s-1"
            await server.wait_until(lambda: server.count("GET") == 1)
            await trio.sleep(0.05)
            assert await call(session) == TEXT
        assert server.count("GET") == 1


@pytest.mark.parametrize("answer", [status(405), stream(b""), Hold(chunked(b"", end=False))])
async def test_who_waits_for_the_standing_stream_goes_on_once_it_is_open_or_refused(answer: bytes) -> None:
    async with canned(GET=answer) as server:
        async with talking(server.url, LEGACY) as (_, transport):
            with trio.fail_after(5):
                await transport.wait_listening()
            assert server.count("GET") >= 1


async def test_a_modern_server_is_not_asked_for_a_standing_stream() -> None:
    async with canned(tools__call=as_json) as server:
        async with talking(server.url) as (session, _):
            await call(session)
        assert server.whats() == ["tools/call"]


LOG = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}\n\n'


@pytest.mark.usefixtures("_soon")
async def test_a_standing_stream_is_opened_again_from_where_it_ended() -> None:
    answers: list[Answer] = [
        stream(b"id: a1\n" + LOG),
        status(503),
        status(307, b"", "Location: /other"),
        Hold(chunked(LOG, end=False)),
    ]
    async with canned(GET=answers) as server:
        async with talking(server.url, LEGACY) as (session, _):
            await server.wait_until(lambda: server.count("GET") == 4)
            while session.log_lines < 2:  # noqa: ASYNC110  # a count has no event
                await trio.sleep(0.005)
        assert [(one.target, one.header("Last-Event-ID")) for one in server.seen] == [
            ("/mcp", None), ("/mcp", "a1"), ("/mcp", "a1"), ("/other", "a1"),
        ]  # fmt: skip


@pytest.mark.usefixtures("_soon")
async def test_whoever_follows_is_told_when_the_standing_stream_begins_anew_and_not_when_it_goes_on() -> None:
    answers: list[Answer] = [
        stream(LOG),  # without an id: what comes before the next is lost
        stream(b"id: a1\n" + LOG),
        Hold(chunked(LOG, end=False)),
    ]
    async with canned(GET=answers) as server:
        async with talking(server.url, LEGACY) as (session, transport):
            opened: list[int] = []
            transport.on_listening = lambda: opened.append(server.count("GET"))
            while session.log_lines < 3:  # noqa: ASYNC110  # a count has no event
                await trio.sleep(0.005)
            assert opened == [1, 2]


@pytest.mark.usefixtures("_soon")
async def test_a_standing_stream_redirected_in_circles_is_given_up() -> None:
    answers: list[Answer] = [status(307, b"", "Location: /a"), status(307, b"", "Location: /b")] * 20
    async with canned(GET=answers) as server:
        async with talking(server.url, LEGACY):
            await trio.sleep(0.1)
        assert server.count("GET") <= http_rules.MAX_REDIRECTS + 2


@pytest.mark.usefixtures("_soon")
async def test_l01_a_standing_stream_that_was_there_and_is_unknown_now_means_a_lost_session() -> None:
    async with canned(GET=[stream(LOG), status(404)]) as server:
        async with talking(server.url, LEGACY) as (session, transport):
            transport.session_id = "s-1"
            assert "404" in await session.wait_lost()
        assert server.count("DELETE") == 0


@pytest.mark.usefixtures("_soon")
async def test_h11_a_legacy_stream_with_ids_is_taken_up_again() -> None:
    def rest(_request: Seen) -> bytes:
        (asked,) = [one for one in server.seen if one.what == "tools/call"]
        return stream(b"id: e3\n" + events(asked))

    answers: list[Answer] = [status(503), stream(b"id: e2\ndata:\n\n"), rest]
    async with canned(tools__call=stream(b"id: e1\nretry: 10\ndata:\n\n"), GET=[status(405), *answers]) as server:
        async with talking(server.url, LEGACY) as (session, _):
            await server.wait_until(lambda: server.count("GET") == 1)
            assert await call(session) == TEXT
        resumed = [one.header("Last-Event-ID") for one in server.seen if one.what == "GET"]
        assert resumed == [None, "e1", "e1", "e2"]
        assert server.count("tools/call") == 1


@pytest.mark.usefixtures("_soon")
async def test_h11_taking_up_again_has_a_bound() -> None:
    async with canned(tools__call=[stream(b"id: e1\ndata:\n\n"), as_json], GET=[status(405), stream(b"")]) as server:
        async with talking(server.url, LEGACY) as (session, _):
            await server.wait_until(lambda: server.count("GET") == 1)
            failure = await failure_of(call(session))
            assert isinstance(failure, ConnectionLost)
            assert failure.executed == "unknown"
        assert server.count("GET") == 1 + http_sinks.MAX_RESUMES


@pytest.mark.usefixtures("_soon")
async def test_a_call_cancelled_while_its_stream_is_down_is_told_and_not_taken_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_rules, "RETRY_BOUNDS", (0.05, 0.05))
    async with canned(
        tools__call=stream(b"id: e1\ndata:\n\n"), GET=status(405), notifications__cancelled=status(202)
    ) as server:
        counters = Counters()
        async with talking(server.url, LEGACY, counters=counters) as (session, _):
            await server.wait_until(lambda: server.count("GET") == 1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, session)
                while not counters["http.resumed"]:  # noqa: ASYNC110  # a count has no event
                    await trio.sleep(0.005)
                nursery.cancel_scope.cancel("enough")
            await server.wait_until(lambda: server.count("notifications/cancelled") == 1)
            await trio.sleep(0.1)
        assert server.count("GET") == 1


async def test_a_call_whose_stream_is_being_taken_up_again_still_counts_as_written() -> None:
    async with canned(tools__call=stream(b"id: e1\ndata:\n\n"), GET=Cut(status(405))) as server:
        counters = Counters()
        async with talking(server.url, LEGACY, counters=counters) as (session, transport):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, session)
                while not counters["http.resumed"]:  # noqa: ASYNC110  # a count has no event
                    await trio.sleep(0.005)
                transport.posts[1].resume([])  # its connection is still to be made
                assert transport.written(1)
                nursery.cancel_scope.cancel("enough")


async def test_a_modern_stream_is_never_taken_up_again() -> None:
    async with canned(tools__call=stream(b"id: e1\nretry: 1\ndata:\n\n")) as server:
        async with talking(server.url) as (session, _):
            assert isinstance(await failure_of(call(session)), ConnectionLost)
        assert server.whats() == ["tools/call"]


# Losing a session


async def test_l01_404_with_a_session_loses_it_and_nothing_of_the_refused_call_ran() -> None:
    async with canned(tools__call=[Hold(b""), status(404)], GET=status(405)) as server:
        async with talking(server.url, LEGACY) as (session, transport):
            transport.session_id = "s-1"
            failures: list[CallError] = []

            async def fail() -> None:
                failures.append(await failure_of(call(session)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                await server.wait_until(lambda: server.count("tools/call") == 1)
                nursery.start_soon(fail)
            assert sorted(failure.executed for failure in failures) == ["no", "unknown"]
            assert "404" in await session.wait_lost()
            after = await failure_of(call(session))
            assert isinstance(after, ConnectionLost)
            assert after.executed == "no"
        assert server.count("DELETE") == 0


async def test_404_of_a_modern_server_is_no_lost_session() -> None:
    failure = await failed_call(status(404))
    assert isinstance(failure, HttpFailed)


# -32020


WEATHER = {
    "name": "weather",
    "inputSchema": {"type": "object", "properties": {"city": {"type": "string", "x-mcp-header": "City"}}},
}


def mismatch(request: Seen) -> bytes:
    error = {"jsonrpc": "2.0", "id": request.message["id"], "error": {"code": -32020, "message": "Mcp-Param-City"}}
    return status(400, json.dumps(error).encode(), "Content-Type: application/json")


DISCOVERED = {"supportedVersions": [MODERN], "capabilities": {"tools": {}}, "ttlMs": 0, "cacheScope": "public"}
NO_CITY = {"name": "weather", "inputSchema": {"type": "object", "properties": {"city": {"type": "string"}}}}


def listing(*tools: Json, cursor: str | None = None) -> Callable[[Seen], bytes]:
    more = {} if cursor is None else {"nextCursor": cursor}
    return lambda request: as_json(request, {"tools": list(tools), **more})


def discovered(request: Seen) -> bytes:
    return as_json(request, DISCOVERED)


def weather(request: Seen) -> bytes:
    return as_json(request) if request.header("Mcp-Param-City") == "Bern" else mismatch(request)


async def test_m12_a_missed_header_lists_anew_and_calls_once_more() -> None:
    async with canned(
        server__discover=discovered, tools__list=[listing(NO_CITY), listing(WEATHER)], tools__call=weather
    ) as server:
        async with open_fabric([Http(name="far", url=server.url)]) as fabric:
            for _ in range(2):
                assert (await fabric.call("far__weather", {"city": "Bern"})).text == "hello"
        assert server.whats()[1:] == ["tools/list", "tools/call", "tools/list", "tools/call", "tools/call"]


async def test_m12_a_header_that_is_missed_again_is_an_error() -> None:
    async with canned(server__discover=discovered, tools__list=listing(NO_CITY), tools__call=mismatch) as server:
        async with open_fabric([Http(name="far", url=server.url)]) as fabric:
            with pytest.raises(CallFailed, match="-32020"):
                await fabric.call("far__weather", {"city": "Bern"})
        assert server.whats()[1:] == ["tools/list", "tools/call", "tools/list", "tools/call"]


# The whole way: which era, and what comes after a lost session


def greeted(request: Seen) -> bytes:
    result = {"protocolVersion": LEGACY, "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}}
    return status(200, reply(request, result), "Content-Type: application/json", "Mcp-Session-Id: s")


def error(code: int, message: str = "no", id: Json = "same", kind: int = 400) -> Callable[[Seen], bytes]:
    def answer(request: Seen) -> bytes:
        found = {
            "jsonrpc": "2.0",
            "id": request.message["id"] if id == "same" else id,
            "error": {"code": code, "message": message},
        }
        return status(kind, json.dumps(found).encode(), "Content-Type: application/json")

    return answer


def legacy(**more: Answer | Sequence[Answer]) -> dict[str, Answer | Sequence[Answer]]:
    told: dict[str, Answer | Sequence[Answer]] = {
        "initialize": greeted,
        "notifications__initialized": status(202),
        "tools__list": listing(NO_CITY),
        "tools__call": as_json,
        "DELETE": status(200),
    }
    return told | more


@pytest.mark.parametrize(
    "probed",
    [
        error(-32601, kind=200), error(-32602, kind=200), error(-32600), error(-32000, "initialize first"),
        error(-32600, "missing session id"), error(-32000, "No valid session", None), error(-32600, id="server-error"),
        error(-32601, kind=404), status(400, b"Bad Request: no session"), status(400), status(405), status(406),
        status(415), status(202),
        status(404, b"<html>", "Content-Type: text/html"), status(200, b"hello", "Content-Type: text/plain"),
        status(200, b"{}", "Content-Type: application/json"),
        lambda request: stream(b"data: " + error(-32601)(request).partition(b"\r\n\r\n")[2] + b"\n\n"),
    ],
)  # fmt: skip
async def test_m01_m06_whatever_a_probe_meets_but_a_modern_answer_means_legacy(probed: Answer) -> None:
    async with canned(**legacy(server__discover=probed)) as server:
        async with open_fabric([Http(name="far", url=server.url)]) as fabric:
            assert (await fabric.call("far__weather")).text == "hello"
        hello = next(one for one in server.seen if one.what == "initialize")
        assert hello.message["params"]["protocolVersion"] == LEGACY
        assert hello.header("MCP-Protocol-Version") is None
        assert hello.header("Mcp-Method") is None


@pytest.mark.parametrize("probed", [status(401), status(403), status(500), status(502), status(503), status(429)])
async def test_what_says_nothing_of_the_era_is_no_verdict(probed: Answer) -> None:
    async with canned(**legacy(server__discover=probed)) as server:
        async with open_fabric([Http(name="far", url=server.url)]) as fabric:
            await fabric.wait_started()
            assert f"HTTP status {probed[9:12].decode()}" in fabric.links["far"].reason  # type: ignore[index]  # bytes
        assert server.count("initialize") == 0


async def test_m02_a_server_that_ignores_the_probe_is_greeted_on_a_fresh_connection() -> None:
    async with canned(**legacy(server__discover=Hold(b""))) as server:
        async with open_fabric([Http(name="far", url=server.url, connect=0.2)]) as fabric:
            assert (await fabric.call("far__weather")).text == "hello"
        assert server.count("notifications/cancelled") == 0


async def test_l01_after_404_the_refused_call_is_made_once_more_in_a_new_session() -> None:
    async with canned(**legacy(tools__call=[status(404), as_json])) as server:
        async with open_fabric([Http(name="far", url=server.url, era="legacy", retries=1)]) as fabric:
            assert (await fabric.call("far__weather")).text == "hello"
            assert fabric.links["far"].starts == 2
        hellos = [one for one in server.seen if one.what == "initialize"]
        assert [one.header("Mcp-Session-Id") for one in hellos] == [None, None]
        assert server.count("tools/call") == 2


async def test_a_session_is_ended_at_its_server_when_the_fabric_ends() -> None:
    async with canned(**legacy()) as server:
        async with open_fabric([Http(name="far", url=server.url, era="legacy")]) as fabric:
            assert (await fabric.call("far__weather")).text == "hello"
            began = trio.current_time()
        assert trio.current_time() - began < http_transport.FAREWELL
        assert server.seen[-1].verb == "DELETE"
        assert server.seen[-1].header("Mcp-Session-Id") == "s"


async def test_a_call_right_after_a_loss_waits_for_the_next_session() -> None:
    async with canned(**legacy()) as server:
        async with open_fabric([Http(name="far", url=server.url, era="legacy", retries=0)]) as fabric:
            await fabric.wait_started()
            (client,) = fabric.links["far"].sessions.values()
            client.session.lost(ConnectionLost("pulled"))
            assert (await fabric.call("far__weather")).text == "hello"
            assert fabric.links["far"].starts == 2


async def test_l03_a_server_that_always_says_404_is_not_asked_again_and_again() -> None:
    async with canned(**legacy(tools__call=status(404), tools__list=[listing(NO_CITY), status(404)])) as server:
        async with open_fabric([Http(name="far", url=server.url, era="legacy")]) as fabric:
            with pytest.raises(CallError):
                await fabric.call("far__weather")
            assert server.count("tools/call") == 1
        assert server.count("initialize") <= 8  # pauses are drawn, and some are next to none


async def test_m24_a_listen_stream_that_dropped_is_opened_again_and_what_it_missed_is_listed() -> None:
    ack = b'data: {"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{}}\n\n'
    told = DISCOVERED | {"capabilities": {"tools": {"listChanged": True}}}
    async with canned(
        server__discover=lambda request: as_json(request, told),
        tools__list=[listing(NO_CITY), listing(NO_CITY, WEATHER | {"name": "new"})],
        subscriptions__listen=[Cut(chunked(ack, end=False)), Hold(chunked(ack, end=False))], tools__call=as_json,
    ) as server:  # fmt: skip
        async with open_fabric([Http(name="far", url=server.url)]) as fabric:
            assert (await fabric.call("far__weather")).text == "hello"
            assert (await fabric.registry.changed(fabric.registry.snapshot.version)).tools.keys() == {
                "far__weather",
                "far__new",
            }
        assert server.count("subscriptions/listen") == 2
