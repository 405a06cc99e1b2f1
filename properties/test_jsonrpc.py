"""Messages survive encoding, and depth is what a plain count says."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cord_trio.errors import Malformed
from cord_trio.protocol.headers import decode_header_value, encode_header_value
from cord_trio.protocol.jsonrpc import (
    MAX_DEPTH,
    Id,
    Json,
    check,
    decode,
    decode_error,
    encode,
    encode_error,
    encode_notification,
    encode_request,
    encode_result,
    members,
    object_of,
    parse,
    too_deep,
)
from cord_trio.protocol.tools import exported_name

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
IDS: st.SearchStrategy[Id] = st.one_of(st.integers(), TEXT)
JSON: st.SearchStrategy[Json] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=10,
)
OBJECTS = st.dictionaries(TEXT, JSON)


@given(IDS, TEXT, OBJECTS)
def test_requests_come_back(id: Id, method: str, params: dict[str, Json]) -> None:
    text = encode(params)
    envelope = check(decode(encode_request(id, method, text)))
    assert (envelope.id, type(envelope.id), envelope.method, bytes(envelope.params)) == (id, type(id), method, text)
    notification = check(decode(encode_notification(method, text)))
    assert notification.is_notification
    assert bytes(notification.params) == text


@given(IDS, JSON)
def test_results_come_back(id: Id, result: Json) -> None:
    envelope = check(decode(encode_result(id, encode(result))))
    assert envelope.id == id
    assert parse(envelope.result) == result


@given(st.none() | IDS, st.integers(-(2**31), 2**31), TEXT, JSON)
def test_errors_come_back(id: Id | None, code: int, message: str, data: Json) -> None:
    error = decode_error(check(decode(encode_error(id, code, message, encode(data)))).error)
    assert (error.code, error.message, parse(error.data)) == (code, message, data)


@given(OBJECTS, st.booleans())
def test_members_put_together_again_are_the_same_object(value: dict[str, Json], pretty: bool) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1 if pretty else None).encode()
    assert parse(object_of(members(text))) == value


@given(st.binary())
@example(b'{"jsonrpc":"2.0","id":1,"method":"m","params":"\xff"}')
def test_any_bytes_are_a_message_or_malformed(line: bytes) -> None:
    code = 0
    try:
        check(decode(line))
    except Malformed as exc:
        code = exc.code
    assert code in (0, -32700, -32600, -32602)


@given(TEXT)
def test_header_values_come_back_and_are_plain(text: str) -> None:
    value = encode_header_value(text)
    assert value.isascii()
    assert value.isprintable()
    assert value == value.strip() != ""
    assert decode_header_value(value) == text


@given(TEXT, TEXT)
def test_exported_names_are_always_legal(prefix: str, tool: str) -> None:
    name = exported_name(prefix, tool)
    assert 0 < len(name) <= 64
    assert name.isascii()
    assert not set(name) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


def depth(value: Json) -> int:
    match value:
        case dict():
            return 1 + max(map(depth, value.values()), default=0)
        case list():
            return 1 + max(map(depth, value), default=0)
    return 0


NOISE = st.text(st.sampled_from(list('[]{}"\\a\n')), max_size=12)


@given(
    st.recursive(
        NOISE | st.integers(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NOISE, inner, max_size=4),
        max_leaves=30,
    ),
    st.integers(MAX_DEPTH - 12, MAX_DEPTH + 2),
    st.booleans(),
)
def test_depth_is_counted_outside_strings_alone(value: Json, around: int, objects: bool) -> None:
    for _ in range(around):
        value = {"]": value} if objects else [value, "["]
    assert too_deep(json.dumps(value).encode()) == (depth(value) > MAX_DEPTH)


@given(st.integers(1, 3))
def test_too_deep_is_malformed(more: int) -> None:
    levels = MAX_DEPTH + more - 1
    with pytest.raises(Malformed, match="deeper"):
        decode(b'{"params":' + b"[" * levels + b"]" * levels + b"}")
