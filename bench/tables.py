"""The tables: who takes part in each, what is measured, and what we hold ourselves to."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench import build, processes
from bench.programs.cord_config import toml

if TYPE_CHECKING:
    from collections.abc import Callable

US = "cord_trio"
START = 60
"""Seconds a gateway may take to offer every tool."""


@dataclass(frozen=True)
class Plan:
    """How much is done in one round."""

    rounds: int
    seconds: float
    warm: float
    imports: int
    servers: int
    era: str

    @property
    def timeout(self):
        return 60 + 10 * self.seconds


@dataclass(frozen=True)
class Contestant:
    """One row of a table; `peer` is the environment that it needs, None for our own."""

    name: str
    run: Callable[[Plan], dict[str, float]]
    peer: str | None = None


@dataclass(frozen=True)
class Column:
    key: str
    title: str
    more_is_better: bool = False
    ratio: bool = False  # whether we compare ourselves in it


@dataclass(frozen=True)
class Goal:
    """`cord_trio` is at least `least` times as good as `rival`; without a rival, its value is at most `most`."""

    key: str
    rival: str = ""
    least: float = 0
    most: float = 0


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    columns: tuple[Column, ...]
    contestants: tuple[Contestant, ...]
    goals: tuple[Goal, ...] = field(default=())


def stdio_sources(count):
    return [
        {"name": f"s{index:02d}", "command": [str(build.BUILD / "cmcp"), "--name", f"s{index:02d}"]}
        for index in range(count)
    ]


# ---- clients


def run_client(plan, kind, adapter, runtime, peer, sources):
    job = {
        "kind": kind,
        "adapter": adapter,
        "runtime": runtime,
        "sources": sources,
        "era": plan.era,
        "seconds": plan.seconds,
        "warm": plan.warm,
        "in_flight": 64,
    }
    program = str(build.PROGRAMS / "client.py")
    return processes.run_json([build.python_of(peer), program, json.dumps(job)], timeout=plan.timeout)


def clients(run, floor):
    """The clients of one table; `run(plan, adapter, runtime, peer)` measures one."""

    def contestant(name, adapter, runtime, peer=None):
        return Contestant(name, lambda plan: run(plan, adapter, runtime, peer), peer)

    return (
        contestant(US, "via_cord", "trio"),
        contestant("floor", floor, "trio"),
        contestant("mcp on Trio", "via_sdk", "trio", "mcp"),
        contestant("mcp on asyncio", "via_sdk", "asyncio", "mcp"),
        contestant("fastmcp", "via_fastmcp", "asyncio", "fastmcp"),
    )


def call_over_stdio(plan, adapter, runtime, peer):
    return run_client(plan, "calls", adapter, runtime, peer, stdio_sources(1))


def call_over_http(plan, adapter, runtime, peer):
    port = processes.free_port()
    with processes.serve([str(build.BUILD / "cmcp"), "--http", str(port)], port):
        source = {"name": "s00", "url": f"http://127.0.0.1:{port}/mcp"}
        return run_client(plan, "calls", adapter, runtime, peer, [source])


def connect_all(plan, adapter, runtime, peer):
    return run_client(plan, "connect", adapter, runtime, peer, stdio_sources(plan.servers))


# ---- gateways


def post(connection, session, message):
    """The JSON-RPC answer to one request, sent as a client of 2025-11-25, and the session that it named."""
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    if message["method"] != "initialize":
        headers["mcp-protocol-version"] = "2025-11-25"
    if session:
        headers["mcp-session-id"] = session
    connection.request("POST", "/mcp", json.dumps({"jsonrpc": "2.0", **message}), headers)
    response = connection.getresponse()
    text = response.read().decode()
    if response.status >= 300:
        raise processes.Failed(f"HTTP {response.status} to {message['method']}: {text[:200]}")
    if "event-stream" in response.headers.get("content-type", ""):
        events = [line[5:] for line in text.splitlines() if line.startswith("data:") and line[5:].strip()]
        text = events[-1]
    answer = json.loads(text) if text else {}
    if "error" in answer:
        raise processes.Failed(f"{message['method']}: {answer['error']}")
    return answer.get("result", {}), response.headers.get("mcp-session-id", session)


def echo_tools(port):
    """The names under which the gateway offers the echo tools."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=START)) as connection:
        client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
        _, session = post(connection, "", {"id": 1, "method": "initialize", "params": client})
        post(connection, session, {"method": "notifications/initialized"})
        names, cursor = [], {}
        while True:
            page, _ = post(connection, session, {"id": 2, "method": "tools/list", "params": cursor})
            names += [tool["name"] for tool in page["tools"]]
            if "nextCursor" not in page:
                return [name for name in names if name.endswith("echo")]
            cursor = {"cursor": page["nextCursor"]}


