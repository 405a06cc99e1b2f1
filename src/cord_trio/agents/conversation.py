"""Asking an agent: the call is the task, and a handoff is a tail call.

The handler runs in the asker's own task, under the agent's turn. So deadlines, cancellation and context
variables reach it by the language alone, a crash arrives at the asker as itself, and there can be no
orphan. A handler that returns a `Handoff` has finished: its turn is given back before the taker's is
asked for, so nothing is held while waiting, and the taker runs in the same task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from cord_trio.agents.agent import Handoff, Step
from cord_trio.agents.exporting import emit
from cord_trio.agents.tools import call_tool
from cord_trio.agents.turn import Branch
from cord_trio.call import LOCAL
from cord_trio.errors import AgentNotFound, Draining, HandoffRefused, ToolNotGranted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.agents.agent import Agent, Agents, Keep
    from cord_trio.agents.answering import Answer
    from cord_trio.call import EventSink
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.protocol.mcp import ToolResult
    from cord_trio.registry import Route, Snapshot


class Context:
    """What a handler is given for one run. It stays as it is, and is of use until the handler returns.

    Another task may use it only in a nursery that the handler opened.

    Attributes:
        agent: whose handler this is.
        principal: on whose behalf.
        branch: the ask that this run belongs to, for whoever draws the tree.
        chain: the names of the agents that led here, this one last.
        hops: handoffs so far.
        transcript: what the agents before this one left to see, the oldest first.
        snapshot: the tools that existed when the handler started.

    """

    __slots__ = ("_agents", "agent", "branch", "chain", "hops", "principal", "snapshot", "transcript")

    def __init__(
        self, agents: Agents, branch: Branch, agent: Agent, principal: str, transcript: tuple[Step, ...]
    ) -> None:
        self._agents = agents
        self.branch = branch
        self.agent = agent
        self.principal = principal
        self.chain = branch.path
        self.hops = branch.hops
        self.transcript = transcript
        self.snapshot: Snapshot = agents.snapshot()

    @property
    def deadline(self) -> float:
        """Trio time at which this run is cancelled at the latest, as seen from here."""
        return trio.current_effective_deadline()

    @property
    def tools(self) -> Mapping[str, Route]:
        """The tools of `snapshot` that this agent may call, by exported name."""
        agent = self.agent
        if agent.every_tool:
            return self.snapshot.tools
        return {name: route for name, route in self.snapshot.tools.items() if agent.may_call(name)}

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Json] | None = None,
        *,
        events: EventSink | None = None,
        answer: Answer | None = None,
    ) -> ToolResult:
        """What `tool` answered; `ToolResult.is_error` if it says that it failed.

        Args:
            tool: its exported name.
            arguments: plain values.
            events: takes its progress and log notifications.
            answer: `async (questions by key) -> results by key`, for what the server asks in the middle of the
                call; without it the server is told that nothing can be asked.

        Raises:
            CallError: it did not answer, or not with a result; `ToolNotGranted` if this agent may not call it.

        """
        agent = self.agent
        if not agent.may_call(tool):
            raise ToolNotGranted(agent.name, tool, agent.tools)
        return await call_tool(
            self._agents.handler, tool, arguments, principal=self.principal, events=events, answer=answer
        )

    def emit(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Tell whoever called this agent through the gateway how far it is; nobody else hears of it.

        Args:
            progress: rises from one to the next; what does not is dropped.
            total: what it rises to, if that is known.
            message: for a person.

        """
        emit(progress, total, message)

    async def ask(self, agent: str, payload: object) -> object:
        """What `agent` answers to `payload`, while this handler stays.

        Raises:
            AgentError: it could not be asked.
            Exception: whatever its handler raised.

        """
        return await converse(self._agents, agent, payload, principal=self.principal, parent=self.branch)

    def handoff(self, target: str, payload: object, keep: Keep | None = None) -> Handoff:
        """A wish to be returned: that `target` goes on with `payload`, and its answer is the answer.

        Args:
            target: the taker's name.
            payload: given to it as it is.
            keep: chooses from the transcript, this agent's step included, what the taker sees; None for all.

        """
        return Handoff(target, payload, keep)

    def can_handoff(self, target: str) -> bool:
        """Whether a handoff to `target` would be taken, as things are now."""
        return target in self._agents and self.hops < self._agents.max_hops


async def converse(
    agents: Agents, name: str, payload: object, *, principal: str = LOCAL, parent: Branch | None = None
) -> object:
    """The answer of agent `name` to `payload`, or of whoever it was handed on to. Always a checkpoint.

    Cancelled while it waits for a turn, no handler starts. What a handler raises comes out as it is, with
    a note of the agents that led there.

    Args:
        agents: among whom.
        name: who is asked.
        payload: given to the handler as it is.
        principal: on whose behalf.
        parent: the branch of the asking handler, if it is one.

    Raises:
        AgentNotFound: no agent has this name.
        Draining: the fabric has ended; its contexts may have been kept.
        HandoffRefused: a handler handed on to an agent that is missing, or once too often.
        CallCycle: waiting for a turn would be waiting for ourselves.
        Overloaded: too many wait for one agent.

    """
    await trio.lowlevel.checkpoint()
    if agents.over:
        raise Draining
    agent = agents.get(name)
    if agent is None:
        raise AgentNotFound(name)
    if parent is None:
        branch, siblings = Branch(None, (name,), 0), agents.roots
    else:
        branch, siblings = Branch(parent, (*parent.path, name), parent.hops), parent.children
    transcript: tuple[Step, ...] = ()
    siblings[branch] = None
    try:
        while True:
            turn = agent.turn
            if not turn.take(branch):
                await turn.wait(branch)
            try:
                answer = await agent.function(Context(agents, branch, agent, principal, transcript), payload)
            except Exception as exc:
                _note(exc, branch, agent)
                raise
            finally:
                turn.release(branch)
            if type(answer) is not Handoff:
                return answer
            taker = _taker(agents, branch, answer)
            transcript = (*transcript, Step(agent.name, payload))
            if answer.keep is not None:
                transcript = tuple(answer.keep(transcript))
            branch.path = (*branch.path, taker.name)
            branch.hops += 1
            agent, payload = taker, answer.payload
            await trio.lowlevel.checkpoint_if_cancelled()
    finally:
        del siblings[branch]


def _taker(agents: Agents, branch: Branch, handoff: Handoff) -> Agent:
    target = handoff.target
    taker = agents.get(target)
    if taker is None:
        raise HandoffRefused(target, "no agent has this name")
    if branch.hops >= agents.max_hops:
        raise HandoffRefused(target, f"{agents.max_hops} handoffs are the most that one ask may take")
    if branch.children:
        raise HandoffRefused(target, f"{branch.path[-1]} is not finished: something that it asked still runs")
    return taker


def _note(exc: Exception, branch: Branch, agent: Agent) -> None:
    """Add the way to the agent that failed, unless an agent below has added its own, longer one."""
    way = " > ".join(branch.path)
    notes: list[str] = getattr(exc, "__notes__", [])
    if not any(note.startswith(f"{way} > ") for note in notes):
        exc.add_note(f"{way}#{agent.generation}")
