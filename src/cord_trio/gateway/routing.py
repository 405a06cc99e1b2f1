"""The headers that repeat what a request's body says, and the refusals that all readers of messages share. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cord_trio.errors import Malformed
from cord_trio.gateway.params import decode_string
from cord_trio.gateway.steps import BAD_REQUEST, Reply
from cord_trio.protocol import eras
from cord_trio.protocol.eras import HEADER_MISMATCH, NAME_MEMBER
from cord_trio.protocol.headers import decode_header_value
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, encode_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from msgspec import Raw

    from cord_trio.gateway.ports import Lines
    from cord_trio.protocol.jsonrpc import Id

SESSION_HEADER: Final = "Mcp-Session-Id"
VERSION_HEADER: Final = "MCP-Protocol-Version"
METHOD_HEADER: Final = "Mcp-Method"
NAME_HEADER: Final = "Mcp-Name"

_ROUTING: Final = tuple(name.lower().encode() for name in (VERSION_HEADER, METHOD_HEADER, NAME_HEADER))


def says_modern(headers: Lines) -> bool:
    """Whether the version header names a modern revision, served or not."""
    version = headers.get(VERSION_HEADER)
    return version is not None and version[:4].isdecimal() and version >= "2026"


def bad_version(headers: Lines) -> str | None:
    """Why a legacy request's version header cannot be (MCP 2025-11-25, transports); None if it can."""
    version = headers.get(VERSION_HEADER)
    if version is None or version in eras.LEGACY:
        return None
    return f"{VERSION_HEADER} {version[:40]!r} is not served; there are {', '.join(eras.LEGACY)}"


def doubled(id: Id, headers: Lines) -> Reply | None:
    """The refusal of a request with two copies of one routing header; None if there is none."""
    names = [name.lower() for name, _ in headers.raw]
    for name in _ROUTING:
        if names.count(name) > 1:
            return refuse(id, HEADER_MISMATCH, f"header {name.decode()} occurs more than once")
    return None


def unequal(version: str, method: str, params: Mapping[str, Raw], headers: Lines) -> str | None:
    """Which header is not what the body says; None if all are."""
    for header, value in ((VERSION_HEADER, version), (METHOD_HEADER, method)):
        said = headers.get(header)
        if said is None:
            return f"header {header} is missing"
        if said.strip(" \t") != value:
            return f"header {header} is not what the body says"
    member = NAME_MEMBER.get(method)
    if member is None:
        return None
    name, said = decode_string(params.get(member)), headers.get(NAME_HEADER)
    if said is None:
        return None if name is None else f"header {NAME_HEADER} is missing"
    try:
        return None if decode_header_value(said) == name else f"header {NAME_HEADER} is not what the body says"
    except Malformed as exc:
        return f"header {NAME_HEADER}: {exc}"


def refuse(id: Id | None, code: int, text: str, status: int = BAD_REQUEST) -> Reply:
    """An error with a status of its own."""
    return Reply(encode_error(id, code, text), status)


def invalid(id: Id, text: str) -> Reply:
    """The answer to a request whose parameters are wrong, though it is a request."""
    return Reply(encode_error(id, INVALID_PARAMS, text))
