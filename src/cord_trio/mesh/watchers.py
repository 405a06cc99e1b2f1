"""Who buries the dead: a few nodes watch all leases, and take away the record of a node whose lease has ended.

If every node watched every lease, each renewal would go to all. So the `WATCHERS` nodes whose names hash lowest do,
and do the same, each by itself: what they do is compare and set, so it does not matter who was first. When all of them
die at once nobody would know; so every node now and then looks after another, and half of the time after a watcher.
"""

from __future__ import annotations

import heapq
import logging
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.counters import Counters
from cord_trio.errors import CallError
from cord_trio.mesh.overdue import Overdue
from cord_trio.mesh.presence import LEASE, TAKEN, decode_record
from cord_trio.mesh_errors import Conflict, NotPermitted
from cord_trio.nats.watch import Change, Reset, Synced

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from cord_trio.mesh.contracts import Store
    from cord_trio.mesh.presence import NodeRecord
    from cord_trio.mesh.roster import Roster
    from cord_trio.nats.watch import WatchEvent

log = logging.getLogger("cord_trio.mesh")

WATCHERS: Final = 3
"""Nodes that watch the leases."""

SETTLE: Final = 1.0
"""Seconds for which a node lets changes of the mesh gather before it sees whether it is to watch."""

DOUBT: Final = LEASE / 3
"""Seconds for which a lease must have been missing, where its end was not seen, before it is taken to have ended."""

LEAST_ROUND: Final = 5.0
"""Seconds between two looks after a random node, at least; in a large mesh as many as there are nodes."""

AGAIN: Final = (0.2, 2.0)
"""Seconds before a burial is tried again, at least and at most."""

PATIENCE: Final = 5.0
"""Seconds that the store may take."""

AT_ONCE: Final = 8
"""Burials of one node that go on at the same time; others wait."""


def chosen(mesh: str, nodes: Mapping[str, NodeRecord]) -> list[str]:
    """The names of those who watch the leases, the first of them first. All who know the same choose the same."""
    able = [name for name, record in nodes.items() if record.watches]
    return heapq.nsmallest(WATCHERS, able, key=lambda name: sha256(f"{mesh}/{name}".encode()).digest())


