from __future__ import annotations

import pytest

from cord_trio.mesh.frames import Frame, Request
from cord_trio.mesh.heads import read_frame, read_request, write_frame, write_request

ID = "0123456789abcdef" * 2


def test_what_every_call_says_is_one_block() -> None:
    request = Request("call", ID, tool="t", ttl=5, epoch="0badcafe", principal="local", settled=(ID,))
    head = write_request(request)
    assert head == (
        b"NATS/1.0\r\nC-Ver: 1\r\nC-Op: call\r\nC-Id: %b\r\nC-Tool: t\r\nC-Ttl: 5\r\nC-Prin: local\r\n"
        b"C-Settled: %b\r\nC-From-Epoch: 0badcafe\r\n\r\n" % (ID.encode(), ID.encode())
    )
    assert read_request(head) == request


def test_what_is_longer_than_headers_may_be_is_not_said() -> None:
    with pytest.raises(ValueError, match="headers of 65"):
        write_request(Request("call", ID, tool="t" * 65536, epoch="0badcafe"))


def test_an_end_is_one_block() -> None:
    head = write_frame(Frame("ok", body=b"{}"), 3, 9)
    assert head == b"NATS/1.0\r\nC-K: ok\r\nC-Load: 3/9\r\n\r\n"
    assert read_frame(head, b"{}") == Frame("ok", body=b"{}", busy=3, slots=9)
