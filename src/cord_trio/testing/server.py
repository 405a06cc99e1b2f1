"""`ToolServer`: a scripted MCP server of both eras, in this process, as a child process, or over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import trio

from cord_trio.config.values import Http, InProcess, Stdio
from cord_trio.errors import ConnectionLost, Overloaded
from cord_trio.testing.conversation import Conversation
from cord_trio.testing.http_tool_server import HttpOptions
from cord_trio.testing.script import Options, World
from cord_trio.transports.memory import memory_transport_pair

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from cord_trio.errors import CallError
    from cord_trio.testing.wire import FaultyTransport
    from cord_trio.transports.memory import MemoryTransport

Json: TypeAlias = Any
T = TypeVar("T")

FOLDER = Path(__file__).parent
STOP_GRACE = 5.0
"""Seconds in which a killed HTTP server must be gone."""


class Exited(BaseException):
    """The server in this process would have ended here. Derived so that no tool's failure handling takes it."""

    def __init__(self, status: int, signal_number: int) -> None:
        super().__init__(status, signal_number)
        self.status = status
        self.signal_number = signal_number

    def __str__(self) -> str:
        how = f"(signal {self.signal_number})" if self.signal_number else f"with status {self.status}"
        return f"server exited {how}"


class MemoryWorld(World):
    """The world of a server in this process: nothing outside is touched."""

    def __init__(self, options: Options, functions: Mapping[str, Callable[[Json], object]]) -> None:
        super().__init__(options, functions)
        self.stderr = b""

    def exit(self, status: int, signal_number: int = 0) -> None:
        raise Exited(status, signal_number)

    def write_stderr(self, data: bytes) -> None:
        self.stderr += data

    def spawn(self, detached: bool) -> int:
        raise OSError("a server in this process starts no other")


