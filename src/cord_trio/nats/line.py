"""A line to one of some NATS servers, made again whenever it is lost.

What is sent is written in the caller's own turn, so nothing waits to send; one task reads, and tells the owner
synchronously. How far the kernel took what was sent is known when the line is lost.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from cord_trio.cell import Cell
from cord_trio.errors import ConnectFailed, ConnectionLost, Overloaded
from cord_trio.mesh_errors import NatsMalformed
from cord_trio.nats.dialing import Greeted, Server, greet, parse_server
from cord_trio.nats.wire import MAX_PAYLOAD, PING, PONG, Beat, Info, Message, Refusal

if TYPE_CHECKING:
    import random
    import ssl
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from cord_trio.counters import Counters
    from cord_trio.nats.keys import Credentials
    from cord_trio.nats.wire import Event, Hello
    from cord_trio.transports.http1_wire import Wire

    Reach: TypeAlias = Callable[[Server, trio.Nursery], Awaitable[Greeted]]

log = logging.getLogger("cord_trio.nats")

CONNECT_LIMIT: Final = 10.0
"""Seconds for reaching one server, and being taken by it."""

BACKOFF: Final = (0.2, 5.0)
"""Seconds that an attempt to connect again waits at most: after the first failure, and after many. Jitter is full."""

PING_INTERVAL: Final = 10.0
"""Seconds of silence after which the server is asked whether it is there."""

PINGS_MISSED: Final = 2
"""Such questions without an answer after which the connection is given up."""

OUTBOX_BYTES: Final = 8 * 1024 * 1024
"""Bytes that may wait for the server to read them."""

MAX_SERVERS: Final = 64
"""Servers that are known at most, those included that a server names."""

LAME_PATIENCE: Final = 5.0
"""Seconds that requests have to be answered once a server has said that it is about to stop."""

TOGETHER: Final = 4
"""Events in one read from which on what they provoke is written together."""


class Owner(ABC):
    """Who a line belongs to. Nothing here blocks or raises."""

    @abstractmethod
    def opened(self) -> bytes:
        """There is a connection; returns what is to be said on it before all else."""

    @abstractmethod
    def take(self, message: Message) -> None:
        """A message came."""

    @abstractmethod
    def refused(self, text: str) -> bool:
        """The server refused something, and goes on; False if it is not about a permission."""

    @abstractmethod
    def lost(self, reason: str, sent: int) -> None:
        """The connection is lost; the kernel took no more than its first `sent` bytes."""

    @abstractmethod
    async def settled(self) -> None:
        """Wait until nothing is awaited of this connection."""


class Line:
    """The connection of one client.

    Attributes:
        info: what the server said of itself last.
        server: the one we are, or were, connected to.
        connections: how many were made so far.
        returned: Trio time at which a lost connection was made again; -inf if none was.
        why: there is no connection.
        on_change: told whenever a connection is made or lost, with the reason; must not block or raise.

    """

    def __init__(
        self,
        servers: Sequence[Server],
        owner: Owner,
        *,
        hello: Hello,
        credentials: Credentials,
        verify: bool | ssl.SSLContext,
        environ: Mapping[str, str] | None,
        outbox: int,
        counters: Counters,
        rng: random.Random,
        reach: Reach | None = None,
    ) -> None:
        self.info = Info()
        self.server = servers[0]
        self.connections = 0
        self.returned = -math.inf
        self.why = "not connected yet"
        self.on_change: Callable[[bool, str], None] | None = None
        self._owner = owner
        self._servers = list(servers)
        self._hello = hello
        self._credentials = credentials
        self._verify = verify
        self._environ = environ
        self._outbox = outbox
        self._counters = counters
        self._rng = rng
        self._reach: Reach = reach or self._greet
        self._wire: Wire | None = None
        self._cause = ""  # what we know better than that the server closed the connection
        self._held: list[bytes] | None = None  # what waits for the end of the reader's turn
        self._held_bytes = 0
        self._queued = 0  # bytes of this connection so far
        self._pongs: deque[Cell[None]] = deque()
        self._heard = 0
        self._changed = trio.Event()

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as we know."""
        return self._wire is not None

    async def wait_connected(self) -> None:
        """Return once there is a connection."""
        await trio.lowlevel.checkpoint()
        while self._wire is None:
            await self._changed.wait()

    def send(self, data: bytes) -> int:
        """Write `data` as soon as the server reads; returns where it ends in the connection's bytes.

        Raises:
            ConnectionLost: there is no connection.
            Overloaded: too much waits already.

        """
        wire = self._wire
        if wire is not None and wire.waiting + self._held_bytes + len(data) > self._outbox:
            self._counters.add("nats.outbox_full")
            raise Overloaded("nats_outbox", self._outbox)
        return self.command(data)

    async def flush(self) -> None:
        """Return once the server has worked off all that was sent before.

        Raises:
            ConnectionLost: the connection was lost first.

        """
        self.command(PING)
        cell: Cell[None] = Cell()
        self._pongs.append(cell)
        await cell.wait(_nothing)

    @trio.lowlevel.enable_ki_protection
    def command(self, data: bytes) -> int:
        """As `send`, for what is short and must not be refused."""
        if self._wire is None:
            raise ConnectionLost(self.why, "no")
        if self._held is not None:
            self._held.append(data)
            self._held_bytes += len(data)
        else:
            try:
                self._wire.write(data)
            except OSError as exc:
                self._give_up(f"writing failed: {exc.strerror or exc}")
                raise ConnectionLost(self._cause, "no") from exc
        self._queued += len(data)
        return self._queued

    @trio.lowlevel.enable_ki_protection
    def _release(self) -> None:
        """Write what was held."""
        held, self._held, self._held_bytes = self._held, None, 0
        if held and self._wire is not None:
            try:
                self._wire.write(b"".join(held))
            except OSError as exc:
                self._give_up(f"writing failed: {exc.strerror or exc}")

    # The connection's life

    # The first connection calls `started`.
    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ASYNC128
        """Stay connected until cancelled.

        Raises:
            ConnectFailed: none of the servers took us the first time; what each of them said.

        """
        attempt = tried = 0
        refused: list[ConnectFailed] = []  # by each server, before the first connection
        while True:
            server = self._servers[tried % len(self._servers)]
            tried += 1
            failure = await self._attempt(server, task_status.started)
            if failure is None:
                attempt = 0
            elif not self.connections and tried >= len(self._servers):
                raise _all_of([*refused, failure])
            else:
                if not self.connections:
                    refused.append(failure)
                log.info("no connection server=%s reason=%s", server.name, failure.reason)
            if self.connections:
                first, most = BACKOFF
                # Full jitter, also before the first attempt: a broker that restarts has lost all its clients at once.
                await trio.sleep(self._rng.uniform(0, min(most, first * 2**attempt)))
                attempt = min(attempt + 1, 10)

    async def _attempt(self, server: Server, started: Callable[[], None]) -> ConnectFailed | None:
        """Connect to `server`, and converse until that ends. Returns why it did not come to that."""
        failure: ConnectFailed | None = None
        async with trio.open_nursery() as nursery:
            greeted: Greeted | None = None
            with trio.move_on_after(CONNECT_LIMIT):
                try:
                    greeted = await self._reach(server, nursery)
                except ConnectFailed as exc:
                    failure = exc
            if greeted is not None:
                await self._converse(server, greeted, nursery, started)
            elif failure is None:
                failure = ConnectFailed(server.name, "connect", f"no answer within {CONNECT_LIMIT:g} s")
            nursery.cancel_scope.cancel("the connection is over")
        return failure

    async def _greet(self, server: Server, nursery: trio.Nursery) -> Greeted:
        return await greet(
            server,
            nursery,
            credentials=self._credentials,
            hello=self._hello,
            verify=self._verify,
            environ=self._environ,
            max_payload=MAX_PAYLOAD,
        )

    async def _converse(
        self, server: Server, greeted: Greeted, nursery: trio.Nursery, started: Callable[[], None]
    ) -> None:
        wire = greeted.wire
        try:
            self._opened(server, greeted)
            if self.connections == 1:
                started()
            nursery.start_soon(self._ping, wire)
            reason = await self._read(greeted, nursery)
            self._cause = self._cause or reason
        finally:
            wire.close()
            self._lost(wire, self._cause or "closed on this side")

    @trio.lowlevel.enable_ki_protection
    def _opened(self, server: Server, greeted: Greeted) -> None:
        self.server = server
        self.info = greeted.info
        self._wire = greeted.wire
        self._queued = greeted.wire.sent + greeted.wire.waiting
        self._cause = ""
        self.connections += 1
        self._learn(server, greeted.info)
        self.command(self._owner.opened())
        if self.connections > 1:
            self.returned = trio.current_time()
            self._counters.add("nats.reconnects")
        log.info("connected server=%s version=%s", server.name, greeted.info.version)
        self._change(True, "connected")

    @trio.lowlevel.enable_ki_protection
    def _lost(self, wire: Wire, reason: str) -> None:
        """Nobody waits for what cannot come any more."""
        self._wire = None
        self.why = reason
        self._held, self._held_bytes = None, 0
        self._owner.lost(reason, wire.sent)
        pongs, self._pongs = self._pongs, deque()
        for pong in pongs:
            pong.fail(ConnectionLost(reason))
        log.info("connection lost server=%s reason=%s", self.server.name, reason)
        self._change(False, reason)

    def _change(self, connected: bool, reason: str) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        if self.on_change is not None:
            self.on_change(connected, reason)

    def _give_up(self, reason: str) -> None:
        """End this connection; its reader notices."""
        self._cause = self._cause or reason
        if self._wire is not None:
            self._wire.close()

    def _learn(self, server: Server, info: Info) -> None:
        """Add the other servers of the cluster, which are reached in the same way."""
        if server.kind in ("ws", "wss"):
            return
        for place in info.connect_urls:
            try:
                found = parse_server(f"{server.kind}://{place}")
            except ValueError:
                continue
            if found not in self._servers and len(self._servers) < MAX_SERVERS:
                self._servers.append(found)

    async def _read(self, greeted: Greeted, nursery: trio.Nursery) -> str:
        """Tell what comes to whom it is for. Returns why nothing more will come."""
        wire, parser = greeted.wire, greeted.parser
        self._take(greeted.early, nursery)
        while True:
            data = await wire.read()
            if not data:
                return "the server closed the connection"
            self._heard += 1
            try:
                events = parser.feed(data)
            except NatsMalformed as exc:
                self._counters.add("nats.malformed")
                return f"the server broke the protocol: {exc}"
            if len(events) < TOGETHER:
                self._take(events, nursery)
                continue
            self._held = []
            try:
                self._take(events, nursery)
                for _ in range(2):  # those who were woken run in the first turn, before us or after
                    await trio.lowlevel.checkpoint()
            finally:
                self._release()

    @trio.lowlevel.enable_ki_protection
    def _take(self, events: Sequence[Event], nursery: trio.Nursery) -> None:
        take = self._owner.take
        for event in events:
            match event:
                case Message():
                    take(event)
                case Beat.PING:
                    try:
                        self.command(PONG)
                    except ConnectionLost:
                        return  # the reader meets the end next
                case Beat.PONG:
                    if self._pongs:
                        self._pongs.popleft().settle(None)
                case Beat.OK:
                    pass
                case Info():
                    self.info = event
                    self._learn(self.server, event)
                    if event.ldm:
                        nursery.start_soon(self._leave)
                case Refusal(text):
                    self._refused(text)

    def _refused(self, text: str) -> None:
        if not self._owner.refused(text):
            log.warning("the server reports server=%s error=%s", self.server.name, text)
            self._counters.add("nats.errors")
            self._cause = self._cause or f"the server said: {text}"  # it closes the connection, if that is grave

    async def _ping(self, wire: Wire) -> None:
        """Ask a silent server whether it is there."""
        missed = 0
        while True:
            heard = self._heard
            await trio.sleep(PING_INTERVAL)
            if wire.deadline < trio.current_time():
                self._give_up("the server reads nothing of what is sent")
                return
            missed = missed + 1 if heard == self._heard else 0
            if missed > PINGS_MISSED:
                self._counters.add("nats.silent")
                self._give_up(f"no sign of life within {PING_INTERVAL * missed:g} s")
                return
            if missed:
                self._pongs.append(Cell())
                try:
                    self.command(PING)
                except ConnectionLost:
                    return

    async def _leave(self) -> None:
        """Go elsewhere before the server stops: as soon as nothing is awaited."""
        with trio.move_on_after(LAME_PATIENCE):
            await self._owner.settled()
        self._give_up("the server is about to stop")


def _nothing() -> None:
    pass


def _all_of(refused: Sequence[ConnectFailed]) -> ConnectFailed:
    """The failure of the last server, which tells those of the others as well."""
    *others, last = refused
    if not others:
        return last
    reason = f"{last.reason} (and {'; '.join(map(str, others))})"
    return ConnectFailed(last.source, last.step, reason, last.remedy)
