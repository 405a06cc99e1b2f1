"""Agents of which there is one, on their way to another node: they rest, their state goes ahead, then they are there.

The point of no return is one write by compare and set: before it an agent goes on here, after it there. It has no life
anywhere from before that write until whoever it names has seen it. Who waits for it meanwhile is led there.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio
from msgspec import Raw
from msgspec.structs import replace

from cord_trio.agents.agent import PLACE
from cord_trio.agents.resident import MAX_KEPT
from cord_trio.call import Call, Complete
from cord_trio.cell import Cell
from cord_trio.errors import AgentError, AgentNotFound, BadReply, CallError
from cord_trio.mesh import letters
from cord_trio.mesh.frames import READ
from cord_trio.mesh.keeping import AGAIN
from cord_trio.mesh.letters import Value, packed, read_reply, refusal_of, reply_of, unpacked
from cord_trio.mesh.singletons import move
from cord_trio.mesh_errors import AgentTaken, BadFrame, NoOwner
from cord_trio.protocol.jsonrpc import UNREADABLE

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from cord_trio.agents.mailbox import Envelope
    from cord_trio.agents.resident import Resident
    from cord_trio.config import MeshConfig
    from cord_trio.fabric import Fabric
    from cord_trio.mesh.calling import Calling
    from cord_trio.mesh.contracts import Store
    from cord_trio.mesh.hosting import Hosting
    from cord_trio.mesh.keeping import Keeping
    from cord_trio.mesh.node import Node
    from cord_trio.mesh.singletons import Held

log = logging.getLogger("cord_trio.mesh")

PATIENCE: Final = 30.0
"""Seconds for the runs of an agent to end before it moves; then they are cut off."""

ANSWERING: Final = 10.0
"""Seconds for the other node to say that it is ready; and, afterwards, that it has the agent."""


class Moving:
    """What one node does when agents of which there is one move.

    Args:
        fabric: whose they are.
        settings: say which of them others may have a say in.
        store: says whose they are.
        hosting: knows where they are.
        keeping: has those that are here.
        rng: draws pauses.

    """

    def __init__(
        self, fabric: Fabric, settings: MeshConfig, store: Store, hosting: Hosting, keeping: Keeping,
        rng: random.Random,
    ) -> None:  # fmt: skip
        self._fabric = fabric
        self._settings = settings
        self._store = store
        self._hosting = hosting
        self._keeping = keeping
        self._rng = rng
        self._node: Node | None = None
        self._nursery: trio.Nursery | None = None
        self._under_way: dict[str, str] = {}  # and where each goes

    async def run(self, node: Node) -> None:
        """Keep what is under way, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._node, self._nursery = node, nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def move(self, name: str, to: str) -> str:
        """Let agent `name` go to `to`, and tell which node that is. Cancelled, it goes on all the same.

        Raises as `Fabric.move` says.
        """
        if self._node is None or self._nursery is None:
            raise AgentError(f"agent {name!r} cannot be moved: this fabric is not in a mesh")
        if name not in self._keeping.held:
            return await self._have_moved(name, to)
        if name in self._under_way:
            raise AgentError(f"agent {name!r} is on its way already, to node {self._under_way[name]!r}")
        to = self._chosen(name, to)
        if to == self._node.name:
            await trio.lowlevel.checkpoint()
            return to
        moved = Cell[None]()
        self._under_way[name] = to
        self._nursery.start_soon(self._send, self._keeping.held[name], to, moved)
        await moved.wait(_nothing)
        return to

    async def answer(self, call: Call) -> Complete:
        """What another node asks for; see `Hosting.answer` for what it asks an agent, or tells it.

        Raises:
            BadFrame: it cannot be read.

        """
        if call.method == READ:
            return await self._hosting.has_room(call)
        if call.method in (letters.ASK, letters.TELL, letters.INQUIRE):
            return await self._hosting.answer(call)
        name = call.name or ""
        try:
            given: dict[str, Raw] = dict(call.params)
            to = msgspec.json.decode(given.get("to", b'""'), type=str)
            state = unpacked(msgspec.json.decode(given.get("state", b"{}"), type=Value))
        except UNREADABLE as exc:
            raise BadFrame(f"what is asked of an agent that moves cannot be read: {exc}") from exc
        said: object = None
        try:
            if not self._settings.lends(name) or name not in self._fabric.agents.singletons:
                raise AgentNotFound(name)
            match call.method:
                case letters.HOLD:
                    said = self._keeping.epoch if self._keeping.hold(name, state) else ""
                case letters.TAKE:
                    self._keeping.take(name)
                    said = await self._keeping.wait_here(name)
                case _:
                    said = await self.move(name, to)
            return Complete(reply_of(said, name, {}))
        except Exception as exc:
            return Complete(refusal_of(exc, name, self._settings.node, {}))

    # Inside

    def _chosen(self, name: str, to: str) -> str:
        """The node that is meant by `to` for an agent of ours."""
        asking = self._hosting.asking
        assert self._node is not None
        assert asking is not None
        if to and "=" not in to:
            return to
        if to and asking.covers(to):
            return self._node.name
        there = asking.stands_by(name, to)
        if not there:
            who = f"no node that is {to}" if to else "no other node"
            raise AgentError(
                f"agent {name!r} was not moved: {who} is known to stand by for it, as `singleton` makes one do"
            )
        return self._node.calling.choose(name, there)

    async def _have_moved(self, name: str, to: str) -> str:
        """Have whoever has the agent move it."""
        try:
            owner = await self._hosting.locate(name)
        except NoOwner:
            if self._hosting.asking is not None and self._hosting.asking.is_of_many(name):
                raise AgentError(
                    f"agent {name!r} cannot be moved: it belongs to the node that has it. Where there is to be one in "
                    "the mesh, say `singleton = true`, or call `fabric.singleton`, on each node that may have it"
                ) from None
            raise
        if owner == to:
            return to
        assert self._node is not None
        if owner == self._node.name:  # it was given to us just now
            if not await self._keeping.wait_here(name) or name not in self._keeping.held:
                raise AgentError(f"agent {name!r} was not moved: it is being made just now, on node {owner!r}")
            return await self.move(name, to)
        said = await self._say(letters.MOVE, name, owner, {"to": to})
        return said if isinstance(said, str) else to

    async def _say(self, method: str, name: str, node: str, params: Mapping[str, object]) -> object:
        assert self._node is not None
        return await say(self._node.calling, method, name, node, params)

    async def _send(self, held: Held, to: str, moved: Cell[None]) -> None:
        """Move one of ours, and tell whoever waits for it how that went."""
        name = held.agent
        try:
            agent = self._fabric.agents[name]
            assert agent.resident is not None
            if self._fabric.agents.singletons[name].options.get("supervisor") is not None:
                raise AgentError(f"agent {name!r} cannot be moved: its supervisor may make it anew meanwhile")
            if self._node is None or self._node.roster.epoch(to) is None:
                raise NoOwner(f"{name}{PLACE}{to}", f"{to} is not in the mesh now")
            state = await agent.resident.suspend(PATIENCE)
            held = self._keeping.held.get(name, held)  # what it knows may have been kept meanwhile
            try:
                given = packed(state, f"the state of agent {name!r}")
                if agent.restart == "elsewhere" and name in self._keeping.held:
                    if len(given.json) > MAX_KEPT:
                        raise AgentError(f"agent {name!r} was not moved: its state has more than {MAX_KEPT} bytes")
                    held = self._keeping.held[name] = replace(held, state=bytes(given.json))
                epoch = await self._ready(name, to, given)
                await self._commit(held, to, epoch)
                self._keeping.give(name)
            except AgentTaken as exc:
                await self._keeping.let_go(name)  # noqa: ASYNC120  # the nursery of the mesh alone cancels us
                raise AgentError(f"agent {name!r} was not moved: {exc}") from exc
            except Exception:
                if self._keeping.held.get(name) is held:
                    await agent.resident.resume(state)  # noqa: ASYNC120  # the nursery of the mesh alone cancels us
                raise
            self._fabric.counters.add("mesh.agents_moved")
            log.info("an agent has moved agent=%s node=%s", name, to)
            await self._lead(agent.resident, name, to)
            moved.settle(None)
        except Exception as exc:
            if not moved.fail(exc):
                log.warning("an agent was not moved agent=%s reason=%s", name, exc)
        finally:
            del self._under_way[name]
            moved.fail(AgentError(f"agent {name!r} was not moved: this node leaves the mesh"))

    async def _ready(self, name: str, to: str, state: Value) -> str:
        """The incarnation of the other node that holds the state, and waits."""
        with trio.move_on_after(ANSWERING):
            epoch = await self._say(letters.HOLD, name, to, {"state": state})
            if isinstance(epoch, str) and epoch:
                return epoch
            raise AgentError(f"agent {name!r} was not moved: node {to!r} does not stand by for it, or drains")
        raise AgentError(f"agent {name!r} was not moved: node {to!r} did not say that it is ready")

    async def _commit(self, held: Held, to: str, epoch: str) -> None:
        """Return once the agent is the other's. Raises `AgentTaken` if it is a third one's."""
        while self._keeping.held.get(held.agent) is held:
            try:
                await move(self._store, held, to, epoch)
                return
            except AgentTaken as exc:
                if (exc.node, exc.epoch) == (to, epoch):  # an attempt before, of which nothing was heard
                    return
                raise
            except CallError:
                await trio.sleep(self._rng.uniform(*AGAIN))  # noqa: ASYNC120  # the nursery of the mesh alone cancels us
        raise AgentError(f"agent {held.agent!r} was not moved: this node has let go of it")

    async def _lead(self, resident: Resident, name: str, to: str) -> None:
        """Let it be gone from here, and bring those that wait for it to where it is."""
        told = resident.lead_to(to)
        try:
            with trio.move_on_after(ANSWERING):
                try:
                    await self._say(letters.TAKE, name, to, {})
                except (CallError, AgentError) as exc:
                    log.info("whoever has an agent now was not told agent=%s node=%s reason=%s", name, to, exc)
            while told:
                await self._forward(told.pop(0), name, to)
        finally:
            for envelope in told:
                self._fabric.counters.add("agents.undelivered")
                envelope.finish()
            resident.led.set()
        await self._keeping.let_go(name)  # whoever finds it here until now goes after those

    async def _forward(self, envelope: Envelope, name: str, to: str) -> None:
        """Tell there what was told here; it counts as told here until then."""
        branch: Any = envelope.branch
        try:
            await self._fabric.agents.tell(
                f"{name}{PLACE}{to}", envelope.payload, principal=branch.principal, account=branch.account,
                trace=branch.trace,
            )  # fmt: skip
        except (CallError, AgentError) as exc:
            self._fabric.counters.add("agents.undelivered")
            log.warning("a message to an agent that moved was lost agent=%s reason=%s", name, exc)
        finally:
            envelope.finish()


async def say(
    calling: Calling, method: str, name: str, node: str, params: Mapping[str, object], deadline: float = math.inf
) -> object:
    """What `node` answers to what it is asked about agent `name`. Raises what it tells, or `CallError`."""
    given = {key: Raw(msgspec.json.encode(value)) for key, value in params.items()}
    outcome = await calling.call(Call(method, name, given, deadline=deadline), [node])
    if type(outcome) is not Complete:
        raise BadReply(f"node {node} answered as no node does that moves agents")
    answer, error, _ = read_reply(outcome.result, name)
    if error is not None:
        raise error
    return answer


def _nothing() -> None:
    """Whoever waited has gone."""
