"""The fabric: one registry, one nursery tree, and everything built and nested in it. No logic of its own.

The nesting is the shutdown plan: the user's block ends first, then conversations, agents, links (each
closes its sessions and children), and the core that they all stand on.
"""

from __future__ import annotations

import math
import os
import random
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from msgspec.structs import replace

from cord_trio.agents import open_agents
from cord_trio.agents.asks import agent_of, ask_nodes, busiest
from cord_trio.agents.block import Block
from cord_trio.agents.exporting import as_tool
from cord_trio.agents.handlers import options_of, supervisors_of
from cord_trio.agents.serving import answer_call
from cord_trio.agents.tools import finish, tool_call
from cord_trio.agents.verbs import Verbs
from cord_trio.call import LOCAL, Complete
from cord_trio.cell import Timer
from cord_trio.config import Config
from cord_trio.counters import Counters
from cord_trio.errors import Draining, DrainTimeout, Overloaded
from cord_trio.link import Surroundings
from cord_trio.observe import Node
from cord_trio.observe.hogs import open_watch
from cord_trio.observe.metrics import watch_runs, watches
from cord_trio.protocol import jsonrpc
from cord_trio.protocol.mcp import ToolResult
from cord_trio.registry import AGENTS, Registry
from cord_trio.sources import Changes, Sources
from cord_trio.stages import Stages
from cord_trio.trace import within
from cord_trio.transports.guardian import open_guardian
from cord_trio.transports.pump import make_pump
from cord_trio.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from random import Random
    from typing import TypeAlias

    from cord_trio.agents import Agent, Answer, Journal
    from cord_trio.agents.agent import AgentMade
    from cord_trio.call import Call, EventSink, Handler, Layer, Outcome
    from cord_trio.config import Source
    from cord_trio.layers import Approve
    from cord_trio.observe.hogs import Watch
    from cord_trio.observe.metrics import CollectorRegistry
    from cord_trio.protocol.jsonrpc import Json
    from cord_trio.protocol.mcp import Tool
    from cord_trio.recorder import Recorder
    from cord_trio.snapshot import Kind
    from cord_trio.stages import Stage
    from cord_trio.trace import TraceContext

    Mesh: TypeAlias = Callable[["Fabric"], AbstractAsyncContextManager[object]]

LAST_CALLS: Final = 3.0
"""Seconds for calls made from outside the fabric's block to end, once its links have."""

MOST_SHOWN: Final = 1000
"""Agents, asks and conversations each that a tree shows, unless told otherwise."""

STARTS_PER_CORE: Final = 2
"""Interpreters that start at once, for each processor."""


