"""Prompts, resources and resource templates, as servers list them: every member is kept as it came.

As with tools, one that cannot be used is left out with a reason, and a member of a wrong type is left out of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec
from msgspec import Raw

from cord_trio.errors import Malformed
from cord_trio.protocol.jsonrpc import INVALID_REQUEST, encode, members, object_of, parse
from cord_trio.protocol.tools import Tool, cache_hints, decode_tools_page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Item = TypeVar("Item", bound="Tool | Prompt | Resource | Template")

_TYPES: Final[Mapping[str, bytes]] = {
    "title": b'"',
    "description": b'"',
    "mimeType": b'"',
    "size": b"0123456789",
    "arguments": b"[",
    "icons": b"[",
    "annotations": b"{",
    "_meta": b"{",
}


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """One prompt of one server: its name, and every member as it was received."""

    name: str
    members: Mapping[str, Raw]

    @property
    def key(self) -> str:
        """What the server knows it by."""
        return self.name

    def encode(self, name: str) -> bytes:
        """JSON text of the prompt under another `name`, all other members as they came."""
        return object_of({**self.members, "name": encode(name)})


class Resource(msgspec.Struct, frozen=True, gc=False):
    """One resource of one server: its URI, and every member as it was received."""

    uri: str
    members: Mapping[str, Raw]

    @property
    def key(self) -> str:
        """What the server knows it by."""
        return self.uri

    def encode(self, uri: str) -> bytes:
        """JSON text of the resource under another `uri`, all other members as they came."""
        return object_of({**self.members, "uri": encode(uri)})


class Template(msgspec.Struct, frozen=True, gc=False):
    """One resource template of one server: its URI template, and every member as it was received."""

    uri: str
    members: Mapping[str, Raw]

    @property
    def key(self) -> str:
        """What the server knows it by."""
        return self.uri

    def encode(self, uri: str) -> bytes:
        """JSON text of the template under another URI template, all other members as they came."""
        return object_of({**self.members, "uriTemplate": encode(uri)})


class Page(msgspec.Struct, Generic[Item], frozen=True, gc=False):
    """One page of a list. The members are those of `tools.ToolsPage`."""

    items: tuple[Item, ...]
    next_cursor: str | None = None
    ttl_ms: int = 0
    cache_scope: str = "private"
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def decode_tools(raw: Raw | bytes) -> Page[Tool]:
    """The page in the result of `tools/list`. Raises `Malformed` if there is no list in it."""
    page = decode_tools_page(raw)
    return Page(page.tools, page.next_cursor, page.ttl_ms, page.cache_scope, page.skipped, page.notes)


def decode_prompts(raw: Raw | bytes) -> Page[Prompt]:
    """The page in the result of `prompts/list`. Raises `Malformed` if there is no list in it."""
    return _page(raw, "prompts", "name", Prompt)


def decode_resources(raw: Raw | bytes) -> Page[Resource]:
    """The page in the result of `resources/list`. Raises `Malformed` if there is no list in it."""
    return _page(raw, "resources", "uri", Resource)


def decode_templates(raw: Raw | bytes) -> Page[Template]:
    """The page in the result of `resources/templates/list`. Raises `Malformed` if there is no list in it."""
    return _page(raw, "resourceTemplates", "uriTemplate", Template)


def _page(raw: Raw | bytes, member: str, key: str, kind: Callable[[str, dict[str, Raw]], Item]) -> Page[Item]:
    parts = members(raw)
    listed = parts.get(member)
    if listed is None or not bytes(listed).startswith(b"["):
        raise Malformed(INVALID_REQUEST, f"answered without {member}")
    items: list[Item] = []
    skipped: list[str] = []
    notes: list[str] = []
    for position, each in enumerate(_decode_list(listed)):
        try:
            items.append(_item(each, member, key, kind, notes))
        except Malformed as exc:
            skipped.append(f"{member} {position}: {exc}")
    cursor: str | None = None
    given = bytes(parts.get("nextCursor", b"null"))
    if given.startswith(b'"'):
        cursor = parse(given)
    elif given != b"null":
        notes.append("nextCursor is not a string: taken as the end of the list")
    ttl_ms, cache_scope = cache_hints(parts)
    return Page(tuple(items), cursor, ttl_ms, cache_scope, tuple(skipped), tuple(notes))


def _item(raw: Raw, member: str, key: str, kind: Callable[[str, dict[str, Raw]], Item], notes: list[str]) -> Item:
    if not bytes(raw).startswith(b"{"):
        raise Malformed(INVALID_REQUEST, "is not an object")
    received = members(raw)
    name = received.get(key)
    if name is None or not bytes(name).startswith(b'"') or not parse(name):
        raise Malformed(INVALID_REQUEST, f"has no {key}")
    parts: dict[str, Raw] = {}
    for part, value in received.items():
        starts = _TYPES.get(part)
        if starts is None or bytes(value)[:1] in starts:
            parts[part] = value
        elif bytes(value) != b"null":
            notes.append(f"{member}: {part} of {parse(name)!r} is of a wrong type: left out")
    if not bytes(parts.get("name", b"")).startswith(b'"'):
        parts["name"] = name  # strict clients drop the whole list where one has none
    return kind(parse(name), parts)


_decode_list = msgspec.json.Decoder(list[Raw]).decode
