from __future__ import annotations

import math

import pytest
from msgspec import Raw

from cord_trio import errors
from cord_trio.call import Call, Complete, Error
from cord_trio.errors import CallError
from cord_trio.mesh.frames import Frame, Request
from cord_trio.mesh.outcomes import call_of, failure_of, outcome_of, params_of, ttl_of
from cord_trio.mesh_errors import BadFrame, OwnerFailed, OwnerLost


def back(error: CallError) -> CallError:
    """`error` as the caller raises it."""
    with pytest.raises(CallError) as caught:
        outcome_of(failure_of(error), "b", "tool")
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        errors.CallFailed(-1, "no", b"[1]"),
        errors.CallFailed(-1, "no"),
        errors.Overloaded("slots", 3),
        errors.MessageTooLong("message", 10, 11),
        errors.Denied("t", "a rule"),
        errors.ToolNotFound("t", ("u", "v")),
        errors.SourceDown("s", "it died"),
        errors.ConnectionLost("eof", "no"),
        errors.ConnectionLost("eof"),
        errors.InputNeeded("tool", ("elicitation/create",)),
        errors.DeadlineExceeded("x"),
        errors.BadReply("rubbish"),
        errors.Draining(),
    ],
)
def test_an_error_that_callers_know_is_raised_as_it_was(error: CallError) -> None:
    known = back(error)
    assert (type(known), str(known), known.executed) == (type(error), str(error), error.executed)
    assert {**vars(known), "executed": ""} == {**vars(error), "executed": ""}


def test_of_another_error_its_name_and_text_remain() -> None:
    known = back(OwnerLost("c", "0badcafe", "it went", "no"))
    assert isinstance(known, OwnerFailed)
    assert (known.node, known.kind, known.executed) == ("b", "OwnerLost", "no")
    assert str(known) == (
        "on node 'b': node 'c' (epoch 0badcafe) was lost: it went; the call did not run: make it again"
    )
    # From further away it is told as it was there.
    again = back(known)
    assert isinstance(again, OwnerFailed)
    assert (again.kind, again.reason) == ("OwnerLost", known.reason)
    drain = back(errors.DrainTimeout("the fabric", 10))
    assert (type(drain), drain.executed) == (errors.ConnectionLost, "unknown")
    granted = back(errors.ToolNotGranted("a", "t", ("u",)))
    assert (type(granted), str(granted)) == (errors.ToolNotFound, "no tool named 't'")


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize("type", ["complete", "input_required", "task"])
@pytest.mark.parametrize("body", [b"", b"}{", b'{}\n{"method":"x"}', b'{"a":"\xff"}', DEEP])
def test_a_result_that_cannot_be_read_did_run(body: bytes, type: str) -> None:
    with pytest.raises(OwnerFailed, match="its answer cannot be read") as caught:
        outcome_of(Frame("ok", body=body, type=type), "b", "t")
    assert caught.value.executed == "yes"


def test_what_crosses_has_no_line_breaks_that_could_end_a_message() -> None:
    hidden = b'{"a":[\n{"jsonrpc":"2.0","method":"x"}\r\n]}'
    call = call_of(Request("call", "0" * 32), hidden, math.inf, None)
    outcome = outcome_of(Frame("ok", body=hidden), "b", "t")
    failure = outcome_of(Frame("err", body=b'{"kind":"","text":"","executed":"yes","data":%b}' % hidden), "b", "t")
    assert isinstance(outcome, Complete)
    assert isinstance(failure, Error)
    for text in (bytes(call.params["a"]), bytes(outcome.result), failure.data):
        assert b"\n" not in text
        assert b"\r" not in text


@pytest.mark.parametrize(
    "body", [b"", b"[", b"{}", b'{"kind":1,"text":"","executed":""}', b"\xff", b'{"kind":"","data":%b}' % DEEP]
)
def test_an_error_that_cannot_be_read_may_have_run(body: bytes) -> None:
    with pytest.raises(OwnerFailed, match="not readably why") as caught:
        outcome_of(Frame("err", body=body), "b", "t")
    assert caught.value.executed == "unknown"


def test_what_is_not_known_of_the_call_is_unknown() -> None:
    with pytest.raises(errors.Draining) as caught:
        outcome_of(Frame("err", body=b'{"kind":"Draining","text":"","executed":"perhaps"}'), "b", "t")
    assert caught.value.executed == "unknown"


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"x",
        b'{"a":"\xff"}',
        b'{"a":%b}' % DEEP,
        b'{"_meta":1}',
        b'{"_meta":{"io.modelcontextprotocol/logLevel":}}',
    ],
)
def test_params_that_are_none_are_refused(body: bytes) -> None:
    with pytest.raises(BadFrame, match="the params of a call cannot be read"):
        call_of(Request("call", "0" * 32), body, math.inf, None)


def test_params_of_no_known_kind_are_left_out() -> None:
    body = b'{"_meta":{"io.modelcontextprotocol/logLevel":1,"io.modelcontextprotocol/protocolVersion":[]}}'
    call = call_of(Request("call", "0" * 32), body, math.inf, None)
    assert (call.log_level, call.revision, call.meta, call.params) == (None, "", {}, {})


def test_a_call_without_deadline_has_none_and_each_hop_costs_20_ms() -> None:
    assert ttl_of(Call("m"), 5.0) is None
    assert ttl_of(Call("m", deadline=6.0), 5.0) == 980
    assert ttl_of(Call("m", deadline=5.01), 5.0) == 0
    # Progress may move it.
    assert ttl_of(Call("m", deadline=6.0, patience=1.0, latest=15.0), 5.0) == 9980
    assert ttl_of(Call("m", deadline=6.0, patience=1.0), 5.0) is None


def test_what_a_call_says_of_itself_goes_with_its_params() -> None:
    call = Call("m", "n", {"a": Raw(b"1")}, {"x/y": Raw(b"[]")}, log_level="info")
    assert params_of(call) == b'{"a":1,"_meta":{"x/y":[],"io.modelcontextprotocol/logLevel":"info"}}'
    assert params_of(Call("m", "n")) == b"{}"