class ToolServer:
    """A scripted MCP server for tests: tools that wait, fail, report and flood, and faults to order.

    What it does is said by keyword, each an attribute of `cord_trio.testing.script.Options`, such as
    `ToolServer(era="legacy", slow=0.5)`. Its tools are those of `script.TOOLS`, and `functions`. Faults of
    bytes and processes (`crlf`, `stderr`, `ignore_eof`, `ignore_term`, `no_newline_flood`) show only in a child.

    Attributes:
        received: requests and notifications by method, and calls as `call <tool>`; in this process only.
        lines: every message received, as it came; in this process only.

    """

    def __init__(self, functions: Mapping[str, Callable[[Json], object]] | None = None, **options: Json) -> None:
        """Args are further tools, each from its arguments to a text or JSON value, and the options."""
        self.options = Options(**options)
        self.functions = dict(functions or {})
        self.world = MemoryWorld(self.options, self.functions)
        self.lines: list[bytes] = []
        self._open: set[MemoryTransport | FaultyTransport] = set()

    @property
    def received(self) -> Mapping[str, int]:
        return self.world.received

    @property
    def cancelled(self) -> int:
        """Requests that were withdrawn while they ran."""
        return self.world.cancelled

    def anew(self) -> ToolServer:
        """Another server with the same options and functions, to which nothing has happened yet."""
        return ToolServer(self.functions, **vars(self.options))

    def command(self) -> tuple[str, ...]:
        """The command line that runs this server as a child; without `functions`, which no command line can hold."""
        if self.functions:
            raise ValueError("a server with functions of this process cannot be another process")
        return (sys.executable, "-I", "-S", str(FOLDER / "tool_server.py"), *self.options.arguments())

    def source(self, **common: Json) -> Stdio:
        """The server as a child process, for a configuration; `common` are fields of `Stdio`."""
        command, *args = self.command()
        fields: Json = {"name": self.options.name, **common}
        return Stdio(command=command, args=tuple(args), **fields)

    def in_process(self, **common: Json) -> InProcess:
        """The server in this process, for a configuration; `common` are fields of `InProcess`."""
        fields: Json = {"name": self.options.name, **common}
        return InProcess(serve=self.serve, **fields)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[MemoryTransport]:
        """The client's end of a new connection to this server, which serves it until the block ends."""
        ours, its = memory_transport_pair()
        with ours:
            async with _serving(partial(self.serve, its)):
                yield ours

    async def serve(
        self,
        transport: MemoryTransport | FaultyTransport,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer on `transport` until the client leaves, the script says exit, or this is cancelled."""
        carrier = _Carrier(self, transport)
        self._open.add(transport)
        try:
            with transport:
                async with trio.open_nursery() as nursery:
                    carrier.stop = nursery.cancel_scope.cancel
                    nursery.start_soon(carrier.keep_time)
                    await nursery.start(transport.run, carrier)
                    task_status.started()
                    carrier.begin()
        finally:
            self._open.discard(transport)

    def break_connections(self, reason: str = "server exited (signal 9)") -> None:
        """Lose every connection in this process, as if the server had died."""
        for transport in list(self._open):
            transport.lose(reason)


class _Carrier:
    """Carries a conversation over a transport; its Receiver."""

    def __init__(self, server: ToolServer, transport: MemoryTransport | FaultyTransport) -> None:
        self._server = server
        self._conversation = Conversation(server.world)
        self._transport = transport
        self._backlog: deque[bytes] = deque()
        self._sleep = trio.CancelScope()
        self.stop: Callable[[str], None] = self._sleep.cancel

    def begin(self) -> None:
        """What the server does before it is asked anything."""
        options = self._server.options
        if options.exit_at_start:
            self._exit(Exited(options.exit_status, 0))
        elif options.banner:
            self._send([options.banner.encode()])

    def feed(self, messages: Sequence[bytes], within: int | str | None = None, /) -> None:
        self._server.lines += messages
        try:
            for message in messages:
                self._send(self._conversation.answer(message, trio.current_time()))
        except Exited as exc:
            self._exit(exc)
            return
        self._sleep.deadline = self._conversation.next_due

    def fail(self, id: int | str, error: CallError, /) -> None:
        """Nothing to do: this server's own questions may stay open."""

    def lost(self, error: ConnectionLost, /) -> None:
        self.stop(f"connection lost: {error.reason}")

    async def keep_time(self) -> None:
        """Send what is due when it is due, and what did not fit once it does."""
        while True:
            self._sleep = trio.CancelScope(deadline=self._conversation.next_due)
            with self._sleep:
                if self._backlog:
                    await self._transport.wait_uncongested()
                else:
                    await trio.sleep_forever()
            self._send(self._conversation.due(trio.current_time(), congested=bool(self._backlog)))

    def _send(self, messages: list[bytes]) -> None:
        self._backlog += messages
        try:
            while self._backlog:
                self._transport.send(self._backlog[0])
                self._backlog.popleft()
        except Overloaded as exc:
            if self._transport.congested:
                self._sleep.cancel("a backlog to look after")
            else:
                self._transport.lose(f"message beyond {exc.bound}")
        except ConnectionLost as exc:
            self._backlog.clear()
            self.lost(exc)

    def _exit(self, exited: Exited) -> None:
        self._transport.lose(str(exited))
        self.stop(str(exited))


class HttpToolServer:
    """A scripted MCP server over HTTP, running as a child process.

    Attributes:
        url: its endpoint.

    """

    def __init__(self, url: str, record: Path) -> None:
        self.url = url
        self._record = record

    def source(self, **common: Json) -> Http:
        """The server for a configuration; `common` are fields of `Http`."""
        fields: Json = {"name": "http", **common}
        return Http(url=self.url, **fields)

    def records(self) -> list[dict[str, Json]]:
        """What it met, in order: requests (method, path, headers, body), and ids whose client left (left)."""
        return [json.loads(line) for line in self._record.read_bytes().splitlines()]


@asynccontextmanager
async def open_http_tool_server(**options: Json) -> AsyncGenerator[HttpToolServer]:
    """A scripted MCP server over HTTP; `options` are attributes of `HttpOptions` in `http_tool_server`."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record"
        arguments = HttpOptions(**({"record": str(record)} | options)).arguments()
        command = [sys.executable, "-I", "-S", str(FOLDER / "http_tool_server.py"), *arguments]
        run = partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False)
        async with _serving(run) as process:
            url = b""
            while not url.endswith(b"\n"):
                url += await process.stdout.receive_some()
            try:
                yield HttpToolServer(url.decode().strip(), record)
            finally:
                process.kill()
                with trio.move_on_after(STOP_GRACE, shield=True):
                    await process.wait()


@asynccontextmanager
async def _serving(run: Callable[..., Any]) -> AsyncGenerator[Json]:
    """`run` beside the block, and what it says when it has started; an error of the block comes out bare."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        started = await nursery.start(run)
        try:
            yield started
        except Exception as exc:  # raised again below, outside the nursery, which would wrap it in a group
            failure = exc
        nursery.cancel_scope.cancel("the block has ended")
    if failure is not None:
        raise failure
