"""Figures to docs/performance.md: `python -m bench page BENCH.json [GROWTH.json] [--page FILE]`.

Whatever stands between the two marks is written anew; the rest is written by people, and stays.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench import growth, report
from bench.tables import TABLES, US

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN = "<!-- from here on written by `python -m bench page` -->"
END = "<!-- up to here -->"


def row(*cells):
    return f"| {' | '.join(cells)} |"


def rule(count):
    return f"|{'---|' * count}"


def table(each, measured):
    """One table: each cell is median / best."""
    yield from ("", f"**{each.name}**: {each.title}.", "")
    yield row("", *(column.title for column in each.columns))
    yield rule(len(each.columns) + 1)
    for name, rounds in measured["rounds"].items():
        if rounds:
            cells = (" / ".join(map(report.number, report.middle_and_best(column, rounds))) for column in each.columns)
            yield row(name, *cells)
    for name, reason in measured["failures"].items():
        yield row(name, reason, *[""] * (len(each.columns) - 1))


def goals(each, rounds):
    """How we stand to what we hold ourselves to, by the best rounds; the medians beside them."""
    ours = rounds.get(US)
    for goal in each.goals:
        column = next(column for column in each.columns if column.key == goal.key)
        theirs = rounds.get(goal.rival)
        if not ours or (goal.rival and not theirs):
            continue
        if goal.rival:
            middle, best = report.ratio(column, ours, theirs)
            wanted, met = f"at least {report.number(goal.least)} times as good as {goal.rival}", best >= goal.least
        else:
            middle, best = report.middle_and_best(column, ours)
            wanted, met = f"at most {report.number(goal.most)}", best <= goal.most
        figures = f"{report.number(middle)} / {report.number(best)}"
        yield row(each.name, column.title, wanted, figures, "met" if met else "**missed**")


def lines(bench, grown):
    about, plan = bench["machine"], bench["plan"]
    yield ""
    yield (
        f"Medians / best of up to {plan['rounds']} interleaved rounds of {plan['seconds']:g} s. {about['cpu']}, "
        f"{about['cores']} cores, {about['system']}, Python {about['python']}, load {about['load']:.1f} at the start."
    )
    if plan["rounds"] < 3:
        yield "So few rounds say little: a neighbour who is busy for a moment falls on one contestant alone."
    versions = report.versions(bench["tables"])
    yield f"Versions: {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}."
    measured = [(each, bench["tables"][each.name]) for each in TABLES if each.name in bench["tables"]]
    for each, figures in measured:
        yield from table(each, figures)
    yield from ("", f"Not run: {'; '.join(f'{name}, {why}' for name, why in bench['not_here'].items())}.")
    yield from ("", "## Goals", "", "By the best rounds.", "")
    yield from (row("table", "what", "goal", "median / best", ""), rule(5))
    for each, figures in measured:
        yield from goals(each, figures["rounds"])
    if grown:
        yield from curves(grown)
    yield ""


def curves(grown):
    yield from ("", "## How cost grows", "")
    yield "`python -m bench growth`: the least of up to three rounds. The exponent is the slope between the last three"
    yield "sizes on logarithmic scales, of values above 1: 0 is constant, 1 linear."
    yield ""
    yield from (row("what", "sizes", "smallest", "largest", "exponent", "curve"), rule(6))
    for curve in growth.CURVES:
        if curve.name not in grown["curves"]:
            yield row(curve.name, "not measured", "", "", "", "")
            continue
        sizes = grown["curves"][curve.name]["sizes"]
        for key, title, values, slope in growth.slopes(curve, grown["curves"][curve.name]):
            ends = (report.number(values[0]), report.number(values[-1]), f"{slope:.2f}")
            picture = f"[{curve.name}-{key}](growth/{curve.name}-{key}.svg)"
            yield row(f"{curve.name}: {title}", f"{sizes[0]:,} to {sizes[-1]:,}", *ends, picture)


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m bench page", description="Write the figures into the page.")
    parser.add_argument("bench", type=Path, help="what `python -m bench --json FILE` wrote")
    parser.add_argument("growth", type=Path, nargs="?", help="what `python -m bench growth --json FILE` wrote")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the marks are (docs/performance.md)")
    args = parser.parse_args(argv)
    text = args.page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        print(f"{args.page} has not both marks, {BEGIN} and {END}", file=sys.stderr)
        return 1
    grown = json.loads(args.growth.read_text()) if args.growth else None
    made = "\n".join(lines(json.loads(args.bench.read_text()), grown))
    args.page.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
