"""A call, and how it ended, as they cross from node to node. Pure.

The payload of a call is the `params` of MCP 2026-07-28, with what the caller can answer, and wants to be told, in
`_meta` as a modern client says it; the payload of a result is the result. An error keeps its class where the caller
can tell something by it, and always what is known of whether the call ran.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw

from cord_trio.call import NO_MEMBERS, Call, Complete, Error, InputRequired, Task
from cord_trio.config.settings import DEEPEST
from cord_trio.errors import (
    BadReply,
    CallError,
    CallFailed,
    ConnectionLost,
    DeadlineExceeded,
    Denied,
    Draining,
    InputNeeded,
    Malformed,
    MessageTooLong,
    Overloaded,
    SourceDown,
    TooLate,
    ToolNotFound,
)
from cord_trio.mesh.frames import Frame, Request
from cord_trio.mesh_errors import BadFrame, OwnerFailed
from cord_trio.protocol.jsonrpc import UNREADABLE, encode, members, object_of, parse, payload_of
from cord_trio.protocol.mcp import META_CAPABILITIES, META_LOG_LEVEL, META_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.call import EventSink, Outcome

HOP_COST: Final = 20
"""Milliseconds that a call loses of its deadline with each node that it is sent to: its answer has to come back."""

_META: Final = "_meta"
_NONE: Final = Raw(b"")


def params_of(call: Call) -> bytes:
    """The payload that carries `call`."""
    meta: dict[str, Raw | bytes] = dict(call.meta)
    if call.capabilities != b"{}":
        meta[META_CAPABILITIES] = call.capabilities
    if call.log_level is not None:
        meta[META_LOG_LEVEL] = encode(call.log_level)
    if call.revision:
        meta[META_VERSION] = encode(call.revision)
    if not meta:
        return object_of(call.params)
    return object_of({**call.params, _META: object_of(meta)})


def ttl_of(call: Call, now: float) -> int | None:
    """Milliseconds that a node has for `call`; None for as long as it likes.

    What progress moves is its caller's to keep: the node may work up to the latest moment there can be.
    """
    until = max(call.deadline, call.latest) if call.patience else call.deadline
    return None if until == math.inf else max(0, int((until - now) * 1000) - HOP_COST)


def call_of(request: Request, body: bytes | dict[str, Raw], deadline: float, events: EventSink | None) -> Call:
    """The call that a request asks for.

    Args:
        request: that came.
        body: its payload, or the members of that.
        deadline: Trio time.
        events: where its notifications go.

    Raises:
        BadFrame: the payload is none.

    """
    try:
        params = body if isinstance(body, dict) else members(payload_of(body, DEEPEST) if body else b"")
        if _META not in params:  # as of most callers within a fabric
            return Call(
                request.method, request.tool, params, NO_MEMBERS, request.principal, deadline, events,
                park=request.park, trace=request.trace,
            )  # fmt: skip
        meta = members(params.pop(_META))
        capabilities = bytes(meta.pop(META_CAPABILITIES, b"{}"))
        level = parse(meta.pop(META_LOG_LEVEL, b"null"))
        revision = parse(meta.pop(META_VERSION, b'""'))
    except (Malformed, *UNREADABLE) as exc:
        raise BadFrame(f"the params of a call cannot be read: {exc}") from exc
    return Call(
        request.method,
        request.tool,
        params,
        meta,
        request.principal,
        deadline,
        events,
        capabilities,
        log_level=level if isinstance(level, str) else None,
        park=request.park,
        revision=revision if isinstance(revision, str) else "",
        trace=request.trace,
    )


def frame_of(outcome: Outcome) -> Frame:
    """What tells a caller how its call ended."""
    match outcome:
        case Complete():
            return Frame("ok", "", bytes(outcome.result))
        case InputRequired(result, park):
            return Frame("ok", body=bytes(result), type="input_required", park=park)
        case Task(result):
            return Frame("ok", body=bytes(result), type="task")
        case Error(code, message, data):
            fault = _Fault("", message, "yes", code=code, data=Raw(data) if data else _NONE)
            return Frame("err", body=msgspec.json.encode(fault))


def failure_of(error: CallError) -> Frame:
    """What tells a caller why its call has no outcome."""
    fault = _Fault(type(error).__name__, str(error), error.executed)
    match error:
        case CallFailed():
            fault.code, fault.text, fault.data = error.code, error.message, Raw(error.data) if error.data else _NONE
        case Overloaded():
            fault.name, fault.limit = error.bound, error.limit
            fault.code = error.size if isinstance(error, MessageTooLong) else 0
        case Denied():
            fault.name, fault.text = error.name, error.reason
        case ToolNotFound():
            fault.kind, fault.name, fault.names = "ToolNotFound", error.name, tuple(error.near)
        case SourceDown():
            fault.name, fault.text = error.source, error.reason
        case ConnectionLost():
            fault.kind, fault.text = "ConnectionLost", error.reason
        case InputNeeded():
            fault.names = tuple(error.methods)
        case OwnerFailed():
            fault.kind, fault.text = error.kind, error.reason
        case _:
            pass
    return Frame("err", body=msgspec.json.encode(fault))


def outcome_of(frame: Frame, node: str, name: str, large: Raw | None = None) -> Outcome:
    """How a call ended, as `node` tells it.

    Args:
        frame: `ok` or `err`, whole.
        node: who told it.
        name: what the call was about.
        large: the result instead of the frame's body, where it came in parts, and was read already.

    Raises:
        CallError: it has no outcome.

    """
    if frame.kind == "ok":
        try:
            result = large if large is not None else payload_of(frame.body, DEEPEST)
        except Malformed as exc:
            raise OwnerFailed(node, "BadFrame", f"its answer cannot be read: {exc}", "yes") from exc
        match frame.type:
            case "input_required":
                return InputRequired(result, frame.park)
            case "task":
                return Task(result)
            case _:
                return Complete(result)
    try:
        fault = _FAULT.decode(payload_of(frame.body, DEEPEST))
    except (Malformed, *UNREADABLE):
        raise OwnerFailed(node, "BadFrame", "it said that it failed, and not readably why", "unknown") from None
    if not fault.kind:
        return Error(fault.code, fault.text, _data(fault))
    raise _error_of(fault, node, name)


class _Fault(msgspec.Struct, omit_defaults=True):
    """Why a call has no result; `kind` is the name of the error's class, or empty for an answer of the server's."""

    kind: str
    text: str
    executed: str
    code: int = 0
    data: Raw = _NONE
    name: str = ""
    names: tuple[str, ...] = ()
    limit: float = 0.0


_FAULT: Final = msgspec.json.Decoder(_Fault)


def _data(fault: _Fault) -> bytes:
    return bytes(fault.data)


_MADE: Final[dict[str, Callable[[_Fault, str], CallError]]] = {
    "CallFailed": lambda fault, _: CallFailed(fault.code, fault.text, _data(fault)),
    "Overloaded": lambda fault, _: Overloaded(fault.name, fault.limit),
    "MessageTooLong": lambda fault, _: MessageTooLong(fault.name, fault.limit, fault.code),
    "TooLate": lambda fault, _: TooLate(fault.name, fault.limit),
    "Denied": lambda fault, _: Denied(fault.name, fault.text),
    "ToolNotFound": lambda fault, name: ToolNotFound(fault.name or name, fault.names),
    "SourceDown": lambda fault, _: SourceDown(fault.name, fault.text),
    "ConnectionLost": lambda fault, _: ConnectionLost(fault.text),
    "InputNeeded": lambda fault, name: InputNeeded(name, fault.names),
    "DeadlineExceeded": lambda fault, _: DeadlineExceeded(fault.text.removeprefix("deadline exceeded: ")),
    "BadReply": lambda fault, _: BadReply(fault.text),
    "Draining": lambda _fault, _name: Draining(),
}


def _error_of(fault: _Fault, node: str, name: str) -> CallError:
    make = _MADE.get(fault.kind)
    error: CallError = make(fault, name) if make is not None else OwnerFailed(node, fault.kind, fault.text, "unknown")
    error.executed = fault.executed if fault.executed in ("no", "yes") else "unknown"  # type: ignore[assignment]  # mypy does not narrow to literals
    return error
