"""Agents of which there is one in the mesh: whose they are, by compare and set.

`ag.<agent>` names node and epoch of the owner; its revision is the fencing token, which only grows. Whoever takes an
agent over proves first that the lease of the owner before has ended, so that one has let go: it runs the agent in the
nursery of that lease. What was read decides nothing; a later write at the revision that was read does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from cord_trio.mesh.presence import LEASE, TAKEN
from cord_trio.mesh_errors import AgentTaken, Conflict
from cord_trio.protocol.jsonrpc import UNREADABLE

if TYPE_CHECKING:
    from cord_trio.mesh.contracts import Store
    from cord_trio.mesh.presence import Lease
    from cord_trio.nats.kv import Entry

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What such an agent is named."""


class Held(msgspec.Struct, frozen=True):
    """One agent's being owned.

    Attributes:
        agent: its name.
        node: whose it is.
        epoch: of which incarnation.
        revision: the fencing token: a later owner has a higher one.
        state: what it goes on with, in JSON, if its owner is lost; empty for nothing.

    """

    agent: str
    node: str
    epoch: str
    revision: int
    state: bytes = b""


class _Record(msgspec.Struct, frozen=True):
    node: str = ""
    epoch: str = ""
    state: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_RECORD: Final = msgspec.json.Decoder(_Record)


async def locate(store: Store, agent: str) -> Held | None:
    """Whose the agent is, as far as is known; None if it is nobody's."""
    entry = await store.get(_key(agent))
    return None if entry is None else _held(agent, entry)


async def claim(store: Store, lease: Lease, agent: str) -> Held:
    """Have the agent from now on, until it is given back or the lease ends.

    Raises:
        ValueError: an agent cannot have this name.
        AgentTaken: another has it, or was quicker.
        CallError: the store cannot be had; who has it now is not known.

    """
    entry = await store.get(_key(agent))
    if entry is None:
        return await _write(store, Held(agent, lease.node, lease.epoch, 0))
    held = _held(agent, entry)
    if (held.node, held.epoch) == (lease.node, lease.epoch):
        return held
    if held.epoch and not await _ended(store, held):
        raise AgentTaken(agent, held.node, held.epoch)
    return await _write(store, replace(held, node=lease.node, epoch=lease.epoch))


async def move(store: Store, held: Held, node: str, epoch: str) -> Held:
    """Let an incarnation of another node have the agent: the point from which it may run there, and no more here.

    Its owner stops before, and the other starts once it has seen its own name.

    Raises:
        AgentTaken: it is not the owner's any more.

    """
    return await _write(store, replace(held, node=node, epoch=epoch), owner=held)


async def keep(store: Store, held: Held, state: bytes) -> Held:
    """Keep what the agent goes on with if its owner is lost; returns what holds from now on.

    Raises:
        AgentTaken: it is not the owner's any more, and nothing was kept.

    """
    return await _write(store, replace(held, state=state), owner=held)


async def release(store: Store, held: Held) -> None:
    """Let the agent be nobody's, if it still is the owner's. What it goes on with stays."""
    try:
        if held.state:
            await _write(store, replace(held, node="", epoch=""), owner=held)
        else:
            await store.delete(_key(held.agent), revision=held.revision)
    except (Conflict, AgentTaken):
        pass  # another has it


async def _write(store: Store, held: Held, owner: Held | None = None) -> Held:
    """Write what `held` says at its revision; or at a later one that `owner` wrote, and did not learn of."""
    key, state = _key(held.agent), msgspec.Raw(held.state) if held.state else msgspec.UNSET
    data = msgspec.json.encode(_Record(held.node, held.epoch, state))
    while True:
        try:
            return replace(held, revision=await store.put(key, data, revision=held.revision))
        except Conflict:
            entry = await store.get(key)  # noqa: ASYNC120  # it tells more of the conflict
        found = Held(held.agent, "", "", 0) if entry is None else _held(held.agent, entry)
        if owner is None or found.revision <= held.revision or (found.node, found.epoch) != (owner.node, owner.epoch):
            raise AgentTaken(held.agent, found.node, found.epoch)
        held = replace(held, revision=found.revision)


async def _ended(store: Store, held: Held) -> bool:
    """Whether the owner's lease has ended, proved by making its key."""
    key = f"hb.{held.node}.{held.epoch}"
    try:
        await store.create(key, TAKEN, ttl=LEASE)
    except Conflict:
        entry = await store.get(key)
        return entry is None or entry.value == TAKEN
    return True


def _held(agent: str, entry: Entry) -> Held:
    try:
        record = _RECORD.decode(entry.value)
    except UNREADABLE:
        record = _Record()  # whoever wrote that has no claim to it
    state = b"" if record.state is msgspec.UNSET else bytes(record.state)
    return Held(agent, record.node, record.epoch, entry.revision, state)


def _key(agent: str) -> str:
    if NAME.fullmatch(agent) is None:
        raise ValueError(f"no name of an agent in a mesh: {agent[:100]!r}; one has 1 to 64 of letters, digits, _ and -")
    return f"ag.{agent}"
