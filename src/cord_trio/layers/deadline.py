"""The latest moment of a call: all its attempts, queues and pauses together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.call import Call, Handler, Layer, Outcome


def deadline(seconds: float, *, clock: Callable[[], float] = trio.current_time) -> Layer:
    """Calls end within `seconds`, or by their own deadline where that is earlier.

    It only says so in the call: those who wait for something of it keep to it, each in its own way, with
    the fabric's one timer, so that no call needs a cancel scope.
    """

    def layer(handler: Handler) -> Handler:
        def tightened(call: Call) -> Awaitable[Outcome]:
            latest = clock() + seconds
            return handler(replace(call, deadline=latest) if latest < call.deadline else call)

        return tightened

    return layer
