"""Of an agent of which there is one, there is one."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.mesh.local import open_broker
from cord_trio.mesh.presence import LEASE, Lease
from cord_trio.mesh.singletons import Held, claim, locate, move, release
from cord_trio.mesh_errors import AgentTaken
from cord_trio.nats.kv import open_bucket
from tests.mesh.ring import Names, node

if TYPE_CHECKING:
    from trio.testing import MockClock


def lease_of(one: object) -> Lease:
    lease = one.presence.lease  # type: ignore[attr-defined]  # a node of the ring
    assert isinstance(lease, Lease)
    return lease


async def test_of_those_who_claim_an_agent_one_has_it_until_its_lease_ends(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as one, node(broker, names, "b") as other:
            store = await open_bucket(one.nats, "cord_m")
            assert await locate(store, "clerk") is None
            won: list[Held] = []
            lost: list[AgentTaken] = []

            async def contend(lease: Lease) -> None:
                try:
                    won.append(await claim(store, lease, "clerk"))
                except AgentTaken as exc:
                    lost.append(exc)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(contend, lease_of(one))
                nursery.start_soon(contend, lease_of(other))
            (held,), (taken,) = won, lost
            assert (taken.agent, taken.node, taken.epoch) == ("clerk", held.node, held.epoch)
            assert await locate(store, "clerk") == held
            winner, loser = (one, other) if held.node == "a" else (other, one)
            assert await claim(store, lease_of(winner), "clerk") == held
            lease = lease_of(loser)
            store = await open_bucket(loser.nats, "cord_m")
            winner.way.cut()
            until = trio.current_time() + LEASE + 1
            with pytest.raises(AgentTaken):
                await claim(store, lease, "clerk")
            await trio.sleep_until(until)
            assert winner.presence.lease is None  # it let go before
            again = await claim(store, lease, "clerk")
            assert (again.node, again.epoch) == (lease.node, lease.epoch)
            assert again.revision > held.revision
            winner.way.mend()


async def test_an_agent_moves_at_one_point_and_is_given_back_by_its_owner_alone(autojump_clock: MockClock) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker:
        async with node(broker, names, "a") as one, node(broker, names, "b") as other:
            store = await open_bucket(one.nats, "cord_m")
            held = await claim(store, lease_of(one), "clerk")
            moved = await move(store, held, "b", names.epochs["b"])
            assert await locate(store, "clerk") == moved
            assert moved.revision > held.revision
            with pytest.raises(AgentTaken, match="agent 'clerk' is that of node 'b'"):
                await move(store, held, "c", "00000000")
            await release(store, held)
            assert await claim(store, lease_of(other), "clerk") == moved
            await release(store, moved)
            assert await locate(store, "clerk") is None
            with pytest.raises(AgentTaken, match="agent 'clerk' is that of node ''"):
                await move(store, moved, "a", "00000000")


async def test_a_record_that_cannot_be_read_is_no_claim_and_a_name_that_is_none_is_refused(
    autojump_clock: MockClock,
) -> None:
    names = Names()
    async with open_broker(Random(1)) as broker, node(broker, names, "a") as one:
        store = await open_bucket(one.nats, "cord_m")
        await store.put("ag.clerk", b"[")
        held = await claim(store, lease_of(one), "clerk")
        assert (held.node, held.epoch) == ("a", names.epochs["a"])
        with pytest.raises(ValueError, match=r"no name of an agent in a mesh: 'a\.b'"):
            await claim(store, lease_of(one), "a.b")
