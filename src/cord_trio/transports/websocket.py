"""A WebSocket as a transport, on either side: one message a text frame, subprotocol `mcp`.

No revision of MCP says how; this is what the official SDKs did, with the meaning of stdio: one conversation a
connection, either era for each message, a request withdrawn by `notifications/cancelled`. trio-websocket
speaks the frames, and sends by waiting; what is sent here waits in an outbox, whose task is the only writer.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from trio_websocket import ConnectionClosed
from wsproto.events import TextMessage
from wsproto.utilities import LocalProtocolError

from cord_trio.cell import Cell
from cord_trio.errors import CallError, ConnectionLost, Overloaded
from cord_trio.transports import Transport
from cord_trio.transports.lines import CONGESTED_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_websocket import CloseReason, WebSocketConnection

    from cord_trio.counters import Counters
    from cord_trio.transports import Receiver
    from cord_trio.transports.websocket_open import Carrier

log = logging.getLogger("cord_trio.transports")

PING_INTERVAL: Final = 20.0
"""Seconds of silence after which the peer is asked whether it is there."""

PING_PATIENCE: Final = 20.0
"""Seconds that it has to answer."""

FAREWELL: Final = 1.0
"""Seconds for what still waits to be sent, and for closing as the protocol wants it."""

FRAGMENT: Final = 64 * 1024
"""Characters of a message that are put into one frame, and masked without a pause: 0.1 ms. 16 MiB at once took 120."""

SHOWN: Final = 120
"""Characters shown of the reason that a peer gives for closing."""

ONLY_TEXT: Final = 1003
TOO_BIG: Final = 1009
GOING_AWAY: Final = 1001
NORMAL: Final = 1000
_ABNORMAL: Final = 1006


class WebSocketTransport(Transport):
    """One connection. Whoever opened it closes it.

    Invariants: messages leave whole and in order; one that the writer has not begun can be taken back; after
    the end none is accepted, and those never written stay known as such.

    Attributes:
        name: whose connection it is, for tasks and logs.

    """

    def __init__(
        self, connection: WebSocketConnection, carrier: Carrier, *, name: str, counters: Counters, max_message: int
    ) -> None:
        self.name = name
        self._connection = connection
        self._carrier = carrier
        self._counters = counters
        self._max_message = max_message
        self._over: str | None = None  # why nothing is accepted any more
        self._cause: str | None = None  # what we know better than a close code
        self._outbox: OrderedDict[object, str] = OrderedDict()
        self._sizes: dict[object, int] = {}
        self._waiting_bytes = 0
        self._writing = False  # a frame is on its way, perhaps in part
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._relieved: list[Cell[None]] = []

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
        try:
            text = message.decode()
        except UnicodeDecodeError:
            raise CallError("the message is not UTF-8, and cannot be a text frame", "no") from None
        size = len(message)
        limits = self.limits
        if len(self._outbox) >= limits.outbox_messages or self._waiting_bytes + size > limits.outbox_bytes:
            self._counters.add("websocket.outbox_full")
            if len(self._outbox) >= limits.outbox_messages:
                raise Overloaded("bounds.outbox_messages", limits.outbox_messages)
            raise Overloaded("bounds.outbox_bytes", limits.outbox_bytes)
        key: object = object() if id is None else id
        self._outbox[key] = text
        self._sizes[key] = size
        self._waiting_bytes += size
        self._wake.set()

    def withdraw(self, id: int | str) -> bool:
        if id not in self._outbox:
            return False
        self._take(id)
        self._relieve()
        return True

    def written(self, id: int | str) -> bool:
        return id not in self._outbox

    async def run(self, receiver: Receiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping, name=f"ping {self.name}")
            self._over = await self._read(receiver)
            nursery.cancel_scope.cancel("the connection is lost")
        self._relieve()
        receiver.lost(ConnectionLost(self._over or "closed"))

    async def write(self) -> None:
        """Send what is put into the outbox, until the connection is over. Run by whoever opened it.

        Cancelled in the middle of a frame there would be nothing that could be said after it, so this must
        outlive `run`.
        """
        while True:
            while self._outbox:
                text = self._take(next(iter(self._outbox)))
                self._relieve()
                self._writing = True
                try:
                    await self._send_text(text)
                except (ConnectionClosed, LocalProtocolError):  # the latter once we have said goodbye
                    return  # the reader says why
                self._writing = False
            self._idle.set()
            self._wake = trio.Event()
            await self._wake.wait()

    async def _send_text(self, text: str) -> None:
        """Send one message; a long one in several frames, between which others have their turn.

        Raises:
            ConnectionClosed: it cannot be sent any more.

        """
        if len(text) <= FRAGMENT:
            await self._connection.send_message(text)
            return
        for start in range(0, len(text), FRAGMENT):
            frame = TextMessage(text[start : start + FRAGMENT], message_finished=start + FRAGMENT >= len(text))
            # There is no public way to send less than a message; the carrier lets others run for each frame.
            await self._connection._send(frame)

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Send what waits, say goodbye, and close; within `FAREWELL`, whatever the peer does."""
        lost, self._over = self._over is not None, self._over or "closed on this side"
        self._relieve()
        with trio.move_on_after(FAREWELL, shield=True):
            if not lost:
                while self._outbox or self._writing:
                    self._idle = trio.Event()
                    await self._idle.wait()
                await self._connection.aclose(code, reason or None)
        await self._carrier.aclose()

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

    # Reading

    async def _read(self, receiver: Receiver) -> str:
        """Feed what comes. Returns why nothing more will."""
        try:
            while True:
                message = await self._connection.get_message()
                if isinstance(message, bytes):
                    self._counters.add("websocket.binary_frame")
                    return await self._refuse(ONLY_TEXT, "only text frames")
                data = message.encode()
                if len(data) > self._max_message:
                    return await self._refuse(TOO_BIG, self._too_long())
                if data and not data.isspace():
                    receiver.feed([data])
        except ConnectionClosed as exc:
            return self._why(exc.reason)

    def _too_long(self) -> str:
        self._counters.add("websocket.message_too_long")
        return f"a message is longer than max_message = {self._max_message} bytes"

    async def _refuse(self, code: int, reason: str) -> str:
        """Close for what the peer did. Returns the reason."""
        self._over = f"closed with {code}: {reason}"
        with trio.move_on_after(FAREWELL):
            await self._connection.aclose(code, reason)
        return self._over

    def _why(self, closed: CloseReason | None) -> str:
        if self._cause or self._carrier.fault:
            return self._cause or self._carrier.fault
        if closed is None or closed.code == _ABNORMAL:
            return "the connection broke off"
        if closed.code == TOO_BIG and str(self._max_message) in (closed.reason or ""):
            return f"closed with {TOO_BIG}: {self._too_long()}"
        said = f": {closed.reason[:SHOWN]}" if closed.reason else ""
        return f"the peer closed the connection ({closed.code} {closed.name}{said})"

    async def _ping(self) -> None:
        """Ask a silent peer whether it is there."""
        while True:
            await trio.sleep(PING_INTERVAL)
            asked = trio.current_time()
            # One that talks is there; one that we are still writing to has the time that the carrier gives it.
            if self._writing or self._carrier.heard > asked - PING_INTERVAL:
                continue
            with trio.move_on_after(PING_PATIENCE) as patience:
                try:
                    await self._connection.ping()
                except ConnectionClosed:
                    return
            if patience.cancelled_caught and self._carrier.heard < asked:
                self._counters.add("websocket.silent")
                self._cause = self._over = f"no sign of life within {PING_PATIENCE:g} s of a ping"
                await self._carrier.aclose()
                return

    def _take(self, key: object) -> str:
        self._waiting_bytes -= self._sizes.pop(key)
        return self._outbox.pop(key)

    def _relieve(self) -> None:
        """Wake who waits for the outbox, if it is below the mark or nobody empties it any more."""
        if self._relieved and not self.congested:
            waiting, self._relieved = self._relieved, []
            for cell in waiting:
                cell.settle(None)
