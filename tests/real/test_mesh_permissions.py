"""A nats-server with the permissions that we write refuses what no node may do, and lets nodes do the rest."""

from __future__ import annotations

import contextlib
import io
import re
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete
from cord_trio.cli import main
from cord_trio.config import Config, MeshConfig
from cord_trio.errors import ConnectFailed
from cord_trio.fabric import open_fabric
from cord_trio.mesh.joining import in_mesh
from cord_trio.mesh.node import Node, open_node
from cord_trio.mesh.reaching import open_store
from cord_trio.mesh_errors import NotPermitted, StoreFailed
from cord_trio.nats.client import Nats, open_nats
from tests.full_server import FullServer
from tests.real.helpers import until
from tests.real.nats_server import FOUND, Broker, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from cord_trio.call import Outcome
    from cord_trio.nats.kv import Bucket

pytestmark = pytest.mark.skipif(FOUND is None, reason="no nats-server for this platform")

BIG = 2 * 1024 * 1024


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def broker(keys: Path) -> Iterator[Broker]:
    """A server that was configured by `mesh permissions`: `c` is no registrar, and may call `b` alone."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        assert main(["mesh", "permissions", "a", "b", "c:b", "--registrar", "a", "--keys", str(keys)]) == 0
    text = re.sub(r"(?m)^(listen|jetstream).*\n", "", said.getvalue())  # the test's server has its own
    with running(text, jetstream=True) as broker:
        yield broker


def settings(broker: Broker, keys: Path, node: str) -> MeshConfig:
    return MeshConfig(servers=[broker.url], node=node, credentials=str(keys / f"{node}.nk"))


@asynccontextmanager
async def connected(broker: Broker, keys: Path, node: str) -> AsyncGenerator[tuple[Nats, Bucket]]:
    async with open_store(settings(broker, keys, node)) as (nats, bucket):
        yield nats, bucket


@asynccontextmanager
async def opened(broker: Broker, keys: Path, name: str) -> AsyncGenerator[tuple[Node, tuple[Nats, Nats]]]:
    async def double(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        return Complete(call.params["arguments"])

    async with connected(broker, keys, name) as (nats, bucket), connected(broker, keys, name) as (bulk, _):
        async with open_node(nats, bucket, bulk=bulk, mesh="cord", node=name, handler=double, rng=Random(name)) as node:
            yield node, (nats, bulk)


async def test_nodes_find_and_call_each_other_with_large_bodies_too(broker: Broker, keys: Path) -> None:
    async with opened(broker, keys, "a") as (a, ours), opened(broker, keys, "b") as (_, theirs):
        with trio.fail_after(5):
            while a.roster.epoch("b") is None:
                await a.roster.changed(a.roster.number)
        for size in (10, BIG):
            call = Call("tools/call", "t", {"arguments": Raw(b'"%b"' % (b"x" * size))})
            with trio.fail_after(10):
                outcome = await a.calling.call(call, ["b"])
            assert isinstance(outcome, Complete)
            assert len(bytes(outcome.result)) == size + 2
        assert [nats.counters["nats.not_permitted"] for nats in (*ours, *theirs)] == [0, 0, 0, 0]


async def test_nobody_calls_as_another_nor_whom_it_may_not(broker: Broker, keys: Path) -> None:
    async with connected(broker, keys, "a") as (a, _), connected(broker, keys, "c") as (c, _):
        for nats, subject in ((a, "c1.cord.call.b.00000001.b"), (c, "c1.cord.call.a.00000001.c")):
            with trio.fail_after(2), pytest.raises(NotPermitted) as caught:
                await nats.request(subject, b"x")
            assert caught.value.executed == "no"


async def test_nobody_writes_anothers_record_or_lease_unless_a_registrar(broker: Broker, keys: Path) -> None:
    async with connected(broker, keys, "b") as (_, bucket), connected(broker, keys, "a") as (_, registrar):
        for key in ("up.a", "hb.a.00000001", "up.x"):
            with trio.fail_after(2), pytest.raises(NotPermitted):
                await bucket.put(key, b"{}")
        await registrar.put("up.x", b"{}")
        await registrar.delete("up.x")
        with trio.fail_after(2), pytest.raises(NotPermitted):
            await registrar.api("STREAM.DELETE.KV_cord_cord")


async def test_nobody_listens_to_anothers_inbox_or_calls(broker: Broker, keys: Path) -> None:
    async with connected(broker, keys, "b") as (nats, _):
        for subject in ("_INBOX_a.>", "_INBOX_a.*.*", "c1.cord.call.a.*.*", ">", "$KV.cord_cord.>"):
            with trio.fail_after(2), nats.subscribe(subject) as listening, pytest.raises(NotPermitted):
                await listening.receive()


async def test_nobody_answers_what_it_was_not_asked(broker: Broker, keys: Path) -> None:
    async with connected(broker, keys, "a") as (a, _), connected(broker, keys, "b") as (b, _):
        with trio.fail_after(2), pytest.raises(NotPermitted):
            await b.request(f"{a.inbox}.1", b"forged")


@pytest.mark.parametrize(
    "headers",
    [
        {"C-Op": "ping"},
        {"C-Op": "trace"},
        {"C-Ver": "1", "C-Op": "ping", "C-Id": "0" * 32},
        {"C-Ver": "2", "C-Op": "call", "C-Id": "0" * 32},
        {"C-Ver": "1", "C-Op": "call", "C-Id": "0" * 32, "C-From-Epoch": "00000001"},
    ],
)
async def test_nobody_lets_another_say_for_it_what_it_may_not(
    headers: dict[str, str], broker: Broker, keys: Path
) -> None:
    async with opened(broker, keys, "a") as (a, _), connected(broker, keys, "c") as (c, bucket):
        async with opened(broker, keys, "b") as (b, _):
            for key in ("up.a", "up.b"):
                before = await bucket.get(key)
                c.publish(f"c1.cord.call.b.{b.epoch}.c", b"{}", reply=f"$KV.cord_cord.{key}", headers=headers)
                await c.flush()
                with trio.fail_after(5):  # it is answered after the other
                    await c.request(f"c1.cord.call.b.{b.epoch}.c", headers={"C-Op": "ping"})
                assert await bucket.get(key) == before
            assert a.epoch


async def test_whoever_joins_as_another_or_with_brokers_that_are_not_there_is_told_what_to_mend(
    broker: Broker, keys: Path
) -> None:
    mine = settings(broker, keys, "a")
    with pytest.raises(NotPermitted, match=r"a\.nk be node 'b' of mesh 'cord'\?$") as caught:
        async with open_store(attrs.evolve(mine, node="b")):
            raise AssertionError
    assert caught.value.executed == "no"
    with pytest.raises(StoreFailed, match=r"mesh\.replicas is 3: name 1, or have as many brokers"):
        async with open_store(attrs.evolve(mine, replicas=3)):
            raise AssertionError


async def test_a_node_that_is_cancelled_leaves_its_name_to_the_next(broker: Broker, keys: Path) -> None:
    mine = settings(broker, keys, "a")
    for _ in range(2):
        with trio.fail_after(5), trio.CancelScope() as scope:  # less than what a lease lasts
            async with open_fabric(Config(), mesh=in_mesh(mine)):
                scope.cancel("somebody pressed Ctrl-C")
                await trio.sleep_forever()


async def test_who_has_no_key_is_let_in_nowhere(broker: Broker) -> None:
    with pytest.raises(ConnectFailed, match="refuses somebody without credentials"):
        async with open_nats(broker.url):
            raise AssertionError


async def test_changes_of_resources_are_told_to_another_node_as_well(broker: Broker, keys: Path) -> None:
    behind, told = FullServer(modern=True), trio.Event()

    def sink(_uri: str) -> None:
        told.set()

    mesh = [attrs.evolve(settings(broker, keys, name), key="k" * 32) for name in ("a", "b")]
    async with (
        open_fabric(Config(sources=[behind.source()]), mesh=in_mesh(mesh[0], rng=Random(1))),
        open_fabric(Config(), mesh=in_mesh(mesh[1], rng=Random(2))) as front,
    ):
        with trio.fail_after(8):
            while "x__echo" not in front.registry.snapshot.tools:
                await front.registry.changed(front.registry.snapshot.version)
            with front.subscribe("p", ["cord://x/file:///a"], sink):
                await until(lambda: "resourceSubscriptions" in behind.sent("subscriptions/listen")[-1]["notifications"])
                await trio.sleep(0.1)
                behind.connections[0].tell("notifications/resources/updated", {"uri": "file:///a"})
                await told.wait()
