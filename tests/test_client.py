from __future__ import annotations

import json
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete, Error, InputRequired, Task
from cord_trio.cell import Timer
from cord_trio.client import MAX_NOTES, Client
from cord_trio.counters import Counters
from cord_trio.errors import BadReply, CallError, CallFailed, ConnectionLost, DeadlineExceeded
from cord_trio.handshake import Greeting
from cord_trio.session import open_session
from cord_trio.transports.memory import MemoryTransport, memory_transport_pair

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from trio.testing import MockClock

Json: TypeAlias = Any
REVISION = "2026-07-28"
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": REVISION,
    "io.modelcontextprotocol/clientInfo": {"name": "cord"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Server:
    """Answers with what a function makes of each request: a result, `(code, message)` for an error, or None."""

    def __init__(self, transport: MemoryTransport, answer: Callable[[Json], Json]) -> None:
        self.transport = transport
        self.answer = answer
        self.got: list[Json] = []
        self.lines: list[bytes] = []

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        self.lines += messages
        for message in map(json.loads, messages):
            self.got.append(message)
            answer = self.answer(message)
            if answer is None or "id" not in message:
                continue
            reply = (
                {"error": {"code": answer[0], "message": answer[1]}}
                if isinstance(answer, tuple)
                else {"result": answer}
            )
            self.transport.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], **reply}).encode())

    def fail(self, id: int | str, error: CallError, /) -> None:
        raise AssertionError

    def lost(self, error: ConnectionLost, /) -> None:
        pass

    def waits(self, id: int | str, /) -> bool:
        return False


@asynccontextmanager
async def connected(
    answer: Callable[[Json], Json],
    *,
    modern: bool = True,
    capabilities: Mapping[str, Json] | None = None,
    **bounds: int,
) -> AsyncGenerator[tuple[Client, Server]]:
    ours, theirs = memory_transport_pair()
    server, timer = Server(theirs, answer), Timer()
    greeting = Greeting(
        REVISION if modern else "2025-11-25", modern, {"tools": {}} if capabilities is None else capabilities, {}
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(timer.run)
        await nursery.start(theirs.run, server)
        async with open_session(ours, name="far", timer=timer, counters=Counters()) as session:
            yield Client(session, greeting, {"name": "cord"}, **bounds), server  # type: ignore[arg-type]  # numbers alone are given
        nursery.cancel_scope.cancel("the test is over")


def tool(name: str, **more: Json) -> Json:
    return {"name": name, "inputSchema": {"type": "object"}, **more}


def ignore(method: str, params: Raw) -> None:
    """An event sink that wants nothing."""


# Calls


@pytest.mark.parametrize(
    ("call", "name", "params"),
    [
        (
            Call("tools/call", "x__echo", {"arguments": Raw(b'{"a":1.0}')}),
            "echo",
            {"name": "echo", "arguments": {"a": 1.0}},
        ),
        (Call("tools/call"), "echo", {"name": "echo"}),
        (Call("prompts/get"), 'q"uote', {"name": 'q"uote'}),
        (Call("resources/read"), "file:///ä", {"uri": "file:///ä"}),
        (Call("resources/list"), None, {}),
        (Call("x", params={"a": Raw(b"1"), "b": Raw(b"[2]")}), None, {"a": 1, "b": [2]}),
        (Call("tools/call", meta={"k": Raw(b"1")}), "echo", {"name": "echo", "_meta": {"k": 1}}),
        (Call("x", trace="00-a-b-01"), None, {"_meta": {"traceparent": "00-a-b-01"}}),
        (Call("x", trace="00-a-b-01", patience=5.0), None, {"_meta": {"traceparent": "00-a-b-01", "progressToken": 1}}),
        (
            Call("x", trace="00-a-b-01", meta={"tracestate": Raw(b'"c=1"'), "traceparent": Raw(b"1")}),
            None,
            {"_meta": {"traceparent": "00-a-b-01", "tracestate": "c=1"}},
        ),
        (Call("x", events=ignore), None, {"_meta": {"progressToken": 1}}),
        (Call("x", patience=5.0), None, {"_meta": {"progressToken": 1}}),
        (Call("x", meta={"k": Raw(b"1")}, events=ignore), None, {"_meta": {"k": 1, "progressToken": 1}}),
    ],
)
@pytest.mark.parametrize("modern", [True, False])
async def test_a_call_is_written_in_its_servers_era(
    modern: bool, call: Call, name: str | None, params: Json, autojump_clock: MockClock
) -> None:
    async with connected(lambda _: {}, modern=modern) as (client, server):
        assert await client.call(call, name) == Complete(Raw(b"{}"))
        if modern:
            params = {**params, "_meta": {**ENVELOPE, **params.get("_meta", {})}}
        assert server.got == [{"jsonrpc": "2.0", "id": 1, "method": call.method, "params": params}]


async def test_the_same_call_is_written_the_same_again(autojump_clock: MockClock) -> None:
    async with connected(lambda _: {}) as (client, server):
        for _ in range(2):
            await client.call(Call("tools/call", "x__echo"), "echo")
        assert server.lines[1] == server.lines[0].replace(b'"id":1', b'"id":2')


async def test_what_is_kept_of_names_is_bounded(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cord_trio.client.MAX_HEADS", 3)
    async with connected(lambda _: {}) as (client, server):
        for name in "abcdefgh":
            await client.call(Call("tools/call"), name)
            assert len(client._heads) <= 3
        assert [message["params"]["name"] for message in server.got] == list("abcdefgh")


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        ({"resultType": "complete", "content": []}, Complete),
        ({"content": []}, Complete),
        ({"resultType": "input_required", "requestState": "s"}, InputRequired),
        ({"resultType": "task", "taskId": "t"}, Task),
    ],
)
async def test_a_modern_result_says_what_it_is(result: Json, outcome: type, autojump_clock: MockClock) -> None:
    async with connected(lambda _: result) as (client, _):
        found = await client.call(Call("tools/call"), "x")
        assert isinstance(found, outcome)
        assert not isinstance(found, Error)
        assert json.loads(bytes(found.result)) == result


