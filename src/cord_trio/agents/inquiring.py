"""Calls of exported agents whose handlers may ask whoever called them.

A modern client's request ends when it is asked something, and the handler goes on: so it runs in a task of the
fabric's, to which the client is attached. Otherwise it is as if it ran in the caller's: who leaves cancels it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import outcome
import trio
from msgspec import Raw

from cord_trio.agents.answering import Asker
from cord_trio.agents.exporting import progress_of
from cord_trio.errors import CallError, CallFailed, DeadlineExceeded, InputNeeded, Overloaded
from cord_trio.parking import MAX_QUESTIONS, Parked, Question
from cord_trio.protocol.eras import LATEST_LEGACY
from cord_trio.protocol.jsonrpc import INVALID_PARAMS, encode, parse
from cord_trio.protocol.questions import askable, form_fault, may_ask
from cord_trio.registry import AGENTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from cord_trio.agents import answering
    from cord_trio.call import Call, Complete, Outcome
    from cord_trio.errors import Executed
    from cord_trio.parking import Parks
    from cord_trio.protocol.jsonrpc import Json


class Unasked(Asker):
    """A caller that can be asked nothing, and sees progress alone."""

    def __init__(self, call: Call) -> None:
        super().__init__(call.deadline)
        self._call = call

    async def __call__(self, value: object) -> None:
        events = self._call.events
        progress = None if events is None else progress_of(value)
        if events is not None and progress is not None:
            events("notifications/progress", progress)
        await trio.lowlevel.checkpoint()

    async def inquire(self, questions: Mapping[str, answering.Question]) -> Mapping[str, Json]:
        await trio.lowlevel.checkpoint()
        raise _unanswered(self._call, questions)


class Inquiry(Parked, Asker):
    """One call of an exported agent, whose caller can be asked.

    Args:
        call: as it came.
        parks: where it waits for its caller.
        work: what the agent makes of it. Raises `CallError` and nothing else.

    """

    def __init__(self, call: Call, parks: Parks, work: Callable[[Inquiry], Awaitable[Complete]]) -> None:
        super().__init__(call, parks)
        self._work = work
        Asker.__init__(self, call.deadline)
        self._scope = trio.CancelScope()
        self.bind(self._scope)

    async def start(self, nursery: trio.Nursery) -> Outcome:
        """Run it in `nursery`, and wait until it ends or asks. Raises as `work` does."""
        nursery.start_soon(self._run, name=f"call of {self.call.name}")
        return await self._attach(self.call)

    async def __call__(self, value: object) -> None:
        progress = progress_of(value)
        if progress is not None:
            self._told("notifications/progress", progress)
        await trio.lowlevel.checkpoint()

    async def inquire(self, questions: Mapping[str, answering.Question]) -> Mapping[str, Json]:
        declared = parse(askable(self._attached.capabilities, LATEST_LEGACY))
        asked = {key: Question(key, each.method, Raw(encode(each.params))) for key, each in questions.items()}
        if not all(may_ask(declared, each.method, each.params) for each in asked.values()):
            raise _unanswered(self.call, questions)
        if len(self._questions) + len(asked) > MAX_QUESTIONS:
            raise Overloaded("questions", MAX_QUESTIONS)
        for each in asked.values():
            self._questions[each] = None
        self._gather()
        try:
            for each in asked.values():
                await each.settled.wait()
        finally:
            for each in asked.values():
                self._drop(each)
        for each in asked.values():
            if each.error is not None:
                raise each.error
        return {key: parse(each.answer) for key, each in asked.items()}

    def _checked(self, call: Call) -> Mapping[Question, Raw]:
        answers = super()._checked(call)
        for question, answer in answers.items():
            fault = form_fault(question.params, answer)
            if fault is not None:
                what = f"the answer {question.key!r} makes no sense: {fault}"
                raise CallFailed(INVALID_PARAMS, what, executed="no")
        return answers

    @property
    def source(self) -> str:
        return AGENTS

    async def _run(self) -> None:
        final: outcome.Outcome[Any] = outcome.Error(CallError("the fabric has ended", "unknown"))
        try:
            with self._scope:
                final = outcome.Value(await self._work(self))
            if self._scope.cancelled_caught:
                final = outcome.Error(DeadlineExceeded(f"agent {self.call.name}", "unknown"))
        except CallError as exc:
            final = outcome.Error(exc)
        finally:
            self._conclude(final)

    def _stop(self, reason: str) -> bool:
        self._scope.cancel(reason)
        return True

    def _executed(self) -> Executed:
        return "unknown"

    def _until(self, deadline: float) -> None:
        self.move(deadline)

    def _tick(self, token: int | str, ticks: int) -> None:
        """An agent needs no sign that its question is being answered."""

    def _over(self, left: bool) -> None:
        """Nobody keeps account of it."""


def _unanswered(call: Call, questions: Mapping[str, answering.Question]) -> InputNeeded:
    return InputNeeded(call.name or "", sorted({each.method for each in questions.values()}))
