"""What an agent with a mailbox does with it: takes messages, handles them one after the other, answers.

All that a message's sender would have given by the language goes along in its envelope. Whoever waits for an
answer and leaves takes the handler along: its scope is cancelled, and joined.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.agents.agent import PLACE, Handoff, handoffs_in
from cord_trio.agents.answering import asker_of
from cord_trio.agents.context import Context
from cord_trio.agents.elsewhere import Distant
from cord_trio.agents.life import Alarm
from cord_trio.agents.mailbox import Box, Envelope
from cord_trio.agents.turn import note_way
from cord_trio.cell import Cell
from cord_trio.errors import AgentCrashed, AgentDown, AgentGone, DeadlineExceeded, Overloaded
from cord_trio.mesh_errors import AgentMoved

if TYPE_CHECKING:
    from cord_trio.agents.agent import Step
    from cord_trio.agents.directory import Agents
    from cord_trio.agents.life import Life
    from cord_trio.agents.mailbox import Mailbox
    from cord_trio.agents.resident import Resident
    from cord_trio.agents.turn import Branch

MAX_ALARMS: Final = 1024
"""Timers of one agent that may be running."""

QUANTUM: Final = 8
"""Messages that are handled one after the other, where more are waiting, before others run."""


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

    async def tell(self, branch: Branch, payload: object, generation: int) -> bool:
        """Put in a message, once there is room, and return whether it was taken. Cancelled, it is not there.

        Raises:
            AgentDown: there is no life, and will be none.
            Overloaded: there is no room.
            CallCycle: waiting for room would be waiting for ourselves.

        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._resident.down is not None:
            if self._resident.moved:
                return await self._tell_there(branch, payload)
            raise self._resident.is_down()
        agents, sender = self._agents, branch.parent
        envelope = Envelope(branch, payload, None, (), math.inf, generation, agents.untell)
        agents.untold += 1
        if sender is not None:
            sender.children[branch] = None
        try:
            taken = self.box.put(envelope)
        except Exception:
            self._told(branch)
            envelope.finish()
            raise
        if envelope.room is not None:
            try:
                await envelope.room.wait(partial(self._abandon, envelope))
                return True
            except AgentMoved:
                pass
            finally:
                self._told(branch)
            return await self._tell_there(branch, payload)
        if sender is not None:
            self._told(branch)
        if not taken:
            envelope.finish()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return taken

    async def _tell_there(self, branch: Branch, payload: object) -> bool:
        """As `tell`, where the agent has moved to, after all that was told here before."""
        resident = self._resident
        await resident.led.wait()
        agent, _ = self._agents.find(f"{self._agent.name}{PLACE}{resident.moved}")
        if not isinstance(agent, Distant):
            raise resident.is_down()
        return await agent.send(branch, payload)

    def told(self) -> list[Envelope]:
        """The messages that were taken and that nobody waits for, out of the queue again, in their order."""
        found: list[Envelope] = []
        while taken := [each for each in self.box.queued() if each.reply is None and _is_in(each)]:
            found += [each for each in taken if self.box.remove(each)]  # which may make room for others
        return found

    def _told(self, branch: Branch) -> None:
        """Its sender waits for it no more."""
        if branch.parent is not None:
            del branch.parent.children[branch]
            branch.parent = None

    def notify(self, branch: Branch, payload: object) -> bool:
        """As `tell`, but never waits: without room it is dropped."""
        if self._resident.down is not None:
            return False
        agents = self._agents
        envelope = Envelope(branch, payload, None, over=agents.untell)
        agents.untold += 1
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

    def after(self, seconds: float, branch: Branch, payload: object) -> Alarm:
        """A message to this life of the agent, which comes in `seconds`, whatever waits.

        Raises:
            Overloaded: too many are to come.

        """
        box, agents = self.box, self._agents
        if len(self._alarms) >= MAX_ALARMS:
            agents.counters.add("agents.alarms_full")
            raise Overloaded(f"agents.{self._agent.name}.alarms", MAX_ALARMS)
        envelope = Envelope(branch, payload, None, generation=self._agent.generation)
        alarm = Alarm(partial(self._forget_alarm, envelope))
        self._alarms[alarm] = None

        def due() -> None:
            if alarm in self._alarms:
                agents.untold += 1
                envelope.over = partial(self._alarm_over, alarm)
                box.put(envelope, lane="control")

        agents.timer.add(alarm.cell, trio.current_time() + seconds, due)
        return alarm

    async def ask(
        self,
        branch: Branch,
        payload: object,
        transcript: tuple[Step, ...],
        *,
        generation: int,
        transfer: bool,
    ) -> object:
        """Ask over the mailbox."""
        deadline = trio.current_effective_deadline()
        reply = Cell[object]()
        envelope = Envelope(branch, payload, reply, transcript, deadline, generation)
        asker = asker_of(branch)
        if asker is not None and asker.deadline == deadline:
            envelope.asker = asker
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
        """Handle messages until the life is over. One scope serves them all until it may have been cancelled."""
        while not life.ended:
            with trio.CancelScope() as scope:
                await self._work(life, scope)

    async def _work(self, life: Life, scope: trio.CancelScope) -> None:
        """Handle messages, which may cancel `scope`.

        Those that wait are handled without a pause, as long as their context variables are the same, since a turn of
        the loop costs more than all that is done here; but no more than `QUANTUM`.
        """
        agents, agent, box, task = self._agents, self._agent, self.box, trio.lowlevel.current_task()
        turn, handler = agent.turn, life.handler
        assert handler is not None
        more = 0
        while not life.ended:
            envelope = await box.take(task, on=more > 0)  # where `scope` is cancelled, this leaves it
            if envelope is None:
                return
            if life.ended:  # it came in the tick of the crash: it is for the next life
                box.put_back(envelope)
                return
            more = more - 1 if more else QUANTUM - 1
            if envelope.abandoned or envelope.generation not in (0, life.generation):
                if not envelope.abandoned:
                    envelope.fail(AgentGone(f"{agent.name}#{envelope.generation}", life.generation))
                envelope.finish()
                continue
            branch, reply = envelope.branch, envelope.reply
            turn.holders[branch] = None  # nobody else waits for it: there is one task for each
            branch.holds = turn
            life.users[branch] = scope
            deadline = agent.deadline
            if reply is not None:
                envelope.scope = scope
                deadline = envelope.deadline
                if envelope.asker is not None:
                    envelope.asker.bind(scope)
                    deadline = scope.deadline
            elif deadline != math.inf:
                deadline += trio.current_time()
            if deadline != math.inf:
                scope.deadline = deadline  # only then: setting one costs as much as all else
            settled = False
            try:
                context = Context(agents, branch, agent, envelope.transcript, agents.snapshot())
                answer = await handler(context, envelope.payload)
                settled = True
                if reply is not None:
                    reply.settle(answer)
                elif type(answer) is Handoff or (answer is not None and handoffs_in(answer)):
                    agents.forward(agent, context, envelope.payload, answer)
            except Exception as exc:
                settled = True
                self._failed(life, envelope, exc)
            finally:
                if not settled:  # cancelled
                    envelope.fail(self._interrupted(life, scope.deadline))
                if envelope.asker is not None:
                    envelope.asker.release(scope)
                del turn.holders[branch]
                branch.holds = None
                del life.users[branch]
                if life.ended:
                    life.left()
                if envelope.over is not None:  # as `finish` does
                    envelope.over()
                elif envelope.ended is not None:
                    envelope.ended.set()
            if deadline != math.inf or envelope.asker is not None:
                scope.deadline = math.inf
                more = 0  # it may have passed
            elif envelope.abandoned:
                more = 0

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
        if life.ended:
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


def _is_in(envelope: Envelope) -> bool:
    """Whether a message that waits has its room, if it had to wait for that."""
    return envelope.room is None or envelope.room.settled
