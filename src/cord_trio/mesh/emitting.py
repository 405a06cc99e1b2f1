"""What an agent emits for whoever streams it from another node: in order, and no faster than it is looked at.

Whoever emits asks, each time that it is `AHEAD`, and goes on once no more than `LEFT` wait there. An asker of an
earlier version cannot be asked, and drops what it has no room for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio
from msgspec import Raw

from cord_trio.errors import CallError
from cord_trio.protocol.jsonrpc import UNREADABLE, parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.agents.turn import Sink
    from cord_trio.counters import Counters

log = logging.getLogger("cord_trio.mesh")

AHEAD: Final = 256
"""Values that an agent emits before it asks whether those before were looked at."""

AHEAD_OCTETS: Final = 1024 * 1024
"""Bytes of them, likewise."""

LEFT: Final = 128
"""Values that may not have been looked at when it goes on."""

BEHIND: Final = 1024
"""Values that wait to be looked at; more than `AHEAD` and `LEFT` come only from who does not ask. The newest go."""


class Pace:
    """How far one agent is ahead of whoever streams it.

    Args:
        wait: returns once there is room at that one's node.

    """

    def __init__(self, wait: Callable[[], Awaitable[object]]) -> None:
        self._wait = wait
        self._values = 0
        self._octets = 0
        self._waiting: trio.Event | None = None

    async def keep(self, octets: int) -> None:
        """Return once one more, so long, may be emitted."""
        while self._values >= AHEAD or self._octets >= AHEAD_OCTETS:
            if self._waiting is None:
                await self._catch_up()
            else:
                await self._waiting.wait()
        self._values += 1
        self._octets += octets

    async def _catch_up(self) -> None:
        self._waiting = waiting = trio.Event()
        try:
            await self._wait()
        except CallError as exc:
            log.debug("who streams an agent does not say what it has looked at: %s", exc)
        finally:
            self._waiting = None
            waiting.set()
        self._values = self._octets = 0


class Unseen:
    """What came of an agent of another node, until whoever streams it has looked at it.

    Args:
        sink: shows a value.
        counters: where to count.

    """

    def __init__(self, sink: Sink, counters: Counters) -> None:
        self._sink = sink
        self._counters = counters
        self.send, self._receive = trio.open_memory_channel[Raw](BEHIND)
        self._looked = trio.Event()

    def take(self, _method: str, params: Raw) -> None:
        """One more came. Satisfies `EventSink`."""
        try:
            self.send.send_nowait(params)
        except trio.WouldBlock:
            self._counters.add("mesh.emitted_dropped")

    async def show(self) -> None:
        """Show them, until `send` is closed."""
        try:
            async for value in self._receive:
                try:
                    given = parse(value)
                except UNREADABLE:
                    self._counters.add("mesh.bad_frames")
                    continue
                await self._sink(given)
                if self._room:
                    self._looked.set()
        finally:
            self._receive.close()
            self._looked.set()

    @property
    def _room(self) -> bool:
        statistics = self._receive.statistics()
        return statistics.current_buffer_used <= LEFT or not statistics.open_receive_channels

    async def wait_room(self) -> None:
        """Return once few enough wait."""
        while not self._room:
            self._looked = trio.Event()
            await self._looked.wait()
        await trio.lowlevel.checkpoint()
