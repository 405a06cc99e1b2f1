"""What a handler is given for one run: who asks, what it may use, and what it can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from cord_trio.agents.agent import Handoff
from cord_trio.agents.answering import Question, asker_of
from cord_trio.agents.budget import charge
from cord_trio.agents.crew import open_crew
from cord_trio.agents.exporting import CALLING, EXPORTED
from cord_trio.agents.monitor import Monitor
from cord_trio.agents.stream import open_stream
from cord_trio.agents.tools import call_tool
from cord_trio.agents.turn import Branch
from cord_trio.errors import AgentError, AgentNotGranted, CallError, InputNeeded, NoMailbox, ToolNotGranted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager

    from cord_trio.agents.agent import Agent, Keep, Step
    from cord_trio.agents.answering import Answer
    from cord_trio.agents.budget import Account, Budget
    from cord_trio.agents.crew import Crew
    from cord_trio.agents.directory import Agents
    from cord_trio.agents.job import Job, Owner
    from cord_trio.agents.life import Alarm
    from cord_trio.agents.stream import Events
    from cord_trio.agents.turn import Sink
    from cord_trio.call import Call, EventSink, Handler, Outcome
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.protocol.mcp import ToolResult
    from cord_trio.registry import Route, Snapshot
    from cord_trio.trace import TraceContext


class Context(msgspec.Struct, eq=False):
    """What a handler is given for one run. It stays as it is, and is of use until the handler returns.

    Another task may use it only in a nursery that the handler opened.

    A struct, since one is made for each handoff; and what the branch knows, which stays as it is while a handler
    runs, is looked up there.

    Attributes:
        branch: the ask that this run belongs to, for whoever draws the tree.
        agent: whose handler this is.
        transcript: what the agents before this one left to see, the oldest first.
        snapshot: the tools that existed when the handler started.

    """

    _agents: Agents
    branch: Branch
    agent: Agent
    transcript: tuple[Step, ...]
    snapshot: Snapshot

    @property
    def budget(self) -> Account:
        """What this run may use, and has."""
        return (self.branch.account or self._agents.account).seen_by(self.agent.name)

    @property
    def chain(self) -> tuple[str, ...]:
        """The names of the agents that led here, this one last."""
        return self.branch.path

    @property
    def hops(self) -> int:
        """Handoffs so far."""
        return self.branch.hops

    @property
    def fence(self) -> int:
        """Of an agent of which there is one in the mesh: higher with each owner, so that an old one can be refused."""
        return self.agent.fence

    @property
    def principal(self) -> str:
        """On whose behalf."""
        return self.branch.principal

    @property
    def trace(self) -> TraceContext | None:
        """The trace that this run is part of, and its span; None if there is none."""
        branch = self.branch
        return None if branch.trace is None else branch.trace.at(branch.span)

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

    # Tools

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
            BudgetExceeded: the budget does not hold one more call, or not its arguments.

        """
        agent = self.agent
        if not agent.may_call(tool):
            raise ToolNotGranted(agent.name, tool, agent.tools)
        handler = self._agents.handler
        if tool.startswith(EXPORTED):
            handler = self._asked_by_us(handler)
        account = self.branch.account
        if account is not None and account.parent is not None:  # a budget was given
            handler = charge(account, agent.name)(handler)
        job = self.branch.job
        if job is None or agent.may_repeat(tool):
            return await call_tool(
                handler, tool, arguments, principal=self.principal, events=events, answer=answer, trace=self.trace
            )
        await job.calling(tool)
        try:
            return await call_tool(
                handler, tool, arguments, principal=self.principal, events=events, answer=answer, trace=self.trace
            )
        except CallError as exc:
            if exc.executed != "no" or answer is not None:  # it is known of the last round alone
                raise
            failure = exc
        finally:
            job.called(tool)
        await job.not_called(tool)
        raise failure

    def _asked_by_us(self, handler: Handler) -> Handler:
        """`handler`, for a tool that is an agent: it is asked below this run, as by `ask`."""

        async def asking(call: Call) -> Outcome:
            token = CALLING.set(self.branch)
            try:
                return await handler(call)
            finally:
                CALLING.reset(token)

        return asking

    # Agents

    async def ask(self, agent: str, payload: object = None, *, budget: Budget | None = None) -> object:
        """What `agent` answers to `payload`, while this handler stays.

        Args:
            agent: its name, or `name#generation`; `name@node` for that of another node.
            payload: given to it as it is; JSON, where it goes to another node.
            budget: what it may use of what this run has; None for all.

        Raises:
            AgentError: it could not be asked; `AgentCrashed` if it has a mailbox and failed.
            Exception: whatever its handler raised.

        """
        return await self._ask(agent, payload, budget)

    async def tell(self, agent: str, payload: object = None) -> bool:
        """Put `payload` into the mailbox of `agent`; returns whether it was taken. Waits for room if it must.

        The message uses this run's budget, but neither its deadline nor its scope.

        Raises:
            AgentError: it cannot be told.
            Overloaded: its mailbox is full, and refuses then.

        """
        self._require(agent)
        branch = self.branch
        return await self._agents.tell(
            agent, payload, principal=branch.principal, parent=branch, account=branch.account
        )

    def broadcast(self, topic: str, payload: object = None) -> int:
        """Put `payload` into the mailbox of every agent that takes `topic`; returns how many took it."""
        return self._agents.broadcast(
            topic, payload, principal=self.principal, account=self.branch.account, trace=self.branch.trace
        )

    def handoff(self, target: str, payload: object = None, keep: Keep | None = None) -> Handoff:
        """A wish to be returned: that `target` goes on with `payload`, and its answer is the answer.

        Args:
            target: the taker's name.
            payload: given to it as it is.
            keep: chooses from the transcript, this agent's step included, what the taker sees; None for all.

        """
        return Handoff(target, payload, keep)

    def can_handoff(self, target: str) -> bool:
        """Whether a handoff to `target` would be taken, as things are now."""
        taker = self._agents.taker(target)
        return (
            taker is not None
            and self.hops < self._agents.max_hops
            and self.agent.may_ask(target)
            and (taker.resident is None or taker.resident.down is None)
            and self.budget.left("hops") >= 1
        )

    def open_nursery(self) -> AbstractAsyncContextManager[Crew]:
        """A block in which other agents work beside this handler: `async with ctx.open_nursery() as crew`.

        `crew.spawn(name, payload)` asks one in a task of its own. The block ends when all have; the first
        failure cancels the others and leaves the block as itself.
        """
        return open_crew(self._ask, self._agents.counters)

    def stream(
        self, agent: str, payload: object = None, *, budget: Budget | None = None
    ) -> AbstractAsyncContextManager[Events]:
        """As `ask`, for who wants to see what it emits: `async with ctx.stream(…) as events`."""

        async def ask(sink: Sink) -> object:
            return await self._ask(agent, payload, budget, sink)

        return open_stream(ask)

    async def emit(self, value: object) -> None:
        """Show `value` to whoever asked with `stream`, and wait while that one is behind.

        Whoever called this agent as a tool, over MCP, sees it as progress if it is a number, or an object
        `{"progress": number, "total": number, "message": text}`, of which the last two may be missing; what does
        not rise from one to the next is dropped. Nobody else hears of it.
        """
        sink = self.branch.sink
        if sink is None:
            await trio.lowlevel.checkpoint()
        else:
            await sink(value)

    async def inquire(self, questions: Mapping[str, Question]) -> Mapping[str, Json]:
        """What whoever asked from outside answers: the result of each question under its key.

        That is who called the agent as a tool, or `Fabric.ask` with `answer`; other agents in between are passed
        by. It has the shape of `answer`: `ctx.call(tool, …, answer=ctx.inquire)` puts what a server asks to the
        same person. The turn is held meanwhile.

        Args:
            questions: by keys of your choice; `cord_trio.agents.Question(method, params)`, of the methods
                `elicitation/create`, `sampling/createMessage` and `roots/list` (MCP 2026-07-28).

        Raises:
            InputNeeded: nobody is there, or it cannot be asked that.
            CallError: it was not answered.

        """
        asker = asker_of(self.branch)
        if asker is not None:
            return await asker.inquire(questions)
        await trio.lowlevel.checkpoint()
        raise InputNeeded(self.agent.name, sorted({each.method for each in questions.values()}))

    async def elicit(self, message: str, schema: Mapping[str, Json]) -> Mapping[str, Json] | None:
        """What the person behind `inquire` fills into a form; None if she declines, or does not answer.

        Args:
            message: what she is asked.
            schema: of the form: `{"type": "object", "properties": {…}, "required": […]}`, of texts, numbers,
                booleans and choices alone (MCP 2026-07-28, elicitation). A client whose answer does not fit it is
                told so, and may answer again.

        Raises:
            InputNeeded: nobody is there, or forms cannot be shown.

        """
        form = {"mode": "form", "message": message, "requestedSchema": schema}
        answer = (await self.inquire({"form": Question("elicitation/create", form)})).get("form")
        if not isinstance(answer, dict) or answer.get("action") != "accept":
            return None
        content = answer.get("content")
        return content if isinstance(content, dict) else {}

    async def start(
        self, agent: str, payload: object = None, *, owner: Owner = "fabric", deadline: float | None = None
    ) -> Job:
        """A conversation that outlives this run; see `Fabric.start`. It has what budget this run has."""
        self._require(agent)
        job = self.branch.job
        if job is not None:
            await job.calling(f"start {agent}")
        try:
            return await self._agents.jobs.start(
                agent, payload, owner=owner, deadline=deadline, principal=self.principal, account=self.branch.account,
                trace=self.trace,
            )  # fmt: skip
        finally:
            if job is not None:
                job.called(f"start {agent}")

    def monitor(self, agent: str) -> Monitor:
        """What becomes of `agent`: `with ctx.monitor(name) as notices`, then `async for notice in notices`."""
        self._require(agent)
        return Monitor(agent, self._agents.monitors)

    # Itself

    def after(self, seconds: float, payload: object = None) -> Alarm:
        """A message to this agent itself in `seconds`; returned so that it can be cancelled. A restart forgets it.

        Raises:
            NoMailbox: it has none.
            Overloaded: too many are to come.

        """
        resident = self.agent.resident
        if resident is None or resident.post is None:
            raise NoMailbox(self.agent.name)
        branch = Branch(None, (self.agent.name,), 0, self.principal, self.branch.account)
        branch.follow(self.branch.trace, self._agents.spans)
        return resident.post.after(seconds, branch, payload)

    def stop(self) -> None:
        """End this agent when this run has: `restart` says whether it is made anew.

        Raises:
            AgentError: it has no task, so there is nothing to end.

        """
        if self.agent.resident is None:
            raise AgentError(f"agent {self.agent.name!r} is a function: there is nothing to stop")
        self.agent.resident.finish()

    async def checkpoint(self, value: object) -> None:
        """Keep `value` in the journal, for when this conversation is resumed after a restart.

        Raises:
            AgentError: nobody started this conversation, or this agent was asked by another.
            TypeError: the journal cannot write such a value.

        """
        job = self.branch.job
        if job is None or self.branch.parent is not None:
            raise AgentError("only the agents of a started conversation, and not those that they ask, have checkpoints")
        await job.checkpoint(value)

    @property
    def restored(self) -> object:
        """The last checkpoint of the conversation before this run; None if there is none."""
        job = self.branch.job
        return None if job is None or self.branch.parent is not None else job.restored

    def _require(self, agent: str) -> None:
        mine = self.agent
        if not mine.every_agent and not mine.may_ask(agent):
            raise AgentNotGranted(mine.name, agent, mine.agents)

    async def _ask(self, agent: str, payload: object, budget: Budget | None = None, sink: Sink | None = None) -> object:
        self._require(agent)
        principal = self.branch.principal
        if budget is None:
            return await self._agents.converse(
                agent, payload, principal=principal, parent=self.branch, account=self.branch.account, sink=sink
            )
        return await self._agents.ask_within(
            budget, agent, payload, principal=principal, parent=self.branch, account=self.branch.account, sink=sink
        )
