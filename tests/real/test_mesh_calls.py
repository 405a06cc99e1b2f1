"""Calls over a real NATS server, through lost connections and killed processes."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete
from cord_trio.errors import CallError
from cord_trio.mesh import calling
from cord_trio.mesh.node import open_node
from cord_trio.mesh_errors import NoOwner, OwnerLost
from cord_trio.nats import line
from cord_trio.nats.client import open_nats
from cord_trio.nats.kv import open_bucket
from tests.real.mesh_node import MESH, asked, notes, writing
from tests.real.nats_server import FOUND, Broker, running
from tests.real.processes import running_module

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncGenerator, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cord_trio.call import Handler
    from cord_trio.mesh.node import Node
    from cord_trio.nats.client import Nats

pytestmark = pytest.mark.skipif(FOUND is None, reason="no nats-server for this platform")


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running(jetstream=True) as broker:
        yield broker


@asynccontextmanager
async def node(broker: Broker, name: str, handler: Handler | None = None) -> AsyncGenerator[tuple[Node, Nats, Nats]]:
    async with open_nats(broker.url, name=name, rng=Random(1)) as nats, open_nats(broker.url, name=name) as bulk:
        store = await open_bucket(nats, f"cord_{MESH}")
        async with open_node(nats, store, mesh=MESH, node=name, bulk=bulk, handler=handler) as node:
            yield node, nats, bulk


def child(broker: Broker, name: str, log: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A node in a process of its own, killed with the block."""
    return running_module("tests.real.mesh_node", broker.url, name, str(log), "15", says=b"ready\n")


async def seen(node: Node, name: str) -> None:
    while node.roster.epoch(name) is None:
        await node.roster.changed(node.roster.number)


async def begun(log: Path) -> None:
    while not any(what == "begun" for what, *_ in notes(log)):  # noqa: ASYNC110  # another process writes it
        await trio.sleep(0.01)


async def test_calls_run_once_while_connections_are_reset(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "BACKOFF", (0.02, 0.1))
    log, rng, ends = tmp_path / "log", Random(1), {}
    async with node(broker, "a") as (here, *ours), node(broker, "b", writing(log)) as (_, *theirs):
        await seen(here, "b")

        async def ask(number: int) -> None:
            size = 400_000 if number % 10 == 0 else 10
            try:
                await here.calling.call(asked(number=number, seconds=rng.uniform(0, 0.3), size=size), ["b"])
                ends[number] = "yes"
            except CallError as exc:
                ends[number] = exc.executed

        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(ask, number)
                await trio.sleep(0.015)
                if number % 10 == 5:
                    rng.choice([*ours, *theirs]).line._give_up("the test wants it")
    began = [number for what, number, *_ in notes(log) if what == "begun"]
    assert len(began) == len(set(began))
    assert not {number for number, end in ends.items() if end == "no"} & set(began)
    assert {number for number, end in ends.items() if end == "yes"} <= set(began)
    assert sum(end == "yes" for end in ends.values()) >= 50


async def test_a_killed_broker_loses_no_call_and_a_killed_owner_is_told(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    with child(broker, "c", log) as process:
        async with node(broker, "d") as (here, *_):
            await seen(here, "c")
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    outcome = await here.calling.call(asked(number=1, seconds=0.6), ["c"])
                    assert outcome == Complete(Raw(b'{"data":""}'))

                nursery.start_soon(ask)
                await begun(log)
                broker.kill()
                await trio.sleep(0.3)
                broker.start()
            assert [number for what, number, *_ in notes(log) if what == "begun"] == [1]

            monkeypatch.setattr(calling, "GRACE", 0.5)
            async with trio.open_nursery() as nursery:

                async def lose() -> None:
                    with pytest.raises(OwnerLost) as caught:
                        await here.calling.call(asked(number=2, seconds=60), ["c"])
                    assert caught.value.executed == "unknown"

                nursery.start_soon(lose)
                while len(notes(log)) < 3:  # noqa: ASYNC110  # as above
                    await trio.sleep(0.01)
                process.send_signal(signal.SIGKILL)
            began = trio.current_time()
            with pytest.raises(NoOwner) as caught:
                await here.calling.call(asked(within=2), ["c"])
            assert caught.value.executed == "no"
            assert trio.current_time() - began < 1


async def test_a_call_of_another_method_and_its_notifications_cross(broker: Broker) -> None:
    async def handler(call: Call) -> Complete:
        assert call.events is not None
        call.events("notifications/progress", Raw(b'{"progress":1}'))
        await trio.lowlevel.checkpoint()
        return Complete(Raw(b"{}"))

    told: list[object] = []
    async with node(broker, "e") as (here, *_), node(broker, "f", handler):
        await seen(here, "f")
        call = Call("prompts/get", "p", events=lambda *event: told.append(event))
        assert await here.calling.call(call, ["f"]) == Complete(Raw(b"{}"))
    assert told == [("notifications/progress", Raw(b'{"progress":1}'))]
