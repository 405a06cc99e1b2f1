"""The tables: who takes part in each, what is measured, and what we hold ourselves to."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
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
    part_of: str = ""  # the table with which this one is run


def stdio_sources(count, *options):
    return [
        {"name": f"s{index:02d}", "command": [str(build.BUILD / "cmcp"), "--name", f"s{index:02d}", *options]}
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
    if adapter == "node":
        folder = str(build.BUILD / f"npm-{peer}")
        args = ["node", str(build.PROGRAMS / "node_client.mjs"), folder, json.dumps(job)]
    else:
        args = [build.python_of(peer), str(build.PROGRAMS / "client.py"), json.dumps(job)]
    return processes.run_json(args, timeout=plan.timeout)


def client(run, name, adapter, runtime, peer=None):
    """A contestant that is a client; `run(plan, adapter, runtime, peer)` measures it."""
    return Contestant(name, lambda plan: run(plan, adapter, runtime, peer), peer)


def clients(run, floor):
    """The clients of one table."""
    contestant = partial(client, run)
    return (
        contestant(US, "via_cord", "trio"),
        contestant("floor", floor, "trio"),
        contestant("npm SDK", "node", "node", "npm-sdk"),
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


def call_amid_logs(plan, adapter, runtime, peer):
    return run_client(plan, "logs", adapter, runtime, peer, stdio_sources(plan.servers, "--flood", "200"))


def call_amid_flood(plan, adapter, runtime, peer):
    return run_client(plan, "flood", adapter, runtime, peer, stdio_sources(plan.servers, "--flood", "-1"))


def amid_logs(run):
    """Those that many servers' logs do not bury: clients of the official Python SDKs do not come to an end."""
    contestant = partial(client, run)
    return (
        contestant(US, "via_cord", "trio"),
        contestant("floor pump", "via_floor_pump", "trio"),
        contestant("floor task", "via_floor_stdio", "trio"),
        contestant("npm SDK", "node", "node", "npm-sdk"),
    )


# ---- gateways


def post(connection, session, message, path="/mcp"):
    """The JSON-RPC answer to one request, sent as a client of 2025-11-25, and the session that it named."""
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    if message["method"] != "initialize":
        headers["mcp-protocol-version"] = "2025-11-25"
    if session:
        headers["mcp-session-id"] = session
    connection.request("POST", path, json.dumps({"jsonrpc": "2.0", **message}), headers)
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


