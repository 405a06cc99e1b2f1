"""Variables in configured text: `${VAR}`, `${VAR:-default}`, `${env:VAR}`, `${input:id}`, `~`, `$${`.

A variable's value is taken as it is, never expanded again; what cannot be expanded is a fault, never left
in place, so that no child and no server is sent a literal `${TOKEN}` as its credential.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

UNSET = "is not set"
"""How it is told that a variable is not."""

MAX_NESTING = 8
"""Variables whose default holds a variable, and so on: how deep."""

_OPENING = re.compile(r"\$?\$\{")
_BRACE = re.compile(r"\$\{|\}")
_VARIABLE = re.compile(r"(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
_INPUT = re.compile(r"input:([^:${}]+)(?::-(.*))?", re.DOTALL)
_SHOWN = re.compile(r"[A-Za-z0-9_.:/ -]{1,60}")


def expand(text: str, environ: Mapping[str, str], *, home: bool = False) -> tuple[str, tuple[tuple[str, str], ...]]:
    """`text` with its variables replaced, and a (what is wrong, what to do) for each that could not be.

    Args:
        text: as the user wrote it.
        environ: where variables are looked up.
        home: whether a leading `~` is the home folder.

    """
    faults: list[tuple[str, str]] = []
    start = ""
    if home and (text == "~" or text.startswith("~/")):
        start, text = _look_up("HOME", None, environ, faults, 0), text[1:]
    return start + _replace(text, environ, faults, 0), tuple(faults)


def escape(text: str) -> str:
    """`text` written so that `expand` gives it back (but for a leading `~`)."""
    return text.replace("${", "$${")


def input_variable(id: str) -> str:
    """The environment variable that answers `${input:id}`."""
    return "CORD_INPUT_" + re.sub(r"[^A-Za-z0-9]", "_", id).upper()


def _replace(text: str, environ: Mapping[str, str], faults: list[tuple[str, str]], depth: int) -> str:
    parts: list[str] = []
    at = 0
    while opening := _OPENING.search(text, at):
        parts.append(text[at : opening.start()])
        at = opening.end()
        if opening[0] == "$${":
            parts.append("${")
            continue
        end = _closing(text, at)
        if end is None:
            faults.append(("holds `${` without its `}`", "close it, or write `$${` for a plain `${`"))
            return ""
        parts.append(_value(text[at:end], environ, faults, depth))
        at = end + 1
    parts.append(text[at:])
    return "".join(parts)


def _closing(text: str, at: int) -> int | None:
    depth = 1
    for brace in _BRACE.finditer(text, at):
        depth += -1 if brace[0] == "}" else 1
        if not depth:
            return brace.start()
    return None


def _value(inner: str, environ: Mapping[str, str], faults: list[tuple[str, str]], depth: int) -> str:
    if asked := _INPUT.fullmatch(inner):
        name = input_variable(asked[1])
        if not environ.get(name) and asked[2] is None:
            faults.append((f"asks for input {asked[1]!r}, which nobody is here to give", f"set the variable {name}"))
            return ""
        return _look_up(name, asked[2], environ, faults, depth)
    if variable := _VARIABLE.fullmatch(inner):
        name = "HOME" if variable[1] == "userHome" and "userHome" not in environ else variable[1]
        return _look_up(name, variable[2], environ, faults, depth)
    shown = f"`${{{inner}}}`" if _SHOWN.fullmatch(inner) else "what stands between `${` and `}`"
    faults.append((f"{shown} is not a variable", "write `${NAME}` or `${NAME:-default}`, or `$${` for a plain `${`"))
    return ""


def _look_up(
    name: str, default: str | None, environ: Mapping[str, str], faults: list[tuple[str, str]], depth: int
) -> str:
    value = environ.get(name)
    if value or (value is not None and default is None):
        return value
    if default is None:
        faults.append((f"the variable {name} {UNSET}", f"set it, or write `${{{name}:-default}}`"))
        return ""
    if depth == MAX_NESTING:
        faults.append(("nests too many defaults", f"nest {MAX_NESTING} at most"))
        return ""
    return _replace(default, environ, faults, depth + 1)
