"""`python -m bench [TABLE …] [--quick] [--json FILE]`: see README.md beside this file."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import signal
import sys
import time
from pathlib import Path

from bench import build, processes, report
from bench.tables import TABLES, Plan

QUICK = {"rounds": 1, "seconds": 0.5, "warm": 0.1, "imports": 3}
FULL = {"rounds": 5, "seconds": 2.0, "warm": 0.5, "imports": 7}


def parse(argv):
    names = [table.name for table in TABLES]
    parser = argparse.ArgumentParser(prog="python -m bench", description="cord_trio, floors and peers in one run.")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"which of {', '.join(names)}; all unless named")
    parser.add_argument("--quick", action="store_true", help="three minutes, to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write every figure of every round, after each table")
    parser.add_argument("--resume", action="store_true", help="leave out the tables that FILE has already")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further round after that many")
    parser.add_argument("--rounds", type=int, help="rounds of each table")
    parser.add_argument("--seconds", type=float, help="seconds of each measurement")
    parser.add_argument("--servers", type=int, default=50, help="servers in the tables with many (50)")
    parser.add_argument("--era", choices=["auto", "legacy", "modern"], default="auto", help="of the protocol (auto)")
    parser.add_argument("--awake", action="store_true", help="keep the cores from sleeping between calls")
    parser.add_argument("--only", action="append", metavar="NAME", help="only contestants whose name contains NAME")
    args = parser.parse_args(argv)
    if args.resume and not args.json:
        parser.error("--resume needs --json FILE")
    if unknown := set(args.tables) - set(names):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return args


def plan_of(args):
    figures = dict(QUICK if args.quick else FULL)
    figures |= {key: value for key in ("rounds", "seconds") if (value := getattr(args, key)) is not None}
    return Plan(**figures, servers=args.servers, era=args.era)


def missing_peers(tables):
    """Why each peer that could not be installed is missing."""
    missing = {}
    for peer in dict.fromkeys(c.peer for table in tables for c in table.contestants if c.peer):
        try:
            build.build_peer(peer)
        except build.CannotBuild as exc:
            missing[peer] = f"not installed: {exc}"
    return missing


def run_table(table, plan, contestants, missing, own, until=math.inf):
    """Rounds of one table, contestants taking turns, one at least. Returns the figures and failures of each."""
    results = {contestant.name: [] for contestant in contestants}
    failures = {c.name: missing[c.peer] for c in contestants if c.peer in missing}
    for round in range(plan.rounds):
        if round and time.monotonic() > until:
            break
        for contestant in contestants:
            if contestant.name in failures:
                continue
            print(f"bench: {table.name} {round + 1}/{plan.rounds} {contestant.name}", file=sys.stderr)
            try:
                figures = contestant.run(plan)
                if figures["wrong"]:
                    raise processes.Failed(f"{figures['wrong']} wrong answers")
                results[contestant.name].append(figures)
            except processes.Failed as exc:
                failures[contestant.name] = f"failed: {exc}"
                results[contestant.name].clear()
            if left := processes.reap(own):
                failures[contestant.name] = f"failed: left {left} processes behind"
    return results, failures


def main(argv):
    if argv[:1] in (["mesh"], ["growth"], ["page"]):
        return importlib.import_module(f"bench.{argv[0]}").main(argv[1:])
    args = parse(argv)
    plan = plan_of(args)
    tables = [table for table in TABLES if not args.tables or {table.name, table.part_of} & set(args.tables)]
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        build.build_c()
    except build.CannotBuild as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    out = {"tables": {}}
    if args.resume and Path(args.json).exists():
        out = json.loads(Path(args.json).read_text())
    missing = missing_peers([table for table in tables if table.name not in out["tables"]])
    started, about = time.monotonic(), {**report.machine(), "awake": args.awake}
    out |= {"machine": about, "plan": vars(plan), "not_here": build.NOT_HERE}
    ratios, grids = [], []
    failed = False
    try:
        with processes.awake(about["cores"] if args.awake else 0) as own:
            for table in tables:
                if table.name not in out["tables"]:
                    chosen = [
                        c for c in table.contestants if not args.only or any(part in c.name for part in args.only)
                    ]
                    results, failures = run_table(table, plan, chosen, missing, own, started + 60 * args.minutes)
                    out["tables"][table.name] = {"rounds": results, "failures": failures}
                    if args.json:  # now, so that whoever is interrupted can go on here
                        Path(args.json).write_text(json.dumps(out, indent=1))
                results, failures = out["tables"][table.name]["rounds"], out["tables"][table.name]["failures"]
                ratios += report.ratios(table, results)
                grids += ["", *report.grid(table, results, failures)]
                failed |= any(reason.startswith("failed") for reason in failures.values())
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    finally:
        processes.reap()
    print("How many times better cord_trio is: median x rival, best against best")
    print("\n".join([*ratios, *grids, "", *(f"{name}: not run, {why}" for name, why in build.NOT_HERE.items())]))
    versions = report.versions(out["tables"])
    print(f"\neach cell median / best of {plan.rounds} rounds; {time.monotonic() - started:.0f} s; {about}; {versions}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
