"""The official Python SDK's client, 2.x, on Trio or asyncio."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib.metadata import version

from mcp import Client as SdkClient
from mcp import StdioServerParameters
from runtime import Client, open_each

MODES = {"auto": "auto", "legacy": "legacy", "modern": "2026-07-28"}


def versions():
    return {"mcp": version("mcp")}


def open_clients(runtime, sources, *, era, in_flight):
    @asynccontextmanager
    async def open_one(source):
        server = source.get("url")
        if server is None:
            command, *args = source["command"]
            server = StdioServerParameters(command=command, args=args)
        async with SdkClient(server, mode=MODES[era]) as client:

            async def echo(text):
                result = await client.call_tool("echo", {"msg": text})
                return result.content[0].text

            async def stats():
                return (await client.call_tool("stats", {})).content[0].text

            await client.list_tools()
            yield Client(echo, stats)

    return open_each(runtime, sources, open_one)
