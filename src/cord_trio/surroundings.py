"""What all links of one fabric share."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.auth.sealing import KEY_BYTES, Sealer
from cord_trio.cell import Cell
from cord_trio.pages import Pages
from cord_trio.parking import Parks
from cord_trio.pool import NO_ROOTS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from random import Random

    from cord_trio.call import Layer
    from cord_trio.cell import Timer
    from cord_trio.config import Bounds
    from cord_trio.counters import Counters
    from cord_trio.layers import Approve, Watch
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.recorder import Recorder
    from cord_trio.registry import Registry
    from cord_trio.transports.guardian import Guardian
    from cord_trio.transports.pump import Pump


START_HOLD: Final = 3.0
"""Seconds for which an interpreter that starts keeps others from starting; then it hangs rather than imports."""


@attrs.frozen(eq=False)
class Surroundings:
    """What all links of one fabric share."""

    registry: Registry
    guardian: Guardian
    timer: Timer
    counters: Counters
    rng: Random
    client_info: Mapping[str, Json]
    bounds: Bounds
    starts: trio.CapacityLimiter
    """Held by interpreters while they start: more at once than cores only make all of them late."""
    parks: Parks = attrs.field()
    """Calls that wait for their callers' answers."""
    pages: Pages = attrs.field(factory=Pages)
    """Pages that people were sent to, and are done with."""
    roots: bytes = NO_ROOTS
    """What servers are told that ask for roots and whose callers have none, as JSON."""
    pump: Pump | None = None
    """Reads the pipes of all children; None where there is none."""
    state_dir: str = ""
    """Where stored manifests are; empty for the user's folder for such."""

    watches: tuple[Callable[[str], Watch], ...] = ()
    """What watches the calls of a source, by its name."""

    layers: tuple[Layer, ...] = ()
    """The user's own, around the calls of every source, the first of them outermost."""

    approve: Approve | None = None
    """Asks a person about calls that a rule says need one; None to ask whoever calls."""

    recorder: Recorder | None = None
    """Keeps the calls of all sources; None for nobody."""

    sealer: Sealer = attrs.field(factory=lambda: Sealer(os.urandom(KEY_BYTES)), repr=False)
    """Of what callers keep for us."""

    @parks.default
    def _parks(self) -> Parks:
        bounds = self.bounds
        return Parks(bound=bounds.parks, time=bounds.park_time, timer=self.timer, counters=self.counters)

    @property
    def has_roots(self) -> bool:
        """Whether there are roots for everybody."""
        return self.roots != NO_ROOTS

    @asynccontextmanager
    async def turn_to_start(self) -> AsyncGenerator[None, None]:
        """One of the places for interpreters that start; given back early by one that hangs."""
        hold = Cell[None]()
        await self.starts.acquire_on_behalf_of(hold)

        def give_back() -> None:
            if hold.settle(None):
                self.starts.release_on_behalf_of(hold)

        self.timer.add(hold, trio.current_time() + START_HOLD, give_back)
        try:
            yield
        finally:
            self.timer.discard(hold)
            give_back()