def run_gateway(plan, args, port, count):
    started = time.monotonic()
    with processes.serve(args, port) as gateway:
        while len(tools := echo_tools(port)) < count:
            if time.monotonic() > started + START:
                raise processes.Failed(f"offers {len(tools)} of {count} echo tools after {START} s")
            time.sleep(0.05)
        start = time.monotonic() - started

        def load(conns):
            options = ["--conns", str(conns), "--seconds", str(plan.seconds), "--warm", str(plan.warm)]
            if plan.era == "modern":
                options.append("--modern")
            program = str(build.BUILD / "load")
            return processes.run_json([program, str(port), ",".join(tools), *options], timeout=plan.timeout)

        one = load(1)
        cpu = gateway.cpu()
        many = load(32)
        cpu = gateway.cpu() - cpu
        rss = gateway.rss_mb()
    return {
        "start_s": start,
        "one_p50_us": one["p50_us"],
        "calls_s": many["calls_s"],
        "p50_us": many["p50_us"],
        "p99_us": many["p99_us"],
        "cpu_us": cpu / max(1, many["all"]) * 1e6,
        "rss_mb": rss,
        "load_core": many["core"],
        "wrong": one["wrong"] + many["wrong"],
    }


def gateways(count):
    """The gateways in front of `count` sources; all of them if None."""

    def contestant(name, command, peer=None):
        def run(plan):
            sources = stdio_sources(count or plan.servers)
            port = processes.free_port()
            with command(port, sources, plan) as args:
                return run_gateway(plan, args, port, len(sources))

        return Contestant(name, run, peer)

    @contextlib.contextmanager
    def cord(port, sources, plan):
        with tempfile.NamedTemporaryFile("w", prefix="bench-", suffix=".toml") as file:
            file.write(toml(sources, era=plan.era, slots=32))
            file.flush()
            address = f"127.0.0.1:{port}"
            yield [sys.executable, "-m", "cord_trio", "serve", "--http", address, "--config", file.name]

    def program(name, *options, peer=None):
        @contextlib.contextmanager
        def command(port, sources, plan):
            path = str(build.PROGRAMS / name)
            yield [build.python_of(peer), path, str(port), json.dumps(sources), *options]

        return command

    return (
        contestant(US, cord),
        contestant("floor task", program("floor_gateway.py", "task")),
        contestant("floor pump", program("floor_gateway.py", "pump")),
        contestant("fastmcp proxy", program("fastmcp_gateway.py", peer="fastmcp"), "fastmcp"),
    )


# ---- import


def imports():
    """Each names what it is imported for, so that a lazy import does not look like a cheap one."""

    def contestant(name, statement, peer=None):
        def run(plan):
            python = build.python_of(peer)
            processes.cpu_of_run([python, "-c", statement])  # writes the byte code
            bare = min(processes.cpu_of_run([python, "-c", "pass"]) for _ in range(plan.imports))
            whole = min(processes.cpu_of_run([python, "-c", statement]) for _ in range(plan.imports))
            return {"import_ms": (whole - bare) * 1e3, "wrong": 0}

        return Contestant(name, run, peer)

    return (
        contestant(US, "import cord_trio; cord_trio.open_fabric"),
        contestant("floor", "import trio, msgspec"),
        contestant("mcp", "import mcp; mcp.Client", "mcp"),
        contestant("fastmcp", "import fastmcp; fastmcp.Client", "fastmcp"),
    )


# ---- agents


def agents(name, program, peer=None):
    """A contestant whose program prints its figures by itself."""

    def run(plan):
        path = str(build.PROGRAMS / program)
        return processes.run_json([build.python_of(peer), path, str(plan.seconds)], timeout=plan.timeout)

    return Contestant(name, run, peer)


