"""Run an agent and print its answer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import attrs
import msgspec

from cord_trio.cli import FAILED
from cord_trio.cli.common import (
    add_config,
    clean,
    find_configured,
    given,
    load,
    one_line,
    open_view,
    print_json,
    wrong_usage,
)
from cord_trio.cli.person import find_person
from cord_trio.cli.visiting import add_visit, hint, visit_of
from cord_trio.config import AgentConfig, Config
from cord_trio.errors import ConfigError, Problem
from cord_trio.protocol import jsonrpc
from cord_trio.protocol.mcp import ToolResult

if TYPE_CHECKING:
    import argparse

    import trio

_BLANK = " \t\r\n\ufeff"
"""What JSON allows before a value, and the mark that some editors put there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "agent", metavar="MODULE:AGENT",
        help="where its function or class is; or a configured name; with --mesh also NAME, or NAME@NODE",
    )  # fmt: skip
    parser.add_argument(
        "payload", metavar="PAYLOAD", nargs="?", default="null",
        help="JSON, else a text, which does not begin with {, [ or a quote; @FILE reads it, - from stdin; default null",
    )  # fmt: skip
    parser.add_argument("--text", action="store_true", help="the payload is a text, whatever it looks like")
    add_visit(parser)


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    from cord_trio.fabric import open_fabric

    try:
        typed = await given(args.payload)
    except OSError as exc:
        return wrong_usage(f"{exc.filename}: {exc.strerror}")
    except UnicodeDecodeError:
        return wrong_usage("payload: it is not UTF-8")
    try:
        payload = typed if args.text else _payload(typed)
    except ValueError as exc:
        return wrong_usage(f"payload: it begins like JSON and is none: {exc}; mend it, or say --text to give a text")
    loaded = _loaded(args)
    config, name = _with(loaded, args.agent, visiting=args.mesh is not None)
    handlers = find_configured(config, name if name in config.agents.keys() - loaded.agents.keys() else "")
    visit = visit_of(args, config)
    async with (
        open_fabric(config, mesh=None if visit is None else visit.mesh) as fabric,
        open_view(fabric, "run"),
    ):
        fabric.add_configured(handlers)
        if visit is not None and not await visit.listed(fabric):
            return FAILED
        if visit is not None and name not in config.agents and not await visit.knows(fabric, name):
            return FAILED
        answer = await fabric.ask(name, payload, answer=find_person(name))
    if isinstance(answer, ToolResult):
        answer = jsonrpc.parse(answer.raw) if args.json else answer.text
    if args.json:
        print_json(answer)
    elif answer is not None:
        print(clean(answer if isinstance(answer, str) else _shown(answer)))
    return 0


def _loaded(args: argparse.Namespace) -> Config:
    """The configuration; an empty one where there is none, since an agent may do without tools."""
    if args.config is None and not os.path.lexists("cord.toml") and not os.path.lexists(".mcp.json"):
        return Config()
    return load(args)


def _payload(text: str) -> object:
    """What `text` is as JSON, else itself.

    Raises:
        ValueError: it begins as an object, array or string of JSON does, so that somebody must have meant one.

    """
    try:
        return jsonrpc.parse(text.encode("utf-8", "surrogateescape"))
    except (msgspec.DecodeError, RecursionError) as exc:
        if text.lstrip(_BLANK).startswith(("{", "[", '"')):
            raise ValueError(one_line(str(exc))) from exc
        return text


def _shown(answer: object) -> str:
    try:
        return jsonrpc.encode(answer).decode()
    except (TypeError, ValueError):
        return repr(answer)


def _with(config: Config, wanted: str, *, visiting: bool) -> tuple[Config, str]:
    """`config` with the agent that is wanted, and its name there; `visiting` a mesh, that may be one of another node.

    Raises:
        ConfigError: there is none.

    """
    if ":" not in wanted:
        if wanted in config.agents or visiting:
            return config, wanted
        known = ", ".join(config.agents)
        remedy = (f"there are: {known}" if known else "write MODULE:AGENT") + hint(config)
        raise ConfigError([Problem(config.file, "", f"no agent named {wanted!r} is configured", remedy)])
    for name, agent in config.agents.items():
        if agent.handler == wanted:
            return config, name
    name = wanted.rpartition(":")[2].rpartition(".")[2]
    if name in config.agents:
        what = f"is {config.agents[name].handler}, not {wanted}"
        raise ConfigError([Problem(config.file, f"agents.{name}", what, "rename one of them")])
    try:
        agent = AgentConfig(name=name, handler=wanted)
    except ConfigError as exc:
        raise ConfigError([Problem("", wanted, problem.what, problem.remedy) for problem in exc.problems]) from exc
    return attrs.evolve(config, agents={**config.agents, name: agent}), name
