"""Tools and their results, as servers send them: decoded where someone looks, else passed on as they came.

Nothing a server says about one tool may hurt its other tools, nor whoever we list them to: a tool that
cannot be used is left out with a reason, and a member of a wrong type, on which strict clients drop the
whole list, is left out of its tool.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType
from msgspec.structs import replace

from cord_trio.errors import Malformed
from cord_trio.protocol.headers import ParamHeader, find_param_headers, read_param_headers
from cord_trio.protocol.jsonrpc import INVALID_REQUEST, encode, members, object_of, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cord_trio.protocol.jsonrpc import Json

MAX_NAME: Final = 64
"""Characters of an exported name; what VS Code and model APIs take."""

SEPARATOR: Final = "__"
"""Stands between a source's prefix and a tool's name."""

_HASH_DIGITS: Final = 8
_EXPORTABLE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOT_EXPORTABLE = re.compile(r"[^A-Za-z0-9_-]")
_ANY_OBJECT: Final = Raw(b'{"type":"object"}')
_KINDS: Final[Mapping[str, bytes]] = {
    "title": b'"',
    "description": b'"',
    "icons": b"[",
    "outputSchema": b"{",
    "annotations": b"{",
    "execution": b"{",
    "_meta": b"{",
}
_HINTS: Final[Mapping[str, bytes]] = {
    "title": b'"',
    "readOnlyHint": b"tf",
    "destructiveHint": b"tf",
    "idempotentHint": b"tf",
    "openWorldHint": b"tf",
}


class Annotations(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What a server claims about a tool, with the protocol's defaults. Hints, never to be trusted."""

    title: str | None = None
    read_only_hint: bool = False
    destructive_hint: bool = True
    idempotent_hint: bool = False
    open_world_hint: bool = True


class Tool(msgspec.Struct, frozen=True, gc=False):
    """One tool of one server.

    Attributes:
        name: as the server says it.
        title: for people, if given.
        description: for models; empty if absent.
        annotations: the server's claims.
        input_schema: JSON Schema of the arguments, always of type object.
        output_schema: JSON Schema of the structured result, if given.
        text: all of it as it was received, also what we do not know; of its members a mapping would take 300 bytes.
        meta: its `_meta`, if it has one.
        headers: arguments that HTTP repeats in headers.
        header_fault: why the tool must not be called over HTTP, if so (MCP 2026-07-28, tools).

    """

    name: str
    title: str | None
    description: str
    annotations: Annotations
    input_schema: Raw
    output_schema: Raw | None
    text: Raw
    meta: Raw | None = None
    headers: tuple[ParamHeader, ...] = ()
    header_fault: str | None = None

    @property
    def key(self) -> str:
        """What the server knows it by."""
        return self.name

    @property
    def members(self) -> dict[str, Raw]:
        """Every member as it was received, in order."""
        return members(self.text)

    def with_meta(self, meta: Raw) -> Tool:
        """The same with another `_meta`."""
        return replace(self, text=Raw(object_of({**self.members, "_meta": meta})), meta=meta)

    @property
    def label(self) -> str:
        """The name for people: title, else the annotations' title, else name (MCP 2026-07-28, tools)."""
        return self.title or self.annotations.title or self.name

    def encode(self, name: str) -> bytes:
        """JSON text of the tool under another `name`, all other members as they came."""
        return object_of({**self.members, "name": encode(name)})

    def model_schema(self) -> bytes:
        """The input schema for model APIs that refuse an object without `properties`."""
        parts = members(self.input_schema)
        if "properties" in parts:
            return bytes(self.input_schema)
        return object_of({**parts, "properties": Raw(b"{}")})


class ToolsPage(msgspec.Struct, frozen=True, gc=False):
    """One page of a server's `tools/list`.

    Attributes:
        tools: those that can be used, in the server's order.
        next_cursor: what to ask the next page with, which may be the empty string; None at the end.
        ttl_ms: milliseconds for which the page stays fresh; 0 if the server did not say.
        cache_scope: "public" or "private".
        skipped: tools that were left out, each with the reason.
        notes: what was set right in those that were kept.

    """

    tools: tuple[Tool, ...]
    next_cursor: str | None = None
    ttl_ms: int = 0
    cache_scope: str = "private"
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Content(msgspec.Struct, frozen=True, gc=False):
    """One block of a result: its type, its text if it is a text block, and every member as it came."""

    type: str
    text: str
    members: Mapping[str, Raw]

    def encode(self) -> bytes:
        """JSON text of the block."""
        return object_of(self.members)


class _Text(msgspec.Struct, gc=False):
    type: str
    text: str | UnsetType = UNSET


