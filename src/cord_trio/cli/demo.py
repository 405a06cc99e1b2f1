"""Show the topology at work: many MCP servers as children, agents that call across them and hand over.

Everything is real: the servers are child processes that stream logs, the agents are those of the public
API, and what is left behind at the end is looked for, not claimed.
"""

from __future__ import annotations

import gc
import math
import random
import sys
import time
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.cli import FAILED, INTERRUPTED, tell
from cord_trio.cli.common import count, open_view, print_json, wrong_usage
from cord_trio.cli.figures import RECENT, Figures, held, resident_mb, say
from cord_trio.config import Stdio
from cord_trio.errors import CordError

if TYPE_CHECKING:
    import argparse

    from rich.console import Group

    from cord_trio.agents import Context, Handoff
    from cord_trio.fabric import Fabric

DRAINS = True
"""The first signal ends the run and shows the figures so far."""

MOST_SERVERS: Final = 1000
"""Servers that `--servers` may ask for: each is a process."""

MOST_AGENTS: Final = 1000
"""Agents that `--agents` may ask for: each has a call in flight, and a fabric bounds those."""

MOST_NODES: Final = 16
"""Nodes that `--nodes` may ask for: each is a fabric with processes of its own."""

REFRESH: Final = 0.25
"""Seconds between two looks at the live table."""

LINE_EVERY: Final = 1.0
"""Seconds between two plain lines, where there is no terminal."""

SHOWN_SERVERS: Final = 12
"""Rows of the live table."""

