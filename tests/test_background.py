"""Tools that a legacy server runs only as tasks, called as any other (matrix row 22)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw

from cord_trio.background import PAUSES
from cord_trio.call import Call, Complete, Error, InputRequired, Task
from cord_trio.errors import BadReply, CallError, ConnectionLost, DeadlineExceeded
from cord_trio.fabric import open_fabric
from tests.full_server import CAPABILITIES, PREFIX, FullServer, Request, settled, text

if TYPE_CHECKING:
    from trio.testing import MockClock

Json: TypeAlias = Any

CAN_ALL = b'{"elicitation":{"form":{}},"sampling":{},"roots":{}}'
RELATED = "io.modelcontextprotocol/related-task"
ABLE: Json = {"requests": {"tools": {"call": {}}}, "cancel": {}}
FORM = {"message": "Name?", "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}}}
TOOLS = [
    {"name": "slow", "inputSchema": {"type": "object"}, "execution": {"taskSupport": "required"}},
    {"name": "either", "inputSchema": {"type": "object"}, "execution": {"taskSupport": "optional"}},
]


EXTENSION = PREFIX + "tasks"


class TaskServer(FullServer):
    """A legacy server one of whose tools runs only as a task, until the test says how it ended."""

    def __init__(self, tasks: Json = ABLE) -> None:
        super().__init__(capabilities={**CAPABILITIES, **({} if tasks is None else {"tasks": tasks})})
        self.begun: list[Request] = []
        self.awaited: list[Request] = []
        self.tools = {"slow": self.begin, "either": lambda _: text("at once")}
        self.answers["tools/list"] = lambda _: {"tools": TOOLS}
        self.answers["tasks/result"] = self.awaited.append
        self.answers["tasks/cancel"] = lambda request: {"taskId": request.params["taskId"], "status": "cancelled"}

    def begin(self, request: Request) -> Json:
        if "task" not in request.params:
            request.fail(-32601, "only as a task")
            return None
        self.begun.append(request)
        return {"task": {"taskId": f"t{len(self.begun)}", "status": "working", "ttl": None}}

    def cancels(self) -> Json:
        return [self.sent("tasks/cancel"), self.sent("notifications/cancelled")]


def slow(**more: Json) -> Call:
    return Call("tools/call", "x__slow", {"arguments": Raw(b'{"a":1}')}, **more)


def result(outcome: object) -> Json:
    assert isinstance(outcome, Complete)
    return json.loads(bytes(outcome.result))


async def test_row_22_a_tool_that_runs_only_as_a_task_is_called_as_any_other(autojump_clock: MockClock) -> None:
    server = TaskServer()
    told: list[Json] = []
    got: list[object] = []

    async def ask() -> None:
        events = slow(events=lambda method, params: told.append((method, json.loads(bytes(params))["progress"])))
        got.append(await fabric.handle(events))

    async with open_fabric([server.source()]) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()
        nursery.start_soon(ask)
        await settled()
        (begun,), (awaited,) = server.begun, server.awaited
        token = begun.params["_meta"].pop("progressToken")
        assert begun.params == {"name": "slow", "arguments": {"a": 1}, "task": {"ttl": 3_600_000}, "_meta": {}}
        assert awaited.params == {"taskId": "t1"}
        awaited.connection.tell("notifications/progress", {"progressToken": token, "progress": 1})
        await settled()
        awaited.answer(text("done", _meta={RELATED: {"taskId": "t1"}, "a/b": 1}))
    assert result(got[0]) == text("done", _meta={"a/b": 1})
    assert told == [("notifications/progress", 1)]
    assert server.cancels() == [[], []]


async def test_row_22_a_tool_that_may_run_as_a_task_is_called_plainly(autojump_clock: MockClock) -> None:
    server = TaskServer()
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        assert (await fabric.call("x__either")).text == "at once"
    assert "task" not in server.sent("tools/call")[0]


@pytest.mark.parametrize("tasks", [None, {}, {"requests": {}}, 7])
async def test_row_22_a_server_that_cannot_do_tasks_is_called_plainly(tasks: Json, autojump_clock: MockClock) -> None:
    server = TaskServer(tasks)
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        assert await fabric.handle(slow()) == Error(-32601, "only as a task")


@pytest.mark.parametrize("capabilities", [b"{}", CAN_ALL])
@pytest.mark.parametrize("by", ["caller", "deadline"])
async def test_row_22_a_task_that_nobody_waits_for_is_cancelled_once_as_tasks_are(
    capabilities: bytes, by: str, autojump_clock: MockClock
) -> None:
    server = TaskServer()
    async with open_fabric([server.source(deadline=3600)]) as fabric:
        await fabric.wait_started()
        if by == "caller":
            with trio.move_on_after(5):
                await fabric.handle(slow(capabilities=capabilities))
        else:
            with pytest.raises(DeadlineExceeded) as failed:
                await fabric.handle(slow(capabilities=capabilities, deadline=trio.current_time() + 5))
            assert failed.value.executed == "unknown"
        await settled()
        assert server.cancels() == [[{"taskId": "t1"}], []]


async def test_row_22_a_task_asks_as_a_call_does_and_waits_for_its_caller(autojump_clock: MockClock) -> None:
    server = TaskServer()
    async with open_fabric([server.source()]) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()

        async def serve() -> None:
            await settled()
            awaited = server.awaited[0]
            awaited.ask("elicitation/create", FORM, lambda reply: awaited.answer(text(json.dumps(reply["result"]))))

        nursery.start_soon(serve)
        asked = await fabric.handle(slow(capabilities=CAN_ALL, principal="ada"))
        assert isinstance(asked, InputRequired)
        (key,) = json.loads(bytes(asked.result))["inputRequests"]
        answers = {"inputResponses": Raw(json.dumps({key: {"action": "decline"}}).encode())}
        call = Call("tools/call", "x__slow", answers, principal="ada", capabilities=CAN_ALL, park=asked.park)
        assert result(await fabric.handle(call)) == text('{"action": "decline"}')
        assert server.cancels() == [[], []]


async def test_row_22_a_task_whose_caller_never_answers_is_cancelled(autojump_clock: MockClock) -> None:
    server = TaskServer()
    async with open_fabric([server.source()]) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()

        async def serve() -> None:
            await settled()
            server.awaited[0].ask("elicitation/create", FORM, lambda _: None)

        nursery.start_soon(serve)
        asked = await fabric.handle(slow(capabilities=CAN_ALL, principal="ada"))
        assert isinstance(asked, InputRequired)
        fabric.abandon(asked.park, "the client left")
        await trio.sleep(2)
        assert server.cancels() == [[{"taskId": "t1"}], []]
        assert len(fabric._parks) == 0


@pytest.mark.parametrize("capabilities", [b"{}", CAN_ALL])
async def test_row_22_how_a_task_may_end_otherwise(capabilities: bytes, autojump_clock: MockClock) -> None:
    server = TaskServer()
    call = slow(capabilities=capabilities)
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        server.tools["slow"] = lambda request: text("at once")
        assert result(await fabric.handle(call)) == text("at once")
        server.tools["slow"] = lambda request: request.fail(-32000, "no more tasks")
        assert await fabric.handle(call) == Error(-32000, "no more tasks")
        server.tools["slow"] = lambda request: {"task": {"status": "working"}}
        with pytest.raises(BadReply, match="without taskId"):
            await fabric.handle(call)
        server.tools["slow"] = lambda request: {"task": 5}
        with pytest.raises(BadReply, match="not a task"):
            await fabric.handle(call)
        server.tools["slow"] = server.begin
        server.answers["tasks/result"] = lambda request: request.fail(-32603, "it failed")
        assert await fabric.handle(call) == Error(-32603, "it failed")
        server.answers["tasks/result"] = lambda request: request.connection.transport.lose("gone")
        with pytest.raises(ConnectionLost) as lost:
            await fabric.handle(call)
        assert lost.value.executed == "unknown"
        assert server.cancels() == [[], []]


class ModernTaskServer(FullServer):
    """A modern server one of whose tools runs only as a task, for whoever knows of those."""

    def __init__(self) -> None:
        super().__init__(modern=True)
        self.tools["slow"] = self.begin
        self.states: list[Json] = []
        self.updates: list[Json] = []
        self.answers["tasks/get"] = self.get
        self.answers["tasks/update"] = self.update
        self.answers["tasks/cancel"] = lambda _: {}

    def begin(self, request: Request) -> Json:
        if not knows(request):
            needed: Json = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
            request.fail(-32021, "only as a task", needed)
            return None
        return {"resultType": "task", "taskId": "t1", "status": "working", "ttlMs": None}

    def get(self, request: Request) -> Json:
        assert knows(request)
        assert request.params["taskId"] == "t1"
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def update(self, request: Request) -> Json:
        assert knows(request)
        self.updates.append(request.params["inputResponses"])
        return {}

    def cancels(self) -> Json:
        sent = self.sent("tasks/cancel")
        return [[each["taskId"] for each in sent], self.sent("notifications/cancelled")]


def knows(request: Request) -> bool:
    return EXTENSION in request.params["_meta"][PREFIX + "clientCapabilities"].get("extensions", {})


async def test_row_22_a_modern_tool_that_runs_only_as_a_task_is_called_as_any_other(
    autojump_clock: MockClock,
) -> None:
    server = ModernTaskServer()
    server.states = [
        {"status": "working", "pollIntervalMs": 5_000},
        {"status": "working"},
        {"status": "completed", "result": text("done")},
    ]
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        for _ in range(2):
            began = trio.current_time()
            assert (await fabric.call("x__slow")).text == "done"
        assert trio.current_time() == began  # it had ended
        assert trio.current_time() >= 5 + PAUSES[1]
        assert len(server.sent("tools/call")) == 3  # refused once, for want of the extension
        assert server.cancels() == [[], []]
        known = slow(capabilities=b'{"extensions":{"%b":{}}}' % EXTENSION.encode())
        assert isinstance(await fabric.handle(known), Task)


async def test_row_22_what_a_modern_task_wants_to_know_comes_as_any_question(autojump_clock: MockClock) -> None:
    server = ModernTaskServer()
    asked: Json = {"q": {"method": "elicitation/create", "params": FORM}}
    server.states = [
        {"status": "input_required", "inputRequests": asked},
        {"status": "input_required", "inputRequests": asked},  # still, though it was answered
        {"status": "input_required", "inputRequests": {**asked, "r": {"method": "roots/list"}}},
        {"status": "completed", "result": text("done")},
    ]
    call = slow(capabilities=CAN_ALL)
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        for key, answer in (("q", {"action": "decline"}), ("r", {"roots": []})):
            outcome = await fabric.handle(call)
            assert isinstance(outcome, InputRequired)
            assert outcome.park == ""
            got = json.loads(bytes(outcome.result))
            assert list(got["inputRequests"]) == [key]
            more = {"inputResponses": {key: answer}, "requestState": got["requestState"]}
            params = {**slow().params, **{name: Raw(json.dumps(each).encode()) for name, each in more.items()}}
            call = Call("tools/call", "x__slow", params, capabilities=CAN_ALL)
        assert result(await fabric.handle(call))["content"] == text("done")["content"]
    assert server.updates == [{"q": {"action": "decline"}}, {"r": {"roots": []}}]
    assert server.cancels() == [[], []]


@pytest.mark.parametrize("by", ["caller", "deadline"])
async def test_row_22_a_modern_task_that_nobody_waits_for_is_cancelled_once(by: str, autojump_clock: MockClock) -> None:
    server = ModernTaskServer()
    server.states = [{"status": "working"}]
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        if by == "caller":
            with trio.move_on_after(5):
                await fabric.handle(slow())
        else:
            with pytest.raises(DeadlineExceeded) as failed:
                await fabric.handle(slow(deadline=trio.current_time() + 5))
            assert failed.value.executed == "unknown"
        await settled()
        assert server.cancels() == [["t1"], []]


async def test_row_22_how_a_modern_task_may_end_otherwise(autojump_clock: MockClock) -> None:
    server = ModernTaskServer()
    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        server.states = [{"status": "failed", "error": {"code": -32603, "message": "no", "data": 1}}]
        assert await fabric.handle(slow()) == Error(-32603, "no", b"1")
        server.states = [{"status": "cancelled"}]
        with pytest.raises(CallError, match="cancelled the task"):
            await fabric.handle(slow())
        server.states = [{"status": "completed"}]
        with pytest.raises(BadReply):
            await fabric.handle(slow())
        server.states = [{}]
        with pytest.raises(BadReply, match="without status"):
            await fabric.handle(slow())
        server.tools["slow"] = lambda _: text("at once")
        assert (await fabric.call("x__slow")).text == "at once"
        server.tools["slow"] = lambda request: request.fail(-32021, "and more", {"requiredCapabilities": {"roots": {}}})
        assert isinstance(await fabric.handle(slow()), Error)
