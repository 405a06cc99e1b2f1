"""Who wants to hear of which resource, led to the source that has it, be it that this has not listed it yet."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from cord_trio.routing import told_as

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from cord_trio.registry import Registry
    from cord_trio.replicas import Kept
    from cord_trio.routing import Finder


class Subscribing:
    """The part of `Sources` that subscribes."""

    registry: Registry
    links: dict[str, Kept]
    _finder: Finder
    _nursery: trio.Nursery | None

    @contextmanager
    def subscribe(
        self, principal: str, uris: Iterable[str], sink: Callable[[str], None]
    ) -> Generator[None, None, None]:
        """While entered, `sink` is called with each of `uris`, or a part of it, that is updated.

        What no source has is not told of, until one lists it; then it is told of once, since it may have changed
        meanwhile. The server behind is asked once for all who want the same.

        Args:
            principal: who wants to know.
            uris: as they are exported.
            sink: must not block.

        """
        del principal  # resources that differ by person come with credentials of theirs
        key = object()
        wanted: list[tuple[Kept, str]] = []

        def found(public: str) -> bool:
            way = self._finder.resource(self.registry.snapshot, public)
            link = None if way is None else self.links.get(way[0])
            if way is None or link is None:
                return False
            told = told_as(way[1], public, link.source.export_prefix, sink)
            if (link, way[1]) not in wanted:
                link.subscriptions.add(way[1], key, told)
                link.wake()
                wanted.append((link, way[1]))
            return True

        late = [public for public in dict.fromkeys(uris) if not found(public)]
        scope = trio.CancelScope()

        async def find_late() -> None:
            with scope:
                await self._find_late(late, found, sink)

        try:
            if late and self._nursery is not None:
                self._nursery.start_soon(find_late, name="late subscription")
            yield
        finally:
            scope.cancel("nobody wants to hear of it any more")
            for link, uri in wanted:
                link.subscriptions.remove(uri, key)

    async def _find_late(self, late: list[str], found: Callable[[str], bool], sink: Callable[[str], None]) -> None:
        """Subscribe to what nobody has listed yet, as soon as somebody has."""
        while True:  # noqa: ASYNC913  # goes on only after a change
            snapshot = self.registry.snapshot
            for public in tuple(late):
                if found(public):
                    late.remove(public)
                    sink(public)
            if not late:
                return
            try:
                await self.registry.changed(snapshot.version)
            except trio.BrokenResourceError:
                return  # the fabric has ended
