"""Real processes, so the system clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cord_trio.counters import Counters
from cord_trio.transports.guardian import STARTED_AT_ONCE, open_guardian
from cord_trio.transports.process import Graces, group_lives
from cord_trio.transports.pump import make_pump
from cord_trio.transports.started import Started, has_descriptors, start
from cord_trio.transports.stdio import open_stdio
from tests.transports.test_stdio import Record, shell

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only where the kernel gives descriptors of processes")

SHORT = Graces(close=0.1, term=0.1)
NULL = subprocess.DEVNULL


async def started(code: str) -> Started:
    process = await start(
        ["/bin/sh", "-c", code], stdin=NULL, stdout=NULL, stderr=NULL, env={}, cwd=None, process_group=0
    )
    assert isinstance(process, Started)
    return process


async def test_all_who_wait_for_a_process_learn_its_status() -> None:
    process = await started("exec sleep 60")
    statuses: list[int] = []

    async def wait() -> None:
        statuses.append(await process.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert process.returncode is None
        os.kill(process.pid, signal.SIGKILL)
    assert statuses == [-9, -9]
    assert await process.wait() == -9
    process.close()
    process.close()


async def test_its_descriptor_can_be_read_once_it_has_exited_and_after_it_was_collected() -> None:
    process = await started("exit 0")
    with trio.fail_after(5):
        await process.wait()
        await trio.lowlevel.wait_readable(process.fd)
    process.close()


async def test_a_process_without_a_descriptor_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = 0

    def none_left(pid: int) -> int:
        nonlocal wanted
        if pid != os.getpid():
            wanted = pid
            raise OSError(24, "Too many open files")
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(os, "pidfd_open", none_left)
    with pytest.raises(OSError, match="Too many"):
        await started("exec sleep 60")
    with pytest.raises(ProcessLookupError):
        os.kill(wanted, 0)


async def test_a_few_children_start_in_one_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    class Turns(trio.abc.Instrument):
        count = 0

        def after_io_wait(self, timeout: float) -> None:
            self.count += 1

    turns, begun = Turns(), list[int]()

    class Seen(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **setting: object) -> None:
            begun.append(turns.count)
            super().__init__(command, **setting)  # type: ignore[call-overload]  # as it was called

    async with open_guardian() as guardian, trio.open_nursery() as nursery:
        await guardian.wait_ready()
        monkeypatch.setattr(subprocess, "Popen", Seen)
        trio.lowlevel.add_instrument(turns)

        async def one() -> None:
            async with open_stdio(shell("cat"), guardian=guardian, counters=Counters(), name="it"):
                pass

        for _ in range(3 * STARTED_AT_ONCE):
            nursery.start_soon(one)
    trio.lowlevel.remove_instrument(turns)
    assert len(begun) == 3 * STARTED_AT_ONCE
    assert max(begun.count(turn) for turn in begun) <= STARTED_AT_ONCE


@pytest.mark.parametrize("with_descriptors", [True, False])
async def test_a_pump_hears_of_an_exit_and_what_it_left_is_ended_at_once(
    monkeypatch: pytest.MonkeyPatch, with_descriptors: bool
) -> None:
    if not with_descriptors:
        monkeypatch.setattr("cord_trio.transports.started.has_descriptors", lambda: False)
    pump, counters, record = make_pump(), Counters(), Record()
    assert pump is not None
    async with open_guardian(counters=counters) as guardian, trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        await guardian.wait_ready()
        await trio.testing.wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with open_stdio(
            shell("sleep 60 & echo '{}'; read line; exit 4"),
            guardian=guardian, counters=counters, name="it", pump=pump, graces=SHORT,
        ) as transport:  # fmt: skip
            assert trio.lowlevel.current_statistics().tasks_living == tasks + (not with_descriptors)
            async with trio.open_nursery() as running:
                await running.start(transport.run, record)
                await record.wait_messages(1)
                transport.send(b"{}")
                with trio.fail_after(2):
                    await record.wait_messages(2)
                    while guardian.groups:  # noqa: ASYNC110  # nothing tells
                        await trio.sleep(0.01)
            assert record.loss is not None
            assert record.loss.reason == "server exited with status 4"
            assert not group_lives(transport.pid)
        assert not pump.pipes
        nursery.cancel_scope.cancel("all is seen")


async def test_children_leave_no_descriptor_though_the_pump_has_ended_before_them() -> None:
    counters = Counters()
    async with open_guardian(counters=counters) as guardian:
        await guardian.wait_ready()
        before: Mapping[str, None] = dict.fromkeys(os.listdir("/proc/self/fd"))
        pump = make_pump()
        assert pump is not None
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                await nursery.start(pump.run)
                async with open_stdio(
                    shell("cat; exit 3"), guardian=guardian, counters=counters, name="it", pump=pump,
                    graces=Graces(close=4.0),
                ) as transport:  # fmt: skip
                    nursery.cancel_scope.cancel("everything ends at once")
        assert transport.exit_status == 3
        assert not pump.pipes
        assert dict.fromkeys(os.listdir("/proc/self/fd")) == before
    assert counters.snapshot() == {}


def test_this_kernel_gives_descriptors() -> None:
    assert has_descriptors()
