"""All agents of one fabric: their names, what they share, and the verbs upon them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from cord_trio.agents.agent import EVERYTHING, GRACE, MAX_HOPS, PLACE, Agent, Step, base_of
from cord_trio.agents.budget import UNLIMITED, Account, Budget
from cord_trio.agents.conversation import broadcast, carry_on, converse, tell
from cord_trio.agents.job import Jobs
from cord_trio.agents.journal import MemoryJournal
from cord_trio.agents.monitor import Monitor, Monitors, Notice
from cord_trio.agents.resident import Resident
from cord_trio.agents.supervisor import Group, Supervisor
from cord_trio.call import LOCAL
from cord_trio.cell import Timer
from cord_trio.counters import Counters
from cord_trio.errors import (
    AgentDown,
    AgentError,
    AgentGone,
    AgentNotFound,
    BudgetExceeded,
    Overloaded,
    RestartIntensity,
)
from cord_trio.trace import new_trace, span_ids

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Iterator
    from random import Random

    from cord_trio.agents.agent import AgentMade, Restart
    from cord_trio.agents.context import Context
    from cord_trio.agents.elsewhere import Elsewhere, Singleton
    from cord_trio.agents.job import Job
    from cord_trio.agents.journal import Journal
    from cord_trio.agents.mailbox import Mailbox
    from cord_trio.agents.turn import Branch, Sink
    from cord_trio.call import Handler
    from cord_trio.errors import DrainTimeout
    from cord_trio.registry import Snapshot
    from cord_trio.trace import RunWatch, TraceContext

T = TypeVar("T")

ENDED: Final = "the fabric's block has ended"
"""Why those are cancelled that would outlive it."""

MAX_FORWARDED: Final = 1024
"""Handoffs of messages that nobody waits for, under way at once."""


class Agents(Mapping[str, Agent]):
    """All agents of one fabric by name, and what they act upon. `open_agents` makes one that can keep tasks.

    Attributes:
        by_name: all of them; changed by `add` and `remove` alone.
        handler: takes their calls.
        snapshot: returns the registry's newest snapshot.
        max_hops: handoffs that one ask may take.
        over: whether nobody can be asked any more.
        roots: the asks under way that no agent made.
        counters: what happened.
        timer: for their timers.
        rng: for back-off.
        monitors: who looks at whom.
        account: of everything; every budget is part of it.
        traced: whether an ask that nobody gave a trace begins one.
        watch: is told of each run of a handler; None for nobody, and then it costs nothing.
        spans: ids for the spans of whoever runs.
        draining: set once nothing new is begun, and nothing restarted.
        nursery: where agents with a task live; None if there can be none.
        failure: why the fabric must end.
        untold: messages that were told and are not over.
        quiet: set when those come to none; None if nobody waits for that.
        served: the scopes of asks that came from outside: as calls of tools, and of tasks that may outlive us.
        cut_off: what those are told that did not end within the grace of a drain; None before.
        elsewhere: the agents of other nodes; None where there are none.
        singletons: the agents of which there is one in the mesh that may be here.

    """

    def __init__(
        self,
        handler: Handler,
        snapshot: Callable[[], Snapshot],
        *,
        counters: Counters | None = None,
        timer: Timer | None = None,
        rng: Random | None = None,
        max_hops: int = MAX_HOPS,
        traced: bool = False,
        watch: RunWatch | None = None,
    ) -> None:
        self.by_name: dict[str, Agent] = {}
        self.handler = handler
        self.snapshot = snapshot
        self.max_hops = max_hops
        self.over = False
        self.roots: dict[Branch, None] = {}
        self.counters = counters or Counters()
        self.timer = Timer() if timer is None else timer  # an empty one is false
        self.rng = rng or random.Random()
        self.traced = traced
        self.watch = watch
        self.spans = span_ids(self.rng.getrandbits)
        self.monitors = Monitors(self.counters)
        self.account = Account(UNLIMITED, "")
        self.draining = trio.Event()
        self.failure: RestartIntensity | None = None
        self.untold = 0
        self.quiet: trio.Event | None = None
        self.served: set[trio.CancelScope] = set()
        self.cut_off: DrainTimeout | None = None
        self.nursery: trio.Nursery | None = None
        self.elsewhere: Elsewhere | None = None
        self.singletons: dict[str, Singleton] = {}
        self._jobs: Jobs | None = None
        self._forwarded = 0
        self._groups: dict[int, Group] = {}

    def add(
        self, name: str, function: AgentMade, *, turn: int = 1,
        tools: Sequence[str] = EVERYTHING, agents: Sequence[str] = EVERYTHING, reentrant: bool = False,
        mailbox: Mailbox | None = None, supervisor: Supervisor | None = None, restart: Restart = "permanent",
        raises: tuple[type[Exception], ...] = (), repeatable: Sequence[str] = (), topics: Sequence[str] = (),
        grace: float = GRACE, deadline: float = math.inf, budget: Budget | None = None,
    ) -> Agent:  # fmt: skip
        """A new agent.

        Args:
            name: up to 64 letters, digits, `_`, `-` and `.`.
            function: what it does, given a `Context` and the payload; what it returns is the answer. A class
                makes an agent with state: its instances are called.
            turn: how many of its handlers run at once.
            tools: globs over exported names: the tools that it may call.
            agents: globs over names: the agents that it may ask, tell and hand to.
            reentrant: a chain that it is part of may ask it again.
            mailbox: it gets a queue and a task of its own.
            supervisor: who restarts it, and what else with it; None for itself alone.
            restart: when it is made anew: always, after a crash, or never.
            raises: exceptions that are answers: they reach the asker as themselves, and are no crash.
            repeatable: globs over tools that may be called again when a conversation is resumed.
            topics: globs over topics: the broadcasts that it takes, for which it needs a mailbox.
            grace: seconds that a handler has to end when the agent is stopped, or its asker gone.
            deadline: seconds for each run.
            budget: for each run, and everything below it.

        Raises:
            ValueError: the name is taken, or is none.

        """
        if name in self.by_name:
            raise ValueError(f"there is an agent named {name!r} already")
        if topics and mailbox is None:
            raise ValueError(f"agent {name!r} needs a mailbox to take broadcasts")
        agent = Agent(
            name, function, turn=turn, tools=tools, agents=agents, reentrant=reentrant, restart=restart,
            raises=raises, repeatable=repeatable, topics=topics, grace=grace, deadline=deadline, budget=budget,
        )  # fmt: skip
        if agent.made or mailbox is not None or supervisor is not None:
            if self.nursery is None:
                raise AgentError(f"agent {name!r} needs a task, and there is no fabric to keep it")
            group = self._group(supervisor)
            agent.plain = False
            agent.resident = Resident(self, agent, mailbox, group)
            group.add(agent.resident)
        if self.watch is not None:
            agent.plain = False
        self.by_name[name] = agent
        if self.elsewhere is not None:
            self.elsewhere.changed()
        return agent

    async def remove(self, name: str) -> None:
        """Stop agent `name` for good, within its grace, and forget it.

        Raises:
            AgentNotFound: there is none.

        """
        agent = self.by_name.get(name)
        if agent is None:
            raise AgentNotFound(name)
        if agent.resident is not None:
            await agent.resident.group.remove(agent.resident)
        self.by_name.pop(name, None)
        if self.elsewhere is not None:
            self.elsewhere.changed()
        await trio.lowlevel.checkpoint()

    def find(self, address: str) -> tuple[Agent, int]:
        """The agent at `name` or `name#generation`, and the generation that is meant; 0 for any.

        Where there is none here it is one of another node, if one has it; with `@node` only that one.

        Raises:
            AgentNotFound: there is none, or not in that generation.

        """
        agent = self.by_name.get(address)
        if agent is not None:
            return agent, 0
        if address.endswith(PLACE):  # of no node, which is no agent of any
            raise AgentNotFound(address)
        elsewhere = self.elsewhere
        if elsewhere is not None:
            there, _, place = address.partition(PLACE)
            if place and elsewhere.covers(place) and (base_of(there) in self.by_name or place == elsewhere.here):
                return self.find(there)
            distant = None if base_of(address) in self.by_name and not place else elsewhere.find(address)
            if distant is not None:
                return distant, 0
        name, _, generation = address.partition("#")
        agent = self.by_name.get(name)
        if agent is None or not generation.isascii() or not generation.isdigit():
            raise AgentNotFound(address)
        if int(generation) != agent.generation:
            raise AgentGone(address, agent.generation)
        return agent, agent.generation

    def taker(self, target: str) -> Agent | None:
        """The agent that a handoff to `target` goes to, here or on another node; None if there is none."""
        agent = self.by_name.get(target)
        if agent is None and self.elsewhere is not None and "#" not in target:
            try:
                agent, _ = self.find(target)
            except AgentNotFound:
                pass
        return agent

    async def stop(self) -> None:
        """Stop the agents that have tasks, the last one added first, each within its grace."""
        for agent in reversed(list(self.by_name.values())):
            if agent.resident is not None:
                await agent.resident.retire("the fabric ends")
        await trio.lowlevel.checkpoint()

    # Verbs; `Context` and `Fabric` have the same, with what they know

    def converse(
        self, name: str, payload: object, *, principal: str = LOCAL, parent: Branch | None = None,
        account: Account | None = None, sink: Sink | None = None, job: Job | None = None,
        transcript: tuple[Step, ...] = (), trace: TraceContext | None = None,
    ) -> Awaitable[object]:  # fmt: skip
        """See the function of this name."""
        return converse(
            self, name, payload, principal=principal, parent=parent, account=account, sink=sink, job=job,
            transcript=transcript, trace=trace,
        )  # fmt: skip

    async def ask_within(
        self, budget: Budget, name: str, payload: object, *, principal: str = LOCAL, parent: Branch | None = None,
        account: Account | None = None, sink: Sink | None = None, trace: TraceContext | None = None,
    ) -> object:  # fmt: skip
        """As `converse`, with `budget` of what `account` has."""
        account = Account(budget, name, account or self.account)
        answer = self.converse(
            name, payload, principal=principal, parent=parent, account=account, sink=sink, trace=trace
        )
        if budget.seconds is None:
            return await answer
        with trio.CancelScope(deadline=account.deadline):
            return await answer
        raise BudgetExceeded("seconds", budget.seconds, account.last)

    def tell(
        self, name: str, payload: object, *, principal: str = LOCAL, parent: Branch | None = None,
        account: Account | None = None, trace: TraceContext | None = None,
    ) -> Awaitable[bool]:  # fmt: skip
        """See the function of this name."""
        return tell(self, name, payload, principal=principal, parent=parent, account=account, trace=trace)

    def broadcast(
        self, topic: str, payload: object, *, principal: str = LOCAL, account: Account | None = None,
        trace: TraceContext | None = None,
    ) -> int:  # fmt: skip
        """See the function of this name."""
        return broadcast(self, topic, payload, principal=principal, account=account, trace=trace)

    def new_trace(self) -> TraceContext:
        """A trace that begins here."""
        return new_trace(self.rng.getrandbits, next(self.spans))

    def monitor(self, name: str) -> Monitor:
        """What becomes of an agent: `with agents.monitor(name) as notices`."""
        return Monitor(name, self.monitors)

    @property
    def jobs(self) -> Jobs:
        """The started conversations."""
        if self._jobs is None:
            raise AgentError("there is no fabric to own a conversation")
        return self._jobs

    def forward(self, giver: Agent, context: Context, payload: object, answer: object) -> None:
        """Go on with the handoff that answered a message which nobody waits for."""
        if self._forwarded >= MAX_FORWARDED:
            self.counters.add("agents.told_failed")
            refused = Overloaded("agents.forwarded", MAX_FORWARDED)
            self.monitors.tell(Notice(giver.name, giver.generation, "handoff_refused", refused))
            return
        self._forwarded += 1
        self.untold += 1
        self.jobs.nursery.start_soon(self._forward, giver, context, payload, answer)

    async def _forward(self, giver: Agent, context: Context, payload: object, handoff: object) -> None:
        try:
            await carry_on(self, giver, context, payload, handoff)
        finally:
            self._forwarded -= 1
            self.untell()

    # Life

    def live_in(self, nursery: trio.Nursery, jobs: Jobs) -> None:
        """From now on agents may have tasks, in `nursery`, and conversations be started."""
        self.nursery = nursery
        self._jobs = jobs

    def fail(self, failure: RestartIntensity) -> None:
        """A supervisor gave up: the fabric must end."""
        self.failure = self.failure or failure
        self.jobs.nursery.cancel_scope.cancel(str(failure))

    def end(self) -> None:
        """All tasks have ended: whoever waits for an agent learns that it is down, and nobody asks any more.

        What runs in tasks that are not ours is cancelled.
        """
        self.over = True
        for scope in self.served:
            scope.cancel(ENDED)
        if self._jobs is not None:
            for job in tuple(self._jobs.running.values()):
                job.cut(ENDED)
        for agent in self.by_name.values():
            if agent.resident is not None:
                agent.resident.go_down("the fabric ended")
                agent.resident.fail_waiting()

    async def serve(self, name: str, answer: Awaitable[T]) -> T:
        """What `answer` gives to a task that may outlive us, unless we end first: then it is cancelled.

        Raises:
            DrainTimeout: it had the grace of a drain.
            AgentDown: we ended at once.

        """
        with trio.CancelScope() as scope:
            self.served.add(scope)
            try:
                return await answer
            finally:
                self.served.discard(scope)
        if self.cut_off is not None:
            raise self.cut_off.fresh("unknown")
        raise AgentDown(name, ENDED)

    def cut(self, why: DrainTimeout) -> None:
        """End what came from outside or was started: it had the grace of a drain."""
        self.cut_off = why
        for scope in self.served:
            scope.cancel(why.reason)
        for job in tuple(self.jobs.running.values()):
            job.cut(why.reason)

    def untell(self) -> None:
        """A message that nobody waits for is over."""
        self.untold -= 1
        if not self.untold and self.quiet is not None:
            self.quiet.set()
            self.quiet = None

    async def wait_quiet(self) -> None:
        """Return once no message is under way that nobody waits for."""
        while self.untold:
            if self.quiet is None:
                self.quiet = trio.Event()
            await self.quiet.wait()
        await trio.lowlevel.checkpoint()

    def residents(self) -> Iterator[Agent]:
        """The agents that have a task, group by group."""
        for group in self._groups.values():
            for member in group.members:
                if isinstance(member, Resident):
                    yield member.agent

    def _group(self, supervisor: Supervisor | None) -> Group:
        if supervisor is None:
            return Group(self, Supervisor(gives_up="stop"))
        group = self._groups.get(id(supervisor))
        if group is None:
            parent = None if supervisor.parent is None else self._group(supervisor.parent)
            group = self._groups[id(supervisor)] = Group(self, supervisor, parent)
        return group

    def __getitem__(self, name: str) -> Agent:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)


@asynccontextmanager
async def open_agents(
    handler: Handler, snapshot: Callable[[], Snapshot], *, counters: Counters | None = None, timer: Timer | None = None,
    rng: Random | None = None, journal: Journal | None = None, max_hops: int = MAX_HOPS, traced: bool = False,
    watch: RunWatch | None = None,
) -> AsyncGenerator[Agents, None]:  # fmt: skip
    """Agents that can have tasks, and conversations that can be started, for as long as the block runs.

    Left normally, conversations are cancelled, then the agents stop, the last one added first, each within its
    grace. An error in the block cancels all at once, and leaves as it was raised; so does `RestartIntensity`.

    Args:
        handler: takes their calls.
        snapshot: returns the registry's newest snapshot.
        counters: shared with the fabric.
        timer: likewise; whoever gives one runs it. None for one of their own.
        rng: for back-off and ids.
        journal: keeps conversations; None for memory.
        max_hops: handoffs that one ask may take.
        traced: whether an ask that nobody gave a trace begins one.
        watch: is told of each run of a handler.

    """
    agents = Agents(
        handler, snapshot, counters=counters, timer=timer, rng=rng, max_hops=max_hops, traced=traced, watch=watch
    )
    keeper: Journal = MemoryJournal() if journal is None else journal
    block_error: Exception | None = None
    try:
        async with keeper as opened, trio.open_nursery() as residents:
            if timer is None:
                residents.start_soon(agents.timer.run)
            async with trio.open_nursery() as conversations:
                agents.live_in(residents, Jobs(agents, opened, conversations))
                try:
                    yield agents
                # Cancelled must travel through the nurseries: it may be theirs.
                except Exception as exc:
                    block_error = exc
                agents.draining.set()
                conversations.cancel_scope.cancel("the fabric's block has ended")
            agents.draining.set()
            if block_error is None:
                await agents.stop()
            residents.cancel_scope.cancel("the fabric's block has ended")
    finally:
        agents.draining.set()
        agents.end()
    if block_error is not None:
        raise block_error
    if agents.failure is not None:
        raise agents.failure
