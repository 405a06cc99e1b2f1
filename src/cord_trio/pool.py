"""Sessions with a legacy server that may ask its caller something: each is one principal's alone.

A legacy server asks on a connection, not within a call, and is told once, when that opens, what it may ask. So a
session that declares anything is shared by no two principals, nor by callers that can be asked different things:
a question would reach the wrong person. They are opened when needed, and closed when nobody has used them for long.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cell import Cell
from cord_trio.errors import CallFailed, ConnectFailed, DeadlineExceeded, SourceDown
from cord_trio.handshake import FreshNeeded
from cord_trio.parking import Running
from cord_trio.protocol.jsonrpc import INTERNAL_ERROR, METHOD_NOT_FOUND, parse
from cord_trio.protocol.questions import CANCELLED, ELICIT, ROOTS, may_ask

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from typing import TypeAlias

    from cord_trio.answering import Answer, Asked
    from cord_trio.call import Call, Outcome
    from cord_trio.cell import Timer
    from cord_trio.client import Client
    from cord_trio.counters import Counters
    from cord_trio.parking import Parks
    from cord_trio.protocol.jsonrpc import Id, Json

    Key: TypeAlias = tuple[str, bytes]
    Converse: TypeAlias = Callable[[Json, Answer], AbstractAsyncContextManager[Client]]

log = logging.getLogger("cord_trio.link")

NO_ROOTS: Final = b'{"roots":[]}'
"""The answer to who asks for roots and is given none."""


class Pool:
    """The interactive sessions of one source.

    Attributes:
        sessions: what is open or being opened, by principal and what it declares.

    """

    def __init__(
        self,
        name: str,
        converse: Converse,
        *,
        parks: Parks,
        timer: Timer,
        counters: Counters,
        size: int,
        idle: float,
        roots: bytes = NO_ROOTS,
    ) -> None:
        self.name = name
        self.converse = converse
        self.parks = parks
        self.timer = timer
        self.counters = counters
        self.idle = idle
        self.roots = roots
        self.sessions: dict[Key, Interactive] = {}
        self._size = size
        self._nursery: trio.Nursery | None = None

    def open(self, nursery: trio.Nursery) -> None:
        """From here on sessions live in `nursery`."""
        self._nursery = nursery

    def session(self, principal: str, declares: bytes) -> Interactive | None:
        """The session of `principal` that says it can be asked what is in `declares`; None if there is no room."""
        key = (principal, declares)
        found = self.sessions.get(key)
        if found is not None and not found.over:
            return found
        if self._nursery is None:
            return None
        if len(self.sessions) >= self._size:
            unused = next((each for each in self.sessions.values() if not each.running and not each.waiting), None)
            if unused is None:
                self.counters.add("link.interactive_refused")
                return None
            unused.retire("another session takes its place")
        found = self.sessions[key] = Interactive(self, key)
        self.counters.add("link.interactive")
        self._nursery.start_soon(found.run, name=f"interactive {self.name}")
        return found


class Interactive:
    """One session, from before it is open to after it was lost.

    Attributes:
        client: None unless it is open.
        running: the calls on it, in the order in which they were made.
        waiting: calls that wait for it to open.
        over: whether it takes no more calls.

    """

    def __init__(self, pool: Pool, key: Key) -> None:
        self.key = key
        self.client: Client | None = None
        self.running: dict[Id, Running] = {}
        self.waiting: dict[Cell[Client], None] = {}
        self.over = False
        self._pool = pool
        self._declares: Json = parse(key[1])
        self._scope = trio.CancelScope()
        self._idle = Cell[None]()

    async def run(self) -> None:
        """Open the session, and keep it until it is lost or retired."""
        pool = self._pool
        reason = "the session has ended"
        try:
            with self._scope:
                async with pool.converse(self._declares, self._answer) as client:
                    self.client = client
                    for cell in self.waiting:
                        cell.settle(client)
                    self.waiting.clear()
                    self._rest()
                    reason = await client.session.wait_lost()
        except (ConnectFailed, FreshNeeded) as exc:
            reason = str(exc)
        except Exception as exc:
            log.exception("interactive session failed source=%s", pool.name)
            reason = f"internal error: {exc!r}"
        finally:
            log.debug("interactive session over source=%s reason=%s", pool.name, reason)
            self._end(reason)

    async def call(self, call: Call, name: str | None) -> Outcome:
        """How the server ended `call`, which it knows as `name`, or what it asks. Opens the session if it must.

        Raises:
            SourceDown: it could not be opened.
            CallError: what else can end a call.

        """
        client = self.client or await self._opened(call.deadline)
        running = Running(client, call, self._pool.parks, self._done)
        self.running[running.id] = running
        self._pool.timer.discard(self._idle)
        return await running.start(name)

    def retire(self, reason: str) -> None:
        """Close it, and let nobody use it from now on."""
        self._end(reason)
        self._scope.cancel(reason)

    async def _opened(self, deadline: float) -> Client:
        cell: Cell[Client] = Cell()
        self.waiting[cell] = None
        self._pool.timer.add(cell, deadline, partial(self._late, cell))
        try:
            return await cell.wait(partial(self._leave, cell))
        finally:
            self._pool.timer.discard(cell)

    def _leave(self, cell: Cell[Client]) -> None:
        self.waiting.pop(cell, None)
        self._rest()

    def _late(self, cell: Cell[Client]) -> None:
        self._leave(cell)
        cell.fail(DeadlineExceeded(f"a session of its own with {self._pool.name} was not open", "no"))

    def _done(self, running: Running) -> None:
        self.running.pop(running.id, None)
        self._rest()

    def _rest(self) -> None:
        """Retire it after a while, if nobody uses it."""
        self._pool.timer.discard(self._idle)
        if not self.running and not self.waiting and not self.over:
            self._idle = Cell()
            due = trio.current_time() + self._pool.idle
            self._pool.timer.add(self._idle, due, partial(self.retire, "nobody has used it for long"))

    def _end(self, reason: str) -> None:
        self.over = True
        self.client = None
        if self._pool.sessions.get(self.key) is self:
            del self._pool.sessions[self.key]
        self._pool.timer.discard(self._idle)
        waiting, self.waiting = self.waiting, {}
        for cell in waiting:
            cell.fail(SourceDown(self._pool.name, reason))

    # What the server asks

    async def _answer(self, asked: Asked) -> bytes:
        if not may_ask(self._declares, asked.method, asked.params):
            return await refuse(asked, self._pool.roots, declared="roots" in self._declares)
        running = self._whose(asked.within)
        if running is None:
            return await refuse(asked, self._pool.roots, declared=True)
        return await running.ask(asked.id, asked.method, asked.params)

    def _whose(self, within: Id | None) -> Running | None:
        """The call in which the server asks: by the stream that carried it, else the latest; all are one person's."""
        if within is not None:
            return self.running.get(within)
        return next(reversed(self.running.values()), None)


async def refuse(asked: Asked, roots: bytes, *, declared: bool) -> bytes:
    """The answer by policy to a question that belongs to no call, or that was not to be asked.

    Raises:
        CallFailed: an error is the answer.

    """
    if declared and asked.method == ROOTS:
        return roots
    if declared and asked.method == ELICIT:
        return CANCELLED
    if declared:
        raise CallFailed(INTERNAL_ERROR, "nobody is there to answer: no call is under way")
    raise CallFailed(METHOD_NOT_FOUND, f"the client did not declare {asked.method}")
