from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import trio

from cord_trio.counters import Counters
from cord_trio.mesh.local import LocalBroker, Way, open_broker
from cord_trio.mesh.overdue import LENGTHS
from cord_trio.mesh.presence import LEASE, TAKEN, NodeRecord, join
from cord_trio.mesh.roster import Roster
from cord_trio.mesh.watchers import DOUBT, WATCHERS, Watchers, chosen
from cord_trio.mesh_errors import NotPermitted
from cord_trio.nats.kv import Bucket, open_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock

EPOCH = "0badcafe"
NAMES = ["a", "b", "c", "d", "e", "f"]


@asynccontextmanager
async def node(broker: LocalBroker, name: str, counters: Counters, way: Way | None = None) -> AsyncGenerator[Roster]:
    """One that knows the others, and watches."""
    async with (way or broker.way()).open() as nats:
        bucket = await open_bucket(nats, "cord_m")
        async with join(nats, bucket, mesh="m", node=name, rng=Random(name)), trio.open_nursery() as nursery:
            roster = Roster(bucket)
            await nursery.start(roster.run)
            watchers = Watchers(bucket, roster, mesh="m", node=name, rng=Random(name), counters=counters)
            await nursery.start(watchers.run)
            yield roster
            nursery.cancel_scope.cancel("the test is over")


@asynccontextmanager
async def mesh(names: list[str], counters: Counters) -> AsyncGenerator[tuple[LocalBroker, Bucket, dict[str, Roster]]]:
    """Nodes in one mesh, and the bucket as a stranger sees it."""
    async with open_broker(Random(1)) as broker, broker.way().open() as nats, trio.open_nursery() as nursery:
        rosters: dict[str, Roster] = {}

        async def run(name: str, task_status: trio.TaskStatus[None]) -> None:
            async with node(broker, name, counters) as rosters[name]:
                task_status.started()
                await trio.sleep_forever()

        for name in names:
            await nursery.start(run, name)
        yield broker, await open_bucket(nats, "cord_m"), rosters
        nursery.cancel_scope.cancel("the test is over")


async def put_ghost(bucket: Bucket, *, lease: int | None) -> None:
    """Let there be a node `x` that nobody runs."""
    if lease is not None:
        await bucket.create(f"hb.x.{EPOCH}", b"", ttl=lease)
    await bucket.create("up.x", b'{"epoch":"%b"}' % EPOCH.encode())


def test_all_who_know_the_same_choose_the_same_few() -> None:
    nodes = {name: NodeRecord(epoch=EPOCH) for name in NAMES}
    names = chosen("m", nodes)
    assert len(set(names)) == WATCHERS
    assert chosen("m", dict(reversed(nodes.items()))) == names
    assert any(chosen(f"m{number}", nodes) != names for number in range(5))
    # One that goes is followed by one; the others stay.
    left = chosen("m", {name: record for name, record in nodes.items() if name != names[0]})
    assert left[:2] == names[1:]
    assert chosen("m", {**nodes, names[0]: NodeRecord(epoch=EPOCH, watches=False)}) == left
    assert chosen("m", {"a": NodeRecord(epoch=EPOCH)}) == ["a"]


async def test_a_node_whose_lease_ends_is_gone_for_all_at_once(autojump_clock: MockClock) -> None:
    counters = Counters()
    async with mesh(NAMES, counters) as (_, bucket, rosters):
        await trio.sleep(3)
        assert counters["mesh.watching"] >= WATCHERS
        began = trio.current_time()
        await put_ghost(bucket, lease=LEASE)
        await trio.sleep(LEASE - 0.1)
        assert all(roster.epoch("x") == EPOCH for roster in rosters.values())
        for roster in rosters.values():
            while roster.epoch("x"):
                await roster.changed(roster.number)
        assert LEASE <= trio.current_time() - began < LEASE + 0.5
        await trio.sleep(5)
        assert counters["mesh.buried"] == 1
        assert sorted(rosters["a"].nodes) == NAMES


async def test_a_record_without_a_lease_is_taken_away_though_its_end_was_not_seen(autojump_clock: MockClock) -> None:
    counters = Counters()
    async with mesh(NAMES, counters) as (_, bucket, _rosters):
        await trio.sleep(3)
        await put_ghost(bucket, lease=None)
        await trio.sleep(DOUBT + 4)
        assert await bucket.get("up.x") is None
        assert counters["mesh.buried"] >= 1


