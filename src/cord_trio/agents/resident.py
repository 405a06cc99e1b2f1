"""Agents with a task of their own: one that keeps their state, and those that handle their mailbox.

One incarnation is a `Life`: the state is made, used, and left by one task, which alone enters and leaves it.
A crash ends the life, not the mailbox; the group decides about another.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from cord_trio.agents.context import Context
from cord_trio.agents.failing import cancelled_alone
from cord_trio.agents.life import Life
from cord_trio.agents.monitor import Notice
from cord_trio.agents.post import Post
from cord_trio.agents.supervisor import End
from cord_trio.agents.turn import note_way
from cord_trio.agents.watching import watched
from cord_trio.cell import Cell
from cord_trio.errors import AgentDown, AgentError, AgentGone, DeadlineExceeded
from cord_trio.mesh_errors import AgentMoved
from cord_trio.protocol.jsonrpc import encode, parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cord_trio.agents.agent import Agent, AgentFunction, Step
    from cord_trio.agents.directory import Agents
    from cord_trio.agents.mailbox import Envelope, Mailbox
    from cord_trio.agents.monitor import What
    from cord_trio.agents.supervisor import Group
    from cord_trio.agents.turn import Branch

MAX_KEPT: Final = 256 * 1024
"""Bytes of the state of an agent that is kept."""

MAKING: Final = 60.0
"""Seconds for an agent's state to be made and entered."""


