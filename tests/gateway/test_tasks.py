"""The tasks extension between a modern client and a modern server: sealed ids, and nothing held (matrix row 22)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete, Error, Outcome, Task
from cord_trio.protocol.jsonrpc import encode, parse
from tests.gateway.fakes import CAPABILITIES, SERVER_INFO, FakeFabric, initialize, legacy, modern, open_http, open_pipe

if TYPE_CHECKING:
    from cord_trio.protocol.jsonrpc import Json

EXTENSION = "io.modelcontextprotocol/tasks"
CAN: dict[str, Any] = {CAPABILITIES: {"extensions": {EXTENSION: {}}}}
STATUS: dict[str, Json] = {"status": "working", "createdAt": "t", "lastUpdatedAt": "t", "ttlMs": None}
US = {SERVER_INFO: {"name": "gate", "version": "1"}}


class Server:
    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def __call__(self, call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        self.calls.append(call)
        match call.method:
            case "tools/call":
                return Task(Raw(encode({"resultType": "task", "taskId": "up-1", **STATUS, "_meta": {"a/b": 1}})))
            case "tasks/get":
                asked = {"q": {"method": "roots/list"}}
                return Complete(Raw(encode({"taskId": "up-1", **STATUS, "inputRequests": asked})))
            case "tasks/update":
                return Complete(Raw(b'{"resultType":"complete"}'))
        return Error(-32602, "it is over")


async def test_row_22_a_task_is_asked_about_under_a_sealed_id() -> None:
    server = Server()
    async with open_http(FakeFabric(t=server)) as gate:
        made = (await gate.modern(modern(1, "tools/call", {"name": "t"}, CAN))).json["result"]
        id = made.pop("taskId")
        assert made == {"resultType": "task", **STATUS, "_meta": {"a/b": 1, **US}}
        assert "up-1" not in id
        got = (await gate.modern(modern(2, "tasks/get", {"taskId": id}, CAN))).json["result"]
        asked = {"q": {"method": "roots/list"}}
        assert got == {"resultType": "complete", "taskId": id, **STATUS, "inputRequests": asked, "_meta": US}
        answers: dict[str, Json] = {"inputResponses": {"q": {"roots": []}}}
        told = (await gate.modern(modern(3, "tasks/update", {"taskId": id, **answers}, CAN))).json["result"]
        assert told == {"resultType": "complete", "_meta": US}
        over = (await gate.modern(modern(4, "tasks/cancel", {"taskId": id}, CAN))).json
        assert over["error"] == {"code": -32602, "message": "it is over"}
    assert [(call.method, call.name) for call in server.calls] == [
        (method, "t") for method in ("tools/call", "tasks/get", "tasks/update", "tasks/cancel")
    ]
    assert [parse(encode(call.params)) for call in server.calls[1:3]] == [
        {"taskId": "up-1"},
        {"taskId": "up-1", **answers},
    ]


async def test_row_22_no_other_id_is_a_task() -> None:
    server = Server()
    async with open_pipe(FakeFabric(t=server)) as client, open_pipe(FakeFabric(t=server)) as other:
        (made,) = await client.ask(modern(1, "tools/call", {"name": "t"}, CAN))
        id = made["result"]["taskId"]
        for params in ({"taskId": "up-1"}, {"taskId": id[:-2]}, {"taskId": ""}, {"taskId": 5}, {}):
            (answer,) = await client.ask(modern(2, "tasks/get", params, CAN))
            assert answer["error"]["code"] == -32602, params
        (answer,) = await other.ask(modern(2, "tasks/get", {"taskId": id}, CAN))
        assert answer["error"]["code"] == -32602
    assert len(server.calls) == 1


async def test_row_22_who_does_not_know_tasks_gets_none() -> None:
    async with open_http(FakeFabric(t=Server())) as gate, open_pipe(FakeFabric(t=Server())) as client:
        made = await gate.modern(modern(1, "tools/call", {"name": "t"}))
        assert made.json["error"]["code"] == -32603
        for method in ("tasks/get", "tasks/update", "tasks/cancel"):
            answer = await gate.modern(modern(2, method, {"taskId": "x"}))
            assert (answer.status, answer.json["error"]["code"]) == (400, -32021)
            assert answer.json["error"]["data"] == {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
        for method in ("tasks/list", "tasks/result"):
            answer = await gate.modern(modern(2, method, {}, CAN))
            assert (answer.status, answer.json["error"]["code"]) == (404, -32601)
        await client.ask(initialize(capabilities={"extensions": {EXTENSION: {}}, "tasks": {}}))
        (answer,) = await client.ask(legacy(1, "tools/call", {"name": "t"}))
        assert answer["error"]["code"] == -32603
        (answer,) = await client.ask(legacy(1, "tasks/get", {"taskId": "x"}))
        assert answer["error"]["code"] == -32601


@pytest.mark.parametrize("result", [b"{}", b'{"taskId":5}', b"[]"])
async def test_a_task_that_is_none_is_the_servers_fault(result: bytes) -> None:
    async def server(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        return Task(Raw(result))

    async with open_pipe(FakeFabric(t=server)) as client:
        (answer,) = await client.ask(modern(1, "tools/call", {"name": "t"}, CAN))
        assert answer["error"]["code"] == -32603
