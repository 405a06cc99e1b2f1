"""Two transports in one process, each the other's peer: for tests and for servers that are a function.

Messages pass as bytes, in order, and only when the reader takes its turn, as on any other way.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cell import Cell
from cord_trio.errors import ConnectionLost, Overloaded
from cord_trio.transports import Transport

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from cord_trio.transports import Receiver

BATCH: Final = 8
"""Messages fed in one turn of a reader."""

CONGESTED_MESSAGES: Final = 256
"""Messages waiting for the reader from which on senders had better wait."""


class MemoryTransport(Transport):
    """One end of a pair. `with` closes it.

    Invariants: what was sent before `close` arrives, and then the loss; `lose` drops it. A message that
    the other end has not been fed yet can be withdrawn, as if never written.
    """

    def __init__(self) -> None:
        self._peer: MemoryTransport = self
        self._inbox: OrderedDict[object, bytes] = OrderedDict()
        self._inbox_bytes = 0
        self._over: str | None = None  # nothing can be sent
        self._lost: str | None = None  # nothing more will come
        self._unsent: frozenset[object] = frozenset()
        self._reader: Cell[None] | None = None
        self._relieved: list[Cell[None]] = []

    def __enter__(self) -> MemoryTransport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @trio.lowlevel.enable_ki_protection
    def send(
        self,
        message: bytes,
        *,
        id: int | str | None = None,
        method: str = "",
        name: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        if self._over is not None:
            raise ConnectionLost(self._over, "no")
        peer, limits = self._peer, self.limits
        if len(peer._inbox) >= limits.outbox_messages:
            raise Overloaded("bounds.outbox_messages", limits.outbox_messages)
        if peer._inbox_bytes + len(message) > limits.outbox_bytes:
            raise Overloaded("bounds.outbox_bytes", limits.outbox_bytes)
        peer._inbox[object() if id is None else id] = message
        peer._inbox_bytes += len(message)
        peer._wake()

    def withdraw(self, id: int | str) -> bool:
        if id in self._unsent:
            return True
        peer = self._peer
        message = peer._inbox.pop(id, None)
        if message is None:
            return False
        peer._inbox_bytes -= len(message)
        self._relieve()
        return True

    def written(self, id: int | str) -> bool:
        return id not in self._peer._inbox and id not in self._unsent

    def close(self) -> None:
        """End the conversation in order: the other end gets what was sent, then learns that it is over."""
        self._over = self._over or "closed on this side"
        self._lost = self._lost or self._over
        self._peer._over = self._peer._over or "the peer closed the connection"
        self._peer._lost = self._peer._lost or "the peer closed the connection"
        # What the other end sent and we did not take is never taken.
        self._drop()
        self._wake_all()

    def lose(self, reason: str) -> None:
        """Break the connection: both ends lose what is under way, and learn `reason`."""
        for end in (self, self._peer):
            end._over = end._over or reason
            end._lost = end._lost or reason
            end._drop()
        self._wake_all()

    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            if self._inbox:
                await trio.lowlevel.checkpoint()
                self._feed(receiver)
            elif self._lost is not None:
                await trio.lowlevel.checkpoint()
                receiver.lost(ConnectionLost(self._lost))
                return
            else:
                self._reader = Cell()
                await self._reader.wait(self._stop_waiting)

    @property
    def congested(self) -> bool:
        full = len(self._peer._inbox) >= CONGESTED_MESSAGES or self._peer._inbox_bytes >= self.limits.outbox_bytes // 2
        return full and self._over is None

    async def wait_uncongested(self) -> None:
        if not self.congested:
            await trio.lowlevel.checkpoint()
            return
        cell: Cell[None] = Cell()
        self._relieved.append(cell)
        await cell.wait(partial(self._relieved.remove, cell))

    @trio.lowlevel.enable_ki_protection
    def _feed(self, receiver: Receiver) -> None:
        batch = [self._inbox.popitem(last=False)[1] for _ in range(min(BATCH, len(self._inbox)))]
        self._inbox_bytes -= sum(map(len, batch))
        self._peer._relieve()
        if batch:
            receiver.feed(batch)

    def _drop(self) -> None:
        self._peer._unsent |= self._inbox.keys()
        self._inbox.clear()
        self._inbox_bytes = 0

    def _wake(self) -> None:
        cell, self._reader = self._reader, None
        if cell is not None:
            cell.settle(None)

    def _stop_waiting(self) -> None:
        self._reader = None

    def _wake_all(self) -> None:
        for end in (self, self._peer):
            end._wake()
            end._relieve()

    def _relieve(self) -> None:
        """Wake who waits for the other end to take messages."""
        if self._relieved and not self.congested:
            waiting, self._relieved = self._relieved, []
            for cell in waiting:
                cell.settle(None)


def memory_transport_pair() -> tuple[MemoryTransport, MemoryTransport]:
    """Two ends of a conversation inside this process."""
    one, other = MemoryTransport(), MemoryTransport()
    one._peer, other._peer = other, one
    return one, other
