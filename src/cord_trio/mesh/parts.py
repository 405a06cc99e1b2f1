"""Bodies that are too large for one message: fetched by who wants them, in parts, over the node's bulk connection.

Who has a body says how large it is and what it is by its digest, and sends no part that was not asked for. So who
fetches decides how much is under way, a reader that is slow slows only what it reads itself, and after any loss it
asks again from the first part that is missing.
"""

from __future__ import annotations

import hashlib
import mmap
import sys
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from msgspec import Raw

from cord_trio.cell import Cell
from cord_trio.config.settings import DEEPEST
from cord_trio.counters import Counters
from cord_trio.errors import BadReply, CallError, ConnectionLost, Malformed, MessageTooLong
from cord_trio.mesh.frames import Bundle, Frame, decode_frame, encode_frame
from cord_trio.mesh_errors import BadFrame
from cord_trio.protocol.jsonrpc import spaced
from cord_trio.protocol.scanning import Scan

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from cord_trio.mesh.contracts import Link
    from cord_trio.nats.wire import Message

    Want: TypeAlias = Callable[[int, int, str], None]
    """Asks for parts: the first, how many, and the subject that they go to. Raises if nobody can be asked."""

ABOVE: Final = 256 * 1024
"""Bytes of the longest body that goes in one message."""

PART: Final = 32 * 1024
"""Bytes of a part: with twice as many, small calls waited longer beside them, and no body came sooner."""

WINDOW: Final = 8
"""Parts that are under way at once, of all bodies together; of each there may be `ASKED`."""

ASKED: Final = 2
"""Parts that are asked for at once."""

ANSWERED: Final = 16
"""Parts that are sent for one request: nodes of the first version ask for so many, and wait `STALL` for what is not."""

POOL: Final = 32 * 1024 * 1024
"""Bytes of parts that are under way to one node: less than a broker keeps for a slow reader before it cuts it off."""

MAX_BODY: Final = 64 * 1024 * 1024
"""Bytes of the longest body."""

ROOM: Final = 2 * MAX_BODY
"""Bytes of bodies that are being put together at once."""

LINE: Final = POOL // PART
"""Parts that were asked for and wait to be sent: each has a turn of the loop to itself."""

STALL: Final = 1.0
"""Seconds without a part after which it is asked for again."""

LOST: Final = 30.0
"""Seconds without a part after which the rest is lost."""

