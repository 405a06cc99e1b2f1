"""What an agent with a mailbox does with it: takes messages, handles them one after the other, answers.

All that a message's sender would have given by the language goes along in its envelope. Whoever waits for an
answer and leaves takes the handler along: its scope is cancelled, and joined.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.agents.agent import Handoff
from cord_trio.agents.life import Alarm
from cord_trio.agents.mailbox import Box, Envelope
from cord_trio.agents.turn import note_way
from cord_trio.cell import Cell
from cord_trio.errors import AgentCrashed, AgentDown, AgentGone, DeadlineExceeded, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from cord_trio.agents.context import Context
    from cord_trio.agents.directory import Agents
    from cord_trio.agents.life import Life
    from cord_trio.agents.mailbox import Mailbox
    from cord_trio.agents.resident import Resident
    from cord_trio.agents.turn import Branch

MAX_ALARMS: Final = 1024
"""Timers of one agent that may be running."""


class Post:
    """The mailbox of one agent, from both sides, from one life to the next.

    Attributes:
        box: the messages.

    """

    def __init__(self, agents: Agents, resident: Resident, mailbox: Mailbox) -> None:
        self.box = Box(mailbox, resident.agent.turn, agents.counters)
        self._agents = agents
        self._agent = resident.agent
        self._resident = resident
        self._alarms: dict[Alarm, None] = {}

    def forget_alarms(self) -> None:
        """The life that set them is over."""
        for alarm in self._alarms:
            self._agents.timer.discard(alarm.cell)
        self._alarms.clear()
        self.box.forget("control")

    def tell(
        self, branch: Branch, begin: Callable[[], Context], payload: object, *, generation: int
    ) -> Envelope | None:
        """The message, None if it was dropped. Where it has to wait for room, `wait_room` comes next.

        Raises:
            AgentDown: there is no life, and will be none.
            Overloaded: there is no room.
            CallCycle: waiting for room would be waiting for ourselves.

        """
        if self._resident.down is not None:
            raise self._resident.is_down()
        agents = self._agents
        agents.told()
        envelope = Envelope(branch, payload, None, begin, generation=generation, over=agents.untell)
        sender = branch.parent
        if sender is not None:
            sender.children[branch] = None
        waits = False
        try:
            if not self.box.put(envelope):
                envelope.finish()
                return None
            waits = envelope.room is not None
            return envelope
        except Exception:
            envelope.finish()
            raise
        finally:
            if sender is not None and not waits:
                self._told(branch)

    async def wait_room(self, envelope: Envelope) -> None:
        """Return once there is room for a message. Cancelled, it is not there. Raises as `tell` does."""
        assert envelope.room is not None
        try:
            await envelope.room.wait(partial(self._abandon, envelope))
        except Exception:
            envelope.finish()
            raise
        finally:
            self._told(envelope.branch)

    def _told(self, branch: Branch) -> None:
        """Its sender waits for it no more."""
        if branch.parent is not None:
            del branch.parent.children[branch]
            branch.parent = None

    def notify(self, branch: Branch, begin: Callable[[], Context], payload: object) -> bool:
        """As `tell`, but never waits: without room it is dropped."""
        if self._resident.down is not None:
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
        box, agents = self.box, self._agents
        if len(self._alarms) >= MAX_ALARMS:
            agents.counters.add("agents.alarms_full")
            raise Overloaded(f"agents.{self._agent.name}.alarms", MAX_ALARMS)
        envelope = Envelope(branch, payload, None, begin, generation=self._agent.generation)
        alarm = Alarm(partial(self._forget_alarm, envelope))
        self._alarms[alarm] = None

        def due() -> None:
            if alarm in self._alarms:
                agents.told()
                envelope.over = partial(self._alarm_over, alarm)
                box.put(envelope, lane="control", key=alarm)

        agents.timer.add(alarm.cell, trio.current_time() + seconds, due)
        return alarm

    async def ask(
        self,
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
        self.box.put(envelope, lane="transfer" if transfer else "normal")
        try:
            return await reply.wait(partial(self._abandon, envelope))
        finally:
            if envelope.ended is not None:  # cancelled while the handler ran: it is ours, so we join it
                with trio.move_on_after(self._agent.grace, shield=True) as scope:
                    await envelope.ended.wait()
                if scope.cancelled_caught:
                    self._agents.counters.add("agents.join_expired")

    @trio.lowlevel.enable_ki_protection
    def _abandon(self, envelope: Envelope) -> None:
        if self.box.remove(envelope):
            envelope.finish()
            return
        envelope.abandoned = True
        if envelope.scope is not None:
            envelope.ended = trio.Event()
            envelope.scope.cancel("whoever asked has gone")

    async def work(self, life: Life) -> None:
        """Handle messages until the life is over. One scope serves them all until it is cancelled."""
        while not life.over.is_set():
            with trio.CancelScope() as scope:
                while not life.over.is_set():
                    envelope = await self.box.take()
                    if envelope is None:
                        break
                    if life.over.is_set():  # it came in the tick of the crash: it is for the next life
                        self.box.put_back(envelope)
                        break
                    if await self._handle(life, scope, envelope):
                        scope.deadline = math.inf  # if it is cancelled, `take` leaves it before it takes anything

    async def _handle(self, life: Life, scope: trio.CancelScope, envelope: Envelope) -> bool:
        """Handle one message; returns whether `scope` has its deadline, since setting one costs as much as all else."""
        agent, branch = self._agent, envelope.branch
        if envelope.abandoned:
            envelope.finish()
            return False
        if envelope.generation not in (0, life.generation):
            envelope.fail(AgentGone(f"{agent.name}#{envelope.generation}", life.generation))
            envelope.finish()
            return False
        assert life.handler is not None
        turn = agent.turn
        turn.admit(branch)
        life.users[branch] = scope
        envelope.scope = scope
        deadline = envelope.deadline
        if envelope.reply is None and agent.deadline != math.inf:
            deadline = trio.current_time() + agent.deadline
        limited = deadline != math.inf
        if limited:
            scope.deadline = deadline
        settled = False
        try:
            context = envelope.begin()
            answer = await life.handler(context, envelope.payload)
            settled = True
            if envelope.reply is not None:
                envelope.reply.settle(answer)
            elif type(answer) is Handoff:
                self._agents.forward(agent, context, envelope.payload, answer)
        except Exception as exc:
            settled = True
            self._failed(life, envelope, exc)
        finally:
            if not settled:  # cancelled
                envelope.fail(self._interrupted(life, deadline))
            turn.release(branch)
            life.leave(branch)
            envelope.finish()
        return limited

    def _failed(self, life: Life, envelope: Envelope, exc: Exception) -> None:
        note_way(exc, envelope.branch, life.generation)
        if isinstance(exc, self._agent.raises):
            envelope.fail(exc)
            return
        crash = AgentCrashed(f"{self._agent.name}#{life.generation}", repr(exc))
        crash.__cause__ = exc
        note_way(crash, envelope.branch, life.generation)
        envelope.fail(crash)
        self._resident.crashed(life, exc)

    def _interrupted(self, life: Life, deadline: float) -> Exception:
        if life.over.is_set():
            return AgentDown(self._agent.name, life.reason)
        if trio.current_time() >= deadline:
            return DeadlineExceeded(f"agent {self._agent.name}")
        return AgentDown(self._agent.name, "the fabric ends")

    def _forget_alarm(self, envelope: Envelope, alarm: Alarm) -> None:
        if self._alarms.pop(alarm, alarm) is None:
            self._agents.timer.discard(alarm.cell)
            if self.box.remove(envelope):
                envelope.finish()

    def _alarm_over(self, alarm: Alarm) -> None:
        self._alarms.pop(alarm, None)
        self._agents.untell()
