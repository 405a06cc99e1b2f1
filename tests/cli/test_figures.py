from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
import trio

from cord_trio.cli import figures
from cord_trio.cli.figures import Held, Samples, held, resident_mb
from tests.cli.helpers import waiting_child

if TYPE_CHECKING:
    import subprocess


def test_no_samples_have_percentiles_of_0() -> None:
    assert Samples().percentiles_us(0.5, 0.99) == [0.0, 0.0]


def test_percentiles_are_values_that_were_measured() -> None:
    samples = Samples()
    for number in range(1000, 0, -1):
        samples.add(number / 1e6)
    assert samples.percentiles_us(0, 0.5, 0.99, 0.999, 1) == pytest.approx([1, 501, 991, 1000, 1000])
    assert samples.percentiles_us(0.5, recent=10) == pytest.approx([6])


def test_beyond_the_bound_all_samples_count_alike() -> None:
    samples = Samples(bound=100)
    for number in range(10_000):
        samples.add(number / 1e6)
    (middle,) = samples.percentiles_us(0.5)
    assert samples.seen == 10_000
    assert len(samples._kept) == 100
    assert 2000 < middle < 8000


async def test_what_is_held_longer_is_left() -> None:
    before = held()
    assert held().left_since(before) == []
    reading, writing = os.pipe()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="forgotten")
    thread.start()
    child = waiting_child()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
            left = held().left_since(before)
            nursery.cancel_scope.cancel("seen")
        assert {f"process {child.pid}", f"descriptor {reading}", f"descriptor {writing}", "thread forgotten"} < set(
            left
        )
        assert "2 tasks" in left
    finally:
        stop.set()
        thread.join()
        os.close(reading)
        os.close(writing)
        child.communicate()
    assert held().left_since(before) == []


def zombie() -> subprocess.Popen[bytes]:
    """A child that has ended, and of which nobody asked how."""
    child = waiting_child()
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return child


async def test_a_child_that_nobody_reaped_is_left() -> None:
    before = held()
    child = zombie()
    try:
        assert held().left_since(before) == [f"process {child.pid}"]
    finally:
        child.wait()
    await trio.lowlevel.checkpoint()


async def test_an_idle_worker_thread_of_trio_is_not_left() -> None:
    before = Held(frozenset(), frozenset(range(1000)), frozenset(thread.name for thread in threading.enumerate()), 1000)
    await trio.to_thread.run_sync(time.sleep, 0)
    await trio.sleep(0.05)
    assert held().left_since(before) == []


def test_memory_is_that_of_this_process() -> None:
    assert 5 < resident_mb() < 5000


def test_memory_is_known_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(figures, "open", refuse, raising=False)
    assert 5 < resident_mb() < 5000


def test_children_that_end_while_they_are_looked_for_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", lambda _: ["999999999", "self"])
    assert figures.children() == []


def test_where_there_is_no_proc_no_children_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda _: False)
    assert figures.children() == []
