"""A person's yes to a call that a rule wants one for, asked of whoever calls through the gateway, in its own era."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from cord_trio.config import Rule
from cord_trio.fabric import open_fabric
from cord_trio.testing import ToolServer
from tests.gateway.fakes import CAPABILITIES, answer, initialize, legacy, modern, open_pipe

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock

    from cord_trio.protocol.jsonrpc import Json
    from tests.gateway.fakes import PipeClient

FORMS: Json = {"elicitation": {"form": {}}}
CALL: Json = {"name": "x__count", "arguments": {}}
KEY = "cord_trio/approve"


def yes(word: bool) -> Json:
    return {"action": "accept", "content": {"approve": word}}


@asynccontextmanager
async def gateway() -> AsyncGenerator[tuple[PipeClient, ToolServer]]:
    """A client of a fabric with a tool that needs a yes, and the server that has the tool."""
    server = ToolServer()
    async with open_fabric([server.in_process(name="x", rules=[Rule(tools="count", then="ask")])]) as fabric:
        await fabric.wait_started()
        async with open_pipe(fabric) as client:  # type: ignore[arg-type]  # what a fake one stands for
            yield client, server


@pytest.mark.parametrize("word", [True, False])
async def test_a_modern_client_is_told_that_input_is_required_and_says_yes_or_no(
    word: bool, autojump_clock: MockClock
) -> None:
    async with gateway() as (client, server):
        meta: dict[str, Any] = {CAPABILITIES: FORMS}
        [first] = await client.ask(modern(1, "tools/call", CALL, meta))
        result = first["result"]
        assert result["resultType"] == "input_required"
        assert list(result["inputRequests"]) == [KEY]
        assert "Allow x__count" in result["inputRequests"][KEY]["params"]["message"]
        assert server.received.get("tools/call", 0) == 0
        retry = {**CALL, "inputResponses": {KEY: yes(word)}, "requestState": result["requestState"]}
        [last] = await client.ask(modern(2, "tools/call", retry, meta))
        assert (last["result"].get("isError", False), server.received.get("tools/call", 0)) == (not word, int(word))


@pytest.mark.parametrize("word", [True, False])
async def test_a_legacy_client_is_asked_in_the_middle_of_its_call(word: bool, autojump_clock: MockClock) -> None:
    async with gateway() as (client, server):
        await client.ask(initialize(capabilities=FORMS))
        [question] = await client.ask(legacy("c", "tools/call", CALL))
        assert question["method"] == "elicitation/create"
        assert "Allow x__count" in question["params"]["message"]
        assert server.received.get("tools/call", 0) == 0
        [last] = await client.ask(answer(question["id"], yes(word)))
        assert last["id"] == "c"
        assert (last["result"].get("isError", False), server.received.get("tools/call", 0)) == (not word, int(word))


async def test_a_client_that_cannot_be_asked_is_denied(autojump_clock: MockClock) -> None:
    async with gateway() as (client, server):
        [modern_end] = await client.ask(modern(1, "tools/call", CALL))
        await client.ask(initialize())
        [legacy_end] = await client.ask(legacy("c", "tools/call", CALL))
        for end in (modern_end, legacy_end):
            assert "nobody can be asked" in str(end)
        assert server.received.get("tools/call", 0) == 0
