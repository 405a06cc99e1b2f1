"""A real nats-server from its wheel, for tests: on a free port, gone with its block."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

Json: TypeAlias = Any

PATIENCE = 10.0
"""Seconds for a server to start: it takes 0.1 where the machine has nothing else to do."""

FOUND = shutil.which("nats-server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


class Broker:
    """One server process.

    Attributes:
        folder: its log is there, and what it keeps, unless its configuration says otherwise.
        store: the folder of JetStream; to be changed before `start`.
        port: where it listens; the same after `start` again.
        websocket: where it listens for WebSockets; 0 if it does not.

    """

    def __init__(
        self, folder: Path, config: str, *, jetstream: bool, websocket: bool = False, host: str = "127.0.0.1"
    ) -> None:
        self.port = -1
        self._host = host
        self.websocket = 0
        self.folder = folder
        self._text = config
        self._jetstream = jetstream
        self._with_websocket = websocket
        self.store = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert FOUND is not None
        ports = self.folder / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        parts = [f'listen: "{self._host}:{self.port}"', f'ports_file_dir: "{ports}"', self._text]
        if self._jetstream:
            parts.append(f'jetstream {{ store_dir: "{self.store}", max_file: 64MB, max_mem: 64MB }}')
        if self._with_websocket:
            parts.append(f'websocket {{ listen: "127.0.0.1:{self.websocket or -1}", no_tls: true }}')
        config = self.folder / "server.conf"
        config.write_text("\n".join(parts), "utf-8")
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen([FOUND, "-c", str(config)], stdout=log, stderr=log)
        ends = time.monotonic() + PATIENCE
        while not (found := list(ports.glob("*.ports"))) or not (said := found[0].read_text("utf-8")):
            if time.monotonic() > ends or self._process.poll() is not None:
                raise AssertionError(f"nats-server did not start: {(self.folder / 'log').read_text('utf-8')[-2000:]}")
            time.sleep(0.01)
        places: Json = json.loads(said)
        self.port = int(places["nats"][0].rpartition(":")[2])
        if self._with_websocket:
            self.websocket = int(places["websocket"][0].rpartition(":")[2])

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, seconds: float) -> None:
        """Return once it has ended."""
        assert self._process is not None
        self._process.wait(seconds)
        self._process = None


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def cluster(config: str = "") -> Iterator[list[Broker]]:
    """Three servers of one cluster, each with `config` beside its addresses, for as long as the block runs."""
    routes = [free_port() for _ in range(3)]
    known = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    with tempfile.TemporaryDirectory(prefix="cord-nats-") as folder, ExitStack() as stack:
        brokers = []
        for number, port in enumerate(routes):
            place = Path(folder) / f"{number}"
            place.mkdir()
            route = f'cluster {{ name: "c", listen: "127.0.0.1:{port}", routes: [{known}] }}'
            text = f'server_name: "broker-{number}"\n{route}\n{config}'
            brokers.append(Broker(place, text, jetstream=True))
            stack.callback(brokers[-1].kill)
        for broker in brokers:
            broker.start()
        yield brokers


@contextmanager
def running(
    config: str = "", *, jetstream: bool = False, websocket: bool = False, host: str = "127.0.0.1"
) -> Iterator[Broker]:
    """A server with `config` beside its addresses, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="cord-nats-") as folder:
        broker = Broker(Path(folder), config, jetstream=jetstream, websocket=websocket, host=host)
        broker.start()
        try:
            yield broker
        finally:
            broker.kill()
