"""What `serve` says of the mesh."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

import trio

from cord_trio.cli.neighbours import BURST, EVERY, Neighbours, Voice
from cord_trio.config import MeshConfig
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.presence import NodeRecord
from cord_trio.mesh.staying import Entered, Refused, Waiting
from cord_trio.mesh_errors import DuplicateName
from tests.mesh.members import member

if TYPE_CHECKING:
    import pytest
    from trio.testing import MockClock

SETTINGS = MeshConfig(servers=["nats://local"], node="a")


async def test_each_reason_is_said_once_and_a_refusal_is_handed_on(capsys: pytest.CaptureFixture[str]) -> None:
    await trio.lowlevel.checkpoint()
    refusals: list[Exception] = []
    neighbours = Neighbours(SETTINGS, refusals.append)
    for reason in ("it is\ndown", "it is\ndown", "it is slow"):
        neighbours.hear(Waiting(reason))
    error = DuplicateName("a", "00000000")
    neighbours.hear(Refused(error))
    meanwhile = "not in mesh cord yet, and goes on trying; what is configured here is served meanwhile: "
    assert capsys.readouterr().err.splitlines() == [f"{meanwhile}it is down", f"{meanwhile}it is slow"]
    assert refusals == [error]


async def test_it_says_who_comes_and_goes_and_what_becomes_of_the_broker(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    neighbours = Neighbours(SETTINGS, lambda exc: None)
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, trio.open_nursery() as nursery:
        nursery.start_soon(neighbours.watch)
        neighbours.hear(Entered(a.node))
        await trio.sleep(1)
        async with member(broker, "b"):
            await trio.sleep(5)
        await trio.sleep(5)
        neighbours.changed(False, "the server closed the connection")
        neighbours.changed(True, "connected")
        nursery.cancel_scope.cancel("all is told")
    assert capsys.readouterr().err.splitlines() == [
        "node a of mesh cord, with 0 other nodes",
        "node b has joined",
        "node b has left",
        "the broker of mesh cord is lost, other nodes with it: the server closed the connection",
        "the broker of mesh cord is back",
    ]


async def test_a_visit_that_fails_or_is_cancelled_has_left_and_a_node_that_is_lost_is_gone(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    neighbours = Neighbours(SETTINGS, lambda exc: None)
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, trio.open_nursery() as nursery:
        nursery.start_soon(neighbours.watch)
        neighbours.hear(Entered(a.node))
        await trio.sleep(1)
        with suppress(KeyError):
            async with member(broker, "fails"):
                await trio.sleep(5)
                raise KeyError
        await trio.sleep(5)
        with trio.move_on_after(5):
            async with member(broker, "cancelled"):
                await trio.sleep_forever()
        await trio.sleep(5)
        async with member(broker, "lost") as lost:
            await trio.sleep(5)
            lost.way.cut()
            await trio.sleep(60)
            nursery.cancel_scope.cancel("all is told")
    said = [line for line in capsys.readouterr().err.splitlines() if "has joined" not in line]
    assert said[1:] == ["node fails has left", "node cancelled has left", "node lost is gone"]


async def test_what_drains_and_goes_in_one_look_has_left(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    neighbours = Neighbours(SETTINGS, lambda exc: None)
    async with open_broker(Random(1)) as broker, member(broker, "a") as a, trio.open_nursery() as nursery:
        nursery.start_soon(neighbours.watch)
        neighbours.hear(Entered(a.node))
        await trio.sleep(1)
        roster = a.node.roster
        for name in ("b", "c"):
            roster._set(name, NodeRecord("1"))
        await trio.sleep(5)
        for name, drains in (("b", True), ("c", False)):
            roster._set(name, NodeRecord("1", draining=drains))
            roster._set(name, None)
        await trio.sleep(5)
        nursery.cancel_scope.cancel("all is told")
    assert capsys.readouterr().err.splitlines()[-2:] == ["node b has left", "node c is gone"]


async def test_many_nodes_at_once_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    await trio.lowlevel.checkpoint()
    neighbours = Neighbours(SETTINGS, lambda exc: None)
    few = {"a": NodeRecord("1"), "b": NodeRecord("2"), "c": NodeRecord("3", draining=True)}
    neighbours._tell(few, {"a": NodeRecord("1"), "b": NodeRecord("4")}, "a", {"c"})
    neighbours._tell(few, {**few, **{f"n{number}": NodeRecord("5") for number in range(1000)}}, "a", ())
    neighbours._tell(few, {}, "a", {"c"})
    assert capsys.readouterr().err.splitlines() == [
        "node c has left",
        "node b has started again",
        "of the nodes 1,000 joined; there are 1,003 now",
        "node b is gone",
        "node c has left",
    ]


async def test_what_is_too_much_is_counted(capsys: pytest.CaptureFixture[str], autojump_clock: MockClock) -> None:
    voice = Voice()
    for number in range(BURST + 3):
        voice.say(str(number))
    await trio.sleep(EVERY)
    voice.say("again")
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[-1]) == (BURST + 1, "again (3 lines before this left out)")
