from __future__ import annotations

import json

import pytest
from msgspec import Raw

from cord_trio.errors import Malformed
from cord_trio.protocol.mcp import (
    HOP_LOCAL_META,
    META_CAPABILITIES,
    META_CLIENT_INFO,
    META_SERVER_INFO,
    META_VERSION,
    Discovered,
    Initialized,
    Progress,
    decode_discovered,
    decode_initialized,
    decode_progress,
    envelope_meta,
    progress_token,
    relayed,
    result_type,
    supported_versions,
)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"{}", "complete"),
        (b'{"content":[]}', "complete"),
        (b'{"resultType":null}', "complete"),
        (b'{"resultType":"complete"}', "complete"),
        (b'{"a":{"resultType":"task"}}', "complete"),
        (b'{"a":1,"resultType":"input_required"}', "input_required"),
        (b'{"resultType":"new/kind"}', "new/kind"),
    ],
)
def test_a_result_is_complete_unless_it_says_otherwise(raw: bytes, expected: str) -> None:
    assert result_type(Raw(raw)) == expected


@pytest.mark.parametrize("raw", [b"[]", b'"x"', b"null", b'{"resultType":5}'])
def test_what_is_no_result_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed, match="not a result"):
        result_type(raw)


def test_a_result_without_members_of_the_hop_is_relayed_as_it_is() -> None:
    for text in (b"{}", b'{"content":[ ],"_meta":{"v/x": 1.0}}', b'{"_meta":null}'):
        raw = Raw(text)
        assert relayed(raw) is raw


def test_members_of_the_hop_are_not_relayed() -> None:
    raw = b'{"resultType":"complete","content":[ ],"ttlMs":1,"cacheScope":"public","_meta":{"v/x": 1.0,"%b":{}}}'
    assert relayed(Raw(raw % META_SERVER_INFO.encode())) == Raw(b'{"content":[ ],"_meta":{"v/x":1.0}}')
    assert relayed(Raw(b'{"_meta":{"progressToken":1},"a":1}')) == Raw(b'{"a":1}')
    with pytest.raises(Malformed):
        relayed(Raw(b"[]"))


def test_an_envelope_has_its_three_members_and_none_leaves_the_hop() -> None:
    meta = envelope_meta("2026-07-28", {"name": "cord", "version": "1"}, b'{"elicitation":{}}')
    assert {name: json.loads(bytes(value)) for name, value in meta.items()} == {
        META_VERSION: "2026-07-28",
        META_CLIENT_INFO: {"name": "cord", "version": "1"},
        META_CAPABILITIES: {"elicitation": {}},
    }
    assert meta.keys() < HOP_LOCAL_META


def test_an_answer_to_initialize_is_decoded() -> None:
    assert decode_initialized(
        b'{"protocolVersion":"2025-11-25","capabilities":{"tools":{"listChanged":true},"x":1},'
        b'"serverInfo":{"name":"s","version":"","icons":[]},"instructions":"be kind","more":1}'
    ) == Initialized(
        "2025-11-25",
        {"tools": {"listChanged": True}, "x": 1},
        {"name": "s", "version": "", "icons": []},
        "be kind",
    )


def test_an_answer_to_initialize_may_lack_all_but_the_revision() -> None:
    assert decode_initialized(b'{"protocolVersion":"1"}') == Initialized("1", {}, {})
    assert decode_initialized(
        b'{"protocolVersion":"1","capabilities":null,"serverInfo":"s","instructions":5}'
    ) == Initialized("1", {}, {})


@pytest.mark.parametrize(
    ("raw", "words"),
    [(b"{}", "no protocolVersion"), (b'{"protocolVersion":1}', "no protocolVersion"), (b"null", "not an object")],
)
def test_an_answer_to_initialize_without_a_revision_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(Malformed, match=f"initialize.*{words}"):
        decode_initialized(raw)


def test_discovery_may_lack_all_but_the_revisions() -> None:
    assert decode_discovered(b'{"supportedVersions":["2026-07-28",5]}') == Discovered(("2026-07-28",), {}, {})


def test_the_server_is_known_by_its_meta_first() -> None:
    both = b'{"supportedVersions":["x"],"_meta":{"%b":{"name":"m"}},"serverInfo":{"name":"t"}}'
    assert decode_discovered(both % META_SERVER_INFO.encode()).server_info == {"name": "m"}
    assert decode_discovered(b'{"supportedVersions":["x"],"serverInfo":{"name":"t"}}').server_info == {"name": "t"}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{}", "lists no supportedVersions"),
        (b'{"supportedVersions":"2026-07-28"}', "lists no supportedVersions"),
        (b'{"supportedVersions":[1]}', "lists no supportedVersions"),
        (b'{"supportedVersions":["x"],"resultType":"input_required"}', "type 'input_required'"),
        (b'{"supportedVersions":["x"],"resultType":1}', "not a result"),
        (b"[]", "not an object"),
    ],
)
def test_discovery_without_revisions_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(Malformed, match=words):
        decode_discovered(raw)


def test_supported_versions_are_read_from_an_error() -> None:
    assert supported_versions(b'{"supported":["2026-07-28","2025-11-25"],"requested":"x"}') == (
        "2026-07-28",
        "2025-11-25",
    )
    for data in (b"", b"null", b"[]", b"{}", b'{"supported":5}'):
        assert supported_versions(data) == ()


def test_progress_is_decoded_with_its_types() -> None:
    assert decode_progress(b'{"progressToken":7,"progress":0.5,"total":1,"message":"m","_meta":{}}') == Progress(
        7, 0.5, 1, "m"
    )
    assert decode_progress(b'{"progressToken":"7","progress":1}').token == "7"
    for bad in (
        b"{}",
        b'{"progressToken":true,"progress":1}',
        b'{"progressToken":1}',
        b'{"progressToken":1.5,"progress":1}',
    ):
        with pytest.raises(Malformed, match="not a progress notification"):
            decode_progress(bad)


def test_a_progress_token_is_a_string_or_an_integer() -> None:
    values = (b'"a"', b"7", b"true", b"1.5", b"null")
    assert [progress_token({"progressToken": Raw(value)}) for value in values] == ["a", 7, None, None, None]
    assert progress_token({}) is None


def test_a_result_that_begins_as_complete_is_read_no_further() -> None:
    assert result_type(Raw(b'{"resultType":"complete","content":[]}')) == "complete"
