"""JSON in pieces: what is none is refused, and no piece takes longer because of those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cord_trio.errors import Malformed, TooDeep
from cord_trio.protocol import scanning
from cord_trio.protocol.jsonrpc import encode, members
from cord_trio.protocol.scanning import Scan

if TYPE_CHECKING:
    from msgspec import Raw

PIECE = 1024


def scanned(text: bytes, depth: int = 128, size: int = PIECE) -> Scan:
    scan = Scan(depth)
    for start in range(0, len(text), size):
        scan.feed(text[start : start + size])
    scan.end()
    return scan


@pytest.mark.parametrize(
    "text",
    [
        encode({"data": "x" * 10_000}),
        encode([{"id": number, "tags": ["a", "b"], "text": 'say "[{"'} for number in range(1000)]),
        encode({"\u20ac" * 5000: {"\n" * 5000: ["\\" * 5000]}}),
        b"[" + b"1234567," * 2000 + b"0]",
        b"[" + b" \n" * 5000 + b"1" * 5000 + b"]",
        b'"' + b"\\ud83d\\ude00" * 2000 + b'"',
        '"{}"'.format("\U0001f600" * 2000).encode(),
    ],
)
def test_what_is_json_is_json_in_pieces(text: bytes) -> None:
    for size in (PIECE, 1000, 7, 1):
        scanned(text, size=size)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "truncated"),
        (b'{"data":"' + b"x" * 5000, "truncated"),
        (b'{"data":"' + b"x" * 5000 + b'"', "truncated"),
        (b'["' + b"x" * 5000 + b'"}', "do not match"),
        (b'["' + b"x" * 5000 + b'"]]', "do not match"),
        (b'["' + b"x" * 5000 + b'"] {"injected":1}', "malformed"),
        (b'["' + b"x" * 5000 + b'\n{}"]', "malformed"),
        (b'["' + b"x" * 5000 + b'\xff"]', "utf-8"),
        (b'["' + b"x" * 5000 + b'\\"]', "truncated"),
        (b'[{\\"\\"', "a quote where none may be"),
        (b"[" + b"1," * 5000 + b"]", "malformed"),
        (b"[" + b"1," * 5000 + b",1]", "malformed"),
        (b"{" + b'"a":1,' * 5000 + b"2]", "do not match"),
        (b"{" + b'"a":1,' * 5000 + b"2}", "malformed"),
    ],
)
def test_what_is_no_json_is_none_in_pieces(text: bytes, why: str) -> None:
    for size in (PIECE, 7):
        with pytest.raises(Malformed, match=why):
            scanned(text, size=size)


def test_levels_are_counted_over_pieces() -> None:
    deep = b'{"a":[1,' * 10 + b'"%b"' % (b"[" * 5000) + b"]}" * 10
    for size in (PIECE, 7):
        scanned(deep, 20, size=size)
        with pytest.raises(TooDeep, match="19 levels"):
            scanned(deep, 19, size=size)
        with pytest.raises(TooDeep, match="3 levels"):
            scanned(b'{"a":[{"b":[]}],"c":1}', 3, size=size)
        with pytest.raises(TooDeep):
            scanned(b"[" * 5000 + b"]" * 5000, 128, size=size)


def test_what_waits_for_a_cut_is_short_and_is_not_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    take = Scan._take

    def counted(scan: Scan, text: bytes) -> int:
        looked.append(len(text))
        return take(scan, text)

    monkeypatch.setattr(Scan, "_take", counted)
    scanned(encode([["x" * 100, number] for number in range(5000)]))
    assert max(looked) < 2 * PIECE
    looked.clear()
    size = 1024 * PIECE
    scanned(b"[" + b" " * size + b"]")
    assert len(looked) < 20
    assert sum(looked) <= 4 * size


ROWS = encode([{"id": number, "text": "x" * 100} for number in range(2000)])


@pytest.mark.parametrize(
    "text",
    [
        b'{"arguments":%b}' % ROWS,
        b'{"name" : "t", "arguments" :\n%b , "_meta":{"a":[1]} }' % ROWS,
        b'{"arguments":"%b","a":{"b":"c"}}' % (b"\\u20ac" * 50_000),
        b'{"arguments":{"deep":{"rows":%b}},"a":1}' % ROWS,
    ],
)
def test_members_of_a_long_text_are_found_without_reading_it_again(
    text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(text: Raw | bytes) -> dict[str, Raw]:
        read.append(len(text))
        return members(text)

    expected = members(text)
    scan = scanned(text)
    monkeypatch.setattr(scanning, "members", counted)
    found = scan.members(memoryview(text))
    assert {name: bytes(value) for name, value in found.items()} == {
        name: bytes(value) for name, value in expected.items()
    }
    assert sum(read) < 10 * PIECE


@pytest.mark.parametrize("text", [b"[1,%b]" % ROWS, b'"x"', b"%b" % ROWS])
def test_what_is_no_object_has_no_members(text: bytes) -> None:
    with pytest.raises(Malformed, match="not an object"):
        scanned(text).members(memoryview(text))


def test_of_two_members_with_one_name_the_last_counts() -> None:
    pieces = [b'{"x\\"":1,"":"","x\\""             :"', *[b"x" * PIECE] * 100, b'","a":[]}']
    scan = Scan()
    for piece in pieces:
        scan.feed(piece)
    scan.end()
    text = b"".join(pieces)
    assert scan._longest[2] - scan._longest[0] == 100 * PIECE
    assert list(scan.members(memoryview(text)).items()) == list(members(text).items())