class Resident:
    """The task of one agent, from one life to the next.

    Attributes:
        agent: whose it is.
        group: who restarts it.
        post: what it does with its mailbox; None if it has state only.
        box: its messages; None likewise.
        life: the present one, for who asks now; None while there is none.
        lives: how many there were.
        down: why there will be none again; None as long as there may be.
        moved: the node that it is on now; empty where it is here.
        led: set once all that waited here has been led there; who comes later goes after that.
        given: what the next life goes on with, in a tuple; None for nothing.
        kept: what it goes on with otherwise, in JSON; empty for nothing, and always so unless it restarts elsewhere.
        keep: keeps that for whoever makes it anew elsewhere; None for nobody.

    """

    def __init__(self, agents: Agents, agent: Agent, mailbox: Mailbox | None, group: Group) -> None:
        self.agent = agent
        self.group = group
        self.post = None if mailbox is None else Post(agents, self, mailbox)
        self.box = None if self.post is None else self.post.box
        self.life: Life | None = None
        self.lives = 0
        self.down: str | None = None
        self.moved = ""
        self.led = trio.Event()
        self.given: tuple[object] | None = None
        self.kept = b""
        self.keep: Callable[[bytes], Awaitable[None]] | None = None
        self._handler: object = None
        self._suspended = False
        self._state: object = None
        self._down_cause: Exception | None = None
        self._agents = agents
        self._current: Life | None = None
        self._scope = trio.CancelScope()
        self._gone = trio.Event()
        self._waiting: dict[Cell[Life], None] = {}

    # Asking

    async def answer(
        self, branch: Branch, payload: object, transcript: tuple[Step, ...], *, generation: int, transfer: bool
    ) -> object:
        """What the handler answers, which may be a `Handoff`.

        Args:
            branch: of the ask.
            payload: given as it is.
            transcript: what the handler sees of those that handed it on.
            generation: the one that alone may answer; 0 for any.
            transfer: it was handed on by another agent, so it is accepted already.

        Raises:
            AgentDown: there is no life, and will be none.
            AgentCrashed: the handler in the agent's own task raised.
            Exception: the handler in this task raised.

        """
        if self.down is not None:
            raise self.is_down()
        turn = self.agent.turn
        if self.post is not None and not turn.held_above(branch):
            return await self.post.ask(branch, payload, transcript, generation=generation, transfer=transfer)
        if not turn.take(branch):
            await turn.wait(branch, self._agents.counters)
        try:
            life = self.life
            while life is None or life.over.is_set():  # also one that ended before this task got to it
                life = await self._wait_for_life()
            if generation not in (0, life.generation):
                raise AgentGone(f"{self.agent.name}#{generation}", life.generation)
            return await self._run(life, branch, payload, transcript)
        finally:
            turn.release(branch)

    # Living

    async def live(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One life, from making the state to leaving it. Raises nothing: the group is told how it ended."""
        agent = self.agent
        if self.down is not None:  # retired before it began
            task_status.started()
            return
        if self.lives:
            agent.generation += 1
        self.lives += 1
        life = self._current = Life(agent.generation)
        self._gone = trio.Event()
        self._scope = trio.CancelScope(deadline=trio.current_time() + MAKING)
        try:
            with self._scope:
                try:
                    await self._make(life, task_status.started)
                except Exception as exc:
                    self.crashed(life, exc)
                except BaseExceptionGroup as exc:
                    raise cancelled_alone(exc, agent.name, self._agents.counters) from None
            if self._scope.cancelled_caught:
                if life.handler is None:  # unless it was stopped, which ended it
                    self.crashed(life, DeadlineExceeded(f"making agent {agent.name}"))
                else:
                    self._agents.counters.add("agents.exit_expired")
        finally:
            life.end("the fabric ends", stopped=True)
            life.cancel()
            self.life = self._current = None
            if self.post is not None:
                self.post.forget_alarms()
            self._gone.set()
        if not life.handler:
            task_status.started()  # it never came up, as the group learns now
        if not life.stopped:
            again = agent.restart in ("permanent", "elsewhere") or (
                agent.restart == "transient" and life.cause is not None
            )
            self.group.ended(End(self, life.generation, again, life.reason, life.cause))

    @property
    def name(self) -> str:
        """Name and generation."""
        return repr(self.agent)

    @property
    def temporary(self) -> bool:
        """Whether it is never made anew."""
        return self.agent.restart == "temporary"

    @property
    def incarnation(self) -> int:
        """The agent's generation."""
        return self.agent.generation

    async def start(self) -> None:
        """Begin a life, and return when its state is made, or could not be."""
        assert self._agents.nursery is not None
        if self.down is None:
            await self._agents.nursery.start(self.live)

    async def stop(self, reason: str) -> None:
        """End the present life, within the agent's grace, and return when it has ended. Messages stay."""
        life = self._current
        if life is not None:
            life.end(reason, stopped=True)
            if life.handler is None:
                self._scope.cancel(reason)
            await self._gone.wait()

    async def retire(self, reason: str, cause: Exception | None = None) -> None:
        """End for good. What waits fails with `AgentDown`."""
        known = self.down is not None
        if not known:
            self.down, self._down_cause = reason, cause
        await self.stop(reason)
        self.fail_waiting()
        if not known:
            self._tell("stopped", cause)

    def go_down(self, reason: str, cause: Exception | None = None) -> None:
        """As `retire`, where no life is."""
        if self.down is None:
            self.down, self._down_cause = reason, cause
            self.fail_waiting()
            self._tell("stopped", cause)

    def fail_waiting(self) -> None:
        """Tell all who wait that it is down."""
        if self.box is not None:
            lost = sum(self.box.lengths().values())
            if lost:
                self._agents.counters.add("agents.undelivered", lost)
            self.box.clear(self.is_down)
        waiting, self._waiting = self._waiting, {}
        for cell in waiting:
            cell.fail(self.is_down())

    # Moving

    async def suspend(self, patience: float) -> object:
        """End the present life so that another may go on with its state, which is returned. Messages and asks wait.

        Args:
            patience: seconds for what runs to end by itself.

        Raises:
            AgentError: there is no life now, or it has state that cannot be told; or telling it failed, and the agent
                begins anew as after a crash.

        """
        if self.life is None or self.life.over.is_set():
            raise AgentError(f"agent {self.agent.name!r} cannot be moved: it is being made just now")
        if self.agent.made and not (hasattr(self._handler, "state") and hasattr(self._handler, "restore")):
            raise AgentError(
                f"agent {self.agent.name!r} cannot be moved: give its class `state() -> JSON` and `restore(state)`"
            )
        grace, self.agent.grace = self.agent.grace, patience
        self._suspended = True
        try:
            await self.stop("it moves")
        finally:
            self._suspended, self.agent.grace = False, grace
        state, self._state = self._state, None
        if isinstance(state, Exception):
            await self.start()
            raise AgentError(f"agent {self.agent.name!r} was not moved: telling its state failed: {state!r}") from state
        return state

    async def resume(self, state: object) -> None:
        """Begin a life that goes on with `state`."""
        self.given = (state,)
        await self.start()

    def lead_to(self, node: str) -> list[Envelope]:
        """From now on it is on another node; returns the messages that were told and are not begun, for that one."""
        self.down, self.moved = f"it is on node {node!r} now", node
        return [] if self.post is None else self.post.told()

    def finish(self) -> None:
        """End this life as the handler wishes."""
        if self._current is not None:
            self._current.end("it ended itself")

    # Inside

    def is_down(self) -> AgentDown:
        """The error for who asks it now."""
        if self.moved:
            return AgentMoved(self.agent.name, self.moved)
        error = AgentDown(self.agent.name, self.down or "the fabric ends")
        error.__cause__ = self._down_cause
        return error

    def _tell(self, what: What, cause: Exception | None = None) -> None:
        if self._agents.monitors.looking:
            self._agents.monitors.tell(Notice(self.agent.name, self.agent.generation, what, cause))

    def crashed(self, life: Life, exc: Exception) -> None:
        """A handler of `life` raised, or its state could not be made: it is over."""
        if life.end(f"it crashed: {exc!r}", cause=exc):
            self._agents.counters.add("agents.crashes")
            self._tell("crashed", exc)

    async def _make(self, life: Life, ready: Callable[[], None]) -> None:
        function: Any = self.agent.function  # a handler, or what makes one
        if not self.agent.made:
            await self._serve(life, function, ready)
            return
        made = function()
        if not hasattr(made, "__aenter__"):
            await self._serve(life, made, ready)
            return
        async with made as entered:
            await self._serve(life, entered if callable(entered) else made, ready)

    async def _serve(self, life: Life, handler: AgentFunction, ready: Callable[[], None]) -> None:
        if life.over.is_set():
            return  # stopped while it was made
        watch = self._agents.watch
        given, self.given = self.given, None
        if given is None and self.kept:
            given = (parse(self.kept),)
        if given is not None and hasattr(handler, "restore"):
            handler.restore(*given)
        self._handler = handler
        life.handler = handler if self.agent.restart != "elsewhere" else self._keeping(handler)
        if watch is not None:
            life.handler = watched(watch, life.handler)
        self._scope.deadline = math.inf
        self.life = life
        if self.lives > 1:
            self._agents.counters.add("agents.restarts")
            self._tell("restarted")
        waiting, self._waiting = self._waiting, {}
        for cell in waiting:
            cell.settle(life)
        ready()
        async with trio.open_nursery() as workers:
            if self.post is not None:
                for _ in range(self.agent.turn.size):
                    workers.start_soon(self.post.work, life)
            await life.over.wait()
            if self.box is not None:
                self.box.wake()
            with trio.move_on_after(self.agent.grace):
                await life.wait_idle()
            if life.users:
                self._agents.counters.add("agents.grace_expired")
                life.cancel()
            await life.wait_idle()
        if self._suspended and hasattr(handler, "state"):
            try:
                self._state = handler.state()
            except Exception as exc:
                self._state = exc
        self._scope.deadline = trio.current_time() + self.agent.grace  # for leaving the state

    def _keeping(self, handler: AgentFunction) -> AgentFunction:
        """`handler`, whose state is kept after each run, before anybody learns what it answered."""
        raises = self.agent.raises

        async def run(context: Context, payload: object) -> object:
            answer: object = None
            refusal: Exception | None = None
            try:
                answer = await handler(context, payload)
            except raises as exc:
                refusal = exc
            await self._keep(handler)
            if refusal is not None:
                raise refusal
            return answer

        return run

    async def _keep(self, handler: AgentFunction) -> None:
        keeper: Any = handler
        try:
            state = encode(keeper.state())
        except Exception as exc:
            raise AgentError(f"the state of agent {self.agent.name!r} cannot be kept: {exc!r}") from exc
        if state == self.kept:
            return
        if len(state) > MAX_KEPT:
            raise AgentError(
                f"the state of agent {self.agent.name!r} cannot be kept: it has {len(state)} bytes, and {MAX_KEPT} "
                "are the most"
            )
        if self.keep is not None:
            await self.keep(state)
        self.kept = state

    async def _wait_for_life(self) -> Life:
        if self.down is not None:
            raise self.is_down()
        cell = Cell[Life]()
        self._waiting[cell] = None
        return await cell.wait(partial(self._waiting_pop, cell))

    def _waiting_pop(self, cell: Cell[Life]) -> None:
        self._waiting.pop(cell, None)

    async def _run(self, life: Life, branch: Branch, payload: object, transcript: tuple[Step, ...]) -> object:
        """Run in the asker's task."""
        assert life.handler is not None
        with trio.CancelScope() as scope:
            life.users[branch] = scope
            try:
                agents = self._agents
                context = Context(agents, branch, self.agent, transcript, agents.snapshot())
                return await life.handler(context, payload)
            except Exception as exc:
                note_way(exc, branch, life.generation)
                if not isinstance(exc, self.agent.raises):
                    self.crashed(life, exc)
                raise
            finally:
                life.leave(branch)
        raise AgentDown(self.agent.name, life.reason)
