"""Asking an agent: the call is the task, and a handoff is a tail call.

The handler of a function runs in the asker's own task, under the agent's turn. So deadlines, cancellation
and context variables reach it by the language alone, a crash arrives at the asker as itself, and there can
be no orphan. A handler that returns a `Handoff` has finished: its turn is given back before the taker's is
asked for, so nothing is held while waiting, and the asker's task goes on with the taker. Agents with a task
of their own are asked over their `Resident`, on the same terms.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import trio

from cord_trio.agents.agent import ONE_ONLY, PLACE, Agent, Handoff, Step, handoffs_in
from cord_trio.agents.budget import Account
from cord_trio.agents.context import Context
from cord_trio.agents.elsewhere import Distant
from cord_trio.agents.failing import cancelled_alone
from cord_trio.agents.monitor import Notice
from cord_trio.agents.turn import Branch, note_way
from cord_trio.agents.watching import watched
from cord_trio.call import LOCAL
from cord_trio.errors import (
    AgentError,
    BudgetExceeded,
    DeadlineExceeded,
    Draining,
    HandoffRefused,
    NoMailbox,
)
from cord_trio.mesh_errors import AgentMoved

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from cord_trio.agents.directory import Agents
    from cord_trio.agents.job import Job
    from cord_trio.agents.turn import Sink
    from cord_trio.trace import TraceContext


async def converse(
    agents: Agents,
    name: str,
    payload: object,
    *,
    principal: str = LOCAL,
    parent: Branch | None = None,
    account: Account | None = None,
    sink: Sink | None = None,
    job: Job | None = None,
    transcript: tuple[Step, ...] = (),
    trace: TraceContext | None = None,
) -> object:
    """The answer of agent `name` to `payload`, or of whoever it was handed on to. Always a checkpoint.

    Cancelled while it waits for a turn, no handler starts. What a handler raises comes out as it is, with
    a note of the agents that led there; over a mailbox, as `AgentCrashed` from it.

    Args:
        agents: among whom.
        name: who is asked; with `#generation` to ask only that one.
        payload: given to the handler as it is.
        principal: on whose behalf.
        parent: the branch of the asking handler, if it is one.
        account: what it may use; None for what the asker may.
        sink: takes what its handlers emit.
        job: the started conversation that this is.
        transcript: of a conversation that goes on.
        trace: that it is part of; None for the parent's.

    Raises:
        AgentNotFound: no agent has this name.
        Draining: the fabric has ended; its contexts may have been kept.
        HandoffRefused: a handler handed on to an agent that is missing, or once too often.
        CallCycle: waiting for a turn would be waiting for ourselves.
        Overloaded: too many wait for one agent.
        AgentDown: the agent was stopped, or gave up.
        BudgetExceeded: the seconds of a budget are used up, or its hops.

    """
    await trio.lowlevel.checkpoint()
    if agents.over:
        raise Draining
    agent = agents.by_name.get(name)
    generation = 0
    if agent is None:
        agent, generation = agents.find(name)
    if parent is None:
        branch = Branch(None, (agent.name,), 0, principal, account or agents.account)
        siblings = agents.roots
        if trace is None and agents.traced and agents.watch is None:  # who watches begins it
            trace = agents.new_trace()
    else:
        branch = Branch(
            parent, (*parent.path, agent.name), parent.hops, principal, account or parent.account,
            parent.job, parent.trace,
        )  # fmt: skip
        siblings = parent.children
    if job is not None:
        branch.job = job
    if trace is not None or branch.trace is not None:
        branch.follow(trace or branch.trace, agents.spans)
    branch.sink = sink
    branch.deadline = trio.current_effective_deadline()
    transfer = False
    siblings[branch] = None
    try:
        while True:
            if agent.plain:
                turn = agent.turn
                if not turn.take(branch):
                    await turn.wait(branch, agents.counters)
                try:
                    context = Context(agents, branch, agent, transcript, agents.snapshot())
                    answer = await agent.function(context, payload)  # type: ignore[call-arg, misc]  # it is no class
                except Exception as exc:
                    _failed(agents, branch, agent, exc)
                    raise
                finally:
                    turn.release(branch)
            else:
                try:
                    answer = await _host(agents, branch, agent, payload, transcript, generation, transfer)
                except AgentMoved as exc:  # while it waited
                    if exc.name != agent.name or agent.resident is None:
                        raise
                    await agent.resident.led.wait()
                    agent, generation = agents.find(f"{agent.name}{PLACE}{exc.node}")
                    continue
            if type(answer) is not Handoff:
                if type(answer) is list or type(answer) is tuple:
                    _refuse_several(agents, branch, agent, answer)
                return answer
            taker = _taker(agents, branch, agent, answer)
            transcript = transcript + (Step(agent.name, payload),)  # noqa: RUF005  # a third of the other's cost
            if answer.keep is not None:
                transcript = tuple(answer.keep(transcript))
            branch.path = branch.path + (taker.name,)  # noqa: RUF005  # likewise
            branch.hops += 1
            if branch.trace is not None:
                branch.span = next(agents.spans)
            agent, payload = taker, answer.payload
            generation, transfer = 0, True
            if branch.job is not None and branch.parent is None:
                await branch.job.handed(agent.name, payload, transcript)
            await trio.lowlevel.checkpoint_if_cancelled()
    finally:
        del siblings[branch]
        if account is not None:
            account.last = agent.name


def tell(
    agents: Agents, name: str, payload: object, *, principal: str = LOCAL, parent: Branch | None = None,
    account: Account | None = None, trace: TraceContext | None = None,
) -> Awaitable[bool]:  # fmt: skip
    """Put `payload` into the mailbox of agent `name`; returns whether it was taken.

    No `async` function: one frame less between a message and its handler.

    Cancelled, it has put nothing: the message is there before others run, so its handler may be the next to.

    Raises:
        AgentNotFound: no agent has this name.
        NoMailbox: it has none.
        Draining: the fabric has ended.
        AgentDown: it was stopped, or gave up.
        Overloaded: its mailbox is full, and refuses then.
        CallCycle: waiting for room would be waiting for ourselves.

    """
    if agents.over:
        raise Draining
    agent = agents.by_name.get(name)
    generation = 0
    if agent is None:
        agent, generation = agents.find(name)
    resident = agent.resident
    if resident is None or resident.post is None:
        if not isinstance(agent, Distant):
            raise NoMailbox(agent.name)
        branch = Branch(parent, (*(() if parent is None else parent.path), name), 0, principal, account)
        branch.follow(trace or (None if parent is None else parent.trace), agents.spans)
        return agent.send(branch, payload)
    if trace is None and parent is not None:
        trace = parent.trace
    branch = Branch(parent, (agent.name,), 0, principal, account or agents.account, None, trace)
    if trace is not None:
        branch.span = next(agents.spans)
    return resident.post.tell(branch, payload, generation)


def broadcast(
    agents: Agents, topic: str, payload: object, *, principal: str = LOCAL, account: Account | None = None,
    trace: TraceContext | None = None,
) -> int:  # fmt: skip
    """Put `payload` into the mailbox of every agent that takes `topic`; returns how many took it. Never waits."""
    taken = 0
    for agent in list(agents.by_name.values()):
        if agent.resident is not None and agent.resident.post is not None and agent.takes(topic):
            branch = Branch(None, (agent.name,), 0, principal, account or agents.account)
            branch.follow(trace, agents.spans)
            taken += agent.resident.post.notify(branch, payload)
    return taken


async def carry_on(agents: Agents, giver: Agent, context: Context, payload: object, handoff: object) -> None:
    """Go on with a handoff that answers a message which nobody waits for. Raises nothing: monitors are told."""
    branch = context.branch
    target = giver.name
    try:
        _refuse_several(agents, branch, giver, handoff)
        assert isinstance(handoff, Handoff)
        target = handoff.target
        taker = _taker(agents, branch, giver, handoff)
        transcript = (*context.transcript, Step(giver.name, payload))
        if handoff.keep is not None:
            transcript = tuple(handoff.keep(transcript))
        # The way and the hops go on; a new branch, since nothing waits for the old one.
        onward = Branch(None, branch.path, branch.hops + 1, branch.principal, branch.account)
        onward.trace = branch.trace
        await converse(
            agents, taker.name, handoff.payload, principal=branch.principal, parent=onward, transcript=transcript
        )
    except Exception as exc:
        agents.counters.add("agents.told_failed")
        note_way(exc, branch, giver.generation)
    except BaseExceptionGroup as exc:
        raise cancelled_alone(exc, target, agents.counters) from None


def _failed(agents: Agents, branch: Branch, agent: Agent, exc: Exception) -> None:
    """A handler in its asker's task raised."""
    if agent.generation:  # else it is one of another node, and has noted it there
        note_way(exc, branch, agent.generation)
    if agents.monitors.looking and not isinstance(exc, agent.raises):
        agents.monitors.tell(Notice(agent.name, agent.generation, "crashed", exc))