async def test_a_legacy_result_is_complete_whatever_it_says(autojump_clock: MockClock) -> None:
    async with connected(lambda _: {"resultType": "input_required"}, modern=False) as (client, _):
        assert isinstance(await client.call(Call("tools/call"), "x"), Complete)


@pytest.mark.parametrize("result", [{"resultType": "odd"}, {"resultType": 5}, [], "text", 0, True])
async def test_a_result_that_is_none_is_a_bad_reply(result: Json, autojump_clock: MockClock) -> None:
    async with connected(lambda _: result) as (client, _):
        with pytest.raises(BadReply, match="far: "):
            await client.call(Call("tools/call"), "x")


@pytest.mark.parametrize("result", [[], "text", 0, True])
async def test_a_legacy_result_that_is_no_object_is_a_bad_reply(result: Json, autojump_clock: MockClock) -> None:
    async with connected(lambda _: result, modern=False) as (client, _):
        with pytest.raises(BadReply, match="far: the result of tools/call is not an object"):
            await client.call(Call("tools/call"), "x")


async def test_an_error_is_an_outcome(autojump_clock: MockClock) -> None:
    async with connected(lambda _: (-32602, "no such tool")) as (client, _):
        assert await client.call(Call("tools/call"), "x") == Error(-32602, "no such tool")


@pytest.mark.parametrize("modern", [True, False])
async def test_headers_that_no_longer_fit_are_made_anew_once(modern: bool, autojump_clock: MockClock) -> None:
    answers = {"tools/list": {"tools": [tool("x")]}, "tools/call": (-32020, "header mismatch")}
    async with connected(lambda message: answers[message["method"]], modern=modern) as (client, server):
        assert await client.call(Call("tools/call"), "x") == Error(-32020, "header mismatch")
        methods = [message["method"] for message in server.got]
        assert methods == (["tools/call", "tools/list", "tools/call"] if modern else ["tools/call"])


