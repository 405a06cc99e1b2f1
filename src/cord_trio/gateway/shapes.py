"""A result as the client's era has it. It passes as bytes: its top level is read once, and ours is spliced in.

What old clients cannot read is changed (MCP 2026-07-28 to 2024-11-05: blocks, `structuredContent`); nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw

from cord_trio.errors import BadReply, Malformed
from cord_trio.gateway.downgrade import content_for, messages_for
from cord_trio.gateway.params import is_object
from cord_trio.protocol.jsonrpc import NOTHING, encode, members, object_of
from cord_trio.protocol.mcp import COMPLETE_HEAD, HOP_LOCAL_META, META_SERVER_INFO
from cord_trio.protocol.tools import cache_hints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.protocol.eras import Era

_REPLACED: Final = frozenset({"resultType", "ttlMs", "cacheScope", "_meta", "content", "structuredContent"})
_HOP: Final = frozenset({"resultType", "ttlMs", "cacheScope", "_meta"})

_ESSENTIAL: Final[Mapping[str, str]] = {
    "prompts/get": "messages",
    "resources/read": "contents",
    "completion/complete": "completion",
}
"""The member without which a result is none."""

_SERVER_INFO: Final = META_SERVER_INFO.encode()
COMPLETE: Final = Raw(b'"complete"')


class _Shape(msgspec.Struct, gc=False, rename={"meta": "_meta"}):
    """The members of a tool's result that decide what is done with it."""

    content: Raw = NOTHING
    structuredContent: Raw = NOTHING
    resultType: Raw = NOTHING
    meta: Raw = NOTHING
    ttlMs: Raw = NOTHING
    cacheScope: Raw = NOTHING


_decode_shape = msgspec.json.Decoder(_Shape).decode


def shape(method: str, era: Era, result: Raw, us: bytes, *, fresh: bool = True) -> bytes:
    """A complete result of `method` for a client of `era`.

    Args:
        method: one that is relayed.
        era: the client's.
        result: the server's.
        us: our `serverInfo` as JSON text.
        fresh: whether it may be cached at all; what needed answers may not.

    Raises:
        BadReply: it is no such result.

    """
    if method == "tools/call":
        return shape_result(era, result, us)
    try:
        received = members(result)
    except Malformed as exc:
        raise BadReply(f"not a result of {method}: {exc}") from exc
    essential = _ESSENTIAL[method]
    if essential not in received:
        raise BadReply(f"a result of {method} without {essential}")
    rest: dict[str, Raw | bytes] = {name: value for name, value in received.items() if name not in _HOP}
    if method == "prompts/get":
        rest["messages"] = messages_for(era, received["messages"])
    head: dict[str, Raw | bytes] = {"resultType": b'"complete"'} if era.modern else {}
    if meta := meta_of(received.get("_meta", NOTHING), us if era.modern else b""):
        head["_meta"] = meta
    if era.modern and method == "resources/read":
        # What is not ours and was given no life has none (MCP 2026-07-28, caching).
        ttl, scope = cache_hints(received) if fresh else (0, "private")
        rest |= {"ttlMs": encode(ttl), "cacheScope": encode(scope)}
    return object_of({**head, **rest})


def shape_result(era: Era, result: Raw, us: bytes) -> bytes:
    """A tool's result for a client of `era`.

    Raises:
        BadReply: it is no tool result.

    """
    try:
        shape = _decode_shape(result)
    except msgspec.DecodeError as exc:
        raise BadReply(f"not a tool's result: {exc}") from exc
    structured, content = shape.structuredContent, shape.content
    text = bytes(result)
    plain = not (shape.meta or shape.ttlMs or shape.cacheScope) and bool(content)
    if plain and shape.resultType:  # of a modern server, which mostly says it first
        if text.startswith(COMPLETE_HEAD) and shape.resultType == COMPLETE:
            text = b"{" + text[len(COMPLETE_HEAD) :]
        else:
            plain = False
    if era.modern:
        if plain:
            return b'{"resultType":"complete","_meta":{"%b":%b},%b' % (_SERVER_INFO, us, text[1:])
    else:
        if structured and not is_object(structured):
            structured, plain = NOTHING, False
        if content:
            content = content_for(era, content)
            plain = plain and content is shape.content
        if plain:
            return text
    if not content:
        if not shape.structuredContent:
            raise BadReply("a tool's result without content")
        content = Raw(b'[{"type":"text","text":%b}]' % encode(bytes(shape.structuredContent).decode()))
    rest = {name: value for name, value in members(result).items() if name not in _REPLACED}
    if structured:
        rest["structuredContent"] = structured
    head: dict[str, Raw | bytes] = {"resultType": b'"complete"'} if era.modern else {}
    if meta := meta_of(shape.meta, us if era.modern else b""):
        head["_meta"] = meta
    return object_of({**head, "content": content, **rest})


def meta_of(received: Raw, us: bytes) -> bytes:
    """`_meta` of a result: what the server said, ours instead of what belongs to its hop; empty if nothing."""
    parts: dict[str, Raw | bytes] = {}
    if received and is_object(received):
        parts.update((key, value) for key, value in members(received).items() if key not in HOP_LOCAL_META)
    if us:
        parts[META_SERVER_INFO] = us
    return object_of(parts) if parts else b""
