"""A fabric without sources, and a client's side of HTTP and pipes without sockets."""

from __future__ import annotations

import json
import math
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import trio
import trio.testing
from msgspec import Raw

from cord_trio.call import Complete
from cord_trio.config import Bounds
from cord_trio.counters import Counters
from cord_trio.errors import Draining, ToolNotFound
from cord_trio.gateway.http_endpoint import HttpEndpoint
from cord_trio.gateway.service import Service
from cord_trio.gateway.stdio_endpoint import serve_pipe
from cord_trio.protocol.eras import NAME_MEMBER
from cord_trio.protocol.jsonrpc import Json, encode
from cord_trio.protocol.tools import Tool, decode_tools_page
from cord_trio.transports.http1 import Headers
from cord_trio.transports.http1_server import Request
from cord_trio.transports.memory import memory_transport_pair

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping

    from cord_trio.call import Call, Handler, Outcome
    from cord_trio.config import ProfileConfig
    from cord_trio.errors import CallError, ConnectionLost
    from cord_trio.routing import Elsewhere
    from cord_trio.transports.memory import MemoryTransport

    Answer = Callable[[Call], Awaitable[Outcome]]

IDENTITY = b'{"name":"gate","version":"1"}'
VERSION = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
SERVER_INFO = "io.modelcontextprotocol/serverInfo"
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
MODERN = "2026-07-28"
LATEST = "2025-11-25"
ENVELOPE: dict[str, Any] = {VERSION: MODERN, CAPABILITIES: {}}


@attrs.frozen
class Route:
    tool: Tool
    source: str = "fake"


@attrs.frozen
class Item:
    """A prompt, a resource or a template as a server lists it, for all kinds of routes at once."""

    members: Mapping[str, Json]
    named: str = "name"
    source: str = "fake"

    def encode(self, public: str, /) -> bytes:
        return encode({**self.members, self.named: public})

    @property
    def prompt(self) -> Item:
        return self

    resource = template = prompt


@attrs.frozen
class Greeting:
    capabilities: Mapping[str, Json] = {}
    instructions: str | None = None


@attrs.frozen
class SourceView:
    state: str = "ready"
    greeting: Greeting | None = None
    reason: str = ""
    next_try: float | None = None


@attrs.frozen
class Snapshot:
    version: int
    tools: Mapping[str, Route]
    sources: Mapping[str, SourceView] = {"fake": SourceView()}
    prompts: Mapping[str, Item] = {}
    resources: Mapping[str, Item] = {}
    templates: Mapping[str, Item] = {}


@attrs.frozen
class Settings:
    allowed_hosts: tuple[str, ...] = ("gate",)
    allowed_origins: tuple[str, ...] = ("https://app.example",)
    page_size: int = 1000
    sse: bool = False


@attrs.frozen
class Config:
    gateway: Settings = Settings()
    bounds: Bounds = attrs.field(factory=Bounds)
    profiles: Mapping[str, ProfileConfig] = {}


class FakeRegistry:
    def __init__(self) -> None:
        self.snapshot = Snapshot(0, {})
        self._changed = trio.Event()

    def publish(self, tools: Iterable[Tool]) -> None:
        self.change(tools={tool.name: Route(tool) for tool in tools})

    def change(
        self,
        tools: Mapping[str, Route] | None = None,
        prompts: Mapping[str, Item] | None = None,
        resources: Mapping[str, Item] | None = None,
        templates: Mapping[str, Item] | None = None,
    ) -> None:
        """The next snapshot: the same but for what is given."""
        old = self.snapshot
        self.snapshot = attrs.evolve(
            old,
            version=old.version + 1,
            tools=old.tools if tools is None else tools,
            prompts=old.prompts if prompts is None else prompts,
            resources=old.resources if resources is None else resources,
            templates=old.templates if templates is None else templates,
        )
        self._changed.set()
        self._changed = trio.Event()

    async def changed(self, since: int, /) -> Snapshot:
        while self.snapshot.version <= since:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        return self.snapshot


