"""Every fault over every way to a server: `python -m bench.faults [--quick] [--only FAULT] [--write]`.

Each cell runs in a process of its own, `bench/cell.py`. `--write` puts the table into docs/faults.md. The exit status
is 1 if a cell is not as it should be: a wrong, lost or doubled answer, a call that outlives its deadline, a source that
does not come back, or anything left.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import processes
from bench.cell import CALL
from bench.report import machine

WAYS = ("stdio", "http", "sse", "ws")
TITLES = {"stdio": "stdio", "http": "HTTP", "sse": "HTTP+SSE", "ws": "WebSocket"}
STATUSES = ("401", "403", "404", "408", "429", "500", "502", "503", "redirect")
FAULTS = {
    "hang-connect": "hangs when it is connected",
    "hang-call": "hangs in a call",
    "hang-list": "hangs when it lists its tools",
    "flood": "floods with 100 MB of logs within a call",
    "crash-start": "crashes at start",
    "crash-call": "is killed within a call",
    "half": "half a message, then silence",
    "garbage": "64 KiB of random bytes instead of a reply",
    "unread": "does not read what it is sent (20 calls of 2 MiB)",
    "large": "a reply of twice `max_message`",
    "drip": "a reply at 1 byte a second",
    **{status: f"status {status}" for status in STATUSES[:-1]},
    "redirect": "a redirect to itself",
    "reset": "connection reset after each byte of a reply",
    "clock": "the wall clock jumps by a day, forth and back",
}
SIZES = {"stdio": 190, "http": 290, "sse": 110, "ws": 195}
"""Bytes of a whole reply over each way, about; a reset after the last of them breaks nothing."""
SLACK = 0.5
"""Seconds that a call may end late on a busy machine."""
LATE = 0.1
"""Seconds that other sources' p99 may grow on a busy machine."""
QUICK = (
    ("hang-call", "http"), ("crash-call", "stdio"), ("garbage", "ws"), ("503", "http"), ("half", "sse"),
    ("large", "stdio"), ("reset", "http"), ("journal", "any"),
)  # fmt: skip
PATIENCE = 180
"""Seconds that a cell may take."""
RUNNING = set()
"""The cells that are under way."""
DOCS = Path(__file__).parents[1] / "docs" / "faults.md"
START, END = "<!-- the table, by python -m bench.faults --write -->\n", "<!-- end of the table -->\n"


def reason_for_none(fault, way):
    """Why this cell makes no sense; "" if it does."""
    if way == "stdio" and fault in STATUSES:
        return "a pipe has no status"
    return ""


def cells(only, ways):
    for fault in FAULTS:
        for way in ways:
            if not reason_for_none(fault, way) and (not only or fault in only):
                yield fault, way
    if not only or "journal" in only:
        yield "journal", "any"


def run_cell(fault, way, era, folder, *, quick):
    """The figures of one cell; `failed` says why there are none. What it makes is in `folder`."""
    if fault == "journal":
        args = [sys.executable, "-m", "bench.full_disk"]
    else:
        points = 12 if quick or way == "stdio" else 1000
        cell = {
            "fault": fault, "way": way, "era": era, "size": SIZES[way], "points": points,
            "without": 0.3 if quick else 1.5, "folder": folder,
        }  # fmt: skip
        args = [sys.executable, "-m", "bench.cell", json.dumps(cell)]
    # A session of its own, all of which can be ended: with it the servers that no fabric keeps.
    process = subprocess.Popen(
        args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": folder}, start_new_session=True,
    )  # fmt: skip
    RUNNING.add(process)
    try:
        out, noise = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {PATIENCE} s"}
    finally:
        processes.kill_group(process)
        RUNNING.discard(process)
    lines = out.strip().splitlines()
    if process.returncode or not lines:
        return {"failed": (noise.strip().splitlines() or [f"status {process.returncode}"])[-1]}
    return {**json.loads(lines[-1]), "noise": noise.strip()}


def faults_of(fault, figures):
    """What is not as it should be."""
    if "failed" in figures:
        return [figures["failed"]]
    wrong = [f"{figures[name]} {name}" for name in ("wrong", "doubled", "lost", "lied") if figures.get(name)]
    if figures["seconds"] > CALL + SLACK:
        wrong.append(f"a call took {figures['seconds']:.1f} s")
    if figures["back"] is None:
        wrong.append(f"not back: {figures.get('last')}")
    if figures.get("p99_with", 0) > figures.get("p99_without", 0) + LATE:
        wrong.append("others were delayed")
    wrong += [f"left {count} {what}" for what, count in figures["left"].items() if count > 0]
    if figures.get("noise"):
        wrong.append("stderr: " + figures["noise"].splitlines()[-1])
    return wrong


