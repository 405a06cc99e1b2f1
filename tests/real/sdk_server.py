"""A server made with the official Python SDK, for both transports: `sdk_server.py stdio|http RECORD`.

It appends what it lives through to RECORD, one word a line; over HTTP its first line on stdout is its URL.
"""

from __future__ import annotations

import socket
import sys
from typing import Annotated

import anyio
from mcp.server import CacheHint, MCPServer
from mcp.server.mcpserver import Context  # noqa: TC002  # the SDK reads the annotation
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp.types import (
    AudioContent,
    Completion,
    CompletionArgument,
    CompletionContext,
    ElicitRequest,
    ElicitRequestURLParams,
    ElicitResult,
    EmptyResult,
    InputRequiredResult,
    ListPromptsResult,
    ListRootsRequest,
    ListRootsResult,
    PaginatedRequestParams,
    Prompt,
    ResourceLink,
    SubscribeRequestParams,
)
from pydantic import Field

PROMPTS = 31
PAGE = 8
"""Of those at a time."""

HINT = CacheHint(ttl_ms=60_000, scope="public")
server = MCPServer("sdk", version="1", log_level="WARNING", cache_hints={"resources/read": HINT})


def record(what: str) -> None:
    with open(sys.argv[2], "a") as file:
        file.write(what + "\n")


@server.tool(structured_output=False)
def echo(text: str) -> str:
    """Gives its text back."""
    return text


@server.tool()
def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


@server.tool(structured_output=False)
def big(size: int) -> str:
    """A text of this many bytes."""
    return "x" * size


@server.tool(structured_output=False)
def fail(text: str) -> str:
    """Fails as tools do."""
    raise ToolError(text)


@server.tool(structured_output=False)
def error(code: int) -> str:
    """Fails as the protocol does."""
    raise MCPError(code, "as you wished", {"wish": code})


@server.tool(structured_output=False)
async def hang(label: str) -> str:
    """Never ends by itself."""
    record(f"started-{label}")
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        record(f"cancelled-{label}")
        raise
    return "never"


@server.tool(structured_output=False)
async def wait(seconds: float) -> str:
    """Answers after some seconds."""
    record(f"waiting-{seconds:g}")
    await anyio.sleep(seconds)
    return "waited"


@server.tool(structured_output=False)
async def steps(many: int, context: Context) -> str:
    """Tells of steps."""
    for step in range(1, many + 1):
        await context.report_progress(step, many, f"step {step}")
    return f"{many} steps"


@server.tool(structured_output=False)
async def grow(name: str, context: Context) -> str:
    """Adds a tool, and says so."""
    server.add_tool(echo, name=name, structured_output=False)
    await context.notify_tools_changed()
    if (context.protocol_version or "") < "2026":
        await context.session.send_tool_list_changed()
    return name


@server.resource("note://one")
def note() -> str:
    """One note."""
    return "a note"


@server.resource("note://{number}")
def numbered(number: str) -> str:
    """Other notes."""
    return f"note {number}"


@server.tool(structured_output=False)
async def touch(context: Context) -> str:
    """Says that the note has changed."""
    await context.notify_resource_updated("note://one")
    if (context.protocol_version or "") < "2026":
        await context.session.send_resource_updated("note://one")
    return "touched"


@server.tool(structured_output=False)
def blocks() -> list[AudioContent | ResourceLink]:
    """A block of each type that 2024-11-05 does not have."""
    link = ResourceLink(type="resource_link", name="page", uri="ui://app/page")
    return [AudioContent(type="audio", data="AAAA", mime_type="audio/wav"), link]


@server.resource("ui://app/page", mime_type="text/html;profile=mcp-app")
def page() -> str:
    """An App's page."""
    return "<p>app</p>"


@server.tool(structured_output=False, meta={"ui": {"resourceUri": "ui://app/page"}})
def app() -> str:
    """Has a page."""
    return "app"


@server.tool(structured_output=False)
async def visit(context: Context) -> str | InputRequiredResult:
    """Wants a page to be opened."""
    if (context.protocol_version or "") < "2026":
        return (await context.elicit_url("Sign in", "https://example.org/in", "e-1")).action
    given = (context.input_responses or {}).get("page")
    if isinstance(given, ElicitResult):
        return given.action
    params = ElicitRequestURLParams(message="Sign in", url="https://example.org/in")
    return InputRequiredResult(input_requests={"page": ElicitRequest(params=params)})


@server.tool(structured_output=False)
async def where(context: Context) -> str | InputRequiredResult:
    """Wants to know the roots."""
    if (context.protocol_version or "") < "2026":
        return str((await context.session.list_roots()).roots[0].uri)
    given = (context.input_responses or {}).get("roots")
    if isinstance(given, ListRootsResult):
        return str(given.roots[0].uri)
    return InputRequiredResult(input_requests={"roots": ListRootsRequest()})


@server.tool(structured_output=False)
async def headers(
    label: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Label"})],  # it comes as a header
    context: Context,
) -> str:
    """Which headers its request had that repeat what is in it; in the legacy eras after a ping."""
    if (context.protocol_version or "") < "2026":
        await context.session.send_ping()
    request = context.request_context.request
    assert request is not None  # it is a server over HTTP
    told = request.headers
    return " ".join(f"{name}={told[name]}" for name in ("mcp-method", "mcp-name", "mcp-param-label") if name in told)


async def prompts(_context: object, params: PaginatedRequestParams | None) -> ListPromptsResult:  # noqa: ASYNC124  # async by contract
    first = int((params and params.cursor) or 0)
    last = min(first + PAGE, PROMPTS)
    found = [Prompt(name=f"p{number:04}") for number in range(first, last)]
    return ListPromptsResult(prompts=found, next_cursor=str(last) if last < PROMPTS else None)


@server.completion()  # type: ignore[no-untyped-call, untyped-decorator]  # the SDK does not say
async def complete(ref: object, argument: CompletionArgument, context: CompletionContext | None) -> Completion:  # noqa: ASYNC124  # async by contract
    before = (context and context.arguments) or {}
    return Completion(values=[f"{argument.value}{each}" for each in "ab"] + sorted(before.values()))


async def subscribed(_context: object, params: SubscribeRequestParams) -> EmptyResult:  # noqa: ASYNC124  # async by contract  # noqa: ASYNC124  # async by contract
    record(f"subscribed-{params.uri}")
    return EmptyResult()


server._lowlevel_server.add_request_handler("prompts/list", PaginatedRequestParams, prompts)
server._lowlevel_server.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribed)


def main() -> None:
    if sys.argv[1] == "stdio":
        server.run("stdio")
        return
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp\n")
    sys.stdout.flush()
    app = server.streamable_http_app(host="127.0.0.1")
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main()