class FakeFabric:
    """Answers calls by functions of a name; remembers every call, and those that were cancelled."""

    def __init__(self, page_size: int = 1000, **answers: Answer) -> None:
        self.config = Config(Settings(page_size=page_size))
        self.elsewhere: Elsewhere | None = None
        self.brought: Callable[[Call], Awaitable[Outcome]] | None = None
        self.registry = FakeRegistry()
        self.counters = Counters()
        self.draining = trio.Event()
        self.started = trio.Event()
        self.started.set()
        self.answers = answers
        self.calls: list[Call] = []
        self.cancelled: list[str] = []
        self.abandoned: list[tuple[str, str]] = []
        self.subscribed: list[tuple[str, Callable[[str], None]]] = []
        self.registry.publish([tool(name) for name in answers])

    @property
    def ready(self) -> bool:
        return self.started.is_set()

    def start_unlisted(self) -> bool:
        return False

    async def wait_started(self) -> None:
        await self.started.wait()

    async def wait_pages(self, ids: Iterable[str], patience: float, call: Call | None = None, /) -> bool:
        await trio.sleep(patience)
        return False

    def trust(self, kind: str, /) -> float:
        return math.inf

    def hidden(self, kind: str, principal: str, /) -> frozenset[str]:
        return frozenset()

    async def wait_moot(self, park: str, /) -> None:
        await trio.sleep_forever()

    def abandon(self, park: str, reason: str, /) -> None:
        self.abandoned.append((park, reason))

    @contextmanager
    def holding(self) -> Generator[Handler, None, None]:
        yield self.handle

    @contextmanager
    def subscribe(
        self, principal: str, uris: Iterable[str], sink: Callable[[str], None]
    ) -> Generator[None, None, None]:
        """Remembers who wants to hear of what, as long as they do."""
        wanted = [(uri, sink) for uri in uris]
        self.subscribed += wanted
        try:
            yield
        finally:
            for each in wanted:
                self.subscribed.remove(each)

    def update(self, uri: str) -> None:
        """The resource has changed."""
        for wanted, sink in self.subscribed:
            if wanted == uri:
                sink(uri)

    async def handle(self, call: Call, /) -> Outcome:
        if self.draining.is_set():
            raise Draining
        assert call.name is not None
        self.calls.append(call)
        answer = self.answers.get(call.name)
        if answer is None:
            raise ToolNotFound(call.name, tuple(self.answers)[:1])
        try:
            return await answer(call)
        except trio.Cancelled:
            self.cancelled.append(call.name)
            raise


def tool(name: str, **members: object) -> Tool:
    """A tool as a server lists it."""
    value = {"name": name, "inputSchema": {"type": "object"}, **members}
    return decode_tools_page(encode({"tools": [value]})).tools[0]


def text(words: str, **members: object) -> Complete:
    """A plain result."""
    return Complete(Raw(encode({"content": [{"type": "text", "text": words}], **members})))


async def echo(call: Call) -> Outcome:
    """Answers with the arguments."""
    await trio.lowlevel.checkpoint()
    return text(bytes(call.params.get("arguments", Raw(b"{}"))).decode())


async def hang(call: Call) -> Outcome:
    """Never answers."""
    await trio.sleep_forever()
    raise AssertionError


def after(seconds: float) -> Answer:
    """Answers after a while."""

    async def answer(call: Call) -> Outcome:
        await trio.sleep(seconds)
        return text("late")

    return answer


def modern(
    id: object, method: str, params: Mapping[str, Any] | None = None, meta: Mapping[str, Any] | None = None
) -> bytes:
    """A modern request."""
    params = {**(params or {}), "_meta": {**ENVELOPE, **(meta or {})}}
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode()


