"""The broker in this process keeps the contract, and can be made to fail."""

from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.errors import ConnectFailed, ConnectionLost
from cord_trio.mesh import local
from cord_trio.mesh.contracts import Link, Store, Watching
from cord_trio.mesh.local import LocalBroker, open_broker
from cord_trio.mesh_errors import Conflict, StoreFailed
from cord_trio.nats.client import Nats
from cord_trio.nats.kv import Bucket, BucketOptions, Entry, open_bucket
from cord_trio.nats.watch import Change, Reset, Synced
from tests.mesh.contract import CONTRACT, World, echo

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from cord_trio.mesh.local import Way


class LocalWorld:
    def __init__(self, broker: LocalBroker) -> None:
        self._broker = broker
        self._ways: dict[Link, Way] = {}

    @asynccontextmanager
    async def link(self) -> AsyncGenerator[Link]:
        way = self._broker.way()
        async with way.open() as nats:
            self._ways[nats] = way
            yield nats

    async def store(self, link: Link, bucket: str) -> Store:
        assert isinstance(link, Nats)
        return await open_bucket(link, bucket)

    async def lose(self, link: Link) -> None:
        self._ways[link].reset()
        await wait_all_tasks_blocked()

    async def lose_bucket(self, store: Store) -> None:
        await trio.lowlevel.checkpoint()
        assert isinstance(store, Bucket)
        self._broker.streams.lose(store.name)


async def test_of_two_who_make_a_deleted_key_anew_one_does(autojump_clock: MockClock) -> None:
    made: list[str] = []
    async with open_broker(Random(1)) as broker, broker.way().open() as nats:
        bucket = await open_bucket(nats, "b")
        await bucket.put("a", b"x")
        await bucket.delete("a")

        async def make(name: str) -> None:
            try:
                await bucket.create("a", name.encode())
                made.append(name)
            except Conflict:
                pass

        async with trio.open_nursery() as nursery:
            for name in ("one", "two"):
                nursery.start_soon(make, name)
        assert [await bucket.get("a")] == [Entry("a", name.encode(), 3) for name in made]


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
async def test_the_local_broker_keeps_the_contract(
    promise: Callable[[World], Awaitable[None]], autojump_clock: MockClock
) -> None:
    async with open_broker(Random(1)) as broker:
        await promise(LocalWorld(broker))
        await wait_all_tasks_blocked()
        assert (broker.wires, broker._root.below) == ([], {})


async def test_the_client_of_nats_is_a_link_and_its_buckets_are_stores(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        async with broker.way().open() as one:
            bucket = await open_bucket(one, "b")
            with bucket.watch() as watching:
                assert (isinstance(one, Link), isinstance(bucket, Store), isinstance(watching, Watching)) == (True,) * 3


async def test_a_cut_way_is_noticed_by_pings_and_what_was_under_way_is_lost(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        here, there = broker.way(), broker.way()
        async with here.open() as one, there.open() as other:
            got = other.subscribe("a")
            await other.flush()
            here.cut()
            one.publish("a", b"lost")
            began = trio.current_time()
            with pytest.raises(ConnectionLost, match="no sign of life") as caught:
                await one.request("a")
            assert caught.value.executed == "unknown"
            assert trio.current_time() - began <= 40
            await trio.sleep(30)
            assert not one.connected
            here.mend()
            await one.wait_connected()
            one.publish("a", b"found")
            assert (await got.receive()).data == b"found"


async def test_a_way_that_is_mended_in_time_loses_nothing(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        here, there = broker.way(), broker.way()
        async with here.open() as one, there.open() as other:
            echo(other, "a")
            await other.flush()
            async with trio.open_nursery() as nursery:
                here.cut()

                async def ask() -> None:
                    assert (await one.request("a", b"late")).data == b"late"

                nursery.start_soon(ask)
                await trio.sleep(5)
                here.mend()
            assert one.line.connections == 1


async def test_who_vanished_is_listened_for_until_the_broker_gives_it_up(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        gone = broker.way()
        async with broker.way().open() as one:
            async with gone.open() as other:
                echo(other, "a")
                await other.flush()
                gone.cut()
            assert broker.listened_to("a")
            await trio.sleep(local.GHOST + 1)
            assert not broker.listened_to("a")
            assert one.connected


async def test_a_broker_that_is_down_is_not_reached_and_forgets_nothing(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        async with broker.way().open() as one:
            bucket = await open_bucket(one, "kept")
            await bucket.put("a", b"1")
            broker.kill()
            with pytest.raises(ConnectFailed, match="the broker is down"):
                async with broker.way().open():
                    raise AssertionError
            await trio.sleep(20)
            assert not one.connected
            broker.start()
            await one.wait_connected()
            entry = await bucket.get("a")
            assert entry is not None
            assert entry.value == b"1"


async def test_a_node_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    monkeypatch.setattr(local, "MAX_PENDING", 1000)
    async with open_broker(Random(1)) as broker:
        async with broker.way().open() as one, broker.way().open() as other:
            one.subscribe("flood")
            await one.flush()
            for _ in range(20):
                other.publish("flood", bytes(100))
            assert broker.slow == 1
            await wait_all_tasks_blocked()
            await one.wait_connected()
            assert one.line.connections == 2


async def test_after_a_long_gap_there_are_no_ghosts(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        way = broker.way()
        async with way.open() as one, broker.way().open() as other:
            reading, writing = await open_bucket(one, "b"), await open_bucket(other, "b")
            first = await writing.put("ghost", b"1")
            with reading.watch() as watching:
                assert [await watching.receive(), await watching.receive()] == [Change("ghost", b"1", first), Synced()]
                way.cut()
                await writing.delete("ghost")
                # The marker of the deletion ends before the reader is back.
                await trio.sleep(200)
                assert broker.streams._streams["KV_b"].messages == {}
                way.mend()
                assert [await watching.receive(), await watching.receive()] == [Reset(), Synced()]


async def test_what_the_broker_does_not_know_it_refuses(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        async with broker.way().open() as one:
            bucket = await open_bucket(one, "b")
            with pytest.raises(StoreFailed, match="bad request"):
                await bucket.api("STREAM.PURGE.KV_b")
            with pytest.raises(StoreFailed, match="stream not found"):
                await bucket.api("STREAM.INFO.KV_other")


async def test_an_error_of_the_block_leaves_as_raised(autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError, match="ours"):
        async with open_broker():
            raise KeyError("ours")


async def test_a_bucket_that_was_made_with_fewer_replicas_is_told_of_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_broker(Random(1)) as broker, broker.way().open() as one:
        await open_bucket(one, "b", BucketOptions(replicas=1))
        assert "fewer" not in caplog.text
        bucket = await open_bucket(one, "b", BucketOptions(replicas=3))
        await bucket.open()
        assert caplog.text.count("fewer replicas than are configured, and keeps them bucket=b has=1 configured=3") == 1
