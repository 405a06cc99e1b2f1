from __future__ import annotations

import json
from functools import partial

import pytest
from msgspec import Raw

from cord_trio.protocol.uris import export_template, export_uri, import_uri, may_expand_to, relink, relink_meta

PREFIXES = {"docs", "Web", "", "x"}


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("file:///a%20b/c?d=e#f", "cord://docs/file:///a%20b/c?d=e#f"),
        ("https://[::1]/x", "cord://docs/~/https://%5B::1%5D/x"),
        ("file:///ä b", "cord://docs/~/file:///%C3%A4%20b"),
        ("~/x", "cord://docs/~/~/x"),
        ("a:%zz", "cord://docs/~/a:%25zz"),
        ("a:#b#c", "cord://docs/~/a:%23b%23c"),
        ("ui://app/page", "ui://docs/app/page"),
        ("ui://ä", "ui://docs/~/%C3%A4"),
        ("cord://docs/file:///a", "cord://docs/cord://docs/file:///a"),
        ("", "cord://docs/"),
    ],
)
def test_a_uri_leads_back_to_its_source(uri: str, public: str) -> None:
    assert export_uri("docs", uri) == public
    assert import_uri(PREFIXES, public) == ("docs", uri)
    assert export_uri("", uri) == uri


@pytest.mark.parametrize("uri", ["file:///a", "cord://nobody/x", "cord://docs", "cord:///x", "ui:///x", "ui://y/x", ""])
def test_what_has_none_of_the_prefixes_is_nobodys(uri: str) -> None:
    assert import_uri(PREFIXES, uri) is None


def test_a_host_that_a_library_wrote_in_lower_case_is_known() -> None:
    assert import_uri(PREFIXES, "cord://web/file:///A") == ("Web", "file:///A")


def test_a_templates_expansion_is_the_servers_expansion() -> None:
    public = export_template("docs", "file:///{+path}{?q}")
    assert public == "cord://docs/file:///{+path}{?q}"
    expanded = public.replace("{+path}", "a%20b/c").replace("{?q}", "?q=%25")
    assert import_uri(PREFIXES, expanded) == ("docs", "file:///a%20b/c?q=%25")
    assert export_template("docs", "ui://a/{b}") == "ui://docs/a/{b}"
    assert export_template("", "a{b}") == "a{b}"


@pytest.mark.parametrize(
    ("template", "uri", "may"),
    [
        ("file:///{path}", "file:///a", True),
        ("file:///{path}", "file://a", False),
        ("a/{b}/c/{d}.txt", "a/1/c/2.txt", True),
        ("a/{b}/c/{d}.txt", "a/1/d/2.txt", False),
        ("a{b}aa", "aa", False),
        ("plain", "plain", True),
        ("plain", "plainer", False),
        ("{any}", "", True),
    ],
)
def test_which_uris_a_template_may_mean(template: str, uri: str, may: bool) -> None:
    assert may_expand_to(template, uri) is may


EXPORT = partial(export_uri, "p")


def relinked(method: str, result: object) -> object:
    return json.loads(bytes(relink(method, Raw(json.dumps(result).encode()), EXPORT)))


def test_uris_in_a_tools_result_are_exported_and_nothing_else() -> None:
    link = {"type": "resource_link", "uri": "file:///a", "name": "a", "_meta": {"uri": "kept"}}
    embedded = {"type": "resource", "resource": {"uri": "file:///b", "text": '"uri"'}}
    text = {"type": "text", "text": 'an "uri": "file:///c"'}
    page = {"ui": {"resourceUri": "ui://a/b", "visibility": ["app"]}, "ui/resourceUri": "ui://a/b", "z": 1.0}
    assert relinked(
        "tools/call", {"content": [link, embedded, text], "structuredContent": {"uri": "x"}, "_meta": page}
    ) == {
        "content": [
            link | {"uri": "cord://p/file:///a"},
            embedded | {"resource": {"uri": "cord://p/file:///b", "text": '"uri"'}},
            text,
        ],
        "structuredContent": {"uri": "x"},
        "_meta": {
            "ui": {"resourceUri": "ui://p/a/b", "visibility": ["app"]}, "ui/resourceUri": "ui://p/a/b", "z": 1.0
        },
    }  # fmt: skip


def test_uris_in_prompts_and_contents_are_exported() -> None:
    link = {"type": "resource_link", "uri": "u:a", "name": "a"}
    message = {"role": "user", "content": link}
    assert relinked("prompts/get", {"messages": [message]}) == {
        "messages": [{"role": "user", "content": link | {"uri": "cord://p/u:a"}}]
    }
    assert relinked("resources/read", {"contents": [{"uri": "u:a", "text": "t"}], "ttlMs": 1}) == {
        "contents": [{"uri": "cord://p/u:a", "text": "t"}],
        "ttlMs": 1,
    }


@pytest.mark.parametrize(
    "result", [{"content": []}, {"content": "uri"}, {"content": [1, None, {"uri": 7}]}, {"contents": {"uri": "x"}}, []]
)
def test_what_is_no_result_stays_as_it_is(result: object) -> None:
    assert relinked("tools/call", result) == result
    raw = Raw(b'{"content": [ ]}')
    assert relink("tools/call", raw, EXPORT) is raw


def test_messages_with_several_blocks_are_exported_too() -> None:
    link = {"type": "resource_link", "uri": "u:a", "name": "a"}
    other = {"type": "odd", "uri": "u:b"}
    assert relinked("prompts/get", {"messages": [{"role": "user", "content": [link, other]}]}) == {
        "messages": [{"role": "user", "content": [link | {"uri": "cord://p/u:a"}, other]}]
    }


def test_a_finished_task_has_its_result_exported() -> None:
    link = {"type": "resource_link", "uri": "u:a", "name": "a"}
    done = {"status": "completed", "result": {"content": [link]}}
    assert relinked("tasks/get", done) == {**done, "result": {"content": [link | {"uri": "cord://p/u:a"}]}}
    assert relinked("tasks/get", {"status": "working", "x": {"uri": "u:a"}}) == {
        "status": "working",
        "x": {"uri": "u:a"},
    }


@pytest.mark.parametrize(
    "meta",
    [{"ui": 1, "resourceUri": "u:a"}, {"ui": {"resourceUri": 1}}, {"ui": {"x": "resourceUri"}}, {"ui/resourceUri": 1}],
)
def test_meta_without_a_page_stays_as_it_is(meta: object) -> None:
    assert relinked("tools/call", {"content": [], "_meta": meta}) == {"content": [], "_meta": meta}
    raw = Raw(json.dumps(meta).encode())
    assert relink_meta(raw, EXPORT) is raw


def test_bytes_that_are_no_text_are_nobodys_escape() -> None:
    assert import_uri(PREFIXES, "cord://docs/~/%FF") == ("docs", "%FF")


def test_a_block_whose_uri_is_none_stays_as_it_is() -> None:
    blocks = [{"type": "resource_link", "uri": 7}, {"type": "resource", "resource": {"text": "t", "x": {"uri": "u:a"}}}]
    assert relinked("tools/call", {"content": blocks}) == {"content": blocks}
