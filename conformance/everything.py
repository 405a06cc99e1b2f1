"""The SDK's own server for the suite: `everything.py [modern|legacy] http|stdio`; over HTTP it prints its URL.

Runs in the SDK's environment, with its source of the server on `PYTHONPATH`. `modern` and `legacy` refuse the other
era (SDK 1.x knows none but the legacy one).
"""

# mypy: ignore-errors
# Its imports are of another environment.
import json
import logging
import socket
import sys

logging.basicConfig(level=logging.ERROR, stream=sys.stderr)

from mcp_everything_server.server import mcp as server  # noqa: E402  # after logging is set up

if hasattr(server, "_mcp_server"):  # SDK 1.x, whose server has no tool that wants to know the roots
    from mcp.server.fastmcp import Context

    @server.tool()
    async def test_list_roots(context: Context) -> str:
        """Tells what the client's roots are."""
        return " ".join(str(root.uri) for root in (await context.session.list_roots()).roots)


REFUSED = {"modern": b'"initialize"', "legacy": b"io.modelcontextprotocol/protocolVersion"}


def refusing(inner, mark):
    """The application, which does not know the other era."""

    async def application(scope, receive, send):
        if scope["type"] != "http":
            return await inner(scope, receive, send)
        got, body = [], b""
        while True:
            message = await receive()
            got.append(message)
            body += message.get("body", b"")
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        if mark in body:
            error = {"code": -32601, "message": "method not found"}
            reply = json.dumps({"jsonrpc": "2.0", "id": json.loads(body).get("id"), "error": error}).encode()
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 404, "headers": headers})
            return await send({"type": "http.response.body", "body": reply})
        again = iter(got)

        async def receive_again():
            message = next(again, None)
            return await receive() if message is None else message

        return await inner(scope, receive_again, send)

    return application


def main(*words):
    if "stdio" in words:
        server.run(transport="stdio")
        return
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp\n")
    sys.stdout.flush()
    application = server.streamable_http_app()
    for era in ("modern", "legacy"):
        if era in words:
            application = refusing(application, REFUSED[era])
    uvicorn.Server(uvicorn.Config(application, log_level="error")).run(sockets=[listener])


main(*sys.argv[1:])
