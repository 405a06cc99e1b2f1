"""Folders that go with their process, however that ends."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from cord_trio.cli import scratch
from cord_trio.cli.broker import find_server
from cord_trio.cli.scratch import open_scratch

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = [sys.executable, "-m", "cord_trio", "mesh", "broker", "--port", "0"]

needs_server = pytest.mark.skipif(find_server() is None, reason="no nats-server for this platform")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_there_for_the_block_and_only_its_owner_sees_it(place: Path) -> None:
    with open_scratch("one-") as folder:
        (folder / "file").touch()
        assert folder.parent == place
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(place.iterdir()) == []


def test_what_dead_processes_left_goes_and_what_others_have_stays(place: Path) -> None:
    for name in ("one-dead", "two-dead", "elsewhere"):
        (place / name / "store").mkdir(parents=True)
    (place / "one-file").touch()
    (place / "one-link").symlink_to(place / "elsewhere")
    with open_scratch("one-") as first, open_scratch("one-") as second:
        names = {first.name, second.name, "two-dead", "elsewhere", "one-file", "one-link"}
        assert {each.name for each in place.iterdir()} == names
        assert (place / "elsewhere" / "store").exists()


@pytest.mark.parametrize("moment", ["while it is cleared", "after it was cleared", "as it is locked"])
def test_a_folder_that_is_cleared_before_it_is_locked_is_made_anew(
    moment: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    held: list[int] = []
    make = tempfile.mkdtemp

    def mkdtemp(prefix: str) -> str:
        made.append(make(prefix=prefix))
        if len(made) == 1:
            if moment == "after it was cleared":
                os.rmdir(made[0])
            elif moment == "while it is cleared":
                held.append(scratch._lock(place / made[0]))
        return made[-1]

    def flock(file: int, how: int) -> None:
        if moment == "as it is locked" and len(made) == 1:
            os.rmdir(made[0])
        lock(file, how)

    lock = fcntl.flock
    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    monkeypatch.setattr(fcntl, "flock", flock)
    with open_scratch("one-") as folder:
        assert [str(folder)] == made[1:]
        assert folder.exists()
    for file in held:
        os.close(file)


def started(place: Path, *before: str) -> subprocess.Popen[str]:
    """A broker that listens."""
    broker = subprocess.Popen(
        [*before, *COMMAND], stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(place)}
    )
    assert broker.stderr is not None
    for line in broker.stderr:
        if line.startswith("broker at nats://"):
            return broker
    raise AssertionError("it ended")


@needs_server
def test_a_broker_whose_terminal_is_gone_leaves_no_folder(tmp_path: Path) -> None:
    with started(tmp_path) as broker:
        assert len(list(tmp_path.iterdir())) == 1
        broker.send_signal(signal.SIGHUP)
        broker.communicate(timeout=30)
    assert broker.returncode == 130
    assert list(tmp_path.iterdir()) == []


@needs_server
def test_a_broker_that_is_to_outlive_its_terminal_does(tmp_path: Path) -> None:
    with started(tmp_path, "sh", "-c", 'trap "" HUP; exec "$0" "$@"') as broker:
        broker.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            broker.wait(0.3)
        broker.send_signal(signal.SIGTERM)
        broker.communicate(timeout=30)
    assert list(tmp_path.iterdir()) == []


@needs_server
def test_the_folder_of_a_killed_broker_goes_as_the_next_one_starts(tmp_path: Path) -> None:
    with started(tmp_path) as killed, started(tmp_path) as other:
        left = set(tmp_path.iterdir())
        killed.kill()
        killed.wait()
        assert set(tmp_path.iterdir()) == left
        assert len(left) == 2
        with started(tmp_path) as last:
            now = set(tmp_path.iterdir())
            assert len(now) == 2
            assert len(now & left) == 1
            for broker in (other, last):
                broker.terminate()
                broker.communicate(timeout=30)
    assert list(tmp_path.iterdir()) == []
