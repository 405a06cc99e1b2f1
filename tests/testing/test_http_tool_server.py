"""The scripted server over HTTP, seen by a plain client: its two eras, and its faults one by one."""

from __future__ import annotations

import http.client
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import pytest
import trio

from cord_trio.testing import open_http_tool_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cord_trio.testing import HttpToolServer

Json: TypeAlias = Any
BOTH = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Reply:
    """An answer as it came: the messages in its JSON or in its events, in order."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers = response.status, response.headers
        self.broken = False
        try:
            self.body = response.read()
        except http.client.IncompleteRead as exc:
            self.body, self.broken = exc.partial, True
        self.kind = self.headers.get("Content-Type", "")

    @property
    def messages(self) -> list[Json]:
        if self.kind == "application/json":
            return [json.loads(self.body)]
        lines = self.body.split(b"\n")
        return [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]

    @property
    def text(self) -> str:
        text: str = self.messages[-1]["result"]["content"][0]["text"]
        return text


class Plain:
    """A client of one connection."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)

    def post(self, message: Json, headers: dict[str, str] | None = None) -> Reply:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.connection.request("POST", "/mcp", body, BOTH | (headers or {}))
        return Reply(self.connection.getresponse())

    def modern(self, method: str, headers: dict[str, str] | None = None, **params: Json) -> Reply:
        told = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method}
        if "name" in params:
            told["Mcp-Name"] = params["name"]
        params["_meta"] = ENVELOPE | params.pop("meta", {})
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return self.post(message, told | (headers or {}))

    def call(self, tool: str, **arguments: Json) -> Reply:
        return self.modern("tools/call", name=tool, arguments=arguments)

    def legacy(self, method: str, session: str | None = None, id: int | None = 1, **params: Json) -> Reply:
        message = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if id is None else {"id": id})
        return self.post(message, {} if session is None else {"Mcp-Session-Id": session})

    def hello(self) -> str:
        """The session of a new legacy conversation."""
        reply = self.legacy("initialize", protocolVersion="2025-06-18", capabilities={})
        assert reply.messages[0]["result"]["protocolVersion"] == "2025-06-18"
        return reply.headers["Mcp-Session-Id"]


@contextmanager
def connected(server: HttpToolServer) -> Iterator[Plain]:
    client = Plain(server.url)
    try:
        yield client
    finally:
        client.connection.close()


async def recorded(server: HttpToolServer, many: int) -> None:
    """Return once the server has recorded so many things."""
    while len(server.records()) < many:  # noqa: ASYNC110  # a file of another process
        await trio.sleep(0.01)


async def told(scenario: Callable[[Plain], object], **options: Json) -> list[Json]:
    """Run `scenario` against a server with `options`; what the server recorded."""

    def run(server: HttpToolServer) -> None:
        with connected(server) as client:
            scenario(client)

    async with open_http_tool_server(**options) as server:
        await trio.to_thread.run_sync(run, server)
        return server.records()


async def test_modern_answers_as_json_or_events() -> None:
    def scenario(client: Plain) -> None:
        assert client.modern("server/discover").messages[0]["result"]["supportedVersions"] == ["2026-07-28"]
        plain = client.call("add", a=1, b=2)
        assert (plain.kind, plain.text) == ("application/json", "3")
        progress = client.modern("tools/call", name="progress", arguments={"seconds": 0.05}, meta={"progressToken": 7})
        assert progress.kind == "text/event-stream"
        assert [one["params"]["progress"] for one in progress.messages[:-1]] == [1, 2, 3]
        assert progress.text == "3 steps"

    records = await told(scenario)
    assert [json.loads(record["body"])["method"] for record in records] == ["server/discover", *["tools/call"] * 2]


async def test_modern_faults_of_the_client_have_their_status() -> None:
    def scenario(client: Plain) -> None:
        seen = [
            client.modern("nope"),
            client.modern("tools/list", {"Mcp-Method": "tools/call"}),
            client.modern("tools/list", meta={"io.modelcontextprotocol/protocolVersion": "2030-01-01"}),
            client.post(b"{"),
            client.post([]),
            client.post({"jsonrpc": "2.0", "id": 1, "method": "x"}, {"MCP-Protocol-Version": "2026-07-28"}),
        ]
        found = [(reply.status, reply.messages[0]["error"]["code"]) for reply in seen]
        assert found == [(404, -32601), (400, -32020), (400, -32020), (400, -32700), (400, -32600), (400, -32602)]
        assert client.modern("tools/call", {"Mcp-Name": "=?base64?ZWNobw==?="}, name="echo").status == 200

    await told(scenario)


async def test_legacy_lives_in_sessions() -> None:
    def scenario(client: Plain) -> None:
        session = client.hello()
        assert client.legacy("notifications/initialized", session, id=None).status == 202
        assert client.legacy("tools/call", session, name="echo", arguments={"text": "x"}).text == "x"
        assert client.legacy("tools/list").status == 400
        assert client.legacy("tools/list", "never").status == 404
        client.connection.request("DELETE", "/mcp", headers={"Mcp-Session-Id": session})
        assert Reply(client.connection.getresponse()).status == 200
        assert client.legacy("tools/list", session).status == 404

    await told(scenario)


