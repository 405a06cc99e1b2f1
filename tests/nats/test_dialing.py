"""What a server may say before it takes us: said by a listener in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.errors import ConnectFailed
from cord_trio.nats import dialing
from cord_trio.nats.dialing import greet, parse_server
from cord_trio.nats.keys import Credentials
from cord_trio.nats.wire import Beat, Hello
from tests.nats.test_client import MemoryWire

if TYPE_CHECKING:
    from trio.testing import MockClock

    from cord_trio.nats.dialing import Greeted

INFO = b'INFO {"version":"2.11.0"}\r\n'


async def greeted(monkeypatch: pytest.MonkeyPatch, *said: bytes) -> tuple[Greeted, MemoryWire]:
    """How a server that says this, and then closes the connection, is met."""
    wire = MemoryWire()
    wire.answers = False
    for data in (*said, b""):
        wire.say(data)

    async def reach(*_: object) -> MemoryWire:
        await trio.lowlevel.checkpoint()
        return wire

    monkeypatch.setattr(dialing, "_reach", reach)
    async with trio.open_nursery() as nursery:
        try:
            result = await greet(
                parse_server("one"), nursery, credentials=Credentials(), hello=Hello(name="n"), max_payload=100
            )
            failure = None
        except ConnectFailed as exc:
            assert wire.closed
            failure = exc
    if failure is not None:
        raise failure
    return result, wire


async def test_what_follows_the_greeting_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    said = INFO + b"PING\r\n", b'+OK\r\nINFO {"version":"2.12.0"}\r\nPONG\r\nPING\r\n'
    result, wire = await greeted(monkeypatch, *said)
    assert (result.info.version, result.early) == ("2.12.0", [Beat.PING])
    assert wire.written.startswith(b"CONNECT {")
    assert wire.written.endswith(b"PING\r\nPONG\r\n")


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ([], "handshake: the server closed the connection"),
        ([INFO], "handshake: the server closed the connection"),
        ([b"PING\r\n"], "the server does not begin with INFO"),
        ([b"-ERR 'maximum connections exceeded'\r\n"], "the server refuses: maximum connections exceeded"),
        (
            [INFO, b"-ERR 'Authorization Violation'\r\n"],
            "authorize: the server refuses somebody without credentials: .*; give it",
        ),
        ([INFO, b"-ERR 'maximum connections exceeded'\r\n"], "handshake: the server refuses us: maximum"),
        ([b"HTTP/1.1 400 Bad Request\r\n"], "it speaks no NATS: .*is the port that of a NATS server"),
        ([b'INFO {"version":"2.9.10"}\r\n'], r"nats-server 2\.9\.10 is too old: .*use nats-server 2\.11 or newer"),
        ([b"INFO {}\r\n"], r"nats-server \(unknown\) is too old"),
    ],
)
async def test_a_server_that_does_not_take_us_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, said: list[bytes], what: str
) -> None:
    with pytest.raises(ConnectFailed, match=what) as caught:
        await greeted(monkeypatch, *said)
    assert caught.value.source == "nats://one:4222"


async def test_a_server_that_takes_the_connection_and_says_nothing_is_told_of(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    wire = MemoryWire()
    wire.answers = False

    async def reach(*_: object) -> MemoryWire:
        await trio.lowlevel.checkpoint()
        return wire

    monkeypatch.setattr(dialing, "_reach", reach)
    server = parse_server("one")
    async with trio.open_nursery() as nursery:
        with trio.fail_after(2 * dialing.GREETING_LIMIT):
            try:
                await greet(server, nursery, credentials=Credentials(), hello=Hello(name="n"), max_payload=100)
            except ConnectFailed as exc:
                failure = exc
    assert wire.closed
    assert (failure.step, failure.remedy) == ("connect", "is the port that of a NATS server?")
    assert "said nothing within 5 s" in failure.reason


@pytest.mark.parametrize("url", ["tls://127.0.0.1", "wss://127.0.0.1"])
async def test_where_no_tls_is_spoken_that_is_asked_and_not_for_a_certificate(url: str) -> None:
    async def plain(stream: trio.SocketStream) -> None:
        if url.startswith("tls"):
            await stream.send_all(INFO)
        await stream.receive_some()
        await stream.send_all(b"-ERR 'Unknown Protocol Operation'\r\n")
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, plain, 0)
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(5):
            try:
                await greet(
                    parse_server(f"{url}:{port}"), nursery, credentials=Credentials(), hello=Hello(name="n"),
                    environ={}, max_payload=100,
                )  # fmt: skip
            except ConnectFailed as exc:
                failure = exc
        nursery.cancel_scope.cancel("it is told")
    assert (failure.step, failure.remedy) == ("tls", "does the server speak TLS here?")
