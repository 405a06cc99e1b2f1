from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from cord_trio.counters import Counters
from cord_trio.mesh import catalogues as catalogues_module
from cord_trio.mesh import telling as telling_module
from cord_trio.mesh.catalogues import Catalogues, digest_of
from cord_trio.mesh.local import LocalBroker, open_broker
from cord_trio.mesh.presence import LEASE, NodeRecord, join
from cord_trio.mesh.roster import Roster
from cord_trio.mesh.telling import Teller
from cord_trio.nats.kv import Bucket, open_bucket
from cord_trio.nats.watch import Change

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock

TEXTS = {"web": b"w", "notes": b"n"}
SERVERS = {name: digest_of(text) for name, text in TEXTS.items()}


@asynccontextmanager
async def telling(
    counters: Counters | None = None,
) -> AsyncGenerator[tuple[Teller, Bucket, LocalBroker]]:
    """A node, and the bucket as another sees it."""
    async with open_broker(Random(1)) as broker, broker.way().open() as other:
        async with broker.way().open() as nats:
            bucket = await open_bucket(nats, "cord_m")
            roster = Roster(bucket)
            async with (
                join(nats, bucket, mesh="m", node="a", rng=Random(2)) as presence,
                trio.open_nursery() as nursery,
            ):
                await nursery.start(roster.run)
                catalogues = Catalogues(bucket, rng=Random(3))
                teller = Teller(presence, catalogues, NodeRecord(), rng=Random(4), counters=counters)
                with roster.hearing(teller.ended, anew=teller.anew):
                    await nursery.start(teller.run)
                    yield teller, await open_bucket(other, "cord_m"), broker
                    nursery.cancel_scope.cancel("the test is over")


async def said(bucket: Bucket) -> NodeRecord | None:
    """What the node says, without its epoch."""
    entry = await bucket.get("up.a")
    record = None if entry is None else msgspec.json.decode(entry.value, type=NodeRecord)
    return None if record is None else msgspec.structs.replace(record, epoch="")


async def test_what_is_offered_is_stored_before_it_is_said(autojump_clock: MockClock) -> None:
    async with telling() as (teller, bucket, _):
        with bucket.watch("up.a") as watching:
            await watching.receive()
            await watching.receive()
            assert teller.offer(TEXTS, {"web": "web"}) == ()
            await watching.receive()
            assert await bucket.get(f"cat.{SERVERS['web']}") is not None
            assert await said(bucket) == NodeRecord(servers=SERVERS, groups={"web": "web"})


async def test_changes_gather_and_the_last_of_them_counts(autojump_clock: MockClock) -> None:
    async with telling() as (teller, bucket, _):
        with bucket.watch("up.a") as watching:
            await watching.receive()
            await watching.receive()
            for number in range(100):
                teller.tell(NodeRecord(labels={"n": str(number)}))
                await trio.sleep(0.1)
            await trio.sleep(5)
            assert await said(bucket) == NodeRecord(labels={"n": "99"})
            changes = 0
            with trio.move_on_after(1):
                while True:
                    changes += isinstance(await watching.receive(), Change)
            assert 5 < changes < 13
        teller.tell(NodeRecord(labels={"n": "99"}))  # nothing new


async def test_a_record_that_others_took_away_is_said_again_within_seconds(autojump_clock: MockClock) -> None:
    counters = Counters()
    async with telling(counters) as (teller, bucket, _):
        teller.offer(TEXTS, {})
        await trio.sleep(3)
        for _ in range(3):
            await bucket.delete("up.a")
            await trio.sleep(2.5)
            assert await said(bucket) == NodeRecord(servers=SERVERS)
        assert counters["mesh.said_again"] == 3


async def test_a_store_that_was_lost_is_filled_again(autojump_clock: MockClock) -> None:
    async with telling() as (teller, bucket, broker):
        teller.offer(TEXTS, {})
        await trio.sleep(3)
        broker.streams.lose("cord_m")
        await trio.sleep(LEASE)
        assert await said(bucket) == NodeRecord(servers=SERVERS)
        assert await bucket.get(f"cat.{SERVERS['web']}") is not None


async def test_what_could_not_be_told_is_told_later(autojump_clock: MockClock) -> None:
    async with telling() as (teller, bucket, broker):
        await trio.sleep(3)
        broker.kill()
        teller.offer(TEXTS, {})
        await trio.sleep(5)
        broker.start()
        await trio.sleep(20)
        assert await said(bucket) == NodeRecord(servers=SERVERS)


async def test_a_catalogue_stays_for_as_long_as_it_is_offered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = 60
    monkeypatch.setattr(catalogues_module, "KEPT", kept)
    monkeypatch.setattr(telling_module, "KEPT", kept)
    async with open_broker(Random(1)) as broker, broker.way().open() as nats:
        bucket = await open_bucket(nats, "cord_m")

        class Silent:
            node, lease = "a", None

            async def say(self, record: NodeRecord) -> None:
                await trio.lowlevel.checkpoint()

        teller = Teller(
            Silent(),  # type: ignore[arg-type]  # as much of a presence as it needs
            Catalogues(bucket, rng=Random(1)), NodeRecord(), rng=Random(1),
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            await nursery.start(teller.run)
            teller.offer(TEXTS, {})
            await trio.sleep(1.5 * kept)
            assert await bucket.get(f"cat.{SERVERS['web']}") is not None
            teller.offer({"notes": b"n"}, {})
            await trio.sleep(1.5 * kept)
            assert await bucket.get(f"cat.{SERVERS['web']}") is None
            nursery.cancel_scope.cancel("the test is over")


async def test_servers_that_have_no_room_are_left_out_by_name(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    counters = Counters()
    async with telling(counters) as (teller, bucket, _):
        texts = {f"server-{number:03}": b"%d" % number for number in range(100)}
        left_out = teller.offer(texts, dict.fromkeys(texts, "group"))
        assert 20 < len(left_out) < 70
        assert left_out == tuple(texts)[-len(left_out) :]
        assert left_out[0] in caplog.text
        assert counters["mesh.not_offered"] == len(left_out)
        await trio.sleep(3)
        record = await said(bucket)
        assert record is not None
        assert list(record.servers) == list(texts)[: -len(left_out)]


async def test_a_record_that_is_too_long_is_refused_and_the_one_before_stays(autojump_clock: MockClock) -> None:
    async with telling() as (teller, _, _):
        with pytest.raises(ValueError, match="offer less"):
            teller.tell(NodeRecord(labels={"x": "y" * 4080}))
        assert teller.record == NodeRecord()
