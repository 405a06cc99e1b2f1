"""A node of the first version and one of today in one mesh, over a real NATS server, both ways."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete, Error
from cord_trio.errors import Denied, Draining
from cord_trio.mesh.node import Node, open_node
from cord_trio.mesh_errors import DuplicateName, OwnerRefused
from cord_trio.nats.client import open_nats
from cord_trio.nats.kv import open_bucket
from cord_trio.protocol.jsonrpc import encode, parse
from tests.mesh import node_v1
from tests.real.helpers import until
from tests.real.nats_server import FOUND, Broker, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from cord_trio.call import Outcome

pytestmark = pytest.mark.skipif(FOUND is None, reason="no nats-server for this platform")

LARGE = "x" * 3_000_000
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running(jetstream=True) as broker:
        yield broker


class Today:
    """What the node of today does with calls.

    Attributes:
        begun: tools that were called, with who called.
        cancelled: those that were cut off.

    """

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.cancelled: list[str] = []

    async def __call__(self, call: Call) -> Outcome:
        name = call.name or ""
        self.begun.append((name, call.principal))
        await trio.lowlevel.checkpoint()
        match name:
            case "tells":
                assert call.events is not None
                for step in (1, 2, 3):
                    call.events("notifications/progress", Raw(encode({"progressToken": 0, "progress": step})))
                return Complete(Raw(b'"told"'))
            case "fails":
                return Error(-32000, "no good", b"[1]")
            case "denies":
                raise Denied("denies", "not you")
            case "sleeps":
                try:
                    await trio.sleep_forever()
                except trio.Cancelled:
                    self.cancelled.append(name)
                    raise
            case _:
                pass
        return Complete(call.params["arguments"])


@asynccontextmanager
async def both(broker: Broker) -> AsyncGenerator[tuple[node_v1.Node, Node, Today]]:
    """One of each, that know of each other."""
    work = Today()
    async with (
        open_nats(broker.url, name="new", rng=Random(1)) as nats,
        open_nats(broker.url, name="new bulk") as bulk,
        open_nats(broker.url, name="old") as raw,
    ):
        store = await open_bucket(nats, "cord_n1")
        async with (
            open_node(nats, store, mesh="n1", node="new", bulk=bulk, handler=work) as new,
            trio.open_nursery() as nursery,
        ):
            old = node_v1.Node(raw, "n1", "old", epoch := f"{next(NUMBERS):08x}", nursery)
            with trio.fail_after(10), old.listening():
                await old.announce(labels={"region": "north"})
                await old.look("new")
                await until(lambda: new.roster.epoch("old") == epoch)
                yield old, new, work
                await old.leave()
                await until(lambda: new.roster.epoch("old") is None)
            nursery.cancel_scope.cancel("the test is over")


def tool(name: str, arguments: object = None, **more: object) -> Call:
    return Call("tools/call", name, {"arguments": Raw(encode(arguments))}, **more)  # type: ignore[arg-type]  # as given


async def test_each_sees_the_other_come_and_go_and_nobody_takes_its_name(broker: Broker) -> None:
    async with both(broker) as (old, new, _):
        assert old.seen["new"]["epoch"] == new.epoch
        record = new.roster.nodes["old"]
        assert (record.wire, dict(record.labels), dict(record.servers)) == ((1, 1), {"region": "north"}, {})
        await old.renew()
        async with open_nats(broker.url) as nats:
            store = await open_bucket(nats, "cord_n1")
            with pytest.raises(DuplicateName):
                async with open_node(nats, store, mesh="n1", node="old"):
                    raise AssertionError
        await new.drain()
        await until(lambda: old.seen["new"].get("draining"))
        assert (await old.call("new", "echo", 1)).reason == "draining"
    async with both(broker) as (old, new, _):
        assert old.seen["new"]["epoch"] == new.epoch  # another than before


async def test_the_old_one_calls_the_new_one(broker: Broker) -> None:
    async with both(broker) as (old, new, work):
        told: list[object] = []
        answer = await old.call("new", "echo", {"a": ["\u00fc", None, 1.5]})
        assert parse(answer.body) == {"a": ["\u00fc", None, 1.5]}
        answer = await old.call("new", "tells", {}, events=lambda *said: told.append(said))
        assert answer.body == b'"told"'
        assert told == [
            ("notifications/progress", encode({"progressToken": 0, "progress": step})) for step in (1, 2, 3)
        ]
        answer = await old.call("new", "fails", {})
        fault = parse(answer.body)
        assert (answer.kind, fault["kind"], fault["code"], fault["text"]) == ("err", "", -32000, "no good")
        assert (fault["data"], fault["executed"]) == ([1], "yes")
        fault = parse((await old.call("new", "denies", {})).body)
        assert (fault["kind"], fault["name"], fault["text"], fault["executed"]) == ("Denied", "denies", "not you", "no")
        assert work.begun[0] == ("echo", "ann@old")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(old.call, "new", "sleeps", {})
            await until(lambda: work.begun[-1][0] == "sleeps")
            nursery.cancel_scope.cancel("its caller does not want it any more")
        await until(lambda: work.cancelled == ["sleeps"])
        assert new.owning.busy == 0


async def test_the_new_one_calls_the_old_one(broker: Broker) -> None:
    async with both(broker) as (old, new, _):
        told: list[object] = []
        given = {"a": ["\u00fc", None, 1.5]}
        outcome = await new.calling.call(tool("echo", given), ["old"])
        assert isinstance(outcome, Complete)
        assert parse(outcome.result) == given
        events = lambda method, params: told.append((method, parse(params)))  # noqa: E731  # once, here
        assert await new.calling.call(tool("tells", {}, events=events), ["old"]) == Complete(Raw(b'"told"'))
        assert told == [("notifications/progress", {"progressToken": 0, "progress": step}) for step in (1, 2, 3)]
        assert await new.calling.call(tool("fails"), ["old"]) == Error(-32000, "no good", b"[1]")
        with pytest.raises(Denied, match="denies is denied: not you") as denied:
            await new.calling.call(tool("denies"), ["old"])
        with pytest.raises((OwnerRefused, Draining), match="drain") as refused:
            await new.calling.call(tool("refuses"), ["old"])
        assert denied.value.executed == refused.value.executed == "no"
        with trio.move_on_after(1.5) as late:  # it says that it is still at it
            await new.calling.call(tool("sleeps"), ["old"])
        assert late.cancelled_caught
        await until(lambda: bool(old.cancelled))
        assert new.counters["mesh.bad_frames"] == 0


async def test_large_bodies_cross_both_ways_and_stall_nowhere(broker: Broker) -> None:
    """Their parts are of other sizes, and as many are asked for at once as each is used to."""
    async with both(broker) as (old, new, _):
        answer = await old.call("new", "echo", LARGE)
        assert parse(answer.body) == LARGE
        outcome = await new.calling.call(tool("echo", LARGE), ["old"])
        assert isinstance(outcome, Complete)
        assert parse(outcome.result) == LARGE
        assert (old.stalls, new.counters["mesh.parts_stalled"]) == (0, 0)
