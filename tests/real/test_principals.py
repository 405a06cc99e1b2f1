"""Two principals with the official SDK's clients, over HTTP, before servers of each era that ask in mid-call."""

from __future__ import annotations

import itertools
import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx  # noqa: ASYNC127  # the ecosystem's client, as our users run it
import pytest
import trio

from conformance.build import SDK1, SDK2
from cord_trio.config import Bounds, Config, Http
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.gateway import serve_gateway
from tests.gateway.fakes import headers_of, modern
from tests.real.environments import everything_process, sdk
from tests.real.helpers import START, until

mcp = pytest.importorskip("mcp", reason="the official SDK is not installed")
from mcp import types  # noqa: E402  # only where the SDK is
from mcp.client.streamable_http import streamable_http_client  # noqa: E402
from mcp.shared._httpx_utils import create_mcp_http_client  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

Json: TypeAlias = Any

REFUSED = {"code": -32602, "message": "unknown or expired requestState"}
TOOLS: Json = {"legacy": "test_elicitation", "modern": "test_input_required_result_elicitation"}

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Async generator:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning",
        "ignore::mcp.MCPDeprecationWarning",
    ),
]  # fmt: skip
pairings = pytest.mark.parametrize(
    ("client", "server"), [*itertools.product(("legacy", "modern"), repeat=2)], ids=["L-L", "L-M", "M-L", "M-M"]
)


@pytest.fixture(scope="module", autouse=True)
def _environments() -> None:
    """Make them outside of any test's time limit."""
    sdk(SDK1)
    sdk(SDK2)


class Far:
    """A server that knows one era alone, and the gateway before it."""

    def __init__(self, fabric: Fabric, url: str, process: trio.Process) -> None:
        self.fabric = fabric
        self.url = url
        self.process = process

    @property
    def calls(self) -> list[str]:
        """What the fabric waits for an answer of the server to."""
        sessions = [client.session for _, client in self.fabric.links["far"].open()]
        return [
            pending.method
            for session in sessions
            for pending in session.peer.open.values()
            if pending.method != "subscriptions/listen"
        ]


@asynccontextmanager
async def gateway_before(era: str, **bounds: Json) -> AsyncGenerator[Far]:
    async with everything_process({"legacy": SDK1, "modern": SDK2}[era], era) as (process, url):
        config = Config(sources=[Http(name="far", url=url, prefix="", connect=START)], bounds=Bounds(**bounds))
        async with open_fabric(config) as fabric:
            with trio.fail_after(90):
                await fabric.wait_started()
            assert fabric.links["far"].sessions["shared"].greeting.modern is (era == "modern")
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            async with trio.open_nursery() as nursery:
                serve = partial(serve_gateway, fabric, http=listeners, principal=lambda headers: headers.get("x-user"))
                await nursery.start(serve)
                host = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
                yield Far(fabric, f"http://{host}/mcp", process)
                nursery.cancel_scope.cancel("the test is over")
            assert len(fabric._parks) == 0


class Person:
    """Answers with her name, as soon as she may."""

    def __init__(self, name: str, may: trio.Event) -> None:
        self.name = name
        self.may = may
        self.asked: list[str] = []

    async def elicit(self, context: Json, params: Json) -> Json:
        self.asked.append(params.message)
        await self.may.wait()
        return types.ElicitResult(
            action="accept", content=dict.fromkeys(params.requested_schema["properties"], self.name)
        )

    @asynccontextmanager
    async def at(self, url: str, era: str) -> AsyncGenerator[Json]:
        mode = {"legacy": "legacy", "modern": "auto"}[era]
        async with create_mcp_http_client(headers={"X-User": self.name}) as http:
            way = streamable_http_client(url, http_client=http)
            async with mcp.Client(way, mode=mode, elicitation_callback=self.elicit) as client:
                assert client.protocol_version == {"legacy": "2025-11-25", "modern": "2026-07-28"}[era]
                yield client

    async def use(self, client: Json, server: str) -> Json:
        """The answer of a tool that asks her, whose question has her name in it where it can."""
        result = await client.call_tool(TOOLS[server], {"message": self.name} if server == "legacy" else {})
        return bool(result.is_error), result.content[0].text

    def answer(self, server: str) -> str:
        if server == "modern":
            return f"Hello, {self.name}!"
        return f'User response: action=accept, content={{"response":"{self.name}"}}'