async def test_a_call_keeps_to_its_deadline(autojump_clock: MockClock) -> None:
    async with connected(lambda _: None) as (client, _):
        with pytest.raises(DeadlineExceeded):
            await client.call(Call("tools/call", deadline=trio.current_time() + 5), "x")


async def test_progress_of_the_server_moves_a_calls_own_deadline(autojump_clock: MockClock) -> None:
    async with connected(lambda _: None) as (client, server):
        start = trio.current_time()

        async def work() -> None:
            for _ in range(4):
                await trio.sleep(4)
                server.transport.send(
                    b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}'
                )
            server.transport.send(b'{"jsonrpc":"2.0","id":1,"result":{}}')

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            call = Call("tools/call", deadline=start + 5, patience=5, latest=start + 100, events=ignore)
            assert await client.call(call, "x") == Complete(Raw(b"{}"))
        assert trio.current_time() - start == 16


# Lists


def paged(pages: Mapping[str | None, Json]) -> Callable[[Json], Json]:
    return lambda message: pages[message["params"].get("cursor")]


async def test_all_pages_are_listed_in_order_and_an_empty_cursor_is_one(autojump_clock: MockClock) -> None:
    pages = {
        None: {"tools": [tool("b"), tool("a")], "nextCursor": ""},
        "": {"tools": [], "nextCursor": "2"},
        "2": {"tools": [tool("c")], "nextCursor": None},
    }
    async with connected(paged(pages)) as (client, server):
        tools, notes = await client.list_tools()
        assert ([tool.name for tool in tools], notes) == (["b", "a", "c"], ())
        assert [message["params"].get("cursor") for message in server.got] == [None, "", "2"]
        assert server.got[0]["params"]["_meta"] == ENVELOPE


async def test_l11_a_server_that_declares_no_tools_is_not_asked(autojump_clock: MockClock) -> None:
    async with connected(lambda _: (-32601, "no"), capabilities={"prompts": {}}) as (client, server):
        assert await client.list_tools() == ((), ())
        assert server.got == []


async def test_l11_a_method_that_is_not_found_is_an_empty_list(autojump_clock: MockClock) -> None:
    async with connected(lambda _: (-32601, "no"), modern=False) as (client, server):
        assert await client.list_tools() == ((), ())
        assert server.got == [{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}]


async def test_r05_a_cursor_that_repeats_ends_the_list_and_each_tool_counts_once(autojump_clock: MockClock) -> None:
    page = {"tools": [tool("a"), tool("b")], "nextCursor": "8"}
    async with connected(lambda _: page) as (client, server):
        tools, notes = await client.list_tools()
        assert [tool.name for tool in tools] == ["a", "b"]
        assert len(server.got) == 2
        assert notes == (
            "tool 'a' is listed twice; the first counts",
            "tool 'b' is listed twice; the first counts",
            "the cursor '8' repeats; the list ends there",
        )


async def test_r05_pages_without_end_are_bounded(autojump_clock: MockClock) -> None:
    async with connected(lambda message: {"tools": [], "nextCursor": str(message["id"])}, max_pages=7) as (
        client,
        server,
    ):
        assert await client.list_tools() == ((), ("more than 7 pages; the list ends there",))
        assert client.session.counters["client.list_cut"] == 1
        assert len(server.got) == 7


async def test_r05_tools_without_end_are_bounded(autojump_clock: MockClock) -> None:
    def answer(message: Json) -> Json:
        id = message["id"]
        return {"tools": [tool(f"{id}-{number}") for number in range(3)], "nextCursor": str(id)}

    async with connected(answer, max_tools=4) as (client, server):
        tools, notes = await client.list_tools()
        assert [tool.name for tool in tools] == ["1-0", "1-1", "1-2", "2-0"]
        assert notes == ("6 tools; those after 4 are left out",)
        assert client.session.counters["client.list_cut"] == 1
        assert len(server.got) == 2


