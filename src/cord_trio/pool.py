"""Sessions with a legacy server that may ask its caller something: each is one principal's alone.

A legacy server asks on a connection, not within a call, and is told once, when that opens, what it may ask. So a
session that declares anything is shared by no two principals, nor by callers that can be asked different things:
a question would reach the wrong person. They are opened when needed, and closed when nobody has used them for long.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cell import Cell
from cord_trio.errors import CallError, CallFailed, ConnectFailed, DeadlineExceeded, SourceDown
from cord_trio.handshake import FreshNeeded
from cord_trio.protocol.jsonrpc import INTERNAL_ERROR, METHOD_NOT_FOUND, parse
from cord_trio.protocol.questions import ANYTHING, CANCELLED, ELICIT, NOBODY, ROOTS, askable, may_ask
from cord_trio.running import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import TypeAlias

    from cord_trio.answering import Answer, Asked
    from cord_trio.call import Call, Outcome
    from cord_trio.cell import Timer
    from cord_trio.client import Client
    from cord_trio.counters import Counters
    from cord_trio.parking import Parks
    from cord_trio.protocol.jsonrpc import Id, Json
    from cord_trio.protocol.mcp import Tool

    Key: TypeAlias = tuple[str, bytes]
    Converse: TypeAlias = Callable[[Json, Answer], AbstractAsyncContextManager[Client]]

log = logging.getLogger("cord_trio.link")

FAREWELL: Final = 1.0
"""Seconds until a session is closed on which a call was left."""

LOOK: Final = 30.0
"""Seconds for a list of what a server shows to those who can be asked."""

AGAIN: Final = 60.0
"""Seconds until another session is tried where one could not be opened: some servers bear only one of themselves."""

NO_ROOTS: Final = b'{"roots":[]}'
"""The answer to who asks for roots and is given none."""


class Pool:
    """The interactive sessions of one source.

    Attributes:
        sessions: what is open or being opened, the oldest first. Each call has one to itself while it runs, since
            the people behind one principal may be many, and even over HTTP a server may ask beside the stream of
            the call that it asks for (the Python SDK 1.x does so for sampling).
        shown: told what its server lists for who declares what, once for each such declaration of a connection.
        modern_alone: whether a server that speaks the modern era was found to speak no other.

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
        self.sessions: dict[Interactive, None] = {}
        self.modern_alone = False
        self.shown: Callable[[bytes, Sequence[Tool]], None] = lambda _declares, _tools: None
        self._looked: set[bytes] = set()
        self._size = size
        self._nursery: trio.Nursery | None = None
        self._not_before = -math.inf

    def open(self, nursery: trio.Nursery) -> None:
        """From here on sessions live in `nursery`."""
        self._nursery = nursery

    async def call(self, client: Client, call: Call, name: str | None) -> Outcome:
        """Call a legacy server that may ask the caller, on a session of that caller's; `client` is the shared one."""
        modern = client.greeting.modern
        declares = askable(call.capabilities, call.revision if modern else client.greeting.revision)
        session = None if declares == NOBODY else self.session(call.principal, declares)
        if session is None:
            return await client.call(call, name)
        try:
            await session.opened(call.deadline)
        except SourceDown:
            session.release()
            self.modern_alone = self.modern_alone or modern  # as far as can be told on this connection
            return await client.call(call, name)
        except BaseException:
            session.release()
            raise
        return await session.call(call, name)

    def session(self, principal: str, declares: bytes) -> Interactive | None:
        """A session of `principal` that says it can be asked what is in `declares`; None if there is no room.

        Where there is no room for one more, calls share one, and only what is asked within a call is put to its caller.
        It is given for one call; whoever does not make that gives it back with `release`.
        """
        key = (principal, declares)
        same = [each for each in self.sessions if each.key == key and not each.haunted]
        found = next((each for each in same if not each.users), None)
        if found is None:
            found = self._new(key) or min(same, key=lambda each: each.users, default=None)
        if found is not None:
            found.users += 1
        return found

    def forget(self) -> None:
        """The source is another one from now on, with other lists."""
        self.modern_alone = False
        self._looked.clear()

    async def look_around(self) -> None:
        """See what the server lists for who can be asked everything, on a session of its own that ends then."""

        async def nobody(asked: Asked) -> bytes:
            return await refuse(asked, self.roots, declared=True)

        try:
            async with self.converse(parse(ANYTHING), nobody) as client:
                await self.look(client, ANYTHING)
        except (ConnectFailed, FreshNeeded) as exc:
            self.put_off()
            log.debug("not listed as who can be asked source=%s error=%s", self.name, exc)

    async def look(self, client: Client, declares: bytes) -> None:
        """See what the server lists on this session, whose `declares` says what it can ask, unless that is known."""
        if declares in self._looked:
            return
        self._looked.add(declares)
        try:
            tools, _ = await client.list_tools(deadline=trio.current_time() + LOOK)
        except CallError as exc:
            log.debug("not listed source=%s error=%s", self.name, exc)
        else:
            self.shown(declares, tools)

    def put_off(self) -> None:
        """One could not be opened: try no other for a while."""
        self.counters.add("link.interactive_failed")
        self._not_before = trio.current_time() + AGAIN

    def _new(self, key: Key) -> Interactive | None:
        if self._nursery is None or trio.current_time() < self._not_before:
            return None
        if len(self.sessions) >= self._size:
            unused = next((each for each in self.sessions if not each.users), None)
            if unused is None:
                self.counters.add("link.interactive_refused")
                return None
            unused.retire("another session takes its place")
        found = Interactive(self, key)
        self.sessions[found] = None
        self.counters.add("link.interactive")
        self._nursery.start_soon(found.run, name=f"interactive {self.name}")
        return found


