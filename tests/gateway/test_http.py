"""The HTTP endpoint: statuses, sessions, streams, and who is cancelled by what."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from cord_trio.gateway import sessions
from cord_trio.gateway.http_endpoint import BEAT
from tests.gateway.fakes import (
    CAPABILITIES,
    ENVELOPE,
    LATEST,
    MODERN,
    SERVER_INFO,
    SUBSCRIPTION,
    VERSION,
    FakeFabric,
    SourceView,
    after,
    echo,
    hang,
    headers_of,
    initialize,
    legacy,
    modern,
    notice,
    open_http,
    text,
    tool,
)

if TYPE_CHECKING:
    from cord_trio.call import Call, Outcome

CALL_ECHO = {"name": "echo"}


def code(value: dict[str, dict[str, int]]) -> int | None:
    return value.get("error", {}).get("code")


# --- modern: the order of checks, and their statuses ---------------------------------------------------------


async def test_a_modern_call_needs_no_session_and_gets_json() -> None:
    async with open_http(FakeFabric(echo=echo)) as gate:
        answer = await gate.modern(modern(1, "tools/call", CALL_ECHO))
        assert (answer.status, answer.field("content-type")) == (200, "application/json")
        assert answer.field("mcp-session-id") is None
        assert answer.json == {
            "jsonrpc": "2.0",
            "id": 1,
            "result": {
                "resultType": "complete",
                "_meta": {SERVER_INFO: {"name": "gate", "version": "1"}},
                "content": [{"type": "text", "text": "{}"}],
            },
        }


async def test_modern_refusals_come_in_order_and_with_their_status() -> None:
    async with open_http(FakeFabric(echo=echo)) as gate:
        good = modern(1, "tools/call", CALL_ECHO)
        headers = headers_of(good)
        bare = legacy(1, "tools/call", CALL_ECHO)
        old = modern(1, "nothing", meta={VERSION: "2025-11-25"})
        future = modern(1, "nothing", meta={VERSION: "2099-01-01"})
        for message, fields, status, expected in [
            (b"{", headers, 400, -32700),
            (b"[]", headers, 400, -32600),
            (b'{"jsonrpc":"2.0","id":null,"method":"tools/list"}', headers, 400, -32600),  # I08
            (b'{"jsonrpc":"2.0","id":true,"method":"tools/list"}', headers, 400, -32600),
            (b'{"jsonrpc":"2.0","id":1,"result":{}}', headers, 400, -32600),
            # duplicates come before the envelope, it before equality, that before the version, that before the method
            (bare, [*headers, headers[0]], 400, -32020),
            (bare, [*headers, ("mcp-method", "tools/call")], 400, -32020),
            (good, [*headers, ("MCP-NAME", "echo")], 400, -32020),
            (bare, headers, 400, -32602),
            (modern(1, "nothing", meta={CAPABILITIES: None}), [], 400, -32602),
            (modern(1, "nothing", meta={CAPABILITIES: []}), [], 400, -32602),
            (modern(1, "nothing", meta={VERSION: 5}), [], 400, -32602),
            (future, [], 400, -32020),
            (future, [("MCP-Protocol-Version", "2099-01-01")], 400, -32020),
            (good, headers[:1], 400, -32020),
            (good, headers[:2], 400, -32020),
            (good, [*headers[:2], ("Mcp-Name", "Echo")], 400, -32020),
            (good, [*headers[:2], ("Mcp-Name", "=?base64?!?=")], 400, -32020),
            (good, [headers[0], ("Mcp-Method", "tools/list"), headers[2]], 400, -32020),
            (good, [("MCP-Protocol-Version", LATEST), *headers[1:]], 400, -32020),
            (future, headers_of(future), 400, -32022),
            (old, headers_of(old), 400, -32022),
            (modern(1, "nothing"), headers_of(modern(1, "nothing")), 404, -32601),
            (modern(1, "initialize"), headers_of(modern(1, "initialize")), 404, -32601),
            (modern(1, "ping"), headers_of(modern(1, "ping")), 404, -32601),
            (modern(1, "tools/call", {}), headers_of(modern(1, "tools/call", {})), 200, -32602),
            (modern(1, "tools/call", {"name": 5}), headers[:2], 200, -32602),
        ]:
            answer = await gate.post(message, *fields)
            assert (answer.status, code(answer.json)) == (status, expected), (message, fields, answer.body)
            if expected not in (-32700, -32600):
                assert answer.json["id"] == 1


async def test_an_unserved_version_is_told_which_are_served() -> None:
    async with open_http(FakeFabric()) as gate:
        error = (await gate.modern(modern(1, "tools/list", meta={VERSION: "2027-01-01"}))).json["error"]
        found = (await gate.modern(modern(2, "server/discover"))).json["result"]
        assert error["data"] == {"supported": found["supportedVersions"], "requested": "2027-01-01"}


@pytest.mark.parametrize(
    ("name", "header", "fine"),
    [
        ("echo", "echo", True),
        ("echo", "=?base64?ZWNobw==?=", True),
        ("echo", " echo ", True),
        ("écho", "=?base64?w6ljaG8=?=", True),
        ("echo", "=?BASE64?ZWNobw==?=", False),
        ("echo", "=?base64?ZWNobw?=", False),
        ("echo", "=?base64?/w==?=", False),
        ("echo", "ech\xf6", False),
        ("echo", "", False),
    ],
)
async def test_m09_the_name_header_is_decoded_and_then_compared(name: str, header: str, fine: bool) -> None:
    async with open_http(FakeFabric(echo=echo, écho=echo)) as gate:
        message = modern(1, "tools/call", {"name": name})
        answer = await gate.post(
            message, ("MCP-Protocol-Version", MODERN), ("Mcp-Method", "tools/call"), ("Mcp-Name", header)
        )
        assert (answer.status, code(answer.json)) == ((200, None) if fine else (400, -32020))


async def test_headers_that_a_tool_declares_must_say_what_its_arguments_say() -> None:
    schema = {
        "type": "object",
        "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "n": {"type": "integer", "x-mcp-header": "N"},
        },
    }
    fabric = FakeFabric(echo=echo)
    fabric.registry.publish([tool("echo", inputSchema=schema)])
    async with open_http(fabric) as gate:
        for arguments, fields, fine in [
            ({"region": "eu", "n": 42}, [("Mcp-Param-Region", "eu"), ("mcp-param-n", "42.0")], True),
            ({"region": None}, [], True),
            ({}, [("Mcp-Param-Other", "x")], True),
            ({"region": "eu"}, [], False),
            ({"region": "eu"}, [("Mcp-Param-Region", "us")], False),
            ({}, [("Mcp-Param-Region", "us")], False),
            ({"region": "eu"}, [("Mcp-Param-Region", "eu"), ("Mcp-Param-Region", "eu")], False),
            ({"region": "42"}, [("Mcp-Param-Region", "42.0")], False),
            ({"n": 42}, [("Mcp-Param-N", "43")], False),
            ({"n": 42}, [("Mcp-Param-N", "x")], False),
            ({"n": 2**60}, [("Mcp-Param-N", str(2**60))], False),
            ({"region": "é"}, [("Mcp-Param-Region", "=?base64?w6k=?=")], True),
        ]:
            answer = await gate.modern(modern(1, "tools/call", {"name": "echo", "arguments": arguments}), *fields)
            assert (answer.status, code(answer.json)) == ((200, None) if fine else (400, -32020)), (arguments, fields)


async def test_m06_an_unknown_modern_method_needs_no_session_to_be_unknown() -> None:
    async with open_http(FakeFabric()) as gate:
        answer = await gate.modern(modern("x", "vendor/thing"), ("Mcp-Session-Id", "gone"))
        assert (answer.status, code(answer.json), answer.json["id"]) == (404, -32601, "x")


async def test_a_modern_notification_is_taken_with_202_and_no_body() -> None:
    async with open_http(FakeFabric()) as gate:
        for message, fields in [
            (notice("notifications/cancelled", {"requestId": 1, "_meta": ENVELOPE}), []),
            (notice("notifications/cancelled", {"requestId": 1}), [("MCP-Protocol-Version", MODERN)]),
        ]:
            answer = await gate.post(message, *fields)
            assert (answer.status, answer.body) == (202, b"")


async def test_a_modern_client_that_leaves_cancels_exactly_its_call() -> None:
    fabric = FakeFabric(hang=hang, other=hang)
    async with open_http(fabric) as gate:
        first = gate.modern_start(modern(1, "tools/call", {"name": "hang"}))
        gate.modern_start(modern(1, "tools/call", {"name": "other"}))
        await wait_all_tasks_blocked()
        first.leave()
        await wait_all_tasks_blocked()
        assert fabric.cancelled == ["hang"]


async def test_m22_a_listen_stream_is_acknowledged_told_kept_alive_and_ended(autojump_clock: object) -> None:
    fabric = FakeFabric(echo=echo)
    async with open_http(fabric) as gate:
        wanted = {"notifications": {"toolsListChanged": True}}
        stream = gate.modern_start(modern("L", "subscriptions/listen", wanted))
        await trio.sleep(1)
        assert stream.field("x-accel-buffering") == "no"
        fabric.registry.publish([tool("new")])
        await trio.sleep(90)
        assert stream.comments in (5, 6)  # H27
        fabric.draining.set()
        await stream.finished.wait()
        assert stream.ended
        assert [event.get("method", event.get("id")) for event in stream.events] == [
            "notifications/subscriptions/acknowledged",
            "notifications/tools/list_changed",
            "L",
        ]
        assert stream.events[2]["result"]["_meta"][SUBSCRIPTION] == "L"


async def test_a_slow_listener_gets_one_event_for_many_changes(autojump_clock: object) -> None:
    fabric = FakeFabric()
    async with open_http(fabric) as gate:
        stream = gate.modern_start(modern(1, "subscriptions/listen", {"notifications": {"toolsListChanged": True}}))
        await trio.sleep(1)
        stream.congested, stream.uncongested = True, trio.Event()
        for number in range(5):
            fabric.registry.publish([tool(f"t{number}")])
            await trio.sleep(1)
        assert len(stream.events) == 1
        stream.congested = False
        stream.uncongested.set()
        await trio.sleep(1)
        assert len(stream.events) == 2


# --- legacy: sessions ----------------------------------------------------------------------------------------


async def test_a_legacy_client_opens_a_session_uses_it_and_ends_it() -> None:
    async with open_http(FakeFabric(echo=echo)) as gate:
        opened = await gate.post(initialize())
        id = opened.field("mcp-session-id")
        assert opened.status == 200
        assert opened.json["result"]["protocolVersion"] == LATEST
        assert id is not None
        assert len(id) == 32
        session = ("MCP-SESSION-ID", id)
        noticed = await gate.post(notice("notifications/initialized"), session)
        assert (noticed.status, noticed.body, noticed.field("content-type")) == (202, b"", None)
        called = await gate.post(legacy(1, "tools/call", CALL_ECHO), session, ("MCP-Protocol-Version", LATEST))
        assert (called.status, called.json["result"]) == (200, {"content": [{"type": "text", "text": "{}"}]})
        answered = await gate.post(b'{"jsonrpc":"2.0","id":9,"result":{}}', session)
        assert (answered.status, answered.body) == (202, b"")
        assert (await gate.ask("DELETE", "/mcp", b"", session)).status == 200
        for method in ("DELETE", "GET"):
            assert (await gate.ask(method, "/mcp", b"", session)).status == 404
        assert (await gate.post(legacy(2, "ping"), session)).status == 404


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_a_known_revision_is_echoed(version: str) -> None:
    async with open_http(FakeFabric()) as gate:
        assert (await gate.post(initialize(version=version))).json["result"]["protocolVersion"] == version


@pytest.mark.parametrize("version", ["2099-01-01", "2026-07-28", "1.0", ""])
async def test_l07_an_unknown_revision_gets_a_counter_offer_whatever_the_header(version: str) -> None:
    async with open_http(FakeFabric()) as gate:
        answer = await gate.post(initialize(version=version), ("MCP-Protocol-Version", version))
        assert (answer.status, answer.json["result"]["protocolVersion"]) == (200, LATEST)


async def test_legacy_requests_need_a_session_and_a_known_version() -> None:
    async with open_http(FakeFabric(echo=echo)) as gate:
        session = await gate.open()
        request = legacy(1, "tools/list")
        for message, fields, status in [
            (request, [], 400),
            (notice("notifications/initialized"), [], 400),
            (b'{"jsonrpc":"2.0","id":9,"result":{}}', [], 400),
            (legacy(1, "ping"), [], 200),  # L08
            (request, [("Mcp-Session-Id", "unknown")], 404),
            (notice("notifications/initialized"), [("Mcp-Session-Id", "unknown")], 404),
            (request, [session, ("MCP-Protocol-Version", "2020-01-01")], 400),
            (notice("notifications/initialized"), [session, ("MCP-Protocol-Version", "nonsense")], 400),
            (request, [session], 200),
            (request, [session, ("MCP-Protocol-Version", "2025-03-26")], 200),
            (request, [session, ("MCP-Protocol-Version", MODERN)], 400),
            (legacy(1, "nothing"), [session], 200),
            (legacy(1, "resources/list"), [session], 200),
            (b"[%b]" % request, [session], 400),
            (legacy(1, "initialize", {}), [], 400),
        ]:
            answer = await gate.post(message, *fields)
            assert answer.status == status, (message, fields, answer.body)
            if b"initialized" not in message and b"nothing" not in message:
                assert b"jsonrpc" in answer.body
        for method in ("GET", "DELETE"):
            assert (await gate.ask(method)).status == 400
            answer = await gate.ask(method, "/mcp", b"", session, ("MCP-Protocol-Version", MODERN))
            assert (answer.status, answer.field("allow")) == (405, "POST")


async def test_what_is_not_advertised_is_not_served() -> None:
    async with open_http(FakeFabric()) as gate:
        session = await gate.open()
        for method in ("tasks/list", "server/discover", "subscriptions/listen", "sampling/createMessage", "roots/list"):
            answer = await gate.post(legacy(1, method, {"level": "info"}), session)
            assert (answer.status, code(answer.json)) == (200, -32601)


async def test_a_legacy_client_that_leaves_cancels_nothing(autojump_clock: object) -> None:
    fabric = FakeFabric(slow=after(10))
    async with open_http(fabric) as gate:
        session = await gate.open()
        call = gate.start("POST", "/mcp", legacy(1, "tools/call", {"name": "slow"}), session)
        await trio.sleep(1)
        call.leave()
        await trio.sleep(1)
        assert fabric.counters["gateway.answers_dropped"] == 0
        await call.finished.wait()
        assert fabric.cancelled == []
        assert fabric.counters["gateway.answers_dropped"] == 1
        assert not call.started


async def test_a_legacy_cancellation_stops_the_call_and_closes_its_response() -> None:
    fabric = FakeFabric(hang=hang)
    async with open_http(fabric) as gate:
        session, stranger = await gate.open(), await gate.open()
        call = gate.start("POST", "/mcp", legacy(1, "tools/call", {"name": "hang"}), session)
        await wait_all_tasks_blocked()
        cancel = notice("notifications/cancelled", {"requestId": 1})
        assert (await gate.post(cancel, stranger)).status == 202
        assert fabric.cancelled == []
        assert (await gate.post(cancel, session)).status == 202
        await call.finished.wait()
        assert fabric.cancelled == ["hang"]
        assert (call.status, code(call.json), call.json["id"]) == (200, -32800, 1)
        assert (await gate.post(cancel, session)).status == 202


async def test_the_end_of_a_session_stops_its_calls_and_its_stream() -> None:
    fabric = FakeFabric(hang=hang)
    async with open_http(fabric) as gate:
        session = await gate.open()
        call = gate.start("POST", "/mcp", legacy(1, "tools/call", {"name": "hang"}), session)
        stream = gate.start("GET", "/mcp", b"", session, ("Accept", "text/event-stream"))
        await wait_all_tasks_blocked()
        await gate.ask("DELETE", "/mcp", b"", session)
        await call.finished.wait()
        await stream.finished.wait()
        assert fabric.cancelled == ["hang"]
        assert stream.ended


async def test_e01_idle_sessions_end_and_used_ones_stay(autojump_clock: object) -> None:
    fabric = FakeFabric(hang=hang)
    async with open_http(fabric) as gate:
        busy, streaming, used = [await gate.open() for _ in range(3)]
        for _ in range(100):
            await gate.open()
        gate.start("POST", "/mcp", legacy(1, "tools/call", {"name": "hang"}), busy)
        gate.start("GET", "/mcp", b"", streaming, ("Accept", "text/event-stream"))
        for _ in range(4):
            await trio.sleep(sessions.IDLE / 3)
            await gate.post(legacy(1, "ping"), used)
        assert len(gate.service.sessions) == 3
        for session in (busy, streaming, used):
            assert (await gate.post(legacy(2, "ping"), session)).status == 200


async def test_sessions_past_the_bound_are_refused_by_its_name() -> None:
    fabric = FakeFabric()
    async with open_http(fabric) as gate:
        gate.service.sessions = sessions.Sessions(lambda: str(len(gate.service.sessions)), fabric.counters, limit=2)
        for _ in range(2):
            await gate.open()
        answer = await gate.post(initialize(5))
        assert answer.status == 503
        assert "gateway.sessions" in answer.json["error"]["message"]
        assert answer.json["id"] == 5
        assert fabric.counters["gateway.sessions_refused"] == 1
        assert (await gate.post(legacy(1, "ping"), ("Mcp-Session-Id", "1"))).status == 200


async def test_the_get_stream_tells_of_changes_also_of_those_before_it(autojump_clock: object) -> None:
    fabric = FakeFabric()
    async with open_http(fabric) as gate:
        session = await gate.open()
        accept = ("Accept", "text/event-stream")
        first = gate.start("GET", "/mcp", b"", session, accept)
        await trio.sleep(1)
        assert (first.status, first.field("content-type"), first.events) == (200, "text/event-stream", [])
        fabric.registry.publish([tool("a")])
        await trio.sleep(40)
        told = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
        assert first.events == [told]
        assert first.comments == 2
        first.leave()
        fabric.registry.publish([tool("b")])
        await trio.sleep(1)
        second = gate.start("GET", "/mcp", b"", session, accept)
        await trio.sleep(1)
        assert second.events == [told]
        third = gate.start("GET", "/mcp", b"", session, accept)
        await second.finished.wait()
        assert second.ended
        assert third.events == []
        assert (await gate.ask("GET", "/mcp", b"", session, ("Accept", "application/json"))).status == 406
        fabric.draining.set()
        await third.finished.wait()
        assert third.ended


async def test_batches_are_for_one_revision_alone() -> None:
    batch = b"[%b]" % b",".join(
        [legacy(1, "ping"), notice("notifications/initialized"), legacy("2", "tools/call", CALL_ECHO), initialize(3)]
    )
    async with open_http(FakeFabric(echo=echo)) as gate:
        assert (await gate.post(batch, await gate.open("2025-06-18"))).status == 400
        session = await gate.open("2025-03-26")
        answer = await gate.post(batch, session)
        assert [(item["id"], "error" in item) for item in answer.json] == [(1, False), ("2", False), (3, True)]
        silent = await gate.post(b"[%b]" % notice("notifications/initialized"), session)
        assert (silent.status, silent.body) == (202, b"")


# --- event streams -------------------------------------------------------------------------------------------


async def progressing(call: Call) -> Outcome:
    assert call.events is not None
    for step in (1, 2):
        call.events("notifications/progress", Raw(b'{"progressToken":1,"progress":%d}' % step))
    await trio.lowlevel.checkpoint()
    return text("done")


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_progress_makes_the_answer_a_stream(era: str) -> None:
    async with open_http(FakeFabric(work=progressing)) as gate:
        if era == "modern":
            message = modern(1, "tools/call", {"name": "work"}, {"progressToken": "t"})
            answer = await gate.modern(message)
        else:
            message = legacy(1, "tools/call", {"name": "work", "_meta": {"progressToken": "t"}})
            answer = await gate.post(message, await gate.open())
        assert answer.status == 200
        assert answer.ended
        events = answer.events
        assert [event.get("params") for event in events[:2]] == [
            {"progressToken": "t", "progress": 1},
            {"progressToken": "t", "progress": 2},
        ]
        assert (len(events), events[2]["id"]) == (3, 1)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json, text/event-stream", "text/event-stream"),
        ("*/*", "text/event-stream"),
        ("text/event-stream;q=0.9, Application/JSON;charset=utf-8", "text/event-stream"),
        ("application/json", "application/json"),
        ("application/json, text/event-stream;q=0", "application/json"),
        ("text/event-stream", "text/event-stream"),
        ("text/html", None),
    ],
)
async def test_accept_is_read_leniently(accept: str, kind: str | None) -> None:
    async def maybe(call: Call) -> Outcome:
        return await progressing(call) if call.events else text("quiet")

    async with open_http(FakeFabric(work=maybe)) as gate:
        message = modern(1, "tools/call", {"name": "work"}, {"progressToken": "t"})
        answer = await gate.modern(message, ("Accept", accept))
        if kind is None:
            assert answer.status == 406
        else:
            assert (answer.status, answer.field("content-type")) == (200, kind)


async def test_an_answer_that_takes_long_becomes_a_stream_with_comments(autojump_clock: object) -> None:
    async with open_http(FakeFabric(slow=after(70))) as gate:
        answer = await gate.modern(modern(1, "tools/call", {"name": "slow"}))
        assert answer.status == 200
        assert answer.comments >= 3
        assert [event["id"] for event in answer.events] == [1]
        quiet = await gate.modern(modern(1, "tools/call", {"name": "slow"}), ("Accept", "application/json"))
        assert quiet.json["id"] == 1


async def test_a_legacy_answer_that_takes_long_becomes_a_stream_with_comments_too(autojump_clock: object) -> None:
    async with open_http(FakeFabric(slow=after(70))) as gate:
        session = await gate.open()
        answer = await gate.post(legacy(1, "tools/call", {"name": "slow"}), session)
        assert (answer.status, answer.field("content-type")) == (200, "text/event-stream")
        assert answer.comments >= 3
        assert [event["id"] for event in answer.events if "id" in event] == [1]


async def test_an_answer_that_comes_soon_stays_json_whenever_the_comments_are_due(autojump_clock: object) -> None:
    async with open_http(FakeFabric(slow=after(10))) as gate:
        await trio.sleep(BEAT - 5)
        answer = await gate.modern(modern(1, "tools/call", {"name": "slow"}))
        assert answer.json["id"] == 1


async def test_a_client_that_does_not_read_misses_progress_and_gets_its_answer() -> None:
    fabric = FakeFabric(work=progressing)
    async with open_http(fabric) as gate:
        message = modern(1, "tools/call", {"name": "work"}, {"progressToken": "t"})
        exchange = gate.modern_start(message)
        exchange.congested = True
        await exchange.finished.wait()
        assert [event.get("id") for event in exchange.events] == [1]
        assert fabric.counters["gateway.notices_dropped"] == 2


# --- the rest of HTTP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("media", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=UTF-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
async def test_content_type_is_read_leniently(media: str, status: int) -> None:
    async with open_http(FakeFabric()) as gate:
        assert (await gate.post(legacy(1, "ping"), ("Content-Type", media))).status == status


async def test_h16_both_spellings_are_served_and_other_paths_are_not() -> None:
    async with open_http(FakeFabric()) as gate:
        body = legacy(1, "ping")
        for path, status in [("/mcp", 200), ("/mcp/", 200), ("/", 404), ("/mcp/x", 404), ("/MCP", 404)]:
            assert (await gate.ask("POST", path, body)).status == status
        for method, path in [("PUT", "/mcp"), ("PATCH", "/mcp/"), ("POST", "/healthz"), ("DELETE", "/readyz")]:
            answer = await gate.ask(method, path)
            assert answer.status == 405
            assert answer.field("allow")


@pytest.mark.parametrize("path", ["/mcp", "/mcp/", "/healthz", "/readyz", "/nothing"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_s01_foreign_hosts_and_origins_are_refused_everywhere(path: str, method: str) -> None:
    fabric = FakeFabric(echo=echo)
    async with open_http(fabric) as gate:
        for host in ("evil.example", "gate.evil.example", ""):
            assert (await gate.ask(method, path, b"{}", ("Host", host))).status == 421
        for origin in ("http://evil.example", "http://localhost.evil", "null"):
            answer = await gate.ask(method, path, modern(1, "tools/call", CALL_ECHO), ("Origin", origin))
            assert answer.status == 403
            assert answer.field("access-control-allow-origin") is None
        assert fabric.calls == []


async def test_pages_of_known_origins_may_ask() -> None:
    async with open_http(FakeFabric()) as gate:
        origin = ("Origin", "https://app.example")
        preflight = await gate.ask(
            "OPTIONS",
            "/mcp",
            b"",
            origin,
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "mcp-param-region, x-evil"),
        )
        assert preflight.status == 204
        assert preflight.field("access-control-allow-origin") == "https://app.example"
        allowed = preflight.field("access-control-allow-headers") or ""
        assert "Mcp-Session-Id" in allowed
        assert "mcp-param-region" in allowed
        assert "x-evil" not in allowed
        answer = await gate.post(legacy(1, "ping"), origin)
        assert answer.field("access-control-allow-origin") == "https://app.example"
        assert answer.field("vary") == "Origin"
        assert (await gate.post(legacy(1, "ping"))).field("access-control-allow-origin") is None


async def test_health_and_readiness() -> None:
    fabric = FakeFabric(slow=hang)
    async with open_http(fabric) as gate:
        assert (await gate.ask("GET", "/healthz")).status == 200
        ready = await gate.ask("GET", "/readyz")
        told = {"ready": True, "draining": False, "sources": {"fake": "ready"}, "down": {}}
        assert (ready.status, ready.json) == (200, told)
        fabric.started = trio.Event()
        assert (await gate.ask("GET", "/readyz")).status == 503
        fabric.started.set()
        fabric.draining.set()
        assert (await gate.ask("GET", "/readyz")).json["draining"] is True
        assert (await gate.ask("GET", "/healthz")).status == 200


async def test_a_source_that_is_down_says_why_and_when_it_tries_again() -> None:
    fabric = FakeFabric()
    view = SourceView(state="down", reason="connect: refused", next_try=trio.current_time() + 100)
    fabric.registry.snapshot = attrs.evolve(fabric.registry.snapshot, sources={"fake": view})
    async with open_http(fabric) as gate:
        told = (await gate.ask("GET", "/readyz")).json
        assert told["sources"] == {"fake": "down"}
        assert told["down"]["fake"]["reason"] == "connect: refused"
        assert 90 < told["down"]["fake"]["next_try_in"] <= 100


async def test_new_work_is_refused_while_draining() -> None:
    fabric = FakeFabric(echo=echo)
    async with open_http(fabric) as gate:
        session = await gate.open()
        fabric.draining.set()
        for answer in (
            await gate.modern(modern(1, "tools/call", CALL_ECHO)),
            await gate.post(legacy(1, "tools/call", CALL_ECHO), session),
        ):
            assert answer.status == 503
            assert "draining" in answer.json["error"]["message"]
        assert fabric.calls == []


async def test_i05_requests_with_one_id_never_meet() -> None:
    async with open_http(FakeFabric(echo=echo)) as gate:
        sessions_of = [await gate.open() for _ in range(4)]
        pending = []
        for number in range(200):
            params = {"name": "echo", "arguments": {"n": number}}
            pending.append((number, gate.modern_start(modern(1, "tools/call", params))))
            if number % 50 == 0:
                session = sessions_of[number // 50]
                pending.append((number, gate.start("POST", "/mcp", legacy(1, "tools/call", params), session)))
        for number, exchange in pending:
            await exchange.finished.wait()
            assert json.loads(exchange.json["result"]["content"][0]["text"]) == {"n": number}


async def test_e04_requests_leave_no_task() -> None:
    async with open_http(FakeFabric(echo=echo)) as gate:
        session = await gate.open()
        await gate.modern(modern(1, "tools/call", CALL_ECHO))
        before = trio.lowlevel.current_statistics().tasks_living
        for number in range(30):
            await gate.modern(modern(number, "tools/call", CALL_ECHO))
            await gate.post(legacy(number, "tools/call", CALL_ECHO), session)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before
