"""What clients can be asked, and questions in the words of each revision (matrix rows 4, 8, 9, 11, 13)."""

from __future__ import annotations

import json

import pytest
from msgspec import Raw

from cord_trio.errors import BadReply
from cord_trio.gateway.capabilities import askable, lacking, lacks
from cord_trio.gateway.questions import MAX_QUESTIONS, CannotAsk, Question, put, read_round
from cord_trio.protocol.eras import ERAS, LEGACY
from cord_trio.protocol.jsonrpc import Json, encode

ELICIT, SAMPLE, ROOTS = "elicitation/create", "sampling/createMessage", "roots/list"


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        ("2025-11-25", {"elicitation": {"url": {}, "form": {}}, "sampling": {"tools": {}}, "roots": {}}),
        ("2025-06-18", {"elicitation": {}, "sampling": {}, "roots": {}}),
        ("2025-03-26", {"sampling": {}, "roots": {}}),
        ("2024-11-05", {"sampling": {}, "roots": {}}),
    ],
)
def test_row_4_a_legacy_client_is_asked_what_its_revision_has(revision: str, expected: Json) -> None:
    declared = {
        "elicitation": {"url": {}, "form": {}},
        "sampling": {"tools": {}},
        "roots": {"listChanged": True},
        "tasks": {"list": {}},
        "broken": 5,
    }
    assert json.loads(askable(ERAS[revision], encode(declared))) == expected


def test_row_29_extensions_are_kept_but_for_tasks() -> None:
    declared = {"extensions": {"io.modelcontextprotocol/ui": {"a": 1}, "io.modelcontextprotocol/tasks": {}}}
    assert json.loads(askable(ERAS["2025-11-25"], encode(declared))) == {
        "extensions": {"io.modelcontextprotocol/ui": {"a": 1}}
    }


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{", b'"x"'])
def test_capabilities_that_make_no_sense_are_none(text: bytes) -> None:
    assert askable(ERAS["2025-11-25"], text) == b"{}"
    assert lacking(text, [(ROOTS, {})]) == {"roots": {}}


@pytest.mark.parametrize(
    ("declared", "method", "params", "missing"),
    [
        ({"elicitation": {}}, ELICIT, {}, {}),
        ({"elicitation": {}}, ELICIT, {"mode": "form"}, {}),
        ({"elicitation": {}}, ELICIT, {"mode": "url"}, {"elicitation": {"url": {}}}),
        ({"elicitation": {"url": {}}}, ELICIT, {}, {"elicitation": {"form": {}}}),
        ({"elicitation": {"url": {}}}, ELICIT, {"mode": "url"}, {}),
        ({}, ELICIT, {}, {"elicitation": {"form": {}}}),
        ({}, SAMPLE, {}, {"sampling": {}}),
        ({"sampling": {}}, SAMPLE, {}, {}),
        ({"sampling": {}}, SAMPLE, {"tools": [{}]}, {"sampling": {"tools": {}}}),
        ({"sampling": {"tools": {}}}, SAMPLE, {"tools": [{}], "toolChoice": {}}, {}),
        ({"roots": {}}, ROOTS, {}, {}),
        ({"roots": 5}, ROOTS, {}, {"roots": {}}),
    ],
)
def test_row_13_what_a_question_needs_beyond_what_was_declared(
    declared: Json, method: str, params: Json, missing: Json
) -> None:
    assert lacking(encode(declared), [(method, params)]) == missing


def test_what_several_questions_need_is_named_at_once() -> None:
    questions: list[tuple[str, Json]] = [
        (SAMPLE, {}),
        (ELICIT, {}),
        (ELICIT, {"mode": "url"}),
        (SAMPLE, {"tools": [1]}),
    ]
    assert lacking(b"{}", questions) == {"sampling": {"tools": {}}, "elicitation": {"form": {}, "url": {}}}


@pytest.mark.parametrize(
    ("declared", "required", "expected"),
    [
        ({}, {"sampling": {}}, True),
        ({"sampling": {}}, {"sampling": {}}, False),
        ({"elicitation": {}}, {"elicitation": {"form": {}}}, False),
        ({"elicitation": {}}, {"elicitation": {"url": {}}}, True),
        ({"extensions": {"a/b": {}}}, {"extensions": {"c/d": {}}}, True),
        ({"sampling": 1}, {"sampling": {"tools": {}}}, True),
    ],
)
def test_what_a_server_requires_is_compared_at_any_depth(declared: Json, required: Json, *, expected: bool) -> None:
    assert lacks(encode(declared), required) is expected


def test_a_round_is_read_with_its_state() -> None:
    result = {"inputRequests": {"a": {"method": ROOTS}, "b": {"method": ELICIT, "params": {"message": "?"}}}}
    questions = {"a": Question(ROOTS, {}), "b": Question(ELICIT, {"message": "?"})}
    assert read_round(Raw(encode(result))) == (questions, None)
    assert read_round(Raw(encode({**result, "requestState": ""}))) == (questions, "")
    assert read_round(Raw(b'{"requestState":"s"}')) == ({}, "s")


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"inputRequests": {}},
        {"inputRequests": []},
        {"inputRequests": {"a": {"method": "tools/call"}}},
        {"inputRequests": {"a": 5}},
        {"inputRequests": {"a": {"method": ROOTS, "params": [1]}}},
        {"requestState": 5},
        {"inputRequests": {str(number): {"method": ROOTS} for number in range(MAX_QUESTIONS + 1)}},
    ],
)
def test_a_round_that_makes_no_sense_is_the_servers_fault(result: Json) -> None:
    with pytest.raises(BadReply):
        read_round(Raw(encode(result)))


