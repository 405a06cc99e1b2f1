from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from cord_trio.errors import Malformed
from cord_trio.protocol.framing import (
    SSE_COMMENT,
    FrameTooLarge,
    LineSplitter,
    SseEvent,
    SseSplitter,
    encode_line,
    encode_sse,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def test_whole_lines_are_returned_and_the_tail_waits() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b'{"a":1}\n{"b"') == [b'{"a":1}']
    assert splitter.feed(b":") == []
    assert splitter.feed(b"2}\n{}\n") == [b'{"b":2}', b"{}"]
    assert splitter.at_end() == b""


def test_f01_noise_lines_come_out_as_lines_of_their_own() -> None:
    assert LineSplitter().feed(b'Server v1 ready\n{"a":1}\n[INFO] loaded\n{"b":2}\n') == [
        b"Server v1 ready",
        b'{"a":1}',
        b"[INFO] loaded",
        b'{"b":2}',
    ]


def test_f02_blank_lines_are_dropped() -> None:
    assert LineSplitter().feed(b"\n{}\n  \n\r\n \t\r\n[]\n") == [b"{}", b"[]"]


def test_f04_unicode_line_separators_do_not_split() -> None:
    line = '{"text":"a\u2028b\u2029c\u0085d\x0b\x0c\x1c"}'.encode()
    assert LineSplitter().feed(line + b"\n") == [line]


def test_f05_one_carriage_return_before_the_end_is_stripped() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"{}\r\n[]\r") == [b"{}"]
    assert splitter.feed(b"\n1\r\r\n") == [b"[]", b"1\r"]


def test_f05_an_encoded_line_has_no_carriage_return() -> None:
    assert encode_line(b'{\r\n  "a": 1\n}') == b'{    "a": 1 }\n'
    assert encode_line(b"{}") == b"{}\n"


def test_f06_invalid_utf8_is_one_line_like_any_other() -> None:
    assert LineSplitter().feed(b"\xff\xfe\n{}\n") == [b"\xff\xfe", b"{}"]


@pytest.mark.parametrize("size", [70 * 1024, 132 * 1024, 1_200_000, 9 * 1024 * 1024])
def test_f07_long_lines_below_the_bound_pass(size: int) -> None:
    splitter = LineSplitter()
    line = b"a" * size
    pieces = [line[i : i + 65536] for i in range(0, size, 65536)]
    assert [found for piece in pieces for found in splitter.feed(piece)] == []
    assert splitter.feed(b"\n") == [line]


def test_f09_a_line_without_end_stops_at_the_bound_and_frees_its_buffer() -> None:
    splitter = LineSplitter(1000)
    splitter.feed(b"a" * 1000)
    with pytest.raises(FrameTooLarge, match="longer than 1000 bytes") as caught:
        splitter.feed(b"a")
    assert (caught.value.limit, caught.value.before) == (1000, ())
    assert isinstance(caught.value, Malformed)
    assert splitter.feed(b"a" * 5000) == []
    assert splitter.at_end() == b""


def test_f12_content_length_lines_are_noise() -> None:
    assert LineSplitter().feed(b"Content-Length: 2\r\n\r\n{}\n") == [b"Content-Length: 2", b"{}"]


def test_a_byte_order_mark_is_stripped_at_the_start_alone() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"\xef\xbb") == []
    assert splitter.feed(b"\xbf{}\n\xef\xbb\xbf[]\n") == [b"{}", b"\xef\xbb\xbf[]"]
    assert LineSplitter().feed(b"\xef\xbb\xbf\n") == []


@pytest.mark.parametrize("tail", [b"", b"12"])
def test_a_line_too_long_in_a_batch_hands_over_what_came_before_and_goes_on_after(tail: bytes) -> None:
    splitter = LineSplitter(4)
    splitter.feed(tail)
    with pytest.raises(FrameTooLarge) as caught:
        splitter.feed(b"34\n\n12345\n{}\n[")
    assert caught.value.before == (tail + b"34",)
    assert splitter.feed(b"") == [b"{}"]
    assert splitter.feed(b"]\n") == [b"[]"]


def test_after_a_line_too_long_the_rest_of_it_is_skipped() -> None:
    splitter = LineSplitter(4)
    with pytest.raises(FrameTooLarge) as caught:
        splitter.feed(b"{}\n12345")
    assert caught.value.before == (b"{}",)
    assert splitter.feed(b"67") == []
    assert splitter.feed(b"8\n[]\n1") == [b"[]"]
    assert splitter.at_end() == b"1"


def test_a_joined_line_that_is_too_long_is_refused() -> None:
    splitter = LineSplitter(4)
    splitter.feed(b"123")
    with pytest.raises(FrameTooLarge):
        splitter.feed(b"45\n{}\n")
    assert splitter.feed(b"") == [b"{}"]


def test_what_is_left_at_the_end_is_returned_once() -> None:
    splitter = LineSplitter()
    splitter.feed(b"\xef\xbb\xbf{}\r")
    assert splitter.at_end() == b"{}"
    assert splitter.at_end() == b""
    assert splitter.feed(b"[]\n") == [b"[]"]


def _seconds(feed: Callable[[bytes], object], pieces: int, end: bytes) -> float:
    started = time.perf_counter()
    for _ in range(pieces):
        feed(b"a")
    feed(end)
    return time.perf_counter() - started


