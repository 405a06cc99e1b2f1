"""A client of the official SDK 1.x: `sdk1_client.py ws|sse|http URL TOOL ARGUMENTS`; prints what it found as JSON."""

# mypy: ignore-errors
# Its imports are of another environment.
from __future__ import annotations

import json
import sys
import warnings

warnings.simplefilter("ignore")  # both transports are deprecated there too

import anyio  # noqa: E402  # after the filter
from mcp import ClientSession  # noqa: E402
from mcp.client.sse import sse_client  # noqa: E402
from mcp.client.streamable_http import streamablehttp_client  # noqa: E402
from mcp.client.websocket import websocket_client  # noqa: E402

KINDS = {"ws": websocket_client, "sse": sse_client, "http": streamablehttp_client}


async def main(kind: str, url: str, tool: str, arguments: str) -> None:
    progress: list[float] = []

    async def told(done: float, total: float | None, message: str | None) -> None:  # noqa: ASYNC124  # async by contract
        progress.append(done)

    async with KINDS[kind](url) as (reading, writing, *_), ClientSession(reading, writing) as session:
        greeting = await session.initialize()
        tools = await session.list_tools()
        result = await session.call_tool(tool, json.loads(arguments), progress_callback=told)
        await session.send_ping()
        found = {
            "revision": greeting.protocolVersion,
            "server": greeting.serverInfo.name,
            "tools": [one.name for one in tools.tools],
            "text": result.content[0].text,
            "progress": progress,
        }
        sys.stdout.write(json.dumps(found) + "\n")


anyio.run(main, *sys.argv[1:])
