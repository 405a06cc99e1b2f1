"""A server of the official SDK 1.x over the transports that 2.x dropped: `ws`, `sse`, and `http` for comparison.

Prints the URL once it can be reached, as `sdk_server.py` does.
"""

# mypy: ignore-errors
# Its imports are of another environment.
from __future__ import annotations

import socket
import sys
import warnings

warnings.simplefilter("ignore")  # both transports are deprecated there too

import uvicorn  # noqa: E402  # after the filter
from mcp.server.fastmcp import Context, FastMCP  # noqa: E402
from mcp.server.transport_security import TransportSecuritySettings  # noqa: E402
from mcp.server.websocket import websocket_server  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.routing import Mount, WebSocketRoute  # noqa: E402
from starlette.websockets import WebSocket  # noqa: E402, TC002

server = FastMCP("sdk1", transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False))


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def long(size: int) -> str:
    """So many characters."""
    return "x" * size


@server.tool()
async def steps(context: Context) -> str:
    """Tell of progress three times."""
    for number in range(3):
        await context.report_progress(number + 1, 3)
    return "done"


async def websocket(ws: WebSocket) -> None:
    inner = server._mcp_server
    async with websocket_server(ws.scope, ws.receive, ws.send) as (reading, writing):
        await inner.run(reading, writing, inner.create_initialization_options())


KINDS = {
    "ws": ("ws", "/ws", lambda: Starlette(routes=[WebSocketRoute("/ws", websocket)])),
    "sse": ("http", "/a/b/sse", lambda: Starlette(routes=[Mount("/a/b", app=server.sse_app())])),
    "http": ("http", "/mcp", server.streamable_http_app),
}

if __name__ == "__main__":
    scheme, path, application = KINDS[sys.argv[1]]
    sock = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{scheme}://127.0.0.1:{sock.getsockname()[1]}{path}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(application(), log_level="warning")).run(sockets=[sock])