def short(text):
    """An outcome without what differs from call to call."""
    return re.sub(r"sick: | /\S+/bench-\S+| 127\.0\.0\.1:\d+", "", text).replace("|", "\\|")


def shown(figures):
    """A cell for people: what was got in how long; others' p99 without > with; back after."""
    if "failed" in figures:
        return f"**{figures['failed']}**"
    got = figures["got"][:3]
    many = len(figures["got"]) > 1
    outcomes = "<br>".join((f"{count} x " if many else "") + short(text) for text, count in got)
    if len(figures["got"]) > 3:
        outcomes += f"<br>{len(figures['got']) - 3} kinds more"
    back = "not back" if figures["back"] is None else f"back {figures['back']:.2f} s"
    facts = [f"{figures['seconds']:.2f} s"]
    if "p99_with" in figures:
        facts.append(f"p99 {1e3 * figures['p99_without']:.1f} → {1e3 * figures['p99_with']:.1f} ms")
    return f"{outcomes}<br>{'; '.join([*facts, back])}"


def grid(results, ways):
    lines = ["| the server … | " + " | ".join(TITLES[way] for way in ways) + " |", "|---" * (len(ways) + 1) + "|"]
    for fault, title in FAULTS.items():
        row = []
        for way in ways:
            if reason := reason_for_none(fault, way):
                row.append(f"— ({reason})")
            elif (fault, way) in results:
                row.append(shown(results[fault, way]))
            else:
                row.append("")
        if any(row) and any((fault, way) in results for way in ways):
            lines.append(f"| {title} | " + " | ".join(row) + " |")
    if ("journal", "any") in results:
        lines.append(f"\nThe disk is full for the journal: {shown(results['journal', 'any'])}")
    return "\n".join(lines)


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description="Every fault over every way.")
    parser.add_argument("--quick", action="store_true", help="a few cells, under ten seconds")
    parser.add_argument("--only", action="append", metavar="FAULT", choices=[*FAULTS, "journal"])
    parser.add_argument("--way", action="append", choices=WAYS)
    parser.add_argument("--era", choices=["auto", "legacy", "modern"], default="auto")
    parser.add_argument("--at-once", type=int, default=4, help="cells at once (4)")
    parser.add_argument("--write", action="store_true", help=f"write the table into {DOCS.name}")
    parser.add_argument("--json", metavar="FILE", help="write every figure")
    args = parser.parse_args(argv)
    ways = [way for way in WAYS if not args.way or way in args.way]
    todo = list(QUICK) if args.quick else list(cells(args.only, ways))
    started = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="bench-faults-") as folder, ThreadPoolExecutor(args.at_once) as pool:
        runs = {cell: pool.submit(run_cell, *cell, args.era, folder, quick=args.quick) for cell in todo}
        results = {}
        try:
            for cell, run in runs.items():
                results[cell] = run.result()
                verdict = "; ".join(faults_of(cell[0], results[cell])) or "ok"
                print(f"faults: {cell[0]} over {cell[1]}: {verdict}", file=sys.stderr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(RUNNING):
                process.kill()  # whoever waits for it ends what it has started
            raise
    table = grid(results, ways)
    wrong = {cell: found for cell, figures in results.items() if (found := faults_of(cell[0], figures))}
    print(table)
    about = machine()
    summary = (
        f"{len(results)} cells in {time.monotonic() - started:.0f} s, {args.at_once} at once; not as they should be: "
        f"{len(wrong) or 'none'}. {about}; era {args.era}."
    )
    print("\n" + summary)
    for (fault, way), found in wrong.items():
        print(f"  {fault} over {way}: {'; '.join(found)}")
    if args.json:
        Path(args.json).write_text(json.dumps([[*cell, figures] for cell, figures in results.items()], indent=1))
    if args.write:
        page = DOCS.read_text()
        before, _, rest = page.partition(START)
        DOCS.write_text(before + START + table + "\n\n" + summary + "\n" + END + rest.partition(END)[2])
    return int(bool(wrong))


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
