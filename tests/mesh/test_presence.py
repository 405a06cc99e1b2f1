from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio

from cord_trio.counters import Counters
from cord_trio.mesh.local import Way, open_broker
from cord_trio.mesh.overdue import LENGTHS
from cord_trio.mesh.presence import (
    LEASE,
    MARGIN,
    REJOIN,
    RENEWALS,
    STEADY,
    TAKEN,
    NodeRecord,
    Presence,
    decode_record,
    join,
)
from cord_trio.mesh_errors import DuplicateName, NoResponders
from cord_trio.nats.kv import Bucket, Entry, open_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from trio.testing import MockClock

    from cord_trio.mesh.presence import Lease
    from cord_trio.nats.kv import Entry


ELECTION = 8.0
"""Seconds for which a store of three replicas may be without a leader."""


@asynccontextmanager
async def node(
    way: Way, name: str = "a", begun: Callable[[Lease], None] | None = None, record: NodeRecord | None = None
) -> AsyncGenerator[tuple[Presence, Bucket]]:
    async with way.open() as nats:
        bucket = await open_bucket(nats, "cord_m")
        async with join(nats, bucket, mesh="m", node=name, rng=Random(name), begun=begun, record=record) as presence:
            yield presence, bucket


async def up(bucket: Bucket, name: str = "a") -> NodeRecord | None:
    entry = await bucket.get(f"up.{name}")
    return None if entry is None else decode_record(entry.value)


