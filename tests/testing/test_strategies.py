"""What the strategies promise, and that they reach the corners they are for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from cord_trio.protocol import jsonrpc
from cord_trio.testing import strategies

if TYPE_CHECKING:
    from collections.abc import Callable

Json: TypeAlias = Any


@given(line=strategies.encoded(strategies.messages()))
def test_messages_are_strict_json_rpc(line: bytes) -> None:
    assert b"\n" not in line
    jsonrpc.check(jsonrpc.decode(line))


@given(value=strategies.json_values(), compact=st.booleans())
def test_json_values_survive_their_encoding(value: Json, compact: bool) -> None:
    assert json.loads(strategies._encoded(value, compact, not compact)) == value


@given(data=st.data(), text=st.binary(max_size=300))
def test_splits_keep_every_byte_in_order(data: st.DataObject, text: bytes) -> None:
    assert b"".join(data.draw(strategies.splits(text))) == text


@given(tool=strategies.tools())
def test_tools_have_what_a_tool_must_have(tool: Json) -> None:
    assert tool["name"]
    assert tool["inputSchema"]["type"] == "object"


@pytest.mark.parametrize(
    ("strategy", "corner"),
    [
        (strategies.texts(), lambda text: "\u2028" in text),
        (strategies.ids(), lambda one: one == "1"),
        (strategies.messages(), lambda message: "x-more" in message),
        (strategies.splits(b"abc"), lambda pieces: pieces == [b"a", b"b", b"c"]),
        (strategies.splits(b"abc"), lambda pieces: b"" in pieces),
        (strategies.tools(), lambda tool: "." in tool["name"]),
    ],
)
def test_the_corners_are_reached(strategy: st.SearchStrategy[Json], corner: Callable[[Json], bool]) -> None:
    find(strategy, corner, settings=settings(max_examples=1000, database=None, deadline=None))
