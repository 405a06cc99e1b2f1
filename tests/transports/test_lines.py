"""Over a socket pair with small buffers, so that nearly every write is a short one."""

from __future__ import annotations

import os
import socket
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cord_trio.counters import Counters
from cord_trio.errors import ConnectionLost, Overloaded
from cord_trio.transports import Limits, lines
from cord_trio.transports.lines import LineTransport, read_from, write_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cord_trio.errors import CallError


class Record:
    """A receiver that remembers."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.loss: ConnectionLost | None = None

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        self.messages += messages

    def fail(self, id: int | str, error: CallError, /) -> None:
        raise AssertionError

    def lost(self, error: ConnectionLost, /) -> None:
        self.loss = error

    def waits(self, id: int | str, /) -> bool:
        return True


def over(sock: socket.socket, nursery: trio.Nursery) -> LineTransport:
    fd = sock.fileno()
    os.set_blocking(fd, False)
    return LineTransport(
        read_from(fd),
        write_to(fd),
        read_fd=fd,
        write_fd=fd,
        nursery=nursery,
        counters=Counters(),
        name="it",
        max_message=1 << 20,
    )


@pytest.mark.parametrize("seed", range(15))
async def test_whatever_fits_messages_leave_whole_in_order_and_withdrawn_ones_never(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "QUANTUM", 3000)
    rng = Random(seed)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    expected: dict[int, bytes] = {}
    record = Record()
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            here, there = over(ours, nursery), over(theirs, nursery)
            here.limits = Limits(outbox_messages=6)
            nursery.start_soon(there.run, record)
            for id in range(60):
                message = bytes([97 + id % 26]) * rng.choice([1, 10, 2998, 2999, 3000, 3001, 20_000])
                try:
                    here.send(message, id=id)
                except Overloaded:
                    with trio.move_on_after(0.002):
                        await here.wait_uncongested()
                else:
                    expected[id] = message
                if expected and rng.random() < 0.3:
                    victim = rng.choice(list(expected)[-4:])
                    waits = not here.written(victim)
                    assert here.withdraw(victim) == waits
                    if waits:
                        del expected[victim]
                if rng.random() < 0.3:
                    await trio.lowlevel.checkpoint()
            while not here.written(max(expected, default=0)) or here.congested or len(record.messages) < len(expected):  # noqa: ASYNC110
                await trio.sleep(0.001)
            assert not here._backlog
            assert here._waiting_bytes == here._begun == 0
            nursery.cancel_scope.cancel("all arrived")
    assert record.messages == list(expected.values())


async def test_a_peer_that_ends_tells_who_still_writes() -> None:
    ours, theirs = socket.socketpair()
    record = Record()
    with ours:
        async with trio.open_nursery() as nursery:
            here = over(ours, nursery)
            here.send(b"x" * 1_000_000, id=1)
            here.send(b"{}", id=2)
            nursery.start_soon(here.run, record)
            nursery.start_soon(here.wait_uncongested)
            await trio.testing.wait_all_tasks_blocked()
            theirs.close()
    assert record.loss is not None
    assert [here.written(1), here.written(2)] == [True, False]
    assert here.withdraw(2)
    assert not any(here._backlog.values())


async def test_after_close_nothing_touches_the_descriptor() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            here = over(ours, nursery)
            here.close()
            with pytest.raises(ConnectionLost) as caught:
                here.send(b"{}")
            await here.run(Record())
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                theirs.recv(1)
    assert (caught.value.executed, caught.value.reason) == ("no", "closed on this side")


async def test_a_reader_takes_fewer_bytes_where_messages_are_short() -> None:
    ours, theirs = socket.socketpair()
    turns: list[int] = []

    class Turns(Record):
        def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
            turns.append(len(messages))

    with ours, theirs:
        async with trio.open_nursery() as nursery:
            here = over(ours, nursery)
            theirs.sendall(b'{"method":"x"}\n' * 7000)
            theirs.close()
            await here.run(Turns())
    assert sum(turns) == 7000
    assert max(turns[1:]) <= 300


@pytest.mark.parametrize(("last", "messages"), [(b'{"id":1}', 2), (b'{"id":{}', 1), (b'[{"id":1}', 1)])
async def test_a_last_message_needs_no_line_end(last: bytes, messages: int) -> None:
    ours, theirs = socket.socketpair()
    record = Record()
    with ours:
        async with trio.open_nursery() as nursery:
            here = over(ours, nursery)
            theirs.sendall(b"{}\n" + last)
            theirs.close()
            await here.run(record)
    assert len(record.messages) == messages


class Replies(Record):
    """A receiver whose every message makes another task send one, as a reply does that a caller waited for."""

    def __init__(self, nursery: trio.Nursery, transport: LineTransport, turns: int) -> None:
        super().__init__()
        self._nursery = nursery
        self._transport = transport
        self._turns = turns

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        super().feed(messages)
        for message in messages:
            self._nursery.start_soon(self._send, message)

    async def _send(self, message: bytes) -> None:
        for _ in range(self._turns):
            await trio.lowlevel.checkpoint()
        self._transport.send(message, id=int(message))


def counting(transport: LineTransport) -> list[bytes]:
    """What each write of `transport` is asked to write, from here on."""
    write, writes = transport._write, []

    def noted(data: bytes | memoryview) -> int:
        writes.append(bytes(data))
        return write(data)

    transport._write = noted
    return writes


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_what_the_replies_of_one_read_provoke_is_written_together(turns: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            here = over(ours, nursery)
            writes = counting(here)
            for id in range(lines.TOGETHER):
                here.send(b"%d" % id, id=id)
            assert len(writes) == lines.TOGETHER
            record = Replies(nursery, here, turns)
            nursery.start_soon(here.run, record)
            theirs.sendall(b"".join(b"%d\n" % id for id in range(100, 140)))
            while sum(data.count(b"\n") for data in writes) < lines.TOGETHER + 40:  # noqa: ASYNC110  # no event tells
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel("all written")
        theirs.setblocking(False)
        got = theirs.recv(1 << 16).split()
    assert sorted(map(int, got)) == [*range(lines.TOGETHER), *range(100, 140)]
    if turns == 0:
        assert len(writes) == lines.TOGETHER + 1


class Gathering:
    """A transport whose next read gathers, and what is to happen while it does."""

    def __init__(self, nursery: trio.Nursery, transport: LineTransport) -> None:
        self.record = Replies(nursery, transport, 0)
        self.writes = counting(transport)
        for id in range(lines.TOGETHER):
            transport.send(b"%d" % id, id=id)
        self.writes.clear()


async def test_what_waits_for_the_end_of_the_turn_can_be_taken_back() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            here = over(ours, nursery)
            gathering = Gathering(nursery, here)

            async def take_back() -> None:
                while len(here._backlog) < 4:  # noqa: ASYNC110  # no event tells
                    await trio.lowlevel.checkpoint()
                assert here._gathering
                assert not here.written(101)
                assert here.withdraw(101)

            # Its turns come between those of the reader and of the senders, whichever way Trio shuffles.
            here._gather = partial(gather_slowly, here)  # type: ignore[method-assign]  # more turns, no other order
            nursery.start_soon(take_back)
            nursery.start_soon(here.run, gathering.record)
            theirs.sendall(b"100\n101\n102\n103\n")
            while not gathering.writes:  # noqa: ASYNC110  # no event tells
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel("all written")
    assert sorted(b"".join(gathering.writes).split()) == [b"100", b"102", b"103"]


async def gather_slowly(transport: LineTransport) -> None:
    transport._gathering = True
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    await LineTransport._gather(transport)


async def test_a_reader_that_is_cancelled_while_it_gathers_still_writes() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with trio.open_nursery() as nursery, trio.open_nursery() as reading:
            here = over(ours, nursery)
            gathering = Gathering(nursery, here)
            here._gather = partial(gather_cancelled, here, reading)  # type: ignore[method-assign]
            reading.start_soon(here.run, gathering.record)
            theirs.sendall(b"100\n101\n102\n103\n")
        assert sorted(b"".join(gathering.writes).split()) == [b"100", b"101", b"102", b"103"]


async def gather_cancelled(transport: LineTransport, reading: trio.Nursery) -> None:
    transport._gathering = True
    while len(transport._backlog) < 4:  # noqa: ASYNC110  # no event tells
        await trio.lowlevel.checkpoint()
    reading.cancel_scope.cancel("the test says so")
    await LineTransport._gather(transport)


async def test_a_write_that_fails_at_the_end_of_the_turn_ends_the_connection() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            here = over(ours, nursery)
            gathering = Gathering(nursery, here)

            def broken(_: bytes | memoryview) -> int:
                raise BrokenPipeError(32, "Broken pipe")

            here._write = broken
            theirs.sendall(b"100\n101\n102\n103\n")
            theirs.shutdown(socket.SHUT_WR)
            await here.run(gathering.record)
            assert [here.written(id) for id in (100, 103)] == [False, False]
            with pytest.raises(ConnectionLost):
                here.send(b"{}")
            nursery.cancel_scope.cancel("it is over")


async def test_a_flood_that_nobody_answers_is_read_without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    record = Record()
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            here = over(ours, nursery)

            async def gather() -> None:  # noqa: ASYNC124  # async like the one it replaces
                raise AssertionError("nobody sends")

            monkeypatch.setattr(here, "_gather", gather)
            nursery.start_soon(here.run, record)
            for _ in range(20):
                theirs.sendall(b"{}\n" * 50)
                await trio.testing.wait_all_tasks_blocked(0.001)
            nursery.cancel_scope.cancel("all read")
    assert len(record.messages) == 1000


async def test_what_the_end_of_the_turn_does_not_take_is_written_later() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            here = over(ours, nursery)
            gathering = Gathering(nursery, here)
            write = here._write

            def byte_by_byte(data: bytes | memoryview) -> int:
                return write(data[:1])

            here._write = byte_by_byte
            nursery.start_soon(here.run, gathering.record)
            theirs.sendall(b"100\n101\n102\n103\n")
            with trio.fail_after(5):
                while len(gathering.record.messages) < 4 or here._backlog:  # noqa: ASYNC110  # no event tells
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel("all written")
    written = b"".join(data[:1] for data in gathering.writes)
    assert sorted(written.split()) == [b"100", b"101", b"102", b"103"]
