"""Pages that people were sent to, and whose servers told that they are done with (MCP 2025-11-25, elicitation)."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec
import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

    from msgspec import Raw

COMPLETED: Final = "notifications/elicitation/complete"

MAX_KEPT: Final = 1_000
"""Pages that are done with and not forgotten."""

KEPT: Final = 600.0
"""Seconds after which they are."""


class _Completed(msgspec.Struct, gc=False, rename="camel"):
    elicitation_id: str


_decode = msgspec.json.Decoder(_Completed).decode


class Pages:
    """Which pages are done with. Servers make their ids up so that none can be guessed."""

    def __init__(self) -> None:
        self._done: OrderedDict[str, float] = OrderedDict()
        self._more = trio.Event()

    def __len__(self) -> int:
        return len(self._done)

    def told(self, params: Raw) -> None:
        """Take what a server tells. Raises `msgspec.DecodeError` if that is nothing."""
        now = trio.current_time()
        self._done[_decode(params).elicitation_id] = now
        while len(self._done) > MAX_KEPT or next(iter(self._done.values())) + KEPT < now:
            self._done.popitem(last=False)
        self._more.set()
        self._more = trio.Event()

    async def wait(self, ids: Iterable[str], patience: float) -> bool:
        """Return once all of `ids` are done with, or after `patience` seconds; whether they are."""
        wanted = tuple(ids)
        with trio.move_on_after(patience):
            while not all(id in self._done for id in wanted):
                await self._more.wait()
        return all(id in self._done for id in wanted)
