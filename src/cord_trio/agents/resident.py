"""Agents with a task of their own: one that keeps their state, and those that handle their mailbox.

One incarnation is a `Life`: the state is made, used, and left by one task, which alone enters and leaves it.
A crash ends the life, not the mailbox; the group decides about another.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from cord_trio.agents.life import Alarm, Life
from cord_trio.agents.mailbox import Box, Envelope
from cord_trio.agents.monitor import Notice
from cord_trio.agents.turn import note_way
from cord_trio.cell import Cell
from cord_trio.errors import AgentCrashed, AgentDown, AgentGone, DeadlineExceeded, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.agents.agent import Agent, AgentFunction
    from cord_trio.agents.context import Context
    from cord_trio.agents.directory import Agents
    from cord_trio.agents.mailbox import Mailbox
    from cord_trio.agents.monitor import What
    from cord_trio.agents.supervisor import Group
    from cord_trio.agents.turn import Branch

MAX_ALARMS: Final = 1024
"""Timers of one agent that may be running."""


class Resident:
    """The task of one agent, from one life to the next.

    Attributes:
        agent: whose it is.
        group: who restarts it.
        box: its messages; None if it has state only.
        life: the present one, for who asks now; None while there is none.
        lives: how many there were.
        down: why there will be none again; None as long as there may be.

    """

    def __init__(self, agents: Agents, agent: Agent, mailbox: Mailbox | None, group: Group) -> None:
        self.agent = agent
        self.group = group
        self.box = None if mailbox is None else Box(mailbox, agent.turn, agents.counters)
        self.life: Life | None = None
        self.lives = 0
        self.down: str | None = None
        self._down_cause: Exception | None = None
        self._agents = agents
        self._current: Life | None = None
        self._scope = trio.CancelScope()
        self._gone = trio.Event()
        self._waiting: dict[Cell[Life], None] = {}
        self._alarms: dict[Alarm, None] = {}

    # Asking

    async def answer(
        self, branch: Branch, begin: Callable[[], Context], payload: object, *, generation: int, transfer: bool
    ) -> object:
        """What the handler answers, which may be a `Handoff`.

        Args:
            branch: of the ask.
            begin: makes the handler's context when it starts.
            payload: given as it is.
            generation: the one that alone may answer; 0 for any.
            transfer: it was handed on by another agent, so it is accepted already.

        Raises:
            AgentDown: there is no life, and will be none.
            AgentCrashed: the handler in the agent's own task raised.
            Exception: the handler in this task raised.

        """
        if self.down is not None:
            raise self._is_down()
        turn = self.agent.turn
        if self.box is not None and not turn.held_above(branch):
            return await self._post(self.box, branch, begin, payload, generation=generation, transfer=transfer)
        if not turn.take(branch):
            await turn.wait(branch)
        try:
            life = self.life
            if life is None or life.over.is_set():
                life = await self._wait_for_life()
            if generation not in (0, life.generation):
                raise AgentGone(f"{self.agent.name}#{generation}", life.generation)
            return await self._run(life, branch, begin, payload)
        finally:
            turn.release(branch)

    async def tell(self, branch: Branch, begin: Callable[[], Context], payload: object, *, generation: int) -> bool:
        """Whether the mailbox took the message; waits for room where it says so. Cancelled, it is not there.

        Raises:
            AgentDown: there is no life, and will be none.
            Overloaded: there is no room.
            CallCycle: waiting for room would be waiting for ourselves.

        """
        assert self.box is not None
        if self.down is not None:
            raise self._is_down()
        agents = self._agents
        agents.told()
        envelope = Envelope(branch, payload, None, begin, generation=generation, over=agents.untell)
        sender = branch.parent
        if sender is not None:
            sender.children[branch] = None
        try:
            taken = self.box.put(envelope)
            if not taken:
                envelope.finish()
            elif envelope.room is not None:
                await envelope.room.wait(partial(self._abandon, envelope))
        except Exception:
            envelope.finish()
            raise
        finally:
            if sender is not None:
                del sender.children[branch]
                branch.parent = None
        return taken

    def notify(self, branch: Branch, begin: Callable[[], Context], payload: object) -> bool:
        """As `tell`, but never waits: without room it is dropped."""
        assert self.box is not None
        if self.down is not None:
            return False
        agents = self._agents
        agents.told()
        envelope = Envelope(branch, payload, None, begin, over=agents.untell)
        taken = False
        if not self.box.full_and_waiting:
            try:
                taken = self.box.put(envelope)
            except Overloaded:
                pass
        if not taken:
            agents.counters.add("agents.broadcasts_dropped")
            envelope.finish()
        return taken

    def after(self, seconds: float, branch: Branch, begin: Callable[[], Context], payload: object) -> Alarm:
        """A message to this life of the agent, which comes in `seconds`, whatever waits.

        Raises:
            Overloaded: too many are to come.

        """
        assert self.box is not None
        box, agents = self.box, self._agents
        if len(self._alarms) >= MAX_ALARMS:
            raise Overloaded(f"agents.{self.agent.name}.alarms", MAX_ALARMS)
        envelope = Envelope(branch, payload, None, begin, generation=self.agent.generation)
        alarm = Alarm(partial(self._forget_alarm, envelope))
        self._alarms[alarm] = None

        def due() -> None:
            if alarm in self._alarms:
                agents.told()
                envelope.over = partial(self._alarm_over, alarm)
                box.put(envelope, lane="control", key=alarm)

        agents.timer.add(alarm.cell, trio.current_time() + seconds, due)
        return alarm

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
        self._scope = trio.CancelScope()
        try:
            with self._scope:
                try:
                    await self._make(life, task_status.started)
                except Exception as exc:
                    self._crashed(life, exc)
        finally:
            life.end("the fabric ends", stopped=True)
            life.cancel()
            self.life = self._current = None
            for alarm in list(self._alarms):
                self._agents.timer.discard(alarm.cell)
            self._alarms.clear()
            if self.box is not None:
                self.box.forget("control")
            self._gone.set()
        if not life.handler:
            task_status.started()  # it never came up, as the group learns now
        if not life.stopped:
            self.group.ended(self, life)

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
            self.box.clear(self._is_down)
        waiting, self._waiting = self._waiting, {}
        for cell in waiting:
            cell.fail(self._is_down())

    def finish(self) -> None:
        """End this life as the handler wishes."""
        if self._current is not None:
            self._current.end("it ended itself")

    # Inside

    def _is_down(self) -> AgentDown:
        error = AgentDown(self.agent.name, self.down or "the fabric ends")
        error.__cause__ = self._down_cause
        return error

    def _tell(self, what: What, cause: Exception | None = None) -> None:
        if self._agents.monitors.looking:
            self._agents.monitors.tell(Notice(self.agent.name, self.agent.generation, what, cause))

    def _crashed(self, life: Life, exc: Exception) -> None:
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
        life.handler = handler
        self.life = life
        if self.lives > 1:
            self._agents.counters.add("agents.restarts")
            self._tell("restarted")
        waiting, self._waiting = self._waiting, {}
        for cell in waiting:
            cell.settle(life)
        ready()
        async with trio.open_nursery() as workers:
            if self.box is not None:
                for _ in range(self.agent.turn.size):
                    workers.start_soon(self._work, self.box, life)
            await life.over.wait()
            if self.box is not None:
                self.box.wake()
            with trio.move_on_after(self.agent.grace):
                await life.wait_idle()
            if life.users:
                self._agents.counters.add("agents.grace_expired")
                life.cancel()
            await life.wait_idle()

    async def _wait_for_life(self) -> Life:
        if self.down is not None:
            raise self._is_down()
        cell = Cell[Life]()
        self._waiting[cell] = None
        return await cell.wait(partial(self._waiting_pop, cell))

    def _waiting_pop(self, cell: Cell[Life]) -> None:
        self._waiting.pop(cell, None)

    async def _run(self, life: Life, branch: Branch, begin: Callable[[], Context], payload: object) -> object:
        """Run in the asker's task."""
        assert life.handler is not None
        with trio.CancelScope() as scope:
            life.users[branch] = scope
            try:
                return await life.handler(begin(), payload)
            except Exception as exc:
                note_way(exc, branch, life.generation)
                if not isinstance(exc, self.agent.raises):
                    self._crashed(life, exc)
                raise
            finally:
                life.leave(branch)
        raise AgentDown(self.agent.name, life.reason)

    async def _post(
        self,
        box: Box,
        branch: Branch,
        begin: Callable[[], Context],
        payload: object,
        *,
        generation: int,
        transfer: bool,
    ) -> object:
        """Ask over the mailbox."""
        deadline = trio.current_effective_deadline()
        reply = Cell[object]()
        envelope = Envelope(branch, payload, reply, begin, deadline=deadline, generation=generation)
        box.put(envelope, lane="transfer" if transfer else "normal")
        try:
            return await reply.wait(partial(self._abandon, envelope))
        finally:
            if envelope.ended is not None:  # cancelled while the handler ran: it is ours, so we join it
                with trio.move_on_after(self.agent.grace, shield=True) as scope:
                    await envelope.ended.wait()
                if scope.cancelled_caught:
                    self._agents.counters.add("agents.join_expired")

    @trio.lowlevel.enable_ki_protection
    def _abandon(self, envelope: Envelope) -> None:
        assert self.box is not None
        if self.box.remove(envelope):
            envelope.finish()
            return
        envelope.abandoned = True
        if envelope.scope is not None:
            envelope.ended = trio.Event()
            envelope.scope.cancel("whoever asked has gone")

    async def _work(self, box: Box, life: Life) -> None:
        """Handle messages until the life is over. One scope serves them all until it is cancelled."""
        while not life.over.is_set():
            with trio.CancelScope() as scope:
                while not life.over.is_set():
                    envelope = await box.take()
                    if envelope is None:
                        break
                    if life.over.is_set():  # it came in the tick of the crash: it is for the next life
                        box.put_back(envelope)
                        break
                    await self._handle(life, scope, envelope)
                    scope.deadline = math.inf  # if it is cancelled, `take` leaves it before it takes anything

    async def _handle(self, life: Life, scope: trio.CancelScope, envelope: Envelope) -> None:
        agent, branch = self.agent, envelope.branch
        if envelope.abandoned:
            envelope.finish()
            return
        if envelope.generation not in (0, life.generation):
            envelope.fail(AgentGone(f"{agent.name}#{envelope.generation}", life.generation))
            envelope.finish()
            return
        assert life.handler is not None
        turn = agent.turn
        turn.admit(branch)
        life.users[branch] = scope
        envelope.scope = scope
        deadline = envelope.deadline
        if envelope.reply is None and agent.deadline != math.inf:
            deadline = trio.current_time() + agent.deadline
        scope.deadline = deadline
        settled = False
        try:
            context = envelope.begin()
            answer = await life.handler(context, envelope.payload)
            settled = True
            if envelope.reply is None:
                self._agents.forward(agent, context, envelope.payload, answer)
            else:
                envelope.reply.settle(answer)
        except Exception as exc:
            settled = True
            self._failed(life, envelope, exc)
        finally:
            if not settled:  # cancelled
                envelope.fail(self._interrupted(life, deadline))
            turn.release(branch)
            life.leave(branch)
            envelope.finish()

    def _failed(self, life: Life, envelope: Envelope, exc: Exception) -> None:
        note_way(exc, envelope.branch, life.generation)
        if isinstance(exc, self.agent.raises):
            envelope.fail(exc)
            return
        crash = AgentCrashed(f"{self.agent.name}#{life.generation}", repr(exc))
        crash.__cause__ = exc
        note_way(crash, envelope.branch, life.generation)
        envelope.fail(crash)
        self._crashed(life, exc)

    def _interrupted(self, life: Life, deadline: float) -> Exception:
        if life.over.is_set():
            return AgentDown(self.agent.name, life.reason)
        if trio.current_time() >= deadline:
            return DeadlineExceeded(f"agent {self.agent.name}")
        return AgentDown(self.agent.name, "the fabric ends")

    def _forget_alarm(self, envelope: Envelope, alarm: Alarm) -> None:
        if self._alarms.pop(alarm, alarm) is None:
            self._agents.timer.discard(alarm.cell)
            if self.box is not None and self.box.remove(envelope):
                envelope.finish()

    def _alarm_over(self, alarm: Alarm) -> None:
        self._alarms.pop(alarm, None)
        self._agents.untell()
