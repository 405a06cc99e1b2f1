"""Prompts, resources and templates of both eras: listed, routed, subscribed to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete, Error, InputRequired, Task
from cord_trio.errors import BadReply, CallFailed, SourceDown
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.following import DEBOUNCE, LISTEN_PATIENCE
from cord_trio.transports.memory import MemoryTransport
from tests.full_server import FullServer, Request, settled, text

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cord_trio.call import Outcome

Json: TypeAlias = Any

both_eras = pytest.mark.parametrize("modern", [True, False], ids=["modern", "legacy"])


def call(method: str, name: str, **params: Json) -> Call:
    return Call(method, name, {key: Raw(json.dumps(value).encode()) for key, value in params.items()})


def result(outcome: Outcome) -> Json:
    assert isinstance(outcome, Complete)
    return json.loads(bytes(outcome.result))


def names(fabric: Fabric) -> Json:
    snapshot = fabric.registry.snapshot
    return [list(snapshot.tools), list(snapshot.prompts), list(snapshot.resources), list(snapshot.templates)]


@both_eras
async def test_everything_that_a_server_has_is_listed(modern: bool, autojump_clock: MockClock) -> None:
    async with open_fabric([FullServer(modern=modern).source()]) as fabric:
        await fabric.wait_started()
        assert names(fabric) == [["x__echo"], ["x__greet"], ["cord://x/file:///a"], ["cord://x/file:///{path}"]]
        snapshot = fabric.registry.snapshot
        assert json.loads(snapshot.encoded_prompts) == [{"name": "x__greet", "title": "Greet", "x": 1.0}]
        assert json.loads(snapshot.encoded_resources)[0]["uri"] == "cord://x/file:///a"
        assert json.loads(snapshot.encoded_templates)[0]["uriTemplate"] == "cord://x/file:///{path}"


@both_eras
async def test_names_and_uris_of_a_source_without_prefix_go_out_unchanged(
    modern: bool, autojump_clock: MockClock
) -> None:
    async with open_fabric([FullServer(modern=modern).source(prefix="")]) as fabric:
        await fabric.wait_started()
        assert names(fabric) == [["echo"], ["greet"], ["file:///a"], ["file:///{path}"]]
        assert result(await fabric.handle(call("resources/read", "file:///a")))["contents"][0]["uri"] == "file:///a"
        assert result(await fabric.handle(call("resources/read", "dynamic:thing")))["contents"][0]["text"] == "read"


async def test_what_a_server_does_not_declare_is_not_asked_for(autojump_clock: MockClock) -> None:
    server = FullServer(capabilities={"tools": {}})
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        assert names(fabric) == [["x__echo"], [], [], []]
        assert not server.sent("prompts/list")


async def test_lists_that_fail_or_take_long_keep_no_tool_from_being_called(autojump_clock: MockClock) -> None:
    server = FullServer()
    late: list[Request] = []
    server.answers = {
        "prompts/list": lambda request: request.fail(-32603, "no"),
        "resources/list": late.append,
    }
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        assert names(fabric) == [["x__echo"], [], [], ["cord://x/file:///{path}"]]
        assert (await fabric.call("x__echo", {"t": "hi"})).text == "hi"
        late[0].answer({"resources": server.resources})
        await settled()
        assert names(fabric)[2] == ["cord://x/file:///a"]


@both_eras
async def test_each_kind_is_listed_anew_when_it_has_changed_and_only_that(
    modern: bool, autojump_clock: MockClock
) -> None:
    server = FullServer(modern=modern)
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        before = fabric.registry.snapshot
        server.prompts.append({"name": "more"})
        for _ in range(5):
            server.connections[0].tell("notifications/prompts/list_changed")
        await trio.sleep(DEBOUNCE * 3)
        after = fabric.registry.snapshot
        assert list(after.prompts) == ["x__greet", "x__more"]
        assert (after.listed_tools, after.listed_resources) == (before.listed_tools, before.listed_resources)
        assert after.listed_prompts > before.listed_prompts
        assert len(server.sent("prompts/list")) == 2
        assert len(server.sent("tools/list")) == len(server.sent("resources/list")) == 1
        server.templates.append({"uriTemplate": "db:{table}", "name": "tables"})
        server.connections[0].tell("notifications/resources/list_changed")
        await trio.sleep(DEBOUNCE * 3)
        assert "cord://x/db:{table}" in fabric.registry.snapshot.templates
        assert fabric.registry.snapshot.listed_resources > after.listed_resources


@both_eras
async def test_prompts_resources_and_completions_go_to_their_source(modern: bool, autojump_clock: MockClock) -> None:
    server, other = FullServer(modern=modern), FullServer()
    other.prompts = [{"name": "other"}]
    async with open_fabric([server.source(), other.source("y")]) as fabric:
        await fabric.wait_started()
        got = result(await fabric.handle(call("prompts/get", "x__greet", arguments={"a": "1"})))
        assert got["messages"][0]["content"]["text"] == "greet"
        assert server.sent("prompts/get")[0]["arguments"] == {"a": "1"}
        for uri in ("cord://x/file:///a", "cord://x/file:///b%20c", "cord://x/never:seen"):
            got = result(await fabric.handle(call("resources/read", uri)))
            assert got["contents"] == [{"uri": uri, "text": "read"}]
        for ref, name, expected in [
            ({"type": "ref/prompt"}, "x__greet", {"type": "ref/prompt", "name": "greet"}),
            ({"type": "ref/resource"}, "cord://x/file:///{path}", {"type": "ref/resource", "uri": "file:///{path}"}),
        ]:
            asked = call("completion/complete", name, ref=ref, argument={"name": "a", "value": ""})
            values = result(await fabric.handle(asked))["completion"]["values"]
            assert json.loads(values[0]) == expected
        sent = server.sent("completion/complete")[0]
        assert sent["argument"] == {"name": "a", "value": ""}
        assert "name" not in sent


async def test_r23_an_unmapped_uri_is_read_where_exactly_one_source_has_it(autojump_clock: MockClock) -> None:
    one, two = FullServer(), FullServer()
    one.resources = [{"uri": "db:one", "name": "one"}, {"uri": "db:both", "name": "both"}]
    two.resources = [{"uri": "db:both", "name": "both"}]
    two.templates = [{"uriTemplate": "two:{id}", "name": "two"}]
    async with open_fabric([one.source("one"), two.source("two")]) as fabric:
        await fabric.wait_started()
        assert (
            result(await fabric.handle(call("resources/read", "db:one")))["contents"][0]["uri"] == "cord://one/db:one"
        )
        assert result(await fabric.handle(call("resources/read", "two:7")))["contents"][0]["uri"] == "cord://two/two:7"
        for uri in ("db:both", "db:none"):
            with pytest.raises(CallFailed) as failed:
                await fabric.handle(call("resources/read", uri))
            assert (failed.value.code, json.loads(failed.value.data)) == (-32602, {"uri": uri})
            assert failed.value.executed == "no"


async def test_what_nobody_has_is_refused_and_what_makes_no_sense(autojump_clock: MockClock) -> None:
    async with open_fabric([FullServer().source()]) as fabric:
        await fabric.wait_started()
        for wrong in [
            call("prompts/get", "x__none"),
            call("completion/complete", "x__none", ref={"type": "ref/prompt"}),
            call("completion/complete", "x__greet", ref={"type": "ref/other"}),
            call("completion/complete", "x__greet", ref=7),
            call("completion/complete", "x__greet"),
        ]:
            with pytest.raises(CallFailed) as failed:
                await fabric.handle(wrong)
            assert failed.value.code == -32602
        outcome = await fabric.handle(call("vendor/x", "y"))
        assert isinstance(outcome, Error)


async def test_a_prompt_of_a_source_that_is_down_says_so(autojump_clock: MockClock) -> None:
    server = FullServer()
    server.answers["initialize"] = lambda request: request.fail(-32603, "broken")
    async with open_fabric([server.source()]) as fabric:
        with pytest.raises(SourceDown):
            await fabric.handle(call("prompts/get", "x__greet"))
        with pytest.raises(SourceDown):
            await fabric.handle(call("resources/read", "cord://x/file:///a"))


@both_eras
async def test_uris_in_results_are_exported(modern: bool, autojump_clock: MockClock) -> None:
    server = FullServer(modern=modern)
    link = {"type": "resource_link", "uri": "file:///made", "name": "made"}
    server.tools["make"] = lambda request: {"content": [link]}
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        made = await fabric.call("x__make")
        assert json.loads(made.content[0].encode())["uri"] == "cord://x/file:///made"


@both_eras
async def test_row_29_the_page_of_an_app_is_exported_with_its_tool(modern: bool, autojump_clock: MockClock) -> None:
    server = FullServer(modern=modern)
    listed = {"name": "show", "inputSchema": {"type": "object"}, "_meta": {"ui": {"resourceUri": "ui://app/page"}}}
    server.answers["tools/list"] = lambda request: {"tools": [listed]}
    server.resources = [{"uri": "ui://app/page", "name": "page", "mimeType": "text/html;profile=mcp-app"}]
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        (tool,) = json.loads(fabric.registry.snapshot.encoded_tools)
        uri = tool["_meta"]["ui"]["resourceUri"]
        assert uri == "ui://x/app/page"
        assert uri in fabric.registry.snapshot.resources
        assert result(await fabric.handle(call("resources/read", uri)))["contents"][0]["uri"] == uri
        assert server.sent("resources/read")[0]["uri"] == "ui://app/page"


# What callers can be asked, and logs


async def test_a_modern_server_is_told_what_each_caller_can_be_asked(autojump_clock: MockClock) -> None:
    server = FullServer(modern=True)
    declares = b'{"elicitation":{"form":{}},"extensions":{"io.modelcontextprotocol/tasks":{},"a/b":{}}}'
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        await fabric.call("x__echo")
        await fabric.handle(Call("tools/call", "x__echo", capabilities=declares))
        await fabric.handle(Call("tools/call", "x__echo", capabilities=b"[rubbish"))
        key = "io.modelcontextprotocol/clientCapabilities"
        assert [params["_meta"][key] for params in server.sent("tools/call")] == [
            {},
            {"elicitation": {"form": {}}, "extensions": {"io.modelcontextprotocol/tasks": {}, "a/b": {}}},
            {},
        ]


async def test_questions_of_a_modern_server_pass_and_the_retry_brings_the_answers(autojump_clock: MockClock) -> None:
    server = FullServer(modern=True)

    def ask(request: Request) -> Json:
        if "inputResponses" in request.params:
            return text(json.dumps([request.params["inputResponses"], request.params["requestState"]]))
        return {"resultType": "input_required", "inputRequests": {"k": {"method": "roots/list"}}, "requestState": "s\n"}

    server.tools["ask"] = ask
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        first = await fabric.handle(Call("tools/call", "x__ask", capabilities=b'{"roots":{}}'))
        assert isinstance(first, InputRequired)
        assert (first.park, json.loads(bytes(first.result))["requestState"]) == ("", "s\n")
        retry = call("tools/call", "x__ask", inputResponses={"k": {"roots": []}}, requestState="s\n")
        answered = result(await fabric.handle(retry))
        assert json.loads(answered["content"][0]["text"]) == [{"k": {"roots": []}}, "s\n"]


async def test_row_22_a_task_is_asked_for_at_the_server_of_its_tool(autojump_clock: MockClock) -> None:
    server = FullServer(modern=True)
    state = {"taskId": "t1", "status": "working"}
    link = {"type": "resource_link", "uri": "file:///made", "name": "made"}
    server.tools["slow"] = lambda request: {"resultType": "task", **state}
    server.answers["tasks/get"] = lambda request: {"resultType": "task", **state, "result": {"content": [link]}}
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        assert isinstance(await fabric.handle(Call("tools/call", "x__slow")), Task)
        got = result(await fabric.handle(call("tasks/get", "x__slow", taskId="t1")))
        assert got["result"]["content"][0]["uri"] == "cord://x/file:///made"
        sent = server.sent("tasks/get")[0]
        assert sent["taskId"] == "t1"
        assert "name" not in sent
        with pytest.raises(CallFailed, match="unknown or expired taskId"):
            await fabric.handle(call("tasks/get", "x__none", taskId="t1"))


@pytest.mark.parametrize("resource", ["prompts/get", "resources/read"])
async def test_only_a_tool_becomes_a_task(resource: str, autojump_clock: MockClock) -> None:
    server = FullServer(modern=True)
    server.answers[resource] = lambda request: {"resultType": "task", "taskId": "t1"}
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        with pytest.raises(BadReply, match="resultType 'task'"):
            await fabric.handle(call(resource, "x__greet" if resource == "prompts/get" else "cord://x/file:///a"))


async def test_a_server_that_speaks_another_revision_now_is_asked_again(autojump_clock: MockClock) -> None:
    server = FullServer(modern=True)
    refusals = iter([True])

    def echo(request: Request) -> Json:
        if next(refusals, False):
            return request.fail(-32022, "unsupported", {"supported": ["2026-07-28"], "requested": "x"})
        return text("hi")

    server.tools["echo"] = echo
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        assert (await fabric.call("x__echo")).text == "hi"
        assert len(server.connections) == 2


@both_eras
async def test_logs_reach_the_one_call_that_wants_them_from_its_level_on(
    modern: bool, autojump_clock: MockClock
) -> None:
    server = FullServer(modern=modern)
    seen: list[Json] = []

    def log(request: Request) -> Json:
        for level in ("debug", "info", "error"):
            request.connection.tell("notifications/message", {"level": level, "data": level})
        return text("done")

    server.tools["log"] = log
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()

        def sink(method: str, params: Raw) -> None:
            seen.append(json.loads(bytes(params))["level"])

        await fabric.handle(Call("tools/call", "x__log", events=sink))
        assert seen == []
        await fabric.handle(Call("tools/call", "x__log", events=sink, log_level="info"))
        assert seen == ["info", "error"]
        if modern:
            assert server.sent("tools/call")[1]["_meta"]["io.modelcontextprotocol/logLevel"] == "info"
        else:
            assert server.sent("logging/setLevel") == [{"level": "info"}]
            await fabric.handle(Call("tools/call", "x__log", log_level="error"))
            await fabric.handle(Call("tools/call", "x__log", log_level="debug"))
            assert [params["level"] for params in server.sent("logging/setLevel")] == ["info", "debug"]


async def test_logs_that_may_be_another_calls_reach_nobody(autojump_clock: MockClock) -> None:
    server = FullServer()
    held: list[Request] = []
    server.tools["hold"] = held.append
    seen: list[Json] = []
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        async with trio.open_nursery() as nursery:
            wants = Call("tools/call", "x__hold", events=lambda *told: seen.append(told), log_level="debug")
            nursery.start_soon(fabric.handle, wants)
            nursery.start_soon(fabric.call, "x__hold")
            await settled()
            held[0].connection.tell("notifications/message", {"level": "error", "data": "whose?"})
            await settled()
            for request in held:
                request.answer(text("done"))
        assert seen == []


@pytest.mark.parametrize("revision", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_row_23_the_context_of_a_completion_goes_to_servers_that_know_it(
    revision: str, autojump_clock: MockClock
) -> None:
    server = FullServer(revision=revision)
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        argument, context = {"name": "a", "value": ""}, {"arguments": {"b": "c"}}
        ref = {"type": "ref/prompt"}
        await fabric.handle(call("completion/complete", "x__greet", ref=ref, argument=argument, context=context))
        (sent,) = server.sent("completion/complete")
        sent.pop("_meta", None)
        known = {} if revision < "2025-06-18" else {"context": context}
        assert sent == {"ref": {"type": "ref/prompt", "name": "greet"}, "argument": argument, **known}


# Subscriptions


@both_eras
async def test_a_resource_is_subscribed_to_once_for_all_who_want_it(modern: bool, autojump_clock: MockClock) -> None:
    server = FullServer(modern=modern)
    told: list[str] = []

    def subscribed() -> Json:
        connection = server.connections[0]
        if not modern:
            return connection.subscribed
        (listening,) = connection.listening.values()
        return set(listening.get("resourceSubscriptions", ()))

    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        with fabric.subscribe("one", ["cord://x/file:///a", "cord://nobody/x"], lambda uri: told.append(f"1 {uri}")):
            await trio.sleep(1)
            assert subscribed() == {"file:///a"}
            uris = ["cord://x/file:///a", "cord://x/file:///b"]
            with fabric.subscribe("two", uris, lambda uri: told.append(f"2 {uri}")):
                await trio.sleep(1)
                assert subscribed() == {"file:///a", "file:///b"}
                for uri in ("file:///a", "file:///b/part", "file:///c"):
                    server.connections[0].tell("notifications/resources/updated", {"uri": uri})
                await settled()
                assert told == ["1 cord://x/file:///a", "2 cord://x/file:///a", "2 cord://x/file:///b/part"]
            await trio.sleep(1)
            assert subscribed() == {"file:///a"}
        await trio.sleep(1)
        assert subscribed() == set()
        assert len(server.sent("tools/list")) == 1  # another filter is no gap
        assert fabric.links["x"].subscriptions.uris == ()
        assert len(server.sent("resources/subscribe")) == (0 if modern else 2)


@both_eras
async def test_what_is_subscribed_to_before_its_source_has_listed_is_told_of_all_the_same(
    modern: bool, autojump_clock: MockClock
) -> None:
    server = FullServer(modern=modern)
    held: list[Request] = []
    server.answers["resources/list"] = held.append
    told: list[str] = []
    async with open_fabric([server.source(prefix="")]) as fabric:
        with fabric.subscribe("one", ["file:///a"], told.append):
            await trio.sleep(0.5)
            assert fabric.links["x"].subscriptions.uris == ()
            held[0].answer({"resources": server.resources})
            await trio.sleep(3)
            assert told == ["file:///a"]  # once, since it may have changed meanwhile
            server.connections[0].tell("notifications/resources/updated", {"uri": "file:///a"})
            await settled()
            assert told == ["file:///a"] * 2
        assert fabric.links["x"].subscriptions.uris == ()


async def test_a_subscription_that_ends_before_its_source_has_listed_leaves_nothing(autojump_clock: MockClock) -> None:
    server = FullServer()
    held: list[Request] = []
    server.answers["resources/list"] = held.append
    async with open_fabric([server.source(prefix="")]) as fabric:
        with fabric.subscribe("one", ["file:///a"], lambda _: None):
            await settled()
        held[0].answer({"resources": server.resources})
        await trio.sleep(3)
        assert fabric.links["x"].subscriptions.uris == ()


@both_eras
async def test_subscriptions_are_restored_after_a_loss_with_one_update_each(
    modern: bool, autojump_clock: MockClock
) -> None:
    server = FullServer(modern=modern)
    told: list[str] = []
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        with fabric.subscribe("one", ["cord://x/file:///a"], told.append):
            await trio.sleep(1)
            assert told == []
            server.connections[0].transport.lose("server exited (signal 9)")
            await trio.sleep(LISTEN_PATIENCE * 60)
            assert len(server.connections) == 2
            assert told == ["cord://x/file:///a"]
            server.connections[1].tell("notifications/resources/updated", {"uri": "file:///a"})
            await settled()
            assert told == ["cord://x/file:///a"] * 2


@pytest.mark.parametrize("after", [0.5, 5.0])
async def test_what_a_legacy_server_tells_before_its_standing_stream_is_open_is_not_missed(
    after: float, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Its first list waits a moment for that stream; if it comes later, all is listed once more."""
    opened = trio.Event()
    ways: list[MemoryTransport] = []

    async def wait_listening(self: MemoryTransport) -> None:
        ways.append(self)
        await opened.wait()

    monkeypatch.setattr(MemoryTransport, "wait_listening", wait_listening)
    server = FullServer()
    told: list[str] = []
    async with open_fabric([server.source()]) as fabric:
        with fabric.subscribe("one", ["cord://x/file:///a"], told.append):
            await trio.sleep(after)
            assert len(server.sent("tools/list")) == (0 if after < LISTEN_PATIENCE else 1)
            server.tools["late"] = server.tools["echo"]  # and nobody hears of it
            before = len(told)
            opened.set()
            assert ways[0].on_listening is not None
            ways[0].on_listening()
            await trio.sleep(1)
            assert list(fabric.registry.snapshot.tools) == ["x__echo", "x__late"]
            assert len(server.sent("tools/list")) == (1 if after < LISTEN_PATIENCE else 2)
            assert len(told) == before + 1
            ways[0].on_listening()  # it ended, and began anew
            await trio.sleep(1)
            assert len(told) == before + 2
            assert len(server.sent("tools/list")) == (2 if after < LISTEN_PATIENCE else 3)


async def test_a_server_that_refuses_a_subscription_is_asked_once(autojump_clock: MockClock) -> None:
    server = FullServer()
    server.answers["resources/subscribe"] = lambda request: request.fail(-32602, "no")
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        with fabric.subscribe("one", ["cord://x/file:///a"], lambda uri: None):
            await trio.sleep(100)
        assert len(server.sent("resources/subscribe")) == 1
        assert fabric.counters["link.subscribe_failed"] == 1


async def test_what_is_wanted_while_the_server_is_asked_for_something_else_is_not_missed(
    autojump_clock: MockClock,
) -> None:
    server = FullServer()
    slow: list[Request] = []
    server.answers["resources/subscribe"] = slow.append
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        with fabric.subscribe("one", ["cord://x/file:///a"], lambda uri: None):
            await settled()
            with fabric.subscribe("two", ["cord://x/file:///b"], lambda uri: None):
                await settled()
                slow[0].answer({})
                await settled()
                assert [request.params["uri"] for request in slow] == ["file:///a", "file:///b"]
                slow[1].answer({})
