"""What tools exist: one task that owns it, and the immutable, numbered value that it publishes.

In one Trio loop a plain function is atomic already, so the channel is not there for mutual exclusion. It
gives order to changes whose making spans an `await`, holds back sources that change too often, and lets
many changes become one version. Readers take one attribute and need no `await`.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs
import trio

from cord_trio.cell import Cell
from cord_trio.counters import Counters
from cord_trio.errors import Problem
from cord_trio.protocol.tools import SEPARATOR, exported_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cord_trio.config import Source
    from cord_trio.handshake import Greeting
    from cord_trio.protocol.mcp import Tool

UPDATES: Final = 64
"""Changes that may wait for the registry's task; a source that brings another one waits."""

MAX_TOOLS: Final = 10_000
"""Tools of one source; the others are left out and reported."""

NEAR: Final = 3
"""Names offered in place of one that does not exist."""

NEAR_SEARCH: Final = 200
"""Names compared with one that does not exist: a client that invents names must not hold up the loop."""

State: TypeAlias = Literal["configured", "starting", "ready", "down", "draining"]


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

    """

    source: str
    epoch: int
    state: State
    tools: tuple[Tool, ...] | None = None
    reason: str = ""
    next_try: float | None = None
    greeting: Greeting | None = None
    notes: tuple[str, ...] = ()


@attrs.frozen
class Route:
    """Where the tool that is exported as `public` lives. The server knows it as `tool.name`."""

    public: str
    source: str
    tool: Tool


@attrs.frozen(eq=False)
class Exports:
    """One source's part of the list: made when its tools change, and shared by all snapshots until then."""

    routes: Mapping[str, Route] = attrs.field(factory=dict)
    problems: tuple[Problem, ...] = ()

    @cached_property
    def encoded(self) -> bytes:
        """The tools as members of a JSON list, without its brackets."""
        return b",".join([route.tool.encode(public) for public, route in self.routes.items()])

    def without(self, taken: Mapping[str, Route]) -> Exports:
        """The part that remains when the names in `taken` are; the others become problems."""
        clashes = [
            _problem(
                route.source,
                f"tool {route.tool.name!r} is not exported: "
                f"{taken[public].source!r} already exports its {taken[public].tool.name!r} as {public!r}",
                "give one of the sources another prefix, or rename or deny the tool",
            )
            for public, route in self.routes.items()
            if public in taken
        ]
        if not clashes:
            return self
        routes = {public: route for public, route in self.routes.items() if public not in taken}
        return Exports(routes, (*self.problems, *clashes))


@attrs.frozen(eq=False)
class SourceView:
    """One source in a snapshot. One that is down keeps its last known tools: listed is not callable.

    Attributes:
        name: as configured.
        epoch: of its newest update; 0 before the first.
        state: how it is.
        reason: why it is down.
        next_try: Trio time of the next attempt to connect, if one is planned.
        tools: all of its tools, in its order, whether exported or not.
        greeting: what the server said of itself when it was last connected.
        notes: what was wrong with its list of tools.
        exports: what it adds to the list of tools if no other source has the names.

    """

    name: str
    epoch: int = 0
    state: State = "configured"
    reason: str = ""
    next_try: float | None = None
    tools: tuple[Tool, ...] = ()
    greeting: Greeting | None = None
    notes: tuple[str, ...] = ()
    exports: Exports = attrs.field(factory=Exports, repr=False)


