"""Moving messages: what a conversation asks of its transport, and what a transport tells it.

A transport moves whole messages as bytes and knows nothing of what they mean beyond an id and a method.
Everything on the seam is synchronous: `send` writes at once or queues in order, and a reader hands each
batch of messages to `Receiver.feed`, which wakes the waiting tasks itself. So the same conversation runs
on one reader task per connection, and on one pump for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Literal, Protocol

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from cord_trio.config import Bounds
    from cord_trio.errors import CallError, ConnectionLost


@attrs.frozen
class Limits:
    """What a transport holds, and takes at once.

    Attributes:
        outbox_bytes: that may wait to be written to one peer: by default twice the longest message.
        outbox_messages: that may wait likewise.
        read_quantum: bytes of lines that are read in one turn of a reader.

    """

    outbox_bytes: int = 32 * 1024 * 1024
    outbox_messages: int = 4096
    read_quantum: int = 64 * 1024


LIMITS: Final = Limits()
"""Those that nobody has configured."""


def limits_of(bounds: Bounds) -> Limits:
    """Those that are configured."""
    return Limits(bounds.outbox_bytes, bounds.outbox_messages, bounds.read_quantum)


class Receiver(Protocol):
    """The conversation, as its transport sees it. Nothing here blocks or raises."""

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        """Take whole messages in the order they came, neither blank nor longer than the bound.

        Args:
            messages: each one JSON text, or bytes that are none (a banner on a server's stdout).
            within: the id of our request whose HTTP response carried them; None on a shared channel.

        """

    def fail(self, id: int | str, error: CallError, /) -> None:
        """Request `id` will get no reply, for the reason in `error`; others go on."""

    def lost(self, error: ConnectionLost, /) -> None:
        """The connection is over: nothing more will be fed or sent."""

    def waits(self, id: int | str, /) -> bool:
        """Whether request `id` still awaits its reply."""


class Seat(Protocol):
    """The reading of one reply, by the task that waits for it: one turn of the loop less than by a reader.

    Attributes:
        fd: to be waited for before `pull`.
        over: whether there is nothing left to read.
        alone: whether what comes is for the one who waits, and nobody else.

    """

    fd: int
    over: bool

    @property
    def alone(self) -> bool: ...

    def pull(self) -> bytes | None:
        """Take what has come; the receiver is told.

        Returns:
            A message that the receiver is not told, since it alone has come. If it is not the reply, and the seat is
            `over`, `leave` says what becomes of the request.

        """

    def leave(self) -> None:
        """Let the transport read the rest."""

    def evict(self) -> None:
        """The same, and wake whoever waits for `fd`, with `trio.ClosedResourceError`."""


class Transport(ABC):
    """One conversation's way to its peer. Whoever opened it closes it; `run` is its life.

    Attributes:
        limits: to be set, if at all, before anything is sent.
        on_listening: called when the peer can say from now on what belongs to no request of ours, and may have lost
            what it said before; never where it can from the beginning.
        initialized: where a message may overtake another, and `notifications/initialized` is on its way: set once it
            was taken, or never will be; else None.

    """

    limits: Limits = LIMITS
    on_listening: Callable[[], None] | None = None
    initialized: trio.Event | None = None

    @abstractmethod
    def send(
        self,
        message: bytes,
        *,
        id: int | str | None = None,
        method: str = "",
        name: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Hand over one message, whole and in order, without waiting.

        Args:
            message: JSON text without a line end.
            id: the request's id; None for notifications and replies.
            method: the request's or notification's method; "" for replies.
            name: what the request is about, as the peer names it (HTTP `Mcp-Name`).
            headers: further HTTP headers of this one request (`Mcp-Param-*`).

        Raises:
            ConnectionLost: the connection is over; the message was not sent (`executed="no"`).
            Overloaded: the outbox is at its bound; the message was not sent.

        """

    def send_seated(
        self, message: bytes, id: int, method: str, name: str | None, headers: Sequence[tuple[str, str]]
    ) -> Seat | Literal[False] | None:
        """Send a request whose reply its sender will read, if a seat is returned. Raises as `send` does.

        Returns:
            False if it was not sent, since it is `congested`.

        """
        if self.congested:
            return False
        self.send(message, id=id, method=method, name=name, headers=headers)
        return None

    @abstractmethod
    def withdraw(self, id: int | str) -> bool:
        """Stop caring about request `id`; nothing about it is fed any more.

        Returns:
            True if that was all there is to do: it was never written and never will be, or this
            transport has told the peer by its own means (closing the stream of a modern HTTP
            request). False if the peer must still be told by a `notifications/cancelled`.

        """

    @abstractmethod
    def written(self, id: int | str) -> bool:
        """Whether any byte of request `id` may have reached the peer."""

    @abstractmethod
    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read until the connection ends or this is cancelled; tell `receiver` everything.

        Ends by itself only after `receiver.lost`; never raises for what the peer did.
        """

    def home(self) -> AbstractAsyncContextManager[trio.Nursery]:
        """Where a conversation runs what it ends itself: a nursery of its own, or one of the transport's.

        One of the transport's ends later, but before the connection does. There `begin` must be used.
        """
        return trio.open_nursery()

    def begin(self, receiver: Receiver, nursery: trio.Nursery, /) -> Callable[[], None] | None:
        """Do in place of `run` what it does, without a task for as long as there is something to read.

        Args:
            receiver: is told everything.
            nursery: runs what is to be done at the end.

        Returns:
            What is to be called, once, before `nursery` ends: from then on nothing is told. None, and nothing has
            begun, if there is no such way.

        """
        return None

    def speak(self, revision: str, *, modern: bool) -> None:  # noqa: B027  # most transports are the same in all eras
        """From here on the conversation is in `revision`. Told once, by the handshake."""

    @property
    def congested(self) -> bool:
        """Whether the outbox is past the point where senders had better wait."""
        return False

    async def wait_listening(self) -> None:
        """Return once the peer can say what belongs to no request of ours, if it ever can."""
        await trio.lowlevel.checkpoint()

    async def wait_uncongested(self) -> None:
        """Return once `congested` is False, or the connection is over."""
        await trio.lowlevel.checkpoint()
