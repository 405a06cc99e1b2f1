"""The requests that one legacy session or one pipe has in flight, each with the scope that stops it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cord_trio.protocol.jsonrpc import Id

MAX_RUNNING: Final = 1_024
"""Requests in flight of one session or pipe."""


class Running:
    """Scopes by request id. `1` and `"1"` are different ids."""

    __slots__ = ("_empty", "_scopes")

    def __init__(self) -> None:
        self._empty: trio.Event | None = None
        self._scopes: dict[tuple[bool, Id], trio.CancelScope] = {}

    def __len__(self) -> int:
        return len(self._scopes)

    def __iter__(self) -> Iterator[trio.CancelScope]:
        return iter(tuple(self._scopes.values()))

    @property
    def full(self) -> bool:
        """Whether it is at its bound."""
        return len(self._scopes) >= MAX_RUNNING

    def begin(self, id: Id, scope: trio.CancelScope | None = None) -> trio.CancelScope | None:
        """The scope to run request `id` in, `scope` if that is given; None if that id is in flight."""
        key = (isinstance(id, str), id)
        if key in self._scopes:
            return None
        if scope is None:
            scope = trio.CancelScope()
        self._scopes[key] = scope
        return scope

    def end(self, id: Id) -> None:
        """Request `id` is over."""
        self._scopes.pop((isinstance(id, str), id), None)
        if self._empty is not None and not self._scopes:
            self._empty.set()

    def cancel(self, id: Id, reason: str) -> bool:
        """Stop request `id`. False, and nothing done, if it is not in flight."""
        scope = self._scopes.get((isinstance(id, str), id))
        if scope is None:
            return False
        scope.cancel(reason)
        return True

    def cancel_all(self, reason: str) -> None:
        """Stop everything."""
        for scope in self:
            scope.cancel(reason)

    async def wait_empty(self) -> None:
        """Return once nothing is in flight."""
        while self._scopes:
            self._empty = trio.Event()
            await self._empty.wait()
        await trio.lowlevel.checkpoint()