@pairings
async def test_row_8_two_principals_at_once_are_each_asked_their_own(client: str, server: str) -> None:
    may = trio.Event()
    people = [Person(name, may) for name in ("ann", "bob")]
    found: dict[str, list[Json]] = {"ann": [], "bob": []}

    async def use(person: Person) -> None:
        async with person.at(far.url, client) as session:
            for _ in range(3):
                found[person.name].append(await person.use(session, server))

    async with gateway_before(server) as far, trio.open_nursery() as nursery:
        for person in people:
            nursery.start_soon(use, person)
        await until(lambda: all(person.asked for person in people))  # both wait for their person, at one time
        may.set()
    for person in people:
        assert found[person.name] == [(False, person.answer(server))] * 3
        if server == "legacy":
            assert person.asked == [person.name] * 3


class Raw:
    """A modern client that keeps the states that it is given."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url = url
        self.http = http

    async def call(self, user: str, **more: Json) -> Json:
        params = {"name": "test_elicitation", "arguments": {"message": "?"}, **more}
        can: Json = {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}}
        message = modern(1, "tools/call", params, can)
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        headers |= dict(headers_of(message)) | {"X-User": user}
        got = await self.http.post(self.url, content=message, headers=headers)
        body = got.text if got.text.startswith("{") else got.text.partition("data: ")[2].partition("\r\n")[0]
        return json.loads(body)


def error_of(message: Json) -> Json:
    return {key: message["error"][key] for key in ("code", "message")}


async def test_row_8_a_state_is_good_once_and_for_whom_and_what_it_was_given() -> None:
    async with gateway_before("legacy") as far, httpx.AsyncClient(timeout=20) as http:
        raw = Raw(far.url, http)
        states = {}
        for name in ("ann", "bob"):
            asked = (await raw.call(name))["result"]
            states[name] = (
                asked["requestState"],
                {key: {"action": "accept", "content": {"response": name}} for key in asked["inputRequests"]},
            )
        (state, answers), (other, _) = states["ann"], states["bob"]
        altered = state[:-1] + ("A" if state[-1] != "A" else "B")
        for user, used in (("bob", state), ("ann", other), ("ann", altered), ("ann", state[1:]), ("eve", state)):
            assert error_of(await raw.call(user, requestState=used, inputResponses=answers)) == REFUSED
        different = await raw.call("ann", requestState=state, inputResponses=answers, arguments={"message": "!"})
        assert error_of(different) == REFUSED
        for name, (used, given) in states.items():
            done = await raw.call(name, requestState=used, inputResponses=given)
            assert f'"response":"{name}"' in done["result"]["content"][0]["text"]
            assert error_of(await raw.call(name, requestState=used, inputResponses=given)) == REFUSED


async def test_row_8_a_session_is_of_no_use_to_another_principal() -> None:
    async with gateway_before("legacy") as far, httpx.AsyncClient() as http:
        opening = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}

        async def post(user: str, method: str, params: Json, session: str = "") -> httpx.Response:
            headers = {"Accept": "application/json, text/event-stream", "X-User": user}
            headers |= {"Mcp-Session-Id": session} if session else {}
            message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            return await http.post(far.url, json=message, headers=headers)

        session = (await post("ann", "initialize", opening)).headers["mcp-session-id"]
        assert (await post("bob", "ping", {}, session)).status_code == 404
        assert (await post("ann", "ping", {}, session)).status_code == 200


@pairings
async def test_rows_8_16_a_client_that_is_gone_while_it_is_asked_leaves_nothing(client: str, server: str) -> None:
    ann, bob = Person("ann", trio.Event()), Person("bob", trio.Event())
    bob.may.set()
    async with gateway_before(server, park_time=1.0) as far:
        async with trio.open_nursery() as nursery:

            async def use() -> None:
                async with ann.at(far.url, client) as session:
                    await ann.use(session, server)

            nursery.start_soon(use)
            await until(lambda: ann.asked)
            nursery.cancel_scope.cancel("ann has gone")
        await until(lambda: far.calls == [])
        await until(lambda: len(far.fabric._parks) == 0)
        async with bob.at(far.url, client) as session:
            assert await bob.use(session, server) == (False, bob.answer(server))


@pairings
async def test_rows_8_21_a_server_that_is_gone_while_it_asks_is_told_of(client: str, server: str) -> None:
    ann = Person("ann", trio.Event())
    results: list[Json] = []
    async with gateway_before(server) as far, ann.at(far.url, client) as session:
        async with trio.open_nursery() as nursery:

            async def use() -> None:
                results.append(await ann.use(session, server))

            nursery.start_soon(use)
            await until(lambda: ann.asked)
            far.process.kill()
            await far.process.wait()
            ann.may.set()
        assert [failed for failed, _ in results] == [True], results
        assert far.calls == []
