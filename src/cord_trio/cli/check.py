"""Check the configuration, connect to each source, and say what is wrong and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from cord_trio.cli.common import add_config, clean, load, print_json
from cord_trio.cli.probe import look
from cord_trio.config import Http

if TYPE_CHECKING:
    import argparse

    from cord_trio.cli.probe import Step
    from cord_trio.config import Config
    from cord_trio.fabric import Fabric
    from cord_trio.link import Link


@attrs.frozen
class Finding:
    """How one source fares."""

    source: str
    ok: bool
    what: str
    remedy: str = ""
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    from cord_trio.fabric import open_fabric

    config = load(args)
    findings = [
        Finding(name, False, problem.what, problem.remedy)
        for name, problems in config.broken.items()
        for problem in problems
    ]  # fmt: skip
    started = trio.current_time()
    async with open_fabric(config) as fabric:
        await fabric.wait_started()
        seconds = trio.current_time() - started
        findings += [_finding(link, fabric) for link in fabric.links.values()]
        problems = [str(problem) for problem in fabric.registry.snapshot.problems]
    findings = await _looked_at(findings, config)
    good = sum(finding.ok for finding in findings)
    if args.json:
        print_json(
            {
                "file": config.file,
                "sources": [attrs.asdict(finding) for finding in findings],
                "problems": [*map(str, config.problems), *problems],
                "seconds": round(seconds, 3),
            }
        )
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.source}: {clean(finding.what)}")
            for step in finding.steps:
                print(f"       {clean(str(step))}")
            if finding.remedy:
                print(f"       do: {clean(finding.remedy)}")
            for note in finding.notes:
                print(f"       note: {clean(note)}")
        for problem in problems:
            print(f"note {clean(problem)}")
        print(f"{good} of {len(findings)} sources are ready, in {seconds:.1f} s")
    return 0 if good == len(findings) else 1


def _finding(link: Link, fabric: Fabric) -> Finding:
    view = fabric.registry.snapshot.sources[link.name]
    if link.state == "ready" and view.greeting is not None:
        server = clean(str(view.greeting.server_info.get("name", "a server")))
        what = f"{server} speaks {view.greeting.revision}, {len(view.tools)} tools"
        return Finding(link.name, True, what, notes=link.notes)
    if link.failure is not None:
        return Finding(link.name, False, f"{link.failure.step}: {link.failure.reason}", link.failure.remedy)
    return Finding(link.name, False, link.reason or link.state)


async def _looked_at(findings: list[Finding], config: Config) -> list[Finding]:
    """`findings`, with a look at each step for the remote sources that are not ready."""
    looked: dict[str, list[Step]] = {}

    async def take(source: Http) -> None:
        looked[source.name] = await look(source)

    async with trio.open_nursery() as nursery:
        for finding in findings:
            source = config.sources.get(finding.source)
            if not finding.ok and isinstance(source, Http):
                nursery.start_soon(take, source)
    return [attrs.evolve(finding, steps=tuple(looked.get(finding.source, ()))) for finding in findings]
