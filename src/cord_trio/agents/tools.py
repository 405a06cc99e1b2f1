"""A tool call as a plain function: arguments in, the tool's result out, everything else as an exception."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from msgspec import Raw

from cord_trio.call import LOCAL, Call, Complete, Error, InputRequired, Task
from cord_trio.errors import BadReply, CallFailed, InputNeeded, Malformed
from cord_trio.protocol import jsonrpc
from cord_trio.protocol.mcp import ToolResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.call import EventSink, Handler
    from cord_trio.protocol.jsonrpc import Json

BRACE: Final = ord("{")


async def call_tool(
    handler: Handler,
    tool: str,
    arguments: Mapping[str, Json] | None = None,
    *,
    principal: str = LOCAL,
    deadline: float = math.inf,
    events: EventSink | None = None,
) -> ToolResult:
    """What `tool` answered; a tool that says it failed is an answer too (`ToolResult.is_error`).

    Args:
        handler: who takes the call.
        tool: the exported name.
        arguments: plain values, structs or `Raw`; None for none.
        principal: who calls.
        deadline: Trio time.
        events: takes its progress and log notifications.

    Raises:
        CallError: it did not answer, or not with a result.
        TypeError: the arguments are no JSON object.

    """
    given = jsonrpc.encode({} if arguments is None else arguments)
    if given[0] != BRACE and not given.lstrip().startswith(b"{"):
        raise TypeError(f"the arguments of {tool} are no object")
    call = Call("tools/call", tool, {"arguments": Raw(given)}, principal=principal, deadline=deadline, events=events)
    outcome = await handler(call)
    if type(outcome) is Complete:  # nearly always
        return ToolResult(outcome.result)
    match outcome:
        case Complete(result):
            return ToolResult(result)
        case Error(code, message, data):
            raise CallFailed(code, message, data)
        case InputRequired(result):
            raise InputNeeded(tool, _methods(result))
        case Task():
            raise BadReply(f"{tool} went on as a background task, which nobody asked for")


def _methods(result: Raw) -> tuple[str, ...]:
    """What the server asks for (MCP 2026-07-28, input required): `inputRequests` is a map of requests."""
    try:
        asked = jsonrpc.parse(result).get("inputRequests") or {}
        methods = {str(request["method"]) for request in asked.values()}
    except (AttributeError, KeyError, Malformed, TypeError) as exc:
        raise BadReply("the server asks for input that it does not name") from exc
    return tuple(sorted(methods))
