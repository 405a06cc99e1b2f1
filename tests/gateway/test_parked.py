"""Calls of a legacy server that wait for a modern client: who may go on with them, and what becomes of the others.

Gateway, fabric and server are the real ones; what a client could do wrong is done here.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import trio
from msgspec import Raw

from cord_trio.config import Bounds, Config
from cord_trio.fabric import open_fabric
from cord_trio.gateway.requests import read_run
from cord_trio.protocol.eras import ERAS
from cord_trio.protocol.jsonrpc import encode, parse
from tests.gateway.fakes import MODERN
from tests.gateway.test_pairings import CAN, FORM, Gate, asking, calls_in, far, said

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock

    from tests.full_server import FullServer
    from tests.gateway.test_pairings import Person

Json: TypeAlias = Any

ANN: Json = {"q1": {"action": "accept", "content": {"name": "ann"}}}
REFUSED = {"code": -32602, "message": "unknown or expired requestState"}


@attrs.frozen
class Parked:
    """A call that waits for its client."""

    gate: Gate
    person: Person
    server: FullServer
    state: str

    async def again(self, **changed: Json) -> Json:
        """The answer to a retry."""
        params = {"name": "x__ask", "arguments": {"a": 1}, "inputResponses": ANN, "requestState": self.state}
        id = self.person.send(changed.pop("method", "tools/call"), {**params, **changed})
        return await self.person._answer_to(id)


@asynccontextmanager
async def parked(**bounds: Json) -> AsyncGenerator[Parked]:
    server = far("legacy", ask=asking({"a": ("elicitation/create", FORM)}), echo=lambda request: {"content": []})
    config = Config(sources=[server.source()], bounds=Bounds(**bounds))
    async with open_fabric(config) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()
        gate = Gate(fabric, nursery)
        person = await gate.come("modern")
        asked = await person._answer_to(person.send("tools/call", {"name": "x__ask", "arguments": {"a": 1}}))
        assert asked["result"]["resultType"] == "input_required"
        assert len(fabric._parks) == 1
        yield Parked(gate, person, server, asked["result"]["requestState"])
        assert len(server.sent("tools/call")) == 1  # it is never made anew, whatever was tried
        nursery.cancel_scope.cancel("the test is over")
    assert len(fabric._parks) == 0
    assert len(fabric.timer) == 0


def error_of(message: Json) -> Json:
    return {key: message["error"][key] for key in ("code", "message")}


async def test_an_altered_state_is_refused_and_the_call_waits_on(autojump_clock: MockClock) -> None:
    async with parked() as call:
        body, last = call.state[:-1], call.state[-1]
        for state in (body + ("A" if last != "A" else "B"), call.state[1:], call.state + "A", "", "x" * 5000):
            assert error_of(await call.again(requestState=state)) == REFUSED
        assert said(await call.again()) == [{"a": ANN["q1"]}]


async def test_a_state_is_good_for_the_very_request_that_it_was_given_for(autojump_clock: MockClock) -> None:
    async with parked() as call:
        assert error_of(await call.again(arguments={"a": 2})) == REFUSED
        assert error_of(await call.again(name="x__echo")) == REFUSED
        assert error_of(await call.again(method="prompts/get", name="x__greet")) == REFUSED
        assert said(await call.again()) == [{"a": ANN["q1"]}]


async def test_a_state_used_twice_is_refused_the_second_time(autojump_clock: MockClock) -> None:
    async with parked() as call:
        assert said(await call.again()) == [{"a": ANN["q1"]}]
        assert error_of(await call.again()) == REFUSED


async def test_of_two_clients_with_one_state_one_goes_on(autojump_clock: MockClock) -> None:
    async with parked() as call:
        ended: list[Json] = []

        async def again(parked: Parked) -> None:
            ended.append(await parked.again())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(again, call)
            nursery.start_soon(again, attrs.evolve(call, person=await call.gate.come("modern")))
        assert sorted("error" in each for each in ended) == [False, True]


async def test_a_state_is_of_no_use_to_another_principal(autojump_clock: MockClock) -> None:
    async with parked() as call:
        assert error_of(await _as_another(call.state, call.gate._service)) == REFUSED
        assert said(await call.again()) == [{"a": ANN["q1"]}]


async def _as_another(state: str, service: Json) -> Json:
    """What somebody else than the local user hears who has the state."""
    params = {"name": "x__ask", "arguments": {"a": 1}, "inputResponses": ANN, "requestState": state}
    raw = {key: Raw(encode(value)) for key, value in params.items()}
    run = read_run(1, ERAS[MODERN], "tools/call", raw, {}, encode(CAN), "somebody else")
    reply = await service.run(run, None)
    return parse(reply.message)


async def test_an_expired_state_is_refused_and_its_call_was_let_go(autojump_clock: MockClock) -> None:
    async with parked(park_time=60) as call:
        await trio.sleep(70)
        assert calls_in(call.server) == []
        assert error_of(await call.again()) == REFUSED


async def test_a_client_that_is_gone_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with parked(park_time=60) as call:
        call.person.pipe.transport.close()
        await trio.sleep(1)
        # Another connection of the same person may go on: a modern request ends with its answer.
        assert len(calls_in(call.server)) == 1
        await trio.sleep(70)
        assert calls_in(call.server) == []
        assert len(call.gate.fabric._parks) == 0


async def test_a_client_goes_on_over_another_connection(autojump_clock: MockClock) -> None:
    async with parked() as call:
        call.person.pipe.transport.close()
        again = attrs.evolve(call, person=await call.gate.come("modern", "bob"))
        assert said(await again.again()) == [{"a": ANN["q1"]}]


async def test_a_server_that_is_gone_is_told_to_the_retry(autojump_clock: MockClock) -> None:
    async with parked() as call:
        for connection in call.server.connections:
            connection.transport.close()
        await trio.sleep(5)
        message = await call.again()
        assert message["result"]["isError"] is True
        assert "connection lost" in message["result"]["content"][0]["text"]
        assert error_of(await call.again()) == REFUSED
