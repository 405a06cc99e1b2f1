"""What is said between nodes comes back, and whatever else comes gives a value or one clear error."""

from __future__ import annotations

from contextlib import suppress

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
from cord_trio.mesh_errors import BadFrame
from cord_trio.nats.wire import encode_headers
from cord_trio.testing.strategies import texts

HEX = st.sampled_from("0123456789abcdef")
IDS = st.lists(HEX, min_size=32, max_size=32).map("".join)
EPOCHS = st.lists(HEX, min_size=8, max_size=8).map("".join)
NODES = st.text("abz09_-", min_size=1, max_size=48)
SUBJECTS = st.sampled_from(["_INBOX.a.b", "x", "a.b.c"])
NUMBERS = st.integers(0, 10**12 - 1)
BUNDLES = st.builds(Bundle, NUMBERS, NUMBERS, st.lists(HEX, min_size=64, max_size=64).map("".join))
CALLS = st.builds(
    Request, st.just("call"), IDS, st.binary(max_size=9), source=texts(), tool=st.none() | texts(),
    method=texts().filter(bool), ttl=st.none() | NUMBERS, epoch=EPOCHS, hop=NUMBERS, window=NUMBERS,
    principal=texts(), trace=texts(), park=texts(), behalf=st.just("") | NODES,
    settled=st.lists(IDS, max_size=MAX_SETTLED).map(tuple), events=st.booleans(), bundle=st.none() | BUNDLES,
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