SHOWN_EVENTS: Final = 5
"""The latest events below it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--servers", type=int, default=50, metavar="N", help="MCP servers to start; default 50")
    parser.add_argument(
        "--nodes", type=int, metavar="N",
        help="show a mesh instead: a broker, N fabrics with servers of their own, and one of them killed",
    )  # fmt: skip
    parser.add_argument("--agents", type=int, default=16, metavar="M", help="agents that call them; default 16")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="how long they work; default 5")
    parser.add_argument(
        "--rate", type=float, default=20.0, metavar="R", help="log lines a second of each server; default 20"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object, on the last line")


@attrs.frozen
class Ended:
    """What is known once the fabric has ended."""

    worked: float
    connected: float
    closed: float
    log_lines: int
    restarts: int
    memory: float
    left: list[str]


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    from cord_trio.fabric import open_fabric

    if wrong := _wrong(args):
        return wrong_usage(wrong)
    if args.nodes is not None:
        from cord_trio.cli.crossing import show

        return await show(args, interrupted)
    before = held()
    figures = Figures()
    began = time.perf_counter()
    async with open_fabric(_servers(args)) as fabric, open_view(fabric, "demo"):
        if not await _started(fabric, interrupted):
            return INTERRUPTED
        connected = time.perf_counter() - began
        down = [link for link in fabric.links.values() if link.state != "ready"]
        if down:
            tell(f"error: {len(down)} of {args.servers} servers did not start: {down[0].reason}")
            return FAILED
        servers, agents = count(args.servers, "server"), count(args.agents, "agent")
        say(args, f"{servers} connected in {connected:.2f} s; {agents} at work for {args.seconds:g} s")
        gc.collect()
        gc.freeze()
        started = time.perf_counter()
        await _work(fabric, args, figures, interrupted)
        worked = time.perf_counter() - started
        gc.unfreeze()
        log_lines = sum(link.log_lines for link in fabric.links.values())
        restarts = sum(link.starts - 1 for link in fabric.links.values())
        memory = resident_mb()
        closing = time.perf_counter()
    closed = time.perf_counter() - closing
    left = held().left_since(before)
    _report(args, figures, Ended(worked, connected, closed, log_lines, restarts, memory, left))
    if left or not figures.calls:
        return FAILED
    return INTERRUPTED if interrupted.is_set() else 0


def _wrong(args: argparse.Namespace) -> str:
    """What is wrong with the arguments; "" for nothing."""
    if not 1 <= args.servers <= MOST_SERVERS:
        return f"--servers: give 1 to {MOST_SERVERS:,}"
    if args.nodes is not None and not 2 <= args.nodes <= MOST_NODES:
        return f"--nodes: give 2 to {MOST_NODES}"
    if not 1 <= args.agents <= MOST_AGENTS:
        return f"--agents: give 1 to {MOST_AGENTS:,}"
    if not args.seconds > 0:
        return "--seconds: give a number above 0; `inf` is until Ctrl-C"
    if not 0 <= args.rate < math.inf:
        return "--rate: give 0 or more"
    return ""


def _servers(args: argparse.Namespace) -> list[Stdio]:
    from cord_trio.testing import tool_server

    names = [f"s{index:02}" for index in range(args.servers)]
    start = ("-I", "-S", str(tool_server.__file__), "--logs", f"{args.rate:g}", "--name")
    return [
        Stdio(
            name=name,
            command=sys.executable,
            args=(*start, name),
            era="legacy",  # only there do servers stream logs that nobody asked for
            trust=True,
        )
        for name in names
    ]


async def _started(fabric: Fabric, interrupted: trio.Event) -> bool:
    """Wait until every server was tried; returns False if a signal came first."""
    async with trio.open_nursery() as nursery:

        async def stop_waiting() -> None:
            await interrupted.wait()
            nursery.cancel_scope.cancel("interrupted by a signal")

        nursery.start_soon(stop_waiting)
        await fabric.wait_started()
        nursery.cancel_scope.cancel("every server was tried")
    return not interrupted.is_set()


async def _work(fabric: Fabric, args: argparse.Namespace, figures: Figures, interrupted: trio.Event) -> None:
    """Let the agents work for the time asked, and show it."""
    chance = random.Random()
    names = list(fabric.links)
    agents = [f"agent-{index}" for index in range(args.agents)]

    async def call(ctx: Context, text: str) -> str:
        server = chance.choice(names)
        start = time.perf_counter()
        result = await ctx.call(f"{server}__echo", {"text": text})
        figures.latencies.add(time.perf_counter() - start)
        if result.text != text:
            raise CordError(f"{server} answered {result.text!r} to {text!r}")
        figures.calls += 1
        figures.by_server[server] = figures.by_server.get(server, 0) + 1
        return result.text

    async def work(ctx: Context, job: tuple[str, float, int]) -> Handoff | str:
        """Two agents a job: the first calls one server and hands over, the second calls another."""
        text, handed_at, stage = job
        if stage:
            figures.handoff_costs.add(time.perf_counter() - handed_at)
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
                await trio.lowlevel.checkpoint()

    for agent in agents:
        fabric.agent(agent, work, turn=4)
    with trio.move_on_after(args.seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_servers, fabric, figures)
            nursery.start_soon(_show, fabric, args, figures)
            for agent in agents:
                nursery.start_soon(customer, agent)
            await interrupted.wait()
            nursery.cancel_scope.cancel("interrupted by a signal")


async def _watch_servers(fabric: Fabric, figures: Figures) -> None:
    """Note every server that goes down and comes back."""
    version, states = 0, dict.fromkeys(fabric.links, "ready")
    while True:
        snapshot = await fabric.registry.changed(version)
        version = snapshot.version
        for name, view in snapshot.sources.items():
            if view.state in ("ready", "down") and view.state != states[name]:
                states[name] = view.state
                figures.events.append(f"{name} is {view.state}{': ' if view.reason else ''}{view.reason}")


async def _show(fabric: Fabric, args: argparse.Namespace, figures: Figures) -> None:
    """A live table in a terminal, a plain line now and then elsewhere."""
    if args.json or not sys.stdout.isatty():
        while True:
            await trio.sleep(LINE_EVERY)
            for event in figures.untold():
                say(args, event)
            say(args, "  ".join(_lines(fabric, figures)))
    from rich.live import Live

    with Live(auto_refresh=False, transient=True) as live:
        while True:
            live.update(_table(fabric, figures), refresh=True)
            await trio.sleep(REFRESH)


def _lines(fabric: Fabric, figures: Figures) -> tuple[str, str]:
    ready = sum(link.state == "ready" for link in fabric.links.values())
    p50, p99 = figures.latencies.percentiles_us(0.5, 0.99, recent=RECENT)
    logs = sum(link.log_lines for link in fabric.links.values())
    return (
        f"{ready}/{count(len(fabric.links), 'server')} ready  {figures.calls:,} calls  {figures.errors:,} errors",
        f"p50 {p50:.0f} µs  p99 {p99:.0f} µs  {figures.handoffs:,} handoffs  {logs:,} log lines",
    )


def _table(fabric: Fabric, figures: Figures) -> Group:
    """The live view: those servers first that are not well."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("server", "state", box=None, padding=(0, 2, 0, 0))
    for title in ("calls", "in flight", "log lines", "pid"):
        table.add_column(title, justify="right")
    links = sorted(fabric.links.values(), key=lambda link: (link.state == "ready", link.name))
    for link in links[:SHOWN_SERVERS]:
        style = "" if link.state == "ready" else "bold red"
        table.add_row(
            link.name, link.state, f"{figures.by_server.get(link.name, 0):,}", str(link.in_flight),
            f"{link.log_lines:,}", str(link.pid or ""), style=style,
        )  # fmt: skip
    more = len(links) - SHOWN_SERVERS
    rest = [Text(f"… and {count(more, 'more server')}", style="dim")] if more > 0 else []
    events = [Text(event, style="yellow") for event in figures.events[-SHOWN_EVENTS:]]
    head = [Text(line, style="bold") for line in _lines(fabric, figures)]
    return Group(*head, table, *rest, *events)


