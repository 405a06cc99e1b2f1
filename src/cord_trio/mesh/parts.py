"""Bodies that are too large for one message: fetched by who wants them, in parts, over the node's bulk connection.

Who has a body says how large it is and what it is by its digest, and sends no part that was not asked for. So who
fetches decides how much is under way, a reader that is slow slows only what it reads itself, and after any loss it
asks again from the first part that is missing.
"""

from __future__ import annotations

import hashlib
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from cord_trio.cell import Cell
from cord_trio.counters import Counters
from cord_trio.errors import BadReply, CallError, ConnectionLost, MessageTooLong
from cord_trio.mesh.frames import Bundle, Frame, decode_frame, encode_frame
from cord_trio.mesh_errors import BadFrame

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from cord_trio.mesh.contracts import Link
    from cord_trio.nats.wire import Message

    Want: TypeAlias = Callable[[int, int, str], None]
    """Asks for parts: the first, how many, and the subject that they go to. Raises if nobody can be asked."""

ABOVE: Final = 256 * 1024
"""Bytes of the longest body that goes in one message."""

PART: Final = 64 * 1024
"""Bytes of a part."""

WINDOW: Final = 8
"""Parts of one body that are under way at once."""

ASKED: Final = 2
"""Parts that are asked for at once."""

POOL: Final = 32 * 1024 * 1024
"""Bytes of parts that are under way to one node: less than a broker keeps for a slow reader before it cuts it off."""

MAX_BODY: Final = 64 * 1024 * 1024
"""Bytes of the longest body."""

ROOM: Final = 2 * MAX_BODY
"""Bytes of bodies that are being put together at once."""

STALL: Final = 1.0
"""Seconds without a part after which it is asked for again."""

LOST: Final = 30.0
"""Seconds without a part after which the rest is lost."""


