from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec import Raw

from cord_trio.protocol.mcp import (
    ToolResult,
    decode_discovered,
    decode_progress,
    decode_tools_page,
    relayed,
    result_type,
)

EXAMPLES = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "examples").glob("*.json"))}


def of(kind: str) -> list[str]:
    return [name for name in EXAMPLES if name.startswith(f"{kind}.")]


@pytest.mark.parametrize("name", of("Tool"))
def test_a_tool_of_the_specification_survives(name: str) -> None:
    page = decode_tools_page(b'{"tools":[%b]}' % EXAMPLES[name])
    assert (page.skipped, page.notes) == ((), ())
    (tool,) = page.tools
    assert tool.header_fault is None
    assert json.loads(tool.encode(tool.name)) == json.loads(EXAMPLES[name])


@pytest.mark.parametrize("name", of("ListToolsResult"))
def test_a_page_of_the_specification_survives(name: str) -> None:
    page = decode_tools_page(EXAMPLES[name])
    assert (page.next_cursor, page.ttl_ms, page.cache_scope) == ("next-page-cursor", 300000, "public")
    assert [json.loads(tool.encode(tool.name)) for tool in page.tools] == json.loads(EXAMPLES[name])["tools"]


@pytest.mark.parametrize("name", of("CallToolResult"))
def test_a_result_of_the_specification_is_read(name: str) -> None:
    plain = json.loads(EXAMPLES[name])
    result = ToolResult(EXAMPLES[name])
    assert [json.loads(block.encode()) for block in result.content] == plain["content"]
    assert result.text == plain["content"][0]["text"]
    assert result.structured == plain.get("structuredContent")
    assert result.is_error is plain.get("isError", False)
    assert json.loads(bytes(relayed(result.raw))) == {k: v for k, v in plain.items() if k != "resultType"}


@pytest.mark.parametrize(
    "name", [name for kind in ("Audio", "Image", "Text") for name in of(f"{kind}Content")] + of("ResourceLink")
)
def test_a_block_of_the_specification_survives(name: str) -> None:
    (block,) = ToolResult(b'{"content":[%b]}' % EXAMPLES[name]).content
    assert json.loads(block.encode()) == json.loads(EXAMPLES[name])


def test_the_specification_s_other_values_are_read() -> None:
    (discovered,) = (decode_discovered(EXAMPLES[name]) for name in of("DiscoverResult"))
    assert discovered.revisions == ("2026-07-28",)
    assert discovered.server_info == {"name": "ExampleServer", "version": "1.0.0"}
    assert (discovered.ttl_ms, discovered.cache_scope) == (3600000, "public")
    (progress,) = (decode_progress(EXAMPLES[name]) for name in of("ProgressNotificationParams"))
    assert (progress.token, progress.progress, progress.total) == ("oivaizmir", 50, 100)
    assert {result_type(Raw(EXAMPLES[name])) for name in of("InputRequiredResult")} == {"input_required"}
