"""What a client can be asked: as it declared it, as its revision can carry it, and what a question needs. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cord_trio.protocol.jsonrpc import encode, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from msgspec import Raw

    from cord_trio.protocol.eras import Era
    from cord_trio.protocol.jsonrpc import Json

ELICIT: Final = "elicitation/create"
SAMPLE: Final = "sampling/createMessage"
ROOTS: Final = "roots/list"

TASKS: Final = "io.modelcontextprotocol/tasks"
"""The extension for work in the background, which legacy revisions do not have."""

NEEDS_TASKS: Final[Mapping[str, Json]] = {"extensions": {TASKS: {}}}
"""What who asks of a task must declare, in each request."""

NEEDED_DATA: Final = b'{"requiredCapabilities":%b}' % encode(NEEDS_TASKS)
"""The `data` of an error that says so."""

_ASKING: Final = {"elicitation": ELICIT, "sampling": SAMPLE, "roots": ROOTS}


def askable(era: Era, declared: bytes) -> bytes:
    """What a legacy client of `era` can be asked, in the modern form; what its revision does not have is left out."""
    value = _object(declared)
    kept: dict[str, Json] = {}
    for name, settings in value.items():
        if not isinstance(settings, dict) or (name in _ASKING and _ASKING[name] not in era.asks):
            continue
        match name:
            case "elicitation":
                # Before 2025-11-25 there are forms alone, and no word for that.
                kept[name] = settings if era.priming else {}
            case "sampling":
                kept[name] = settings if era.priming else {}
            case "roots":
                kept[name] = {}
            case "extensions":
                kept[name] = {key: each for key, each in settings.items() if key != TASKS}
            case "tasks":
                pass
            case _:
                kept[name] = settings
    return encode(kept)


def lacking(declared: bytes, questions: Iterable[tuple[str, Mapping[str, Json]]]) -> Mapping[str, Json]:
    """What a client would have to declare beyond `declared` to be asked all `questions`; empty if nothing."""
    value = _object(declared)
    missing: dict[str, Json] = {}
    for method, params in questions:
        for name, settings in _needed(method, params).items():
            has = value.get(name)
            if not isinstance(has, dict):
                missing.setdefault(name, {}).update(settings)
                continue
            more: dict[str, Json] = {key: {} for key in settings if not _has(name, has, key)}
            if more:
                missing.setdefault(name, {}).update(more)
    return missing


def lacks(declared: bytes, required: Json) -> bool:
    """Whether a client did not declare all that `required` names, at any depth."""
    return not _covers(_object(declared), required)


def _needed(method: str, params: Mapping[str, Json]) -> Mapping[str, dict[str, Json]]:
    match method:
        case "elicitation/create":
            return {"elicitation": {"url" if params.get("mode") == "url" else "form": {}}}
        case "sampling/createMessage":
            needs: dict[str, Json] = {}
            if params.get("tools") or params.get("toolChoice"):
                needs["tools"] = {}
            return {"sampling": needs}
        case _:
            return {"roots": {}}


def _has(name: str, declared: Mapping[str, Json], key: str) -> bool:
    if name == "elicitation" and key == "form" and not declared:
        return True  # `{}` alone means forms (MCP 2026-07-28, elicitation)
    return key in declared


def _covers(declared: Json, required: Json) -> bool:
    if not isinstance(required, dict):
        return True
    if not isinstance(declared, dict):
        return False
    return all(
        (name in declared and _covers(declared[name], each)) or (name == "form" and not declared)
        for name, each in required.items()
    )


def _object(raw: bytes | Raw) -> dict[str, Json]:
    try:
        value = parse(raw)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}
