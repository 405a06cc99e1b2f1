"""Programs of ours in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def running_module(module: str, *arguments: str, says: bytes) -> Iterator[subprocess.Popen[bytes]]:
    """Run `module` until the block is left, which is entered once its first line is `says`; then kill it."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == says
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
