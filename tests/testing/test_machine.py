"""The state machine base finds what it should, and says so at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test

from cord_trio.testing.machine import TrioMachine

if TYPE_CHECKING:
    import random

QUICK = settings(max_examples=30, stateful_step_count=15, deadline=None, database=None)


class CounterMachine(TrioMachine):
    """A task that counts what it is sent agrees with a plain number."""

    def __init__(self) -> None:
        self.threads = set(threading.enumerate())
        super().__init__()

    @initialize(rng=st.randoms(use_true_random=False))
    def open(self, rng: random.Random) -> None:
        self.explore(rng)
        self.expected = self.counted = 0
        self.sender, self.receiver = trio.open_memory_channel[int](0)
        self.nursery.start_soon(self.count)

    async def count(self) -> None:
        with self.receiver:
            async for number in self.receiver:
                self.counted += number

    @rule(numbers=st.lists(st.integers(), min_size=1, max_size=4))
    def send(self, numbers: list[int]) -> None:
        async def together() -> None:
            async with trio.open_nursery() as nursery:
                for number in numbers:
                    nursery.start_soon(self.sender.send, number)

        self.call(together)
        self.expected += sum(numbers)

    @rule(seconds=st.floats(0.1, 3600))
    def wait(self, seconds: float) -> None:
        before = self.clock.current_time()
        self.call(trio.sleep, seconds)
        assert self.clock.current_time() - before >= seconds * 0.999

    @invariant()
    def agrees_with_the_number(self) -> None:
        assert self.counted == self.expected
        assert set(threading.enumerate()) <= self.threads


CounterMachine.TestCase.settings = QUICK
TestCounter = CounterMachine.TestCase


class StuckMachine(TrioMachine):
    """Its only rule waits for ever."""

    @rule()
    def wait(self) -> None:
        self.call(trio.sleep_forever)


def test_a_stuck_rule_fails_at_once() -> None:
    with pytest.raises(trio.TooSlowError):
        run_state_machine_as_test(StuckMachine, settings=settings(max_examples=1, database=None))


class CrashingMachine(TrioMachine):
    """A background task of its dies."""

    @rule()
    def start(self) -> None:
        async def crash() -> None:
            await trio.lowlevel.checkpoint()
            raise ValueError("background")

        self.nursery.start_soon(crash)
        self.call(trio.sleep, 1)


def test_a_background_task_that_dies_fails_the_rule_with_its_error() -> None:
    with pytest.RaisesGroup(ValueError, flatten_subgroups=True):
        run_state_machine_as_test(CrashingMachine, settings=settings(max_examples=1, database=None))


def test_a_rule_gets_the_error_of_what_it_called() -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("mine")

    machine = StuckMachine()
    with pytest.raises(KeyError, match="mine"):
        machine.call(fail)
    machine.teardown()
