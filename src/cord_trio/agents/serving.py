"""Asking an agent in the words of a tool call."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from cord_trio.agents.exporting import CALLING, failure_of, payload_of, progress_of, result_of
from cord_trio.call import Complete
from cord_trio.errors import CallError, DeadlineExceeded
from cord_trio.trace import trace_of

if TYPE_CHECKING:
    from cord_trio.agents.directory import Agents
    from cord_trio.call import Call
    from cord_trio.counters import Counters

log = logging.getLogger("cord_trio.agents")


async def answer_call(agents: Agents, name: str, call: Call, counters: Counters) -> Complete:
    """What agent `name` made of `call`. Whoever leaves cancels it.

    Raises:
        CallError: a call of its own, its deadline, or a bound ended it.

    """
    events = call.events

    async def emit(value: object) -> None:
        progress = None if events is None else progress_of(value)
        if events is not None and progress is not None:
            events("notifications/progress", progress)
        await trio.lowlevel.checkpoint()

    asker = CALLING.get()
    token = CALLING.set(None)  # whoever the agent asks in other ways is asked by itself
    try:
        with trio.CancelScope(deadline=call.deadline):
            answer = await agents.converse(
                name, payload_of(call), principal=call.principal, parent=asker, sink=emit,
                trace=trace_of(call.trace, call.meta),
            )  # fmt: skip
            return Complete(result_of(answer))
    except CallError:
        raise
    except Exception as exc:
        counters.add("fabric.agent_failed")
        log.warning("exported agent failed agent=%s", name, exc_info=exc)
        return Complete(failure_of(exc))
    finally:
        CALLING.reset(token)
    raise DeadlineExceeded(f"agent {name}", "unknown")
