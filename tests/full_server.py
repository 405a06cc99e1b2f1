"""A scripted server of either era with everything that MCP has, in this process, and fully under a test's control."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import trio
import trio.testing

from cord_trio.config import InProcess
from cord_trio.errors import ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cord_trio.errors import CallError
    from cord_trio.transports.memory import MemoryTransport

Json: TypeAlias = Any
PREFIX = "io.modelcontextprotocol/"

CAPABILITIES: Json = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"listChanged": True, "subscribe": True},
    "completions": {},
    "logging": {},
}


class FullServer:
    """One server; `connections` has one entry for each time that it was connected.

    Attributes:
        tools: by name, each from a `Request` to a result, or None if it answers later by itself.
        got: every message, in order, over all connections.

    """

    def __init__(self, *, modern: bool = False, revision: str = "2025-11-25", capabilities: Json = None) -> None:
        self.modern = modern
        self.revision = revision
        self.capabilities: Json = CAPABILITIES if capabilities is None else capabilities
        self.tools: dict[str, Callable[[Request], Json]] = {
            "echo": lambda request: text(request.arguments.get("t", ""))
        }
        self.prompts: list[Json] = [{"name": "greet", "title": "Greet", "x": 1.0}]
        self.resources: list[Json] = [{"uri": "file:///a", "name": "a", "mimeType": "text/plain"}]
        self.templates: list[Json] = [{"uriTemplate": "file:///{path}", "name": "files"}]
        self.answers: dict[str, Callable[[Request], Json]] = {}
        self.got: list[Json] = []
        self.connections: list[Connection] = []

    def source(self, name: str = "x", **more: Json) -> InProcess:
        fields: Json = {"era": "modern" if self.modern else "legacy", **more}
        return InProcess(name=name, serve=self.serve, **fields)

    async def serve(self, transport: MemoryTransport) -> None:
        connection = Connection(self, transport)
        self.connections.append(connection)
        try:
            with transport:
                await transport.run(connection)
        finally:
            connection.over = True

    def sent(self, method: str) -> list[Json]:
        """The parameters of what came of `method`."""
        return [message.get("params") for message in self.got if message.get("method") == method]


class Request:
    """One request of the client."""

    def __init__(self, connection: Connection, message: Json) -> None:
        self.connection = connection
        self.id = message["id"]
        self.method: str = message["method"]
        self.params: Json = message.get("params") or {}
        self.arguments: Json = self.params.get("arguments") or {}

    def answer(self, result: Json) -> None:
        if self.connection.modern:
            result = {"resultType": "complete"} | result
        self.connection.send({"id": self.id, "result": result})

    def fail(self, code: int, message: str, data: Json = None) -> None:
        error = {"code": code, "message": message} | ({} if data is None else {"data": data})
        self.connection.send({"id": self.id, "error": error})

    def progress(self, progress: float) -> None:
        token = self.params.get("_meta", {}).get("progressToken")
        self.connection.tell("notifications/progress", {"progressToken": token, "progress": progress})

    def ask(self, method: str, params: Json, then: Callable[[Json], None]) -> str:
        """Ask the client; `then` gets the whole reply."""
        return self.connection.ask(method, params, then)


class Connection:
    """One connection; its Receiver."""

    def __init__(self, server: FullServer, transport: MemoryTransport) -> None:
        self.server = server
        self.transport = transport
        self.capabilities: Json = None
        self.modern = server.modern
        self.listening: dict[Json, Json] = {}
        self.subscribed: set[str] = set()
        self.cancelled: list[Json] = []
        self.open: dict[Json, Request] = {}
        self.waiting: dict[str, Callable[[Json], None]] = {}
        self.over = False
        self._asked = 0

    def send(self, message: Json) -> None:
        self.open.pop(message.get("id"), None)
        with suppress(ConnectionLost):
            self.transport.send(json.dumps({"jsonrpc": "2.0", **message}).encode())

    def tell(self, method: str, params: Json = None) -> None:
        if self.modern and method.endswith(("list_changed", "resources/updated")):
            for id in self.listening:
                meta = {"_meta": {PREFIX + "subscriptionId": id}}
                self.send({"method": method, "params": {**(params or {}), **meta}})
            return
        self.send({"method": method} | ({} if params is None else {"params": params}))

    def ask(self, method: str, params: Json, then: Callable[[Json], None]) -> str:
        self._asked += 1
        id = f"ask-{len(self.server.connections)}-{self._asked}"
        self.waiting[id] = then
        self.send({"id": id, "method": method, "params": params})
        return id

    def withdraw(self, id: str) -> None:
        """No longer want the answer to a question."""
        self.waiting.pop(id, None)
        self.tell("notifications/cancelled", {"requestId": id})

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        for message in map(json.loads, messages):
            self.server.got.append(message)
            if "method" not in message:
                then = self.waiting.pop(message["id"], None)
                if then is not None:
                    then(message)
            elif "id" in message:
                request = self.open[message["id"]] = Request(self, message)
                self._requested(request)
            elif message["method"] == "notifications/cancelled":
                id = message["params"]["requestId"]
                self.cancelled.append(id)
                self.listening.pop(id, None)
                self.open.pop(id, None)

    def _requested(self, request: Request) -> None:
        server, method, params = self.server, request.method, request.params
        if method == "initialize":
            self.modern = False
        if method in server.answers:
            result = server.answers[method](request)
            if result is not None:
                request.answer(result)
        elif method == "server/discover" and self.modern:
            request.answer({"supportedVersions": ["2026-07-28"], "capabilities": server.capabilities})
        elif method == "initialize" and not self.modern:
            self.capabilities = params["capabilities"]
            info = {"name": "full", "version": "1"}
            request.answer(
                {"protocolVersion": server.revision, "capabilities": server.capabilities, "serverInfo": info}
            )
        elif method == "tools/list":
            request.answer({"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in server.tools]})
        elif method == "prompts/list":
            request.answer({"prompts": server.prompts})
        elif method == "resources/list":
            request.answer({"resources": server.resources})
        elif method == "resources/templates/list":
            request.answer({"resourceTemplates": server.templates})
        elif method == "tools/call" and params["name"] in server.tools:
            result = server.tools[params["name"]](request)
            if result is not None:
                request.answer(result)
        elif method == "prompts/get":
            request.answer({"messages": [{"role": "user", "content": {"type": "text", "text": params["name"]}}]})
        elif method == "resources/read":
            request.answer({"contents": [{"uri": params["uri"], "text": "read"}]})
        elif method == "completion/complete":
            request.answer({"completion": {"values": [json.dumps(params["ref"])]}})
        elif method == "resources/subscribe" and not self.modern:
            self.subscribed.add(params["uri"])
            request.answer({})
        elif method == "resources/unsubscribe" and not self.modern:
            self.subscribed.discard(params["uri"])
            request.answer({})
        elif method == "logging/setLevel" and not self.modern:
            request.answer({})
        elif method == "subscriptions/listen" and self.modern:
            self.listening[request.id] = params["notifications"]
            meta = {"_meta": {PREFIX + "subscriptionId": request.id}}
            self.send({"method": "notifications/subscriptions/acknowledged", "params": params | meta})
            self.open[request.id] = request
        else:
            request.fail(-32601, f"no method {method}")

    def fail(self, id: int | str, error: CallError, /) -> None:
        """Nothing to do."""

    def lost(self, error: ConnectionLost, /) -> None:
        self.over = True

    def waits(self, id: int | str, /) -> bool:
        return False


def text(value: str, **more: Json) -> Json:
    return {"content": [{"type": "text", "text": value}], **more}


async def settled() -> None:
    """Let everything happen that can happen now."""
    await trio.testing.wait_all_tasks_blocked()