class Fabric(Verbs, Sources):
    """A running fabric. Get one from `open_fabric`.

    Attributes:
        brought: takes what our gateway has sealed and a client brought to another node; None without a gateway.

    """

    def __init__(self, config: Config, around: Surroundings, block: Block) -> None:
        super().__init__(config, around)
        self.brought: Callable[[Call], Awaitable[Outcome]] | None = None
        self._block = block
        self._alone = True
        self._exported: dict[str, Tool] = {}
        self._handlers[AGENTS] = self._ask_exported
        self._running = 0
        self._room = config.bounds.calls
        """Calls and asks that may run at once; none from when it drains."""
        self._quiet: trio.Event | None = None
        """Set once nothing runs; None if nobody waits for that."""
        self._stages = Stages(self._reached)
        self._watch: Watch | None = None

    def reconfigure(self, config: Config) -> Changes:  # see Sources
        if self.draining.is_set():
            raise Draining
        return super().reconfigure(config)

    # Agents

    def add_configured(self, handlers: Mapping[str, AgentMade]) -> None:
        """Make the agents of the configuration.

        Args:
            handlers: by name, as `find_handlers` finds them.

        """
        supervisors = supervisors_of(self.config.supervisors)
        for name, function in handlers.items():
            agent, mesh = self.config.agents[name], self.config.mesh
            if not agent.belongs(None if mesh is None else mesh.told):
                continue
            make = self.singleton if agent.singleton else self.agent
            make(name, function, **options_of(agent, supervisors))

    def _export(self, agent: Agent) -> None:
        self._exported[agent.name] = as_tool(agent)
        self.registry.export_agents(tuple(self._exported.values()))

    def _unexport(self, name: str) -> None:
        if self._exported.pop(name, None) is not None:
            self.registry.export_agents(tuple(self._exported.values()))

    async def _ask_exported(self, call: Call) -> Outcome:
        """Ask an agent that is listed as a tool."""
        route = self.registry.snapshot.tools[call.name or ""]
        return await answer_call(self.agents, route.tool.name, call, self.counters, self._parks)

    # Tools

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Json] | None = None,
        *,
        events: EventSink | None = None,
        answer: Answer | None = None,
        trace: TraceContext | None = None,
    ) -> ToolResult:
        """What the tool with this exported name answered; a tool that says it failed is an answer too.

        Args:
            tool: such as `time__get_current_time`.
            arguments: plain values.
            events: takes its progress and log notifications.
            answer: answers what the server asks in the middle of it; without it nothing can be asked.
            trace: that it is part of.

        Raises:
            CallError: it did not answer; `executed` says what is known.

        """
        if self._running < self._room:  # `_enter` and `_leave`, in place: together 0.15 µs less
            self._running += 1
        else:
            self._enter()
        try:
            # `call_tool`, without its frame.
            call = tool_call(tool, arguments, LOCAL, math.inf, events, answer, trace)
            found = self.registry.snapshot.tools.get(tool)  # `route`, without its frame
            outcome = await (self.route(call) if found is None else self._handlers[found.source](call))
            if type(outcome) is Complete:
                return ToolResult(outcome.result)
            return await finish(self.route, call, outcome, answer)
        finally:
            self._running = running = self._running - 1
            if not running and self._quiet is not None:
                self._quiet.set()

    async def handle(self, call: Call) -> Outcome:
        """How `call` ended, for those who bring new work from outside. Raises as `call` does.

        Answers to what was accepted before are no new work, also while we drain. Within a trace we are a hop of our
        own: whoever is asked has us for its parent.
        """
        if call.trace and self.agents.watch is None:  # else each call is one, which others see
            call = replace(call, trace=within(call.trace, next(self.agents.spans)))
        if self._running < self._room:  # as in `call`
            self._running += 1
        else:
            self._enter(call.park)
        try:
            return await self.route(call)
        finally:
            self._running = running = self._running - 1
            if not running and self._quiet is not None:
                self._quiet.set()

    @contextmanager
    def accepting(self, *, nested: bool = False) -> Generator[None, None, None]:
        """One piece of work from outside, for as long as the block runs. Raises as `call` does if it is not taken.

        Args:
            nested: it is a part of what was accepted before, so that it is taken also while we drain.

        """
        self._enter("nested" if nested else "")
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def holding(self) -> Generator[Handler, None, None]:
        """What takes the further rounds of a call that was accepted and is not answered, also while we drain.

        That is not done before the block has ended: whoever is asked meanwhile has not answered yet.
        """
        self._running += 1
        try:
            yield self._relay
        finally:
            self._leave()

    async def _relay(self, call: Call) -> Outcome:
        if call.trace:
            call = replace(call, trace=within(call.trace, next(self.agents.spans)))
        return await self.route(call)

    def trust(self, kind: Kind) -> float:
        """Seconds for which what is listed of `kind` may be trusted: as long as each source's list may.

        Lists that may not be any more are fetched anew in the background.
        """
        return min((link.trust(kind) for link in self.links.values() if link.state == "ready"), default=math.inf)

    # Life

    @property
    def stage(self) -> Stage:
        """running, draining, closing or closed: in this order, never back, and none left out."""
        return self._stages.stage

    async def drain(self, grace: float) -> bool:
        """Take no new work, wait up to `grace` seconds for what runs, and close; returns whether it ended by itself.

        What was accepted goes on meanwhile, with all that it calls and asks. A source that is lost is not connected
        again, and no agent made anew. What has not ended then is cut off: its calls end with `DrainTimeout`. Called
        again, the grace that is over first counts; of a fabric that is closing already it only tells.
        """
        self._stages.go_to("draining")
        with trio.move_on_after(grace):
            await self._wait_done()
        unfinished = self._running + self.agents.untold + len(self.agents.jobs.running)
        if self._stages.go_to("closing") and unfinished:
            self.counters.add("fabric.drain_unfinished", unfinished)
            self._cut_all(grace)
            self.agents.cut(DrainTimeout("the fabric", grace))
        return not unfinished

    def tree(self, most: float = MOST_SHOWN) -> Node:
        """What lives in the fabric, at this moment; how much of it was left out is the fact `left_out`.

        Args:
            most: agents, asks, questions and conversations each that are shown, `math.inf` for all; of agents those
                first that are not idle.

        """
        agents = self.agents
        shown = list(agents.values()) if len(agents) <= most else busiest(agents, int(most))
        asks, asks_left_out = ask_nodes(list(self.agents.roots), most)
        jobs = list(self.agents.jobs.all())
        children = self.source_nodes()
        if self.elsewhere is not None:
            children.append(self.elsewhere.shown())
        children += [agent.node() for agent in shown]
        children += asks
        children += self._parks.nodes(most)
        children += [
            Node("conversation", job.id, job.state, {"agent": job.agent})
            for job in (jobs if len(jobs) <= most else jobs[: int(most)])
        ]
        left_out: float = len(agents) - len(shown) + asks_left_out
        left_out += max(0, len(jobs) - most) + max(0, len(self._parks) - most)
        facts = {
            "tools": len(self.registry.snapshot.tools),
            "calls": self._running,
            "version": self.registry.snapshot.version,
            "left_out": left_out or None,
        }
        if self._watch is not None:
            children += self._watch.nodes()
        return Node("fabric", "cord_trio", self.stage, facts, tuple(children))

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[Watch, None]:
        """While the block runs, the tree names whoever holds the loop for long: an agent, and the line."""
        async with open_watch(agent_of, counters=self.counters) as watch:
            self._watch = watch
            try:
                yield watch
            finally:
                self._watch = None

    # Inside

    def _reached(self, stage: Stage) -> None:
        self.counters.add(f"fabric.{stage}")
        if stage == "draining":
            self._room = 0
            if hasattr(self, "agents"):  # else they could not be opened
                self.draining.set()
            for link in self.links.values():
                link.drain()

    def _enter(self, park: str = "") -> None:
        if self.draining.is_set() and not park:
            raise Draining
        limit = self.config.bounds.calls
        if self._running >= limit:
            self.counters.add("fabric.overloaded")
            raise Overloaded("bounds.calls", limit)
        self._running += 1

    async def _wait_quiet(self) -> None:
        """Return once nothing runs."""
        while self._running:
            if self._quiet is None or self._quiet.is_set():
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
        if not self._running and self._quiet is not None:
            self._quiet.set()


