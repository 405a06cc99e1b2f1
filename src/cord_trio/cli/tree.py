"""Print the tree of a running fabric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cord_trio.cli import FAILED
from cord_trio.cli.common import clean, print_json
from cord_trio.cli.running import about, add_pid, only
from cord_trio.observe import Node

if TYPE_CHECKING:
    import argparse

    import trio


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pid(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with the counters")


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    running = await only(args)
    if running is None:
        return FAILED
    if args.json:
        print_json(running.said)
        return 0
    print(about(running))
    for line in Node.of(running.tree).lines():
        print(clean(line))
    return 0