def _report(args: argparse.Namespace, figures: Figures, ended: Ended) -> None:
    p50, p99, p999 = figures.latencies.percentiles_us(0.5, 0.99, 0.999)
    (handoff,) = figures.handoff_costs.percentiles_us(0.5)
    for event in figures.untold():
        say(args, event)
    if args.json:
        print_json(
            {
                "calls": figures.calls,
                "errors": figures.errors,
                "calls_per_s": round(figures.calls / ended.worked, 1),
                "p50_us": round(p50, 1),
                "p99_us": round(p99, 1),
                "p999_us": round(p999, 1),
                "handoffs": figures.handoffs,
                "handoff_p50_us": round(handoff, 2),
                "log_lines": ended.log_lines,
                "rss_mb": round(ended.memory, 1),
                "servers": args.servers,
                "agents": args.agents,
                "restarts": ended.restarts,
                "connected_s": round(ended.connected, 3),
                "closed_s": round(ended.closed, 3),
                "first_error": figures.first_error,
                "left_behind": len(ended.left),
                "left": ended.left,
            }
        )
        return
    rate = figures.calls / ended.worked
    print(f"calls        {figures.calls:,} in {ended.worked:.1f} s ({rate:,.0f} a second)")
    print(f"errors       {figures.errors:,}" + (f", the first: {figures.first_error}" if figures.errors else ""))
    print(f"latency      p50 {p50:.0f} µs   p99 {p99:.0f} µs   p99.9 {p999:.0f} µs")
    print(f"handoffs     {figures.handoffs:,}, p50 {handoff:.1f} µs each")
    print(f"log lines    {ended.log_lines:,} seen")
    print(f"restarts     {ended.restarts}")
    print(f"memory       {ended.memory:.1f} MB resident, the fabric's own process")
    print(f"start, stop  {ended.connected:.2f} s, {ended.closed:.2f} s")
    print(f"left behind  {', '.join(ended.left) or 'nothing: no process, descriptor, thread or task'}")