def legacy(id: object, method: str, params: object = None) -> bytes:
    """A legacy request."""
    message = {"jsonrpc": "2.0", "id": id, "method": method}
    if params is not None:
        message["params"] = params
    return json.dumps(message).encode()


def notice(method: str, params: object = None) -> bytes:
    """A notification."""
    return json.dumps(
        {"jsonrpc": "2.0", "method": method} | ({"params": params} if params is not None else {})
    ).encode()


def initialize(id: object = 0, version: str = LATEST, capabilities: Mapping[str, Json] | None = None) -> bytes:
    """A legacy client's opening."""
    info = {"name": "client", "version": "1"}
    return legacy(
        id, "initialize", {"protocolVersion": version, "capabilities": capabilities or {}, "clientInfo": info}
    )


def answer(id: object, result: object = None, error: object = None) -> bytes:
    """A client's answer to a question."""
    return json.dumps(
        {"jsonrpc": "2.0", "id": id} | ({"result": result} if error is None else {"error": error})
    ).encode()


class Exchange:
    """One HTTP request as its client sees it; stands for a `Response`, too."""

    def __init__(self) -> None:
        self.status = 0
        self.fields: list[tuple[str, str]] = []
        self.body = b""
        self.started = self.ended = False
        self.congested = self.gone = self.outlives = False
        self.uncongested = trio.Event()
        self.uncongested.set()
        self.scope = trio.CancelScope()
        self.finished = trio.Event()

    def send(self, status: int, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> None:
        self.start(status, headers)
        self.body = body
        self.ended = True

    def start(self, status: int, headers: Iterable[tuple[str, str]] = ()) -> None:
        assert not self.started
        self.started = True
        self.status = status
        self.fields = list(headers)

    def write(self, data: bytes) -> None:
        assert self.started
        assert not self.ended
        self.body += data

    def end(self) -> None:
        assert self.started
        self.ended = True

    async def wait_uncongested(self) -> None:
        await self.uncongested.wait()

    def leave(self) -> None:
        """The client leaves."""
        self.gone = True
        if not self.outlives:
            self.scope.cancel("client left")

    def outlive(self, goes_on: bool) -> None:
        self.outlives = goes_on

    def field(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key.lower() == name.lower()), None)

    @property
    def json(self) -> Json:
        assert self.field("content-type") == "application/json"
        return json.loads(self.body)

    @property
    def events(self) -> list[Json]:
        assert self.field("content-type") == "text/event-stream"
        lines = self.body.decode().split("\n")
        return [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line[6:]]

    @property
    def ids(self) -> list[str]:
        """The ids of the events, in order."""
        return [line[4:] for line in self.body.decode().split("\n") if line.startswith("id: ")]

    @property
    def comments(self) -> int:
        return self.body.count(b":\n\n")


