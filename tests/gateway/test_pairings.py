"""Clients and servers of both eras through gateway and fabric, in memory: the rows of the matrix, four times."""

from __future__ import annotations

import itertools
import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import pytest
import trio

from cord_trio.errors import ToolNotFound
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.gateway.service import Service
from cord_trio.gateway.stdio_endpoint import serve_pipe
from cord_trio.transports.memory import memory_transport_pair
from tests.full_server import FullServer, Request, text
from tests.gateway.fakes import (
    CAPABILITIES,
    IDENTITY,
    SUBSCRIPTION,
    PipeClient,
    answer,
    initialize,
    legacy,
    modern,
    notice,
)
from tests.test_background import ModernTaskServer, TaskServer
from tests.test_reserved import ShyServer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from trio.testing import MockClock

    from cord_trio.agents import Context

Json: TypeAlias = Any

CAN: Json = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}
LOG_LEVEL = "io.modelcontextprotocol/logLevel"
FORM: Json = {
    "mode": "form",
    "message": "Name?",
    "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}
PAGE: Json = {"mode": "url", "message": "Sign in", "url": "https://x/y"}
SAMPLE: Json = {"messages": [{"role": "user", "content": {"type": "text", "text": "?"}}], "maxTokens": 5}

pairings = pytest.mark.parametrize(
    ("client", "server"),
    [*itertools.product(("legacy", "modern"), repeat=2)],
    ids=["L-L", "L-M", "M-L", "M-M"],
)


@attrs.define(eq=False)
class Person:
    """A client of either era whose user answers every question in her own words."""

    pipe: PipeClient
    modern: bool
    name: str
    can: Json = CAN
    asked: list[Json] = attrs.field(factory=list)
    _seen: int = 0
    _ids: itertools.count[int] = attrs.field(factory=itertools.count)

    async def ask(self, method: str, params: Json = None, meta: Json = None) -> Json:
        """The last answer to a request; what is asked meanwhile is answered."""
        params = params or {}
        message = await self._answer_to(self.send(method, params, meta))
        while message.get("result", {}).get("resultType") == "input_required":
            result = message["result"]
            answers = {key: self.reply(each) for key, each in result["inputRequests"].items()}
            state = {"requestState": result["requestState"]} if "requestState" in result else {}
            message = await self._answer_to(self.send(method, {**params, "inputResponses": answers, **state}, meta))
        return message

    def send(self, method: str, params: Json, meta: Json = None) -> Json:
        id = f"{self.name}-{next(self._ids)}"
        if self.modern:
            self.pipe.send(modern(id, method, params, {CAPABILITIES: self.can, **(meta or {})}))
        else:
            self.pipe.send(legacy(id, method, {**params, **({"_meta": meta} if meta else {})}))
        return id

    def reply(self, question: Json) -> Json:
        """What the user says."""
        self.asked.append(question)
        match question["method"]:
            case "elicitation/create" if question["params"].get("mode") == "url":
                return {"action": "accept"}
            case "elicitation/create":
                return {"action": "accept", "content": {"name": self.name}}
            case "sampling/createMessage":
                return {"role": "assistant", "content": {"type": "text", "text": self.name}, "model": "m"}
            case _:
                return {"roots": [{"uri": f"file:///{self.name}"}]}

    def told(self, method: str) -> list[Json]:
        """The parameters of what came of `method`."""
        return [each.get("params") for each in self.pipe.got if each.get("method") == method]

    async def _answer_to(self, id: Json) -> Json:
        for _ in range(100):
            while self._seen < len(self.pipe.got):
                each = self.pipe.got[self._seen]
                self._seen += 1
                if "method" in each and "id" in each:
                    self.pipe.send(answer(each["id"], self.reply(each)))
            found = [each for each in self.pipe.got if each.get("id") == id and "method" not in each]
            if found:
                assert len(found) == 1
                return found[0]
            await trio.sleep(0.05)
        raise AssertionError(f"{id} was not answered: {self.pipe.got}")


class Gate:
    """A gateway of one fabric, to which clients come over pipes."""

    def __init__(self, fabric: Fabric, nursery: trio.Nursery) -> None:
        self.fabric = fabric
        self._service = Service(fabric, IDENTITY)
        self._nursery = nursery
        nursery.start_soon(self._service.watch)

    async def come(self, era: str, name: str = "ann", can: Json = CAN) -> Person:
        """A client that is ready."""
        ours, theirs = memory_transport_pair()
        pipe = PipeClient(theirs)
        self._nursery.start_soon(serve_pipe, self._service, ours)
        await self._nursery.start(theirs.run, pipe)
        if era == "legacy":
            await pipe.ask(initialize("i", capabilities=can), notice("notifications/initialized"))
            pipe.got.clear()
        return Person(pipe, era == "modern", name, can)


@asynccontextmanager
async def open_gate(far: FullServer, **more: Json) -> AsyncGenerator[Gate, None]:
    async with open_fabric([far.source(**more)]) as fabric, trio.open_nursery() as nursery:
        await fabric.wait_started()
        yield Gate(fabric, nursery)
        nursery.cancel_scope.cancel("the test is over")
        assert len(fabric._parks) == 0


def asking(*rounds: dict[str, tuple[str, Json]]) -> Callable[[Request], Json]:
    """A tool of a server of either era that asks all of each round, then answers with all that it was told."""

    def tool(request: Request) -> Json:
        if request.connection.server.modern:
            state = json.loads(request.params.get("requestState", "[]"))
            if "inputResponses" in request.params:
                state.append(request.params["inputResponses"])
            if len(state) == len(rounds):
                return text(json.dumps(state))
            asked = {key: {"method": method, "params": params} for key, (method, params) in rounds[len(state)].items()}
            return {"resultType": "input_required", "inputRequests": asked, "requestState": json.dumps(state)}
        told: list[dict[str, Json]] = []

        def go_on() -> None:
            if len(told) == len(rounds):
                request.answer(text(json.dumps(told)))
                return
            wanted, got = rounds[len(told)], {}

            def replied(key: str, reply: Json) -> None:
                got[key] = reply.get("result")
                if len(got) == len(wanted):
                    told.append(got)
                    go_on()

            for key, (method, params) in wanted.items():
                request.ask(method, params, partial(replied, key))

        go_on()
        return None

    return tool


def far(server: str, **tools: Callable[[Request], Json]) -> FullServer:
    made = FullServer(modern=server == "modern")
    made.tools |= tools
    return made


def calls_in(server: FullServer) -> list[Request]:
    """What it still works at."""
    return [each for link in server.connections for each in link.open.values() if each.method == "tools/call"]


def said(message: Json) -> Json:
    return json.loads(message["result"]["content"][0]["text"])


@pairings
async def test_row_22_a_tool_that_runs_only_in_the_background_is_called_as_any_other(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    behind: TaskServer | ModernTaskServer
    if server == "legacy":
        behind = TaskServer()
        behind.answers["tasks/result"] = asking({"q": ("elicitation/create", FORM)})
    else:
        behind = ModernTaskServer()
        asked: Json = {"q": {"method": "elicitation/create", "params": FORM}}
        behind.states = [
            {"status": "input_required", "inputRequests": asked},
            {"status": "completed", "result": text("[]")},
        ]
    async with open_gate(behind) as gate:
        person = await gate.come(client)
        tools = (await person.ask("tools/list"))["result"]["tools"]
        assert [tool for tool in tools if "execution" in tool] == []
        told = said(await person.ask("tools/call", {"name": "x__slow", "arguments": {}}))
        answer = {"q": {"action": "accept", "content": {"name": "ann"}}}
        assert (behind.updates if isinstance(behind, ModernTaskServer) else told) == [answer]
        assert len(person.asked) == 1
        assert behind.cancels() == [[], []]


@pairings
async def test_row_5_all_lists_are_merged(client: str, server: str, autojump_clock: MockClock) -> None:
    async with open_gate(far(server)) as gate:
        person = await gate.come(client)
        for method, member, items in [
            ("tools/list", "tools", [{"name": "x__echo", "inputSchema": {"type": "object"}}]),
            ("prompts/list", "prompts", [{"name": "x__greet", "title": "Greet", "x": 1.0}]),
            ("resources/list", "resources", [{"uri": "cord://x/file:///a", "name": "a", "mimeType": "text/plain"}]),
            (
                "resources/templates/list",
                "resourceTemplates",
                [{"uriTemplate": "cord://x/file:///{path}", "name": "files"}],
            ),
        ]:
            result = (await person.ask(method))["result"]
            assert result[member] == items
            assert ("ttlMs" in result) == person.modern


async def test_m27_rows_14_18_what_a_legacy_client_says_of_its_session_never_reaches_a_modern_server(
    autojump_clock: MockClock,
) -> None:
    behind = far("modern")
    async with open_gate(behind) as gate:
        person = await gate.come("legacy")
        assert (await person.ask("ping"))["result"] == {}
        assert (await person.ask("logging/setLevel", {"level": "info"}))["result"] == {}
        person.pipe.send(notice("notifications/initialized"), notice("notifications/roots/list_changed"))
        assert (await person.ask("tools/call", {"name": "x__echo", "arguments": {"t": "hi"}}))["result"]["content"]
        methods = {message["method"] for message in behind.got}
        lists = {"tools/list", "prompts/list", "resources/list", "resources/templates/list"}
        assert methods == {"server/discover", "subscriptions/listen", "tools/call", *lists}
        (sent,) = behind.sent("tools/call")
        assert sent["_meta"][LOG_LEVEL] == "info"


@pairings
async def test_m16_row_4_a_modern_server_is_told_what_this_client_can_be_asked(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    behind = far(server)
    async with open_gate(behind) as gate:
        person = await gate.come(client, can={"elicitation": {"form": {}}, "roots": {}})
        await person.ask("tools/call", {"name": "x__echo", "arguments": {}})
        if server == "modern":
            declared = behind.sent("tools/call")[0]["_meta"][CAPABILITIES]
        else:
            declared = [each.capabilities for each in behind.connections][-1]
        assert declared.keys() == {"elicitation", "roots"}


@pairings
async def test_c19_row_7_a_result_that_is_not_as_its_schema_says_arrives_all_the_same(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    wrong = text("seven", structuredContent={"n": "seven"})
    behind = far(server, n=lambda _: wrong)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tools = [{"name": "n", "inputSchema": {"type": "object"}, "outputSchema": schema}]
    behind.answers["tools/list"] = lambda _: {"tools": tools}
    async with open_gate(behind) as gate:
        result = (await (await gate.come(client)).ask("tools/call", {"name": "x__n", "arguments": {}}))["result"]
        assert (result["content"], result["structuredContent"]) == (wrong["content"], wrong["structuredContent"])
        assert (await gate.fabric.call("x__n")).structured == {"n": "seven"}


@pairings
async def test_row_7_calls_prompts_and_reads_reach_their_server(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    async with open_gate(far(server)) as gate:
        person = await gate.come(client)
        call = await person.ask("tools/call", {"name": "x__echo", "arguments": {"t": "hi"}})
        assert call["result"]["content"] == [{"type": "text", "text": "hi"}]
        assert ("resultType" in call["result"]) == person.modern
        prompt = await person.ask("prompts/get", {"name": "x__greet"})
        assert prompt["result"]["messages"][0]["content"]["text"] == "greet"
        read = await person.ask("resources/read", {"uri": "cord://x/file:///a"})
        assert read["result"]["contents"] == [{"uri": "cord://x/file:///a", "text": "read"}]


@pairings
async def test_rows_8_11_12_every_question_reaches_the_person_and_every_answer_the_server(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    first = {"a": ("elicitation/create", FORM), "b": ("sampling/createMessage", SAMPLE), "c": ("roots/list", {})}
    again = {"d": ("elicitation/create", FORM)}
    behind = far(server, ask=asking(first, again))
    async with open_gate(behind) as gate:
        person = await gate.come(client)
        form = {"action": "accept", "content": {"name": "ann"}}
        words = {"role": "assistant", "content": {"type": "text", "text": "ann"}, "model": "m"}
        answers = {"a": form, "b": words, "c": {"roots": [{"uri": "file:///ann"}]}}
        assert said(await person.ask("tools/call", {"name": "x__ask", "arguments": {}})) == [answers, {"d": form}]
        assert [each["method"] for each in person.asked] == [
            "elicitation/create",
            "sampling/createMessage",
            "roots/list",
            "elicitation/create",
        ]
        assert person.asked[0]["params"] == FORM
        assert person.asked[1]["params"] == SAMPLE
    # A legacy server's call is never made anew; a modern one's is, by design.
    assert len(behind.sent("tools/call")) == (3 if behind.modern else 1)


@pairings
async def test_row_9_a_page_is_opened(client: str, server: str, autojump_clock: MockClock) -> None:
    page = PAGE if server == "modern" else {**PAGE, "elicitationId": "theirs"}
    async with open_gate(far(server, ask=asking({"a": ("elicitation/create", page)}))) as gate:
        person = await gate.come(client)
        assert said(await person.ask("tools/call", {"name": "x__ask"})) == [{"a": {"action": "accept"}}]
        (asked,) = person.asked
        assert ("elicitationId" in asked["params"]) == (client == "legacy")
        assert asked["params"]["url"] == PAGE["url"]


@pytest.mark.parametrize("client", ["legacy", "modern"])
async def test_row_10_a_call_that_wants_a_page_opened_first_is_made_once_it_was(
    client: str, autojump_clock: MockClock
) -> None:
    def guarded(request: Request) -> Json:
        if signed:
            return text("in")
        request.fail(-32042, "sign in", {"elicitations": [{**PAGE, "elicitationId": "e1"}]})
        return None

    signed: list[bool] = []
    behind = far("legacy", guarded=guarded)
    async with open_gate(behind) as gate, trio.open_nursery() as nursery:
        person = await gate.come(client)
        call = {"name": "x__guarded", "arguments": {}}

        async def sign_in() -> None:
            while not (person.asked if person.modern else behind.sent("tools/call")):  # noqa: ASYNC110  # as a person looks
                await trio.sleep(0.1)
            await trio.sleep(2)
            signed.append(True)
            behind.connections[-1].tell("notifications/elicitation/complete", {"elicitationId": "e1"})

        nursery.start_soon(sign_in)
        if not person.modern:
            error = (await person.ask("tools/call", call))["error"]
            assert (error["code"], error["data"]["elicitations"][0]["url"]) == (-32042, PAGE["url"])
            await trio.sleep(10)
        assert (await person.ask("tools/call", call))["result"]["content"] == text("in")["content"]
        assert [each["params"]["url"] for each in person.asked] == ([PAGE["url"]] if person.modern else [])


@pairings
async def test_people_who_are_asked_at_once_give_their_own_answers(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    async with open_gate(far(server, ask=asking({"a": ("elicitation/create", FORM)}))) as gate:
        people = [await gate.come(client, name) for name in ("ann", "bob", "eve")]
        told: dict[str, Json] = {}

        async def ask(person: Person) -> None:
            for _ in range(2):
                told[person.name] = said(await person.ask("tools/call", {"name": "x__ask"}))

        async with trio.open_nursery() as nursery:
            for person in people:
                nursery.start_soon(ask, person)
        assert told == {
            name: [{"a": {"action": "accept", "content": {"name": name}}}] for name in ("ann", "bob", "eve")
        }


async def test_row_8_what_a_legacy_client_fills_in_is_the_legacy_servers_to_judge(autojump_clock: MockClock) -> None:
    """The official suite's client fills in other fields than those asked for, and its server says so in a result."""
    odd = {**FORM, "requestedSchema": {"type": "object", "properties": {}, "required": ["another"]}}
    async with open_gate(far("legacy", ask=asking({"a": ("elicitation/create", odd)}))) as gate:
        person = await gate.come("legacy")
        answers = {"a": {"action": "accept", "content": {"name": "ann"}}}
        assert said(await person.ask("tools/call", {"name": "x__ask"})) == [answers]


@pairings
async def test_row_15_progress_rises_under_the_clients_token(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    def steps(request: Request) -> Json:
        for number in (1, 2, 2, 3):
            request.progress(number)
        return text("done")

    async with open_gate(far(server, steps=steps)) as gate:
        person = await gate.come(client)
        await person.ask("tools/call", {"name": "x__steps"}, {"progressToken": "mine"})
        assert person.told("notifications/progress") == [
            {"progressToken": "mine", "progress": number} for number in (1, 2, 3)
        ]


@pairings
async def test_row_16_a_cancel_reaches_exactly_the_server_that_runs_the_call(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    behind = far(server, hang=lambda request: None)
    async with open_gate(behind) as gate:
        person = await gate.come(client)
        id = person.send("tools/call", {"name": "x__hang"})
        await trio.sleep(1)
        (running,) = [
            request for each in behind.connections for request in each.open.values() if request.method == "tools/call"
        ]
        person.pipe.send(notice("notifications/cancelled", {"requestId": id, "reason": "enough"}))
        await trio.sleep(1)
        assert running.id in running.connection.cancelled
        assert [each for each in person.pipe.got if each.get("id") == id] == []


@pytest.mark.parametrize("server", ["legacy", "modern"])
async def test_row_16_a_cancel_while_a_person_is_asked_ends_it_all(server: str, autojump_clock: MockClock) -> None:
    behind = far(server, ask=asking({"a": ("elicitation/create", FORM)}))
    async with open_gate(behind) as gate:
        person = await gate.come("legacy")
        id = person.send("tools/call", {"name": "x__ask"})
        await trio.sleep(1)
        (asked,) = [each for each in person.pipe.got if each.get("method") == "elicitation/create"]
        person.pipe.send(notice("notifications/cancelled", {"requestId": id}))
        await trio.sleep(5)
        assert person.told("notifications/cancelled")[0]["requestId"] == asked["id"]
        assert calls_in(behind) == []


@pairings
async def test_row_18_logs_come_from_the_wanted_level_on(client: str, server: str, autojump_clock: MockClock) -> None:
    def log(request: Request) -> Json:
        for level in ("debug", "info", "error"):
            request.connection.tell("notifications/message", {"level": level, "data": level})
        return text("done")

    async with open_gate(far(server, log=log)) as gate:
        person = await gate.come(client)
        if client == "legacy":
            assert (await person.ask("logging/setLevel", {"level": "error"}))["result"] == {}
        await person.ask("tools/call", {"name": "x__log"}, {LOG_LEVEL: "error"} if client == "modern" else None)
        assert person.told("notifications/message") == [{"level": "error", "data": "error"}]


@pairings
async def test_rows_19_and_20_changes_are_told(client: str, server: str, autojump_clock: MockClock) -> None:
    behind = far(server)
    async with open_gate(behind) as gate:
        person = await gate.come(client)
        if client == "modern":
            wanted = {"toolsListChanged": True, "resourceSubscriptions": ["cord://x/file:///a"]}
            person.send("subscriptions/listen", {"notifications": wanted})
        else:
            assert (await person.ask("resources/subscribe", {"uri": "cord://x/file:///a"}))["result"] == {}
        await trio.sleep(1)
        behind.tools["new"] = lambda request: text("new")
        behind.connections[0].tell("notifications/tools/list_changed")
        behind.connections[0].tell("notifications/resources/updated", {"uri": "file:///a"})
        behind.connections[0].tell("notifications/resources/updated", {"uri": "file:///b"})
        await trio.sleep(2)
        meta = {"_meta": {SUBSCRIPTION: "ann-0"}} if client == "modern" else {}
        assert person.told("notifications/tools/list_changed") == [meta or None]
        assert person.told("notifications/resources/updated") == [{"uri": "cord://x/file:///a", **meta}]
        listed = await person.ask("tools/list")
        assert [each["name"] for each in listed["result"]["tools"]] == ["x__echo", "x__new"]


@pairings
async def test_row_23_completions_are_about_the_servers_own_names(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    async with open_gate(far(server)) as gate:
        person = await gate.come(client)
        for ref, own in [
            ({"type": "ref/prompt", "name": "x__greet"}, {"type": "ref/prompt", "name": "greet"}),
            (
                {"type": "ref/resource", "uri": "cord://x/file:///{path}"},
                {"type": "ref/resource", "uri": "file:///{path}"},
            ),
        ]:
            params = {"ref": ref, "argument": {"name": "a", "value": "b"}}
            result = (await person.ask("completion/complete", params))["result"]
            assert json.loads(result["completion"]["values"][0]) == own


@pairings
async def test_row_24_what_is_missing_is_missing_in_the_clients_words(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    behind = far(server)
    code = -32602 if server == "modern" else -32002
    behind.answers["resources/read"] = lambda request: request.fail(code, "none", {"uri": request.params["uri"]})
    async with open_gate(behind) as gate:
        person = await gate.come(client)
        error = (await person.ask("resources/read", {"uri": "cord://x/file:///none"}))["error"]
        assert error["code"] == (-32602 if client == "modern" else -32002)
        assert error["data"] == {"uri": "cord://x/file:///none"}
        assert (await person.ask("tools/call", {"name": "none"}))["error"]["code"] == -32602
        assert (await person.ask("prompts/get", {"name": "none"}))["error"]["code"] == -32602


@pairings
async def test_a_source_without_prefix_goes_out_as_it_is(client: str, server: str, autojump_clock: MockClock) -> None:
    async with open_gate(far(server), prefix="") as gate:
        person = await gate.come(client)
        read = await person.ask("resources/read", {"uri": "file:///a"})
        assert read["result"]["contents"] == [{"uri": "file:///a", "text": "read"}]
        assert (await person.ask("tools/call", {"name": "echo", "arguments": {"t": "hi"}}))["result"]["content"]


@pairings
async def test_rows_1_2_3_4_each_hop_opens_in_its_own_words(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    behind = far(server)
    async with open_gate(behind) as gate:
        person = await gate.come(client)
        if person.modern:
            discovered = (await person.ask("server/discover"))["result"]
            assert discovered["supportedVersions"][0] == "2026-07-28"
        opened = [each["method"] for each in behind.got if each.get("method") in ("initialize", "server/discover")]
        assert opened == ["server/discover" if behind.modern else "initialize"]
        await person.ask("tools/call", {"name": "x__echo", "arguments": {}}, {"com.example/trace": 1})
        (sent,) = behind.sent("tools/call")
        meta = sent.get("_meta", {})
        assert meta["com.example/trace"] == 1
        own = {key for key in meta if key.startswith("io.modelcontextprotocol/")}
        if behind.modern:
            assert meta["io.modelcontextprotocol/clientInfo"]["name"] == "cord_trio"  # each hop is its own client
            assert set(meta[CAPABILITIES]) == {"elicitation", "sampling", "roots"}
        else:
            assert own == set()  # servers of SDK 1.x refuse what they do not know
            assert set(behind.connections[-1].capabilities) == {"elicitation", "sampling", "roots"}


@pairings
async def test_row_6_cursors_are_our_own(client: str, server: str, autojump_clock: MockClock) -> None:
    behind = far(server)
    behind.answers["tools/list"] = lambda request: pages(request.params.get("cursor", ""))
    async with open_gate(behind) as gate:
        person = await gate.come(client)
        listed = (await person.ask("tools/list"))["result"]
        assert [each["name"] for each in listed["tools"]] == ["x__t0", "x__t1", "x__t2"]
        assert (await person.ask("tools/list", {"cursor": "2"}))["error"]["code"] == -32602  # the server's, not ours


def pages(cursor: str) -> Json:
    number = int(cursor or 0)
    tools = [{"name": f"t{number}", "inputSchema": {"type": "object"}}]
    return {"tools": tools, **({"nextCursor": str(number + 1)} if number < 2 else {})}


@pairings
async def test_row_13_what_was_not_declared_is_not_asked(client: str, server: str, autojump_clock: MockClock) -> None:
    async with open_gate(far(server, ask=asking({"a": ("elicitation/create", FORM)}))) as gate:
        person = await gate.come(client, can={})
        message = await person.ask("tools/call", {"name": "x__ask", "arguments": {}})
        assert person.asked == []
        if "error" in message:
            assert message["error"]["code"] == -32021
            assert message["error"]["data"] == {"requiredCapabilities": {"elicitation": {"form": {}}}}
            assert client == "modern"
        elif server == "legacy":
            assert said(message) == [{"a": None}]  # the server was refused, and may go on without
        else:
            assert message["result"]["isError"] is True


@pairings
async def test_row_14_each_hop_answers_pings_itself(client: str, server: str, autojump_clock: MockClock) -> None:
    behind = far(server)
    async with open_gate(behind) as gate:
        person = await gate.come(client)
        message = await person.ask("ping")
        assert ("error" in message) == person.modern  # the modern era has none
        assert behind.sent("ping") == []
        if not behind.modern:
            replies: list[Json] = []
            behind.connections[0].ask("ping", {}, replies.append)
            await trio.sleep(1)
            assert replies[0]["result"] == {}
            assert person.told("ping") == []


@pairings
async def test_row_21_a_lost_server_comes_back_with_its_lists_and_subscriptions(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    behind = far(server)
    async with open_gate(behind) as gate:
        person = await gate.come(client)
        if client == "modern":
            wanted = {"toolsListChanged": True, "resourceSubscriptions": ["cord://x/file:///a"]}
            person.send("subscriptions/listen", {"notifications": wanted})
        else:
            await person.ask("resources/subscribe", {"uri": "cord://x/file:///a"})
        await trio.sleep(1)
        behind.tools["new"] = lambda request: text("new")
        behind.connections[0].transport.close()
        await trio.sleep(30)
        assert [each["uri"] for each in person.told("notifications/resources/updated")] == ["cord://x/file:///a"]
        assert len(person.told("notifications/tools/list_changed")) >= 1
        call = await person.ask("tools/call", {"name": "x__new", "arguments": {}})
        assert call["result"]["content"][0]["text"] == "new"


@pairings
async def test_row_27_what_an_older_revision_lacks_is_said_in_words(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    link = {"type": "resource_link", "uri": "file:///a", "name": "a"}
    behind = far(server, link=lambda request: {"content": [link], "structuredContent": [1]})
    async with open_gate(behind) as gate:
        person = await gate.come(client)
        result = (await person.ask("tools/call", {"name": "x__link", "arguments": {}}))["result"]
        assert result["content"][0]["type"] == "resource_link"
        assert ("structuredContent" in result) == person.modern  # it was an object, up to 2025-11-25


@pairings
async def test_row_29_apps_go_through(client: str, server: str, autojump_clock: MockClock) -> None:
    behind = far(server)
    page = {"name": "show", "inputSchema": {"type": "object"}, "_meta": {"ui": {"resourceUri": "ui://far/page"}}}
    behind.answers["tools/list"] = lambda request: {"tools": [page]}
    async with open_gate(behind) as gate:
        person = await gate.come(client)
        (tool,) = (await person.ask("tools/list"))["result"]["tools"]
        uri = tool["_meta"]["ui"]["resourceUri"]
        assert uri == "ui://x/far/page"
        read = await person.ask("resources/read", {"uri": uri})
        assert read["result"]["contents"][0]["uri"] == uri
        assert behind.sent("resources/read")[0]["uri"] == "ui://far/page"


@pairings
async def test_row_32_hints_reach_those_who_know_them(client: str, server: str, autojump_clock: MockClock) -> None:
    behind = far(server)
    hints = {"ttlMs": 5000, "cacheScope": "private"} if server == "modern" else {}
    behind.answers["resources/read"] = lambda request: {
        "contents": [{"uri": request.params["uri"], "text": "x"}],
        **hints,
    }
    async with open_gate(behind) as gate:
        person = await gate.come(client)
        result = (await person.ask("resources/read", {"uri": "cord://x/file:///a"}))["result"]
        assert ("ttlMs" in result) == person.modern
        if person.modern:
            assert result["cacheScope"] == "private"
            assert (result["ttlMs"] > 0) == behind.modern  # without a hint nothing may be kept


@pairings
async def test_rows_5_32_a_list_whose_changes_nobody_tells_is_fetched_anew_for_who_lists(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    behind = FullServer(modern=server == "modern", capabilities={"tools": {}, "resources": {}})
    hints = {"ttlMs": 20_000, "cacheScope": "public"} if behind.modern else {}
    age = 20 if behind.modern else 60
    behind.answers["tools/list"] = lambda _request: {
        "tools": [{"name": name, "inputSchema": {"type": "object"}} for name in behind.tools],
        **hints,
    }
    async with open_gate(behind) as gate:
        person = await gate.come(client)

        async def listed() -> Json:
            result = (await person.ask("tools/list"))["result"]
            return [tool["name"] for tool in result["tools"]], result.get("ttlMs", 0) / 1000

        await trio.sleep(5)
        names, ttl = await listed()
        assert names == ["x__echo"]
        if person.modern:
            assert age - 10 < ttl < age - 4  # what is left
        behind.tools["new"] = behind.tools["echo"]
        await trio.sleep(age)
        assert len(behind.sent("tools/list")) == 1  # nobody wanted to know
        assert await listed() == (["x__echo"], 0)  # it may be wrong, and is not waited for
        assert await listed() == (["x__echo"], 0) or not person.modern
        await trio.sleep(4)
        names, ttl = await listed()
        assert names == ["x__echo", "x__new"]
        assert len(behind.sent("tools/list")) == 2
        if person.modern:
            assert age - 10 < ttl <= age
        else:
            assert person.told("notifications/tools/list_changed") == [None]
        await person.ask("resources/list")
        await trio.sleep(2 * age)
        behind.templates.append({"uriTemplate": "new:///{path}", "name": "new"})
        await person.ask("resources/templates/list")
        await trio.sleep(4)
        assert len((await person.ask("resources/templates/list"))["result"]["resourceTemplates"]) == 2


async def test_a_list_is_fetched_anew_once_however_many_want_it_meanwhile(autojump_clock: MockClock) -> None:
    behind = FullServer(modern=True, capabilities={"tools": {}})
    asked: list[Request] = []
    async with open_gate(behind) as gate:
        person = await gate.come("modern")
        behind.answers["tools/list"] = asked.append  # it answers later
        await trio.sleep(100)
        for _ in range(4):
            await person.ask("tools/list")
            await trio.sleep(0.5)
        asked[0].answer({"tools": []})
        await trio.sleep(4)
        assert (await person.ask("tools/list"))["result"]["tools"] == []
        assert len(asked) == 1


@pairings
async def test_row_5_a_list_whose_changes_are_told_is_never_fetched_for_who_lists(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    behind = far(server)
    async with open_gate(behind) as gate:
        person = await gate.come(client)
        for _ in range(3):
            await trio.sleep(1000)
            result = (await person.ask("tools/list"))["result"]
            assert result.get("ttlMs") == (60_000 if person.modern else None)
        assert len(behind.sent("tools/list")) == 1


@pytest.mark.parametrize("client", ["legacy", "modern"])
async def test_rows_4_5_who_cannot_be_asked_is_told_so_of_a_tool_that_is_not_shown_to_such(
    client: str, autojump_clock: MockClock
) -> None:
    async with open_gate(ShyServer(), asks=True) as gate:
        await trio.sleep(1)
        ann, eve = await gate.come(client), await gate.come(client, "eve", can={})
        call = {"name": "x__ask", "arguments": {}}
        tools = (await eve.ask("tools/list"))["result"]["tools"]
        assert [tool["name"] for tool in tools] == ["x__echo", "x__ask", "x__sample"]  # a list is the same for all
        assert (await ann.ask("tools/call", call))["result"]["content"] == text("asked")["content"]
        told = await eve.ask("tools/call", call)
        if eve.modern:
            assert told["error"]["code"] == -32021
            assert "elicitation" in told["error"]["data"]["requiredCapabilities"]
        else:
            assert told["result"]["isError"]
            assert "only for callers that can be asked" in told["result"]["content"][0]["text"]


async def test_row_17_a_modern_client_is_told_the_end_of_a_call_whose_question_was_withdrawn(
    autojump_clock: MockClock,
) -> None:
    def asks(request: Request) -> Json:
        questions.append((request, request.ask("elicitation/create", FORM, lambda _: None)))

    questions: list[tuple[Request, str]] = []
    async with open_gate(far("legacy", ask=asks)) as gate:
        person = await gate.come("modern")
        call = {"name": "x__ask", "arguments": {}}
        asked = (await person._answer_to(person.send("tools/call", call)))["result"]
        ((request, question),) = questions
        request.connection.withdraw(question)
        request.answer(text("never mind"))
        await trio.sleep(1)
        answers = {"inputResponses": {key: person.reply(each) for key, each in asked["inputRequests"].items()}}
        final = await person.ask("tools/call", {**call, **answers, "requestState": asked["requestState"]})
        assert final["result"]["content"] == text("never mind")["content"]


async def test_rows_17_21_a_legacy_client_is_not_kept_asked_what_nobody_wants_to_know(
    autojump_clock: MockClock,
) -> None:
    """Its server withdraws the question, ends the call, or is gone."""

    def asks(request: Request) -> Json:
        questions.append((request, request.ask("elicitation/create", FORM, lambda _: None)))

    questions: list[tuple[Request, str]] = []
    behind = far("legacy", ask=asks)
    async with open_gate(behind) as gate:
        person = await gate.come("legacy")
        for end in ("withdraws", "answers", "is gone"):
            id = person.send("tools/call", {"name": "x__ask", "arguments": {}})
            await trio.sleep(2)
            asked = person.pipe.got[-1]
            assert asked["method"] == "elicitation/create"
            request, question = questions[-1]
            match end:
                case "withdraws":
                    request.connection.withdraw(question)
                    await trio.sleep(1)
                    assert person.pipe.got[-1]["params"]["requestId"] == asked["id"]
                    request.answer(text("never mind"))
                case "answers":
                    request.answer(text("never mind"))
                case _:
                    request.connection.transport.lose("server exited")
            await trio.sleep(1)
            withdrawn, final = person.pipe.got[-2:]
            assert (withdrawn["method"], withdrawn["params"]["requestId"]) == ("notifications/cancelled", asked["id"])
            assert final["id"] == id
            assert final["result"]["isError"] is True if end == "is gone" else final["result"] == text("never mind")


# Agents as tools


async def greets(ctx: Context, payload: object) -> object:
    await ctx.emit({"progress": 1, "message": "asking"})
    filled = await ctx.elicit("Name?", FORM["requestedSchema"])
    await ctx.emit(2)
    return "nobody" if filled is None else f"hello {filled['name']}"


@pytest.mark.parametrize("client", ["legacy", "modern"])
async def test_an_exported_agent_asks_the_person_behind_its_client(client: str, autojump_clock: MockClock) -> None:
    async with open_gate(far("modern")) as gate:
        gate.fabric.agent("greets", greets, export=True, turn=4)
        persons = [await gate.come(client, name) for name in ("ann", "bob")]
        told: list[Json] = []

        async def ask(person: Person) -> None:
            call = {"name": "agent__greets", "arguments": {}}
            told.append((await person.ask("tools/call", call, {"progressToken": person.name}))["result"])

        async with trio.open_nursery() as nursery:
            for person in persons:
                nursery.start_soon(ask, person)
        assert sorted(each["content"][0]["text"] for each in told) == ["hello ann", "hello bob"]
        for person in persons:
            progress = person.told("notifications/progress")
            assert {each["progressToken"] for each in progress} == {person.name}
            assert (progress[0]["progress"], progress[-1]["progress"]) == (1, 2)  # and a sign that she is asked
        unable = await gate.come(client, "eve", can={})
        refused = await unable.ask("tools/call", {"name": "agent__greets", "arguments": {}})
        assert refused["result"]["isError"]
        assert "elicitation/create" in refused["result"]["content"][0]["text"]
        assert not gate.fabric.agents.roots


@pytest.mark.parametrize("client", ["legacy", "modern"])
async def test_a_client_that_cancels_an_exported_agent_while_it_is_asked_ends_it(
    client: str, autojump_clock: MockClock
) -> None:
    async with open_gate(far("modern")) as gate:
        gate.fabric.agent("greets", greets, export=True)
        person = await gate.come(client)
        id = person.send("tools/call", {"name": "agent__greets", "arguments": {}})
        await trio.sleep(1)
        if person.modern:  # its request has ended; the one that brings the answers is cancelled
            (result,) = [each["result"] for each in person.pipe.got if each.get("id") == id]
            state = {"requestState": result["requestState"], "inputResponses": {}}
            id = person.send("tools/call", {"name": "agent__greets", "arguments": {}, **state})
        person.pipe.send(notice("notifications/cancelled", {"requestId": id}))
        await trio.sleep(2)
        assert not gate.fabric.agents.roots


@pytest.mark.parametrize("who", ["legacy", "modern", "agent"])
async def test_what_a_legacy_client_is_asked_is_answered_while_the_fabric_drains(
    who: str, autojump_clock: MockClock
) -> None:
    behind = far("legacy" if who == "legacy" else "modern", ask=asking({"a": ("elicitation/create", FORM)}))
    async with open_gate(behind) as gate, trio.open_nursery() as nursery:
        gate.fabric.agent("greets", greets, export=True)
        person = await gate.come("legacy")
        name = "agent__greets" if who == "agent" else "x__ask"
        id = person.send("tools/call", {"name": name, "arguments": {}})
        await trio.sleep(1)
        nursery.start_soon(gate.fabric.drain, 10.0)
        await trio.sleep(5)
        stages = [gate.fabric.stage]
        result = (await person._answer_to(id))["result"]
        assert "ann" in result["content"][0]["text"]
        await trio.sleep(1)
        assert [*stages, gate.fabric.stage] == ["draining", "closing"]


async def test_a_source_that_has_gone_between_two_rounds_may_have_run_the_call(autojump_clock: MockClock) -> None:
    behind = far("modern", ask=asking({"a": ("elicitation/create", FORM)}))
    async with open_gate(behind) as gate:
        person = await gate.come("legacy")
        id = person.send("tools/call", {"name": "x__ask", "arguments": {}})
        await trio.sleep(1)
        await gate.fabric.disconnect("x", grace=1.0)
        assert (await person._answer_to(id))["error"]["data"] == {"cord-trio/executed": "unknown"}

        async def answer(questions: Json) -> Json:
            return {key: await gone(key) for key in questions}

        async def gone(_key: str) -> Json:
            await gate.fabric.disconnect("y", grace=1.0)
            return {"action": "accept", "content": {"name": "ann"}}

        await gate.fabric.connect(far("modern", ask=behind.tools["ask"]).source(name="y"))
        with pytest.raises(ToolNotFound) as lost:
            await gate.fabric.call("y__ask", answer=answer)
        assert lost.value.executed == "unknown"
