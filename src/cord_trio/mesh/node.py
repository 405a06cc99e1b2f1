"""One node of a mesh: its name, who else is there, what all of them offer, and calls both ways."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs
import msgspec
import trio

from cord_trio.counters import Counters
from cord_trio.errors import CallError, ToolNotFound
from cord_trio.mesh.calling import Calling, open_calling
from cord_trio.mesh.catalogues import Catalogues
from cord_trio.mesh.owning import Owning
from cord_trio.mesh.parts import Parts
from cord_trio.mesh.presence import NodeRecord, Presence, join
from cord_trio.mesh.roster import Roster
from cord_trio.mesh.signing import Door, Signer
from cord_trio.mesh.telling import Teller
from cord_trio.mesh.watchers import Watchers
from cord_trio.mesh_errors import DuplicateName

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from cord_trio.call import Call, Handler, Outcome
    from cord_trio.mesh.contracts import Link, Store
    from cord_trio.mesh.owning import Admit
    from cord_trio.mesh.presence import Lease

LAST_CALLS: Final = 0.05
"""Seconds between two looks at whether others' calls still run here, while it drains."""

REGION: Final = "region"
"""Label that says where a node is."""

SAYING: Final = 2.0
"""Seconds for saying that it drains."""


@attrs.frozen(eq=False)
class Node:
    """One node of a mesh. Made by `open_node`.

    Attributes:
        mesh: its name.
        name: the node's.
        presence: holds its name.
        roster: knows the others.
        watchers: its part in burying the dead.
        catalogues: what the servers of the mesh list.
        teller: says what it offers.
        calling: its calls to others.
        owning: the calls of others to it.
        counters: where its events are counted.

    """

    mesh: str
    name: str
    presence: Presence
    roster: Roster
    watchers: Watchers
    catalogues: Catalogues
    teller: Teller
    calling: Calling
    owning: Owning
    counters: Counters

    @property
    def epoch(self) -> str:
        """Its incarnation now; "" between two."""
        lease = self.presence.lease
        return "" if lease is None else lease.epoch

    async def drain(self) -> None:
        """Take no new calls of others, have nobody choose us, and return once those that run have ended."""
        self.owning.draining = True
        record = msgspec.structs.replace(self.teller.record, draining=True)
        self.teller.tell(record)
        with trio.move_on_after(SAYING):
            try:
                await self.presence.say(record)
            except (CallError, DuplicateName):
                pass  # whoever asks us is told
        while self.owning.busy:  # noqa: ASYNC110  # an event would cost each call
            await trio.sleep(LAST_CALLS)


async def _nothing_here(call: Call) -> Outcome:
    await trio.lowlevel.checkpoint()
    raise ToolNotFound(call.name or call.method)


def _near(roster: Roster, region: str) -> Callable[[str], bool] | None:
    def near(node: str) -> bool:
        record = roster.nodes.get(node)
        return record is not None and record.labels.get(REGION) == region

    return near if region else None


@asynccontextmanager
async def open_node(
    link: Link,
    store: Store,
    *,
    mesh: str,
    node: str,
    handler: Handler | None = None,
    bulk: Link | None = None,
    labels: Mapping[str, str] | None = None,
    keys: Sequence[str] = (),
    callers: Sequence[str] = ("*",),
    admit: Admit | None = None,
    drop: Callable[[str, str], None] | None = None,
    begun: Callable[[Lease], None] | None = None,
    rng: random.Random | None = None,
    counters: Counters | None = None,
) -> AsyncGenerator[Node]:
    """A node of `mesh` for as long as the block runs. The block's own errors leave as raised.

    Args:
        link: its way to the others.
        store: of the mesh.
        mesh: its name.
        node: the node's name, unlike that of any other.
        handler: runs what others call; None for nothing.
        bulk: its way for large bodies, which then hold up nothing else; None to send them along with the rest.
        labels: what it is chosen by; its calls go to nodes with the same `region`, if it has one, before others.
        keys: that the nodes of the mesh share: the first signs whose calls are made, any of them is taken.
        callers: globs over those who may call what is here, each `WHO@NODE`.
        admit: judges each call of others before it runs; None to let all run.
        drop: told that the caller of another node will not answer the question under this token.
        begun: told each incarnation.
        rng: draws names and pauses.
        counters: where to count.

    Raises:
        ValueError: a name, or the labels, cannot be used.
        DuplicateName: another node has the name.
        NotPermitted: the store does not let us see who is there.
        CallError: the store cannot be had.

    """
    rng = rng or random.Random()
    counters = counters or Counters()
    record = NodeRecord(labels=dict(labels or {}))
    roster = Roster(store, counters=counters)
    parts = Parts(bulk or link, counters=counters)
    signer = Signer(keys, mesh, node) if keys else None
    owning = Owning(
        link, handler or _nothing_here, roster, parts=parts, door=Door(signer, callers, counters), admit=admit,
        drop=drop, counters=counters,
    )  # fmt: skip
    catalogues = Catalogues(store, rng=rng, counters=counters)
    failure: Exception | None = None

    def began(lease: Lease) -> None:
        owning.begun(lease)
        if begun is not None:
            begun(lease)

    async def service(  # noqa: ASYNC128  # the part calls it
        run: Callable[..., Awaitable[None]], task_status: trio.TaskStatus[None]
    ) -> None:
        """Run a part; if it fails, the node cannot go on."""
        nonlocal failure
        try:
            await run(task_status=task_status)
        except Exception as exc:
            failure = failure or exc
            nursery.cancel_scope.cancel(f"a part of the node failed: {exc!r}")

    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(service, roster.run)
            await nursery.start(service, parts.run)
            async with join(
                link, store, mesh=mesh, node=node, record=record, take=owning.take, begun=began, rng=rng,
                counters=counters,
            ) as presence:  # fmt: skip
                teller = Teller(presence, catalogues, record, rng=rng, counters=counters)

                def refused() -> None:
                    teller.tell(msgspec.structs.replace(teller.record, watches=False))

                watchers = Watchers(
                    store, roster, mesh=mesh, node=node, rng=rng, denied=refused, counters=counters
                )  # fmt: skip
                with roster.hearing(teller.ended, anew=teller.anew):
                    async with trio.open_nursery() as services:
                        await services.start(service, teller.run)
                        await services.start(service, watchers.run)
                        try:
                            async with open_calling(
                                link, roster, mesh=mesh, node=node, parts=parts, rng=rng, counters=counters,
                                signer=signer, epoch=lambda: "" if presence.lease is None else presence.lease.epoch,
                            ) as calling:  # fmt: skip
                                calling.peers.near = _near(roster, record.labels.get(REGION, ""))
                                calling.recent = presence.recent
                                yield Node(
                                    mesh, node, presence, roster, watchers, catalogues, teller, calling, owning,
                                    counters,
                                )  # fmt: skip
                        except Exception as exc:
                            failure = failure or exc
                        services.cancel_scope.cancel("the node leaves the mesh")
        # Cancelled must travel through the nursery: it may be the nursery's own.
        except Exception as exc:
            failure = failure or exc
        nursery.cancel_scope.cancel("the node leaves the mesh")
    parts.close()
    if failure is not None:
        raise failure
