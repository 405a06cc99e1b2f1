"""What nodes say to each other about agents comes out as it went in."""

from __future__ import annotations

from decimal import Decimal

import pytest
from msgspec import Raw

from cord_trio.agents import Budget, Step
from cord_trio.errors import (
    AgentCrashed,
    AgentDown,
    AgentError,
    AgentGone,
    AgentNotFound,
    AgentNotGranted,
    BadReply,
    BudgetExceeded,
    CallCycle,
    CallFailed,
    HandoffRefused,
    Overloaded,
    SourceDown,
)
from cord_trio.mesh.letters import (
    Letter,
    letter_in,
    packed,
    params_with,
    read_reply,
    refusal_of,
    reply_of,
    steps_of,
    unpacked,
)
from cord_trio.mesh_errors import BadFrame, NotJson, OwnerLost, OwnerRefused
from cord_trio.protocol.mcp import ToolResult

RESULT = ToolResult(b'{"content":[]}')


@pytest.mark.parametrize("wrong", [float("nan"), {"a": [None, float("inf")]}, ({2.0: {float("-inf")}},)])
def test_what_is_no_number_of_json_is_refused_rather_than_null(wrong: object) -> None:
    with pytest.raises(NotJson, match="it cannot go to another node: it holds NaN or an infinity"):
        packed(wrong, "it")


def test_what_is_json_text_already_is_taken_as_it_is() -> None:
    assert packed({"a": Raw(b"null"), "b": None}, "it").json == Raw(b'{"a":null,"b":null}')


def test_that_there_is_no_such_agent_tells_where_there_is_none() -> None:
    assert str(read_reply(refusal_of(AgentNotFound("x"), "x", "b", {}), "x@b")[1]) == "no agent named 'x@b'"
    assert str(read_reply(refusal_of(AgentNotFound("x@c"), "y", "b", {}), "y@b")[1]) == "no agent named 'x@c'"


@pytest.mark.parametrize("value", [None, 1.5, {"a": [True, "\u00fc"]}, RESULT])
def test_a_letter_comes_out_as_it_went_in(value: object) -> None:
    limits = {"calls": Decimal(3), "money": Decimal("0.1")}
    steps = steps_of([Step("a", value)])
    letter = letter_in(
        params_with(Letter(packed(value, "it"), ("a", "b"), 2, ("w",), steps, limits, {"hops": Decimal(1)}))
    )
    assert (unpacked(letter.payload), letter.path, letter.hops, letter.ways) == (value, ("a", "b"), 2, ("w",))
    assert (letter.transcript, letter.budget) == ((Step("a", value),), Budget(calls=3, money=Decimal("0.1")))
    assert Letter(packed(value, "it")).budget is None
    assert read_reply(reply_of(value, "it", {"calls": Decimal(2)}), "x") == (value, None, {"calls": Decimal(2)})


@pytest.mark.parametrize(
    "error",
    [
        AgentGone("x#2", 3),
        AgentNotGranted("x", "y", ("z",)),
        HandoffRefused("x", "no"),
        CallCycle(("a", "b", "a")),
        AgentDown("x", "tired"),
        BudgetExceeded("calls", 3, "x"),
        AgentCrashed("x#1", "ouch"),
        AgentError("it rests"),
        NotJson("it", "no"),
        OwnerLost("b", "00000001", "gone", "unknown"),
        OwnerRefused("b", "busy", "now", "unknown"),
        SourceDown("web", "exited"),
        Overloaded("agents.x.mailbox", 1),
        CallFailed(-32000, "no", b"1", "yes"),
    ],
)
def test_an_error_comes_out_as_it_went_in(error: Exception) -> None:
    error.add_note("a > b#1")
    answer, found, _ = read_reply(refusal_of(error, "x", "b", {}), "x")
    assert answer is None
    assert (type(found), str(found)) == (type(error), str(error))
    assert getattr(found, "executed", None) == getattr(error, "executed", None)
    assert getattr(found, "__notes__", None) == ["a > b#1"]


def test_any_other_exception_is_a_crash() -> None:
    _, found, _ = read_reply(refusal_of(KeyError("k"), "x", "b", {}), "x")
    assert (type(found), str(found)) == (AgentCrashed, "agent x@b crashed: KeyError('k')")


@pytest.mark.parametrize("raw", [b"", b"1", b"[]", b"{", b"\xff", b'{"payload":1}', b'{"payload":{},"hops":"x"}'])
def test_what_is_no_letter_is_refused(raw: bytes) -> None:
    with pytest.raises(BadFrame, match="what is asked of an agent cannot be read"):
        letter_in({"letter": Raw(raw)} if raw else {})


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "-1", "1e1000000000"])
def test_what_is_no_amount_of_a_budget_is_neither_asked_nor_answered(amount: str) -> None:
    for name in ("limits", "spent"):
        with pytest.raises(BadFrame, match="a budget of no amounts"):
            letter_in({"letter": Raw(f'{{"payload":{{}},"{name}":{{"calls":"{amount}"}}}}'.encode())})
    _, error, spent = read_reply(Raw(f'{{"spent":{{"calls":"{amount}"}}}}'.encode()), "x")
    assert (type(error), spent) == (BadReply, {})


@pytest.mark.parametrize("raw", [b"1", b"{", b'{"answer":3}', b'{"fault":{}}'])
def test_what_is_no_reply_is_a_bad_one(raw: bytes) -> None:
    assert isinstance(read_reply(Raw(raw), "x")[1], BadReply)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b'{"fault":{"node":"b","kind":"AgentGone","facts":[1,2,3]}}', AgentCrashed),
        (b'{"fault":{"node":"b","kind":"OfLater"}}', AgentCrashed),
        (b'{"fault":{"node":"b","call":{"kind":"","text":"","executed":"yes"}}}', BadReply),
    ],
)
def test_an_error_of_a_later_version_is_an_error_all_the_same(raw: bytes, kind: type[Exception]) -> None:
    assert type(read_reply(Raw(raw), "x")[1]) is kind


def test_what_is_no_json_names_what_it_is() -> None:
    with pytest.raises(NotJson, match="it cannot go to another node"):
        packed({"x": object()}, "it")
