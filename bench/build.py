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
    "mcp-proxy": ("mcp-proxy",),
}
"""What pip installs into each peer's environment."""

NPM_PEERS = {
    "npm-sdk": ("@modelcontextprotocol/sdk",),
    "mcp-hub": ("mcp-hub",),
    "npm-mcp-proxy": ("mcp-proxy",),
    "supergateway": ("supergateway",),
}
"""What npm installs into each peer's folder."""

NOT_HERE = {
    "mcp-go": "a Go module; pip and npm carry no binary of it",
    "TBXark mcp-proxy": "a Go program; pip and npm carry no binary of it",
}
"""Peers that are not run, and why; how they compare with peers that are is in docs/performance.md."""

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


def program_of(peer, name):
    """A program that came with a peer."""
    if peer in NPM_PEERS:
        return str(BUILD / f"npm-{peer}" / "node_modules" / ".bin" / name)
    return str(Path(python_of(peer)).with_name(name))


def build_peer(peer):
    """Install a peer, unless it is there."""
    npm = peer in NPM_PEERS
    packages = NPM_PEERS[peer] if npm else PEERS[peer]
    folder = BUILD / (f"npm-{peer}" if npm else f"venv-{peer}")
    stamp = folder / "installed"
    if stamp.exists():
        return
    print(f"bench: installing {' '.join(packages)} into {folder}", file=sys.stderr)
    if npm:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        options = ("--prefix", str(folder), "--no-audit", "--no-fund", "--loglevel=error")
        run("npm", "install", *options, *packages)
    else:
        run(sys.executable, "-m", "venv", "--clear", str(folder))
        run(python_of(peer), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
    stamp.touch()
