"""A pipe that is read by whoever waits for a reply on it: a turn of the loop less than by a task that wakes him.

At all other times the connection's own task reads. It waits for an epoll of its own with the pipe in it, so it steps
aside and comes back by a system call each; to wake it for that would cost the turn that is to be saved.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable


class Place:
    """The one place from which a pipe is read in the reader's stead. A `transports.Seat`.

    Attributes:
        fd: the pipe.
        over: whether there is nothing left for whoever sits here.
        taken: whether somebody does, so that the reader does not hear of what comes.

    """

    __slots__ = ("_epoll", "_pull", "fd", "over", "taken")

    def __init__(self, fd: int, pull: Callable[[], bool]) -> None:
        """Let `pull` read what has come; it returns whether to go on so."""
        self.fd = fd
        self.over = False
        self.taken = False
        self._pull = pull
        self._epoll = select.epoll()
        self._epoll.register(fd, select.EPOLLIN)

    async def wait(self, _fd: int) -> None:
        """What the reader waits by: something has come, and nobody sits here to take it."""
        await trio.lowlevel.wait_readable(self._epoll.fileno())

    def take(self) -> Place:
        """Have the reader hear of nothing but the pipe's end."""
        self.taken, self.over = True, False
        self._epoll.modify(self.fd, 0)
        return self

    def pull(self) -> None:
        self.over = not self._pull()

    def leave(self) -> None:
        if self.taken:
            self.taken = False
            if not self._epoll.closed:
                self._epoll.modify(self.fd, select.EPOLLIN)

    def evict(self) -> None:
        if self.taken:
            trio.lowlevel.notify_closing(self.fd)
            self.leave()

    def close(self) -> None:
        """Nobody waits here any more. Before the pipe is closed."""
        if not self._epoll.closed:
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()
