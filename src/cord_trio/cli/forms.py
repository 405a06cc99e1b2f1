"""Forms that are filled in line by line: what each field asks for, and what a line says. Pure.

The fields are those of MCP's elicitation: texts, numbers, booleans and choices (MCP 2026-07-28, elicitation).
Whoever asked checks what was filled in; here only what cannot be meant is refused.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.protocol.jsonrpc import Json

    Schema: TypeAlias = Mapping[str, Json]

YES: Final = ("y", "yes", "true")
NO: Final = ("n", "no", "false")


class Unclear(Exception):
    """A line that says nothing of the kind. Its text says what would."""


def fields(schema: Json) -> list[tuple[str, Schema, bool]]:
    """Name, schema and whether it must be filled in, of each field of a `requestedSchema`."""
    form = _object(schema)
    required = _list(form.get("required"))
    return [(name, _object(field), name in required) for name, field in _object(form.get("properties")).items()]


def describe(name: str, field: Schema, *, required: bool) -> str:
    """What is asked for, in one or more lines: the choices each in one, with its number."""
    notes = [str(field[key]) for key in ("description",) if field.get(key)]
    if field.get("type") == "boolean":
        notes.append("y or n")
    elif field.get("type") == "array":
        notes.append("numbers with commas between them")
    elif field.get("type") in ("integer", "number"):
        notes.append(f"{field['type']}{_range(field)}")
    if "default" in field:
        notes.append(f"else {_shown(field)}")
    elif not required:
        notes.append("may be left empty")
    head = str(field.get("title") or name)
    lines = [f"{head} ({'; '.join(notes)})" if notes else head]
    lines += [f"  {number} {label}" for number, (_, label) in enumerate(_choices(field), 1)]
    return "\n".join(lines)


def read(field: Schema, line: str) -> Json:
    """What `line` says for a field. Raises `Unclear`."""
    choices = _choices(field)
    if field.get("type") == "array":
        chosen = [_choose(choices, part.strip()) for part in line.split(",") if part.strip()]
        return _within(field, chosen, len(chosen), "Items", "choices")
    if choices:
        return _choose(choices, line)
    match field.get("type"):
        case "boolean":
            if line.lower() not in (*YES, *NO):
                raise Unclear("y or n")
            return line.lower() in YES
        case "integer" | "number" as kind:
            return _number(field, line, whole=kind == "integer")
    return _within(field, line, len(line), "Length", "characters")


def _number(field: Schema, line: str, *, whole: bool) -> Json:
    try:
        value = int(line) if whole else float(line)
    except ValueError:
        raise Unclear("a whole number" if whole else "a number") from None
    low, high = _bound(field, "minimum", -math.inf), _bound(field, "maximum", math.inf)
    if not low <= value <= high or not math.isfinite(value):
        raise Unclear(f"a number{_range(field)}")
    return value


def _within(field: Schema, value: Json, size: int, what: str, unit: str) -> Json:
    least, most = _bound(field, f"min{what}", 0), _bound(field, f"max{what}", math.inf)
    if not least <= size <= most:
        raise Unclear(f"{least:g} {unit} or more" if size < least else f"{most:g} {unit} at most")
    return value


def _choose(choices: list[tuple[str, str]], text: str) -> str:
    for value, label in choices:
        if text in (value, label):
            return value
    if text.isascii() and text.isdigit() and 1 <= int(text) <= len(choices):
        return choices[int(text) - 1][0]
    raise Unclear(f"a number from 1 to {len(choices)}")


def _choices(field: Schema) -> list[tuple[str, str]]:
    """Each value that may be chosen, and how it is shown; none where anything may be written."""
    of = _object(field.get("items")) if field.get("type") == "array" else field
    values = [str(value) for value in _list(of.get("enum"))]
    if values:
        names = [str(name) for name in _list(of.get("enumNames"))]
        return list(zip(values, names if len(names) == len(values) else values, strict=True))
    titled = [_object(each) for each in (_list(of.get("oneOf")) or _list(of.get("anyOf")))]
    return [(str(each["const"]), str(each.get("title") or each["const"])) for each in titled if "const" in each]


def _shown(field: Schema) -> str:
    default = field["default"]
    if isinstance(default, bool):
        return "y" if default else "n"
    labels = dict(_choices(field))
    shown = [labels.get(str(each), str(each)) for each in (default if isinstance(default, list) else [default])]
    return ", ".join(shown)


def _range(field: Schema) -> str:
    low, high = _bound(field, "minimum", -math.inf), _bound(field, "maximum", math.inf)
    return (f" from {low:g}" if low > -math.inf else "") + (f" up to {high:g}" if high < math.inf else "")


def _bound(field: Schema, name: str, unless: float) -> float:
    value = field.get(name)
    return value if isinstance(value, int | float) else unless


def _object(value: Json) -> Schema:
    return value if isinstance(value, dict) else {}


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []
