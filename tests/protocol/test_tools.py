from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from msgspec import Raw

from cord_trio.errors import Malformed
from cord_trio.protocol.mcp import (
    Annotations,
    Content,
    Tool,
    ToolResult,
    ToolsPage,
    decode_tools_page,
    exported_name,
    param_headers,
)

if TYPE_CHECKING:
    from cord_trio.protocol.jsonrpc import Json


def page(*tools: object, **more: object) -> ToolsPage:
    return decode_tools_page(json.dumps({"tools": tools, **more}).encode())


def only(tool: dict[str, Json]) -> Tool:
    found = page({"name": "t", "inputSchema": {"type": "object"}, **tool})
    assert found.skipped == ()
    return found.tools[0]


def test_a_tool_is_encoded_with_another_name_and_all_its_members_as_they_came() -> None:
    text = b'{"name":"a","inputSchema":{"type":"object","x":1.0,"y":[ ]},"new":{"k": null},"_meta":{"v/x":1}}'
    tool = decode_tools_page(b'{"tools":[%b]}' % text).tools[0]
    assert tool.encode("p__a") == text.replace(b'"a"', b'"p__a"')
    assert tool.encode("a") == text
    assert list(tool.members) == ["name", "inputSchema", "new", "_meta"]


def test_a_tool_keeps_its_text_once_and_what_is_read_of_it() -> None:
    text = b'{"name":"a","inputSchema":{"type":"object"},"_meta":{"v/x":1}}'
    tool = decode_tools_page(b'{"tools":[%b]}' % text).tools[0]
    assert (bytes(tool.text), tool.meta) == (text, Raw(b'{"v/x":1}'))
    other = tool.with_meta(Raw(b"{}"))
    assert bytes(other.text) == text.replace(b'{"v/x":1}', b"{}")
    assert (other.name, other.input_schema, other.meta) == (tool.name, tool.input_schema, Raw(b"{}"))
    assert only({}).meta is None


def test_what_is_left_out_of_a_tool_is_not_in_its_text() -> None:
    tool = only({"title": 7, "annotations": {"title": "T", "readOnlyHint": "no"}, "more": 1})
    assert bytes(tool.text) == b'{"name":"t","inputSchema":{"type": "object"},"annotations":{"title":"T"},"more":1}'


def test_a_tool_says_what_it_is() -> None:
    tool = only(
        {
            "title": "T",
            "description": "D",
            "outputSchema": {"type": "array"},
            "annotations": {"title": "AT", "readOnlyHint": True, "destructiveHint": False, "other": 1},
        }
    )
    assert (tool.title, tool.description, tool.label) == ("T", "D", "T")
    assert tool.annotations == Annotations(title="AT", read_only_hint=True, destructive_hint=False)
    assert tool.output_schema == Raw(b'{"type": "array"}')
    assert b'"other": 1' in bytes(tool.members["annotations"])


def test_annotations_default_to_the_cautious_side() -> None:
    tool = only({})
    assert tool.annotations == Annotations(None, False, True, False, True)
    assert (tool.title, tool.description, tool.output_schema, tool.label) == (None, "", None, "t")
    assert only({"annotations": {"title": "AT"}}).label == "AT"


def test_one_bad_tool_is_skipped_with_a_reason_and_the_others_stay() -> None:
    found = page(
        {"name": "a", "inputSchema": {"type": "object"}},
        7,
        {"inputSchema": {"type": "object"}},
        {"name": ""},
        {"name": 5},
        {"name": "z", "inputSchema": {"type": "object"}},
    )
    assert [tool.name for tool in found.tools] == ["a", "z"]
    assert found.skipped == (
        "tool 1: is not an object",
        "tool 2: has no name",
        "tool 3: has no name",
        "tool 4: has no name",
    )


@pytest.mark.parametrize("schema", [{"type": "object"}, {"type": "object", "additionalProperties": False}])
def test_r17_schemas_without_properties_are_kept_and_completed_for_models_alone(schema: dict[str, Json]) -> None:
    tool = only({"inputSchema": schema})
    assert json.loads(bytes(tool.input_schema)) == schema
    assert json.loads(tool.model_schema()) == {**schema, "properties": {}}
    whole = only({"inputSchema": {**schema, "properties": {"a": True}}})
    assert whole.model_schema() == bytes(whole.input_schema)


