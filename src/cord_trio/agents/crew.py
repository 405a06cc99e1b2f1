"""Agents that work beside a handler: a nursery whose failures leave it as themselves."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from cord_trio.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from cord_trio.agents.budget import Budget
    from cord_trio.counters import Counters

MAX_SPAWNED: Final = 1024
"""Asks of one crew that run at once."""


class Promise:
    """What will come of an ask. Invariant: it ends once.

    Attributes:
        done: set when it has ended.

    """

    def __init__(self) -> None:
        self.done = trio.Event()
        self._value: object = None
        self._error: BaseException | None = None

    async def result(self) -> object:
        """The answer, once it is there; raises what the handler raised."""
        await self.done.wait()
        if self._error is not None:
            raise self._error
        return self._value

    @property
    def error(self) -> BaseException | None:
        """What it ended with, if it failed."""
        return self._error

    def settle(self, value: object = None, error: BaseException | None = None) -> None:
        """End it, unless it has ended."""
        if not self.done.is_set():
            self._value, self._error = value, error
            self.done.set()


class Crew:
    """Asks that run in tasks of their own, as long as the block that opened it at most."""

    def __init__(self, ask: Callable[..., Awaitable[object]], nursery: trio.Nursery, counters: Counters) -> None:
        self.failure: Exception | None = None
        self.running = 0
        self._ask = ask
        self._nursery = nursery
        self._counters = counters

    def spawn(self, agent: str, payload: object = None, *, budget: Budget | None = None) -> Promise:
        """Ask `agent` in a task of its own; see `Context.ask`. If it fails, so does the block.

        Raises:
            Overloaded: too many of this block run.

        """
        if self.running >= MAX_SPAWNED:
            self._counters.add("agents.spawned_full")
            raise Overloaded("agents.spawned", MAX_SPAWNED)
        self.running += 1
        answer = Promise()
        self._nursery.start_soon(self._run, answer, agent, payload, budget, name=f"spawned {agent}")
        return answer

    async def _run(self, answer: Promise, agent: str, payload: object, budget: Budget | None) -> None:
        try:
            answer.settle(await self._ask(agent, payload, budget))
        except Exception as exc:
            answer.settle(error=exc)
            self.failure = self.failure or exc
            self._nursery.cancel_scope.cancel(f"another that was spawned failed: {exc!r}")
        finally:
            self.running -= 1


@asynccontextmanager
async def open_crew(
    ask: Callable[[str, Any, Any], Awaitable[object]], counters: Counters
) -> AsyncGenerator[Crew, None]:
    """A block with a `Crew`. It ends when all have; its error, or else theirs, leaves it bare."""
    block_error: Exception | None = None
    async with trio.open_nursery() as nursery:
        crew = Crew(ask, nursery, counters)
        try:
            yield crew
        except Exception as exc:
            block_error = exc
            nursery.cancel_scope.cancel(f"the block failed: {exc!r}")
    if block_error is not None:
        raise block_error
    if crew.failure is not None:
        raise crew.failure
