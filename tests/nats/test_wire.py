from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from cord_trio.mesh_errors import NatsMalformed
from cord_trio.nats.wire import (
    MAX_CONTROL,
    MAX_HEADERS,
    Beat,
    Hello,
    Info,
    Message,
    Parser,
    Refusal,
    check_subject,
    encode_headers,
    encode_hello,
    encode_publish,
    encode_subscribe,
    encode_unsubscribe,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = Message("_INBOX.1", 1, "", b"NATS/1.0 503\r\n\r\n", b"")


def test_what_a_server_says_becomes_events_in_order() -> None:
    head = b"NATS/1.0\r\nA: 1\r\n\r\n"
    said = (
        b'INFO {"version":"2.11.4","max_payload":99,"headers":true,"nonce":"n","ldm":true,"new":[1]}\r\n'
        b"+OK\r\nPING\r\npong\r\n-ERR 'Permissions Violation for Publish to \"a.b\"'\r\n"
        b"MSG a.b 7 5\r\nhello\r\nMSG a.b 8 in.box 0\r\n\r\n"
        b"HMSG a.b 9 %d %d\r\n%bbody\r\n" % (len(head), len(head) + 4, head)
    )
    assert Parser().feed(said) == [
        Info(version="2.11.4", max_payload=99, headers=True, nonce="n", ldm=True),
        Beat.OK,
        Beat.PING,
        Beat.PONG,
        Refusal('Permissions Violation for Publish to "a.b"'),
        Message("a.b", 7, "", b"", b"hello"),
        Message("a.b", 8, "in.box", b"", b""),
        Message("a.b", 9, "", head, b"body"),
    ]


def test_a_message_with_headers_and_a_reply_is_read() -> None:
    said = b"HMSG _INBOX.1 1 back 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
    assert Parser().feed(said) == [Message("_INBOX.1", 1, "back", NOBODY.head, b"")]


def test_a_line_may_end_with_a_line_feed_alone_and_be_spaced_widely() -> None:
    assert Parser().feed(b"PING\nMSG  a\t1   2\nok\r\n") == [Beat.PING, Message("a", 1, "", b"", b"ok")]


def test_a_payload_may_look_like_anything() -> None:
    data = b"\r\nMSG a 1 3\r\nPING\r\n\x00\xff"
    assert Parser().feed(b"MSG a 1 %d\r\n%b\r\nPING\r\n" % (len(data), data)) == [
        Message("a", 1, "", b"", data),
        Beat.PING,
    ]


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "a line that is none of NATS: 'HTTP/1.1 400"),
        (b"\r\n", "a line that is none of NATS: ''"),
        (b"MSG a 1\r\n", "other than 3 or 4 words"),
        (b"MSG a 1 b c 2\r\n", "other than 3 or 4 words"),
        (b"HMSG a 1 12\r\n", "other than 4 or 5 words"),
        (b"MSG a x 2\r\n", "no number where one must be: 'MSG a x 2'"),
        (b"MSG a 1 -2\r\n", "no number"),
        (b"MSG a 1 " + b"9" * 11 + b"\r\n", "no number"),
        (b"MSG a " + b"9" * 19 + b" 2\r\n", "no number"),
        ("MSG a 1 ²\r\n".encode(), "no number"),
        (b"HMSG a 1 12 11\r\n", "headers that are longer than their message"),
        (b"MSG a 1 2\r\nabc\r\n", "a payload is not followed by a line end"),
        (b"INFO {\r\n", "INFO that cannot be read"),
        (b"INFO \xff\r\n", "INFO that cannot be read"),
        (b'INFO {"max_payload":"x"}\r\n', "INFO that cannot be read"),
        (b"MSG a 1 101\r\n", "a message is longer than 100 bytes"),
        (b"PING" + b" " * 37 + b"\r\n", "a control line is longer than 40 bytes"),
        (b"PING" + b" " * 37, "a control line is longer than 40 bytes"),
    ],
)
def test_what_is_none_of_the_protocol_is_refused_with_what_came_before(said: bytes, what: str) -> None:
    parser = Parser(max_line=40, max_payload=100, max_headers=50)
    with pytest.raises(NatsMalformed) as caught:
        parser.feed(b"PING\r\n" + said)
    assert what in str(caught.value)
    assert caught.value.before == (Beat.PING,)


