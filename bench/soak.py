"""Everything at once, for long, under faults: `python -m bench.soak [--minutes 15] [--sources 50] [--seed N]`.

One fabric with a gateway before sick servers over all four ways, agents that hand over, conversations in a journal,
clients of both eras that come and go, cancels, kills, floods, hangs, storms of `list_changed`, reconfigurations. Once a
minute everything pauses, each server is well again, and what must stay flat is printed. At the end the servers' own
ledgers are held against what callers were told. The exit status is 1 if something grew, was wrong, ran twice, was lost
or was left.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import trio

import cord_trio as cord
from bench import processes
from bench.cell import command, descriptors, keep_server, percentile, tasks
from bench.report import machine
from cord_trio.config import Bounds
from cord_trio.gateway import sessions

VISITOR = str(Path(__file__).parent / "programs" / "visitor.py")
DEADLINE = 2.0
"""Seconds for one call."""
SLACK = 1.5
"""Seconds that a call may end late on a busy machine before it counts as hung."""
DRIVERS = 8
SICK_AT_ONCE = 8
MINUTE = 60.0
SETTLE = 30.0
"""Seconds within which every source must be ready again once all are well."""
WARM = 3
"""Minutes until what must stay flat has been reached."""
FORGOTTEN = 60.0
"""Seconds, in place of half an hour, after which the gateway forgets a client that left without a word."""
EVERYWHERE = (
    "hang-call", "hang-call", "hang-list", "flood 5000000", "crash-call", "half", "garbage", "unread",
    "large 3000000", "drip", "reset 20", "reset 60", "storm", "storm", "hang-connect",
)  # fmt: skip
HTTP_ONLY = ("401", "404", "429", "500", "503", "redirect")


def memory():
    """What this process occupies, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def trimmed():
    """The same once the allocator has given back what nobody uses: what is left grows by a leak alone."""
    ctypes.CDLL(None).malloc_trim(0)  # glibc's
    return memory()


class Numbers:
    """Which calls there were, and what was told of each: in a file, since memory must stay flat."""

    def __init__(self, path):
        self.last = 0
        self.record = open(path, "w")  # noqa: SIM115  # until the end
        self.counts = Counter()
        self.late = []
        self.wrong = []

    def new(self):
        self.last += 1
        return self.last


class Place:
    """One source: its server, its fault, and its ledger."""

    def __init__(self, folder, index, way):
        self.name = f"s{index:02d}"
        self.way = way
        self.control = os.path.join(folder, self.name + ".control")
        self.ledger = os.path.join(folder, self.name + ".ledger")
        self.port = 0 if way == "stdio" else processes.free_port()
        self.fault = ""
        self.faulted = 0.0  # when it was last seen sick
        self.be("")

    def be(self, fault):
        self.fault = fault
        with open(self.control + ".new", "w") as file:
            file.write(fault)
        os.replace(self.control + ".new", self.control)

    def command(self):
        return command(self.way, self.control, self.ledger, self.port, self.name)

    def source(self, slots=8):
        common = {
            "name": self.name, "deadline": DEADLINE, "connect": DEADLINE, "first_list": DEADLINE, "slots": slots,
            "max_message": 1 << 20, "breaker": 5 if self.name.endswith("5") else None,
        }  # fmt: skip
        match self.way:
            case "stdio":
                name, *args = self.command()
                return cord.Stdio(command=name, args=args, **common)
            case "ws":
                return cord.WebSocket(url=f"ws://127.0.0.1:{self.port}/", **common)
            case "sse":
                return cord.Http(url=f"http://127.0.0.1:{self.port}/sse", transport="sse", **common)
            case "http":
                return cord.Http(url=f"http://127.0.0.1:{self.port}/mcp", **common)


