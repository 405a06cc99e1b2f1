"""Answering the questions that a server asks in the middle of an agent's call."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
import trio
from msgspec import Raw
from msgspec.structs import replace

from cord_trio.call import InputRequired
from cord_trio.errors import BadReply, CallError, InputNeeded, Malformed
from cord_trio.protocol.jsonrpc import Json, encode, members, parse
from cord_trio.protocol.questions import ANYTHING

if TYPE_CHECKING:
    from cord_trio.agents.turn import Branch
    from cord_trio.call import Call, Handler, Outcome

ROUNDS: Final = 10
"""Rounds of questions in one call."""

FIRST_WAIT: Final = 0.05
"""Seconds before a server is visited again that asked nothing but to come back; doubles each time."""

ANY_QUESTION: Final = ANYTHING
"""What is declared for a call whose agent answers: all that there is to ask."""


class Question(msgspec.Struct, frozen=True):
    """What a server wants to know: a method, such as `elicitation/create`, and its parameters."""

    method: str
    params: Mapping[str, Json]


Answer: TypeAlias = Callable[[Mapping[str, Question]], Awaitable[Mapping[str, Json]]]
"""Answers questions: the result of each under its key. What is left out is asked again."""


class Asker(ABC):
    """Whoever asked an agent from outside, as its handlers meet it.

    Attributes:
        deadline: Trio time by which it wants its answer; moves while it is asked something itself.

    """

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline = deadline
        self._bound: set[trio.CancelScope] = set()

    def bind(self, scope: trio.CancelScope) -> None:
        """From now on `scope`, of a handler in a task of its own, has our deadline, until `release`."""
        scope.deadline = self.deadline
        self._bound.add(scope)

    def release(self, scope: trio.CancelScope) -> None:
        """It has no more."""
        self._bound.discard(scope)

    def move(self, deadline: float) -> None:
        """Set the deadline, from which no time is taken while someone thinks."""
        self.deadline = deadline
        for scope in self._bound:
            scope.deadline = deadline

    @abstractmethod
    async def __call__(self, value: object) -> None:
        """Show what a handler emits."""

    @abstractmethod
    async def inquire(self, questions: Mapping[str, Question]) -> Mapping[str, Json]:
        """The result of each question under its key.

        Raises:
            InputNeeded: one of them cannot be put.
            CallError: it was not answered.

        """


def asker_of(branch: Branch | None) -> Asker | None:
    """Who asked from outside for what `branch` is part of; None if nobody did who can be asked."""
    while branch is not None:
        if branch.sink is not None and isinstance(branch.sink, Asker):
            return branch.sink
        branch = branch.parent
    return None


class Answering(Asker):
    """One in this process, who answers with a function, and sees nothing of what is emitted."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, value: object) -> None:
        await trio.lowlevel.checkpoint()

    async def inquire(self, questions: Mapping[str, Question]) -> Mapping[str, Json]:
        return await self._answer(questions)


async def go_on(handler: Handler, call: Call, outcome: Outcome, answer: Answer) -> Outcome:
    """How `call` ended, after `answer` has answered all that `outcome` and what follows want to know.

    Raises:
        InputNeeded: the server asks too often.
        CallError: what else can end a call; what `answer` raises comes out as it is.

    """
    waits = 0
    for _ in range(ROUNDS):
        if not isinstance(outcome, InputRequired):
            return outcome
        questions, state = _read(outcome.result)
        again = _retry(call, outcome.park, state, {})
        try:
            if questions:
                again = _retry(call, outcome.park, state, await answer(questions))
            else:
                await trio.sleep(FIRST_WAIT * 2**waits)
                waits += 1
        except BaseException:
            if outcome.park:
                await _let_go(handler, again)  # noqa: ASYNC102  # shielded in there, and cancelled at once
            raise
        try:
            outcome = await handler(again)
        except CallError as exc:
            if exc.executed == "no":
                exc.executed = "unknown"  # that it asked shows that the call was run so far
            raise
    if isinstance(outcome, InputRequired):
        questions, state = _read(outcome.result)
        if outcome.park:
            await _let_go(handler, _retry(call, outcome.park, state, {}))
        raise InputNeeded(call.name or call.method, sorted({each.method for each in questions.values()}))
    return outcome


def methods(result: Raw) -> tuple[str, ...]:
    """What the server asks for."""
    questions, _ = _read(result)
    return tuple(sorted({question.method for question in questions.values()}))


async def _let_go(handler: Handler, call: Call) -> None:
    """Cancel a call that waits for answers: attach to it, and leave."""
    with trio.CancelScope(shield=True) as scope:
        scope.cancel("its questions are not answered")
        await handler(call)


def _retry(call: Call, park: str, state: str | None, answers: Mapping[str, Json]) -> Call:
    more = {"inputResponses": Raw(encode(answers))}
    if park:
        return replace(call, params=more, park=park)
    params = {**call.params, **(more if answers else {})}
    if state is not None:
        params["requestState"] = Raw(encode(state))
    return replace(call, params=params)


def _read(result: Raw) -> tuple[Mapping[str, Question], str | None]:
    """The questions of an `input_required` result by their keys, and the state to bring back, if one was given."""
    try:
        parts = members(result)
        asked = parse(parts.get("inputRequests", b"{}")) or {}
        state = parse(parts.get("requestState", b"null"))
        questions = {key: Question(each["method"], each.get("params") or {}) for key, each in asked.items()}
        if (questions or isinstance(state, str)) and all(isinstance(each.method, str) for each in questions.values()):
            return questions, state
    except (AttributeError, KeyError, Malformed, TypeError, msgspec.DecodeError):
        pass
    raise BadReply("the server asks for input that it does not name")
