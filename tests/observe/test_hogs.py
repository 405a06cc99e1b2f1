from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel

import cord_trio as cord
from cord_trio.agents import Mailbox
from cord_trio.counters import Counters
from cord_trio.observe import hogs
from cord_trio.observe.hogs import open_watch

if TYPE_CHECKING:
    from cord_trio.observe import Node


def compute(seconds: float) -> None:
    """Python code that holds the loop."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sum(range(100))


def compute_more(seconds: float) -> None:
    """The same at another place."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sum(range(100))


def hogs_of(fabric: cord.Fabric) -> list[Node]:
    return [node for node in fabric.tree().children if node.kind == "hog"]


async def hog(ctx: cord.Context, seconds: float) -> str:
    await trio.lowlevel.checkpoint()
    compute(seconds)
    return "computed"


async def polite(ctx: cord.Context, rounds: int) -> str:
    for _ in range(rounds):
        compute(0.001)
        await trio.lowlevel.checkpoint()
    return "computed"


@pytest.mark.parametrize("boxed", [False, True])
async def test_an_agent_that_computes_for_50_ms_is_named_with_its_line(boxed: bool) -> None:
    for _ in range(10):  # a busy machine may keep the other thread from its look, or us from running
        async with cord.open_fabric() as fabric, fabric.watched():
            fabric.agent("greedy", hog, mailbox=Mailbox(4) if boxed else None)
            fabric.agent("polite", polite)
            await fabric.ask("greedy", 0.05)
            await fabric.ask("polite", 30)
            named = hogs_of(fabric)
            assert fabric.counters["observe.hogs"] >= len(named)
        assert not hogs_of(fabric)
        if [node.name for node in named] == ["greedy#1"]:
            break
    (node,) = named
    assert node.name == "greedy#1"
    assert str(node.facts["where"]).startswith("test_hogs.py:")
    assert str(node.facts["where"]).endswith(" in compute")
    assert int(str(node.facts["longest_ms"])) >= 25


async def test_code_that_lets_nobody_look_is_named_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As C code does that keeps the interpreter to itself."""

    async def sort(ctx: cord.Context, numbers: list[int]) -> int:  # noqa: ASYNC124  # it holds the loop
        numbers.sort()  # one call, some 200 ms
        return len(numbers)

    numbers = [(number * 7919) % 1_000_003 for number in range(1_000_000)]
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-4)
        async with cord.open_fabric() as fabric, fabric.watched():
            fabric.agent("sorter", sort)
            for _ in range(5):
                await trio.sleep(0.03)
                await fabric.ask("sorter", list(numbers))
                if hogs_of(fabric):
                    break
            assert hogs_of(fabric)[0].name == "sorter#1"
    finally:
        sys.setswitchinterval(interval)


async def test_what_is_no_agent_is_named_by_its_function() -> None:
    counters = Counters()

    async def greedy() -> None:  # noqa: ASYNC124  # it holds the loop on purpose
        compute(0.06)

    async with open_watch(lambda frame: None, counters=counters) as watch:
        for _ in range(5):
            async with trio.open_nursery() as nursery:  # noqa: ASYNC112  # the task is the point
                nursery.start_soon(greedy)
            await trio.sleep(0.02)
            found = [hog for hog in watch.hogs if hog.who.endswith("greedy")]  # a busy machine may hold up others
            if found:
                break
    assert found[0].times >= 1


async def test_an_idle_loop_is_left_alone_and_looked_at_again_once_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hogs, "REST", 2)
    monkeypatch.setattr(hogs, "LOOK", 0.001)
    async with open_watch(lambda frame: None, counters=Counters()) as watch:
        await trio.sleep(0.1)
        # Asleep now: this step woke it, and counts.
        for _ in range(20):
            await trio.sleep(0.02)
            compute(0.06)
            await trio.lowlevel.checkpoint()
            if watch.hogs:
                break
        assert watch.hogs


async def test_its_thread_ends_with_the_block_whatever_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hogs, "REST", 1)
    monkeypatch.setattr(hogs, "LOOK", 0.001)
    for pause in (0.0, 0.001, 0.05):
        async with open_watch(lambda frame: None, counters=Counters()):
            assert "cord_trio watch" in [thread.name for thread in threading.enumerate()]
            await trio.sleep(pause)
        assert "cord_trio watch" not in [thread.name for thread in threading.enumerate()]


async def test_of_too_many_places_only_the_number_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hogs, "KEPT", 1)
    counters = Counters()
    async with open_watch(lambda frame: None, counters=counters) as watch:
        for _ in range(10):
            for work in (compute, compute_more):
                work(0.05)
                await trio.sleep(0.001)
            if counters["observe.hogs"] > 1:
                break
    assert len(watch.hogs) == 1
    assert counters["observe.hogs"] > 1
