"""Which clients of an HTTP server have said something, or left: all of them heard in one place.

A client that is alone has its socket looked at by its own task, and is only watched for its leaving here, while nobody
reads what it sends. Among many, each look of its own costs two system calls and a walk through Trio's registrations,
for every request: there each is registered here once, and its task is woken from here. That is a turn of the loop
more, which one who is alone would wait for in vain.
"""

from __future__ import annotations

import logging
import select
import socket
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger("cord_trio.transports")

EPOLL: Final = hasattr(select, "epoll")

LOOK: Final = 0.1
"""Seconds between two looks at who has left, where no epoll tells."""

MANY: Final = 4
"""Requests of others that began since a client's last one, from which on it is heard among them."""

AT_ONCE: Final = 512
"""Clients that one look finds at most."""

if EPOLL:
    # By their edges: a client that talks while nobody is to read costs one event, not one in each turn of the loop.
    _ENDS: Final = select.EPOLLRDHUP | select.EPOLLET
    _ALL: Final = select.EPOLLIN | _ENDS
    _GONE: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Client:
    """One client, as its task hears of it.

    Invariants: nothing is read here, so each task reads what is its own, a bounded piece in a turn. What has come is
    never missed: by an edge that nobody waited for, `unread` remembers it.

    Attributes:
        sock: its socket, as long as it is heard of.
        fd: that of the socket.
        unread: whether there may be more to read than was read. To be set by who reads, if it filled its buffer.
        ended: whether the client has ended its side.

    """

    __slots__ = ("_begun", "_crowd", "_joined", "_left", "_task", "ended", "fd", "sock", "unread")

    def __init__(self, crowd: Crowd, sock: socket.socket, left: Callable[[], None]) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.unread = self.ended = False
        self._crowd = crowd
        self._left = left
        self._joined = False
        self._begun = crowd.begun
        self._task: trio.lowlevel.Task | None = None

    def begin(self) -> None:
        """Note that a request of it begins."""
        crowd = self._crowd
        self._begun = crowd.begun = crowd.begun + 1

    def hear(self) -> Awaitable[None]:
        """Return once something may have come, or the client has ended its side. Always lets others run.

        To be awaited at once, by the connection's task: it is no coroutine of its own, which each wake would pass.

        Raises:
            OSError, ValueError, trio.ClosedResourceError: the socket is closed.

        """
        crowd = self._crowd
        many = crowd.begun - self._begun >= MANY
        if many is not self._joined:
            self._joined = crowd.move(self.fd, among=many)
        if not self._joined:
            self.unread = False
            return trio.lowlevel.wait_readable(self.fd)  # noqa: ASYNC105  # whoever hears awaits it
        if self.unread or self.ended:
            self.unread = False
            return trio.lowlevel.checkpoint()  # noqa: ASYNC105  # whoever hears awaits it
        self._task = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105  # whoever hears awaits it

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def told(self, events: int) -> None:
        """Take what the kernel says of it."""
        task = self._task
        if task is None:
            self.unread = True
        else:
            self._task = None
            trio.lowlevel.reschedule(task)
        if events & _GONE:
            self.end()

    def end(self) -> None:
        """Note that the client has ended its side."""
        self.ended = True
        self._left()


class Crowd:
    """The clients of one server, each from its first byte to its last.

    Attributes:
        begun: requests that have begun.

    """

    def __init__(self) -> None:
        self.begun = 0
        self._clients: dict[int, Client] = {}
        self._epoll = select.epoll() if EPOLL else None

    def add(self, sock: socket.socket, left: Callable[[], None]) -> Client:
        """Hear of `sock`, and call `left` as soon as its client ends its side, wherever it is told of that first."""
        client = Client(self, sock, left)
        self._clients[client.fd] = client
        if self._epoll is not None:
            self._epoll.register(client.fd, _ENDS)
        return client

    def move(self, fd: int, *, among: bool) -> bool:
        """Hear all of a client here, or only its leaving. Returns whether it is heard here now."""
        if self._epoll is None:
            return False
        self._epoll.modify(fd, _ALL if among else _ENDS)  # which tells anew of what is there already
        return among

    def discard(self, fd: int) -> None:
        """Forget a connection, before it is closed or somebody else's."""
        if self._clients.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)

    async def run(self) -> None:
        """Tell of all until cancelled."""
        epoll = self._epoll
        if epoll is None:
            await self._look()
            return
        fd, clients = epoll.fileno(), self._clients
        while True:
            await trio.lowlevel.wait_readable(fd)
            for each, events in epoll.poll(0, AT_ONCE):
                client = clients.get(each)
                if client is None:
                    continue  # another's leaving has ended it
                try:
                    client.told(events)
                except Exception:  # a bug that is one connection's
                    logger.exception("hearing of a client failed fd=%d", each)

    async def _look(self) -> None:
        """See who has left, where no epoll tells."""
        while True:
            await trio.sleep(LOOK)
            for client in list(self._clients.values()):
                if self._clients.get(client.fd) is client and _has_ended(client.sock):
                    client.end()

    def close(self) -> None:
        """Give back what it holds."""
        if self._epoll is not None:
            self._epoll.close()


def _has_ended(sock: socket.socket) -> bool:
    """Whether nothing more comes. Behind bytes that nobody has read it cannot be seen everywhere."""
    poll = select.poll()
    poll.register(sock, select.POLLHUP | select.POLLERR)
    if poll.poll(0):
        return True
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True
