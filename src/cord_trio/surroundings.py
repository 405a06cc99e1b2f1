"""What all links of one fabric share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cord_trio.parking import Parks
from cord_trio.pool import NO_ROOTS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    import trio

    from cord_trio.cell import Timer
    from cord_trio.config import Bounds
    from cord_trio.counters import Counters
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.registry import Registry
    from cord_trio.transports.guardian import Guardian


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
    roots: bytes = NO_ROOTS
    """What servers are told that ask for roots and whose callers have none, as JSON."""

    @parks.default
    def _parks(self) -> Parks:
        bounds = self.bounds
        return Parks(bound=bounds.parks, time=bounds.park_time, timer=self.timer, counters=self.counters)

    @property
    def has_roots(self) -> bool:
        """Whether there are roots for everybody."""
        return self.roots != NO_ROOTS
