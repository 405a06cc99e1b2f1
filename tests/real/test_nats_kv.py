"""Buckets of a real nats-server, beside nats-py on the same ones."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
import trio
from nats.js.errors import KeyNotFoundError

from cord_trio.mesh_errors import NotPermitted, StoreFailed
from cord_trio.nats import line, watch
from cord_trio.nats.client import open_nats
from cord_trio.nats.keys import Credentials
from cord_trio.nats.kv import Bucket, BucketOptions, Entry, open_bucket
from cord_trio.nats.watch import Change, Reset, Synced
from tests.real.nats_server import FOUND, Broker, running
from tests.real.test_nats import beside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nats.aio.client import Client

pytestmark = pytest.mark.skipif(FOUND is None, reason="no nats-server for this platform")


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running(jetstream=True) as broker:
        yield broker


async def test_buckets_mean_the_same_to_nats_py(broker: Broker) -> None:
    async with open_nats(broker.url) as nats:
        ours = await open_bucket(nats, "both", BucketOptions(storage="memory"))
        revision = await ours.put("a.b", b"\x00ours")
        await ours.put("gone", b"x")
        await ours.delete("gone")

        async def use(client: Client) -> list[object]:
            theirs = await client.jetstream().key_value("both")
            entry = await theirs.get("a.b")
            seen: list[object] = [entry.value, entry.revision]
            try:
                await theirs.get("gone")
            except KeyNotFoundError:
                seen.append("gone")
            seen.append(await theirs.update("a.b", b"theirs", last=revision))
            seen.append(await theirs.create("gone", b"again"))
            await theirs.put("x", b"1")
            await theirs.delete("x")
            await asyncio.sleep(0)
            return seen

        with ours.watch() as watching:
            assert [await watching.receive(), await watching.receive()] == [
                Change("a.b", b"\x00ours", revision),
                Synced(),
            ]
            seen = await beside(broker.url, use)
            told = [await watching.receive() for _ in range(4)]
        assert seen == [b"\x00ours", revision, "gone", 4, 5]
        assert told == [
            Change("a.b", b"theirs", 4),
            Change("gone", b"again", 5),
            Change("x", b"1", 6),
            Change("x", None, 7),
        ]
        assert await ours.get("a.b") == Entry("a.b", b"theirs", 4)
        assert await ours.get("x") is None


async def test_a_watch_goes_on_after_the_server_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "BACKOFF", (0.02, 0.1))
    with running(jetstream=True) as broker:
        async with open_nats(broker.url) as nats:
            bucket = await open_bucket(nats, "kept")
            first = await bucket.put("a", b"1")
            with bucket.watch() as watching:
                assert [await watching.receive(), await watching.receive()] == [Change("a", b"1", first), Synced()]
                lost = trio.Event()
                nats.line.on_change = lambda *_: lost.set()
                broker.kill()
                await lost.wait()
                broker.start()
                await nats.wait_connected()
                second = await bucket.put("b", b"2")
                # What was seen is not told again: the gap was short, and the bucket is the same.
                assert await watching.receive() == Change("b", b"2", second)


async def test_a_lost_bucket_is_made_again_by_who_writes_and_told_anew(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "HEARTBEAT", 0.2)
    async with open_nats(broker.url) as nats:
        bucket = await open_bucket(nats, "lost")
        await bucket.put("old", b"1")
        with bucket.watch() as watching:
            assert [await watching.receive(), await watching.receive()] == [Change("old", b"1", 1), Synced()]
            await bucket.api("STREAM.DELETE.KV_lost")
            assert await bucket.put("new", b"2") == 1
            assert [await watching.receive() for _ in range(3)] == [Reset(lost=True), Change("new", b"2", 1), Synced()]
        await bucket.api("STREAM.DELETE.KV_lost")
        assert await bucket.get("new") is None


async def test_after_a_long_gap_everything_is_told_again(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_nats(broker.url) as nats:
        bucket = await open_bucket(nats, "gap")
        await bucket.put("a", b"1")
        with bucket.watch() as watching:
            await watching.receive()
            await watching.receive()
            monkeypatch.setattr(watch, "RESUME", 0.0)
            watching._count += 1  # as if a message had been lost
            await bucket.put("b", b"2")
            assert [await watching.receive() for _ in range(4)] == [
                Reset(),
                Change("a", b"1", 1),
                Change("b", b"2", 2),
                Synced(),
            ]
            assert nats.counters["nats.watch_restarts"] == 1


async def test_a_key_ends_by_itself_and_watchers_hear_of_it(broker: Broker) -> None:
    async with open_nats(broker.url) as nats:
        bucket = await open_bucket(nats, "leases")
        revision = await bucket.create("lease", b"x", ttl=1)
        began = time.monotonic()
        with bucket.watch("lease") as watching:
            assert [await watching.receive(), await watching.receive()] == [Change("lease", b"x", revision), Synced()]
            ended = await watching.receive()
        assert ended == Change("lease", None, revision + 1, expired=True)
        assert 0.8 < time.monotonic() - began < 3
        assert await bucket.get("lease") is None
        assert await bucket.create("lease", b"y", ttl=1) == revision + 2


@pytest.mark.parametrize("ttl", [0, 0.5, 1.5, -1])
async def test_a_key_cannot_end_at_once_or_between_seconds(broker: Broker, ttl: float) -> None:
    async with open_nats(broker.url) as nats:
        bucket = Bucket(nats, "leases", BucketOptions())
        with pytest.raises(ValueError, match="whole seconds, 1 at least"):
            await bucket.put("a", b"", ttl=ttl)  # type: ignore[arg-type]  # as a caller without types may


async def test_a_store_that_cannot_be_had_is_named_with_what_to_do(broker: Broker) -> None:
    with running() as plain:
        async with open_nats(plain.url) as nats:
            with pytest.raises(StoreFailed, match="has no JetStream; start it with"):
                await open_bucket(nats, "x")
    async with open_nats(broker.url) as nats:

        async def use(client: Client) -> None:
            await client.jetstream().create_key_value(bucket="foreign")

        await beside(broker.url, use)
        with pytest.raises(StoreFailed, match="bucket foreign was made by others, without keys that end"):
            await open_bucket(nats, "foreign")
        with pytest.raises(ValueError, match="no subject"):
            await open_bucket(nats, "a b")


async def test_a_watch_that_is_not_permitted_says_so() -> None:
    rights = """
    authorization { users = [ { user: u, password: p, permissions: {
        publish: ["$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.INFO.>"], subscribe: "_INBOX.>" } } ] }"""
    with running(rights, jetstream=True) as broker:
        async with open_nats(broker.url, credentials=Credentials(user="u", password="p")) as nats:
            bucket = await open_bucket(nats, "x")
            with pytest.raises(NotPermitted, match=r"KV\.x\.a"):
                await bucket.put("a", b"")
            with bucket.watch() as watching:
                with pytest.raises(NotPermitted, match=r"CONSUMER\.CREATE"):
                    await watching.receive()


async def test_who_draws_slowly_from_a_watch_loses_nothing(broker: Broker) -> None:
    async with open_nats(broker.url) as nats:
        bucket = await open_bucket(nats, "slow", BucketOptions(storage="memory"))
        with bucket.watch() as watching:
            assert await watching.receive() == Synced()
            async with trio.open_nursery() as nursery:
                for number in range(600):
                    nursery.start_soon(bucket.put, f"k.{number}", bytes(100))
            drawn = [await watching.receive() for _ in range(600)]
        assert len({change.key for change in drawn if isinstance(change, Change)}) == 600
        assert nats.counters["nats.watch_restarts"] == 0
