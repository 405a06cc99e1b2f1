"""Real pipes, so the system clock: nothing here waits for it."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cord_trio.transports.pump import TURN, Place, Pump, make_pump

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only where there is epoll")


class Pipe:
    """A pipe, and what came through it."""

    def __init__(self, pump: Pump, do: Callable[[bytes], str | None] = lambda _: None) -> None:
        self.fd, self.far = os.pipe()
        os.set_blocking(self.fd, False)
        self.got: list[bytes] = []
        self.over: str | None = None
        self._pump = pump
        self._do = do

    def read(self) -> str | None:
        data = os.read(self.fd, 100)
        self.got.append(data)
        return self._do(data)

    def say(self, data: bytes = b"x") -> None:
        os.write(self.far, data)

    async def keep(self) -> None:
        self.over = await self._pump.keep(self.fd, self.read)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.far)


@asynccontextmanager
async def pumping(*do: Callable[[bytes], str | None]) -> AsyncGenerator[tuple[Pump, list[Pipe], trio.Nursery], None]:
    """A pump that runs, and a pipe for each of `do`, kept by a task of the nursery."""
    pump = Pump()
    pipes = [Pipe(pump, each) for each in do]
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(pump.run)
            for pipe in pipes:
                nursery.start_soon(pipe.keep)
            await trio.testing.wait_all_tasks_blocked()
            yield pump, pipes, nursery
            nursery.cancel_scope.cancel("the test has seen enough")
    finally:
        for pipe in pipes:
            pipe.close()


def nothing(_: bytes) -> None:
    """Go on."""


async def test_all_pipes_that_hold_something_are_read_in_one_turn() -> None:
    async with pumping(*[nothing] * 20) as (_, pipes, _):
        for pipe in pipes:
            pipe.say()
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        assert [pipe.got for pipe in pipes] == [[b"x"]] * 20


async def test_who_says_that_it_is_over_is_not_asked_again() -> None:
    async with pumping(lambda _: "enough", nothing) as (_, (first, second), _):
        first.say()
        await trio.testing.wait_all_tasks_blocked()
        first.say()
        second.say()
        await trio.testing.wait_all_tasks_blocked()
        assert (first.over, first.got, second.got) == ("enough", [b"x"], [b"x"])


async def test_an_error_of_one_reader_is_its_own() -> None:
    def fail(_: bytes) -> None:
        raise KeyError("mine")

    pump = Pump()
    bad, good = Pipe(pump, fail), Pipe(pump)

    async def keep_bad() -> None:
        with pytest.raises(KeyError, match="mine"):
            await bad.keep()

    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        nursery.start_soon(keep_bad)
        nursery.start_soon(good.keep)
        await trio.testing.wait_all_tasks_blocked()
        bad.say()
        good.say()
        await trio.testing.wait_all_tasks_blocked()
        good.say()
        bad.say()
        await trio.testing.wait_all_tasks_blocked()
        assert (good.got, bad.got) == ([b"x", b"x"], [b"x"])
        nursery.cancel_scope.cancel("the test has seen enough")
    bad.close()
    good.close()


async def test_who_is_cancelled_is_forgotten_and_its_descriptor_can_be_anothers() -> None:
    async with pumping(nothing) as (pump, _, nursery):
        gone = Pipe(pump)
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_blocked, scope)
            await gone.keep()
        gone.say()
        gone.close()
        again = Pipe(pump)
        assert again.fd == gone.fd
        nursery.start_soon(again.keep)
        await trio.testing.wait_all_tasks_blocked()
        again.say(b"new")
        await trio.testing.wait_all_tasks_blocked()
        assert (gone.got, again.got) == ([], [b"new"])
        again.close()


async def test_a_pipe_that_nobody_waits_for_is_read_until_it_is_over_or_forgotten_or_fails() -> None:
    def fail(_: bytes) -> None:
        raise KeyError("mine")

    async with pumping(nothing) as (pump, _, _nursery):
        ended, left, bad = Pipe(pump, lambda _: "over"), Pipe(pump), Pipe(pump, fail)
        for pipe in (ended, left, bad):
            pump.watch(pipe.fd, pipe.read)
            pipe.say(b"a")
        await trio.testing.wait_all_tasks_blocked()
        pump.forget(left.fd)
        for pipe in (ended, left, bad):
            pipe.say(b"b")
        await trio.testing.wait_all_tasks_blocked()
        assert (ended.got, left.got, bad.got) == ([b"a"], [b"a"], [b"a"])
        assert not {ended.fd, left.fd, bad.fd} & pump.pipes.keys()
        for pipe in (ended, left, bad):
            pipe.close()


async def test_who_has_not_heard_yet_that_all_ends_changes_nothing() -> None:
    pump = Pump()
    kept, late = Pipe(pump), Pipe(pump)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        pump.watch(kept.fd, kept.read)
        place = Place(pump, kept.fd, lambda _: None)
        other = Place(pump, kept.fd, lambda _: None)
        assert place.take() is place
        nursery.cancel_scope.cancel("all ends")
    place.leave()
    assert other.take() is other
    pump.watch(late.fd, late.read)
    with trio.CancelScope() as scope:
        scope.cancel("all ends")
        await kept.keep()
    for pipe in (kept, late):
        pump.forget(pipe.fd)
        pipe.close()
    assert not pump.pipes


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel("enough")


async def test_a_connection_that_ends_before_its_turn_is_not_read() -> None:
    scope = trio.CancelScope()
    pump = Pump()

    def end_other(_: bytes) -> None:
        scope.cancel("the first ends the second")

    first, second = Pipe(pump, end_other), Pipe(pump)

    async def keep_second() -> None:
        with scope:
            await second.keep()
        second.close()

    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        nursery.start_soon(first.keep)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(keep_second)
        await trio.testing.wait_all_tasks_blocked()
        first.say()
        second.say()
        await trio.testing.wait_all_tasks_blocked()
        assert (first.got, second.got) == ([b"x"], [])
        nursery.cancel_scope.cancel("the test has seen enough")
    first.close()


def busy(_: bytes) -> None:
    until = perf_counter() + TURN
    while perf_counter() < until:
        pass


async def test_a_long_turn_lets_others_run() -> None:
    steps = [0]
    async with pumping(*[busy] * 5) as (_, pipes, _):
        for pipe in pipes:
            pipe.say()
        while not all(pipe.got for pipe in pipes):
            await trio.lowlevel.checkpoint()
            steps.append(sum(bool(pipe.got) for pipe in pipes))
    # Each takes a turn's time. Which of two tasks runs first in a batch is chance, so two of its turns may pass in one.
    assert max(after - before for before, after in pairwise(steps)) <= 2


async def test_what_is_to_be_done_afterwards_comes_when_those_have_run_who_were_woken() -> None:
    order: list[str] = []
    woken = trio.Event()
    async with pumping(lambda _: woken.set()) as (pump, (pipe,), nursery):

        async def wait() -> None:
            await woken.wait()
            order.append("woken")

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        pump.afterwards(partial(order.append, "afterwards"))
        pipe.say()
        await trio.testing.wait_all_tasks_blocked()
    assert order == ["woken", "afterwards"]


async def test_a_place_is_had_by_one_at_a_time_whatever_the_pipe() -> None:
    async with pumping(nothing, nothing) as (pump, (first, second), _):
        one, other = Place(pump, first.fd, lambda _: None), Place(pump, second.fd, lambda _: None)
        assert one.take() is one
        assert other.take() is None
        other.leave()  # who has none gives none back
        assert other.take() is None
        first.say()
        second.say()
        await trio.testing.wait_all_tasks_blocked()
        assert (first.got, second.got) == ([], [b"x"])
        one.leave()
        await trio.testing.wait_all_tasks_blocked()
        assert first.got == [b"x"]
        assert other.take() is other


def test_there_is_a_pump_on_linux() -> None:
    assert isinstance(make_pump(), Pump)
