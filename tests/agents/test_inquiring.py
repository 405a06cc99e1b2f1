"""Agents that ask whoever asked them: a client of either era, another agent, or a program."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio
from msgspec import Raw

from cord_trio.agents import Mailbox, Question
from cord_trio.call import Call, Complete, InputRequired, Outcome
from cord_trio.config import Config, GatewayConfig
from cord_trio.errors import CallError, CallFailed, DeadlineExceeded, Draining, InputNeeded, Overloaded
from cord_trio.fabric import Fabric, open_fabric
from cord_trio.parking import LAST_WORD, MAX_QUESTIONS
from tests.full_server import FullServer, settled
from tests.test_parking import asking

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio.testing import MockClock

    import cord_trio as cord

Json: TypeAlias = Any

CAN = b'{"elicitation":{"form":{}},"sampling":{},"roots":{}}'
FORM = {"type": "object", "properties": {"name": {"type": "string"}}}
ADA = {"action": "accept", "content": {"name": "Ada"}}
ROOTS = Question("roots/list", {})


async def greets(ctx: cord.Context, payload: object) -> object:
    await ctx.emit(1)
    filled = await ctx.elicit("Name?", FORM)
    await ctx.emit(2)
    return "nobody" if filled is None else f"hello {filled.get('name')}"


def first(name: str = "agent__greets", capabilities: bytes = CAN, **more: Json) -> Call:
    return Call("tools/call", name, {"arguments": Raw(b"{}")}, capabilities=capabilities, **more)


def again(outcome: Outcome, answers: Json, name: str = "agent__greets", **more: Json) -> Call:
    assert isinstance(outcome, InputRequired)
    params = {"inputResponses": Raw(json.dumps(answers).encode())}
    return Call("tools/call", name, params, capabilities=CAN, park=outcome.park, **more)


def asked(outcome: Outcome) -> Json:
    assert isinstance(outcome, InputRequired)
    return json.loads(bytes(outcome.result))["inputRequests"]


def said(outcome: Outcome) -> str:
    assert isinstance(outcome, Complete)
    return str(json.loads(bytes(outcome.result))["content"][0]["text"])


def quiet(fabric: Fabric) -> bool:
    return len(fabric._parks) == 0 and not fabric.agents.roots


@pytest.mark.parametrize("mailbox", [None, Mailbox(8)])
async def test_a_client_is_asked_and_its_answer_reaches_the_handler(
    mailbox: Mailbox | None, autojump_clock: MockClock
) -> None:
    told: list[Json] = []

    def events(method: str, params: Raw) -> None:
        told.append((method, json.loads(bytes(params))["progress"]))

    async with open_fabric() as fabric:
        fabric.agent("greets", greets, export=True, mailbox=mailbox)
        outcome = await fabric.handle(first(events=events))
        form = {"mode": "form", "message": "Name?", "requestedSchema": FORM}
        assert asked(outcome) == {"q1": {"method": "elicitation/create", "params": form}}
        await trio.sleep(100)
        assert said(await fabric.handle(again(outcome, {"q1": ADA}, events=events))) == "hello Ada"
        assert told == [("notifications/progress", 1), ("notifications/progress", 2)]
        assert quiet(fabric)


@pytest.mark.parametrize("mailbox", [None, Mailbox(8)])
async def test_no_deadline_runs_while_a_person_thinks_and_that_of_the_next_call_counts(
    mailbox: Mailbox | None, autojump_clock: MockClock
) -> None:
    seen: list[float] = []

    async def slow(ctx: cord.Context, payload: object) -> None:
        seen.append(ctx.deadline)
        await ctx.elicit("Name?", FORM)
        seen.append(ctx.deadline)
        await trio.sleep(10)

    async def desk(ctx: cord.Context, payload: object) -> object:
        return await ctx.ask("slow")

    async with open_fabric() as fabric:
        fabric.agent("slow", slow, mailbox=mailbox)
        fabric.agent("desk", desk, export=True, mailbox=mailbox)
        start = trio.current_time()
        outcome = await fabric.handle(first("agent__desk", deadline=start + 5))
        await trio.sleep(100)
        with pytest.raises(DeadlineExceeded):
            await fabric.handle(again(outcome, {"q1": ADA}, "agent__desk", deadline=start + 107))
        assert trio.current_time() == start + 107
        assert seen == [start + 5, start + 107]
        assert fabric.agents["slow"].generation == 1
        with trio.fail_after(20):  # its task goes on without a deadline of that call
            outcome = await fabric.handle(first("agent__desk"))
            await fabric.handle(again(outcome, {"q1": ADA}, "agent__desk"))
        assert quiet(fabric)


async def test_a_call_that_goes_on_moves_no_deadline_of_whom_it_has_asked_before(autojump_clock: MockClock) -> None:
    async def rests(ctx: cord.Context, seconds: float) -> str:
        await trio.sleep(seconds)
        return "rested"

    async def desk(ctx: cord.Context, payload: object) -> None:
        await ctx.ask("rests", 0.0)
        await ctx.elicit("Name?", FORM)
        await trio.sleep(10)

    async with open_fabric() as fabric:
        fabric.agent("rests", rests, mailbox=Mailbox(8))
        fabric.agent("desk", desk, export=True)
        outcome = await fabric.handle(first("agent__desk", deadline=trio.current_time() + 5))
        async with trio.open_nursery() as nursery:
            job = await fabric.start("rests", 50.0, owner=nursery)
            await trio.sleep(1)
            with pytest.raises(DeadlineExceeded):
                late = trio.current_time() + 5
                await fabric.handle(again(outcome, {"q1": ADA}, "agent__desk", deadline=late))
            assert await job.result() == "rested"
        assert quiet(fabric)


@pytest.mark.parametrize("answer", [{"action": "decline"}, {"action": "cancel"}])
async def test_a_person_who_declines_has_filled_in_nothing(answer: Json, autojump_clock: MockClock) -> None:
    async with open_fabric() as fabric:
        fabric.agent("greets", greets, export=True)
        outcome = await fabric.handle(first())
        assert said(await fabric.handle(again(outcome, {"q1": answer}))) == "nobody"


@pytest.mark.parametrize(
    ("content", "fault"), [({"name": 7}, "'name' is not as its field wants it"), ({}, "'name' is missing")]
)
async def test_a_form_that_is_filled_in_wrongly_never_reaches_the_handler(
    content: Json, fault: str, autojump_clock: MockClock
) -> None:
    async def asks(ctx: cord.Context, payload: object) -> object:
        return (await ctx.elicit("Name?", FORM | {"required": ["name"]}) or {})["name"]

    async with open_fabric() as fabric:
        fabric.agent("asks", asks, export=True)
        outcome = await fabric.handle(first("agent__asks"))
        with pytest.raises(CallFailed, match=f"makes no sense: {fault}"):
            await fabric.handle(again(outcome, {"q1": {"action": "accept", "content": content}}, "agent__asks"))
        assert said(await fabric.handle(again(outcome, {"q1": ADA}, "agent__asks"))) == "Ada"


async def test_answers_are_taken_while_the_fabric_drains(autojump_clock: MockClock) -> None:
    async with open_fabric() as fabric, trio.open_nursery() as nursery:
        fabric.agent("greets", greets, export=True)
        outcome = await fabric.handle(first())
        with fabric.holding():
            nursery.start_soon(fabric.drain, 10.0)
            await settled()
            with pytest.raises(Draining):
                await fabric.handle(first())
            assert said(await fabric.handle(again(outcome, {"q1": ADA}))) == "hello Ada"
            stages = [fabric.stage]
        await settled()
        assert [*stages, fabric.stage] == ["draining", "closing"]


async def cleans_up_badly(ctx: cord.Context, payload: object) -> None:
    async def clean_up() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("cannot clean up")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(clean_up)
        await trio.sleep_forever()


@pytest.mark.parametrize("mailbox", [None, Mailbox(8)])
@pytest.mark.parametrize("capabilities", [b"{}", CAN])
async def test_a_handler_that_fails_as_it_is_cancelled_harms_nobody_else(
    mailbox: Mailbox | None, capabilities: bytes, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_fabric() as fabric:
        fabric.agent("bad", cleans_up_badly, export=True, mailbox=mailbox)
        fabric.agent("greets", greets, export=True)
        with trio.move_on_after(1):
            await fabric.handle(first("agent__bad", capabilities=capabilities))
        await settled()
        outcome = await fabric.handle(first())
        assert said(await fabric.handle(again(outcome, {"q1": ADA}))) == "hello Ada"
        assert quiet(fabric)
    if mailbox is None:  # else it is a crash of that life
        assert fabric.counters["agents.failed_cancelled"] == 1
        assert "agent failed as it was cancelled agent=bad" in caplog.text


@pytest.mark.parametrize("how", ["started", "told", "handed on"])
@pytest.mark.parametrize("error", [None, KeyError("of the block")])
async def test_a_handler_that_fails_as_the_fabric_ends_leaves_the_block_as_it_ended(
    how: str, error: Exception | None, autojump_clock: MockClock
) -> None:
    async def hands(ctx: cord.Context, payload: object) -> object:  # noqa: ASYNC124  # async by contract
        return ctx.handoff("bad")

    ended: list[BaseException | None] = []
    try:
        async with open_fabric(Config(gateway=GatewayConfig(grace=1.0))) as fabric:
            fabric.agent("bad", cleans_up_badly, mailbox=Mailbox(8) if how == "told" else None)
            fabric.agent("hands", hands, mailbox=Mailbox(8))
            if how == "started":
                await fabric.start("bad")
            else:
                await fabric.tell("bad" if how == "told" else "hands")
            await trio.sleep(1)
            if error is not None:
                raise error
        ended.append(None)
    except BaseException as exc:  # whatever it is  # noqa: ASYNC103  # it is looked at
        ended.append(exc)
    assert ended == [error]


async def test_whoever_cannot_be_asked_that_is_not(autojump_clock: MockClock) -> None:
    async with open_fabric() as fabric:
        fabric.agent("greets", greets, export=True)
        for capabilities in (b"{}", b'{"sampling":{}}', b'{"elicitation":{"url":{}}}'):
            with pytest.raises(InputNeeded, match="agent__greets asks for elicitation/create"):
                await fabric.handle(first(capabilities=capabilities))
        with pytest.raises(InputNeeded):
            await fabric.call("agent__greets")
        with pytest.raises(InputNeeded):
            await fabric.ask("greets")
        assert quiet(fabric)


async def test_a_program_answers_by_a_function(autojump_clock: MockClock) -> None:
    questions: list[Mapping[str, Question]] = []

    async def answer(given: Mapping[str, Question]) -> Mapping[str, Json]:  # noqa: ASYNC124  # async by contract
        questions.append(given)
        return dict.fromkeys(given, ADA)

    async def asks(ctx: cord.Context, payload: object) -> object:
        await ctx.emit("shown to nobody")
        return await ctx.ask("greets")

    async with open_fabric() as fabric:
        fabric.agent("greets", greets, export=True)
        fabric.agent("asks", asks)
        assert await fabric.ask("greets", answer=answer) == "hello Ada"
        assert await fabric.ask("asks", answer=answer) == "hello Ada"  # past the agent in between
        assert (await fabric.call("agent__greets", answer=answer)).text == "hello Ada"
        assert len(questions) == 3


async def test_what_a_server_asks_an_agent_is_passed_on_to_its_client(autojump_clock: MockClock) -> None:
    server = FullServer()
    server.tools["ask"] = asking()

    async def passes(ctx: cord.Context, payload: object) -> object:
        return (await ctx.call("x__ask", {}, answer=ctx.inquire)).text

    async with open_fabric([server.source()]) as fabric:
        await fabric.wait_started()
        fabric.agent("passes", passes, export=True)
        outcome = await fabric.handle(first("agent__passes"))
        assert asked(outcome)["q1"]["params"]["message"] == "Name?"
        assert json.loads(said(await fabric.handle(again(outcome, {"q1": ADA}, "agent__passes")))) == ADA
        assert quiet(fabric)


async def test_several_questions_are_one_round_and_keep_their_answers(autojump_clock: MockClock) -> None:
    async def asks(ctx: cord.Context, payload: object) -> object:
        sample = {"messages": [], "maxTokens": 5}
        questions = {"a": ROOTS, "b": Question("sampling/createMessage", sample)}
        return await ctx.inquire(questions)

    async with open_fabric() as fabric:
        fabric.agent("asks", asks, export=True)
        outcome = await fabric.handle(first("agent__asks"))
        assert [each["method"] for each in asked(outcome).values()] == ["roots/list", "sampling/createMessage"]
        words = {"role": "assistant", "content": {"type": "text", "text": "w"}, "model": "m"}
        with pytest.raises(CallFailed, match="makes no sense"):
            await fabric.handle(again(outcome, {"q1": {}}, "agent__asks"))
        outcome = await fabric.handle(again(outcome, {"q2": words}, "agent__asks"))
        assert list(asked(outcome)) == ["q1"]
        final = await fabric.handle(again(outcome, {"q1": {"roots": []}}, "agent__asks"))
        assert json.loads(said(final)) == {"a": {"roots": []}, "b": words}


async def test_questions_have_a_bound(autojump_clock: MockClock) -> None:
    async def asks(ctx: cord.Context, payload: object) -> object:
        return await ctx.inquire({str(each): ROOTS for each in range(MAX_QUESTIONS + 1)})

    async with open_fabric() as fabric:
        fabric.agent("asks", asks, export=True)
        with pytest.raises(Overloaded, match="questions"):
            await fabric.handle(first("agent__asks"))


async def test_who_leaves_cancels_the_handler(autojump_clock: MockClock) -> None:
    cancelled: list[str] = []

    async def waits(ctx: cord.Context, payload: object) -> object:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.append("cancelled")
            raise

    async with open_fabric() as fabric:
        fabric.agent("waits", waits, export=True)
        with trio.move_on_after(1):
            await fabric.handle(first("agent__waits"))
        await settled()
        with pytest.raises(DeadlineExceeded) as late:
            await fabric.handle(first("agent__waits", deadline=trio.current_time() + 1))
        await settled()
        assert late.value.executed == "unknown"
        assert cancelled == ["cancelled"] * 2
        assert quiet(fabric)


async def test_a_client_that_never_answers_has_declined(autojump_clock: MockClock) -> None:
    heard: list[object] = []

    async def asks(ctx: cord.Context, payload: object) -> object:
        heard.append(await ctx.elicit("Name?", FORM))
        with pytest.raises(CallFailed):
            await ctx.inquire({"a": ROOTS})
        heard.append("refused")
        await trio.sleep(100)
        raise AssertionError("it is cancelled before")

    async with open_fabric() as fabric:
        fabric.agent("asks", asks, export=True)
        outcome = await fabric.handle(first("agent__asks"))
        assert isinstance(outcome, InputRequired)
        fabric.abandon(outcome.park, "the client left")
        await trio.sleep(LAST_WORD + 1)
        assert heard[:1] == [None]
        assert quiet(fabric)


async def test_a_crash_is_an_answer_and_the_end_of_the_fabric_is_an_error(autojump_clock: MockClock) -> None:
    async def crashes(ctx: cord.Context, payload: object) -> object:
        await ctx.elicit("Name?", FORM)
        raise ValueError("no such name")

    ends: list[object] = []

    async def last(fabric: Fabric) -> None:
        try:
            await fabric.handle(first("agent__waits"))
        except CallError as exc:
            ends.append(str(exc))

    async def waits(ctx: cord.Context, payload: object) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as outside:
        async with open_fabric() as fabric:
            fabric.agent("crashes", crashes, export=True)
            fabric.agent("waits", waits, export=True)
            outcome = await fabric.handle(first("agent__crashes"))
            assert said(await fabric.handle(again(outcome, {"q1": ADA}, "agent__crashes"))) == "no such name"
            await fabric.handle(first("agent__crashes"))  # nobody comes back
            outside.start_soon(last, fabric)  # noqa: ASYNC111  # that it outlives the fabric is the point
            await settled()
        assert quiet(fabric)
    assert len(ends) == 1
    assert "the fabric" in str(ends[0])
