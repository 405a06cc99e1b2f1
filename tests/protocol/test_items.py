from __future__ import annotations

import json
from typing import Any, TypeAlias

import pytest
from msgspec import Raw

from cord_trio.errors import Malformed
from cord_trio.protocol.items import decode_prompts, decode_resources, decode_templates

Json: TypeAlias = Any


def raw(value: Json) -> Raw:
    return Raw(json.dumps(value).encode())


def test_every_member_is_kept_and_the_name_replaced() -> None:
    page = decode_prompts(raw({"prompts": [{"name": "a", "arguments": [], "_meta": {"x": 1.0}, "own": None}]}))
    (prompt,) = page.items
    assert json.loads(prompt.encode("p__a")) == {"name": "p__a", "arguments": [], "_meta": {"x": 1.0}, "own": None}
    (resource,) = decode_resources(raw({"resources": [{"uri": "u:a", "name": "a", "size": 3}]})).items
    assert json.loads(resource.encode("cord://p/u:a")) == {"uri": "cord://p/u:a", "name": "a", "size": 3}
    (template,) = decode_templates(raw({"resourceTemplates": [{"uriTemplate": "u:{a}", "name": "a"}]})).items
    assert json.loads(template.encode("t")) == {"uriTemplate": "t", "name": "a"}
    assert (prompt.key, resource.key, template.key) == ("a", "u:a", "u:{a}")


def test_one_that_cannot_be_used_hurts_no_other() -> None:
    listed = [{"uri": "u:a"}, {"name": "b"}, 7, {"uri": "u:c", "name": "c", "mimeType": 1, "title": None}]
    page = decode_resources(raw({"resources": listed, "nextCursor": ""}))
    assert [json.loads(item.encode(item.uri)) for item in page.items] == [
        {"uri": "u:a", "name": "u:a"},
        {"uri": "u:c", "name": "c"},
    ]
    assert (len(page.skipped), len(page.notes), page.next_cursor) == (2, 1, "")


@pytest.mark.parametrize("result", [{}, {"prompts": None}, {"prompts": {}}])
def test_a_result_without_a_list_is_told(result: Json) -> None:
    with pytest.raises(Malformed, match="without prompts"):
        decode_prompts(raw(result))


def test_a_cursor_that_is_no_string_ends_the_list_with_a_note() -> None:
    page = decode_prompts(raw({"prompts": [], "nextCursor": 7}))
    assert page.next_cursor is None
    assert page.notes == ("nextCursor is not a string: taken as the end of the list",)