@attrs.frozen(eq=False)
class Snapshot:
    """What tools exist, at one version. Never changes, so it is safe to keep.

    Attributes:
        version: 0 as configured, then counted up by one with each publication.
        listed: the version since which the exported tools are what they are; clients need hear of no other.
        sources: by name, in configured order.
        tools: by exported name; in configured order of sources, then in each server's order.
        problems: names that are not exported, tools that were left out.

    """

    version: int = 0
    listed: int = 0
    sources: Mapping[str, SourceView] = attrs.field(factory=dict)
    tools: Mapping[str, Route] = attrs.field(factory=dict, repr=False)
    problems: tuple[Problem, ...] = ()
    _parts: tuple[Exports, ...] = attrs.field(default=(), repr=False)

    @cached_property
    def encoded_tools(self) -> bytes:
        """All exported tools as a JSON list."""
        return b"[%b]" % b",".join([part.encoded for part in self._parts if part.routes])

    def near(self, name: str) -> tuple[str, ...]:
        """The exported names closest to `name`, the closest first."""
        name = name[:128]
        prefix, _, bare = name.rpartition(SEPARATOR)
        # The right tool of another source, or of none, is the likeliest mistake, and cheap to find.
        same = [public for public in self.tools if public.rpartition(SEPARATOR)[2] == bare]
        siblings = [public for public in self.tools if prefix and public.startswith(prefix)]
        alike = [public for public in self.tools if abs(len(public) - len(name)) <= 2]
        likely = dict.fromkeys([*siblings, *alike])
        close = get_close_matches(name, list(likely)[:NEAR_SEARCH], NEAR)
        return tuple(dict.fromkeys([*same[:NEAR], *close]))[:NEAR]


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
        self.snapshot = Snapshot(sources=MappingProxyType({name: SourceView(name) for name in sources}))
        self._sources = dict(sources)
        self._max_tools = max_tools
        self._counters = Counters() if counters is None else counters
        self._send, self._receive = trio.open_memory_channel[tuple[Update, Cell[Snapshot]]](bound)
        self._watchers: dict[Cell[None], None] = {}
        self._ended = False

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
        sources = dict(old.sources)
        applied = []
        for update, ack in changes:
            view = sources.get(update.source)
            if view is None:
                ack.fail(ValueError(f"no source named {update.source!r} is configured"))
                continue
            if update.epoch <= view.epoch:
                self._counters.add("registry.stale_update")
            else:
                sources[update.source] = self._updated(view, update)
            applied.append(ack)
        if any(view is not old.sources[name] for name, view in sources.items()):
            self.snapshot = self._next(old, sources)
            self._counters.add("registry.version")
            watchers, self._watchers = self._watchers, {}
            for watcher in watchers:
                watcher.settle(None)
        for ack in applied:
            ack.settle(self.snapshot)

    def _updated(self, view: SourceView, update: Update) -> SourceView:
        tools, notes, exports = view.tools, view.notes, view.exports
        if update.tools is not None and (update.tools, update.notes) != (tools, notes):
            tools, exports = self._exports(self._sources[view.name], update)
            notes = update.notes
        return SourceView(
            view.name,
            update.epoch,
            update.state,
            update.reason,
            update.next_try,
            tools,
            view.greeting if update.greeting is None else update.greeting,
            notes,
            exports,
        )

    def _exports(self, source: Source, update: Update) -> tuple[tuple[Tool, ...], Exports]:
        assert update.tools is not None
        tools = update.tools[: self._max_tools]
        problems = [_problem(source.name, note, "") for note in update.notes]
        dropped = len(update.tools) - len(tools)
        if dropped:
            self._counters.add("registry.tools_dropped", dropped)
            problems.append(
                _problem(source.name, f"{dropped} tools beyond the bound {self._max_tools} are left out", "")
            )
        routes: dict[str, Route] = {}
        prefix = source.export_prefix
        for tool in tools:
            base = source.tools.exports(tool.name)
            if base is None:
                continue
            public = exported_name(prefix, base)
            first = routes.setdefault(public, Route(public, source.name, tool))
            if first.tool is not tool:
                what = f"tool {tool.name!r} is not exported: the source's {first.tool.name!r} already is as {public!r}"
                problems.append(_problem(source.name, what, "rename or deny one of them"))
        return tools, Exports(MappingProxyType(routes), tuple(problems))

    def _next(self, old: Snapshot, sources: dict[str, SourceView]) -> Snapshot:
        version = old.version + 1
        remade = [name for name, view in sources.items() if view.exports is not old.sources[name].exports]
        if not remade:
            # Only states changed: the list, and what was made of it, stays.
            return attrs.evolve(old, version=version, sources=MappingProxyType(sources))
        same = all(sources[name].exports.routes == old.sources[name].exports.routes for name in remade)
        tools, parts = _merged([view.exports for view in sources.values()])
        problems = tuple(problem for part in parts for problem in part.problems)
        listed = old.listed if same else version
        return Snapshot(version, listed, MappingProxyType(sources), MappingProxyType(tools), problems, parts)

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


def _merged(parts: Sequence[Exports]) -> tuple[dict[str, Route], tuple[Exports, ...]]:
    tools: dict[str, Route] = {}
    for part in parts:
        tools.update(part.routes)
    if len(tools) == sum(len(part.routes) for part in parts):
        return tools, tuple(parts)
    # Two sources export one name: the first in order keeps it.
    tools.clear()
    kept = []
    for part in parts:
        part = part.without(tools)
        tools.update(part.routes)
        kept.append(part)
    return tools, tuple(kept)


def _problem(source: str, what: str, remedy: str) -> Problem:
    return Problem("", f"sources.{source}", what, remedy, fatal=False, source=source)


def _nothing() -> None:
    return None
