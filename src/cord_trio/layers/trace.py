"""Telling others of each call: when it begins, and how it ended. Outermost, so that refusals and queues show too."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.call import Call, Handler, Layer, Outcome

Ended: TypeAlias = "Callable[[Outcome | BaseException], None]"
"""Is told how a call ended, whatever that is, once. Must not block and must not raise."""

Watch: TypeAlias = "Callable[[Call], tuple[Call, Ended]]"
"""Is told of a call that begins; returns it as it goes on, with a trace context of its own perhaps."""


def trace(watch: Watch) -> Layer:
    """Each call is shown to `watch`, and how it ended."""

    def layer(handler: Handler) -> Handler:
        async def traced(call: Call) -> Outcome:
            call, ended = watch(call)
            try:
                outcome = await handler(call)
            except BaseException as exc:
                ended(exc)
                raise
            ended(outcome)
            return outcome

        return traced

    return layer
