"""Who wants to hear of which resource, led to the source that has it, be it that this has not listed it yet."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.config import Foreign
from cord_trio.config.rules import Shown, denying, words_of
from cord_trio.errors import Denied
from cord_trio.routing import ROUTED, told_as
from cord_trio.snapshot import RULED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Sequence

    from cord_trio.call import Call
    from cord_trio.config.rules import Rule
    from cord_trio.pages import Pages
    from cord_trio.registry import Registry
    from cord_trio.replicas import Kept
    from cord_trio.routing import Elsewhere, Finder
    from cord_trio.snapshot import Kind

NOTHING_HIDDEN: Final = frozenset[str]()


@attrs.define(eq=False)
class _Wish:
    """One who wants to hear of resources.

    Attributes:
        principal: who it is.
        sink: told of each.
        wanted: those whose sources are known: who keeps it, and what it calls it, by the exported name.
        late: those that no source has now, by their exported names.
        scope: of the task that looks for those; None if none does.

    """

    principal: str
    sink: Callable[[str], None]
    wanted: dict[str, tuple[Kept, str]] = attrs.field(factory=dict)
    late: list[str] = attrs.field(factory=list)
    scope: trio.CancelScope | None = None


class Subscribing:
    """The part of `Sources` that knows whose things are, who may see them, and who wants to hear of them."""

    registry: Registry
    links: dict[str, Kept]
    elsewhere: Elsewhere | None
    _finder: Finder
    _pages: Pages
    _nursery: trio.Nursery | None

    def __init__(self) -> None:
        self._wishes: dict[_Wish, None] = {}
        self._ruled: tuple[dict[str, Kept], dict[str, Sequence[Rule | Shown]]] = {}, {}

    def source_of(self, call: Call) -> str | None:
        """The source that `call` is for, by what is listed now; None if none is known to have it."""
        snapshot = self.registry.snapshot
        if call.method == "tools/call":
            route = snapshot.tools.get(call.name or "")
            return None if route is None else route.source
        way = self._finder.way(snapshot, call) if call.method in ROUTED else None
        return None if way is None else way[0]

    async def wait_pages(self, ids: Iterable[str], patience: float, call: Call | None = None) -> bool:
        """Return once servers told that the pages `ids` are done with, or after `patience` seconds; whether they did.

        A server that wants pages opened before it runs `call` (error -32042) may be called again then.
        """
        link = None if call is None else self.links.get(self.source_of(call) or "")
        if link is not None and self.elsewhere is not None and isinstance(link.source, Foreign):
            return await self.elsewhere.wait_pages(link.name, tuple(ids), patience)
        return await self._pages.wait(ids, patience)

    def hidden(self, kind: Kind, principal: str) -> frozenset[str]:
        """The exported names of a list that `principal` is not shown, by the rules of their sources."""
        ruled = self._rules() if kind in RULED else {}
        if not ruled:
            return NOTHING_HIDDEN
        found: set[str] = set()
        merged = self.registry.snapshot.merged.get(kind, {})
        for name in ruled:
            rules = self._rules_for(name, principal)
            if rules and name in merged:
                routes = merged[name].routes.items()
                found.update(public for public, route in routes if denying(rules, kind, route.key) is not None)
        return frozenset(found)

    def refusal(self, principal: str, uri: str) -> Denied | None:
        """Why `principal` may not have the resource that is exported as `uri`; None if no rule denies it."""
        way = self._finder.resource(self.registry.snapshot, uri) if self._rules() else None
        return None if way is None else self._refusal(principal, uri, way)

    def _refusal(self, principal: str, uri: str, way: tuple[str, str]) -> Denied | None:
        source, own = way
        rule = denying(self._rules_for(source, principal), "resources", own)
        return None if rule is None else Denied(uri, words_of(rule, source, self._rules()[source]))

    def _rules(self) -> dict[str, Sequence[Rule | Shown]]:
        """Of each source that has some about prompts and resources."""
        if self._ruled[0] is not self.links:  # another configuration has come
            found: dict[str, Sequence[Rule | Shown]] = {}
            for name, link in self.links.items():
                source = link.source
                rules = source.shown if isinstance(source, Foreign) else source.rules
                if any(isinstance(rule, Shown) or rule.prompts or rule.resources for rule in rules):
                    found[name] = rules
            self._ruled = self.links, found
        return self._ruled[1]

    def _rules_for(self, source: str, principal: str) -> list[Rule | Shown]:
        rules = self._rules().get(source, ())
        if rules and self.elsewhere is not None and isinstance(self.links[source].source, Foreign):
            principal = f"{principal}@{self.elsewhere.node}"  # as its node knows who calls from here
        return [rule for rule in rules if rule.is_for(principal)]

    @contextmanager
    def subscribe(
        self, principal: str, uris: Iterable[str], sink: Callable[[str], None]
    ) -> Generator[None, None, None]:
        """While entered, `sink` is called with each of `uris`, or a part of it, that is updated.

        What no source has is not told of, until one lists it; then it is told of once, since it may have changed
        meanwhile. So is what a source had that was gone in between. The server behind is asked once for all who want
        the same.

        Args:
            principal: who wants to know.
            uris: as they are exported.
            sink: must not block.

        Raises:
            Denied: a rule of its source denies one of them; nothing was subscribed to.

        """
        wish, uris = _Wish(principal, sink), tuple(uris)
        for public in uris:
            if (refusal := self.refusal(principal, public)) is not None:
                raise refusal
        wish.late = [public for public in dict.fromkeys(uris) if not self._lead(wish, public)]
        self._wishes[wish] = None
        try:
            self._look_for(wish)
            yield
        finally:
            del self._wishes[wish]
            if wish.scope is not None:
                wish.scope.cancel("nobody wants to hear of it any more")
            for link, uri in dict.fromkeys(wish.wanted.values()):
                link.subscriptions.remove(uri, wish)

    def _lead(self, wish: _Wish, public: str) -> bool:
        """Have the source of `public` tell of it; returns whether there is one."""
        way = self._finder.resource(self.registry.snapshot, public)
        link = None if way is None else self.links.get(way[0])
        if way is None or link is None:
            return False
        if self._refusal(wish.principal, public, way) is not None:  # it came late, and is not told of
            return True
        told = told_as(way[1], public, link.source.export_prefix, wish.sink)
        if (link, way[1]) not in wish.wanted.values():
            link.subscriptions.add(way[1], wish, told)
            link.wake()
        wish.wanted[public] = link, way[1]
        return True

    def _lose(self, gone: Collection[Kept]) -> None:
        """These are kept no more: what they told of is looked for anew."""
        for wish in tuple(self._wishes):
            for public, (link, uri) in tuple(wish.wanted.items()):
                if link in gone:
                    del wish.wanted[public]
                    if (link, uri) not in wish.wanted.values():
                        link.subscriptions.remove(uri, wish)
                    wish.late.append(public)
            self._look_for(wish)

    def _look_for(self, wish: _Wish) -> None:
        if wish.late and wish.scope is None and self._nursery is not None:
            wish.scope = trio.CancelScope()
            self._nursery.start_soon(self._find_late, wish, wish.scope, name="late subscription")

    async def _find_late(self, wish: _Wish, scope: trio.CancelScope) -> None:
        """Subscribe to what nobody has listed yet, as soon as somebody has."""
        with scope:
            while wish.late:  # noqa: ASYNC913  # goes on only after a change
                snapshot = self.registry.snapshot
                for public in tuple(wish.late):
                    if self._lead(wish, public):
                        wish.late.remove(public)
                        if public in wish.wanted:
                            wish.sink(public)
                if not wish.late:
                    break
                try:
                    await self.registry.changed(snapshot.version)
                except trio.BrokenResourceError:
                    return  # the fabric has ended
            wish.scope = None