@pytest.mark.parametrize("head", [b"abcd", b"NATS/1.0\r\n", b"NATS/1.0\r\nA:" + b" " * 35 + b"\r\n\r\n"])
def test_what_a_publisher_got_wrong_costs_its_headers_and_not_the_connection(head: bytes) -> None:
    parser = Parser(max_line=40, max_payload=100, max_headers=50)
    said = b"HMSG \xff 1 \xfe %d %d\r\n%bx\r\nPING\r\n" % (len(head), len(head) + 1, head)
    assert parser.feed(said) == [Message("\ufffd", 1, "\ufffd", b"NATS/1.0\r\n\r\n", b"x"), Beat.PING]


def test_what_is_as_long_as_its_bound_passes() -> None:
    parser = Parser(max_line=40, max_payload=100, max_headers=50)
    head = b"NATS/1.0\r\nA:" + b" " * 34 + b"\r\n\r\n"
    assert len(head) == 50
    said = b"PING" + b" " * 35 + b"\r\n" + b"HMSG a 1 50 100\r\n" + head + b"x" * 50 + b"\r\n"
    assert parser.feed(said) == [Beat.PING, Message("a", 1, "", head, b"x" * 50)]


def test_a_line_that_never_ends_stops_at_the_bound_and_frees_its_buffer() -> None:
    parser = Parser(max_line=40)
    for _ in range(40):
        assert parser.feed(b"x") == []
    with pytest.raises(NatsMalformed, match="longer than 40 bytes"):
        parser.feed(b"x")
    assert not parser._kept


def test_a_status_is_read_where_there_is_one() -> None:
    assert (NOBODY.status, NOBODY.description) == (503, "")
    told = Message("a", 1, "", b"NATS/1.0 404 No Messages\r\n\r\n", b"")
    assert (told.status, told.description) == (404, "No Messages")
    for head in (b"", b"NATS/1.0\r\nA: 1\r\n\r\n", b"NATS/1.0 5x3\r\n\r\n", b"NATS/1.0 50\r\n\r\n"):
        plain = Message("a", 1, "", head, b"")
        assert (plain.status, plain.description) == (0, "")


def test_headers_are_read_as_they_were_written() -> None:
    head = b"NATS/1.0\r\nA: 1\r\na:  two words \r\nA:3\r\nno header\r\nE:\r\nU: \xc3\xa9\r\n\r\n"
    message = Message("a", 1, "", head, b"")
    assert message.headers() == [("A", "1"), ("a", "two words"), ("A", "3"), ("E", ""), ("U", "é")]
    assert [message.header(name) for name in ("A", "a", "E", "U", "x")] == ["1", "two words", "", "é", None]


@pytest.mark.parametrize(
    ("version", "release"),
    [("2.11.0-RC.1", (2, 11)), ("2.9.10", (2, 9)), ("3.0", (3, 0)), ("dev", (0, 0)), ("", (0, 0))],
)
def test_a_release_is_read_from_its_version(version: str, release: tuple[int, int]) -> None:
    assert Info(version=version).release == release


def test_what_we_say_is_what_the_protocol_wants() -> None:
    head = encode_headers({"A": "1", "B": ""})
    assert head == b"NATS/1.0\r\nA: 1\r\nB: \r\n\r\n"
    assert encode_publish("a.b", b"hi") == b"PUB a.b 2\r\nhi\r\n"
    assert encode_publish("a", b"", reply="r") == b"PUB a r 0\r\n\r\n"
    assert encode_publish("a", b"hi", reply="r", head=head) == b"HPUB a r 23 25\r\n" + head + b"hi\r\n"
    assert encode_subscribe("a.>", 3) == b"SUB a.> 3\r\n"
    assert encode_subscribe("a.*", 3, queue="q") == b"SUB a.* q 3\r\n"
    assert encode_unsubscribe(3) == b"UNSUB 3\r\n"


