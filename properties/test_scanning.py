"""A JSON text in pieces is judged as it is in one, however it is cut."""

from __future__ import annotations

from random import Random
from unittest import mock

from hypothesis import event, example, given
from hypothesis import strategies as st

from cord_trio.errors import Malformed, TooDeep
from cord_trio.protocol import scanning
from cord_trio.protocol.jsonrpc import members, payload_of
from cord_trio.protocol.scanning import Scan
from cord_trio.testing.strategies import schedules

CHARACTERS = st.sampled_from(
    ["a", "0", " ", "[", "]", "{", "}", ",", ":", "\u00e9", "\u20ac", "\U0001f600", '\\"', "\\\\", "\\n", "\\/",
     "\\u00e9", "\\ud83d\\ude00", "x" * 20]
)  # fmt: skip
STRINGS = st.lists(CHARACTERS, max_size=8).map(lambda found: f'"{"".join(found)}"')
SPACE = st.sampled_from(["", "", "", " ", "\n", "\r\n", "\t "])
SCALARS = st.one_of(STRINGS, st.sampled_from(["0", "-1.5e10", "true", "null", "[]", "{}", '""']))


def _inside(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    padded = st.builds("{}{}{}".format, SPACE, values, SPACE)
    members = st.builds("{}{}{}:{}".format, SPACE, STRINGS, SPACE, padded)
    return st.one_of(
        st.lists(padded, min_size=1, max_size=4).map(lambda each: f"[{','.join(each)}]"),
        st.lists(members, min_size=1, max_size=4).map(lambda each: f"{{{','.join(each)}}}"),
    )


TEXTS = st.recursive(SCALARS, _inside, max_leaves=20).map(str.encode)
SPOILT = [b"", b'"', b",", b"[", b"]", b"{", b"}", b"\\", b":", b"\xc3", b"\n", b"1", b"\\ud83d", b" ", b"0,", b"null"]
FAULTS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 2), st.sampled_from(SPOILT)), max_size=2)


def verdict(pieces: list[bytes], depth: int) -> str:
    scan = Scan(depth)
    try:
        for piece in pieces:
            scan.feed(piece)
        scan.end()
    except TooDeep:
        return "too deep"
    except Malformed:
        return "malformed"
    return "JSON"


def whole(text: bytes, depth: int) -> str:
    try:
        payload_of(text, depth)
    except TooDeep:
        return "too deep"
    except Malformed:
        return "malformed"
    return "JSON"


def cut(text: bytes, most: int, rng: Random) -> list[bytes]:
    pieces: list[bytes] = []
    while text:
        size = rng.randint(1, most)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@given(TEXTS, FAULTS, st.sampled_from([1, 2, 3, 7, 20, 100]), st.sampled_from([2, 3, 5, 128]), schedules())
@example(b'["a\\ud83d\\ude00", {"b":1 ,"c" : [{}]}]', [], 1, 128, Random(1))
@example(b"[1,]", [], 2, 128, Random(1))
@example(b'{"a":1,"b"}', [], 3, 128, Random(1))
@example(b'{"a" "b"}', [], 2, 128, Random(1))
def test_pieces_are_judged_as_the_whole_is(
    text: bytes, faults: list[tuple[int, int, bytes]], most: int, depth: int, rng: Random
) -> None:
    for at, gone, instead in faults:
        at %= len(text) + 1
        text = text[:at] + instead + text[at + gone :]
    found, expected = verdict(cut(text, most, rng), depth), whole(text, depth)
    event(expected)
    assert found == expected or {found, expected} == {"too deep", "malformed"}  # it may be both


NAMES = st.sampled_from(['"a"', '"arguments"', '""', '"\\u0061"', '"x\\""', '"x\\"a"'])
MEMBERS = st.builds("{}{}{}:{}{}".format, SPACE, NAMES, SPACE, SPACE, TEXTS.map(bytes.decode))
OBJECTS = st.lists(MEMBERS, max_size=5).map(lambda found: f"{{{','.join(found)}}}".encode())


@given(OBJECTS, st.sampled_from([1, 3, 7, 20, 100]), st.sampled_from([1, 10, 30]), schedules())
@example(b'{"a":"xxxxxxxxxxxxxxxxx","":""}', 3, 1, Random(1))
@example(b'{"a":1,"":"","a":"xxxxxxxxxxxxxxxxx"}', 3, 1, Random(1))
@example(b'{"x\\"":1,"":"","x\\"":"xxxxxxxxxxxxxxxxx"}', 3, 1, Random(1))
def test_members_are_those_of_the_whole(text: bytes, most: int, least: int, rng: Random) -> None:
    scan = Scan()
    for piece in cut(text, most, rng):
        scan.feed(piece)
    scan.end()
    with mock.patch.object(scanning, "_LONG", least):
        found = scan.members(memoryview(text))
    event("in stretches" if scan._longest[2] - scan._longest[0] >= least else "whole")
    expected = members(text)
    assert {name: bytes(value) for name, value in found.items()} == {
        name: bytes(value) for name, value in expected.items()
    }
