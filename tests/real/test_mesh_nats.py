"""A NATS server keeps the contract of a mesh."""

from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.mesh.presence import join
from cord_trio.mesh_errors import DuplicateName
from cord_trio.nats import line, watch
from cord_trio.nats.client import Nats, open_nats
from cord_trio.nats.kv import Bucket, BucketOptions, open_bucket
from tests.mesh.contract import CONTRACT, World
from tests.real.nats_server import FOUND, Broker, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

    from cord_trio.mesh.contracts import Link, Store

pytestmark = pytest.mark.skipif(FOUND is None, reason="no nats-server for this platform")


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running(jetstream=True) as broker:
        yield broker


class NatsWorld:
    def __init__(self, url: str) -> None:
        self._url = url

    @asynccontextmanager
    async def link(self) -> AsyncGenerator[Link]:
        async with open_nats(self._url, rng=Random(1)) as nats:
            yield nats

    async def store(self, link: Link, bucket: str) -> Store:
        assert isinstance(link, Nats)
        return await open_bucket(link, bucket, BucketOptions(storage="memory"))

    async def lose(self, link: Link) -> None:
        assert isinstance(link, Nats)
        lost = trio.Event()
        link.line.on_change = lambda *_: lost.set()
        link.line._give_up("the test wants it")
        await lost.wait()

    async def lose_bucket(self, store: Store) -> None:
        assert isinstance(store, Bucket)
        await store.api(f"STREAM.DELETE.KV_{store.name}")


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
async def test_a_nats_server_keeps_the_contract(
    promise: Callable[[World], Awaitable[None]], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "BACKOFF", (0.02, 0.1))
    monkeypatch.setattr(watch, "HEARTBEAT", 0.2)
    await promise(NatsWorld(broker.url))


async def test_a_name_is_held_by_one_node_and_given_back(broker: Broker) -> None:
    async with open_nats(broker.url) as here, open_nats(broker.url) as there:
        ours, theirs = [await open_bucket(nats, "cord_p", BucketOptions(storage="memory")) for nats in (here, there)]
        async with join(here, ours, mesh="p", node="a") as presence:
            assert presence.lease is not None
            with pytest.raises(DuplicateName, match=presence.lease.epoch):
                async with join(there, theirs, mesh="p", node="a"):
                    raise AssertionError
        async with join(there, theirs, mesh="p", node="a") as presence:
            assert presence.lease is not None
