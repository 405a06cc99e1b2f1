"""Calls that ask in the middle of them, while the caller's own request has ended.

A modern caller's request ends when it is asked something; the work that it asked for goes on, and waits. So a caller
attaches to such a call, is detached when it is asked, and attaches again with its answers. It is never made anew: it
may have had effects. Legacy servers make such calls (`running`), and agents (`agents.inquiring`).
"""

from __future__ import annotations

import math
import secrets
from abc import ABC, abstractmethod
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import outcome
import trio
from msgspec import Raw

from cord_trio.call import InputRequired
from cord_trio.cell import Cell
from cord_trio.errors import BadReply, CallFailed, DeadlineExceeded, Malformed, Overloaded
from cord_trio.observe import Node
from cord_trio.protocol.jsonrpc import INTERNAL_ERROR, INVALID_PARAMS, members, object_of
from cord_trio.protocol.questions import CANCELLED, ELICIT, answer_fault, inner, progress_token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cord_trio.call import Call, Outcome
    from cord_trio.cell import Timer
    from cord_trio.counters import Counters
    from cord_trio.errors import Executed
    from cord_trio.protocol.jsonrpc import Id

GATHER: Final = 0.03
"""Seconds in which further questions join the first, to be put together."""

TICK: Final = 15.0
"""Seconds between signs to a server that its question is being answered, if it wants them."""

LAST_WORD: Final = 1.0
"""Seconds that a server has to end by itself a call whose questions nobody answered, before it is cancelled."""

MAX_QUESTIONS: Final = 32
"""Questions of one call that wait for an answer."""

MAX_PARKS: Final = 10_000
"""Calls of all principals that wait for answers."""

ANSWERS: Final = "inputResponses"


class Question:
    """One question of a server, waiting for its answer."""

    __slots__ = ("answer", "error", "id", "key", "method", "params", "settled")

    def __init__(self, id: Id, method: str, params: Raw) -> None:
        self.id = id
        self.key = ""
        self.method = method
        self.params = params
        self.settled = trio.Event()
        self.answer = b""
        self.error: CallFailed | None = None

    def settle(self, answer: bytes) -> None:
        """Answer it."""
        self.answer = answer
        self.settled.set()

    def give_up(self, why: str) -> None:
        """Nobody will answer it (MCP 2025-11-25, elicitation: the user did not choose)."""
        if self.method == ELICIT:
            self.settle(CANCELLED)
        else:
            self.error = CallFailed(INTERNAL_ERROR, why)
            self.settled.set()


class Parks:
    """The calls of one fabric that wait for answers, each under a token that is good for one retry.

    Invariants: a token leads to one call, and is used once; a call has a token only while no caller is attached.
    """

    def __init__(self, *, bound: int, time: float, timer: Timer, counters: Counters, total: int = MAX_PARKS) -> None:
        self.time = time
        self.timer = timer
        self.counters = counters
        self._bound = bound
        self._total = total
        self._calls: dict[str, Parked] = {}
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._calls)

    def park(self, running: Parked) -> str:
        """A token for `running`.

        Raises:
            Overloaded: too many calls wait.

        """
        principal = running.call.principal
        if self._held[principal] >= self._bound or len(self._calls) >= self._total:
            self.counters.add("parks.refused")
            full = self._held[principal] >= self._bound
            raise Overloaded("bounds.parks" if full else "parks", self._bound if full else self._total)
        token = secrets.token_urlsafe(24)
        self._calls[token] = running
        self._held[principal] += 1
        self.counters.add("parks.parked")
        return token

    def nodes(self, most: float = math.inf) -> list[Node]:
        """The calls that wait, the longest first, for the live tree; without the tokens, which are their callers'."""
        now = trio.current_time()
        return [running.node(now) for number, running in enumerate(self._calls.values()) if number < most]

    def find(self, call: Call) -> Parked:
        """The call that waits for `call`.

        Raises:
            CallFailed: none does, or it is not its caller's.

        """
        running = self._calls.get(call.park)
        if running is not None:
            its = running.call
            if (its.principal, its.method, its.name) == (call.principal, call.method, call.name):
                return running
        self.counters.add("parks.unknown")
        raise CallFailed(INVALID_PARAMS, "unknown or expired requestState", executed="no")

    async def resume(self, call: Call) -> Outcome:
        """How the call that waits for `call` goes on. Raises as `find`, and as the call itself ends."""
        running = self.find(call)
        return await running.resume(call)

    def release(self, token: str) -> None:
        """Nobody can use `token` any more."""
        running = self._calls.pop(token, None)
        if running is not None:
            principal = running.call.principal
            self._held[principal] -= 1
            if not self._held[principal]:
                del self._held[principal]

    def abandon(self, token: str, reason: str) -> None:
        """The caller will not come back for this call."""
        running = self._calls.get(token)
        if running is not None:
            running.expire(reason)

    async def wait_moot(self, token: str) -> None:
        """Return once the call under `token` wants no answer any more: it has ended, or withdrew its questions."""
        running = self._calls.get(token)
        if running is None:
            await trio.lowlevel.checkpoint()
        else:
            await running.moot.wait()

    def close(self) -> None:
        """Give up all calls: the fabric has ended."""
        for running in tuple(self._calls.values()):
            running.cancel("the fabric has ended")


