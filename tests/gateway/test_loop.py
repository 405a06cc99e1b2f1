"""Questions to legacy clients: requests on the stream of the very call (matrix rows 8 to 16, columns from legacy)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from msgspec import Raw
from trio.testing import wait_all_tasks_blocked

from cord_trio.call import Call, Complete, InputRequired, Outcome
from cord_trio.gateway.asking import LEG
from cord_trio.gateway.loop import ROUNDS, WAITS
from cord_trio.protocol.jsonrpc import encode, parse
from tests.gateway.fakes import (
    CAPABILITIES,
    LATEST,
    FakeFabric,
    Item,
    Route,
    SourceView,
    answer,
    initialize,
    legacy,
    modern,
    notice,
    open_http,
    open_pipe,
    text,
    tool,
)

if TYPE_CHECKING:
    from cord_trio.protocol.jsonrpc import Json

FORM = {"method": "elicitation/create", "params": {"mode": "form", "message": "Who?", "requestedSchema": {}}}
PAGE = {"method": "elicitation/create", "params": {"mode": "url", "message": "Open", "url": "https://x"}}
SAMPLE = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1}}
ROOTS = {"method": "roots/list"}
CAN: dict[str, Json] = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {"listChanged": True}}
ACCEPT = {"action": "accept", "content": {"name": "Ann"}}


class Server:
    """Asks each of `rounds`, then answers with all that it was told; a park stands for a legacy server's own."""

    def __init__(self, *rounds: dict[str, Json], parks: bool = False) -> None:
        self.rounds = rounds
        self.parks = parks
        self.calls: list[Call] = []

    async def __call__(self, call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        self.calls.append(call)
        number = len(self.calls)
        if number <= len(self.rounds):
            parts = {"resultType": "input_required", "inputRequests": self.rounds[number - 1]}
            if not self.parks:
                parts["requestState"] = f"s{number}"
            return InputRequired(Raw(encode(parts)), f"p{number}" if self.parks else "")
        return text(f"told {[parse(call.params['inputResponses']) for call in self.calls[1:]]}")


CALL = legacy("c", "tools/call", {"name": "t", "arguments": {"a": 1}})


@pytest.mark.parametrize("parks", [True, False])
async def test_c23_c24_row_8_questions_come_on_the_pipe_and_answers_go_up(*, parks: bool) -> None:
    server = Server({"q1": FORM, "q2": SAMPLE, "q3": ROOTS}, {"q4": FORM}, parks=parks)
    async with open_pipe(FakeFabric(t=server)) as client:
        await client.ask(initialize(capabilities=CAN))
        asked = await client.ask(CALL)
        assert [each["method"] for each in asked] == ["elicitation/create", "sampling/createMessage", "roots/list"]
        assert [each["params"] for each in asked] == [FORM["params"], SAMPLE["params"], {}]
        ids = [each["id"] for each in asked]
        assert await client.ask(answer(ids[2], {"roots": []}), answer(ids[0], ACCEPT)) == []
        # The pipe serves others meanwhile, also while it waits for its own questions' answers.
        assert await client.ask(legacy(2, "ping")) == [{"jsonrpc": "2.0", "id": 2, "result": {}}]
        (again,) = await client.ask(answer(ids[1], {"role": "assistant"}))
        assert again["id"] not in ids
        (done,) = await client.ask(answer(again["id"], {"action": "decline"}))
        first = {"q1": ACCEPT, "q2": {"role": "assistant"}, "q3": {"roots": []}}
        assert done["id"] == "c"
        assert done["result"]["content"][0]["text"] == f"told {[first, {'q4': {'action': 'decline'}}]}"
    one, two, three = server.calls
    assert parse(one.capabilities) == {**CAN, "roots": {}}
    if parks:
        assert (two.park, three.park) == ("p1", "p2")
        assert {*two.params} == {"inputResponses"}
    else:
        assert (parse(two.params["requestState"]), parse(three.params["requestState"])) == ("s1", "s2")
        assert parse(three.params["arguments"]) == {"a": 1}


async def test_c23_c24_row_8_over_http_questions_come_on_the_calls_own_stream_and_answers_get_202() -> None:
    async with open_http(FakeFabric(t=Server({"q": FORM}))) as gate:
        session = await gate.open(capabilities=CAN)
        call = gate.start("POST", "/mcp", CALL, session)
        other = gate.start("GET", "/mcp", b"", session)
        await wait_all_tasks_blocked()
        (asked,) = call.events
        assert (asked["method"], asked["params"]) == ("elicitation/create", FORM["params"])
        assert other.body.count(b"elicitation") == 0
        for message in (answer("nobody asked", {}), answer(asked["id"], ACCEPT), answer(asked["id"], ACCEPT)):
            said = await gate.post(message, session)
            assert (said.status, said.body) == (202, b"")
        await call.finished.wait()
        assert call.events[-1]["result"]["content"][0]["text"] == f"told {[{'q': ACCEPT}]}"
        assert gate.service.counters["gateway.answers_unasked"] == 2


async def test_row_8_another_sessions_answer_is_no_answer() -> None:
    async with open_http(FakeFabric(t=Server({"q": FORM}))) as gate:
        ann, bob = await gate.open(capabilities=CAN), await gate.open(capabilities=CAN)
        call = gate.start("POST", "/mcp", CALL, ann)
        await wait_all_tasks_blocked()
        assert (await gate.post(answer(call.events[0]["id"], ACCEPT), bob)).status == 202
        assert (await gate.post(answer(call.events[0]["id"], ACCEPT))).status == 400
        await wait_all_tasks_blocked()
        assert not call.ended


@pytest.mark.parametrize(
    ("capabilities", "question"),
    [({}, FORM), ({"elicitation": {}}, PAGE), ({"elicitation": {"url": {}}}, FORM), ({"elicitation": {}}, ROOTS)],
)
async def test_row_13_who_cannot_be_asked_is_told_in_words(capabilities: Json, question: Json) -> None:
    fabric = FakeFabric(t=Server({"q": question}, parks=True))
    async with open_pipe(fabric) as client:
        await client.ask(initialize(capabilities=capabilities))
        (done,) = await client.ask(CALL)
        assert done["result"]["isError"] is True
        assert question["method"] in done["result"]["content"][0]["text"]
    assert fabric.abandoned == [("p1", "the client gives no answer")]


async def test_trap_54_a_client_that_takes_no_stream_declares_nothing() -> None:
    server = Server({"q": FORM})
    async with open_http(FakeFabric(t=server)) as gate:
        session = await gate.open(capabilities=CAN)
        done = await gate.post(CALL, session, ("Accept", "application/json"))
        assert done.json["result"]["isError"] is True
        session = await gate.open("2025-03-26", CAN)
        await gate.post(b"[%b]" % CALL, session)
    assert [call.capabilities for call in server.calls] == [b"{}", b"{}"]


@pytest.mark.parametrize("method", ["prompts/get", "resources/read"])
async def test_row_8_what_is_no_tool_fails_with_an_error(method: str) -> None:
    async with open_pipe(FakeFabric(t=Server({"q": FORM}))) as client:
        await client.ask(initialize())
        (done,) = await client.ask(legacy(1, method, {"name": "t", "uri": "t"}))
        assert done["error"]["code"] == -32603


SEVERAL = {"properties": {"m": {"type": "array"}}}
TOOLS = [{"role": "user", "content": {"type": "tool_use"}}]


@pytest.mark.parametrize(
    ("revision", "question"),
    [
        ("2025-06-18", {"method": "elicitation/create", "params": {"requestedSchema": SEVERAL}}),
        ("2025-06-18", {"method": "sampling/createMessage", "params": {"messages": TOOLS}}),
    ],
)
async def test_row_8_a_question_without_words_in_the_revision_fails_the_call(revision: str, question: Json) -> None:
    async with open_pipe(FakeFabric(t=Server({"q": question}))) as client:
        await client.ask(initialize(version=revision, capabilities=CAN))
        (done,) = await client.ask(CALL)
        assert done["result"]["isError"] is True
        assert "revision" in done["result"]["content"][0]["text"]


@pytest.mark.parametrize("refusal", [{"code": -1, "message": "no"}, {"code": -32601, "message": "what?"}, 5])
async def test_row_8_a_refused_form_is_cancelled_and_a_refused_sampling_fails_the_call(refusal: Json) -> None:
    async with open_pipe(FakeFabric(t=Server({"q": FORM}), u=Server({"q": SAMPLE}))) as client:
        await client.ask(initialize(capabilities=CAN))
        (asked,) = await client.ask(CALL)
        (done,) = await client.ask(answer(asked["id"], error=refusal))
        assert done["result"]["content"][0]["text"] == f"told {[{'q': {'action': 'cancel'}}]}"
        (asked,) = await client.ask(legacy(2, "tools/call", {"name": "u"}))
        (done,) = await client.ask(answer(asked["id"], error=refusal))
        assert done["result"]["isError"] is True
        assert "refused" in done["result"]["content"][0]["text"]


async def test_row_9_a_page_has_an_id_and_its_client_is_told_at_the_end() -> None:
    async with open_pipe(FakeFabric(t=Server({"q": PAGE}))) as client:
        await client.ask(initialize(capabilities=CAN))
        (asked,) = await client.ask(CALL)
        id = asked["params"].pop("elicitationId")
        assert asked["params"] == PAGE["params"]
        told, done = await client.ask(answer(asked["id"], {"action": "accept"}))
        assert (told["method"], told["params"]) == ("notifications/elicitation/complete", {"elicitationId": id})
        assert done["id"] == "c"


async def test_row_16_cancelling_the_call_withdraws_its_questions() -> None:
    fabric = FakeFabric(t=Server({"q": FORM, "r": ROOTS}, parks=True))
    async with open_pipe(fabric) as client:
        await client.ask(initialize(capabilities=CAN))
        asked = await client.ask(CALL)
        withdrawn = await client.ask(notice("notifications/cancelled", {"requestId": "c"}))
        assert {each["method"] for each in withdrawn} == {"notifications/cancelled"}
        assert [each["params"]["requestId"] for each in withdrawn] == [each["id"] for each in asked]
        assert await client.ask(*(answer(each["id"], ACCEPT) for each in asked)) == []
    assert fabric.abandoned == [("p1", "the client gives no answer")]
    assert fabric.counters["gateway.answers_unasked"] == 2


async def test_row_16_ending_the_session_ends_its_questions_too() -> None:
    fabric = FakeFabric(t=Server({"q": FORM}, parks=True))
    async with open_http(fabric) as gate:
        session = await gate.open(capabilities=CAN)
        call = gate.start("POST", "/mcp", CALL, session)
        await wait_all_tasks_blocked()
        await gate.ask("DELETE", "/mcp", b"", session)
        await call.finished.wait()
        assert fabric.abandoned == [("p1", "the client gives no answer")]


async def test_a_person_has_ten_minutes(autojump_clock: object) -> None:
    async with open_pipe(FakeFabric(t=Server({"q": FORM}), u=Server({"q": ROOTS}))) as client:
        await client.ask(initialize(capabilities=CAN))
        client.got.clear()
        client.send(CALL, legacy("d", "tools/call", {"name": "u"}))
        await trio.sleep(LEG - 1)
        assert all("result" not in each for each in client.got)
        await trio.sleep(2)
        ended = {each["id"]: each["result"] for each in client.got if "result" in each}
        assert ended["c"]["content"][0]["text"] == f"told {[{'q': {'action': 'cancel'}}]}"
        assert "did not answer in time" in ended["d"]["content"][0]["text"]
        withdrawn = [each for each in client.got if each.get("method") == "notifications/cancelled"]
        assert len(withdrawn) == 2


async def test_trap_57_rounds_are_bounded_for_legacy_clients_too(autojump_clock: object) -> None:
    server = Server(*({"q": ROOTS} for _ in range(ROUNDS + 1)))
    later = Server()
    later.rounds = tuple({} for _ in range(WAITS + 1))
    async with open_pipe(FakeFabric(t=server, later=later)) as client:
        await client.ask(initialize(capabilities=CAN))
        got = await client.ask(CALL)
        for _ in range(ROUNDS):
            got = await client.ask(answer(got[0]["id"], {"roots": []}))
        assert got[0]["result"]["isError"] is True
        client.send(legacy(2, "tools/call", {"name": "later"}))
        await trio.sleep(100)
        assert client.got[-1]["result"]["isError"] is True
        assert len(later.calls) == WAITS + 1


async def test_a_server_that_says_later_is_asked_again_with_its_state(autojump_clock: object) -> None:
    calls: list[Call] = []

    async def server(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        calls.append(call)
        if len(calls) < 4:
            return InputRequired(Raw(b'{"requestState":"s%d"}' % len(calls)))
        return Complete(Raw(b'{"content":[]}'))

    async with open_pipe(FakeFabric(t=server)) as client:
        await client.ask(initialize())
        client.send(CALL)
        await trio.sleep(5)
        assert client.got[-1]["result"] == {"content": []}
    assert [parse(call.params["requestState"]) for call in calls[1:]] == ["s1", "s2", "s3"]


async def test_a_client_that_waits_for_a_person_is_told_that_it_goes_on() -> None:
    async with open_pipe(FakeFabric(t=Server({"q": FORM}, {"r": FORM}))) as client:
        await client.ask(initialize(capabilities=CAN))
        call = legacy("c", "tools/call", {"name": "t", "_meta": {"progressToken": "p"}})
        tick, asked = await client.ask(call)
        assert (tick["method"], tick["params"]["progressToken"]) == ("notifications/progress", "p")
        later, _ = await client.ask(answer(asked["id"], ACCEPT))
        assert later["params"]["progress"] > tick["params"]["progress"]


async def test_every_call_says_which_revision_its_client_speaks() -> None:
    server = Server()
    async with open_pipe(FakeFabric(t=server)) as client:
        await client.ask(initialize())
        await client.ask(CALL)
    assert server.calls[0].revision == LATEST


@pytest.mark.parametrize("method", ["tools/call", "prompts/get", "resources/read"])
async def test_trap_55_a_person_is_told_which_of_several_sources_asks(method: str) -> None:
    for sources, message in [(("bank",), "Who?"), (("bank", "other"), "[bank] Who?")]:
        fabric = FakeFabric(t=Server({"q": FORM, "r": ROOTS}, {"q": FORM}), u=Server({"q": FORM}))
        items = {name: Item({}, source="bank") for name in "tu"}
        tools = {name: Route(tool(name), "bank") for name in "tu"}
        fabric.registry.change(tools=tools, prompts=items, resources=items)
        fabric.registry.snapshot = attrs.evolve(fabric.registry.snapshot, sources=dict.fromkeys(sources, SourceView()))
        async with open_pipe(fabric) as client:
            await client.ask(initialize(capabilities=CAN))
            asked, roots = await client.ask(legacy("c", method, {"name": "t", "uri": "t"}))
            (again,) = await client.ask(answer(asked["id"], ACCEPT), answer(roots["id"], {"roots": []}))
            (reply,) = await client.ask(modern("m", method, {"name": "u", "uri": "u"}, {CAPABILITIES: CAN}))
            (question,) = reply["result"]["inputRequests"].values()
            assert [each["params"]["message"] for each in (asked, again, question)] == [message] * 3
