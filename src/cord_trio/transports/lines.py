"""A pair of non-blocking descriptors as a transport: one message a line, in both directions.

A message is written at once, in the caller's own turn; only what the descriptor does not take waits in a
backlog, and only then does a task write. Nothing is remembered about a message that was written whole.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, NoReturn

import trio

from cord_trio.cell import Cell
from cord_trio.errors import ConnectionLost, Malformed, Overloaded
from cord_trio.protocol import jsonrpc
from cord_trio.protocol.framing import FrameTooLarge, LineSplitter
from cord_trio.transports import LIMITS, Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from cord_trio.counters import Counters
    from cord_trio.transports import Limits, Receiver

QUANTUM: Final = 64 * 1024
"""Bytes written in one turn of a writer, about, and read of a peer that is gone."""

MANY: Final = 128
"""Messages read in one turn of a reader, about: where they are short, it reads fewer bytes."""

LEAST: Final = 4096
"""Bytes read in one turn of a reader at least."""

CONGESTED_BYTES: Final = 256 * 1024
"""Bytes waiting to be written from which on senders had better wait."""

LAST_WORDS: Final = 0.5
"""Seconds that a peer which closed one direction has for what it still says in the other."""

TOGETHER: Final = 4
"""Messages sent since the last read from which on those that a read provokes are written together."""

REST: Final = 16
"""Quanta that are still read of a peer which is gone: as much as a pipe can hold."""

PEER_CLOSED: Final = "the peer closed the connection"
"""Why a connection ended, at the end of its bytes."""

_NEWLINE: Final = b"\n"


class LineTransport(Transport):
    """Lines over descriptors that its owner made, closes, and shares with nobody.

    Invariants: messages leave whole and in order; a message of which no byte was written can be taken
    back; after the end no message is accepted, and those never written stay known as such.

    Attributes:
        name: whose connection it is, for error texts.
        finishes: whether what was accepted is still written after the peer ended its side.

    """

    __slots__ = (  # with a dict of its own, one with more than thirty attributes would take 1.5 KB more
        "_backlog", "_begun", "_counters", "_flushing", "_gathering", "_nursery", "_over", "_read", "_read_fd",
        "_reading", "_relieved", "_sent", "_size", "_splitter", "_waiting_bytes", "_write", "_write_fd", "_writing",
        "limits", "name", "on_listening",
    )  # fmt: skip

    finishes: ClassVar[bool] = False
    _wait_readable: Callable[[int], Coroutine[object, object, None]] = staticmethod(trio.lowlevel.wait_readable)

    def __init__(
        self,
        read: Callable[[int], bytes],
        write: Callable[[bytes | memoryview], int],
        *,
        read_fd: int,
        write_fd: int,
        nursery: trio.Nursery,
        counters: Counters,
        name: str,
        max_message: int,
    ) -> None:
        self.name = name
        self.limits: Limits = LIMITS
        self.on_listening: Callable[[], None] | None = None
        self._read = read
        self._write = write
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._nursery = nursery
        self._counters = counters
        self._splitter = LineSplitter(max_message)
        self._over: str | None = None  # why nothing is accepted any more
        self._writing = True  # whether what was accepted is still written
        self._backlog: OrderedDict[object, bytes] = OrderedDict()
        self._waiting_bytes = 0
        self._begun = 0  # bytes of the backlog's first message that are written
        self._flushing = False
        self._gathering = False  # whether what is sent waits for the end of the turn
        self._sent = 0  # messages since the last read
        self._came = 0  # lines in it; to count the line ends anew was a fiftieth of a call with many in flight
        self._size = QUANTUM  # bytes of the next one at most
        self._relieved: list[Cell[None]] = []
        self._reading: trio.CancelScope | None = None  # made when it is needed, since a task that reads is not always

    def send(
        self,
        message: bytes,
        *,
        id: int | str | None = None,
        method: str = "",
        name: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.put(message, id)

    @trio.lowlevel.enable_ki_protection
    def put(self, message: bytes, id: int | str | None) -> None:
        """As `send`: all that it needs to know."""
        if self._over is not None:
            raise ConnectionLost(self._over, "no")
        self._sent += 1
        written = 0
        if not (self._backlog or self._gathering):
            # A long message does not fit into a pipe anyhow, so it is not copied for the sake of its line end.
            data = message + _NEWLINE if len(message) < QUANTUM else message
            try:
                written = self._write(data)
            except BlockingIOError:
                pass
            except OSError as exc:
                raise ConnectionLost(self._write_failed(exc), "no") from exc
            if written > len(message):
                return
        size = len(message) + 1 - written
        # What has begun must be finished, whatever the bound says.
        limits = self.limits
        if not written and (
            self._waiting_bytes + size > limits.outbox_bytes or len(self._backlog) >= limits.outbox_messages
        ):
            raise Overloaded(*self._bound_met())
        self._backlog[object() if id is None else id] = message
        if written:
            self._begun = written
        self._waiting_bytes += size
        if not (self._flushing or self._gathering):
            self._start_flush()

    def withdraw(self, id: int | str) -> bool:
        if self.written(id):
            return False
        self._waiting_bytes -= len(self._backlog.pop(id)) + 1
        self._relieve()
        return True

    def written(self, id: int | str) -> bool:
        if id not in self._backlog:
            return True
        return bool(self._begun) and next(iter(self._backlog)) == id

    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        del task_status  # see `Session.run`
        reason: str | None = None
        with self._scope():
            reason = await self._read_all(receiver)
        await self._end(receiver, reason)

    def _scope(self) -> trio.CancelScope:
        """What a task reads in."""
        if self._reading is None:
            self._reading = trio.CancelScope()
        return self._reading

    def _end_reading(self, reason: str) -> None:
        """Read only what is there already."""
        self._scope().cancel(reason)

    def _hear_last_words(self) -> None:
        """Read on for a moment."""
        self._scope().deadline = trio.current_time() + LAST_WORDS

    async def _end(self, receiver: Receiver, reason: str | None) -> None:
        """Tell `receiver` of the end, and why, if it was not that reading was ended."""
        if reason is None:
            reason = self._read_rest(receiver)
        # The obituary may take a moment, in which nothing is accepted any more.
        if self._over is None or reason == PEER_CLOSED:
            self._over = reason  # the end says more than a write that failed before it
        if not self.finishes:
            # Who is told that a message was never written must be able to rely on it.
            self._writing = False
        self._over = await self._obituary(self._over)
        self._relieve()
        receiver.lost(ConnectionLost(self._over))
        if not self._writing:
            self._forget_bytes()

    def close(self) -> None:
        """End it on our side: nothing is read or written from here on, and the descriptors may be closed."""
        self._over = self._over or "closed on this side"
        self._writing = False
        self._read = self._write = _closed
        self._relieve()

    @property
    def congested(self) -> bool:
        return self._waiting_bytes >= CONGESTED_BYTES and self._over is None

    async def wait_uncongested(self) -> None:
        if not self.congested:
            await trio.lowlevel.checkpoint()
            return
        cell: Cell[None] = Cell()
        self._relieved.append(cell)
        await cell.wait(partial(self._relieved.remove, cell))

    async def _obituary(self, reason: str) -> str:
        """What `lost` is to say: `reason`, with what else can be learnt quickly."""
        await trio.lowlevel.checkpoint()
        return reason

    def _too_long(self, error: FrameTooLarge) -> str | None:
        """What to do about a line past the bound: the reason to end the connection, or None to go on."""
        return str(error)

    def _take(self, lines: list[bytes], receiver: Receiver) -> None:
        receiver.feed(lines)

    async def _read_all(self, receiver: Receiver) -> str:
        self._size = self.limits.read_quantum
        while True:
            reason = self._read_once(receiver)
            if reason is not None:
                return reason
            if self._gathering:
                await self._gather()
            await self._wait_readable(self._read_fd)

    def _read_once(self, receiver: Receiver) -> str | None:
        """Read a quantum, and feed it. Returns the reason to end the connection, if there is one."""
        try:
            data = self._read(self._size)
        except BlockingIOError:
            return None
        except OSError as exc:
            return f"reading failed: {exc.strerror or exc}"
        reason = self._pull(data, receiver)
        if reason is not None:
            return reason
        most = self.limits.read_quantum
        if len(data) >= LEAST or self._size != most:
            self._size = quantum(len(data), self._came, most)
        self._gathering = self._sent >= TOGETHER and self._came >= TOGETHER
        self._sent = 0
        return None

    def _read_rest(self, receiver: Receiver) -> str:
        """Feed what is there already, now that reading was ended. Returns the reason of the end."""
        reason: str | None = None
        for _ in range(REST):
            try:
                reason = self._pull(self._read(QUANTUM), receiver)
            except OSError:
                break
            if reason is not None:
                break
        return self._over or reason or "closed"

    @trio.lowlevel.enable_ki_protection
    def _pull(self, data: bytes, receiver: Receiver) -> str | None:
        """Feed what `data` completes. Returns the reason to end the connection, if there is one."""
        if not data:
            rest = self._splitter.at_end()
            if _whole(rest):
                self._take([rest], receiver)
            elif rest:
                self._counters.add("stdio.partial_line")
            return PEER_CLOSED
        while True:
            try:
                lines = self._splitter.feed(data)
            except FrameTooLarge as exc:
                self._counters.add("stdio.message_too_long")
                if exc.before:
                    self._take(list(exc.before), receiver)
                reason = self._too_long(exc)
                if reason is not None:
                    self._splitter = LineSplitter(0)  # frees what was gathered
                    return reason
                data = b""
                continue
            self._came = len(lines)
            if lines:
                self._take(lines, receiver)
            return None

    async def _gather(self) -> None:
        """Let those whom a read woke send, and write what they sent at once: a write costs half as much as a call."""
        self._gathering = True
        try:
            for _ in range(2):  # those who were woken run in the first turn, before us or after
                await trio.lowlevel.checkpoint()
        finally:
            self._write_gathered()

    @trio.lowlevel.enable_ki_protection
    def _write_gathered(self) -> None:
        """Write what was sent since `_gathering` began."""
        self._gathering = False
        if not self._backlog or self._flushing:
            return
        try:
            self._write_some()
        except OSError as exc:
            self._write_failed(exc)
        if self._backlog and self._writing:
            self._start_flush()

    def _start_flush(self) -> None:
        self._flushing = True
        self._nursery.start_soon(self._flush, name=f"write to {self.name}")

    async def _flush(self) -> None:
        try:
            while self._backlog and self._writing:
                await trio.lowlevel.wait_writable(self._write_fd)
                self._write_some()
        except trio.ClosedResourceError:
            pass
        except OSError as exc:
            self._write_failed(exc)
        finally:
            self._flushing = False

    @trio.lowlevel.enable_ki_protection
    def _write_some(self) -> None:
        """Write what fits of the backlog's head."""
        if self._backlog and self._writing:
            try:
                self._wrote(self._write(self._head()))
            except BlockingIOError:
                pass

    def _head(self) -> bytes | memoryview:
        """About a quantum of the bytes to write next."""
        messages = iter(self._backlog.values())
        first = next(messages)
        left = len(first) - self._begun
        if left >= QUANTUM:
            return memoryview(first)[self._begun : self._begun + QUANTUM]
        parts, size = [first[self._begun :], _NEWLINE] if left >= 0 else [_NEWLINE], left + 1
        for message in messages:
            size += len(message) + 1
            if size > QUANTUM:
                break
            parts += (message, _NEWLINE)
        return b"".join(parts)

    def _wrote(self, count: int) -> None:
        self._waiting_bytes -= count
        self._begun += count
        backlog = self._backlog
        if not self._waiting_bytes:
            backlog.clear()
            self._begun = 0
        while backlog and self._begun > (length := len(next(iter(backlog.values())))):
            backlog.popitem(last=False)
            self._begun -= length + 1
        self._relieve()

    def _write_failed(self, error: OSError) -> str:
        """Note that the peer takes nothing any more; it may still be saying its last words."""
        reason = f"writing failed: {error.strerror or error}"
        self._writing = False
        if self._over is None:
            self._over = reason
            self._hear_last_words()
            self._relieve()
        return reason

    def _bound_met(self) -> tuple[str, float]:
        self._counters.add("stdio.outbox_full")
        if len(self._backlog) >= self.limits.outbox_messages:
            return "bounds.outbox_messages", self.limits.outbox_messages
        return "bounds.outbox_bytes", self.limits.outbox_bytes

    def _relieve(self) -> None:
        """Wake who waits for the outbox, if it is below the mark or nobody empties it any more."""
        if self._relieved and not self.congested:
            waiting, self._relieved = self._relieved, []
            for cell in waiting:
                cell.settle(None)

    def _forget_bytes(self) -> None:
        """Free what will never be written, and still know what that is."""
        for key in self._backlog:
            self._backlog[key] = b""
        self._waiting_bytes = 0


def quantum(size: int, lines: int, most: int) -> int:
    """Bytes to read next, after so many lines in `size`: a thousand short ones take others as long as a long one."""
    if size < LEAST:
        return most
    return min(most, max(LEAST, size * MANY // (lines or 1)))


def _whole(line: bytes) -> bool:
    """Whether a last line that nothing ended is a message all the same, as `printf` and a here-string leave it."""
    try:
        return bool(line) and bool(jsonrpc.decode(line))
    except Malformed:
        return False


def _closed(_: object) -> NoReturn:
    raise OSError(errno.EBADF, "closed on this side")


def write_to(fd: int) -> Callable[[bytes | memoryview], int]:
    """A function that writes to `fd`."""
    return partial(os.write, fd)


def read_from(fd: int) -> Callable[[int], bytes]:
    """A function that reads from `fd`."""
    return partial(os.read, fd)
