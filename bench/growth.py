"""How cost grows with size: `python -m bench growth [WHAT …] [--quick] [--svg FOLDER] [--json FILE] [--minutes M]`.

Each size is measured in a process of its own, all sizes in turn, three rounds; the least of each counts. The exponent
is the slope between the last sizes on logarithmic scales: 0 is constant, 1 linear. Anything that grows faster than
linearly is a fault, and the exit status is 1. With `--svg` the curves are drawn too.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import build, processes, report
from bench.programs.cord_config import toml
from bench.tables import echo_tools, stdio_sources

LINEAR = 1.15
"""The largest exponent that counts as linear: a machine is never quiet."""

ROUNDS = 3
MINUTES = 9.0
"""After so many no further round begins, and each curve has had one."""

TAIL = 3
"""Sizes between which the exponent is taken, the last ones."""


@dataclass(frozen=True)
class Curve:
    """What is measured at each of some sizes; `time` and `memory` say of what."""

    name: str
    sizes: tuple[int, ...]
    time: str
    memory: str
    unit: float = 1e3  # by which seconds are multiplied


CURVES = (
    Curve("sources", (1, 5, 20, 50, 100, 200, 500), "CPU ms until all are connected and listed", "MB they add"),
    Curve("tools", (10, 100, 1_000, 10_000, 50_000), "µs until a changed list is published", "MB they take", 1e6),
    Curve("agents", (1, 100, 1_000, 10_000, 100_000), "µs of an ask that is handed over once", "MB they take", 1e6),
    Curve("clients", (1, 8, 32, 128, 512, 2_000), "µs of the gateway's CPU for each call", "MB of the gateway", 1e6),
    Curve(
        "message", (100, 1_000, 10_000, 100_000, 1_000_000, 4_000_000, 16_000_000), "CPU ms of a call", "MB it leaves"
    ),
    Curve("logs", (1_000, 10_000, 50_000, 100_000, 200_000), "CPU ms in each second", "MB of the fabric"),
)


def measure(curve, size):
    if curve.name == "clients":
        return gateway(size)
    return processes.run_json([sys.executable, str(build.PROGRAMS / "grow.py"), curve.name, str(size)], timeout=120)


def gateway(clients):
    """`clients` connections that call without pause, through a gateway in front of four servers."""
    port = processes.free_port()
    with tempfile.NamedTemporaryFile("w", prefix="bench-", suffix=".toml") as file:
        # All of them at once are more than the fabric takes by default.
        file.write(
            toml(stdio_sources(4), slots=1000)
            + f"[bounds]\ncalls = {2 * clients + 100}\nhttp_connections = {clients + 100}\n"
        )
        file.flush()
        args = [sys.executable, "-m", "cord_trio", "serve", "--http", f"127.0.0.1:{port}", "--config", file.name]
        with processes.serve(args, port) as served:
            while len(tools := echo_tools(port)) < 4:
                time.sleep(0.05)
            used = served.cpu()
            options = ["--conns", str(clients), "--seconds", "1"]
            load = processes.run_json([str(build.BUILD / "load"), str(port), ",".join(tools), *options], timeout=120)
            if load["wrong"]:
                raise processes.Failed(f"{load['wrong']} wrong answers")
            return {"time": (served.cpu() - used) / load["all"], "memory": served.rss_mb()}


LEAST = 1.0
"""Values below say nothing of growth: a page of memory, a moment of the clock."""


def exponent(sizes, values):
    """The slope of the last values by the last sizes, on logarithmic scales."""
    pairs = [(math.log(size), math.log(value)) for size, value in zip(sizes, values, strict=True) if value > LEAST]
    pairs = pairs[-TAIL:]
    if len(pairs) < 2:
        return 0.0
    middle_x, middle_y = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    spread = sum((x - middle_x) ** 2 for x, _ in pairs)
    return sum((x - middle_x) * (y - middle_y) for x, y in pairs) / spread


def run_round(curve, found):
    """Measure each size of `curve` once more."""
    for size, measured in found.items():
        print(f"growth: {curve.name} {len(measured) + 1} {size:,}", file=sys.stderr)
        measured.append(measure(curve, size))
        processes.reap()


def slopes(curve, found):
    """Of time and memory: what it is, the values as they are shown, and the exponent."""
    for key, title, unit in (("time", curve.time, curve.unit), ("memory", curve.memory, 1.0)):
        values = [value * unit for value in found[key]]
        yield key, title, values, exponent(found["sizes"], values)


WIDTH, HEIGHT, EDGE = 360, 240, 44


def svg(title, sizes, values):
    """A curve on logarithmic scales."""
    values = [max(value, 1e-9) for value in values]
    low_x, high_x = math.log10(sizes[0]), math.log10(sizes[-1])
    low_y, high_y = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    high_y = max(high_y, low_y + 1)

    def at(size, value):
        x = EDGE + (math.log10(size) - low_x) / (high_x - low_x or 1) * (WIDTH - EDGE - 12)
        y = HEIGHT - 30 - (math.log10(value) - low_y) / (high_y - low_y) * (HEIGHT - 62)
        return f"{x:.1f},{y:.1f}"

    def text(x, y, what, anchor="middle"):
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{what}</text>'

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        ' font-size="10">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(WIDTH / 2, 16, title),
    ]
    for power in range(low_y, high_y + 1):
        y = at(sizes[0], 10.0**power).split(",")[1]
        lines.append(f'<line x1="{EDGE}" x2="{WIDTH - 12}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        lines.append(text(EDGE - 4, float(y) + 3, f"{10.0**power:g}", "end"))
    for size in sizes:
        x = at(size, 10.0**low_y).split(",")[0]
        lines.append(text(x, HEIGHT - 14, f"{size:,}" if size < 1_000_000 else f"{size // 1_000_000} M"))
    points = " ".join(at(size, value) for size, value in zip(sizes, values, strict=True))
    lines.append(f'<polyline points="{points}" fill="none" stroke="#06c" stroke-width="2"/>')
    lines += [f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="2.5" fill="#06c"/>' for p in points.split()]
    return "\n".join([*lines, "</svg>"]) + "\n"


def main(argv):
    names = [curve.name for curve in CURVES]
    parser = argparse.ArgumentParser(prog="python -m bench growth", description="How cost grows with size.")
    parser.add_argument("what", nargs="*", help=f"which of {', '.join(names)}; all unless named")
    parser.add_argument("--quick", action="store_true", help="one round, without the largest sizes")
    parser.add_argument("--svg", type=Path, metavar="FOLDER", help="draw the curves there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, beside those of other curves")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"begin no further round after that ({MINUTES:g})"
    )
    args = parser.parse_args(argv)
    if unknown := set(args.what) - set(names):
        parser.error(f"no curve {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    processes.adopt_orphans()
    build.build_c()
    until = time.monotonic() + 60 * args.minutes
    chosen = [curve for curve in CURVES if not args.what or curve.name in args.what]
    found = {curve: {size: [] for size in (curve.sizes[:-2] if args.quick else curve.sizes)} for curve in chosen}
    steep, figures = [], {}
    for number in range(1 if args.quick else ROUNDS):
        for curve in chosen:
            if curve.name in steep or (number and time.monotonic() > until):
                continue
            try:
                run_round(curve, found[curve])
            except processes.Failed as exc:
                print(f"{curve.name}: failed: {exc}")
                steep.append(curve.name)
    for curve in chosen:
        if curve.name in steep:
            continue
        least = {key: [min(each[key] for each in some) for some in found[curve].values()] for key in ("time", "memory")}
        figures[curve.name] = {"sizes": list(found[curve]), **least}
        for key, title, values, slope in slopes(curve, figures[curve.name]):
            sizes = figures[curve.name]["sizes"]
            row = "  ".join(f"{size:,}: {report.number(value)}" for size, value in zip(sizes, values, strict=True))
            print(f"{curve.name:8} {title:40} exponent {slope:5.2f}   {row}")
            if slope > LINEAR:
                steep.append(f"{curve.name} {key}")
            if args.svg:
                args.svg.mkdir(parents=True, exist_ok=True)
                (args.svg / f"{curve.name}-{key}.svg").write_text(svg(f"{curve.name}: {title}", sizes, values))
    if args.json:
        kept = json.loads(args.json.read_text())["curves"] if args.json.exists() else {}  # of other runs
        args.json.write_text(json.dumps({"machine": report.machine(), "curves": {**kept, **figures}}, indent=1))
    print(f"worse than linear: {', '.join(steep) or 'nothing'}; {report.machine()}")
    return int(bool(steep))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
