from __future__ import annotations

import pytest

from cord_trio.mesh.frames import (
    Bundle,
    Frame,
    Request,
    decode_frame,
    decode_request,
    encode_frame,
    encode_request,
    is_inbox,
)
from cord_trio.mesh_errors import BadFrame
from cord_trio.nats.wire import encode_headers

ID = "0123456789abcdef" * 2
SHA = "ab" * 32
CALL = {"C-Ver": "1", "C-Op": "call", "C-Id": ID, "C-From-Epoch": "0badcafe"}


def block(headers: dict[str, str]) -> bytes:
    return encode_headers(headers)


def test_a_whole_request_comes_back() -> None:
    request = Request(
        "call", ID, b"{}", source="time", tool="zeit %\r\n", method="prompts/get", ttl=0, epoch="0badcafe", hop=3,
        window=16, principal="ann lee", trace="00-1-2-01", park="to.ken", behalf="b", settled=(ID, ID[::-1]),
        events=True, bundle=Bundle(3, 150_000, SHA), first=2, to="_INBOX_a.x", reason="so",
    )  # fmt: skip
    # These are of other operations.
    assert decode_request(block(encode_request(request)), b"{}") == Request(
        "call", ID, b"{}", source="time", tool="zeit %\r\n", method="prompts/get", ttl=0, epoch="0badcafe", hop=3,
        window=16, principal="ann lee", trace="00-1-2-01", park="to.ken", behalf="b", settled=(ID, ID[::-1]),
        events=True, bundle=Bundle(3, 150_000, SHA),
    )  # fmt: skip
    credit = Request("credit", ID, window=8, first=2, to="_INBOX_a.x", reason="so", park="p", method="")
    assert decode_request(block(encode_request(credit))) == credit


def test_what_is_usual_needs_few_headers() -> None:
    assert encode_request(Request("call", ID, tool="t", epoch="0badcafe")) == {**CALL, "C-Tool": "t"}
    assert encode_frame(Frame("ok", b"x".decode(), busy=1, slots=2)) == {"C-K": "ok", "C-Id": "x", "C-Load": "1/2"}


def test_a_whole_frame_comes_back() -> None:
    for frame in (
        Frame("ok", ID, b"{}", 1, 2, type="input_required", park="p"),
        Frame("ok", "", b"{}", 1, 2),
        Frame("end", type="task", bundle=Bundle(2, 70_000, SHA)),
        Frame("prog", body=b"{}", method="notifications/progress"),
        Frame("rej", reason="busy", text="später"),
        Frame("pong", ID, state="running"),
        Frame("part", ID, b"x", seq=7),
        Frame("credit", seq=3, window=8, to="_INBOX.x"),
        Frame("moved", node="b", epoch="0badcafe"),
    ):
        assert decode_frame(block(encode_frame(frame)), frame.body) == frame


def test_what_a_later_version_adds_is_skipped() -> None:
    headers = {**CALL, "C-New": "x", "C-Tool": "t", "Nats-Trace-Dest": "y"}
    assert decode_request(block(headers)) == Request("call", ID, tool="t", epoch="0badcafe")
    assert decode_frame(block({"C-K": "ok", "C-New": "x"})) == Frame("ok")
    assert decode_frame(block({"C-K": "rej", "C-Why": "tired"})) == Frame("rej")
    assert decode_frame(block({"C-K": "pong", "C-State": "asleep"})) == Frame("pong", state="unknown")
    assert decode_frame(block({"C-K": "pong"})) == Frame("pong", state="unknown")


def test_of_two_headers_with_one_name_the_first_counts() -> None:
    assert decode_frame(b"NATS/1.0\r\nC-K: ok\r\nno header\r\nC-K: err\r\n\r\n") == Frame("ok")


