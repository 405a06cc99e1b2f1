"""What a form's fields ask for, line by line, and what a line says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cord_trio.cli.forms import Unclear, describe, fields, read

if TYPE_CHECKING:
    from cord_trio.protocol.jsonrpc import Json

SIZES: Json = {"type": "string", "enum": ["s", "l"], "enumNames": ["Small", "Large"]}
TITLED: Json = {"type": "string", "oneOf": [{"const": "a", "title": "Ada"}, {"const": "b"}, {"title": "nothing"}]}
SEVERAL: Json = {"type": "array", "items": {"anyOf": [{"const": "x"}, {"const": "y"}]}, "minItems": 1, "maxItems": 2}


@pytest.mark.parametrize(
    ("field", "line", "value"),
    [
        ({"type": "string"}, "héllo", "héllo"),
        ({}, "anything", "anything"),
        *(({"type": "boolean"}, line, True) for line in ("y", "YES", "true")),
        *(({"type": "boolean"}, line, False) for line in ("n", "No", "false")),
        ({"type": "integer"}, "-7", -7),
        ({"type": "number", "maximum": 2}, "1.5", 1.5),
        (SIZES, "s", "s"),
        (SIZES, "Large", "l"),
        (SIZES, "2", "l"),
        (TITLED, "1", "a"),
        (TITLED, "b", "b"),
        (SEVERAL, "2, x", ["y", "x"]),
        ({"type": "array", "items": {"enum": ["x"]}}, "", []),
        ({"type": "string", "enum": ["2", "1"]}, "1", "1"),
    ],
)
def test_a_line_says_what_its_field_is_of(field: Json, line: str, value: Json) -> None:
    found = read(field, line)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("field", "line", "please"),
    [
        ({"type": "boolean"}, "maybe", "y or n"),
        ({"type": "integer"}, "1.5", "a whole number"),
        ({"type": "number"}, "", "a number"),
        ({"type": "number"}, "inf", "a number"),
        ({"type": "number"}, "nan", "a number"),
        ({"type": "integer", "minimum": 1, "maximum": 3}, "4", "a number from 1 up to 3"),
        (SIZES, "3", "a number from 1 to 2"),
        (SIZES, "٢", "a number from 1 to 2"),
        (SEVERAL, "", "1 choices or more"),
        (SEVERAL, "1,2,1", "2 choices at most"),
        ({"type": "string", "minLength": 2}, "a", "2 characters or more"),
        ({"type": "string", "maxLength": 2}, "abc", "2 characters at most"),
    ],
)
def test_a_line_that_says_nothing_of_the_kind_is_told_what_would(field: Json, line: str, please: str) -> None:
    with pytest.raises(Unclear) as caught:
        read(field, line)
    assert str(caught.value) == please


@pytest.mark.parametrize(
    ("field", "required", "text"),
    [
        ({"type": "string"}, True, "it"),
        ({"type": "string", "title": "It", "description": "what"}, False, "It (what; may be left empty)"),
        ({"type": "boolean", "default": False}, True, "it (y or n; else n)"),
        ({"type": "integer", "minimum": 1}, True, "it (integer from 1)"),
        ({**SIZES, "default": "l"}, True, "it (else Large)\n  1 Small\n  2 Large"),
        ({**SEVERAL, "default": ["x", "y"]}, True, "it (numbers with commas between them; else x, y)\n  1 x\n  2 y"),
    ],
)
def test_a_field_is_described_with_its_choices(field: Json, required: bool, text: str) -> None:
    assert describe("it", field, required=required) == text


@pytest.mark.parametrize("schema", [None, [], {}, {"properties": []}, {"properties": None, "required": 1}])
def test_a_form_of_another_shape_has_no_fields(schema: Json) -> None:
    assert fields(schema) == []


def test_fields_come_in_their_order_with_whether_they_must_be_filled_in() -> None:
    schema = {"properties": {"b": {"type": "string"}, "a": 1}, "required": ["b"]}
    assert fields(schema) == [("b", {"type": "string"}, True), ("a", {}, False)]
