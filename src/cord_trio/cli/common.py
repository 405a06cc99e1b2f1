"""What several verbs share: the configuration argument, JSON out, and the words for what went wrong."""

from __future__ import annotations

import os
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from cord_trio.agents.handlers import find_handlers
from cord_trio.cli import USAGE, tell
from cord_trio.config import load_config
from cord_trio.observe.control import open_control
from cord_trio.protocol import jsonrpc
from cord_trio.version import __version__

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator, Iterable

    from cord_trio.agents.agent import AgentMade
    from cord_trio.config import Config
    from cord_trio.errors import Problem
    from cord_trio.fabric import Fabric
    from cord_trio.observe.handover import Offer
    from cord_trio.replicas import Kept


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


def why_down(link: Kept) -> str:
    """Why the source is not ready, in one line."""
    return one_line(link.reason or link.state)


def tell_failures(fabric: Fabric) -> int:
    """Name on stderr each source that is not ready; returns how many there are."""
    down = [link for link in fabric.links.values() if not (link.resting or link.state == "ready")]
    for link in down:
        tell(f"error: source {link.name}: {why_down(link)}")
    for problem in fabric.registry.snapshot.problems:
        tell(f"warning: {clean(str(problem))}")
    return len(down) + len(fabric.config.broken)


def one_line(text: str) -> str:
    """`text` in one line, and without control characters."""
    return clean(" ".join(text.split()))


async def given(text: str) -> str:
    """What `text` gives: itself, the file that it names with an `@`, or stdin for `-`."""
    if text != "-":
        return _read(text[1:]) if text.startswith("@") else text
    # In a thread, since it may wait for a person; abandoned, since only she can end it.
    return (await trio.to_thread.run_sync(_stdin, abandon_on_cancel=True)).decode()


def _read(path: str) -> str:
    with open(path, "rb") as file:
        return file.read().decode()


def _stdin() -> bytes:
    """All of stdin, past Python's buffer, whose lock an abandoned thread would keep until the process ends."""
    pieces = []
    while piece := os.read(sys.stdin.fileno(), 1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def find_configured(config: Config, typed: str = "") -> dict[str, AgentMade]:
    """The handlers of the configured agents, of which `typed` stands in no file. Raises `ConfigError`."""
    folder = os.getcwd()
    # The script is not started with it, `python -m` is; at the end it hides nothing.
    if config.agents and folder not in sys.path and not sys.flags.safe_path:
        sys.path.append(folder)
    agents = dict(config.agents)
    own = {typed: agents.pop(typed)} if typed else {}
    return {**find_handlers(own), **find_handlers(agents, config.file)}


@asynccontextmanager
async def open_view(fabric: Fabric, verb: str, offer: Offer | None = None) -> AsyncGenerator[None, None]:
    """While the block runs, `tree` and `top` can look at this fabric."""
    about = _about(fabric.config.file, verb)

    def answer() -> dict[str, object]:
        more = {} if offer is None else {"takeover": offer.open}
        return {**about, **more, "counters": fabric.counters.snapshot(), "tree": fabric.tree().data()}

    async with open_control(answer, counters=fabric.counters, offer=offer), fabric.watched():
        yield


def _about(file: str, verb: str) -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "verb": verb,
        "config": os.path.abspath(file) if file else "",
        "since": round(time.time(), 3),
        "release": __version__,
    }
