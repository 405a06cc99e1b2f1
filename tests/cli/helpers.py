"""Servers and folders that the command line is tried on."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import trio

from cord_trio.testing import ToolServer

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    import pytest

    from cord_trio.protocol.jsonrpc import Json

Talk: TypeAlias = "Callable[[trio.abc.Stream], Awaitable[None]]"


def server(**options: Json) -> dict[str, Json]:
    """A bundled server, as people write it down."""
    command, *args = ToolServer(**options).command()
    return {"command": command, "args": args}


def script(code: str) -> dict[str, Json]:
    """A program that is no server, as people write it down."""
    return {"command": sys.executable, "args": ["-I", "-S", "-c", code]}


def configure(folder: Path, **servers: Json) -> None:
    """Put these servers into the folder's `.mcp.json`."""
    (folder / ".mcp.json").write_text(json.dumps({"mcpServers": servers}))


class Said:
    """What was printed so far, to wait for lines of it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.out = self.err = ""
        self._capsys = capsys

    def __call__(self) -> str:
        """All of it."""
        out, err = self._capsys.readouterr()
        self.out += out
        self.err += err
        return self.out + self.err

    async def wait_for(self, words: str) -> str:
        """The first line with these words, once it was printed."""
        await until(lambda: words in self())
        return next(line for line in self().splitlines() if words in line)


async def until(condition: Callable[[], object]) -> None:
    """Return once it holds."""
    while not condition():  # noqa: ASYNC110  # what another process does sets no event
        await trio.sleep(0.02)


def command_line(pid: int) -> list[str]:
    """The words that the process was started with; none if it is not there."""
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().split("\0")
    except OSError:
        return []


def waiting_child() -> subprocess.Popen[bytes]:
    """A process that ends once its stdin does."""
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)


def answer(status: str, *headers: str, body: bytes = b"") -> Talk:
    """An HTTP server that answers each request so."""

    async def talk(stream: trio.abc.Stream) -> None:
        while True:
            heard = b""
            while b"\r\n\r\n" not in heard:
                piece = await stream.receive_some()
                if not piece:
                    return
                heard += piece
            head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers, f"content-length: {len(body)}"))
            await stream.send_all(head.encode() + b"\r\n" + body)

    return talk


async def hang_up(stream: trio.abc.Stream) -> None:
    """A server that wants nobody."""
    await trio.lowlevel.checkpoint()


async def silence(stream: trio.abc.Stream) -> None:
    """A server that accepts, and says nothing."""
    await trio.sleep_forever()


async def chatter(stream: trio.abc.Stream) -> None:
    """A server of another protocol, which speaks first."""
    await stream.send_all(b"SSH-2.0-OpenSSH_9.6\r\n")
    await trio.sleep_forever()


@asynccontextmanager
async def listening(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncGenerator[str, None]:
    """The `host:port` of a local server that talks so."""

    async def handle(stream: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError):
            await talk(trio.SSLStream(stream, tls, server_side=True, https_compatible=True) if tls else stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel("the test is over")
