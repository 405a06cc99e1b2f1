"""A fabric that is in a mesh whenever that can be had."""

from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from cord_trio.config import Config, MeshConfig
from cord_trio.errors import ConfigError, ConnectFailed, ConnectionLost, Problem
from cord_trio.fabric import open_fabric
from cord_trio.mesh.joining import join_mesh
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.staying import FIRST, Entered, News, Refused, Waiting, passes, stay_in_mesh
from cord_trio.mesh_errors import Conflict, DuplicateName, NotPermitted, StoreFailed
from cord_trio.nats.kv import open_bucket
from cord_trio.testing import ToolServer
from tests.mesh.members import listed, member

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock

    from cord_trio.fabric import Fabric
    from cord_trio.mesh.local import LocalBroker
    from cord_trio.mesh.node import Node

DOWN = ConnectFailed("nats://one:4222", "connect", "Connection refused", "is the server running, and on this port?")
REFUSED = ConnectFailed("nats://one:4222", "authorize", "the server refuses the key U…", "does it know that one?")


@attrs.define
class Door:
    """A way into the mesh of a broker, which has first some other answers; one that is a number takes those seconds."""

    broker: LocalBroker
    answers: list[Exception | float]
    name: str = "a"
    ended: trio.Event = attrs.field(factory=trio.Event)

    @asynccontextmanager
    async def __call__(self, fabric: Fabric) -> AsyncGenerator[Node]:
        match self.answers.pop(0) if self.answers else 0.0:
            case Exception() as exc:
                await trio.lowlevel.checkpoint()
                raise exc
            case seconds:
                await trio.sleep(seconds)
        settings = MeshConfig(servers=["nats://local"], node=self.name)
        async with self.broker.way().open() as nats:
            bucket = await open_bucket(nats, "cord_cord")
            async with join_mesh(fabric, settings, nats, bucket, Random(self.name)) as node:
                yield node
        self.ended.set()


@pytest.mark.parametrize(
    ("exc", "by_itself"),
    [
        (DOWN, True),
        (ConnectFailed("nats://one", "handshake", "the server closed the connection"), True),
        (ConnectionLost("reset", "no"), True),
        (trio.TooSlowError(), True),
        (Conflict("up.a", 1), True),
        (StoreFailed(10008, "JetStream system temporarily unavailable"), True),
        (REFUSED, False),
        (ConnectFailed("nats://one", "handshake", "nats-server 2.9.10 is too old", "use 2.11 or newer"), False),
        (DuplicateName("a", "00000000"), False),
        (NotPermitted("x", "no"), False),
        (StoreFailed(0, "the NATS server has no JetStream"), False),
        (ConfigError([Problem("", "mesh.ca", "cannot be used", "")]), False),
    ],
)
def test_what_a_person_has_to_mend_does_not_pass_by_itself(exc: Exception, by_itself: bool) -> None:
    assert passes(exc) is by_itself


async def test_a_fabric_works_before_its_broker_is_there_and_joins_later(autojump_clock: MockClock) -> None:
    heard: list[News] = []
    web, notes = ToolServer(name="web"), ToolServer(name="notes")
    async with open_broker(Random(1)) as broker, member(broker, "b", notes.in_process()):
        door = Door(broker, [DOWN, DOWN])
        mesh = stay_in_mesh(door, heard.append, rng=Random(1))
        async with open_fabric(Config(sources=[web.in_process()]), mesh=mesh) as fabric:
            assert (await fabric.call("web__echo", {"text": "x"})).text == "x"
            assert heard == [Waiting(str(DOWN))]
            await listed(fabric, "notes__echo")
            assert [type(each) for each in heard] == [Waiting, Waiting, Entered]
            assert (await fabric.call("notes__echo", {"text": "y"})).text == "y"
        assert door.ended.is_set()


