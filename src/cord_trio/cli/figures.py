"""What `demo` measures: calls and their times, and what a process holds before and after."""

from __future__ import annotations

import os
import random
import re
import sys
import threading
from array import array
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.cli import tell

if TYPE_CHECKING:
    import argparse

SAMPLES: Final = 1_000_000
"""Measurements kept of each kind; beyond, each later one replaces a random one, so that all count alike."""

RECENT: Final = 5_000
"""Measurements that the live view looks at: to sort more would delay the very calls that are measured."""

_IDLE_THREAD: Final = re.compile(r"Trio thread \d+")
"""Trio keeps a worker thread for ten seconds after its work; then it has this name."""


class Samples:
    """Durations in seconds, bounded."""

    def __init__(self, bound: int = SAMPLES) -> None:
        self.seen = 0
        self._kept = array("d")
        self._bound = bound

    def add(self, seconds: float) -> None:
        """Keep one measurement."""
        self.seen += 1
        if len(self._kept) < self._bound:
            self._kept.append(seconds)
        elif (place := random.randrange(self.seen)) < self._bound:
            self._kept[place] = seconds

    def percentiles_us(self, *shares: float, recent: int | None = None) -> list[float]:
        """The values in microseconds that these shares of all, or of the last `recent`, do not exceed; 0 for none."""
        ordered = sorted(self._kept if recent is None else self._kept[-recent:])
        if not ordered:
            return [0.0] * len(shares)
        return [ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e6 for share in shares]


@attrs.define(eq=False)
class Figures:
    """What the run has shown so far."""

    calls: int = 0
    errors: int = 0
    handoffs: int = 0
    latencies: Samples = attrs.field(factory=Samples)
    handoff_costs: Samples = attrs.field(factory=Samples)
    by_server: dict[str, int] = attrs.field(factory=dict)
    first_error: str = ""
    events: list[str] = attrs.field(factory=list)
    told: int = 0
    """How many of the events were printed."""

    def untold(self) -> list[str]:
        """Those events that were not printed yet; from now on they were."""
        news, self.told = self.events[self.told :], len(self.events)
        return news


@attrs.frozen
class Held:
    """What this process holds: what the operating system and Trio say of it, not what we think."""

    processes: frozenset[int]
    descriptors: frozenset[int]
    threads: frozenset[str]
    tasks: int

    def left_since(self, before: Held) -> list[str]:
        """In words, what is held now and was not held `before`."""
        left = [f"process {pid}" for pid in sorted(self.processes - before.processes)]
        left += [f"descriptor {number}" for number in sorted(self.descriptors - before.descriptors)]
        left += [f"thread {name}" for name in sorted(self.threads - before.threads)]
        if self.tasks > before.tasks:
            left.append(f"{self.tasks - before.tasks} tasks")
        return left


def held() -> Held:
    """What this process holds now."""
    return Held(
        processes=frozenset(children()),
        descriptors=frozenset(_descriptors()),
        threads=frozenset(
            thread.name for thread in threading.enumerate() if not _IDLE_THREAD.fullmatch(thread.name)
        ),
        tasks=trio.lowlevel.current_statistics().tasks_living,
    )  # fmt: skip


def children() -> list[int]:
    """Our child processes, those that ended and were not reaped too; none where there is no `/proc`."""
    found, ours = [], os.getpid()
    for entry in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    after_name = file.read().rpartition(b")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            if int(after_name[1]) == ours:
                found.append(int(entry))
    return found


def resident_mb() -> float:
    """Memory of this process, in megabytes."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _descriptors() -> list[int]:
    """Open descriptors, but for the one that lists them."""
    found = []
    for number in map(int, os.listdir("/dev/fd")):
        try:
            os.fstat(number)
        except OSError:
            continue
        found.append(number)
    return found


def say(args: argparse.Namespace, text: str) -> None:
    """A line of the story: on stderr where the figures are JSON."""
    if args.json:
        tell(text)
    else:
        print(text, flush=True)