CALL_COLUMNS = (
    Column("one_cpu_us", "1: CPU µs", ratio=True),
    Column("one_p50_us", "1: p50 µs"),
    Column("one_p99_us", "1: p99 µs"),
    Column("many_calls_s", "64: calls/s", more_is_better=True, ratio=True),
    Column("many_cpu_us", "64: CPU µs"),
    Column("many_p99_us", "64: p99 µs"),
    Column("rss_mb", "RSS MB"),
)
GATEWAY_COLUMNS = (
    Column("calls_s", "32: calls/s", more_is_better=True, ratio=True),
    Column("p50_us", "32: p50 µs"),
    Column("p99_us", "32: p99 µs"),
    Column("cpu_us", "32: CPU µs"),
    Column("one_p50_us", "1: p50 µs", ratio=True),
    Column("rss_mb", "RSS MB"),
    Column("start_s", "start s"),
    Column("load_core", "load's core"),
)

TABLES = (
    Table(
        "stdio",
        "One stdio server: calls one at a time, then 64 in flight",
        CALL_COLUMNS,
        clients(call_over_stdio, "via_floor_stdio"),
        (
            Goal("one_cpu_us", "floor", 0.5),
            Goal("one_cpu_us", "mcp on Trio", 5),
            Goal("many_calls_s", "mcp on Trio", 10),
        ),
    ),
    Table(
        "http",
        "One Streamable HTTP server: calls one at a time, then 64 in flight",
        CALL_COLUMNS,
        clients(call_over_http, "via_floor_http"),
    ),
    Table(
        "connect",
        "Many stdio servers: connected and their tools listed; then the client's own memory",
        (
            Column("connect_s", "connect s", ratio=True),
            Column("connect_cpu_s", "CPU s"),
            Column("rss_mb", "RSS MB", ratio=True),
        ),
        clients(connect_all, "via_floor_stdio"),
        (Goal("connect_s", most=1), Goal("rss_mb", most=60)),
    ),
    Table(
        "gateway",
        "Gateways over HTTP in front of many stdio servers: 32 clients, then 1",
        GATEWAY_COLUMNS,
        gateways(None),
        (Goal("calls_s", "fastmcp proxy", 10),),
    ),
    Table(
        "gateway-one",
        "Gateways over HTTP in front of one stdio server: 32 clients, then 1",
        GATEWAY_COLUMNS,
        gateways(1),
        (Goal("calls_s", "fastmcp proxy", 10),),
    ),
    Table(
        "import",
        "Import: CPU time above a bare interpreter's",
        (Column("import_ms", "CPU ms", ratio=True),),
        imports(),
        (Goal("import_ms", "mcp", 3),),
    ),
    Table(
        "agents",
        "Agents in one process: a handoff from one to the next, and an ask there and back",
        (
            Column("handoff_p50_us", "handoff p50 µs", ratio=True),
            Column("handoff_p99_us", "handoff p99 µs"),
            Column("ask_p50_us", "ask p50 µs", ratio=True),
            Column("ask_p99_us", "ask p99 µs"),
        ),
        (
            agents(US, "agents_cord.py"),
            agents("autogen-core", "agents_autogen.py", "autogen-core"),
            agents("langgraph", "agents_langgraph.py", "langgraph"),
            agents("openai-agents", "agents_openai.py", "openai-agents"),
        ),
        (
            Goal("handoff_p50_us", most=5),
            Goal("handoff_p50_us", "autogen-core", 50),
            Goal("handoff_p50_us", "langgraph", 50),
            Goal("handoff_p50_us", "openai-agents", 50),
            Goal("ask_p50_us", most=20),
        ),
    ),
    Table(
        "idle",
        "100,000 idle agents: their memory, and what they add to the longest pause; and a mailbox, a message at a time",
        (
            Column("idle_mb", "memory MB"),
            Column("gc_pause_ms", "full GC ms"),
            Column("look_pause_ms", "tree ms"),
            Column("tell_us", "tell µs"),
            Column("one_way_us", "one way p50 µs"),
        ),
        (agents(US, "agents_idle.py"),),
        (
            Goal("idle_mb", most=100),
            Goal("gc_pause_ms", most=10),
            Goal("look_pause_ms", most=10),
            Goal("one_way_us", most=15),
        ),
    ),
)
