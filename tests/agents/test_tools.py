from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec
import pytest
from msgspec import Raw

from cord_trio.agents import Agents, Context, call_tool, converse
from cord_trio.call import Call, Complete, Error, InputRequired, Outcome, Task
from cord_trio.errors import BadReply, CallFailed, InputNeeded, ToolNotFound, ToolNotGranted
from cord_trio.protocol.mcp import decode_tools_page
from cord_trio.registry import Route, Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cord_trio.protocol.jsonrpc import Json

TEXT = Raw(b'{"content":[{"type":"text","text":"noon"}]}')


class Source:
    """Answers each call with `outcome`, and keeps the calls."""

    def __init__(self, outcome: Outcome = Complete(TEXT)) -> None:  # noqa: B008  # frozen
        self.outcome = outcome
        self.calls: list[Call] = []

    async def __call__(self, call: Call) -> Outcome:
        self.calls.append(call)
        return self.outcome


async def test_a_tools_answer_is_its_result() -> None:
    source = Source()
    result = await call_tool(source, "time__now", {"zone": "UTC"}, principal="ada", deadline=7)
    assert result.text == "noon"
    (call,) = source.calls
    assert (call.method, call.name, call.principal, call.deadline) == ("tools/call", "time__now", "ada", 7)
    assert msgspec.json.decode(call.params["arguments"]) == {"zone": "UTC"}


async def test_arguments_that_json_cannot_say_are_refused_before_anything_is_called() -> None:
    source = Source()
    for wrong in (float("nan"), [None, float("inf")]):
        with pytest.raises(ValueError, match="the arguments of time__now cannot be sent: it holds NaN or an infinity"):
            await call_tool(source, "time__now", {"a": wrong})
    await call_tool(source, "time__now", {"a": None})
    assert [bytes(call.params["arguments"]) for call in source.calls] == [b'{"a":null}']


async def test_no_arguments_are_an_empty_object() -> None:
    source = Source()
    await call_tool(source, "time__now")
    assert bytes(source.calls[0].params["arguments"]) == b"{}"


async def test_a_tool_that_says_it_failed_has_answered() -> None:
    result = await call_tool(Source(Complete(Raw(b'{"content":[],"isError":true}'))), "time__now")
    assert result.is_error


async def test_an_error_of_the_server_is_raised_with_its_facts() -> None:
    with pytest.raises(CallFailed) as caught:
        await call_tool(Source(Error(-32602, "no zone", b"[1]")), "time__now")
    assert (caught.value.code, caught.value.message, caught.value.data) == (-32602, "no zone", b"[1]")
    assert caught.value.executed == "yes"


async def test_a_question_that_nobody_can_answer_is_named() -> None:
    asked = Raw(b'{"resultType":"input_required","inputRequests":{"q":{"method":"elicitation/create","params":{}}}}')
    with pytest.raises(InputNeeded) as caught:
        await call_tool(Source(InputRequired(asked)), "time__now")
    assert caught.value.methods == ("elicitation/create",)


async def test_another_round_without_a_question_is_named_too() -> None:
    with pytest.raises(InputNeeded, match="another round"):
        await call_tool(Source(InputRequired(Raw(b'{"requestState":"s"}'))), "time__now")


@pytest.mark.parametrize("requests", [b"[1]", b'{"q":{}}', b'{"q":3}', b'"q"'])
async def test_a_question_that_is_none_is_a_bad_reply(requests: bytes) -> None:
    with pytest.raises(BadReply):
        await call_tool(Source(InputRequired(Raw(b'{"inputRequests":%b}' % requests))), "time__now")


async def test_a_task_that_nobody_asked_for_is_a_bad_reply() -> None:
    with pytest.raises(BadReply):
        await call_tool(Source(Task(Raw(b"{}"))), "time__now")


def snapshot(*names: str) -> Snapshot:
    listed = [{"name": name, "inputSchema": {"type": "object"}} for name in names]
    tools = decode_tools_page(Raw(msgspec.json.encode({"tools": listed}))).tools
    return Snapshot(1, 1, tools=MappingProxyType({tool.name: Route(tool.name, "s", tool) for tool in tools}))


async def ask(source: Source, *, tools: Sequence[str], tool: str) -> object:
    async def agent(ctx: Context, payload: object) -> object:
        return list(ctx.tools), (await ctx.call(tool, {"q": payload})).text

    agents = Agents(source, lambda: snapshot("web__get", "docs__search"))
    agents.add("triage", agent, tools=tools)
    return await converse(agents, "triage", 1, principal="ada")


async def test_an_agent_sees_and_calls_the_tools_of_its_grant_on_its_askers_behalf() -> None:
    source = Source()
    assert await ask(source, tools=["web__*"], tool="web__get") == (["web__get"], "noon")
    assert source.calls[0].principal == "ada"
    assert await ask(source, tools=["*"], tool="web__get") == (["web__get", "docs__search"], "noon")


@pytest.mark.parametrize("tool", ["docs__search", "does_not_exist"])
async def test_a_tool_outside_the_grant_is_refused_by_the_name_of_the_grant(tool: str) -> None:
    source = Source()
    with pytest.raises(ToolNotGranted, match=r"'triage' may not call .* granted web__\*") as caught:
        await ask(source, tools=["web__*"], tool=tool)
    assert isinstance(caught.value, ToolNotFound)
    assert (caught.value.agent, caught.value.granted, caught.value.executed) == ("triage", ("web__*",), "no")
    assert source.calls == []


@pytest.mark.parametrize("arguments", [{"zone": object()}, ["zone"], "zone"])
async def test_arguments_that_are_no_json_object_are_the_callers_fault(arguments: Json) -> None:
    source = Source()
    with pytest.raises(TypeError):
        await call_tool(source, "time__now", arguments)
    assert source.calls == []
