"""Small looks at unparsed JSON, and the check of headers that repeat arguments."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from cord_trio.errors import Malformed
from cord_trio.protocol.headers import decode_header_value, read_param_headers
from cord_trio.protocol.jsonrpc import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msgspec import Raw

    from cord_trio.gateway.ports import Lines
    from cord_trio.protocol.headers import ParamHeader
    from cord_trio.protocol.jsonrpc import Json

MAX_TOKEN: Final = 1024
"""Bytes of a progress token; a longer one asks for nothing."""

_INTEGER = re.compile(rb"-?[0-9]{1,40}")
_NUMBER = re.compile(r"-?[0-9]{1,40}(\.0+)?")
_decode_string = msgspec.json.Decoder(str).decode


def is_object(raw: Raw | bytes) -> bool:
    """Whether JSON text is an object."""
    return bytes(raw)[:1] == b"{"


def is_integer(raw: Raw | bytes) -> bool:
    """Whether JSON text is an integer."""
    return _INTEGER.fullmatch(bytes(raw)) is not None


def decode_string(raw: Raw | bytes | None) -> str | None:
    """The string in JSON text; None if it is none."""
    if raw is None or bytes(raw)[:1] != b'"':
        return None
    try:
        return _decode_string(raw)
    except msgspec.DecodeError:
        return None  # half of a surrogate pair: no text


def token_text(raw: Raw | None) -> bytes:
    """A progress token as JSON text, exactly as it came; empty if it is none."""
    if raw is None:
        return b""
    text = bytes(raw)
    return text if len(text) <= MAX_TOKEN and (is_integer(text) or decode_string(text) is not None) else b""


def check_params(declared: Sequence[ParamHeader], arguments: Raw | bytes, lines: Lines) -> str | None:
    """Why the headers that a tool declared are not what its arguments say; None if they are.

    A header without a value in the body is refused too: who routes on it would have been misled
    (MCP 2026-07-28, transports).
    """
    numbers = _numbers(declared, arguments)
    try:
        expected = dict(read_param_headers(tuple(declared), arguments))
        for header in declared:
            values = lines.all(header.name)
            wanted = expected.get(header.name)
            if len(values) > 1:
                return f"header {header.name} occurs more than once"
            if not values:
                if wanted is not None:
                    return f"header {header.name} is missing"
            elif wanted is None or not _same(values[0], wanted, number=header.name in numbers):
                return f"header {header.name} is not what the arguments say"
    except Malformed as exc:
        return str(exc)
    return None


def _same(said: str, wanted: str, *, number: bool) -> bool:
    """Equal text, or equal integers (`42.0` is `42`)."""
    text = decode_header_value(said)
    if number and _NUMBER.fullmatch(text):
        return int(text.split(".")[0]) == int(wanted)
    return text == decode_header_value(wanted)


def _numbers(declared: Sequence[ParamHeader], arguments: Raw | bytes) -> frozenset[str]:
    """The names of those headers whose arguments are numbers."""
    found = set()
    for header in declared:
        value: Json = parse(arguments) if bytes(arguments) else None
        for name in header.path:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.add(header.name)
    return frozenset(found)