def test_a_hello_says_only_what_is_known_and_shows_no_secret() -> None:
    verb, _, said = encode_hello(Hello(name="n", password="p", user="u")).partition(b" ")
    assert verb == b"CONNECT"
    assert said.endswith(b"}\r\n")
    assert json.loads(said) == {
        "verbose": False,
        "pedantic": False,
        "lang": "python-trio",
        "protocol": 1,
        "headers": True,
        "no_responders": True,
        "name": "n",
        "user": "u",
        "pass": "p",
    }
    assert repr(Hello(name="n", password="p", jwt="j")) == "Hello(name='n')"


@pytest.mark.parametrize(
    "subject", ["", ".", "a.", ".a", "a..b", "a b", "a\r\nPUB x 0", "a\tb", "a\x00", "a\x7f", "*", "a.*.b", ">", "a.>"]
)
def test_what_cannot_be_published_to_is_refused(subject: str) -> None:
    with pytest.raises(ValueError, match=r"no subject of NATS|wildcard"):
        check_subject(subject)


@pytest.mark.parametrize("subject", ["a", "a.b", "$JS.API.INFO", "a*b", "x>y.z", "é.ü"])
def test_plain_subjects_pass(subject: str) -> None:
    assert check_subject(subject) == check_subject(subject, pattern=True) == subject


def test_patterns_pass_where_they_may() -> None:
    assert [check_subject(one, pattern=True) for one in ("*", ">", "a.*.b", "a.>")] == ["*", ">", "a.*.b", "a.>"]
    with pytest.raises(ValueError, match="wildcard"):
        check_subject("a.>.b", pattern=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("", "1"), ("a:b", "1"), ("a b", "1"), ("é", "1"), ("a", "1\r\nB: 2"), ("a", "1\n"), ("a", " 1")],
)
def test_a_header_that_would_not_come_back_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="header"):
        encode_headers({name: value})


def test_headers_and_lines_that_a_server_would_end_the_connection_for_are_refused() -> None:
    assert len(encode_headers({"A": "x" * (MAX_HEADERS - 17)})) == MAX_HEADERS
    with pytest.raises(ValueError, match=f"headers of {MAX_HEADERS + 1} bytes"):
        encode_headers({"A": "x" * (MAX_HEADERS - 16)})
    assert len(encode_publish("a" * (MAX_CONTROL - 8), b"")) == MAX_CONTROL + 2
    with pytest.raises(ValueError, match="a control line of 4"):
        encode_publish("a" * MAX_CONTROL, b"")
    with pytest.raises(ValueError, match="a control line of 4"):
        encode_subscribe("a" * MAX_CONTROL, 1)


@pytest.mark.parametrize(
    "stream",
    [
        lambda n: b"MSG a 1 %d\r\n%b\r\n" % (n, b"x" * n),
        lambda n: b"MSG a 1 1\r\nx\r\n" * (n // 14),
        lambda n: b"MSG a 1 3\r\n\n\n\n\r\n" * (n // 16),
        lambda n: b'INFO {"go":"%b"}\r\n' % (b"x" * n),
    ],
    ids=["one payload", "many messages", "line feeds in payloads", "one line"],
)
@pytest.mark.parametrize("piece", [16, 4096])
def test_time_grows_with_the_bytes_alone(stream: Callable[[int], bytes], piece: int) -> None:
    def took(data: bytes) -> float:
        parser = Parser(max_line=1_000_000)
        pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
        started = time.process_time()
        count = sum(len(parser.feed(one)) for one in pieces)
        spent = time.process_time() - started
        assert count == len(Parser(max_line=1_000_000).feed(data)) > 0
        return spent

    small, large = stream(25_000), stream(200_000)
    assert min(took(large) for _ in range(3)) < 40 * max(min(took(small) for _ in range(3)), 1e-4)
