"""Resource URIs as they are exported: each tells its source, and leads back to the server's own URI.

The server's URI stands behind `cord://PREFIX/` as it is, since a valid URI there makes a valid URI, and since a
client's expansion of a template must be the server's, behind the same words. What is no valid URI is written with
percent signs behind a mark that no URI begins with. Apps' `ui:` URIs keep their scheme, by which hosts know them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw

from cord_trio.errors import Malformed
from cord_trio.protocol.jsonrpc import encode, members, object_of, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

SCHEME: Final = "cord://"
"""Begins an exported URI."""

UI: Final = "ui://"
"""Begins the URIs of MCP Apps; these keep it."""

_MARK: Final = "~/"
_CHARACTER = r"(?:[A-Za-z0-9\-._~:/?@!$&'()*+,;=]|%[0-9A-Fa-f]{2})*"
_PLAIN = re.compile(rf"{_CHARACTER}(?:#{_CHARACTER})?")
_KEPT = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:/@!$&'()*+,;=")
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
_RULE = re.compile(r"\{[^{}]*\}")
_decode_list = msgspec.json.Decoder(list[Raw]).decode


def export_uri(prefix: str, uri: str) -> str:
    """The URI under which a source with `prefix` exports its `uri`; the same for the empty prefix."""
    if not prefix:
        return uri
    scheme, rest = (UI, uri[len(UI) :]) if uri.startswith(UI) else (SCHEME, uri)
    if not _PLAIN.fullmatch(rest) or rest.startswith(_MARK):
        rest = _MARK + _escaped(rest)
    return f"{scheme}{prefix}/{rest}"


def export_template(prefix: str, template: str) -> str:
    """The same for a URI template (RFC 6570): its expansions lead to the server's own expansions."""
    if not prefix:
        return template
    scheme, rest = (UI, template[len(UI) :]) if template.startswith(UI) else (SCHEME, template)
    return f"{scheme}{prefix}/{rest}"


def import_uri(prefixes: Collection[str], public: str) -> tuple[str, str] | None:
    """The prefix and the server's own URI of an exported one; None if it has none of `prefixes`. Templates too."""
    scheme = SCHEME if public.startswith(SCHEME) else UI if public.startswith(UI) else ""
    if not scheme:
        return None
    prefix, slash, rest = public[len(scheme) :].partition("/")
    if not slash:
        return None
    if prefix not in prefixes:
        # URL libraries write hosts in lower case.
        alike = [each for each in prefixes if each and each.lower() == prefix.lower()]
        if len(alike) != 1:
            return None
        (prefix,) = alike
    if not prefix:
        return None
    if rest.startswith(_MARK):
        rest = _unescaped(rest[len(_MARK) :])
    return prefix, rest if scheme == SCHEME else UI + rest


def split_exported(public: str) -> tuple[str, str] | None:
    """Prefix and own URI of what somebody exported, whatever the prefix; None if it does not look so. Templates too."""
    prefix = public.removeprefix(SCHEME).removeprefix(UI).partition("/")[0]
    return import_uri((prefix,), public)


def may_expand_to(template: str, uri: str) -> bool:
    """Whether `uri` may be an expansion of `template`: its literal parts stand in it, in order."""
    literals = _RULE.split(template)
    if len(literals) == 1:
        return uri == template
    if not uri.startswith(literals[0]):
        return False
    place = len(literals[0])
    for literal in literals[1:-1]:
        found = uri.find(literal, place)
        if found < 0:
            return False
        place = found + len(literal)
    return len(uri) - len(literals[-1]) >= place and uri.endswith(literals[-1])


def relink(method: str, result: Raw, export: Callable[[str], str]) -> Raw:
    """The result of `method` with each URI in it exported; the same value if there is none.

    What is no such result stays as it is: it is not ours to judge here.
    """
    text = bytes(result)
    if b'"uri"' not in text and b'esourceUri"' not in text:
        return result
    try:
        return _relinked(method, text, export)
    except (Malformed, TypeError, ValueError):
        return result


def relink_meta(meta: Raw, export: Callable[[str], str]) -> Raw:
    """`_meta` with the page of an App exported, in both of its spellings."""
    parts = members(meta)
    changed = False
    old = parts.get("ui/resourceUri")
    if old is not None and bytes(old).startswith(b'"'):
        parts["ui/resourceUri"] = _exported(old, export)
        changed = True
    ui = parts.get("ui")
    if ui is not None and bytes(ui).startswith(b"{"):
        inner = members(ui)
        page = inner.get("resourceUri")
        if page is not None and bytes(page).startswith(b'"'):
            inner["resourceUri"] = _exported(page, export)
            parts["ui"] = Raw(object_of(inner))
            changed = True
    return Raw(object_of(parts)) if changed else meta


def _relinked(method: str, text: bytes, export: Callable[[str], str]) -> Raw:
    parts = members(text)
    match method:
        case "tools/call":
            _each(parts, "content", lambda block: _block(block, export))
        case "prompts/get":
            _each(parts, "messages", lambda message: _message(message, export))
        case "tasks/get" if "result" in parts:
            parts["result"] = relink("tools/call", parts["result"], export)
        case "resources/read":
            _each(parts, "contents", lambda item: _with_uri(item, export))
    if b'esourceUri"' in bytes(parts.get("_meta", b"")):
        parts["_meta"] = relink_meta(parts["_meta"], export)
    return Raw(object_of(parts))


def _each(parts: dict[str, Raw], name: str, change: Callable[[Raw], Raw]) -> None:
    value = parts.get(name)
    if value is None or b'"uri"' not in bytes(value):
        return
    listed = _decode_list(value)
    parts[name] = Raw(b"[%b]" % b",".join([bytes(change(item)) for item in listed]))


def _message(message: Raw, export: Callable[[str], str]) -> Raw:
    parts = members(message)
    content = bytes(parts.get("content", b""))
    if content.startswith(b"{"):
        parts["content"] = _block(Raw(content), export)
    else:
        _each(parts, "content", lambda block: _block(block, export))
    return Raw(object_of(parts))


def _block(block: Raw, export: Callable[[str], str]) -> Raw:
    if b'"uri"' not in bytes(block):
        return block
    parts = members(block)
    kind = bytes(parts.get("type", b""))
    if kind == b'"resource_link"':
        return _with_uri(block, export)
    if kind == b'"resource"' and "resource" in parts:
        parts["resource"] = _with_uri(parts["resource"], export)
        return Raw(object_of(parts))
    return block


def _with_uri(item: Raw, export: Callable[[str], str]) -> Raw:
    parts = members(item)
    uri = parts.get("uri")
    if uri is None or not bytes(uri).startswith(b'"'):
        return item
    parts["uri"] = _exported(uri, export)
    return Raw(object_of(parts))


def _exported(uri: Raw, export: Callable[[str], str]) -> Raw:
    return Raw(encode(export(parse(uri))))


def _escaped(text: str) -> str:
    data = text.encode("utf-8", "surrogatepass")
    return "".join([chr(byte) if byte in _KEPT else f"%{byte:02X}" for byte in data])


def _unescaped(text: str) -> str:
    data = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), text.encode("utf-8", "surrogatepass"))
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return text  # nothing of ours
