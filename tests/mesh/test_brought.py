"""What the gateway of one node has given to its client is taken at that of any other."""

from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call
from cord_trio.gateway.places import bare, brought, node_of, placed
from cord_trio.mesh.local import open_broker
from cord_trio.mesh.pinning import pin_of
from cord_trio.protocol.jsonrpc import encode
from tests.full_server import text
from tests.gateway.fakes import CAPABILITIES
from tests.gateway.test_pairings import FORM, Gate, asking, far, said
from tests.mesh.members import listed, member
from tests.test_background import EXTENSION, ModernTaskServer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock

    from tests.gateway.test_pairings import Person
    from tests.mesh.members import Member

Json: TypeAlias = Any

ANN: Json = {"action": "accept", "content": {"name": "ann"}}
CALL: Json = {"name": "x__ask", "arguments": {"a": 1}}
REFUSED = "unknown or expired requestState"


@asynccontextmanager
async def people(*members: Member) -> AsyncGenerator[list[Person]]:
    """A modern client at the gateway of each."""
    async with trio.open_nursery() as nursery:
        found = []
        for each in members:
            await listed(each.fabric, "x__ask")
            found.append(await Gate(each.fabric, nursery).come("modern"))
        yield found
        nursery.cancel_scope.cancel("the test is over")


async def ask(person: Person, **more: Json) -> Json:
    return await person._answer_to(person.send("tools/call", {**CALL, **more}))


async def go_on(person: Person, before: Json) -> Json:
    """Bring what was given, with an answer to each question, to the gateway of `person`."""
    result = before["result"]
    answers = dict.fromkeys(result["inputRequests"], ANN)
    return await ask(person, requestState=result["requestState"], inputResponses=answers)


@pytest.mark.parametrize("where", ["a", "b"])
async def test_a_question_of_one_gateway_is_answered_at_another(where: str, autojump_clock: MockClock) -> None:
    server = far("legacy", ask=asking({"q": ("elicitation/create", FORM)}, {"r": ("elicitation/create", FORM)}))
    sources = {name: [server.source()] if name == where else [] for name in "abc"}
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "a", *sources["a"]) as a,
        member(broker, "b", *sources["b"]),
        member(broker, "c") as c,
        people(a, c) as (at_a, at_c),
    ):
        first = await ask(at_a)
        assert node_of(first["result"]["requestState"]) == "a"
        second = await go_on(at_c, first)
        assert node_of(second["result"]["requestState"]) == "a"
        assert list(second["result"]["inputRequests"]) != list(first["result"]["inputRequests"])
        assert said(await go_on(at_a, second)) == [{"q": ANN}, {"r": ANN}]
        assert len(server.sent("tools/call")) == 1


async def test_what_was_altered_or_is_of_a_node_that_is_gone_is_refused(autojump_clock: MockClock) -> None:
    server = far("legacy", ask=asking({"q": ("elicitation/create", FORM)}))
    async with open_broker(Random(1)) as broker, member(broker, "b", server.source()), member(broker, "c") as c:
        async with member(broker, "a") as a, people(a, c) as (at_a, at_c):
            first = await ask(at_a)
            state = first["result"]["requestState"]
            for wrong in (state + "A", state[:-1], state.replace("cord-gateway:", "cord-gateway:A")):
                assert REFUSED in (await ask(at_c, requestState=wrong, inputResponses={}))["error"]["message"]
            other = {**CALL, "arguments": {"a": 2}}
            id = at_c.send("tools/call", {**other, "requestState": state, "inputResponses": {}})
            assert REFUSED in (await at_c._answer_to(id))["error"]["message"]
            assert said(await go_on(at_c, first)) == [{"q": ANN}]
            last = await ask(at_a)
        async with trio.open_nursery() as nursery:
            at_c = await Gate(c.fabric, nursery).come("modern")
            gone = await go_on(at_c, last)
            assert "none is in the mesh now" in str(gone)
            nursery.cancel_scope.cancel("the test is over")


@pytest.mark.parametrize("where", ["a", "b"])
async def test_a_background_task_of_one_gateway_is_asked_for_at_another(where: str, autojump_clock: MockClock) -> None:
    can: Json = {CAPABILITIES: {"extensions": {EXTENSION: {}}}}
    server = ModernTaskServer()
    server.states = [{"status": "completed", "result": text("done"), "taskId": "t1"}]
    sources = {name: [server.source()] if name == where else [] for name in "ab"}
    async with (
        open_broker(Random(1)) as broker,
        member(broker, "a", *sources["a"]) as a,
        member(broker, "b", *sources["b"]),
        member(broker, "c") as c,
        trio.open_nursery() as nursery,
    ):
        await listed(a.fabric, "x__slow")
        at_a, at_c = [await Gate(each.fabric, nursery).come("modern") for each in (a, c)]
        id = (await at_a.ask("tools/call", {"name": "x__slow"}, can))["result"]["taskId"]
        assert node_of(id) == "a"
        for person in (at_c, at_a):
            told = (await person.ask("tasks/get", {"taskId": id}, can))["result"]
            assert (told["taskId"], told["result"]["content"][0]["text"]) == (id, "done")
        wrong = (await at_c.ask("tasks/get", {"taskId": id[:-1]}, can))["error"]["message"]
        assert "unknown or expired taskId" in wrong
        nursery.cancel_scope.cancel("the test is over")


def test_places_are_told_from_what_was_sealed() -> None:
    text = placed("a.11111111", "sealed")
    assert (node_of(text), bare(text)) == ("a", "sealed")
    assert (node_of("sealed"), bare("sealed"), placed("", "sealed")) == ("", "sealed", "sealed")
    there = pin_of(Call("tools/call", "t", {"requestState": Raw(encode(text))}))
    assert there is not None
    assert there[:2] == ("a", "11111111")
    run = brought(Call("tools/call", "t", there[2].params, principal="ann@b", revision="2026-07-28"))
    assert (run.principal, bare(run.state or ""), run.params, run.era.modern) == ("ann", "sealed", {}, True)
