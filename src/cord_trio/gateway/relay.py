"""How a call ended, as an answer in the client's era."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw

from cord_trio.call import Complete, Error, InputRequired, Task
from cord_trio.errors import BadReply, CallError, CallFailed, InputNeeded, ToolNotFound
from cord_trio.gateway.capabilities import lacking, lacks
from cord_trio.gateway.params import is_object
from cord_trio.gateway.questions import read_round
from cord_trio.gateway.shapes import meta_of, shape
from cord_trio.gateway.steps import BAD_REQUEST, STATE, Reply
from cord_trio.protocol.eras import (
    HEADER_MISMATCH,
    INPUT_METHODS,
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
    encode_result,
    members,
    object_of,
    parse,
)
from cord_trio.protocol.mcp import META_SERVER_INFO

if TYPE_CHECKING:
    from cord_trio.call import Outcome
    from cord_trio.errors import Executed
    from cord_trio.gateway.steps import Run

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


def answer(outcome: Outcome, run: Run, us: bytes, *, fresh: bool = True) -> Reply:
    """The answer to `run`. What needs questions to the client was dealt with before.

    Args:
        outcome: how the call ended.
        run: what was asked.
        us: our `serverInfo` as JSON text.
        fresh: whether the result may be cached at all.

    Raises:
        BadReply: the outcome is none that this client may get.

    """
    match outcome:
        case Complete(result):
            return Reply(encode_result(run.id, shape(run.method, run.era, result, us, fresh=fresh)))
        case InputRequired():
            raise InputNeeded(run.name, ())
        case Task():
            raise BadReply("the server made a background task of it, which nobody asked for")
        case Error(code, message, data):
            return _error(run, code, message, data, us)


def question(run: Run, outcome: InputRequired, state: str | None, us: bytes) -> Reply:
    """The questions of a server, for a modern client: with `state` in place of the server's own.

    Raises:
        BadReply: the outcome makes no sense.
        CallFailed: the request did not declare what the questions need.

    """
    questions, _ = read_round(outcome.result)
    if run.method not in INPUT_METHODS:
        raise BadReply(f"{run.method} was answered with questions")
    missing = lacking(run.capabilities, ((each.method, each.params) for each in questions.values()))
    if missing:
        text = f"{run.name} asks for what this request did not declare: {', '.join(missing)}"
        data = b'{"requiredCapabilities":%b}' % encode(missing)
        raise CallFailed(MISSING_CAPABILITY, text, data)
    parts: dict[str, Raw | bytes] = {**members(outcome.result)}
    parts.pop(STATE, None)
    meta = meta_of(Raw(bytes(parts.pop("_meta", NOTHING))), us)
    for name in ("ttlMs", "cacheScope"):
        parts.pop(name, None)
    if state is not None:
        parts[STATE] = encode(state)
    return Reply(encode_result(run.id, object_of({**parts, "resultType": b'"input_required"', "_meta": meta})))


def failure(error: CallError, run: Run, us: bytes) -> Reply:
    """The answer to a call that ended without a result.

    What a model can act on is a result with `isError` (MCP 2026-07-28, tools, error handling).
    """
    match error:
        case CallFailed():
            return _error(run, error.code, error.message, error.data, us)
        case ToolNotFound():
            return Reply(encode_error(run.id, INVALID_PARAMS, str(error), executed_data(error.executed)))
        case BadReply():
            text = f"the server's answer is not valid: {error}"
            return Reply(encode_error(run.id, INTERNAL_ERROR, text, executed_data(error.executed)))
        case _:
            return _unanswered(run, str(error), error.executed, us)


def _error(run: Run, code: int, message: str, data: bytes, us: bytes) -> Reply:
    era = run.era
    if code in HOP_LOCAL_CODES:
        return _hop_refused(run, code, message)
    if code == MISSING_CAPABILITY:
        if not era.modern:
            return _unanswered(run, f"{message} (it needs a client that can answer questions)", "no", us)
        if _refused(run.capabilities, data):
            return Reply(encode_error(run.id, code, message, data), BAD_REQUEST)
        return _hop_refused(run, code, message)
    if code == URL_ELICITATION_REQUIRED and not _opens_urls(run):
        return _unanswered(run, _with_urls(message, data), "no", us)
    if run.method == "resources/read" and _not_found(code, message, data):
        code = INVALID_PARAMS if era.modern else RESOURCE_NOT_FOUND
        data = b'{"uri":%b}' % encode(run.name)
    elif code == RESOURCE_NOT_FOUND and era.modern:
        code = INVALID_PARAMS
    return Reply(encode_error(run.id, code, message, data))


def _hop_refused(run: Run, code: int, message: str) -> Reply:
    """The answer for an error that speaks of our connection to the server, not of the client's."""
    text = f"the server behind this refused: {message} ({code})"
    return Reply(encode_error(run.id, INTERNAL_ERROR, text, executed_data("unknown")))


def _refused(declared: bytes, data: bytes) -> bool:
    """Whether the client did not declare all of what an error says is required."""
    try:
        return lacks(declared, parse(data)["requiredCapabilities"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return False


def executed_data(executed: Executed) -> bytes:
    """The `data` of an error that is ours, not the server's."""
    return object_of({EXECUTED: encode(executed)})


def _not_found(code: int, message: str, data: bytes) -> bool:
    """Whether an error says that a resource does not exist, in whatever way servers do."""
    if code == INVALID_PARAMS:
        return bool(data) and is_object(data) and "uri" in members(data)
    # Servers on the official Python SDK 1.x answer so, with a code that is none.
    return code == RESOURCE_NOT_FOUND or (code == 0 and message.startswith("Unknown resource"))


def _opens_urls(run: Run) -> bool:
    return run.era.revision == "2025-11-25" and not lacks(run.capabilities, {"elicitation": {"url": {}}})


def _with_urls(message: str, data: bytes) -> str:
    """What a person has to do, for a model to say."""
    try:
        pages = [f"{each.get('message', 'open')}: {each['url']}" for each in parse(data)["elicitations"]]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        pages = []
    return "\n".join([message, *pages])


def _unanswered(run: Run, text: str, executed: Executed, us: bytes) -> Reply:
    """That there is no result, for the model if it is a tool's, else as an error."""
    meta: dict[str, Raw | bytes] = {EXECUTED: encode(executed)}
    if run.method != "tools/call":
        return Reply(encode_error(run.id, INTERNAL_ERROR, text, object_of(meta)))
    kind = b""
    if run.era.modern:
        meta[META_SERVER_INFO] = us
        kind = b'"resultType":"complete",'
    block = b'{"type":"text","text":%b}' % encode(text)
    result = b'{%b"content":[%b],"isError":true,"_meta":%b}' % (kind, block, object_of(meta))
    return Reply(encode_result(run.id, result))
