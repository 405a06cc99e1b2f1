"""How a call ended, as an answer in the client's era.

A result passes through as bytes: its top level is read once, and ours is spliced in front of it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import attrs
import msgspec
from msgspec import Raw

from cord_trio.call import Complete, Error, InputRequired, Task
from cord_trio.errors import BadReply, CallError, CallFailed, Malformed, ToolNotFound
from cord_trio.gateway.downgrade import content_for
from cord_trio.gateway.params import is_object
from cord_trio.gateway.steps import BAD_REQUEST, Reply
from cord_trio.protocol.eras import (
    HEADER_MISMATCH,
    MISSING_CAPABILITY,
    REQUEST_CANCELLED,
    RESOURCE_NOT_FOUND,
    UNSUPPORTED_VERSION,
    URL_ELICITATION_REQUIRED,
)
from cord_trio.protocol.jsonrpc import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    NOTHING,
    PARSE_ERROR,
    encode,
    encode_error,
    encode_notification,
    encode_result,
    members,
    object_of,
    parse,
)
from cord_trio.protocol.mcp import HOP_LOCAL_META, INPUT_REQUIRED, META_SERVER_INFO, PROGRESS_TOKEN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.call import Call, EventSink, Outcome
    from cord_trio.counters import Counters
    from cord_trio.errors import Executed
    from cord_trio.gateway.steps import Run
    from cord_trio.protocol.eras import Era

log = logging.getLogger("cord_trio.gateway")

EXECUTED: Final = "cord-trio/executed"
"""The `_meta` member of a failed call's result: "no", "unknown" or "yes"."""

HOP_LOCAL_CODES: Final = frozenset(
    {
        HEADER_MISMATCH,
        UNSUPPORTED_VERSION,
        REQUEST_CANCELLED,
        METHOD_NOT_FOUND,
        INVALID_REQUEST,
        PARSE_ERROR,
        -32000,
        -32001,
    }
)
"""Codes that speak of the connection to the server, which is not the client's."""

_REPLACED: Final = frozenset({"resultType", "ttlMs", "cacheScope", "_meta", "content", "structuredContent"})


class _Shape(msgspec.Struct, gc=False, rename={"meta": "_meta"}):
    """The members of a tool's result that decide what is done with it."""

    content: Raw = NOTHING
    structuredContent: Raw = NOTHING
    resultType: Raw = NOTHING
    meta: Raw = NOTHING
    ttlMs: Raw = NOTHING
    cacheScope: Raw = NOTHING


_decode_shape = msgspec.json.Decoder(_Shape).decode


async def perform(handle: Callable[[Call], Awaitable[Outcome]], run: Run, events: EventSink | None, us: bytes) -> Reply:
    """Make the call and return its answer. Raises nothing but cancellation.

    Args:
        handle: the fabric's.
        run: what to call.
        events: where its progress goes.
        us: our `serverInfo` as JSON text.

    """
    try:
        outcome = await handle(run.call(events))
        return answer(outcome, run, us)
    except CallError as exc:
        return failure(exc, run, us)
    except Exception:
        log.exception("a call failed inside method=%s name=%s", run.method, run.name)
        return Reply(encode_error(run.id, INTERNAL_ERROR, "internal error", _executed("unknown")))


def answer(outcome: Outcome, run: Run, us: bytes) -> Reply:
    """The answer to `run`.

    Raises:
        BadReply: the outcome is none that this client may get.

    """
    match outcome:
        case Complete(result):
            return Reply(encode_result(run.id, shape_result(run.era, result, us)))
        case InputRequired(result):
            if run.era.modern and bytes(run.capabilities) != b"{}":
                return Reply(encode_result(run.id, _signed(result, us, INPUT_REQUIRED)))
            return _tool_error(run, "the tool asks for input, which this client cannot give here", "unknown", us)
        case Task():
            raise BadReply("the server made a background task of it, which nobody asked for")
        case Error(code, message, data):
            return _error(run, code, message, data, us)


def failure(error: CallError, run: Run, us: bytes) -> Reply:
    """The answer to a call that ended without a result.

    What a model can act on is a result with `isError` (MCP 2026-07-28, tools, error handling).
    """
    match error:
        case CallFailed():
            return _error(run, error.code, error.message, error.data, us)
        case ToolNotFound():
            return Reply(encode_error(run.id, INVALID_PARAMS, str(error), _executed(error.executed)))
        case BadReply():
            text = f"the server's answer is not valid: {error}"
            return Reply(encode_error(run.id, INTERNAL_ERROR, text, _executed(error.executed)))
        case _:
            return _tool_error(run, str(error), error.executed, us)


