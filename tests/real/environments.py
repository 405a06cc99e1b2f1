"""The environments of the official SDKs, made where there are none yet; where they cannot be, tests are skipped."""

from __future__ import annotations

import os
import shutil
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conformance import build
from tests.real.helpers import read_line, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import trio

EVERYTHING = str(Path(build.__file__).with_name("everything.py"))


@cache
def _sdk(version: str) -> tuple[str, str] | str:
    """The same, or why there is none: tried once."""
    try:
        python, source = build.sdk(version)
    except build.CannotBuildError as exc:
        return f"SDK {version} cannot be had: {exc}"
    return str(python), str(source / "examples" / "servers" / "everything-server")


def sdk(version: str) -> tuple[str, str]:
    """The Python of an environment with this SDK, and where its everything server is."""
    found = _sdk(version)
    if isinstance(found, str):
        pytest.skip(found)
    return found


def sdk1() -> str:
    """The Python of an environment with SDK 1.x: the one that `CORD_TRIO_SDK1` names, or one of our own."""
    return os.environ.get("CORD_TRIO_SDK1") or sdk(build.SDK1)[0]


@cache
def _node_packages(name: str, *packages: str) -> Path | str:
    """Where they are, or why they cannot be had: tried once."""
    if shutil.which("node") is None:
        return "no Node here"
    try:
        return build.node_packages(name, *packages)
    except build.CannotBuildError as exc:
        return f"{', '.join(packages)} cannot be had: {exc}"


def typescript() -> str:
    """The `node_modules` with the official TypeScript SDKs."""
    found = _node_packages("typescript", *build.TYPESCRIPT)
    if isinstance(found, str):
        pytest.skip(found)
    return str(found)


@cache
def _tasks() -> Path | str:
    """The same of a server with the tasks extension."""
    try:
        return build.environment("tasks", build.TASKS)
    except build.CannotBuildError as exc:
        return f"{build.TASKS} cannot be had: {exc}"


def tasks() -> str:
    """The Python of an environment for a server with the tasks extension."""
    found = _tasks()
    if isinstance(found, str):
        pytest.skip(found)
    return str(found)


@asynccontextmanager
async def everything(version: str, *words: str) -> AsyncGenerator[str]:
    """The URL of the everything server of this SDK; `words` as its program takes them."""
    async with everything_process(version, *words) as (_, url):
        yield url


@asynccontextmanager
async def everything_process(version: str, *words: str) -> AsyncGenerator[tuple[trio.Process, str]]:
    """The same, with its process."""
    python, source = sdk(version)
    environment = {**os.environ, "PYTHONPATH": source, "PYTHONWARNINGS": "ignore"}
    async with running([python, EVERYTHING, "http", *words], env=environment) as process:
        yield process, await read_line(process.stdout)
