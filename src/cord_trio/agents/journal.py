"""Journals: what is kept of started conversations, so that a restart neither loses nor repeats them.

Kept is only what a resume needs: how it began or was last handed on, the last checkpoint, and which tools were
called since. One line for each, so it stays short however long the conversation is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec
import trio

from cord_trio.errors import AgentError
from cord_trio.trace import TraceContext  # noqa: TC001  # msgspec looks at it

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

T = TypeVar("T")

LOCKED: Final = 1.0
"""Seconds to wait for another fabric to let go of the file."""

CLOSE: Final = 10.0
"""Seconds for the file to be closed."""

KEPT: Final = 10_000
"""Conversations that the journal in memory keeps."""


class Saved(msgspec.Struct, frozen=True):
    """What is kept of one conversation.

    Attributes:
        id: of the conversation.
        agent: who has it now.
        payload: what that one was given.
        transcript: what the agents before left to see: name and payload of each.
        principal: on whose behalf.
        checkpoint: the last value that was kept, in a tuple; None for none.
        calls: tools that were called since then, and may have run.
        expires: seconds since 1970 by which it ends; None for no deadline.
        left: of its budget, by counter; only what has a limit, as text.
        trace: that it is part of; None for none.

    """

    id: str
    agent: str
    payload: object
    transcript: tuple[tuple[str, object], ...] = ()
    principal: str = "local"
    checkpoint: tuple[object] | None = None
    calls: frozenset[str] = frozenset()
    expires: float | None = None
    left: dict[str, str] = {}
    trace: TraceContext | None = None


class Journal(Protocol):
    """Where conversations are kept. A `put` that has returned is not lost."""

    async def __aenter__(self) -> Journal:
        """Open it, for one fabric."""

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""

    async def put(self, saved: Saved) -> None:
        """Keep `saved` in place of what was kept under its id. Of two at once, the later call stays."""

    async def forget(self, id: str) -> None:
        """Let go of a conversation that has ended."""

    async def unfinished(self) -> Sequence[Saved]:
        """All that is kept, the first begun first."""


class MemoryJournal:
    """Keeps conversations as long as it is kept itself: beyond one fabric, not beyond the process."""

    def __init__(self) -> None:
        self._saved: dict[str, Saved] = {}

    async def __aenter__(self) -> MemoryJournal:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep everything."""

    async def put(self, saved: Saved) -> None:
        """Keep `saved`."""
        self._saved[saved.id] = saved
        if len(self._saved) > KEPT:
            del self._saved[next(iter(self._saved))]
        await trio.lowlevel.checkpoint()

    async def forget(self, id: str) -> None:
        """Let go of a conversation."""
        self._saved.pop(id, None)
        await trio.lowlevel.checkpoint()

    async def unfinished(self) -> Sequence[Saved]:
        """All that is kept."""
        await trio.lowlevel.checkpoint()
        return tuple(self._saved.values())


class SqliteJournal:
    """Keeps conversations in a file, which one fabric at a time may use. Payloads and checkpoints must be JSON.

    The standard library's module in a worker thread, one write at a time: no SQLite library for Trio is
    maintained, and there are few writes in a conversation.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._limiter = trio.CapacityLimiter(1)
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> SqliteJournal:
        self._connection = await self._in_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with trio.move_on_after(CLOSE, shield=True):
                await self._in_thread(connection.close)

    async def put(self, saved: Saved) -> None:
        """Keep `saved`; on disk when this returns."""
        data = msgspec.json.encode(saved)
        await self._write(
            "insert into conversations (id, data) values (?, ?) on conflict (id) do update set data = excluded.data",
            (saved.id, data),
        )

    async def forget(self, id: str) -> None:
        """Let go of a conversation; on disk when this returns."""
        await self._write("delete from conversations where id = ?", (id,))

    async def unfinished(self) -> Sequence[Saved]:
        """All that is kept."""

        def read() -> list[bytes]:
            return [data for (data,) in self._execute("select data from conversations order by begun")]

        return [msgspec.json.decode(data, type=Saved) for data in await self._in_thread(read)]

    def _open(self) -> sqlite3.Connection:
        import sqlite3  # only for those who want a file

        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # what agents are given is nobody else's
            connection = sqlite3.connect(self.path, timeout=LOCKED, isolation_level=None, check_same_thread=False)
        except OSError as exc:
            raise AgentError(f"the journal {self.path} cannot be opened: {exc.strerror}") from exc
        try:
            connection.execute("pragma locking_mode = exclusive")  # two fabrics would both go on with everything
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            connection.execute(
                "create table if not exists conversations"
                " (begun integer primary key autoincrement, id text unique not null, data blob not null)"
            )
        except sqlite3.Error as exc:
            connection.close()
            raise AgentError(f"the journal {self.path} cannot be used: {exc}") from exc
        return connection

    async def _write(self, statement: str, values: tuple[object, ...]) -> None:
        def write() -> None:
            self._execute(statement, values)

        await self._in_thread(write)

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[bytes]]:
        import sqlite3

        connection = self._open_connection()
        try:
            return connection.execute(statement, values).fetchall()
        except sqlite3.Error as exc:  # a full disk, for one
            raise AgentError(f"the journal {self.path} cannot be used: {exc}") from exc

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise trio.ClosedResourceError("the journal is closed")
        return self._connection

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function, limiter=self._limiter)
