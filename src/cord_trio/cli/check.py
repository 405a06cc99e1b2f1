"""Check the configuration, connect to each source, and say what is wrong and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.cli.common import (
    add_config,
    clean,
    count,
    find_configured,
    one_line,
    print_json,
    tell_problems,
    why_down,
)
from cord_trio.cli.probe import Step, look
from cord_trio.config import Http, Stdio, load_config
from cord_trio.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cord_trio.config import Config
    from cord_trio.errors import Problem
    from cord_trio.fabric import Fabric
    from cord_trio.replicas import Kept


STARTS: Final = {
    "lazy": "; started by its first call",
    "manifest": "; listed from its stored manifest, and started by its first call",
}
"""What is said of sources that `serve` does not start at once."""


@attrs.frozen
class Finding:
    """How one source fares.

    Attributes:
        source: its name.
        ok: whether it can be used.
        what: what it is, or what is wrong.
        remedy: what to do about that.
        steps: what was looked at on the way to it.
        notes: what else its owner should know.
        state: of the source once it was tried, as in `tree`; "configured" if its configuration leaves it out.

    """

    source: str
    ok: bool
    what: str
    remedy: str = ""
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    state: str = "configured"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    from cord_trio.fabric import open_fabric

    config = load_config(args.config)
    general = [problem for problem in config.problems if problem.source not in config.broken]
    agents: list[Problem] = []
    try:
        find_configured(config)
    except ConfigError as exc:
        agents += exc.problems
    findings = {name: _broken(name, problems) for name, problems in config.broken.items()}
    started = trio.current_time()
    async with open_fabric(config) as fabric:

        async def find(link: Kept) -> None:
            finding = await _finding(link, fabric)
            findings[link.name] = attrs.evolve(finding, state=link.state)

        async with trio.open_nursery() as nursery:
            for link in fabric.links.values():
                nursery.start_soon(find, link)
        seconds = trio.current_time() - started
        problems = [str(problem) for problem in fabric.registry.snapshot.problems]
    ordered = [*config.broken, *config.enabled]
    good = sum(finding.ok for finding in findings.values())
    if args.json:
        print_json(
            {
                "file": config.file,
                "sources": [attrs.asdict(findings[name]) for name in ordered],
                "disabled": _disabled(config),
                "problems": [*map(str, config.problems), *map(str, agents), *problems],
                "seconds": round(seconds, 3),
            }
        )
    else:
        tell_problems(general)
        for name in ordered:
            for line in _lines(findings[name]):
                print(clean(line))
        for name in _disabled(config):
            print(f"off  {clean(name)}: disabled in the configuration")
        for problem in problems:
            print(f"note {clean(problem)}")
        for wrong in agents:
            print(f"FAIL {one_line(str(wrong))}")
        print(f"{good} of {count(len(findings), 'source')} ready, in {seconds:.1f} s")
    return 0 if good == len(findings) and not agents else 1


def _disabled(config: Config) -> list[str]:
    return [name for name, source in config.sources.items() if not source.enabled]


def _broken(name: str, problems: tuple[Problem, ...]) -> Finding:
    """A source that its configuration leaves out."""
    told = [Step(problem.path or name, False, problem.what, problem.remedy) for problem in problems]
    if len(told) == 1:
        return Finding(name, False, f"{told[0].name}: {told[0].what}", told[0].remedy)
    return Finding(name, False, f"left out for {len(told)} reasons", steps=tuple(told))


async def _finding(link: Kept, fabric: Fabric) -> Finding:
    """How the source fares, with a look at each step towards a remote one that is not ready."""
    link.wake()
    await link.wait_attempted()
    view = fabric.registry.snapshot.sources[link.name]
    if link.state == "ready" and view.greeting is not None:
        server = view.greeting.server_info.get("name", "a server")
        exported = sum(route.source == link.name for route in fabric.registry.snapshot.tools.values())
        hidden = "" if exported == len(view.tools) else f", {exported:,} of them exported"
        what = f"{server} speaks {view.greeting.revision}, {count(len(view.tools), 'tool')}{hidden}"
        what += STARTS.get(link.source.start, "")
        return Finding(link.name, True, what, notes=link.notes)
    failure = link.failure
    if failure is None:
        return Finding(link.name, False, why_down(link))
    what, remedy = f"{failure.step}: {failure.reason}", failure.remedy
    if isinstance(link.source, Http):
        steps = tuple(await look(link.source))
        # What was looked at just now is the better advice, if it failed too.
        remedy = next((step.remedy for step in reversed(steps) if not step.ok and step.remedy), remedy)
        if not remedy:
            remedy = "check the path of `url`: an HTTP server answers there, but not as an MCP server does"
        return Finding(link.name, False, what, remedy, steps)
    if not remedy and isinstance(link.source, Stdio) and "exited" in what:
        remedy = "start it by hand, with the same arguments and variables, to see why it ends"
    return Finding(link.name, False, what, remedy)


def _lines(finding: Finding) -> Iterator[str]:
    """What a person reads of it: the verdict first, what was looked at, and one thing to do."""
    yield f"{'ok  ' if finding.ok else 'FAIL'} {finding.source}: {one_line(finding.what)}"
    passed = ", ".join(f"{step.name} ok" for step in finding.steps if step.ok and not step.remedy)
    if passed:
        yield f"       looked: {passed}"
    for step in finding.steps:
        advice = f"; {step.remedy}" if step.remedy and step.remedy != finding.remedy else ""
        if step.remedy or not step.ok:
            yield f"       {step.name}: {one_line(step.what)}{advice}"
    if finding.remedy:
        yield f"       do: {one_line(finding.remedy)}"
    for note in finding.notes:
        yield f"       note: {one_line(note)}"
