from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cord_trio.transports.http1 import (
    HEAD_LIMIT,
    Chunks,
    Headers,
    Unacceptable,
    check_head,
    check_origin,
    check_target,
    encode_headers,
    know,
)


def test_headers_keep_order_spelling_and_duplicates() -> None:
    raw = ((b"X-A", b"1 "), (b"x-a", b"2"), (b"B", b"\xff"))
    headers = Headers(raw)
    assert list(headers) == [("X-A", "1"), ("x-a", "2"), ("B", "\xff")]
    assert headers.get("X-a") == "1"
    assert headers.all("x-A") == ("1", "2")
    assert headers.get("none") is None
    assert headers.get("\u20ac") is None
    assert headers.all("none") == ()
    assert "b" in headers
    assert "c" not in headers
    assert len(headers) == 3
    assert repr(headers) == "Headers(['X-A', 'x-a', 'B'])"


def test_headers_are_encoded_one_line_each() -> None:
    assert encode_headers([("A", "b c"), ("D-E", "\xff\t")]) == b"A: b c\r\nD-E: \xff\t\r\n"


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "\xe9", "a\0"])
def test_a_bad_header_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="header name"):
        encode_headers([(name, "x")])


@pytest.mark.parametrize("value", ["secret\r\nX: y", "secret\n", "secret\r", "secret\0", "secret\x7f", "secret\u20ac"])
def test_a_bad_header_value_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(ValueError, match="value") as caught:
        encode_headers([("A", value)])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("target", ["", "x", "/a b", "/a\r\n", "/\xe9", "/\0", "http://x/"])
def test_a_bad_target_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="target"):
        check_target(target)


@pytest.mark.parametrize("target", ["/", "*", "/a?b=%20"])
def test_a_good_target_passes(target: str) -> None:
    check_target(target)


@pytest.mark.parametrize(
    "head",
    [b"A\n", b"A\r\nB\n\r\n", b"A\rB\r\n\r\n", b"A\r\n B\r\n\r\n", b"A\r\n\tB\r\n\r\n", b"A\0", b"\r\r\n"],
)
def test_what_httptools_lets_through_in_a_head_is_refused(head: bytes) -> None:
    with pytest.raises(Unacceptable) as caught:
        check_head(head)
    assert caught.value.status == 400


@pytest.mark.parametrize("head", [b"", b"A", b"A\r", b"A\r\n", b"A\r\nB: c d\r\n\r\n"])
def test_a_good_head_passes_whole_or_in_part(head: bytes) -> None:
    check_head(head)


def test_chunks_are_joined_and_stop_where_the_body_ends() -> None:
    chunks = Chunks(100)
    rest = chunks.feed(b"3\r\nabc\r\n0A ;x=y\r\n0123456789\r\n0\r\nT: u\r\n\r\nGET /")
    assert (bytes(chunks.body), rest) == (b"abc0123456789", b"GET /")


def test_chunks_come_one_byte_at_a_time() -> None:
    chunks = Chunks(100)
    rests = [chunks.feed(bytes((byte,))) for byte in b"3\r\nabc\r\n0\r\n\r\n"]
    assert (bytes(chunks.body), rests[:-1], rests[-1]) == (b"abc", [None] * 12, b"")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"3\nabc", 400),
        (b"\r\n", 400),
        (b"-3\r\n", 400),
        (b"0x3\r\n", 400),
        (b" 3\r\n", 400),
        (b"3\r\nabcd\r\n", 400),
        (b"3\r\nabc\rx", 400),
        (b"ffffffffffffffff\r\n", 413),
        (b"fffffffffffffffff\r\n", 400),
        (b"65\r\n", 413),
        (b"0" * 2000, 400),
        (b"3;" + b"x" * 2000, 400),
        (b"0\r\n" + b"a" * 10_000, 400),
        (b"0\r\n" + b"a: b\r\n" * 20_000, 400),
        (b"".join(b"1;%s\r\nx\r\n" % (b"y" * 1000) for _ in range(100)), 400),
    ],
)
def test_bad_chunks_are_refused(data: bytes, status: int) -> None:
    with pytest.raises(Unacceptable) as caught:
        Chunks(100).feed(data)
    assert caught.value.status == status


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8931", "[::1]", "[::1]:9"])
@pytest.mark.parametrize(
    "origin", [None, "http://localhost", "https://localhost:3000", "http://127.0.0.1:1", "http://[::1]:2"]
)
def test_loopback_is_let_in(host: str, origin: str | None) -> None:
    assert check_origin(host, origin) is None


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "localhost.evil",
        "localhost.",
        "localhost:",
        "localhost:80x",
        "localhost:123456",
        "x@localhost",
        "::1",
        "127.0.0.1.evil:80",
        "localhost, evil",
    ],
)
def test_s_foreign_and_missing_hosts_are_misdirected(host: str | None) -> None:
    assert check_origin(host, None) == 421


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "http://localhost.evil",
        "http://evil.example",
        "file://localhost",
        "http://localhost:80/path",
        "http://localhost http://evil.example",
        "localhost",
    ],
)
def test_s_foreign_origins_are_forbidden(origin: str) -> None:
    assert check_origin("localhost", origin) == 403


def test_configured_hosts_and_origins_are_compared_as_a_whole() -> None:
    def check(host: str, origin: str) -> int | None:
        return check_origin(host, origin, allowed_hosts=["GW.example:8443"], allowed_origins=["https://App.example"])

    assert check("gw.example:8443", "https://app.example") is None
    assert check("gw.example", "https://app.example") == 421
    assert check("localhost", "https://app.example") == 421
    assert check("gw.example:8443", "https://app.example:444") == 403
    assert check("gw.example:8443", "http://app.example") == 403


@example(body=b"x" * 40, more=60, off=-1)
@example(body=b"x" * 10, more=0, off=-1)
@given(body=st.binary(max_size=40), more=st.sampled_from([0, 60, 950, 9_970, 99_960]), off=st.integers(-3, 3))
def test_a_known_head_is_found_again_with_the_length_of_what_is_behind_it_and_no_other(
    body: bytes, more: int, off: int
) -> None:
    known = know(b"POST / HTTP/1.1\r\nContent-Length: 7\r\nHost: x\r\n\r\n", Headers(()), HEAD_LIMIT)
    assert known is not None
    body += b"x" * more
    size = max(0, len(body) + off)
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\nHost: x\r\n\r\n" % size
    start = known.body(head + body)
    if size != len(body):
        assert start == -1
    elif size < 100_000:
        assert start == len(head)
    assert known.body(head.replace(b"Host: x", b"Host: y") + body) == -1
    assert known.body(head[:-1]) == -1
