"""Agents as tools: what is listed of them, what they are given, and what their answer is on the wire."""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from msgspec import Raw

from cord_trio.protocol.jsonrpc import encode, object_of, parse
from cord_trio.protocol.mcp import Annotations, Tool, ToolResult

if TYPE_CHECKING:
    from cord_trio.agents.agent import Agent
    from cord_trio.call import Call, EventSink

SCHEMA: Final = (
    b'{"type":"object","properties":{"payload":{"description":'
    b'"What the agent is given. Without it, it is given the arguments themselves."}}}'
)
"""The arguments of an agent."""

EVENTS: ContextVar[EventSink | None] = ContextVar("cord_trio.events", default=None)
"""Who hears of the progress of the agent that runs in this task. An agent runs in its asker's task."""


def as_tool(agent: Agent) -> Tool:
    """What is listed of `agent`."""
    description = (inspect.getdoc(agent.function) or f"Asks the agent {agent.name}.").partition("\n\n")[0]
    members = {
        "name": Raw(encode(agent.name)),
        "description": Raw(encode(description)),
        "inputSchema": Raw(SCHEMA),
    }
    return Tool(agent.name, None, description, Annotations(), Raw(SCHEMA), None, members)


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


def emit(progress: float, total: float | None, message: str | None) -> None:
    """Tell of progress to whoever listens to the agent in this task."""
    sink = EVENTS.get()
    if sink is None:
        return
    told = {"progressToken": 0, "progress": progress, "total": total, "message": message}
    sink("notifications/progress", Raw(encode({name: each for name, each in told.items() if each is not None})))


def _texts(text: bytes, **more: bytes) -> Raw:
    block = b'[{"type":"text","text":%b}]' % text
    return Raw(object_of({"content": block, **more}))
