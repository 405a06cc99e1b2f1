"""What the verbs have in common that serve MCP: where they listen, and how they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from cord_trio.cli import tell

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

    from cord_trio.config import GatewayConfig
    from cord_trio.fabric import Fabric
    from cord_trio.protocol.jsonrpc import Json

BACKLOG: Final = 1024
"""Connections that may wait to be accepted."""

LAST_WRITES: Final = 1.0
"""Seconds for the last answers to be written once nothing runs any more, or the grace is over."""


def add_ways(parser: argparse.ArgumentParser, default: str) -> None:
    """What is said of where to serve; `default` where nothing is."""
    parser.add_argument("--http", metavar="HOST:PORT", help=f"listen here; default {default}")
    parser.add_argument("--stdio", action="store_true", help="speak MCP over stdin and stdout; with --http, both")


def address_of(args: argparse.Namespace) -> dict[str, Json]:
    """What `--http` says, as a `GatewayConfig` has it. Raises `ValueError` that tells what to write."""
    from cord_trio.config import parse_address

    if args.http is None:
        return {}
    try:
        host, port = parse_address(args.http)
    except ValueError as exc:
        raise ValueError(f"--http: {exc}") from None
    return {"host": host, "port": port}


async def listen_at(gateway: GatewayConfig, remedy: str) -> list[trio.SocketListener]:
    """Sockets at the address of `gateway`. Raises `OSError` that says why there are none, and the remedy."""
    try:
        return await trio.open_tcp_listeners(gateway.port, host=gateway.host, backlog=BACKLOG)
    except OSError as exc:
        raise OSError(f"cannot listen on {gateway.http}: {exc.strerror or exc}; {remedy}") from exc


def tell_where(what: str, listeners: Iterable[trio.SocketListener]) -> None:
    """Say where `what` is served."""
    for listener in listeners:
        host, port = listener.socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        tell(f"{what} at http://{shown}:{port}/mcp")


async def drain_when_interrupted(
    interrupted: trio.Event, fabric: Fabric, grace: float, serving: trio.CancelScope,
    begun: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Drain once a signal came, then end what serves; `begun` is called before."""
    await interrupted.wait()
    begun()
    tell(f"draining for up to {grace:g} s; a second signal cancels")
    await fabric.drain(grace)
    serving.relative_deadline = LAST_WRITES
