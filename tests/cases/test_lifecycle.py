"""Reported failures of greeting, sessions and keeping alive."""

from __future__ import annotations

import json

import pytest
import trio

from cord_trio.config import Bounds, Config
from cord_trio.fabric import open_fabric
from cord_trio.testing import ToolServer
from tests.cases.servers import scripted
from tests.gateway.fakes import FakeFabric, echo, initialize, legacy, modern, open_http, tool

RARELY = Bounds(backoff_first=30.0, backoff_longest=30.0)


@pytest.mark.parametrize("revision", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_l06_every_legacy_revision_that_a_server_offers_is_accepted(revision: str) -> None:
    server = ToolServer(era="legacy", revision=revision, name="it")
    async with open_fabric([server.in_process()]) as fabric:
        assert (await fabric.call("it__echo", {"text": "x"})).text == "x"
        greeting = fabric.registry.snapshot.sources["it"].greeting
        assert greeting is not None
        assert greeting.revision == revision


async def test_l06_a_revision_that_we_do_not_speak_is_refused_with_theirs_and_ours() -> None:
    server = ToolServer(era="legacy", revision="1999-01-01", name="it")
    async with open_fabric(Config(sources=[server.in_process()], bounds=RARELY)) as fabric:
        await fabric.wait_started()
        assert "1999-01-01" in fabric.links["it"].reason
        assert "2025-11-25" in fabric.links["it"].reason


PINGS = """
import threading
sent, answered = {}, {}
lock = threading.Lock()
CAPABILITIES = {"tools": {}}

def ping(id):
    sent[id] = time.monotonic()
    with lock:
        put(b'{"jsonrpc":"2.0","id":"%b","method":"ping"}' % id.encode() + b"\\n")

def keep_pinging():
    number = 1
    while True:
        time.sleep(0.02)
        number += 1
        ping("u-%d" % number)

ping("u-1")
threading.Thread(target=keep_pinging, daemon=True).start()

def before(message):
    if message.get("method") == "initialize": time.sleep(0.3)
    if "method" not in message: answered[message["id"]] = (time.monotonic(), message)

def said(id, **members):
    with lock:
        put(json.dumps({"jsonrpc": "2.0", "id": id, **members}).encode() + END)

def content(message):
    found = {"sent": len(sent), "answered": len(answered),
             "wrong": [m for _, m in answered.values() if m != {"jsonrpc": "2.0", "id": m["id"], "result": {}}]}
    return [{"type": "text", "text": json.dumps(found)}]
"""


async def test_l09_a_servers_pings_are_answered_before_within_and_after_its_greeting() -> None:
    async with open_fabric([scripted(PINGS)]) as fabric:
        await fabric.call("it__echo", {})
        await trio.sleep(0.2)
        found = json.loads((await fabric.call("it__echo", {})).text)
        assert found["wrong"] == []
        assert found["sent"] > 5
        # Those under way while it counted.
        assert found["sent"] - found["answered"] <= 3
        assert fabric.links["it"].starts == 1


ONLY_WHAT_IT_DECLARES = """
CAPABILITIES = {}
def before(message):
    if message.get("method", "").partition("/")[0] not in ("server", "initialize", "notifications", ""): os._exit(9)
"""


async def test_l11_what_a_server_does_not_declare_is_not_asked_for() -> None:
    async with open_fabric([scripted(ONLY_WHAT_IT_DECLARES)]) as fabric:
        await fabric.wait_started()
        link = fabric.links["it"]
        assert (link.state, link.starts, link.notes) == ("ready", 1, ())
    server = ToolServer(name="it")
    async with open_fabric([server.in_process()]) as fabric:
        await fabric.call("it__echo", {"text": "x"})
    assert not {method for method in server.received if method.startswith(("prompts", "resources", "logging"))}


async def test_l11_a_list_that_a_server_does_not_know_after_all_is_empty() -> None:
    unknown = 'def own_answer(message):\n    if message.get("method") == "tools/list":'
    unknown += '\n        said(message["id"], error={"code": -32601, "message": "no"})\n        return True'
    async with open_fabric([scripted(unknown), scripted(name="good")]) as fabric:
        await fabric.wait_started()
        assert fabric.links["it"].state == "ready"
        assert list(fabric.registry.snapshot.tools) == ["good__echo"]


async def test_l15_with_two_gateways_modern_calls_go_anywhere_and_legacy_clients_begin_anew() -> None:
    async with open_http(FakeFabric(echo=echo)) as one, open_http(FakeFabric(echo=echo)) as other:
        for number in range(6):
            answer = await (one, other)[number % 2].modern(modern(number, "tools/call", {"name": "echo"}))
            assert answer.status == 200
        session = await one.open()
        call = legacy(1, "tools/call", {"name": "echo"})
        assert (await one.post(call, session)).status == 200
        assert (await other.post(call, session)).status == 404
        assert (await other.ask("GET", "/mcp", b"", session)).status == 404
        assert (await other.post(initialize())).status == 200
        assert (await other.post(call, await other.open())).status == 200
        assert (await one.post(call, session)).status == 200


async def test_l16_clients_and_reconnects_each_have_a_conversation_of_their_own(autojump_clock: object) -> None:
    fabric = FakeFabric(echo=echo)
    async with open_http(fabric) as gate:
        first, second = await gate.open(), await gate.open()
        accept = ("Accept", "text/event-stream")
        stays = gate.start("GET", "/mcp", b"", second, accept)
        for number in range(50):
            stream = gate.start("GET", "/mcp", b"", first, accept)
            await trio.sleep(1)
            assert stream.status == 200
            for session in (first, second):
                params = {"name": "echo", "arguments": {"n": number}}
                answer = await gate.post(legacy(1, "tools/call", params), session)
                assert json.loads(answer.json["result"]["content"][0]["text"]) == {"n": number}
            stream.leave()
            await stream.finished.wait()
        fabric.registry.publish([tool("new")])
        await trio.sleep(1)
        assert [event["method"] for event in stays.events] == ["notifications/tools/list_changed"]
