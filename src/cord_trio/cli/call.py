"""Call one tool and print its result."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import attrs
import msgspec

from cord_trio.cli import FAILED, tell
from cord_trio.cli.common import add_config, clean, given, wrong_usage
from cord_trio.cli.person import find_person
from cord_trio.cli.visiting import add_visit, hint, load_visited, visit_of
from cord_trio.errors import CallError, ToolNotFound
from cord_trio.protocol import jsonrpc

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import trio

    from cord_trio.cli.visiting import Visit
    from cord_trio.config import Config
    from cord_trio.protocol.mcp import Content, ToolResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("tool", metavar="TOOL", help="its name as `tools` lists it")
    parser.add_argument(
        "arguments", metavar="JSON", nargs="?", default="{}", help="an object; @FILE reads it from a file, - from stdin"
    )
    add_visit(parser)


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    try:
        arguments = _object(await given(args.arguments))
    except OSError as exc:
        return wrong_usage(f"{exc.filename}: {exc.strerror}")
    except ValueError as exc:
        return wrong_usage(f'arguments: {exc}; give an object such as \'{{"text": "hello"}}\'')
    config = load_visited(args)
    visit = visit_of(args, config)
    try:
        result = await _result(config, visit, args.tool, arguments)
    except ToolNotFound as exc:
        more = "" if exc.near else "; `python -m cord_trio tools` lists what there is"
        tell(f"error: {clean(str(exc))}{more}{hint(config) if visit is None else ''}")
        return FAILED
    if args.json:
        print(bytes(result.raw).decode())
    else:
        for line in _lines(result):
            print(clean(line), file=sys.stderr if result.is_error else sys.stdout)
    return FAILED if result.is_error else 0


async def _result(config: Config, visit: Visit | None, tool: str, arguments: dict[str, object]) -> ToolResult:
    """What the tool answered. Raises as `Fabric.call` does."""
    from cord_trio.fabric import open_fabric

    if visit is None:
        async with open_fabric(_only_needed(config, tool)) as fabric:
            return await fabric.call(tool, arguments, answer=find_person(tool))
    needed = _only_needed(config, tool, or_all=False)
    async with open_fabric(needed, mesh=visit.mesh) as fabric:
        if not needed.sources:
            await visit.listed(fabric, tool)
        try:
            return await fabric.call(tool, arguments, answer=find_person(tool), trace=visit.trace)
        except CallError as exc:
            if not isinstance(exc, ToolNotFound):  # else there is nothing to follow
                visit.tell_trace()
            raise


def _object(text: str) -> dict[str, object]:
    try:
        value = jsonrpc.parse(text.encode("utf-8", "surrogateescape"))  # as it was typed, whatever the locale
    except msgspec.DecodeError as exc:
        raise ValueError(str(exc)) from exc
    if not isinstance(value, dict):
        raise ValueError(f"{text.strip()[:20]!r} is no JSON object")  # noqa: TRY004  # the caller catches one kind
    return value


def _only_needed(config: Config, tool: str, *, or_all: bool = True) -> Config:
    """`config` with only those sources that can own `tool`; all of them, or none, if none can by its name."""
    owners = {
        name: source
        for name, source in config.sources.items()
        if not source.export_prefix or tool.startswith(f"{source.export_prefix}__")
    }  # fmt: skip
    return attrs.evolve(config, sources=owners or (config.sources if or_all else {}))


def _lines(result: ToolResult) -> Iterator[str]:
    for block in result.content:
        yield _line(block)
    if not result.content and result.structured is not None:
        yield jsonrpc.encode(result.structured).decode()


def _line(block: Content) -> str:
    """What a person reads of a content block; nothing is left out without a word."""
    member = {name: jsonrpc.parse(value) for name, value in block.members.items()}
    match block.type:
        case "text":
            return str(member.get("text", ""))
        case "resource_link":
            return f"[link {member.get('uri')}] {member.get('title') or member.get('name') or ''}".rstrip()
        case "resource":
            resource = member.get("resource") or {}
            return str(resource.get("text") or f"[resource {resource.get('uri')}]")
        case "image" | "audio":
            size = len(str(member.get("data", ""))) * 3 // 4
            return f"[{block.type} {member.get('mimeType')}, {size} bytes; --json prints it]"
        case other:
            return f"[{other}; --json prints it]"
