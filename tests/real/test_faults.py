"""Some cells of the fault matrix, as `python -m bench.faults` runs them all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_few_faults_end_as_they_should_and_leave_nothing() -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "bench.faults", "--quick"],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env=environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 cells" in done.stdout