def shape_result(era: Era, result: Raw, us: bytes) -> bytes:
    """A tool's result for a client of `era`.

    Raises:
        BadReply: it is no tool result.

    """
    try:
        shape = _decode_shape(result)
    except msgspec.DecodeError as exc:
        raise BadReply(f"not a tool's result: {exc}") from exc
    structured, content = shape.structuredContent, shape.content
    text = bytes(result)
    plain = not (shape.resultType or shape.meta or shape.ttlMs or shape.cacheScope) and bool(content)
    if era.modern:
        if plain:
            return b'{"resultType":"complete","_meta":{"%b":%b},%b' % (_SERVER_INFO, us, text[1:])
    else:
        if structured and not is_object(structured):
            structured, plain = NOTHING, False
        if content:
            content = content_for(era, content)
            plain = plain and content is shape.content
        if plain:
            return text
    if not content:
        if not shape.structuredContent:
            raise BadReply("a tool's result without content")
        content = Raw(b'[{"type":"text","text":%b}]' % encode(bytes(shape.structuredContent).decode()))
    rest = {name: value for name, value in members(result).items() if name not in _REPLACED}
    if structured:
        rest["structuredContent"] = structured
    head: dict[str, Raw | bytes] = {"resultType": b'"complete"'} if era.modern else {}
    if meta := _meta(shape.meta, us if era.modern else b""):
        head["_meta"] = meta
    return object_of({**head, "content": content, **rest})


def _signed(result: Raw, us: bytes, kind: str) -> bytes:
    parts: dict[str, Raw | bytes] = {**members(result)}
    meta = parts.pop("_meta", NOTHING)
    return object_of({**parts, "resultType": encode(kind), "_meta": _meta(Raw(bytes(meta)), us)})


def _meta(received: Raw, us: bytes) -> bytes:
    """`_meta` of a result: what the server said, ours instead of what belongs to its hop; empty if nothing."""
    parts: dict[str, Raw | bytes] = {}
    if received and is_object(received):
        parts.update((key, value) for key, value in members(received).items() if key not in HOP_LOCAL_META)
    if us:
        parts[META_SERVER_INFO] = us
    return object_of(parts) if parts else b""


def _error(run: Run, code: int, message: str, data: bytes, us: bytes) -> Reply:
    era = run.era
    if code in HOP_LOCAL_CODES:
        return _refused(run, code, message)
    if code == MISSING_CAPABILITY:
        if not era.modern:
            return _tool_error(run, f"{message} (the tool needs a client that can answer questions)", "no", us)
        if _lacks(run.capabilities, data):
            return Reply(encode_error(run.id, code, message, data), BAD_REQUEST)
        return _refused(run, code, message)
    if code == URL_ELICITATION_REQUIRED and era.revision != "2025-11-25":
        return _tool_error(run, message, "no", us)
    if code == RESOURCE_NOT_FOUND and era.modern:
        code = INVALID_PARAMS
    return Reply(encode_error(run.id, code, message, data))


def _refused(run: Run, code: int, message: str) -> Reply:
    """The answer for an error that speaks of our connection to the server, not of the client's."""
    text = f"the server behind this tool refused: {message} ({code})"
    return Reply(encode_error(run.id, INTERNAL_ERROR, text, _executed("unknown")))


def _lacks(declared: bytes, data: bytes) -> bool:
    """Whether the client did not declare all of what an error says is required."""
    try:
        required = parse(data)["requiredCapabilities"]
        return not set(required) <= set(parse(declared))
    except (msgspec.DecodeError, KeyError, TypeError):
        return False


def _executed(executed: Executed) -> bytes:
    """The `data` of an error that is ours, not the server's."""
    return object_of({EXECUTED: encode(executed)})


def _tool_error(run: Run, text: str, executed: Executed, us: bytes) -> Reply:
    meta: dict[str, Raw | bytes] = {EXECUTED: encode(executed)}
    kind = b""
    if run.era.modern:
        meta[META_SERVER_INFO] = us
        kind = b'"resultType":"complete",'
    block = b'{"type":"text","text":%b}' % encode(text)
    result = b'{%b"content":[%b],"isError":true,"_meta":%b}' % (kind, block, object_of(meta))
    return Reply(encode_result(run.id, result))


class _Step(msgspec.Struct, gc=False):
    progress: int | float


_decode_step = msgspec.json.Decoder(_Step).decode
_SERVER_INFO: Final = META_SERVER_INFO.encode()


@attrs.define(eq=False)
class Progress:
    """Hands one call's progress to its client, under the client's own token.

    Invariants: the numbers rise strictly, and none comes after `over` is set (MCP 2026-07-28, progress);
    never blocks, never raises.
    """

    token: bytes
    emit: Callable[[bytes], None]
    counters: Counters
    over: bool = False
    _last: float | None = None

    def __call__(self, method: str, params: Raw, /) -> None:
        """Take one notification of the call."""
        if method != "notifications/progress":
            return  # log messages: not served yet, so never asked for
        try:
            value = _decode_step(params).progress
            parts: dict[str, Raw | bytes] = {**members(params)}
        except (msgspec.DecodeError, Malformed):
            self.counters.add("gateway.progress_bad")
            return
        if self.over or (self._last is not None and value <= self._last):
            self.counters.add("gateway.progress_late" if self.over else "gateway.progress_falling")
            return
        self._last = value
        parts.pop("_meta", None)
        parts[PROGRESS_TOKEN] = self.token
        self.emit(encode_notification("notifications/progress", object_of(parts)))
