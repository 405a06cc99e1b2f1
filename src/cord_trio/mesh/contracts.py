"""What a mesh stands on: a way for messages between nodes, and a store that all of them see.

Both are given by NATS (`nats.client.Nats`, `nats.kv.Bucket`), and by the same client over a broker in this process
(`mesh.local`), which is also the simulator. One suite of tests holds both to what is written here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from cord_trio.nats.client import Stream
    from cord_trio.nats.inflow import Subscription
    from cord_trio.nats.kv import Entry
    from cord_trio.nats.watch import WatchEvent
    from cord_trio.nats.wire import Message


@runtime_checkable
class Link(Protocol):
    """A node's way to the others.

    Promises: messages of one publisher on one subject arrive in order, each at most once. A request that nobody
    listens to fails at once. When the connection is lost, what was asked fails at once, with `executed` "no" only if
    it cannot have arrived; the next connection listens to the same subjects. Nothing waits to be sent, and every
    queue has a bound that is named when it is met.
    """

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""

    @property
    def returned(self) -> float:
        """Trio time at which a lost connection was made again; -inf if none was."""

    @property
    def max_payload(self) -> int:
        """Bytes of the longest message, headers included."""

    async def wait_connected(self) -> None:
        """Return once there is a connection."""

    def publish(
        self, subject: str, data: bytes = b"", *, reply: str = "", headers: Mapping[str, str] | None = None,
        head: bytes = b"",
    ) -> None:  # fmt: skip
        """Send a message to whoever listens; with a whole header block where `headers` would be made into one."""

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, head: bytes = b""
    ) -> Message:
        """The first reply to a message."""

    def open_stream(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, head: bytes = b""
    ) -> AbstractContextManager[Stream]:
        """All the replies to a message."""

    def subscribe(
        self, subject: str, *, queue: str = "", tell: Callable[[Message], None] | None = None
    ) -> Subscription:
        """Listen to a subject or pattern."""

    def new_inbox(self) -> str:
        """A subject of ours that nobody else knows, for messages that are no replies; also what begins with it."""

    async def flush(self) -> None:
        """Return once all that was sent before has been worked off, and what it brought here has been told."""


@runtime_checkable
class Watching(Protocol):
    """What happens to keys."""

    async def receive(self) -> WatchEvent:
        """The keys that are there, `Synced`, then what happens to them; after a gap `Reset`, and all again."""


@runtime_checkable
class Store(Protocol):
    """Keys that all nodes see.

    Promises: of two who put a key at the same revision one gets `Conflict`; revisions grow with every change; a key
    with a time to live ends by itself, no earlier than that; whoever watches ends up with what is there, without
    ghosts. It holds what its writers can write again: it may be lost, and is then made anew, empty.
    """

    async def put(self, key: str, value: bytes, *, revision: int | None = None, ttl: int | None = None) -> int:
        """Let `key` hold `value`, if it is at `revision`; 0: if it is not there."""

    async def create(self, key: str, value: bytes, *, ttl: int | None = None) -> int:
        """Let `key` hold `value`, if it is not there."""

    async def get(self, key: str) -> Entry | None:
        """What `key` holds."""

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        """Let `key` be no more, if it is at `revision`."""

    def watch(self, pattern: str = ">") -> AbstractContextManager[Watching]:
        """What happens to keys that match `pattern`."""
