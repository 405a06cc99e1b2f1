"""Leases that the store keeps: when they are overdue, and who ends them."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.mesh.local import open_broker
from cord_trio.mesh.overdue import Overdue
from cord_trio.mesh_errors import Conflict
from cord_trio.nats.kv import open_bucket

if TYPE_CHECKING:
    from trio.testing import MockClock

TAKEN = b"taken"


async def test_a_lease_is_overdue_after_twice_its_length_without_a_renewal(autojump_clock: MockClock) -> None:
    overdue = Overdue(15, TAKEN)
    assert not overdue.see("hb.x", 1)
    await trio.sleep(29.9)
    assert (overdue.see("hb.x", 1), overdue.due()) == (False, [])
    overdue.see("hb.x", 2)  # it is renewed just in time
    await trio.sleep(29.9)
    assert overdue.due() == []
    await trio.sleep(0.2)
    assert (overdue.see("hb.x", 2), overdue.due()) == (True, [("hb.x", 2)])
    overdue.forget("hb.x")
    assert overdue.due() == []
    assert not overdue.see("hb.x", 2)


async def test_one_that_is_renewed_meanwhile_is_not_ended(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, broker.way().open() as nats:
        bucket = await open_bucket(nats, "cord_m")
        await bucket.put("hb.x", b"")
        old = await bucket.get("hb.x")
        overdue = Overdue(15, TAKEN)
        assert not await overdue.end(bucket, "hb.x", None)
        assert not await overdue.end(bucket, "hb.x", old)
        await trio.sleep(31)
        await bucket.put("hb.x", b"")
        with pytest.raises(Conflict):
            await overdue.end(bucket, "hb.x", old)
        new = await bucket.get("hb.x")
        assert new is not None
        assert new.value == b""
        assert not await overdue.end(bucket, "hb.x", new)
        await trio.sleep(31)
        assert await overdue.end(bucket, "hb.x", new)
        left = await bucket.get("hb.x")
        assert left is not None
        assert left.value == TAKEN
        assert not await overdue.end(bucket, "hb.x", left)
        await trio.sleep(31)
        assert not await overdue.end(bucket, "hb.x", left)  # what says that it has ended is no lease
