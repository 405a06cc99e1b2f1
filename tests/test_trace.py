from __future__ import annotations

from random import Random

import pytest
from msgspec import Raw

from cord_trio.trace import (
    TraceContext,
    new_trace,
    read_trace,
    span_ids,
    take_trace,
    trace_of,
    with_traceparent,
    within,
)

ID = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = f"00-{ID}-{SPAN}-01"


def test_a_traceparent_is_read_and_written() -> None:
    trace = read_trace(PARENT, "congo=t61rcWkgMzE", "userId=alice")
    assert trace == TraceContext(ID, SPAN, "01", "congo=t61rcWkgMzE", "userId=alice")
    assert str(trace) == PARENT


@pytest.mark.parametrize(
    "text",
    [
        *("", "00", f"00-{ID}-{SPAN}", f"00-{ID}-{SPAN}-1", f"00-{ID.upper()}-{SPAN}-01", f" {PARENT}", f"{PARENT}\n"),
        *(f"ff-{ID}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{ID}-{'0' * 16}-01", f"{PARENT}-what", f"01{PARENT}"),
    ],
)
def test_what_is_no_traceparent_is_no_trace(text: str) -> None:
    assert read_trace(text, "congo=1", "userId=alice") is None
    meta = {
        "traceparent": Raw(f'"{text}"'.replace("\n", "\\n").encode()),
        "tracestate": Raw(b'"congo=1"'),
        "k": Raw(b"1"),
    }
    assert take_trace(meta) == ""
    assert meta == {"k": Raw(b"1")}


def test_of_a_later_version_what_ours_has_is_read() -> None:
    assert read_trace(f"cc-{ID}-{SPAN}-01") == read_trace(f"cc-{ID}-{SPAN}-01-what-comes") == read_trace(PARENT)


def test_what_is_too_long_to_carry_is_left_behind() -> None:
    assert read_trace(PARENT, "s" * 512, "b" * 8192) == TraceContext(ID, SPAN, "01", "s" * 512, "b" * 8192)
    assert read_trace(PARENT, "s" * 513, "b" * 8193) == TraceContext(ID, SPAN, "01")


def test_a_trace_is_taken_out_of_a_request_and_the_rest_of_it_stays() -> None:
    state = {"tracestate": Raw(b'"congo=1"'), "baggage": Raw(b'"a=1"'), "k": Raw(b"1")}
    meta = {"traceparent": Raw(f'"{PARENT}"'.encode()), **state}
    assert take_trace(meta) == PARENT
    assert meta == state
    assert take_trace(meta) == ""
    assert trace_of(PARENT, meta) == TraceContext(ID, SPAN, "01", "congo=1", "a=1")
    assert trace_of("", meta) is None
    assert trace_of(PARENT, {"tracestate": Raw(b"1")}) == TraceContext(ID, SPAN, "01")


@pytest.mark.parametrize("raw", [b"1", b"null", b"{}", b'"\\u00e9"'])
def test_a_trace_of_another_shape_is_none(raw: bytes) -> None:
    assert take_trace({"traceparent": Raw(raw)}) == ""


def test_whoever_is_asked_gets_it_as_members_of_meta() -> None:
    trace = TraceContext(ID, SPAN, "00", 'with="quotes"', "b=1")
    assert trace.meta == {"tracestate": Raw(b'"with=\\"quotes\\""'), "baggage": Raw(b'"b=1"')}
    assert TraceContext(ID, SPAN).meta == {}
    assert with_traceparent(trace.meta, str(trace)) == {
        **trace.meta,
        "traceparent": Raw(f'"00-{ID}-{SPAN}-00"'.encode()),
    }


def test_each_hop_has_a_span_of_its_own_in_the_same_trace() -> None:
    spans = span_ids(Random(1).getrandbits)
    first, second = next(spans), next(spans)
    assert second == first + 1
    assert 0 < first < 2**63
    trace = TraceContext(ID, SPAN, "00", "s=1", "b=1")
    assert trace.at(first) == TraceContext(ID, f"{first:016x}", "00", "s=1", "b=1")
    assert within(PARENT, 1) == f"00-{ID}-0000000000000001-01"
    assert next(span_ids(Random(1).getrandbits)) == first
    assert next(span_ids(Random(2).getrandbits)) != first


def test_a_new_trace_is_a_sound_one_whatever_is_drawn() -> None:
    for bits in (Random(3).getrandbits, lambda _: 0):
        trace = new_trace(bits, 7)
        assert read_trace(str(trace)) == trace
        assert (trace.span, trace.flags) == ("0000000000000007", "01")
