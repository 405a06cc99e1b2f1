"""MCP's values on the wire, in both eras. Everything keeps the members that we do not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw

from cord_trio.errors import Malformed
from cord_trio.protocol.headers import check_param_headers, decode_header_value, encode_header_value
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, INVALID_REQUEST, encode, members, object_of, parse
from cord_trio.protocol.tools import (
    Annotations,
    Content,
    Tool,
    ToolResult,
    ToolsPage,
    cache_hints,
    decode_tools_page,
    exported_name,
    param_headers,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.protocol.jsonrpc import Id, Json

__all__ = [
    "COMPLETE",
    "HOP_LOCAL_META",
    "INPUT_REQUIRED",
    "LEVELS",
    "META_CAPABILITIES",
    "META_CLIENT_INFO",
    "META_LOG_LEVEL",
    "META_SERVER_INFO",
    "META_SUBSCRIPTION_ID",
    "META_VERSION",
    "PROGRESS_TOKEN",
    "TASK",
    "TASKS_EXTENSION",
    "Annotations",
    "Content",
    "Discovered",
    "Initialized",
    "Progress",
    "Tool",
    "ToolResult",
    "ToolsPage",
    "check_param_headers",
    "declared_upstream",
    "decode_discovered",
    "decode_header_value",
    "decode_initialized",
    "decode_progress",
    "decode_tools_page",
    "encode_header_value",
    "envelope_meta",
    "exported_name",
    "param_headers",
    "progress_token",
    "relayed",
    "result_type",
    "supported_versions",
]

META_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
META_CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
META_CLIENT_INFO: Final = "io.modelcontextprotocol/clientInfo"
META_LOG_LEVEL: Final = "io.modelcontextprotocol/logLevel"
META_SERVER_INFO: Final = "io.modelcontextprotocol/serverInfo"
META_SUBSCRIPTION_ID: Final = "io.modelcontextprotocol/subscriptionId"
PROGRESS_TOKEN: Final = "progressToken"

HOP_LOCAL_META: Final = frozenset(
    {
        META_VERSION,
        META_CAPABILITIES,
        META_CLIENT_INFO,
        META_LOG_LEVEL,
        META_SERVER_INFO,
        META_SUBSCRIPTION_ID,
        PROGRESS_TOKEN,
    }
)
"""Members of `_meta` that one hop makes and the next must not see; all others are relayed."""

LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""Severities of log notifications, the least severe first."""

TASKS_EXTENSION: Final = "io.modelcontextprotocol/tasks"
"""The extension by which a server goes on in the background; whoever declares it must understand its results."""

COMPLETE: Final = "complete"
INPUT_REQUIRED: Final = "input_required"
TASK: Final = "task"

COMPLETE_HEAD: Final = b'{"resultType":"complete",'
"""How a complete result begins, as the common servers write it."""

_HOP_LOCAL_RESULT: Final = frozenset({"resultType", "ttlMs", "cacheScope"})


class Initialized(msgspec.Struct, frozen=True, gc=False):
    """A legacy server's answer to `initialize`.

    Attributes:
        revision: what the server wants to speak, which may be none of ours.
        capabilities: what it offers; empty if it did not say.
        server_info: its name and version, for display alone; empty if absent.
        instructions: for models, if given.

    """

    revision: str
    capabilities: Mapping[str, Json]
    server_info: Mapping[str, Json]
    instructions: str | None = None


class Discovered(msgspec.Struct, frozen=True, gc=False):
    """A modern server's answer to `server/discover`.

    Attributes:
        revisions: what the server speaks; may hold legacy revisions too.
        capabilities: what it offers; empty if it did not say.
        server_info: its name and version, for display alone; empty if absent.
        instructions: for models, if given.
        ttl_ms: milliseconds for which this stays fresh.
        cache_scope: "public" or "private".

    """

    revisions: tuple[str, ...]
    capabilities: Mapping[str, Json]
    server_info: Mapping[str, Json]
    instructions: str | None = None
    ttl_ms: int = 0
    cache_scope: str = "private"


class Progress(msgspec.Struct, frozen=True, gc=False, rename={"token": "progressToken"}):
    """One `notifications/progress`: whose it is, and how far."""

    token: int | str
    progress: int | float
    total: int | float | None = None
    message: str | None = None


class _Kind(msgspec.Struct, gc=False):
    resultType: str | None = None


_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_progress = msgspec.json.Decoder(Progress).decode


def result_type(raw: Raw | bytes) -> str:
    """What kind of result it is; "complete" if it does not say, as in all legacy revisions.

    Raises:
        Malformed: it is no object, or says something that is no text.

    """
    text = bytes(raw)
    if text.startswith(COMPLETE_HEAD):
        return COMPLETE
    if text.startswith(b"{") and b'"resultType"' not in text:
        return COMPLETE  # the plain case, many times as fast as a walk through a large result
    try:
        return _decode_kind(text).resultType or COMPLETE
    except msgspec.DecodeError as exc:
        raise Malformed(INVALID_REQUEST, f"not a result: {exc}") from exc


