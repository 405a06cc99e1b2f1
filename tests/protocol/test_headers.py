from __future__ import annotations

import json

import pytest

from cord_trio.errors import Malformed
from cord_trio.protocol.eras import HEADER_MISMATCH
from cord_trio.protocol.headers import (
    ParamHeader,
    check_param_headers,
    decode_header_value,
    encode_header_value,
    find_param_headers,
    read_param_headers,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("us-west1", "us-west1"),
        ("Hello, world", "Hello, world"),
        ("café", "=?base64?Y2Fmw6k=?="),
        (" x ", "=?base64?IHgg?="),
        ("a\r\nX-Evil: 1", "=?base64?YQ0KWC1FdmlsOiAx?="),
        ("", "=?base64??="),
        ("=?base64?YQ==?=", "=?base64?PT9iYXNlNjQ/WVE9PT89?="),
        ("a\tb", "=?base64?YQli?="),
        ("x\x7f", "=?base64?eH8=?="),
        ("a\n", "=?base64?YQo=?="),
    ],
)
def test_m08_header_values_survive_the_wire(text: str, value: str) -> None:
    assert encode_header_value(text) == value
    assert decode_header_value(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", ""),
        ("  plain \t", "plain"),
        ("=?base64??=", ""),
        ("=?BASE64?YQ==?=", "=?BASE64?YQ==?="),
        ("=?base64?=", "=?base64?="),
        ("=?base64?YQ==", "=?base64?YQ=="),
    ],
)
def test_m09_values_are_decoded_before_they_are_compared(value: str, text: str) -> None:
    assert decode_header_value(value) == text


@pytest.mark.parametrize(
    "value", ["=?base64?Y?=", "=?base64?!!!!?=", "=?base64?/w==?=", "=?base64?YR==?=", "café", "a\x00b", "a\tb", "a\nb"]
)
def test_m09_values_that_cannot_be_decoded_are_a_header_mismatch(value: str) -> None:
    with pytest.raises(Malformed, match="header value") as caught:
        decode_header_value(value)
    assert caught.value.code == HEADER_MISMATCH


def schema(**properties: object) -> bytes:
    return json.dumps({"type": "object", "properties": properties}).encode()


def test_annotations_are_found_through_nested_properties() -> None:
    found = find_param_headers(
        schema(
            region={"type": "string", "x-mcp-header": "Region"},
            where={"type": "object", "properties": {"zone": {"type": "integer", "x-mcp-header": "Zone"}}},
        )
    )
    assert found == (
        ParamHeader("Mcp-Param-Region", ("region",)),
        ParamHeader("Mcp-Param-Zone", ("where", "zone")),
    )


def test_schemas_without_annotations_ask_for_none() -> None:
    assert find_param_headers(schema(a={"type": "string"})) == ()
    assert check_param_headers(b'{"type":"object"}') is None


@pytest.mark.parametrize("keyword", ["default", "const", "examples", "enum"])
def test_data_in_a_schema_is_not_searched(keyword: str) -> None:
    assert check_param_headers(schema(a={"type": "object", keyword: [{"x-mcp-header": ""}]})) is None


def test_a_property_may_be_called_like_the_annotation() -> None:
    assert find_param_headers(schema(**{"x-mcp-header": {"type": "string"}, "properties": True, "enum": {}})) == ()


TEXT = {"type": "string", "x-mcp-header": "A"}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (schema(a={"type": "string", "x-mcp-header": ""}), "no header name"),
        (schema(a={"type": "string", "x-mcp-header": "a b"}), "no header name"),
        (schema(a={"type": "string", "x-mcp-header": "a\r\nb"}), "no header name"),
        (schema(a={"type": "string", "x-mcp-header": "a\n"}), "no header name"),
        (schema(a={"type": "string", "x-mcp-header": "é"}), "no header name"),
        (schema(a={"type": "string", "x-mcp-header": 5}), "no header name"),
        (schema(a={"type": "string", "x-mcp-header": None}), "no header name"),
        (schema(a=TEXT, b={"type": "string", "x-mcp-header": "a"}), "used twice"),
        (schema(a={"type": "number", "x-mcp-header": "A"}), "other than string, integer or boolean"),
        (schema(a={"type": ["string"], "x-mcp-header": "A"}), "other than string, integer or boolean"),
        (schema(a={"x-mcp-header": "A"}), "other than string, integer or boolean"),
        (schema(a={"type": "array", "items": TEXT}), "reached through properties alone"),
        (schema(a={"oneOf": [TEXT]}), "reached through properties alone"),
        (schema(a={"oneOf": [{"properties": {"b": TEXT}}]}), "reached through properties alone"),
        (schema(a={"additionalProperties": TEXT}), "reached through properties alone"),
        (json.dumps({"$defs": {"a": TEXT}, "properties": {"b": {"$ref": "#/$defs/a"}}}).encode(), "reached through"),
        (json.dumps({"type": "object", "x-mcp-header": "A"}).encode(), "reached through"),
    ],
)
def test_m11_annotations_that_break_a_rule_are_named(bad: bytes, words: str) -> None:
    reason = check_param_headers(bad)
    assert reason is not None
    assert words in reason


HEADERS = find_param_headers(
    schema(
        s={"type": "string", "x-mcp-header": "S"},
        i={"type": "integer", "x-mcp-header": "I"},
        b={"type": "boolean", "x-mcp-header": "B"},
        o={"type": "object", "properties": {"n": {"type": "string", "x-mcp-header": "N"}}},
    )
)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {}),
        ({"s": None, "o": None, "i": [], "b": 1.5}, {}),
        ({"s": "x", "i": 42, "b": True, "o": {"n": "é"}}, {"S": "x", "I": "42", "B": "true", "N": "=?base64?w6k=?="}),
        ({"i": 42.0, "b": False, "o": {"n": ""}}, {"I": "42", "B": "false", "N": "=?base64??="}),
        ({"i": -(2**53) + 1}, {"I": "-9007199254740991"}),
        ({"o": "text"}, {}),
    ],
)
def test_arguments_are_repeated_in_headers(arguments: object, expected: dict[str, str]) -> None:
    found = dict(read_param_headers(HEADERS, json.dumps(arguments).encode()))
    assert found == {f"Mcp-Param-{name}": value for name, value in expected.items()}


def test_no_arguments_have_no_headers() -> None:
    assert read_param_headers(HEADERS, b"") == ()
    assert read_param_headers((), b'{"s":"x"}') == ()


def test_integers_that_not_every_reader_holds_are_refused() -> None:
    with pytest.raises(Malformed, match="argument i is beyond 9007199254740991"):
        read_param_headers(HEADERS, b'{"i":9007199254740992}')
