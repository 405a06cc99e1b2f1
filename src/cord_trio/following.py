"""Keeping up with one server while its session lives: its lists, and the resources that somebody subscribed to."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from cord_trio.cell import Flag
from cord_trio.client import TELLS
from cord_trio.config import Http
from cord_trio.errors import CallError, CallFailed
from cord_trio.protocol import jsonrpc
from cord_trio.protocol.mcp import Tool
from cord_trio.snapshot import KINDS, NOTHING_LISTED, Listed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from typing import TypeAlias

    from msgspec import Raw

    from cord_trio.client import Client
    from cord_trio.config import Source
    from cord_trio.counters import Counters
    from cord_trio.snapshot import Kind

    Sink: TypeAlias = Callable[[str], None]
    Publish: TypeAlias = Callable[[Mapping[Kind, Listed]], Awaitable[None]]

log = logging.getLogger("cord_trio.link")

STEADY: Final = 10.0
"""Seconds that something must have held for its next failure to count as the first."""

DEBOUNCE: Final = 0.1
"""Seconds to wait after a `list_changed` for more of them, before listing anew."""

BUSY: Final = 1.0
"""What that grows to, doubled each time, for a server that tells of changes all the time."""

FOOLED: Final = 10.0
"""What it grows to for one whose list is the same each time: some tell of a change whenever they are listed."""

LEAST_TRUST: Final = 5.0
"""Seconds for which a list may be trusted at least, whatever its server says (MCP 2026-07-28, caching)."""

UNSAID_TRUST: Final = 60.0
"""Seconds for a list of a legacy server that tells of no changes, since it cannot say how long."""

LISTEN_PATIENCE: Final = 1.0
"""Seconds for which the first list waits until the server has acknowledged that it will tell of changes."""

OTHERS_PATIENCE: Final = 1.0
"""Seconds for which a source waits, with its tools, for its other lists; those that take longer come later."""

SUBSCRIBE_PATIENCE: Final = 10.0
"""Seconds for a server to take or end one subscription."""


class _Updated(msgspec.Struct, gc=False):
    uri: str = ""


_decode_updated = msgspec.json.Decoder(_Updated).decode


class Subscriptions:
    """Who wants to hear of which resources of one source, by the server's own URIs. Outlives sessions.

    Attributes:
        changed: set, and replaced, when the set of URIs becomes another.
        heard: called before those who subscribed: nothing that was kept is good any more.

    """

    def __init__(self) -> None:
        self.changed = Flag()
        self.heard: Callable[[], None] | None = None
        self._sinks: dict[str, dict[object, Sink]] = {}

    @property
    def uris(self) -> tuple[str, ...]:
        """What somebody wants to hear of."""
        return tuple(self._sinks)

    def add(self, uri: str, key: object, sink: Sink) -> None:
        """Tell `sink` of changes of `uri`, until `remove`."""
        if uri not in self._sinks:
            self._sinks[uri] = {}
            self.stir()
        self._sinks[uri][key] = sink

    def remove(self, uri: str, key: object) -> None:
        """Tell whoever was added as `key` no more."""
        sinks = self._sinks[uri]
        del sinks[key]
        if not sinks:
            del self._sinks[uri]
            self.stir()

    def updated(self, uri: str) -> None:
        """The resource, or a part of one, has changed: tell whoever subscribed to it, or to what it is part of."""
        if self.heard is not None:
            self.heard()
        found = uri if uri in self._sinks else ""
        if not found:
            found = max((each for each in self._sinks if each and uri.startswith(each)), key=len, default="")
        for sink in tuple(self._sinks.get(found, {}).values()):
            try:
                sink(uri)
            except Exception:
                log.exception("a subscriber failed uri=%s", uri)

    def stir(self) -> None:
        """Have whoever waits for `changed` look again."""
        self.changed.set()
        self.changed = Flag()


class Following:
    """Keeps up with one session's server. `first` lists everything, `told` takes its notifications.

    Lists are fetched one at a time for each kind, and once more for all changes meanwhile.
    """

    def __init__(
        self,
        client: Client,
        source: Source,
        *,
        subscriptions: Callable[[], Subscriptions],
        counters: Counters,
        pause: Callable[[int], float],
        publish: Publish,
    ) -> None:
        self._client = client
        self._source = source
        self._wanted = subscriptions
        self._counters = counters
        self._pause = pause
        self._publish = publish
        self._dirty: dict[Kind, Flag] = {kind: Flag() for kind in TELLS}
        self._nursery: trio.Nursery | None = None  # where lists are kept fresh
        self._refreshed: tuple[Kind, ...] = ()  # by a task each
        self._heard = Flag()
        self._live = Flag()
        self._gap = True
        self._listing = False
        self._found: dict[Kind, Listed] = {}
        self._published = False
        self._late = set(subscriptions().uris)
        self._reserved: dict[str, tuple[Tool, bytes]] = {}
        self._until: dict[Kind, float] = {}
        self._renewed: dict[Kind, float] = {}

    @property
    def _subscriptions(self) -> Subscriptions:
        return self._wanted()

    def take_over(self) -> None:
        """Others are subscribed to than before: once the server tells of their resources, tell of each once."""
        self._late.update(self._subscriptions.uris)
        self._gap = True

    async def first(self, nursery: trio.Nursery) -> None:
        """List everything and publish it. What goes on after that runs in `nursery`.

        Raises:
            CallError: there is no list of tools to be had.

        """
        client = self._client
        announces = any(client.announces(kind) for kind in TELLS)
        if client.greeting.modern and (announces or client.subscribes):
            nursery.start_soon(self._listen, announces)
            if announces:
                # What changes before the server listens to us would be missed by a list made earlier.
                with trio.move_on_after(LISTEN_PATIENCE):
                    await self._heard.wait()
        elif announces:
            # The same: some servers drop what they tell while nobody holds their standing stream.
            transport = client.session.transport
            transport.on_listening = self._opened
            with trio.move_on_after(LISTEN_PATIENCE):
                await transport.wait_listening()
        self._listing = True
        others = [kind for kind in KINDS if kind != "tools" and client.lists(kind)]
        fetched = {kind: Flag() for kind in others}
        for kind, event in fetched.items():
            nursery.start_soon(self._other, kind, event)
        self._found["tools"] = await self._fetch("tools")
        with trio.move_on_after(OTHERS_PATIENCE):
            for event in fetched.values():
                await event.wait()
        self._published = True
        await self._publish(self._found)

    def keep(self, nursery: trio.Nursery) -> None:
        """Keep the lists fresh, and the subscriptions, in `nursery`."""
        self._nursery = nursery
        for kind, changed in self._dirty.items():
            if changed.is_set():
                self.stir(kind)
        if not self._client.greeting.modern and self._client.subscribes:
            nursery.start_soon(self._subscribe)

    def end(self) -> None:
        """Begin nothing more: what `keep` was given ends."""
        self._nursery = None

    def stir(self, kind: Kind) -> None:
        """List `kind` anew, since it has changed or may have. Its task begins here: most servers never say so."""
        self._dirty[kind].set()
        nursery, listed = self._nursery, kind == "tools" or self._client.lists(kind)
        if nursery is not None and listed and kind not in self._refreshed:
            self._refreshed += (kind,)
            nursery.start_soon(self._refresh, kind)

    def trust(self, kind: Kind) -> float:
        """Seconds for which the list of `kind` may be trusted, infinite if changes are told.

        One that may not be any more is fetched anew: for whoever lists next, and its changes are told.
        """
        now = trio.current_time()
        left = self._until.get(kind, math.inf) - now
        if left > 0:
            return left
        if now >= self._renewed.get(kind, -math.inf) + LEAST_TRUST:
            self._renewed[kind] = now
            self.stir("resources" if kind == "templates" else kind)
        return 0.0

    def told(self, method: str, params: Raw) -> None:
        """Take a notification that belongs to no call."""
        if method == "notifications/resources/updated":
            self._subscriptions.updated(_decode_updated(params).uri)
        elif method == "notifications/subscriptions/acknowledged":
            if self._gap:
                self._gap = False
                self._missed()
                self._synthesize()
            self._heard.set()
            self._live.set()
        elif method.endswith("/list_changed"):
            for kind in TELLS:
                if method == f"notifications/{kind}/list_changed":
                    self._counters.add("link.list_changed")
                    self.stir(kind)

    def shown(self, declares: bytes, tools: Iterable[Tool]) -> None:
        """The server lists `tools` for who declares this: list anew if some of them are new."""
        known = {*self._reserved, *(item.key for item in self._found["tools"].items)} if self._published else set()
        found = {tool.name: (tool, declares) for tool in tools if tool.name not in known}
        if found and self._published:
            self._reserved |= found
            self._counters.add("link.reserved", len(found))
            self.stir("tools")

    def _missed(self) -> None:
        """Nobody told us what changed until now."""
        for kind in TELLS if self._listing else ():
            self.stir(kind)

    def _opened(self) -> None:
        """A legacy server's standing stream is open, which lost what it was told before."""
        if self._listing:
            self._counters.add("link.gap")
            self._missed()
            self._late = set(self._subscriptions.uris)
            self._synthesize()

    # Lists

    async def _tools(self) -> Listed:
        listed = await self._client.list_all("tools", deadline=trio.current_time() + self._source.first_list)
        if self._reserved:
            names = {item.key for item in listed.items}
            more = {name: each for name, each in self._reserved.items() if name not in names}
            self._client.reserve({name: declares for name, (_, declares) in more.items()})
            listed = Listed((*listed.items, *(tool for tool, _ in more.values())), listed.notes, listed.ttl)
        if not isinstance(self._source, Http):
            return listed
        # Such a tool must not be called over HTTP (MCP 2026-07-28, tools); the others may.
        tools = [tool for tool in listed.items if isinstance(tool, Tool)]
        notes = tuple(f"tool {tool.name!r}: {tool.header_fault}" for tool in tools if tool.header_fault)
        return Listed(tuple(tool for tool in tools if not tool.header_fault), listed.notes + notes, listed.ttl)

    async def _other(self, kind: Kind, event: Flag) -> None:
        """The first list of what is no tool: without it the source is of use all the same."""
        try:
            self._found[kind] = await self._fetch(kind)
        except CallError as exc:
            self._failed(kind, exc)
            return
        finally:
            event.set()
        if self._published:
            await self._publish({kind: self._found[kind]})

    async def _fetch(self, kind: Kind) -> Listed:
        if kind == "tools":
            listed = await self._tools()
        else:
            listed = await self._client.list_all(kind, deadline=trio.current_time() + self._source.first_list)
        if self._client.lists(kind) and not self._client.announces(kind):
            known = max(LEAST_TRUST, listed.ttl) if self._client.greeting.modern else UNSAID_TRUST
            self._until[kind] = trio.current_time() + known
        return listed

    async def _refresh(self, kind: Kind) -> None:
        """List `kind` anew after changes: one list at a time, and one more for all changes meanwhile."""
        kinds: tuple[Kind, ...] = ("resources", "templates") if kind == "resources" else (kind,)
        pause, known = DEBOUNCE, {each: self._found.get(each, NOTHING_LISTED) for each in kinds}
        while True:
            since = trio.current_time()
            await self._dirty[kind].wait()
            if trio.current_time() - since >= pause:
                pause = DEBOUNCE  # it was quiet for a while
            await trio.sleep(pause)
            self._dirty[kind] = Flag()
            found = known
            try:
                found = {each: await self._fetch(each) for each in kinds}
                await self._publish(found)
            except CallError as exc:
                self._failed(kind, exc)
            pause = max(pause, min(2 * pause, FOOLED if found == known else BUSY))
            known = found

    def _failed(self, kind: Kind, exc: CallError) -> None:
        # What was listed before stays: a stale list serves better than none.
        self._counters.add("link.refresh_failed")
        log.warning("listing failed source=%s kind=%s error=%s", self._source.name, kind, exc)

    # Subscriptions

    async def _listen(self, announces: bool) -> None:
        """Hold a `subscriptions/listen` for what changes, and a new one, before the old ends, for other URIs."""
        async with trio.open_nursery() as nursery:
            old: trio.CancelScope | None = None
            while True:
                changed = self._subscriptions.changed
                uris = self._subscriptions.uris if self._client.subscribes else ()
                scope = None
                if announces or uris:
                    scope, self._live = trio.CancelScope(), Flag()
                    nursery.start_soon(self._hold, uris, scope)
                    with trio.move_on_after(SUBSCRIBE_PATIENCE):
                        await self._live.wait()
                if old is not None:
                    old.cancel("another listen has taken its place")
                old = scope
                await changed.wait()
                await trio.sleep(DEBOUNCE / 2)

    async def _hold(self, uris: tuple[str, ...], scope: trio.CancelScope) -> None:
        """Hold one listen. When it is acknowledged anew, `told` has everything listed again."""
        failures = 0
        with scope:
            while True:
                began = trio.current_time()
                try:
                    await self._client.listen(uris)
                except CallFailed as exc:
                    if exc.code in (jsonrpc.METHOD_NOT_FOUND, jsonrpc.INVALID_PARAMS):
                        return  # it announced what it does not do
                except CallError as exc:
                    log.debug("listen lost source=%s error=%s", self._source.name, exc)
                finally:
                    self._heard.set()  # the first list need not wait for it any longer
                    self._live.set()
                self._gap = True
                self._late = set(uris)
                failures = 0 if trio.current_time() - began >= STEADY else failures + 1
                await trio.sleep(self._pause(failures))

    async def _subscribe(self) -> None:
        """Have a legacy server tell of exactly those resources that somebody wants to hear of."""
        held: set[str] = set()
        while True:  # noqa: ASYNC913  # goes on only after an answer
            changed = self._subscriptions.changed
            wanted = self._subscriptions.uris
            for uri in wanted:
                if uri not in held:
                    held.add(uri)  # also if it is refused: asking again would not help
                    await self._ask("resources/subscribe", uri)
                    if uri in self._late:
                        self._subscriptions.updated(uri)
            self._late.clear()
            for uri in held.difference(wanted):
                held.discard(uri)
                await self._ask("resources/unsubscribe", uri)
            if changed is self._subscriptions.changed:
                await changed.wait()

    async def _ask(self, method: str, uri: str) -> None:
        members = {"uri": jsonrpc.encode(uri)}
        try:
            await self._client.request(method, members, deadline=trio.current_time() + SUBSCRIBE_PATIENCE)
        except CallError as exc:
            self._counters.add("link.subscribe_failed")
            log.debug("subscribing failed source=%s uri=%s error=%s", self._source.name, uri, exc)

    def _synthesize(self) -> None:
        """Tell once of each resource that may have changed while nobody told us."""
        late, self._late = self._late, set()
        for uri in late:
            self._subscriptions.updated(uri)
