"""A server with the tasks extension, made with FastMCP, over HTTP; its URL is its first line.

The official Python SDK 2.x has the seam for that extension alone; this package is built on it. One of its tools asks.
"""

# mypy: ignore-errors
# Its imports are of another environment.
from __future__ import annotations

import os
import socket
import sys
from datetime import timedelta

os.environ |= {"FASTMCP_SHOW_SERVER_BANNER": "false", "FASTMCP_LOG_LEVEL": "ERROR"}

import anyio  # after its settings
import uvicorn
from fastmcp import Context, FastMCP
from fastmcp.utilities.tasks import TaskConfig
from fastmcp_tasks import TasksExtension
from mcp.types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
ALONE = TaskConfig(mode="required", poll_interval=timedelta(milliseconds=50))

server = FastMCP("tasks")
server.add_extension(TasksExtension())


@server.tool(task=ALONE)
async def slow(text: str) -> str:
    """Gives its text back after a moment."""
    await anyio.sleep(0.1)
    return text


@server.tool(task=ALONE)
async def greet(context: Context) -> str | InputRequiredResult:  # noqa: ASYNC124  # async by contract
    """Asks for a name."""
    given = (context.input_responses or {}).get("name")
    if given is None:
        params = ElicitRequestFormParams(message="Name?", requested_schema=FORM)
        return InputRequiredResult(input_requests={"name": ElicitRequest(params=params)})
    return f"{given.action} {(given.content or {}).get('name')}"


@server.tool(task=ALONE)
async def stay() -> str:
    """Never ends by itself."""
    await anyio.sleep_forever()
    return "never"


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(server.http_app(), log_level="error")).run(sockets=[listener])
