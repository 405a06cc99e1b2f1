from __future__ import annotations

import json
from typing import Any, TypeAlias

import pytest
from msgspec import Raw

from cord_trio.protocol.questions import (
    NOBODY,
    answer_fault,
    askable,
    form_fault,
    inner,
    may_ask,
    progress_token,
)

Json: TypeAlias = Any
LATEST = "2025-11-25"


def raw(value: Json) -> Raw:
    return Raw(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("capabilities", "revision", "declared"),
    [
        ({"elicitation": {}}, LATEST, {"elicitation": {"form": {}}}),
        ({"elicitation": {"url": {}, "other": 1}}, LATEST, {"elicitation": {"url": {}}}),
        ({"elicitation": {"url": {}, "form": {"x": 1}}}, LATEST, {"elicitation": {"form": {}, "url": {}}}),
        ({"sampling": {"tools": {}, "x": {}}}, LATEST, {"sampling": {"tools": {}}}),
        ({"roots": {"listChanged": True}}, LATEST, {"roots": {}}),
        ({"elicitation": {}, "roots": {}}, "2025-03-26", {"roots": {}}),
        ({"roots": {}}, "of tomorrow", {"roots": {}}),
        (
            {"roots": {}, "extensions": {"io.modelcontextprotocol/tasks": {}, "a/b": {"c": 1}}},
            LATEST,
            {"roots": {}, "extensions": {"a/b": {"c": 1}}},
        ),
        ({"roots": {}, "extensions": {"io.modelcontextprotocol/tasks": {}}}, LATEST, {"roots": {}}),
        ({"extensions": {"a/b": {}}}, LATEST, {}),
        ({"elicitation": True, "roots": None, "sampling": []}, LATEST, {}),
        ([], LATEST, {}),
    ],
)  # fmt: skip
def test_what_a_legacy_server_is_told_that_it_can_ask(capabilities: Json, revision: str, declared: Json) -> None:
    told = askable(bytes(raw(capabilities)), revision)
    assert json.loads(told) == declared
    assert (told == NOBODY) is (declared == {})


def test_what_means_the_same_is_one_text() -> None:
    assert askable(b'{"roots":{},"elicitation":{}}', LATEST) == askable(
        b'{ "elicitation":{"form":{}}, "roots":{}}', LATEST
    )
    assert askable(b"no json", LATEST) == NOBODY


@pytest.mark.parametrize(
    ("declared", "method", "params", "may"),
    [
        ({"elicitation": {"form": {}}}, "elicitation/create", {}, True),
        ({"elicitation": {"form": {}}}, "elicitation/create", {"mode": "form"}, True),
        ({"elicitation": {"form": {}}}, "elicitation/create", {"mode": "url"}, False),
        ({"elicitation": {"url": {}}}, "elicitation/create", {"mode": "url"}, True),
        ({"elicitation": {"url": {}}}, "elicitation/create", {}, False),
        ({}, "elicitation/create", {}, False),
        ({"sampling": {}}, "sampling/createMessage", {}, True),
        ({}, "sampling/createMessage", {}, False),
        ({"roots": {}}, "roots/list", {}, True),
        ({}, "roots/list", {}, False),
        ({"roots": {}, "sampling": {}, "elicitation": {"form": {}}}, "tasks/get", {}, False),
    ],
)
def test_only_what_was_declared_may_be_asked(declared: Json, method: str, params: Json, may: bool) -> None:
    assert may_ask(declared, method, raw(params)) is may


def test_a_question_is_put_without_what_belongs_to_the_connection() -> None:
    params = {"message": "m", "requestedSchema": {"x": 1.0}, "_meta": {}, "task": {}, "elicitationId": "e"}
    assert json.loads(inner("elicitation/create", raw(params))) == {
        "method": "elicitation/create",
        "params": {"message": "m", "requestedSchema": {"x": 1.0}},
    }
    assert inner("roots/list", Raw(b"")) == inner("roots/list", raw({"_meta": {}})) == b'{"method":"roots/list"}'
    assert json.loads(inner("elicitation/create", raw([]))) == {"method": "elicitation/create", "params": {}}


