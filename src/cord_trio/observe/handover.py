"""Handing listening sockets over to the process that comes after us, over our control socket.

The new one gets the same sockets, with the connections that wait in them: nothing is refused meanwhile. Both accept
for a moment. Only when the new one says that it serves do we stop; if it dies before, nothing has happened.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

HANDOVER: Final = b"handover"
"""What is asked for the sockets."""

READY: Final = b"ready\n"
"""What the new process says once it serves."""

MOST: Final = 16
"""Sockets that are handed over."""

TAKING: Final = 120.0
"""Seconds that the new process has until it serves."""

BUSY: Final = b"busy\n"
"""Said to a second one who wants them meanwhile."""

GONE: Final = b"gone\n"
"""Said once somebody has taken over."""

REFUSALS: Final = {
    BUSY: "another process is taking over already",
    GONE: "another process has taken over just now",
    b"": "it ended before it handed over its sockets",
}
"""What it means that no socket came."""

REPLY: Final = 10.0
"""Seconds that the old one has to hand them over."""


class Offer:
    """What a process that serves hands over: once, to the first who gets to serve.

    Attributes:
        pid: of the process that took it; 0 before.
        serving: whether we serve ourselves, so that there is something to take over.

    """

    def __init__(
        self, listeners: Sequence[trio.SocketListener], taken: Callable[[], None], *, serving: bool = True
    ) -> None:
        """Offer `listeners`; `taken` is called once the other one serves. It must not block."""
        self.pid = 0
        self.serving = serving
        self._listeners = listeners
        self._taken: Callable[[], None] | None = taken
        self._taking = False

    @property
    def open(self) -> bool:
        """Whether whoever wants to take over should ask us, rather than one before or after us."""
        return self.serving and self._taken is not None

    async def hand_over(self, stream: trio.SocketStream) -> None:
        """Give the sockets to who is at the other end, and wait for it to serve."""
        if self._taking or self._taken is None or not self._listeners:
            await stream.send_all(BUSY if self._taking else GONE if self._taken is None else b"none\n")
            return
        self._taking = True
        try:
            numbers = array.array("i", [listener.socket.fileno() for listener in self._listeners[:MOST]])
            await stream.socket.sendmsg([b"sockets\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
            said = b""
            while len(said) < len(READY):
                piece = await stream.receive_some(len(READY) - len(said))
                if not piece:
                    return
                said += piece
            if said == READY:
                self.pid = _process(stream.socket)
                taken, self._taken = self._taken, None
                taken()
        finally:
            self._taking = False


def _process(asker: trio.socket.SocketType) -> int:
    """The process at the other end (unix(7))."""
    found = asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    return int(struct.unpack("iII", found)[0])


class Taken:
    """The sockets of a process that serves, until we do: `ready`, or `close` to leave it as it was."""

    def __init__(self, stream: trio.SocketStream, sockets: list[socket.socket]) -> None:
        self.sockets = sockets
        self._stream = stream

    async def ready(self) -> None:
        """Tell the old one that we serve. It may have died meanwhile, which is as good."""
        try:
            await self._stream.send_all(READY)
        except trio.BrokenResourceError:
            pass
        self._stream.socket.close()

    def close(self) -> None:
        """Leave everything to the old one."""
        self._stream.socket.close()
        for each in self.sockets:
            each.close()


async def take_over(path: Path) -> Taken:
    """The listening sockets of the process whose control socket is at `path`.

    Raises:
        OSError: it cannot be reached, or has none to hand over; says so.

    """
    stream = await trio.open_unix_socket(path)
    try:
        with trio.move_on_after(REPLY) as patience:
            await stream.send_all(HANDOVER + b"\n")
            size = MOST * array.array("i").itemsize
            said, more, _, _ = await stream.socket.recvmsg(64, socket.CMSG_SPACE(size))
            numbers = array.array("i")
            for level, kind, data in more:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            for number in numbers:
                os.set_inheritable(number, False)
            if said == b"sockets\n" and numbers:
                return Taken(stream, [socket.socket(fileno=number) for number in numbers])
            raise OSError(REFUSALS.get(bytes(said), "it has no socket to hand over"))
        if patience.cancelled_caught:
            raise OSError("it did not answer")
        raise AssertionError  # pragma: no cover  # it returned, raised, or was cancelled
    except (trio.BrokenResourceError, ConnectionError):
        stream.socket.close()
        raise OSError(REFUSALS[b""]) from None
    except BaseException:
        stream.socket.close()
        raise