async def test_who_begins_to_watch_finds_the_ghosts_of_before(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, broker.way().open() as nats:
        bucket = await open_bucket(nats, "cord_m")
        await put_ghost(bucket, lease=None)
        async with node(broker, "a", Counters()) as roster:
            assert roster.epoch("x") == EPOCH
            await trio.sleep(DOUBT + 2)
            assert roster.epoch("x") is None


async def test_a_lease_that_stands_is_let_be(autojump_clock: MockClock) -> None:
    counters = Counters()
    async with mesh(NAMES, counters) as (broker, _, rosters):
        for _ in range(3):
            await trio.sleep(20)
            broker.kill()
            await trio.sleep(1)
            broker.start()
        await trio.sleep(100)
        assert sorted(rosters["a"].nodes) == NAMES
        assert (counters["mesh.buried"], counters["mesh.audit_found"]) == (0, 0)


async def test_whose_record_the_store_lost_is_let_be_while_it_may_say_it_again(autojump_clock: MockClock) -> None:
    counters = Counters()
    async with mesh(NAMES, counters) as (broker, bucket, rosters):
        await put_ghost(bucket, lease=60)
        await trio.sleep(2)
        broker.streams.lose("cord_m")
        await trio.sleep(DOUBT + 8)
        assert rosters["a"].is_unsaid("x")
        assert await bucket.get(f"hb.x.{EPOCH}") is None  # else whoever proved its end would have it
        await put_ghost(bucket, lease=60)
        await trio.sleep(LEASE)
        assert (rosters["a"].epoch("x"), rosters["a"].is_unsaid("x")) == (EPOCH, False)


async def test_when_all_watchers_die_at_once_another_notices(autojump_clock: MockClock) -> None:
    counters = Counters()
    async with open_broker(Random(1)) as broker, trio.open_nursery() as nursery:
        ways = {name: broker.way() for name in NAMES}
        rosters: dict[str, Roster] = {}

        async def run(name: str, task_status: trio.TaskStatus[None]) -> None:
            async with node(broker, name, counters, ways[name]) as rosters[name]:
                task_status.started()
                await trio.sleep_forever()

        for name in NAMES:
            await nursery.start(run, name)
        await trio.sleep(3)
        dead = chosen("m", rosters["a"].nodes)
        for name in dead:
            ways[name].cut()
        left = next(name for name in NAMES if name not in dead)
        await trio.sleep(LEASE + 45)
        assert sorted(rosters[left].nodes) == sorted(set(NAMES) - set(dead))
        nursery.cancel_scope.cancel("the test is over")


async def test_who_may_not_bury_says_so(autojump_clock: MockClock) -> None:
    class Guarded(Bucket):
        async def delete(self, key: str, *, revision: int | None = None) -> None:
            raise NotPermitted(key, "no")

    async with open_broker(Random(1)) as broker, broker.way().open() as nats, trio.open_nursery() as nursery:
        bucket = await open_bucket(nats, "cord_m")
        await put_ghost(bucket, lease=2)
        await bucket.put("up.a", b'{"epoch":"00000001"}')
        roster = Roster(bucket)
        await nursery.start(roster.run)
        refused: list[bool] = []
        guarded = Guarded(nats, "cord_m", bucket._options)
        watchers = Watchers(
            guarded, roster, mesh="m", node="a", rng=Random(1), denied=lambda: refused.append(True)
        )  # fmt: skip
        await nursery.start(watchers.run)
        await trio.sleep(4)
        assert refused == [True]
        assert roster.epoch("x") == EPOCH
        nursery.cancel_scope.cancel("the test is over")


async def test_a_lease_that_another_proved_to_have_ended_is_one_that_ended(autojump_clock: MockClock) -> None:
    async with mesh(["a"], Counters()) as (_, bucket, rosters):
        await trio.sleep(3)
        await put_ghost(bucket, lease=LEASE)
        await trio.sleep(3)
        await bucket.put(f"hb.x.{EPOCH}", TAKEN, ttl=60)
        await trio.sleep(DOUBT + 2)
        assert rosters["a"].epoch("x") is None


async def test_leases_that_the_store_keeps_for_ever_are_ended(autojump_clock: MockClock) -> None:
    counters = Counters()
    async with mesh(NAMES, counters) as (_, bucket, rosters):
        await bucket.create("up.x", b'{"epoch":"%b"}' % EPOCH.encode())
        await bucket.create(f"hb.x.{EPOCH}", b"")  # of one that died
        await bucket.create(f"hb.a.{EPOCH}", b"")  # of an earlier incarnation, which has no record
        await trio.sleep(LENGTHS * LEASE - 1)
        assert rosters["a"].epoch("x") == EPOCH
        await trio.sleep(LEASE + DOUBT + 5)
        assert all(roster.epoch("x") is None for roster in rosters.values())
        await trio.sleep(LEASE)
        assert [await bucket.get(f"hb.{name}.{EPOCH}") for name in "ax"] == [None, None]
        assert (counters["mesh.overdue"], counters["mesh.buried"]) == (2, 1)
        assert sorted(rosters["a"].nodes) == NAMES


async def test_who_may_not_end_a_lease_says_so(autojump_clock: MockClock) -> None:
    class Guarded(Bucket):
        async def put(self, key: str, value: bytes, *, revision: int | None = None, ttl: int | None = None) -> int:
            raise NotPermitted(key, "no")

    async with open_broker(Random(1)) as broker, broker.way().open() as nats, trio.open_nursery() as nursery:
        bucket = await open_bucket(nats, "cord_m")
        await bucket.put(f"hb.x.{EPOCH}", b"")
        await bucket.put("up.a", b'{"epoch":"00000001"}')
        roster = Roster(bucket)
        await nursery.start(roster.run)
        refused: list[bool] = []
        guarded = Guarded(nats, "cord_m", bucket._options)
        watchers = Watchers(
            guarded, roster, mesh="m", node="a", rng=Random(1), denied=lambda: refused.append(True)
        )  # fmt: skip
        await nursery.start(watchers.run)
        await trio.sleep((LENGTHS + 2) * LEASE)
        assert refused == [True]
        nursery.cancel_scope.cancel("the test is over")