@pytest.mark.parametrize("exc", [REFUSED, DuplicateName("a", "00000000"), ValueError("no name")])
async def test_a_refusal_at_once_is_the_error_of_the_fabric(exc: Exception, autojump_clock: MockClock) -> None:
    heard: list[News] = []
    async with open_broker(Random(1)) as broker:
        with pytest.raises(type(exc)) as caught:
            async with open_fabric(Config(), mesh=stay_in_mesh(Door(broker, [exc]), heard.append)):
                raise AssertionError
    assert (caught.value, heard) == (exc, [])


async def test_an_heir_waits_for_its_name(autojump_clock: MockClock) -> None:
    heard: list[News] = []
    async with open_broker(Random(1)) as broker:
        taken = DuplicateName("a", "00000000")
        mesh = stay_in_mesh(Door(broker, [taken, taken]), heard.append, heir=True, rng=Random(1))
        async with open_fabric(Config(), mesh=mesh):
            await trio.sleep(10)
    assert [type(each) for each in heard] == [Waiting, Waiting, Entered]


async def test_a_refusal_that_comes_later_is_told_and_ends_the_attempts(autojump_clock: MockClock) -> None:
    heard: list[News] = []
    async with open_broker(Random(1)) as broker:
        mesh = stay_in_mesh(Door(broker, [DOWN, REFUSED]), heard.append, rng=Random(1))
        async with open_fabric(Config(sources=[ToolServer(name="web").in_process()]), mesh=mesh) as fabric:
            await trio.sleep(60)
            assert heard == [Waiting(str(DOWN)), Refused(REFUSED)]
            assert (await fabric.call("web__echo", {"text": "x"})).text == "x"


async def test_a_broker_that_does_not_answer_holds_nothing_up_for_long(autojump_clock: MockClock) -> None:
    heard: list[News] = []
    async with open_broker(Random(1)) as broker:
        began = trio.current_time()
        mesh = stay_in_mesh(Door(broker, [10.0]), heard.append, rng=Random(1))
        async with open_fabric(Config(), mesh=mesh):
            assert trio.current_time() - began <= FIRST
            assert [type(each) for each in heard] == [Waiting]
            await trio.sleep(10)
            assert type(heard[-1]) is Entered


async def test_a_fabric_that_ends_before_it_is_in_the_mesh_does_not_wait(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        began = trio.current_time()
        async with open_fabric(Config(), mesh=stay_in_mesh(Door(broker, [10_000.0]), lambda news: None)):
            pass
        assert trio.current_time() - began <= FIRST


async def test_a_node_that_fell_out_comes_back_without_the_sources_of_others_meanwhile(
    autojump_clock: MockClock,
) -> None:
    heard: list[News] = []
    async with open_broker(Random(1)) as broker, member(broker, "b", ToolServer(name="notes").in_process()):
        door = Door(broker, [])

        failing = trio.Event()

        @asynccontextmanager
        async def once(fabric: Fabric) -> AsyncGenerator[Node]:
            if failing.is_set():
                async with door(fabric) as node:
                    yield node
                return
            failing.set()
            async with door(fabric) as node, trio.open_nursery() as nursery:

                async def fail() -> None:
                    await trio.sleep(20)
                    nursery.cancel_scope.cancel("it fails")

                nursery.start_soon(fail)
                yield node
            raise NotPermitted("x", "it was taken away")

        async with open_fabric(Config(), mesh=stay_in_mesh(once, heard.append, rng=Random(1))) as fabric:
            await listed(fabric, "notes__echo")
            await listed(fabric, "notes__echo", there=False)
            assert [type(each) for each in heard] == [Entered, Waiting]
            await listed(fabric, "notes__echo")
            assert [type(each) for each in heard] == [Entered, Waiting, Entered]


async def test_what_is_wrong_with_us_is_no_refusal(autojump_clock: MockClock) -> None:
    async with open_broker(Random(1)) as broker:
        with pytest.raises(ZeroDivisionError):
            async with open_fabric(Config(), mesh=stay_in_mesh(Door(broker, [ZeroDivisionError()]), lambda news: None)):
                await trio.sleep(60)
