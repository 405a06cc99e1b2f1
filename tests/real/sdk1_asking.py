"""A server of the official SDK 1.x whose tools ask: run by the Python of `CORD_TRIO_SDK1`, over stdio or HTTP.

Over HTTP its URL is its first line.
"""

# mypy: ignore-errors
# Its imports are of another environment.
from __future__ import annotations

import asyncio
import os
import socket
import sys

from mcp.server.fastmcp import Context, FastMCP
from mcp.types import Completion, CompletionArgument, SamplingMessage, TextContent
from pydantic import BaseModel

server = FastMCP("asking")
sessions = []


class Name(BaseModel):
    name: str


@server.tool()
async def elicit(ctx: Context) -> str:
    answer = await ctx.elicit("Name?", Name)
    return f"{answer.action} {answer.data.name if answer.action == 'accept' else ''}"


@server.tool()
async def twice(ctx: Context) -> str:
    first = await ctx.elicit("First?", Name)
    second = await ctx.elicit("Second?", Name)
    return f"{first.data.name} {second.data.name}"


@server.tool()
async def whose(ctx: Context) -> str:
    """By which process and session it is called, and who is there."""
    if ctx.session not in sessions:
        sessions.append(ctx.session)
    answer = await ctx.elicit("Name?", Name)
    return f"{os.getpid()}.{sessions.index(ctx.session)} {answer.data.name if answer.action == 'accept' else ''}"


@server.tool()
async def sample(ctx: Context) -> str:
    message = SamplingMessage(role="user", content=TextContent(type="text", text="hi"))
    answer = await ctx.session.create_message([message], max_tokens=10)
    return answer.content.text


@server.tool()
async def roots(ctx: Context) -> str:
    return " ".join(str(root.uri) for root in (await ctx.session.list_roots()).roots)


@server.tool()
async def slow(ctx: Context) -> str:
    await asyncio.sleep(100)
    return "done"


@server.prompt()
def greet(name: str) -> str:
    return f"Greet {name}"


@server.resource("note://one")
def one() -> str:
    return "first note"


@server.resource("note://{number}/page")
def page(number: str) -> str:
    return f"page of {number}"


@server.completion()
async def complete(ref: object, argument: CompletionArgument, context: object) -> Completion:  # noqa: ASYNC124  # async by contract
    return Completion(values=[f"{argument.name}={argument.value}!", type(ref).__name__])


if sys.argv[1] == "http":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server.settings.port = free.getsockname()[1]
    sys.stdout.write(f"http://127.0.0.1:{server.settings.port}/mcp\n")
    sys.stdout.flush()
    server.run("streamable-http")
else:
    server.run()
