"""Questions of servers in the middle of a call: which may be put to whom, and which answers make sense. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw

from cord_trio.errors import Malformed
from cord_trio.protocol.eras import ERAS, LATEST_LEGACY
from cord_trio.protocol.jsonrpc import encode, members, object_of, parse
from cord_trio.protocol.mcp import TASKS_EXTENSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.protocol.jsonrpc import Json

ELICIT: Final = "elicitation/create"
SAMPLE: Final = "sampling/createMessage"
ROOTS: Final = "roots/list"

CANCELLED: Final = b'{"action":"cancel"}'
"""The answer to an elicitation that reaches nobody."""

NOBODY: Final = b"{}"
"""Capabilities of a client that can be asked nothing."""

ANYTHING: Final = b'{"elicitation":{"form":{},"url":{}},"roots":{},"sampling":{"context":{},"tools":{}}}'
"""Capabilities of a client that can be asked all that there is to ask."""

_ASKS: Final[Mapping[str, str]] = {"elicitation": ELICIT, "sampling": SAMPLE, "roots": ROOTS}
_HOP_LOCAL: Final = frozenset({"_meta", "task", "elicitationId"})
_sorted = msgspec.json.Encoder(order="deterministic").encode


def askable(capabilities: bytes, revision: str) -> bytes:
    """What a legacy server of `revision` is told that it can ask a caller with `capabilities`.

    One text for all that mean the same, so that it can be a key; `NOBODY` if nothing can be asked.
    """
    try:
        value = parse(capabilities)
    except msgspec.DecodeError:
        return NOBODY
    if not isinstance(value, dict):
        return NOBODY
    era = ERAS.get(revision, ERAS[LATEST_LEGACY])
    found: dict[str, Json] = {}
    for name, method in _ASKS.items():
        settings = value.get(name)
        if isinstance(settings, dict) and method in era.asks:
            found[name] = _known(name, settings)
    if not found:
        return NOBODY
    extensions = value.get("extensions")
    if isinstance(extensions, dict):
        # Hosts of Apps declare themselves so in legacy revisions too; background tasks are none of them.
        kept = {name: each for name, each in extensions.items() if name != TASKS_EXTENSION}
        if kept:
            found["extensions"] = kept
    return _sorted(found)


def may_ask(declared: Mapping[str, Json], method: str, params: Raw) -> bool:
    """Whether a server to which `declared` was said may ask this."""
    if method == ROOTS:
        return "roots" in declared
    if method == SAMPLE:
        return "sampling" in declared
    if method != ELICIT or "elicitation" not in declared:
        return False
    mode = "url" if _plain(params).get("mode") == "url" else "form"
    return mode in declared["elicitation"]


def inner(method: str, params: Raw) -> bytes:
    """The question as it stands in `inputRequests`: without what belongs to the connection to the server."""
    try:
        parts = {name: value for name, value in members(params).items() if name not in _HOP_LOCAL}
    except Malformed:
        parts = {}
    if method == ROOTS and not parts:
        return b'{"method":"roots/list"}'
    return object_of({"method": encode(method), "params": object_of(parts)})


def answer_fault(method: str, answer: Raw) -> str | None:
    """What is wrong with an `answer`; None if nothing is. Whether a form is filled in well, its server judges."""
    value = _plain(answer)
    if method == ROOTS:
        return None if isinstance(value.get("roots"), list) else "roots is not a list"
    if method == SAMPLE:
        whole = isinstance(value.get("role"), str) and isinstance(value.get("model"), str)
        return None if whole and isinstance(value.get("content"), dict | list) else "role, content or model is missing"
    if value.get("action") not in ("accept", "decline", "cancel"):
        return "action is none of accept, decline and cancel"
    return None if isinstance(value.get("content", {}), dict | None) else "content is not an object"


def form_fault(params: Raw, answer: Raw) -> str | None:
    """What in an accepted form does not fit the question's schema; None if nothing is so, or it is no form.

    Forms are of texts, numbers, booleans and choices (MCP 2026-07-28, elicitation). Whatever else a schema says is not
    looked at, and one that makes no sense wants nothing.
    """
    value = _plain(answer)
    if value.get("action") != "accept":
        return None
    try:
        schema = _plain(params)["requestedSchema"]
        content: Mapping[str, Json] = value.get("content") or {}
        for name in schema.get("required", ()):
            if name not in content:
                return f"{name!r} is missing"
        for name, field in schema.get("properties", {}).items():
            if name in content and not _fits(field, content[name]):
                return f"{name!r} is not as its field wants it"
    except (AttributeError, KeyError, TypeError):
        pass
    return None


def _fits(field: Mapping[str, Json], value: Json) -> bool:
    choices = field.get("enum") or [each.get("const") for each in field.get("oneOf") or field.get("anyOf") or ()]
    if choices and value not in choices:
        return False
    match field.get("type"):
        case "string":
            return isinstance(value, str) and _within(field, "minLength", len(value), "maxLength")
        case "boolean":
            return isinstance(value, bool)
        case "number" | "integer" as kind:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and _within(field, "minimum", value, "maximum") and (kind == "number" or value % 1 == 0)
        case "array":
            many = isinstance(value, list) and _within(field, "minItems", len(value), "maxItems")
            return many and all(_fits(field.get("items") or {}, each) for each in value)
    return True


def _within(field: Mapping[str, Json], least: str, value: float, most: str) -> bool:
    return bool(field.get(least, value) <= value <= field.get(most, value))


def progress_token(params: Raw) -> int | str | None:
    """The token by which the server of a question wants to hear that it is being answered."""
    meta = _plain(params).get("_meta")
    token = meta.get("progressToken") if isinstance(meta, dict) else None
    return token if isinstance(token, int | str) and not isinstance(token, bool) else None


def _known(name: str, settings: Mapping[str, Json]) -> dict[str, Json]:
    if name == "elicitation":
        # `{}` alone means forms (MCP 2025-11-25, elicitation).
        return {mode: {} for mode in ("form", "url") if mode in settings} or {"form": {}}
    if name == "sampling":
        return {part: {} for part in ("context", "tools") if part in settings}
    return {}


def _plain(raw: Raw) -> Mapping[str, Json]:
    try:
        value = parse(raw) if bytes(raw) else {}
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}
