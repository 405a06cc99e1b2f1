"""Clients that are heard of in one place."""

from __future__ import annotations

import socket
from contextlib import ExitStack, asynccontextmanager, closing
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cord_trio.transports import http1_crowd
from cord_trio.transports.http1_crowd import MANY, Crowd

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.skipif(not http1_crowd.EPOLL, reason="without epoll each client is heard by itself")


class Guest:
    """One client of a crowd, and its server's end of the connection."""

    def __init__(self, crowd: Crowd) -> None:
        self.here, self.there = socket.socketpair()
        self.here.setblocking(False)
        self.left = 0
        self.client = crowd.add(self.here, self._leave)

    def _leave(self) -> None:
        self.left += 1

    async def hear(self) -> None:
        await self.client.hear()


@asynccontextmanager
async def open_crowd(count: int = 1) -> AsyncGenerator[tuple[Crowd, list[Guest]]]:
    with closing(Crowd()) as crowd, ExitStack() as stack:
        guests = [Guest(crowd) for _ in range(count)]
        for guest in guests:
            stack.enter_context(guest.here)
            stack.enter_context(guest.there)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.run)
            yield crowd, guests
            nursery.cancel_scope.cancel("the test is over")


def stir(crowd: Crowd) -> None:
    """Let requests of others begin."""
    crowd.begun += MANY


async def test_a_client_is_heard_among_others_only_while_they_ask_too() -> None:
    async with open_crowd() as (crowd, [guest]):
        ways = []
        for others in (0, MANY - 1, MANY, 0, MANY, MANY):
            guest.client.begin()
            crowd.begun += others
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guest.hear)
                await trio.testing.wait_all_tasks_blocked()
                ways.append(trio.lowlevel.current_statistics().io_statistics.tasks_waiting_read)
                guest.there.send(b"x")
            assert guest.here.recv(9) == b"x"
        # Trio is asked about the crowd itself, and about a client that is alone.
        base = ways[2]
        assert [way - base for way in ways] == [1, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("before", [True, False])
async def test_what_comes_while_nobody_reads_is_not_missed(before: bool) -> None:
    async with open_crowd() as (crowd, [guest]):
        stir(crowd)
        if not before:
            guest.there.send(b"a")
            await guest.hear()  # from here on among others
            assert guest.here.recv(9) == b"a"
            guest.client.unread = False
        guest.there.send(b"b")
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(3):
            await guest.hear()
        assert guest.here.recv(9) == b"b"


async def test_a_client_that_leaves_is_heard_to_its_last_byte() -> None:
    async with open_crowd() as (crowd, [guest]):
        stir(crowd)
        guest.there.sendall(b"last words")
        guest.there.close()
        heard = b""
        with trio.fail_after(3):
            while True:  # in pieces, so that the one edge of the end has long been told
                await guest.hear()
                try:
                    piece = guest.here.recv(4)
                except BlockingIOError:
                    continue
                if not piece:
                    break
                heard += piece
                guest.client.unread = len(piece) == 4
                await trio.testing.wait_all_tasks_blocked()
    assert (heard, guest.client.ended, guest.left > 0) == (b"last words", True, True)


async def test_one_whose_fill_was_read_lets_others_run_before_the_rest() -> None:
    async with open_crowd() as (crowd, [guest]):
        stir(crowd)
        guest.there.send(b"much")
        await guest.hear()
        guest.client.unread = True
        ran = False

        async def run() -> None:  # noqa: ASYNC124  # a task
            nonlocal ran
            ran = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await guest.hear()
            guest.client.unread = True
            await guest.hear()  # by now, in whichever order Trio takes them
            assert ran


async def test_a_fault_in_hearing_of_one_client_is_that_clients(caplog: pytest.LogCaptureFixture) -> None:
    async with open_crowd(2) as (crowd, [sick, well]):

        def fail() -> None:
            raise RuntimeError("sick")

        crowd.discard(sick.client.fd)
        crowd.add(sick.here, fail)
        stir(crowd)
        sick.there.close()
        well.there.send(b"x")
        with trio.fail_after(3):
            await well.hear()
            assert well.here.recv(9) == b"x"
            well.there.send(b"y")
            await well.hear()
        assert well.here.recv(9) == b"y"
        told = [f"hearing of a client failed fd={sick.here.fileno()}"]
    assert [record.getMessage() for record in caplog.records] == told


async def test_who_waits_among_others_can_be_cancelled_and_waits_again() -> None:
    async with open_crowd() as (crowd, [guest]):
        stir(crowd)
        with trio.move_on_after(0.01) as scope:
            await guest.hear()
        assert scope.cancelled_caught
        guest.there.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(3):
            await guest.hear()
        assert guest.here.recv(9) == b"x"
