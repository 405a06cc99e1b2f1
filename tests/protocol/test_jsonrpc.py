from __future__ import annotations

import json

import msgspec
import pytest
from msgspec import UNSET, Raw

from cord_trio.errors import Malformed, TooDeep
from cord_trio.protocol.jsonrpc import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    MAX_DEPTH,
    PARSE_ERROR,
    Envelope,
    Id,
    RpcError,
    check,
    decode,
    decode_error,
    decoder,
    encode,
    encode_error,
    encode_notification,
    encode_request,
    encode_result,
    members,
    object_of,
    parse,
    payload_of,
    spoilt_reply_id,
    too_deep,
)


def refused(line: bytes) -> tuple[int, Id | None]:
    with pytest.raises(Malformed) as caught:
        check(decode(line))
    return caught.value.code, caught.value.id


@pytest.mark.parametrize("id", [0, -1, 9007199254740993, "1", "init-1", "", "é"])
def test_i03_ids_come_back_as_they_were(id: Id) -> None:
    envelope = check(decode(encode_request(id, "ping")))
    assert (envelope.id, type(envelope.id)) == (id, type(id))
    for reply in (encode_result(id, b"{}"), encode_error(id, -32601, "no")):
        assert json.loads(reply)["id"] == id
        assert decode(reply).id == id


def test_a_request_is_told_from_a_notification_and_a_reply() -> None:
    request = decode(encode_request(1, "m", b'{"a":[1, 2.50]}'))
    notification = decode(encode_notification("m"))
    reply = decode(encode_result(1, b"{}"))
    assert [(message.is_request, message.is_notification) for message in (request, notification, reply)] == [
        (True, False),
        (False, True),
        (False, False),
    ]
    assert bytes(request.params) == b'{"a":[1, 2.50]}'
    assert bytes(decode(encode_notification("m", b'{"b":1}')).params) == b'{"b":1}'


def test_f06_invalid_utf8_is_a_parse_error() -> None:
    assert refused(b"\xff\xfe") == (PARSE_ERROR, None)
    assert refused(b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":"\xff"}}') == (PARSE_ERROR, None)


def test_f12_a_foreign_framing_is_named() -> None:
    with pytest.raises(Malformed, match="Content-Length"):
        decode(b"content-length: 58")


def test_f04_unicode_line_separators_pass_unchanged() -> None:
    params = '{"t":"a\u2028b\u0085"}'.encode()
    assert bytes(decode(encode_request(1, "m", params)).params) == params


@pytest.mark.parametrize(
    "line", [b"", b"{", b"nope", b"{} {}", b'{"id":NaN}', b'{"params":{"a":Infinity}}', b"Content-Length: 2"]
)
def test_what_is_no_json_is_a_parse_error(line: bytes) -> None:
    assert refused(line) == (PARSE_ERROR, None)


@pytest.mark.parametrize("id", [b"1.0", b"1.5", b"true", b"[]", b"{}", b"1e2"])
def test_ids_of_other_types_are_refused(id: bytes) -> None:
    assert refused(b'{"jsonrpc":"2.0","id":%b,"method":"m"}' % id) == (INVALID_REQUEST, None)


@pytest.mark.parametrize("line", [b"[]", b'[{"jsonrpc":"2.0","id":1,"method":"m"}]', b"1", b'"x"', b"null"])
def test_what_is_no_object_is_an_invalid_request(line: bytes) -> None:
    assert refused(line) == (INVALID_REQUEST, None)


def test_a_wrong_member_leaves_the_id_readable() -> None:
    assert refused(b'{"jsonrpc":"2.0","id":"a","method":7}') == (INVALID_REQUEST, "a")
    assert refused(b'{"jsonrpc":"2.0","id":true,"method":7}') == (INVALID_REQUEST, None)


def test_i08_a_request_with_a_null_id_is_refused() -> None:
    assert refused(b'{"jsonrpc":"2.0","id":null,"method":"tools/list"}') == (INVALID_REQUEST, None)
    assert not decode(b'{"jsonrpc":"2.0","id":null,"method":"tools/list"}').is_notification


def test_i07_an_error_without_an_id_is_a_message() -> None:
    for line in (
        b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}',
        b'{"jsonrpc":"2.0","error":{"code":-32700,"message":"x"}}',
    ):
        envelope = check(decode(line))
        assert not envelope.is_request
        assert not envelope.is_notification
        assert decode_error(envelope.error) == RpcError(-32700, "x")
    assert json.loads(encode_error(None, -32700, "x")) == {"jsonrpc": "2.0", "error": {"code": -32700, "message": "x"}}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"id":1,"method":"m"}', (INVALID_REQUEST, 1)),
        (b'{"jsonrpc":"1.0","id":1,"method":"m"}', (INVALID_REQUEST, 1)),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":[1]}', (INVALID_PARAMS, 1)),
        (b'{"jsonrpc":"2.0","method":"m","params":null}', (INVALID_REQUEST, None)),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","result":{}}', (INVALID_REQUEST, 1)),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","error":{}}', (INVALID_REQUEST, 1)),
        (b'{"jsonrpc":"2.0","id":1}', (INVALID_REQUEST, 1)),
        (b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}', (INVALID_REQUEST, 1)),
        (b'{"jsonrpc":"2.0","result":{}}', (INVALID_REQUEST, None)),
        (b'{"jsonrpc":"2.0"}', (INVALID_REQUEST, None)),
    ],
)
def test_what_is_not_strictly_a_message_is_refused(line: bytes, expected: tuple[int, Id | None]) -> None:
    assert refused(line) == expected


