"""How calls end, as answers in each era."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Final

import pytest
import trio
from msgspec import Raw

from cord_trio.auth.sealing import Sealer
from cord_trio.call import Complete, Error, InputRequired, Outcome, Task
from cord_trio.errors import (
    BadReply,
    CallError,
    CallFailed,
    ConnectionLost,
    DeadlineExceeded,
    Draining,
    InputNeeded,
    Overloaded,
    SourceDown,
    ToolNotFound,
)
from cord_trio.gateway.performing import Performer
from cord_trio.gateway.shapes import shape_result
from cord_trio.gateway.steps import Run
from cord_trio.protocol.eras import ERAS
from cord_trio.protocol.jsonrpc import encode
from tests.gateway.fakes import IDENTITY, LATEST, MODERN, SERVER_INFO, text

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cord_trio.call import Call
    from cord_trio.protocol.jsonrpc import Json

ALL: Final = tuple(ERAS)
US: Final = {"name": "gate", "version": "1"}


async def answer_of(
    end: Outcome | Exception, revision: str = MODERN, capabilities: bytes = b"{}"
) -> tuple[int, dict[str, Json]]:
    """Status and answer to a call that ends so."""

    async def handle(call: Call) -> Outcome:
        await trio.lowlevel.checkpoint()
        if isinstance(end, Exception):
            raise end
        return end

    run = Run("i", ERAS[revision], "tools/call", "t", {}, {}, capabilities)
    reply = await Performer(handle, IDENTITY, Sealer(bytes(32))).perform(run, None)
    assert reply.message is not None
    value = json.loads(reply.message)
    assert (value["jsonrpc"], value["id"]) == ("2.0", "i")
    return reply.status, value


def shaped(value: Json, revision: str = MODERN) -> Json:
    return json.loads(shape_result(ERAS[revision], Raw(encode(value)), IDENTITY))


@pytest.mark.parametrize("revision", ALL)
@pytest.mark.parametrize(
    ("error", "executed"),
    [
        (SourceDown("s", "crashed"), "no"),
        (ConnectionLost("reset"), "unknown"),
        (ConnectionLost("reset", "no"), "no"),
        (DeadlineExceeded("s"), "unknown"),
        (Overloaded("slots", 32), "no"),
        (Draining(), "no"),
        (InputNeeded("s", ["roots/list"]), "unknown"),
        (CallError("other", "yes"), "yes"),
    ],
)
async def test_a_call_without_a_result_is_told_to_the_model(error: CallError, executed: str, revision: str) -> None:
    status, value = await answer_of(error, revision)
    result = value["result"]
    assert status == 200
    assert result["isError"] is True
    assert result["content"] == [{"type": "text", "text": str(error)}]
    meta = {"cord-trio/executed": executed}
    if revision == MODERN:
        assert result["resultType"] == "complete"
        meta[SERVER_INFO] = US  # type: ignore[assignment]  # it is JSON
    assert result["_meta"] == meta


@pytest.mark.parametrize(
    ("end", "executed"),
    [
        (ToolNotFound("x"), "no"),
        (BadReply("nonsense"), "yes"),
        (RuntimeError("a secret"), "unknown"),
        (Error(-32601, "method not found"), "unknown"),
    ],
)
async def test_an_error_of_ours_says_whether_the_call_ran(end: Outcome | Exception, executed: str) -> None:
    _, value = await answer_of(end)
    assert value["error"]["data"] == {"cord-trio/executed": executed}


@pytest.mark.parametrize("revision", ALL)
@pytest.mark.parametrize(
    ("end", "code"),
    [
        (ToolNotFound("x", ["y"]), -32602),
        (BadReply("nonsense"), -32603),
        (RuntimeError("a secret"), -32603),
        (Task(Raw(b"{}")), -32603),
        (Complete(Raw(b"[]")), -32603),
        (Complete(Raw(b'{"isError":false}')), -32603),
        (CallFailed(-32602, "bad arguments"), -32602),
        (Error(-32603, "broken"), -32603),
        (Error(7, "own"), 7),
        (Error(-32601, "method not found"), -32603),
        (Error(-32020, "header"), -32603),
        (Error(-32022, "version"), -32603),
        (Error(-32001, "session not found"), -32603),
        (Error(-32000, "closed"), -32603),
        (Error(-32600, "invalid"), -32603),
    ],
)
async def test_errors_are_relayed_but_for_those_of_the_other_hop(
    end: Outcome | Exception, code: int, revision: str
) -> None:
    status, value = await answer_of(end, revision)
    assert (status, value["error"]["code"]) == (200, code)
    assert "a secret" not in value["error"]["message"]


async def test_an_error_keeps_message_and_data() -> None:
    for end in (CallFailed(12, "m", b'{"x":[1.0]}'), Error(12, "m", b'{"x":[1.0]}')):
        _, value = await answer_of(end)
        assert value["error"] == {"code": 12, "message": "m", "data": {"x": [1.0]}}


async def test_a_missing_capability_is_told_in_the_clients_era() -> None:
    error = Error(-32021, "needs it", b'{"requiredCapabilities":{"elicitation":{}}}')
    assert (await answer_of(error))[0] == 400
    assert (await answer_of(error))[1]["error"] == {
        "code": -32021,
        "message": "needs it",
        "data": {"requiredCapabilities": {"elicitation": {}}},
    }
    _, declared = await answer_of(error, capabilities=b'{"elicitation":{}}')
    assert declared["error"]["code"] == -32603  # the client has it: it was our hop that lacked it
    _, old = await answer_of(error, LATEST)
    assert old["result"]["isError"] is True


async def test_codes_of_another_era_are_translated() -> None:
    assert (await answer_of(Error(-32002, "none"), MODERN))[1]["error"]["code"] == -32602
    assert (await answer_of(Error(-32002, "none"), LATEST))[1]["error"]["code"] == -32002
    opens = b'{"elicitation":{"url":{}}}'
    assert (await answer_of(Error(-32042, "open it", b"{}"), LATEST, opens))[1]["error"]["code"] == -32042
    for revision in (MODERN, "2025-06-18"):
        assert (await answer_of(Error(-32042, "open it", b"{}"), revision))[1]["result"]["isError"] is True


async def test_a_question_reaches_only_who_can_answer() -> None:
    asked = InputRequired(
        Raw(b'{"resultType":"input_required","requestState":"s","_meta":{"%b":{},"a/b":1}}' % SERVER_INFO.encode())
    )
    _, value = await answer_of(asked, capabilities=b'{"elicitation":{}}')
    assert value["result"].pop("requestState") not in ("s", "")
    assert value["result"] == {
        "resultType": "input_required",
        "_meta": {"a/b": 1, SERVER_INFO: US},
    }
    question = {"method": "elicitation/create", "params": {"message": "?"}}
    asked = InputRequired(Raw(encode({"inputRequests": {"q": question}})))
    status, refused = await answer_of(asked, MODERN)
    assert (status, refused["error"]["code"]) == (400, -32021)
    assert refused["error"]["data"] == {"requiredCapabilities": {"elicitation": {"form": {}}}}
    _, refused = await answer_of(asked, LATEST, b'{"elicitation":{}}')
    assert refused["result"]["isError"] is True


def test_a_result_passes_through_byte_for_byte() -> None:
    inner = b'"content": [ {"type":"text","text":"\\u00e9"} ],"structuredContent":{"x":1.0,"y":1e3},"isError":false}'
    raw = Raw(b"{" + inner)
    assert shape_result(ERAS[LATEST], raw, IDENTITY) == b"{" + inner
    assert shape_result(ERAS[MODERN], raw, IDENTITY).endswith(inner)


def test_members_of_the_other_hop_are_replaced_and_foreign_ones_kept() -> None:
    received = {
        "resultType": "complete",
        "ttlMs": 5,
        "cacheScope": "public",
        "content": [],
        "extra": [1],
        "_meta": {SERVER_INFO: {"name": "upstream"}, "io.modelcontextprotocol/subscriptionId": 1, "com.example/x": 2},
    }
    assert shaped(received) == {
        "resultType": "complete",
        "_meta": {"com.example/x": 2, SERVER_INFO: US},
        "content": [],
        "extra": [1],
    }
    assert shaped(received, LATEST) == {"_meta": {"com.example/x": 2}, "content": [], "extra": [1]}


@pytest.mark.parametrize("value", [[1], "x", 3, None, True])
def test_structured_content_that_is_no_object_is_for_modern_clients(value: Json) -> None:
    result = {"content": [], "structuredContent": value}
    assert shaped(result)["structuredContent"] == value
    assert shaped(result, LATEST) == {"content": []}


@pytest.mark.parametrize("revision", ALL)
def test_missing_content_is_made_from_structured_content(revision: str) -> None:
    result = shaped({"structuredContent": {"a": 1}}, revision)
    assert result["content"] == [{"type": "text", "text": '{"a":1}'}]
    assert result["structuredContent"] == {"a": 1}


@pytest.mark.parametrize("revision", ALL)
def test_c20_blocks_that_a_revision_does_not_have_become_text(revision: str) -> None:
    blocks = [
        {"type": "text", "text": "a resource_link or audio in words"},
        {"type": "resource_link", "uri": "x:y", "name": "n"},
        {"type": "audio", "data": "AA==", "mimeType": "audio/wav"},
        {"type": "x-new", "z": 1},
    ]
    kinds = [block["type"] for block in shaped({"content": blocks}, revision)["content"]]
    assert kinds == [
        "text",
        "resource_link" if revision >= "2025-06-18" else "text",
        "audio" if revision >= "2025-03-26" else "text",
        "x-new",
    ]


async def test_c17_a_tools_own_failure_is_its_result() -> None:
    _, value = await answer_of(text("no", isError=True))
    assert value["result"]["isError"] is True
    assert value["result"]["content"] == [{"type": "text", "text": "no"}]
    assert "cord-trio/executed" not in value["result"]["_meta"]


@pytest.mark.parametrize(
    ("told", "left"),
    [
        (b"1500", 1.5),
        (b"0", 0.0),
        (b"2.5", 0.0025),
        (b'"soon"', None),
        (b"-1", None),
        (b"true", None),
        (b"1e400", None),
    ],
)
async def test_a_call_ends_when_whoever_asks_says_so(
    told: bytes, left: float | None, autojump_clock: MockClock
) -> None:
    seen: list[Call] = []

    async def handle(call: Call) -> Outcome:  # noqa: ASYNC124  # async by contract
        seen.append(call)
        return Complete(Raw(b"{}"))

    run = Run("i", ERAS[MODERN], "tools/call", "t", {}, {"cord_trio/deadlineMs": Raw(told), "x": Raw(b"1")}, b"{}")
    await Performer(handle, IDENTITY, Sealer(bytes(32))).perform(run, None)
    assert seen[0].meta == {"x": Raw(b"1")}  # what it said is for us alone
    assert seen[0].deadline == (math.inf if left is None else pytest.approx(trio.current_time() + left))
