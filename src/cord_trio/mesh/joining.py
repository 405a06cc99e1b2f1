"""A fabric as a node of a mesh: others get its sources, and it gets theirs.

A source of ours is offered under the names that we export; a server of others is a source that exports those names as
they are. So a name means the same on every node, and where two would export one name the first of them keeps it, as
anywhere: our own before those of others, and of those whoever was here first.
"""

from __future__ import annotations

import logging
import math
import random
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.call import Call
from cord_trio.config import Foreign
from cord_trio.errors import Draining, ToolNotFound
from cord_trio.mesh.catalogues import Pins, digest_of, encode_catalogue
from cord_trio.mesh.frames import READ, STANDING
from cord_trio.mesh.hosting import Hosting
from cord_trio.mesh.keeping import Keeping
from cord_trio.mesh.lending import Lending
from cord_trio.mesh.letters import ABOUT_AGENTS
from cord_trio.mesh.moving import Moving
from cord_trio.mesh.node import open_node
from cord_trio.mesh.pinning import pin_of
from cord_trio.mesh.reaching import connect, open_store
from cord_trio.mesh.remote import RemoteLink
from cord_trio.mesh.standing import Hearing, Trusting, answer_standing, wait_moot_there, wait_pages_there
from cord_trio.mesh_errors import BadCatalogue, NotPermitted
from cord_trio.observe import Node as Shown
from cord_trio.routing import is_brought, unknown
from cord_trio.snapshot import KINDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from cord_trio.call import Outcome
    from cord_trio.config import MeshConfig, Source
    from cord_trio.fabric import Fabric
    from cord_trio.following import Subscriptions
    from cord_trio.mesh.catalogues import Catalogue
    from cord_trio.mesh.contracts import Link, Store
    from cord_trio.mesh.node import Node
    from cord_trio.surroundings import Surroundings

log = logging.getLogger("cord_trio.mesh")

GATHER: Final = 0.2
"""Seconds in which further changes join the first, before they are taken over."""

AGAIN: Final = (5.0, 15.0)
"""Seconds before a catalogue that was bad is looked for again, at least and at most."""

AT_ONCE: Final = 8
"""Catalogues that are fetched at the same time."""


@attrs.frozen
class Offer:
    """One server of other nodes, wherever it runs.

    Attributes:
        name: what it is called here.
        server: what its nodes call it.
        digest: of what it lists.
        group: what all are called that stand for each other; "" for one that stands for itself.
        node: which has it, unless it is in a group.

    """

    name: str
    server: str
    digest: str
    group: str
    node: str


def offers_of(node: Node) -> dict[Offer, list[str]]:
    """What the nodes of the mesh offer, beside ours, and who offers it."""
    found: dict[Offer, list[str]] = {}
    for name, record in sorted(node.roster.nodes.items()):
        if name == node.name:
            continue
        for server, digest in sorted(record.servers.items()):
            group = record.groups.get(server, "")
            if group:
                offer = Offer(f"{group}@{digest[:8]}", group, digest, group, "")
            else:
                offer = Offer(f"{server}@{name}", server, digest, "", name)
            found.setdefault(offer, []).append(name)
    return found


async def _while_it_lasts(follow: Callable[[], Awaitable[None]]) -> None:
    """Follow the registry, or the roster: one that a cancel ended before we first looked is no failure."""
    with suppress(trio.BrokenResourceError):
        await follow()


