from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, NoReturn

import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from cord_trio.call import Call, Complete
from cord_trio.counters import Counters
from cord_trio.errors import ToolNotFound
from cord_trio.mesh.local import LocalBroker, open_broker
from cord_trio.mesh.node import Node, open_node
from cord_trio.mesh.presence import LEASE
from cord_trio.mesh_errors import DuplicateName, NotPermitted, OwnerRefused
from cord_trio.nats.kv import Bucket, open_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock

    from cord_trio.call import Handler, Outcome


@asynccontextmanager
async def node(
    broker: LocalBroker, name: str, handler: Handler | None = None, counters: Counters | None = None
) -> AsyncGenerator[Node]:
    async with broker.way().open() as nats:
        bucket = await open_bucket(nats, "cord_m")
        async with open_node(
            nats, bucket, mesh="m", node=name, handler=handler, rng=Random(name), counters=counters
        ) as opened:
            yield opened


async def test_two_nodes_know_and_call_each_other(autojump_clock: MockClock) -> None:
    async def double(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        return Complete(Raw(b'"%b%b"' % (call.params["x"], call.params["x"])))

    async with open_broker(Random(1)) as broker, node(broker, "a") as a, node(broker, "b", double) as b:
        await trio.sleep(1)
        assert sorted(a.roster.nodes) == sorted(b.roster.nodes) == ["a", "b"]
        assert a.roster.epoch("b") == b.epoch
        call = Call("tools/call", "t", {"x": Raw(b"7")})
        assert await a.calling.call(call, ["b"]) == Complete(Raw(b'"77"'))
        with pytest.raises(ToolNotFound):
            await b.calling.call(call, ["a"])


async def test_who_leaves_is_gone_at_once(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, node(broker, "a") as a:
        async with node(broker, "b"):
            await trio.sleep(20)
            assert a.roster.epoch("b")
        await wait_all_tasks_blocked()
        assert a.roster.epoch("b") is None


async def test_one_that_drains_finishes_what_it_runs_and_takes_nothing_new(autojump_clock: MockClock) -> None:
    async def work(call: Call) -> Outcome:
        await trio.sleep(3)
        return Complete(Raw(b"1"))

    async with open_broker(Random(1)) as broker, node(broker, "a") as a, node(broker, "b", work) as b:
        await trio.sleep(1)
        results: list[Outcome] = []

        async def ask() -> None:
            results.append(await a.calling.call(Call("tools/call", "t"), ["b"]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(1)
            began = trio.current_time()
            await b.drain()
            assert 1.9 < trio.current_time() - began < 2.2
        assert results == [Complete(Raw(b"1"))]
        assert a.roster.nodes["b"].draining
        with pytest.raises(OwnerRefused, match="draining"):
            await a.calling.call(Call("tools/call", "t"), ["b"])


@pytest.mark.parametrize("away", [0.0, 0.5, 4.0])
async def test_calls_go_on_while_the_bucket_is_lost(away: float, autojump_clock: MockClock) -> None:
    async def work(call: Call) -> Outcome:
        await trio.sleep(40)
        return Complete(Raw(b"1"))

    counters = Counters()
    async with (
        open_broker(Random(1)) as broker,
        node(broker, "a", counters=counters) as a,
        node(broker, "b", work, counters) as b,
        node(broker, "c", counters=counters) as c,
    ):
        await trio.sleep(1)
        results: list[Outcome] = []

        async def ask() -> None:
            results.append(await a.calling.call(Call("tools/call", "t"), ["b"]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(1)
            for _ in range(3):  # so that a lease is renewed soon after, and long after
                if away:
                    broker.kill()
                broker.streams.lose("cord_m")
                await trio.sleep(away)
                broker.start()
                await trio.sleep(8.7)
                assert sorted(a.roster.nodes) == sorted(c.roster.nodes) == ["a", "b", "c"]
        assert results == [Complete(Raw(b"1"))]
        assert (counters["mesh.epochs_ended"], counters["mesh.fences"], b.counters["mesh.orphans"]) == (0, 0, 0)


async def test_a_name_that_another_has_is_told_as_such(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, node(broker, "a"):
        with pytest.raises(DuplicateName):
            async with node(broker, "a"):
                raise AssertionError


async def test_an_error_of_the_block_leaves_as_it_was_raised(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        error = RuntimeError("mine")
        with pytest.raises(RuntimeError) as caught:
            async with node(broker, "a"):
                raise error
        assert caught.value is error


async def test_where_nobody_may_look_there_is_no_node(autojump_clock: MockClock) -> None:
    class Closed(Bucket):
        def watch(self, pattern: str = ">") -> NoReturn:
            raise NotPermitted(pattern, "no")

    async with open_broker(Random(1)) as broker, broker.way().open() as nats:
        bucket = await open_bucket(nats, "cord_m")
        with pytest.raises(NotPermitted):
            async with open_node(nats, Closed(nats, "cord_m", bucket._options), mesh="m", node="a"):
                raise AssertionError


async def test_nodes_come_back_by_themselves_after_all_was_lost(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker, node(broker, "a") as a, node(broker, "b") as b:
        await trio.sleep(5)
        broker.kill()
        broker.streams.lose("cord_m")
        await trio.sleep(60)
        assert (a.epoch, b.epoch) == ("", "")
        broker.start()
        await trio.sleep(2 * LEASE)
        assert {name: record.epoch for name, record in a.roster.nodes.items()} == {"a": a.epoch, "b": b.epoch}
        assert "" not in (a.epoch, b.epoch)
        assert a.roster.nodes == b.roster.nodes
