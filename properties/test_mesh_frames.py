"""What is said between nodes comes back, and whatever else comes gives a value or one clear error."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from cord_trio.mesh.frames import (
    KINDS,
    MAX_SETTLED,
    REASONS,
    STATES,
    TYPES,
    Bundle,
    Frame,
    Request,
    decode_frame,
    decode_request,
    encode_frame,
    encode_request,
)
from cord_trio.mesh.heads import read_frame, read_request, write_frame, write_request
from cord_trio.mesh_errors import BadFrame
from cord_trio.nats.wire import encode_headers
from cord_trio.testing.strategies import texts

if TYPE_CHECKING:
    from collections.abc import Callable

HEX = st.sampled_from("0123456789abcdef")
IDS = st.lists(HEX, min_size=32, max_size=32).map("".join)
EPOCHS = st.lists(HEX, min_size=8, max_size=8).map("".join)
NODES = st.text("abz09_-", min_size=1, max_size=48)
SUBJECTS = st.sampled_from(["_INBOX.a.b", "_INBOX_x-y.a", "_INBOX.$a.b.c"])
NUMBERS = st.integers(0, 10**12 - 1)
BUNDLES = st.builds(Bundle, NUMBERS, NUMBERS, st.lists(HEX, min_size=64, max_size=64).map("".join))
CALLS = st.builds(
    Request, st.just("call"), IDS, st.binary(max_size=9), source=texts(), tool=st.none() | texts(),
    method=texts().filter(bool), ttl=st.none() | NUMBERS, epoch=EPOCHS, hop=NUMBERS, window=NUMBERS,
    principal=texts(), trace=texts(), park=texts(), behalf=st.just("") | NODES,
    settled=st.lists(IDS, max_size=MAX_SETTLED).map(tuple), events=st.booleans(), bundle=st.none() | BUNDLES,
    signature=st.sampled_from(["", "0badcafe.1.2.0.x"]),
)  # fmt: skip
OTHERS = st.builds(
    Request, st.sampled_from(["cancel", "ping", "credit", "done", "drop"]), IDS, st.binary(max_size=9),
    epoch=st.just("") | EPOCHS, window=NUMBERS, park=texts(), first=NUMBERS, to=st.just("") | SUBJECTS,
    reason=texts(), method=st.just(""),
)  # fmt: skip
FRAMES = st.builds(
    Frame, st.sampled_from(sorted(KINDS - {"end", "ok", "rej", "pong"})), st.just("") | IDS, st.binary(max_size=9),
    park=texts(), method=texts(), text=texts(), seq=NUMBERS, window=NUMBERS, to=st.just("") | SUBJECTS,
    node=st.just("") | NODES, epoch=st.just("") | EPOCHS,
)  # fmt: skip
RESULTS = st.builds(Frame, st.just("ok"), st.just("") | IDS, st.binary(max_size=9), type=st.sampled_from(sorted(TYPES)))
ENDS = st.builds(Frame, st.just("end"), type=st.sampled_from(sorted(TYPES)), bundle=BUNDLES)
SAID = st.builds(Frame, st.just("rej"), reason=st.sampled_from(sorted(REASONS)), text=texts()) | st.builds(
    Frame, st.just("pong"), IDS, state=st.sampled_from(sorted(STATES))
)
NAMES = st.sampled_from(
    [
        *("C-Ver", "C-Op", "C-Id", "C-Srv", "C-Tool", "C-Method", "C-Ttl", "C-From-Epoch", "C-Hop", "C-Win", "C-Prin"),
        *("traceparent", "C-Park", "C-For", "C-Settled", "C-Events", "C-Parts", "C-Size", "C-Sha", "C-Seq", "C-To"),
        *("C-Why", "C-K", "C-Load", "C-Type", "C-Text", "C-State", "C-Node", "C-Epoch", "Other"),
    ]
)
VALUES = st.sampled_from(
    ["1", "call", "credit", "a" * 32, "0badcafe", "ok", "end", "rej", "pong", "%", "%zz", "%ff", "-1", "1/2", "é", ""]
)
USUAL = st.builds(
    Request, st.just("call"), IDS, st.binary(max_size=9), source=st.sampled_from(["", "s", "%", "a b"]),
    tool=st.sampled_from([None, "", "t__u", "é"]), ttl=st.none() | NUMBERS, epoch=EPOCHS,
    principal=st.sampled_from(["", "local"]), trace=st.sampled_from(["", "00-1-2-01"]),
    settled=st.lists(IDS, max_size=MAX_SETTLED).map(tuple), events=st.booleans(), hop=st.sampled_from([0, 0, 0, 2]),
    behalf=st.sampled_from(["", "", "", "b"]), park=st.sampled_from(["", "", "", "p"]),
)  # fmt: skip
SWAPS = st.sampled_from(
    [(b": ", b":"), (b"C-K: ok", b"C-K: OK"), (b"C-Ver: 1", b"C-Ver: 12"), (b"\r\n\r\n", b"\r\nX: y\r\n\r\n"),
     (b"C-Id", b"C-Ip"), (b"C-From-Epoch", b"C-Op"), (b"0", b"x"), (b",", b""), (b"\r\n", b"\n"), (b"e", b"\xe9")]
)  # fmt: skip
LINES = st.lists(st.tuples(NAMES, VALUES).map(lambda pair: f"{pair[0]}:{pair[1]}".encode()) | st.binary(max_size=20))


@given(CALLS | OTHERS)
def test_a_request_comes_back(request: Request) -> None:
    assert decode_request(encode_headers(encode_request(request)), request.body) == request


@given(FRAMES | RESULTS | ENDS | SAID)
def test_a_frame_comes_back(frame: Frame) -> None:
    assert decode_frame(encode_headers(encode_frame(frame)), frame.body) == frame


@given(LINES, st.binary(max_size=9))
def test_garbage_gives_a_value_or_one_clear_error(lines: list[bytes], body: bytes) -> None:
    head = b"\r\n".join([b"NATS/1.0", *lines, b"", b""])
    for decode in (decode_request, decode_frame):
        with suppress(BadFrame):
            decode(head, body)


def told(read: Callable[[bytes, bytes], object], head: bytes) -> object:
    try:
        return read(head, b"x")
    except BadFrame as exc:
        return str(exc), exc.reason, exc.id


@given(CALLS | OTHERS | USUAL)
def test_what_is_written_at_once_is_what_the_headers_say(request: Request) -> None:
    assert write_request(request) == encode_headers(encode_request(request))


@given(FRAMES | RESULTS | ENDS | SAID, st.integers(0, 9), st.integers(1, 9))
def test_a_frame_is_written_with_the_load(frame: Frame, busy: int, slots: int) -> None:
    assert write_frame(frame, busy, slots) == encode_headers(encode_frame(frame) | {"C-Load": f"{busy}/{slots}"})


@given(CALLS | USUAL, st.none() | SWAPS)
def test_what_is_read_at_once_is_what_the_headers_say(request: Request, swap: tuple[bytes, bytes] | None) -> None:
    head = encode_headers(encode_request(request))
    if swap is not None:
        head = head.replace(*swap)
    assert told(read_request, head) == told(decode_request, head)


@given(RESULTS | SAID, st.integers(0, 9), st.none() | SWAPS)
def test_an_end_is_read_as_its_headers_say(frame: Frame, slots: int, swap: tuple[bytes, bytes] | None) -> None:
    head = write_frame(frame, 1, slots)
    if swap is not None:
        head = head.replace(*swap)
    assert told(read_frame, head) == told(decode_frame, head)
