"""What clients can list, of each kind in pages of our own, from the newest snapshot."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, TypeAlias

from cord_trio.errors import Malformed
from cord_trio.gateway.downgrade import tool_for
from cord_trio.gateway.steps import Reply
from cord_trio.protocol.eras import ERAS, LATEST_LEGACY, LATEST_MODERN
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, encode, encode_error, encode_result
from cord_trio.protocol.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cord_trio.auth.sealing import Sealer
    from cord_trio.gateway.ports import Listed, Snapshot
    from cord_trio.gateway.steps import Kind, List

    Item: TypeAlias = Tool | Listed

PAGE_ITEMS: Final = 1_000
"""Tools, prompts, resources or templates in one page."""

PAGE_BYTES: Final = 8 * 1024 * 1024
"""Bytes of one page, unless a single item is larger."""

MAX_VIEWS: Final = 4
"""Older lists kept for clients that are in the middle of them."""

VIEW_LIFE: Final = 300.0
"""Seconds an older list is kept."""

CURSOR_LIFE: Final = 3600.0
"""Seconds after which a cursor no longer opens."""

TTL_MS: Final = 60_000
"""Milliseconds for which a client may trust a list at most; changes are told to whoever listens."""

_HINTS: Final = b'"ttlMs":%d,"cacheScope":"private"'
HINTS: Final = _HINTS % TTL_MS
"""What a modern result that may be cached says of that (MCP 2026-07-28, caching)."""

_MEMBER: Final[Mapping[Kind, bytes]] = {
    "tools": b"tools",
    "prompts": b"prompts",
    "resources": b"resources",
    "templates": b"resourceTemplates",
}
"""Under which member of its result each list stands."""

_POSITION = struct.Struct(">QQ")


class View:
    """One list of one snapshot, as JSON text per item. Immutable once made, but for the pages it caches."""

    __slots__ = ("held", "legacy", "modern", "names", "pages", "serial", "superseded", "version")

    def __init__(
        self, serial: int, version: int, modern: Sequence[bytes], legacy: Sequence[bytes], names: Sequence[str] = ()
    ) -> None:
        self.names = names
        self.held = False  # whether somebody may hold a cursor into it
        self.serial = serial
        self.version = version
        self.modern = modern
        self.legacy = legacy
        self.pages: dict[tuple[bool, int], tuple[bytes, int]] = {}
        self.superseded: float | None = None

    def page(self, modern: bool, start: int, size: int) -> tuple[bytes, int]:
        """The array of items from `start` on, and where the next page starts; 0 if there is none."""
        page = self.pages.get((modern, start))
        if page is None:
            items = self.modern if modern else self.legacy
            end, weight = start, 0
            while end < len(items) and end - start < size and (end == start or weight + len(items[end]) <= PAGE_BYTES):
                weight += len(items[end])
                end += 1
            page = (b"[%b]" % b",".join(items[start:end]), end if end < len(items) else 0)
            self.pages[modern, start] = page
            self.held = self.held or end < len(items)
        return page

    def part(self, modern: bool, start: int, size: int, hidden: frozenset[str]) -> tuple[bytes, int]:
        """As `page`, without what is `hidden`."""
        items = self.modern if modern else self.legacy
        shown: list[bytes] = []
        weight = 0
        for place in range(start, len(items)):
            if self.names[place] in hidden:
                continue
            weight += len(items[place])
            if shown and (len(shown) >= size or weight > PAGE_BYTES):
                self.held = True
                return b"[%b]" % b",".join(shown), place
            shown.append(items[place])
        return b"[%b]" % b",".join(shown), 0


class Shelf:
    """The lists of one kind: the newest, and older ones for clients that are in the middle of them."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._encoded: dict[str, tuple[object, bytes, bytes]] = {}
        self._view = View(0, -1, (), ())
        self._older: OrderedDict[int, View] = OrderedDict()

    def view(self, snapshot: Snapshot, now: float) -> View:
        """The list of `snapshot`; the same one as before if nothing in it has changed."""
        view = self._view
        if snapshot.version == view.version:
            return view
        encoded = {name: self._encode(name, item) for name, item in self._items(snapshot)}
        self._encoded = encoded
        modern = tuple(entry[1] for entry in encoded.values())
        if view.serial and modern == view.modern:
            view.version = snapshot.version
            return view
        if view.held:
            view.superseded = now
            self._older[view.serial] = view
            while len(self._older) > MAX_VIEWS:
                self._older.popitem(last=False)
        legacy = tuple(entry[2] for entry in encoded.values())
        self._view = View(view.serial + 1, snapshot.version, modern, legacy, tuple(encoded))
        return self._view

    def kept(self, serial: int, now: float) -> View:
        """An older list.

        Raises:
            Malformed: it is no longer kept (-32602).

        """
        view = self._older.get(serial)
        if view is None or view.superseded is None or view.superseded + VIEW_LIFE < now:
            self._older.pop(serial, None)
            raise Malformed(INVALID_PARAMS, "the list has changed since this cursor was made: start over")
        return view

    def _items(self, snapshot: Snapshot) -> Iterable[tuple[str, Item]]:
        match self._kind:
            case "tools":
                return ((name, route.tool) for name, route in snapshot.tools.items())
            case "prompts":
                return ((name, route.prompt) for name, route in snapshot.prompts.items())
            case "resources":
                return ((name, route.resource) for name, route in snapshot.resources.items())
            case "templates":
                return ((name, route.template) for name, route in snapshot.templates.items())

    def _encode(self, name: str, item: Item) -> tuple[object, bytes, bytes]:
        entry = self._encoded.get(name)
        if entry is not None and entry[0] is item:
            return entry
        if isinstance(item, Tool):
            return item, tool_for(ERAS[LATEST_MODERN], item, name), tool_for(ERAS[LATEST_LEGACY], item, name)
        text = item.encode(name)
        return item, text, text