async def test_notes_are_bounded(autojump_clock: MockClock) -> None:
    async with connected(lambda _: {"tools": [tool("same")] * 1000}) as (client, _):
        assert len((await client.list_tools())[1]) == MAX_NOTES


async def test_a_cursor_that_the_server_refuses_ends_the_list(autojump_clock: MockClock) -> None:
    pages = {None: {"tools": [tool("a")], "nextCursor": "old"}, "old": (-32602, "expired")}
    async with connected(paged(pages)) as (client, _):
        tools, notes = await client.list_tools()
        assert [tool.name for tool in tools] == ["a"]
        assert notes == ("the server refuses its own cursor 'old'; the list ends there",)


async def test_a_bad_tool_is_left_out_and_noted(autojump_clock: MockClock) -> None:
    async with connected(lambda _: {"tools": [tool("a"), {"inputSchema": {}}, {"name": "c"}]}) as (client, _):
        tools, notes = await client.list_tools()
        assert [tool.name for tool in tools] == ["a", "c"]
        assert len(notes) == 2


@pytest.mark.parametrize(
    ("answer", "error"), [((-32602, "no"), CallFailed), ((-32603, "no"), CallFailed), ({}, BadReply), ([], BadReply)]
)
async def test_a_list_that_cannot_be_had_is_an_error(
    answer: Json, error: type[CallError], autojump_clock: MockClock
) -> None:
    async with connected(lambda _: answer) as (client, _):
        with pytest.raises(error):
            await client.list_tools()


async def test_a_list_keeps_to_its_deadline(autojump_clock: MockClock) -> None:
    async with connected(lambda _: None) as (client, _):
        with pytest.raises(DeadlineExceeded):
            await client.list_tools(deadline=trio.current_time() + 30)


async def test_arguments_that_are_mirrored_go_out_as_headers(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "x-mcp-header": "City"}}}
    sent: list[Sequence[tuple[str, str]]] = []
    send = MemoryTransport.send

    def spy(self: MemoryTransport, message: bytes, *, headers: Sequence[tuple[str, str]] = (), **more: Json) -> None:
        sent.append(headers)
        send(self, message, headers=headers, **more)

    monkeypatch.setattr(MemoryTransport, "send", spy)
    answers = {"tools/list": {"tools": [tool("w", inputSchema=schema), tool("plain")]}, "tools/call": {}}
    async with connected(lambda message: answers[message["method"]]) as (client, _):
        await client.list_tools()
        sent.clear()
        await client.call(Call("tools/call", params={"arguments": Raw(b'{"city":"Ulm"}')}), "w")
        await client.call(Call("tools/call"), "w")
        await client.call(Call("tools/call", params={"arguments": Raw(b'{"city":"Ulm"}')}), "plain")
        assert [list(headers) for headers in sent if headers] == [[("Mcp-Param-City", "Ulm")]]


# Listening


@pytest.mark.parametrize(
    ("capabilities", "announces"),
    [({}, False), ({"tools": {}}, False), ({"tools": {"listChanged": True}}, True), ({"tools": True}, False)],
)
async def test_whether_changes_are_announced(capabilities: Json, announces: bool, autojump_clock: MockClock) -> None:
    async with connected(lambda _: {}, capabilities=capabilities) as (client, _):
        assert client.announces_tools is announces


async def test_listening_asks_for_tools_and_ends_with_the_servers_answer(autojump_clock: MockClock) -> None:
    tells = {"tools": {"listChanged": True}, "prompts": {}}
    async with connected(lambda _: {"resultType": "complete"}, capabilities=tells) as (client, server):
        await client.listen()
        assert server.got[0]["method"] == "subscriptions/listen"
        assert server.got[0]["params"] == {"notifications": {"toolsListChanged": True}, "_meta": ENVELOPE}


def test_a_call_waits_for_ever_unless_told_otherwise() -> None:
    assert Call("x").deadline == Call("x").latest == math.inf
    assert Call("x").patience == 0
