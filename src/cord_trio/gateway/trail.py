"""What is kept of an event stream, so that a legacy client whose connection broke can have the rest of it.

Ids are `stream-number`: unique in the session, and each says which stream it belongs to, so that never an
event of another stream is replayed (MCP 2025-11-25, transports, resumability).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from cord_trio.protocol.framing import encode_sse

if TYPE_CHECKING:
    from cord_trio.counters import Counters

KEPT_EVENTS: Final = 256
"""Events kept of one stream; the oldest go first."""

KEPT_BYTES: Final = 1024 * 1024
"""Bytes kept of one stream; the newest event is kept even if it alone is longer."""

KEPT_IN_ALL: Final = 64 * 1024 * 1024
"""Bytes kept of all streams; further events are sent, but not kept."""

KEPT_FOR: Final = 60.0
"""Seconds for which a stream is kept after its answer."""

MAX_TRAILS: Final = 1_024
"""Streams kept of one session; the one that was answered first goes first."""

STANDING: Final = 0
"""The number of a session's stream for what belongs to no request."""

_Way = TypeVar("_Way")


class Store:
    """How much all streams together may keep."""

    __slots__ = ("counters", "limit", "used")

    def __init__(self, counters: Counters, limit: int = KEPT_IN_ALL) -> None:
        self.counters = counters
        self.limit = limit
        self.used = 0


class Trail:
    """The newest events of one stream.

    Attributes:
        number: of the stream, within its session.
        begun: whether the client was told an id, so that it can ask for the rest.

    """

    __slots__ = ("_bytes", "_count", "_events", "_missing", "_primed", "_store", "begun", "number")

    def __init__(self, number: int, store: Store, *, primed: bool = False) -> None:
        self.number = number
        self.begun = False
        self._store = store
        self._primed = primed
        self._events: list[tuple[int, bytes]] = []  # an empty deque takes 600 bytes more, for each idle session
        self._bytes = 0
        self._count = 0
        self._missing = 0  # the newest event that is not kept any more, or never was

    def begin(self) -> bytes:
        """What the stream begins with: an id alone, for clients that know of such; else nothing.

        It is the one event with empty data, which older clients take for a broken message (SEP-1699).
        """
        return self._encode(b"") if self._primed else b""

    def add(self, message: bytes) -> bytes:
        """The next event, encoded; it is kept from here on."""
        event = self._encode(message)
        store, size = self._store, len(event)
        while self._events and (len(self._events) >= KEPT_EVENTS or self._bytes + size > KEPT_BYTES):
            self._drop_oldest()
        if store.used + size > store.limit:
            store.counters.add("gateway.events_not_kept")
            self.clear()
            self._missing = self._count
        else:
            self._events.append((self._count, event))
            self._bytes += size
            store.used += size
        return event

    def since(self, count: int) -> list[bytes] | None:
        """The events after number `count`; None if some of them are not kept, or there never was such a one."""
        if not self._missing <= count <= self._count:
            return None
        return [event for number, event in self._events if number > count]

    def clear(self) -> None:
        """Keep nothing of what was."""
        if self._events:
            self._missing = self._events[-1][0]
            self._events.clear()
            self._store.used -= self._bytes
            self._bytes = 0

    def _encode(self, message: bytes) -> bytes:
        self._count += 1
        self.begun = True
        return encode_sse(message, id=f"{self.number}-{self._count}")

    def _drop_oldest(self) -> None:
        self._missing, event = self._events.pop(0)
        self._bytes -= len(event)
        self._store.used -= len(event)


class Trails(Generic[_Way]):
    """The streams of one session that can be resumed, each with the way to whoever reads it now."""

    __slots__ = ("_minted", "_store", "_ways", "standing")

    def __init__(self, store: Store, *, primed: bool) -> None:
        self._store = store
        self._minted = STANDING
        self._ways: dict[int, tuple[_Way, Trail, float]] = {}
        self.standing = Trail(STANDING, store, primed=primed)

    def __len__(self) -> int:
        return len(self._ways)

    def begin(self, way: _Way, *, primed: bool) -> Trail:
        """A new stream, which `way` leads to."""
        while len(self._ways) >= MAX_TRAILS:
            first = min(self._ways, key=lambda number: self._ways[number][2])
            self._store.counters.add("gateway.trails_dropped")
            self._forget(first)
        self._minted += 1
        trail = Trail(self._minted, self._store, primed=primed)
        self._ways[trail.number] = (way, trail, math.inf)
        return trail

    def end(self, trail: Trail, now: float) -> None:
        """The stream is answered. It is kept a while, if its client can ask for it at all."""
        found = self._ways.get(trail.number)
        if found is None:
            trail.clear()  # it was dropped, or the whole session was
        elif trail.begun:
            self._ways[trail.number] = (found[0], trail, now + KEPT_FOR)
        else:
            self._forget(trail.number)

    def find(self, event_id: str, now: float) -> tuple[_Way | None, Trail, int] | None:
        """The way to the stream of an event, the stream, and the event's number; None if nothing is kept of it.

        The standing stream has no way of its own: whoever asks for it becomes its reader.
        """
        self.sweep(now)
        stream, _, count = event_id.partition("-")
        if not (_is_number(stream) and _is_number(count)):
            return None
        if int(stream) == STANDING:
            return None, self.standing, int(count)
        found = self._ways.get(int(stream))
        return None if found is None else (found[0], found[1], int(count))

    def sweep(self, now: float) -> None:
        """Forget streams whose time is over."""
        for number in [number for number, (_, _, until) in self._ways.items() if until <= now]:
            self._forget(number)

    def clear(self) -> None:
        """Forget everything."""
        for number in list(self._ways):
            self._forget(number)
        self.standing.clear()

    def _forget(self, number: int) -> None:
        self._ways.pop(number)[1].clear()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 15
