"""The latest moment of one attempt, so that one that hangs leaves time for another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.call import Call, Handler, Layer, Outcome


def attempt(seconds: float, *, clock: Callable[[], float] = trio.current_time) -> Layer:
    """Each attempt ends within `seconds`, or by its call's deadline where that is earlier.

    It belongs below whatever queues, so that a full queue is not read as a slow server. Progress moves it on by
    `seconds` each time, as far as it may move the call's own deadline.
    """

    def layer(handler: Handler) -> Handler:
        def tightened(call: Call) -> Awaitable[Outcome]:
            until = clock() + seconds
            if until >= call.deadline:
                return handler(call)
            latest = call.latest if call.patience else call.deadline
            return handler(replace(call, deadline=until, patience=seconds, latest=latest))

        return tightened

    return layer
