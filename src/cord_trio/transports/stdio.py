"""An MCP server as a child process: its stdin and stdout are the connection, its life is a block.

MCP 2026-07-28, transports/stdio, and 2025-11-25, lifecycle/shutdown.
"""

from __future__ import annotations

import logging
import signal
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import trio

from cord_trio.errors import ConnectionLost
from cord_trio.protocol.framing import MAX_MESSAGE
from cord_trio.transports import LIMITS
from cord_trio.transports.lines import (
    CONGESTED_BYTES,
    LAST_WORDS,
    PEER_CLOSED,
    TOGETHER,
    LineTransport,
    quantum,
    read_from,
    write_to,
)
from cord_trio.transports.process import GRACES, Graces, spawn
from cord_trio.transports.pump import Place

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
    from contextlib import AbstractAsyncContextManager

    from cord_trio.counters import Counters
    from cord_trio.protocol.framing import FrameTooLarge
    from cord_trio.transports import Limits, Receiver, Seat
    from cord_trio.transports.guardian import Guardian
    from cord_trio.transports.process import Child, Command
    from cord_trio.transports.pump import Pump

NOISE_LINES: Final = 20
"""Lines that are no messages, kept for diagnosis, the last ones."""

NOISE_BYTES: Final = 500
"""Bytes kept of one such line."""

_BRACE: Final = ord("{")
_log = logging.getLogger("cord_trio.transports")


