"""WebSocket on the gateway's own port and path: HTTP hands the connection over, and it is served as a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from cord_trio.gateway.stdio_endpoint import serve_pipe
from cord_trio.gateway.steps import BAD_REQUEST, UNAVAILABLE
from cord_trio.transports import limits_of
from cord_trio.transports.http_rules import SUBPROTOCOL

if TYPE_CHECKING:
    from cord_trio.gateway.service import Service
    from cord_trio.transports.http1 import Headers
    from cord_trio.transports.http1_server import Request, Response

VERSION = "13"
"""Of the protocol; there is no other (RFC 6455, section 4.4)."""


def asks_websocket(request: Request) -> bool:
    """Whether a request asks for its connection to become a WebSocket."""
    headers = request.headers
    return (
        request.method == "GET"
        and "websocket" in _options(headers, "upgrade")
        and "upgrade" in _options(headers, "connection")
    )


async def serve_websocket(
    service: Service, request: Request, response: Response, *, max_message: int, principal: str
) -> None:
    """Serve the client on this connection until it leaves, or all is answered when draining.

    Whether it may come in was decided before, by Host, Origin and whatever else guards the path.
    """
    headers = request.headers
    offered = _options(headers, "sec-websocket-protocol")
    if headers.get("sec-websocket-version") != VERSION:
        response.send(426, (("Upgrade", "websocket"), ("Sec-WebSocket-Version", VERSION)))
    elif request.body or not headers.get("sec-websocket-key"):
        response.send(BAD_REQUEST, (("Content-Type", "text/plain"),), b"no opening of a WebSocket\n")
    elif offered and SUBPROTOCOL not in offered:
        response.send(BAD_REQUEST, (("Content-Type", "text/plain"),), b"the subprotocol here is mcp\n")
    elif service.draining:
        response.send(UNAVAILABLE, (("Content-Type", "text/plain"),), b"draining\n")
    else:
        await _serve(service, request, response, max_message, principal)


async def _serve(service: Service, request: Request, response: Response, max_message: int, principal: str) -> None:
    # Here, since what speaks the protocol takes long to import, and few use it.
    from cord_trio.transports.websocket_open import OpeningFailed, accept_websocket

    sock, rest = response.hand_over()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    service.counters.add("gateway.websockets")
    try:
        async with accept_websocket(
            stream, request, rest, name=f"client {request.client}", counters=service.counters, max_message=max_message
        ) as transport:
            transport.limits = limits_of(service.fabric.config.bounds)
            await serve_pipe(service, transport, principal)
    except OpeningFailed:
        service.counters.add("gateway.websockets_refused")


def _options(headers: Headers, name: str) -> list[str]:
    return [option.strip().lower() for option in ",".join(headers.all(name)).split(",") if option.strip()]
