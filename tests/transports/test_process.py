"""Real child processes, so the system clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from cord_trio.errors import ConnectFailed
from cord_trio.transports.process import (
    COOKIE,
    STDERR_TAIL,
    Child,
    Graces,
    child_environment,
    group_lives,
    spawn,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

LONG = Graces(close=4.0, term=4.0)
"""So long that a test that waits for it fails."""

SHORT = Graces(close=0.1, term=0.1)

UNTIL_EOF = "import sys; sys.stdin.read()"
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
while True: time.sleep(1)
"""


@attrs.frozen
class Program:
    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    cwd: str | None = None


def python(code: str) -> Program:
    return Program(sys.executable, ("-I", "-S", "-c", code))


def shell(code: str) -> Program:
    return Program("/bin/sh", ("-c", code))


@asynccontextmanager
async def started(program: Program) -> AsyncGenerator[Child, None]:
    child = await spawn(program, name="it", cookie="c0ffee")
    try:
        yield child
    finally:
        child.signal(signal.SIGKILL)
        child.close()


async def first_output(child: Child) -> bytes:
    await trio.lowlevel.wait_readable(child.stdout)
    return os.read(child.stdout, 1000)


def test_a_child_gets_what_is_allowed_what_is_given_and_the_mark() -> None:
    own = {"PATH": "/bin", "LC_ALL": "C", "SECRET": "s", "TERM": "() { evil; }", "HOME": "/root", "LCX": "no"}
    assert child_environment(own, {"HOME": "/tmp", "KEY": "k"}, "c0ffee") == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "HOME": "/tmp",
        "KEY": "k",
        COOKIE: "c0ffee",
    }


async def test_our_secrets_do_not_reach_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_SECRET", "hunter2")
    async with started(shell("env")) as child:
        said = await first_output(child)
        await child.stop(LONG)
    assert b"hunter2" not in said
    assert b"CORD_TRIO_FABRIC=c0ffee" in said


@pytest.mark.parametrize("terminal", [False, True])
async def test_a_child_leaves_our_session_only_if_there_is_a_terminal_to_be_kept_from(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the kernel schedules by session, each session more is one more to share the processor with.
    monkeypatch.setattr("cord_trio.transports.process.has_terminal", lambda: terminal)
    async with started(python(UNTIL_EOF)) as child:
        assert os.getpgid(child.pid) == child.pid
        assert os.getsid(child.pid) == (child.pid if terminal else os.getsid(0))
        await child.stop(LONG)


@pytest.mark.skipif(sys.platform != "linux", reason="a terminal of one's own is made Linux's way")
def test_a_terminal_is_seen_where_there_is_one() -> None:
    code = "import sys; from cord_trio.transports.process import has_terminal; print(has_terminal())"
    command = [sys.executable, "-c", code]
    within = f"import pty; pty.spawn({command!r}, lambda fd: __import__('os').read(fd, 1024))"
    with_one = subprocess.run([sys.executable, "-c", within], capture_output=True, text=True, check=True)
    without = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True)
    assert (with_one.stdout.strip(), without.stdout.strip()) == ("True", "False")


async def test_d04_a_child_that_ends_with_its_stdin_costs_no_grace() -> None:
    async with started(python(UNTIL_EOF)) as child:
        with trio.fail_after(2):
            assert await child.stop(LONG)
        assert child.exit_status == 0


async def test_a_child_that_heeds_sigterm_is_not_killed() -> None:
    async with started(shell("exec sleep 100")) as child:
        with trio.fail_after(2):
            assert await child.stop(Graces(close=0.1, term=4.0))
        assert child.exit_status == -signal.SIGTERM


async def test_p09_a_deaf_child_is_killed_within_the_bound() -> None:
    async with started(python(DEAF)) as child:
        assert await first_output(child) == b"deaf\n"
        with trio.fail_after(SHORT.bound):
            assert await child.stop(SHORT)
        assert child.exit_status == -signal.SIGKILL


async def test_p06_a_server_behind_a_launcher_ends_with_it() -> None:
    async with started(
        shell(f"{sys.executable} -I -S -c 'import time; print(1, flush=True); time.sleep(99)' & wait")
    ) as child:
        await first_output(child)
        with trio.fail_after(2):
            assert await child.stop(Graces(close=0.1, term=4.0))
        assert not group_lives(child.pid)


async def test_u08_the_members_of_a_pipeline_all_end() -> None:
    async with started(shell("sleep 100 | cat")) as child:
        with trio.fail_after(2):
            assert await child.stop(Graces(close=0.1, term=4.0))
        assert not group_lives(child.pid)


async def test_what_a_leader_leaves_in_its_group_ends_too_even_if_deaf() -> None:
    async with started(shell("(trap '' TERM; echo up; sleep 100; sleep 100) & read line")) as child:
        await first_output(child)
        with trio.fail_after(2):
            assert await child.stop(Graces(close=4.0, term=0.1))
        assert child.exit_status is not None
        assert not group_lives(child.pid)


async def test_a_writer_that_is_blocked_can_exit() -> None:
    code = "import sys; sys.stdin.read(); print('x' * 500_000); sys.stderr.write('y' * 500_000)"
    async with started(python(code)) as child:
        with trio.fail_after(3):
            assert await child.stop(LONG)
        assert child.exit_status == 0
        assert len(child.stderr_tail) <= STDERR_TAIL


async def test_nothing_is_signalled_once_all_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(python("")) as child:
        assert await child.stop(LONG)
        monkeypatch.setattr(os, "killpg", None)
        assert not child.signal(signal.SIGKILL)
        assert await child.stop(LONG)


async def test_p03_a_missing_command_names_path() -> None:
    with pytest.raises(ConnectFailed) as caught:
        await spawn(Program("no-such-bin"), name="it", cookie="")
    assert (caught.value.source, caught.value.step) == ("it", "spawn")
    assert "'no-such-bin'" in caught.value.reason
    assert "PATH" in caught.value.remedy


async def test_each_way_not_to_start_has_its_remedy(tmp_path: Path) -> None:
    plain, text, orphan = tmp_path / "plain", tmp_path / "text", tmp_path / "orphan"
    plain.write_text("#!/bin/sh\n")
    text.write_text("no program")
    text.chmod(0o755)
    orphan.write_text("#!/no/such/interpreter\n")
    orphan.chmod(0o755)
    cases = {
        Program(str(plain)): "chmod",
        Program(str(text)): "#!",
        Program(str(orphan)): "first line",
        Program("true", cwd=str(tmp_path / "none")): "cwd",
        Program("tr\0ue"): "",
    }
    for program, remedy in cases.items():
        with pytest.raises(ConnectFailed) as caught:
            await spawn(program, name="it", cookie="")
        assert remedy in caught.value.remedy


async def test_a_failed_start_leaves_no_descriptor() -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(ConnectFailed):
            await spawn(Program("no-such-bin"), name="it", cookie="")
    assert set(os.listdir("/proc/self/fd")) == before
