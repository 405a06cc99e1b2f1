"""Serve a recording: its servers answer what they answered when it was made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from cord_trio.cli import FAILED, tell
from cord_trio.cli.common import clean, count, wrong_usage

if TYPE_CHECKING:
    import argparse

    from cord_trio.protocol.jsonrpc import Json

DRAINS = True
"""The first signal drains, the second cancels."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="that `serve --record` wrote")
    parser.add_argument("--source", metavar="NAME", help="serve this one alone, under its own names")
    parser.add_argument("--http", metavar="HOST:PORT", help="listen here; default 127.0.0.1:8931")
    parser.add_argument("--stdio", action="store_true", help="speak MCP over stdin and stdout; with --http, both")
    parser.add_argument("--strict", action="store_true", help="answer a call as often as it was recorded, then refuse")
    parser.add_argument(
        "--speed", type=float, default=0.0, metavar="X", help="1: as slow as it was, 2: twice as fast; default: at once"
    )


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    from cord_trio.config import Config, GatewayConfig, parse_address
    from cord_trio.fabric import open_fabric
    from cord_trio.gateway import serve_gateway
    from cord_trio.testing.recorded import recorded

    given: dict[str, Json] = {}
    if args.http is not None:
        try:
            given["host"], given["port"] = parse_address(args.http)
        except ValueError as exc:
            return wrong_usage(f"--http: {exc}")
    if not 0 <= args.speed < math.inf:
        return wrong_usage("--speed: give 0 or more")
    alone: dict[str, Json] = {} if args.source is None else {"prefix": ""}
    sources = recorded(args.file, only=args.source, strict=args.strict, speed=args.speed, **alone)
    config = Config(sources=sources, gateway=GatewayConfig(**given))
    gateway = config.gateway
    listeners: list[trio.SocketListener] = []
    if args.http is not None or not args.stdio:
        try:
            listeners = await trio.open_tcp_listeners(gateway.port, host=gateway.host)
        except OSError as exc:
            tell(f"error: cannot listen on {gateway.http}: {exc.strerror or exc}; name another port with --http")
            return FAILED
    for listener in listeners:
        host, port = listener.socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        tell(f"replaying {count(len(sources), 'source')} of {clean(args.file)} at http://{shown}:{port}/mcp")
    async with open_fabric(config) as fabric, trio.open_nursery() as nursery:

        async def drain_when_interrupted() -> None:
            await interrupted.wait()
            await fabric.drain(gateway.grace)
            nursery.cancel_scope.relative_deadline = 1.0

        nursery.start_soon(drain_when_interrupted)
        await serve_gateway(fabric, http=listeners or None, stdio=args.stdio)
        nursery.cancel_scope.cancel("all that was asked is answered")
    return 0
