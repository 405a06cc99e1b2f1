"""The fabric: one registry, one nursery tree, and everything built and nested in it. No logic of its own.

The nesting is the shutdown plan: the user's block ends first, then conversations, agents, links (each
closes its sessions and children), and the core that they all stand on.
"""

from __future__ import annotations

import math
import os
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from cord_trio import layers
from cord_trio.agents import GRACE, Monitor, call_tool, open_agents
from cord_trio.agents.stream import open_stream
from cord_trio.call import LOCAL, Error, stack
from cord_trio.cell import Timer
from cord_trio.config import Config
from cord_trio.counters import Counters
from cord_trio.errors import Draining, Overloaded, SourceDown, ToolNotFound
from cord_trio.link import Link, Surroundings
from cord_trio.observe import Node
from cord_trio.protocol import jsonrpc
from cord_trio.registry import Registry
from cord_trio.transports.guardian import open_guardian
from cord_trio.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from random import Random

    from cord_trio.agents import (
        Agent,
        AgentMade,
        Agents,
        Budget,
        Events,
        Job,
        Journal,
        Mailbox,
        Restart,
        Supervisor,
    )
    from cord_trio.agents.job import Owner
    from cord_trio.agents.turn import Sink
    from cord_trio.call import Call, EventSink, Handler, Outcome
    from cord_trio.config import Source
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.protocol.mcp import ToolResult
    from cord_trio.protocol.tools import Annotations

LAST_CALLS: Final = 3.0
"""Seconds for calls made from outside the fabric's block to end, once its links have."""

STARTS_PER_CORE: Final = 2
"""Interpreters that start at once, for each processor."""


