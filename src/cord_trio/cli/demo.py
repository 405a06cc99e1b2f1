"""Show the topology at work: many MCP servers as children, agents that call across them and hand over.

Everything is real: the servers are child processes that stream logs, the agents are those of the public
API, and what is left behind at the end is looked for, not claimed.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
from array import array
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.cli import FAILED, INTERRUPTED, USAGE
from cord_trio.cli.common import print_json
from cord_trio.config import Stdio
from cord_trio.errors import CordError

if TYPE_CHECKING:
    import argparse
    from rich.console import Group

    from cord_trio.agents import Context, Handoff
    from cord_trio.fabric import Fabric

DRAINS = True
"""The first signal ends the run and shows the figures so far."""

SAMPLES: Final = 1_000_000
"""Latencies kept for the percentiles; later ones replace random earlier ones."""

REFRESH: Final = 0.25
"""Seconds between two looks at the live table."""

LINE_EVERY: Final = 1.0
"""Seconds between two plain lines, where there is no terminal."""

SHOWN_SERVERS: Final = 12
"""Rows of the live table."""


@attrs.define(eq=False)
class Figures:
    """What the run has shown so far."""

    calls: int = 0
    errors: int = 0
    handoffs: int = 0
    latencies: array[float] = attrs.field(factory=lambda: array("d"))
    handoff_costs: array[float] = attrs.field(factory=lambda: array("d"))
    by_server: dict[str, int] = attrs.field(factory=dict)
    events: list[str] = attrs.field(factory=list)
    first_error: str = ""

    def took(self, samples: array[float], seconds: float) -> None:
        """Keep one measurement."""
        if len(samples) < SAMPLES:
            samples.append(seconds)
        else:
            samples[random.randrange(SAMPLES)] = seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--servers", type=int, default=50, metavar="N", help="MCP servers to start; default 50")
    parser.add_argument("--agents", type=int, default=16, metavar="M", help="agents that call them; default 16")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="how long they work; default 5")
    parser.add_argument("--rate", type=float, default=20.0, metavar="R", help="log lines a second of each server; default 20")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object, on the last line")


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    from cord_trio.fabric import open_fabric
    from cord_trio.testing import tool_server

    if args.servers < 1 or args.agents < 1 or args.seconds <= 0 or args.rate < 0:
        print("error: --servers and --agents must be at least 1, --seconds above 0, --rate not negative", file=sys.stderr)
        return USAGE
    program = str(tool_server.__file__)
    servers = [
        Stdio(
            name=f"s{index:02}",
            command=sys.executable,
            args=("-I", "-S", program, "--name", f"s{index:02}", "--logs", f"{args.rate:g}"),
            era="legacy",  # only there do servers stream logs that nobody asked for
            trust=True,
        )
        for index in range(args.servers)
    ]
    before = _held()
    figures = Figures()
    pids: set[int] = set()
    began = time.perf_counter()
    async with open_fabric(servers) as fabric:
        await fabric.wait_started()
        connected = time.perf_counter() - began
        down = [link for link in fabric.links.values() if link.state != "ready"]
        if down:
            print(f"error: {len(down)} of {args.servers} servers did not start: {down[0].reason}", file=sys.stderr)
            return FAILED
        _say(args, f"{args.servers} servers connected in {connected:.2f} s; {args.agents} agents work for {args.seconds:g} s")
        gc.collect()
        gc.freeze()
        started = time.perf_counter()
        await _work(fabric, args, figures, pids, interrupted)
        worked = time.perf_counter() - started
        log_lines = sum(link.log_lines for link in fabric.links.values())
        restarts = sum(link.starts - 1 for link in fabric.links.values())
        memory = _resident_mb()
        closing = time.perf_counter()
    closed = time.perf_counter() - closing
    left = _left_behind(before, pids)
    _report(args, figures, worked, connected, closed, log_lines, restarts, memory, left)
    if interrupted.is_set():
        return INTERRUPTED
    return FAILED if left or not figures.calls else 0


async def _work(
    fabric: Fabric, args: argparse.Namespace, figures: Figures, pids: set[int], interrupted: trio.Event
) -> None:
    """Let the agents work for the time asked, and show it."""
    chance = random.Random()
    names = list(fabric.links)
    agents = [f"agent-{index}" for index in range(args.agents)]

    async def call(ctx: Context, text: str) -> str:
        server = chance.choice(names)
        start = time.perf_counter()
        result = await ctx.call(f"{server}__echo", {"text": text})
        figures.took(figures.latencies, time.perf_counter() - start)
        if result.text != text:
            raise CordError(f"{server} answered {result.text!r} to {text!r}")
        figures.calls += 1
        figures.by_server[server] = figures.by_server.get(server, 0) + 1
        return result.text

    async def work(ctx: Context, job: tuple[str, float, int]) -> Handoff | str:
        """Two agents a job: the first calls one server and hands over, the second calls another."""
        text, handed_at, stage = job
        if stage:
            figures.took(figures.handoff_costs, time.perf_counter() - handed_at)
            figures.handoffs += 1
            return await call(ctx, text)
        await call(ctx, text)
        taker = chance.choice(agents)
        return ctx.handoff(taker, (text, time.perf_counter(), 1))

    async def customer(agent: str) -> None:
        number = 0
        while True:
            number += 1
            try:
                await fabric.ask(agent, (f"{agent} job {number}", 0.0, 0))
            except CordError as exc:
                figures.errors += 1
                figures.first_error = figures.first_error or str(exc)

    for agent in agents:
        fabric.agent(agent, work, turn=4)
    with trio.move_on_after(args.seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_servers, fabric, figures, pids)
            nursery.start_soon(_show, fabric, args, figures)
            for agent in agents:
                nursery.start_soon(customer, agent)
            await interrupted.wait()
            nursery.cancel_scope.cancel("interrupted by a signal")
    pids.update(link.pid for link in fabric.links.values() if link.pid)


async def _watch_servers(fabric: Fabric, figures: Figures, pids: set[int]) -> None:
    """Note every server that goes down and comes back."""
    version, states = 0, dict.fromkeys(fabric.links, "ready")
    while True:
        snapshot = await fabric.registry.changed(version)
        version = snapshot.version
        pids.update(link.pid for link in fabric.links.values() if link.pid)
        for name, view in snapshot.sources.items():
            if view.state in ("ready", "down") and view.state != states[name]:
                states[name] = view.state
                figures.events.append(f"{name} is {view.state}{': ' if view.reason else ''}{view.reason}")


async def _show(fabric: Fabric, args: argparse.Namespace, figures: Figures) -> None:
    """A live table in a terminal, a plain line now and then elsewhere."""
    if args.json or not sys.stdout.isatty():
        shown = 0
        while True:
            await trio.sleep(LINE_EVERY)
            for event in figures.events[shown:]:
                _say(args, event)
            shown = len(figures.events)
            _say(args, _line(fabric, figures))
    from rich.live import Live

    with Live(auto_refresh=False, transient=True) as live:
        while True:
            live.update(_table(fabric, figures), refresh=True)
            await trio.sleep(REFRESH)


def _line(fabric: Fabric, figures: Figures) -> str:
    ready = sum(link.state == "ready" for link in fabric.links.values())
    p50, p99 = (_percentile(figures.latencies, share) * 1e6 for share in (0.5, 0.99))
    logs = sum(link.log_lines for link in fabric.links.values())
    return (
        f"{ready}/{len(fabric.links)} servers ready  {figures.calls:,} calls  {figures.errors} errors  "
        f"p50 {p50:.0f} µs  p99 {p99:.0f} µs  {figures.handoffs:,} handoffs  {logs:,} log lines"
    )


def _table(fabric: Fabric, figures: Figures) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("server", "state", "calls", "in flight", "log lines", "pid", box=None, padding=(0, 2))
    links = sorted(fabric.links.values(), key=lambda link: (link.state == "ready", link.name))
    for link in links[:SHOWN_SERVERS]:
        style = "" if link.state == "ready" else "bold red"
        table.add_row(
            link.name, link.state, f"{figures.by_server.get(link.name, 0):,}", str(link.in_flight),
            f"{link.log_lines:,}", str(link.pid or ""), style=style,
        )  # fmt: skip
    more = len(links) - SHOWN_SERVERS
    rest = [Text(f"… and {more} more servers", style="dim")] if more > 0 else []
    events = [Text(event, style="yellow") for event in figures.events[-5:]]
    return Group(Text(_line(fabric, figures), style="bold"), table, *rest, *events)


def _report(
    args: argparse.Namespace, figures: Figures, worked: float, connected: float, closed: float, log_lines: int,
    restarts: int, memory: float, left: list[str],
) -> None:  # fmt: skip
    p50, p99, p999 = (_percentile(figures.latencies, share) * 1e6 for share in (0.5, 0.99, 0.999))
    handoff = _percentile(figures.handoff_costs, 0.5) * 1e6
    if args.json:
        print_json(
            {
                "calls": figures.calls,
                "errors": figures.errors,
                "calls_per_s": round(figures.calls / worked, 1),
                "p50_us": round(p50, 1),
                "p99_us": round(p99, 1),
                "p999_us": round(p999, 1),
                "handoffs": figures.handoffs,
                "handoff_p50_us": round(handoff, 2),
                "log_lines": log_lines,
                "rss_mb": round(memory, 1),
                "servers": args.servers,
                "agents": args.agents,
                "restarts": restarts,
                "connected_s": round(connected, 3),
                "closed_s": round(closed, 3),
                "first_error": figures.first_error,
                "left_behind": len(left),
                "left": left,
            }
        )
        return
    for event in figures.events:
        print(event)
    print(f"calls        {figures.calls:,} in {worked:.1f} s ({figures.calls / worked:,.0f} a second)")
    print(f"errors       {figures.errors}" + (f", the first: {figures.first_error}" if figures.errors else ""))
    print(f"latency      p50 {p50:.0f} µs   p99 {p99:.0f} µs   p99.9 {p999:.0f} µs")
    print(f"handoffs     {figures.handoffs:,}, p50 {handoff:.1f} µs each")
    print(f"log lines    {log_lines:,} seen")
    print(f"restarts     {restarts}")
    print(f"memory       {memory:.1f} MB resident, the fabric's own process")
    print(f"start, stop  {connected:.2f} s, {closed:.2f} s")
    print(f"left behind  {', '.join(left) or 'nothing: no process, descriptor or thread'}")


@attrs.frozen
class Held:
    """What this process holds."""

    descriptors: int
    threads: int


def _held() -> Held:
    return Held(len(os.listdir("/dev/fd")), threading.active_count())


def _left_behind(before: Held, pids: set[int]) -> list[str]:
    """What the fabric left: child processes that live, descriptors that are open. Trio keeps its threads a while."""
    left = [f"process {pid}" for pid in sorted(pids) if _alive(pid)]
    more = _held().descriptors - before.descriptors
    if more > 0:
        left.append(f"{more} descriptors")
    return left


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _percentile(samples: array[float], share: float) -> float:
    ordered = sorted(samples[-100_000:]) if len(samples) > 100_000 else sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _resident_mb() -> float:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _say(args: argparse.Namespace, text: str) -> None:
    print(text, file=sys.stderr if args.json else sys.stdout, flush=True)