async def _host(
    agents: Agents, branch: Branch, agent: Agent, payload: object, transcript: tuple[Step, ...],
    generation: int, transfer: bool,
) -> object:  # fmt: skip
    """What `agent` answers, which is more than a function: it has a task, a deadline or a budget."""
    asker, before = branch.account, branch.deadline
    budget = agent.budget
    deadline = math.inf
    if budget is not None:
        branch.account = Account(budget, agent.name, asker)
        if budget.seconds is not None:
            deadline = branch.account.deadline
    if agent.deadline != math.inf:
        deadline = min(deadline, trio.current_time() + agent.deadline)
    try:
        if deadline == math.inf:
            return await _run(agents, branch, agent, payload, transcript, generation, transfer)
        branch.deadline = min(before, deadline)
        with trio.CancelScope(deadline=deadline):
            return await _run(agents, branch, agent, payload, transcript, generation, transfer)
    finally:
        branch.account = asker
        branch.deadline = before
    if budget is not None and budget.seconds is not None and trio.current_time() >= deadline:
        raise BudgetExceeded("seconds", budget.seconds, agent.name)
    raise DeadlineExceeded(f"agent {agent.name}")


async def _run(
    agents: Agents, branch: Branch, agent: Agent, payload: object, transcript: tuple[Step, ...],
    generation: int, transfer: bool,
) -> object:  # fmt: skip
    if agent.resident is not None:
        return await agent.resident.answer(branch, payload, transcript, generation=generation, transfer=transfer)
    turn = agent.turn
    if not turn.take(branch):
        await turn.wait(branch, agents.counters)
    function: Any = agent.function if agents.watch is None else watched(agents.watch, agent.function)  # type: ignore[arg-type]  # it is no class
    try:
        return await function(Context(agents, branch, agent, transcript, agents.snapshot()), payload)
    except Exception as exc:
        _failed(agents, branch, agent, exc)
        raise
    finally:
        turn.release(branch)


