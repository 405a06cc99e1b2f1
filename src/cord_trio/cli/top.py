"""Watch a running fabric: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.cli import FAILED, tell
from cord_trio.cli.common import count, one_line, wrong_usage
from cord_trio.cli.running import Running, about, add_pid, only
from cord_trio.observe import Node
from cord_trio.observe.control import look

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import Group

INTERVAL: Final = 1.0
"""Seconds between two looks."""

SHORTEST: Final = 0.1
"""Seconds between two looks at least: what is looked at has work to do."""

ROWS: Final = 20
"""Rows of each table."""

WIDEST: Final = 60
"""Characters of one field."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pid(parser)
    parser.add_argument(
        "--interval", type=float, default=INTERVAL, metavar="S", help=f"seconds between two looks; default {INTERVAL:g}"
    )
    parser.add_argument("--count", type=int, metavar="N", help="looks; default until Ctrl-C, or until the fabric ends")


@attrs.frozen
class Section:
    """One table: its columns, its rows, and how many rows were left out."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    more: int


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    if not SHORTEST <= args.interval < math.inf:
        return wrong_usage(f"--interval: give {SHORTEST:g} or more seconds")
    if args.count is not None and args.count < 1:
        return wrong_usage("--count: give 1 or more looks")
    running = await only(args)
    if running is None:
        return FAILED
    looks = math.inf if args.count is None else args.count
    if sys.stdout.isatty():
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            await _watch(running, looks, args.interval, lambda now: live.update(_drawn(now), refresh=True))
    else:
        await _watch(running, looks, args.interval, lambda now: print("\n".join(plain(now)), flush=True))
    return 0


async def _watch(running: Running, looks: float, interval: float, show: Callable[[Running], None]) -> None:
    while True:
        show(running)
        looks -= 1
        if looks <= 0:
            return
        await trio.sleep(interval)
        said = await look(running.path)
        if said is None:
            tell("the fabric has ended, or does not answer")
            return
        running = Running(running.path, said)


def plain(running: Running) -> list[str]:
    """All that is shown, as lines of text; the last one is empty."""
    lines = [about(running), summary(running)]
    for section in sections(running):
        table = [section.columns, *section.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        lines += _more(section)
    return [*lines, ""]


def summary(running: Running) -> str:
    """What there is, in one line."""
    tree = Node.of(running.tree)
    sources = [node for node in tree.children if node.kind == "source"]
    ready = sum(node.state == "ready" for node in sources)
    counters = (running.said or {}).get("counters")
    noted = counters if isinstance(counters, dict) else {}
    refused = sum(value for name, value in noted.items() if name.endswith(".overloaded") and isinstance(value, int))
    parts = [
        tree.state,
        f"{ready}/{count(len(sources), 'source')} ready",
        f"{tree.facts.get('tools')} tools",
        f"{tree.facts.get('calls')} calls",
        f"{refused} refused at a bound",
    ]
    for node in tree.children:
        if node.kind == "mesh":
            facts = node.facts
            parts.append(f"{node.state} in mesh {node.name} as {facts.get('node')}, with {facts.get('others')} others")
    return one_line(", ".join(parts))


def sections(running: Running) -> list[Section]:
    """The tables, those rows first that are not well or have something to do."""
    children = Node.of(running.tree).children
    made = [
        _section(
            ("source", "state", "slots", "waiting", "in flight", "log lines", "why"),
            ((node.state == "ready", _source(node)) for node in children if node.kind == "source"),
        ),
        _section(
            ("agent", "state", "turn", "waiting", "mailbox", "dropped", "why"),
            (
                (node.state == "idle", [node.name, node.state, *_facts(node, "turn waiting mailbox dropped reason")])
                for node in children
                if node.kind == "agent"
            ),
        ),
        _section(
            ("ask", "state", "waits for", "held by", "deadline in", "left"),
            ((False, _ask(node, depth)) for node, depth in _below(children, 0)),  # whoever asks stands above
        ),
        _section(
            ("question", "state", "source", "whom", "what", "answer in"),
            (
                (node.state == "over", [node.name, node.state, *_facts(node, "source principal asks answer_in")])
                for node in children
                if node.kind == "question"
            ),
        ),
        _section(
            ("conversation", "state", "agent"),
            (
                (node.state != "running", [node.name, node.state, *_facts(node, "agent")])
                for node in children
                if node.kind == "conversation"
            ),
        ),
    ]
    return [section for section in made if section.rows]


def _section(columns: tuple[str, ...], rows: Iterable[tuple[bool, Sequence[str]]]) -> Section:
    """A table of these rows; those marked True come last."""
    found = sorted(rows, key=lambda row: row[0])
    shown = tuple(tuple(_short(text) for text in row) for _, row in found[:ROWS])
    return Section(columns, shown, len(found) - len(shown))


def _below(nodes: Iterable[Node], depth: int) -> Iterable[tuple[Node, int]]:
    for node in nodes:
        if node.kind == "ask":
            yield node, depth
            yield from _below(node.children, depth + 1)


def _source(node: Node) -> list[str]:
    flying = [session.facts.get("in_flight") for session in node.children]
    why = str(node.facts.get("reason") or "")
    if node.facts.get("next_try_in") is not None:
        why = f"again in {node.facts['next_try_in']} s: {why}"
    in_flight = str(sum(number for number in flying if isinstance(number, int)))
    return [node.name, node.state, *_facts(node, "slots slots_waiting"), in_flight, *_facts(node, "log_lines"), why]


def _ask(node: Node, depth: int) -> list[str]:
    left = " ".join(
        f"{name.removesuffix('_left')}={value}" for name, value in node.facts.items() if name.endswith("_left")
    )
    return ["  " * depth + node.name, node.state, *_facts(node, "waits_for held_by deadline_in"), left]


def _facts(node: Node, names: str) -> list[str]:
    found = [node.facts.get(name) for name in names.split()]
    return ["" if fact is None else str(fact) for fact in found]


def _short(text: str) -> str:
    indent = len(text) - len(text.lstrip())
    text = " " * indent + one_line(text)
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _more(section: Section) -> list[str]:
    return [f"… and {section.more:,} more"] if section.more else []


def _drawn(running: Running) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Table | Text] = [Text(about(running), style="bold"), Text(summary(running))]
    for section in sections(running):
        table = Table(*section.columns, box=None, padding=(0, 2, 0, 0), title_justify="left")
        for row in section.rows:
            style = "red" if row[1] in ("down", "broken") else "yellow" if row[1] == "waiting" else ""
            table.add_row(*map(Text, row), style=style)
        parts += [table, *map(Text, _more(section))]
    return Group(*parts)