def test_r17_a_missing_schema_is_defaulted_and_noted() -> None:
    found = page({"name": "a"}, {"name": "b", "inputSchema": None}, {"name": "c", "inputSchema": {"title": "x"}})
    assert [bytes(tool.input_schema) for tool in found.tools] == [
        b'{"type":"object"}',
        b'{"type":"object"}',
        b'{"type":"object","title":"x"}',
    ]
    assert all(tool.members["inputSchema"] == tool.input_schema for tool in found.tools)
    assert found.notes == (
        'a: no inputSchema: taken as {"type":"object"}',
        'b: no inputSchema: taken as {"type":"object"}',
        "c: inputSchema has no type: taken as object",
    )


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string"}, 'inputSchema is of type "string", not object'),
        ({"type": ["object"]}, 'inputSchema is of type ["object"], not object'),
        (True, "inputSchema is not an object"),
        ([], "inputSchema is not an object"),
        ({"type": "object", "properties": None}, "properties of inputSchema is not an object"),
    ],
)
def test_r18_a_tool_whose_schema_is_of_no_object_is_skipped(schema: object, reason: str) -> None:
    found = page({"name": "bad", "inputSchema": schema}, {"name": "good", "inputSchema": {"type": "object"}})
    assert [tool.name for tool in found.tools] == ["good"]
    assert found.skipped == (f"tool 0: bad: {reason}",)


def test_r15_recursive_schemas_stay_as_they_are() -> None:
    schema = {
        "type": "object",
        "$defs": {"Node": {"properties": {"children": {"items": {"$ref": "#/$defs/Node"}}}}},
        "properties": {"root": {"$ref": "#/$defs/Node"}},
    }
    tool = only({"inputSchema": schema, "outputSchema": schema})
    assert json.loads(tool.encode("x"))["inputSchema"] == schema
    assert json.loads(tool.encode("x"))["outputSchema"] == schema


def test_members_on_which_strict_clients_choke_are_left_out() -> None:
    found = page(
        {
            "name": "a",
            "inputSchema": {"type": "object"},
            "title": None,
            "description": 5,
            "outputSchema": True,
            "icons": {},
            "annotations": {"title": None, "readOnlyHint": True, "idempotentHint": "yes"},
        },
        {"name": "b", "inputSchema": {"type": "object"}, "annotations": []},
    )
    first, second = found.tools
    assert json.loads(first.encode("a")) == {
        "name": "a",
        "inputSchema": {"type": "object"},
        "annotations": {"readOnlyHint": True},
    }
    assert first.annotations == Annotations(read_only_hint=True)
    assert second.annotations == Annotations()
    assert found.notes == (
        "a: description is of a wrong type: left out",
        "a: outputSchema is of a wrong type: left out",
        "a: icons is of a wrong type: left out",
        "a: annotations: idempotentHint is of a wrong type: left out",
        "b: annotations is of a wrong type: left out",
    )


def test_m11_a_wrong_header_annotation_is_a_fault_of_its_tool_alone() -> None:
    properties = {"r": {"type": "string", "x-mcp-header": "R"}}
    good, bad = page(
        {"name": "good", "inputSchema": {"type": "object", "properties": properties}},
        {"name": "bad", "inputSchema": {"type": "object", "items": properties["r"]}},
    ).tools
    assert good.header_fault is None
    assert param_headers(good, b'{"r":"x"}') == (("Mcp-Param-R", "x"),)
    assert bad.header_fault == "x-mcp-header 'R' is not on a property reached through properties alone"
    assert param_headers(bad, b'{"r":"x"}') == ()


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        ({}, (0, "private")),
        ({"ttlMs": -5, "cacheScope": "shared"}, (0, "private")),
        ({"ttlMs": "300", "cacheScope": None}, (0, "private")),
        ({"ttlMs": 1.5}, (0, "private")),
        ({"ttlMs": 10**20}, (0, "private")),
        ({"ttlMs": 300, "cacheScope": "public"}, (300, "public")),
    ],
)
def test_m18_missing_or_senseless_cache_hints_mean_stale_and_private(
    hints: dict[str, Json], expected: tuple[int, str]
) -> None:
    found = page({"name": "a", "inputSchema": {"type": "object"}}, **hints)
    assert len(found.tools) == 1
    assert (found.ttl_ms, found.cache_scope) == expected


