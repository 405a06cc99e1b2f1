"""Our own stdin and stdout as a connection, for being somebody's MCP server.

While it runs, descriptor 0 is /dev/null and descriptor 1 is stderr, so that a stray `print`, ours or a
child's, cannot corrupt the protocol. The real ones are not ours to make non-blocking, since whoever
started us shares that flag: sockets are asked for each transfer, pipes are opened anew, and anything else
is asked before each transfer, which then moves no more than what is sure not to block. Bytes are UTF-8
whatever the locale says.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import sys
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

import attrs
import trio

from cord_trio.counters import Counters
from cord_trio.protocol.framing import MAX_MESSAGE
from cord_trio.protocol.jsonrpc import encode_error
from cord_trio.transports.lines import LAST_WORDS, PEER_CLOSED, LineTransport, read_from, write_to

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from cord_trio.protocol.framing import FrameTooLarge
    from cord_trio.transports import Receiver

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2

FINISH: Final = 5.0
"""Seconds for what was asked before stdin ended, as by `printf … | serve --stdio`."""

SURE: Final = 512
"""Bytes that a descriptor which says it is writable takes without blocking (POSIX: PIPE_BUF is no less)."""


@attrs.frozen
class Way:
    """How to use one descriptor without ever blocking and without changing it for others.

    Attributes:
        fd: what to wait on.
        read: at most so many bytes, or BlockingIOError.
        write: some of these bytes, and how many, or BlockingIOError.

    """

    fd: int
    read: Callable[[int], bytes]
    write: Callable[[bytes | memoryview], int]


class ServerStdio(LineTransport):
    """The conversation's way to whoever started us. It lives in `serve_stdio`'s block.

    A line past the bound is answered with an error and skipped: one bad message ends nothing. A client that
    closes our stdin still gets the answers to what it asked, as far as `FINISH` seconds allow.

    Attributes:
        finish: returns once everything that was asked is answered; None if nobody can say.

    """

    finishes: ClassVar[bool] = True
    finish: Callable[[], Awaitable[None]] | None = None

    async def _read_all(self, receiver: Receiver) -> str:
        reason = await super()._read_all(receiver)
        if reason == PEER_CLOSED and self.finish is not None:
            with trio.move_on_after(FINISH):
                await self.finish()
        return reason

    def _too_long(self, error: FrameTooLarge) -> None:
        self.send(encode_error(None, error.code, str(error)))

    async def _wait_readable(self, fd: int) -> None:
        try:
            await trio.lowlevel.wait_readable(fd)
        except PermissionError:
            # A plain file or /dev/null: always ready, and nothing that epoll knows.
            await trio.lowlevel.checkpoint()


def way(fd: int, flags: int, closing: ExitStack) -> Way:
    """How to use `fd`, opened for `flags` (`os.O_RDONLY` or `os.O_WRONLY`); `closing` gets what was opened."""
    kind = os.fstat(fd).st_mode
    if stat.S_ISSOCK(kind):
        sock = closing.enter_context(socket.socket(fileno=os.dup(fd)))
        return Way(
            sock.fileno(),
            lambda size: sock.recv(size, socket.MSG_DONTWAIT),
            lambda data: sock.send(data, socket.MSG_DONTWAIT),
        )
    if stat.S_ISFIFO(kind) and sys.platform == "linux":
        try:
            own = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            pass  # another user's pipe, or no /proc, or nobody at its other end
        else:
            closing.callback(os.close, own)
            return Way(own, read_from(own), write_to(own))
    return Way(fd, partial(_read_if_ready, fd), partial(_write_while_ready, fd))


@asynccontextmanager
async def serve_stdio(
    *, counters: Counters | None = None, max_message: int = MAX_MESSAGE
) -> AsyncGenerator[ServerStdio, None]:
    """Our stdin and stdout as a transport for as long as the block runs; then both are as they were.

    On leaving in order, what is still to be written has `LAST_WORDS` seconds; on cancellation, none.
    """
    failure: Exception | None = None
    with ExitStack() as closing:
        real_in, real_out = _take_away(closing)
        reading = way(real_in, os.O_RDONLY, closing)
        writing = way(real_out, os.O_WRONLY, closing)
        closing.callback(trio.lowlevel.notify_closing, reading.fd)
        closing.callback(trio.lowlevel.notify_closing, writing.fd)
        async with trio.open_nursery() as nursery:
            transport = ServerStdio(
                reading.read,
                writing.write,
                read_fd=reading.fd,
                write_fd=writing.fd,
                nursery=nursery,
                counters=Counters() if counters is None else counters,
                name="stdio client",
                max_message=max_message,
            )
            closing.callback(transport.close)
            try:
                yield transport
            except Exception as exc:  # the block's own, which no group of this nursery shall wrap
                failure = exc
            # The only task here is the one that writes the backlog, if there is one.
            nursery.cancel_scope.relative_deadline = LAST_WORDS
    if failure is not None:
        raise failure


def _take_away(closing: ExitStack) -> tuple[int, int]:
    """Put /dev/null and stderr in the place of stdin and stdout until `closing`. Returns the real ones."""
    real_in, real_out = os.dup(STDIN), os.dup(STDOUT)
    closing.callback(os.close, real_in)
    closing.callback(os.close, real_out)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        closing.callback(os.dup2, real_in, STDIN)
        os.dup2(null, STDIN)
        closing.callback(os.dup2, real_out, STDOUT)
        # What was printed meanwhile and is still in Python's buffer must not follow the protocol.
        closing.callback(_flush_prints)
        try:
            os.dup2(STDERR, STDOUT)
        except OSError:  # we were started without a stderr
            os.dup2(null, STDOUT)
    finally:
        os.close(null)
    return real_in, real_out


def _flush_prints() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _ready(fd: int, event: int) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(0))


def _read_if_ready(fd: int, size: int) -> bytes:
    if not _ready(fd, select.POLLIN):
        raise BlockingIOError
    return os.read(fd, size)


def _write_while_ready(fd: int, data: bytes | memoryview) -> int:
    written, view = 0, memoryview(data)
    while written < len(view):
        if not _ready(fd, select.POLLOUT):
            if not written:
                raise BlockingIOError
            break
        written += os.write(fd, view[written : written + SURE])
    return written
