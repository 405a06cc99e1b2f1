"""What old clients cannot read, in a form that they can. Only what harms is changed (`structuredContent`, blocks).

Members that an old revision does not know are harmless and stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw

from cord_trio.errors import Malformed
from cord_trio.gateway.params import decode_string, is_object
from cord_trio.protocol.eras import ERAS, LATEST_MODERN
from cord_trio.protocol.headers import ANNOTATION
from cord_trio.protocol.jsonrpc import encode, members, object_of, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.protocol.eras import Era
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.protocol.tools import Tool

_NEWER: Final = {
    era.revision: tuple(b'"%b"' % kind.encode() for kind in sorted(ERAS[LATEST_MODERN].blocks - era.blocks))
    for era in ERAS.values()
}
_NEVER: Final[Mapping[str, Json]] = {"not": {}}
_decode_list = msgspec.json.Decoder(list[Raw]).decode


def content_for(era: Era, content: Raw) -> Raw:
    """A result's blocks, those of types that `era` does not have as text."""
    newer = _NEWER[era.revision]
    if not newer:  # the newest legacy revision has all of them
        return content
    text = bytes(content)
    if not any(kind in text for kind in newer):
        return content
    try:
        return Raw(b"[%b]" % b",".join(_block(era, block) for block in _decode_list(content)))
    except msgspec.DecodeError:
        return content  # no list of blocks: the client says so better than we


def messages_for(era: Era, messages: Raw) -> Raw:
    """A prompt's messages, those blocks of types that `era` does not have as text."""
    text = bytes(messages)
    if not any(kind in text for kind in _NEWER[era.revision]):
        return messages
    try:
        changed = []
        for message in _decode_list(messages):
            parts: dict[str, Raw | bytes] = {**members(message)}
            if "content" in parts and is_object(parts["content"]):
                parts["content"] = _block(era, Raw(bytes(parts["content"])))
            changed.append(object_of(parts))
        return Raw(b"[%b]" % b",".join(changed))
    except (msgspec.DecodeError, Malformed):
        return messages  # no list of messages: the client says so better than we


def tool_for(era: Era, tool: Tool, name: str) -> bytes:
    """JSON text of a tool in a list for a client of `era`, under its exported `name`."""
    changed: dict[str, Raw] = {}
    # Whether it runs as a task is between its server and us: who was told so would not call it as any other.
    dropped = {"execution"} if b'"execution"' in bytes(tool.text) and "execution" in tool.members else set()
    if tool.header_fault is not None:
        # A modern client over HTTP would drop the tool, some the whole list.
        changed["inputSchema"] = Raw(encode(_without_annotations(parse(tool.input_schema))))
    if not era.modern:
        schema = changed.get("inputSchema", tool.input_schema)
        text = bytes(schema)
        if b"true" in text or b"false" in text:
            value = parse(schema)
            plain = _without_booleans(value)
            if plain != value:
                changed["inputSchema"] = Raw(encode(plain))
        if tool.output_schema is not None and not _of_object(tool.output_schema):
            dropped.add("outputSchema")
    if not changed and not dropped:
        return tool.encode(name)
    parts = {key: changed.get(key, value) for key, value in tool.members.items() if key not in dropped}
    return object_of({**parts, "name": encode(name)})


def _block(era: Era, raw: Raw) -> bytes:
    parts = members(raw) if is_object(raw) else {}
    kind = decode_string(parts.get("type"))
    if kind in era.blocks or kind not in ERAS[LATEST_MODERN].blocks:
        return bytes(raw)
    match kind:
        case "resource_link":
            name = decode_string(parts.get("title")) or decode_string(parts.get("name")) or "resource"
            text = f"{name}: {decode_string(parts.get('uri')) or 'no address'}"
        case _:
            mime = decode_string(parts.get("mimeType")) or "unknown type"
            text = f"[{kind}, {mime}, which this client's protocol revision cannot carry]"
    return b'{"type":"text","text":%b}' % encode(text)


def _of_object(schema: Raw) -> bool:
    return is_object(schema) and bytes(members(schema).get("type", b"")) == b'"object"'


def _without_booleans(schema: Json) -> Json:
    """A schema whose properties are all objects, as revisions up to 2025-11-25 type them."""
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, dict):
            result[key] = {name: _as_object(sub) for name, sub in value.items()}
        elif key == "items":
            result[key] = _as_object(value)
        else:
            result[key] = value
    return result


def _as_object(schema: Json) -> Json:
    if isinstance(schema, bool):
        return {} if schema else _NEVER
    return _without_booleans(schema)


def _without_annotations(schema: Json) -> Json:
    if isinstance(schema, dict):
        return {key: _without_annotations(value) for key, value in schema.items() if key != ANNOTATION}
    if isinstance(schema, list):
        return [_without_annotations(value) for value in schema]
    return schema
