"""Asking an agent in the words of a tool call."""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING

import trio

from cord_trio.agents.exporting import CALLING, failure_of, payload_of, result_of
from cord_trio.agents.failing import cancelled_alone
from cord_trio.agents.inquiring import Inquiry, Unasked
from cord_trio.call import Complete
from cord_trio.errors import CallError, ConnectionLost, DeadlineExceeded
from cord_trio.protocol.eras import LATEST_LEGACY
from cord_trio.protocol.questions import NOBODY, askable
from cord_trio.trace import trace_of

if TYPE_CHECKING:
    from cord_trio.agents.answering import Asker
    from cord_trio.agents.directory import Agents
    from cord_trio.agents.turn import Branch
    from cord_trio.call import Call, Outcome
    from cord_trio.counters import Counters
    from cord_trio.parking import Parks

log = logging.getLogger("cord_trio.agents")


async def answer_call(agents: Agents, name: str, call: Call, counters: Counters, parks: Parks) -> Outcome:
    """What agent `name` made of `call`, or what it wants to know. Whoever leaves cancels it.

    Raises:
        CallError: a call of its own, its deadline, or a bound ended it.

    """
    work = partial(_work, agents, name, call, counters, CALLING.get())
    asks = call.capabilities != NOBODY and askable(call.capabilities, LATEST_LEGACY) != NOBODY
    with trio.CancelScope(deadline=math.inf if asks else call.deadline) as scope:
        agents.served.add(scope)
        try:
            if asks:
                return await Inquiry(call, parks, work).start(agents.jobs.nursery)
            return await work(Unasked(call))
        finally:
            agents.served.discard(scope)
    if agents.cut_off is not None:
        raise agents.cut_off.fresh("unknown")
    if agents.over:
        raise ConnectionLost("the fabric's block has ended", "unknown")
    raise DeadlineExceeded(f"agent {name}", "unknown")


async def _work(
    agents: Agents, name: str, call: Call, counters: Counters, parent: Branch | None, asker: Asker
) -> Complete:
    token = CALLING.set(None)  # whoever the agent asks in other ways is asked by itself
    try:
        answer = await agents.converse(
            name, payload_of(call), principal=call.principal, parent=parent, sink=asker,
            trace=trace_of(call.trace, call.meta),
        )  # fmt: skip
        return Complete(result_of(answer))
    except CallError:
        raise
    except Exception as exc:
        counters.add("fabric.agent_failed")
        log.warning("exported agent failed agent=%s", name, exc_info=exc)
        return Complete(failure_of(exc))
    except BaseExceptionGroup as exc:
        raise cancelled_alone(exc, name, counters) from None
    finally:
        CALLING.reset(token)
