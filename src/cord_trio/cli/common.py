"""What several verbs share: the configuration argument, JSON out, and the words for what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cord_trio.cli import USAGE, tell
from cord_trio.config import load_config
from cord_trio.protocol import jsonrpc

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from cord_trio.config import Config
    from cord_trio.errors import Problem
    from cord_trio.fabric import Fabric
    from cord_trio.link import Link


def add_config(parser: argparse.ArgumentParser, *, json: bool = True) -> None:
    """Add `--config`, and `--json` for verbs that print data."""
    parser.add_argument("--config", metavar="FILE", help="default: cord.toml, else .mcp.json, in this folder")
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")


def load(args: argparse.Namespace) -> Config:
    """The configuration, with what is wrong but not fatal told on stderr."""
    config = load_config(args.config)
    tell_problems(config.problems)
    return config


def tell_problems(problems: Iterable[Problem]) -> None:
    """Name each on stderr."""
    for problem in problems:
        tell(f"warning: {clean(str(problem))}")


def wrong_usage(text: str) -> int:
    """Say what is wrong with the arguments; returns the exit code."""
    tell(f"error: {clean(text)}")
    return USAGE


def print_json(value: object) -> None:
    """One JSON value on one line."""
    print(jsonrpc.encode(value).decode())


def clean(text: str) -> str:
    """`text` without control characters, so that a server cannot drive the user's terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def count(number: int, noun: str) -> str:
    """Such as `1 tool` and `2 tools`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def why_down(link: Link) -> str:
    """Why the source is not ready, in one line."""
    return one_line(link.reason or link.state)


def tell_failures(fabric: Fabric) -> int:
    """Name on stderr each source that is not ready; returns how many there are."""
    down = [link for link in fabric.links.values() if link.state != "ready"]
    for link in down:
        tell(f"error: source {link.name}: {why_down(link)}")
    for problem in fabric.registry.snapshot.problems:
        tell(f"warning: {clean(str(problem))}")
    return len(down) + len(fabric.config.broken)


def one_line(text: str) -> str:
    """`text` in one line, and without control characters."""
    return clean(" ".join(text.split()))