def test_an_empty_cursor_is_a_cursor() -> None:
    assert page(nextCursor="").next_cursor == ""
    assert page(nextCursor="é").next_cursor == "é"
    assert page().next_cursor is None
    assert page(nextCursor=None) == ToolsPage(())
    assert page(nextCursor=8).notes == ("nextCursor is not a string: taken as the end of the list",)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{}", "without tools"),
        (b'{"tools":null}', "without tools"),
        (b'{"tools":{}}', "not a list"),
        (b"[]", "object"),
    ],
)
def test_a_page_without_a_list_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(Malformed, match=words):
        decode_tools_page(raw)


def test_a_result_is_decoded_where_someone_looks() -> None:
    raw = (
        b'{"content":[{"type":"text","text":"a"},{"type":"image","data":"eA==","mimeType":"image/png"},'
        b'{"type":"text","text":"b","_meta":{"k":1}}],"structuredContent":[1,null],"isError":true,"_meta":{"v":2}}'
    )
    result = ToolResult(raw)
    assert bytes(result.raw) == raw
    assert result.text == "a\nb"
    assert [block.type for block in result.content] == ["text", "image", "text"]
    assert result.content[1].text == ""
    assert result.content[1].encode() == b'{"type":"image","data":"eA==","mimeType":"image/png"}'
    assert result.content is result.content
    assert result.structured == [1, None]
    assert result.is_error
    assert result.meta == {"v": Raw(b"2")}
    assert result.members["isError"] == Raw(b"true")


def test_an_empty_result_has_nothing_in_it() -> None:
    for raw in (b"{}", b'{"content":null,"structuredContent":null,"isError":null,"_meta":null}'):
        result = ToolResult(Raw(raw))
        assert (result.content, result.text, result.structured, result.is_error, result.meta) == (
            (),
            "",
            None,
            False,
            {},
        )


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"[]", "not an object"),
        (b'{"content":5}', "content is not a list"),
        (b'{"content":[5]}', "not an object"),
        (b'{"content":[{}]}', "no type"),
        (b'{"content":[{"type":"text"}]}', "no text"),
    ],
)
def test_what_is_no_tool_result_is_refused_when_looked_at(raw: bytes, words: str) -> None:
    result = ToolResult(raw)
    with pytest.raises(Malformed, match=words):
        _ = result.text


def test_results_are_equal_by_their_bytes() -> None:
    assert ToolResult(b"{}") == ToolResult(Raw(b"{}"))
    assert ToolResult(b"{}") != ToolResult(b"{ }")
    assert ToolResult(b"{}") != b"{}"
    assert len({ToolResult(b"{}"), ToolResult(b"{}")}) == 1
    assert repr(ToolResult(b"{}")) == "<ToolResult 2 bytes>"


def test_unknown_blocks_keep_everything() -> None:
    (block,) = ToolResult(b'{"content":[{"type":"new","x":{"y":1.0}}]}').content
    assert block == Content("new", "", {"type": Raw(b'"new"'), "x": Raw(b'{"y":1.0}')})


def test_r02_exported_names_fit_models_and_stay_the_same() -> None:
    assert exported_name("time", "get_current_time") == "time__get_current_time"
    assert exported_name("", "get-it") == "get-it"
    long = exported_name("s" * 40, "t" * 60)
    assert long == "s" * 40 + "__" + "t" * 13 + "_7d08914f"
    assert exported_name("p", "a.b") == "p__a_b_1a9aa1e6"
    assert len({exported_name("p", name) for name in ("a.b", "a_b", "a b", "a/b", "a\ud800b")}) == 5
    assert exported_name("a", ".b") != exported_name("a__", "b.")
    for name in ("", "é" * 99, "a\n"):
        assert re.fullmatch("[A-Za-z0-9_-]{1,64}", exported_name("", name))
        assert "\n" not in exported_name("", name)
