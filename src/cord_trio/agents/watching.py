"""Telling others of each run of a handler: when it begins, caused by which span, and how it ended.

An ask has one run for each agent that it is handed on to, so it says more than a span of the whole ask would. Where
nobody watches there is nothing of this in the way of a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cord_trio.agents.agent import AgentFunction
    from cord_trio.agents.context import Context
    from cord_trio.trace import RunWatch


def watched(watch: RunWatch, function: AgentFunction) -> AgentFunction:
    """`function`, of whose runs `watch` is told."""

    async def run(context: Context, payload: object) -> object:
        # What caused it ran in the span that the trace is in: the giver before it, whoever asked or told, or sent it.
        branch = context.branch
        branch.trace, over = watch(context.agent.name, branch.trace)
        branch.span = int(branch.trace.span, 16)
        try:
            answer = await function(context, payload)
        except BaseException as exc:
            over(exc)
            raise
        over(answer)
        return answer

    return run