class Soak:
    def __init__(self, args, folder):
        self.rng = random.Random(args.seed)
        self.args = args
        self.folder = folder
        share = args.sources // 10
        ways = ["http"] * share + ["sse"] * share + ["ws"] * share
        ways = ["stdio"] * (args.sources - len(ways)) + ways
        self.places = [Place(folder, index, way) for index, way in enumerate(ways)]
        self.numbers = Numbers(os.path.join(folder, "agents.record"))
        self.took = []
        self.resume = trio.Event()
        self.resume.set()
        self.busy = 0
        self.did = Counter()
        self.rows = []
        self.faults = []
        self.counters = {}

    # The load

    async def call(self, ctx, place, cancel=None):
        """One call, and what is told of it."""
        numbers = self.numbers
        n = numbers.new()
        started = trio.current_time()
        told = "cancelled"
        try:
            with trio.move_on_after(cancel if cancel is not None else float("inf")):
                try:
                    result = await ctx.call(f"{place.name}__echo", {"n": n, "text": "c"})
                except cord.CallError as exc:
                    told = {"no": "no", "unknown": "unknown", "yes": "unknown"}[exc.executed]
                    self.did[f"told {type(exc).__name__}"] += 1
                else:
                    told = "answer"
                    if result.text != f"{n}:1":
                        numbers.wrong.append((n, result.text[:80]))
        finally:
            numbers.record.write(f"{n} {told}\n")
            numbers.counts[told] += 1
        ended = trio.current_time()
        if ended - started > DEADLINE + SLACK:
            numbers.late.append((n, place.name, round(ended - started, 2)))
        if told == "answer" and not place.fault and place.faulted < started - 1:
            self.took.append(ended - started)

    async def triage(self, ctx, payload):
        await self.call(ctx, self.rng.choice(self.places), payload)
        return ctx.handoff("writer", payload)

    async def writer(self, ctx, payload):
        await self.call(ctx, self.rng.choice(self.places))
        return "done"

    async def drive(self, fabric):
        """Ask the agents, with a cancel now and then."""
        rng = self.rng
        while True:
            await self.resume.wait()
            self.busy += 1
            try:
                if rng.random() < 0.1:
                    job = await fabric.start("triage", None)
                    await job.result()
                else:
                    await fabric.ask("triage", rng.uniform(0.0, 0.02) if rng.random() < 0.2 else None)
            except cord.CordError as exc:
                self.did[f"ask: {type(exc).__name__}"] += 1
            finally:
                self.busy -= 1
            await trio.sleep(rng.uniform(0, 0.05))

    async def visit(self, port, number):
        """Clients of the gateway, in a process that is killed at times."""
        rounds = 0
        tools = ",".join(f"{place.name}__echo" for place in self.places)
        while True:
            await self.resume.wait()
            rounds += 1
            first = number * 10**12 + rounds * 10**8
            record = os.path.join(self.folder, f"visitor-{number}-{rounds}.record")
            args = [sys.executable, "-I", "-S", VISITOR, str(port), str(first), str(first), record, tools]
            process = await trio.lowlevel.open_process(args, stdin=subprocess.PIPE)
            try:
                with trio.move_on_after(self.rng.uniform(5, 20)):
                    while self.resume.is_set() and process.poll() is None:  # noqa: ASYNC110  # of two things
                        await trio.sleep(0.1)
                if process.poll() is not None:
                    self.faults.append(f"visitor ended by itself: {process.returncode}")
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
                    await process.stdin.aclose()
            self.did["visitor killed"] += 1

    # What goes wrong

    async def harm(self, fabric):
        """Make servers ill, and well again; kill some; have the configuration changed."""
        rng = self.rng
        async with trio.open_nursery() as nursery:
            while True:
                await self.resume.wait()
                await trio.sleep(rng.uniform(0.1, 0.5))
                if not self.resume.is_set():
                    continue
                sick = [place for place in self.places if place.fault]
                well = [place for place in self.places if not place.fault]
                match rng.choices(["fault", "kill", "configure"], [10, 2, 1])[0]:
                    case "fault" if len(sick) < SICK_AT_ONCE:
                        place = rng.choice(well)
                        faults = EVERYWHERE + (HTTP_ONLY * 2 if place.way in ("http", "sse") else ())
                        nursery.start_soon(self.ail, place, rng.choice(faults))
                    case "kill":
                        place = rng.choice(self.places)
                        link = fabric.links.get(place.name)
                        if link is not None and link.pid is not None:
                            place.faulted = trio.current_time()
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(link.pid, signal.SIGKILL)
                            self.did["kill -9"] += 1
                    case "configure":
                        place = rng.choice(self.places)
                        place.faulted = trio.current_time()
                        sources = {**fabric.config.sources, place.name: place.source(rng.choice([4, 8, 16]))}
                        fabric.reconfigure(cord.Config(sources=sources))
                        self.did["reconfigured"] += 1

    async def ail(self, place, fault):
        self.did[fault.partition(" ")[0]] += 1
        place.faulted = trio.current_time()
        place.be(fault)
        with trio.move_on_after(self.rng.uniform(0.5, 4)):
            while self.resume.is_set():  # noqa: ASYNC110  # an event is set, not unset
                await trio.sleep(0.05)
        place.be("")
        place.faulted = trio.current_time()

    # What must stay flat

    async def settle(self, fabric):
        """Everybody pauses and is well; returns the sources that do not come back."""
        self.resume = trio.Event()
        for place in self.places:
            place.be("")
        with trio.move_on_after(SETTLE):
            while (  # noqa: ASYNC110  # as any looker-on
                self.busy
                or fabric.retiring
                or any(link.state != "ready" for link in fabric.links.values())
                or self.pending(fabric)
            ):
                await trio.sleep(0.05)
        await trio.sleep(1)
        return [
            f"{name} is {link.state}: {link.reason}" for name, link in fabric.links.items() if link.state != "ready"
        ]

    def pending(self, fabric):
        count = 0
        for name, link in fabric.links.items():
            listening = any(client.greeting.modern for _, client in link.open())
            slots = fabric.slots[name]
            count += max(0, link.in_flight - listening) + len(link.waiting) + slots.taken + slots.waiting
        return count

    def row(self, fabric, minute, seconds, *, last):
        gc.collect()
        took, self.took = self.took, []
        counts = self.numbers.counts
        row = {
            "minute": minute,
            "memory MB": memory(),
            "in use MB": trimmed() if minute == WARM or last else "-",
            "blocks": sys.getallocatedblocks(),
            "descriptors": descriptors(),
            "processes": len(processes.begotten()),
            "tasks": tasks(),
            "pending": self.pending(fabric),
            "timers": len(fabric.timer),
            "p50 ms": round(1e3 * percentile(took, 0.5), 2),
            "p99 ms": round(1e3 * percentile(took, 0.99), 1),
            "calls": sum(counts.values()),
            "answers": counts["answer"],
            "settled s": round(seconds, 1),
        }
        self.rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)

    def judge(self):
        """What grew from the end of the warm-up to the end."""
        rows = self.rows[WARM - 1 :] if len(self.rows) > WARM else self.rows
        if not rows:
            return
        first, last = rows[0], rows[-1]
        allowed = {"memory MB": 10, "in use MB": 3, "processes": 0}
        for name, more in allowed.items():
            if "-" not in (first[name], last[name]) and last[name] > first[name] + more:
                self.faults.append(f"{name} grew from {first[name]} to {last[name]}")
        # These go up and down with the connections that are kept for a while, so halves of the run are compared.
        middle = (len(rows) + 1) // 2
        for name, more in {"blocks": 0.03 * first["blocks"], "descriptors": 10, "tasks": 10}.items():
            early, late = (statistics.median(row[name] for row in part) for part in (rows[:middle], rows[-middle:]))
            if late > early + more:
                self.faults.append(f"{name} grew from {early:g} to {late:g}")
        self.faults += [f"{row['pending']} pending in minute {row['minute']}" for row in rows if row["pending"]]
        normal = sorted(row["p99 ms"] for row in rows)[len(rows) // 2]
        if last["p99 ms"] > 3 * normal + 50:
            self.faults.append(f"p99 grew to {last['p99 ms']} ms; usual is {normal} ms")

    def audit(self):
        """Hold what callers were told against what the servers say they ran."""
        ran = Counter()
        for place in self.places:
            if os.path.exists(place.ledger):
                ran.update(int(line) for line in Path(place.ledger).read_text().split())
        self.numbers.record.close()
        told = {}
        for path in Path(self.folder).glob("*.record"):
            for line in path.read_text().splitlines():
                n, _, what = line.partition(" ")
                self.did[f"{path.name.partition('-')[0].partition('.')[0]}: {what}"] += 1
                told[int(n)] = what
        doubled = [n for n, count in ran.items() if count > 1]
        unknown = [n for n, what in told.items() if what == "answer" and not ran[n]]
        lied = [n for n, what in told.items() if what == "no" and ran[n]]
        wrong = self.numbers.wrong + [n for n, what in told.items() if what == "wrong"]
        lost = [n for n, what in told.items() if what == "lost"]
        unended = self.numbers.last - sum(self.numbers.counts.values())
        sums = {
            "calls": len(told), "ran": len(ran), "answers": sum(what == "answer" for what in told.values()),
            "wrong": len(wrong), "ran twice": len(doubled), "answered but not run": len(unknown),
            "ran though told no": len(lied), "lost": len(lost) + unended, "ended late": len(self.numbers.late),
        }  # fmt: skip
        for name in ("wrong", "ran twice", "answered but not run", "ran though told no", "lost", "ended late"):
            if sums[name]:
                self.faults.append(f"{sums[name]} {name}")
        if sums["ended late"]:
            self.faults.append(f"late: {self.numbers.late[:5]}")
        return sums

    async def run(self):
        sessions.IDLE = FORGOTTEN
        before = tasks(), descriptors()
        begun = trio.current_time()
        bounds = Bounds(backoff_longest=2.0, stop_close=0.5, stop_terminate=0.5)
        config = cord.Config(sources=[place.source() for place in self.places], bounds=bounds)
        journal = cord.SqliteJournal(os.path.join(self.folder, "journal.db"))
        async with trio.open_nursery() as world:
            world.start_soon(self.stop_early, world.cancel_scope)
            for place in self.places:
                if place.port:
                    world.start_soon(keep_server, place.command())
            async with cord.open_fabric(config, rng=self.rng, journal=journal) as fabric:
                fabric.agent("triage", self.triage, turn=64)
                fabric.agent("writer", self.writer, turn=64)
                await fabric.wait_started()
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                port = listeners[0].socket.getsockname()[1]
                async with trio.open_nursery() as load:
                    await load.start(
                        lambda task_status: cord.serve_gateway(fabric, http=listeners, task_status=task_status)
                    )
                    for _ in range(DRIVERS):
                        load.start_soon(self.drive, fabric)
                    for number in (1, 2):
                        load.start_soon(self.visit, port, number)
                    load.start_soon(self.harm, fabric)
                    await self.keep_time(fabric, begun)
                    load.cancel_scope.cancel("the soak is over")
                self.counters = fabric.counters.snapshot()
            world.cancel_scope.cancel("the soak is over")
        await trio.sleep(0.5)
        left = {
            "tasks": tasks() - before[0],
            "descriptors": descriptors() - before[1],
            "processes": len(processes.children()),
        }
        self.faults += [f"left {count} {what}" for what, count in left.items() if count > 0]

    async def stop_early(self, scope):
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                self.faults.append(f"ended by {signal.Signals(number).name}")
                scope.cancel("told to stop")

    async def keep_time(self, fabric, begun):
        minute = 0
        while trio.current_time() < begun + self.args.minutes * 60:
            minute += 1
            await trio.sleep(
                max(0.0, min(begun + minute * MINUTE, begun + self.args.minutes * 60) - trio.current_time())
            )
            paused = trio.current_time()
            self.faults += [f"minute {minute}: {what}" for what in await self.settle(fabric)]
            over = trio.current_time() >= begun + self.args.minutes * 60
            self.row(fabric, minute, trio.current_time() - paused, last=over)
            self.resume.set()


def main(argv):
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description="Everything at once, for long, under faults."
    )
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--sources", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", metavar="FILE", help="write every figure")
    args = parser.parse_args(argv)
    processes.adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="bench-soak-") as folder:
        soak = Soak(args, folder)
        print(f"soak: {args.sources} sources, {args.minutes:g} minutes, seed {args.seed}", flush=True)
        trio.run(soak.run)
        sums = soak.audit()
    soak.judge()
    print("  ".join(f"{name} {value}" for name, value in sums.items()))
    print("what happened: " + ", ".join(f"{name} {count}" for name, count in sorted(soak.did.items())))
    print(machine())
    print("soak: " + ("; ".join(soak.faults) or "flat, and nothing wrong"))
    if args.json:
        data = {"rows": soak.rows, "sums": sums, "did": soak.did, "faults": soak.faults, "counters": soak.counters}
        Path(args.json).write_text(json.dumps(data, indent=1))
    return int(bool(soak.faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
