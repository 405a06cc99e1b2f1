"""Where a stream is cut never matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import example, given
from hypothesis import strategies as st

from cord_trio.protocol.framing import (
    FrameTooLarge,
    LineSplitter,
    SseEvent,
    SseSplitter,
    encode_line,
    encode_sse,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE_BYTES = st.lists(
    st.sampled_from([b"a", b"{}", b" ", b"\r", b"\n", b"\r\n", "\u2028é".encode(), b"\xff", b"\xef\xbb\xbf"])
).map(b"".join)
SSE_BYTES = st.lists(
    st.sampled_from(
        [
            *(b"data", b"data:", b"data: x", b"id: 1", b"retry: 5", b"event: e", b":", b" ", b"\0"),
            *(b"\r", b"\n", b"\r\n", b"\n\n", b"\xef\xbb\xbf", "é".encode()),
        ]
    )
).map(b"".join)


def cut(stream: bytes, places: list[int]) -> Iterator[bytes]:
    ends = sorted({place % (len(stream) + 1) for place in places})
    for start, end in zip([0, *ends], [*ends, len(stream)], strict=True):
        yield stream[start:end]


def lines_of(splitter: LineSplitter, pieces: Iterator[bytes]) -> list[bytes]:
    found: list[bytes] = []
    for piece in pieces:
        data = piece
        while True:
            try:
                found += splitter.feed(data)
                break
            except FrameTooLarge as exc:
                found += [*exc.before, b"too large"]
                data = b""
    return [*found, splitter.at_end()]


@given(LINE_BYTES, st.lists(st.integers(0)), st.sampled_from([3, 5, 1000]))
@example(b"\xef\xbb\xbf\n\xef\xbb\xbf\n", [1, 2, 4], 1000)
@example(b"{}\r\n", [3], 3)
def test_lines_do_not_depend_on_the_cuts(stream: bytes, places: list[int], limit: int) -> None:
    assert lines_of(LineSplitter(limit), cut(stream, places)) == lines_of(LineSplitter(limit), iter([stream]))


@given(LINE_BYTES)
def test_lines_are_those_between_line_feeds(stream: bytes) -> None:
    whole, _, _ = stream.rpartition(b"\n")
    plain = [line.removesuffix(b"\r") for line in whole.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    assert LineSplitter().feed(stream) == [line for line in plain if line.strip()]


@given(st.lists(st.text().map(lambda text: text.encode()).filter(lambda line: bool(line.strip()))))
def test_encoded_lines_come_back(messages: list[bytes]) -> None:
    stream = b"".join(map(encode_line, messages))
    plain = [message.replace(b"\r", b" ").replace(b"\n", b" ") for message in messages]
    assert LineSplitter().feed(b"\n" + stream) == plain


def events_of(pieces: Iterator[bytes], limit: int) -> list[SseEvent]:
    splitter = SseSplitter(limit)
    events: list[SseEvent] = []
    try:
        for piece in pieces:
            events += splitter.feed(piece)
    except FrameTooLarge:
        events.append(SseEvent("too large"))
    return events


@given(SSE_BYTES, st.lists(st.integers(0)))
@example(b"data: a\r\n\r\n", [8, 9, 10])
def test_events_do_not_depend_on_the_cuts(stream: bytes, places: list[int]) -> None:
    assert events_of(cut(stream, places), 10_000) == events_of(iter([stream]), 10_000)


@given(SSE_BYTES, st.sampled_from([b"\r", b"\r\n"]))
def test_events_do_not_depend_on_the_line_ends(stream: bytes, end: bytes) -> None:
    plain = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert events_of(iter([plain.replace(b"\n", end)]), 10_000) == events_of(iter([plain]), 10_000)


@given(st.lists(st.tuples(st.text(), st.sampled_from(["message", "é"]), st.sampled_from([None, "", "7"]))))
def test_encoded_events_come_back(events: list[tuple[str, str, str | None]]) -> None:
    stream = b"".join(encode_sse(data.encode(), event=event, id=id) for data, event, id in events)
    assert SseSplitter().feed(stream) == [
        SseEvent(event, data.replace("\r\n", "\n").replace("\r", "\n").encode(), id) for data, event, id in events
    ]