def _roots(given: Sequence[str]) -> bytes:
    """The answer to who asks for roots (MCP 2025-11-25, roots)."""
    uris = [each if each.startswith("file:") else Path(each).expanduser().absolute().as_uri() for each in given]
    return jsonrpc.encode({"roots": [{"uri": uri} for uri in uris]})


@asynccontextmanager
async def open_fabric(
    config: Config | Mapping[str, Source] | Sequence[Source] | None = None,
    *,
    layers: Sequence[Layer] = (),
    approve: Approve | None = None,
    metrics: CollectorRegistry | None = None,
    rng: Random | None = None,
    journal: Journal | None = None,
    traced: bool = False,
    recorder: Recorder | None = None,
    mesh: Mesh | None = None,
) -> AsyncGenerator[Fabric, None]:
    """A fabric for as long as the block runs. Its sources connect in the background, each by itself.

    Leaving the block drains; an error in it cancels at once, and leaves as it was raised. Then nothing
    that the fabric started is left: no task, process, socket or file.

    Args:
        config: whole, or only the sources; None for no sources.
        layers: around the calls of every source, the first of them outermost.
        approve: `async (call) -> bool`, asks a person about a call that a rule says needs one; None to ask whoever
            calls, if that one can be asked.
        metrics: a registry of Prometheus that counts calls; None for none. Spans of OpenTelemetry are made where a
            provider was configured before.
        rng: draws the pauses; seeded where a run is to repeat.
        journal: keeps started conversations; None for memory.
        traced: whether what agents are asked begins a trace where nobody gave one.
        recorder: keeps all calls of sources in its file, which is closed at the end; None for nobody.
        mesh: makes the fabric a node of a mesh; see `in_mesh`. None to be alone.

    """
    if not isinstance(config, Config):
        config = Config(sources=config or {})
    block = Block()
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

    async with AsyncExitStack() as at_end, open_guardian(counters=counters) as guardian, trio.open_nursery() as core:
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
            roots=_roots(config.gateway.roots),
            layers=tuple(layers),
            state_dir=config.state_dir,
            approve=approve,
            watches=watches(metrics),
            recorder=recorder,
            pump=make_pump(),
        )
        await core.start(service, registry.run)
        await core.start(service, timer.run)
        if around.pump is not None:
            await core.start(service, around.pump.run)
        if recorder is not None:
            recorder.counters = counters
            await core.start(service, partial(recorder.run, registry))
        fabric = Fabric(config, around, block)
        fabric._alone = mesh is None
        at_end.callback(fabric._stages.go_to, "closed")
        async with trio.open_nursery() as links:
            fabric.keep(links)
            try:
                # Agents with tasks of their own live in one nursery, work that outlives its asker in another.
                async with open_agents(
                    fabric.route, lambda: registry.snapshot, counters=counters, timer=timer, rng=around.rng,
                    journal=journal, max_hops=config.bounds.hops, traced=traced, watch=watch_runs(),
                ) as agents:  # fmt: skip
                    fabric.agents = agents
                    try:
                        # What is accepted still needs the mesh while it drains.
                        async with nullcontext() if mesh is None else mesh(fabric):
                            yield fabric
                            await fabric.drain(config.gateway.grace)
                    finally:
                        fabric._stages.go_to("closing")
            # Cancelled must travel through the nurseries: it may be theirs.
            except Exception as exc:
                block_error = exc
            links.cancel_scope.cancel("the fabric's block has ended")
        # Calls and asks of tasks that are not the fabric's end now, but may need the timer for it.
        fabric.hurry()
        with trio.move_on_after(LAST_CALLS):
            await fabric._wait_quiet()
        around.parks.close()
        core.cancel_scope.cancel("the fabric's block has ended")
    if block_error is not None:
        raise block_error
    if core_error is not None:
        raise core_error