@pytest.mark.parametrize(
    ("method", "answer", "right"),
    [
        ("elicitation/create", {"action": "accept", "content": {"any": [1]}}, True),
        ("elicitation/create", {"action": "decline"}, True),
        ("elicitation/create", {"action": "cancel", "content": None}, True),
        ("elicitation/create", {"action": "accept", "content": "x"}, False),
        ("elicitation/create", {"content": {}}, False),
        ("elicitation/create", "accept", False),
        ("sampling/createMessage", {"role": "assistant", "content": [], "model": "m"}, True),
        ("sampling/createMessage", {"role": "assistant", "content": {}, "model": "m", "x": 1}, True),
        ("sampling/createMessage", {"role": "assistant", "content": "x", "model": "m"}, False),
        ("sampling/createMessage", {"role": "assistant", "content": {}}, False),
        ("roots/list", {"roots": []}, True),
        ("roots/list", {}, False),
    ],
)
def test_what_makes_sense_as_an_answer(method: str, answer: Json, right: bool) -> None:
    assert (answer_fault(method, raw(answer)) is None) is right


@pytest.mark.parametrize(
    ("field", "right", "wrong"),
    [
        ({"type": "string"}, ["", "a"], [7, None, ["a"]]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc"], ["a", "abcd"]),
        ({"type": "string", "enum": ["a", "b"]}, ["a"], ["c", 1]),
        ({"type": "string", "oneOf": [{"const": "a", "title": "A"}]}, ["a"], ["A"]),
        ({"type": "boolean"}, [True, False], [1, "true"]),
        ({"type": "number", "minimum": 1, "maximum": 2.5}, [1, 2.5], [0, 3, True, "1"]),
        ({"type": "integer"}, [1, 2.0], [1.5, True]),
        ({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1}, [["a", "b"]], [[], "a", ["c"]]),
        ({"type": "array", "items": {"anyOf": [{"const": "a"}]}, "maxItems": 1}, [["a"], []], [["b"], ["a", "a"]]),
        ({"type": "array"}, [[1, "a"]], [{}]),
        ({"type": "of tomorrow"}, [1, "a", {}], []),
        ({"type": "string", "minLength": "long"}, ["a"], []),
        ("no schema", [1], []),
    ],
)  # fmt: skip
def test_a_form_is_filled_in_as_its_fields_want_it(field: Json, right: list[Json], wrong: list[Json]) -> None:
    asked = raw({"requestedSchema": {"type": "object", "properties": {"x": field}}})

    def fault(value: Json) -> str | None:
        return form_fault(asked, raw({"action": "accept", "content": {"x": value}}))

    assert [fault(each) for each in right] == [None] * len(right)
    assert [fault(each) for each in wrong] == ["'x' is not as its field wants it"] * len(wrong)


@pytest.mark.parametrize(
    ("schema", "answer", "fault"),
    [
        ({"required": ["x"]}, {"action": "accept"}, "'x' is missing"),
        ({"required": ["x"]}, {"action": "accept", "content": {"x": 1, "y": 2}}, None),
        ({"required": ["x"]}, {"action": "decline"}, None),
        ({"required": 7}, {"action": "accept"}, None),
        ({}, {"action": "accept"}, None),
        (None, {"action": "accept"}, None),
    ],
)
def test_an_accepted_form_has_what_is_required(schema: Json, answer: Json, fault: str | None) -> None:
    assert form_fault(raw({"requestedSchema": schema}), raw(answer)) == fault
    assert form_fault(raw({}), raw(answer)) is None


@pytest.mark.parametrize(
    ("params", "token"),
    [
        ({"_meta": {"progressToken": "p"}}, "p"),
        ({"_meta": {"progressToken": 0}}, 0),
        ({"_meta": {"progressToken": True}}, None),
        ({"_meta": 1}, None),
        ({}, None),
    ],
)
def test_the_token_of_who_wants_to_hear_of_progress(params: Json, token: Json) -> None:
    assert progress_token(raw(params)) == token
    assert progress_token(Raw(b"")) is None


def test_a_question_that_is_no_json_wants_to_hear_nothing() -> None:
    assert progress_token(Raw(b"{")) is None
