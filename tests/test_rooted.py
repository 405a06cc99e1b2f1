"""Roots for everybody, for servers of either era whose callers have none."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from msgspec import Raw

from cord_trio.call import Call, Complete, InputRequired
from cord_trio.config import Config, GatewayConfig
from cord_trio.errors import BadReply
from cord_trio.fabric import open_fabric
from tests.full_server import FullServer, Request, text
from tests.gateway.test_pairings import FORM, asking, far

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from trio.testing import MockClock

    from cord_trio.agents import Question
    from cord_trio.fabric import Fabric

Json: TypeAlias = Any
HOME = {"roots": [{"uri": "file:///home"}]}
ADA = {"action": "accept", "content": {"name": "Ada"}}
ROOTS: Json = ("roots/list", {})
ELICIT = ("elicitation/create", FORM)


@asynccontextmanager
async def fabric_of(server: FullServer, *roots: str) -> AsyncGenerator[Fabric]:
    config = Config(sources={"x": server.source()}, gateway=GatewayConfig(roots=roots))
    async with open_fabric(config) as fabric:
        await fabric.wait_started()
        yield fabric


async def ask(fabric: Fabric, more: Mapping[str, Json] | None = None) -> tuple[bool, Json]:
    """Whether somebody who has no roots is asked something by the tool, and what came."""
    params = {name: Raw(json.dumps(each).encode()) for name, each in {"arguments": {}, **(more or {})}.items()}
    can = b'{"elicitation":{"form":{}}}'
    outcome = await fabric.handle(Call("tools/call", "x__ask", params, capabilities=can))
    assert isinstance(outcome, Complete | InputRequired)
    return isinstance(outcome, InputRequired), json.loads(bytes(outcome.result))


async def ask_and_answer(fabric: Fabric) -> str:
    """What the tool says once it was told all that it wants to know."""
    asks, found = await ask(fabric)
    while asks:
        assert list(found["inputRequests"]) == ["b"]
        asks, found = await ask(fabric, {"requestState": found["requestState"], "inputResponses": {"b": ADA}})
    told: str = found["content"][0]["text"]
    return told


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_who_can_be_asked_nothing_has_the_roots_of_the_configuration(era: str, autojump_clock: MockClock) -> None:
    server = far(era, ask=asking({"a": ROOTS}, {"b": ROOTS}))
    async with fabric_of(server, "file:///home") as fabric:
        assert json.loads((await fabric.call("x__ask")).text) == [{"a": HOME}, {"b": HOME}]
        assert (await fabric.call("x__echo", {"t": "hi"})).text == "hi"


@pytest.mark.parametrize("rounds", [[{"a": ROOTS, "b": ELICIT}], [{"b": ELICIT}, {"a": ROOTS}, {"b": ELICIT}]])
async def test_who_is_asked_for_more_is_asked_for_that_alone(
    rounds: list[dict[str, tuple[str, Json]]], autojump_clock: MockClock
) -> None:
    async with fabric_of(far("modern", ask=asking(*rounds)), "file:///home") as fabric:
        told = json.loads(await ask_and_answer(fabric))
        assert told == [{key: {"a": HOME, "b": ADA}[key] for key in each} for each in rounds]


async def test_who_has_roots_is_asked_for_them(autojump_clock: MockClock) -> None:
    async def own(questions: Mapping[str, Question]) -> Mapping[str, Json]:  # noqa: ASYNC124  # async by contract
        return {key: {"roots": []} for key in questions}

    async with fabric_of(far("modern", ask=asking({"a": ROOTS})), "file:///home") as fabric:
        assert json.loads((await fabric.call("x__ask", answer=own)).text) == [{"a": {"roots": []}}]


def stubborn(request: Request) -> Json:
    return {"resultType": "input_required", "inputRequests": {"a": {"method": "roots/list"}}}


def senseless(request: Request) -> Json:
    return {"resultType": "input_required", "inputRequests": 7}


@pytest.mark.parametrize(
    ("tool", "words"), [(stubborn, "asks for roots more than 8 times"), (senseless, "does not name|makes? no sense")]
)
async def test_a_server_that_asks_without_end_or_sense_gets_one_error(
    tool: Callable[[Request], Json], words: str, autojump_clock: MockClock
) -> None:
    async with fabric_of(far("modern", ask=tool), "file:///home") as fabric:
        with pytest.raises(BadReply, match=words):
            await fabric.call("x__ask")


@pytest.mark.parametrize("state", ["cord-roots:", "cord-roots:7", "cord-roots:[1]", "mine"])
async def test_a_servers_own_state_comes_back_as_it_was(state: str, autojump_clock: MockClock) -> None:
    def tool(request: Request) -> Json:
        if "requestState" in request.params:
            return text(request.params["requestState"])
        question = {"b": {"method": "elicitation/create", "params": FORM}}
        return {"resultType": "input_required", "inputRequests": question, "requestState": state}

    async with fabric_of(far("modern", ask=tool), "file:///home") as fabric:
        assert await ask_and_answer(fabric) == state
