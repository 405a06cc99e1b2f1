"""MCP over HTTP against a server in another process that breaks on request: what a caller of the fabric sees."""

from __future__ import annotations

from typing import Any, TypeAlias

import pytest
import trio

from cord_trio.errors import BadReply, CallError, ConnectionLost, DeadlineExceeded, HttpFailed
from cord_trio.fabric import open_fabric
from cord_trio.testing import HttpToolServer, open_http_tool_server

Json: TypeAlias = Any
ERAS = ("modern", "legacy")


def asked(server: HttpToolServer, method: str) -> list[Json]:
    """The requests of one JSON-RPC method that a server met."""
    return [one for one in server.records() if f'"method":"{method}"' in one.get("body", "")]


def header(record: Json, name: str) -> str | None:
    return next((value for known, value in record["headers"] if known.lower() == name.lower()), None)


FAULTS: list[tuple[Json, type[CallError] | None, str]] = [
    *(({"cut": cut}, ConnectionLost, "unknown") for cut in (0, 1, 30)),
    ({"reset": True}, ConnectionLost, "unknown"),
    ({"reset": True, "late_fault": True}, ConnectionLost, "unknown"),
    ({"status": 500}, HttpFailed, "unknown"),
    ({"status": 500, "late_fault": True}, HttpFailed, "unknown"),
    ({"status": 503, "late_fault": True}, HttpFailed, "unknown"),
    ({"status": 400, "status_body": "what?"}, HttpFailed, "no"),
    ({"content_type": "text/html"}, BadReply, "yes"),
    ({"header_bytes": 40_000}, BadReply, "unknown"),
    ({"redirect": "http://127.0.0.2/mcp"}, HttpFailed, "no"),
    ({"redirect": "/other"}, None, ""),
    ({"slow_head": 0.05}, None, ""),
    ({"slow_body": 0.001, "piece": 20}, None, ""),
    ({"piece": 1, "comments": True}, None, ""),
    ({"until_close": True}, None, ""),
    ({"header_bytes": 1000}, None, ""),
]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("reply", ["json", "sse"])
@pytest.mark.parametrize(("fault", "failure", "executed"), FAULTS)
async def test_a_fault_ends_its_call_as_it_should_and_no_other(
    fault: Json, failure: type[CallError] | None, executed: str, reply: str, era: str
) -> None:
    async with open_http_tool_server(reply=reply, times=1, **fault) as server:
        async with open_fabric([server.source(name="far", era=era, retries=0)]) as fabric:
            if failure is None:
                assert (await fabric.call("far__echo", {"text": "hello"})).text == "hello"
            else:
                with pytest.raises(failure) as caught:
                    await fabric.call("far__echo", {"text": "hello"})
                assert caught.value.executed == executed
            assert (await fabric.call("far__echo", {"text": "again"})).text == "again"
            assert fabric.links["far"].starts == 1


async def test_h19_h20_a_compressed_body_nobody_asked_for_is_a_clear_error() -> None:
    async with open_http_tool_server(gzip=True, times=1, reply="json") as server:
        async with open_fabric([server.source(name="far")]) as fabric:
            with pytest.raises(BadReply, match="compressed"):
                await fabric.call("far__echo", {"text": "hello"})
            assert (await fabric.call("far__echo", {"text": "again"})).text == "again"


@pytest.mark.parametrize("fault", [{"reset": True}, {"status": 503}, {"status": 500}, {"cut": 3, "reply": "sse"}])
async def test_a_call_that_may_have_run_is_not_run_again(fault: Json) -> None:
    async with open_http_tool_server(late_fault=True, times=1, **fault) as server:
        async with open_fabric([server.source(name="far")]) as fabric:
            with pytest.raises(CallError) as caught:
                await fabric.call("far__count")
            assert caught.value.executed == "unknown"
            assert (await fabric.call("far__count")).text == "2"


@pytest.mark.parametrize("fault", [{"status": 429}, {"status": 503, "status_header": "Retry-After: 0"}])
async def test_a_call_that_was_turned_away_is_made_again(fault: Json) -> None:
    async with open_http_tool_server(times=1, **fault) as server:
        async with open_fabric([server.source(name="far")]) as fabric:
            assert (await fabric.call("far__count")).text == "1"
        assert len(asked(server, "tools/call")) == 2


@pytest.mark.parametrize("era", ERAS)
async def test_h23_a_silent_server_costs_a_call_its_deadline_and_no_more(era: str) -> None:
    async with open_http_tool_server(slow_head=30.0, times=1) as server:
        async with open_fabric([server.source(name="far", era=era, deadline=0.2)]) as fabric:
            await fabric.wait_started()
            with pytest.raises(DeadlineExceeded):
                await fabric.call("far__echo", {"text": "hello"})
            assert (await fabric.call("far__echo", {"text": "again"})).text == "again"


