"""Exported URIs: each leads back to its source and to the server's own URI, and nothing else in a result changes."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any, TypeAlias

from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import Raw

from cord_trio.protocol.uris import export_template, export_uri, import_uri, may_expand_to, relink

Json: TypeAlias = Any

PREFIXES = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
PLAIN = st.from_regex(r"[a-z][a-z0-9+.-]{0,6}:[A-Za-z0-9\-._~:/?#@!$&'()*+,;=%]{0,20}", fullmatch=True)
URIS = st.one_of(
    st.text(max_size=30),
    PLAIN,
    st.builds("ui://{}".format, st.text(max_size=12)),
    st.builds("cord://{}/{}".format, PREFIXES, st.text(max_size=12)),
    st.builds("~/{}".format, st.text(max_size=12)),
)
PART = r"(?:[A-Za-z0-9\-._~:/?@!$&'()*+,;=]|%[0-9A-Fa-f]{2})*"
LEGAL = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*:{PART}(?:#{PART})?")


@given(PREFIXES, URIS)
def test_down_then_up_is_the_identity(prefix: str, uri: str) -> None:
    public = export_uri(prefix, uri)
    assert import_uri({prefix}, public) == (prefix, uri)
    assert export_uri("", uri) == uri
    assert LEGAL.fullmatch(public)


@given(PREFIXES, PREFIXES, URIS, URIS)
def test_two_resources_have_two_uris(prefix: str, other: str, uri: str, another: str) -> None:
    assume((prefix, uri) != (other, another))
    assert export_uri(prefix, uri) != export_uri(other, another)


@given(
    PREFIXES, st.lists(st.sampled_from(["file:///", "a/", "{x}", "{+y}", "-", "{?q}", ".txt"]), min_size=1), st.data()
)
def test_an_expansion_is_the_servers_own(prefix: str, parts: list[str], data: st.DataObject) -> None:
    assume(not parts[0].startswith("{"))
    values = [
        data.draw(st.from_regex(r"(%[0-9A-F]{2}|[A-Za-z0-9._-]){0,6}", fullmatch=True)) if "{" in part else part
        for part in parts
    ]
    template, expanded = "".join(parts), "".join(values)
    public = export_template(prefix, template)
    start = public.removesuffix(template)
    assert import_uri({prefix}, start + expanded) == (prefix, expanded)
    assert may_expand_to(template, expanded)


LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["uri", "type", "content", "contents", "resource", "_meta", "ui", "x"]), inner
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from(["tools/call", "prompts/get", "resources/read"]), VALUES)
def test_whatever_comes_is_taken_and_what_is_no_uri_stays(method: str, value: Json) -> None:
    relinked = json.loads(bytes(relink(method, Raw(json.dumps(value).encode()), partial(export_uri, "p"))))
    assert without_uris(relinked) == without_uris(value)


def without_uris(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: without_uris(each) for key, each in value.items() if key != "uri"}
    return [without_uris(each) for each in value] if isinstance(value, list) else value
