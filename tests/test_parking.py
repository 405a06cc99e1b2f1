"""Legacy servers that ask in the middle of a call, met by callers whose request ends with the question."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw

from cord_trio.agents import Budget, Mailbox
from cord_trio.call import Call, Complete, Error, InputRequired
from cord_trio.config import Bounds, Config, GatewayConfig
from cord_trio.errors import (
    CallError,
    CallFailed,
    ConnectionLost,
    DeadlineExceeded,
    InputNeeded,
    Overloaded,
)
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.parking import GATHER, LAST_WORD, TICK
from cord_trio.pool import AGAIN, FAREWELL
from tests.full_server import FullServer, Request, settled, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

    from cord_trio.agents import Context
    from cord_trio.call import EventSink, Outcome

Json: TypeAlias = Any

FORM = {
    "message": "Name?",
    "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}
ALL = b'{"elicitation":{"form":{},"url":{}},"sampling":{"tools":{}},"roots":{}}'
ACCEPT = {"action": "accept", "content": {"name": "Ada"}}
SAMPLE = {"messages": [], "maxTokens": 5}
SAMPLED = {"role": "assistant", "content": {"type": "text", "text": "yes"}, "model": "m"}


def asking(method: str = "elicitation/create", params: Json = FORM, rounds: int = 1) -> Callable[[Request], Json]:
    """A tool that asks so often, and answers with the last reply."""

    def tool(request: Request) -> Json:
        left = rounds

        def replied(reply: Json) -> None:
            nonlocal left
            left -= 1
            if left:
                request.ask(method, params, replied)
            else:
                request.answer(text(json.dumps(reply.get("result", reply.get("error")))))

        request.ask(method, params, replied)
        return None

    return tool


def first(name: str = "x__ask", principal: str = "ada", capabilities: bytes = ALL, **more: Json) -> Call:
    return Call("tools/call", name, {"arguments": Raw(b"{}")}, principal=principal, capabilities=capabilities, **more)


def retry(
    outcome: Outcome, answers: Json, principal: str = "ada", name: str = "x__ask", events: EventSink | None = None
) -> Call:
    assert isinstance(outcome, InputRequired)
    params = {"inputResponses": Raw(json.dumps(answers).encode())}
    return Call("tools/call", name, params, principal=principal, capabilities=ALL, park=outcome.park, events=events)


def questions(outcome: Outcome) -> Json:
    assert isinstance(outcome, InputRequired)
    assert outcome.park
    result = json.loads(bytes(outcome.result))
    assert result["resultType"] == "input_required"
    return result["inputRequests"]


def said(outcome: Outcome) -> Json:
    assert isinstance(outcome, Complete)
    return json.loads(json.loads(bytes(outcome.result))["content"][0]["text"])


async def refused(fabric: Fabric, call: Call) -> None:
    with pytest.raises(CallFailed, match="unknown or expired requestState") as failed:
        await fabric.handle(call)
    assert (failed.value.code, failed.value.executed) == (-32602, "no")


def server(**tools: Callable[[Request], Json]) -> FullServer:
    made = FullServer()
    made.tools |= tools or {"ask": asking()}
    return made


def quiet(fabric: Fabric) -> bool:
    """Whether nothing is held for any call."""
    return len(fabric._parks) == 0 and all(
        each.users == 0
        for link in fabric.links.values()
        for each in link.pool.sessions  # type: ignore[union-attr]  # it is one server
    )


# The way it goes


async def test_the_tree_shows_whom_a_call_waits_for_and_how_long(autojump_clock: MockClock) -> None:
    async with open_fabric([server().source()]) as fabric:
        asked = await fabric.handle(first())
        assert isinstance(asked, InputRequired)
        await trio.sleep(10)
        (node,) = [node for node in fabric.tree().children if node.kind == "question"]
        assert (node.name, node.state) == ("x__ask", "asks")
        assert node.facts == {
            "source": "x", "principal": "ada", "asks": "elicitation/create", "answer_in": fabric._parks.time - 10,
        }  # fmt: skip
        assert asked.park not in repr(fabric.tree())
        assert fabric.tree(most=0).facts["left_out"] == 1
        await fabric.handle(retry(asked, {"q1": ACCEPT}))
        assert not [node for node in fabric.tree().children if node.kind == "question"]


async def test_row_8_a_question_ends_the_request_and_the_retry_brings_its_answer(autojump_clock: MockClock) -> None:
    far = server()
    async with open_fabric([far.source()]) as fabric:
        asked = await fabric.handle(first())
        assert questions(asked) == {"q1": {"method": "elicitation/create", "params": FORM}}
        await trio.sleep(500)  # a person has time, whatever the call's own deadline
        assert said(await fabric.handle(retry(asked, {"q1": ACCEPT}))) == ACCEPT
        assert len(far.sent("tools/call")) == 1
        assert quiet(fabric)


@pytest.mark.parametrize(
    ("method", "params", "shown", "answer"),
    [
        ("sampling/createMessage", SAMPLE, {"method": "sampling/createMessage", "params": SAMPLE}, SAMPLED),
        ("roots/list", {}, {"method": "roots/list"}, {"roots": [{"uri": "file:///a"}]}),
        (
            "elicitation/create",
            {"mode": "url", "message": "m", "url": "https://a/", "elicitationId": "7", "_meta": {"a": 1}},
            {"method": "elicitation/create", "params": {"mode": "url", "message": "m", "url": "https://a/"}},
            {"action": "accept"},
        ),
    ],
    ids=["row_11_sampling", "row_12_roots", "row_9_url"],
)
async def test_every_kind_of_question_is_put_without_what_is_the_connections_own(
    method: str, params: Json, shown: Json, answer: Json, autojump_clock: MockClock
) -> None:
    async with open_fabric([server(ask=asking(method, params)).source()]) as fabric:
        asked = await fabric.handle(first())
        assert questions(asked) == {"q1": shown}
        assert said(await fabric.handle(retry(asked, {"q1": answer}))) == answer


async def test_prompts_and_resources_may_ask_too(autojump_clock: MockClock) -> None:
    far = server()

    def prompt(request: Request) -> Json:
        request.ask("roots/list", {}, lambda reply: request.answer({"messages": [], "description": "done"}))

    far.answers["prompts/get"] = prompt
    async with open_fabric([far.source()]) as fabric:
        await fabric.wait_started()
        asked = await fabric.handle(Call("prompts/get", "x__greet", capabilities=ALL))
        assert isinstance(asked, InputRequired)
        again = {"inputResponses": Raw(b'{"q1":{"roots":[]}}')}
        outcome = await fabric.handle(Call("prompts/get", "x__greet", again, capabilities=ALL, park=asked.park))
        assert isinstance(outcome, Complete)
        assert b"done" in bytes(outcome.result)


async def test_questions_that_come_together_are_put_together(autojump_clock: MockClock) -> None:
    def tool(request: Request) -> Json:
        replies: list[Json] = []

        def replied(reply: Json) -> None:
            replies.append(reply["result"])
            if len(replies) == 2:
                request.answer(text(json.dumps(replies)))

        request.ask("roots/list", {}, replied)
        request.ask("elicitation/create", FORM, replied)

    async with open_fabric([server(ask=tool).source()]) as fabric:
        asked = await fabric.handle(first())
        assert list(questions(asked)) == ["q1", "q2"]
        # An answer that is missing is asked for again, alone; one that nobody asked for is ignored.
        again = await fabric.handle(retry(asked, {"q2": ACCEPT, "q9": {}}))
        assert list(questions(again)) == ["q1"]
        assert isinstance(again, InputRequired)
        assert isinstance(asked, InputRequired)
        assert again.park != asked.park
        assert said(await fabric.handle(retry(again, {"q1": {"roots": []}}))) == [ACCEPT, {"roots": []}]


async def test_each_round_has_a_token_of_its_own_that_is_good_once(autojump_clock: MockClock) -> None:
    async with open_fabric([server(ask=asking(rounds=2)).source()]) as fabric:
        one = await fabric.handle(first())
        two = await fabric.handle(retry(one, {"q1": ACCEPT}))
        assert list(questions(two)) == ["q2"]
        await refused(fabric, retry(one, {"q1": ACCEPT}))
        assert said(await fabric.handle(retry(two, {"q2": ACCEPT}))) == ACCEPT
        await refused(fabric, retry(two, {"q2": ACCEPT}))
        assert quiet(fabric)


async def test_a_token_is_its_callers_and_its_requests_alone(autojump_clock: MockClock) -> None:
    async with open_fabric([server().source()]) as fabric:
        asked = await fabric.handle(first())
        await refused(fabric, retry(asked, {"q1": ACCEPT}, principal="eve"))
        await refused(fabric, retry(asked, {"q1": ACCEPT}, name="x__echo"))
        await refused(fabric, Call("prompts/get", "x__ask", principal="ada", park=retry(asked, {}).park))
        await refused(fabric, Call("tools/call", "x__ask", principal="ada", park="made up"))
        assert said(await fabric.handle(retry(asked, {"q1": ACCEPT}))) == ACCEPT  # none of that has used it up


async def test_of_two_retries_one_goes_on(autojump_clock: MockClock) -> None:
    endings: list[object] = []
    async with open_fabric([server().source()]) as fabric:
        asked = await fabric.handle(first())

        async def again() -> None:
            try:
                endings.append(said(await fabric.handle(retry(asked, {"q1": ACCEPT}))))
            except CallFailed as exc:
                endings.append(exc.code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(again)
            nursery.start_soon(again)
        assert sorted(endings, key=str) == [-32602, ACCEPT]


@pytest.mark.parametrize(
    ("method", "params", "answer"),
    [
        ("elicitation/create", FORM, {"action": "maybe"}),
        ("elicitation/create", FORM, {"action": "accept", "content": []}),
        ("elicitation/create", FORM, None),
        ("sampling/createMessage", SAMPLE, {"content": {}}),
        ("roots/list", {}, {"roots": {}}),
    ],
)
async def test_an_answer_that_makes_no_sense_is_refused_and_can_be_given_again(
    method: str, params: Json, answer: Json, autojump_clock: MockClock
) -> None:
    async with open_fabric([server(ask=asking(method, params)).source()]) as fabric:
        asked = await fabric.handle(first())
        with pytest.raises(CallFailed, match="makes no sense") as failed:
            await fabric.handle(retry(asked, {"q1": answer}))
        assert failed.value.code == -32602
        fabric.abandon(retry(asked, {}).park, "enough")
        await trio.sleep(LAST_WORD * 2)
        assert quiet(fabric)


# Whose session


async def test_row_4_two_principals_never_share_a_session_that_asks(autojump_clock: MockClock) -> None:
    far = server()
    async with open_fabric([far.source()]) as fabric:
        ada, bob = await fabric.handle(first()), await fabric.handle(first(principal="bob"))
        await fabric.handle(first("x__echo", capabilities=b'{"elicitation":{}}'))
        await fabric.handle(first("x__echo", capabilities=b'{ "elicitation" : {"form":{}}}'))
        assert [connection.capabilities for connection in far.connections] == [
            {},
            {"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}}, "roots": {}},
            {"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}}, "roots": {}},
            {"elicitation": {"form": {}}},
        ]
        asks = {"action": "accept", "content": {"name": "ada"}}
        assert said(await fabric.handle(retry(bob, {"q1": {"action": "decline"}}, "bob"))) == {"action": "decline"}
        assert said(await fabric.handle(retry(ada, {"q1": asks}))) == asks


async def test_those_who_can_be_asked_nothing_share_a_session(autojump_clock: MockClock) -> None:
    far = server()
    async with open_fabric([far.source()]) as fabric:
        for capabilities in (b"{}", b'{"experimental":{}}', b"rubbish", b'{"extensions":{"a/b":{}}}'):
            await fabric.handle(first("x__echo", capabilities=capabilities))
        assert len(far.connections) == 1


async def test_what_the_servers_revision_cannot_ask_is_not_declared(autojump_clock: MockClock) -> None:
    far = FullServer(revision="2025-03-26")
    async with open_fabric([far.source()]) as fabric:
        await fabric.handle(first("x__echo", capabilities=b'{"elicitation":{}}'))
        assert len(far.connections) == 1
        await fabric.handle(first("x__echo"))
        assert far.connections[1].capabilities == {"roots": {}, "sampling": {"tools": {}}}


async def test_a_session_that_nobody_uses_is_closed_but_not_one_with_a_parked_call(autojump_clock: MockClock) -> None:
    far = server()
    bounds = Bounds(interactive_idle=50.0, park_time=400.0)
    async with open_fabric(Config(sources=[far.source()], bounds=bounds)) as fabric:
        asked = await fabric.handle(first())
        await fabric.handle(first("x__echo", principal="bob"))
        pool = fabric.links["x"].pool  # type: ignore[union-attr]  # it is one server
        assert len(pool.sessions) == 2
        await trio.sleep(100)
        assert [each.key[0] for each in pool.sessions] == ["ada"]
        assert said(await fabric.handle(retry(asked, {"q1": ACCEPT}))) == ACCEPT
        await trio.sleep(100)
        assert not pool.sessions
        assert [connection.over for connection in far.connections] == [False, True, True]


async def test_beyond_the_bound_the_longest_unused_session_goes_else_the_shared_one_serves(
    autojump_clock: MockClock,
) -> None:
    far = server()
    async with open_fabric(Config(sources=[far.source()], bounds=Bounds(interactive=1))) as fabric:
        await fabric.handle(first("x__echo"))
        asked = await fabric.handle(first(principal="bob"))
        assert [each.key[0] for each in fabric.links["x"].pool.sessions] == ["bob"]  # type: ignore[union-attr]  # it is one server
        outcome = await fabric.handle(first(principal="cy"))
        assert said(outcome)["code"] == -32601  # nobody can be asked there
        assert fabric.counters["link.interactive_refused"] == 1
        assert said(await fabric.handle(retry(asked, {"q1": ACCEPT}, "bob"))) == ACCEPT


async def test_where_no_session_can_be_opened_the_shared_one_serves(autojump_clock: MockClock) -> None:
    far = server()
    async with open_fabric([far.source(deadline=5.0, connect=3.0)]) as fabric:
        await fabric.wait_started()
        far.answers["initialize"] = lambda request: request.fail(-32603, "only one of me")
        assert said(await fabric.handle(first()))["code"] == -32601  # nobody can be asked there
        assert said(await fabric.handle(first()))["code"] == -32601
        assert len(far.connections) == 2  # one attempt a while is enough
        await trio.sleep(AGAIN)
        far.answers["initialize"] = lambda request: None
        start = trio.current_time()
        with pytest.raises(DeadlineExceeded, match="session of its own"):
            await fabric.handle(first(deadline=start + 1))
        with trio.move_on_after(1):
            await fabric.handle(first())
        assert said(await fabric.handle(first()))["code"] == -32601
        assert trio.current_time() == start + 3
        del far.answers["initialize"]
        await trio.sleep(AGAIN)
        assert isinstance(await fabric.handle(first()), InputRequired)
        assert fabric.counters["link.interactive_failed"] == 2


# Questions of no call, and undeclared ones


@pytest.mark.parametrize("roots", [(), ("/tmp", "file:///b")])
async def test_row_12_a_question_outside_any_call_is_answered_by_policy(
    roots: tuple[str, ...], autojump_clock: MockClock
) -> None:
    far = server()
    replies: list[Json] = []
    config = Config(sources=[far.source()], gateway=GatewayConfig(roots=roots))
    async with open_fabric(config) as fabric:
        await fabric.handle(first("x__echo"))
        shared, own = far.connections
        for connection in (shared, own):
            for method in ("roots/list", "elicitation/create", "sampling/createMessage"):
                connection.ask(method, {}, replies.append)
                await settled()
        known = {"roots": [{"uri": "file:///tmp"}, {"uri": "file:///b"}] if roots else []}
        results = [reply.get("result") or reply["error"]["code"] for reply in replies]
        shown: Json = known if roots else -32601
        assert results == [shown, -32601, -32601, known, {"action": "cancel"}, -32603]
        assert shared.capabilities == ({"roots": {}} if roots else {})


async def test_row_13_what_the_caller_did_not_declare_is_refused_to_the_server(autojump_clock: MockClock) -> None:
    async with open_fabric([server(ask=asking("sampling/createMessage", SAMPLE)).source()]) as fabric:
        outcome = await fabric.handle(first(capabilities=b'{"elicitation":{}}'))
        assert said(outcome)["code"] == -32601
        assert quiet(fabric)


async def test_a_url_is_not_put_to_who_only_fills_in_forms(autojump_clock: MockClock) -> None:
    url = {"mode": "url", "message": "m", "url": "https://a/", "elicitationId": "7"}
    async with open_fabric([server(ask=asking(params=url)).source()]) as fabric:
        assert said(await fabric.handle(first(capabilities=b'{"elicitation":{}}')))["code"] == -32601


# What goes wrong


async def test_row_16_a_caller_that_leaves_while_attached_cancels_the_call(autojump_clock: MockClock) -> None:
    far = server(ask=asking(rounds=2), hold=lambda request: None)
    async with open_fabric([far.source()]) as fabric:
        with trio.move_on_after(5):
            await fabric.handle(first("x__hold"))
        await settled()
        assert far.connections[1].cancelled == [far.got[-2]["id"]]
        asked = await fabric.handle(first())

        def never(request: Request) -> Json:
            return None

        far.tools["ask"] = never
        with trio.move_on_after(0.001):  # before the second question can have been put
            await fabric.handle(retry(asked, {"q1": ACCEPT}))
        await settled()
        assert [len(connection.cancelled) for connection in far.connections] == [0, 1, 1]
        assert quiet(fabric)


async def test_a_call_that_nobody_comes_back_for_expires(autojump_clock: MockClock) -> None:
    replies: list[Json] = []

    def tool(request: Request) -> Json:
        request.ask("elicitation/create", FORM, replies.append)
        request.ask("sampling/createMessage", SAMPLE, replies.append)

    far = server(ask=tool)
    async with open_fabric(Config(sources=[far.source()], bounds=Bounds(park_time=60.0))) as fabric:
        asked = await fabric.handle(first())
        await trio.sleep(59)
        assert not replies
        await trio.sleep(1 + LAST_WORD / 2)
        heard = [reply.get("result") or reply["error"]["code"] for reply in replies]
        assert sorted(heard, key=str) == [-32603, {"action": "cancel"}]
        assert not far.connections[1].cancelled
        await trio.sleep(LAST_WORD)
        assert len(far.connections[1].cancelled) == 1
        await refused(fabric, retry(asked, {"q1": ACCEPT}))
        assert quiet(fabric)
        assert fabric.counters["parks.expired"] == 1


async def test_a_result_that_comes_while_parked_waits_for_its_caller(autojump_clock: MockClock) -> None:
    held: list[Request] = []

    def tool(request: Request) -> Json:
        held.append(request)
        request.ask("roots/list", {}, lambda reply: None)

    far = server(ask=tool)
    async with open_fabric([far.source()]) as fabric:
        one, two = await fabric.handle(first()), await fabric.handle(first())
        held[0].answer(text('"went on without"'))
        held[1].fail(-5, "gave up")
        await settled()
        assert said(await fabric.handle(retry(one, {"q1": {"roots": []}}))) == "went on without"
        outcome = await fabric.handle(retry(two, {}))
        assert isinstance(outcome, Error)
        assert outcome.code == -5
        assert quiet(fabric)


async def test_row_26_a_lost_connection_is_told_to_the_retry_and_the_call_is_not_made_again(
    autojump_clock: MockClock,
) -> None:
    far = server()
    async with open_fabric([far.source(trust=True)]) as fabric:
        asked = await fabric.handle(first())
        far.connections[1].transport.lose("server exited (signal 9)")
        await trio.sleep(1)
        with pytest.raises(ConnectionLost, match="signal 9") as lost:
            await fabric.handle(retry(asked, {"q1": ACCEPT}))
        assert lost.value.executed == "unknown"
        await refused(fabric, retry(asked, {"q1": ACCEPT}))
        assert len(far.sent("tools/call")) == 1
        assert quiet(fabric)
        assert fabric.links["x"].state == "ready"  # the shared session has nothing to do with it
        assert isinstance(await fabric.handle(first()), InputRequired)


async def test_a_lost_shared_session_leaves_parked_calls_alone(autojump_clock: MockClock) -> None:
    far = server()
    async with open_fabric([far.source()]) as fabric:
        asked = await fabric.handle(first())
        far.connections[0].transport.lose("gone")
        await settled()
        assert said(await fabric.handle(retry(asked, {"q1": ACCEPT}))) == ACCEPT


async def test_row_17_a_question_that_the_server_withdraws_is_put_no_more(autojump_clock: MockClock) -> None:
    def tool(request: Request) -> Json:
        requests.append((request, request.ask("elicitation/create", FORM, lambda reply: None)))

    requests: list[tuple[Request, str]] = []
    async with open_fabric([server(ask=tool).source()]) as fabric:
        asked = await fabric.handle(first())
        request, id = requests[0]
        request.connection.withdraw(id)
        await settled()
        async with trio.open_nursery() as nursery:
            endings: list[Outcome] = []

            async def again() -> None:
                endings.append(await fabric.handle(retry(asked, {"q1": ACCEPT})))

            nursery.start_soon(again)
            await trio.sleep(GATHER * 2)
            assert not endings  # it only attaches again
            request.answer(text('"done"'))
        assert said(endings[0]) == "done"


async def test_a_server_that_withdraws_before_it_was_put_asks_nothing(autojump_clock: MockClock) -> None:
    def tool(request: Request) -> Json:
        request.connection.withdraw(request.ask("elicitation/create", FORM, lambda reply: None))
        return text('"never mind"')

    async with open_fabric([server(ask=tool).source()]) as fabric:
        assert said(await fabric.handle(first())) == "never mind"


async def test_row_15_progress_waits_for_the_retry_and_goes_to_its_sink(autojump_clock: MockClock) -> None:
    seen: list[tuple[str, Json]] = []

    def sink(name: str) -> EventSink:
        return lambda method, params: seen.append((name, json.loads(bytes(params))["progress"]))

    def tool(request: Request) -> Json:
        requests.append(request)
        request.progress(1)
        request.ask("elicitation/create", FORM, lambda reply: None)

    requests: list[Request] = []
    async with open_fabric([server(ask=tool).source()]) as fabric:
        asked = await fabric.handle(first(events=sink("first")))
        requests[0].progress(2)
        requests[0].progress(3)
        await settled()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fabric.handle, retry(asked, {"q1": ACCEPT}, events=sink("second")))
            await settled()
            requests[0].progress(4)
            requests[0].answer(text("done"))
        assert seen == [("first", 1), ("second", 3), ("second", 4)]


async def test_a_server_that_wants_it_hears_that_its_question_is_being_answered(autojump_clock: MockClock) -> None:
    far = server(ask=asking(params=FORM | {"_meta": {"progressToken": "p"}}))
    async with open_fabric([far.source()]) as fabric:
        asked = await fabric.handle(first())
        await trio.sleep(TICK * 3.5)
        assert far.sent("notifications/progress") == [{"progressToken": "p", "progress": each} for each in (1, 2, 3)]
        assert said(await fabric.handle(retry(asked, {"q1": ACCEPT}))) == ACCEPT


async def test_the_deadline_counts_only_while_somebody_waits(autojump_clock: MockClock) -> None:
    def tool(request: Request) -> Json:
        request.ask("elicitation/create", FORM, lambda reply: None)

    far = server(ask=tool)
    async with open_fabric([far.source(deadline=10.0)]) as fabric:
        asked = await fabric.handle(first())
        await trio.sleep(100)
        start = trio.current_time()
        with pytest.raises(DeadlineExceeded) as late:
            await fabric.handle(retry(asked, {"q1": ACCEPT}))
        assert trio.current_time() - start == 10
        assert late.value.executed == "unknown"
        await settled()
        assert len(far.connections[1].cancelled) == 1
        assert quiet(fabric)


async def test_progress_keeps_an_attached_call_alive(autojump_clock: MockClock) -> None:
    held: list[Request] = []
    far = server(hold=held.append)
    async with open_fabric([far.source(deadline=10.0)]) as fabric:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fabric.handle, first("x__hold"))
            for step in range(5):
                await trio.sleep(8)
                held[0].progress(step)
            held[0].answer(text("done"))
        assert quiet(fabric)


async def test_more_parked_calls_than_the_bound_are_refused_by_name(autojump_clock: MockClock) -> None:
    far = server()
    async with open_fabric(Config(sources=[far.source()], bounds=Bounds(parks=2))) as fabric:
        asked = [await fabric.handle(first()) for _ in range(2)]
        with pytest.raises(Overloaded, match=r"bounds\.parks = 2") as full:
            await fabric.handle(first())
        assert full.value.executed == "unknown"
        assert fabric.counters["parks.refused"] == 1
        assert isinstance(await fabric.handle(first(principal="bob")), InputRequired)
        await fabric.handle(retry(asked[0], {"q1": ACCEPT}))
        assert isinstance(await fabric.handle(first()), InputRequired)
        await settled()
        assert [len(connection.cancelled) for connection in far.connections] == [0, 0, 0, 1, 0]


async def test_questions_beyond_the_bound_are_refused(autojump_clock: MockClock) -> None:
    refusals: list[Json] = []

    def tool(request: Request) -> Json:
        for _ in range(33):
            request.ask("roots/list", {}, lambda reply: refusals.append(reply) if "error" in reply else None)

    async with open_fabric([server(ask=tool).source()]) as fabric:
        assert len(questions(await fabric.handle(first()))) == 32
        assert len(refusals) == 1


async def test_calls_at_once_have_sessions_of_their_own_where_a_question_does_not_say_whose_it_is(
    autojump_clock: MockClock,
) -> None:
    far = server()
    async with open_fabric(Config(sources=[far.source()], bounds=Bounds(interactive=3))) as fabric:
        asked = [await fabric.handle(first()) for _ in range(3)]
        assert len(far.connections) == 4
        for number, each in enumerate(asked):
            answer = {"action": "accept", "content": {"name": str(number)}}
            assert said(await fabric.handle(retry(each, {"q1": answer}))) == answer
        await fabric.handle(first("x__echo"))
        assert len(far.connections) == 4  # one that is free is used again


async def test_a_session_on_which_a_call_was_left_is_nobody_elses(autojump_clock: MockClock) -> None:
    held: list[Request] = []
    far = server(hold=held.append, ask=asking())
    async with open_fabric([far.source()]) as fabric:
        await fabric.wait_started()
        with trio.move_on_after(1):
            await fabric.handle(first("x__hold"))
        asked = await fabric.handle(first())
        replies: list[Json] = []
        held[0].ask("elicitation/create", FORM, replies.append)  # by a server that does not care that it was cancelled
        await settled()
        assert replies[0]["result"] == {"action": "cancel"}
        await trio.sleep(FAREWELL)
        assert [connection.over for connection in far.connections] == [False, True, False]
        assert said(await fabric.handle(retry(asked, {"q1": ACCEPT}))) == ACCEPT


async def test_where_calls_share_a_session_only_questions_within_a_call_are_put_to_its_caller(
    autojump_clock: MockClock,
) -> None:
    held: list[Request] = []
    far = server(hold=held.append)
    endings: dict[str, Outcome] = {}
    async with open_fabric(Config(sources=[far.source()], bounds=Bounds(interactive=1))) as fabric:

        async def run(name: str) -> None:
            endings[name] = await fabric.handle(first("x__hold"))

        async with trio.open_nursery() as nursery:
            for name in ("one", "two"):  # there is no room for another session
                nursery.start_soon(run, name)
                await settled()
            replies: list[Json] = []
            held[0].ask("elicitation/create", FORM, replies.append)
            await trio.sleep(1)
            assert endings == {}  # whose question it is cannot be told, so it is nobody's
            assert [reply["result"] for reply in replies] == [{"action": "cancel"}]
            assert fabric.counters["link.questions_unclear"] == 1
            (session,) = fabric.links["x"].pool.sessions  # type: ignore[union-attr]  # it is one server
            assert session.client is not None
            one = min(int(id) for id in session.running)
            line = b'{"jsonrpc":"2.0","id":"s1","method":"roots/list"}'
            session.client.session.feed([line], one)
            await trio.sleep(1)
            assert list(endings) == ["one"]
            for request in held:
                request.answer(text('"done"'))


async def test_nothing_is_left_when_the_fabric_ends_with_calls_parked(autojump_clock: MockClock) -> None:
    far = server()
    async with open_fabric([far.source()]) as fabric:
        await fabric.handle(first())
        assert len(fabric._parks) == 1
    assert len(fabric._parks) == 0
    assert len(fabric.timer) == 0
    assert all(connection.over for connection in far.connections)


async def test_logs_of_a_call_that_may_ask_reach_it(autojump_clock: MockClock) -> None:
    seen: list[bytes] = []

    def log(request: Request) -> Json:
        request.connection.tell("notifications/message", {"level": "error", "data": "d"})
        return text("done")

    async with open_fabric([server(log=log).source()]) as fabric:
        await fabric.handle(first("x__log", events=lambda method, params: seen.append(bytes(params)), log_level="info"))
        assert len(seen) == 1


async def test_uris_of_a_result_after_a_question_are_exported(autojump_clock: MockClock) -> None:
    link = {"type": "resource_link", "uri": "file:///made", "name": "made"}

    def tool(request: Request) -> Json:
        request.ask("roots/list", {}, lambda reply: request.answer({"content": [link]}))

    async with open_fabric([server(ask=tool).source()]) as fabric:
        asked = await fabric.handle(first())
        outcome = await fabric.handle(retry(asked, {"q1": {"roots": []}}))
        assert isinstance(outcome, Complete)
        assert b"cord://x/file:///made" in bytes(outcome.result)


async def test_a_broken_result_after_a_question_is_told(autojump_clock: MockClock) -> None:
    def tool(request: Request) -> Json:
        request.ask("roots/list", {}, lambda reply: request.connection.send({"id": request.id, "result": [1]}))

    async with open_fabric([server(ask=tool).source()]) as fabric:
        asked = await fabric.handle(first())
        with pytest.raises(CallError, match="not an object"):
            await fabric.handle(retry(asked, {"q1": {"roots": []}}))


# Servers of both eras


async def test_a_server_of_both_eras_is_met_by_a_legacy_caller_in_its_own(autojump_clock: MockClock) -> None:
    far = DualServer()
    far.tools["ask"] = asking()
    async with open_fabric([far.source(era="auto")]) as fabric:
        await fabric.wait_started()
        asked = await fabric.handle(first(revision="2025-11-25"))
        assert questions(asked)
        assert said(await fabric.handle(retry(asked, {"q1": ACCEPT}))) == ACCEPT
        far.legacy = False
        outcome = await fabric.handle(first("x__echo", principal="bob", revision="2025-11-25"))
        assert isinstance(outcome, Complete)  # where it is modern alone, it is met so
        for call in (first("x__echo", revision="2026-07-28"), first("x__echo", revision="")):
            assert isinstance(await fabric.handle(call), Complete)
        assert len(far.connections) == 3


class DualServer(FullServer):
    """Decides for each connection by how it is greeted."""

    legacy = True

    def __init__(self) -> None:
        super().__init__(modern=True)
        self.answers["initialize"] = self.greet

    def greet(self, request: Request) -> Json:
        if not self.legacy:
            return request.fail(-32601, "no")
        info = {"name": "dual", "version": "1"}
        result = {"protocolVersion": "2025-11-25", "capabilities": self.capabilities, "serverInfo": info}
        request.connection.send({"id": request.id, "result": result})
        return None


async def test_row_10_pages_that_are_done_with_are_known_to_who_waits(autojump_clock: MockClock) -> None:
    page = {"mode": "url", "message": "m", "url": "https://a/", "elicitationId": "e1"}
    far = server(pay=lambda request: request.fail(-32042, "pay first", {"elicitations": [page]}))
    async with open_fabric([far.source()]) as fabric:
        outcome = await fabric.handle(first("x__pay"))
        assert isinstance(outcome, Error)
        assert (outcome.code, json.loads(outcome.data)) == (-32042, {"elicitations": [page]})
        start = trio.current_time()
        assert not await fabric.wait_pages(["e1"], 60)
        assert trio.current_time() == start + 60
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fabric.wait_pages, ["e1"], 60)
            await trio.sleep(1)
            far.connections[1].tell("notifications/elicitation/complete", {"elicitationId": "e1"})
            far.connections[1].tell("notifications/elicitation/complete", {"elicitationId": 7})
        assert trio.current_time() < start + 62
        assert await fabric.wait_pages(["e1"], 60)
        await trio.sleep(1000)
        far.connections[0].tell("notifications/elicitation/complete", {"elicitationId": "e2"})
        await settled()
        assert len(fabric._pages) == 1


# Agents' answers


def agent_answers(*rounds: Json) -> tuple[Json, list[Json]]:
    seen: list[Json] = []
    left = iter(rounds)

    async def answer(asked: Json) -> Json:
        await trio.lowlevel.checkpoint()
        seen.append({key: (question.method, question.params) for key, question in asked.items()})
        return next(left)

    return answer, seen


@pytest.mark.parametrize("modern", [True, False], ids=["modern", "legacy"])
async def test_an_agent_answers_what_its_call_is_asked(modern: bool, autojump_clock: MockClock) -> None:
    far = FullServer(modern=modern)
    if modern:
        asks = {"k": {"method": "elicitation/create", "params": FORM}}

        def tool(request: Request) -> Json:
            given = request.params.get("inputResponses")
            if given is None:
                return {"resultType": "input_required", "inputRequests": asks, "requestState": "s"}
            assert request.params["requestState"] == "s"
            return text(json.dumps(given["k"]))

        far.tools["ask"] = tool
    else:
        far.tools["ask"] = asking()
    answer, seen = agent_answers({"k": ACCEPT, "q1": ACCEPT})

    async def agent(ctx: Context, payload: Json) -> object:
        return (await ctx.call("x__ask", answer=answer)).text

    async with open_fabric([far.source()]) as fabric:
        await fabric.wait_started()
        fabric.agent("a", agent)
        assert json.loads(str(await fabric.ask("a"))) == ACCEPT
        assert [list(each.values()) for each in seen] == [[("elicitation/create", FORM)]]
        if not modern:  # nobody is asked without
            assert json.loads((await fabric.call("x__ask")).text)["code"] == -32601
        assert len(fabric._parks) == 0


async def test_an_answer_that_fails_lets_the_call_go(autojump_clock: MockClock) -> None:
    far = server()

    async def answer(asked: Json) -> Json:  # noqa: ASYNC124  # async by contract
        raise ZeroDivisionError

    async with open_fabric([far.source()]) as fabric:
        await fabric.wait_started()
        with pytest.raises(ZeroDivisionError):
            await fabric.call("x__ask", answer=answer)
        await settled()
        assert len(far.connections[1].cancelled) == 1
        assert quiet(fabric)


async def test_an_agent_that_is_asked_for_ever_is_told(autojump_clock: MockClock) -> None:
    far = server(ask=asking(rounds=100))
    answer, seen = agent_answers(*({f"q{number}": ACCEPT} for number in range(1, 100)))
    async with open_fabric([far.source()]) as fabric:
        await fabric.wait_started()
        with pytest.raises(InputNeeded, match="elicitation/create"):
            await fabric.call("x__ask", answer=answer)
        assert len(seen) == 10
        await settled()
        assert len(far.connections[1].cancelled) == 1
        assert quiet(fabric)


async def test_a_server_that_only_wants_to_be_visited_again_is(autojump_clock: MockClock) -> None:
    far = FullServer(modern=True)
    visits: list[Json] = []

    def tool(request: Request) -> Json:
        visits.append(request.params.get("requestState"))
        return text("done") if len(visits) == 3 else {"resultType": "input_required", "requestState": str(len(visits))}

    far.tools["wait"] = tool
    answer, seen = agent_answers()
    async with open_fabric([far.source()]) as fabric:
        await fabric.wait_started()
        assert (await fabric.call("x__wait", answer=answer)).text == "done"
        assert (visits, seen) == ([None, "1", "2"], [])


# Agents as tools


async def test_an_exported_agent_is_a_tool(autojump_clock: MockClock) -> None:
    async def writer(ctx: Context, payload: Json) -> object:  # noqa: ASYNC124  # async by contract
        """Writes what it is told.

        And more.
        """
        await ctx.emit({"progress": 0.5, "total": 1, "message": "half"})
        await ctx.emit("no progress")
        return {"got": payload, "for": ctx.principal} if payload != "plain" else "text"

    seen: list[Json] = []
    async with open_fabric([server().source()]) as fabric:
        await fabric.wait_started()
        fabric.agent("hidden", writer)
        fabric.agent("writer", writer, turn=2, export=True)
        snapshot = fabric.registry.snapshot
        assert list(snapshot.tools) == ["x__echo", "x__ask", "agent__writer"]
        listed = json.loads(snapshot.encoded_tools)[-1]
        assert (listed["name"], listed["description"]) == ("agent__writer", "Writes what it is told.")
        given = {"arguments": Raw(b'{"payload":"plain"}')}
        assert said_text(await fabric.handle(Call("tools/call", "agent__writer", given))) == "text"
        outcome = await fabric.handle(
            Call(
                "tools/call", "agent__writer", {"arguments": Raw(b'{"a":1}')}, principal="ada",
                events=lambda method, params: seen.append(json.loads(bytes(params))),
            )
        )  # fmt: skip
        assert json.loads(said_text(outcome)) == {"got": {"a": 1}, "for": "ada"}
        assert seen == [{"progressToken": 0, "progress": 0.5, "total": 1, "message": "half"}]
        assert (await fabric.call("agent__writer", {"payload": [1]})).structured == {"got": [1], "for": "local"}


@pytest.mark.parametrize("mailbox", [None, Mailbox()])
async def test_what_an_exported_agent_emits_is_progress_if_it_has_its_shape(
    mailbox: Mailbox | None, autojump_clock: MockClock
) -> None:
    async def inner(ctx: Context, payload: Json) -> object:
        await ctx.emit(9)  # its asker does not listen
        return payload

    async def counts(ctx: Context, payload: Json) -> object:
        await ctx.ask("inner", payload)
        for value in (1, {"progress": 2.5, "total": None}, True, None, "3", [4], {"total": 5}, float("nan"), 10**400):
            await ctx.emit(value)
        for more in ({"total": "x"}, {"message": 1}, {"message": "m", "else": 1}):
            await ctx.emit({"progress": 6, **more})
        return ctx.handoff("taker", payload)

    async def taker(ctx: Context, payload: Json) -> object:
        await ctx.emit(7)
        return "done"

    seen: list[Json] = []

    def events(method: str, params: Raw) -> None:
        seen.append((method, {k: v for k, v in json.loads(bytes(params)).items() if k != "progressToken"}))

    async with open_fabric([]) as fabric:
        fabric.agent("inner", inner)
        fabric.agent("taker", taker)
        fabric.agent("counts", counts, mailbox=mailbox, export=True)
        assert (await fabric.call("agent__counts", events=events)).text == "done"
        assert (await fabric.call("agent__counts")).text == "done"
    told = [{"progress": 1}, {"progress": 2.5}, {"progress": 6, "message": "m"}, {"progress": 7}]
    assert seen == [("notifications/progress", each) for each in told]


async def test_rounds_of_questions_are_one_call_of_a_budget(autojump_clock: MockClock) -> None:
    far = FullServer(modern=True)
    visits: list[Json] = []

    def tool(request: Request) -> Json:
        visits.append(request.params.get("requestState"))
        return text("done") if len(visits) == 3 else {"resultType": "input_required", "requestState": str(len(visits))}

    async def asks(ctx: Context, payload: Json) -> object:
        return (await ctx.call("x__wait", answer=answer)).text, ctx.budget.spent["calls"]

    far.tools["wait"] = tool
    answer, _ = agent_answers()
    async with open_fabric([far.source()]) as fabric:
        await fabric.wait_started()
        fabric.agent("asks", asks)
        assert await fabric.ask("asks", budget=Budget(calls=1)) == ("done", 1)


async def test_what_becomes_of_an_exported_agent_reaches_its_caller(autojump_clock: MockClock) -> None:
    ends: list[str] = []

    async def fails(ctx: Context, payload: Json) -> object:  # noqa: ASYNC124  # async by contract
        raise ValueError("no such thing")

    async def hangs(ctx: Context, payload: Json) -> object:
        try:
            await trio.sleep_forever()
        finally:
            ends.append("cancelled")

    async with open_fabric([]) as fabric:
        fabric.agent("fails", fails, export=True)
        fabric.agent("hangs", hangs, export=True)
        result = await fabric.call("agent__fails")
        assert (result.is_error, result.text) == (True, "no such thing")
        with trio.move_on_after(1):
            await fabric.call("agent__hangs")
        assert ends == ["cancelled"]
        with pytest.raises(DeadlineExceeded):
            await fabric.handle(Call("tools/call", "agent__hangs", deadline=trio.current_time() + 1))
        assert ends == ["cancelled"] * 2
        assert fabric.counters["fabric.agent_failed"] == 1


def said_text(outcome: Outcome) -> str:
    assert isinstance(outcome, Complete)
    text: str = json.loads(bytes(outcome.result))["content"][0]["text"]
    return text


async def test_changes_that_a_session_of_ones_own_tells_of_are_heard(autojump_clock: MockClock) -> None:
    """The official SDK's servers tell of a change on the session in which it was made, and on no other."""
    far = server()
    told: list[str] = []
    async with open_fabric([far.source()]) as fabric:
        await fabric.wait_started()
        await fabric.handle(first("x__echo"))
        with fabric.subscribe("ann", ["cord://x/file:///a"], told.append):
            await trio.sleep(1)
            own = far.connections[1]
            own.tell("notifications/resources/updated", {"uri": "file:///a"})
            far.tools["new"] = lambda request: text('"new"')
            own.tell("notifications/tools/list_changed")
            await trio.sleep(1)
        assert told == ["cord://x/file:///a"]
        assert "x__new" in fabric.registry.snapshot.tools