class Parked(ABC):
    """One call on its way that may ask its caller in the middle of it.

    It is attached to one caller, or parked under a token, or over. Over and parked: the result waits too.

    Attributes:
        call: as it was made first.
        over: whether it has ended.
        moot: set once what it was last parked for needs no answer any more.

    """

    def __init__(self, call: Call, parks: Parks) -> None:
        """Make one: `call`, and where it waits for its caller."""
        self.call = call
        self.over = False
        self.moot = trio.Event()
        self._parks = parks
        self._waiter: Cell[Outcome] | None = None
        self._attached = call
        self._token = ""
        self._expires = math.inf
        self._questions: dict[Question, None] = {}
        self._asked = 0
        self._result: outcome.Outcome[Any] | None = None
        self._progress: Raw | None = None
        self._gathering = Cell[None]()
        self._leaving = Cell[None]()

    def node(self, now: float) -> Node:
        """What it waits for, and how long that may take from `now` on."""
        asks = sorted({each.method for each in self._questions if not each.settled.is_set()})
        facts = {"source": self.source, "principal": self.call.principal, "asks": ", ".join(asks)}
        state = "over" if self.over else "asks"
        return Node("question", self.call.name or self.call.method, state, {
            **facts, "answer_in": round(self._expires - now, 3),
        })  # fmt: skip

    @property
    def parked(self) -> bool:
        """Whether it waits for its caller."""
        return bool(self._token)

    @property
    @abstractmethod
    def source(self) -> str:
        """Whose call it is."""

    @abstractmethod
    def _stop(self, reason: str) -> bool:
        """Have the work end, which has not; nobody wants its result. Returns whether it may still go on for a while."""

    @abstractmethod
    def _executed(self) -> Executed:
        """Whether it may have run."""

    @abstractmethod
    def _until(self, deadline: float) -> None:
        """Trio time by which it ends from now on."""

    def _ordered(self, open: list[Question]) -> list[Question]:
        """The open questions in the order in which they are put."""
        return open

    @abstractmethod
    def _tick(self, token: int | str, ticks: int) -> None:
        """Show whoever asked a question that it is being answered."""

    @abstractmethod
    def _over(self, left: bool) -> None:
        """It is over; `left`: it may still go on for a while."""

    async def resume(self, call: Call) -> Outcome:
        """Bring the answers of `call`, and wait until the work ends or asks again.

        Raises:
            CallFailed: the answers make no sense; they can be brought again.
            CallError: it ended without a result.

        """
        answers = self._checked(call)
        self._unpark()
        for question, answer in answers.items():
            question.settle(bytes(answer))
        return await self._attach(call)

    async def ask(self, id: Id, method: str, params: Raw) -> bytes:
        """The caller's answer to the question `id` of whoever does the work.

        Raises:
            CallFailed: nobody answers.

        """
        if len(self._questions) >= MAX_QUESTIONS:
            raise CallFailed(INTERNAL_ERROR, f"more than {MAX_QUESTIONS} questions at once")
        question = Question(id, method, params)
        self._questions[question] = None
        self._gather()
        token = progress_token(params)
        ticks = 0
        try:
            while not question.settled.is_set():
                with trio.move_on_after(TICK):
                    await question.settled.wait()
                ticks += 1
                if token is not None and not question.settled.is_set():
                    self._tick(token, ticks)
        finally:
            self._drop(question)
        if question.error is not None:
            raise question.error
        return question.answer

    @trio.lowlevel.enable_ki_protection
    def cancel(self, reason: str) -> None:
        """Stop the work, and forget it."""
        self._unpark()
        self._finish(left=not self.over and self._stop(reason))
        self._give_up(reason)

    @trio.lowlevel.enable_ki_protection
    def expire(self, reason: str = "nobody answered in time") -> None:
        """Nobody will come back: whoever asks hears that its questions have no answer, and may end by itself."""
        self._parks.counters.add("parks.expired")
        self._unpark()
        if self.over:
            return
        self._give_up(reason)
        self._leaving = Cell()
        self._parks.timer.add(self._leaving, trio.current_time() + LAST_WORD, partial(self.cancel, reason))

    # Its caller

    async def _attach(self, call: Call) -> Outcome:
        self._attached = call
        self._until(call.deadline)
        result, self._result = self._result, None
        if result is not None:
            await trio.lowlevel.checkpoint()
            return result.unwrap()  # type: ignore[no-any-return]  # it is ours
        waiter: Cell[Outcome] = Cell()
        self._waiter = waiter
        timer = self._parks.timer
        timer.add(waiter, call.deadline, self._late)
        progress, self._progress = self._progress, None
        if progress is not None and call.events is not None:
            call.events("notifications/progress", progress)
        self._gather()
        try:
            return await waiter.wait(self._left)
        finally:
            timer.discard(waiter)

    def _left(self) -> None:
        """The caller was cancelled, or is gone (MCP 2026-07-28, cancellation)."""
        self._waiter = None
        self.cancel("the caller was cancelled")

    def _late(self) -> None:
        """The caller's deadline passed."""
        waiter, self._waiter = self._waiter, None
        executed = self._executed()
        self.cancel("the deadline passed")
        if waiter is not None:
            waiter.fail(DeadlineExceeded(f"{self.source}: {self.call.method}", executed))

    def _checked(self, call: Call) -> Mapping[Question, Raw]:
        """The answers of `call` to questions that are open, each as its method wants it."""
        try:
            given = members(call.params.get(ANSWERS, Raw(b"{}")))
        except Malformed as exc:
            raise CallFailed(INVALID_PARAMS, f"{ANSWERS} is not an object", executed="no") from exc
        answers = {each: given[each.key] for each in self._questions if each.key in given and not each.settled.is_set()}
        for question, answer in answers.items():
            fault = answer_fault(question.method, answer)
            if fault is not None:
                what = f"the answer {question.key!r} makes no sense: {fault}"
                raise CallFailed(INVALID_PARAMS, what, executed="no")
        return answers

    # Whoever does the work

    @trio.lowlevel.enable_ki_protection
    def _conclude(self, final: outcome.Outcome[Any]) -> None:
        """The work has ended, in whichever way."""
        self._finish()
        self._give_up("the call has ended")
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            self._result = final
        elif isinstance(final, outcome.Value):
            waiter.settle(final.value)
        elif isinstance(final, outcome.Error):
            waiter.fail(final.error if isinstance(final.error, Exception) else BadReply(repr(final.error)))

    def _told(self, method: str, params: Raw) -> None:
        """Progress or a log notification of the call."""
        call, waiter = self._attached, self._waiter
        if waiter is None:
            if method == "notifications/progress":
                self._progress = params
            return
        if method == "notifications/progress" and call.patience:
            deadline = min(trio.current_time() + call.patience, call.latest)
            self._parks.timer.add(waiter, max(deadline, call.deadline), self._late)
        if call.events is not None:
            call.events(method, params)

    # In between

    def _gather(self) -> None:
        """Put the open questions to the caller, a moment from now."""
        if self._waiter is not None and self._questions:
            self._parks.timer.add(self._gathering, trio.current_time() + GATHER, self._put)

    @trio.lowlevel.enable_ki_protection
    def _put(self) -> None:
        open = [each for each in self._questions if not each.settled.is_set()]
        waiter = self._waiter
        if not open or waiter is None:
            return
        self._waiter = None
        self.moot = trio.Event()
        try:
            self._token = self._parks.park(self)
        except Overloaded as exc:
            exc.executed = "unknown"
            self.cancel("too many calls wait for answers")
            waiter.fail(exc)
            return
        open = self._ordered(open)
        for each in open:
            if not each.key:
                self._asked += 1
                each.key = f"q{self._asked}"
        asked = object_of({each.key: inner(each.method, each.params) for each in open})
        self._leaving = Cell()
        self._expires = trio.current_time() + self._parks.time
        self._parks.timer.add(self._leaving, self._expires, self.expire)
        self._until(math.inf)  # none runs while nobody waits
        result = Raw(b'{"resultType":"input_required","inputRequests":%b}' % asked)
        waiter.settle(InputRequired(result, self._token))

    def _drop(self, question: Question) -> None:
        """Nobody waits for the answer to `question` any more."""
        self._questions.pop(question, None)
        if all(each.settled.is_set() for each in self._questions):
            self.moot.set()

    def _unpark(self) -> None:
        self.moot.set()
        token, self._token = self._token, ""
        if token:
            self._parks.release(token)
        self._parks.timer.discard(self._leaving)

    def _finish(self, *, left: bool = False) -> None:
        """The work is over."""
        self.moot.set()
        if not self.over:
            self.over = True
            self._parks.timer.discard(self._gathering)
            if not self._token:
                self._parks.timer.discard(self._leaving)
            self._over(left)

    def _give_up(self, why: str) -> None:
        for question in self._questions:
            if not question.settled.is_set():
                question.give_up(why)
