"""One task that reads all pipes which hold something, each a little, in one turn of the loop.

A task for each pipe costs a step, a registration and a look at the clock for each message, which is more than the
message itself when fifty servers log. Connections live and end in their own nurseries; this only calls what reads.
There is none without `select.epoll`; then each connection's own task reads.
"""

from __future__ import annotations

import logging
import select
import sys
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar, Final

import trio

from cord_trio.cell import Cell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger("cord_trio.transports")

TURN: Final = 0.001
"""Seconds that one turn reads, and one more read; then others run before it goes on with the rest."""

AT_ONCE: Final = 512
"""Pipes that one look finds at most."""


class Pump:
    """Reads pipes, as long as `run` does.

    Invariants: what reads one pipe is called by nobody else, never twice for one look, and not after it has said that
    it is over; its errors end the wait of that pipe's connection alone.

    Attributes:
        attended: whether a pipe is read by somebody else. One such is enough: he saves a turn of the loop if he is
            alone, and with many at work each costs what the pump saves (a third of a call's time, with sixteen).
        heed: `heed(fd, events)` says what is heard of a pipe that is kept.
        pipes: what is kept.

    """

    def __init__(self) -> None:
        self.attended = False
        self._epoll = select.epoll()
        self.heed: Callable[[int, int], None] = self._epoll.modify
        self.pipes: dict[int, tuple[Callable[[], str | None], Cell[str] | None]] = {}
        self._afterwards: list[Callable[[], None]] = []

    async def keep(self, fd: int, read: Callable[[], str | None]) -> str:
        """Have `read` called whenever `fd` holds something, until it returns why it is over; return that.

        Its owner closes `fd`, after this.
        """
        cell = Cell[str]()
        self._add(fd, read, cell)
        return await cell.wait(partial(self.forget, fd))

    def watch(self, fd: int, read: Callable[[], str | None]) -> None:
        """The same where nobody waits for the end, which spares a task. Its owner says `forget` before he closes it."""
        self._add(fd, read, None)

    def _add(self, fd: int, read: Callable[[], str | None], cell: Cell[str] | None) -> None:
        self.pipes[fd] = read, cell
        if not self._epoll.closed:  # else all ends, and whose pipe it is has not heard of it yet
            self._epoll.register(fd, select.EPOLLIN)

    def afterwards(self, act: Callable[[], None]) -> None:
        """Call `act` once those have run whom this turn woke. What reads may say so."""
        self._afterwards.append(act)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read until cancelled."""
        task_status.started()
        fd = self._epoll.fileno()
        try:
            while True:
                await trio.lowlevel.wait_readable(fd)
                await self._read([ready for ready, _ in self._epoll.poll(0, AT_ONCE)])
        finally:
            self.heed = lambda _fd, _events: None  # some who are cancelled as well have not heard of it yet
            self._epoll.close()

    async def _read(self, ready: Iterable[int]) -> None:
        until = perf_counter() + TURN
        for fd in ready:
            pipe = self.pipes.get(fd)
            if pipe is None:
                continue  # its connection has ended since
            read, cell = pipe
            try:
                over = read()
            except Exception as exc:  # a bug that is one connection's
                self.forget(fd)
                if cell is None:
                    log.exception("reading failed fd=%d", fd)
                else:
                    cell.fail(exc)
            else:
                if over is not None:
                    self.forget(fd)
                    if cell is not None:
                        cell.settle(over)
            if perf_counter() > until:
                await self._settle()
                await trio.lowlevel.checkpoint()
                until = perf_counter() + TURN
        await self._settle()

    async def _settle(self) -> None:
        """Let those run whom this turn woke, and then what waits for that."""
        if self._afterwards:
            for _ in range(2):  # those who were woken run in the first turn, before us or after
                await trio.lowlevel.checkpoint()
            acts, self._afterwards = self._afterwards, []
            for act in acts:
                act()

    def forget(self, fd: int) -> None:
        """Read it no more."""
        if self.pipes.pop(fd, None) is not None and not self._epoll.closed:
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass  # it was closed before, and the kernel has forgotten it


def make_pump() -> Pump | None:
    """A pump, where there can be one."""
    return Pump() if sys.platform == "linux" else None


class Place:
    """The one place from which a pipe is read in the pump's stead, by whoever waits for a reply: a `transports.Seat`.

    It spares a turn of the loop. The pump steps aside and comes back by a system call each.

    Attributes:
        fd: the pipe.
        over: whether there is nothing left for whoever sits here.
        taken: whether somebody does, so that the pump does not hear of what comes.

    """

    __slots__ = ("_pull", "_pump", "fd", "over", "taken")

    alone: ClassVar[bool] = False  # what comes on a pipe may be anybody's

    def __init__(self, pump: Pump, fd: int, pull: Callable[[Place], bytes | None]) -> None:
        """Let `pull` read what has come, and say as `Seat.pull` does; if it has come to an end, here `over`."""
        self.fd = fd
        self.over = False
        self.taken = False
        self._pump = pump
        self._pull = pull

    def take(self) -> Place | None:
        """Have the pump hear of nothing but the pipe's end; None if it had better go on."""
        pump = self._pump
        if pump.attended:
            return None
        pump.attended = self.taken = True
        self.over = False
        if self.fd in pump.pipes:
            pump.heed(self.fd, 0)
        return self

    def pull(self) -> bytes | None:
        return self._pull(self)

    def leave(self) -> None:
        if self.taken:
            pump = self._pump
            pump.attended = self.taken = False
            if self.fd in pump.pipes:
                pump.heed(self.fd, select.EPOLLIN)

    def evict(self) -> None:
        if self.taken:
            trio.lowlevel.notify_closing(self.fd)
            self.leave()