def test_payloads_are_free_of_line_breaks_and_strings_stay_as_they_are() -> None:
    envelope = decode(b'{\r\n"id": 1,\n"result": {\n  "a": "x\\ny",\r  "b": 1.0\n}\n}')
    assert bytes(envelope.result) == b'{   "a": "x\\ny",   "b": 1.0 }'
    assert refused(b'{"jsonrpc":"2.0","id":1,"result":{"a":"x\ny"}}') == (PARSE_ERROR, None)


def test_depth_is_bounded_and_brackets_in_strings_do_not_count() -> None:
    def nested(levels: int) -> bytes:
        return b'{"params":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    for depth in (4, 12, 300):
        decode_so = decoder(depth)
        assert decode_so(nested(depth)).id is UNSET
        with pytest.raises(TooDeep, match=rf"deeper than bounds\.json_depth = {depth} levels"):
            decode_so(nested(depth + 1))
    assert decode(nested(MAX_DEPTH)).id is UNSET
    with pytest.raises(Malformed, match=r"deeper than bounds\.json_depth = 128"):
        decode(nested(MAX_DEPTH + 1))
    with pytest.raises(Malformed) as caught:
        decode(nested(100_000))
    assert caught.value.code == PARSE_ERROR
    assert not too_deep(b'["' + b"[" * 500 + b'","\\"' + b"{" * 500 + b'\\\\"]')
    assert not too_deep(b"[" + b",".join([b"[[1]]"] * 500) + b"]")
    assert too_deep(b'["\\\\",' + b'{"a":["]",' * 70 + b"0" + b"]}" * 70 + b"]")
    assert not too_deep(b"[" * 127 + b",".join([b"[]"] * 100) + b"]" * 127)


def test_a_malformed_error_becomes_an_internal_one_that_shows_it() -> None:
    assert decode_error(Raw(b'{"code":"x"}')) == RpcError(INTERNAL_ERROR, 'malformed error: {"code":"x"}')
    assert decode_error(Raw(b'"boom"')).message == 'malformed error: "boom"'
    assert bytes(decode_error(Raw(b'{"code":1,"data":{"a":1},"more":2}')).data) == b'{"a":1}'


def test_members_of_absent_are_none_and_of_no_object_are_refused() -> None:
    assert members(b"") == {}
    assert members(Raw(b'{"a": 1.0,"b":[ ]}')) == {"a": Raw(b"1.0"), "b": Raw(b"[ ]")}
    with pytest.raises(Malformed, match="not an object"):
        members(b"[]")


