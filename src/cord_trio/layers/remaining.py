"""Tells a server how long a call may take, for servers that understand it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio
from msgspec import Raw
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from cord_trio.call import Call, Handler, Layer, Outcome

META_DEADLINE: Final = "cord_trio/deadlineMs"
"""The member of `_meta` that says how many milliseconds are left: relative, so no clocks need agree."""


def tell_deadline() -> Layer:
    """Calls say how long they may take: until their own deadline, or that of the task's cancel scopes.

    It belongs innermost, so that what queues and pauses took is off already. A call without a deadline says nothing.
    """

    def layer(handler: Handler) -> Handler:
        def telling(call: Call) -> Awaitable[Outcome]:
            until = min(call.deadline, trio.current_effective_deadline())
            if until == math.inf:
                return handler(call)
            left = max(0, math.floor((until - trio.current_time()) * 1000))
            return handler(replace(call, meta={**call.meta, META_DEADLINE: Raw(b"%d" % left)}))

        return telling

    return layer
