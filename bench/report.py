"""Figures to text: ratios first, then the tables."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path

from bench.tables import US


def machine():
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def versions(tables):
    """Of everything that told its version."""
    found = {}
    for table in tables.values():
        for rounds in table["rounds"].values():
            for figures in rounds:
                found |= figures.get("versions", {})
    return found


def number(value):
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def middle_and_best(column, rounds):
    values = [figures[column.key] for figures in rounds]
    return statistics.median(values), max(values) if column.more_is_better else min(values)


def ratio(column, ours, theirs):
    """How many times better we are, by medians and by the best runs."""
    pairs = zip(middle_and_best(column, ours), middle_and_best(column, theirs), strict=True)
    return [(a / b if column.more_is_better else b / a) if a and b else 0.0 for a, b in pairs]


def judge(table, column, rival, best):
    for goal in table.goals:
        if goal.key == column.key and goal.rival == rival:
            met = best >= goal.least if rival else best <= goal.most
            sign = f"≥ {goal.least:g}" if rival else f"≤ {goal.most:g}"
            return f"   goal {sign}: {'met' if met else 'MISSED'}"
    return ""


def ratios(table, results):
    """Lines that say how many times better we are than each rival; and our own value where a goal is absolute."""
    ours = results.get(US)
    if not ours:
        return []
    lines = []
    for column in table.columns:
        _, best = middle_and_best(column, ours)
        if verdict := judge(table, column, "", best):
            lines.append(f"{table.name:12} {column.title:12} {number(best):>29}{verdict}")
        if not column.ratio:
            continue
        for rival, theirs in results.items():
            if rival != US and theirs:
                by_median, by_best = ratio(column, ours, theirs)
                text = f"{table.name:12} {column.title:12} {by_median:7.2f} x {rival:14} {by_best:7.2f}"
                lines.append(f"{text}{judge(table, column, rival, by_best)}")
    return lines


def grid(table, results, failures):
    """The table; each cell is median / best."""
    rows = [["", *(column.title for column in table.columns)]]
    for name, rounds in results.items():
        if rounds:
            cells = [" / ".join(map(number, middle_and_best(column, rounds))) for column in table.columns]
            rows.append([name, *cells])
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [f"{table.name}: {table.title}"]
    for row in rows:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]))
    lines += [f"{name}: {reason}" for name, reason in failures.items()]
    return lines
