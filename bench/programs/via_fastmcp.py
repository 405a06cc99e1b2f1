"""FastMCP's client."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib.metadata import version

from fastmcp import Client as FastClient
from fastmcp.client.transports import StdioTransport
from runtime import Client, open_each

MODES = {"auto": "auto", "legacy": "legacy", "modern": "2026-07-28"}


def versions():
    return {"fastmcp": version("fastmcp"), "mcp": version("mcp")}


def open_clients(runtime, sources, *, era, in_flight):
    @asynccontextmanager
    async def open_one(source):
        server = source.get("url")
        if server is None:
            command, *args = source["command"]
            server = StdioTransport(command=command, args=args, keep_alive=False)
        async with FastClient(server, mode=MODES[era]) as client:

            async def echo(text):
                result = await client.call_tool("echo", {"msg": text})
                return result.content[0].text

            async def stats():
                return (await client.call_tool("stats", {})).content[0].text

            await client.list_tools()
            yield Client(echo, stats)

    return open_each(runtime, sources, open_one)
