"""Questions of servers: read out of an `input_required` result, and put to a client in words of its revision. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import msgspec
from msgspec import Raw

from cord_trio.errors import BadReply, Malformed
from cord_trio.gateway.capabilities import ELICIT, ROOTS, SAMPLE
from cord_trio.gateway.params import decode_string
from cord_trio.protocol.eras import ERAS, LATEST_MODERN
from cord_trio.protocol.jsonrpc import encode, members, object_of, parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cord_trio.protocol.eras import Era
    from cord_trio.protocol.jsonrpc import Json

MAX_QUESTIONS: Final = 32
"""Questions of one round."""

METHODS: Final = frozenset({ELICIT, SAMPLE, ROOTS})


@attrs.frozen
class Question:
    """What a server wants to know: a method that clients answer, and its plain parameters."""

    method: str
    params: Mapping[str, Json]


class CannotAsk(Exception):
    """The client's revision has no words for the question."""


def read_round(result: Raw) -> tuple[Mapping[str, Question], str | None]:
    """The questions of an `input_required` result by their keys, and the state to bring back, if one was given.

    Raises:
        BadReply: it is no such result.

    """
    try:
        parts = members(result)
        asked = parts.get("inputRequests")
        questions = {key: _question(key, raw) for key, raw in members(asked).items()} if asked is not None else {}
        raw_state = parts.get("requestState")
    except (Malformed, msgspec.DecodeError) as exc:
        raise BadReply(f"input_required with questions that make no sense: {exc}") from exc
    state = decode_string(raw_state)
    if state is None and raw_state is not None and bytes(raw_state) != b"null":
        raise BadReply("input_required with a requestState that is no string")
    if not questions and state is None:
        raise BadReply("input_required without questions or state")
    if len(questions) > MAX_QUESTIONS:
        raise BadReply(f"input_required with more than {MAX_QUESTIONS} questions")
    return questions, state


def with_origin(result: Raw, origin: str) -> Raw:
    """An `input_required` result whose forms and pages say which source asks, so that a person can tell.

    The same result if `origin` is empty. What makes no sense stays as it is: whoever reads the round says so.
    """
    if not origin:
        return result
    try:
        parts: dict[str, Raw | bytes] = {**members(result)}
        asked = {key: parse(raw) for key, raw in members(bytes(parts.get("inputRequests", b""))).items()}
        for question in asked.values():
            if question["method"] == ELICIT:
                question["params"]["message"] = f"[{origin}] {question['params']['message']}"
    except (Malformed, msgspec.DecodeError, KeyError, TypeError):
        return result
    return Raw(object_of({**parts, "inputRequests": encode(asked)})) if asked else result


def put(era: Era, question: Question, new_id: str) -> dict[str, Json]:
    """The parameters that ask `question` of a legacy client of `era`.

    Args:
        era: the client's.
        question: the server's.
        new_id: for a URL that a client opens; it is told when that is done with.

    Raises:
        CannotAsk: the revision has no words for it.

    """
    params = dict(question.params)
    match question.method:
        case "elicitation/create":
            if params.get("mode") == "url":
                if not era.priming:
                    raise CannotAsk("open a URL")
                return {**params, "elicitationId": new_id}
            if not era.priming:
                params.pop("mode", None)
                params["requestedSchema"] = _old_form(params.get("requestedSchema"))
            return params
        case "sampling/createMessage":
            if not era.priming:
                params.pop("tools", None)
                params.pop("toolChoice", None)
                params["messages"] = _single_blocks(era, params.get("messages"))
            return params
        case _:
            return params


def _question(key: str, raw: Raw) -> Question:
    value = parse(raw)
    if not isinstance(value, dict) or value.get("method") not in METHODS:
        raise Malformed(-32603, f"{key!r} is no question that clients answer")
    params = value.get("params") or {}
    if not isinstance(params, dict):
        raise Malformed(-32603, f"the parameters of {key!r} are no object")
    return Question(value["method"], params)


def _old_form(schema: Json) -> Json:
    """A form as revision 2025-06-18 has it: single choices by name, defaults for booleans alone."""
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        return schema
    fields = {}
    for name, field in schema["properties"].items():
        fields[name] = _old_field(field) if isinstance(field, dict) else field
    return {**{key: each for key, each in schema.items() if key != "$schema"}, "properties": fields}


def _old_field(field: dict[str, Json]) -> Json:
    if field.get("type") == "array":
        raise CannotAsk("choose several of a list")
    changed = dict(field)
    if field.get("type") != "boolean":
        changed.pop("default", None)
    choices = changed.pop("oneOf", None)
    if isinstance(choices, list):
        changed["enum"] = [each.get("const") for each in choices if isinstance(each, dict)]
        changed["enumNames"] = [each.get("title", each.get("const")) for each in choices if isinstance(each, dict)]
    return changed


def _single_blocks(era: Era, messages: Json) -> Json:
    """Messages of one block each, as revisions before 2025-11-25 have them."""
    if not isinstance(messages, list):
        return messages
    plain: list[Json] = []
    for message in messages:
        if not isinstance(message, dict):
            plain.append(message)
            continue
        content = message.get("content")
        blocks: Sequence[Json] = content if isinstance(content, list) else [content]
        plain += [{**message, "content": _old_block(era, block)} for block in blocks]
    return plain


def _old_block(era: Era, block: Json) -> Json:
    if not isinstance(block, dict):
        return block
    kind = block.get("type")
    if kind in ("tool_use", "tool_result"):
        raise CannotAsk("sample with tools")
    if kind in ERAS[LATEST_MODERN].blocks - era.blocks:
        return {"type": "text", "text": f"[{kind}, which this client's protocol revision cannot carry]"}
    return block
