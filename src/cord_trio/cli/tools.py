"""List the tools of all configured sources, and those of a mesh where asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cord_trio.cli import FAILED, tell
from cord_trio.cli.common import add_config, clean, count, print_json, tell_failures, wrong_usage
from cord_trio.cli.visiting import add_visit, hint, load_visited, visit_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    import trio

    from cord_trio.snapshot import Route

SUMMARY = 100
"""Characters of a description that are shown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--source", metavar="NAME", help="only this source's")
    add_visit(parser)


def _unknown(source: str, known: Iterable[str]) -> str:
    return f"--source: no source named {source!r}; there are: {', '.join(known) or 'none'}"


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    from cord_trio.fabric import open_fabric

    config = load_visited(args)
    visit = visit_of(args, config)
    known: dict[str, object] = {**config.sources, **config.broken}
    if args.source is not None:
        if args.source not in known and visit is None:
            return wrong_usage(_unknown(args.source, known) + hint(config))
        chosen = config.sources.get(args.source)
        if chosen is not None and not chosen.enabled:
            return wrong_usage(f"--source: {args.source} is disabled in the configuration")
        # The others are not asked: one of them may be slow, or down.
        config = attrs.evolve(
            config,
            sources={name: source for name, source in config.sources.items() if name == args.source},
            broken={name: problems for name, problems in config.broken.items() if name == args.source},
        )
    async with open_fabric(config, mesh=None if visit is None else visit.mesh) as fabric:
        fabric.start_unlisted()
        await fabric.wait_started()
        if visit is not None and not await visit.listed(fabric):
            return FAILED
        failures = tell_failures(fabric)
        routes: Iterable[Route] = fabric.registry.snapshot.tools.values()
        if visit is not None and args.source is not None:
            if args.source not in {**fabric.links, **config.broken}:
                return wrong_usage(_unknown(args.source, {**known, **fabric.links}))
            routes = [route for route in routes if route.source == args.source]
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
            summary = clean((route.tool.description or "").strip().partition("\n")[0])
            print(f"{route.public:<{width}}  {summary[:SUMMARY]}".rstrip())
    if failures and args.source is None:
        tell(f"{count(failures, 'source')} could not be listed, so this failed; --source NAME lists one alone")
    return 1 if failures else 0