async def test_a_legacy_cancel_ends_the_call_and_a_question_is_answered_by_another_post() -> None:
    async with open_http_tool_server() as server:

        def start(client: Plain, session: str, tool: str) -> Reply:
            return client.legacy("tools/call", session, id=5, name=tool, arguments={"seconds": 60})

        with connected(server) as one, connected(server) as other:
            session = one.hello()
            replies: list[Reply] = []

            async def run(tool: str) -> None:
                replies.append(await trio.to_thread.run_sync(start, one, session, tool))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, "sleep")
                await recorded(server, 2)
                other.legacy("notifications/cancelled", session, id=None, requestId=5)
            assert replies[0].messages[-1]["error"]["code"] == -32800
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, "ask")
                await recorded(server, 4)
                other.post({"jsonrpc": "2.0", "id": "ask-5", "result": {"roots": []}}, {"Mcp-Session-Id": session})
            asked, answer = replies[1].messages
            assert asked["method"] == "roots/list"
            assert answer["result"]["structuredContent"]["answer"] == {"roots": []}


async def test_a_standalone_stream_carries_logs_and_changes() -> None:
    def scenario(client: Plain) -> None:
        session = client.hello()
        client.connection.request("GET", "/mcp", headers={"Mcp-Session-Id": session})
        stream = client.connection.getresponse()
        assert stream.readline() == b"event: message\n"
        assert json.loads(stream.readline()[6:])["method"] == "notifications/message"
        stream.close()

    await told(scenario, logs=50.0)


async def test_a_client_that_leaves_is_noted_and_cancels_only_in_the_modern_era() -> None:
    async with open_http_tool_server() as server:
        with connected(server) as client:
            session = client.hello()
        modern = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "sleep"}
        for headers in ({"Mcp-Session-Id": session}, modern):
            with connected(server) as client:
                params: Json = {"name": "sleep", "arguments": {"seconds": 60}}
                body: Json = {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": params}
                if "Mcp-Name" in headers:
                    params["_meta"] = ENVELOPE
                client.connection.request("POST", "/mcp", json.dumps(body), BOTH | headers)
        await recorded(server, 5)
        assert sum("left" in record for record in server.records()) == 2
        with connected(server) as client:
            assert json.loads(client.call("whoami").text)["cancelled"] == 1


def broken(client: Plain) -> Reply | None:
    """The reply to a call, or None if the connection broke before its head."""
    try:
        return client.call("echo", text="hello")
    except (http.client.RemoteDisconnected, ConnectionError):
        client.connection.close()
        return None


@pytest.mark.parametrize(
    ("options", "status", "seen"),
    [
        ({"status": 503, "status_header": "Retry-After: 2"}, 503, lambda reply: reply.headers["Retry-After"] == "2"),
        ({"status": 500, "status_body": '{"a":1}'}, 500, lambda reply: reply.messages == [{"a": 1}]),
        ({"redirect": "/other"}, 307, lambda reply: reply.headers["Location"] == "/other"),
        ({"gzip": True}, 200, lambda reply: reply.body.startswith(b"\x1f\x8b")),
        ({"cut": 5}, 200, lambda reply: reply.broken and len(reply.body) == 5),
        ({"cut": 5, "reply": "sse"}, 200, lambda reply: reply.broken and reply.body == b"event"),
        ({"cut": 0}, 200, lambda reply: reply.broken and reply.body == b""),
        ({"piece": 1, "reply": "sse", "comments": True}, 200, lambda reply: b": quiet\n\n" in reply.body),
        ({"until_close": True, "reply": "sse"}, 200, lambda reply: reply.text == "hello"),
        ({"reply": "sse", "priming": True}, 200, lambda reply: reply.body.startswith(b"id: 1\nretry: 10\ndata:\n\n")),
        ({"content_type": "text/html"}, 200, lambda reply: reply.kind == "text/html"),
        ({"header_bytes": 100}, 200, lambda reply: len(reply.headers["X-Needless"]) == 100),
        ({"slow_head": 0.05, "late_fault": True}, 200, lambda reply: reply.text == "hello"),
    ],
)
async def test_a_fault_strikes_as_often_as_told(options: Json, status: int, seen: Callable[[Reply], bool]) -> None:
    def scenario(client: Plain) -> None:
        struck = broken(client)
        assert struck is not None
        assert struck.status == status
        assert seen(struck)
        client.connection.close()
        assert client.call("echo", text="again").text == "again"

    await told(scenario, times=1, **options)


async def test_a_connection_may_break_before_or_after_the_call_ran() -> None:
    ran: list[int] = []

    def scenario(client: Plain) -> None:
        assert broken(client) is None
        ran.append(json.loads(client.call("whoami").text)["received"].get("call echo", 0))

    await told(scenario, reset=True, times=1)
    await told(scenario, reset=True, times=1, late_fault=True)
    assert ran == [0, 1]


async def test_sessions_are_forgotten_once() -> None:
    def scenario(client: Plain) -> None:
        session = client.hello()
        assert client.legacy("ping", session).status == 200
        assert client.legacy("ping", session).status == 404
        assert client.legacy("ping", client.hello()).status == 200

    await told(scenario, forget_after=2)


async def test_a_server_makes_its_source() -> None:
    async with open_http_tool_server() as server:
        source = server.source(slots=2)
    assert (source.url, source.slots) == (server.url, 2)
    assert server.url.startswith("http://127.0.0.1:")


async def test_an_error_of_the_block_comes_out_bare() -> None:
    with pytest.raises(KeyError):
        async with open_http_tool_server():
            raise KeyError
