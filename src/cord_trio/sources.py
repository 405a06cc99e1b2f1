"""The sources of a fabric: where its calls go, and how the set of them changes while it runs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio
from msgspec.structs import replace

from cord_trio.call import Error
from cord_trio.config import Foreign
from cord_trio.errors import DrainTimeout, SourceDown, ToolNotFound
from cord_trio.nodes import node_of
from cord_trio.observe import Node
from cord_trio.protocol import jsonrpc
from cord_trio.replicas import link_of
from cord_trio.routing import ROUTED, Finder, unknown
from cord_trio.stacking import ends_of, stacked_when_called
from cord_trio.subscribing import Subscribing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from msgspec import Raw

    from cord_trio.call import Call, Handler, Outcome
    from cord_trio.config import Config, Source
    from cord_trio.layers import Breaker, Slots, Waits
    from cord_trio.replicas import Kept
    from cord_trio.routing import Elsewhere
    from cord_trio.snapshot import Snapshot
    from cord_trio.stacking import Ends
    from cord_trio.surroundings import Surroundings

RETIRED_LOOK: Final = 0.05
"""Seconds between looks at whether a source that is gone still runs calls."""

RESTART: Final = ("gateway", "bounds", "profiles", "agents", "supervisors", "state_dir")
"""Parts of a configuration that are read once, at the start."""


@attrs.frozen
class Changes:
    """What another configuration has changed in a running fabric.

    Attributes:
        added: sources that are new.
        removed: sources that are gone.
        replaced: sources with other settings.
        kept: sources that go on as they were, since the new configuration cannot be used for them.
        restart: parts that are different too, and are taken over by a restart alone.

    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.replaced)


