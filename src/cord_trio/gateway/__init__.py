"""The fabric as an MCP server for any client, in both eras, over HTTP and stdio."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from cord_trio.gateway.profiles import PartOfFabric
from cord_trio.gateway.service import Service
from cord_trio.gateway.stdio_endpoint import serve_pipe
from cord_trio.protocol.jsonrpc import encode
from cord_trio.transports import limits_of
from cord_trio.transports.stdio_server import serve_stdio
from cord_trio.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cord_trio.config import Bounds
    from cord_trio.gateway.ports import Fabric, Lines
    from cord_trio.transports import Transport
    from cord_trio.transports.http1_server import HttpLimits

__all__ = ["serve_gateway"]

IDENTITY: Final = encode({"name": "cord_trio", "title": "cord_trio gateway", "version": __version__})
"""Our `serverInfo`."""


async def serve_gateway(
    fabric: Fabric,
    *,
    http: Sequence[trio.SocketListener] | None = None,
    stdio: bool = False,
    pipes: Sequence[Transport] = (),
    limits: HttpLimits | None = None,
    principal: Callable[[Lines], str | None] | None = None,
    leaving: trio.Event | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `fabric` to MCP clients until cancelled, or until all is answered after it began to drain.

    Without HTTP it also ends when the clients on stdio and pipes have left.

    Args:
        fabric: what answers calls.
        http: listeners; closed at the end.
        stdio: whether whoever started this process is a client, over stdin and stdout.
        pipes: further connections to one client each; each is closed by whoever opened it.
        limits: the bounds of HTTP; the configured ones if None.
        principal: tells from the header lines of an HTTP request who sends it, for whoever embeds the gateway
            behind a login of its own. Sessions, states, cursors and tasks belong to one principal each, and what a
            server asks reaches the one who called. None of it refuses the request. Without it, all who reach the
            gateway are one. Must not block.
        leaving: once set, another process accepts at the same listeners: here nothing is accepted any more, each answer
            ends its connection, and it returns when none is left.
        task_status: told once clients are served.

    """
    config = fabric.config.gateway
    service = Service(fabric, IDENTITY, page=config.page_size)
    profiles = {
        name: Service(PartOfFabric(fabric, profile), IDENTITY, page=config.page_size)
        for name, profile in fabric.config.profiles.items()
    }
    async with trio.open_nursery() as background:
        for each in (service, *profiles.values()):
            background.start_soon(each.watch)
        async with trio.open_nursery() as calls:
            async with trio.open_nursery() as serving:
                if http:
                    # Here, since they take a fifth of the start of `serve --stdio`, which needs them for nothing.
                    from cord_trio.gateway.http_endpoint import HttpEndpoint, everyone
                    from cord_trio.transports.http1_server import HttpLimits, serve_http

                    endpoint = HttpEndpoint(
                        service,
                        calls,
                        allowed_hosts=config.allowed_hosts,
                        allowed_origins=config.allowed_origins,
                        max_message=(limits or HttpLimits()).body,
                        sse=config.sse,
                        profiles=profiles,
                        principal=principal or everyone,
                    )
                    background.start_soon(endpoint.keep_alive)
                    await serving.start(
                        partial(
                            serve_http,
                            endpoint.handle,
                            http,
                            limits=limits or _limits(fabric.config.bounds),
                            draining=fabric.draining,
                            leaving=leaving,
                            counters=fabric.counters,
                        )
                    )
                for pipe in pipes:
                    serving.start_soon(serve_pipe, service, pipe)
                if stdio:
                    serving.start_soon(_serve_stdio, service)
                task_status.started()
        background.cancel_scope.cancel("the gateway has ended")


async def _serve_stdio(service: Service) -> None:
    bounds = service.fabric.config.bounds
    async with serve_stdio(counters=service.counters, max_message=bounds.message_in) as transport:
        transport.limits = limits_of(bounds)
        await serve_pipe(service, transport)


def _limits(bounds: Bounds) -> HttpLimits:
    from cord_trio.transports.http1_server import HttpLimits

    return HttpLimits(
        connections=bounds.http_connections,
        head=bounds.http_head,
        headers=bounds.http_headers,
        head_time=bounds.http_head_time,
        body=bounds.message_in,
        idle=bounds.http_idle,
        outbox=bounds.http_outbox,
    )
