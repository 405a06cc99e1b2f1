"""The latest moment of a call: all its attempts, queues and pauses together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.call import Call, Handler, Layer, Outcome


LONGEST: Final = 600.0
"""Seconds that a call may take whose server keeps telling progress."""


def deadline(seconds: float, *, longest: float = LONGEST, clock: Callable[[], float] = trio.current_time) -> Layer:
    """Calls end within `seconds`, or by their own deadline where that is earlier.

    It only says so in the call: those who wait for something of it keep to it, each in its own way, with
    the fabric's one timer, so that no call needs a cancel scope. Progress moves our own deadline on, by
    `seconds` each time, but neither past `longest` nor past the deadline that the call came with. What a call
    has spent on finding its source counts.
    """

    def layer(handler: Handler) -> Handler:
        def tightened(call: Call) -> Awaitable[Outcome]:
            began = clock() - call.spent
            inherited = call.deadline
            if began + seconds >= inherited:
                return handler(call)
            latest = min(inherited, began + longest)
            return handler(replace(call, deadline=began + seconds, patience=seconds, latest=latest))

        return tightened

    return layer