class _Incoming:
    """One body that is being put together.

    Attributes:
        bundle: what it will be.
        parts: those that came.
        missing: the first that did not.
        asked: the first that was not asked for.
        moved: settled when the next part comes.

    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.parts: dict[int, bytes] = {}
        self.missing = 0
        self.asked = 0
        self.size = 0
        self.moved: Cell[None] = Cell()
        self._sha = hashlib.sha256()

    @property
    def whole(self) -> bool:
        return self.missing >= self.bundle.parts

    def take(self, seq: int, data: bytes) -> bool:
        """Keep a part; False if it is none of those that are missing."""
        if seq in self.parts or not self.missing <= seq < self.asked or self.size + len(data) > self.bundle.size:
            return False
        self.parts[seq] = data
        self.size += len(data)
        while self.missing in self.parts:
            self._sha.update(self.parts[self.missing])
            self.missing += 1
        self.moved.settle(None)
        return True

    def body(self) -> bytes:
        """All of it.

        Raises:
            BadReply: it is not what was said.

        """
        if self.size != self.bundle.size or self._sha.hexdigest() != self.bundle.sha256:
            raise BadReply("what came in parts is not what was announced")
        return b"".join([self.parts[seq] for seq in range(self.bundle.parts)])


class Parts:
    """What a node sends and fetches in parts.

    Invariants: no more than `POOL` bytes are under way to it, and it puts no more than `ROOM` together at once, or one
    body; whoever finds no room waits for it, in order.

    Args:
        link: the bulk connection, if the node has one of its own for it.
        counters: where to count.

    """

    def __init__(self, link: Link, *, counters: Counters | None = None) -> None:
        self._link = link
        self._counters = counters or Counters()
        self._inbox = link.new_inbox()
        self._incoming: dict[str, _Incoming] = {}
        self._tokens = 0
        self._taken = 0
        self._fetches = 0
        self._line: deque[tuple[int, Cell[None]]] = deque()
        self._subscription = link.subscribe(f"{self._inbox}.*", tell=self._take)

    def close(self) -> None:
        """Take no more."""
        self._subscription.close()

    @property
    def fetching(self) -> int:
        """Bodies that are being fetched."""
        return len(self._incoming)

    async def bundle(self, body: bytes | memoryview) -> Bundle:
        """What is said of a body instead of it.

        Raises:
            MessageTooLong: it is longer than any may be.

        """
        if len(body) > MAX_BODY:
            raise MessageTooLong("mesh_body", MAX_BODY, len(body))
        digest = hashlib.sha256()
        for start in range(0, len(body), PART):
            digest.update(memoryview(body)[start : start + PART])
            await trio.lowlevel.checkpoint()  # all at once would take as long as ten calls
        return Bundle(-(-len(body) // PART), len(body), digest.hexdigest())

    def send(self, body: bytes | memoryview, first: int, count: int, to: str) -> None:
        """Send parts that were asked for, as far as they can be sent now; who fetches asks again for the others."""
        for seq in range(first, min(first + count, first + WINDOW, -(-len(body) // PART))):
            data = bytes(body[seq * PART : (seq + 1) * PART])
            try:
                self._link.publish(to, data, headers=encode_frame(Frame("part", seq=seq)))
            except (CallError, ValueError):
                self._counters.add("mesh.parts_unsent")
                return
            self._counters.add("mesh.parts_sent")

    async def fetch(self, bundle: Bundle, want: Want) -> bytes:
        """The body that `bundle` announces.

        Args:
            bundle: as it was announced.
            want: asks for parts of it; what it raises ends the wait.

        Raises:
            MessageTooLong: it is longer than any may be.
            BadReply: what came is not what was announced.
            ConnectionLost: no more of it comes.

        """
        if bundle.size > MAX_BODY or bundle.parts > MAX_BODY // PART * 2:
            raise MessageTooLong("mesh_body", MAX_BODY, bundle.size)
        await self._enter(bundle.size)
        try:
            with self._expecting(bundle) as (incoming, to):
                return await self._gather(incoming, to, want)
        finally:
            self._leave(bundle.size)

    async def _gather(self, incoming: _Incoming, to: str, want: Want) -> bytes:
        heard = trio.current_time()
        again = True
        while not incoming.whole:
            if again:
                incoming.asked = incoming.missing
            # A few at a time: what is sent at once holds up what else its owner does.
            if again or incoming.asked - incoming.missing <= WINDOW - ASKED:
                count = min(ASKED, incoming.bundle.parts - incoming.asked)
                if count > 0:
                    first, incoming.asked = incoming.asked, incoming.asked + count
                    want(first, count, to)
            again = True
            incoming.moved = Cell()
            with trio.move_on_after(STALL):
                await incoming.moved.wait(_nothing)
                heard = trio.current_time()
                again = False
            if again:
                self._counters.add("mesh.parts_stalled")
            if trio.current_time() - heard > LOST:
                raise ConnectionLost(f"no part of a large body came for {LOST:g} s")
        return incoming.body()

    @contextmanager
    def _expecting(self, bundle: Bundle) -> Generator[tuple[_Incoming, str]]:
        self._tokens += 1
        token = f"{self._tokens:x}"
        incoming = self._incoming[token] = _Incoming(bundle)
        try:
            yield incoming, f"{self._inbox}.{token}"
        finally:
            del self._incoming[token]

    def _take(self, message: Message) -> None:
        incoming = self._incoming.get(message.subject.rpartition(".")[2])
        try:
            frame = decode_frame(message.head, message.data)
        except BadFrame:
            self._counters.add("mesh.bad_frames")
            return
        if incoming is None or frame.kind != "part" or not incoming.take(frame.seq, frame.body):
            self._counters.add("mesh.parts_unwanted")

    async def _enter(self, size: int) -> None:
        """Wait for room for one more body."""
        if self._line or not self._fits(size):
            self._counters.add("mesh.credit_stalls")
            cell: Cell[None] = Cell()
            waiting = (size, cell)
            self._line.append(waiting)

            def left() -> None:
                self._line.remove(waiting)
                self._admit()

            await cell.wait(left)
        else:
            self._room_for(size)
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled:
                self._leave(size)
                raise

    def _leave(self, size: int) -> None:
        self._taken -= size
        self._fetches -= 1
        self._admit()

    def _admit(self) -> None:
        while self._line and self._fits(self._line[0][0]):
            size, cell = self._line.popleft()
            self._room_for(size)
            cell.settle(None)

    def _room_for(self, size: int) -> None:
        self._taken += size
        self._fetches += 1

    def _fits(self, size: int) -> bool:
        return not self._fetches or (self._fetches < POOL // (WINDOW * PART) and self._taken + size <= ROOM)


def _nothing() -> None:
    pass