@pytest.mark.parametrize(
    ("change", "what", "reason"),
    [
        ({"C-Id": None}, "a message without C-Id", ""),
        ({"C-Id": "xyz"}, "header C-Id cannot be read: 'xyz'", ""),
        ({"C-Ver": None}, "a message without C-Ver", ""),
        ({"C-Ver": "2"}, "a version that is not ours", "unsupported"),
        ({"C-Op": "dance"}, "an operation that is not known: 'dance'", "unsupported"),
        ({"C-From-Epoch": None}, "a message without C-From-Epoch", ""),
        ({"C-Ttl": "-1"}, "header C-Ttl cannot be read: '-1'", ""),
        ({"C-Ttl": "9" * 13}, "header C-Ttl cannot be read", ""),
        ({"C-Tool": "%ff"}, "header C-Tool cannot be read: '%ff'", ""),
        ({"C-Tool": "\xe9"}, "header C-Tool cannot be read", ""),
        ({"C-For": "A B"}, "header C-For cannot be read: 'A B'", ""),
        ({"C-Settled": ",".join([ID] * 17)}, "header C-Settled cannot be read", ""),
        ({"C-Settled": f"{ID},x"}, "header C-Settled cannot be read", ""),
        ({"C-Parts": "1"}, "a message without C-Sha", ""),
        ({"C-Parts": "1", "C-Sha": "x"}, "header C-Sha cannot be read: 'x'", ""),
        ({"C-Op": "credit", "C-To": "a.*"}, "header C-To cannot be read: 'a.\\*'", ""),
    ],
)
def test_a_request_that_is_none_is_refused_with_one_clear_error(
    change: dict[str, str | None], what: str, reason: str
) -> None:
    headers = {name: value for name, value in {**CALL, **change}.items() if value is not None}
    with pytest.raises(BadFrame, match=what) as caught:
        decode_request(block(headers))
    assert caught.value.reason == reason
    assert caught.value.id == ("" if "C-Id" in change else ID)


@pytest.mark.parametrize(
    ("headers", "what", "reason"),
    [
        ({}, "a frame of no known kind: ''", "unsupported"),
        ({"C-K": "sing"}, "a frame of no known kind: 'sing'", "unsupported"),
        ({"C-K": "ok", "C-Type": "poem"}, "a result of no known type: 'poem'", "unsupported"),
        ({"C-K": "ok", "C-Load": "1"}, "header C-Load cannot be read: '1'", ""),
        ({"C-K": "end"}, "a frame end that comes in parts, or should", ""),
        ({"C-K": "ok", "C-Parts": "1", "C-Sha": SHA}, "a frame ok that comes in parts, or should", ""),
        ({"C-K": "moved", "C-Node": "A", "C-Epoch": "x"}, "header C-Node cannot be read: 'A'", ""),
    ],
)
def test_a_frame_that_is_none_is_refused_with_one_clear_error(headers: dict[str, str], what: str, reason: str) -> None:
    with pytest.raises(BadFrame, match=what) as caught:
        decode_frame(block(headers))
    assert caught.value.reason == reason


def test_a_name_that_no_text_can_hold_is_said_all_the_same() -> None:
    request = Request("call", ID, tool="a\ud800", epoch="0badcafe")
    assert decode_request(block(encode_request(request))).tool == "a?"


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "_INBOX",
        "_INBOX.",
        "_INBOX..a",
        "_INBOX.*",
        "_INBOX.a.>",
        "_INBOX.a b",
        "$KV.b.up.a",
        "$JS.API.X",
        "c1.m.call",
    ],
)
def test_answers_and_parts_go_to_inboxes_alone(subject: str) -> None:
    assert not is_inbox(subject)
    assert is_inbox("_INBOX.a")
    assert is_inbox("_INBOX_node-1.0Ab.$x")
    head = encode_headers({"C-Ver": "1", "C-Op": "credit", "C-Id": "0" * 32, "C-K": "credit", "C-To": subject})
    for decode in (decode_request, decode_frame):
        with pytest.raises(BadFrame, match="C-To"):
            decode(head)
