"""Reported failures of child processes, from the fabric's call down."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from cord_trio.config import Bounds, Config, Stdio
from cord_trio.errors import CallError, ConnectionLost
from cord_trio.fabric import open_fabric
from cord_trio.testing import ToolServer
from tests.cases.servers import scripted

RARELY = Bounds(backoff_first=30.0, backoff_longest=30.0)
"""A source that failed stays down for the rest of a test."""


def shell(name: str, code: str, **common: float) -> Stdio:
    return Stdio(name=name, command="/bin/sh", args=("-c", code), **common)  # type: ignore[arg-type]  # seconds alone


def running(marker: str) -> list[int]:
    """Processes that have `marker` in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


async def test_p01_a_server_that_exits_at_once_is_down_with_status_and_stderr() -> None:
    server = shell("it", "echo need API_KEY >&2; exit 3")
    async with open_fabric(Config(sources=[server], bounds=RARELY)) as fabric:
        with trio.fail_after(server.connect / 2):
            await fabric.wait_started()
        assert "status 3" in fabric.links["it"].reason
        assert "need API_KEY" in fabric.links["it"].reason


async def test_p02_all_calls_of_a_killed_server_end_with_its_signal_and_the_next_one_works() -> None:
    source = ToolServer(name="it").source(retries=0)
    async with open_fabric(Config(sources=[source], bounds=Bounds(backoff_first=0.05))) as fabric:
        await fabric.call("it__echo", {"text": "up"})
        ends: list[CallError] = []

        async def call(tool: str, **arguments: int) -> None:
            try:
                await fabric.call(f"it__{tool}", arguments)
            except CallError as exc:
                ends.append(exc)

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(lambda: call("sleep", seconds=60))
                while fabric.links["it"].in_flight < 3:  # noqa: ASYNC110  # nobody but a test asks
                    await trio.sleep(0.01)
                nursery.start_soon(lambda: call("crash", signal=9))
        assert len(ends) == 4
        assert all(isinstance(end, ConnectionLost) and end.executed == "unknown" for end in ends)
        assert {end.reason for end in ends if isinstance(end, ConnectionLost)} == {"server exited (signal 9)"}
        assert (await fabric.call("it__echo", {"text": "again"})).text == "again"
        assert fabric.links["it"].starts == 2


async def test_p03_a_missing_command_fails_its_source_alone() -> None:
    missing = Stdio(name="missing", command="no-such-bin")
    async with open_fabric(Config(sources=[missing, scripted(name="good")], bounds=RARELY)) as fabric:
        await fabric.wait_started()
        assert list(fabric.registry.snapshot.tools) == ["good__echo"]
        failure = fabric.links["missing"].failure
        assert failure is not None
        assert (failure.source, failure.step) == ("missing", "spawn")
        assert "'no-such-bin'" in failure.reason
        assert "PATH" in failure.remedy


async def test_p06_launchers_and_what_they_forked_end_with_the_fabric() -> None:
    marker = f"76.{os.getpid()}"
    loop = "while read line; do :; done"
    waits = shell("waits", f"sleep {marker} & {loop} & wait", connect=0.2)
    forks = shell("forks", f"(sleep {marker} & (sleep {marker} &)) ; {loop}", connect=0.2)
    bounds = Bounds(backoff_first=30.0, backoff_longest=30.0, stop_close=0.1, stop_terminate=0.5)
    async with open_fabric(Config(sources=[waits, forks], bounds=bounds)):
        with trio.fail_after(5):
            while len(running(f"sleep\0{marker}")) < 3:  # noqa: ASYNC110  # the kernel tells nobody
                await trio.sleep(0.02)
    assert running(f"sleep\0{marker}") == []


async def test_p14_servers_that_never_answer_fail_in_their_time_all_at_once() -> None:
    silent = [shell(f"s{number}", "cat >/dev/null", connect=0.5) for number in range(12)]
    async with open_fabric(Config(sources=[scripted(name="good"), *silent], bounds=RARELY)) as fabric:
        started = trio.current_time()
        assert (await fabric.call("good__echo", {"text": "x"})).text == "x"
        await fabric.wait_started()
        # Each is asked in both eras, so one alone takes a second.
        assert trio.current_time() - started < len(silent) / 2
        for source in silent:
            assert "no answer to initialize within 0.5 s" in fabric.links[source.name].reason
