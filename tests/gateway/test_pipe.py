"""Both eras on one pipe."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from tests.gateway.fakes import (
    CAPABILITIES,
    LATEST,
    SERVER_INFO,
    SUBSCRIPTION,
    FakeFabric,
    after,
    echo,
    hang,
    initialize,
    legacy,
    modern,
    notice,
    open_pipe,
    text,
    tool,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.call import Call, EventSink, Outcome


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OFFERED = {
    "completions": {},
    "logging": {},
    "prompts": {"listChanged": True},
    "resources": {"listChanged": True, "subscribe": True},
    "tools": {"listChanged": True},
}


async def test_a_legacy_client_initializes_lists_and_calls() -> None:
    async with open_pipe(FakeFabric(echo=echo)) as client:
        (greeting,) = await client.ask(initialize())
        assert greeting["result"] == {
            "protocolVersion": LATEST,
            "capabilities": OFFERED,
            "serverInfo": {"name": "gate", "version": "1"},
        }
        assert await client.ask(notice("notifications/initialized")) == []
        assert await client.ask(legacy(1, "tools/list")) == [
            {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}}
        ]
        (answer,) = await client.ask(legacy(2, "tools/call", {"name": "echo", "arguments": {"a": 1}}))
        assert answer["result"] == {"content": [{"type": "text", "text": '{"a": 1}'}]}


async def test_a_modern_client_discovers_lists_and_calls() -> None:
    async with open_pipe(FakeFabric(echo=echo)) as client:
        meta = {SERVER_INFO: {"name": "gate", "version": "1"}}
        hints = {"ttlMs": 60_000, "cacheScope": "private", "_meta": meta, "resultType": "complete"}
        (found,) = await client.ask(modern("d", "server/discover"))
        assert found["result"] == {
            "supportedVersions": ["2026-07-28"],
            "capabilities": OFFERED,
            **hints,
        }
        (listed,) = await client.ask(modern(1, "tools/list"))
        assert listed["result"] == {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}], **hints}
        (answer,) = await client.ask(modern(2, "tools/call", {"name": "echo"}))
        assert answer["result"] == {
            "resultType": "complete",
            "_meta": meta,
            "content": [{"type": "text", "text": "{}"}],
        }


async def test_the_era_is_decided_for_each_message_of_a_pipe() -> None:
    async with open_pipe(FakeFabric(echo=echo)) as client:
        answers = await client.ask(
            modern(1, "server/discover"),
            initialize(2),
            modern(3, "tools/call", {"name": "echo"}),
            legacy(4, "tools/call", {"name": "echo"}),
            modern(5, "ping"),
            legacy(6, "ping"),
        )
        kinds = {answer["id"]: "resultType" in answer.get("result", {}) for answer in answers}
        assert kinds == {1: True, 2: False, 3: True, 4: False, 5: False, 6: False}
        by_id = {answer["id"]: answer for answer in answers}
        assert by_id[5]["error"]["code"] == -32601
        assert by_id[6]["result"] == {}


async def test_l08_ping_before_initialize_is_answered() -> None:
    async with open_pipe(FakeFabric()) as client:
        assert await client.ask(legacy("p", "ping")) == [{"jsonrpc": "2.0", "id": "p", "result": {}}]
        (refusal,) = await client.ask(legacy(1, "tools/list"))
        assert refusal["error"]["code"] == -32002
        (greeting,) = await client.ask(initialize())
        assert greeting["result"]["protocolVersion"] == LATEST


async def test_f13_bad_messages_are_answered_and_the_pipe_goes_on() -> None:
    async with open_pipe(FakeFabric(echo=echo)) as client:
        await client.ask(initialize())
        answers = await client.ask(
            b"{this is not json",
            b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":null}',
            b'{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{}}',
            b'[{"jsonrpc":"2.0","id":4,"method":"ping"},{"jsonrpc":"2.0","id":5,"method":"ping"}]',
            b'{"jsonrpc":"2.0","id":null,"method":"tools/list"}',
            b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}',
            b'{"jsonrpc":"2.0","id":true,"method":"ping"}',
            b"17",
            legacy(9, "tools/list"),
        )
        assert [(answer.get("id"), answer.get("error", {}).get("code")) for answer in answers] == [
            (None, -32700),
            (2, -32602),
            (3, -32602),
            (None, -32600),
            (None, -32600),
            (None, -32600),
            (None, -32600),
            (None, -32600),
            (9, None),
        ]


@pytest.mark.parametrize("levels", [250, 5_000, 200_000])
async def test_c29_deep_arguments_get_an_answer(levels: int) -> None:
    async with open_pipe(FakeFabric(echo=echo)) as client:
        deep = b"[" * levels + b"]" * levels
        message = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"a":%b}}}' % deep
        (answer,) = await client.ask(message)
        assert answer["error"]["code"] == -32700
        assert await client.ask(legacy(2, "ping")) == [{"jsonrpc": "2.0", "id": 2, "result": {}}]


@pytest.mark.parametrize("id", ["1", "init-1", 9007199254740993, "", 0, -1, 1])
async def test_i03_ids_come_back_in_value_and_type(id: object) -> None:
    async with open_pipe(FakeFabric(echo=echo)) as client:
        for message in (
            initialize(id),
            legacy(id, "ping"),
            legacy(id, "nothing"),
            legacy(id, "tools/call", {"name": "echo"}),
            legacy(id, "tools/call", {"name": "none"}),
            modern(id, "server/discover"),
            modern(id, "tools/call", {"name": "echo"}),
            modern(id, "tools/call", {"name": "none"}),
        ):
            (answer,) = await client.ask(message)
            assert json.dumps(answer["id"]) == json.dumps(id)


async def test_an_unknown_tool_is_an_error_with_near_names() -> None:
    async with open_pipe(FakeFabric(echo=echo)) as client:
        (answer,) = await client.ask(modern(1, "tools/call", {"name": "ech"}))
        assert answer["error"] == {"code": -32602, "message": "no tool named 'ech'; did you mean 'echo'?"} or (
            answer["error"]["code"] == -32602 and "echo" in answer["error"]["message"]
        )


@pytest.mark.parametrize("make", [legacy, modern])
async def test_a_cancelled_call_is_stopped_and_not_answered(make: Callable[..., bytes]) -> None:
    fabric = FakeFabric(hang=hang, echo=echo)
    async with open_pipe(fabric) as client:
        await client.ask(initialize())
        assert await client.ask(make(7, "tools/call", {"name": "hang"})) == []
        # Type-exact: "7" is another request, 8 is none at all; both are ignored.
        assert (
            await client.ask(
                notice("notifications/cancelled", {"requestId": "7"}),
                notice("notifications/cancelled", {"requestId": 8}),
                notice("notifications/cancelled", {"requestId": 7.0}),
                notice("notifications/cancelled", {}),
                notice("notifications/cancelled"),
            )
            == []
        )
        assert fabric.cancelled == []
        assert await client.ask(notice("notifications/cancelled", {"requestId": 7, "reason": "bored"})) == []
        assert fabric.cancelled == ["hang"]
        assert len(await client.ask(make(7, "tools/call", {"name": "echo"}))) == 1


async def test_c10_a_cancellation_and_the_answer_race_to_one_end(autojump_clock: object) -> None:
    for delay in (0.0, 0.999, 1.0, 1.001):
        async with open_pipe(FakeFabric(slow=after(1.0))) as client:
            client.send(modern(1, "tools/call", {"name": "slow"}))
            await trio.sleep(delay)
            client.send(notice("notifications/cancelled", {"requestId": 1}))
            await trio.sleep(5)
            assert len(client.got) == (0 if delay < 1.0 else len(client.got))
            assert len(client.got) <= 1
            client.got.clear()
            client.send(legacy(2, "ping"))
            await trio.sleep(1)
            assert len(client.got) == 1


async def test_an_id_in_flight_is_not_taken_twice() -> None:
    fabric = FakeFabric(hang=hang)
    async with open_pipe(fabric) as client:
        (refusal,) = await client.ask(
            modern(1, "tools/call", {"name": "hang"}),
            modern("1", "tools/call", {"name": "hang"}),
            modern(1, "tools/call", {"name": "hang"}),
        )
        assert (refusal["id"], refusal["error"]["code"]) == (1, -32600)
        assert len(fabric.calls) == 2


async def test_calls_past_the_bound_are_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cord_trio.gateway.running.MAX_RUNNING", 3)
    fabric = FakeFabric(hang=hang)
    async with open_pipe(fabric) as client:
        await client.ask(*(modern(id, "tools/call", {"name": "hang"}) for id in range(3)))
        (refusal,) = await client.ask(modern("more", "tools/call", {"name": "hang"}))
        assert refusal["result"]["isError"] is True
        assert "gateway.running" in refusal["result"]["content"][0]["text"]
        assert refusal["result"]["_meta"]["cord-trio/executed"] == "no"
        assert fabric.counters["gateway.running_refused"] == 1


async def test_c01_calls_run_side_by_side(autojump_clock: object) -> None:
    async with open_pipe(FakeFabric(slow=after(0.5))) as client:
        client.send(*(modern(id, "tools/call", {"name": "slow"}) for id in range(5)))
        await trio.sleep(0.6)
        assert len(client.got) == 5


@pytest.mark.parametrize("token", ["abc", "7", 7])
async def test_c07_progress_comes_under_the_clients_own_token(token: object) -> None:
    async def steps(call: Call) -> Outcome:
        assert call.events is not None
        for params in (
            b'{"progressToken":99,"progress":1,"total":3,"message":"one"}',
            b'{"progressToken":99,"progress":1}',
            b'{"progressToken":99,"progress":0.5}',
            b'{"progressToken":99,"progress":"x"}',
            b"[]",
            b'{"progressToken":99,"progress":2.5,"x":[1]}',
        ):
            call.events("notifications/progress", Raw(params))
        call.events("notifications/message", Raw(b'{"level":"info","data":1}'))
        await trio.lowlevel.checkpoint()
        kept.append(call.events)
        return text("done")

    kept: list[EventSink] = []
    async with open_pipe(FakeFabric(steps=steps)) as client:
        await client.ask(initialize())
        old = legacy(1, "tools/call", {"name": "steps", "_meta": {"progressToken": token}})
        for message in (modern(1, "tools/call", {"name": "steps"}, {"progressToken": token}), old):
            got = await client.ask(message)
            # No log messages: neither client has asked for any.
            assert [item.get("method", "answer") for item in got] == ["notifications/progress"] * 2 + ["answer"]
            assert [item["params"] for item in got[:2]] == [
                {"progressToken": token, "progress": 1, "total": 3, "message": "one"},
                {"progressToken": token, "progress": 2.5, "x": [1]},
            ]
        client.got.clear()
        kept[0]("notifications/progress", Raw(b'{"progressToken":99,"progress":9}'))  # C05: after the answer
        await wait_all_tasks_blocked()
        assert client.got == []


async def test_c03_without_a_token_there_is_no_progress() -> None:
    fabric = FakeFabric(echo=echo)
    async with open_pipe(fabric) as client:
        for token in ({}, {"progressToken": None}, {"progressToken": 1.5}, {"progressToken": True}):
            await client.ask(modern(1, "tools/call", {"name": "echo"}, token))
        assert [call.events for call in fabric.calls] == [None] * 4


async def test_a_legacy_client_is_told_once_of_many_changes(autojump_clock: object) -> None:
    fabric = FakeFabric(echo=echo)
    async with open_pipe(fabric) as client:
        client.send(initialize())
        await trio.sleep(1)
        client.got.clear()
        for number in range(300):  # R10
            fabric.registry.publish([tool("echo"), tool(f"t{number}")])
            await trio.sleep(0.0001)
        await trio.sleep(1)
        assert client.got == [{"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}]
        fabric.registry.publish([tool("echo"), tool("t299")])  # a new version of the same list
        await trio.sleep(1)
        assert len(client.got) == 1


async def test_m22_a_listen_is_acknowledged_first_told_and_ended(autojump_clock: object) -> None:
    fabric = FakeFabric(echo=echo)
    async with open_pipe(fabric) as client:
        client.send(
            modern(
                "L", "subscriptions/listen", {"notifications": {"toolsListChanged": True, "othersListChanged": True}}
            ),
            modern(5, "subscriptions/listen", {"notifications": {"resourceSubscriptions": ["x:y"]}}),
        )
        await trio.sleep(1)
        acknowledged = "notifications/subscriptions/acknowledged"
        assert {item["params"]["_meta"][SUBSCRIPTION]: (item["method"], item["params"]) for item in client.got} == {
            "L": (acknowledged, {"_meta": {SUBSCRIPTION: "L"}, "notifications": {"toolsListChanged": True}}),
            5: (acknowledged, {"_meta": {SUBSCRIPTION: 5}, "notifications": {"resourceSubscriptions": ["x:y"]}}),
        }
        client.got.clear()
        fabric.registry.publish([tool("new")])
        await trio.sleep(1)
        assert client.got == [
            {"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": {"_meta": {SUBSCRIPTION: "L"}}}
        ]
        client.got.clear()
        client.send(notice("notifications/cancelled", {"requestId": "L"}))
        await trio.sleep(1)
        fabric.registry.publish([tool("newer")])
        await trio.sleep(1)
        assert client.got == []
        fabric.draining.set()
        await client.over.wait()
        assert client.got == [
            {
                "jsonrpc": "2.0",
                "id": 5,
                "result": {
                    "resultType": "complete",
                    "_meta": {SUBSCRIPTION: 5, SERVER_INFO: {"name": "gate", "version": "1"}},
                },
            }
        ]


async def test_batches_are_for_one_revision_alone() -> None:
    batch = b"[%b]" % b",".join(
        [
            legacy(1, "ping"),
            legacy("2", "tools/call", {"name": "echo"}),
            notice("notifications/initialized"),
            legacy(3, "tools/list"),
            initialize(4),
            b"7",
        ]
    )
    async with open_pipe(FakeFabric(echo=echo)) as client:
        for version, allowed in (("2025-03-26", True), ("2025-06-18", False), ("2024-11-05", False)):
            await client.ask(initialize(version=version))
            (answers,) = await client.ask(batch)
            if allowed:
                assert [(answer.get("id"), "error" in answer) for answer in answers] == [
                    (1, False),
                    (3, False),
                    (4, True),
                    (None, True),
                    ("2", False),
                ]
            else:
                assert answers["error"]["code"] == -32600
        await client.ask(initialize(version="2025-03-26"))
        assert await client.ask(b"[%b]" % notice("notifications/initialized")) == []
        (empty,) = await client.ask(b"[]")
        assert empty["error"]["code"] == -32600


async def test_a_client_that_leaves_leaves_nothing() -> None:
    fabric = FakeFabric(hang=hang)
    async with open_pipe(fabric) as client:
        await client.ask(modern(1, "tools/call", {"name": "hang"}), modern(2, "tools/call", {"name": "hang"}))
        client.transport.close()
        await wait_all_tasks_blocked()
        assert fabric.cancelled == ["hang", "hang"]


async def test_draining_answers_what_runs_refuses_what_is_new_and_ends(autojump_clock: object) -> None:
    fabric = FakeFabric(slow=after(3))
    async with open_pipe(fabric) as client:
        client.send(modern(1, "tools/call", {"name": "slow"}))
        await trio.sleep(1)
        fabric.draining.set()
        client.send(modern(2, "tools/call", {"name": "slow"}))
        await client.over.wait()
        assert [(answer["id"], answer["result"].get("isError", False)) for answer in client.got] == [
            (2, True),
            (1, False),
        ]


async def test_a_list_waits_for_sources_that_are_still_starting(autojump_clock: object) -> None:
    fabric = FakeFabric(echo=echo)
    fabric.started = trio.Event()
    async with open_pipe(fabric) as client:
        client.send(modern(1, "tools/list"))
        await trio.sleep(2)
        assert client.got == []
        fabric.started.set()
        await wait_all_tasks_blocked()
        assert len(client.got) == 1
        fabric.started = trio.Event()
        client.send(modern(2, "tools/list"))
        await trio.sleep(6)
        assert len(client.got) == 2


async def test_what_belongs_to_the_clients_hop_is_not_relayed() -> None:
    fabric = FakeFabric(echo=echo)
    async with open_pipe(fabric) as client:
        meta = {
            CAPABILITIES: {"roots": {}},
            "io.modelcontextprotocol/clientInfo": {"name": "c", "version": "1"},
            "io.modelcontextprotocol/logLevel": "debug",
            "progressToken": 1,
            "traceparent": TRACE,
            "tracestate": "congo=1",
            "com.example/x": 1.0,
        }
        params = {"name": "echo", "arguments": {"a": 1.0}, "extra": [1], "task": {"ttl": 5}}
        for message in (initialize(), modern(1, "tools/call", params, meta), legacy(2, "tools/call", params)):
            await client.ask(message)
        one, other = fabric.calls
        assert {key: bytes(value) for key, value in one.meta.items()} == {
            "tracestate": b'"congo=1"',
            "com.example/x": b"1.0",
        }
        assert {key: bytes(value) for key, value in one.params.items()} == {
            "arguments": b'{"a": 1.0}',
            "extra": b"[1]",
        }
        assert (one.method, one.name, one.principal, one.capabilities) == (
            "tools/call",
            "echo",
            "local",
            b'{"roots": {}}',
        )
        assert (other.params, other.meta, other.capabilities) == (one.params, {}, b"{}")
        assert (one.trace, other.trace) == (TRACE, "")


@pytest.mark.parametrize("half", [b'"\\ud800"', b'"\\udc00x"'])
async def test_half_of_a_surrogate_pair_gets_an_answer(half: bytes) -> None:
    async with open_pipe(FakeFabric(echo=echo)) as client:
        for params in (b"{%b:1}" % half, b'{"name":%b}' % half, b'{"name":"echo","arguments":{"a":%b}}' % half):
            message = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":%b}' % params
            assert len(await client.ask(message)) == 1
        assert len(await client.ask(legacy(2, "ping"))) == 1