class StdioTransport(LineTransport):
    """The conversation's way to one child. It lives in `open_stdio`'s block.

    Attributes:
        pid: the child's process id.
        noise: the last lines on its stdout that were plainly no messages (banners, logs), shortened.

    """

    __slots__ = (
        "_child", "_crowded", "_home", "_place", "_pump", "_receiver", "_stop", "_stopped", "attends", "noise", "pid",
    )  # fmt: skip

    def __init__(
        self,
        child: Child,
        *,
        nursery: trio.Nursery,
        counters: Counters,
        name: str,
        max_message: int,
        stop: Callable[[], None],
        pump: Pump | None,
    ) -> None:
        super().__init__(
            read_from(child.stdout),
            write_to(child.stdin),
            read_fd=child.stdout,
            write_fd=child.stdin,
            nursery=nursery,
            counters=counters,
            name=name,
            max_message=max_message,
        )
        self.pid = child.pid
        self.noise: list[str] = []
        self._child = child
        self._stop = stop
        self._stopped = False  # whether it broke the rules
        self._home: trio.Nursery | None = None  # where it ends, while the pump reads it without a task of its own
        self._receiver: Receiver | None = None
        self._crowded = False  # whether the last read brought so much that what it provokes is written together
        self._pump = pump
        self._place = None if pump is None else Place(pump, child.stdout, self._pull_seated)

    def run(
        self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> Coroutine[object, object, None]:
        self._receiver = receiver
        return super().run(receiver, task_status=task_status)

    async def _read_all(self, receiver: Receiver) -> str:
        pump = self._pump
        if pump is None:
            return await super()._read_all(receiver)
        self._size = self.limits.read_quantum

        def read() -> str | None:
            reason = self._read_once(receiver)
            if reason is not None:
                self._over = self._over or reason  # at once: our own task hears of it a turn later
            elif self._gathering:
                pump.afterwards(self._write_gathered)
            return reason

        return await pump.keep(self._read_fd, read)

    def home(self) -> AbstractAsyncContextManager[trio.Nursery]:
        return super().home() if self._pump is None else nullcontext(self._nursery)  # one less for each child: 1 KB

    def begin(self, receiver: Receiver, nursery: trio.Nursery, /) -> Callable[[], None] | None:
        pump = self._pump
        if pump is None:
            return None
        self._receiver, self._home = receiver, nursery
        self._size = self.limits.read_quantum
        if self._reading is None:
            pump.watch(self._read_fd, self._hear)
        else:  # it was ended before it began
            nursery.start_soon(self._finish, receiver, None)
        return self._leave

    def _leave(self) -> None:
        self._home = None
        if self._pump is not None:
            self._pump.forget(self._read_fd)

    def _hear(self) -> str | None:
        """Read once, for the pump; returns why it is over, if it is."""
        receiver, home, pump = self._receiver, self._home, self._pump
        assert receiver is not None
        assert home is not None
        assert pump is not None
        try:
            reason = self._read_once(receiver)
        except Exception as exc:  # a fault of ours is a loss like any other
            reason = self._faulty(receiver, exc)
        else:
            if reason is not None:
                self._over = self._over or reason  # at once: who is told of it is so a turn later
                home.start_soon(self._finish, receiver, reason)
            elif self._gathering:
                pump.afterwards(self._write_gathered)
        return reason

    def _faulty(self, receiver: Receiver, fault: Exception) -> str:
        _log.exception("transport failed source=%s", self.name)
        self._over = reason = f"internal error: {fault}"
        receiver.lost(ConnectionLost(reason))
        return reason

    async def _finish(self, receiver: Receiver, reason: str | None) -> None:
        try:
            await self._end(receiver, reason)
        except Exception as exc:
            self._faulty(receiver, exc)

    def _end_reading(self, reason: str) -> None:
        home, pump, receiver = self._home, self._pump, self._receiver
        if home is None or pump is None or receiver is None:
            super()._end_reading(reason)
        elif self._read_fd in pump.pipes:  # else it has ended
            pump.forget(self._read_fd)
            home.start_soon(self._finish, receiver, None)

    def _hear_last_words(self) -> None:
        if self._home is None:
            super()._hear_last_words()
        else:
            self._home.start_soon(self._read_on)

    async def _read_on(self) -> None:
        await trio.sleep(LAST_WORDS)
        self._end_reading("the server takes nothing any more")

    def send_seated(
        self, message: bytes, id: int, method: str, name: str | None, headers: Sequence[tuple[str, str]]
    ) -> Seat | Literal[False] | None:
        if self._waiting_bytes >= CONGESTED_BYTES and self._over is None:
            return False  # `congested`, in place
        self.put(message, id)
        place = self._place
        # Among many replies a single reader is better: it has what they provoke written together.
        if place is None or self._crowded or self._receiver is None or self._over is not None:
            return None
        return place.take()

    def _pull_seated(self, place: Place) -> bytes | None:
        """Read in the reader's stead. It is over where the reader had better go on: at the end, or amid many messages.

        Returns:
            the one message that has come, if it is one and whole: most often the reply that is waited for. Whoever
            waits looks at it himself, without the seven calls by which the reader would tell him.

        """
        receiver = self._receiver
        try:
            data = self._read(self._size)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data or receiver is None:
            place.over = True  # the reader meets the end as well, and knows what to do about it
            return None
        self._sent = 0
        line = self._splitter.lone(data)
        if line and line[0] == _BRACE:
            self._crowded = False
            self._size = self.limits.read_quantum
            return line
        reason = self._pull(data, receiver)
        if reason is not None:
            self._over = self._over or reason
            self._end_reading(reason)
        self._size = quantum(len(data), self._came, self.limits.read_quantum)
        place.over = reason is not None or self._crowded
        return None

    @property
    def stderr_tail(self) -> str:
        """The last that the child wrote to stderr."""
        return self._child.stderr_tail

    @property
    def exit_status(self) -> int | None:
        """The child's exit status, minus the signal that killed it, or None while it runs."""
        return self._child.exit_status

    def exited(self) -> None:
        """Note that the child is gone: what it wrote is in the pipe, and a descendant that holds it is no server."""
        self._end_reading("the server has exited")

    def _take(self, lines: list[bytes], receiver: Receiver) -> None:
        self._crowded = len(lines) >= TOGETHER
        for line in lines:
            if line[0] != _BRACE and not line.lstrip().startswith((b"{", b"[{", b"[ ", b"[]")):
                self._counters.add("stdio.noise")
                self.noise.append(line[:NOISE_BYTES].decode(errors="replace"))
                del self.noise[:-NOISE_LINES]
        receiver.feed(lines)

    def _too_long(self, error: FrameTooLarge) -> str:
        if not self._stopped:
            self._stopped = True
            self._stop()
        return f"server {self.name!r} was stopped: {error}"

    async def _obituary(self, reason: str) -> str:
        if self._stopped:
            await trio.lowlevel.checkpoint()
            return reason
        # Whatever else ended it has given the child its time already.
        with trio.move_on_after(LAST_WORDS if reason == PEER_CLOSED else 0.0):
            await self._child.wait()
        self._child.read_stderr()
        return self._child.describe("closed its stdout" if reason == PEER_CLOSED else reason)


@asynccontextmanager
async def open_stdio(
    source: Command,
    *,
    guardian: Guardian,
    counters: Counters,
    name: str,
    max_message: int = MAX_MESSAGE,
    graces: Graces = GRACES,
    pump: Pump | None = None,
    limits: Limits = LIMITS,
) -> AsyncGenerator[StdioTransport, None]:
    """Run `source`'s command as a child for as long as the block runs; yields the transport to it.

    Leaving the block, also by cancellation, ends the child and its process group within `graces.bound`
    seconds, and at once if it ends when its stdin closes. `pump` reads its stdout; without one a task of its own does.

    Raises:
        ConnectFailed: it could not be started.

    """
    await guardian.wait_ready()
    async with guardian.turn:  # a few in each turn of the loop, since it stands still meanwhile
        child = await spawn(source, name=name, cookie=guardian.cookie)
    guardian.register(child.pid)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            # A child that breaks the rules is ended while its block still runs.
            stop = partial(nursery.start_soon, child.stop, Graces(close=0.0, term=graces.term))
            transport = StdioTransport(
                child, nursery=nursery, counters=counters, name=name, max_message=max_message, stop=stop, pump=pump
            )
            transport.limits = limits
            if pump is None:
                nursery.start_soon(child.drain_stderr)
            else:
                pump.watch(child.stderr, child.hear)
            if pump is None or child.exit_fd < 0:
                nursery.start_soon(_watch, child, transport, guardian, graces)
            else:
                collect = partial(nursery.start_soon, _watch, child, transport, guardian, graces)
                pump.watch(child.exit_fd, partial(_exited, collect))
            try:
                yield transport
            except Exception as exc:  # the block's own, which no group of this nursery shall wrap
                failure = exc
            finally:
                transport.close()
                if pump is not None:
                    pump.forget(child.stderr)
                    pump.forget(child.exit_fd)
            nursery.cancel_scope.cancel("the block that owns the child has ended")
    finally:
        with trio.move_on_after(graces.bound, shield=True):
            await child.stop(graces)
        child.close()
        if child.stopped_by:
            counters.add("stdio.killed" if child.stopped_by == signal.SIGKILL else "stdio.terminated")
        if child.gone:
            guardian.unregister(child.pid)
        else:
            counters.add("stdio.unstoppable")
            _log.warning("child does not end source=%s pid=%d", name, child.pid)
    if failure is not None:
        raise failure


def _exited(collect: Callable[[], None]) -> str:
    collect()
    return "it has exited"


async def _watch(child: Child, transport: StdioTransport, guardian: Guardian, graces: Graces) -> None:
    """Collect a child that ends by itself, and at once what it leaves behind: later its number may be another's."""
    await child.wait()
    transport.exited()
    if await child.sweep(graces):
        guardian.unregister(child.pid)
