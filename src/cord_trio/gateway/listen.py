"""Telling clients that the list of tools has changed.

Level-triggered: each stream has one dirty flag and no queue, so a slow reader gets one event for many
changes and costs nothing meanwhile.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import trio

from cord_trio.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from cord_trio.counters import Counters
    from cord_trio.gateway.catalogue import Catalogue
    from cord_trio.gateway.ports import Registry

DEBOUNCE: Final = 0.1
"""Seconds in which further changes become one notification."""

MAX_WATCHES: Final = 1_024
"""Streams that are told of changes."""

STUCK: Final = 60.0
"""Seconds for which a stream may take nothing before it is closed."""


class Outlet(Protocol):
    """A stream to a client."""

    def tell(self, message: bytes, /) -> None:
        """Write one notification."""

    async def wait_room(self) -> None:
        """Return once the client reads, or is gone."""


class Watch:
    """One stream's interest. `ring` and `end` wake whoever waits; several rings are one.

    Attributes:
        ended: why it is over; None while it is not.

    """

    __slots__ = ("_dirty", "_wake", "ended")

    def __init__(self) -> None:
        self.ended: str | None = None
        self._dirty = False
        self._wake = trio.Event()

    def ring(self) -> None:
        """There is news."""
        self._dirty = True
        self._wake.set()

    def end(self, reason: str) -> None:
        """There will be no more news."""
        self.ended = self.ended or reason
        self._wake.set()

    def take(self) -> None:
        """The news is being told."""
        self._dirty = False

    async def wait(self) -> bool:
        """True once there is news, False once it has ended."""
        while not self._dirty and self.ended is None:
            self._wake = trio.Event()
            await self._wake.wait()
        await trio.lowlevel.checkpoint()
        return self.ended is None


class Changes:
    """Watches the registry for all streams.

    Attributes:
        generation: rises with each change of the list.

    """

    def __init__(self, registry: Registry, catalogue: Catalogue, counters: Counters) -> None:
        self._registry = registry
        self._catalogue = catalogue
        self._counters = counters
        self._watches: dict[Watch, bool] = {}
        self._over: str | None = None
        self.generation = catalogue.view(registry.snapshot, 0.0).serial

    def __len__(self) -> int:
        return len(self._watches)

    @contextmanager
    def watch(self, *, tools: bool = True) -> Generator[Watch, None, None]:
        """A watch that is rung from now on, if it is about `tools`.

        Raises:
            Overloaded: there are too many.

        """
        if len(self._watches) >= MAX_WATCHES:
            self._counters.add("gateway.watches_refused")
            raise Overloaded("gateway.watches", MAX_WATCHES)
        watch = Watch()
        if self._over is not None:
            watch.end(self._over)
        self._watches[watch] = tools
        try:
            yield watch
        finally:
            self._watches.pop(watch, None)

    def end(self, reason: str) -> None:
        """End every watch, and those to come."""
        self._over = reason
        for watch in tuple(self._watches):
            watch.end(reason)

    def look(self) -> None:
        """Ring, if the list is another one than when we looked last."""
        serial = self._catalogue.view(self._registry.snapshot, trio.current_time()).serial
        if serial != self.generation:
            self.generation = serial
            for watch, tools in tuple(self._watches.items()):
                if tools:
                    watch.ring()

    async def run(self) -> None:
        """Ring at each change, until cancelled."""
        version = self._registry.snapshot.version
        while True:
            self.look()
            version = (await self._registry.changed(version)).version
            await trio.sleep(DEBOUNCE)
            version = max(version, self._registry.snapshot.version)


async def follow(watch: Watch, outlet: Outlet, message: bytes, told: Callable[[], None] = lambda: None) -> None:
    """Tell `outlet` of news until the watch ends, or the client takes nothing for too long.

    Args:
        watch: whose news.
        outlet: the way to the client.
        message: the notification, complete.
        told: called after each.

    """
    while await watch.wait():
        with trio.move_on_after(STUCK) as patience:
            await outlet.wait_room()
        if patience.cancelled_caught:
            return
        watch.take()
        outlet.tell(message)
        told()
