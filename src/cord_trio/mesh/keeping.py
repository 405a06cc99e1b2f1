"""Agents of which there is one in the mesh, where nodes stand by for them: who owns one has it, and no other does.

Who has an agent stops it when its lease ends, before anybody else can own it. What it was doing is not done again: the
next owner makes it anew, with the fencing token of its own.
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.agents.agent import GRACE
from cord_trio.agents.supervisor import Supervisor
from cord_trio.errors import AgentDown, AgentNotFound, CallError
from cord_trio.mesh.presence import FAREWELL, LEASE
from cord_trio.mesh.singletons import claim, keep, locate, release
from cord_trio.mesh_errors import AgentTaken

if TYPE_CHECKING:
    import random

    from cord_trio.config import MeshConfig
    from cord_trio.fabric import Fabric
    from cord_trio.mesh.contracts import Store
    from cord_trio.mesh.node import Node
    from cord_trio.mesh.presence import Lease
    from cord_trio.mesh.singletons import Held

log = logging.getLogger("cord_trio.mesh")

COMING: Final = 5.0
"""Seconds for which whoever asks waits for an agent that is ours and is not here yet."""

SPREAD: Final = 0.2
"""Seconds, at most, that it lets others try first where an agent is nobody's, and as long for each that it has."""

LATEST: Final = 1.0
"""Seconds, at most, in all."""

AGAIN: Final = (0.5, 2.0)
"""Seconds before an agent is claimed again, at least and at most, where it is not known who has it."""


