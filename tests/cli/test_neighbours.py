"""What `serve` says of the mesh."""

from __future__ import annotations

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


async def test_many_nodes_at_once_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    await trio.lowlevel.checkpoint()
    neighbours = Neighbours(SETTINGS, lambda exc: None)
    few = {"a": NodeRecord("1"), "b": NodeRecord("2"), "c": NodeRecord("3", draining=True)}
    neighbours._tell(few, {"a": NodeRecord("1"), "b": NodeRecord("4")}, "a", ())
    neighbours._tell(few, {**few, **{f"n{number}": NodeRecord("5") for number in range(1000)}}, "a", ())
    neighbours._tell(few, {}, "a", ())
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
