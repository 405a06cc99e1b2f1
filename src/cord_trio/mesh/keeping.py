"""Agents of which there is one in the mesh, where nodes stand by for them: who owns one has it, and no other does.

Who has an agent stops it when its lease ends, before anybody else can own it. What it was doing is not done again: the
next owner makes it anew, with the fencing token of its own.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.agents.agent import GRACE
from cord_trio.agents.supervisor import Supervisor
from cord_trio.errors import AgentNotFound, CallError
from cord_trio.mesh.presence import FAREWELL, LEASE
from cord_trio.mesh.singletons import claim, release
from cord_trio.mesh_errors import AgentTaken

if TYPE_CHECKING:
    import random

    from cord_trio.fabric import Fabric
    from cord_trio.mesh.contracts import Store
    from cord_trio.mesh.node import Node
    from cord_trio.mesh.presence import Lease
    from cord_trio.mesh.singletons import Held

log = logging.getLogger("cord_trio.mesh")

AGAIN: Final = (0.5, 2.0)
"""Seconds before an agent is claimed again, at least and at most, where it is not known who has it."""


class Keeping:
    """The agents that one node stands by for, and those of them that it has.

    Args:
        fabric: makes them.
        store: says whose they are.
        rng: draws pauses.

    Attributes:
        held: those that it has.

    """

    def __init__(self, fabric: Fabric, store: Store, rng: random.Random) -> None:
        self.held: dict[str, Held] = {}
        self._fabric = fabric
        self._store = store
        self._rng = rng
        self._lease: Lease | None = None
        self._begun = trio.Event()
        self._stirred = trio.Event()
        self._scopes: dict[str, trio.CancelScope] = {}

    def begun(self, lease: Lease) -> None:
        """An incarnation of the node began. For `open_node`."""
        self._lease = lease
        self._begun.set()
        self._begun = trio.Event()

    def stir(self) -> None:
        """It may stand by for others now."""
        self._stirred.set()

    async def run(self, node: Node) -> None:
        """Claim what it stands by for, and have what is its own, until cancelled; then that is given back."""
        async with trio.open_nursery() as nursery:
            while True:
                self._stirred = trio.Event()
                wanted = self._fabric.agents.singletons
                for name in wanted:
                    if name not in self._scopes:
                        scope = self._scopes[name] = trio.CancelScope()
                        nursery.start_soon(self._keep, node, name, scope)
                for name, scope in self._scopes.items():
                    if name not in wanted:
                        scope.cancel("nobody stands by for it here any more")
                await self._stirred.wait()

    async def _keep(self, node: Node, name: str, scope: trio.CancelScope) -> None:
        try:
            with scope:
                while True:
                    lease = await self._standing()
                    try:
                        held = await claim(self._store, lease, name)
                    except AgentTaken as exc:
                        await self._wait_over(node, exc.epoch)
                        continue
                    except CallError as exc:
                        log.info("an agent was not claimed agent=%s reason=%s", name, exc)
                    else:
                        if self._lease is lease and not lease.nursery.cancel_scope.cancel_called:
                            await self._have(held, lease)
                    await trio.sleep(self._rng.uniform(*AGAIN))
        finally:
            del self._scopes[name]

    async def _standing(self) -> Lease:
        """The incarnation that may act for the mesh, once there is one."""
        while self._lease is None or self._lease.nursery.cancel_scope.cancel_called:
            await self._begun.wait()
        await trio.lowlevel.checkpoint()
        return self._lease

    async def _wait_over(self, node: Node, epoch: str) -> None:
        """Return once an incarnation is known to be no more, or after a while."""
        over = trio.Event()

        def ended(_node: str, ended: str) -> None:
            if ended == epoch:
                over.set()

        with node.roster.hearing(ended), trio.move_on_after(self._rng.uniform(LEASE / 2, LEASE)):
            await over.wait()

    async def _have(self, held: Held, lease: Lease) -> None:
        """Have an agent until the lease ends, or until cancelled; then it is given back."""
        name, over = held.agent, trio.Event()
        one = self._fabric.agents.singletons[name]
        grace = one.options.get("grace", GRACE)
        # It has a task, so that its runs can be ended by us, also those whose askers are here.
        given = {**one.options, "supervisor": one.options.get("supervisor") or Supervisor(gives_up="stop")}
        try:
            agent = self._fabric.agent(name, one.function, **given)
            agent.fence = held.revision
            self.held[name] = held
            self._fabric.counters.add("mesh.agents_owned")
            log.info("has the agent agent=%s fence=%d", name, held.revision)
            lease.nursery.start_soon(_tell_over, over)
            await over.wait()
            agent.grace = grace = 0.0  # another may own it soon
        except ValueError as exc:
            log.warning("an agent of which there is one is not made here agent=%s reason=%s", name, exc)
        finally:
            if self.held.pop(name, None) is not None:
                with trio.move_on_after(2 * grace + FAREWELL, shield=True), suppress(AgentNotFound):
                    await self._fabric.retire(name)
            with trio.move_on_after(FAREWELL, shield=True):
                try:
                    await release(self._store, held)
                except CallError as exc:
                    log.info("an agent was not given back agent=%s reason=%s", name, exc)


async def _tell_over(over: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        over.set()
