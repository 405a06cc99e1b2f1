"""What comes in for one taker: messages in order, within bounds, until it is told that no more will."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cell import Cell
from cord_trio.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.counters import Counters
    from cord_trio.nats.wire import Message

MAX_MESSAGES: Final = 4096
"""Messages that wait for one taker."""

MAX_BYTES: Final = 32 * 1024 * 1024
"""Bytes of messages that wait for one taker."""


class Inflow:
    """A queue of messages with one taker, whom the reader of the connection never waits for.

    Invariants: messages come out in the order they came. At a bound what comes is thrown away until the
    taker has taken what was there and was told, by `Overloaded`: so it knows where the gap is.

    Attributes:
        dropped: messages thrown away so far.

    """

    def __init__(self, counters: Counters, *, messages: int = MAX_MESSAGES, octets: int = MAX_BYTES) -> None:
        self.dropped = 0
        self._counters = counters
        self._most = messages
        self._most_bytes = octets
        self._queue: deque[Message] = deque()
        self._bytes = 0
        self._fault: Exception | None = None
        self._over = False
        self._taker: Cell[Message | None] | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing more will come."""
        return self._over

    def take(self, message: Message) -> None:
        """Queue `message`, or throw it away."""
        if self._over:
            return
        taker, self._taker = self._taker, None
        if taker is not None:  # then nothing is queued
            taker.settle(message)
            return
        size = len(message.data) + len(message.head)
        full = len(self._queue) >= self._most
        if self._fault is not None or full or self._bytes + size > self._most_bytes:
            if self._fault is None:
                bound = ("nats_inflow_messages", self._most) if full else ("nats_inflow_bytes", self._most_bytes)
                self._fault = Overloaded(*bound)
            self.dropped += 1
            self._counters.add("nats.slow_consumer")
            return
        self._queue.append(message)
        self._bytes += size

    def fail(self, error: Exception) -> None:
        """End it: `error` is raised after what is queued."""
        if not self._over:
            self._fault = error
            self.end()

    def end(self) -> None:
        """Nothing more will come."""
        self._over = True
        self._wake()

    def clear(self) -> None:
        """Forget what is queued, and any gap."""
        self._queue.clear()
        self._bytes = 0
        self._fault = None

    async def receive(self) -> Message:
        """The next message.

        Raises:
            Overloaded: messages were lost here, since this is called too seldom. It can go on.
            CallError: why no more will come, once.
            trio.EndOfChannel: no more will come.

        """
        if self._queue or self._fault is not None or self._over or self._taker is not None:
            await trio.lowlevel.checkpoint()  # else to wait lets others run
        while not self._queue:
            if self._fault is not None:
                fault, self._fault = self._fault, None
                raise fault
            if self._over:
                raise trio.EndOfChannel
            if self._taker is not None:
                raise trio.BusyResourceError("another task takes these messages")
            self._taker = Cell()
            message = await self._taker.wait(self._left)
            if message is not None:
                return message
        return self.receive_nowait()

    def receive_nowait(self) -> Message:
        """The next message, if one is queued.

        Raises:
            trio.WouldBlock: none is.

        """
        if not self._queue:
            raise trio.WouldBlock
        message = self._queue.popleft()
        self._bytes -= len(message.data) + len(message.head)
        return message

    def __aiter__(self) -> Inflow:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def _wake(self) -> None:
        taker, self._taker = self._taker, None
        if taker is not None:
            taker.settle(None)

    def _left(self) -> None:
        self._taker = None


class Subscription(Inflow):
    """What is published to a subject or pattern. `with` ends it.

    Attributes:
        subject: what it listens to.
        queue: of the listeners with this name, one gets each message; "" if every one does.
        sid: its number.

    """

    def __init__(
        self,
        subject: str,
        sid: int,
        *,
        queue: str,
        unsubscribe: Callable[[Subscription], None],
        counters: Counters,
        messages: int = MAX_MESSAGES,
        octets: int = MAX_BYTES,
    ) -> None:
        super().__init__(counters, messages=messages, octets=octets)
        self.subject = subject
        self.sid = sid
        self.queue = queue
        self._unsubscribe = unsubscribe

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more; what is queued can still be taken."""
        self._unsubscribe(self)
        self.end()


class Told(Subscription):
    """A subscription whose messages are told to a function at once, in the reader's own turn."""

    def __init__(
        self,
        subject: str,
        sid: int,
        *,
        queue: str,
        unsubscribe: Callable[[Subscription], None],
        counters: Counters,
        tell: Callable[[Message], None],
    ) -> None:
        super().__init__(subject, sid, queue=queue, unsubscribe=unsubscribe, counters=counters)
        self._tell = tell

    def take(self, message: Message) -> None:
        if not self._over:
            self._tell(message)
