"""Ten servers that others wrote, of both eras, behind one gateway: what each client sees, and what is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import time
import urllib.request
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import pytest
import trio

from conformance import build
from cord_trio.config import Config, GatewayConfig, Stdio
from cord_trio.fabric import open_fabric
from cord_trio.gateway import serve_gateway
from tests.real.environments import EVERYTHING, sdk
from tests.real.helpers import SCRIPTS, START, until

mcp = pytest.importorskip("mcp", reason="the official SDK is not installed")

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from cord_trio.fabric import Fabric

Json: TypeAlias = Any

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Async generator:ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
        "ignore::mcp.MCPDeprecationWarning",
    ),
]

NPM = tuple(
    f"@modelcontextprotocol/server-{name}@2026.8.31"
    for name in ("everything", "filesystem", "memory", "sequential-thinking")
)
WARM = 0.020
"""Seconds for a list of all tools, once it is known."""

LEAST = {
    "everything": 14, "filesystem": 14, "memory": 9, "thinking": 1, "sqlite": 6, "sdk1": 14, "sdk2": 28, "time": 2,
    "git": 12, "fetch": 1,
}  # fmt: skip
"""How many tools each has; the first has two more for clients that declare from the start that they can be asked."""


@cache
def npm() -> Path | None:
    """Where the programs of the npm servers are; None without Node."""
    if shutil.which("node") is None:
        return None
    try:
        return build.node_packages("servers", *NPM) / ".bin"
    except build.CannotBuildError as exc:
        pytest.skip(f"the npm servers cannot be had: {exc}")


@cache
def sqlite() -> Path:
    """Where the one server is that wants an older SDK."""
    try:
        return build.environment("sqlite", "mcp-server-sqlite==2025.4.25", "mcp<2").with_name("mcp-server-sqlite")
    except build.CannotBuildError as exc:
        pytest.skip(f"mcp-server-sqlite cannot be had: {exc}")


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    """Make all of them outside of any test's time limit."""
    npm()
    sqlite()
    sdk(build.SDK1)
    sdk(build.SDK2)


def sources(folder: Path) -> Mapping[str, Stdio]:
    """All of them, by name."""
    repository = folder / "repository"
    found: list[Stdio] = []
    bin = npm()
    if bin is not None:
        found += [
            Stdio(name="everything", command=str(bin / "mcp-server-everything"), args=("stdio",)),
            Stdio(name="filesystem", command=str(bin / "mcp-server-filesystem"), args=(str(folder),)),
            Stdio(name="memory", command=str(bin / "mcp-server-memory"),
                  env={"MEMORY_FILE_PATH": str(folder / "memory.json")}),
            Stdio(name="thinking", command=str(bin / "mcp-server-sequential-thinking")),
        ]  # fmt: skip
    found += [
        Stdio(name="sqlite", command=str(sqlite()), args=("--db-path", str(folder / "data.db"))),
        Stdio(name="time", command=str(SCRIPTS / "mcp-server-time"), args=("--local-timezone", "UTC")),
        Stdio(name="git", command=str(SCRIPTS / "mcp-server-git"), args=("--repository", str(repository))),
        Stdio(name="fetch", command=str(SCRIPTS / "mcp-server-fetch"), args=("--ignore-robots-txt",)),
    ]
    for name, version in (("sdk1", build.SDK1), ("sdk2", build.SDK2)):
        python, path = sdk(version)
        found.append(Stdio(name=name, command=python, args=(EVERYTHING, "stdio"), env={"PYTHONPATH": path}))
    # On a busy machine ten interpreters take their time to start at once.
    return {source.name: attrs.evolve(source, connect=START) for source in found}


@asynccontextmanager
async def all_of_them(folder: Path) -> AsyncGenerator[tuple[Fabric, str]]:
    """A fabric of all servers, and the URL of its gateway."""
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    for words in (("init", "-q", "repository"), ("-C", "repository", *identity, "commit", "-qm", "1", "--allow-empty")):
        await trio.run_process(["git", *words], cwd=folder)
    config = Config(sources=sources(folder), gateway=GatewayConfig(roots=(str(folder),)))
    async with open_fabric(config) as fabric:
        await fabric.wait_started()
        assert {name: link.reason for name, link in fabric.links.items() if link.state != "ready"} == {}
        await until(lambda: tools_of(fabric) == {name: LEAST[name] for name in fabric.links})
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve_gateway(fabric, http=[listener]))
            yield fabric, f"http://127.0.0.1:{listener.socket.getsockname()[1]}/mcp"
            nursery.cancel_scope.cancel("the test is over")


