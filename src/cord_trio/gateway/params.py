"""Small looks at unparsed JSON, and the check of headers that repeat arguments."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from cord_trio.errors import Malformed
from cord_trio.protocol.headers import decode_header_value, read_param_headers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msgspec import Raw

    from cord_trio.gateway.ports import Lines
    from cord_trio.protocol.headers import ParamHeader

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
            elif wanted is None or not _same(decode_header_value(values[0]), decode_header_value(wanted)):
                return f"header {header.name} is not what the arguments say"
    except Malformed as exc:
        return str(exc)
    return None


def _same(said: str, wanted: str) -> bool:
    """Equal text, or equal integers (`42.0` is `42`)."""
    if said == wanted:
        return True
    return bool(_NUMBER.fullmatch(said) and _NUMBER.fullmatch(wanted)) and int(said.split(".")[0]) == int(
        wanted.split(".")[0]
    )
