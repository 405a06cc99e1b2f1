"""The plugin, seen from inside and from a pytest run of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

CONFTEST = 'pytest_plugins = ("cord_trio.testing.plugin",)\n'


async def test_an_async_test_runs_in_trio() -> None:
    assert trio.lowlevel.in_trio_task()
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("seconds", [1, 3600])
async def test_time_jumps_when_every_task_is_blocked(autojump_clock: MockClock, seconds: float) -> None:
    start = trio.current_time()
    await trio.sleep(seconds)
    assert trio.current_time() - start == seconds


@given(number=st.integers())
async def test_each_example_of_given_is_a_run_of_its_own(number: int) -> None:
    assert trio.lowlevel.in_trio_task()
    await trio.lowlevel.checkpoint()
    assert isinstance(number, int)


@pytest.mark.xfail(raises=ZeroDivisionError, strict=True)
async def test_a_failure_arrives_bare() -> None:
    await trio.lowlevel.checkpoint()
    raise ZeroDivisionError


def outcome_of(folder: Path, body: str) -> str:
    """What pytest prints about a test file with `body`."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text("import pytest, trio\n" + body)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:anyio", "-p", "no:trio"]
    return subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False, cwd=folder).stdout


def test_bad_tests_fail_and_never_hang(tmp_path: Path) -> None:
    printed = outcome_of(
        tmp_path,
        "async def test_fails(): assert 1 == 2\n"
        "async def test_stuck(autojump_clock): await trio.sleep_forever()\n"
        "@pytest.mark.limit(0.01)\n"
        "async def test_slow(): await trio.sleep(5)\n"
        "async def test_fine(): await trio.sleep(0)\n",
    )
    assert "assert 1 == 2" in printed
    assert "TooSlowError" in printed
    assert "3 failed, 1 passed" in printed
