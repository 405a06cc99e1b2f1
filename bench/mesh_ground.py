"""What the benchmark of the mesh stands on: nodes as processes, callers without pause, and what must hold of them."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import trio

from cord_trio.counters import Counters
from cord_trio.errors import CallError
from cord_trio.mesh.node import open_node
from cord_trio.nats.client import open_nats
from cord_trio.nats.kv import BucketOptions, open_bucket
from tests.real.mesh_node import MESH, asked, hurry, notes

LEASE = 3
"""Seconds, where a row waits for its end; the default is `USUAL`, and what is said in leases grows with it."""
USUAL = 15
LATE = 0.25
"""Seconds after its deadline by which a call must have returned."""
READY = 20
"""Seconds that a node has to join."""


class Row(NamedTuple):
    """One line of the table: what happened, what is to be expected, what was found, and what of it is wrong."""

    what: str
    expected: str
    found: str
    wrong: list


class Ground:
    """Where one row plays.

    Attributes:
        log: where nodes write down what they run.
        folder: of its own.
        quick: whether a short look is enough.

    """

    def __init__(self, folder, *, quick):
        self.folder = Path(folder)
        self.log = self.folder / "notes"
        self.quick = quick
        self.lease = USUAL

    def seconds(self, long, short):
        return short if self.quick else long

    def hurry(self, lease):
        """Let leases last so many seconds, here and in the nodes that start from now on."""
        self.lease = lease
        hurry(lease)

    @contextmanager
    def child(self, url, name, **options):
        """A node as a process."""
        with self.started(url, name, **options) as process:
            if process.stdout.readline() != b"ready\n":
                raise SystemExit(f"bench: node {name} did not start")
            yield process

    @asynccontextmanager
    async def child_on(self, way, name, **options):
        """The same on a way that may need us to go on meanwhile."""
        with self.started(way.url, name, within=way.within, **options) as process:
            if await trio.to_thread.run_sync(process.stdout.readline) != b"ready\n":
                raise SystemExit(f"bench: node {name} did not start")
            yield process

    @contextmanager
    def started(self, url, name, *, within=(), **options):
        """The process of a node that joins, or does not; `within` is a command that runs it elsewhere."""
        args = [url, name, str(self.log), str(self.lease), json.dumps(options)]
        command = [*within, sys.executable, "-m", "tests.real.mesh_node", *args]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    @contextmanager
    def children(self, url, names, **options):
        with ExitStack() as stack:
            yield [stack.enter_context(self.child(url, name, **options)) for name in names]

    @asynccontextmanager
    async def node(self, url, name="caller", *, replicas=1):
        """A node in this process, with its two connections; `url` may name several brokers."""
        urls, counters = url.split(","), Counters()
        async with (
            open_nats(urls, name=name, counters=counters) as nats,
            open_nats(urls, name=f"{name} bulk", counters=counters) as bulk,
        ):
            store = await open_bucket(nats, f"cord_{MESH}", BucketOptions(replicas=replicas))
            async with open_node(nats, store, mesh=MESH, node=name, bulk=bulk, counters=counters) as here:
                yield here, nats, bulk

    def noted(self, what, *numbers):
        return [note for note in notes(self.log) if note[0] == what and (not numbers or note[1] in numbers)]

    async def logged(self, what, number, within=60):
        """When a node wrote that down."""
        with trio.fail_after(within):
            while not (found := self.noted(what, number)):  # noqa: ASYNC110  # a file tells no event
                await trio.sleep(0.005)
        return found[0][2]

    def incarnations(self):
        """How many each node had that was started with `epochs`."""
        return Counter(name for _, name, *_ in self.noted("epoch"))


async def seen(here, *names, not_epoch=None, within=60):
    with trio.fail_after(within):
        for name in names:
            while here.roster.epoch(name) in (None, not_epoch):
                await here.roster.changed(here.roster.number)


async def gone(here, *names, within=120):
    with trio.fail_after(within):
        for name in names:
            while here.roster.epoch(name) is not None:
                await here.roster.changed(here.roster.number)


async def ended(call):
    """How a call ended, and after how long."""
    began = time.perf_counter()
    try:
        await call
        return "result", time.perf_counter() - began
    except CallError as exc:
        return f"{type(exc).__name__}({exc.executed})", time.perf_counter() - began


def rss(pid):
    """Megabytes that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Load:
    """Callers without pause, and how their calls ended.

    Args:
        ground: whose log tells what ran.
        here: the node that calls.
        owners: any of which can do it.
        callers: how many.
        longest: seconds that a call runs at most.
        within: seconds that each has.
        first: number of the first call.

    """

    def __init__(self, ground, here, owners, *, callers=12, longest=0.1, within=5.0, first=0):
        self.ends = {}
        self.kinds = Counter()
        self.late = 0
        self.results = [time.perf_counter()]
        self.until = math.inf
        self._ground, self._here, self._owners = ground, here, list(owners)
        self._callers, self._longest, self._within = callers, longest, within
        self._rng = random.Random(1)
        self._next = first

    async def run(self, seconds=math.inf):
        """Call for so long, or until `stop`."""
        self.until = min(self.until, time.perf_counter() + seconds)
        async with trio.open_nursery() as nursery:
            for _ in range(self._callers):
                nursery.start_soon(self._ask)

    def stop(self):
        self.until = 0.0

    async def _ask(self):
        while time.perf_counter() < self.until:
            number, self._next = self._next, self._next + 1
            began = time.perf_counter()
            try:
                call = asked(number=number, seconds=self._rng.uniform(0, self._longest), within=self._within)
                await self._here.calling.call(call, self._owners)
                self.ends[number] = "yes"
                self.results.append(time.perf_counter())
            except CallError as exc:
                self.ends[number] = exc.executed
                self.kinds[f"{type(exc).__name__}({exc.executed})"] += 1
                await trio.sleep(0.05)
            self.late += time.perf_counter() - began > self._within + LATE

    @property
    def gap(self):
        """Seconds of the longest time without a result."""
        return max((after - before for before, after in pairwise(self.results)), default=0.0)

    @property
    def failed(self):
        return sum(end != "yes" for end in self.ends.values())

    def found(self):
        failed = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common()) or "none failed"
        return f"{len(self.ends)} calls, {failed}, longest gap {self.gap:.2f} s"

    def wrong(self):
        """What must not be, whatever fails."""
        begun, done = Counter(), Counter()
        for what, number, *_ in notes(self._ground.log):
            if number in self.ends:
                begun[number] += what == "begun"
                done[number] += what == "done"
        wrong = []
        if twice := [number for number, count in begun.items() if count > 1]:
            wrong.append(f"{len(twice)} ran twice")
        if self.late:
            wrong.append(f"{self.late} were late")
        lies = [
            n
            for n, end in self.ends.items()
            if (end == "no" and begun[n]) or (end == "yes" and (done[n], begun[n]) != (1, 1))
        ]
        if lies:
            wrong.append(f"something wrong was said of {len(lies)}")
        if len(self.results) < 2:
            wrong.append("no call had a result")
        return wrong


def unless(**said):
    """The names, with `_` for spaces, of what is not so."""
    return [name.replace("_", " ") for name, so in said.items() if not so]
