"""A broker in this process: as much of NATS as a mesh needs, without a socket. Also the simulator.

Nodes reach it with the client that they would reach a NATS server with, over wires in memory, so that what is true
of that client (order, bounds, what a loss means) is true here. Time is Trio's, so it runs on a virtual clock too;
and a way to it can be cut, mended and reset.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.cell import Cell
from cord_trio.errors import ConnectFailed
from cord_trio.mesh.local_store import LocalStreams
from cord_trio.nats.client import open_nats
from cord_trio.nats.dialing import Greeted
from cord_trio.nats.wire import PONG, Info, Message, Parser
from cord_trio.transports.http1_wire import Wire

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from cord_trio.counters import Counters
    from cord_trio.nats.client import Nats
    from cord_trio.nats.dialing import Server

MAX_PAYLOAD: Final = 1024 * 1024
"""Bytes of the longest message, as of a NATS server that nobody configured."""

MAX_PENDING: Final = 64 * 1024 * 1024
"""Bytes that may wait for one node to read them; past it its connection is closed, as a NATS server does."""

GHOST: Final = 20.0
"""Seconds after which the broker gives up a connection whose node it does not hear: two pings of 10 s."""

QUANTUM: Final = 64 * 1024
"""Bytes, about, that a node reads in one turn."""

NOBODY: Final = b"NATS/1.0 503\r\n\r\n"


class LocalWire(Wire):
    """One connection of one node."""

    def __init__(self, broker: LocalBroker, way: Way) -> None:
        self.sent = 0
        self.waiting = 0
        self.deadline = math.inf
        self.listens: dict[int, tuple[str, str]] = {}  # by number: pattern and queue
        self._broker = broker
        self._way = way
        self._inbox: deque[bytes] = deque()
        self._under_way: deque[bytes] = deque()
        self._pending = 0
        self._closed = False
        self._reader: Cell[None] | None = None

    def write(self, *parts: bytes) -> None:
        if self._closed:
            raise OSError("the connection is closed")
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self.sent += len(data)
        if self._way.is_cut:
            self._under_way.append(data)
        else:
            self._broker.feed(self, data)

    def deliver(self, data: bytes) -> None:
        """Let the node read `data`."""
        if self._closed:
            return
        self._pending += len(data)
        if self._pending > MAX_PENDING:
            self._broker.slow += 1
            self.close()
            return
        self._inbox.append(data)
        self._wake()

    async def read(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._inbox or self._way.is_cut:
            if self._closed:
                return b""
            self._reader = Cell()
            await self._reader.wait(_nothing)
        parts, size = [], 0
        while self._inbox and size < QUANTUM:
            parts.append(self._inbox.popleft())
            size += len(parts[-1])
        self._pending -= size
        return b"".join(parts)

    def quiet(self) -> bool:
        return not self._inbox

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._inbox.clear()
            self._under_way.clear()
            if self._way.is_cut:  # the broker hears nothing of it, and thinks so for some time
                self._broker.at(trio.current_time() + GHOST, partial(self._broker.forget, self))
            else:
                self._broker.forget(self)
            self._wake()

    def mended(self) -> None:
        """What was under way arrives."""
        while self._under_way and not self._closed:
            self._broker.feed(self, self._under_way.popleft())
        self._wake()

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.settle(None)


class Way:
    """One node's way to the broker.

    Attributes:
        is_cut: whether nothing arrives, either way, and nobody is told.

    """

    def __init__(self, broker: LocalBroker) -> None:
        self.is_cut = False
        self._broker = broker
        self._wire: LocalWire | None = None

    async def reach(self, server: Server, _nursery: trio.Nursery, /) -> Greeted:
        """A new connection, as `nats.dialing.greet` makes them."""
        await trio.lowlevel.checkpoint()
        if self.is_cut:
            await trio.sleep_forever()  # nobody answers
        if self._broker.down:
            raise ConnectFailed(server.name, "connect", "the broker is down")
        self._wire = LocalWire(self._broker, self)
        self._broker.wires.append(self._wire)
        return Greeted(self._wire, Parser(), Info(version="2.11.0", max_payload=MAX_PAYLOAD, jetstream=True), [])

    def cut(self) -> None:
        """Let nothing arrive, as if a cable was pulled."""
        self.is_cut = True

    def mend(self) -> None:
        """Let it pass again, what was under way first, where the node has not given the connection up."""
        self.is_cut = False
        if self._wire is not None:
            self._wire.mended()

    def reset(self) -> None:
        """Break the connection off; the node notices at once."""
        if self._wire is not None:
            self._wire.close()

    def open(self, name: str = "local", *, counters: Counters | None = None) -> AbstractAsyncContextManager[Nats]:
        """The node's client, for as long as the block runs."""
        return open_nats("local", name=name, counters=counters, rng=self._broker.rng, reach=self.reach)


@attrs.define(eq=False)
class _Branch:
    """Those who listen to subjects that begin alike."""

    below: dict[str, _Branch] = attrs.Factory(dict)
    here: list[tuple[LocalWire, int]] = attrs.Factory(list)


