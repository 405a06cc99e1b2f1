"""Serve the configured sources to MCP clients as one endpoint."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.cli import FAILED, USAGE
from cord_trio.cli.common import add_config, load

if TYPE_CHECKING:
    import argparse

DRAINS = True
"""The first signal drains, the second cancels."""

LAST_WRITES: Final = 1.0
"""Seconds for the last answers to be written once nothing runs any more, or the grace is over."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, json=False)
    parser.add_argument("--http", metavar="HOST:PORT", help="listen here; default 127.0.0.1:8931, or as configured")
    parser.add_argument("--stdio", action="store_true", help="speak MCP over stdin and stdout; with --http, both")
    parser.add_argument("--grace", metavar="SECONDS", type=float, help="for running calls at the end; default 10")


async def run(args: argparse.Namespace, interrupted: trio.Event) -> int:
    from cord_trio.config import parse_address
    from cord_trio.fabric import open_fabric
    from cord_trio.gateway import serve_gateway

    config = load(args)
    gateway = config.gateway
    if args.http is not None:
        host, port = parse_address(args.http)
        gateway = attrs.evolve(gateway, host=host, port=port)
    if args.grace is not None:
        if args.grace < 0:
            print("error: --grace: must not be negative", file=sys.stderr)
            return USAGE
        gateway = attrs.evolve(gateway, grace=args.grace)
    config = attrs.evolve(config, gateway=gateway)
    async with AsyncExitStack() as stack:
        listeners: list[trio.SocketListener] = []
        if args.http is not None or not args.stdio:
            try:
                listeners = await trio.open_tcp_listeners(gateway.port, host=gateway.host, backlog=1024)
            except OSError as exc:
                print(f"error: cannot listen on {gateway.http}: {exc.strerror or exc}; try --http", file=sys.stderr)
                return FAILED
            for listener in listeners:
                stack.push_async_callback(trio.aclose_forcefully, listener)
            for listener in listeners:
                host, port = listener.socket.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                print(f"serving {len(config.sources)} sources at http://{shown}:{port}/mcp", file=sys.stderr, flush=True)
        async with open_fabric(config) as fabric, trio.open_nursery() as nursery:

            async def drain_when_interrupted() -> None:
                await interrupted.wait()
                print(f"draining for up to {gateway.grace:g} s; a second signal cancels", file=sys.stderr, flush=True)
                await fabric.drain(gateway.grace)
                nursery.cancel_scope.relative_deadline = LAST_WRITES

            nursery.start_soon(drain_when_interrupted)
            await serve_gateway(fabric, http=listeners or None, stdio=args.stdio)
            nursery.cancel_scope.cancel("all that was asked is answered")
    return 0
