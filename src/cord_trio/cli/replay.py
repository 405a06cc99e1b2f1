"""Serve a recording: its servers answer what they answered when it was made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from cord_trio.cli import FAILED, tell
from cord_trio.cli.common import clean, count, wrong_usage
from cord_trio.cli.serving import add_ways, address_of, drain_when_interrupted, listen_at, tell_where

if TYPE_CHECKING:
    import argparse

    from cord_trio.protocol.jsonrpc import Json

DRAINS = True
"""The first signal drains, the second cancels."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="that `serve --record` wrote")
    parser.add_argument("--source", metavar="NAME", help="serve this one alone, under its own names")
    add_ways(parser, "127.0.0.1:8931")
    parser.add_argument("--strict", action="store_true", help="answer a call as often as it was recorded, then refuse")
    parser.add_argument(
        "--speed", type=float, default=0.0, metavar="X", help="1: as slow as it was, 2: twice as fast; default: at once"
    )


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    from cord_trio.config import Config, GatewayConfig
    from cord_trio.fabric import open_fabric
    from cord_trio.gateway import serve_gateway
    from cord_trio.testing.recorded import is_torn, recorded

    try:
        given = address_of(args)
    except ValueError as exc:
        return wrong_usage(str(exc))
    if not 0 <= args.speed < math.inf:
        return wrong_usage("--speed: give 0 or more")
    alone: dict[str, Json] = {} if args.source is None else {"prefix": ""}
    sources = recorded(args.file, only=args.source, strict=args.strict, speed=args.speed, **alone)
    if is_torn(args.file):
        tell(f"warning: {clean(args.file)}: its last line is cut off, as by a process that was killed; passed over")
    config = Config(sources=sources, gateway=GatewayConfig(**given))
    gateway = config.gateway
    listeners: list[trio.SocketListener] = []
    if args.http is not None or not args.stdio:
        try:
            listeners = await listen_at(gateway, "name another port with --http")
        except OSError as exc:
            tell(f"error: {clean(str(exc))}")
            return FAILED
    tell_where(f"replaying {count(len(sources), 'source')} of {clean(args.file)}", listeners)
    async with open_fabric(config) as fabric, trio.open_nursery() as nursery:
        nursery.start_soon(drain_when_interrupted, interrupted, fabric, gateway.grace, nursery.cancel_scope)
        await serve_gateway(fabric, http=listeners or None, stdio=args.stdio)
        nursery.cancel_scope.cancel("all that was asked is answered")
    return 0
