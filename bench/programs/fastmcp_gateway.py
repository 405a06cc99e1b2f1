"""FastMCP's proxy over one connected client ("reuse"): `fastmcp_gateway.py PORT SOURCES`, SOURCES in JSON.

The documented default opens every backend anew for each request, which with 50 servers takes a second a call.
"""

from __future__ import annotations

import asyncio
import json
import sys

from fastmcp import Client
from fastmcp.server import create_proxy


async def main():
    port, sources = int(sys.argv[1]), json.loads(sys.argv[2])
    servers = {s["name"]: {"command": s["command"][0], "args": s["command"][1:]} for s in sources}
    async with Client({"mcpServers": servers}) as client:
        proxy = create_proxy(client)
        await proxy.run_http_async(host="127.0.0.1", port=port, path="/mcp", show_banner=False, log_level="error")


asyncio.run(main())
