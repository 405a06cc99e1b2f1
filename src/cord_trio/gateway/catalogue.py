"""The tools as clients see them: one list, in pages of our own, from the newest snapshot."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from cord_trio.errors import Malformed
from cord_trio.gateway.downgrade import tool_for
from cord_trio.gateway.steps import Reply
from cord_trio.protocol.eras import ERAS, LATEST_LEGACY, LATEST_MODERN
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, encode, encode_error, encode_result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cord_trio.gateway.ports import Snapshot
    from cord_trio.gateway.steps import List
    from cord_trio.protocol.eras import Era
    from cord_trio.protocol.tools import Tool

PAGE_TOOLS: Final = 1_000
"""Tools in one page."""

PAGE_BYTES: Final = 8 * 1024 * 1024
"""Bytes of one page, unless a single tool is larger."""

MAX_VIEWS: Final = 4
"""Older lists kept for clients that are in the middle of them."""

VIEW_LIFE: Final = 300.0
"""Seconds an older list is kept."""

TTL_MS: Final = 60_000
"""Milliseconds for which a client may trust a list; changes are told to whoever listens."""

HINTS: Final = b'"ttlMs":%d,"cacheScope":"private"' % TTL_MS
"""What a modern result that may be cached says of that (MCP 2026-07-28, caching)."""

_MAC: Final = 16
_POSITION = struct.Struct(">QQ")


class View:
    """The list of one snapshot, as JSON text per tool. Immutable once made, but for the pages it caches."""

    __slots__ = ("legacy", "modern", "pages", "serial", "superseded", "version")

    def __init__(self, serial: int, version: int, modern: Sequence[bytes], legacy: Sequence[bytes]) -> None:
        self.serial = serial
        self.version = version
        self.modern = modern
        self.legacy = legacy
        self.pages: dict[tuple[bool, int], tuple[bytes, int]] = {}
        self.superseded: float | None = None

    def page(self, modern: bool, start: int, size: int) -> tuple[bytes, int]:
        """The array of tools from `start` on, and where the next page starts; 0 if there is none."""
        page = self.pages.get((modern, start))
        if page is None:
            tools = self.modern if modern else self.legacy
            end, weight = start, 0
            while end < len(tools) and end - start < size and (end == start or weight + len(tools[end]) <= PAGE_BYTES):
                weight += len(tools[end])
                end += 1
            page = (b"[%b]" % b",".join(tools[start:end]), end if end < len(tools) else 0)
            self.pages[modern, start] = page
        return page


class Catalogue:
    """Lists snapshots. A cursor belongs to the list that it was made for, and to this process.

    Args:
        key: secret bytes that cursors are signed with.
        page: tools in one page.

    """

    def __init__(self, key: bytes, page: int = PAGE_TOOLS) -> None:
        self._key = key
        self._page = page
        self._encoded: dict[str, tuple[Tool, bytes, bytes]] = {}
        self._view = View(0, -1, (), ())
        self._older: OrderedDict[int, View] = OrderedDict()

    def view(self, snapshot: Snapshot, now: float) -> View:
        """The list of `snapshot`; the same one as before if no tool has changed."""
        view = self._view
        if snapshot.version == view.version:
            return view
        encoded = {name: self._encode(name, route.tool) for name, route in snapshot.tools.items()}
        self._encoded = encoded
        modern = tuple(entry[1] for entry in encoded.values())
        if view.serial and modern == view.modern:
            view.version = snapshot.version
            return view
        if any(end for _, end in view.pages.values()):  # someone may hold a cursor into it
            view.superseded = now
            self._older[view.serial] = view
            while len(self._older) > MAX_VIEWS:
                self._older.popitem(last=False)
        legacy = tuple(entry[2] for entry in encoded.values())
        self._view = View(view.serial + 1, snapshot.version, modern, legacy)
        return self._view

    def list(self, snapshot: Snapshot, era: Era, cursor: str | None, now: float) -> tuple[bytes, str | None]:
        """One page as a JSON array, and the cursor of the next.

        Raises:
            Malformed: the cursor is none of ours, or its list is no longer kept (-32602).

        """
        view, start = self.view(snapshot, now), 0
        if cursor is not None:
            serial, start = self._open(cursor)
            if serial != view.serial:
                view = self._kept(serial, now)
        page, after = view.page(era.modern, start, self._page)
        return page, self._seal(view.serial, after) if after else None

    def answer(self, step: List, snapshot: Snapshot, signature: bytes, now: float) -> Reply:
        """The answer to `tools/list`. `signature` is the `_meta` member of our own modern results."""
        try:
            page, cursor = self.list(snapshot, step.era, step.cursor, now)
        except Malformed as exc:
            return Reply(encode_error(step.id, exc.code, str(exc)))
        more = b"" if cursor is None else b',"nextCursor":%b' % encode(cursor)
        if step.era.modern:
            result = b'{"resultType":"complete","tools":%b%b,%b,%b}' % (page, more, HINTS, signature)
        else:
            result = b'{"tools":%b%b}' % (page, more)
        return Reply(encode_result(step.id, result))

    def _encode(self, name: str, tool: Tool) -> tuple[Tool, bytes, bytes]:
        entry = self._encoded.get(name)
        if entry is not None and entry[0] is tool:
            return entry
        return tool, tool_for(ERAS[LATEST_MODERN], tool, name), tool_for(ERAS[LATEST_LEGACY], tool, name)

    def _kept(self, serial: int, now: float) -> View:
        view = self._older.get(serial)
        if view is None or view.superseded is None or view.superseded + VIEW_LIFE < now:
            self._older.pop(serial, None)
            raise Malformed(INVALID_PARAMS, "the list has changed since this cursor was made: start over")
        return view

    def _seal(self, serial: int, start: int) -> str:
        position = _POSITION.pack(serial, start)
        return base64.urlsafe_b64encode(position + self._mac(position)).decode()

    def _open(self, cursor: str) -> tuple[int, int]:
        try:
            sealed = base64.b64decode(cursor.encode("ascii"), b"-_", validate=True)
        except (ValueError, binascii.Error):
            sealed = b""
        position, mac = sealed[: _POSITION.size], sealed[_POSITION.size :]
        if len(position) < _POSITION.size or not hmac.compare_digest(mac, self._mac(position)):
            raise Malformed(INVALID_PARAMS, "this cursor is none of ours")
        serial, start = _POSITION.unpack(position)
        return serial, start

    def _mac(self, position: bytes) -> bytes:
        return hashlib.blake2b(position, key=self._key, digest_size=_MAC, person=b"cord cursor").digest()
