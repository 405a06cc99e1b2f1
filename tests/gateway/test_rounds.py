"""Questions to modern clients: sealed state out, suspicion on the way back (matrix rows 8 to 13, columns to modern)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from msgspec import Raw

from cord_trio.auth.sealing import Sealer
from cord_trio.call import Call, Error, InputRequired, Outcome
from cord_trio.errors import CallFailed
from cord_trio.gateway.performing import Performer
from cord_trio.gateway.state import MAX_ROUNDS, STATE_LIFE
from cord_trio.gateway.steps import Run
from cord_trio.protocol.eras import ERAS
from cord_trio.protocol.jsonrpc import encode, parse
from tests.gateway.fakes import CAPABILITIES, IDENTITY, MODERN, FakeFabric, modern, open_http, open_pipe, text

if TYPE_CHECKING:
    from cord_trio.protocol.jsonrpc import Json
    from tests.gateway.fakes import PipeClient

FORM = {"method": "elicitation/create", "params": {"mode": "form", "message": "Who?", "requestedSchema": {}}}
ROOTS = {"method": "roots/list"}
CAN: dict[str, Any] = {CAPABILITIES: {"elicitation": {}, "roots": {}}}
ANN = {"q1": {"action": "accept", "content": {"name": "Ann"}}}


def asked(park: str = "", state: str | None = None, **questions: Json) -> InputRequired:
    parts: dict[str, Json] = {"resultType": "input_required", "inputRequests": questions}
    return InputRequired(Raw(encode(parts if state is None else parts | {"requestState": state})), park)


class Server:
    """Asks once, then answers with what it was told; a legacy one parks the call meanwhile, under a new token."""

    def __init__(self, *, parks: bool = False, state: str | None = None, **questions: Json) -> None:
        self.parks = parks
        self.state = state
        self.questions = questions or {"q1": FORM}
        self.waiting: set[str] = set()
        self.calls: list[Call] = []

    async def __call__(self, call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        self.calls.append(call)
        if call.park:
            if call.park not in self.waiting:
                raise CallFailed(-32602, "unknown or expired requestState", executed="no")
            self.waiting.remove(call.park)
        answers = call.params.get("inputResponses")
        if answers is not None:
            return text(bytes(answers).decode())
        if self.parks:
            self.waiting.add(f"p{len(self.calls)}")
            return asked(f"p{len(self.calls)}", **self.questions)
        return asked("", self.state, **self.questions)


async def call(client: PipeClient, params: dict[str, Any], meta: dict[str, Any] | None = None) -> Json:
    """The answer to one more call of the tool `t`; its ids rise."""
    client.asked = getattr(client, "asked", 0) + 1  # type: ignore[attr-defined]  # ours alone
    message = modern(client.asked, "tools/call", {"name": "t", **params}, CAN if meta is None else meta)  # type: ignore[attr-defined]
    (answer,) = await client.ask(message)
    return answer


def said(answer: Json) -> Json:
    return json.loads(answer["result"]["content"][0]["text"])


async def test_c23_m16_row_8_a_parked_question_is_answered_by_a_retry() -> None:
    server = Server(parks=True)
    async with open_pipe(FakeFabric(t=server)) as client:
        first = await call(client, {"arguments": {"a": 1.0, "b": [1, {"c": 2}]}})
        result = first["result"]
        assert (result["resultType"], result["inputRequests"]) == ("input_required", {"q1": FORM})
        assert "ttlMs" not in result
        # The retry may write the same arguments in another order and form.
        retry = {
            "arguments": {"b": [1, {"c": 2.0}], "a": 1},
            "inputResponses": ANN,
            "requestState": result["requestState"],
        }
        assert said(await call(client, retry)) == ANN
    assert server.calls[0].capabilities == b'{"elicitation": {}, "roots": {}}'
    assert server.calls[1].park == "p1"
    assert {*server.calls[1].params} == {"inputResponses"}
    assert server.calls[1].name == "t"


async def test_row_8_a_modern_servers_state_comes_back_verbatim_and_is_not_shown() -> None:
    server = Server(state='{"round": 1, "é": "\\u2028"}')
    async with open_pipe(FakeFabric(t=server)) as client:
        result = (await call(client, {"arguments": {"a": 1}}))["result"]
        assert "round" not in result["requestState"]
        await call(client, {"arguments": {"a": 1}, "inputResponses": ANN, "requestState": result["requestState"]})
    params = server.calls[1].params
    assert parse(params["requestState"]) == server.state
    assert parse(params["inputResponses"]) == ANN
    assert parse(params["arguments"]) == {"a": 1}
    assert server.calls[1].park == ""


async def test_row_8_a_server_without_state_gets_none() -> None:
    server = Server()
    async with open_pipe(FakeFabric(t=server)) as client:
        assert "requestState" not in (await call(client, {}))["result"]
        assert said(await call(client, {"inputResponses": ANN})) == ANN
    assert "requestState" not in server.calls[1].params


@pytest.mark.parametrize("parks", [True, False])
async def test_a_state_is_refused_for_anything_but_what_it_was_made_for(parks: bool, autojump_clock: object) -> None:
    server = Server(parks=parks, state=None if parks else "s")
    async with open_pipe(FakeFabric(t=server, u=server)) as client:
        state = (await call(client, {"arguments": {"a": 1}}))["result"]["requestState"]
        retry = {"arguments": {"a": 1}, "inputResponses": ANN, "requestState": state}
        for other in [
            retry | {"requestState": state[:-1] + ("A" if state[-1] != "A" else "B")},
            retry | {"requestState": ""},
            retry | {"requestState": "round-1"},
            retry | {"arguments": {"a": 2}},
            retry | {"arguments": {}},
            retry | {"name": "u"},
            retry | {"more": 1},
            {"inputResponses": ANN, "requestState": state},
        ]:
            answer = await call(client, other)
            assert answer["error"] == {"code": -32602, "message": "unknown or expired requestState"}, other
        assert len(server.calls) == 1
        wrong = await call(client, retry | {"requestState": 5})
        assert wrong["error"]["code"] == -32602
        wrong = await call(client, retry | {"inputResponses": []})
        assert wrong["error"]["code"] == -32602
        assert said(await call(client, retry)) == ANN
        await trio.sleep(STATE_LIFE)
        assert (await call(client, retry))["error"]["code"] == -32602


async def test_a_state_is_another_principals_to_nobody() -> None:
    server, sealer = Server(parks=True), Sealer(bytes(32))
    ann = Run(1, ERAS[MODERN], "tools/call", "t", {}, {}, b'{"elicitation":{}}', principal="ann")

    async def answer(run: Run) -> Json:
        reply = await Performer(server, IDENTITY, sealer).perform(run, None)
        return json.loads(reply.message or b"")

    state = (await answer(ann))["result"]["requestState"]
    answers = encode(ANN)
    again = [
        Run(2, ann.era, ann.method, "t", {}, {}, ann.capabilities, principal=who, state=state, answers=answers)
        for who in ("bob", "ann", "ann")
    ]
    assert (await answer(again[0]))["error"]["code"] == -32602
    assert said(await answer(again[1])) == ANN
    assert server.calls[-1].principal == "ann"
    # Used twice: whoever holds the park says so.
    assert (await answer(again[2]))["error"]["code"] == -32602


async def test_another_gateways_state_does_not_open() -> None:
    async with open_pipe(FakeFabric(t=Server(parks=True))) as client, open_pipe(FakeFabric(t=Server())) as other:
        state = (await call(client, {}))["result"]["requestState"]
        answer = await call(other, {"inputResponses": ANN, "requestState": state})
        assert answer["error"]["code"] == -32602


@pytest.mark.parametrize(
    ("capabilities", "question", "needed"),
    [
        ({}, FORM, {"elicitation": {"form": {}}}),
        ({"sampling": {}}, ROOTS, {"roots": {}}),
        (
            {"elicitation": {}},
            {"method": "elicitation/create", "params": {"mode": "url"}},
            {"elicitation": {"url": {}}},
        ),
        (
            {"sampling": {}},
            {"method": "sampling/createMessage", "params": {"tools": [{}]}},
            {"sampling": {"tools": {}}},
        ),
    ],
)
async def test_m16_row_13_what_was_not_declared_is_named_with_status_400(
    capabilities: Json, question: Json, needed: Json
) -> None:
    fabric = FakeFabric(t=Server(parks=True, q1=question))
    async with open_http(fabric) as gate:
        answer = await gate.modern(modern(1, "tools/call", {"name": "t"}, {CAPABILITIES: capabilities}))
        assert (answer.status, answer.json["error"]["code"]) == (400, -32021)
        assert answer.json["error"]["data"] == {"requiredCapabilities": needed}
    assert [park for park, _ in fabric.abandoned] == ["p1"]  # nobody will ever answer


async def test_row_13_capabilities_are_those_of_the_request_and_of_no_earlier_one() -> None:
    async with open_pipe(FakeFabric(t=Server())) as client:
        assert "result" in await call(client, {})
        assert (await call(client, {}, {}))["error"]["code"] == -32021


@pytest.mark.parametrize(("method", "params"), [("prompts/get", {"name": "t"}), ("resources/read", {"uri": "t"})])
async def test_prompts_and_resources_ask_as_tools_do(method: str, params: Json) -> None:
    async def server(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        if "inputResponses" in call.params:
            hints = {"ttlMs": 9, "cacheScope": "public"}
            value = {"messages": [], "contents": [], **hints}
            return type(text(""))(Raw(encode(value)))
        return asked("", "s", q1=FORM)

    async with open_pipe(FakeFabric(t=server)) as client:
        (answer,) = await client.ask(modern(1, method, params, CAN))
        state = answer["result"]["requestState"]
        retry = {**params, "inputResponses": ANN, "requestState": state}
        (answer,) = await client.ask(modern(2, method, retry, CAN))
        assert answer["result"]["resultType"] == "complete"
        if method == "resources/read":  # what needed answers is never cached (row 32)
            assert (answer["result"]["ttlMs"], answer["result"]["cacheScope"]) == (0, "private")
        # A state is for one method too.
        other = {"prompts/get": "resources/read", "resources/read": "prompts/get"}[method]
        stolen = {"name": "t", "uri": "t", "inputResponses": ANN, "requestState": state}
        (answer,) = await client.ask(modern(3, other, stolen, CAN))
        assert answer["error"]["code"] == -32602


async def test_only_three_methods_ask() -> None:
    async def server(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        return asked("", "s", q1=FORM)

    ref = {"ref": {"type": "ref/prompt", "name": "t"}, "argument": {"name": "a", "value": ""}}
    async with open_pipe(FakeFabric(t=server)) as client:
        (answer,) = await client.ask(modern(1, "completion/complete", ref, CAN))
        assert answer["error"]["code"] == -32603


async def test_trap_57_rounds_are_bounded_and_none_sees_answers_of_another() -> None:
    calls: list[Call] = []

    async def server(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        calls.append(call)
        return asked("", f"s{len(calls)}", **{f"q{len(calls)}": FORM})

    async with open_pipe(FakeFabric(t=server)) as client:
        answer = await call(client, {})
        for number in range(1, MAX_ROUNDS):
            given = {f"q{number}": {"action": "decline"}}
            answer = await call(client, {"inputResponses": given, "requestState": answer["result"]["requestState"]})
            assert parse(calls[-1].params["requestState"]) == f"s{number}"
            assert parse(calls[-1].params["inputResponses"]) == given
        state = answer["result"]["requestState"]
        answer = await call(client, {"inputResponses": {}, "requestState": state})
        assert answer["result"]["isError"] is True


async def test_a_state_without_questions_passes_too() -> None:
    async def server(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        if "requestState" in call.params:
            assert "inputResponses" not in call.params
            return text("done")
        return InputRequired(Raw(b'{"resultType":"input_required","requestState":""}'))

    async with open_pipe(FakeFabric(t=server)) as client:
        result = (await call(client, {}, {}))["result"]
        assert "inputRequests" not in result
        answer = await call(client, {"requestState": result["requestState"]}, {})
        assert answer["result"]["content"][0]["text"] == "done"


PAGE = b'{"elicitations":[{"mode":"url","message":"Sign in","url":"https://x/y","elicitationId":"e1"}]}'
OPENS: dict[str, Any] = {CAPABILITIES: {"elicitation": {"url": {}}}}


async def test_row_10_pages_to_open_first_become_a_question_and_the_call_is_made_anew(autojump_clock: object) -> None:
    calls: list[Call] = []

    async def server(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        calls.append(call)
        return Error(-32042, "sign in first", PAGE) if len(calls) < 4 else text("in")

    async with open_pipe(FakeFabric(t=server)) as client:
        result = (await call(client, {}, OPENS))["result"]
        assert result["inputRequests"] == {
            "page1": {
                "method": "elicitation/create",
                "params": {"mode": "url", "message": "Sign in", "url": "https://x/y"},
            }
        }
        retry = {"inputResponses": {"page1": {"action": "accept"}}, "requestState": result["requestState"]}
        client.send(modern("r", "tools/call", {"name": "t", **retry}, OPENS))
        await trio.sleep(10)
        assert client.got[-1]["result"]["content"][0]["text"] == "in"
        assert all(not call.params for call in calls)


async def test_row_10_a_person_who_declines_is_not_asked_again_nor_is_the_server() -> None:
    calls: list[Call] = []

    async def server(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        calls.append(call)
        return Error(-32042, "sign in first", PAGE)

    async with open_pipe(FakeFabric(t=server)) as client:
        result = (await call(client, {}, OPENS))["result"]
        for answers in ({"page1": {"action": "decline"}}, {}, {"page1": 5}):
            retry = {"inputResponses": answers, "requestState": result["requestState"]}
            assert (await call(client, retry, OPENS))["result"]["isError"] is True
        assert len(calls) == 1


async def test_row_10_the_same_pages_again_end_it_and_who_opens_none_is_told_in_words(autojump_clock: object) -> None:
    async def server(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        return Error(-32042, "sign in first", PAGE)

    async with open_pipe(FakeFabric(t=server)) as client:
        told = (await call(client, {}))["result"]
        assert told["isError"] is True
        assert told["content"][0]["text"] == "sign in first\nSign in: https://x/y"
        result = (await call(client, {}, OPENS))["result"]
        retry = {"inputResponses": {"page1": {"action": "accept"}}, "requestState": result["requestState"]}
        client.send(modern("r", "tools/call", {"name": "t", **retry}, OPENS))
        await trio.sleep(200)
        assert client.got[-1]["result"]["isError"] is True


async def test_row_16_a_client_that_leaves_its_retry_cancels_the_parked_call() -> None:
    server = Server(parks=True)

    async def never(call: Call) -> Outcome:
        if call.park:
            await trio.sleep_forever()
        return await server(call)

    fabric = FakeFabric(t=never)
    async with open_http(fabric) as gate:
        asked = await gate.modern(modern(1, "tools/call", {"name": "t"}, CAN))
        retry = {"name": "t", "inputResponses": ANN, "requestState": asked.json["result"]["requestState"]}
        going = gate.modern_start(modern(2, "tools/call", retry, CAN))
        await trio.testing.wait_all_tasks_blocked()
        assert fabric.abandoned == []
        going.leave()
        await going.finished.wait()
    assert fabric.abandoned == [("p1", "the client left")]