class Sources(Subscribing):
    """The sources of one fabric.

    Attributes:
        config: what it was made from.
        registry: what tools exist.
        links: the sources, by name, in configured order.
        retiring: the sources that are gone, or were replaced, and still run calls; with their slots.
        slots: for calls of each source, by its name.
        breakers: of the sources that have one.
        counters: what happened so far.
        timer: expires the deadlines.
        elsewhere: where calls wait that other nodes make for us; None without a mesh.

    """

    def __init__(self, config: Config, around: Surroundings) -> None:
        super().__init__()
        self.config = config
        self.elsewhere: Elsewhere | None = None
        self._foreign: Mapping[str, Foreign] = {}
        self.registry = around.registry
        self.timer = around.timer
        self.counters = around.counters
        self.links: dict[str, Kept] = {}
        self.retiring: dict[Kept, Slots] = {}
        self.slots: dict[str, Slots] = {}
        self.breakers: dict[str, Breaker] = {}
        self._waits: dict[Kept, Waits] = {}
        self._grace_of: dict[Kept, float] = {}
        self._gone: dict[Kept, Snapshot] = {}  # what there was when a link was retired: its last calls know no other
        self._around = around
        self._parks = around.parks
        self._pages = around.pages
        self._handlers: dict[str, Handler] = {}
        self._resumed: dict[str, Handler] = {}
        self._nursery: trio.Nursery | None = None
        self._generation = 0
        self._was_ready = False
        for source in config.enabled.values():
            self._add(link_of(source, around))
        self._find_by(config)

    def keep(self, nursery: trio.Nursery) -> None:
        """From here on the links live in `nursery`, those of sources that are added later too."""
        self._nursery = nursery
        for link in self.links.values():
            self._keep(link)

    def reconfigure(self, config: Config) -> Changes:
        """Take over the sources of another configuration. Calls of sources that stay as they are notice nothing.

        A source that is gone, or has other settings, takes no new calls; those that it runs have the grace to
        finish. One with other settings is replaced at once, and keeps its lists until it has listed anew. One that
        cannot be used any more goes on as it was. What is configured beside the sources takes a restart.

        Returns:
            what was changed.

        Raises:
            ConfigError: with a source that goes on as it was, two would export under one prefix.

        """
        old = self.config
        kept = {name: old.sources[name] for name in config.broken if name in old.enabled}
        own = {name: source for name, source in config.sources.items() if not isinstance(source, Foreign)}
        # The order decides who keeps a name that two would export.
        ordered = {**own, **kept}
        ordered |= {name: source for name, source in self._foreign.items() if name not in ordered}
        whole = attrs.evolve(
            config, sources=ordered, broken={name: why for name, why in config.broken.items() if name not in kept},
            **{part: getattr(old, part) for part in RESTART},
        )  # fmt: skip
        before, after = old.enabled, whole.enabled
        changes = Changes(
            added=tuple(name for name in after if name not in before),
            removed=tuple(name for name in before if name not in after),
            replaced=tuple(name for name in after if name in before and after[name] != before[name]),
            kept=tuple(kept),
            restart=tuple(part for part in RESTART if getattr(config, part) != getattr(old, part)),
        )
        self._was_ready = self.ready
        self.config = whole
        self._generation += 1
        epochs = dict.fromkeys((*changes.added, *changes.replaced), self._generation << 32)
        snapshot = self.registry.snapshot
        self.registry.configure(after, epochs)
        for name in (*changes.removed, *changes.replaced):
            self._retire(name, snapshot)
        for name, epoch in epochs.items():
            link = link_of(after[name], self._around, epoch=epoch, before=self.links.get(name))
            self._add(link)
            self._keep(link)
        gone = [self.links[name] for name in changes.removed]
        for name in changes.removed:
            del self.links[name], self.slots[name], self._handlers[name], self._resumed[name]
        self.breakers = {name: circuit for name, circuit in self.breakers.items() if name in after}
        self.links = {name: self.links[name] for name in after}
        self._find_by(whole)
        self._lose(gone)
        if changes:
            self.counters.add("fabric.reconfigured")
        return changes

    def adopt(self, foreign: Mapping[str, Foreign]) -> Changes:
        """Have these sources of other nodes beside our own, in place of those before; our own come first.

        They stay whatever else is configured. One whose name a source of ours has is left out.
        """
        self._foreign = dict(foreign)
        return self.reconfigure(self.config)

    async def connect(self, source: Source) -> None:
        """Have one more source, or another in the place of the one of its name, and return once it is ready.

        Raises:
            ConfigError: another source exports under its prefix.
            SourceDown: the first attempt failed. It is there all the same, and goes on trying.
            ValueError: it is disabled.

        """
        if not source.enabled:
            raise ValueError(f"source {source.name!r} is disabled")
        self.reconfigure(self._with({**self.config.sources, source.name: source}))
        link = self.links[source.name]
        await link.wait_tried()
        if not (link.resting or link.state == "ready"):
            raise SourceDown(link.name, link.reason, link.next_try)

    async def disconnect(self, name: str, *, grace: float | None = None) -> bool:
        """Drain one source: its tools are gone at once, what it runs has the grace, and then it is closed.

        Args:
            name: of the source.
            grace: seconds for what it runs; None for the configured ones. Calls that do not end within them get
                `DrainTimeout`.

        Returns:
            whether all of them ended by themselves, once the source is closed.

        Raises:
            KeyError: there is none of this name.
            Draining: the whole fabric drains.

        """
        link = self.links[name]
        self._grace_of[link] = self.config.gateway.grace if grace is None else grace
        self._foreign = {each: source for each, source in self._foreign.items() if each != name}
        self.reconfigure(self._with({each: source for each, source in self.config.sources.items() if each != name}))
        await link.wait_ended()
        return link.cut is None

    @property
    def ready(self) -> bool:
        """Whether every source has been tried once."""
        if not self._was_ready:  # a source that is added later must not turn clients away from the others
            self._was_ready = all(link.tried for link in self.links.values())
        return self._was_ready

    def start_unlisted(self) -> bool:
        """Start the sources that are started when somebody lists; returns whether one has not been tried yet."""
        untried = False
        for link in self.links.values():
            if link.source.start == "lazy" and not link.known:
                link.wake()
                untried = untried or not link.tried
        return untried

    async def wait_started(self) -> None:
        """Return once every source has been tried once, or is left alone until somebody needs it.

        Those that failed say why in `links`.
        """
        for link in tuple(self.links.values()):
            await link.wait_tried()

    # Calls

    def route(self, call: Call) -> Awaitable[Outcome]:
        """How `call` ended, as part of work that was accepted already. Raises as `call` does."""
        if call.park:
            return self._resume(call)
        if call.method == "tools/call" and call.name is not None:
            found = self.registry.snapshot.tools.get(call.name)
            if found is not None:
                return self._handlers[found.source](call)
        return self._route_unlisted(call)

    def abandon(self, park: str, reason: str) -> None:
        """Let go of the call that waits under the token `park`: its caller will not answer."""
        if self.elsewhere is not None and "." in park:
            self.elsewhere.abandon(park, reason)
        else:
            self._parks.abandon(park, reason)

    async def wait_moot(self, park: str) -> None:
        """Return once the call that waits under the token `park` wants no answer any more, or is none."""
        if self.elsewhere is not None and "." in park:
            await self.elsewhere.wait_moot(park)
            return
        await self._parks.wait_moot(park)

    # Inside

    def source_nodes(self) -> list[Node]:
        """All of them as they are now, for the live tree."""
        nodes = [self._source_node(link) for link in self.links.values()]
        nodes += [
            attrs.evolve(node_of(link), facts={"slots": f"{slots.taken}/{slots.size}"})
            for link, slots in self.retiring.items()
        ]
        for name, problems in self.config.broken.items():
            nodes.append(Node("source", name, "broken", {"reason": "; ".join(map(str, problems))}))
        return nodes

    def _with(self, sources: Mapping[str, Source]) -> Config:
        """The configuration with these sources; one that was broken and is among them is no more."""
        broken = {name: why for name, why in self.config.broken.items() if name not in sources}
        return attrs.evolve(self.config, sources=sources, broken=broken)

    def _add(self, link: Kept) -> None:
        """Send the calls of its source to `link` from here on."""
        name = link.name
        self.links[name] = link
        self.breakers.pop(name, None)  # of the one before
        ends = partial(self._ends, link)
        behind = stacked_when_called(link.source, ends, self._around, self._handlers, self._resumed)
        link.subscriptions.heard = None if behind.cache is None else behind.cache.forget
        self._handlers[name], self._resumed[name] = behind.call, behind.resume
        self.slots[name] = behind.slots
        self._waits[link] = behind.waits
        if behind.breaker is not None:
            self.breakers[name] = behind.breaker

    def _keep(self, link: Kept) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(link.keep, name=f"link {link.name}")

    def _find_by(self, config: Config) -> None:
        theirs = [name for name, source in config.enabled.items() if isinstance(source, Foreign)]
        self._finder = Finder({source.export_prefix: name for name, source in config.enabled.items()}, theirs)

    def _retire(self, name: str, snapshot: Snapshot) -> None:
        link, slots = self.links[name], self.slots[name]
        link.retire()
        self.retiring[link], self._gone[link] = slots, snapshot
        if self._nursery is not None:
            self._nursery.start_soon(self._end_retired, link, slots, name=f"retire {name}")

    async def _end_retired(self, link: Kept, slots: Slots) -> None:
        """Let a link finish what it runs, and end it."""
        grace, waits = self._grace_of.pop(link, self.config.gateway.grace), self._waits[link]
        with trio.move_on_after(grace):
            while waits.busy or link.asks:  # noqa: ASYNC110  # an event would cost each call
                await trio.sleep(RETIRED_LOOK)
        if waits.busy or link.asks:
            self.counters.add("fabric.source_drain_unfinished")
            self._cut(link, DrainTimeout(f"source {link.name!r}", grace))
        else:
            link.end("its source was removed or has other settings")
        await link.wait_ended()
        del self.retiring[link], self._waits[link], self._gone[link]

    def _cut(self, link: Kept, why: DrainTimeout) -> None:
        """End a link, and all calls that it runs or that wait for it."""
        link.end(why.reason, why)
        self._waits[link].hurry()

    def hurry(self) -> None:
        """Let no call wait any more: all links have ended."""
        for waits in self._waits.values():
            waits.hurry()

    def _cut_all(self, grace: float) -> None:
        for link in (*self.links.values(), *self.retiring):
            self._cut(link, DrainTimeout("the fabric", grace))

    def _resume(self, call: Call) -> Awaitable[Outcome]:
        """Go on with the call that waits for `call`. It is never made anew, so nothing is retried."""
        if self.elsewhere is not None and "." in call.park:
            return self.elsewhere.resume(call)
        source = self._parks.find(call).source
        return self._resumed.get(source, self._parks.resume)(call)  # its source may be gone from the configuration

    async def _route_unlisted(self, call: Call) -> Outcome:
        """Route what is not listed (yet)."""
        name = call.name
        if call.method in ROUTED and name is not None:
            return await self._route_routed(call, name)
        if call.method != "tools/call" or name is None:
            return Error(jsonrpc.METHOD_NOT_FOUND, f"method not found: {call.method}")
        call = await self._wait_for_owners(call, lambda: name in self.registry.snapshot.tools)
        snapshot = self.registry.snapshot
        found = snapshot.tools.get(name)
        if found is None:
            self._raise_down(name)
            self.counters.add("fabric.tool_not_found")
            raise ToolNotFound(name, snapshot.near(name))
        return await self._handlers[found.source](call)

    async def _route_routed(self, call: Call, name: str) -> Outcome:
        """Route what is about a prompt or a resource."""
        found = self._finder.way(self.registry.snapshot, call)
        if found is None:
            call = await self._wait_for_owners(call, lambda: self._finder.way(self.registry.snapshot, call) is not None)
            found = self._finder.way(self.registry.snapshot, call)
        if found is None:
            self._raise_down(name)
            self.counters.add("fabric.not_found")
            raise unknown(call)
        return await self._handlers[found[0]](call)

    async def _wait_for_owners(self, call: Call, listed: Callable[[], bool]) -> Call:
        """Wait for the first attempt of those sources that may own what `call` names, as long as a call of theirs.

        Returns:
            `call`, with the seconds that this took of the time it has, once it is `listed` or all have been tried.

        """
        name = call.name or ""
        owners = [
            link
            for link in self.links.values()
            if (not link.tried or (link.resting and not link.known))
            and (
                not link.source.export_prefix
                or name.startswith(f"{link.source.export_prefix}__")
                or self._finder.source(name) == link.name
            )
        ]
        began = trio.current_time()
        # Side by side: those without a prefix must not add up, nor one that hangs hide what another has listed.
        async with trio.open_nursery() as nursery:

            async def wait(link: Kept) -> None:
                with trio.move_on_at(min(call.deadline, began + link.source.deadline)):
                    await link.wait_tried()
                if listed():
                    nursery.cancel_scope.cancel("it is listed")

            for link in owners:
                link.wake()
                nursery.start_soon(wait, link)
        spent = trio.current_time() - began
        return replace(call, spent=spent) if owners else call

    def _raise_down(self, name: str) -> None:
        """Raise `SourceDown` if the source whose prefix `name` has is down: its tools may never have been seen."""
        for link in self.links.values():
            prefix = link.source.export_prefix
            if prefix and link.state not in ("ready", "manifest") and name.startswith(f"{prefix}__"):
                raise SourceDown(link.name, link.reason or f"it is still {link.state}", link.next_try)
        for source, problems in self.config.broken.items():
            if name.startswith(f"{source}__"):
                raise SourceDown(source, "; ".join(map(str, problems)))

    def _source_node(self, link: Kept) -> Node:
        node, slots = node_of(link), self.slots[link.name]
        facts = {
            "slots": f"{slots.taken}/{slots.size}",
            "slots_waiting": slots.waiting or None,
            "breaker": self.breakers[link.name].state if link.name in self.breakers else None,
            "log_lines": link.log_lines,
        }
        return attrs.evolve(node, facts={**facts, **node.facts})

    def _ends(self, link: Kept) -> Ends:
        """What lies below the layers of a source."""
        registry, name = self.registry, link.source.name

        def found(call: Call) -> tuple[str | None, Call]:
            """What the server knows the object of `call` as, and the call in its words."""
            if call.method != "tools/call":
                way = self._finder.way(registry.snapshot, call)
                if way is None or way[0] != name:
                    raise unknown(call)
                return way[1], way[2]
            public = call.name or ""
            route = registry.snapshot.tools.get(public)
            if route is None or route.source != name:  # it went while the call waited
                route = self._gone[link].tools.get(public) if link in self._gone else None
                if route is None or route.source != name:
                    raise ToolNotFound(public)
            return route.tool.name, call

        def send(call: Call) -> Awaitable[Outcome]:
            if call.method == "tools/call":  # nearly always; `found`, in place
                route = registry.snapshot.tools.get(call.name or "")
                if route is not None and route.source == name:
                    return link.call(call, route.tool.name)
            own, asked = found(call)
            return link.call(asked, own)

        def own(call: Call) -> tuple[str | None, Mapping[str, Raw]]:
            theirs, asked = found(call)
            return theirs, asked.params

        return ends_of(link, self.registry, send, self._parks.resume, own)
