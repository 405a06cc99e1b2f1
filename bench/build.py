"""Makes what the benchmark runs: the C programs and one virtual environment a peer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE / "build"
PROGRAMS = HERE / "programs"
C_PROGRAMS = ("cmcp", "load")

PEERS = {
    "mcp": ("mcp", "trio"),
    "fastmcp": ("fastmcp",),
    "autogen-core": ("autogen-core",),
    "langgraph": ("langgraph",),
    "openai-agents": ("openai-agents",),
}
"""What pip installs into each peer's environment."""

INSTALL = 600
"""Seconds that one installation may take."""


class CannotBuild(Exception):
    """Says why, in one line."""


def run(*args, timeout=INSTALL):
    try:
        done = subprocess.run(args, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CannotBuild(f"{Path(args[0]).name}: {exc}") from exc
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise CannotBuild(f"{Path(args[0]).name}: {errors[-1]}")


def build_c():
    """Compile what is older than its source."""
    if sys.platform != "linux":
        raise CannotBuild("the C programs need Linux's epoll and timerfd")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CannotBuild("no C compiler (cc, gcc or clang) on PATH")
    BUILD.mkdir(exist_ok=True)
    shared = (HERE / "bytes.h").stat().st_mtime
    for name in C_PROGRAMS:
        source, program = HERE / f"{name}.c", BUILD / name
        if not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime, shared):
            run(compiler, "-O2", "-Wall", "-o", str(program), str(source))


def python_of(peer):
    """The interpreter of a peer's environment; ours if `peer` is None."""
    return sys.executable if peer is None else str(BUILD / f"venv-{peer}" / "bin" / "python")


def build_peer(peer):
    """Install a peer, unless it is there."""
    folder = BUILD / f"venv-{peer}"
    stamp = folder / "installed"
    if stamp.exists():
        return
    print(f"bench: installing {' '.join(PEERS[peer])} into {folder}", file=sys.stderr)
    run(sys.executable, "-m", "venv", "--clear", str(folder))
    run(python_of(peer), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEERS[peer])
    stamp.touch()
