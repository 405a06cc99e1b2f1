"""Starting real servers and clients, and waiting for what they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from cord_trio.config import Stdio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

SDK_SERVER = str(Path(__file__).with_name("sdk_server.py"))
SCRIPTS = Path(sys.executable).parent
"""Where the console scripts of installed servers are."""


class Record:
    """A file that an SDK server writes down what it lives through in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @property
    def words(self) -> list[str]:
        return self.path.read_text().split()

    async def wait_for(self, word: str) -> None:
        await until(lambda: word in self.words)


Json: TypeAlias = Any

START = 60.0
"""Seconds in which any program of an SDK starts, whatever else the machine does."""


async def until(true: Callable[[], object]) -> None:
    """Return once something of another process is so."""
    while not true():  # noqa: ASYNC110  # another process tells by no event
        await trio.sleep(0.01)


def sdk_over_stdio(name: str, record: Record, **common: Json) -> Stdio:
    """A source: the SDK's server as a child of the fabric."""
    options = {"connect": START, **common}
    return Stdio(name=name, command=sys.executable, args=(SDK_SERVER, "stdio", str(record.path)), **options)


@asynccontextmanager
async def running(
    command: Sequence[str], *, stderr: int | None = None, group: bool = False, **options: object
) -> AsyncGenerator[trio.Process]:
    """A child that is killed when the block ends, and whose errors of the block come out bare."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process, list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                check=False, start_new_session=group, **options,
            )
        )  # fmt: skip
        try:
            yield process
        except Exception as exc:
            failure = exc
        finally:
            if process.returncode is None:
                os.kill(process.pid, signal.SIGKILL)
            with trio.move_on_after(5, shield=True):
                await process.wait()
        nursery.cancel_scope.cancel("the block has ended")
    if failure is not None:
        raise failure


async def read_line(stream: trio.abc.ReceiveStream | None) -> str:
    """The first line of a child's output."""
    assert stream is not None
    line = b""
    while not line.endswith(b"\n"):
        more = await stream.receive_some(1)
        assert more, f"the child's output ended after {line!r}"
        line += more
    return line.decode().strip()


@asynccontextmanager
async def sdk_over_http(record: Record) -> AsyncGenerator[str]:
    """The URL of an SDK server."""
    async with running([sys.executable, SDK_SERVER, "http", str(record.path)]) as process:
        yield await read_line(process.stdout)
