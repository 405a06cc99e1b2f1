"""Over a socket pair with small buffers, so that nearly every write is a short one."""

from __future__ import annotations

import os
import socket
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cord_trio.counters import Counters
from cord_trio.errors import ConnectionLost, Overloaded
from cord_trio.transports import lines
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
    monkeypatch.setattr(lines, "OUTBOX_MESSAGES", 6)
    rng = Random(seed)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    expected: dict[int, bytes] = {}
    record = Record()
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            here, there = over(ours, nursery), over(theirs, nursery)
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