class Interactive:
    """One session, from before it is open to after it was lost.

    Attributes:
        client: None unless it is open.
        users: calls that were given it, and are not over.
        running: the calls on it, in the order in which they were made.
        waiting: calls that wait for it to open.
        haunted: whether a call on it was left that its server may still be at, and ask in: no other may hear that.
        over: whether it takes no more calls.

    """

    def __init__(self, pool: Pool, key: Key) -> None:
        self.key = key
        self.client: Client | None = None
        self.users = 0
        self.running: dict[Id, Running] = {}
        self.waiting: dict[Cell[Client], None] = {}
        self.haunted = False
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
                    await pool.look(client, self.key[1])
                    reason = await client.session.wait_lost()
        except (ConnectFailed, FreshNeeded) as exc:
            reason = str(exc)
            pool.put_off()
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
        try:
            client = await self.opened(call.deadline)
        except BaseException:
            self.release()
            raise
        running = Running(client, call, self._pool.parks, self._done)
        self.running[running.id] = running
        self._pool.timer.discard(self._idle)
        return await running.start(name)

    def retire(self, reason: str) -> None:
        """Close it, and let nobody use it from now on."""
        self._end(reason)
        self._scope.cancel(reason)

    async def opened(self, deadline: float) -> Client:
        """The client, as soon as the session is open.

        Raises:
            SourceDown: it could not be opened.
            DeadlineExceeded: it was not by `deadline`.

        """
        if self.client is not None:
            return self.client
        cell: Cell[Client] = Cell()
        self.waiting[cell] = None
        self._pool.timer.add(cell, deadline, partial(self._late, cell))
        try:
            return await cell.wait(partial(self._leave, cell))
        finally:
            self._pool.timer.discard(cell)

    def release(self) -> None:
        """A call is over, or is not to be."""
        self.users -= 1
        self._rest()

    def _leave(self, cell: Cell[Client]) -> None:
        self.waiting.pop(cell, None)

    def _late(self, cell: Cell[Client]) -> None:
        self._leave(cell)
        cell.fail(DeadlineExceeded(f"a session of its own with {self._pool.name} was not open", "no"))

    def _done(self, running: Running, left: bool) -> None:
        self.running.pop(running.id, None)
        self.haunted = self.haunted or left
        self.release()

    def _rest(self) -> None:
        """Retire it after a while, if nobody uses it."""
        self._pool.timer.discard(self._idle)
        if not self.users and not self.over:
            self._idle = Cell()
            # One that nobody may use any more still has to tell its server that a call was cancelled.
            due = trio.current_time() + (FAREWELL if self.haunted else self._pool.idle)
            self._pool.timer.add(self._idle, due, partial(self.retire, "nobody uses it"))

    def _end(self, reason: str) -> None:
        self.over = True
        self.client = None
        self._pool.sessions.pop(self, None)
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
        """The call in which the server asks: by the stream that carried it, else the only one that it can be."""
        if within is not None:
            return self.running.get(within)
        if len(self.running) == 1 and not self.haunted:
            return next(iter(self.running.values()))
        if self.running:
            self._pool.counters.add("link.questions_unclear")
        return None


async def refuse(asked: Asked, roots: bytes, *, declared: bool) -> bytes:  # noqa: ASYNC124  # async by contract
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