class Joined:
    """What ties one fabric to one node."""

    def __init__(
        self, fabric: Fabric, node: Node, settings: MeshConfig, rng: random.Random, hosting: Hosting,
        keeping: Keeping, moving: Moving,
    ) -> None:  # fmt: skip
        self.lending = Lending(fabric.agents, node, rng, hosting, keeping, moving)
        self._moving = moving
        self._keeping = keeping
        self._fabric = fabric
        self._node = node
        self._settings = settings
        self._rng = rng
        self._pins = Pins(counters=fabric.counters)
        # Of our sources: what their catalogues were made from, those, and their digests.
        self._texts: dict[str, tuple[list[object], bytes, str]] = {}
        self._ours: frozenset[str] = frozenset()  # the digests of what our sources list
        self._bad: dict[str, float] = {}  # catalogues, and when they are looked for again
        self._fetching: set[str] = set()
        self._free = trio.CapacityLimiter(AT_ONCE)
        self._stirred = trio.Event()
        self._owners: dict[str, list[str]] = {}  # of each source that we have adopted
        self._adopted: dict[str, Foreign] = {}
        self._offers: dict[str, Offer] = {}  # what those stand for
        self._heard: dict[str, trio.CancelScope] = {}  # of the sources that we have adopted
        self._trusting: dict[str, Trusting] = {}  # of those as well
        self._full = False

    async def run(self) -> None:
        """Offer ours, adopt theirs, and drain with the fabric, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_while_it_lasts, self._offer)
            nursery.start_soon(self.lending.run)
            nursery.start_soon(self._keeping.run, self._node)
            nursery.start_soon(self._moving.run, self._node)
            nursery.start_soon(self._adopt, nursery)
            nursery.start_soon(_while_it_lasts, self._hear)
            await self._fabric.draining.wait()
            await self._node.drain()

    # Ours

    async def _offer(self) -> None:
        version = -1
        offered: Mapping[str, bytes] = {}
        while True:
            snapshot = await self._fabric.registry.changed(version)
            version = snapshot.version
            texts: dict[str, bytes] = {}
            ours: set[str] = set()
            for name, link in self._fabric.links.items():
                text = None if isinstance(link.source, Foreign) else self._text(name)
                if text is not None:
                    ours.add(self._texts[name][2])
                    if self._settings.shares(name):
                        texts[name] = text
            if ours != self._ours:
                self._ours = frozenset(ours)
                self._stirred.set()
            if texts != offered:
                offered = texts
                groups = {name: group for name, group in self._settings.groups.items() if name in texts}
                self._node.teller.offer(texts, groups)
            await trio.sleep(GATHER)

    def _text(self, name: str) -> bytes | None:
        """The catalogue of a source of ours; made anew only where it may be another."""
        snapshot = self._fabric.registry.snapshot
        view = snapshot.sources.get(name)
        made_from: list[object] = [None if view is None else view.greeting]
        made_from += [snapshot.merged.get(kind, {}).get(name) for kind in KINDS]
        made_from.append(rules := self._fabric.links[name].source.rules)
        known = self._texts.get(name)
        if known is not None and all(was is part for was, part in zip(known[0], made_from, strict=True)):
            return known[1]
        try:
            text = encode_catalogue(snapshot, name, rules)
        except BadCatalogue as exc:
            self._node.counters.add("mesh.not_offered")
            log.warning("a source is not offered: %s", exc)
            return None
        if text is not None:
            self._texts[name] = (made_from, text, digest_of(text))
        return text

    # Theirs

    async def _hear(self) -> None:
        """Stir whenever the mesh has changed."""
        number = -1
        while True:
            number = (await self._node.roster.changed(number)).number
            self._stirred.set()

    async def _adopt(self, nursery: trio.Nursery) -> None:
        """Have what others offer, once it is known what that lists."""
        while True:
            with trio.move_on_after(AGAIN[0]):  # bad ones are looked for again
                await self._stirred.wait()
            self._stirred = trio.Event()
            offers = offers_of(self._node)
            for offer, nodes in offers.items():
                for node in nodes:
                    self._pins.see(node, offer.server, offer.digest)
            ready: dict[str, Foreign] = {}
            owners: dict[str, list[str]] = {}
            # Those that were here before come first, so that whoever joins takes no name from anybody.
            places = {name: place for place, name in enumerate(self._adopted)}
            before = sorted((offer for offer in offers if offer.name in places), key=lambda offer: places[offer.name])
            former = self._former(offers)
            offers.update(former)
            new = (offer for offer in offers if offer.name not in places)
            for offer in (*before, *new, *former):
                if offer.digest in self._ours:
                    continue  # one of ours lists the very same, and keeps all names: it is nearer
                if len(ready) >= self._settings.remote:
                    self._tell_full(len(offers))
                    break
                source = self._source(offer, nursery)
                if source is not None:
                    ready[offer.name], owners[offer.name] = source, offers[offer]
            self._owners = owners
            self._offers = {offer.name: offer for offer in offers if offer.name in ready}
            if former:
                self._stirred.set()  # until what takes their places is there
            self.lending.see(partial(self._catalogue, nursery=nursery))
            if ready != self._adopted:
                self._adopted = ready
                try:
                    self._fabric.adopt(ready)
                except Draining:
                    return
                self._hear_of(offers, nursery)
            await trio.sleep(GATHER)

    def _former(self, offers: Mapping[Offer, list[str]]) -> dict[Offer, list[str]]:
        """What groups offered that list other things now, as long as we have not adopted those; and who has it now.

        So nothing is missing from our lists meanwhile.
        """
        found: dict[Offer, list[str]] = {}
        for former in self._offers.values():
            if former.group and former not in offers:
                new = [other for other in offers if other.group == former.group and other.name not in self._adopted]
                if new:
                    found[former] = [node for other in new for node in offers[other]]
        return found

    def _hear_of(self, offers: Iterable[Offer], nursery: trio.Nursery) -> None:
        """Have those that we have adopted, and none else, tell of the resources that somebody wants to hear of."""
        for name in [name for name in self._heard if name not in self._adopted]:
            self._heard.pop(name).cancel("no node offers it any more")
            del self._trusting[name]
        for offer in offers:
            if offer.name in self._adopted and offer.name not in self._heard:
                self._heard[offer.name] = scope = trio.CancelScope()
                nursery.start_soon(self._hear_changes, offer, scope)

    async def _hear_changes(self, offer: Offer, scope: trio.CancelScope) -> None:
        def subscriptions() -> Subscriptions | None:
            link = self._fabric.links.get(offer.name)
            return None if link is None else link.subscriptions

        hearing = Hearing(partial(self._carry, offer), subscriptions, self._rng, self._node.counters)
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hearing.run)
                nursery.start_soon(self._trusting[offer.name].run)

    def _source(self, offer: Offer, nursery: trio.Nursery) -> Foreign | None:
        """The source that stands for an offer; None if it is not known yet what that lists."""
        known = self._adopted.get(offer.name)
        if known is not None and known.digest == offer.digest:
            return known
        catalogue = self._catalogue(offer.digest, nursery)
        if catalogue is None:
            return None if known is None else known

        carry = partial(self._carry, offer)
        if offer.name not in self._trusting:
            self._trusting[offer.name] = Trusting(carry, offer.server)
        trusting = self._trusting[offer.name]

        def keeper(
            source: Source, around: Surroundings, *, epoch: int = 0, subscriptions: Subscriptions | None = None
        ) -> RemoteLink:
            return RemoteLink(
                source, around, catalogue=catalogue, carry=carry, trusting=trusting, epoch=epoch,
                subscriptions=subscriptions,
            )  # fmt: skip

        return Foreign(name=offer.name, prefix="", keeper=keeper, digest=offer.digest, shown=catalogue.shown)

    def _catalogue(self, digest: str, nursery: trio.Nursery) -> Catalogue | None:
        """What it lists; None if that is not known yet, and looked for."""
        catalogue = self._node.catalogues.at_hand(digest)
        if catalogue is None and digest not in self._fetching and self._bad.get(digest, 0.0) <= trio.current_time():
            self._fetching.add(digest)
            nursery.start_soon(self._fetch, digest)
        return catalogue

    async def _fetch(self, digest: str) -> None:
        try:
            async with self._free:
                with trio.move_on_after(AGAIN[1]):
                    await self._node.catalogues.fetch(digest)
        except (BadCatalogue, NotPermitted) as exc:
            log.warning("a server of another node is left out: %s", exc)
            self._bad = {each: until for each, until in self._bad.items() if until > trio.current_time()}
            self._bad[digest] = trio.current_time() + self._rng.uniform(*AGAIN)
        finally:
            self._fetching.discard(digest)
            self._stirred.set()

    def _tell_full(self, offered: int) -> None:
        self._node.counters.add("mesh.remote_full")
        if not self._full:
            self._full = True
            log.warning("more is offered than mesh.remote lets in offered=%d remote=%d", offered, self._settings.remote)

    def _carry(self, offer: Offer, call: Call) -> Awaitable[Outcome]:
        """Make a call on one of those that have the server."""
        nodes = self._node.roster.nodes
        owners: Sequence[str] = self._owners.get(offer.name, ())
        there = [name for name in owners if name in nodes and not nodes[name].draining]
        return self._node.calling.call(call, there or owners, source=offer.server)

    # `sources.Elsewhere`

    @property
    def node(self) -> str:
        return self._node.name

    @property
    def place(self) -> str:
        return f"{self._node.name}.{self._node.epoch}" if self._node.epoch else ""

    def shown(self) -> Shown:
        node, margin = self._node, self._node.presence.margin
        state = "draining" if node.owning.draining else "joined" if node.epoch else "between"
        facts = {
            "node": node.name,
            "epoch": node.epoch,
            "others": len(node.roster.nodes.keys() - {node.name}),
            "sources": len(self._adopted),
            "runs": node.owning.busy,
            "margin": None if margin == math.inf else round(margin, 1),
        }
        return Shown("mesh", node.mesh, state, facts)

    def resume(self, call: Call) -> Awaitable[Outcome]:
        """Bring the answers of `call` to the node that asked."""
        return self._node.calling.call(call, ())

    bring = resume  # what it brings names the node

    def abandon(self, park: str, reason: str) -> None:
        """Tell the node that asked that it gets no answer."""
        self._node.calling.drop(park, reason)

    async def wait_moot(self, park: str) -> None:
        """Return once the node that asked needs no answer any more, or is gone."""
        node, epoch, asked = pin_of(Call("", park=park)) or ("", "", Call(""))
        await wait_moot_there(
            lambda call: self._node.calling.call(call, (node,)), asked.park,
            lambda: self._node.roster.epoch(node) == epoch, self._rng,
        )  # fmt: skip

    async def wait_pages(self, source: str, ids: Sequence[str], patience: float) -> bool:
        """Return once a node that has the source told that the pages `ids` are done with, or after `patience`."""
        return await wait_pages_there(partial(self._carry, self._offers[source]), ids, patience)


def answering(fabric: Fabric, settings: MeshConfig, moving: Moving) -> Callable[[Call], Awaitable[Outcome]]:
    """What does the calls of other nodes: those of agents, and of sources, that are ours, and shared."""

    async def answer(call: Call) -> Outcome:
        if call.method == READ:
            return await moving.answer(call)
        if call.method in STANDING:
            return await answer_standing(fabric, settings, call)
        if call.method in ABOUT_AGENTS:
            return await moving.answer(call)
        if is_brought(call) and fabric.brought is not None:
            return await fabric.brought(call)
        name = fabric.source_of(call)
        link = fabric.links.get(name or "")
        if link is None or isinstance(link.source, Foreign) or not settings.shares(link.name):
            raise ToolNotFound(call.name or "") if call.method == "tools/call" else unknown(call)
        return await fabric.handle(call)

    return answer


@asynccontextmanager
async def join_mesh(
    fabric: Fabric, settings: MeshConfig, link: Link, store: Store, rng: random.Random, *, bulk: Link | None = None
) -> AsyncGenerator[Node]:
    """`fabric` as a node of a mesh for as long as the block runs. Raises as `open_node` does."""
    keeping = Keeping(fabric, settings, store, rng)
    hosting = Hosting(fabric, settings, store, keeping)
    moving = Moving(fabric, settings, store, hosting, keeping, rng)
    answer = answering(fabric, settings, moving)
    failure: Exception | None = None
    async with open_node(
        link, store, bulk=bulk, mesh=settings.name, node=settings.node, handler=answer, labels=settings.told,
        keys=settings.key, callers=settings.callers,
        drop=fabric.abandon, begun=keeping.begun, rng=rng, counters=fabric.counters,
    ) as node:  # fmt: skip
        joined = Joined(fabric, node, settings, rng, hosting, keeping, moving)
        fabric.elsewhere = joined
        fabric.agents.elsewhere = joined.lending.asking

        async def run() -> None:
            nonlocal failure
            try:
                await joined.run()
            except Exception as exc:
                failure = failure or exc
                nursery.cancel_scope.cancel(f"a part of the mesh failed: {exc!r}")

        async with trio.open_nursery() as nursery:
            try:
                nursery.start_soon(run)
                yield node
            # Cancelled must travel through the nursery: it may be the nursery's own.
            except Exception as exc:
                failure = failure or exc
            fabric.agents.elsewhere = None
            nursery.cancel_scope.cancel("the fabric leaves the mesh")
        if failure is not None:
            raise failure


def in_mesh(
    settings: MeshConfig,
    *,
    rng: random.Random | None = None,
    changed: Callable[[bool, str], None] | None = None,
) -> Callable[[Fabric], AbstractAsyncContextManager[Node]]:
    """For `open_fabric(mesh=…)`: makes the fabric a node of the mesh that `settings` describe.

    Args:
        settings: of the mesh.
        rng: draws names and pauses.
        changed: told, once it is a node, when the broker is lost (False), with the reason, and when it is back;
            must not block or raise.

    Raises, when the fabric opens: `ConnectFailed` if none of the servers takes us, `DuplicateName` if another node
    has our name, `ConfigError` if a file or URL of the settings cannot be used, `CallError` if the store cannot be had.
    """

    @asynccontextmanager
    async def opened(fabric: Fabric) -> AsyncGenerator[Node]:
        async with (
            open_store(settings, counters=fabric.counters) as (nats, bucket),
            connect(settings, "bulk", fabric.counters) as bulk,
            join_mesh(fabric, settings, nats, bucket, rng or random.Random(), bulk=bulk) as node,
        ):
            nats.line.on_change = changed
            try:
                yield node
            finally:
                nats.line.on_change = None

    return opened
