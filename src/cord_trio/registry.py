"""What tools exist: one task that owns it, and the immutable, numbered value that it publishes.

In one Trio loop a plain function is atomic already, so the channel is not there for mutual exclusion. It
gives order to changes whose making spans an `await`, holds back sources that change too often, and lets
many changes become one version. Readers take one attribute and need no `await`.
"""

from __future__ import annotations

from functools import partial
from itertools import repeat
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from cord_trio.cell import Cell
from cord_trio.counters import Counters
from cord_trio.names import Names
from cord_trio.protocol.items import Prompt, Resource, Template
from cord_trio.protocol.tools import Tool, exported_name
from cord_trio.protocol.uris import export_template, export_uri, relink_meta
from cord_trio.snapshot import (
    KEY_OF,
    KINDS,
    NO_EXPORTS,
    WORDS,
    AnyRoute,
    Exports,
    Kind,
    Listed,
    PromptRoute,
    ResourceRoute,
    Route,
    Snapshot,
    SourceView,
    State,
    TemplateRoute,
    problem,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cord_trio.config import Source
    from cord_trio.handshake import Greeting
    from cord_trio.snapshot import Item

__all__ = ["AGENTS", "NO_LISTS", "Exports", "Listed", "Registry", "Route", "Snapshot", "SourceView", "State", "Update"]

UPDATES: Final = 64
"""Changes that may wait for the registry's task; a source that brings another one waits."""

MAX_TOOLS: Final = 10_000
"""Tools of one source, and as many of its prompts, resources and templates; the others are left out and reported."""

AGENTS: Final = "agent"
"""What stands for the source of agents that are exported as tools, and the prefix of those. No source has it."""

_NAME: Final = attrgetter("name")
_META: Final = attrgetter("meta")

NO_LISTS: Final[Mapping[Kind, Listed]] = MappingProxyType({})
"""No list has changed."""


@attrs.frozen
class Update:
    """What one source says of itself.

    Attributes:
        source: its name, as configured.
        epoch: above that of every earlier update of the source, else nothing happens.
        state: how it is from now on.
        tools: in the server's order; None if they did not change.
        reason: why it is down.
        next_try: Trio time of the next attempt to connect, if one is planned.
        greeting: what the server said of itself; None if it did not change.
        notes: what was wrong with its list of tools; taken only together with `tools`.
        lists: its other lists that may have changed, by kind.

    """

    source: str
    epoch: int
    state: State
    tools: tuple[Tool, ...] | None = None
    reason: str = ""
    next_try: float | None = None
    greeting: Greeting | None = None
    notes: tuple[str, ...] = ()
    lists: Mapping[Kind, Listed] = NO_LISTS


class Registry:
    """Owns the current `snapshot`; takes changes one after the other.

    Invariants: versions rise by one; a source's epochs only rise; whoever sent a change reads a
    snapshot that has it as soon as it is acknowledged; a published snapshot never changes.

    Attributes:
        snapshot: the newest one.

    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        bound: int = UPDATES,
        max_tools: int = MAX_TOOLS,
        counters: Counters | None = None,
    ) -> None:
        self._sources = dict(sources)
        self._max_tools = max_tools
        self._counters = Counters() if counters is None else counters
        self._send, self._receive = trio.open_memory_channel[tuple[Update, Cell[Snapshot]]](bound)
        self._watchers: dict[Cell[None], None] = {}
        self._ended = False
        self._agents = NO_EXPORTS
        self._clashing: set[Kind] = set()  # of which some names would be exported twice
        views = {name: SourceView(name) for name in sources}
        self.snapshot = attrs.evolve(self._next(Snapshot(), views, NO_EXPORTS), version=0)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Publish changes in the order they were sent, until cancelled. Those sent meanwhile share a version."""
        try:
            task_status.started()
            async for first in self._receive:
                self._publish([first, *self._waiting()])
        finally:
            self._end()

    async def update(self, update: Update) -> Snapshot:
        """Change one source; returns the snapshot that was current once the change was in it.

        If cancelled while waiting for that, the change may still be published.

        Raises:
            ValueError: no such source is configured.
            trio.BrokenResourceError: `run` has ended.

        """
        ack = Cell[Snapshot]()
        await self._send.send((update, ack))
        return await ack.wait(_nothing)

    async def changed(self, since: int) -> Snapshot:
        """The newest snapshot, as soon as its version is above `since`; versions in between are skipped.

        Raises:
            trio.BrokenResourceError: `run` has ended.

        """
        if self._ended:
            raise trio.BrokenResourceError
        if self.snapshot.version > since:
            await trio.lowlevel.checkpoint()
        else:
            cell = Cell[None]()
            self._watchers[cell] = None
            await cell.wait(partial(self._forget, cell))
        return self.snapshot

    def _forget(self, watcher: Cell[None]) -> None:
        self._watchers.pop(watcher, None)

    def _waiting(self) -> list[tuple[Update, Cell[Snapshot]]]:
        """What is in the channel. Ends, since nobody can send meanwhile."""
        waiting = []
        while True:
            try:
                waiting.append(self._receive.receive_nowait())
            except trio.WouldBlock:
                return waiting

    @trio.lowlevel.enable_ki_protection
    def _publish(self, changes: Sequence[tuple[Update, Cell[Snapshot]]]) -> None:
        old = self.snapshot
        changed: dict[str, SourceView] = {}
        applied = []
        for update, ack in changes:
            name = update.source
            view = changed.get(name) or old.sources.get(name)
            if view is None:
                ack.fail(ValueError(f"no source named {name!r} is configured"))
                continue
            if update.epoch <= view.epoch:
                self._counters.add("registry.stale_update")
            else:
                changed[name] = self._updated(view, update)
            applied.append(ack)
        if changed:
            self._show(self._with(old, changed))
        for ack in applied:
            ack.settle(self.snapshot)

    def _show(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._counters.add("registry.version")
        watchers, self._watchers = self._watchers, {}
        for watcher in watchers:
            watcher.settle(None)

    @trio.lowlevel.enable_ki_protection
    def export_agents(self, tools: Sequence[Tool]) -> None:
        """List agents as tools, all of them at once; each is called as `agent__NAME`."""
        routes = [Route(exported_name(AGENTS, tool.name), AGENTS, tool) for tool in tools]
        agents = Exports(MappingProxyType({route.public: route for route in routes}))
        snapshot = self._next(self.snapshot, dict(self.snapshot.sources), agents)
        self._agents = agents
        self._show(snapshot)

    @trio.lowlevel.enable_ki_protection
    def configure(self, sources: Mapping[str, Source], epochs: Mapping[str, int]) -> None:
        """Have these sources from here on, in this order.

        Args:
            sources: by name.
            epochs: of those that are new or have other settings: from which on their updates count. One that was
                there before keeps its lists, as its settings now export them, until it brings its own.

        """
        old = self.snapshot
        self._sources = dict(sources)
        views = {}
        for name, source in sources.items():
            view = old.sources.get(name)
            if view is None:
                view = SourceView(name, epochs.get(name, 0))
            elif name in epochs:
                parts = {kind: self._exports(source, kind, listed)[1] for kind, listed in view.lists.items()}
                view = attrs.evolve(view, epoch=epochs[name], state="configured", reason="", next_try=None, parts=parts)
            views[name] = view
        self._show(self._next(old, views, self._agents))

    def _updated(self, view: SourceView, update: Update) -> SourceView:
        brought = dict(update.lists)
        if update.tools is not None:
            brought["tools"] = Listed(update.tools, update.notes)
        lists, parts = view.lists, view.parts
        for kind, listed in brought.items():
            if listed != view.listed(kind):
                before = view.parts.get(kind, NO_EXPORTS)
                kept, exports = self._exports(self._sources[view.name], kind, listed, before)
                lists, parts = {**lists, kind: kept}, {**parts, kind: exports}
        return SourceView(
            view.name,
            update.epoch,
            update.state,
            update.reason,
            update.next_try,
            view.greeting if update.greeting is None else update.greeting,
            lists,
            parts,
        )

    def _exports(
        self, source: Source, kind: Kind, listed: Listed, before: Exports = NO_EXPORTS
    ) -> tuple[Listed, Exports]:
        """What is kept of a list, and exported; `before`: what the source exported so far, under the same settings."""
        items = listed.items[: self._max_tools]
        problems = [problem(source.name, note, "") for note in listed.notes]
        dropped = len(listed.items) - len(items)
        if dropped:
            self._counters.add("registry.tools_dropped", dropped)
            what = f"{dropped} {WORDS[kind]}s beyond the bound {self._max_tools} are left out"
            problems.append(problem(source.name, what, ""))
        if kind == "tools" and not problems:
            same = _same_names(source.name, items, before)  # type: ignore[arg-type]  # they are tools
            if same is not None:
                return Listed(items, listed.notes), Exports(MappingProxyType(same), (), before.spelled)
        known = dict(zip(map(KEY_OF[kind], before.routes.values()), before.routes.values(), strict=True))
        prefix = source.export_prefix
        routes: dict[str, AnyRoute] = {}
        for item in items:
            route = known.get(item.key)
            if route is None:
                route = _route(source, prefix, item)
            elif route.item != item:
                if type(item) is Tool and item.meta is None:  # the plain case, of which there may be many
                    route = Route(route.public, source.name, item)
                else:
                    route = _route(source, prefix, item, route.public)
            if route is None:
                continue
            first = routes.get(route.public)
            if first is None:
                routes[route.public] = route
            else:
                public, word = route.public, WORDS[kind]
                what = f"{word} {route.key!r} is not exported: the source's {first.key!r} already is as {public!r}"
                problems.append(problem(source.name, what, "rename or deny one of them"))
        spelled = _spelled([route.key for route in routes.values()]) if kind == "tools" else ""
        return Listed(items, listed.notes), Exports(MappingProxyType(routes), tuple(problems), spelled)

    def _with(self, old: Snapshot, changed: Mapping[str, SourceView]) -> Snapshot:
        """The snapshot after `old`, with other views of some sources; what it costs goes by how much they changed."""
        # Not `**`, which takes the items of a mapping that is no dict one by one.
        sources = old.sources.copy()  # type: ignore[attr-defined]  # a proxy of a dict, which has it
        sources.update(changed)
        lists: dict[str, Any] = {}
        new: set[Kind] = set()
        merged = dict(old.merged)
        problems = False
        for kind in KINDS:
            for name, view in changed.items():
                part, before = view.parts.get(kind, NO_EXPORTS), old.sources[name].parts.get(kind, NO_EXPORTS)
                if part is before:
                    continue
                names = lists.get(kind, getattr(old, kind))
                try:
                    lists[kind] = None if kind in self._clashing else names.changed(name, part.routes)
                except ValueError:  # another source has one of the names
                    lists[kind] = None
                if lists[kind] is None:
                    return self._next(old, sources, self._agents)
                merged[kind] = {**merged[kind], name: part}
                problems = problems or part.problems != before.problems
                if part.routes != before.routes:
                    new.add(kind)
        return self._numbered(old, sources, merged, lists, new, problems=problems)

    def _next(self, old: Snapshot, sources: dict[str, SourceView], agents: Exports) -> Snapshot:
        """The snapshot after `old`, made from the ground up."""
        lists: dict[str, Any] = {}
        new: set[Kind] = set()
        merged: dict[Kind, Mapping[str, Exports]] = {}
        for kind in KINDS:
            parts = {name: view.parts.get(kind, NO_EXPORTS) for name, view in sources.items()}
            if kind == "tools":
                parts[AGENTS] = agents
            merged[kind] = _apart(kind, parts)
            if merged[kind] is parts:
                self._clashing.discard(kind)
            else:
                self._clashing.add(kind)
            if merged[kind] != old.merged.get(kind) or list(merged[kind]) != list(old.merged[kind]):
                lists[kind] = Names({name: part.routes for name, part in merged[kind].items()})
                if not _same(getattr(old, kind), lists[kind]):
                    new.add(kind)
        return self._numbered(old, sources, merged, lists, new, problems=True)

    def _numbered(
        self,
        old: Snapshot,
        sources: dict[str, SourceView],
        merged: dict[Kind, Mapping[str, Exports]],
        lists: dict[str, Any],
        new: set[Kind],
        *,
        problems: bool,
    ) -> Snapshot:
        """The snapshot after `old`; clients see a difference in the lists of the kinds in `new`."""
        version = old.version + 1
        resources = new & {"resources", "templates"}
        if problems:
            found = tuple([each for kind in KINDS for part in merged[kind].values() for each in part.problems])
        else:
            found = old.problems
        return Snapshot(
            version,
            version if "tools" in new else old.listed_tools,
            version if "prompts" in new else old.listed_prompts,
            version if resources else old.listed_resources,
            MappingProxyType(sources),
            lists.get("tools", old.tools),
            lists.get("prompts", old.prompts),
            lists.get("resources", old.resources),
            lists.get("templates", old.templates),
            found,
            merged,
        )

    @trio.lowlevel.enable_ki_protection
    def _end(self) -> None:
        self._ended = True
        waiting = self._waiting()
        self._receive.close()
        for _, ack in waiting:
            ack.fail(trio.BrokenResourceError())
        for watcher in self._watchers:
            watcher.fail(trio.BrokenResourceError())
        self._watchers.clear()


def _route(source: Source, prefix: str, item: Item, public: str | None = None) -> AnyRoute | None:
    """Where `item` is exported, if it is; under `public` if that is known already."""
    name = source.name
    match item:
        case Tool():
            if public is None and (base := source.tools.exports(item.name)) is not None:
                public = exported_name(prefix, base)
            return None if public is None else Route(public, name, _linked(prefix, item))
        case Prompt():
            return PromptRoute(exported_name(prefix, item.name), name, item)
        case Resource():
            return ResourceRoute(export_uri(prefix, item.uri), name, item)
        case Template():
            return TemplateRoute(export_template(prefix, item.uri), name, item)


def _same_names(source: str, tools: Sequence[Tool], before: Exports) -> dict[str, Route] | None:
    """The routes of a list of tools that has the names it had, in their order, all exported; None of any other.

    Most changes are such; on a busy machine a hundred tools took 131 µs one by one, and take 26 so.
    """
    routes = before.routes
    if before.problems or not before.spelled or _spelled(list(map(_NAME, tools))) != before.spelled:
        return None
    if any(map(_META, tools)):  # some of it is exported otherwise than it is listed
        return None
    return dict(zip(routes, map(Route, routes, repeat(source), tools), strict=True))


def _spelled(names: Sequence[str]) -> str:
    """All of them as one text, which no other names have; "" if there is none.

    To compare two such takes half of what it takes to compare names that lie here and there in memory.
    """
    text = "\0".join(names)
    return text if text.count("\0") == len(names) - 1 else ""


def _linked(prefix: str, tool: Tool) -> Tool:
    """`tool` with the page of its App, if it has one, under its exported URI (MCP Apps)."""
    meta = tool.meta
    if not prefix or meta is None or b'esourceUri"' not in bytes(meta):
        return tool
    linked = relink_meta(meta, lambda uri: export_uri(prefix, uri))
    return tool if linked is meta else tool.with_meta(linked)


def _apart(kind: Kind, parts: Mapping[str, Exports]) -> Mapping[str, Exports]:
    """The parts without names that two would export: the first in order keeps them."""
    taken: dict[str, AnyRoute] = {}
    for part in parts.values():
        taken.update(part.routes)
    if len(taken) == sum(len(part.routes) for part in parts.values()):
        return parts
    taken.clear()
    apart = {}
    for name, part in parts.items():
        apart[name] = part.without(taken, kind)
        taken.update(apart[name].routes)
    return apart


def _same(old: Names[Any], new: Names[Any]) -> bool:
    """Whether clients would see no difference. Parts that are shared are not looked into."""
    shown = [part for part in old.parts.values() if part]
    now = [part for part in new.parts.values() if part]
    return len(shown) == len(now) and all(was is part or was == part for was, part in zip(shown, now, strict=True))


def _nothing() -> None:
    return None