class LocalBroker:
    """A broker. Made by `open_broker`.

    Attributes:
        wires: its connections.
        down: whether nobody can connect.
        slow: connections closed because their nodes did not read.
        delivered: messages to nodes so far.
        octets: bytes of those.
        rng: draws who of a queue gets a message.

    """

    def __init__(self, rng: random.Random) -> None:
        self.wires: list[LocalWire] = []
        self.down = False
        self.slow = 0
        self.delivered = 0
        self.octets = 0
        self.rng = rng
        self.streams = LocalStreams(self)
        self._root = _Branch()
        self._alarms: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._sleeping = trio.CancelScope()

    def way(self) -> Way:
        """A node's way here."""
        return Way(self)

    def kill(self) -> None:
        """Close all connections, and take none; what is stored stays."""
        self.down = True
        for wire in list(self.wires):
            wire.close()

    def start(self) -> None:
        """Take connections again."""
        self.down = False

    def at(self, time: float, act: Callable[[], None]) -> None:
        """Call `act` at a time of Trio's clock."""
        heapq.heappush(self._alarms, (time, next(self._numbers), act))
        self._sleeping.deadline = min(self._sleeping.deadline, time)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what is due, until cancelled."""
        task_status.started()
        while True:
            self._sleeping = trio.CancelScope(deadline=self._alarms[0][0] if self._alarms else math.inf)
            with self._sleeping:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._alarms and self._alarms[0][0] <= now:
                heapq.heappop(self._alarms)[2]()

    def publish(self, subject: str, data: bytes, *, reply: str = "", head: bytes = b"") -> None:
        """Deliver a message, as if a node had published it."""
        if subject.startswith(("$KV.", "$JS.API.")):
            if not self.streams.take(Message(subject, 0, reply, head, data)) and reply:
                self.publish(reply, b"", head=NOBODY)
            return
        self.deliver(subject, subject, data, reply=reply, head=head)

    def deliver(self, to: str, subject: str, data: bytes, *, reply: str = "", head: bytes = b"") -> None:
        """Deliver a message with `subject` to those who listen to `to`."""
        takers = self._takers(to)
        for wire, sid in takers:
            names = f"{subject} {sid} {reply}" if reply else f"{subject} {sid}"
            if head:
                line = f"HMSG {names} {len(head)} {len(head) + len(data)}\r\n".encode()
            else:
                line = f"MSG {names} {len(data)}\r\n".encode()
            self.delivered += 1
            self.octets += len(line) + len(head) + len(data)
            wire.deliver(b"".join((line, head, data, b"\r\n")))
        if not takers and reply:
            self.publish(reply, b"", head=NOBODY)

    def listened_to(self, subject: str) -> bool:
        """Whether somebody listens to `subject`."""
        return bool(self._takers(subject))

    def feed(self, wire: LocalWire, data: bytes) -> None:
        """Do what a node says; its client writes whole frames."""
        at = 0
        while at < len(data):
            end = data.index(b"\r\n", at)
            verb, *words = data[at:end].decode().split(" ")
            at = end + 2
            match verb:
                case "PUB" | "HPUB":
                    headed = verb == "HPUB"
                    size = int(words[-1])
                    length = int(words[-2]) if headed else 0
                    reply = words[1] if len(words) == 3 + headed else ""
                    body = data[at + length : at + size]
                    self.publish(words[0], body, reply=reply, head=data[at : at + length])
                    at += size + 2
                case "SUB":
                    queue = words[1] if len(words) == 3 else ""
                    self._listen(wire, words[0], queue, int(words[-1]))
                case "UNSUB":
                    self._leave(wire, int(words[0]))
                case "PING":
                    wire.deliver(PONG)
                case _:
                    pass  # an answer to a ping, which we never send

    def forget(self, wire: LocalWire) -> None:
        """A connection is over."""
        for sid in list(wire.listens):
            self._leave(wire, sid)
        if wire in self.wires:
            self.wires.remove(wire)

    def _listen(self, wire: LocalWire, pattern: str, queue: str, sid: int) -> None:
        wire.listens[sid] = (pattern, queue)
        branch = self._root
        for token in pattern.split("."):
            branch = branch.below.setdefault(token, _Branch())
        branch.here.append((wire, sid))

    def _leave(self, wire: LocalWire, sid: int) -> None:
        pattern, _ = wire.listens.pop(sid, ("", ""))
        if not pattern:
            return
        path, branch = [], self._root
        for token in pattern.split("."):
            path.append((branch, token))
            branch = branch.below[token]
        branch.here.remove((wire, sid))
        for above, token in reversed(path):
            below = above.below[token]
            if below.here or below.below:
                break
            del above.below[token]

    def _takers(self, subject: str) -> list[tuple[LocalWire, int]]:
        """Who gets a message: all who listen, and of each queue one."""
        takers: list[tuple[LocalWire, int]] = []
        queues: dict[tuple[str, str], list[tuple[LocalWire, int]]] = {}
        for wire, sid in _found(self._root, subject.split("."), 0):
            pattern, queue = wire.listens[sid]
            if queue:
                queues.setdefault((pattern, queue), []).append((wire, sid))
            else:
                takers.append((wire, sid))
        return takers + [self.rng.choice(members) for members in queues.values()]


def _found(branch: _Branch, tokens: list[str], at: int) -> Iterator[tuple[LocalWire, int]]:
    if at == len(tokens):
        yield from branch.here
        return
    if ">" in branch.below:
        yield from branch.below[">"].here
    for token in (tokens[at], "*"):
        if token in branch.below:
            yield from _found(branch.below[token], tokens, at + 1)


def _nothing() -> None:
    pass


@asynccontextmanager
async def open_broker(rng: random.Random | None = None) -> AsyncGenerator[LocalBroker]:
    """A broker for as long as the block runs. The block's own errors leave as raised."""
    failure: Exception | None = None
    broker = LocalBroker(rng or random.Random())
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(broker.run)
            yield broker
        # Cancelled must travel through the nursery: it may be the nursery's own.
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel("the broker's block has ended")
    broker.kill()
    if failure is not None:
        raise failure
