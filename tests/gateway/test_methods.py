"""Every method that is no tool's: lists, prompts, resources, completion, logs, changes (rows 5, 6, 18 to 32)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from cord_trio.auth.sealing import Sealer
from cord_trio.call import Call, Complete, Error, Outcome
from cord_trio.errors import CallFailed, Malformed, SourceDown
from cord_trio.gateway.capabilities import TASKS
from cord_trio.gateway.catalogue import Catalogue
from cord_trio.gateway.front import Front
from cord_trio.gateway.requests import MAX_URIS
from cord_trio.gateway.steps import Caller, List, Open, Reply
from cord_trio.protocol.eras import CACHEABLE, ERAS, LEGACY
from cord_trio.protocol.jsonrpc import encode, parse
from tests.gateway.fakes import (
    IDENTITY,
    LATEST,
    MODERN,
    SERVER_INFO,
    SUBSCRIPTION,
    FakeFabric,
    Greeting,
    Item,
    Snapshot,
    SourceView,
    hang,
    initialize,
    legacy,
    modern,
    notice,
    open_http,
    open_pipe,
)

if TYPE_CHECKING:
    from cord_trio.gateway.steps import Kind
    from cord_trio.protocol.jsonrpc import Json

KINDS: dict[str, tuple[str, str]] = {
    "prompts/list": ("prompts", "name"),
    "resources/list": ("resources", "uri"),
    "resources/templates/list": ("resourceTemplates", "uriTemplate"),
}
US = {SERVER_INFO: {"name": "gate", "version": "1"}}
READ = {"uri": "x:y"}
COMPLETE = {"ref": {"type": "ref/prompt", "name": "x:y"}, "argument": {"name": "a", "value": "b"}}
ASKS: dict[str, Any] = {"resources/read": READ, "prompts/get": {"name": "x:y"}, "completion/complete": COMPLETE}
RESULTS: dict[str, Any] = {
    "resources/read": {"contents": [{"uri": "x:y", "text": ""}], "vendor": 1},
    "prompts/get": {"messages": [{"role": "user", "content": {"type": "text", "text": "t"}}], "description": "d"},
    "completion/complete": {"completion": {"values": ["b"], "total": 1.0}},
}


def full(fabric: FakeFabric, count: int = 2) -> FakeFabric:
    fabric.registry.change(
        prompts={f"p{n}": Item({"name": "?", "vendor": n}) for n in range(count)},
        resources={f"x:{n}": Item({"uri": "?", "size": n}, "uri") for n in range(count)},
        templates={f"x:{n}/{{a}}": Item({"uriTemplate": "?"}, "uriTemplate") for n in range(count)},
    )
    return fabric


def server(result: Json | Exception | Outcome, calls: list[Call] | None = None) -> FakeFabric:
    async def answer(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        if calls is not None:
            calls.append(call)
        if isinstance(result, Exception):
            raise result
        return result if isinstance(result, Error) else Complete(Raw(encode(result)))

    fabric = FakeFabric()
    fabric.answers["x:y"] = answer
    return fabric


@pytest.mark.parametrize("method", KINDS)
async def test_row_5_each_kind_is_listed_from_the_snapshot_in_both_eras(method: str) -> None:
    member, named = KINDS[method]
    fabric = full(FakeFabric())
    async with open_pipe(fabric) as client:
        await client.ask(initialize())
        (new,) = await client.ask(modern(1, method))
        (old,) = await client.ask(legacy(2, method))
    items = new["result"].pop(member)
    assert old["result"] == {member: items}
    assert new["result"] == {"resultType": "complete", "ttlMs": 60_000, "cacheScope": "private", "_meta": US}
    expected = {"prompts": ["p0", "p1"], "resources": ["x:0", "x:1"], "resourceTemplates": ["x:0/{a}", "x:1/{a}"]}
    assert [item[named] for item in items] == expected[member]
    assert fabric.calls == []


@pytest.mark.parametrize("kind", ["prompts", "resources", "templates"])
def test_row_6_pages_of_each_kind_have_their_own_cursors(kind: Kind) -> None:
    catalogue = Catalogue(Sealer(bytes(32)), 2)
    snapshot = full(FakeFabric(), 5).registry.snapshot
    seen, cursor = 0, None
    for pages in range(1, 4):
        page, cursor = catalogue.list(snapshot, List(1, ERAS[MODERN], cursor, kind), 0.0)
        seen += len(parse(page))
        assert (cursor is None) == (pages == 3)
        if cursor is not None:
            for other in ("prompts", "resources", "templates", "tools"):
                if other != kind:
                    with pytest.raises(Malformed):
                        catalogue.list(snapshot, List(1, ERAS[MODERN], cursor, other), 0.0)
            with pytest.raises(Malformed):
                catalogue.list(snapshot, List(1, ERAS[MODERN], cursor, kind, "someone else"), 0.0)
    assert seen == 5


@pytest.mark.parametrize("method", ASKS)
async def test_row_23_what_a_server_answers_goes_to_either_era_in_its_shape(method: str) -> None:
    received = {"resultType": "complete", "_meta": {SERVER_INFO: {}, "a/b": 1}, **RESULTS[method]}
    calls: list[Call] = []
    async with open_pipe(server(received, calls)) as client:
        await client.ask(initialize())
        (new,) = await client.ask(modern(1, method, ASKS[method], {"c/d": 2}))
        (old,) = await client.ask(legacy(2, method, ASKS[method]))
    hints = {"ttlMs": 0, "cacheScope": "private"} if method in CACHEABLE else {}
    assert new["result"] == {"resultType": "complete", "_meta": {"a/b": 1, **US}, **RESULTS[method], **hints}
    assert old["result"] == {"_meta": {"a/b": 1}, **RESULTS[method]}
    for call in calls:
        assert (call.method, call.name) == (method, "x:y")
        assert not {"name", "uri", "_meta"} & {*call.params}
        if method == "completion/complete":
            assert parse(call.params["ref"]) == {"type": "ref/prompt"}
            assert parse(call.params["argument"]) == COMPLETE["argument"]
    assert parse(encode(calls[0].meta)) == {"c/d": 2}


async def test_row_32_hints_of_a_server_are_passed_on_where_they_make_sense() -> None:
    cases: list[tuple[dict[str, Json], tuple[int, str]]] = [
        ({"ttlMs": 5, "cacheScope": "public"}, (5, "public")),
        ({"ttlMs": -5, "cacheScope": "everyone"}, (0, "private")),
        ({"ttlMs": 5}, (5, "private")),
    ]
    for given, expected in cases:
        async with open_pipe(server({"contents": [], **given})) as client:
            (answer,) = await client.ask(modern(1, "resources/read", READ))
            assert (answer["result"]["ttlMs"], answer["result"]["cacheScope"]) == expected


@pytest.mark.parametrize("method", ASKS)
async def test_a_result_without_its_essential_member_is_the_servers_fault(method: str) -> None:
    results: list[Json] = [{}, {"content": []}, []]
    for result in results:
        async with open_pipe(server(result)) as client:
            (answer,) = await client.ask(modern(1, method, ASKS[method]))
            assert answer["error"]["code"] == -32603


@pytest.mark.parametrize("method", ASKS)
async def test_a_call_of_no_tool_that_fails_is_an_error_that_says_whether_it_ran(method: str) -> None:
    async with open_pipe(server(SourceDown("s", "crashed"))) as client:
        await client.ask(initialize())
        for message in (modern(1, method, ASKS[method]), legacy(2, method, ASKS[method])):
            (answer,) = await client.ask(message)
            assert answer["error"] == {
                "code": -32603,
                "message": "source 's' is down: crashed",
                "data": {"cord-trio/executed": "no"},
            }


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("resources/read", {}),
        ("resources/read", {"uri": 5}),
        ("prompts/get", {"name": ""}),
        ("prompts/get", {"name": "p", "arguments": [1]}),
        ("completion/complete", {}),
        ("completion/complete", {**COMPLETE, "ref": {"type": "ref/tool", "name": "x"}}),
        ("completion/complete", {**COMPLETE, "ref": {"type": "ref/resource", "name": "x"}}),
        ("completion/complete", {**COMPLETE, "argument": "a"}),
        ("subscriptions/listen", {"notifications": {"resourceSubscriptions": "x:y"}}),
        ("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["x"] * (MAX_URIS + 1)}}),
        ("subscriptions/listen", {"notifications": {"promptsListChanged": 1}}),
    ],
)
async def test_parameters_that_make_no_sense_are_refused_here(method: str, params: Json) -> None:
    fabric = FakeFabric()
    async with open_pipe(fabric) as client:
        (answer,) = await client.ask(modern(1, method, params))
        assert answer["error"]["code"] == -32602
    assert fabric.calls == []


@pytest.mark.parametrize(
    "said",
    [
        Error(-32002, "none", b'{"uri":"up:y"}'),
        Error(-32602, "none", b'{"uri":"up:y"}'),
        Error(0, "Unknown resource: up:y"),
    ],
)
async def test_row_24_a_missing_resource_has_the_code_of_the_era_and_our_uri(said: Error) -> None:
    async with open_pipe(server(said)) as client:
        await client.ask(initialize())
        (new,) = await client.ask(modern(1, "resources/read", READ))
        (old,) = await client.ask(legacy(2, "resources/read", READ))
        assert (new["error"]["code"], new["error"]["data"]) == (-32602, {"uri": "x:y"})
        assert (old["error"]["code"], old["error"]["data"]) == (-32002, {"uri": "x:y"})


async def test_row_24_bad_parameters_of_a_read_are_no_missing_resource() -> None:
    async with open_pipe(server(Error(-32602, "bad", b'{"why":1}'))) as client:
        await client.ask(initialize())
        (old,) = await client.ask(legacy(2, "resources/read", READ))
        assert (old["error"]["code"], old["error"]["data"]) == (-32602, {"why": 1})


@pytest.mark.parametrize("revision", LEGACY)
async def test_row_27_a_prompts_blocks_are_readable_in_each_revision(revision: str) -> None:
    blocks = [
        {"type": "text", "text": "a"},
        {"type": "audio", "data": "", "mimeType": "audio/wav"},
        {"type": "resource_link", "uri": "x:y", "name": "n"},
    ]
    result = {"messages": [{"role": "user", "content": block, "vendor": 1} for block in blocks]}
    async with open_pipe(server(result)) as client:
        await client.ask(initialize(version=revision))
        (answer,) = await client.ask(legacy(1, "prompts/get", {"name": "x:y"}))
    kinds = [message["content"]["type"] for message in answer["result"]["messages"]]
    assert kinds == [block["type"] if block["type"] in ERAS[revision].blocks else "text" for block in blocks]
    assert all(message["vendor"] == 1 for message in answer["result"]["messages"])


async def test_row_27_messages_that_are_none_pass_as_they_are() -> None:
    for messages in ([5, "audio"], "resource_link"):
        async with open_pipe(server({"messages": messages})) as client:
            await client.ask(initialize(version="2024-11-05"))
            (answer,) = await client.ask(legacy(1, "prompts/get", {"name": "x:y"}))
            assert answer["result"]["messages"] == messages


@pytest.mark.parametrize("method", ASKS)
async def test_c11_row_16_what_is_no_tool_is_cancelled_as_tools_are(method: str) -> None:
    fabric = FakeFabric()
    fabric.answers["x:y"] = hang
    async with open_pipe(fabric) as client, open_http(fabric) as gate:
        await client.ask(initialize())
        for message in (modern(1, method, ASKS[method]), legacy(1, method, ASKS[method])):
            await client.ask(message)
            assert await client.ask(notice("notifications/cancelled", {"requestId": 1})) == []
        left = gate.modern_start(modern(1, method, ASKS[method]))
        session = await gate.open()
        going = gate.start("POST", "/mcp", legacy(1, method, ASKS[method]), session)
        await wait_all_tasks_blocked()
        left.leave()
        await left.finished.wait()
        assert fabric.cancelled == ["x:y"] * 3
        await gate.post(notice("notifications/cancelled", {"requestId": 1}), session)
        await going.finished.wait()
        assert fabric.cancelled == ["x:y"] * 4


# --- logs ---------------------------------------------------------------------------------------------------

LEVELS = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]


async def chatty(call: Call) -> Outcome:
    """Logs once at each level, and twice in nonsense."""
    if call.events is not None:
        for level in [*LEVELS, "loud"]:
            call.events("notifications/message", Raw(encode({"level": level, "data": level, "_meta": {"a/b": 1}})))
        call.events("notifications/message", Raw(b"[]"))
        call.events("notifications/other", Raw(b"{}"))
    await trio.lowlevel.checkpoint()
    return Complete(Raw(b'{"content":[]}'))


def logged(got: list[Json]) -> list[str]:
    return [each["params"]["level"] for each in got if each.get("method") == "notifications/message"]


async def test_row_18_a_modern_request_says_which_logs_it_wants() -> None:
    fabric = FakeFabric(t=chatty)
    async with open_pipe(fabric) as client:
        call = {"name": "t"}
        for level in (None, "debug", "error", "emergency"):
            meta = {} if level is None else {"io.modelcontextprotocol/logLevel": level}
            got = await client.ask(modern(1, "tools/call", call, meta))
            assert logged(got) == ([] if level is None else LEVELS[LEVELS.index(level) :])
            assert fabric.calls[-1].log_level == level
            assert (fabric.calls[-1].events is None) == (level is None)
        (bad,) = await client.ask(modern(1, "tools/call", call, {"io.modelcontextprotocol/logLevel": "loud"}))
        assert bad["error"]["code"] == -32602
        assert fabric.counters["gateway.log_bad"] == 6


async def test_row_18_a_legacy_session_sets_its_level_for_all_its_calls() -> None:
    fabric = FakeFabric(t=chatty)
    async with open_http(fabric) as gate:
        ann, bob = await gate.open(), await gate.open()
        call = legacy(1, "tools/call", {"name": "t"})
        assert (await gate.post(call, ann)).json["result"] == {"content": []}  # none before it asks for any
        assert (await gate.post(legacy(2, "logging/setLevel", {"level": "alert"}), ann)).json["result"] == {}
        assert logged((await gate.post(call, ann)).events) == LEVELS[6:]
        assert fabric.calls[-1].log_level == "alert"
        assert (await gate.post(call, bob)).json["result"] == {"content": []}
        assert fabric.calls[-1].log_level is None
        bad = await gate.post(legacy(2, "logging/setLevel", {"level": "loud"}), ann)
        assert bad.json["error"]["code"] == -32602
        assert (await gate.post(call, ann, ("Accept", "application/json"))).json["result"] == {"content": []}


async def test_m27_row_18_a_pipe_sets_its_level_too() -> None:
    async with open_pipe(FakeFabric(t=chatty)) as client:
        await client.ask(initialize())
        assert logged(await client.ask(legacy(1, "tools/call", {"name": "t"}))) == []
        (done, *got) = await client.ask(
            legacy(2, "logging/setLevel", {"level": "emergency"}), legacy(3, "tools/call", {"name": "t"})
        )
        assert (done["id"], logged(got)) == (2, LEVELS[7:])


# --- changes ------------------------------------------------------------------------------------------------


async def test_row_19_each_kind_of_change_reaches_who_asked_for_it(autojump_clock: object) -> None:
    fabric = full(FakeFabric())
    wanted = {"promptsListChanged": True, "resourcesListChanged": True, "toolsListChanged": False}
    async with open_pipe(fabric) as client:
        client.send(modern("a", "subscriptions/listen", {"notifications": wanted}), initialize())
        await trio.sleep(1)
        client.got.clear()
        for change, told in [
            ({"prompts": {"new": Item({})}}, ["prompts"]),
            ({"resources": {"x:new": Item({}, "uri")}}, ["resources"]),
            ({"templates": {"x:{new}": Item({}, "uriTemplate")}}, ["resources"]),
            ({"prompts": {}, "resources": {}, "templates": {}}, ["prompts", "resources"]),
            ({}, []),
        ]:
            fabric.registry.change(**change)  # type: ignore[arg-type]  # one kind at a time
            await trio.sleep(1)
            assert sorted((each["method"], bool(each.get("params"))) for each in client.got) == sorted(
                (f"notifications/{kind}/list_changed", modern) for kind in told for modern in (True, False)
            )
            client.got.clear()


async def test_row_20_a_listen_is_told_of_the_resources_it_names(autojump_clock: object) -> None:
    fabric = FakeFabric()
    async with open_http(fabric) as gate:
        message = modern(7, "subscriptions/listen", {"notifications": {"resourceSubscriptions": ["x:a", "x:b", "x:a"]}})
        stream = gate.modern_start(message)
        await trio.sleep(1)
        assert [uri for uri, _ in fabric.subscribed] == ["x:a", "x:b"]
        for uri in ("x:b", "x:b", "x:c"):
            fabric.update(uri)
        await trio.sleep(1)
        ack, told = stream.events
        assert ack["params"] == {"_meta": {SUBSCRIPTION: 7}, "notifications": {"resourceSubscriptions": ["x:a", "x:b"]}}
        assert (told["method"], told["params"]) == (
            "notifications/resources/updated",
            {"uri": "x:b", "_meta": {SUBSCRIPTION: 7}},
        )
        stream.leave()
        await stream.finished.wait()
        assert fabric.subscribed == []


async def test_row_20_a_listen_that_cannot_be_had_is_an_error() -> None:
    fabric = FakeFabric()

    def refuse(*_: object) -> None:
        raise CallFailed(-32602, "no such resource", executed="no")

    fabric.subscribe = refuse  # type: ignore[method-assign,assignment]
    message = modern(7, "subscriptions/listen", {"notifications": {"resourceSubscriptions": ["x:a"]}})
    async with open_http(fabric) as gate, open_pipe(fabric) as client:
        assert (await gate.modern(message)).json["error"]["code"] == -32602
        (answer,) = await client.ask(message)
        assert answer["error"]["code"] == -32602
        await client.ask(initialize())
        (answer,) = await client.ask(legacy(1, "resources/subscribe", {"uri": "x:a"}))
        assert answer["error"]["code"] == -32602


async def test_row_20_a_legacy_pipe_subscribes_and_unsubscribes(autojump_clock: object) -> None:
    fabric = FakeFabric()
    async with open_pipe(fabric) as client:
        await client.ask(initialize())
        subscribe, unsubscribe = legacy(1, "resources/subscribe", {"uri": "x:a"}), "resources/unsubscribe"
        for _ in range(2):
            assert (await client.ask(subscribe))[0]["result"] == {}
        assert len(fabric.subscribed) == 1
        client.got.clear()
        fabric.update("x:a")
        await trio.sleep(1)
        (told,) = client.got
        assert (told["method"], told["params"]) == ("notifications/resources/updated", {"uri": "x:a"})
        for _ in range(2):
            assert (await client.ask(legacy(2, unsubscribe, {"uri": "x:a"})))[0]["result"] == {}
        assert fabric.subscribed == []
        await client.ask(subscribe)
    assert fabric.subscribed == []


async def test_row_20_an_http_session_is_told_as_soon_as_it_has_a_stream(autojump_clock: object) -> None:
    fabric = FakeFabric()
    async with open_http(fabric) as gate:
        session = await gate.open()
        subscribe = legacy(1, "resources/subscribe", {"uri": "x:a"})
        assert (await gate.post(subscribe, session)).json["result"] == {}
        fabric.update("x:a")
        fabric.update("x:a")
        stream = gate.start("GET", "/mcp", b"", session)
        await trio.sleep(1)
        fabric.update("x:a")
        await trio.sleep(1)
        assert [each["params"] for each in stream.events] == [{"uri": "x:a"}] * 2
        await gate.ask("DELETE", "/mcp", b"", session)
        assert fabric.subscribed == []
        bad = await gate.post(legacy(1, "resources/subscribe", {}), await gate.open())
        assert bad.json["error"]["code"] == -32602


async def test_what_sessions_subscribed_to_ends_with_the_gateway() -> None:
    fabric = FakeFabric()
    async with open_http(fabric) as gate:
        await gate.post(legacy(1, "resources/subscribe", {"uri": "x:a"}), await gate.open())
        assert len(fabric.subscribed) == 1
    assert fabric.subscribed == []


async def test_row_28_a_batch_may_hold_any_of_them() -> None:
    fabric = full(FakeFabric())
    async with open_http(fabric) as gate, open_pipe(fabric) as client:
        session = await gate.open("2025-03-26")
        await client.ask(initialize(version="2025-03-26"))
        batch = b"[%b]" % b",".join(
            [
                legacy(1, "logging/setLevel", {"level": "error"}),
                legacy(2, "resources/subscribe", {"uri": "x:a"}),
                legacy(3, "prompts/list"),
                notice("notifications/initialized"),
                b'{"jsonrpc":"2.0","id":9,"result":{}}',
            ]
        )
        for answers in ((await gate.post(batch, session)).json, (await client.ask(batch))[0]):
            assert {each["id"] for each in answers} == {1, 2, 3}
            assert all("result" in each for each in answers)


async def test_an_answer_without_a_session_is_refused() -> None:
    async with open_http(FakeFabric()) as gate:
        session = await gate.open()
        said = b'{"jsonrpc":"2.0","id":9,"result":{}}'
        for fields, status in [
            ((), 400),
            ((("Mcp-Session-Id", "none"),), 404),
            ((session, ("MCP-Protocol-Version", "1999")), 400),
            ((session, ("MCP-Protocol-Version", LATEST)), 202),
            ((session, ("MCP-Protocol-Version", MODERN)), 202),
        ]:
            assert (await gate.post(said, *fields)).status == status, fields
        await wait_all_tasks_blocked()
        assert gate.service.counters["gateway.answers_unasked"] == 1


# --- what we say of ourselves -------------------------------------------------------------------------------


def test_row_2_instructions_and_extensions_of_all_servers_are_said_once() -> None:
    snapshot = Snapshot(
        1,
        {},
        {
            "a": SourceView(greeting=Greeting({"extensions": {"v/x": {"a": 1}, TASKS: {}}}, "Use a.")),
            "b": SourceView(greeting=Greeting({"extensions": {"v/x": {"a": 2}, "v/y": {}}}, "Use b.")),
            "c": SourceView(greeting=Greeting({"extensions": 5})),
            "d": SourceView("down"),
        },
    )
    front = Front(IDENTITY, lambda: snapshot)
    for message in (modern(1, "server/discover"), initialize()):
        step = front.read(message, Caller())
        assert isinstance(step, Reply | Open)
        result = parse(step.message or b"")["result"]
        assert result["instructions"] == "# a\nUse a.\n\n# b\nUse b."
        tasks: dict[str, Json] = {TASKS: {}} if "resultType" in result else {}  # which legacy clients do not have
        assert result["capabilities"]["extensions"] == {"v/x": {"a": 1}, **tasks, "v/y": {}}
        assert result["capabilities"]["resources"] == {"listChanged": True, "subscribe": True}
