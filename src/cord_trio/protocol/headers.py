"""Values in HTTP headers that repeat what the body says: `Mcp-Name` and `Mcp-Param-*`."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final

import msgspec

from cord_trio.errors import Malformed
from cord_trio.protocol.eras import HEADER_MISMATCH
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, parse

if TYPE_CHECKING:
    from msgspec import Raw

    from cord_trio.protocol.jsonrpc import Json

ANNOTATION: Final = "x-mcp-header"
"""The schema keyword that asks for a header."""

MAX_SAFE_INTEGER: Final = 2**53 - 1
"""The largest integer that every JSON reader holds exactly."""

_PLAIN = re.compile(r"[ -~]*")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_START: Final = "=?base64?"
_END: Final = "?="
_DATA_KEYWORDS: Final = frozenset({"default", "const", "enum", "examples"})
_SCHEMA_MAPS: Final = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})


class ParamHeader(msgspec.Struct, frozen=True, gc=False):
    """One argument that is repeated in a header: the header's name, and the argument's path from the root."""

    name: str
    path: tuple[str, ...]


def encode_header_value(text: str) -> str:
    """`text` so that it survives as a header value (MCP 2026-07-28, transports, value encoding)."""
    wrapped = text.startswith(_START) and text.endswith(_END)
    # The empty string is wrapped too: proxies drop empty headers.
    if text and not wrapped and text == text.strip() and _PLAIN.fullmatch(text):
        return text
    return f"{_START}{base64.b64encode(text.encode()).decode()}{_END}"


def decode_header_value(value: str) -> str:
    """The text that `encode_header_value` made `value` from. The markers are case-sensitive.

    Raises:
        Malformed: characters that no header value may have, or base64 that is not canonical or not UTF-8.

    """
    value = value.strip(" \t")
    if not _PLAIN.fullmatch(value):
        raise Malformed(HEADER_MISMATCH, "a header value has characters outside printable ASCII")
    if not (value.startswith(_START) and value.endswith(_END)) or len(value) < len(_START) + len(_END):
        return value
    coded = value[len(_START) : -len(_END)].encode()
    try:
        octets = base64.b64decode(coded, validate=True)
        text = octets.decode()
    except (binascii.Error, UnicodeDecodeError) as exc:
        raise Malformed(HEADER_MISMATCH, f"a header value is no base64 of UTF-8 text: {exc}") from exc
    if base64.b64encode(octets) != coded:
        raise Malformed(HEADER_MISMATCH, "a header value is not in canonical base64")
    return text


def find_param_headers(schema: Raw | bytes) -> tuple[ParamHeader, ...]:
    """The headers that a tool's input schema asks for; most ask for none.

    Raises:
        Malformed: an annotation breaks a rule (MCP 2026-07-28, tools, x-mcp-header); says which.

    """
    if ANNOTATION.encode() not in bytes(schema):
        return ()
    found: list[ParamHeader] = []
    names: set[str] = set()
    waiting: list[tuple[Json, tuple[str, ...] | None]] = [(parse(schema), ())]
    while waiting:
        node, path = waiting.pop()
        if not isinstance(node, dict):
            if isinstance(node, list):
                waiting += [(item, None) for item in node]
            continue
        if ANNOTATION in node:
            token = _checked(node, path)
            if token.lower() in names:
                raise Malformed(INVALID_PARAMS, f"{ANNOTATION} {token!r} is used twice")
            names.add(token.lower())
            found.append(ParamHeader(f"Mcp-Param-{token}", path or ()))
        for keyword, value in node.items():
            if keyword in _DATA_KEYWORDS or keyword == ANNOTATION:
                continue
            if keyword in _SCHEMA_MAPS and isinstance(value, dict):
                base = path if keyword == "properties" else None
                waiting += [(sub, None if base is None else (*base, name)) for name, sub in value.items()]
            else:
                waiting.append((value, None))
    return tuple(sorted(found, key=lambda header: header.path))


def check_param_headers(schema: Raw | bytes) -> str | None:
    """Why a tool with this input schema must not be called over HTTP; None if it may."""
    try:
        find_param_headers(schema)
    except Malformed as exc:
        return str(exc)
    return None


def read_param_headers(headers: tuple[ParamHeader, ...], arguments: Raw | bytes) -> tuple[tuple[str, str], ...]:
    """Header names and encoded values for these arguments; absent and null ones have none.

    Raises:
        Malformed: an integer that not every reader holds exactly.

    """
    if not headers:
        return ()
    values = parse(arguments) if bytes(arguments) else {}
    found = []
    for header in headers:
        value: Json = values
        for name in header.path:
            value = value.get(name) if isinstance(value, dict) else None
        text = _text(value, header)
        if text is not None:
            found.append((header.name, encode_header_value(text)))
    return tuple(found)


def _checked(node: dict[str, Json], path: tuple[str, ...] | None) -> str:
    token = node[ANNOTATION]
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise Malformed(INVALID_PARAMS, f"{ANNOTATION} {token!r} is no header name")
    if not path:
        raise Malformed(INVALID_PARAMS, f"{ANNOTATION} {token!r} is not on a property reached through properties alone")
    if node.get("type") not in ("string", "integer", "boolean"):
        raise Malformed(INVALID_PARAMS, f"{ANNOTATION} {token!r} is on a type other than string, integer or boolean")
    return token


def _text(value: Json, header: ParamHeader) -> str | None:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case float() if value.is_integer():
            value = int(value)
        case int():
            pass
        case _:
            return None  # absent, null, or of a wrong type, which the server says better than we
    if abs(value) > MAX_SAFE_INTEGER:
        raise Malformed(INVALID_PARAMS, f"argument {'.'.join(header.path)} is beyond {MAX_SAFE_INTEGER}")
    return str(value)