def echo_tools(port, path="/mcp"):
    """The names under which the gateway offers the echo tools."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=START)) as connection:
        client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
        _, session = post(connection, "", {"id": 1, "method": "initialize", "params": client}, path)
        post(connection, session, {"method": "notifications/initialized"}, path)
        names, cursor = [], {}
        while True:
            page, _ = post(connection, session, {"id": 2, "method": "tools/list", "params": cursor}, path)
            names += [tool["name"] for tool in page["tools"]]
            if "nextCursor" not in page:
                return [name for name in names if name.endswith("echo")]
            cursor = {"cursor": page["nextCursor"]}


def run_gateway(plan, args, port, count, *, paths=(), rest=False):
    """`paths`: where a gateway serves that has an endpoint for each source; `rest`: it is asked without MCP."""
    started = time.monotonic()
    with processes.serve(args, port) as gateway:
        if rest:
            tools = [f"s{index:02d}__echo" for index in range(count)]
            wait_connected(port, count)
        elif paths:
            tools = ["echo"]
            for path in paths:
                if not echo_tools(port, path):
                    raise processes.Failed(f"offers no echo tool at {path}")
        else:
            while len(tools := echo_tools(port)) < count:
                if time.monotonic() > started + START:
                    raise processes.Failed(f"offers {len(tools)} of {count} echo tools after {START} s")
                time.sleep(0.05)
        start = time.monotonic() - started

        def load(conns):
            options = ["--conns", str(conns), "--seconds", str(plan.seconds), "--warm", str(plan.warm)]
            if plan.era == "modern":
                options.append("--modern")
            if rest:
                options += ["--rest", "--path", "/api/servers/tools"]
            for path in paths:
                options += ["--path", path]
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


def wait_connected(port, count):
    """Wait for mcp-hub to have connected its servers."""
    patience, up = time.monotonic() + START, 0
    while time.monotonic() < patience:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=START)) as connection:
            connection.request("GET", "/api/servers")
            up = connection.getresponse().read().count(b'"status":"connected"')
        if up >= count:
            return
        time.sleep(0.05)
    raise processes.Failed(f"has connected {up} of {count} servers after {START} s")


def gateways(count, *options, others=False):
    """The gateways in front of `count` sources, all of them if None; `others`: with those that serve one alone."""

    def contestant(name, command, peer=None, *, rest=False, paths=lambda _: ()):
        def run(plan):
            sources = stdio_sources(count or plan.servers, *options)
            port = processes.free_port()
            with command(port, sources, plan) as args:
                return run_gateway(plan, args, port, len(sources), paths=paths(sources), rest=rest)

        return Contestant(name, run, peer)

    @contextlib.contextmanager
    def written(suffix, text):
        with tempfile.NamedTemporaryFile("w", prefix="bench-", suffix=suffix) as file:
            file.write(text)
            file.flush()
            yield file.name

    @contextlib.contextmanager
    def cord(port, sources, plan):
        with written(".toml", toml(sources, era=plan.era, slots=32)) as config:
            yield [sys.executable, "-m", "cord_trio", "serve", "--http", f"127.0.0.1:{port}", "--config", config]

    def program(name, *options, peer=None):
        @contextlib.contextmanager
        def command(port, sources, plan):
            path = str(build.PROGRAMS / name)
            yield [build.python_of(peer), path, str(port), json.dumps(sources), *options]

        return command

    def block(sources):
        servers = {s["name"]: {"command": s["command"][0], "args": s["command"][1:]} for s in sources}
        return json.dumps({"mcpServers": servers})

    @contextlib.contextmanager
    def mcp_proxy(port, sources, plan):
        with written(".json", block(sources)) as config:
            proxy = build.program_of("mcp-proxy", "mcp-proxy")
            yield [proxy, "--port", str(port), "--log-level", "ERROR", "--named-server-config", config]

    @contextlib.contextmanager
    def mcp_hub(port, sources, plan):
        with written(".json", block(sources)) as config:
            yield [build.program_of("mcp-hub", "mcp-hub"), "--port", str(port), "--config", config]

    @contextlib.contextmanager
    def npm_mcp_proxy(port, sources, plan):
        program = build.program_of("npm-mcp-proxy", "mcp-proxy")
        options = ["--host", "127.0.0.1", "--port", str(port), "--server", "stream", "--streamEndpoint", "/mcp"]
        yield [program, *options, "--", *sources[0]["command"]]

    @contextlib.contextmanager
    def supergateway(port, sources, plan):
        program = build.program_of("supergateway", "supergateway")
        options = ["--outputTransport", "streamableHttp", "--stateful", "--port", str(port), "--logLevel", "none"]
        yield [program, "--stdio", " ".join(sources[0]["command"]), *options]

    def of_each(sources):
        return [f"/servers/{source['name']}/mcp" for source in sources]

    alone = (
        contestant("npm mcp-proxy", npm_mcp_proxy, "npm-mcp-proxy"),
        contestant("supergateway", supergateway, "supergateway"),
    )
    return (
        contestant(US, cord),
        contestant("floor task", program("floor_gateway.py", "task")),
        contestant("floor pump", program("floor_gateway.py", "pump")),
        contestant("mcp-hub", mcp_hub, "mcp-hub", rest=True),
        contestant("PyPI mcp-proxy", mcp_proxy, "mcp-proxy", paths=of_each),
        contestant("fastmcp proxy", program("fastmcp_gateway.py", peer="fastmcp"), "fastmcp"),
        *(alone if others else ()),
    )


# ---- one thing through a gateway


def run_start(args):
    """Speak 2025-11-25 to a gateway over its stdio until it offers a tool."""
    client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
    began = time.monotonic()
    with processes.pipes(args) as (say, hear):
        say({"id": 0, "method": "initialize", "params": client})
        hear(0)
        say({"method": "notifications/initialized"})
        for number in range(1, 1000):
            say({"id": number, "method": "tools/list", "params": {}})
            if hear(number)["tools"]:
                break
            time.sleep(0.005)
        wall = time.monotonic() - began
    return wall


def starts():
    def contestant(name, args, peer=None):
        def run(plan):
            with tempfile.NamedTemporaryFile("w", prefix="bench-", suffix=".toml") as file:
                file.write(toml(stdio_sources(1), era=plan.era))
                file.flush()
                cpu = processes.children_cpu()
                wall = min(run_start(args(file.name)) for _ in range(plan.imports))
                return {
                    "answer_ms": wall * 1e3,
                    "cpu_ms": (processes.children_cpu() - cpu) / plan.imports * 1e3,
                    "wrong": 0,
                }

        return Contestant(name, run, peer)

    def cord(config):
        return [sys.executable, "-m", "cord_trio", "serve", "--stdio", "--config", config]

    def fastmcp(_):
        return [build.python_of("fastmcp"), str(build.PROGRAMS / "fastmcp_stdio.py"), json.dumps(stdio_sources(1))]

    return contestant(US, cord), contestant("fastmcp proxy", fastmcp, "fastmcp")


BIG = 85_000
"""Items in a big structured result, each of 60 bytes or so."""


def bigs():
    def contestant(name, args, peer=None):
        def run(plan):
            port, sources = processes.free_port(), stdio_sources(1)
            with tempfile.NamedTemporaryFile("w", prefix="bench-", suffix=".toml") as file:
                file.write(toml(sources, era=plan.era))
                file.flush()
                with processes.serve(args(port, sources, file.name), port) as gateway:
                    return ask_big(plan, gateway, port)

        return Contestant(name, run, peer)

    def cord(port, sources, config):
        return [sys.executable, "-m", "cord_trio", "serve", "--http", f"127.0.0.1:{port}", "--config", config]

    def fastmcp(port, sources, config):
        program = str(build.PROGRAMS / "fastmcp_gateway.py")
        return [build.python_of("fastmcp"), program, str(port), json.dumps(sources)]

    return contestant(US, cord), contestant("fastmcp proxy", fastmcp, "fastmcp")


def ask_big(plan, gateway, port):
    patience = time.monotonic() + START
    while not (names := echo_tools(port)) and time.monotonic() < patience:
        time.sleep(0.05)
    name = names[0].removesuffix("echo") + "big"
    client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=START)) as connection:
        _, session = post(connection, "", {"id": 0, "method": "initialize", "params": client})
        post(connection, session, {"method": "notifications/initialized"})
        call = {"id": 1, "method": "tools/call", "params": {"name": name, "arguments": {"items": BIG}}}
        post(connection, session, call)
        wrong, times, cpu = 0, [], gateway.cpu()
        until = time.monotonic() + plan.seconds
        while not times or time.monotonic() < until:
            began = time.monotonic()
            result, _ = post(connection, session, call)
            times.append(time.monotonic() - began)
            wrong += len(result["structuredContent"]["items"]) != BIG
        cpu = (gateway.cpu() - cpu) / len(times)
    return {"big_cpu_ms": cpu * 1e3, "big_ms": min(times) * 1e3, "rss_mb": gateway.rss_mb(), "wrong": wrong}


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
            Goal("one_cpu_us", "floor", 1 / 1.5),
            Goal("one_cpu_us", "mcp on Trio", 7),
            Goal("one_cpu_us", "npm SDK", 1),
            Goal("many_calls_s", "floor", 0.6),
            Goal("many_calls_s", "mcp on Trio", 12),
            Goal("many_calls_s", "npm SDK", 1),
        ),
    ),
    Table(
        "http",
        "One Streamable HTTP server: calls one at a time, then 64 in flight",
        CALL_COLUMNS,
        clients(call_over_http, "via_floor_http"),
        (
            Goal("one_cpu_us", "floor", 1 / 1.7),
            Goal("one_cpu_us", "mcp on Trio", 15),
            Goal("one_cpu_us", "fastmcp", 15),
            Goal("one_cpu_us", "npm SDK", 15),
        ),
    ),
    Table(
        "logs",
        "Many stdio servers that each log 200 lines a second: 320 calls/s at random; then 16 callers without pause",
        (
            Column("p50_us", "p50 µs"),
            Column("p99_us", "p99 µs", ratio=True),
            Column("core", "core used"),
            Column("logs_s", "logs/s", more_is_better=True),
            Column("blocked", "logs held back"),
            Column("closed_s", "16: calls/s", more_is_better=True, ratio=True),
            Column("closed_p99_us", "16: p99 µs"),
            Column("rss_mb", "RSS MB"),
        ),
        amid_logs(call_amid_logs),
        (
            Goal("p99_us", "floor pump", 0.5),
            Goal("p99_us", most=3000),
            Goal("closed_s", "floor pump", 0.5),
            Goal("closed_s", "npm SDK", 5),
        ),
    ),
    Table(
        "flood",
        "Many stdio servers that log as fast as they are read, and one caller that calls each in turn",
        (
            Column("flood_s", "logs/s", more_is_better=True, ratio=True),
            Column("flood_calls_s", "calls/s", more_is_better=True, ratio=True),
            Column("flood_p50_us", "p50 µs"),
        ),
        amid_logs(call_amid_flood),
        (Goal("flood_s", "npm SDK", 10),),
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
        (
            Goal("connect_s", most=1),
            Goal("connect_s", "mcp on Trio", 1),
            Goal("rss_mb", most=60),
            Goal("rss_mb", "mcp on Trio", 1 / 0.55),
        ),
    ),
    Table(
        "gateway",
        "Gateways over HTTP in front of many stdio servers: 32 clients, then 1",
        GATEWAY_COLUMNS,
        gateways(None),
        (
            Goal("calls_s", "floor task", 0.6),
            Goal("calls_s", "mcp-hub", 6),
            Goal("calls_s", "PyPI mcp-proxy", 18),
            Goal("calls_s", "fastmcp proxy", 100),
            Goal("one_p50_us", "floor task", 1 / 1.7),
        ),
    ),
    Table(
        "gateway-logs",
        "The same, while the servers stream 20 log lines a second each",
        tuple(replace(column, ratio=column.key == "p99_us") for column in GATEWAY_COLUMNS),
        gateways(None, "--flood", "20"),
        (Goal("p99_us", "floor task", 0.5),),
    ),
    Table(
        "gateway-one",
        "Gateways over HTTP in front of one stdio server: 32 clients, then 1",
        GATEWAY_COLUMNS,
        gateways(1, others=True),
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
        "mailbox",
        "A mailbox: from the line before a message is told to the handler's first line; and what each of many takes",
        (Column("one_way_us", "one way p50 µs", ratio=True), Column("tell_us", "tell µs", ratio=True)),
        (agents(US, "mailbox_cord.py"), agents("floor", "mailbox_floor.py")),
        (Goal("one_way_us", most=15),),
        part_of="agents",
    ),
    Table(
        "layers",
        "What the layers of a source add to a call: the default ones of a child, of an HTTP source, and with more on",
        (
            Column("stdio_us", "default, stdio µs"),
            Column("http_us", "default, HTTP µs"),
            Column("all_us", "and breaker, shed, rate, adaptive, attempt µs"),
        ),
        (agents(US, "layers_cord.py"),),
        (Goal("stdio_us", most=10), Goal("http_us", most=10)),
    ),
    Table(
        "registry",
        "50,000 tools of 500 sources: a lookup, one source's 100 tools changed and acknowledged, a full collection",
        (
            Column("lookup_ns", "lookup ns"),
            Column("change_us", "change µs"),
            Column("gc_ms", "full GC ms"),
        ),
        (agents(US, "registry_cord.py"),),
        (Goal("lookup_ns", most=150), Goal("change_us", most=100), Goal("gc_ms", most=5)),
    ),
    Table(
        "start",
        "A gateway over stdio in front of one stdio server: from its start to the answer to `tools/list`",
        (Column("answer_ms", "answer ms", ratio=True), Column("cpu_ms", "CPU ms")),
        starts(),
        (Goal("answer_ms", most=350), Goal("answer_ms", "fastmcp proxy", 1)),
    ),
    Table(
        "big",
        "A structured result of 5 MB through a gateway over HTTP in front of one stdio server",
        (Column("big_cpu_ms", "CPU ms", ratio=True), Column("big_ms", "ms"), Column("rss_mb", "RSS MB")),
        bigs(),
        (Goal("big_cpu_ms", "fastmcp proxy", 20),),
    ),
    Table(
        "idle",
        "100,000 idle agents: their memory, and what they add to the longest pause",
        (
            Column("idle_mb", "memory MB"),
            Column("gc_pause_ms", "full GC ms"),
            Column("look_pause_ms", "tree ms"),
        ),
        (agents(US, "agents_idle.py"),),
        (Goal("idle_mb", most=100), Goal("gc_pause_ms", most=10), Goal("look_pause_ms", most=10)),
        part_of="agents",
    ),
    Table(
        "hog",
        "An agent that computes for 50 ms, again and again, while another is asked: what the tree says of it",
        (Column("missed", "missed of 20"), Column("held_ms", "named with ms")),
        (agents(US, "agents_hog.py"),),
        part_of="agents",
    ),
)