@pytest.mark.parametrize(("options", "session"), [({}, True), ({"stateless": True}, False), ({"no_get": True}, True)])
async def test_legacy_servers_with_and_without_sessions_and_streams_serve(options: Json, session: bool) -> None:
    async with open_http_tool_server(era="legacy", priming=True, reply="sse", **options) as server:
        async with open_fabric([server.source(name="far")]) as fabric:
            assert (await fabric.call("far__echo", {"text": "hello"})).text == "hello"
            (client,) = fabric.links["far"].sessions.values()
            assert client.greeting.revision == "2025-11-25"
        (call,) = asked(server, "tools/call")
        assert (header(call, "Mcp-Session-Id") is not None) is session
        assert header(call, "MCP-Protocol-Version") == "2025-11-25"
        (greeting,) = asked(server, "initialize")
        assert header(greeting, "MCP-Protocol-Version") is None


@pytest.mark.parametrize("revision", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_each_legacy_revision_is_spoken(revision: str) -> None:
    async with open_http_tool_server(era="legacy", revision=revision) as server:
        async with open_fabric([server.source(name="far")]) as fabric:
            assert (await fabric.call("far__echo", {"text": "hello"})).text == "hello"
        (call,) = asked(server, "tools/call")
        assert header(call, "MCP-Protocol-Version") == (revision if revision >= "2025-06-18" else None)


async def test_l01_a_server_that_forgot_the_session_is_greeted_anew_and_asked_again() -> None:
    # probe, initialize, initialized, list; then it forgets, so that the first call is refused.
    async with open_http_tool_server(era="legacy", forget_after=4) as server:
        async with open_fabric([server.source(name="far")]) as fabric:
            await fabric.wait_started()
            assert (await fabric.call("far__count")).text == "1"
            assert fabric.links["far"].starts == 2
        first, second = asked(server, "initialize")
        assert header(first, "Mcp-Session-Id") == header(second, "Mcp-Session-Id") is None


async def test_a_legacy_server_asks_on_the_stream_of_a_call_and_is_answered() -> None:
    async with open_http_tool_server(era="legacy") as server:
        async with open_fabric([server.source(name="far")]) as fabric:
            answer = (await fabric.call("far__ask", {"method": "ping"})).structured
            assert answer == {"answer": {}, "error": None}
            refused = (await fabric.call("far__ask", {"method": "roots/list"})).structured
            assert refused["error"]["code"] == -32601


@pytest.mark.parametrize("era", ERAS)
async def test_changed_tools_are_heard_of_and_listed(era: str) -> None:
    async with open_http_tool_server(era=era) as server:
        async with open_fabric([server.source(name="far")]) as fabric:
            await fabric.wait_started()
            # What changes before the stream is open, nobody hears of; when it is open, nobody here knows.
            while "far__added_1" not in fabric.registry.snapshot.tools:
                await fabric.call("far__change_tools")
                await trio.sleep(0.2)
            assert (await fabric.call("far__added_1", {"text": "new"})).text == "new"


@pytest.mark.parametrize("era", ERAS)
async def test_progress_and_a_large_result_come_through(era: str) -> None:
    told: list[str] = []
    async with open_http_tool_server(era=era) as server:
        async with open_fabric([server.source(name="far")]) as fabric:
            result = await fabric.call(
                "far__progress", {"steps": 3, "seconds": 0.06}, events=lambda method, _params: told.append(method)
            )
            assert result.text == "3 steps"
            assert told == ["notifications/progress"] * 3
            assert len((await fabric.call("far__big", {"size": 5_000_000})).text) == 5_000_000


@pytest.mark.parametrize("era", ERAS)
async def test_a_cancelled_call_stops_at_the_server_told_in_the_way_of_its_era(era: str) -> None:
    async with open_http_tool_server(era=era) as server:
        async with open_fabric([server.source(name="far")]) as fabric:
            await fabric.wait_started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fabric.call, "far__sleep", {"seconds": 60})
                while not asked(server, "tools/call"):  # noqa: ASYNC110  # a file of another process
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel("enough")
            told = "left" if era == "modern" else "notifications/cancelled"
            while told not in str(server.records()):  # noqa: ASYNC110  # as above
                await trio.sleep(0.01)
            if era == "modern":  # this server drops a legacy call with its connection, and counts nothing
                stopped = 0
                while stopped != 1:
                    stopped = (await fabric.call("far__whoami")).structured["cancelled"]
        assert len(asked(server, "notifications/cancelled")) == (0 if era == "modern" else 1)