class Catalogue:
    """Lists snapshots. A cursor belongs to the list and the principal that it was made for.

    Args:
        sealer: seals cursors.
        page: items in one page.

    """

    def __init__(self, sealer: Sealer, page: int = PAGE_ITEMS) -> None:
        self._sealer = sealer
        self._page = page
        self._shelves: Mapping[Kind, Shelf] = {kind: Shelf(kind) for kind in _MEMBER}

    def serials(self, snapshot: Snapshot, now: float) -> dict[str, int]:
        """A number for each kind whose changes are told, which rises with each of them."""
        serial = {kind: shelf.view(snapshot, now).serial for kind, shelf in self._shelves.items()}
        return {
            "tools": serial["tools"],
            "prompts": serial["prompts"],
            "resources": serial["resources"] + serial["templates"],
        }

    def list(
        self, snapshot: Snapshot, step: List, now: float, hidden: frozenset[str] = frozenset()
    ) -> tuple[bytes, str | None]:
        """One page as a JSON array without what is `hidden`, and the cursor of the next.

        Raises:
            Malformed: the cursor is none of ours, or its list is no longer kept (-32602).

        """
        shelf = self._shelves[step.kind]
        view, start = shelf.view(snapshot, now), 0
        if step.cursor is not None:
            serial, start = self._open(step, now)
            if serial != view.serial:
                view = shelf.kept(serial, now)
        if hidden:
            page, after = view.part(step.era.modern, start, self._page, hidden)
        else:
            page, after = view.page(step.era.modern, start, self._page)
        if not after:
            return page, None
        position = _POSITION.pack(view.serial, after)
        return page, self._sealer.seal(f"cursor:{step.kind}", step.principal, position, now + CURSOR_LIFE)

    def answer(
        self, step: List, snapshot: Snapshot, signature: bytes, now: float, trust: float = math.inf,
        hidden: frozenset[str] = frozenset(),
    ) -> Reply:  # fmt: skip
        """The answer to a list request.

        Args:
            step: the request.
            snapshot: the newest.
            signature: the `_meta` member of our own modern results.
            now: Trio time.
            trust: seconds for which what is listed may be trusted.
            hidden: exported names that its principal is not shown.

        """
        try:
            page, cursor = self.list(snapshot, step, now, hidden)
        except Malformed as exc:
            return Reply(encode_error(step.id, exc.code, str(exc)))
        more = b"" if cursor is None else b',"nextCursor":%b' % encode(cursor)
        member = _MEMBER[step.kind]
        if step.era.modern:
            ttl = int(min(trust * 1000, TTL_MS))
            result = b'{"resultType":"complete","%b":%b%b,%b,%b}' % (member, page, more, _HINTS % ttl, signature)
        else:
            result = b'{"%b":%b%b}' % (member, page, more)
        return Reply(encode_result(step.id, result))

    def _open(self, step: List, now: float) -> tuple[int, int]:
        try:
            position = self._sealer.open(f"cursor:{step.kind}", step.principal, step.cursor or "", now)
        except ValueError as exc:
            raise Malformed(INVALID_PARAMS, "this cursor is none of ours, or too old: start over") from exc
        serial, start = _POSITION.unpack(position)
        return serial, start
