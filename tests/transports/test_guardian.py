"""Real processes, so the system clock. What has to die carries a marker in its arguments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from cord_trio.counters import Counters
from cord_trio.transports import guardian as guardian_room
from cord_trio.transports import guardian_main
from cord_trio.transports.guardian import PROGRAM, open_guardian
from cord_trio.transports.guardian_main import groups_left
from cord_trio.transports.process import Graces
from cord_trio.transports.stdio import open_stdio

if TYPE_CHECKING:
    from collections.abc import Mapping

SHORT = Graces(close=0.1, term=0.1)

HOST = """
import sys, attrs, trio
from cord_trio.counters import Counters
from cord_trio.transports.guardian import open_guardian
from cord_trio.transports.stdio import open_stdio

@attrs.frozen
class Program:
    command: str
    args: tuple[str, ...]
    env: dict[str, str]
    cwd: None = None

async def main():
    async with open_guardian() as guardian:
        async with trio.open_nursery() as nursery:
            for code in sys.argv[1:]:
                await nursery.start(keep, Program("/bin/sh", ("-c", code), {}), guardian)
            print("up", guardian.pid, flush=True)

async def keep(program, guardian, task_status):
    async with open_stdio(program, guardian=guardian, counters=Counters(), name="it") as transport:
        task_status.started()
        await trio.sleep_forever()

trio.run(main)
"""


@attrs.frozen
class Program:
    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = attrs.field(factory=dict)
    cwd: str | None = None


def shell(code: str) -> Program:
    return Program("/bin/sh", ("-c", code))


def running(marker: str) -> list[int]:
    """Processes that have `marker` in their arguments, and are more than zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def wait_until_gone(marker: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while running(marker):
        assert time.monotonic() < end, running(marker)
        time.sleep(0.02)


def wait_until_running(marker: str, count: int) -> None:
    end = time.monotonic() + 3
    while len(running(marker)) < count:
        assert time.monotonic() < end
        time.sleep(0.01)


def resident_once_loaded(pid: int) -> int:
    """KiB that process `pid` occupies once it has set its signals aside, which is the last of its preparations."""
    end = time.monotonic() + 3
    while True:
        status = Path("/proc", str(pid), "status").read_text()
        if int(status.split("SigIgn:")[1].split()[0], 16) & 0x4003 == 0x4003:
            return int(status.split("VmRSS:")[1].split()[0])
        assert time.monotonic() < end
        time.sleep(0.01)


def unmarked_sleep(marker: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/sleep", marker], start_new_session=True)


def test_p10_after_sigkill_of_the_host_children_and_escaped_grandchildren_end_within_2_s() -> None:
    marker = f"71.{os.getpid()}"
    codes = [
        f"exec sleep {marker}",
        f"trap '' TERM HUP; sleep {marker} & setsid sleep {marker} & "
        f"setsid nohup sh -c 'trap \"\" TERM; sleep {marker}' >/dev/null 2>&1 & while :; do sleep {marker}; done",
    ]
    host = subprocess.Popen([sys.executable, "-c", HOST, *codes], stdout=subprocess.PIPE)
    try:
        assert host.stdout is not None
        _up, guardian = host.stdout.readline().split()
        wait_until_running(f"sleep\0{marker}", 5)
        host.kill()
        host.wait()
        wait_until_gone(f"sleep\0{marker}", 2)
        deadline = time.monotonic() + 2
        while running(str(PROGRAM)) and int(guardian) in running(str(PROGRAM)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        host.kill()
        host.wait()
        assert host.stdout is not None
        host.stdout.close()


async def test_what_left_its_group_ends_with_the_fabric() -> None:
    marker = f"72.{os.getpid()}"
    async with open_guardian() as guardian:
        async with open_stdio(
            shell(f"setsid sh -c 'exec sleep {marker}' & read line"),  # found only after it has left the group
            guardian=guardian,
            counters=Counters(),
            name="it",
            graces=SHORT,
        ):
            await trio.to_thread.run_sync(wait_until_running, f"sleep\0{marker}", 1)
        assert running(f"sleep\0{marker}")
    assert not running(f"sleep\0{marker}")


async def test_without_children_no_guardian_is_started() -> None:
    async with open_guardian() as guardian:
        await trio.testing.wait_all_tasks_blocked()
        assert guardian.pid == 0


async def test_with_nothing_left_the_guardian_ends_at_once() -> None:
    async with open_guardian() as guardian:
        await guardian.wait_ready()
        guardian.register(2**22 + 1)
        guardian.unregister(2**22 + 1)
        pid = guardian.pid
        started = trio.current_time()
    assert trio.current_time() - started < 1
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_the_guardian_is_small() -> None:
    async with open_guardian() as guardian:
        await guardian.wait_ready()
        assert await trio.to_thread.run_sync(resident_once_loaded, guardian.pid) < 10 * 1024


async def test_a_killed_guardian_is_replaced_counted_and_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardian_room, "RESTART_PAUSE", 0.01)
    counters = Counters()
    marker = f"73.{os.getpid()}"
    # It carries no cookie: only its registered group leads to it.
    orphan = unmarked_sleep(marker)
    async with open_guardian(counters=counters) as guardian:
        guardian.register(orphan.pid)
        await guardian.wait_ready()
        first = guardian.pid
        os.kill(first, signal.SIGKILL)
        with trio.fail_after(3):
            while guardian.pid in (first, 0):  # noqa: ASYNC110  # nobody but a test asks
                await trio.sleep(0.01)
        guardian.unregister(2**22 + 1)
    assert orphan.wait() == -signal.SIGTERM
    assert counters.snapshot() == {"guardian.lost": 1}


async def test_without_an_interpreter_the_fabric_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    counters = Counters()
    async with open_guardian(counters=counters) as guardian:
        async with open_stdio(shell("cat"), guardian=guardian, counters=counters, name="it"):
            pass
    assert counters.snapshot() == {"guardian.failed": 1}


async def test_the_blocks_own_error_leaves_as_it_is() -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with open_guardian():
            raise error
    assert caught.value is error


def test_what_ignores_sigterm_is_killed_and_the_unmarked_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardian_main, "TERM_GRACE", 0.1)
    marker = f"74.{os.getpid()}"
    mark = b"CORD_TRIO_FABRIC=" + marker.encode()
    deaf = subprocess.Popen(
        ["/bin/sh", "-c", f"trap '' TERM; sleep {marker}"],
        env={"PATH": os.environ["PATH"], "CORD_TRIO_FABRIC": marker},
    )
    spared = unmarked_sleep(marker)
    group = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"], start_new_session=True)
    try:
        wait_until_running(f"sleep\0{marker}", 2)
        assert sorted(guardian_main.marked(mark)) == sorted({*running(marker)} - {spared.pid})
        guardian_main.end_all(set(), mark)
        assert deaf.wait(2) == -signal.SIGKILL
        assert running(marker) == [spared.pid]
        guardian_main.end_all({spared.pid}, mark)
        assert spared.wait(2) == -signal.SIGTERM
        guardian_main.end_all({group.pid}, mark)
        assert group.wait(2) == -signal.SIGKILL
    finally:
        deaf.kill()
        group.kill()
        spared.kill()
        spared.wait()


def test_the_register_is_read_across_pieces() -> None:
    read, write = os.pipe()
    os.write(write, b"+12\n+3\n-1")
    os.write(write, b"2\n+4\n")
    os.close(write)
    try:
        assert groups_left(read) == {3, 4}
    finally:
        os.close(read)