def _taker(agents: Agents, branch: Branch, giver: Agent, handoff: Handoff) -> Agent:
    """Who goes on. A refusal is told to the giver's monitors, and raised to the asker."""
    target = handoff.target
    taker = agents.taker(target)
    error: AgentError
    if taker is None:
        error = HandoffRefused(target, "no agent has this name")
    elif not (giver.every_agent or giver.granted.get(target) or giver.may_ask(target)):
        error = HandoffRefused(target, f"{giver.name} is granted {', '.join(giver.agents) or 'nobody'}")
    elif branch.hops >= agents.max_hops:
        agents.counters.add("agents.hops_refused")
        error = HandoffRefused(target, f"{agents.max_hops} handoffs are the most that one ask may take")
    elif branch.children:
        error = HandoffRefused(target, f"{branch.path[-1]} is not finished: something that it asked still runs")
    else:
        try:
            if branch.account is not None:
                branch.account.hop(giver.name)
            return taker
        except BudgetExceeded as exc:
            error = exc
    raise _refused(agents, branch, giver, error)


def _refuse_several(agents: Agents, branch: Branch, giver: Agent, answer: object) -> None:
    """Raise if there are handoffs in `answer`, which is none: none of them would happen, and nobody would notice."""
    handoffs = handoffs_in(answer)
    if handoffs:
        targets = ", ".join(handoff.target for handoff in handoffs)
        raise _refused(agents, branch, giver, HandoffRefused(targets, ONE_ONLY))


def _refused(agents: Agents, branch: Branch, giver: Agent, error: AgentError) -> AgentError:
    """`error`, told to those who look at the giver."""
    note_way(error, branch, giver.generation)
    if agents.monitors.looking:
        agents.monitors.tell(Notice(giver.name, giver.generation, "handoff_refused", error))
    return error