class _Texts(msgspec.Struct, gc=False):
    """What is read of a result where only its text is asked for, which is nearly always."""

    content: list[_Text] = []


class ToolResult:
    """What a tool answered. Nothing is decoded until someone looks; `raw` is the whole as it came.

    Raises:
        Malformed: by any attribute but `raw`, if the server sent something that is no tool result.

    """

    __slots__ = ("_content", "_members", "raw")

    def __init__(self, raw: Raw | bytes) -> None:
        self.raw = raw if isinstance(raw, Raw) else Raw(raw)
        self._members: dict[str, Raw] | None = None
        self._content: tuple[Content, ...] | None = None

    def __eq__(self, other: object) -> bool:
        return bytes(self.raw) == bytes(other.raw) if isinstance(other, ToolResult) else NotImplemented

    def __hash__(self) -> int:
        return hash(bytes(self.raw))

    def __repr__(self) -> str:
        return f"<ToolResult {len(bytes(self.raw))} bytes>"

    @property
    def members(self) -> Mapping[str, Raw]:
        """Every member of the result, unparsed."""
        if self._members is None:
            self._members = members(self.raw)
        return self._members

    @property
    def content(self) -> tuple[Content, ...]:
        """The blocks, of whatever type."""
        if self._content is None:
            raw = self.members.get("content")
            blocks = [] if _absent(raw) else _list(raw, "content")
            self._content = tuple(map(_content, blocks))
        return self._content

    @property
    def text(self) -> str:
        """The text of all text blocks, one after the other, each from a new line."""
        if self._content is None:
            try:
                blocks = _decode_texts(self.raw).content
            except msgspec.DecodeError:
                pass  # looked at in full below, which says what is wrong
            else:
                if len(blocks) == 1 and blocks[0].type == "text" and blocks[0].text is not UNSET:
                    return blocks[0].text
                if all(block.type != "text" or block.text is not UNSET for block in blocks):
                    return "\n".join([block.text for block in blocks if block.type == "text"])  # type: ignore[misc]  # just checked
        return "\n".join([block.text for block in self.content if block.type == "text"])

    @property
    def structured(self) -> Json:
        """`structuredContent` as plain values; None if there is none."""
        raw = self.members.get("structuredContent")
        return None if raw is None else parse(raw)

    @property
    def is_error(self) -> bool:
        """Whether the tool says that it failed."""
        return bytes(self.members.get("isError", b"")) == b"true"

    @property
    def meta(self) -> Mapping[str, Raw]:
        """The members of `_meta`, unparsed."""
        raw = self.members.get("_meta")
        return {} if raw is None or _absent(raw) else members(raw)


def decode_tools_page(raw: Raw | bytes) -> ToolsPage:
    """The page in the result of `tools/list`.

    Raises:
        Malformed: there is no list of tools in it.

    """
    parts = members(raw)
    if _absent(parts.get("tools")):
        raise Malformed(INVALID_REQUEST, "tools/list was answered without tools")
    tools: list[Tool] = []
    skipped: list[str] = []
    notes: list[str] = []
    for position, item in enumerate(_list(parts.get("tools"), "tools")):
        try:
            tool = _tool(item, notes)
        except Malformed as exc:
            skipped.append(f"tool {position}: {exc}")
        else:
            tools.append(tool)
    cursor = parts.get("nextCursor")
    if cursor is not None and not _is(cursor, b'"'):
        if not _absent(cursor):
            notes.append("nextCursor is not a string: taken as the end of the list")
        cursor = None
    ttl_ms, cache_scope = cache_hints(parts)
    return ToolsPage(
        tuple(tools),
        None if cursor is None else parse(cursor),
        ttl_ms,
        cache_scope,
        tuple(skipped),
        tuple(notes),
    )


def cache_hints(parts: Mapping[str, Raw]) -> tuple[int, str]:
    """`ttlMs` and `cacheScope` of a result; 0 and "private" where they are missing or make no sense."""
    ttl = bytes(parts.get("ttlMs", b""))
    scope = bytes(parts.get("cacheScope", b""))
    return (
        int(ttl) if ttl.isdigit() and len(ttl) <= 15 else 0,
        "public" if scope == b'"public"' else "private",
    )


def param_headers(tool: Tool, arguments: Raw | bytes) -> tuple[tuple[str, str], ...]:
    """The `Mcp-Param-*` headers of one call, values encoded.

    Raises:
        Malformed: an argument cannot stand in its header.

    """
    return read_param_headers(tool.headers, arguments)


