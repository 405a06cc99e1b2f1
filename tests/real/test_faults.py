"""Some cells of the fault matrix, as `python -m bench.faults` runs them all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}


def test_a_few_faults_end_as_they_should_and_leave_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.faults", "--quick"],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env=ENVIRON,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 cells" in done.stdout


def test_a_matrix_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    args = [sys.executable, "-m", "bench.faults", "--only", "hang-call", "--way", "http"]
    with subprocess.Popen(
        args, cwd=ROOT, env={**ENVIRON, "TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until = time.monotonic() + 20
        while not list(tmp_path.glob("bench-faults-*/bench-cell-*/ledger")) and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert list(tmp_path.iterdir()) == []
    assert not _mentioning(str(tmp_path))


def _mentioning(text: str) -> list[str]:
    """The processes that have `text` on their command line, once they had a moment to go."""
    until = time.monotonic() + 3
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(line)
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.05)
