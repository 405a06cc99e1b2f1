"""Call one tool and print its result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import msgspec

from cord_trio.cli import FAILED, USAGE
from cord_trio.cli.common import add_config, clean, load
from cord_trio.protocol import jsonrpc

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import trio

    from cord_trio.config import Config
    from cord_trio.protocol.mcp import Content, ToolResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("tool", metavar="TOOL", help="its name as `tools` lists it")
    parser.add_argument(
        "arguments", metavar="JSON", nargs="?", default="{}", help="an object; @FILE reads it from a file, - from stdin"
    )


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    from cord_trio.fabric import open_fabric

    try:
        arguments = _arguments(args.arguments)
    except (OSError, ValueError) as exc:
        print(f"error: JSON: {exc}; give an object such as '{{\"text\": \"hello\"}}'", file=sys.stderr)
        return USAGE
    async with open_fabric(_only_needed(load(args), args.tool)) as fabric:
        result = await fabric.call(args.tool, arguments)
    if args.json:
        print(bytes(result.raw).decode())
    else:
        for line in _lines(result):
            print(clean(line), file=sys.stderr if result.is_error else sys.stdout)
    return FAILED if result.is_error else 0


def _arguments(text: str) -> dict[str, object]:
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        text = Path(text[1:]).read_text("utf-8")
    try:
        value = jsonrpc.parse(text.encode())
    except msgspec.DecodeError as exc:
        raise ValueError(str(exc)) from exc
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} is not an object")  # noqa: TRY004  # the caller catches one kind
    return value


def _only_needed(config: Config, tool: str) -> Config:
    """`config` with only those sources that can own `tool`; all of them if none can by its name."""
    owners = {
        name: source
        for name, source in config.sources.items()
        if not source.prefix or tool.startswith(f"{source.prefix}__") or source.tools.rename
    }  # fmt: skip
    return attrs.evolve(config, sources=owners or config.sources)


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
            return f"[{block.type} {member.get('mimeType')}, {len(str(member.get('data', ''))) * 3 // 4} bytes; --json prints it]"
        case other:
            return f"[{other}; --json prints it]"
