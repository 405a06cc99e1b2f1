"""Legacy servers that show some of their tools only to clients that can be asked (matrix rows 4 and 5)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete, Error
from cord_trio.errors import CallFailed
from cord_trio.fabric import Fabric, open_fabric
from tests.full_server import FullServer, Request, text

if TYPE_CHECKING:
    from trio.testing import MockClock

Json: TypeAlias = Any

CAN = b'{"elicitation":{"form":{}},"sampling":{}}'


class ShyServer(FullServer):
    """Lists `ask` only to who can be asked, and `sample` only to who can be asked for samples."""

    def __init__(self) -> None:
        super().__init__()
        self.tools["ask"] = lambda _: text("asked")
        self.tools["sample"] = lambda _: text("sampled")
        self.answers["tools/list"] = self.list

    def list(self, request: Request) -> Json:
        can = request.connection.capabilities
        names = ["echo", *(["ask"] if can else []), *(["sample"] if "sampling" in can else [])]
        return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in names]}


def call(name: str, capabilities: bytes = b"{}") -> Call:
    return Call("tools/call", f"x__{name}", {"arguments": Raw(b"{}")}, capabilities=capabilities)


def names(fabric: Fabric) -> list[str]:
    return [name.removeprefix("x__") for name in fabric.registry.snapshot.tools]


def said(outcome: object) -> Json:
    assert isinstance(outcome, Complete)
    return json.loads(bytes(outcome.result))["content"][0]["text"]


async def test_rows_4_5_what_is_shown_to_who_can_be_asked_is_listed_once_such_a_caller_came(
    autojump_clock: MockClock,
) -> None:
    server = ShyServer()
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        assert names(fabric) == ["echo"]
        await fabric.handle(call("echo", b'{"elicitation":{}}'))
        await trio.sleep(1)
        assert names(fabric) == ["echo", "ask"]
        await fabric.handle(call("echo", CAN))
        await trio.sleep(1)
        assert names(fabric) == ["echo", "ask", "sample"]
        assert said(await fabric.handle(call("sample", CAN))) == "sampled"
        before = len(server.sent("tools/list"))
        await fabric.handle(call("echo", CAN))
        await trio.sleep(1)
        assert len(server.sent("tools/list")) == before  # it is known by now
        server.connections[0].tell("notifications/tools/list_changed")
        await trio.sleep(1)
        assert names(fabric) == ["echo", "ask", "sample"]


async def test_rows_4_5_with_asks_it_is_listed_from_the_start_and_refused_to_who_cannot_be_asked(
    autojump_clock: MockClock,
) -> None:
    server = ShyServer()
    async with open_fabric([server.source(asks=True)]) as fabric:
        await fabric.wait_started()
        await trio.sleep(1)
        assert names(fabric) == ["echo", "ask", "sample"]
        assert [connection.over for connection in server.connections] == [False, True]
        refused = await fabric.handle(call("ask"))
        assert isinstance(refused, Error)
        assert refused.code == -32021
        assert "elicitation" in json.loads(refused.data)["requiredCapabilities"]
        with pytest.raises(CallFailed, match="only for callers that can be asked"):
            await fabric.call("x__ask")
        assert server.sent("tools/call") == []
        assert said(await fabric.handle(call("ask", CAN))) == "asked"
        assert said(await fabric.handle(call("echo"))) == ""


async def test_rows_4_5_a_server_that_bears_no_second_session_is_listed_as_before(autojump_clock: MockClock) -> None:
    server = ShyServer()

    def once(request: Request) -> Json:
        if len(server.connections) > 1:
            request.fail(-32000, "only one")
            return None
        del server.answers["initialize"]
        request.connection._requested(request)
        server.answers["initialize"] = once
        return None

    server.answers["initialize"] = once
    async with open_fabric([server.source(asks=True)]) as fabric:
        await fabric.wait_started()
        await trio.sleep(1)
        assert names(fabric) == ["echo"]


async def test_rows_4_5_a_list_that_fails_on_a_callers_session_costs_the_caller_nothing(
    autojump_clock: MockClock,
) -> None:
    server = ShyServer()

    def fails(request: Request) -> Json:
        if request.connection.capabilities:
            request.fail(-32603, "no list here")
            return None
        return server.list(request)

    server.answers["tools/list"] = fails
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        assert said(await fabric.handle(call("echo", CAN))) == ""
        await trio.sleep(1)
        assert names(fabric) == ["echo"]