class Fabric:
    """A running fabric. Get one from `open_fabric`.

    Attributes:
        config: what it was made from.
        registry: what tools exist.
        links: the sources, by name.
        agents: by name, see `agent`.
        counters: what happened so far.
        timer: expires the deadlines.

    """

    agents: Agents

    def __init__(self, config: Config, around: Surroundings) -> None:
        self.config = config
        self.registry = around.registry
        self.timer = around.timer
        self.counters = around.counters
        self.links = {name: Link(source, around) for name, source in config.enabled.items()}
        self._handlers = {name: self._stacked(link, around.rng) for name, link in self.links.items()}
        self._running = 0
        self._quiet = trio.Event()

    # Agents

    def agent(
        self, name: str, function: AgentMade, *, turn: int = 1, mailbox: Mailbox | None = None,
        tools: Sequence[str] = ("*",), agents: Sequence[str] = ("*",), topics: Sequence[str] = (),
        reentrant: bool = False, supervisor: Supervisor | None = None, restart: Restart = "permanent",
        raises: tuple[type[Exception], ...] = (), repeatable: Sequence[str] = (), grace: float = GRACE,
        deadline: float = math.inf, budget: Budget | None = None,
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
            restart: when it is made anew: always, after a crash ("transient"), or never ("temporary").
            raises: exceptions that are answers, and no crash.
            repeatable: globs over the tools that may be called again when a conversation is resumed.
            grace: seconds for a handler to end when its agent is stopped, or its asker has gone.
            deadline: seconds for each run.
            budget: of each run, and everything below it.

        Raises:
            ValueError: the name is taken, or is none.

        """
        return self.agents.add(
            name, function, turn=turn, mailbox=mailbox, tools=tools, agents=agents, topics=topics,
            reentrant=reentrant, supervisor=supervisor, restart=restart, raises=raises, repeatable=repeatable,
            grace=grace, deadline=deadline, budget=budget,
        )  # fmt: skip

    async def ask(self, name: str, payload: object = None, *, budget: Budget | None = None) -> object:
        """What agent `name` answers to `payload`, or whoever it hands the work to.

        The handler runs in this task: the deadline and the cancellation of the caller reach it natively,
        and what it raises comes out as it is. An agent with a mailbox is asked on the same terms, and its
        crash comes out as `AgentCrashed`.

        Raises:
            AgentError: it could not be asked.
            Draining: the fabric takes no new work.
            Overloaded: too much is running.

        """
        return await self._ask(name, payload, budget)

    async def _ask(self, name: str, payload: object, budget: Budget | None = None, sink: Sink | None = None) -> object:
        self._enter()
        try:
            if budget is None:
                return await self.agents.converse(name, payload, sink=sink)
            return await self.agents.ask_within(budget, name, payload, sink=sink)
        finally:
            self._leave()

    async def tell(self, name: str, payload: object = None) -> bool:
        """Put `payload` into the mailbox of agent `name`; returns whether it was taken.

        Raises:
            AgentError: it has none, or could not be told.
            Overloaded: it is full, and refuses then.
            Draining: the fabric takes no new work.

        """
        if self.draining.is_set():
            raise Draining
        return await self.agents.tell(name, payload)

    def broadcast(self, topic: str, payload: object = None) -> int:
        """Put `payload` into the mailbox of every agent that takes `topic`; returns how many took it."""
        if self.draining.is_set():
            raise Draining
        return self.agents.broadcast(topic, payload)

    def stream(
        self, name: str, payload: object = None, *, budget: Budget | None = None
    ) -> AbstractAsyncContextManager[Events]:
        """As `ask`, for who wants to see what the agent emits.

        `async with fabric.stream(…) as events: async for value in events: …`, then `await events.result()`.
        Leaving the block early cancels the ask.
        """
        return open_stream(lambda sink: self._ask(name, payload, budget, sink))

    async def start(
        self, name: str, payload: object = None, *, owner: Owner = "fabric", deadline: float | None = None,
        budget: Budget | None = None,
    ) -> Job:  # fmt: skip
        """A conversation that outlives this scope, on purpose; `attach` finds it by its id.

        Args:
            name: the agent.
            payload: JSON, if the journal is a file.
            owner: "fabric": it lives until it is done, or the fabric's block ends; or a nursery.
            deadline: seconds until it is cancelled.
            budget: what it may use.

        Raises:
            AgentNotFound: there is no such agent.
            Draining: the fabric takes no new work.
            Overloaded: too many run.

        """
        return await self.agents.jobs.start(name, payload, owner=owner, deadline=deadline, budget=budget)

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

    # Tools

    async def call(
        self, tool: str, arguments: Mapping[str, Json] | None = None, *, events: EventSink | None = None
    ) -> ToolResult:
        """What the tool with this exported name answered; a tool that says it failed is an answer too.

        Args:
            tool: such as `time__get_current_time`.
            arguments: plain values.
            events: takes its progress and log notifications.

        Raises:
            CallError: it did not answer; `executed` says what is known.

        """
        self._enter()
        try:
            return await call_tool(self.route, tool, arguments, principal=LOCAL, events=events)
        finally:
            self._leave()

    async def handle(self, call: Call) -> Outcome:
        """How `call` ended, for those who bring new work from outside. Raises as `call` does."""
        self._enter()
        try:
            return await self.route(call)
        finally:
            self._leave()

    def route(self, call: Call) -> Awaitable[Outcome]:
        """How `call` ended, as part of work that was accepted already. Raises as `call` does."""
        if call.method == "tools/call" and call.name is not None:
            found = self.registry.snapshot.tools.get(call.name)
            if found is not None:
                return self._handlers[found.source](call)
        return self._route_unlisted(call)

    async def _route_unlisted(self, call: Call) -> Outcome:
        """Route what is not listed (yet)."""
        name = call.name
        if call.method != "tools/call" or name is None:
            return Error(jsonrpc.METHOD_NOT_FOUND, f"method not found: {call.method}")
        await self._wait_for_owners(name, call.deadline)
        snapshot = self.registry.snapshot
        found = snapshot.tools.get(name)
        if found is None:
            self._raise_down(name)
            self.counters.add("fabric.tool_not_found")
            raise ToolNotFound(name, snapshot.near(name))
        return await self._handlers[found.source](call)

    # Life

    @property
    def ready(self) -> bool:
        """Whether every source has been tried once."""
        return all(link.tried for link in self.links.values())

    async def wait_started(self) -> None:
        """Return once every source has been tried once; those that failed say why in `links`."""
        for link in self.links.values():
            await link.wait_tried()

    async def drain(self, grace: float) -> bool:
        """Take no new work, and wait up to `grace` seconds for what runs; returns whether it ended by itself."""
        self.draining.set()
        with trio.move_on_after(grace):
            await self._wait_done()
        unfinished = self._running + self.agents.untold + len(self.agents.jobs.running)
        if unfinished:
            self.counters.add("fabric.drain_unfinished", unfinished)
        return not unfinished

    def tree(self) -> Node:
        """Everything that lives in the fabric, at this moment."""
        state = "draining" if self.draining.is_set() else "running"
        facts = {
            "tools": len(self.registry.snapshot.tools),
            "calls": self._running,
            "version": self.registry.snapshot.version,
        }
        children = [link.node() for link in self.links.values()]
        children += [
            Node("source", name, "broken", {"reason": "; ".join(map(str, problems))})
            for name, problems in self.config.broken.items()
        ]
        children += [agent.node() for agent in self.agents.values()]
        children += [Node("ask", " > ".join(branch.path)) for branch in self.agents.roots]
        children += [Node("conversation", job.id, job.state, {"agent": job.agent}) for job in self.agents.jobs.all()]
        return Node("fabric", "cord_trio", state, facts, tuple(children))

    # Inside

    def _enter(self) -> None:
        if self.draining.is_set():
            raise Draining
        limit = self.config.bounds.calls
        if self._running >= limit:
            self.counters.add("fabric.overloaded")
            raise Overloaded("bounds.calls", limit)
        self._running += 1

    async def _wait_quiet(self) -> None:
        """Return once nothing runs."""
        while self._running:
            if self._quiet.is_set():
                self._quiet = trio.Event()
            await self._quiet.wait()

    async def _wait_done(self) -> None:
        """Return once nothing runs, no message is under way, and no conversation."""
        agents = self.agents
        while self._running or agents.untold or agents.jobs.running:
            await self._wait_quiet()
            await agents.wait_quiet()
            await agents.jobs.wait_quiet()

    def _leave(self) -> None:
        self._running -= 1
        if not self._running:
            self._quiet.set()

    async def _wait_for_owners(self, name: str, deadline: float) -> None:
        """Wait for the first attempt of those sources that may own a tool of this name."""
        for link in self.links.values():
            prefix = link.source.export_prefix
            if not link.tried and (not prefix or name.startswith(f"{prefix}__")):
                with trio.move_on_at(deadline):
                    await link.wait_tried()

    def _raise_down(self, name: str) -> None:
        """Raise `SourceDown` if the source whose prefix `name` has is down: its tools may never have been seen."""
        for link in self.links.values():
            prefix = link.source.export_prefix
            if prefix and link.state != "ready" and name.startswith(f"{prefix}__"):
                raise SourceDown(link.name, link.reason or f"it is still {link.state}", link.next_try)
        for source, problems in self.config.broken.items():
            if name.startswith(f"{source}__"):
                raise SourceDown(source, "; ".join(map(str, problems)))

    def _stacked(self, link: Link, rng: Random) -> Handler:
        source, timer, counters = link.source, self.timer, self.counters

        def send(call: Call) -> Awaitable[Outcome]:
            name = call.name or ""
            route = self.registry.snapshot.tools.get(name)
            if route is None or route.source != source.name:  # it went while the call waited
                raise ToolNotFound(name)
            return link.call(call, route.tool.name)

        def annotations(public: str) -> Annotations | None:
            route = self.registry.snapshot.tools.get(public)
            return None if route is None else route.tool.annotations

        # The run's own clock, without the calls that lead to it from `trio.current_time`.
        clock = trio.lowlevel.current_clock().current_time
        around = [
            layers.deadline(source.deadline, longest=self.config.bounds.call_longest, clock=clock),
            layers.retry(
                source.retries + 1, budget=layers.RetryBudget(clock=clock), rng=rng, timer=timer, counters=counters,
                trusted=source.trust, annotations=annotations, clock=clock,
            ),
        ]  # fmt: skip
        if source.rate is not None:
            around.append(layers.rate(source.rate, source.burst, timer=timer, counters=counters, name=source.name))
        around.append(layers.limit(source.slots, timer=timer, counters=counters, name=source.name))
        return stack(send, *around)


@asynccontextmanager
async def open_fabric(
    config: Config | Mapping[str, Source] | Sequence[Source] | None = None,
    *,
    rng: Random | None = None,
    journal: Journal | None = None,
) -> AsyncGenerator[Fabric, None]:
    """A fabric for as long as the block runs. Its sources connect in the background, each by itself.

    Leaving the block drains; an error in it cancels at once, and leaves as it was raised. Then nothing
    that the fabric started is left: no task, process, socket or file.

    Args:
        config: whole, or only the sources; None for no sources.
        rng: draws the pauses; seeded where a run is to repeat.
        journal: keeps started conversations; None for memory.

    """
    if not isinstance(config, Config):
        config = Config(sources=config or {})
    counters = Counters()
    block_error: Exception | None = None
    core_error: Exception | None = None

    async def service(  # noqa: ASYNC128  # the part calls it
        run: Callable[..., Awaitable[None]], task_status: trio.TaskStatus[None]
    ) -> None:
        """Run a part of the core; if it fails, the fabric cannot go on."""
        nonlocal core_error
        try:
            await run(task_status=task_status)
        except Exception as exc:
            core_error = core_error or exc
            core.cancel_scope.cancel(f"a part of the core failed: {exc!r}")

    async with open_guardian(counters=counters) as guardian, trio.open_nursery() as core:
        registry = Registry(config.enabled, max_tools=config.bounds.tools, counters=counters)
        timer = Timer()
        cores = os.cpu_count() or 1
        around = Surroundings(
            registry=registry,
            guardian=guardian,
            timer=timer,
            counters=counters,
            rng=random.Random() if rng is None else rng,
            client_info={"name": "cord_trio", "version": __version__},
            bounds=config.bounds,
            starts=trio.CapacityLimiter(config.bounds.starts or STARTS_PER_CORE * cores),
        )
        await core.start(service, registry.run)
        await core.start(service, timer.run)
        fabric = Fabric(config, around)
        async with trio.open_nursery() as links:
            for link in fabric.links.values():
                links.start_soon(link.keep, name=f"link {link.name}")
            try:
                # Agents with tasks of their own live in one nursery, work that outlives its asker in another.
                async with open_agents(
                    fabric.route, lambda: registry.snapshot, counters=counters, timer=timer, rng=around.rng,
                    journal=journal, max_hops=config.bounds.hops,
                ) as agents:  # fmt: skip
                    fabric.agents = agents
                    yield fabric
                    await fabric.drain(config.gateway.grace)
            # Cancelled must travel through the nurseries: it may be theirs.
            except Exception as exc:
                block_error = exc
            links.cancel_scope.cancel("the fabric's block has ended")
        # Calls of tasks that are not the fabric's fail now, but may need the timer for it.
        with trio.move_on_after(LAST_CALLS):
            await fabric._wait_quiet()
        core.cancel_scope.cancel("the fabric's block has ended")
    if block_error is not None:
        raise block_error
    if core_error is not None:
        raise core_error