FORM = {
    "type": "object",
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "properties": {
        "plain": {"type": "string", "default": "d", "minLength": 1},
        "yes": {"type": "boolean", "default": True},
        "one": {"type": "string", "oneOf": [{"const": "a", "title": "A"}, {"const": "b"}]},
        "odd": True,
    },
    "required": ["plain"],
}


def test_row_8_a_form_loses_what_2025_06_18_does_not_have() -> None:
    asked = Question(ELICIT, {"mode": "form", "message": "?", "requestedSchema": FORM})
    assert put(ERAS["2025-11-25"], asked, "i") == asked.params
    assert put(ERAS["2025-06-18"], asked, "i") == {
        "message": "?",
        "requestedSchema": {
            "type": "object",
            "properties": {
                "plain": {"type": "string", "minLength": 1},
                "yes": {"type": "boolean", "default": True},
                "one": {"type": "string", "enum": ["a", "b"], "enumNames": ["A", "b"]},
                "odd": True,
            },
            "required": ["plain"],
        },
    }


def test_row_8_a_choice_of_several_cannot_be_put_in_2025_06_18() -> None:
    several = {"properties": {"many": {"type": "array", "items": {"type": "string", "enum": ["a"]}}}}
    asked = Question(ELICIT, {"requestedSchema": several})
    assert put(ERAS["2025-11-25"], asked, "i") == asked.params
    with pytest.raises(CannotAsk):
        put(ERAS["2025-06-18"], asked, "i")


def test_row_9_a_page_gets_an_id_where_the_revision_knows_pages() -> None:
    asked = Question(ELICIT, {"mode": "url", "message": "?", "url": "https://x"})
    assert put(ERAS["2025-11-25"], asked, "i") == {**asked.params, "elicitationId": "i"}
    for revision in LEGACY[1:]:
        with pytest.raises(CannotAsk):
            put(ERAS[revision], asked, "i")


def test_row_11_messages_have_one_block_each_before_2025_11_25() -> None:
    words = {"type": "text", "text": "a"}
    audio = {"type": "audio", "data": "", "mimeType": "audio/wav"}
    asked = Question(
        SAMPLE,
        {
            "messages": [{"role": "user", "content": [words, audio]}, {"role": "assistant", "content": words}, 5],
            "maxTokens": 1,
            "tools": [{}],
            "toolChoice": {},
        },
    )
    assert put(ERAS["2025-11-25"], asked, "i") == asked.params
    assert put(ERAS["2025-06-18"], asked, "i") == {
        "messages": [
            {"role": "user", "content": words},
            {"role": "user", "content": audio},
            {"role": "assistant", "content": words},
            5,
        ],
        "maxTokens": 1,
    }
    told = put(ERAS["2024-11-05"], asked, "i")["messages"][1]["content"]
    assert told == {"type": "text", "text": "[audio, which this client's protocol revision cannot carry]"}


def test_row_11_a_conversation_with_tools_cannot_be_put_before_2025_11_25() -> None:
    use = {"type": "tool_use", "id": "1", "name": "t", "input": {}}
    with pytest.raises(CannotAsk):
        put(ERAS["2025-06-18"], Question(SAMPLE, {"messages": [{"role": "assistant", "content": use}]}), "i")
    assert put(ERAS["2024-11-05"], Question(SAMPLE, {"messages": 5}), "i") == {"messages": 5}


def test_row_12_roots_are_asked_for_alike_everywhere() -> None:
    for revision in LEGACY:
        assert put(ERAS[revision], Question(ROOTS, {}), "i") == {}
