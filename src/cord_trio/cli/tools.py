"""List the tools of all configured sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cord_trio.cli.common import add_config, clean, load, print_json, tell_failures

if TYPE_CHECKING:
    import argparse

    import trio


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--source", metavar="NAME", help="only this source's")


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    from cord_trio.fabric import open_fabric

    async with open_fabric(load(args)) as fabric:
        await fabric.wait_started()
        failures = tell_failures(fabric)
        routes = [
            route for route in fabric.registry.snapshot.tools.values() if args.source in (None, route.source)
        ]  # fmt: skip
        if args.json:
            print_json(
                [
                    {"name": route.public, "source": route.source, "description": route.tool.description,
                     "inputSchema": route.tool.input_schema}
                    for route in routes
                ]
            )  # fmt: skip
        else:
            width = max((len(route.public) for route in routes), default=0)
            for route in routes:
                summary = clean(route.tool.description or "").strip().partition("\n")[0]
                print(f"{route.public:<{width}}  {summary[:100]}".rstrip())
    return 1 if failures else 0
