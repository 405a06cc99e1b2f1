"""What the gateway does at its bounds: one clear answer that names the bound, a counter, and nothing else hurt."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cord_trio.errors import ConnectionLost, Overloaded
from cord_trio.gateway import listen, stdio_endpoint
from cord_trio.gateway.service import Service
from cord_trio.gateway.stdio_endpoint import Pipe
from cord_trio.transports import Transport
from tests.gateway.fakes import (
    IDENTITY,
    FakeFabric,
    echo,
    hang,
    initialize,
    legacy,
    modern,
    notice,
    open_http,
    open_pipe,
    tool,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cord_trio.transports import Receiver

LISTEN = {"notifications": {"toolsListChanged": True}}


class Stuck(Transport):
    """Takes messages only while `room` is set."""

    def __init__(self) -> None:
        self.room = True
        self.lost = False
        self.sent: list[bytes] = []

    def send(
        self,
        message: bytes,
        *,
        id: int | str | None = None,
        method: str = "",
        name: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        if self.lost:
            raise ConnectionLost("gone")
        if not self.room:
            raise Overloaded("outbox", 0)
        self.sent.append(message)

    def withdraw(self, id: int | str) -> bool:
        return False

    def written(self, id: int | str) -> bool:
        return True

    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    @property
    def congested(self) -> bool:
        return not self.room


async def test_answers_wait_for_a_client_that_takes_none(autojump_clock: object) -> None:
    transport = Stuck()
    async with trio.open_nursery() as nursery:
        pipe = Pipe(Service(FakeFabric(), IDENTITY), transport, nursery)
        transport.room = False
        pipe.feed([legacy(id, "ping") for id in range(5)])
        pipe.tell(b"a notification is dropped")
        await trio.sleep(1)
        assert transport.sent == []
        transport.room = True
        await trio.sleep(1)
        assert sorted(json.loads(message)["id"] for message in transport.sent) == list(range(5))
        assert not pipe.waits(1)
        pipe.fail(1, Overloaded("x", 1))


async def test_a_pipe_with_too_many_answers_waiting_is_closed(autojump_clock: object) -> None:
    transport = Stuck()
    async with trio.open_nursery() as nursery:
        pipe = Pipe(Service(FakeFabric(), IDENTITY), transport, nursery)
        transport.room = False
        pipe.feed([legacy(id, "ping") for id in range(stdio_endpoint.MAX_UNSENT)])
        await trio.sleep(1)
        assert not nursery.cancel_scope.cancel_called
        pipe.feed([legacy("more", "ping")])
        assert nursery.cancel_scope.cancel_called


async def test_answers_for_a_client_that_left_are_dropped(autojump_clock: object) -> None:
    transport = Stuck()
    async with trio.open_nursery() as nursery:
        pipe = Pipe(Service(FakeFabric(), IDENTITY), transport, nursery)
        transport.room = False
        pipe.feed([legacy(1, "ping")])
        transport.lost = True
        pipe.feed([legacy(2, "ping")])
        transport.room = True
        pipe.tell(b"a notification")
        await trio.sleep(1)
        assert transport.sent == []


async def test_listens_past_the_bound_are_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "MAX_WATCHES", 1)
    fabric = FakeFabric()
    async with open_pipe(fabric) as client:
        await client.ask(modern(1, "subscriptions/listen", LISTEN))
        (refusal,) = await client.ask(modern(2, "subscriptions/listen", LISTEN))
        assert "gateway.watches" in refusal["error"]["message"]
        assert len(await client.ask(initialize())) == 1
    async with open_http(fabric) as gate:
        gate.modern_start(modern(1, "subscriptions/listen", LISTEN))
        await wait_all_tasks_blocked()
        refused = await gate.modern(modern(2, "subscriptions/listen", LISTEN))
        assert (refused.status, "gateway.watches" in refused.json["error"]["message"]) == (503, True)
        stream = await gate.ask("GET", "/mcp", b"", await gate.open(), ("Accept", "text/event-stream"))
        assert (stream.status, "gateway.watches" in stream.json["error"]) == (503, True)
    assert fabric.counters["gateway.watches_refused"] == 4


async def test_a_listener_that_never_reads_is_let_go(autojump_clock: object) -> None:
    fabric = FakeFabric()
    async with open_http(fabric) as gate:
        stream = gate.modern_start(modern("L", "subscriptions/listen", LISTEN))
        await trio.sleep(1)
        stream.congested, stream.uncongested = True, trio.Event()
        fabric.registry.publish([tool("new")])
        await trio.sleep(listen.STUCK + 1)
        assert stream.finished.is_set()
        assert len(gate.service.changes) == 0


async def test_a_listen_that_begins_while_draining_ends_at_once() -> None:
    fabric = FakeFabric()
    async with open_pipe(fabric) as client:
        fabric.draining.set()
        client.send(modern("L", "subscriptions/listen", LISTEN))
        await client.over.wait()
        assert [item.get("id") for item in client.got] in ([], [None, "L"])


async def test_calls_of_one_session_are_bounded_and_their_ids_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cord_trio.gateway.running.MAX_RUNNING", 2)
    fabric = FakeFabric(hang=hang)
    async with open_http(fabric) as gate:
        session = await gate.open()
        call = {"name": "hang"}
        gate.start("POST", "/mcp", legacy(1, "tools/call", call), session)
        await wait_all_tasks_blocked()
        again = await gate.post(legacy(1, "tools/call", call), session)
        assert (again.status, again.json["error"]["code"]) == (400, -32600)
        gate.start("POST", "/mcp", legacy("1", "tools/call", call), session)
        await wait_all_tasks_blocked()
        more = await gate.post(legacy(3, "tools/call", call), session)
        assert "gateway.running" in more.json["result"]["content"][0]["text"]
        assert len(fabric.calls) == 2


async def test_a_batch_may_list_call_and_cancel() -> None:
    fabric = FakeFabric(echo=echo, hang=hang)
    async with open_http(fabric) as gate:
        session = await gate.open("2025-03-26")
        call = gate.start("POST", "/mcp", legacy(1, "tools/call", {"name": "hang"}), session)
        await wait_all_tasks_blocked()
        cancel = notice("notifications/cancelled", {"requestId": 1})
        answer = await gate.post(b"[%b]" % b",".join([cancel, legacy(2, "tools/list")]), session)
        assert [item["id"] for item in answer.json] == [2]
        await call.finished.wait()
        for bad in (b"[1", b"[%b]" % b",".join([legacy(1, "ping")] * 65), b'["\xff"]'):
            assert (await gate.post(bad, session)).status == 400


async def test_a_batch_on_a_pipe_may_be_cancelled_in_part() -> None:
    fabric = FakeFabric(echo=echo, hang=hang)
    async with open_pipe(fabric) as client:
        await client.ask(initialize(version="2025-03-26"))
        batch = b"[%b]" % b",".join([legacy(1, "tools/call", {"name": "hang"}), legacy(2, "ping")])
        assert await client.ask(batch) == []
        (answers,) = await client.ask(notice("notifications/cancelled", {"requestId": 1}))
        assert [answer["id"] for answer in answers] == [2]


async def test_a_fault_of_ours_is_an_internal_error_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(call: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("a secret of ours")

    async with open_pipe(FakeFabric(broken=broken)) as client:  # type: ignore[arg-type]  # that is its fault
        (answer,) = await client.ask(modern(1, "tools/call", {"name": "broken", "arguments": {"password": "hunter2"}}))
        assert answer["error"] == {
            "code": -32603,
            "message": "internal error",
            "data": {"cord-trio/executed": "unknown"},
        }
        assert len(await client.ask(legacy(1, "ping"))) == 1
    assert "a call failed inside" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/call", {"name": "echo", "arguments": [1]}),
        ("tools/call", {"name": ""}),
        ("tools/list", {"cursor": 5}),
        ("subscriptions/listen", {}),
        ("subscriptions/listen", {"notifications": []}),
        ("subscriptions/listen", {"notifications": {"toolsListChanged": 1}}),
    ],
)
async def test_params_of_a_wrong_shape_are_invalid(method: str, params: dict[str, object]) -> None:
    async with open_pipe(FakeFabric(echo=echo)) as client:
        (answer,) = await client.ask(modern(1, method, params))
        assert answer["error"]["code"] == -32602


async def test_null_arguments_and_a_null_cursor_are_none() -> None:
    fabric = FakeFabric(echo=echo)
    async with open_pipe(fabric) as client:
        (called,) = await client.ask(modern(1, "tools/call", {"name": "echo", "arguments": None}))
        assert called["result"]["content"][0]["text"] == "{}"
        (listed,) = await client.ask(modern(1, "tools/list", {"cursor": None}))
        assert len(listed["result"]["tools"]) == 1


async def test_an_unknown_log_level_is_invalid() -> None:
    async with open_pipe(FakeFabric(echo=echo)) as client:
        for level, fine in (("debug", True), ("verbose", False), (3, False)):
            meta = {"io.modelcontextprotocol/logLevel": level}
            (answer,) = await client.ask(modern(1, "tools/call", {"name": "echo"}, meta))
            assert ("result" in answer) is fine
