"""Agents as tools: what is listed of them, what they are given, and what their answer is on the wire."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from msgspec import Raw

from cord_trio.protocol.jsonrpc import encode, object_of, parse
from cord_trio.protocol.mcp import Annotations, Tool, ToolResult

if TYPE_CHECKING:
    from cord_trio.agents.agent import Agent
    from cord_trio.agents.turn import Branch
    from cord_trio.call import Call

SCHEMA: Final = (
    b'{"type":"object","properties":{"payload":{"description":'
    b'"What the agent is given. Without it, it is given the arguments themselves."}}}'
)
"""The arguments of an agent."""

EXPORTED: Final = "agent__"
"""What the names of agents begin with where they are tools."""

CALLING: ContextVar[Branch | None] = ContextVar("calling", default=None)
"""The ask whose handler calls an agent as a tool: that one is asked below it, so circles and budgets are seen."""

GREATEST: Final = 2**53
"""Of the numbers that progress is told in: what every reader of JSON knows exactly."""


def as_tool(agent: Agent) -> Tool:
    """What is listed of `agent`."""
    description = (inspect.getdoc(agent.written) or f"Asks the agent {agent.name}.").partition("\n\n")[0]
    members = {
        "name": Raw(encode(agent.name)),
        "description": Raw(encode(description)),
        "inputSchema": Raw(SCHEMA),
    }
    return Tool(agent.name, None, description, Annotations(), Raw(SCHEMA), None, Raw(object_of(members)))


def payload_of(call: Call) -> object:
    """What an agent is given for `call`."""
    given = bytes(call.params.get("arguments", Raw(b"{}")))
    arguments = parse(given)
    if isinstance(arguments, dict) and arguments.keys() == {"payload"}:
        return arguments["payload"]
    return arguments


def result_of(answer: object) -> Raw:
    """An agent's answer as a tool's result: a text as it is, all else as JSON too.

    Raises:
        TypeError: it cannot be written as JSON.

    """
    if isinstance(answer, ToolResult):
        return answer.raw
    if isinstance(answer, str):
        return _texts(encode(answer))
    value = encode(answer)
    structured = value if value.startswith(b"{") else b'{"result":%b}' % value
    return _texts(encode(value.decode()), structuredContent=structured)


def failure_of(error: Exception) -> Raw:
    """What a model learns of an agent that failed."""
    return _texts(encode(str(error) or type(error).__name__), isError=b"true")


def progress_of(value: object) -> Raw | None:
    """What an agent emitted as the parameters of a progress notification; None if it is no progress."""
    given = value if isinstance(value, Mapping) else {"progress": value}
    told = {name: given[name] for name in ("progress", "total", "message") if given.get(name) is not None}
    for number in (told.get("progress"), told.get("total", 0)):
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not abs(number) <= GREATEST:
            return None
    if not isinstance(told.get("message", ""), str):
        return None
    return Raw(encode({"progressToken": 0, **told}))


def _texts(text: bytes, **more: bytes) -> Raw:
    block = b'[{"type":"text","text":%b}]' % text
    return Raw(object_of({"content": block, **more}))