async def test_a_node_is_there_while_its_block_runs_and_gone_after(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        async with node(broker.way(), "b") as (_, bucket):
            async with node(broker.way(), record=NodeRecord(servers={"time": "d1"})) as (presence, _):
                assert presence.lease is not None
                epoch = presence.lease.epoch
                await trio.sleep(10 * LEASE)
                assert await up(bucket) == NodeRecord(epoch=epoch, servers={"time": "d1"})
                assert presence.lease.epoch == epoch
                await presence.say(NodeRecord(draining=True))
                assert await up(bucket) == NodeRecord(epoch=epoch, draining=True)
            assert await up(bucket) is None
            assert await bucket.get(f"hb.a.{epoch}") is None


async def test_a_name_is_given_back_also_where_what_is_read_of_it_is_old(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(Random(1)) as broker:
        async with node(broker.way(), "b") as (_, bucket):
            async with node(broker.way()) as (presence, ours):
                old = await ours.get("up.a")
                await presence.say(NodeRecord(draining=True))
                get, answers = Bucket.get, [old]

                async def lagging(self: Bucket, key: str) -> Entry | None:
                    return answers.pop() if key == "up.a" and answers else await get(self, key)

                monkeypatch.setattr(Bucket, "get", lagging)
            assert answers == []
            assert await up(bucket) is None


async def test_a_second_node_of_the_same_name_is_refused_at_once(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        async with node(broker.way()) as (presence, bucket):
            assert presence.lease is not None
            began = trio.current_time()
            with pytest.raises(DuplicateName, match="another node is named 'a'") as caught:
                async with broker.way().open() as nats:
                    async with join(nats, await open_bucket(nats, "cord_m"), mesh="m", node="a", rng=Random(2)):
                        raise AssertionError
            assert caught.value.epoch == presence.lease.epoch
            assert trio.current_time() - began < 2
            assert (await up(bucket)) == NodeRecord(epoch=presence.lease.epoch)


async def test_a_successor_waits_for_the_lease_of_who_crashed(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        async with broker.way().open() as nats:
            bucket = await open_bucket(nats, "cord_m")
            await bucket.create("hb.a.0badcafe", b"", ttl=LEASE)
            await bucket.create("up.a", b'{"epoch":"0badcafe"}')
            began = trio.current_time()
            async with node(broker.way()) as (presence, _):
                assert LEASE <= trio.current_time() - began < LEASE + 4
                assert presence.lease is not None
                assert await up(bucket) == NodeRecord(epoch=presence.lease.epoch)


async def test_a_lease_that_the_store_keeps_for_ever_keeps_nobody_out_for_ever(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, broker.way().open() as nats:
        bucket = await open_bucket(nats, "cord_m")
        await bucket.create("hb.a.0badcafe", b"")
        await bucket.create("up.a", b'{"epoch":"0badcafe"}')
        began = trio.current_time()
        async with node(broker.way()) as (presence, _):
            assert LENGTHS * LEASE <= trio.current_time() - began < LENGTHS * LEASE + 4
            assert presence.lease is not None
            assert await up(bucket) == NodeRecord(epoch=presence.lease.epoch)


async def test_a_lease_that_is_renewed_holds_though_nobody_listens(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, broker.way().open() as nats:
        bucket = await open_bucket(nats, "cord_m")
        revision = await bucket.create("hb.a.0badcafe", b"", ttl=LEASE)
        await bucket.create("up.a", b'{"epoch":"0badcafe"}')

        async def second() -> None:
            async with node(broker.way()):
                raise AssertionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            for _ in range(20):
                await trio.sleep(LEASE / 2)
                revision = await bucket.put("hb.a.0badcafe", b"", revision=revision, ttl=LEASE)
            nursery.cancel_scope.cancel("it was kept out")


async def test_a_node_that_is_cut_off_lets_go_before_its_lease_ends_and_comes_back_anew(
    autojump_clock: MockClock,
) -> None:
    async with open_broker(Random(1)) as broker:
        async with broker.way().open() as other:
            bucket = await open_bucket(other, "cord_m")
            ended: list[float] = []
            epochs: list[str] = []

            async def work(lease: Lease) -> None:
                try:
                    await trio.sleep_forever()
                finally:
                    ended.append(trio.current_time())

            def begun(lease: Lease) -> None:
                epochs.append(lease.epoch)
                lease.nursery.start_soon(work, lease)

            way = broker.way()
            async with node(way, begun=begun) as (presence, _):
                await trio.sleep(100)
                with bucket.watch(f"hb.a.{epochs[0]}") as watching:
                    await watching.receive()
                    await watching.receive()
                    way.cut()
                    while getattr(await watching.receive(), "value", None) is not None:
                        pass
                    gone = trio.current_time()
                    assert len(ended) == 1
                    assert 0 < gone - ended[0] < LEASE
                assert presence.lease is None
                way.mend()
                await trio.sleep(60)
                assert presence.lease is not None
                assert epochs == [epochs[0], presence.lease.epoch]
                assert await up(bucket) == NodeRecord(epoch=presence.lease.epoch)


class Slow:
    """A store whose answers take half a second, less than one try may.

    Attributes:
        asked: when the last renewal that was done had been asked for.

    """

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.asked = 0.0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever a bucket has
        return getattr(self.bucket, name)

    async def put(self, key: str, value: bytes, **more: Any) -> int:  # noqa: ANN401  # likewise
        asked = trio.current_time()
        revision = await self.bucket.put(key, value, **more)
        await trio.sleep(0.5)
        if key.startswith("hb."):
            self.asked = asked
        return revision


@pytest.mark.parametrize("renewed", [0, 2])
async def test_the_holder_lets_go_a_margin_before_its_lease_ends_since_it_asked(
    renewed: int, autojump_clock: MockClock
) -> None:
    async with open_broker(Random(1)) as broker:
        way = broker.way()
        async with way.open() as nats:
            store: Any = Slow(await open_bucket(nats, "cord_m"))
            store.asked = trio.current_time()
            async with join(nats, store, mesh="m", node="a", rng=Random(1)) as presence:
                await trio.sleep(renewed * LEASE / RENEWALS + 2)
                way.cut()
                while presence.lease is not None:  # noqa: ASYNC110  # no event tells
                    await trio.sleep(0.01)
                assert trio.current_time() - store.asked == pytest.approx(LEASE * (1 - MARGIN), abs=0.1)


async def test_who_has_not_noticed_yet_that_its_lease_was_taken_keeps_nobody_out(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, broker.way().open() as nats:
        bucket = await open_bucket(nats, "cord_m")
        await bucket.create("hb.a.0badcafe", b"taken", ttl=LEASE)
        await bucket.create("up.a", b'{"epoch":"0badcafe"}')
        with nats.subscribe("c1.m.call.a.0badcafe.*", tell=lambda ping: nats.publish(ping.reply, b"")):
            async with node(broker.way()) as (presence, _):
                assert presence.lease is not None


async def test_a_node_that_is_cancelled_gives_its_name_back(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, broker.way().open() as other:
        bucket = await open_bucket(other, "cord_m")
        way = broker.way()
        async with way.open() as nats:
            with trio.CancelScope() as scope:
                async with join(nats, await open_bucket(nats, "cord_m"), mesh="m", node="a", rng=Random(1)):
                    scope.cancel("it is stopped")
                    await trio.lowlevel.checkpoint()
        assert await up(bucket) is None


async def test_a_lost_store_is_filled_again_without_letting_go(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        async with node(broker.way()) as (presence, bucket):
            assert presence.lease is not None
            epoch = presence.lease.epoch
            broker.streams.lose("cord_m")
            await trio.sleep(LEASE)
            assert presence.lease is not None
            assert (presence.lease.epoch, await up(bucket)) == (epoch, NodeRecord(epoch=epoch))
            await trio.sleep(1)  # not while it is renewed
            broker.streams.lose("cord_m")
            await presence.say(NodeRecord())
            await trio.sleep(0.5)  # a record without a lease is doubted
            assert await bucket.get(f"hb.a.{epoch}") is not None
            await bucket.delete("up.a")
            await trio.sleep(LEASE)
            assert await up(bucket) == NodeRecord(epoch=epoch)


class Electing:
    """A store that for a time answers nothing of what it is asked, nor afterwards: it is without a leader."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.until = 0.0

    async def _lead(self) -> None:
        if trio.current_time() < self.until:
            await trio.sleep_forever()

    async def put(self, key: str, value: bytes, *, revision: int | None = None, ttl: int | None = None) -> int:
        await self._lead()
        return await self._bucket.put(key, value, revision=revision, ttl=ttl)

    async def create(self, key: str, value: bytes, *, ttl: int | None = None) -> int:
        return await self.put(key, value, revision=0, ttl=ttl)

    async def get(self, key: str) -> Entry | None:
        await self._lead()
        return await self._bucket.get(key)

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        await self._bucket.delete(key, revision=revision)

    def watch(self, pattern: str = ">") -> NoReturn:
        raise NotImplementedError


@pytest.mark.parametrize("seed", range(3))
async def test_an_election_in_the_store_ends_no_lease(seed: int, autojump_clock: MockClock) -> None:
    async with open_broker(Random(seed)) as broker, broker.way().open() as nats:
        store, counters = Electing(await open_bucket(nats, "cord_m")), Counters()
        async with join(nats, store, mesh="m", node="a", rng=Random(seed), counters=counters):
            for after in range(20):
                await trio.sleep(LEASE + after / 4)
                store.until = trio.current_time() + ELECTION
            await trio.sleep(LEASE)
        assert counters["mesh.fences"] == 0


async def test_who_loses_its_lease_again_and_again_comes_back_later_and_later(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        begun: list[float] = []
        leases: list[Lease] = []

        def began(lease: Lease) -> None:
            begun.append(trio.current_time())
            leases.append(lease)

        async with node(broker.way(), begun=began) as (_, bucket):
            pauses: list[float] = []
            for _ in range(12):
                await bucket.put(f"hb.a.{leases[-1].epoch}", TAKEN)
                while len(begun) == len(pauses) + 1:  # noqa: ASYNC110  # on a virtual clock
                    await trio.sleep(0.1)
                pauses.append(begun[-1] - begun[-2] - LEASE / RENEWALS)
            assert pauses[0] <= REJOIN[1] + 1
            assert REJOIN[1] * 2 + 1 < max(pauses) <= LEASE + 1
            await trio.sleep(STEADY + 1)
            await bucket.put(f"hb.a.{leases[-1].epoch}", TAKEN)
            await trio.sleep(LEASE / RENEWALS + REJOIN[1] + 1)
            assert len(begun) == 14


async def test_a_reset_connection_and_a_broker_that_restarts_do_not_end_a_lease(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        way = broker.way()
        async with node(way) as (presence, _):
            epoch = presence.lease.epoch if presence.lease else ""
            way.reset()
            await trio.sleep(3)
            broker.kill()
            await trio.sleep(3)
            broker.start()
            await trio.sleep(5 * LEASE)
            assert presence.lease is not None
            assert presence.lease.epoch == epoch


async def test_whose_lease_was_proved_to_have_ended_lets_go(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        way = broker.way()
        async with (
            broker.way().open() as other,
            node(way, begun=lambda lease: lease.nursery.start_soon(trio.sleep_forever)) as (presence, bucket),
        ):
            assert presence.lease is not None
            epoch = presence.lease.epoch
            await bucket.put(f"hb.a.{epoch}", b"taken", ttl=60)
            await trio.sleep(LEASE / RENEWALS + 0.4)
            assert presence.lease is None
            with pytest.raises(NoResponders):  # nobody answers for that incarnation any more
                await other.request(f"{presence.subject(epoch)}.b", headers={"C-Op": "ping"})
            await trio.sleep(20)
            assert presence.lease is not None
            assert presence.lease.epoch != epoch


@pytest.mark.parametrize("record", [b"[", b"{}", b'{"epoch":"a.b > c"}'])
async def test_a_record_that_is_none_holds_no_name(record: bytes, autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, broker.way().open() as nats:
        other = await open_bucket(nats, "cord_m")
        await other.put("up.a", record)
        async with node(broker.way()) as (presence, bucket):
            assert presence.lease is not None
            assert await up(bucket) == NodeRecord(epoch=presence.lease.epoch)
            # Nor does one that comes later end the lease.
            await other.put("up.a", record)
            await trio.sleep(LEASE)
            assert await up(bucket) == NodeRecord(epoch=presence.lease.epoch)


@pytest.mark.parametrize("name", ["", "A", "a.b", "a b", "x" * 49, "é"])
async def test_a_name_that_is_none_is_refused(name: str, autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        with pytest.raises(ValueError, match="no name of a node or mesh"):
            async with node(broker.way(), name):
                raise AssertionError


async def test_a_record_that_is_too_long_is_refused(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        with pytest.raises(ValueError, match="the record of a node is 5"):
            async with node(broker.way(), record=NodeRecord(labels={"x": "y" * 5000})):
                raise AssertionError


def test_a_record_that_cannot_be_read_says_nothing() -> None:
    assert decode_record(b"\xff") == decode_record(b"[") == decode_record(b"[" * 4000) == NodeRecord()