class Keeping:
    """The agents that one node stands by for, and those of them that it has.

    Args:
        fabric: makes them.
        settings: say which of them others may ask; it stands by for no others.
        store: says whose they are.
        rng: draws pauses.

    Attributes:
        held: those that it has.

    """

    def __init__(self, fabric: Fabric, settings: MeshConfig, store: Store, rng: random.Random) -> None:
        self.held: dict[str, Held] = {}
        self._fabric = fabric
        self._settings = settings
        self._store = store
        self._rng = rng
        self._lease: Lease | None = None
        self._begun = trio.Event()
        self._stirred = trio.Event()
        self._scopes: dict[str, trio.CancelScope] = {}
        self._over: dict[str, trio.Event] = {}  # of those that it has
        self._gone: dict[str, trio.Event] = {}  # likewise
        self._waits: dict[str, trio.Event] = {}  # of those that another has
        self._arriving: dict[str, tuple[object, float]] = {}

    def begun(self, lease: Lease) -> None:
        """An incarnation of the node began. For `open_node`."""
        self._lease = lease
        self._begun.set()
        self._begun = trio.Event()

    @property
    def epoch(self) -> str:
        """The incarnation that may act for the mesh; "" for none."""
        lease = self._lease
        return "" if lease is None or lease.nursery.cancel_scope.cancel_called else lease.epoch

    def hold(self, name: str, state: object) -> bool:
        """Keep the state of an agent that may come here, for as long as a lease; returns whether it may come."""
        if name not in self._scopes or name in self.held or not self.epoch or self._fabric.draining.is_set():
            return False
        self._arriving[name] = state, trio.current_time() + LEASE
        return True

    def take(self, name: str) -> None:
        """An agent may be ours now."""
        if name in self._waits:
            self._waits[name].set()

    def give(self, name: str) -> None:
        """An agent of ours is another's now: from here on it may come again."""
        self.held.pop(name, None)

    async def keep(self, name: str, state: bytes) -> None:
        """Keep what an agent of ours goes on with if we are lost; tries until that is so, or it is not ours any more.

        Raises:
            AgentDown: it is not.

        """
        while True:
            held = self.held.get(name)
            agent = self._fabric.agents.get(name)
            try:
                if held is None:
                    raise AgentTaken(name, "", "")
                new = await keep(self._store, held, state)
            except AgentTaken as exc:
                reason = "it ran, and what it knows since was not kept: this node has let go of it"
                if agent is not None and agent.resident is not None:
                    agent.resident.go_down(reason)
                if name in self._over:
                    self._over[name].set()
                raise AgentDown(name, reason) from exc
            except CallError as exc:
                log.info("the state of an agent was not kept agent=%s reason=%s", name, exc)
                await trio.sleep(self._rng.uniform(*AGAIN))  # noqa: ASYNC120  # whoever asks may leave
            else:
                if self.held.get(name) is held:
                    self.held[name] = new
                return

    async def let_go(self, name: str) -> None:
        """An agent that was ours is another's now, and has no life here any more: return once it is forgotten."""
        if name in self._over:
            self._over[name].set()
            await self._gone[name].wait()
        await trio.lowlevel.checkpoint()

    async def wait_here(self, name: str) -> bool:
        """Whether an agent that is ours is here, once it is, or after a while."""
        with trio.move_on_after(COMING):
            while name not in self._fabric.agents:  # noqa: ASYNC110  # it takes a moment, once in its life
                await trio.sleep(COMING / 100)
        return name in self._fabric.agents

    def stir(self) -> None:
        """It may stand by for others now."""
        self._stirred.set()

    async def run(self, node: Node) -> None:
        """Claim what it stands by for, and have what is its own, until cancelled; then that is given back."""
        async with trio.open_nursery() as nursery:
            while True:
                self._stirred = trio.Event()
                wanted = [name for name in self._fabric.agents.singletons if self._settings.lends(name)]
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
                        before = await locate(self._store, name)
                        if before is None or (before.node, before.epoch) != (lease.node, lease.epoch):
                            await trio.sleep(self._rng.uniform(0, min(LATEST, SPREAD * (1 + len(self.held)))))
                            before = await locate(self._store, name)
                        if before is not None and _is_anothers(before, lease, node):
                            await self._wait_over(node, name, before.epoch)
                            continue
                        held = await claim(self._store, lease, name)
                        # Only what was given to us goes on; what we claimed had nobody to give it.
                        was_given = before is not None and before.revision == held.revision
                        if held.state and not self._lasts(name):
                            held = await keep(self._store, held, b"")  # it would be stale once it is of another
                    except AgentTaken as exc:
                        await self._wait_over(node, name, exc.epoch)
                        continue
                    except CallError as exc:
                        log.info("an agent was not claimed agent=%s reason=%s", name, exc)
                    else:
                        if self._lease is lease and not lease.nursery.cancel_scope.cancel_called:
                            await self._have(
                                held, lease, self._arrived(name, was_given=was_given, lasting=bool(held.state))
                            )
                    await trio.sleep(self._rng.uniform(*AGAIN))
        finally:
            del self._scopes[name]

    def _lasts(self, name: str) -> bool:
        """Whether an agent that we stand by for goes on with its state."""
        one = self._fabric.agents.singletons.get(name)
        return one is not None and one.options.get("restart") == "elsewhere"

    async def _standing(self) -> Lease:
        """The incarnation that may act for the mesh, once there is one."""
        while self._lease is None or self._lease.nursery.cancel_scope.cancel_called:
            await self._begun.wait()
        await trio.lowlevel.checkpoint()
        return self._lease

    def _arrived(self, name: str, *, was_given: bool, lasting: bool) -> tuple[object] | None:
        """What an agent that is ours now goes on with, in a tuple; None to make it anew."""
        state, until = self._arriving.pop(name, (None, -math.inf))
        if not was_given:
            return None
        if until < trio.current_time() and not lasting:
            self._fabric.counters.add("mesh.moved_without_state")
            log.warning("an agent came without its state, and begins anew agent=%s", name)
            return None
        return (state,) if until >= trio.current_time() else None

    async def _wait_over(self, node: Node, name: str, epoch: str) -> None:
        """Return once an incarnation is known to be no more, or the agent may be ours, or after a while."""
        over = self._waits[name] = trio.Event()

        def ended(_node: str, ended: str) -> None:
            if ended == epoch:
                over.set()

        try:
            with node.roster.hearing(ended), trio.move_on_after(self._rng.uniform(LEASE / 2, LEASE)):
                await over.wait()
        finally:
            del self._waits[name]

    async def _have(self, held: Held, lease: Lease, given: tuple[object] | None) -> None:
        """Have an agent until the lease ends, or it is another's, or until cancelled; then it is given back."""
        name = held.agent
        over, gone = trio.Event(), trio.Event()
        self._over[name], self._gone[name] = over, gone
        one = self._fabric.agents.singletons[name]
        grace = one.options.get("grace", GRACE)
        # It has a task, so that its runs can be ended by us, also those whose askers are here.
        made = False
        options = {**one.options, "supervisor": one.options.get("supervisor") or Supervisor(gives_up="stop")}
        try:
            agent = self._fabric.agent(name, one.function, **options)
            agent.fence = held.revision
            assert agent.resident is not None
            agent.resident.given = given
            if agent.restart == "elsewhere":
                agent.resident.kept = held.state
                agent.resident.keep = partial(self.keep, name)
            self.held[name], made = held, True
            self._fabric.counters.add("mesh.agents_owned")
            log.info("has the agent agent=%s fence=%d", name, held.revision)
            lease.nursery.start_soon(_tell_over, over)
            await over.wait()
            agent.grace = grace = 0.0  # another may own it soon
        except ValueError as exc:
            log.warning("an agent of which there is one is not made here agent=%s reason=%s", name, exc)
        finally:
            del self._over[name], self._gone[name]
            if made:  # what runs may still end, and be kept
                with trio.move_on_after(2 * grace + FAREWELL, shield=True), suppress(AgentNotFound):
                    await self._fabric.retire(name)
            latest = self.held.pop(name, held)
            with trio.move_on_after(FAREWELL, shield=True):
                try:
                    await release(self._store, latest)
                except CallError as exc:
                    log.info("an agent was not given back agent=%s reason=%s", name, exc)
            gone.set()


def _is_anothers(held: Held, lease: Lease, node: Node) -> bool:
    """Whether an incarnation of another node that is there has the agent, so that there is no need to try."""
    return held.node != lease.node and bool(held.epoch) and node.roster.epoch(held.node) == held.epoch


async def _tell_over(over: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        over.set()