_PRIVATE: Final[dict[str, int]] = (
    {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
)  # else shared with children, and slower


class _Incoming:
    """One body that is being put together.

    Attributes:
        bundle: what it will be.
        missing: the first part that was not put where it belongs.
        asked: the first that was not asked for.
        moved: settled when the next part comes.

    """

    def __init__(self, bundle: Bundle, scan: Scan | None) -> None:
        self.bundle = bundle
        self.missing = 0
        self.asked = 0
        self.moved: Cell[None] = Cell()
        self._came: dict[int, bytes] = {}
        self._size = 0
        self._sha = hashlib.sha256()
        self._scan = scan
        # Pages of it come as parts do. To join these in the end, or to clear room for all at first, would take long.
        self._body = mmap.mmap(-1, bundle.size, **_PRIVATE) if bundle.size else None

    @property
    def whole(self) -> bool:
        return self.missing >= self.bundle.parts

    @property
    def comes(self) -> bool:
        """Whether the first part that is missing is here."""
        return self.missing in self._came

    def take(self, seq: int, data: bytes) -> bool:
        """Keep a part; False if it is none of those that are missing."""
        if seq in self._came or not self.missing <= seq < self.asked or self._size + len(data) > self.bundle.size:
            return False
        self._came[seq] = data
        self._size += len(data)
        self.moved.settle(None)
        return True

    def put(self) -> None:
        """Put the first part that is missing where it belongs.

        Raises:
            Malformed: with it, this is no JSON.

        """
        data = self._came.pop(self.missing)
        self._sha.update(data)
        if self._scan is not None:
            self._scan.feed(data)
            data = spaced(data)
        if self._body is not None:
            self._body.write(data)
        self.missing += 1

    def body(self) -> memoryview:
        """All of it.

        Raises:
            BadReply: it is not what was said.
            Malformed: it is no JSON.

        """
        if self._size != self.bundle.size or self._sha.hexdigest() != self.bundle.sha256:
            raise BadReply("what came in parts is not what was announced")
        if self._scan is not None:
            self._scan.end()
        return memoryview(self._body or b"").toreadonly()


class Parts:
    """What a node sends and fetches in parts.

    Invariants: no more than `POOL` bytes are under way to it, and it puts no more than `ROOM` together at once, or one
    body; whoever finds no room waits for it, in order. What it does in one turn of the loop is about one part.

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
        self._wanted: deque[tuple[bytes | memoryview, int, str]] = deque()
        self._more: Cell[None] = Cell()
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

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send what is asked for, until cancelled."""
        task_status.started()
        while True:
            while self._wanted:
                self._send(*self._wanted.popleft())
                await trio.lowlevel.checkpoint()
            self._more = Cell()
            await self._more.wait(_nothing)

    def send(self, body: bytes | memoryview, first: int, count: int, to: str) -> None:
        """Let parts be sent that were asked for, as far as they can be; who fetches asks again for the others."""
        for seq in range(first, min(first + count, first + ANSWERED, -(-len(body) // PART))):
            if len(self._wanted) >= LINE:
                self._counters.add("mesh.parts_unsent")
                return
            self._wanted.append((body, seq, to))
        self._more.settle(None)

    def _send(self, body: bytes | memoryview, seq: int, to: str) -> None:
        data = bytes(body[seq * PART : (seq + 1) * PART])
        try:
            self._link.publish(to, data, headers=encode_frame(Frame("part", seq=seq)))
        except (CallError, ValueError):
            self._counters.add("mesh.parts_unsent")
        else:
            self._counters.add("mesh.parts_sent")

    async def payload(self, bundle: Bundle, want: Want) -> Raw:
        """The JSON text that `bundle` announces, as `payload_of` would have it. Takes and raises what `fetch` does.

        Raises:
            BadFrame: it is none.

        """
        try:
            return Raw(await self.fetch(bundle, want, Scan(DEEPEST)))
        except Malformed as exc:
            raise _unreadable(exc) from exc

    async def members(self, bundle: Bundle, want: Want) -> dict[str, Raw]:
        """The members of the object that `bundle` announces. Takes and raises what `payload` does."""
        scan = Scan(DEEPEST)
        try:
            return scan.members(await self.fetch(bundle, want, scan))
        except Malformed as exc:
            raise _unreadable(exc) from exc

    async def fetch(self, bundle: Bundle, want: Want, scan: Scan | None = None) -> memoryview:
        """The body that `bundle` announces.

        Args:
            bundle: as it was announced.
            want: asks for parts of it; what it raises ends the wait.
            scan: checks it as it comes, with line breaks as spaces from then on; None for what may be anything.

        Raises:
            MessageTooLong: it is longer than any may be.
            BadReply: what came is not what was announced.
            ConnectionLost: no more of it comes.

        """
        if bundle.size > MAX_BODY or bundle.parts > MAX_BODY // PART * 2:
            raise MessageTooLong("mesh_body", MAX_BODY, bundle.size)
        await self._enter(bundle.size)
        try:
            with self._expecting(bundle, scan) as (incoming, to):
                return await self._gather(incoming, to, want)
        finally:
            self._leave(bundle.size)

    async def _gather(self, incoming: _Incoming, to: str, want: Want) -> memoryview:
        heard = trio.current_time()
        again = True
        while not incoming.whole:
            if again:
                incoming.asked = incoming.missing
            under_way = incoming.asked - incoming.missing
            # A few at a time: what is sent at once holds up what else its owner does.
            if again or under_way + ASKED <= max(ASKED, WINDOW // len(self._incoming)):
                count = min(ASKED, incoming.bundle.parts - incoming.asked)
                if count > 0:
                    first, incoming.asked = incoming.asked, incoming.asked + count
                    want(first, count, to)
            again = False
            if incoming.comes:
                incoming.put()
                await trio.lowlevel.checkpoint()
                heard = trio.current_time()
                continue
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
    def _expecting(self, bundle: Bundle, scan: Scan | None) -> Generator[tuple[_Incoming, str]]:
        self._tokens += 1
        token = f"{self._tokens:x}"
        incoming = self._incoming[token] = _Incoming(bundle, scan)
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


def _unreadable(error: Malformed) -> BadFrame:
    return BadFrame(f"what came in parts cannot be read: {error}")


def _nothing() -> None:
    pass
