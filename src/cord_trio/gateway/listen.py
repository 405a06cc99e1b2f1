"""Telling clients that lists have changed, or resources.

Level-triggered: each stream has a set of what is news and no queue, so a slow reader gets one event for many
changes and costs nothing meanwhile.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import attrs
import trio

from cord_trio.errors import Overloaded
from cord_trio.gateway.steps import CHANGING
from cord_trio.protocol.jsonrpc import encode, encode_notification

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

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


@attrs.frozen
class Updated:
    """A resource has another content."""

    uri: str


@attrs.frozen
class Changed:
    """A task has another state: the parameters of the notification, without `_meta`. The last one counts."""

    id: str
    state: bytes = attrs.field(eq=False)


News: TypeAlias = str | Updated | Changed
"""A kind whose list has changed, or a resource or a task that has."""


class Watch:
    """One stream's interest. `ring` and `end` wake whoever waits; several rings about one thing are one.

    Attributes:
        ended: why it is over; None while it is not.

    """

    __slots__ = ("_news", "_wake", "ended")

    def __init__(self) -> None:
        self.ended: str | None = None
        self._news: dict[News, None] = {}
        self._wake = trio.Event()

    def ring(self, news: News) -> None:
        """There is news."""
        self._news.pop(news, None)  # an equal one may say less
        self._news[news] = None
        self._wake.set()

    def end(self, reason: str) -> None:
        """There will be no more news."""
        self.ended = self.ended or reason
        self._wake.set()

    def take(self) -> tuple[News, ...]:
        """The news, which is being told."""
        news = tuple(self._news)
        self._news.clear()
        return news

    async def wait(self) -> bool:
        """True once there is news, False once it has ended."""
        while not self._news and self.ended is None:
            self._wake = trio.Event()
            await self._wake.wait()
        await trio.lowlevel.checkpoint()
        return self.ended is None


class Changes:
    """Watches the registry for all streams.

    Attributes:
        generation: of each kind; rises with each change of its list.

    """

    def __init__(self, registry: Registry, catalogue: Catalogue, counters: Counters) -> None:
        self._registry = registry
        self._catalogue = catalogue
        self._counters = counters
        self._watches: dict[Watch, frozenset[str]] = {}
        self._over: str | None = None
        self.generation = catalogue.serials(registry.snapshot, 0.0)

    def __len__(self) -> int:
        return len(self._watches)

    @contextmanager
    def watch(self, kinds: Iterable[str] = CHANGING) -> Generator[Watch, None, None]:
        """A watch that is rung from now on when a list of `kinds` changes.

        Raises:
            Overloaded: there are too many.

        """
        if len(self._watches) >= MAX_WATCHES:
            self._counters.add("gateway.watches_refused")
            raise Overloaded("gateway.watches", MAX_WATCHES)
        watch = Watch()
        if self._over is not None:
            watch.end(self._over)
        self._watches[watch] = frozenset(kinds)
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
        """Ring for each list that is another one than when we looked last."""
        before = self.generation
        self.generation = self._catalogue.serials(self._registry.snapshot, trio.current_time())
        for kind, serial in self.generation.items():
            if serial != before[kind]:
                for watch, kinds in tuple(self._watches.items()):
                    if kind in kinds:
                        watch.ring(kind)

    async def run(self) -> None:
        """Ring at each change, until cancelled."""
        version = self._registry.snapshot.version
        while True:
            self.look()
            version = (await self._registry.changed(version)).version
            await trio.sleep(DEBOUNCE)
            version = max(version, self._registry.snapshot.version)


def news_message(news: News, meta: bytes = b"") -> bytes:
    """The notification of `news`; `meta` is JSON text, empty for a legacy client."""
    if isinstance(news, Changed):
        return encode_notification("notifications/tasks", b'%b,"_meta":%b}' % (news.state[:-1], meta))
    if isinstance(news, Updated):
        more = b',"_meta":%b' % meta if meta else b""
        return encode_notification("notifications/resources/updated", b'{"uri":%b%b}' % (encode(news.uri), more))
    return encode_notification(f"notifications/{news}/list_changed", b'{"_meta":%b}' % meta if meta else b"")


async def follow(
    watch: Watch, outlet: Outlet, meta: bytes = b"", told: Callable[[News], None] = lambda _: None
) -> None:
    """Tell `outlet` of news until the watch ends, or the client takes nothing for too long.

    Args:
        watch: whose news.
        outlet: the way to the client.
        meta: `_meta` of each notification, as JSON text; empty for a legacy client.
        told: called after each.

    """
    while await watch.wait():
        with trio.move_on_after(STUCK) as patience:
            await outlet.wait_room()
        if patience.cancelled_caught:
            return
        for news in watch.take():
            outlet.tell(news_message(news, meta))
            told(news)
