"""The resources that one legacy session or pipe wants to hear of (MCP 2025-11-25, resources, subscriptions)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from cord_trio.errors import Overloaded
from cord_trio.gateway.requests import MAX_URIS

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


class Subscriptions:
    """Each URI's subscription, entered once however often it is asked for, and left at the end."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: dict[str, ExitStack] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, uri: str, enter: Callable[[], AbstractContextManager[object]]) -> None:
        """Want `uri`.

        Raises:
            Overloaded: there are too many.

        """
        if uri in self._open:
            return
        if len(self._open) >= MAX_URIS:
            raise Overloaded("gateway.uris", MAX_URIS)
        with ExitStack() as stack:
            stack.enter_context(enter())
            self._open[uri] = stack.pop_all()

    def remove(self, uri: str) -> None:
        """Want `uri` no more."""
        if uri in self._open:
            self._open.pop(uri).close()

    def close(self) -> None:
        """Want nothing more."""
        while self._open:
            self._open.popitem()[1].close()
