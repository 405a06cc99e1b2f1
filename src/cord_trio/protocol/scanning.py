"""One JSON text that comes in pieces, checked as it comes: as strictly as `payload_of` checks it whole.

What msgspec says of a long text takes as long as many calls. So it is asked about a piece at a time: that piece is put
between brackets and quotes that stand for what came before it and what is still to come. If they stand for anything
else than what is there, or the piece is none, msgspec says so; hence a text is JSON if all its pieces are.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Raw

from cord_trio.errors import Malformed, TooDeep
from cord_trio.protocol.jsonrpc import MAX_DEPTH, PARSE_ERROR, UNREADABLE, encode, members

_decode_raw = msgspec.json.Decoder(Raw).decode
_START: Final = 0
_VALUE: Final = 1  # after a comma
_STRING: Final = 2
_KEY: Final = 3  # within a string that is a member's name
_CURLY: Final = ord("{")
_CLOSED: Final = {ord("]"): ord("["), ord("}"): _CURLY}
_NOT_MARKS: Final = bytes(set(range(256)) - set(b'[]{}"'))
_HIGH: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
_ESCAPE: Final = 12
"""Bytes of the longest escape: a pair of surrogates."""
_LONG: Final = 64 * 1024
"""Bytes within one member that are worth not being looked at twice."""
_NAMELESS: Final = b'{"":'
_PASSES: Final = 8
"""Times that what opens and closes at once is taken out of a piece; what is left is looked at bracket by bracket."""
_FORE: Final = {
    (ord("["), _VALUE): b"[0,", (ord("["), _STRING): b'["',
    (_CURLY, _VALUE): b'{"":0,', (_CURLY, _STRING): b'{"":"', (_CURLY, _KEY): b'{"',
}  # fmt: skip
_AFT: Final = {
    (ord("["), _VALUE): b"0]", (ord("["), _STRING): b'"]',
    (_CURLY, _VALUE): b'"":0}', (_CURLY, _STRING): b'"}', (_CURLY, _KEY): b'":0}',
}  # fmt: skip


class Scan:
    """Whether pieces are, together, one JSON text in UTF-8 of at most `depth` levels.

    Invariants: says the same as `payload_of` of the whole, however that is cut; costs time in proportion to the bytes
    alone, and at each piece in proportion to that, but for a text with neither a comma nor a string in so many bytes.
    Of no use after `Malformed`.
    """

    __slots__ = (
        "_depth", "_done", "_longest", "_low", "_open", "_size", "_state", "_stretch", "_waiting", "_wanted"
    )  # fmt: skip

    def __init__(self, depth: int = MAX_DEPTH) -> None:
        self._depth = depth
        self._waiting: list[bytes] = []  # what came since the last cut
        self._size = 0  # bytes of it
        self._wanted = 0  # bytes of it that are worth another look: else a text without cuts would be looked at anew
        self._done = 0  # bytes before the cut
        self._open = bytearray()  # brackets that are open at the cut
        self._state = _START
        self._low = 0  # brackets that were open at least in the piece before the cut
        self._stretch = self._longest = (0, b"", 0, b"")  # within one member of the outermost object; see `_measure`

    def feed(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            Malformed: with it, this is no JSON text, or too deep (-32700).

        """
        self._waiting.append(piece)
        self._size += len(piece)
        if self._size < self._wanted:
            return
        text = piece if len(self._waiting) == 1 else b"".join(self._waiting)
        rest = text[self._take(text) :]
        self._waiting = [rest] if rest else []
        self._size = len(rest)
        self._wanted = 2 * self._size

    def end(self) -> None:
        """There are no more pieces. Raises as `feed` does."""
        text, before = b"".join(self._waiting), self._fore()
        self._follow(_marks(_unescaped(text)), inside=self._state >= _STRING)
        self._judge(before, text, b"")

    def members(self, text: memoryview) -> dict[str, Raw]:
        """The members of all of it, which has ended and is an object, each unparsed: as `jsonrpc.members` has them.

        What is between the cuts of the longest stretch within one of them is not looked at again.

        Args:
            text: the pieces together.

        Raises:
            Malformed: it is no object.

        """
        begin, aft, end, fore = self._longest
        if end - begin < _LONG:
            return members(Raw(text))
        head = bytes(text[:begin]) + aft
        tail = fore + bytes(text[end:])
        before = members(head)
        name, value = next(reversed(before.items()))
        start, rest = len(head) - 1 - len(value), bytes(members(tail)[""])
        ahead = head[:start].rstrip().removesuffix(b":").rstrip().removesuffix(encode(name)).rstrip()
        behind = tail[len(_NAMELESS) + len(rest) :].lstrip()
        if (  # else two have one name, and these are others
            not ahead.endswith((b"{", b","))
            or not head.endswith(bytes(value) + b"}")
            or not tail.startswith(_NAMELESS + rest)
            or not behind.startswith((b"}", b","))
        ):
            return members(Raw(text))
        before[name] = Raw(text[start : end + len(rest) - len(fore) + len(_NAMELESS)])
        return before | members(b"{" + behind[1:]) if behind[:1] == b"," else before

    def _take(self, text: bytes) -> int:
        """Check `text` up to a cut; returns where that is, 0 for nowhere."""
        before, inside = self._fore(), self._state >= _STRING
        end = _whole(text)
        if inside and b'"' not in text:  # as of most of what is long
            aft = self._aft()
            self._judge(before, text[:end], aft)
            self._done += end
            self._measure(aft, within=True)
            return end
        head = text[:end]
        plain = _unescaped(head)
        marks = _marks(plain)
        within = (marks.count(b'"') + inside) % 2 == 1
        quote = plain.rfind(b'"')
        if not within:  # behind the last comma, or before the end of the last string
            comma, last = head.rfind(b","), head.rfind(b'"')
            end = comma + 1 if comma > last else max(last, 0)
            if not end:
                return 0
            within = comma <= last
            if behind := len(_marks(head[end:])):
                marks = marks[:-behind]
            head = head[:end]
            quote = plain.rfind(b'"', 0, max(quote, 0))
        self._follow(marks, inside=inside)
        if not within:
            self._state = _VALUE
        elif quote >= 0:
            before_it = plain[max(0, quote - 64) : quote].rstrip() or plain[:quote].rstrip()
            named = bool(self._open) and self._open[-1] == _CURLY and not before_it.endswith(b":")
            self._state = _KEY if named else _STRING
        aft = self._aft()
        self._judge(before, head, aft)
        self._done += end
        self._measure(aft, within=self._low > 1)
        return end

    def _measure(self, aft: bytes, *, within: bool) -> None:
        """Know the longest stretch between two cuts that is `within` one member of the outermost object.

        Of it: where it begins and what would end the text there, where it ends and what would begin the text there.
        """
        begin, begun, end, _ = self._stretch
        if within and begun:
            end = self._done
        elif self._open and self._open[0] == _CURLY and (len(self._open) > 1 or self._state == _STRING):
            begin, begun, end = self._done, aft, self._done
        else:
            begun = b""
        self._stretch = (begin, begun, end, self._fore() if begun else b"")
        if begun and end - begin >= self._longest[2] - self._longest[0]:
            self._longest = self._stretch

    def _follow(self, marks: bytes, *, inside: bool) -> None:
        """Open and close the brackets among `marks` that are in no string."""
        # What is left of a string without brackets is a pair of quotes; removing pairs moves no bracket in or out.
        outside = (b'"' + marks if inside else marks).replace(b'""', b"")
        if b'"' in outside:
            outside = b"".join(outside.split(b'"')[::2])
        brackets, passes = outside, 0
        while passes < _PASSES:
            left = brackets.replace(b"[]", b"").replace(b"{}", b"")
            if len(left) == len(brackets):
                break
            brackets, passes = left, passes + 1
        self._low = len(self._open)
        opened = self._open[:]
        if self._walk(opened, brackets) + 2 * passes > self._depth:  # each of them takes up to two levels
            opened = self._open[:]
            if self._walk(opened, outside) > self._depth:
                raise TooDeep(PARSE_ERROR, f"JSON is nested deeper than {self._depth} levels")
        self._open = opened

    def _walk(self, opened: bytearray, brackets: bytes) -> int:
        """How many are open at most."""
        most = len(opened)
        for bracket in brackets:
            opener = _CLOSED.get(bracket)
            if opener is None:
                opened.append(bracket)
                most = max(most, len(opened))
                if most > self._depth:
                    break
            elif not opened or opened.pop() != opener:
                raise self._malformed("brackets that do not match")
            else:
                self._low = min(self._low, len(opened))
        return most

    def _judge(self, fore: bytes, head: bytes, aft: bytes) -> None:
        try:
            if not head.isascii():
                head.decode()
            _decode_raw(b"".join((fore, head, aft)))
        except UNREADABLE as exc:
            raise self._malformed(str(exc).partition(" (byte ")[0]) from exc

    def _fore(self) -> bytes:
        """What stands for all before the cut."""
        if not self._open:
            return b'"' if self._state >= _STRING else b""
        outer = b"".join([b'{"":' if one == _CURLY else b"[" for one in self._open[:-1]])
        return outer + _FORE[self._open[-1], self._state]

    def _aft(self) -> bytes:
        """What stands for all after the cut."""
        if not self._open:
            return b'"' if self._state >= _STRING else b""
        outer = bytes([125 if one == _CURLY else 93 for one in reversed(self._open[:-1])])
        inner = _AFT.get((self._open[-1], self._state))
        if inner is None:
            raise self._malformed("a quote where none may be")
        return inner + outer

    def _malformed(self, what: str) -> Malformed:
        return Malformed(PARSE_ERROR, f"not JSON: {what} (after byte {self._done})")


def _unescaped(text: bytes) -> bytes:
    """`text` without the escapes that could be taken for quotes."""
    return text.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in text else text


def _marks(plain: bytes) -> bytes:
    """Brackets and quotes alone."""
    return plain.translate(None, _NOT_MARKS)


def _whole(text: bytes) -> int:
    """Where `text` ends, or a little before that: within no escape, no pair of surrogates, no character."""
    end = len(text)
    last = text.rfind(b"\\", max(0, end - _ESCAPE))
    if last >= 0 and _escapes(text, last):
        end = last
        if end >= 6 and _HIGH.match(text, end - 6) and _escapes(text, end - 6):
            end -= 6
    for back in (1, 2, 3):
        octet = text[end - back] if back <= end else 0
        if octet >= 0xC0 and back < (2 if octet < 0xE0 else 3 if octet < 0xF0 else 4):
            end -= back
        if octet < 0x80 or octet >= 0xC0:
            break
    return end


def _escapes(text: bytes, at: int) -> bool:
    """Whether the backslash there is no escaped one."""
    return (at + 1 - len(text[: at + 1].rstrip(b"\\"))) % 2 == 1
