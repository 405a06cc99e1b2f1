"""What a fabric can do with its agents."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import trio

from cord_trio.agents.agent import GRACE, Agent
from cord_trio.agents.answering import Answering
from cord_trio.agents.conversation import tell
from cord_trio.agents.elsewhere import Singleton
from cord_trio.agents.monitor import Monitor
from cord_trio.agents.stream import open_stream
from cord_trio.config.agents import AGENT_NAME
from cord_trio.errors import AgentError, AgentNotFound, Draining

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from contextlib import AbstractAsyncContextManager

    from cord_trio.agents.agent import AgentMade, Restart
    from cord_trio.agents.answering import Answer
    from cord_trio.agents.block import Block
    from cord_trio.agents.budget import Budget
    from cord_trio.agents.directory import Agents
    from cord_trio.agents.job import Job, Owner
    from cord_trio.agents.mailbox import Mailbox
    from cord_trio.agents.stream import Events
    from cord_trio.agents.supervisor import Supervisor
    from cord_trio.agents.turn import Sink
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.trace import TraceContext


class Verbs(ABC):
    """The verbs of `Fabric` that are about agents.

    Attributes:
        agents: by name, see `agent`.

    """

    agents: Agents
    _block: Block
    _alone: bool

    @abstractmethod
    def _enter(self) -> None:
        """Accept one more piece of work, or raise why not."""

    @abstractmethod
    def _leave(self) -> None:
        """It has ended."""

    @abstractmethod
    def _export(self, agent: Agent) -> None:
        """List it as a tool."""

    @abstractmethod
    def _unexport(self, name: str) -> None:
        """List it no more, if it is listed."""

    def agent(
        self, name: str, function: AgentMade, *, turn: int = 1, mailbox: Mailbox | None = None,
        tools: Sequence[str] = ("*",), agents: Sequence[str] = ("*",), topics: Sequence[str] = (),
        reentrant: bool = False, supervisor: Supervisor | None = None, restart: Restart = "permanent",
        raises: tuple[type[Exception], ...] = (), repeatable: Sequence[str] = (), grace: float = GRACE,
        deadline: float = math.inf, budget: Budget | None = None, export: bool = False,
    ) -> Agent:  # fmt: skip
        """Make an agent that can be asked under `name`.

        Args:
            name: up to 64 letters, digits, `_`, `-` and `.`.
            function: `async (context, payload) -> answer`; the answer may be a `context.handoff(...)`. A class
                whose instances are such functions makes an agent with state, made anew after a crash.
            turn: how many of its handlers run at once; the others wait in order.
            mailbox: a queue and a task of its own.
            tools: globs over exported names: the tools it may call.
            agents: globs over names: the agents it may ask, tell and hand to.
            topics: globs over the topics whose broadcasts its mailbox takes.
            reentrant: a chain of asks that it is part of may ask it again.
            supervisor: who makes it anew, and what else with it.
            restart: when it is made anew: always, after a crash ("transient"), or never ("temporary"); "elsewhere"
                is for `singleton`: always, and on another node if this one is lost, with the state after its last run.
            raises: exceptions that are answers, and no crash.
            repeatable: globs over the tools that may be called again when a conversation is resumed.
            grace: seconds for a handler to end when its agent is stopped, or its asker has gone.
            deadline: seconds for each run.
            budget: of each run, and everything below it.
            export: whether it is listed as a tool too, `agent__NAME`, for all who can call tools.

        Raises:
            ValueError: the name is taken, or is none.

        """
        if restart == "elsewhere" and name not in self.agents.singletons and not self._alone:
            raise ValueError(
                f"agent {name!r}: restart='elsewhere' is for agents of which there is one: use `singleton`"
            )
        agent = self.agents.add(
            name, function, turn=turn, mailbox=mailbox, tools=tools, agents=agents, topics=topics,
            reentrant=reentrant, supervisor=supervisor, restart=restart, raises=raises, repeatable=repeatable,
            grace=grace, deadline=deadline, budget=budget,
        )  # fmt: skip
        if export:
            self._export(agent)
        return agent

    async def ask(
        self, name: str, payload: object = None, *, budget: Budget | None = None, trace: TraceContext | None = None,
        answer: Answer | None = None,
    ) -> object:  # fmt: skip
        """What agent `name` answers to `payload`, or whoever it hands the work to.

        The handler runs in this task: the deadline and the cancellation of the caller reach it natively,
        and what it raises comes out as it is. An agent with a mailbox is asked on the same terms, and its
        crash comes out as `AgentCrashed`.

        Args:
            name: the agent, or `name#generation`.
            payload: given to it as it is.
            budget: what it may use.
            trace: that it is part of; None for none, or for a new one where the fabric is `traced`.
            answer: `async (questions by key) -> results by key`, for what its handlers ask with `elicit` and
                `inquire`.

        Raises:
            AgentError: it could not be asked.
            Draining: the fabric takes no new work.
            Overloaded: too much is running.

        """
        return await self._ask(name, payload, budget, None if answer is None else Answering(answer), trace)

    async def _ask(
        self, name: str, payload: object, budget: Budget | None, sink: Sink | None, trace: TraceContext | None
    ) -> object:
        self._enter()
        try:
            agents = self.agents
            if budget is None:
                answer = agents.converse(name, payload, sink=sink, trace=trace)
            else:
                answer = agents.ask_within(budget, name, payload, sink=sink, trace=trace)
            if self._block.holds_this_task():
                return await answer
            return await agents.serve(name, answer)
        finally:
            self._leave()

    def singleton(self, name: str, function: AgentMade, **options: Json) -> None:
        """Stand by for agent `name`, of which there is one in the mesh: it is here as long as this node owns it.

        Without a mesh it is here at once. Where its owner is lost, another that stands by makes it anew, once the
        lease of that has ended; `ctx.fence` tells owners apart.

        Args:
            name: of 1 to 64 letters, digits, `_` and `-`.
            function: as `agent` takes it.
            options: likewise.

        Raises:
            ValueError: the name is taken, or is none.

        """
        agents = self.agents
        if name in agents or name in agents.singletons:
            raise ValueError(f"there is an agent named {name!r} already")
        if not AGENT_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for an agent of which there is one: use letters, digits, `_`, `-`")
        if self._alone:
            self.agent(name, function, **options)
            return
        if options.get("restart") == "elsewhere":  # what cannot be is refused now
            reentrant, turn = options.get("reentrant", False), options.get("turn", 1)
            Agent(name, function, restart="elsewhere", turn=turn, reentrant=reentrant)
        agents.singletons[name] = Singleton(function, options)
        if agents.elsewhere is not None:
            agents.elsewhere.changed()

    async def move(self, name: str, node: str = "") -> str:
        """Let agent `name`, of which there is one in the mesh, go on elsewhere; returns then, and on which node.

        `node` is one that stands by for it; or labels, as `region=north`, for one of those whose labels are so, and
        it stays where they fit already; or empty for another than now. Of several, one with less to do is chosen.

        What runs has half a minute to end by itself; whoever waits for it, and each message, is led there. Its class
        has `state() -> JSON`, called when nothing runs, and `restore(state)`, called before anything does.
        Cancelled, it goes on all the same.

        Raises:
            AgentError: it was not moved, and goes on where it was.
            CallError: whoever has it cannot be reached; `NoOwner` if nobody has it.

        """
        if self.agents.elsewhere is None:
            raise AgentError(f"agent {name!r} cannot be moved: this fabric is not in a mesh")
        return await self.agents.elsewhere.move(name, node)

    async def remove(self, name: str) -> None:
        """Stop agent `name` for good, within its grace, and forget it; it is no tool any more.

        Raises:
            AgentNotFound: there is none.

        """
        stood_by = self.agents.singletons.pop(name, None)
        if stood_by is not None and self.agents.elsewhere is not None:
            self.agents.elsewhere.changed()  # whoever has made it ends it
        elif name in self.agents:
            await self.retire(name)
        elif stood_by is None:
            raise AgentNotFound(name)
        await trio.lowlevel.checkpoint()

    async def retire(self, name: str) -> None:
        """Stop agent `name` here, within its grace. Raises `AgentNotFound` if it is not."""
        self._unexport(name)
        await self.agents.remove(name)

    def tell(self, name: str, payload: object = None, *, trace: TraceContext | None = None) -> Awaitable[bool]:
        """Put `payload` into the mailbox of agent `name`; returns whether it was taken.

        Raises:
            AgentError: it has none, or could not be told.
            Overloaded: it is full, and refuses then.
            Draining: the fabric takes no new work.

        """
        if self.agents.draining.is_set():
            raise Draining
        return tell(self.agents, name, payload, trace=trace)

    def broadcast(self, topic: str, payload: object = None) -> int:
        """Put `payload` into the mailbox of every agent that takes `topic`; returns how many took it."""
        if self.draining.is_set():
            raise Draining
        return self.agents.broadcast(topic, payload)

    def stream(
        self, name: str, payload: object = None, *, budget: Budget | None = None, trace: TraceContext | None = None
    ) -> AbstractAsyncContextManager[Events]:
        """As `ask`, for who wants to see what the agent emits.

        `async with fabric.stream(…) as events: async for value in events: …`, then `await events.result()`.
        Leaving the block early cancels the ask.
        """
        return open_stream(lambda sink: self._ask(name, payload, budget, sink, trace))

    async def start(
        self, name: str, payload: object = None, *, owner: Owner = "fabric", deadline: float | None = None,
        budget: Budget | None = None, trace: TraceContext | None = None,
    ) -> Job:  # fmt: skip
        """A conversation that outlives this scope, on purpose; `attach` finds it by its id.

        Args:
            name: the agent.
            payload: JSON, if the journal is a file.
            owner: "fabric": it lives until it is done, or the fabric's block ends; or a nursery.
            deadline: seconds until it is cancelled.
            budget: what it may use.
            trace: that it is part of.

        Raises:
            AgentNotFound: there is no such agent.
            Draining: the fabric takes no new work.
            Overloaded: too many run.

        """
        return await self.agents.jobs.start(name, payload, owner=owner, deadline=deadline, budget=budget, trace=trace)

    def attach(self, id: str) -> Job:
        """The started conversation with this id. Raises `JobNotFound`."""
        return self.agents.jobs.attach(id)

    async def resume(self, id: str | None = None, *, force: bool = False) -> list[Job]:
        """Go on with the conversations that the journal has and that do not run; see `Jobs.resume`.

        Those that may have called a tool since their last checkpoint are `in_doubt` instead, unless `force`.
        """
        return await self.agents.jobs.resume(id, force=force)

    def monitor(self, name: str) -> Monitor:
        """What becomes of an agent: `with fabric.monitor(name) as notices`."""
        return Monitor(name, self.agents.monitors)

    @property
    def draining(self) -> trio.Event:
        """Set once no new work is taken."""
        return self.agents.draining