def tools_of(fabric: Fabric) -> Mapping[str, int]:
    """How many tools of each source are listed."""
    found = dict.fromkeys(fabric.links, 0)
    for route in fabric.registry.snapshot.tools.values():
        found[route.source] += 1
    return found


async def uses_one_tool_of_each(fabric: Fabric, folder: Path) -> None:
    calls: list[tuple[str, str, Json, str]] = [
        ("everything", "echo", {"message": "hi"}, "Echo: hi"),
        ("filesystem", "list_allowed_directories", {}, str(folder)),
        ("memory", "read_graph", {}, "entities"),
        ("thinking", "sequentialthinking",
         {"thought": "x", "nextThoughtNeeded": False, "thoughtNumber": 1, "totalThoughts": 1}, "thoughtNumber"),
        ("sqlite", "list_tables", {}, "[]"),
        ("time", "get_current_time", {"timezone": "UTC"}, "UTC"),
        ("git", "git_status", {"repo_path": str(folder / "repository")}, "nothing to commit"),
        ("sdk1", "test_simple_text", {}, "simple text"),
        ("sdk2", "test_simple_text", {}, "simple text"),
    ]  # fmt: skip
    for source, tool, arguments, expected in calls:
        if source in fabric.links:
            result = await fabric.call(f"{source}__{tool}", arguments)
            assert (result.is_error, expected in result.text) == (False, True), (source, result.text)


def list_once(url: str, era: str) -> tuple[float, int]:
    """Seconds that a list of all tools took, and how many there are."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": era,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}).encode()
    headers = {
        "Content-Type": "application/json", "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": era, "Mcp-Method": "tools/list",
    }  # fmt: skip
    began = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        data = answer.read()
    took = time.perf_counter() - began
    return took, len(json.loads(data)["result"]["tools"])


async def test_clients_of_both_eras_see_and_use_all_of_ten_servers(tmp_path: Path) -> None:
    pids: set[int] = set()
    async with all_of_them(tmp_path) as (fabric, url):
        many = len(fabric.registry.snapshot.tools)
        assert many == sum(LEAST[name] for name in fabric.links)
        for mode in ("auto", "legacy"):
            async with mcp.Client(url, mode=mode) as client:
                assert client.protocol_version == {"auto": "2026-07-28", "legacy": "2025-11-25"}[mode]
                names, cursor = [], None
                while True:
                    page = await client.list_tools(cursor=cursor)
                    names += [tool.name for tool in page.tools]
                    cursor = page.next_cursor
                    if cursor is None:
                        break
                assert names == list(fabric.registry.snapshot.tools)
                told = await client.call_tool("time__get_current_time", {"timezone": "UTC"})
                assert told.is_error is False
                told = await client.call_tool("sdk1__test_simple_text", {})
                assert told.is_error is False
        warm = [await trio.to_thread.run_sync(list_once, url, "2026-07-28") for _ in range(20)]
        assert {listed for _, listed in warm} == {many}
        assert statistics.median(took for took, _ in warm) < WARM
        await uses_one_tool_of_each(fabric, tmp_path)
        pids |= {pid for link in fabric.links.values() if (pid := link.pid) is not None}
    assert len(pids) == len(sources(tmp_path))
    assert [pid for pid in pids if lives(pid)] == []


async def test_ten_servers_killed_come_back_at_once(tmp_path: Path) -> None:
    pids: set[int] = set()
    async with all_of_them(tmp_path) as (fabric, _):
        for link in fabric.links.values():
            assert link.pid is not None
            pids.add(link.pid)
            os.kill(link.pid, signal.SIGKILL)
        await until(lambda: all(link.starts == 2 and link.state == "ready" for link in fabric.links.values()))
        assert all(link.pid not in pids for link in fabric.links.values())
        await until(lambda: tools_of(fabric) == {name: LEAST[name] for name in fabric.links})
        await uses_one_tool_of_each(fabric, tmp_path)
        pids |= {pid for link in fabric.links.values() if (pid := link.pid) is not None}
    assert [pid for pid in pids if lives(pid)] == []


def lives(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
