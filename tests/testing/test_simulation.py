"""A simulated fabric: what the seed decides, and what is written down."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

from cord_trio.config import Bounds
from cord_trio.errors import CordError, Overloaded
from cord_trio.testing import ToolServer, Trace, find_failure, simulate

if TYPE_CHECKING:
    from cord_trio.agents import Context
    from cord_trio.fabric import Fabric

Json: TypeAlias = Any


async def fetch(ctx: Context, payload: Json) -> object:
    return (await ctx.call("web__sleep", {"seconds": payload})).text


async def ask(ctx: Context, payload: Json) -> object:
    return await ctx.ask("fetch", payload) if payload % 2 else ctx.handoff("fetch", payload)


async def two_at_once(fabric: Fabric) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(fabric.call, "mine__sleep", {"seconds": 1})


async def busy(fabric: Fabric) -> list[str]:
    """Asks of which some are given up, and at the end all that are left."""
    ended: list[str] = []

    async def go(number: int) -> None:
        with trio.move_on_after(5 + number % 3):
            try:
                ended.append(str(await fabric.ask("ask", number % 4)))
            except CordError as exc:
                ended.append(type(exc).__name__)

    fabric.agent("fetch", fetch, turn=3)
    fabric.agent("ask", ask, turn=2)
    with trio.move_on_after(6):
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(go, number)
    return ended


def busy_trace(seed: int, chance: float = 0.1) -> Trace:
    return simulate(busy, seed=seed, sources={"web": ToolServer(), "old": ToolServer(era="legacy")}, chance=chance)


def test_a_seed_gives_the_same_trace_byte_for_byte() -> None:
    traces = [busy_trace(seed).encode() for seed in range(8)]
    assert traces == [busy_trace(seed).encode() for seed in range(8)]
    assert len(set(traces)) == 8


def test_a_seed_gives_the_same_trace_in_every_process() -> None:
    code = "from tests.testing.test_simulation import busy_trace\nfor seed in range(4): print(busy_trace(seed))"
    traces = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, timeout=60, check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]  # fmt: skip
    assert traces[0] == traces[1]
    assert traces[0].decode() == "".join(f"{busy_trace(seed)}\n" for seed in range(4))


def test_a_trace_has_tasks_messages_faults_and_the_end() -> None:
    traces = [busy_trace(seed) for seed in range(8)]
    lines = [line for trace in traces for line in trace.lines]
    for part in (" run go", ' web#1 > {"jsonrpc"', ' web#1 < {"jsonrpc"', " fault ", " web#2 ", " count link.down "):
        assert any(part in line for line in lines), part
    assert all(" returned [" in trace.lines[-1] for trace in traces)
    assert all(trace.unwrap() == trace.result for trace in traces)


def test_without_a_chance_there_are_no_faults() -> None:
    trace = busy_trace(3, chance=0.0)
    assert " fault " not in str(trace)
    assert trace.error is None


def test_time_is_virtual() -> None:
    async def program(fabric: Fabric) -> float:
        began = trio.current_time()
        await trio.sleep(3600)
        return trio.current_time() - began

    assert simulate(program, seed=1).result == 3600


def test_an_error_is_written_down_and_names_its_seed() -> None:
    async def program(fabric: Fabric) -> None:
        await trio.sleep(2)
        raise ValueError("wrong")

    trace = simulate(program, seed=17)
    assert trace.lines[-1] == "2.000000 raised ValueError: wrong"
    with pytest.raises(ValueError, match="wrong") as raised:
        trace.unwrap()
    assert raised.value.__notes__ == ["seed 17"]


def test_several_errors_are_written_down_one_by_one() -> None:
    async def program(fabric: Fabric) -> None:  # noqa: ASYNC124  # async by contract
        raise ExceptionGroup("two", [ValueError("one"), TypeError("other")])

    trace = simulate(program, seed=17)
    assert [line.partition("raised ")[2] for line in trace.lines[-2:]] == ["ValueError: one", "TypeError: other"]


def test_a_program_that_is_stuck_ends_at_once() -> None:
    async def program(fabric: Fabric) -> None:
        await trio.sleep_forever()

    assert isinstance(simulate(program, seed=1).error, trio.TooSlowError)


def test_each_run_has_servers_of_its_own() -> None:
    async def program(fabric: Fabric) -> str:
        return (await fabric.call("s__count")).text

    server = ToolServer()
    results = [simulate(program, seed=seed, sources={"s": server}).unwrap() for seed in range(3)]
    assert len(set(results)) == 1
    assert dict(server.received) == {}


def test_functions_names_bounds_and_fields_reach_the_fabric() -> None:
    async def program(fabric: Fabric) -> str:
        assert fabric.config.sources["mine"].slots == 3
        return (await fabric.call("mine__double", {"text": "ab"})).text

    server = ToolServer({"double": lambda arguments: arguments["text"] * 2}, name="mine")
    assert simulate(program, seed=1, sources=[server], common={"slots": 3}).unwrap() == "abab"
    refused = simulate(two_at_once, seed=1, sources=[server], bounds=Bounds(calls=1)).error
    assert isinstance(refused, ExceptionGroup)
    assert isinstance(refused.exceptions[0], Overloaded)


def test_a_long_message_is_shown_by_its_start_and_checksum() -> None:
    async def program(fabric: Fabric) -> int:
        return len((await fabric.call("s__big", {"size": 5000})).text)

    trace = simulate(program, seed=1, sources={"s": ToolServer()})
    assert trace.result == 5000
    assert max(map(len, trace.lines)) < 400
    assert "characters, checksum " in str(trace)


def test_addresses_are_no_part_of_a_trace() -> None:
    async def program(fabric: Fabric) -> object:  # noqa: ASYNC124  # async by contract
        return object()

    assert simulate(program, seed=1).lines[-1] == "0.000000 returned <object object at 0x…>"


def test_the_first_seed_that_fails_is_found() -> None:
    async def program(fabric: Fabric) -> None:
        order: list[int] = []

        async def note(number: int) -> None:  # noqa: ASYNC124  # has no need to wait
            order.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(note, number)
        assert order != [2, 1, 0]

    trace = find_failure(program, seeds=range(100))
    assert trace is not None
    assert isinstance(simulate(program, seed=trace.seed).error, AssertionError)
    assert find_failure(program, seeds=range(trace.seed)) is None