class HttpGate:
    """A gateway's HTTP endpoint, asked without sockets."""

    def __init__(self, service: Service, nursery: trio.Nursery, **more: Json) -> None:
        self.service = service
        self.endpoint = HttpEndpoint(
            service,
            nursery,
            **more,
            allowed_hosts=service.fabric.config.gateway.allowed_hosts,
            allowed_origins=service.fabric.config.gateway.allowed_origins,
        )
        self._nursery = nursery

    def start(self, method: str, path: str = "/mcp", body: bytes = b"", *more: tuple[str, str]) -> Exchange:
        """Send a request and do not wait."""
        exchange = Exchange()
        names = {name.lower() for name, _ in more}
        fields = [(name, value) for name, value in (("Host", "gate"),) if name.lower() not in names]
        if method == "POST" and "content-type" not in names:
            fields.append(("Content-Type", "application/json"))
        raw = [(name.encode(), value.encode("latin-1")) for name, value in (*fields, *more)]

        async def run() -> None:
            with exchange.scope:
                await self.endpoint.handle(
                    Request(method, path, Headers(raw), body, "test"),
                    exchange,  # type: ignore[arg-type]  # has the same shape
                )
            exchange.finished.set()

        self._nursery.start_soon(run)
        return exchange

    async def ask(self, method: str, path: str = "/mcp", body: bytes = b"", *more: tuple[str, str]) -> Exchange:
        """Send a request and wait for its end."""
        exchange = self.start(method, path, body, *more)
        await exchange.finished.wait()
        return exchange

    async def post(self, message: bytes, *more: tuple[str, str]) -> Exchange:
        return await self.ask("POST", "/mcp", message, *more)

    def modern_start(self, message: bytes, *more: tuple[str, str]) -> Exchange:
        """Send a modern request with the headers that its body asks for."""
        return self.start("POST", "/mcp", message, *headers_of(message), *more)

    async def modern(self, message: bytes, *more: tuple[str, str]) -> Exchange:
        exchange = self.modern_start(message, *more)
        await exchange.finished.wait()
        return exchange

    async def open(self, version: str = LATEST, capabilities: Mapping[str, Json] | None = None) -> tuple[str, str]:
        """Initialize; the session's header."""
        exchange = await self.post(initialize(version=version, capabilities=capabilities))
        id = exchange.field("mcp-session-id")
        assert id is not None
        return "Mcp-Session-Id", id


def headers_of(message: bytes) -> list[tuple[str, str]]:
    """The headers that repeat what a modern request says."""
    value = json.loads(message)
    fields = [("MCP-Protocol-Version", value["params"]["_meta"][VERSION]), ("Mcp-Method", value["method"])]
    member = NAME_MEMBER.get(value["method"])
    if member is not None and member in value["params"]:
        fields.append(("Mcp-Name", value["params"][member]))
    return fields


@asynccontextmanager
async def open_http(fabric: FakeFabric, **more: Json) -> AsyncGenerator[HttpGate, None]:
    """An endpoint for `fabric`; `more` as it takes it."""
    finished = False
    async with trio.open_nursery() as nursery:
        service = Service(fabric, IDENTITY, page=fabric.config.gateway.page_size)
        gate = HttpGate(service, nursery, **more)
        nursery.start_soon(service.watch)
        nursery.start_soon(gate.endpoint.keep_alive)
        yield gate
        finished = True
        nursery.cancel_scope.cancel("the test is over")
    assert finished, "something cancelled the gateway, and the test with it"


class PipeClient:
    """The client's end of a pipe; a `Receiver`."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self.got: list[Any] = []
        self.over = trio.Event()

    def feed(self, messages: Iterable[bytes], within: object = None, /) -> None:
        self.got += [json.loads(message) for message in messages]

    def fail(self, id: int | str, error: CallError, /) -> None:
        raise AssertionError

    def lost(self, error: ConnectionLost, /) -> None:
        self.over.set()

    def waits(self, id: int | str, /) -> bool:
        return False

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self.transport.send(message)

    async def ask(self, *messages: bytes) -> list[Any]:
        """Send, and return what came by the time that nothing moves."""
        self.got.clear()
        self.send(*messages)
        await trio.testing.wait_all_tasks_blocked(0.001)
        return list(self.got)


@asynccontextmanager
async def open_pipe(fabric: FakeFabric) -> AsyncGenerator[PipeClient, None]:
    """A pipe to a gateway for `fabric`."""
    finished = False
    ours, theirs = memory_transport_pair()
    async with trio.open_nursery() as nursery:
        service = Service(fabric, IDENTITY, page=fabric.config.gateway.page_size)
        client = PipeClient(theirs)

        async def serve(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()
            await serve_pipe(service, ours)
            ours.close()

        with ours, theirs:
            nursery.start_soon(service.watch)
            await nursery.start(serve)
            await nursery.start(theirs.run, client)
            yield client
            finished = True
            nursery.cancel_scope.cancel("the test is over")
    assert finished, "something cancelled the gateway, and the test with it"