def _best(make: Callable[[], Callable[[bytes], object]], pieces: int, end: bytes) -> float:
    return min(_seconds(make(), pieces, end) for _ in range(3))


def test_a_line_in_one_byte_pieces_costs_time_in_proportion() -> None:
    # A splitter that copied or searched its tail for each piece would cost over 100 times as much behind 1 MB.
    def grown() -> Callable[[bytes], object]:
        splitter = LineSplitter()
        splitter.feed(b"a" * 1_000_000)
        return splitter.feed

    assert _best(grown, 8000, b"\n") < 20 * _best(lambda: LineSplitter().feed, 8000, b"\n")


def test_an_event_in_one_byte_pieces_costs_time_in_proportion() -> None:
    def begun(size: int) -> Callable[[bytes], object]:
        splitter = SseSplitter()
        splitter.feed(b"data: " + b"a" * size)
        return splitter.feed

    assert _best(lambda: begun(1_000_000), 8000, b"\n\n") < 20 * _best(lambda: begun(0), 8000, b"\n\n")


def test_one_event_a_piece() -> None:
    splitter = SseSplitter()
    assert splitter.feed(b"event: message\ndata: {}\n\n") == [SseEvent(data=b"{}")]
    assert splitter.feed(b"event: endpoint\ndata: /x\nid: 7\nretry: 500\n\n") == [SseEvent("endpoint", b"/x", "7", 500)]
    assert splitter.feed(b"") == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_h05_every_line_end_separates_events(end: bytes) -> None:
    stream = b"id: 1\ndata: a\n\ndata: b\n\n".replace(b"\n", end)
    assert SseSplitter().feed(stream) == [SseEvent(data=b"a", id="1"), SseEvent(data=b"b")]
    splitter = SseSplitter()
    assert [event for i in range(len(stream)) for event in splitter.feed(stream[i : i + 1])] == [
        SseEvent(data=b"a", id="1"),
        SseEvent(data=b"b"),
    ]


def test_h07_data_lines_are_joined_with_line_feeds() -> None:
    stream = b'data: {\ndata:   "a": [\ndata:     1\ndata:   ]\ndata: }\n\n'
    assert SseSplitter().feed(stream) == [SseEvent(data=b'{\n  "a": [\n    1\n  ]\n}')]


def test_h09_events_without_data_keep_their_id_and_comments_are_none() -> None:
    assert SseSplitter().feed(b"id: 1\ndata: \n\n: ping\n\n:\n\nretry: 10\n\nevent: x\n\n") == [
        SseEvent(id="1"),
        SseEvent(retry=10),
        SseEvent("x"),
    ]
    assert SseSplitter().feed(SSE_COMMENT) == []


def test_one_space_after_the_colon_is_stripped_and_no_more() -> None:
    assert SseSplitter().feed(b"data:a\ndata:  b\ndata\n\n") == [SseEvent(data=b"a\n b\n")]


def test_fields_that_make_no_sense_are_ignored() -> None:
    assert SseSplitter().feed(b"id: a\0b\nretry: soon\nretry: 99999999999\nfoo: bar\nfoo\nevent:\ndata: x\n\n") == [
        SseEvent(data=b"x")
    ]
    assert SseSplitter().feed(b"foo: bar\nid: \0\nretry: -1\n\n") == []


def test_an_event_may_be_cut_inside_a_character_and_after_a_mark() -> None:
    stream = "\ufeffdata: é\nid: ü\n\n".encode()
    splitter = SseSplitter()
    assert [event for i in range(len(stream)) for event in splitter.feed(stream[i : i + 1])] == [
        SseEvent(data="é".encode(), id="ü")
    ]


def test_an_event_without_its_blank_line_is_none() -> None:
    assert SseSplitter().feed(b"data: a\n\ndata: b\n") == [SseEvent(data=b"a")]


@pytest.mark.parametrize("long", [b"data: 12345678", b"data: 1234\ndata: 5678\n", b"id: 1\nid: 2\nid: 3\n"])
def test_an_event_too_long_is_refused_with_what_came_before(long: bytes) -> None:
    with pytest.raises(FrameTooLarge) as caught:
        SseSplitter(12).feed(b"data: a\n\nid: 1\n\n" + long)
    assert caught.value.before == (b"a",)


def test_keep_alives_inside_an_event_do_not_add_up() -> None:
    splitter = SseSplitter(20)
    assert splitter.feed(b"data: a\n" + b": ping\n" * 1000 + b"\n") == [SseEvent(data=b"a")]


def test_an_encoded_event_comes_back() -> None:
    assert encode_sse(b"{}") == b"event: message\ndata: {}\n\n"
    assert SseSplitter().feed(encode_sse(b'{\r\n"a":\r1\n}', event="x", id="4")) == [
        SseEvent("x", b'{\n"a":\n1\n}', "4")
    ]


def test_a_line_whose_cr_and_lf_come_apart_ends_before_both() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"{}\n") == [b"{}"]
    assert splitter.feed(b'{"a":1}\r') == []
    assert splitter.feed(b'\n{"b":2}\n') == [b'{"a":1}', b'{"b":2}']
