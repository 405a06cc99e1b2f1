"""A server of the official SDK 1.x with what only legacy ones have, over HTTP; its URL is its first line.

That is pages to open before a call is run (-32042), a question that it withdraws, and a tool that it runs as a task.
"""

# mypy: ignore-errors
# Its imports are of another environment.
from __future__ import annotations

import contextlib
import socket
import sys
import warnings
from typing import TYPE_CHECKING

import anyio
import mcp.types as types
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import UrlElicitationRequiredError
from starlette.applications import Starlette
from starlette.routing import Mount

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

warnings.simplefilter("ignore")  # tasks are deprecated there too

server = Server("rare")
support = server.experimental.enable_tasks()
run_tasks, support.run = support.run, contextlib.nullcontext
"""Each session would end the tasks of all others when it ends: they are run once instead."""
NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
seen = set()


def text(value: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=value)])


@server.list_tools()
async def tools() -> list[types.Tool]:  # noqa: ASYNC124  # async by contract
    required = types.ToolExecution(taskSupport=types.TASK_REQUIRED)
    empty = {"type": "object"}
    return [
        types.Tool(name="page", inputSchema=empty),
        types.Tool(name="withdraw", inputSchema=empty),
        types.Tool(name="slow", inputSchema=empty, execution=required),
    ]


@server.call_tool()
async def call(name: str, arguments: dict) -> types.CallToolResult | types.CreateTaskResult:
    context = server.request_context
    if name == "page":
        who = arguments.get("who", "")
        if who not in seen:
            seen.add(who)
            page = types.ElicitRequestURLParams(
                mode="url", message="Sign in", url="https://example.org/in", elicitationId=f"e-{who}"
            )
            raise UrlElicitationRequiredError([page])
        return text("welcome")
    if name == "withdraw":
        return await withdraw(context)
    context.experimental.validate_task_mode(types.TASK_REQUIRED)

    async def work(task: object) -> types.CallToolResult:
        await task.update_status("asking")
        answer = await task.elicit(message="Name?", requestedSchema=NAME)
        return text(f"{answer.action} {(answer.content or {}).get('name')}")

    return await context.experimental.run_task(work)


async def withdraw(context: object) -> types.CallToolResult:
    """Ask, and withdraw that a moment later."""
    session = context.session
    id = session._request_id
    async with anyio.create_task_group() as group:

        async def ask() -> None:
            await session.elicit_form("Never mind?", NAME, related_request_id=context.request_id)

        group.start_soon(ask)
        await anyio.sleep(0.3)
        gone = types.CancelledNotification(params=types.CancelledNotificationParams(requestId=id))
        await session.send_notification(types.ServerNotification(gone), related_request_id=context.request_id)
        group.cancel_scope.cancel()
    return text("withdrawn")


if __name__ == "__main__":
    manager = StreamableHTTPSessionManager(app=server)

    @contextlib.asynccontextmanager
    async def lifespan(_app: object) -> AsyncGenerator[None, None]:
        async with run_tasks(), manager.run():
            yield

    application = Starlette(routes=[Mount("/mcp", app=manager.handle_request)], lifespan=lifespan)
    sock = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"http://127.0.0.1:{sock.getsockname()[1]}/mcp/\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(application, log_level="error")).run(sockets=[sock])