def exported_name(prefix: str, tool: str) -> str:
    """The name under which a tool is shown to others, made from these two alone.

    At most 64 characters of `[A-Za-z0-9_-]`; where that changes or shortens it, a hash of the original
    two keeps it apart from its neighbours, and the same after a restart.
    """
    name = f"{prefix}{SEPARATOR}{tool}" if prefix else tool
    if _EXPORTABLE.fullmatch(name):
        return name
    origin = f"{prefix}\0{tool}".encode("utf-8", "surrogatepass")
    mark = hashlib.sha256(origin).hexdigest()[:_HASH_DIGITS]
    return f"{_NOT_EXPORTABLE.sub('_', name)[: MAX_NAME - _HASH_DIGITS - 1]}_{mark}"


def _tool(raw: Raw, notes: list[str]) -> Tool:
    if not _is(raw, b"{"):
        raise Malformed(INVALID_REQUEST, "is not an object")
    received = members(raw)
    name = _string(received.get("name"))
    if not name:
        raise Malformed(INVALID_REQUEST, "has no name")
    parts = _typed(received, _KINDS, name, notes)
    schema = _input_schema(parts.get("inputSchema"), name, notes)
    parts["inputSchema"] = schema
    annotations = _NO_ANNOTATIONS
    if "annotations" in parts:
        given = members(parts["annotations"])
        hints = _typed(given, _HINTS, f"{name}: annotations", notes)
        if len(hints) != len(given):
            parts["annotations"] = Raw(object_of(hints))
        annotations = _decode_annotations(parts["annotations"])
    headers: tuple[ParamHeader, ...] = ()
    header_fault = None
    try:
        headers = find_param_headers(schema)
    except Malformed as exc:
        header_fault = str(exc)
    return Tool(
        name=name,
        title=_string(parts.get("title")),
        description=_string(parts.get("description")) or "",
        annotations=annotations,
        input_schema=schema,
        output_schema=parts.get("outputSchema"),
        text=raw if parts == received else Raw(object_of(parts)),
        meta=parts.get("_meta"),
        headers=headers,
        header_fault=header_fault,
    )


def _input_schema(raw: Raw | None, name: str, notes: list[str]) -> Raw:
    if raw is None or _absent(raw):
        notes.append(f'{name}: no inputSchema: taken as {{"type":"object"}}')
        return _ANY_OBJECT
    if not _is(raw, b"{"):
        raise Malformed(INVALID_REQUEST, f"{name}: inputSchema is not an object")
    parts = members(raw)
    if not _is(parts.get("properties", _ANY_OBJECT), b"{"):
        raise Malformed(INVALID_REQUEST, f"{name}: properties of inputSchema is not an object")
    if "type" not in parts:
        notes.append(f"{name}: inputSchema has no type: taken as object")
        return Raw(object_of({"type": Raw(b'"object"'), **parts}))
    if bytes(parts["type"]) != b'"object"':
        raise Malformed(INVALID_REQUEST, f"{name}: inputSchema is of type {_show(parts['type'])}, not object")
    return raw


def _typed(parts: dict[str, Raw], kinds: Mapping[str, bytes], name: str, notes: list[str]) -> dict[str, Raw]:
    """`parts` without the known members that are null (silently) or of a wrong type (noted)."""
    kept = {}
    for member, value in parts.items():
        starts = kinds.get(member)
        if starts is None or _is(value, starts):
            kept[member] = value
        elif not _absent(value):
            notes.append(f"{name}: {member} is of a wrong type: left out")
    return kept


def _content(raw: Raw) -> Content:
    parts = members(raw)
    kind = _string(parts.get("type"))
    if kind is None:
        raise Malformed(INVALID_REQUEST, "a content block has no type")
    text = _string(parts.get("text")) if kind == "text" else ""
    if text is None:
        raise Malformed(INVALID_REQUEST, "a text block has no text")
    return Content(kind, text, parts)


def _list(raw: Raw | None, what: str) -> Iterable[Raw]:
    try:
        return _decode_list(raw or b"")
    except msgspec.DecodeError as exc:
        raise Malformed(INVALID_REQUEST, f"{what} is not a list: {exc}") from exc


def _string(raw: Raw | None) -> str | None:
    return _decode_string(raw) if raw is not None and _is(raw, b'"') else None


def _is(raw: Raw, starts: bytes) -> bool:
    """Whether JSON text begins with one of `starts`, which tells its type."""
    first = bytes(raw)[:1]
    return first != b"" and first in starts


def _absent(raw: Raw | None) -> bool:
    return raw is None or bytes(raw) in (b"", b"null")


def _show(raw: Raw) -> str:
    return bytes(raw)[:40].decode(errors="replace")


_NO_ANNOTATIONS: Final = Annotations()
_decode_annotations = msgspec.json.Decoder(Annotations).decode
_decode_texts = msgspec.json.Decoder(_Texts).decode
_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_string = msgspec.json.Decoder(str).decode
