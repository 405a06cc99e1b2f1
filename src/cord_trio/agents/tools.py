"""A tool call as a plain function: arguments in, the tool's result out, everything else as an exception."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from msgspec import Raw
from msgspec.structs import replace

from cord_trio.agents.answering import ANY_QUESTION, go_on, methods
from cord_trio.call import LOCAL, NO_MEMBERS, Call, Complete, Error, InputRequired, Task
from cord_trio.errors import BadReply, CallFailed, InputNeeded
from cord_trio.protocol import jsonrpc
from cord_trio.protocol.mcp import ToolResult
from cord_trio.protocol.questions import NOBODY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.agents.answering import Answer
    from cord_trio.call import EventSink, Handler, Outcome
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.trace import TraceContext

BRACE: Final = ord("{")


async def call_tool(
    handler: Handler,
    tool: str,
    arguments: Mapping[str, Json] | None = None,
    *,
    principal: str = LOCAL,
    deadline: float = math.inf,
    events: EventSink | None = None,
    answer: Answer | None = None,
    trace: TraceContext | None = None,
) -> ToolResult:
    """What `tool` answered; a tool that says it failed is an answer too (`ToolResult.is_error`).

    Args:
        handler: who takes the call.
        tool: the exported name.
        arguments: plain values, structs or `Raw`; None for none.
        principal: who calls.
        deadline: Trio time.
        events: takes its progress and log notifications.
        answer: answers what the server asks in the middle of it; without it nothing can be asked.
        trace: that it is part of.

    Raises:
        CallError: it did not answer, or not with a result.
        TypeError: the arguments are no JSON object.
        ValueError: there is NaN or an infinity in them, which JSON cannot say.

    """
    call = tool_call(tool, arguments, principal, deadline, events, answer, trace)
    outcome = await handler(call)
    if type(outcome) is Complete:  # nearly always
        return ToolResult(outcome.result)
    return await finish(handler, call, outcome, answer)


def tool_call(
    tool: str,
    arguments: Mapping[str, Json] | None,
    principal: str,
    deadline: float,
    events: EventSink | None,
    answer: Answer | None,
    trace: TraceContext | None = None,
) -> Call:
    """The call that `call_tool` makes."""
    given = jsonrpc.encode({} if arguments is None else arguments)
    # NaN is told so as well. `in` costs an exception that CPython raises and drops: a fiftieth of a call.
    if given.find(b"null") >= 0:
        try:
            jsonrpc.encode_finite(arguments)
        except ValueError as exc:
            raise ValueError(f"the arguments of {tool} cannot be sent: {exc}") from exc
    if given[0] != BRACE and not given.lstrip().startswith(b"{"):
        raise TypeError(f"the arguments of {tool} are no object")
    # By position: with keywords the struct alone takes 0.3 µs, more than twice as long.
    call = Call(
        "tools/call", tool, {"arguments": Raw(given)}, NO_MEMBERS, principal, deadline, events,
        NOBODY if answer is None else ANY_QUESTION,
    )  # fmt: skip
    return call if trace is None else replace(call, trace=str(trace), meta=trace.meta)


async def finish(handler: Handler, call: Call, outcome: Outcome, answer: Answer | None) -> ToolResult:
    """What `call_tool` returns, or raises, once its call had `outcome`."""
    tool = call.name or ""
    if answer is not None:
        outcome = await go_on(handler, call, outcome, answer)
    match outcome:
        case Complete(result):
            return ToolResult(result)
        case Error(code, message, data):
            raise CallFailed(code, message, data)
        case InputRequired(result):
            raise InputNeeded(tool, methods(result))
        case Task():
            raise BadReply(f"{tool} went on as a background task, which nobody asked for")
