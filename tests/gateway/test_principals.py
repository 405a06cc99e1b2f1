"""Whose a request over HTTP is, as the program says that embeds the gateway."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx  # noqa: ASYNC127  # the ecosystem's client, as our users run it
import trio

from cord_trio.call import LOCAL
from tests.gateway.fakes import FakeFabric, initialize, legacy, modern, open_http, text
from tests.gateway.test_sse import fabric_with_sse, listening
from tests.gateway.test_websocket import call as arguments
from tests.gateway.test_websocket import client as websocket
from tests.gateway.test_websocket import gate, loads

if TYPE_CHECKING:
    from cord_trio.call import Call, Outcome
    from cord_trio.gateway.ports import Lines

ANN, BOB = ("X-User", "ann"), ("X-User", "bob")
WHO = {"name": "who", "arguments": {}}


def user(headers: Lines) -> str | None:
    return headers.get("x-user")


async def who(call: Call) -> Outcome:
    """Says who calls."""
    await trio.lowlevel.checkpoint()
    return text(call.principal)


def said(message: dict[str, dict[str, list[dict[str, str]]]]) -> str:
    return message["result"]["content"][0]["text"]


async def test_a_modern_request_is_its_senders() -> None:
    async with open_http(FakeFabric(who=who), principal=user) as gate:
        for sender in (ANN, BOB):
            answer = await gate.modern(modern(1, "tools/call", WHO), sender)
            assert said(answer.json) == sender[1]


async def test_without_a_say_everyone_is_the_local_user() -> None:
    async with open_http(FakeFabric(who=who)) as gate:
        assert said((await gate.modern(modern(1, "tools/call", WHO), ANN)).json) == LOCAL


async def test_a_session_is_not_found_for_anybody_else() -> None:
    async with open_http(FakeFabric(who=who), principal=user) as gate:
        opened = await gate.post(initialize(), ANN)
        session = ("Mcp-Session-Id", opened.field("mcp-session-id") or "")
        assert said((await gate.post(legacy(1, "tools/call", WHO), session, ANN)).json) == "ann"
        assert (await gate.post(legacy(2, "tools/call", WHO), session, BOB)).status == 404
        accept = ("Accept", "text/event-stream")
        assert (await gate.ask("GET", "/mcp", b"", session, accept, BOB)).status == 404
        assert (await gate.ask("DELETE", "/mcp", b"", session, BOB)).status == 404
        assert said((await gate.post(legacy(3, "tools/call", WHO), session, ANN)).json) == "ann"


async def test_a_cursor_is_of_no_use_to_anybody_else() -> None:
    fabric = FakeFabric(**{f"t{number}": who for number in range(3)}, page_size=2)
    async with open_http(fabric, principal=user) as gate:
        cursor = (await gate.modern(modern(1, "tools/list"), ANN)).json["result"]["nextCursor"]
        again = modern(2, "tools/list", {"cursor": cursor})
        assert (await gate.modern(again, BOB)).json["error"]["code"] == -32602
        assert len((await gate.modern(again, ANN)).json["result"]["tools"]) == 1


async def test_a_request_of_nobody_is_refused() -> None:
    async with open_http(FakeFabric(who=who), principal=user) as gate:
        for answer in (
            await gate.modern(modern(1, "tools/call", WHO)),
            await gate.post(initialize()),
            await gate.ask("GET"),
        ):
            assert (answer.status, answer.json) == (403, {"error": "the gateway does not know who sends this"})
        assert gate.service.counters["gateway.strangers_refused"] == 3
        assert (await gate.ask("OPTIONS")).status == 204  # a browser asks so without saying who
        assert (await gate.ask("GET", "/healthz")).status == 200


async def test_a_websocket_is_whose_opening_it_was() -> None:
    async with gate(FakeFabric(who=who), principal=user) as host, websocket(host, {"X-User": "ann"}) as session:
        found = loads(await session.request("tools/call", arguments("who", modern=True)))
        assert found["content"][0]["text"] == "ann"


async def test_an_event_stream_of_2024_hears_its_own_client_alone() -> None:
    def first(headers: Lines) -> str | None:
        return headers.get("x-user") or "ann"

    async with gate(fabric_with_sse(who=who), principal=first) as host, listening(host) as line:
        assert await line() == "event: endpoint"
        path = (await line()).removeprefix("data: ")
        assert await line() == ""
        async with httpx.AsyncClient(base_url=f"http://{host}/", headers={"Content-Type": "application/json"}) as http:
            assert (await http.post(path, content=initialize(), headers=dict([BOB]))).status_code == 404
            assert (await http.post(path, content=initialize())).status_code == 202
            assert await line() == "event: message"
            assert json.loads((await line()).removeprefix("data: "))["id"] == 0


async def test_a_stranger_opens_no_event_stream() -> None:
    async with gate(fabric_with_sse(who=who), principal=user) as host, httpx.AsyncClient() as http:
        assert (await http.get(f"http://{host}/sse")).status_code == 403
        assert (await http.post(f"http://{host}/messages?session_id=x")).status_code == 403