def relayed(raw: Raw) -> Raw:
    """A complete result without the members that belong to one hop; the same value if it has none of them.

    Raises:
        Malformed: it is no object.

    """
    received = members(raw)
    parts = {name: value for name, value in received.items() if name not in _HOP_LOCAL_RESULT}
    changed = len(parts) != len(received)
    meta = parts.get("_meta")
    if meta is not None and bytes(meta).startswith(b"{"):
        before = members(meta)
        kept = {name: value for name, value in before.items() if name not in HOP_LOCAL_META}
        if len(kept) != len(before):
            changed = True
            if kept:
                parts["_meta"] = Raw(object_of(kept))
            else:
                del parts["_meta"]
    return Raw(object_of(parts)) if changed else raw


def envelope_meta(
    revision: str, client_info: Mapping[str, Json] | bytes, capabilities: Mapping[str, Json] | bytes
) -> dict[str, Raw]:
    """The members of `_meta` that every modern request carries (MCP 2026-07-28, basic/requests).

    Args:
        revision: a modern one.
        client_info: who asks, as plain values or JSON text.
        capabilities: what the asker can answer in this request, as plain values or JSON text.

    """
    return {META_VERSION: _raw(revision), META_CLIENT_INFO: _raw(client_info), META_CAPABILITIES: _raw(capabilities)}


def decode_initialized(raw: Raw | bytes) -> Initialized:
    """The answer to `initialize`.

    Raises:
        Malformed: it is no object or names no revision.

    """
    parts = _object(raw, "the answer to initialize")
    revision = _text(parts.get("protocolVersion"))
    if revision is None:
        raise Malformed(INVALID_REQUEST, "the answer to initialize has no protocolVersion")
    return Initialized(
        revision=revision,
        capabilities=_mapping(parts.get("capabilities")),
        server_info=_mapping(parts.get("serverInfo")),
        instructions=_text(parts.get("instructions")),
    )


def decode_discovered(raw: Raw | bytes) -> Discovered:
    """The answer to `server/discover`; everything in it but the revisions may be missing.

    Raises:
        Malformed: it is no complete result, or lists no revisions.

    """
    parts = _object(raw, "the answer to server/discover")
    kind = result_type(raw)
    if kind != COMPLETE:
        raise Malformed(INVALID_REQUEST, f"server/discover was answered with a result of type {kind!r}")
    revisions = _texts(parts.get("supportedVersions"))
    if not revisions:
        raise Malformed(INVALID_REQUEST, "the answer to server/discover lists no supportedVersions")
    ttl_ms, cache_scope = cache_hints(parts)
    return Discovered(
        revisions=revisions,
        capabilities=_mapping(parts.get("capabilities")),
        # The specification puts it into `_meta` alone; a builder's slip is not worth losing the name.
        server_info=_mapping(parts.get("_meta")).get(META_SERVER_INFO) or _mapping(parts.get("serverInfo")),
        instructions=_text(parts.get("instructions")),
        ttl_ms=ttl_ms,
        cache_scope=cache_scope,
    )


def declared_upstream(capabilities: bytes) -> bytes:
    """What a modern server is told of a caller who says it can be asked this; nothing if it makes no sense."""
    try:
        return capabilities if isinstance(parse(capabilities), dict) else b"{}"
    except msgspec.DecodeError:
        return b"{}"


def supported_versions(data: Raw | bytes) -> tuple[str, ...]:
    """The revisions in the `data` of an unsupported-version error; none if they cannot be read."""
    try:
        return _texts(members(data).get("supported"))
    except Malformed:
        return ()


def decode_progress(raw: Raw | bytes) -> Progress:
    """The params of `notifications/progress`.

    Raises:
        Malformed: token or progress is missing or of a wrong type.

    """
    try:
        return _decode_progress(raw)
    except msgspec.DecodeError as exc:
        raise Malformed(INVALID_PARAMS, f"not a progress notification: {exc}") from exc


def progress_token(meta: Mapping[str, Raw]) -> Id | None:
    """The token in a request's `_meta` that asks for progress; None if there is none of a legal type."""
    raw = meta.get(PROGRESS_TOKEN)
    value = None if raw is None else parse(raw)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _raw(value: object) -> Raw:
    return Raw(value) if isinstance(value, bytes) else Raw(encode(value))


def _object(raw: Raw | bytes, what: str) -> dict[str, Raw]:
    if not bytes(raw).startswith(b"{"):
        raise Malformed(INVALID_REQUEST, f"{what} is not an object")
    return members(raw)


def _mapping(raw: Raw | None) -> Mapping[str, Json]:
    value = None if raw is None else parse(raw)
    return value if isinstance(value, dict) else {}


def _text(raw: Raw | None) -> str | None:
    value = None if raw is None else parse(raw)
    return value if isinstance(value, str) else None


def _texts(raw: Raw | None) -> tuple[str, ...]:
    value = None if raw is None else parse(raw)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()
