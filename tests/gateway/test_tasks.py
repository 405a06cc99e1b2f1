"""The tasks extension between a modern client and a modern server: sealed ids, and nothing held (matrix row 22)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from msgspec import Raw

from cord_trio.call import Call, Complete, Error, Outcome, Task
from cord_trio.errors import CallError, ConnectionLost
from cord_trio.gateway.requests import MAX_TASKS
from cord_trio.protocol.jsonrpc import encode, parse
from tests.gateway.fakes import (
    CAPABILITIES,
    SERVER_INFO,
    SUBSCRIPTION,
    FakeFabric,
    initialize,
    legacy,
    modern,
    open_http,
    open_pipe,
)

if TYPE_CHECKING:
    from trio.testing import MockClock

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


async def test_row_22_who_listens_is_told_of_each_state_of_a_task_under_its_id(autojump_clock: MockClock) -> None:
    states: list[dict[str, Json]] = [
        {"status": "working", "pollIntervalMs": 5_000},
        {"status": "working", "pollIntervalMs": 5_000},
        {"status": "completed", "result": {"content": []}},
    ]

    async def server(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        if call.method == "tools/call":
            return Task(Raw(encode({"resultType": "task", "taskId": "up-1", **STATUS})))
        assert (call.method, call.name) == ("tasks/get", "t")
        assert EXTENSION.encode() in call.capabilities
        seen.append(trio.current_time())
        return Complete(Raw(encode({"resultType": "complete", "taskId": "up-1", **states.pop(0), "_meta": {"a": 1}})))

    seen: list[float] = []
    async with open_pipe(FakeFabric(t=server)) as client:
        (made,) = await client.ask(modern(1, "tools/call", {"name": "t"}, CAN))
        id = made["result"]["taskId"]
        client.got.clear()
        client.send(modern("L", "subscriptions/listen", {"notifications": {"taskIds": [id, "other", id]}}, CAN))
        await trio.sleep(30)
        acknowledged, working, completed = client.got
        subscription = {SUBSCRIPTION: "L"}
        assert acknowledged["params"] == {"notifications": {"taskIds": [id]}, "_meta": subscription}
        assert (working["method"], working["params"]) == (
            "notifications/tasks",
            {"taskId": id, "status": "working", "pollIntervalMs": 5_000, "_meta": subscription},
        )
        assert completed["params"] == {
            "taskId": id, "status": "completed", "result": {"content": []}, "_meta": subscription,
        }  # fmt: skip
        assert [round(second - seen[0]) for second in seen] == [0, 5, 10]


async def test_row_22_a_task_that_fails_to_be_seen_is_looked_at_again_until_it_is_none(
    autojump_clock: MockClock,
) -> None:
    looks: list[Outcome | CallError] = [
        ConnectionLost("gone"),
        Complete(Raw(b"[]")),
        Complete(Raw(b'{"status":"working"}')),
        Error(-32602, "unknown"),
    ]

    async def server(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        if call.method == "tools/call":
            return Task(Raw(b'{"taskId":"up-1"}'))
        look = looks.pop(0)
        if isinstance(look, CallError):
            raise look
        return look

    async with open_pipe(FakeFabric(t=server)) as client:
        (made,) = await client.ask(modern(1, "tools/call", {"name": "t"}, CAN))
        wanted = {"notifications": {"taskIds": [made["result"]["taskId"]]}}
        client.got.clear()
        client.send(modern("L", "subscriptions/listen", wanted, CAN))
        await trio.sleep(30)
        assert [each["method"] for each in client.got] == [
            "notifications/subscriptions/acknowledged",
            "notifications/tasks",
        ]
        assert looks == []


async def test_row_22_only_who_knows_tasks_listens_to_them_and_to_so_many(autojump_clock: MockClock) -> None:
    async with open_pipe(FakeFabric(t=Server())) as client:
        for wanted, meta, code in (
            (["x"], {}, -32021),
            ("x", CAN, -32602),
            ([5], CAN, -32602),
            (["x"] * (MAX_TASKS + 1), CAN, -32602),
        ):
            listen = {"notifications": {"taskIds": wanted}}
            (answer,) = await client.ask(modern(1, "subscriptions/listen", listen, meta))
            assert answer["error"]["code"] == code
