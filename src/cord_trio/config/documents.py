"""Text of a configuration file → its document. JSON may hold comments and trailing commas.

Whatever is wrong with the text is one problem, with line and column where there is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from cord_trio.config.table import Member, Members, kind
from cord_trio.errors import ConfigError, Problem

if TYPE_CHECKING:
    from typing import NoReturn

MAX_FILE = 1024 * 1024
"""Bytes of a configuration file."""

# An unfinished string or comment reaches to the end, so that no quote is looked at twice.
_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*"?|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
_TRAILING = re.compile(r'"(?:[^"\\]|\\.)*"?|,(?=\s*[}\]])', re.DOTALL)
_VISIBLE = re.compile(r"[^\n\r\t]")
_TOML_PLACE = re.compile(r"^(.*) \((?:at line (\d+), column (\d+)|at end of document)\)$", re.DOTALL)


def decode_text(data: bytes, *, file: str) -> str:
    """The text of a file's bytes.

    Raises:
        ConfigError: too many bytes, none, or not UTF-8.

    """
    if len(data) > MAX_FILE:
        _refuse(file, "", f"is larger than {MAX_FILE:,} bytes", "give a configuration file")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        _refuse(file, "", "is UTF-16", "save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        _refuse(file, f"line {line}", f"is not UTF-8 (byte 0x{data[exc.start]:02X})", "save it as UTF-8", exc)


def decode_document(text: str, *, format: Literal["toml", "json"], file: str) -> Mapping[str, Member]:
    """The document that `text` is.

    Raises:
        ConfigError: it is none; says where.

    """
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_FILE:
        _refuse(file, "", f"is larger than {MAX_FILE:,} characters", "give a configuration file")
    document = _decode_json(text, file) if format == "json" else _decode_toml(text, file)
    if not isinstance(document, Mapping):
        _refuse(file, "", f"is {kind(document)}, not a table", 'write { "mcpServers": { … } }')
    return document


def guess_format(file: str, text: str) -> Literal["toml", "json"]:
    """What `text` is written in: by the file's suffix, else by how it begins."""
    suffix = file.lower().rpartition(".")[2]
    if suffix == "toml":
        return "toml"
    if suffix in ("json", "jsonc", "json5"):
        return "json"
    return "json" if strip_comments(text).lstrip().startswith("{") else "toml"


def strip_comments(text: str) -> str:
    """JSON text without comments and trailing commas, everything else in its place."""
    return _TRAILING.sub(_blank_comma, _COMMENT.sub(_blank_comment, text))


def _blank_comment(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith('"') else _VISIBLE.sub(" ", match[0])


def _blank_comma(match: re.Match[str]) -> str:
    return " " if match[0] == "," else match[0]


def _decode_json(text: str, file: str) -> Member:
    bare = strip_comments(text)
    if not bare.strip():
        _refuse(file, "", "is empty", 'write { "mcpServers": { … } }')
    try:
        document: Member = json.loads(bare, object_pairs_hook=Members, parse_constant=_no_constant)
    except json.JSONDecodeError as exc:
        _refuse(file, f"line {exc.lineno}, column {exc.colno}", f"not JSON: {exc.msg}", "correct it there", exc)
    except RecursionError as exc:
        _refuse(file, "", "is nested too deeply", "give a configuration file", exc)
    except ValueError as exc:
        _refuse(file, "", "holds a number that JSON does not have, or too long a one", "correct it", exc)
    return document


def _decode_toml(text: str, file: str) -> Member:
    if not text.strip():
        _refuse(file, "", "is empty", 'write [sources.NAME] and command = "…" or url = "…"')
    import tomllib  # here, for who gives no TOML

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        place = _TOML_PLACE.match(str(exc))
        if place and place[2]:
            where = f"line {place[2]}, column {place[3]}"
        else:
            where = f"line {text.count(chr(10)) + 1}" if place else ""
        _refuse(file, where, f"not TOML: {place[1] if place else exc}", "correct it there", exc)
    except RecursionError as exc:
        _refuse(file, "", "is nested too deeply", "give a configuration file", exc)
    except ValueError as exc:
        _refuse(file, "", "not TOML: holds a number or a date that does not exist", "correct it", exc)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _refuse(file: str, path: str, what: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    raise ConfigError([Problem(file, path, what, remedy)]) from cause
