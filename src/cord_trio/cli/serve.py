"""Serve the configured sources to MCP clients as one endpoint."""

from __future__ import annotations

import gc
import math
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.cli import FAILED, tell
from cord_trio.cli.common import add_config, count, find_configured, load, one_line, open_view, wrong_usage
from cord_trio.cli.reloading import keep_reloading

if TYPE_CHECKING:
    import argparse

    from cord_trio.config import Config
    from cord_trio.fabric import Fabric
    from cord_trio.protocol.jsonrpc import Json

DRAINS = True
"""The first signal drains, the second cancels."""

BEGINNING: Final = ("configured", "starting")
"""States of a source that starts by itself, until its first list or its first failure."""

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

    given: dict[str, Json] = {}
    if args.http is not None:
        try:
            given["host"], given["port"] = parse_address(args.http)
        except ValueError as exc:
            return wrong_usage(f"--http: {exc}")
    if args.grace is not None:
        if not 0 <= args.grace < math.inf:
            return wrong_usage("--grace: give 0 or more seconds")
        given["grace"] = args.grace

    def as_told(config: Config) -> Config:
        """What is configured, with what the command line says instead."""
        return attrs.evolve(config, gateway=attrs.evolve(config.gateway, **given))

    config = as_told(load(args))
    gateway = config.gateway
    handlers = find_configured(config)
    async with AsyncExitStack() as stack:
        listeners: list[trio.SocketListener] = []
        if args.http is not None or not args.stdio:
            try:
                listeners = await trio.open_tcp_listeners(gateway.port, host=gateway.host, backlog=1024)
            except OSError as exc:
                remedy = "name another port with --http, or 0 for any free one"
                tell(f"error: cannot listen on {gateway.http}: {exc.strerror or exc}; {remedy}")
                return FAILED
            for listener in listeners:
                stack.push_async_callback(trio.aclose_forcefully, listener)
            for listener in listeners:
                host, port = listener.socket.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                tell(f"serving {count(len(config.enabled), 'source')} at http://{shown}:{port}/mcp")
        async with open_fabric(config) as fabric, open_view(fabric, "serve"), trio.open_nursery() as nursery:
            fabric.add_configured(handlers)

            async def drain_when_interrupted() -> None:
                await interrupted.wait()
                tell(f"draining for up to {gateway.grace:g} s; a second signal cancels")
                await fabric.drain(gateway.grace)
                nursery.cancel_scope.relative_deadline = LAST_WRITES

            nursery.start_soon(drain_when_interrupted)
            nursery.start_soon(_tell_changes, fabric)
            nursery.start_soon(_freeze_when_listed, fabric)
            nursery.start_soon(keep_reloading, fabric, as_told, interrupted)
            await serve_gateway(fabric, http=listeners or None, stdio=args.stdio)
            nursery.cancel_scope.cancel("all that was asked is answered")
    return 0


async def _freeze_when_listed(fabric: Fabric) -> None:
    """Keep what the start has made, lists of tools too, out of the garbage collector's way: it would look at it all."""
    eager = [name for name, source in fabric.config.enabled.items() if source.start == "eager"]
    with trio.move_on_after(fabric.config.bounds.first_list):
        snapshot = fabric.registry.snapshot
        while any(name in snapshot.sources and snapshot.sources[name].state in BEGINNING for name in eager):
            snapshot = await fabric.registry.changed(snapshot.version)
    gc.collect()
    gc.freeze()


async def _tell_changes(fabric: Fabric) -> None:
    """Say which sources go down, and why, and which of them come back."""
    version = 0
    told: dict[str, str] = {}
    while True:
        snapshot = await fabric.registry.changed(version)
        version = snapshot.version
        for name, view in snapshot.sources.items():
            if view.state == "down" and view.reason != told.get(name):
                told[name] = view.reason
                tell(f"source {name} is down: {one_line(view.reason)}")
            elif view.state == "ready" and told.pop(name, ""):
                tell(f"source {name} is ready again")
