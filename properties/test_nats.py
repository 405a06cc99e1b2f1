"""Where a NATS stream is cut never matters, and what is encoded comes back."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from cord_trio.mesh_errors import NatsMalformed
from cord_trio.nats.wire import (
    Event,
    Message,
    Parser,
    check_subject,
    encode_headers,
    encode_publish,
)
from cord_trio.testing.strategies import splits, texts

HEAD = b"NATS/1.0\r\nA: 1\r\n\r\n"
PARTS = st.lists(
    st.sampled_from(
        [
            *(b"MSG a 1 2\r\n", b"MSG a.b 1 r 0\r\n", b"MSG a 1 30\r\n", b"ok\r\n", b"\r\n", b"\n", b"\r", b" "),
            *(b"HMSG a 1 %d %d\r\n" % (len(HEAD), len(HEAD) + 2), HEAD, b"NATS/1.0 503\r\n\r\n"),
            *(b"PING\r\n", b"PONG\n", b"+OK\r\n", b"-ERR 'x'\r\n", b'INFO {"version":"2.11.0"}\r\n', b"\xff", b"MSG"),
            *(b"x" * 30, b"MSG a 1 31\r\n", b"1"),
        ]
    )
).map(b"".join)
WHOLE = st.lists(
    st.sampled_from(
        [
            *(b"MSG a 1 2\r\nok\r\n", b"MSG a.b 1 r 0\r\n\r\n", b"MSG a 1 4\r\n\r\n\r\n\r\n", b"PING\r\n", b"+OK\r\n"),
            b"HMSG a 1 %d %d\r\n%bok\r\n" % (len(HEAD), len(HEAD) + 2, HEAD),
        ]
    )
).map(b"".join)
TOKENS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=" .*>"), min_size=1, max_size=8)
SUBJECTS = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=8)
VALUES = texts().filter(lambda value: not {"\r", "\n"} & set(value)).map(lambda value: value.strip(" \t"))


def said(pieces: list[bytes]) -> tuple[list[Event | object], str]:
    """The events of a stream, and what ended it."""
    parser = Parser(max_line=36, max_payload=30)
    events: list[Event | object] = []
    try:
        for piece in pieces:
            events += parser.feed(piece)
    except NatsMalformed as exc:
        return [*events, *exc.before], str(exc)
    return events, ""


@given(st.data(), PARTS | WHOLE)
def test_events_do_not_depend_on_the_cuts(data: st.DataObject, stream: bytes) -> None:
    assert said(data.draw(splits(stream))) == said([stream])


@given(st.binary(max_size=200))
@example(b"MSG a 1 2\r\n\r\n\r\n")
def test_rubbish_is_refused_in_the_same_way_byte_by_byte(stream: bytes) -> None:
    assert said([stream[at : at + 1] for at in range(len(stream))]) == said([stream])


@given(SUBJECTS, st.none() | SUBJECTS, st.binary(max_size=60), st.none() | st.dictionaries(NAMES, VALUES, max_size=3))
def test_what_is_published_comes_back(
    subject: str, reply: str | None, data: bytes, headers: dict[str, str] | None
) -> None:
    assert check_subject(subject) == subject
    head = b"" if headers is None else encode_headers(headers)
    line = encode_publish(subject, data, reply=reply or "", head=head)
    # A server passes on what it was sent, with the number of the subscription behind the subject.
    verb, _, rest = line.partition(b" ")
    name = subject.encode()
    delivered = b"%b %b 5%b" % (verb.replace(b"PUB", b"MSG"), name, rest.removeprefix(name))
    (message,) = Parser().feed(delivered)
    assert message == Message(subject, 5, reply or "", head, data)
    assert isinstance(message, Message)
    assert message.headers() == list((headers or {}).items())
    assert [message.header(name) for name in headers or {}] == list((headers or {}).values())
