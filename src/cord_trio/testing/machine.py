"""A Hypothesis state machine whose rules drive one live Trio run.

Trio runs as a guest: the machine pumps its loop by hand, and only while a rule
waits for an answer. Between rules nothing moves, so invariants see a run at
rest. With a jumping clock the guest never needs Trio's I/O thread, so a
machine that does no real I/O is deterministic.
"""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

import outcome
import trio
from hypothesis.stateful import RuleBasedStateMachine
from trio.testing import MockClock, wait_all_tasks_blocked

from cord_trio.testing.schedule import scheduled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

T = TypeVar("T")

VIRTUAL_LIMIT = 24 * 3600.0
"""Virtual seconds a rule may wait, reached at once when every task is stuck."""


class TrioMachine(RuleBasedStateMachine):
    """Subclass, write plain `def` rules, and reach Trio through `call`.

    Attributes:
        nursery: lives as long as the machine; start background tasks here.
        clock: the run's virtual clock.

    """

    nursery: trio.Nursery

    def __init__(self) -> None:
        super().__init__()
        self.clock = MockClock(autojump_threshold=0)
        self._pending: deque[Callable[[], object]] = deque()
        self._finished: outcome.Outcome[None] | None = None
        self._opened = trio.Event()
        self._at_teardown = ExitStack()
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._pending.append,
            done_callback=self._finish,
            clock=self.clock,
            host_uses_signal_set_wakeup_fd=True,
        )
        self._pump_until(self._opened.is_set)

    def call(self, async_fn: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run `async_fn(*args)` in the machine's nursery until done, then let the run settle.

        Raises:
            trio.TooSlowError: every task is stuck.

        """
        results: list[outcome.Outcome[T]] = []

        async def job() -> None:
            with trio.fail_after(VIRTUAL_LIMIT):
                result = await async_fn(*args)
            await wait_all_tasks_blocked()
            results.append(outcome.Value(result))

        async def contained() -> None:
            try:
                await job()
            except Exception as exc:
                results.append(outcome.Error(exc))

        self.nursery.start_soon(contained, name=async_fn)
        self._pump_until(lambda: bool(results))
        return results[0].unwrap()

    def explore(self, rng: Random) -> None:
        """From now on let `rng` choose the task order. Call it from an `@initialize` rule."""
        self._at_teardown.enter_context(scheduled(rng))

    def teardown(self) -> None:
        """Cancel what is left and end the run."""
        with self._at_teardown:
            if self._finished is None:
                self.nursery.cancel_scope.cancel("machine teardown")
                self._pump_until(lambda: self._finished is not None)
            self._end()

    async def _main(self) -> None:
        async with trio.open_nursery() as self.nursery:
            self._opened.set()
            await trio.sleep_forever()

    def _finish(self, result: outcome.Outcome[None]) -> None:
        self._finished = result

    def _pump_until(self, done: Callable[[], bool]) -> None:
        while not done():
            if self._finished is not None:
                self._end()
                raise AssertionError("the run ended while a rule was waiting")
            self._pending.popleft()()

    def _end(self) -> None:
        """Raise what ended the run, if it was an error; only once, since the rule that met it has said so."""
        assert self._finished is not None
        finished, self._finished = self._finished, outcome.Value(None)
        finished.unwrap()