def test_plain_values_are_encoded_without_nan_and_line_breaks() -> None:
    assert encode({"a": float("nan"), "b": "x\ny", "c": Raw(b"[1]")}) == b'{"a":null,"b":"x\\ny","c":[1]}'
    assert object_of({"a": Raw(b"1.0"), 'q"': b"{}"}) == b'{"a":1.0,"q\\"":{}}'
    assert parse(b'{"a":[1,null]}') == {"a": [1, None]}
    with pytest.raises(msgspec.DecodeError):
        parse(b"{")


def test_an_error_carries_its_data() -> None:
    assert json.loads(encode_error("x", -32022, "no", b'{"supported":[]}')) == {
        "jsonrpc": "2.0",
        "id": "x",
        "error": {"code": -32022, "message": "no", "data": {"supported": []}},
    }


def test_an_empty_envelope_is_neither() -> None:
    assert not Envelope().is_request
    assert not Envelope().is_notification


@pytest.mark.parametrize(
    ("line", "id"),
    [
        (b'{"jsonrpc":"2.0","id":7,"result":{"a":NaN}}', 7),
        (b' {"id" : "x", "jsonrpc" : "2.0", "error": {', "x"),
        (b'{"jsonrpc":"2.0","result":{"id":1,"a":"\xff"},"id":7}', 7),
        (b'{"result":NaN,"id":7.0,"jsonrpc":"2.0"}\r', 7),
        (b'{"jsonrpc":"2.0","result":{"id":1}', None),
        (b'{"jsonrpc":"2.0","id":7,"method":"m","result":NaN}', None),
        (b'{"jsonrpc":"2.0","method":"m","params":{"a":NaN},"id":7}', None),
        (b'{"jsonrpc":"2.0","id":7.5,"result":NaN}', None),
        (b'{"level":"info","id":7,"result":NaN}', None),
        (b'{"id":007,"result":NaN}', None),
        (b'{"id":"\xff","result":NaN}', None),
        (b"[1,", None),
    ],
)
def test_a_spoilt_reply_still_says_whom_it_answers(line: bytes, id: Id | None) -> None:
    assert spoilt_reply_id(line) == id


def test_what_is_too_deep_leaves_the_id_readable() -> None:
    with pytest.raises(Malformed, match="deeper") as caught:
        decode(b'{"jsonrpc":"2.0","id":7,"method":"m","params":{"a":%b}}' % (b"[" * 200 + b"]" * 200))
    assert caught.value.id == 7


@pytest.mark.parametrize(("levels", "deep"), [(127, False), (128, True)])
@pytest.mark.parametrize("around", [b"[%b]", b'{"a":%b}'])
def test_a_long_message_is_as_deep_as_a_short_one(levels: int, deep: bool, around: bytes) -> None:
    text = b'{"jsonrpc":"2.0","id":1,"result":%b}'
    value = b'"%b"' % (b"x" * 70_000)
    for _ in range(levels):
        value = around % value
    assert too_deep(text % value) is deep


@pytest.mark.parametrize(("brackets", "deep"), [(b"", False), (b"[]" * 200, False), (b"[" * 200, True)])
def test_a_long_message_with_many_brackets_is_looked_at_in_full(brackets: bytes, deep: bool) -> None:
    assert too_deep(b'["%b",%b' % (b"[" * 70_000, brackets)) is deep


@pytest.mark.parametrize(
    "text", [b"", b"x", b"{}{}", b'{"a":1},"b":{}', b'"\xff"', b"[" * 129 + b"]" * 129, b"[" * 100_000 + b"]" * 100_000]
)
def test_what_is_not_one_json_text_is_no_payload(text: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        payload_of(text)
    assert caught.value.code == PARSE_ERROR


def test_a_payload_is_free_of_line_breaks_and_else_as_it_was() -> None:
    assert bytes(payload_of(b'{"a":\r\n[1,\n"\\n"]}')) == b'{"a":  [1, "\\n"]}'
    assert bytes(payload_of('{"a": "\u00e4"}'.encode())) == '{"a": "\u00e4"}'.encode()
    assert bytes(payload_of(b"[" * 200 + b"]" * 200, 200)) == b"[" * 200 + b"]" * 200
    with pytest.raises(Malformed):
        members(b'{"a":%b}' % (b"[" * 100_000 + b"]" * 100_000))