class Watchers:
    """One node's part in it, for as long as `run` runs.

    Args:
        store: of the mesh.
        roster: knows the nodes.
        mesh: its name.
        node: ours.
        rng: draws pauses, and whom to look after.
        denied: called when the store does not let us bury; others have to watch then.
        counters: where to count.

    """

    def __init__(
        self,
        store: Store,
        roster: Roster,
        *,
        mesh: str,
        node: str,
        rng: random.Random,
        denied: Callable[[], None] | None = None,
        counters: Counters | None = None,
    ) -> None:
        self._store = store
        self._roster = roster
        self._mesh = mesh
        self._node = node
        self._rng = rng
        self._denied = denied
        self._counters = Counters() if counters is None else counters
        self._leases: set[tuple[str, str]] = set()  # node and epoch of those seen to be held
        self._synced = False  # whether those are all
        self._overdue = Overdue(LEASE, TAKEN)
        self._burying: set[tuple[str, str]] = set()
        self._free = trio.CapacityLimiter(AT_ONCE)

    @property
    def rank(self) -> int | None:
        """Which of the watchers we are, counted from 0; None for none of them."""
        names = chosen(self._mesh, self._roster.nodes)
        return names.index(self._node) if self._node in names else None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch whenever it is our turn, and look after others, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_after)
            task_status.started()
            number = -1
            while True:  # noqa: ASYNC913  # goes on only after a change
                while self.rank is None:
                    number = await self._next(number)
                self._counters.add("mesh.watching")
                async with trio.open_nursery() as watch:
                    watch.start_soon(self._watch, watch)
                    watch.start_soon(self._end_overdue)
                    while self.rank is not None:
                        number = await self._next(number)
                        # A record can arrive long after the end of its lease was told.
                        self._audit(watch)
                    watch.cancel_scope.cancel("others are to watch")

    async def _next(self, number: int) -> int:
        number = (await self._roster.changed(number)).number
        await trio.sleep(SETTLE)
        return number

    # Watching all

    async def _watch(self, nursery: trio.Nursery) -> None:
        try:
            self._take(Reset(), nursery)
            with self._store.watch("hb.>") as watching:
                while True:
                    self._take(await watching.receive(), nursery)
        except NotPermitted as exc:
            self._refused(exc)
        finally:
            self._take(Reset(), nursery)  # what is not watched is not known

    def _take(self, event: WatchEvent, nursery: trio.Nursery) -> None:
        match event:
            case Reset():
                self._leases.clear()
                self._overdue.clear()
                self._synced = False
            case Synced():
                self._synced = True
                self._audit(nursery)
            case Change(key, value, revision):
                _, _, held = key.partition(".")
                node, _, epoch = held.partition(".")
                if value is not None and value != TAKEN:
                    self._leases.add((node, epoch))
                    self._overdue.see(key, revision)
                    return
                self._leases.discard((node, epoch))
                self._overdue.forget(key)
                if value is None:
                    self._start(node, epoch, partial(self._seen_to_end, node, epoch), nursery)
                else:
                    # Whoever proved it has the name, or takes it away; unless that one died.
                    self._doubt(node, epoch, nursery)

    async def _end_overdue(self) -> None:
        """Now and then end the leases that the store keeps past their end; what follows is told as of any other."""
        while True:
            await trio.sleep(LEASE)
            for key, revision in self._overdue.due():
                try:
                    with trio.fail_after(PATIENCE):
                        await self._store.put(key, TAKEN, revision=revision, ttl=LEASE)
                except Conflict:
                    continue  # it was renewed, or another was first
                except NotPermitted as exc:
                    self._refused(exc)
                    return
                except (CallError, trio.TooSlowError) as exc:
                    log.debug("a lease past its end is ended later key=%s reason=%r", key, exc)
                else:
                    self._counters.add("mesh.overdue")
                    log.info("the store kept a lease past its end key=%s", key[:200])

    def _audit(self, nursery: trio.Nursery) -> None:
        """Doubt all who have no lease."""
        if self._synced:
            for node, record in self._roster.nodes.items():
                self._doubt(node, record.epoch, nursery)

    def _doubt(self, node: str, epoch: str, nursery: trio.Nursery) -> None:
        if (node, epoch) not in self._leases:
            self._start(node, epoch, partial(self._missing, node, epoch), nursery)

    def _start(self, node: str, epoch: str, bury: Callable[[], Awaitable[None]], nursery: trio.Nursery) -> None:
        if (node, epoch) not in self._burying and node != self._node:
            self._burying.add((node, epoch))
            nursery.start_soon(bury)

    async def _seen_to_end(self, node: str, epoch: str) -> None:
        """Bury: the store itself has told of the end."""
        try:
            async with self._free:
                await self._bury(node, epoch)
        finally:
            self._burying.discard((node, epoch))

    async def _missing(self, node: str, epoch: str) -> None:
        """Bury, if the lease is not there after some time either: it may have been begun just now."""
        try:
            await trio.sleep(DOUBT)
            if self._stands(node, epoch) and (node, epoch) not in self._leases:
                async with self._free:
                    if await self._prove(node, epoch):
                        await self._bury(node, epoch)
        finally:
            self._burying.discard((node, epoch))

    def _stands(self, node: str, epoch: str) -> bool:
        """Whether the record of `epoch` is there, as far as is known."""
        return self._roster.epoch(node) == epoch and not self._roster.is_unsaid(node)

    # Looking after one

    async def _look_after(self) -> None:
        """Now and then see whether the lease of some node stands."""
        while True:
            await trio.sleep(max(LEAST_ROUND, len(self._roster.nodes)) * self._rng.uniform(0.5, 1.5))
            found = self._another()
            if found is None:
                continue
            node, epoch = found
            try:
                if await self._lacks(node, epoch):
                    await trio.sleep(DOUBT)
                    if self._stands(node, epoch) and await self._lacks(node, epoch):
                        self._counters.add("mesh.audit_found")
                        if await self._prove(node, epoch):
                            await self._bury(node, epoch)
            except (CallError, trio.TooSlowError) as exc:
                log.info("could not look after a node node=%s reason=%r", node, exc)

    def _another(self) -> tuple[str, str] | None:
        nodes = self._roster.nodes
        watching = chosen(self._mesh, nodes)
        among: Iterable[str] = watching if self._rng.random() < 0.5 else nodes
        others = [name for name in among if name != self._node]
        if not others:
            return None
        node = self._rng.choice(others)
        return node, nodes[node].epoch

    async def _lacks(self, node: str, epoch: str) -> bool:
        with trio.fail_after(PATIENCE):
            entry = await self._store.get(f"hb.{node}.{epoch}")
        return entry is None or entry.value == TAKEN

    # Burying

    async def _prove(self, node: str, epoch: str) -> bool:
        """Whether a lease has ended: only then can its key be made, or be that of one who made it."""
        key = f"hb.{node}.{epoch}"
        while True:  # noqa: ASYNC913  # goes on only after a pause
            try:
                with trio.fail_after(PATIENCE):
                    await self._store.create(key, TAKEN, ttl=LEASE)
                return True
            except Conflict:
                return await self._lacks(node, epoch)
            except NotPermitted as exc:
                self._refused(exc)
                return False
            except (CallError, trio.TooSlowError):
                await trio.sleep(self._rng.uniform(*AGAIN))

    async def _bury(self, node: str, epoch: str) -> None:
        """Take the record of `node` away, if it names `epoch`, whose lease has ended."""
        key = f"up.{node}"
        while (node, epoch) not in self._leases:
            try:
                with trio.fail_after(PATIENCE):
                    entry = await self._store.get(key)
                    if entry is not None and decode_record(entry.value).epoch == epoch:
                        await self._store.delete(key, revision=entry.revision)
                        self._counters.add("mesh.buried")
                        log.info("a node is no more node=%s epoch=%s", node, epoch)
                        return
            except NotPermitted as exc:
                self._refused(exc)
                return
            except (CallError, trio.TooSlowError) as exc:
                log.debug("a burial is tried again node=%s reason=%r", node, exc)
            else:
                # What was read may be old; what we are told is what counts.
                if self._roster.epoch(node) != epoch:
                    return
            await trio.sleep(self._rng.uniform(*AGAIN))

    def _refused(self, exc: NotPermitted) -> None:
        self._counters.add("mesh.watch_denied")
        log.info("others have to watch: %s", exc)
        if self._denied is not None:
            self._denied()
